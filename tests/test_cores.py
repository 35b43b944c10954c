"""The event loop's move to another core: it happens, and leaves no trace."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator

import pytest

from app.models.bank import Bank
from app.models.classifier import Classifier
from app.serving.cpu_affinity import ALLOWED, UNKNOWN, current_core, move_to
from app.serving.worker_process import ProcessTransport

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says and sets on which core a thread runs")


@pytest.fixture(autouse=True)
def allowed() -> Iterator[set[int]]:
    before = os.sched_getaffinity(0)
    yield before
    assert os.sched_getaffinity(0) == before


def test_a_thread_goes_on_where_it_is_told_to() -> None:
    for core in sorted(ALLOWED):
        # The kernel may move it on at any time, so one of several attempts has to be seen.
        assert any(move_to(core) is None and current_core() == core for _ in range(100))


@pytest.mark.parametrize("core", [UNKNOWN, 100_000])
def test_a_core_that_is_not_ours_is_no_error(core: int) -> None:
    move_to(core)


def test_what_the_system_forbids_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, cores: set[int]) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    for core in ALLOWED:
        move_to(core)


def test_the_loop_goes_on_where_the_worker_answered(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[int] = []
    monkeypatch.setattr("app.serving.worker_process.move_to", moves.append)

    async def main() -> None:
        slots = bank.arena.new_slots(1)
        lane = ProcessTransport(Classifier(bank), slots, 1)
        await lane.start()
        try:
            await lane.call("build", "linear", {"base": 0.5, "angry": 0.5}, len(bank.arena.rows))
        finally:
            await lane.close()

    asyncio.run(main())
    assert len(moves) == 1 and moves[0] in ALLOWED
