"""Fast gradient method (FGSM): one step on the input embeddings of a blend.

    r = epsilon |E| g / |g|     with E (L, H) a text's embeddings and g the gradient of its loss there

(Miyato et al., arXiv 1605.07725, with the step measured in lengths of the text's own embeddings.) A hook adds r behind
the embedding table, which works for every architecture, and only r needs a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from app.sweep.logits.local_provider import LocalProvider
from app.weights.recipe import Recipe

EPSILON = 0.05
BATCH = 32

Hook = Callable[[nn.Module, object, Tensor], Tensor]


@contextmanager
def _behind(model: PreTrainedModel, hook: Hook) -> Iterator[None]:
    """Run with a hook behind the embedding table."""
    handle = model.get_input_embeddings().register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


class FastGradient:
    """A white-box attack (FGSM); see `robustness.Attack`."""

    def __init__(self, provider: LocalProvider, epsilon: float = EPSILON) -> None:
        self._provider = provider
        self._epsilon = epsilon

    def __call__(self, texts: Sequence[str], labels: NDArray[np.int64], recipe: Recipe) -> NDArray[np.float32]:
        model = self._provider.bank.bind(self._provider.vector(recipe))
        order = np.argsort([len(text) for text in texts], kind="stable")
        logits = np.empty((len(texts), len(self._provider.labels)), dtype=np.float32)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            logits[rows] = self._attacked(model, [texts[row] for row in rows], torch.from_numpy(labels[rows]))
        return logits

    def _attacked(self, model: PreTrainedModel, texts: list[str], labels: Tensor) -> NDArray[np.float32]:
        inputs = self._provider.padded(texts)
        labels = labels.to(inputs["input_ids"].device)
        mask = inputs["attention_mask"][..., None]
        moved: list[Tensor] = []

        def note(module: nn.Module, arguments: object, embeddings: Tensor) -> Tensor:
            moved.append(embeddings.detach().clone().requires_grad_(True))
            return moved[-1]

        with _behind(model, note), torch.enable_grad():
            loss = nn.functional.cross_entropy(model(**inputs).logits, labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, moved)
        length = (moved[0].detach() * mask).flatten(1).norm(dim=1)[:, None, None]
        gradient = gradient * mask
        step = self._epsilon * length * gradient / gradient.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None]

        def push(module: nn.Module, arguments: object, embeddings: Tensor) -> Tensor:
            return torch.add(embeddings, step)

        with _behind(model, push), torch.no_grad():
            attacked: NDArray[np.float32] = model(**inputs).logits.float().cpu().numpy()
        return attacked
