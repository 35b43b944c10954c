"""Recorded passes, on a recorder that does what a CUDA graph does, as far as a CPU can.

It runs the same operators on the same memory again, and nothing of the Python between them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pico
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from app.errors import OutOfMemory
from app.models import cuda_graphs, packed_forward
from app.models.bank import Bank, BankSpec, load_bank
from app.models.classifier import Classifier, Mix
from app.models.cuda_graphs import GridShape, Recordings, Replay, shape_for
from app.models.operands import FixedOperands, MixedOperands, Operands
from app.models.tokenizer import Row, TextTokenizer
from app.serving.executor import ExecutorPool, ModelRunner, ThreadTransport, VectorRef
from app.weights import arena
from app.weights.methods import METHODS

TEXTS = ["late", "my order came late again", "so kind", "a very late order", "fine", "ok then"]
PACKED = [name for name in pico.CONFIGS if name in ("bert", "distilbert", "roberta", "xlm-roberta", "electra")]
NEVER_RECORDED = ("_local_scalar_dense", "nonzero", "item")


class Tape(TorchDispatchMode):
    """Operators as they were called, which can be called again."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, tree_leaves(out)))
        return out

    def record(self, run: Callable[[], Tensor]) -> Replay:
        self.calls = []
        with self:
            out = run()
        calls = self.calls

        def replay() -> Tensor:
            for func, args, kwargs, outs in calls:
                given = {one.untyped_storage().data_ptr() for one in tree_leaves((args, kwargs)) if _is_tensor(one)}
                for kept, new in zip(outs, tree_leaves(func(*args, **kwargs)), strict=True):
                    if _is_tensor(kept) and kept.untyped_storage().data_ptr() not in given:
                        kept.copy_(new)
            return out

        return replay


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


@pytest.fixture
def rows(bank: Bank) -> list[Row]:
    return TextTokenizer(bank.tokenizer, bank.config, 64).encode(TEXTS)


@pytest.fixture
def plain(bank: Bank) -> Classifier:
    return Classifier(bank)


@pytest.fixture
def taped(bank: Bank) -> Iterator[tuple[Classifier, Recordings, Tape]]:
    classifier, tape = Classifier(bank), Tape()
    yield classifier, classifier.record(tape), tape


Taped = tuple[Classifier, Recordings, Tape]


