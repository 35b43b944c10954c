"""Token rows and a vector of weights in, logits out.

The vector is an arena row or a slot: the model that runs it owns no weights, its parameters are views.
Everything that touches matrices is behind `Classifier.logits`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from app.models.bank import Bank
from app.models.tokens import Row

PADDING_TOLERATED = 1.25
"""Rows run together while the longest has at most this many times the tokens of the shortest."""


class Classifier:
    """Runs rows through the bank's architecture with any weights of its layout."""

    def __init__(self, bank: Bank) -> None:
        self._bank = bank
        self._bound: dict[int, PreTrainedModel] = {}
        self._pad = bank.tokenizer.pad_token_id or 0
        self._reads_types = "token_type_ids" in bank.tokenizer.model_input_names

    def logits(self, vector: Tensor, rows: Sequence[Row]) -> Tensor:
        """Logits (B, C) in float32 on the CPU, in the order of `rows`, from weights (P,)."""
        model = self._model(vector)
        out = torch.empty(len(rows), len(self._bank.labels))
        for indices in _by_length(rows):
            with torch.inference_mode():
                out[indices] = self._forward(model, [rows[i] for i in indices]).float().cpu()
        return out

    def _model(self, vector: Tensor) -> PreTrainedModel:
        """The model bound to this place in memory; slots are few and are reused, so it is made once each."""
        place = vector.data_ptr()
        if place not in self._bound:
            self._bound[place] = self._bank.bind(vector)
        return self._bound[place]

    def _forward(self, model: PreTrainedModel, rows: Sequence[Row]) -> Tensor:
        longest = max(len(row) for row in rows)
        ids = torch.full((len(rows), longest), self._pad)  # (B, L)
        mask = torch.zeros_like(ids)
        types = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row.ids)
            mask[i, : len(row)] = 1
            types[i, : len(row)] = torch.tensor(row.types)
        device = self._bank.device
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        if self._reads_types:
            inputs["token_type_ids"] = types.to(device)
        logits: Tensor = model(**inputs).logits
        return logits


def _by_length(rows: Sequence[Row]) -> list[list[int]]:
    """Indices in groups of like length, so that little of a group is padding."""
    groups: list[list[int]] = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        if groups and len(rows[i]) <= PADDING_TOLERATED * len(rows[groups[-1][0]]):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
