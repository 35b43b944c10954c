"""In which order rows leave the line, and which of them together."""

from __future__ import annotations

from concurrent.futures import Future

import pytest
import torch

from app.models.classifier import Mix
from app.models.tokenizer import Row
from app.serving.blend_provider import Weights
from app.serving.executor import Vector
from app.serving.request_queue import Batch, Job, RequestQueue
from app.weights.recipe import Cookbook

LENGTH = 10
"""Tokens of every row here."""
RECIPE = Cookbook(["angry"]).read("angry@0.5")


def job(name: str | Mix, rows: int = 1) -> Job:
    """A caller with so many rows, on the vector of that name or mixed."""
    operand = name if isinstance(name, Mix) else Vector(torch.empty(0), name)
    row = Row([1] * LENGTH, [0] * LENGTH, truncated=False)
    done = Future[object]()  # as good as one of a loop: only whether it is done is asked
    return Job([row] * rows, Weights("", RECIPE, operand, "memory", 0.0), done, [b""] * rows, left=rows)  # type: ignore[arg-type]


def line_of(*jobs: Job) -> RequestQueue:
    line = RequestQueue()
    for one in jobs:
        line.add(one)
    return line


def names(batch: Batch) -> str:
    return "".join(one.weights.operand.contents for one, _ in batch if isinstance(one.weights.operand, Vector))


def test_rows_on_the_same_weights_leave_together_and_the_rest_waits_for_company() -> None:
    line = line_of(*map(job, "abcabc"))
    assert names(line.take(1_000, enough=2 * LENGTH)) == "aa"
    line.add(job("b"))
    line.add(job("a"))
    assert names(line.take(1_000, enough=2 * LENGTH)) == "bbb"
    assert names(line.take(1_000, enough=2 * LENGTH)) == "cc"
    assert names(line.take(1_000, enough=2 * LENGTH)) == "a"
    assert (line.rows, line.tokens, len(line)) == (0, 0, 0)


def test_a_batch_takes_further_weights_until_there_are_enough_tokens() -> None:
    line = line_of(*map(job, "abbcd"))
    assert names(line.take(1_000, enough=2 * LENGTH)) == "abb"
    assert names(line.take(1_000, enough=1_000)) == "cd"


def test_rows_that_are_mixed_from_the_same_members_belong_together() -> None:
    both, other = [Mix((0.5, 0.5, 0.0)), Mix((0.1, 0.9, 0.0))], Mix((0.5, 0.0, 0.5))
    line = line_of(*map(job, [both[0], other, both[1]]))
    assert [one.weights.operand for one, _ in line.take(1_000, enough=1)] == both
    assert [one.weights.operand for one, _ in line.take(1_000, enough=1)] == [other]


def test_weights_that_a_batch_could_not_take_whole_go_to_the_end() -> None:
    many, few = job("a", rows=6), job("b")
    line = line_of(many, few)
    assert names(line.take(4 * LENGTH, enough=1)) == "aaaa"
    assert names(line.take(4 * LENGTH, enough=1)) == "b"
    assert names(line.take(4 * LENGTH, enough=1)) == "aa"


def test_weights_for_which_a_batch_had_no_room_at_all_keep_their_place() -> None:
    line = line_of(job("a"), job("b", rows=2), job("c"))
    assert names(line.take(LENGTH, enough=1_000)) == "a"
    line.add(job("a"))
    assert names(line.take(3 * LENGTH, enough=1_000)) == "bbc"


def test_callers_on_the_same_weights_give_a_row_in_turn() -> None:
    many, few = job("a", rows=4), job("a", rows=2)
    batch = line_of(many, few).take(1_000, enough=1)
    assert [(one is many, index) for one, index in batch] == [
        *((True, 0), (False, 0), (True, 1), (False, 1)),
        *((True, 2), (True, 3)),
    ]


def test_a_row_larger_than_the_budget_goes_alone() -> None:
    line = line_of(job("a", rows=2), job("b"))
    assert [names(line.take(1, enough=1_000)) for _ in range(3)] == ["a", "b", "a"]


def test_rows_of_callers_who_are_gone_are_dropped() -> None:
    gone, stays = job("a", rows=3), job("a")
    line = line_of(gone, stays, job("b"))
    gone.done.cancel()
    assert names(line.take(1_000, enough=1)) == "a" and line.rows == 1


def test_who_leaves_gives_his_places_back_once() -> None:
    leaves, stays = job("a", rows=3), job("b")
    line = line_of(leaves, stays)
    assert names(line.take(LENGTH, enough=1)) == "a"
    for _ in range(2):
        line.withdraw(leaves)
        assert (line.rows, line.tokens, len(line)) == (1, LENGTH, 1)
    assert names(line.take(1_000, enough=1)) == "b"
    line.withdraw(stays)
    assert line.rows == 0


def test_since_when_the_first_has_waited() -> None:
    first, second = job("a"), job("b")
    first.waiting_since, second.waiting_since = 7.0, 5.0
    assert line_of(first, second).since() == pytest.approx(5.0)


def test_what_runs_before_one_more_is_callers_on_the_same_weights_and_rows_on_others() -> None:
    line = line_of(job("a", rows=50), job("a", rows=50), job("b", rows=7), job("c", rows=40))
    assert line.rows_before("a", at_once=20 * LENGTH) == 2 + 7 + 20
    assert line.rows_before("b", at_once=20 * LENGTH) == 1 + 20 + 20
    assert line.rows_before("new", at_once=1_000 * LENGTH) == 100 + 7 + 40 and line.sections == 3
    while line.rows:
        line.take(1_000, enough=1)
    assert line.rows_before("a", at_once=20 * LENGTH) == line.sections == 0
