"""Logits from a bank in this process: what the command line gives a sweep."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from app.models.bank import Bank, BankSpec, load_bank
from app.models.classifier import Classifier
from app.models.tokenizer import TextTokenizer
from app.sweep.sweep_spec import BankFacts
from app.weights import geometry
from app.weights.methods import METHODS
from app.weights.recipe import Cookbook, Recipe


class LocalProvider:
    """Builds one blend at a time in a slot of its own, and runs texts through it."""

    def __init__(self, bank: Bank, max_tokens: int) -> None:
        self.bank = bank
        self.cookbook = Cookbook(bank.variants)
        self._encoder = TextTokenizer(bank.tokenizer, bank.config, max_tokens)
        self._classifier = Classifier(bank)
        self._slot = bank.arena.new_vector()
        self._built: Recipe | None = None

    @classmethod
    def load(cls, spec: BankSpec, device: torch.device, dtype: torch.dtype, max_tokens: int) -> LocalProvider:
        """Raises `BadBank`."""
        return cls(load_bank(spec, device, dtype), max_tokens)

    @property
    def labels(self) -> list[str]:
        return self.bank.labels

    @property
    def delta_products(self) -> NDArray[np.float64]:
        """Inner products of the deltas (V, V), in the order of the bank's variants."""
        products: NDArray[np.float64] = geometry.gram(self.bank.arena.rows).numpy()
        return products

    @property
    def facts(self) -> BankFacts:
        bank = self.bank
        return BankFacts(bank.labels, list(bank.variants), self.delta_products.tolist(), bank.problem_type)

    def key(self, recipe: Recipe) -> str:
        return f"{recipe.key(self.bank.fingerprint)}-{self._encoder.limits}"

    def logits(self, texts: Sequence[str], recipe: Recipe) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self._classifier.logits(self.vector(recipe), self._encoder.encode(texts)).numpy()
        return logits

    def padded(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """What transformers reads: token ids and masks (B, L), short texts padded at the end."""
        rows = self._encoder.encode(texts)
        longest = max(map(len, rows))
        pad = self.bank.tokenizer.pad_token_id or 0
        inputs = {
            "input_ids": torch.tensor([row.ids + [pad] * (longest - len(row)) for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
        }
        if "token_type_ids" in self.bank.tokenizer.model_input_names:
            inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        return {name: tensor.to(self.bank.device) for name, tensor in inputs.items()}

    def vector(self, recipe: Recipe) -> torch.Tensor:
        """The blend's weights (P,), in a slot that the next other recipe overwrites."""
        if recipe != self._built:
            METHODS[recipe.method](self.bank.arena, recipe.weights, self._slot, **recipe.parameter_values)
            self._built = recipe
        return self._slot
