"""Token rows and weights in, logits out.

Weights are a vector (an arena row or a slot), or a mix of members that is another one for every row. The Bert
family runs packed, without padding, and takes both; other architectures run through transformers, by like
length, with a model whose parameters are views of the vector. Both give the logits of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from app.models import packed
from app.models.bank import Bank
from app.models.products import Fixed, Mixed
from app.models.tokens import Row

PADDING_TOLERATED = 1.25
"""Rows run together while the longest has at most this many times the tokens of the shortest."""


class Classifier:
    """Runs rows through the bank's architecture with any weights of its layout."""

    def __init__(self, bank: Bank) -> None:
        self._bank = bank
        self._family = bank.family
        self._bound: dict[int, PreTrainedModel] = {}
        self._pad = bank.tokenizer.pad_token_id or 0
        self._reads_types = "token_type_ids" in bank.tokenizer.model_input_names

    @property
    def mixes(self) -> bool:
        """Whether `mixed` can be called."""
        return self._family is not None

    @property
    def members(self) -> int:
        """M, the members of the arena."""
        return len(self._bank.arena.names)

    def logits(self, vector: Tensor, rows: Sequence[Row]) -> Tensor:
        """Logits (B, C) in float32 on the CPU, in the order of `rows`, all with weights (P,)."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        out = torch.empty(len(rows), len(self._bank.labels))
        with torch.inference_mode():
            if self._family is not None:
                batch = packed.pack([rows[i] for i in order], self._family, self._reads_types, self._bank.device)
                weights = Fixed(self._bank.arena.layout, vector)
                out[order] = packed.forward(self._family, weights, batch).float().cpu()
            else:
                for indices in _of_like_length(order, rows):
                    out[indices] = self._padded(self._model(vector), [rows[i] for i in indices]).float().cpu()
        return out

    def mixed(self, weights: Tensor, rows: Sequence[Row], slots: Sequence[Tensor] = ()) -> Tensor:
        """Logits (B, C) as above, where the weights of row i are the members of the arena and the vectors in `slots`,
        mixed by `weights[i]`, (B, M + S), which add up to 1.

        Nothing is built. Rows of the same members run side by side, so that no product is made for others.
        """
        assert self._family is not None
        members = weights.ne(0).tolist()
        order = sorted(range(len(rows)), key=lambda i: (members[i], len(rows[i])))
        ordered = [rows[i] for i in order]
        device, arena = self._bank.device, self._bank.arena
        lengths = torch.tensor([len(row) for row in ordered])
        by_token = weights[order].repeat_interleave(lengths, dim=0).to(device, arena.rows.dtype)
        out = torch.empty(len(rows), len(self._bank.labels))
        with torch.inference_mode():
            batch = packed.pack(ordered, self._family, self._reads_types, device)
            out[order] = packed.forward(self._family, Mixed(arena, slots, by_token), batch).float().cpu()
        return out

    def _model(self, vector: Tensor) -> PreTrainedModel:
        """The model bound to this place in memory; slots are few and are reused, so it is made once each."""
        place = vector.data_ptr()
        if place not in self._bound:
            self._bound[place] = self._bank.bind(vector)
        return self._bound[place]

    def _padded(self, model: PreTrainedModel, rows: Sequence[Row]) -> Tensor:
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


def _of_like_length(order: Sequence[int], rows: Sequence[Row]) -> list[list[int]]:
    """Indices, which come sorted by length, in groups of like length, so that little of a group is padding."""
    groups: list[list[int]] = []
    for i in order:
        if groups and len(rows[i]) <= PADDING_TOLERATED * len(rows[groups[-1][0]]):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
