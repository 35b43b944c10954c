"""Sweeps over HTTP, on a real service with a real Redis."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import Service, running
from redis import Redis

from app.models.bank import BankSpec

pytestmark = pytest.mark.patient("a call that a busy machine delays must not count as Redis away")

WORDS = "the parcel refund came late early broken works great awful fine thanks never slow fast order".split()
LABELS = ["negative", "neutral", "positive"]


def rows(count: int, seed: int, **more: object) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [
        {"text": f"{' '.join(rng.choice(WORDS, 6))} {i}", "label": LABELS[rng.integers(0, 3)], **more}
        for i in range(count)
    ]


def as_csv(data: list[dict[str, Any]]) -> str:
    return "\n".join(["text,label", *(f"{row['text']},{row['label']}" for row in data)]) + "\n"


def ended(client: httpx.Client, url: str, seconds: float = 240) -> dict[str, Any]:
    """The sweep when it has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        state: dict[str, Any] = client.get(url).raise_for_status().json()
        if state["status"] in ("done", "failed", "cancelled"):
            return state
        time.sleep(0.05)
    raise AssertionError(f"not ended within {seconds} seconds: {state}")


def events(client: httpx.Client, url: str, headers: dict[str, str] | None = None) -> Iterator[tuple[int, str, Any]]:
    """Ids, names and data of the events."""
    with client.stream("GET", f"{url}/events", headers=headers) as reply:
        assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/event-stream")
        event: dict[str, str] = {}
        for line in reply.iter_lines():
            if line:
                name, _, value = line.partition(": ")
                event[name] = value
            elif "data" in event:
                yield int(event["id"]), event["event"], json.loads(event["data"])
                event = {}


@pytest.fixture
def service(serve: Callable[..., Service], spec: BankSpec, redis: Redis) -> Service:
    return serve(spec)


def test_a_sweep_is_ordered_followed_and_read(service: Service, redis: Redis) -> None:
    client = service.client
    reply = client.post("/v1/sweeps", json={"data": rows(120, 1), "variant": "angry"})
    assert reply.status_code == 202 and reply.json()["status"] in ("queued", "running")
    url = reply.headers["location"]
    assert url == f"/v1/sweeps/{reply.json()['id']}"
    told = list(events(client, url))
    ids = [number for number, _, _ in told]
    assert ids == sorted(set(ids)) and [name for _, name, _ in told][-1] == "done"
    assert [data["progress"] for _, _, data in told] == sorted(data["progress"] for _, _, data in told)
    found = client.get(url).json()
    assert found == told[-1][2] and found["progress"] == 1 and found["shared"] and found["error"] is None
    assert set(found["best"]) == {"t", "interval", "interval_is", "temperature", "recipe"}
    assert found["best"]["interval_is"] == "where the best t lies"
    assert found["best"]["recipe"] in found["sentence"]
    assert "120 labelled texts are few" in found["warnings"][0]
    at = {point["t"]: point for point in found["curve"]}
    assert {0.0, 0.5, 1.0, found["best"]["t"]} <= set(at) and at[0.5]["data"] == "data"
    for metric in ("loss", "accuracy", "macro_f1", "ece"):
        assert at[0.5][metric]["low"] <= at[0.5][metric]["high"]
    plot, report, results = (client.get(f"{url}/{name}") for name in ("plot.svg", "report", "results.json"))
    assert plot.headers["content-type"] == "image/svg+xml" and b"<svg" in plot.content
    assert found["sentence"].split(":")[0] in report.text and report.headers["content-type"].startswith("text/html")
    assert results.json()["best"]["t"] == found["best"]["t"] and 6 <= results.json()["passes_run"] <= 7
    listed = client.get("/v1/sweeps").json()["sweeps"]
    assert [sweep["id"] for sweep in listed] == [found["id"]] and listed[0]["status"] == "done"
    assert not redis.keys("tween:{sweeps}:order:*"), "texts are not kept longer than they are needed"
    last = client.get(f"{url}/events", headers={"Last-Event-ID": str(ids[-1])})
    assert last.status_code == 204
    assert [number for number, _, _ in events(client, url, {"Last-Event-ID": str(ids[0])})] == [ids[-1]]


