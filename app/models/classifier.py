"""Token rows and weights in, logits out.

Weights are a vector (an arena row or a slot), or a mix of members that is another one for every row. The Bert
family runs packed, without padding, and takes both; other architectures run through transformers, by like
length, with a model whose parameters are views of the vector. Both give the logits of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from app.models import packed_forward
from app.models.bank import Bank
from app.models.cuda_graphs import GridShape, Recorder, Recordings, shape_for
from app.models.int8 import Int8Copies
from app.models.operands import FixedOperands, MixedOperands, Operands, RampedOperands
from app.models.tokenizer import Row
from app.weights.arena import Arena, Partial, Share, is_ramp
from app.weights.layer_depth import depths

PADDING_TOLERATED = 1.25
"""Rows run together while the longest has at most this many times the tokens of the shortest."""
STEPS, SMALLEST_STEP = 16, 4
"""Numbers of tokens in a batch: up to 16 times a step they are multiples of it, then the step doubles."""


@dataclass(frozen=True)
class Mix:
    """Weights that are nowhere: the share of each member of the arena, in the order of its rows. Where shares run over
    the layers, `last` has those in the last one, and else nothing."""

    shares: tuple[float, ...]
    last: tuple[float, ...] = ()

    @classmethod
    def of(cls, weights: Mapping[str, Share], arena: Arena) -> Mix:
        """The mix with these weights by name."""
        return cls(arena.shares_of(weights), arena.shares_of(weights, 1.0) if is_ramp(weights) else ())

    @property
    def section(self) -> tuple[int, ...]:
        """What rows that are mixed side by side have in common: the members that take part, by number."""
        if not self.last:
            return tuple(number for number, share in enumerate(self.shares) if share)
        return tuple(number for number, ends in enumerate(zip(self.shares, self.last, strict=True)) if any(ends))


class Classifier:
    """Runs rows through the bank's architecture with any weights of its layout.

    It can be sent to a process that is being started, where it works on the same arena.
    """

    def __init__(self, bank: Bank) -> None:
        self.arena = bank.arena
        self._network = bank.network
        self._family = bank.family
        self._classes = len(bank.labels)
        self._members = [self.fixed(row) for row in bank.arena.rows]
        self._depths = depths(bank.arena.layout)
        self._bound: dict[int, PreTrainedModel] = {}
        self._pad = bank.tokenizer.pad_token_id or 0
        self._reads_types = "token_type_ids" in bank.tokenizer.model_input_names
        self._recordings: Recordings | None = None

    def __getstate__(self) -> dict[str, object]:
        """Without the members' rows: they lie in the arena, and torch would copy them all to /dev/shm, which is small
        in a container."""
        return {name: value for name, value in self.__dict__.items() if name != "_members"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._members = [self.fixed(row) for row in self.arena.rows]

    def record(self, recorder: Recorder) -> Recordings:
        """From now on, have passes of frequent shapes recorded and replayed, where the architecture runs packed."""
        rows = self.arena.rows
        self._recordings = Recordings(recorder, len(rows), rows.device, rows.dtype)
        return self._recordings

    @property
    def replayed(self) -> int:
        """Passes that were replays of a recording."""
        return self._recordings.replayed if self._recordings is not None else 0

    def forget_recordings(self) -> None:
        """Give back the memory that they hold; frequent passes are recorded again."""
        if self._recordings is not None:
            self._recordings.forget()

    @property
    def mixes(self) -> bool:
        """Whether rows can be mixed from members."""
        return self._family is not None and self.arena.has_members

    def logits(self, vector: Tensor, rows: Sequence[Row]) -> Tensor:
        """Logits (B, C) in float32 on the CPU, in the order of `rows`, all with weights (P,)."""
        return self.batch(rows, [self.fixed(vector)] * len(rows))

    def fixed(self, vector: Tensor) -> FixedOperands:
        """Weights (P,) ready to run; whoever runs them often keeps what this gives."""
        return FixedOperands(self.arena.layout, vector)

    def int8_copies(self, room: int) -> Int8Copies | None:
        """Copies in int8 of hot vectors, at most `room` of them; None where the architecture cannot use them."""
        if self._family is None:
            return None
        return Int8Copies(self.arena.layout, self._family.large_blocks, room)

    def batch(self, rows: Sequence[Row], weights: Sequence[FixedOperands | Mix]) -> Tensor:
        """Logits (B, C) in float32 on the CPU, in the order of `rows`, each with weights of its own.

        Rows of one vector run together, and so do rows that are mixed from the same members.
        """
        sections: dict[object, list[int]] = {}
        for i, one in enumerate(weights):
            sections.setdefault(one.section, []).append(i)
        out = torch.empty(len(rows), self._classes)
        with torch.inference_mode():
            for indices in sections.values():
                indices.sort(key=lambda i: len(rows[i]))
                run = self._packed if self._family is not None else self._through_transformers
                out[indices] = run([rows[i] for i in indices], [weights[i] for i in indices])
        return out

    def _packed(self, rows: Sequence[Row], weights: Sequence[FixedOperands | Mix]) -> Tensor:
        assert self._family is not None
        recorded = self._recorded(rows, weights)
        if recorded is not None:
            return recorded
        texts = len(rows)
        if self._device.type == "cpu":
            rows = [*rows, *_filling(rows)]
            weights = [*weights, *[weights[-1]] * (len(rows) - texts)]
        batch = packed_forward.pack(rows, self._family, self._reads_types, self._device)
        logits = packed_forward.forward(self._family, self._section(weights, [len(row) for row in rows]), batch)
        return logits[:texts].float().cpu()

    def _recorded(self, rows: Sequence[Row], weights: Sequence[FixedOperands | Mix]) -> Tensor | None:
        """The same by a recording of a pass of some fixed shape; None where there is none for these rows."""
        if self._recordings is None or any(isinstance(one, Mix) and one.last for one in weights):
            return None
        first, shape = weights[0], shape_for([len(row) for row in rows])
        if shape is None or not self._recordings.want((first.section, shape)):
            return None
        family, buffers = self._family, self._recordings.buffers(shape)
        assert family is not None
        buffers.cells.copy_(packed_forward.lay_out(rows, family, self._reads_types, *shape))
        if isinstance(first, Mix):
            shares = [one.shares for one in weights if isinstance(one, Mix)]
            buffers.shares.copy_(torch.tensor([*shares, *[first.shares] * (shape.texts - len(rows))]))

        def run() -> Tensor:
            operands: Operands = (
                first if isinstance(first, FixedOperands) else self._on_board(first, buffers.shares, shape)
            )
            return packed_forward.forward(family, operands, packed_forward.on_board(buffers.cells, *shape)).float()

        return self._recordings.run((first.section, shape), run)[: len(rows)].cpu()

    def _on_board(self, mix: Mix, shares: Tensor, shape: GridShape) -> MixedOperands:
        """Weights mixed from the same members as `mix`, with shares (B, M) of texts that are padded to a shape."""
        by_token = shares[:, None].expand(-1, shape.length, -1).reshape(-1, shares.shape[-1])
        return MixedOperands(self._members, self._partials, by_token, mix.section)

    def _section(self, weights: Sequence[FixedOperands | Mix], lengths: Sequence[int]) -> Operands:
        """The weights of rows of one section, which have so many tokens each."""
        first = weights[0]
        if isinstance(first, FixedOperands):
            return first
        mixes = [one for one in weights if isinstance(one, Mix)]
        shares = self._by_token([one.shares for one in mixes], lengths)
        if not any(one.last for one in mixes):
            return MixedOperands(self._members, self._partials, shares, mixes[0].section)
        last = self._by_token([one.last or one.shares for one in mixes], lengths)
        return RampedOperands(self._members, self._partials, shares, last, self._depths, mixes[0].section)

    @property
    def _partials(self) -> dict[int, Partial]:
        return {partial.start: partial for partial in self.arena.partials}

    def _by_token(self, shares: Sequence[tuple[float, ...]], lengths: Sequence[int]) -> Tensor:
        """Shares of rows that have so many tokens each, as (N, M) in float32, whatever weights are stored as."""
        return torch.tensor(shares).repeat_interleave(torch.tensor(lengths), dim=0).to(self._device)

    def _through_transformers(self, rows: Sequence[Row], weights: Sequence[FixedOperands | Mix]) -> Tensor:
        first = weights[0]
        assert isinstance(first, FixedOperands), "only the Bert family mixes"
        model, out = self._model(first.vector), torch.empty(len(rows), self._classes)
        for alike in _of_like_length(rows):
            out[alike.start : alike.stop] = self._padded(model, rows[alike.start : alike.stop]).float().cpu()
        return out

    @property
    def _device(self) -> torch.device:
        return self.arena.rows.device

    def _model(self, vector: Tensor) -> PreTrainedModel:
        """The model bound to this place in memory; slots are few and are reused, so it is made once each."""
        place = vector.data_ptr()
        if place not in self._bound:
            self._bound[place] = self._network.bind(vector)
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
        device = self._device
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        if self._reads_types:
            inputs["token_type_ids"] = types.to(device)
        logits: Tensor = model(**inputs).logits
        return logits


def _filling(rows: Sequence[Row]) -> list[Row]:
    """Rows that nobody asked for, which bring the tokens of a batch to one of a few numbers (64 up to 4,096).

    oneDNN compiles kernels for every number of tokens that it meets and keeps them: a gigabyte after a thousand.
    """
    tokens = sum(len(row) for row in rows)
    step = SMALLEST_STEP
    while tokens > STEPS * step:
        step *= 2
    missing, longest = -tokens % step, len(rows[-1])
    lengths = [longest] * (missing // longest) + [missing % longest] * (missing % longest > 0)
    return [Row([0] * length, [0] * length, truncated=False) for length in lengths]


def _of_like_length(rows: Sequence[Row]) -> list[range]:
    """Rows, which come sorted by length, in stretches of like length, so that little of each is padding."""
    stretches: list[range] = []
    for i, row in enumerate(rows):
        if stretches and len(row) <= PADDING_TOLERATED * len(rows[stretches[-1].start]):
            stretches[-1] = range(stretches[-1].start, i + 1)
        else:
            stretches.append(range(i, i + 1))
    return stretches