def agree(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_a_replay_gives_the_logits_of_other_rows_and_of_what_then_lies_in_the_slot(
    plain: Classifier, taped: Taped, rows: list[Row]
) -> None:
    classifier, recordings, tape = taped
    slot = classifier.arena.new_vector()
    for number, t in enumerate((0.3, 0.3, 0.7, 0.9)):
        METHODS["linear"](classifier.arena, {"base": 1 - t, "angry": t}, slot)
        some = [rows[(number + i) % len(rows)] for i in range(3)]
        assert shape_for([len(row) for row in some]) == GridShape(4, 16)
        agree(classifier.logits(slot, some), plain.logits(slot, some))
    assert recordings.replayed == 2 and len(tape.calls) > 20


def test_a_replay_mixes_by_the_shares_that_are_given_then(plain: Classifier, taped: Taped, rows: list[Row]) -> None:
    classifier, recordings, _ = taped
    for number in range(5):
        mixes = [Mix((1 - t, t, 0.0)) for t in (0.1 * number + 0.05, 0.5, 0.9 - 0.1 * number)]
        agree(classifier.batch(rows[:3], mixes), plain.batch(rows[:3], mixes))
    assert recordings.replayed == 3
    other = [Mix((0.2, 0.3, 0.5))] * 3  # of other members, which is another pass
    agree(classifier.batch(rows[:3], other), plain.batch(rows[:3], other))
    assert recordings.replayed == 3


def test_ramps_and_what_is_too_large_run_as_ever(plain: Classifier, taped: Taped, rows: list[Row]) -> None:
    classifier, recordings, tape = taped
    ramp = [Mix((0.9, 0.1, 0.0), (0.1, 0.9, 0.0))] * 2
    many = [rows[i % len(rows)] for i in range(200)]
    for _ in range(3):
        agree(classifier.batch(rows[:2], ramp), plain.batch(rows[:2], ramp))
        agree(classifier.logits(classifier.arena["angry"], many), plain.logits(classifier.arena["angry"], many))
    assert recordings.replayed == 0 and not tape.calls


def test_shapes_are_few_and_hold_what_they_are_for() -> None:
    assert shape_for([5]) == GridShape(1, 16)
    assert shape_for([16, 17, 3]) == GridShape(4, 32)
    assert shape_for([64] * 32) == GridShape(32, 64)
    assert shape_for([64] * 33) is None and shape_for([513]) is None and shape_for([1] * 65) is None
    shapes = {shape_for([n] * texts) for n in range(1, 513) for texts in range(1, 65)} - {None}
    assert len(shapes) == 50


@pytest.mark.parametrize("name", PACKED)
def test_every_packed_architecture_replays(name: str, tmp_path: Path) -> None:
    bank = load_bank(BankSpec.from_toml(pico.write_bank(tmp_path, name) / "bank.toml"), torch.device("cpu"))
    classifier, plain = Classifier(bank), Classifier(bank)
    recordings = classifier.record(Tape())
    rows = TextTokenizer(bank.tokenizer, bank.config, 64).encode(TEXTS)
    for number in range(4):
        some = rows[number : number + 2]
        mix = Mix((0.8 - 0.1 * number, 0.2 + 0.1 * number, 0.0))
        agree(classifier.logits(bank.arena["angry"], some), plain.logits(bank.arena["angry"], some))
        agree(classifier.batch(some, [mix] * 2), plain.batch(some, [mix] * 2))
    assert recordings.replayed == 4


class Failing:
    def record(self, run: Callable[[], Tensor]) -> Replay:
        raise RuntimeError("operation not permitted when stream is capturing")


class Wrong:
    def record(self, run: Callable[[], Tensor]) -> Replay:
        out = run() + 1
        return lambda: out


@pytest.mark.parametrize(
    ("recorder", "why"),
    [(Failing(), "could not be recorded"), (Wrong(), "gave other logits")],
    ids=["fails", "is wrong"],
)
def test_what_cannot_be_recorded_is_run_and_told_until_no_more_is_tried(
    bank: Bank,
    plain: Classifier,
    rows: list[Row],
    recorder: cuda_graphs.Recorder,
    why: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    classifier = Classifier(bank)
    recordings = classifier.record(recorder)
    for name in ("angry", "polite"):
        for count in (1, 1, 1, 1, 3, 3, 3, 3):
            vector = classifier.arena[name]
            agree(classifier.logits(vector, rows[:count]), plain.logits(vector, rows[:count]))
    told = [record.getMessage() for record in caplog.records]
    assert recordings.replayed == 0 and len(told) == cuda_graphs.FAILURES and all(why in line for line in told)
    assert "this one is not used" in told[0] and "none will be used any more" in told[-1]


def test_one_recording_that_fails_ends_only_itself(taped: Taped, plain: Classifier, rows: list[Row]) -> None:
    classifier, recordings, tape = taped
    recordings._recorder = Wrong()
    for _ in range(2):
        classifier.logits(classifier.arena["angry"], rows[:1])
    recordings._recorder = tape
    for _ in range(3):
        vector = classifier.arena["polite"]
        agree(classifier.logits(vector, rows[:1]), plain.logits(vector, rows[:1]))
    assert recordings.replayed == 1


class Short:
    """Has no memory for a recording, once."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.short = True

    def record(self, run: Callable[[], Tensor]) -> Replay:
        if self.short:
            self.short = False
            raise torch.OutOfMemoryError("out of memory")
        return self.tape.record(run)


def test_a_shortage_while_recording_is_that_of_a_pass_and_ends_nothing(bank: Bank, rows: list[Row]) -> None:
    classifier = Classifier(bank)
    recordings = classifier.record(Short(Tape()))
    machine = ModelRunner(classifier, bank.arena.new_slots(1))
    place = VectorRef(bank.arena.names.index("angry"), "angry")
    machine.forward(rows[:1], [place])
    with pytest.raises(OutOfMemory):
        machine.forward(rows[:1], [place])
    for _ in range(3):
        machine.forward(rows[:1], [place])
    assert recordings.replayed == 1


def test_small_passes_are_padded_only_where_they_are_recorded(
    taped: Taped, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    laid_out = []
    lay_out = packed_forward.lay_out
    monkeypatch.setattr(packed_forward, "lay_out", lambda *given: (laid_out.append(given), lay_out(*given))[1])
    classifier, recordings, _ = taped
    for so_far in (0, 1, 2):  # the second of a kind is recorded, the third replayed
        classifier.logits(classifier.arena["angry"], rows[:2])
        assert len(laid_out) == so_far
    recordings._recorder = None
    for _ in range(3):
        classifier.logits(classifier.arena["polite"], rows[:2])
    assert len(laid_out) == 2


def test_a_new_recording_takes_the_place_of_one_that_was_not_used_for_long(
    taped: Taped, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, recordings, tape = taped
    monkeypatch.setattr(cuda_graphs, "ROOM", 1)
    monkeypatch.setattr(cuda_graphs, "STALE", 6)

    def replayed(*names: str) -> int:
        before = recordings.replayed
        for name in names:
            classifier.logits(classifier.arena[name], rows[:1])
        return recordings.replayed - before

    assert replayed("angry", "angry", "angry") == 1
    assert replayed(*["polite", "angry"] * 8) == 8  # more are hot than there is room for: the first one stays
    assert replayed(*["polite"] * 8) == 1  # the seventh pass without the other makes one of this
    assert replayed("angry") == 0 and tape.calls


@pytest.mark.parametrize("mixed", [False, True])
def test_a_recorded_pass_neither_waits_for_its_device_nor_copies_from_the_host(bank: Bank, mixed: bool) -> None:
    """On tensors without values: what asks for one fails, and what lies on the host shows."""
    family, layout = Classifier(bank)._family, bank.arena.layout
    assert family is not None
    shape = GridShape(2, 16)
    arena._on_device.cache_clear()

    def run(cells: Tensor, shares: Tensor, members: list[FixedOperands]) -> Tensor:
        partials = {one.start: one for one in bank.arena.partials}
        operands: Operands = MixedOperands(members, partials, shares, (0, 1)) if mixed else members[1]
        return packed_forward.forward(family, operands, packed_forward.on_board(cells, *shape)).float()

    try:
        with torch.device("meta"), torch.inference_mode():
            cells = torch.zeros(4, 32, dtype=torch.long)
            shares = torch.zeros(32, len(bank.arena.rows))
            vectors = torch.zeros(bank.arena.rows.shape)
            members = [FixedOperands(layout, vector) for vector in vectors]
            run(cells, shares, members)  # what is copied once is copied now
            tape = Tape()
            with tape:
                out = run(cells, shares, members)
            assert out.device.type == "meta" and out.shape == (2, len(bank.labels))
    finally:
        arena._on_device.cache_clear()
    assert len(tape.calls) > 20
    for func, args, kwargs, outs in tape.calls:
        assert not any(name in str(func) for name in NEVER_RECORDED)
        tensors = [one for one in tree_leaves((args, kwargs, outs)) if _is_tensor(one)]
        assert all(one.device.type == "meta" for one in tensors), func


def test_replays_are_counted_by_the_compute_that_they_ran_on(bank: Bank, taped: Taped, rows: list[Row]) -> None:
    async def main() -> int:
        with ThreadPoolExecutor(1) as thread:
            machine = ModelRunner(taped[0], bank.arena.new_slots(1))
            compute = ExecutorPool(machine, [ThreadTransport(machine, thread)])
            async with compute.unit() as unit:
                for _ in range(5):
                    await unit.forward(rows[:2], [Mix((0.7, 0.3, 0.0))] * 2)
            return compute.replayed

    assert asyncio.run(main()) == 3  # it is recorded when it is asked for the second time


def test_recordings_are_let_go_where_memory_is_short_and_made_anew(
    plain: Classifier, taped: Taped, rows: list[Row]
) -> None:
    classifier, recordings, _ = taped
    vector = classifier.arena["angry"]
    for _ in range(2):
        for _ in range(3):
            agree(classifier.logits(vector, rows[:1]), plain.logits(vector, rows[:1]))
        classifier.forget_recordings()
    assert recordings.replayed == 2