def test_another_question_about_the_same_texts_costs_no_pass(service: Service) -> None:
    asked = {"data": rows(60, 2), "variant": "angry"}
    first = service.client.post("/v1/sweeps", json=asked).headers["location"]
    ended(service.client, first)
    again = service.client.post("/v1/sweeps", json={**asked, "seed": 3, "lambda": "folds"}).headers["location"]
    ended(service.client, again)
    runs = [service.client.get(f"{url}/results.json").json()["passes_run"] for url in (first, again)]
    assert 6 <= runs[0] <= 7 and runs[1] <= 1


def test_a_csv_says_the_same_as_json_and_its_query_says_the_rest(service: Service) -> None:
    data = rows(60, 3)
    json_url = service.client.post("/v1/sweeps", json={"data": data, "variant": "angry", "grid": [0, 0.3, 0.7]})
    csv_url = service.client.post(
        "/v1/sweeps?variant=angry&grid=0,0.3,0.7", content=as_csv(data), headers={"Content-Type": "text/csv"}
    )
    by_json, by_csv = (ended(service.client, reply.headers["location"]) for reply in (json_url, csv_url))
    assert by_json["best"] == by_csv["best"] and by_json["curve"] == by_csv["curve"]
    assert [point["t"] for point in by_csv["curve"]] == [0, 0.3, 0.5, 0.7, 1]


def test_several_data_sets_have_roles_and_weights_and_several_variants_are_mixed(service: Service) -> None:
    asked = {
        "datasets": [
            {"name": "own", "data": rows(60, 4), "weight": 2},
            {"name": "other", "data": as_csv(rows(60, 5))},
            {
                "name": "kept",
                "data": rows(60, 6),
                "role": "guard",
                "margin": 0.02,
                "metric": "macro_f1",
                "confidence": 0.95,
            },
        ],
        "variants": ["angry", "polite"],
        "objective": "accuracy",
    }
    url = service.client.post("/v1/sweeps", json=asked).headers["location"]
    found = ended(service.client, url)
    assert found["status"] == "done", found
    (guard,) = found["guards"]
    assert (guard["name"], guard["margin"], guard["confidence"]) == ("kept", 0.02, 0.95)
    assert (
        "macro-F1" in found["sentence"] and "within 2 points" in found["sentence"] and "95 % sure" in found["sentence"]
    )
    assert guard["upper"] <= 0.02 + 1e-3 and found["best"]["interval_is"] == "not shown to be worse"
    assert {row["data"] for row in found["baseline"]} >= {"kept"} and found["baseline"][0]["loss"]["value"] > 1
    assert {point["data"] for point in found["curve"]} == {"own", "other", "kept", "all targets"}
    results = service.client.get(f"{url}/results.json").json()
    assert [about["share"] for about in results["data"]] == pytest.approx([2 / 3, 1 / 3, 0])
    assert set(results["direction"]["t"]) == {"angry", "polite"}


def test_a_ramp_is_looked_for_where_it_is_asked_for_and_can_be_served(service: Service) -> None:
    asked = {"data": rows(60, 8), "variant": "angry", "ramp": True}
    url = service.client.post("/v1/sweeps", json=asked).headers["location"]
    found = ended(service.client, url)
    assert found["status"] == "done", found
    ramp = found["ramp"]
    assert ramp["better"] == (found["best"]["recipe"] == ramp["recipe"]) and ramp["blends"] >= 6
    assert "first layer" in found["sentence"] if ramp["better"] else "No t that runs over" in found["sentence"]
    reply = service.client.post("/v1/predict", json={"texts": "late order", "recipe": ramp["recipe"]})
    assert reply.status_code == 200 and reply.json()["recipe"] == ramp["recipe"]
    assert "t from first layer to last" in service.client.get(f"{url}/report").text
    results = service.client.get(f"{url}/results.json").json()["ramp"]
    assert results["recipe"] == ramp["recipe"] and len(results["surface"]) == 121 and "surface" not in ramp
    drawn = service.client.get(f"{url}/ramp.svg")
    assert drawn.headers["content-type"] == "image/svg+xml" and b"<svg" in drawn.content


