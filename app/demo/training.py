"""Fine-tuning, as plain as it gets: AdamW, a linear warm-up and decay, batches of like length."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from app.demo.corpus import Example


@dataclass(frozen=True)
class TrainingPlan:
    """How to train. `head_rate` is the learning rate of what lies outside the encoder."""

    epochs: int
    rate: float
    head_rate: float
    batch: int = 16
    warm_up: float = 0.1
    decay: float = 0.01

    def steps(self, examples: int) -> int:
        return self.epochs * -(-examples // self.batch)


def fine_tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    examples: Sequence[Example],
    plan: TrainingPlan,
    seed: int,
    on_step: Callable[[], None],
) -> None:
    """Train `model` in place on the examples; it is left in evaluation mode."""
    torch.manual_seed(seed)
    shuffler = random.Random(seed)
    steps = plan.steps(len(examples))
    optimizer = torch.optim.AdamW(_groups(model, plan), weight_decay=plan.decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _slope(step / steps, plan.warm_up))
    model.train()
    for _ in range(plan.epochs):
        for batch in _batches(examples, plan.batch, shuffler):
            inputs = tokenizer(
                [e.text for e in batch], padding=True, truncation=True, max_length=128, return_tensors="pt"
            )
            labels = torch.tensor([e.label for e in batch])
            loss = model(**inputs.to(model.device), labels=labels.to(model.device)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            on_step()
    model.eval()


def _groups(model: PreTrainedModel, plan: TrainingPlan) -> list[dict[str, object]]:
    encoder = model.base_model_prefix + "."
    inside = [p for name, p in model.named_parameters() if name.startswith(encoder)]
    outside = [p for name, p in model.named_parameters() if not name.startswith(encoder)]
    return [{"params": inside, "lr": plan.rate}, {"params": outside, "lr": plan.head_rate}]


def _slope(done: float, warm_up: float) -> float:
    return done / warm_up if done < warm_up else (1 - done) / (1 - warm_up)


def _batches(examples: Sequence[Example], size: int, shuffler: random.Random) -> list[list[Example]]:
    """All examples once, in a new order: batches hold texts of like length, so that little is padding."""
    pool = list(examples)
    shuffler.shuffle(pool)
    ordered: list[Example] = []
    for start in range(0, len(pool), size * 8):
        ordered += sorted(pool[start : start + size * 8], key=lambda e: len(e.text))
    batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    shuffler.shuffle(batches)
    return batches
