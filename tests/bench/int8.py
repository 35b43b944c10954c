"""What int8 products cost in accuracy, on the demo's held-out texts."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from app.demo import corpus
from app.models.bank import Bank
from app.models.classifier import Classifier
from app.models.int8 import Quantised
from app.models.tokenizer import TextTokenizer
from app.weights.methods import METHODS

TS = (0.0, 0.4, 1.0)


def accuracies(bank: Bank) -> Iterator[tuple[str, int, float, float, float]]:
    """For each variant and t, on its own and general test texts: recipe, texts, accuracy in float32 and in int8, and
    the share of texts with the same label; all in percent."""
    assert bank.family is not None
    classifier, encoder, slot = (
        Classifier(bank),
        TextTokenizer(bank.tokenizer, bank.config, 512),
        bank.arena.new_vector(),
    )
    for variant in corpus.DOMAINS:
        examples = [example for name in (variant, corpus.GENERAL) for example in corpus.read(name, "test")]
        rows = encoder.encode([example.text for example in examples])
        truth = torch.tensor([example.label for example in examples])
        for t in TS:
            METHODS["linear"](bank.arena, {"base": 1 - t, variant: t}, slot)
            with torch.inference_mode():
                quantised = Quantised(bank.arena.layout, slot, bank.family.large_blocks)
            exact, near = (
                classifier.batch(rows, [one] * len(rows)).argmax(1) for one in (classifier.fixed(slot), quantised)
            )
            scores = (hits.double().mean().item() * 100 for hits in (exact == truth, near == truth, exact == near))
            yield f"{variant}@{t:g}", len(rows), *scores
