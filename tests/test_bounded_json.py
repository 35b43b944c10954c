"""What bounds the bodies that callers send: depth, values, fields, entries, and what a refusal of them costs."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable

import httpx
import pytest
from conftest import Service
from hostile import SOUND
from redis import Redis
from starlette.exceptions import HTTPException
from starlette.requests import Request
from test_fuzz import complaints

from app.api.bounded_json import MOST_DEPTH, MOST_ENTRIES, MOST_FIELDS, MOST_VALUES, parse_json, read_bounded
from app.api.outcome_routes import OutcomeBody
from app.api.predict_routes import PredictRequest
from app.api.problems import reply_to
from app.api.spectrum_routes import SpectrumRequest
from app.api.sweep_routes import SweepRequest
from app.experiments.experiment import Experiment
from app.models.bank import BankSpec

REQUEST = Request({"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b"", "scheme": "http"})


@pytest.fixture
def client(serve: Callable[..., Service], spec: BankSpec, redis: Redis) -> httpx.Client:
    return serve(spec).client


def nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


def refusal(content: bytes) -> tuple[int, str]:
    with pytest.raises(HTTPException) as refused:
        read_bounded(content)
    return refused.value.status_code, str(refused.value.detail)


def test_depth_is_bounded() -> None:
    assert read_bounded(nested(MOST_DEPTH))
    assert read_bounded(b'{"a":' * MOST_DEPTH + b"1" + b"}" * MOST_DEPTH)
    expected = (400, "the body is nested more than 32 levels deep")
    for levels in (MOST_DEPTH + 1, 500, 970, 975, 980, 1_000, 100_000):
        assert refusal(nested(levels)) == refusal(b'{"a":' * levels + b"1" + b"}" * levels) == expected


def test_values_are_counted_outside_of_texts_and_before_they_are_made() -> None:
    texts = ["a, [b], {c: d}, " * 100_000, 'quoted "[,]" and \\ and \\" ' * 50_000, "\\"]
    assert read_bounded(json.dumps(texts).encode()) == texts
    many = b"[" + b"[]," * MOST_VALUES + b"[]]"
    tracemalloc.start()
    status, sentence = refusal(many)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (status, peak < 4 * len(many)) == (413, True)
    assert sentence == f"the body has more than {MOST_VALUES} values and names; send less in one call"
    rows = [{"text": "x" * 40, "label": "positive", "group": 17, "segment": "mail"}] * 40_000  # twice what is usual
    assert read_bounded(json.dumps(rows).encode()) == rows


def test_counting_values_takes_no_memory() -> None:
    many = b"[" + b'["a","b"],' * 400_000 + b"1]"
    tracemalloc.start()
    status, _ = refusal(many)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (status, peak < 2**16) == (413, True)


@pytest.mark.parametrize("unit", [b'"', b'\\"', b"\\", b'"\\', b'",', b"[", b'{"', b":"])
def test_whatever_is_no_json_is_told_so_in_linear_time(unit: bytes) -> None:
    for content in (unit * 1_000_000, b'["' + unit * 1_000_000):
        with pytest.raises((ValueError, HTTPException)):
            read_bounded(content)


def test_objects_have_a_number_of_fields() -> None:
    assert read_bounded(json.dumps(dict.fromkeys(map(str, range(MOST_FIELDS)))).encode())
    status, sentence = refusal(json.dumps([{"a": dict.fromkeys(map(str, range(MOST_FIELDS + 1)))}]).encode())
    assert (status, sentence) == (413, "an object in the body has 2001 fields; at most 2000 are read")


def test_a_body_is_utf_8() -> None:
    assert read_bounded(b'\xef\xbb\xbf"late"') == "late"
    for content in ("[]".encode("utf-16"), b'"\xed\xa0\x80"', b"\xff"):
        with pytest.raises(ValueError):
            read_bounded(content)


MANY = 90_000
WRONG = {
    "texts": (PredictRequest, lambda wrong: {"texts": wrong}),
    "recipe": (PredictRequest, lambda wrong: {"texts": "a", "recipe": wrong}),
    "segment": (PredictRequest, lambda wrong: {"texts": "a", "segment": wrong}),
    "unit": (PredictRequest, lambda wrong: {"texts": "a", "unit": wrong}),
    "ts": (SpectrumRequest, lambda wrong: {"texts": "a", "ts": wrong}),
    "spectrum": (SpectrumRequest, lambda wrong: {"texts": wrong}),
    "attributes": (PredictRequest, lambda wrong: {"texts": "a", "attributes": dict.fromkeys(map(str, wrong), 1)}),
    "unknown": (PredictRequest, lambda wrong: {"texts": "a", **dict.fromkeys(map(str, range(len(wrong))), 1)}),
    "data": (SweepRequest, lambda wrong: {"data": wrong}),
    "datasets": (SweepRequest, lambda wrong: {"datasets": wrong}),
    "grid": (SweepRequest, lambda wrong: {"data": "a", "grid": wrong}),
    "cost": (SweepRequest, lambda wrong: {"data": "a", "cost": [wrong]}),
    "variants": (SweepRequest, lambda wrong: {"data": "a", "variants": wrong}),
    "arms": (Experiment, lambda wrong: {"arms": wrong, "control": "a"}),
    "targeting": (Experiment, lambda wrong: {"arms": [], "control": "a", "targeting": {"a": wrong}}),
    "overrides": (Experiment, lambda wrong: {"arms": [], "control": "a", "overrides": dict(enumerate(wrong))}),
}
"""Fields that hold lists or objects, and what is sent in them: what no entry may be."""


@pytest.mark.parametrize("field", WRONG)
@pytest.mark.parametrize("many", [MANY, MOST_ENTRIES - 1])
@pytest.mark.parametrize("entry", [None, 1, [1, 2, 3, 4], {"x": [None]}], ids=["null", "number", "list", "object"])
def test_a_refusal_does_not_multiply_what_was_sent(field: str, many: int, entry: object) -> None:
    """One complaint an entry, times the kinds that a value may be of, made 1.3 kB of each byte."""
    model, body = WRONG[field]
    content = json.dumps(body([entry] * many)).encode()
    tracemalloc.start()
    try:
        parse_json(content, model)
        reply = None
    except Exception as error:
        reply = reply_to(REQUEST, error)
        assert reply is not None and reply.status_code in (400, 413, 422)
        assert len(reply.body) < 500
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000 + 40 * len(content)


def test_outcomes_of_a_wrong_kind_are_refused_by_the_first(client: httpx.Client) -> None:
    arms = [{"name": "a", "recipe": "base", "share": 1}]
    assert client.put("/v1/experiments/tone", json={"arms": arms, "control": "a"}).status_code == 201
    for wrong in ([1] * 9_000, [{"unit": 1}] * 9_000, [{"x": 1, "y": 2}] * 9_000):
        reply = client.post("/v1/experiments/tone/outcomes", json=wrong)
        assert reply.status_code == 422 and len(reply.text) < 500
    reply = client.post("/v1/experiments/tone/outcomes", json=[{"unit": "u", "metric": "m"}] * (MOST_ENTRIES + 1))
    assert (reply.status_code, reply.json()["detail"]) == (
        422,
        "the body has more than 10000 entries; no more are read",
    )
    assert set(OutcomeBody.model_fields) == {"unit", "metric", "value", "id", "at"}


@pytest.mark.parametrize("field", ["texts", "recipe", "segment", "unit"])
def test_a_list_that_is_too_long_is_told_so(client: httpx.Client, field: str) -> None:
    reply = client.post("/v1/predict", json={"texts": "late", field: ["base"] * (MOST_ENTRIES + 1)})
    assert reply.status_code == 422 and "10000" in reply.json()["detail"] and field in reply.json()["detail"]


def test_lengths_are_compared_before_any_recipe_is_read(serve: Callable[..., Service], spec: BankSpec) -> None:
    service = serve(spec)
    cookbook, read = service.app.state.engine.cookbook, []
    wanted = cookbook.wanted
    cookbook.wanted = lambda recipe: read.append(recipe) or wanted(recipe)
    for texts, recipes in (("late", 2), (["late"] * 3, 2), (["late"] * 600, 600)):
        body = {"texts": texts, "recipe": [f"angry@{i / 1000}" for i in range(recipes)]}
        assert service.client.post("/v1/predict", json=body).status_code == 422
    assert not read
    assert service.client.post("/v1/predict", json={"texts": ["late"], "recipe": ["angry"]}).status_code == 200
    assert read == ["angry"]


def test_every_operation_that_takes_a_body_bounds_its_depth(client: httpx.Client) -> None:
    """Below the depth at which Python's own parser gives up, whatever looked at a value did: with a 500."""
    specification = client.get("/openapi.json").json()
    for operation in SOUND:
        method, _, path = operation.partition(" ")
        assert method.lower() in specification["paths"][path]
        url = path.replace("{name}", "tone").replace("{variant}", "angry")
        for levels in (40, 500, 960, 970, 975, 980, 1_000, 5_000):
            for content in (
                nested(levels),
                b'{"recipe": ' + nested(levels) + b"}",
                b'{"recipe": {"t": ' + nested(levels) + b"}}",
                b'{"texts": "late", "recipe": {"variant": ' + nested(levels) + b"}}",
            ):
                reply = client.request(method, url, content=content, headers={"Content-Type": "application/json"})
                assert (reply.status_code, reply.json()["detail"]) == (
                    400,
                    "the body is nested more than 32 levels deep",
                ), (operation, levels)
                assert not list(complaints(reply))


def test_reading_hostile_bodies_leaves_no_memory(client: httpx.Client) -> None:
    """In a process of its own: what was parsed and refused is free again."""
    program = (
        "import resource; from app.api.bounded_json import read_bounded\n"
        "bodies = [b'[' + b'[],' * 60_000 + b'[]]', b'{\"a\":' * 900, b'[' + b'{\"a\":1},' * 40_000 + b'1]']\n"
        "def send():\n"
        "    for body in bodies:\n"
        "        try: read_bounded(body)\n"
        "        except Exception: pass\n"
        "send(); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for _ in range(30): send()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    environment = {"PYTHONPATH": ":".join(sys.path)}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 10 * 1024  # KiB