def test_a_service_perturbs_and_says_that_it_does_not_attack(service: Service) -> None:
    asked = {"data": rows(30, 9), "variants": ["angry", "angry"], "robustness": True}
    url = service.client.post("/v1/sweeps", json=asked).headers["location"]
    found = ended(service.client, url)
    assert found["status"] == "done", found
    assert any("an attack needs gradients" in warning for warning in found["warnings"])
    results = service.client.get(f"{url}/results.json").json()
    assert "typos" in results["robustness"] and "embeddings" not in results["robustness"]
    assert results["direction"] is None, "a variant that is named twice is one variant"


def test_where_no_ramp_was_looked_for_there_is_none_to_draw(service: Service) -> None:
    url = service.client.post("/v1/sweeps", json={"data": rows(30, 9), "variant": "angry"}).headers["location"]
    assert ended(service.client, url)["ramp"] is None
    reply = service.client.get(f"{url}/ramp.svg")
    assert reply.status_code == 409 and 'one is looked for where "ramp" is true' in reply.json()["detail"]


GOOD = rows(30, 7)
REFUSED = [
    ({}, 422, "there is no data: send labelled texts as `data`, or several `datasets`"),
    ({"data": GOOD}, 422, "which way? name a variant, or a line; loaded: angry, polite"),
    ({"data": GOOD, "variant": "odd"}, 404, "no variant 'odd'; loaded: base, angry, polite"),
    ({"data": GOOD, "variant": "angry", "line": "angry"}, 422, "variant, variants and line say the same thing"),
    (
        {"data": [*GOOD, {"text": "fine", "label": "angy"}], "variant": "angry"},
        422,
        "data, row 31, column 'label': the",
    ),
    ({"data": [*GOOD, {"text": "fine"}], "variant": "angry"}, 422, "data, row 31: there is no 'label', which other"),
    ({"data": [*GOOD, {"text": " ", "label": 0}], "variant": "angry"}, 422, "row 31, column 'text': the text is empty"),
    ({"data": [*GOOD, 5], "variant": "angry"}, 422, "row 31 is no object"),
    ({"data": 7, "variant": "angry"}, 422, "data is a list of objects with text and label, or the text of a CSV file"),
    ({"data": "text,label\na,b,c\n", "variant": "angry"}, 422, "data, line 2: more fields than the header names"),
    ({"data": "text,label\nfine,odd\n", "variant": "angry"}, 422, "data, line 2, column 'label': the label 'odd' is"),
    ({"data": GOOD[:5], "variant": "angry"}, 422, "5 different texts; at least 20 are needed"),
    ({"data": GOOD * 4, "variant": "angry"}, 422, "data: more than 100 texts; a sweep takes at most so many here"),
    ({"data": GOOD, "variant": "angry", "lambda": -1}, 422, "lambda is a number from 0 up, or 'folds'"),
    ({"data": GOOD, "variant": "angry", "objective": "f2"}, 422, "objective: Input should be 'loss'"),
    ({"data": GOOD, "variant": "angry", "grid": [0.5, 2]}, 422, "grid.1: Input should be less than or equal to 1"),
    ({"data": GOOD, "variant": "angry", "cost": [[0, 1]]}, 422, "cost has 3 rows of 3 numbers"),
    ({"data": GOOD, "variant": "angry", "objective": "worst_group"}, 422, "worst_group needs a column of segments"),
    ({"data": GOOD, "variants": ["angry"], "columns": {"text": "body"}}, 422, "no column 'body'; columns: text, label"),
    (
        {"datasets": [{"name": "own", "data": GOOD, "role": "guard"}], "variant": "angry"},
        422,
        "no data set is a target",
    ),
    ({"data": GOOD, "datasets": [{"name": "data", "data": GOOD}], "variant": "angry"}, 422, "two data sets have one"),
]


