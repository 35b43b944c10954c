"""Half precision rounds weights and sums; the shares of members are never rounded with them."""

from __future__ import annotations

from pathlib import Path

import pico
import pytest
import torch

from app.models.bank import BankSpec, load_bank
from app.models.classifier import Classifier, Mix
from app.models.cuda_graphs import GridShape, Recordings
from app.models.operands import FixedOperands, MixedOperands
from app.models.tokenizer import TextTokenizer
from app.weights.arena import Arena
from app.weights.layout import Layout
from app.weights.methods import METHODS

CPU = torch.device("cpu")
HALF = [torch.bfloat16, torch.float16]
TS = [t / 100 for t in range(1, 100)]
MEMBERS = [0.0, 1.0, -1.75]


@pytest.fixture(params=HALF, ids=str)
def arena(request: pytest.FixtureRequest) -> Arena:
    """Three members whose every number is one that half precision has exactly."""
    layout = Layout([("table", (1, 8)), ("norm.weight", (8,)), ("norm.bias", (8,))], ())
    made = Arena(layout, ("a", "b"), CPU, request.param)
    for row, value in zip(made.rows, MEMBERS, strict=True):
        row.fill_(value)
    return made


def shares_of(t: float, count: int) -> list[float]:
    return [1 - t, t, 0.0] if count == 2 else [1 - t, t / 2, t / 2]


def is_rounded_once(got: torch.Tensor, shares: list[float]) -> None:
    true = torch.tensor(sum(share * value for share, value in zip(shares, MEMBERS, strict=True)), dtype=torch.float64)
    half_a_unit = torch.finfo(got.dtype).eps / 2 * true.abs()
    assert ((got.double() - true).abs() <= half_a_unit * 1.001).all()


@pytest.mark.parametrize("count", [2, 3])
def test_rows_that_are_mixed_take_exact_shares(arena: Arena, count: int) -> None:
    members = [FixedOperands(arena.layout, row) for row in arena.rows]
    shares = torch.tensor([shares_of(t, count) for t in TS])
    index = torch.zeros(len(TS), dtype=torch.long)
    mixed = MixedOperands(members, {}, shares, range(count))
    for got, t in zip(mixed.embed("table", index), TS, strict=True):
        assert got.dtype == arena.rows.dtype
        is_rounded_once(got, shares_of(t, count))


@pytest.mark.parametrize("count", [2, 3])
def test_what_is_built_takes_exact_shares(arena: Arena, count: int) -> None:
    for t in TS:
        slot, shares = arena.new_vector(), shares_of(t, count)
        METHODS["linear"](arena, dict(zip(arena.names, shares, strict=True)), slot)
        is_rounded_once(slot, shares)


def test_recorded_passes_keep_exact_shares() -> None:
    recordings = Recordings(recorder=None, members=3, device=CPU, dtype=torch.bfloat16)  # type: ignore[arg-type]
    buffers = recordings.buffers(GridShape(2, 8))
    buffers.shares.copy_(torch.tensor([[0.63, 0.37, 0.0]] * 2))
    assert torch.equal(buffers.shares, torch.tensor([[0.63, 0.37, 0.0]] * 2))


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("ramp", [False, True])
def test_a_classifier_hands_on_shares_as_they_are(
    tmp_path_factory: pytest.TempPathFactory, dtype: torch.dtype, ramp: bool
) -> None:
    folder: Path = pico.write_bank(tmp_path_factory.mktemp("half"), "bert")
    bank = load_bank(BankSpec.from_toml(folder / "bank.toml"), CPU, dtype)
    classifier = Classifier(bank)
    rows = TextTokenizer(bank.tokenizer, bank.config, 64).encode(["late order", "they never answer"])
    mix = Mix((0.63, 0.37, 0.0), (0.31, 0.69, 0.0) if ramp else ())
    section = classifier._section([mix] * 2, [len(row) for row in rows])
    assert isinstance(section, MixedOperands)
    assert torch.equal(section._shares[0], torch.tensor([0.63, 0.37, 0.0]))
