"""Whatever reads what callers write takes time by its length, and not by the square of it.

Each reader gets ten and a hundred thousand of every character that means something to it, in front of and behind what
it knows. The time is this process's own. Ten times as much may take ten times as long, and a generous bit more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from starlette.exceptions import HTTPException

from app.api.bounded_json import read_bounded
from app.api.http_server.deadline_middleware import read as read_deadline
from app.api.http_server.middleware import SANE_ID
from app.errors import TweenError
from app.experiments.assignment import check_unit
from app.experiments.experiment import Experiment, check_name
from app.segments.segment_classifier import buckets_of
from app.segments.segment_table import table_of
from app.sweep.data.dataset import Columns, dataset_of
from app.sweep.logits.line import Line
from app.sweep.sweep_spec import GivenData
from app.weights.auto_recipe import automatic
from app.weights.recipe import NUMBER, Cookbook

COOKBOOK = Cookbook(["angry", "polite"])
SHORT, LONG = 10_000, 100_000
FREE = 0.05
"""Seconds of processor time that any of it may take."""
FACTOR = 40

CSV = "text,label\n"


def csv(text: str) -> object:
    return dataset_of("data", GivenData("data", CSV + text).rows, ["positive", "negative"], Columns())


def header(text: str) -> object:
    return dataset_of("data", GivenData("data", text + "\na,b\n").rows, ["positive", "negative"], Columns())


def labelled(text: str) -> object:
    rows = [{"text": "late", "label": text, "time": text}] * 20
    return dataset_of("data", GivenData("data", rows).rows, ["positive", "negative"], Columns())


def timed(text: str) -> object:
    rows = [{"text": f"late {i}", "label": i % 2, "time": text} for i in range(20)]
    return dataset_of("data", GivenData("data", rows).rows, ["positive", "negative"], Columns())


def experiment(text: str) -> object:
    arm = {"name": text, "recipe": text, "share": 1}
    return Experiment.model_validate({"arms": [arm], "control": text, "start": text, "overrides": {text: text}})


def table(text: str) -> object:
    router = {"segments": [text], "buckets": 8192, "bias": [0.0], "weights": text}
    parts = {"variant": text, "bank": text, "pooled": {}, "segments": {}, "entropy": None, "router": router}
    return table_of({"format": "tween segments 1", **parts})


READERS: dict[str, tuple[Callable[[str], object], str, list[str]]] = {
    "recipe": (
        COOKBOOK.wanted,
        "@+.:;=-_0 \t\n9eaé",
        ["", "x@auto", "auto", "angry", "angry@", "@prod", "angry@0.4;", "exp:"],
    ),
    "built recipe": (COOKBOOK.read, "@+.:;=-_0 \t\n9eaé", ["", "x@auto", "angry@0.1:", "linear:angry"]),
    "automatic": (automatic, "@:. \t\nau-_é", ["", "x@auto", "x@", "x@auto:", "auto:", "x"]),
    "number": (NUMBER.fullmatch, "0.e-9 é", ["", "-", "0.", "1e", "1e-"]),
    "line": (lambda text: Line.read(text, COOKBOOK), ". @;:+a", ["", "angry", "angry.."]),
    "alias": (lambda text: COOKBOOK.wanted(f"@{text}"), "@-_a \té", ["", "prod"]),
    "unit": (check_unit, "a é\x00", [""]),
    "name": (check_name, "a.-_ \né", ["", "a"]),
    "words": (buckets_of, "a _-'\né", ["", "late "]),
    "experiment": (experiment, "a.-_ \n:T0é", ["", "a", "2026-01-31T"]),
    "table": (table, "a=+/ \né", ["", "AAAA"]),
    "csv": (csv, '",\n\r;\ta0 é\x00', ["", '"', "a,", 'a,"']),
    "csv header": (header, '",;\ta é\x00', ["", "text,label,", '"']),
    "label": (labelled, "0.e-_ a\né", ["", "1.", "positive"]),
    "time": (timed, "0.e-:T_ a\né", ["", "2026-01-31T", "1."]),
    "json": (
        lambda text: read_bounded(text.encode()),
        '"\\[]{}:,0.e- tf\né',
        ["", '"', '["', '"\\', '{"a":', "1.", "1e", "[["],
    ),
    "request id": (SANE_ID.fullmatch, "a \n~", [""]),
    "deadline": (read_deadline, "0.e-_ a", ["", "1.", "1e"]),
}


def seconds(reader: Callable[[str], object], text: str) -> float:
    """Of processor time, the least of three."""
    taken = []
    for attempt in range(3):
        began = time.process_time()
        with suppress(TweenError, ValueError, HTTPException, KeyError):
            reader(text + " " * attempt)  # not what was read before
        taken.append(time.process_time() - began)
        if taken[0] < FREE:
            break
    return min(taken)


@pytest.mark.parametrize("name", READERS)
def test_a_reader_takes_time_by_the_length_of_what_it_reads(name: str) -> None:
    reader, characters, known = READERS[name]
    slow = {}
    for word in known:
        for character in characters:
            for shape in ("{word}{many}", "{many}{word}", "{word}{many}!", "{word}{many}{word}"):
                long = seconds(reader, shape.format(word=word, many=character * LONG))
                if long > FREE:
                    short = seconds(reader, shape.format(word=word, many=character * SHORT))
                    if long > FACTOR * max(short, 0.001):
                        slow[shape.format(word=word, many=character * 3)] = (short, long)
    assert not slow


def test_the_pattern_that_backtracked_is_seen() -> None:
    """What is here would have been found: the pattern that `automatic` had."""
    import re

    pattern = re.compile(r"\s*(?:auto|([A-Za-z0-9_-]+)\s*@\s*auto\s*(:\s*best\s*)?)\s*")
    short, long = (seconds(pattern.fullmatch, "x@auto" + " " * length + "!") for length in (SHORT // 10, SHORT))
    assert long > FREE and long > FACTOR * short