def test_what_cannot_be_asked_is_one_sentence(serve: Callable[..., Service], spec: BankSpec) -> None:
    client = serve(spec, sweep_texts=100, max_body_mib=0.02).client
    for asked, status, sentence in REFUSED:
        reply = client.post("/v1/sweeps", json=asked)
        assert (reply.status_code, reply.headers["content-type"]) == (status, "application/problem+json"), reply.text
        assert sentence in reply.json()["detail"] and "\n" not in reply.json()["detail"]
    csv = {"Content-Type": "text/csv"}
    reply = client.post("/v1/sweeps?variant=angry&text=body", content=as_csv(GOOD), headers=csv)
    assert reply.status_code == 422 and "no column 'body'" in reply.json()["detail"]
    reply = client.post("/v1/sweeps?variant=angry", content=b"text,label\n\xff,1\n", headers=csv)
    assert reply.status_code == 422 and "the CSV is not UTF-8" in reply.json()["detail"]
    reply = client.post("/v1/sweeps", content=b"{", headers={"Content-Type": "application/json"})
    assert reply.status_code == 400 and "not JSON" in reply.json()["detail"]
    assert client.post("/v1/sweeps", content=b"{}", headers={"Content-Type": "image/png"}).status_code == 415
    assert client.post("/v1/sweeps", json={"data": GOOD * 100, "variant": "angry"}).status_code == 413
    for call in (client.get, client.delete):
        reply = call("/v1/sweeps/none")
        assert reply.status_code == 404 and "there is no sweep 'none'" in reply.json()["detail"]


def test_one_runs_a_few_wait_the_next_is_told_to_come_back_and_any_can_be_cancelled(
    serve: Callable[..., Service], spec: BankSpec, redis: Redis
) -> None:
    client = serve(spec, sweeps_waiting=2).client
    # The grid makes the first one last: each of its blends is a pass.
    slow = {"data": rows(400, 8), "variant": "angry", "grid": list(np.linspace(0, 1, 101))}
    first, *waiting = (client.post("/v1/sweeps", json=slow).headers["location"] for _ in range(3))
    refused = client.post("/v1/sweeps", json=slow)
    while client.get(first).json()["status"] == "queued":
        time.sleep(0.02)
    if refused.status_code == 202:  # the first one was taken up before the third was ordered
        waiting.append(refused.headers["location"])
        refused = client.post("/v1/sweeps", json=slow)
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
    assert "sweeps are waiting, and no more may" in refused.json()["detail"]
    assert client.get(f"{first}/plot.svg").status_code == 409
    assert client.delete(waiting[0]).json()["status"] == "cancelled"
    assert client.delete(first).json()["status"] == "cancelled"
    assert client.delete(first).json()["status"] == "cancelled"
    assert [state for _, state, _ in events(client, first)] == ["cancelled"]
    while client.get(waiting[1]).json()["status"] == "queued":
        time.sleep(0.02)
    for url in waiting[1:]:
        assert client.delete(url).json()["status"] == "cancelled"
    deadline = time.monotonic() + 10
    while redis.zcard("tween:{sweeps}:waiting") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not redis.zcard("tween:{sweeps}:waiting")


def test_without_redis_a_sweep_runs_in_memory_and_says_so(spec: BankSpec) -> None:
    gone = {"redis_url": "redis://127.0.0.1:1", "memory_tier_mib": 16, "prediction_cache": False}
    with running(spec, **gone) as service:
        url = service.client.post("/v1/sweeps", json={"data": rows(60, 9), "variant": "angry"}).headers["location"]
        found = ended(service.client, url)
        assert found["status"] == "done" and not found["shared"]
        assert service.client.get(f"{url}/report").status_code == 200
        assert service.client.get("/v1/sweeps").json()["sweeps"][0]["id"] == found["id"]
        assert service.client.get("/v1/sweeps/none").status_code == 503


def test_every_pod_answers_for_every_sweep(serve: Callable[..., Service], spec: BankSpec, redis: Redis) -> None:
    one, other = serve(spec).client, serve(spec).client
    url = one.post("/v1/sweeps", json={"data": rows(60, 10), "variant": "angry"}).headers["location"]
    assert [name for _, name, _ in events(other, url)][-1] == "done"
    assert one.get(url).json() == other.get(url).json()
    assert one.get(f"{url}/plot.svg").content == other.get(f"{url}/plot.svg").content
    assert other.get("/v1/sweeps").json() == one.get("/v1/sweeps").json()
    running_one = one.post("/v1/sweeps", json={"data": rows(400, 11), "variant": "angry", "grid": [0.1, 0.2, 0.3]})
    assert other.delete(running_one.headers["location"]).json()["status"] in ("cancelled", "done")
