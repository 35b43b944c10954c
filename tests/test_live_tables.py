"""Tables of segments that are put live over HTTP, on real services that share a real Redis."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Service
from redis import Redis
from servers import messages_lost, until
from test_http import predict, problem

from app.cli.segments_command import add_segments, put_live, run_segments
from app.cluster import replicated
from app.errors import BadData, BadSegments
from app.models.bank import Bank, BankSpec
from app.segments.segment_registry import SegmentRegistry
from app.segments.segment_table import SegmentTable, Setting, read_table
from app.sweep.logits.local_provider import LocalProvider
from app.weights.recipe import Cookbook

pytestmark = pytest.mark.patient("a call that a busy machine delays must not count as Redis away")


def table_at(t: float, bank: Bank, fingerprint: str | None = None) -> dict[str, Any]:
    """A table of one segment."""
    setting = Setting(t, 1.5, (0.0, 1.0), 200)
    return SegmentTable("angry", fingerprint or bank.fingerprint, setting, {"mail": setting}, None).document()


def put(client: httpx.Client, document: object, **query: int) -> dict[str, Any]:
    reply = client.put("/v1/segments/angry", json=document, params=query)
    assert reply.status_code in (200, 201), reply.text
    found: dict[str, Any] = reply.json()
    return found


def served(client: httpx.Client) -> str | None:
    """The recipe that mail gets now; None where there is no table."""
    reply = client.post("/v1/predict", json={"texts": "late order", "recipe": "angry@auto", "segment": "mail"})
    assert reply.status_code in (200, 404), reply.text
    return str(reply.json()["predictions"][0]["recipe"]) if reply.status_code == 200 else None


@pytest.fixture
def pod(serve: Callable[..., Service], spec: BankSpec, redis: Redis) -> Callable[[], httpx.Client]:
    """Start a pod of one service; all that are started share a Redis."""
    return lambda: serve(spec).client


def with_file(spec: BankSpec, document: dict[str, Any], folder: Path) -> BankSpec:
    """The bank with a table in its file."""
    (folder / "angry.json").write_text(json.dumps(document))
    return replace(spec, segments={"angry": folder / "angry.json"})


def test_a_table_is_put_live_replaced_shown_and_taken_away(pod: Callable[[], httpx.Client], bank: Bank) -> None:
    client = pod()
    assert served(client) is None
    made = client.put("/v1/segments/angry", json=table_at(0.2, bank), headers={"From": "a@b.c"})
    assert made.status_code == 201
    body = made.json()
    assert (body["live"]["version"], body["live"]["by"], body["shared"]) == (1, "a@b.c", True)
    assert body["segments"]["mail"]["t"] == 0.2 and body["fitted_on_this_bank"]
    assert client.get("/v1/segments/angry").json() == body
    assert client.get("/v1/segments").json() == {"segments": [body]}
    assert served(client) == "angry@0.2;temperature=1.5"
    assert put(client, table_at(0.2, bank))["live"] == body["live"], "the same table again is no change"
    replaced = put(client, table_at(0.3, bank))
    assert (replaced["live"]["version"], replaced["live"]["by"]) == (2, None)
    assert served(client) == "angry@0.3;temperature=1.5"
    gone = client.delete("/v1/segments/angry").json()
    assert (gone["variant"], gone["version"], gone["falls_back"]) == ("angry", 3, False)
    assert served(client) is None
    assert "no table of segments is live for 'angry'" in problem(client.delete("/v1/segments/angry"), 404)
    assert put(client, table_at(0.4, bank))["live"]["version"] == 4


def test_a_change_may_be_bound_to_a_version(pod: Callable[[], httpx.Client], bank: Bank) -> None:
    client = pod()

    def refused(method: str, version: int) -> str:
        body = {"json": table_at(0.9, bank)} if method == "PUT" else {}
        return problem(client.request(method, "/v1/segments/angry", params={"version": version}, **body), 409)

    assert "the live table of 'angry' does not exist, so it is not at version 1" in refused("PUT", 1)
    put(client, table_at(0.1, bank), version=0)
    assert "is at version 1, not 0" in refused("PUT", 0)
    put(client, table_at(0.2, bank), version=1)
    assert "is at version 2, not 1; look at it and decide again" in refused("DELETE", 1)
    assert served(client) == "angry@0.2;temperature=1.5"
    assert client.delete("/v1/segments/angry", params={"version": 2}).status_code == 200


def test_every_pod_follows_even_when_messages_are_lost(
    pod: Callable[[], httpx.Client], bank: Bank, redis: Redis
) -> None:
    one, two = pod(), pod()
    put(one, table_at(0.2, bank))
    until(lambda: served(two) == "angry@0.2;temperature=1.5")
    assert one.get("/v1/segments/angry").json() == two.get("/v1/segments/angry").json()
    with messages_lost(redis):
        put(two, table_at(0.3, bank))
        until(lambda: served(one) == "angry@0.3;temperature=1.5")
    redis.flushall()
    until(lambda: redis.hexists("tween:segments", "angry"))
    three = pod()
    assert served(three) == "angry@0.3;temperature=1.5", "a pod that joins knows it before it is ready"
    three.delete("/v1/segments/angry")
    until(lambda: served(one) is None and served(two) is None)


def test_a_live_table_goes_before_the_one_of_the_bank_file(
    serve: Callable[..., Service], spec: BankSpec, bank: Bank, redis: Redis, tmp_path: Path
) -> None:
    filed = serve(with_file(spec, table_at(0.6, bank), tmp_path)).client
    assert served(filed) == "angry@0.6;temperature=1.5" and filed.get("/v1/segments/angry").json()["live"] is None
    put(filed, table_at(0.2, bank))
    assert served(filed) == "angry@0.2;temperature=1.5"
    assert filed.delete("/v1/segments/angry").json()["falls_back"] is True
    assert served(filed) == "angry@0.6;temperature=1.5" and filed.get("/v1/segments/angry").json()["live"] is None


def test_a_new_bank_that_brings_its_table_does_not_follow_what_was_fitted_on_the_old_one(
    serve: Callable[..., Service], spec: BankSpec, folders: Path, bank: Bank, redis: Redis, tmp_path: Path
) -> None:
    old = serve(spec).client
    put(old, table_at(0.2, bank))
    changed = replace(spec, base=spec.variants["polite"], variants={"angry": spec.variants["angry"]})
    without = serve(changed).client
    assert served(without) == "angry@0.2;temperature=1.5", "better than nothing, and said to be of other weights"
    assert without.get("/v1/segments/angry").json()["fitted_on_this_bank"] is False
    fingerprint = without.get("/v1/bank").json()["fingerprint"]
    bringing = serve(with_file(changed, table_at(0.6, bank, fingerprint), tmp_path)).client
    assert served(bringing) == "angry@0.6;temperature=1.5" and served(old) == "angry@0.2;temperature=1.5"
    assert bringing.get("/v1/segments/angry").json()["live"] is None


def test_what_cannot_be_gone_by_is_refused_in_one_sentence(pod: Callable[[], httpx.Client], bank: Bank) -> None:
    client = pod()

    def refused(status: int, variant: str = "angry", **change: object) -> str:
        return problem(client.put(f"/v1/segments/{variant}", json=table_at(0.2, bank) | change), status)

    assert "no variant 'rude'; loaded: base, angry, polite" in refused(404, "rude")
    assert "a table for 'angry' is given for 'polite'" in refused(422, "polite")
    assert "fitted on weights 'another'" in refused(422, bank="another")
    assert "is not 'tween segments 1' or 'tween segments 2'" in refused(422, format="tween segments 3")
    assert "'tween segments 2' is that of 'auto', and of no other table" in refused(422, format="tween segments 2")
    assert "0 segments" in refused(422, segments={})
    setting = {"t": "0.4", "temperature": 1, "interval": [0, 1], "texts": 1}
    assert "t is '0.4', and must be a number from 0 to 1" in refused(422, pooled=setting)
    assert "texts is '0.4', and must be" in refused(422, pooled={**setting, "t": 0.4, "texts": "0.4"})
    router = {"segments": ["mail"], "buckets": 8192, "bias": [0], "weights": "AAAA"}
    assert "do not fit its segments" in refused(422, router=router)
    assert "a segment twice" in refused(422, router={**router, "segments": ["mail", "mail"]})
    assert client.get("/v1/segments").json() == {"segments": []}


def test_a_bank_without_classes_goes_by_no_temperatures(bank: Bank) -> None:
    tables = SegmentRegistry(Cookbook(["angry"], temperatures=False), bank.fingerprint, {}, None)
    with pytest.raises(BadSegments, match="segment 'pooled': .* a temperature means nothing"):
        asyncio.run(tables.put("angry", table_at(0.2, bank)))


# -- who goes by it ------------------------------------------------------------------------------------


def test_an_alias_of_an_automatic_t_serves_each_text_by_its_segment(
    pod: Callable[[], httpx.Client], bank: Bank
) -> None:
    one, two = pod(), pod()
    refused = one.put("/v1/aliases/prod", json={"recipe": "angry@auto"})
    assert "no t's by segment were fitted for 'angry'" in problem(refused, 404)
    put(one, table_at(0.2, bank))
    moved = one.put("/v1/aliases/prod", json={"recipe": {"variant": "angry", "t": "auto"}}).json()
    assert (moved["recipe"], moved["key"], moved["version"]) == ("angry@auto", None, 1)
    for client in (one, two):
        until(lambda: client.get("/v1/aliases/prod").status_code == 200)  # noqa: B023
        until(lambda: served(client) is not None)  # noqa: B023
        for asked in ({"recipe": "@prod"}, {}):
            reply = predict(client, texts=["late order", "hello"], segment=["mail", "fax"], **asked)
            assert reply["recipe"] == "angry@auto"
            assert [p["recipe"] for p in reply["predictions"]] == ["angry@0.2;temperature=1.5"] * 2
            assert [p["chosen_by"] for p in reply["predictions"]] == ["segment", "pooled"]
    mixed = predict(one, texts=["late", "late"], recipe=["@prod", "base"], segment="mail")
    assert mixed["recipe"] == ["angry@0.2;temperature=1.5", "base"]
    assert "@prod is angry@auto, which is no blend" in problem(one.post("/v1/blends", json={"recipe": "@prod"}), 422)
    assert "alias 'prod' is angry@auto, which needs the table" in problem(one.delete("/v1/segments/angry"), 409)
    one.put("/v1/aliases/prod", json={"recipe": "angry@0.4"})
    assert predict(one, texts="late")["recipe"] == "angry@0.4"
    assert one.post("/v1/aliases/prod/rollback").json()["recipe"] == "angry@auto"
    (mail,) = predict(one, texts="late", segment="mail")["predictions"]
    assert mail["recipe"] == "angry@0.2;temperature=1.5"


def test_an_arm_may_have_a_t_for_each_text(pod: Callable[[], httpx.Client], bank: Bank) -> None:
    client = pod()
    arms = [
        {"name": "one", "recipe": "angry@0.4", "share": 0.5},
        {"name": "each", "recipe": "angry@auto", "share": 0.5},
        {"name": "beside", "recipe": "angry@auto", "share": 0, "shadow": True},
    ]
    body = {"arms": arms, "control": "one", "status": "running", "overrides": {"tester": "each", "other": "one"}}
    assert "no t's by segment" in problem(client.put("/v1/experiments/each-text", json=body), 404)
    put(client, table_at(0.2, bank))
    assert client.put("/v1/experiments/each-text", json=body).status_code == 201
    asked = {"recipe": "exp:each-text", "segment": "mail"}
    reply = predict(client, texts=["late order", "hello"], unit="tester", **asked)
    assert [p["recipe"] for p in reply["predictions"]] == ["angry@0.2;temperature=1.5"] * 2
    assert reply["experiment"] == {"name": "each-text", "arm": "each"}
    assert [p["segment"] for p in reply["predictions"]] == ["mail", "mail"]
    assert predict(client, texts="late", unit="other", **asked)["recipe"] == "angry@0.4"
    by_unit = predict(client, texts=["late", "late"], unit=["tester", "other"], **asked)
    assert by_unit["recipe"] == ["angry@0.2;temperature=1.5", "angry@0.4"]
    beside = predict(
        client, texts=["late"] * 3, recipe=["exp:each-text", "angry@auto", "base"], unit="other", segment="mail"
    )
    assert beside["recipe"] == ["angry@0.4", "angry@0.2;temperature=1.5", "base"]
    for unit in range(20):  # drawn by lot, with the shadow beside
        predict(client, texts="late", unit=str(unit), **asked)
    report = client.get("/v1/experiments/each-text/report")
    assert report.status_code == 200, report.text
    assert (
        client.get("/v1/experiments/each-text/assignment", params={"unit": "tester"}).json()["recipe"] == "angry@auto"
    )
    assert "arm 'each' of experiment 'each-text'" in problem(client.delete("/v1/segments/angry"), 409)
    client.post("/v1/experiments/each-text/promote", json={"arm": "each", "alias": "prod"})
    (mail,) = predict(client, texts="late", segment="mail")["predictions"]
    assert mail["recipe"] == "angry@0.2;temperature=1.5"


@pytest.mark.parametrize(("old", "new"), [("angry@0.4", "angry@auto"), ("angry@auto", "angry@0.4")])
def test_an_alias_may_be_rolled_out_between_one_t_and_one_for_each_text(
    pod: Callable[[], httpx.Client], bank: Bank, old: str, new: str
) -> None:
    client = pod()
    put(client, table_at(0.2, bank))
    client.put("/v1/aliases/prod", json={"recipe": old})
    arms = [{"name": name, "recipe": recipe, "share": 0.5} for name, recipe in (("old", old), ("new", new))]
    body = {"arms": arms, "control": "old", "metrics": [{"name": "solved", "role": "guardrail"}]}
    assert client.put("/v1/experiments/tone", json=body).status_code == 201
    plan = {"arm": "new", "alias": "prod", "guarded": True, "steps": [0.5, 1], "step_seconds": 600}
    begun = client.post("/v1/experiments/tone/promote", json=plan)
    assert begun.status_code == 202, begun.text
    until(lambda: predict(client, texts="late", unit="a", segment="mail").get("experiment") is not None)
    units = [str(i) for i in range(30)]
    reply = predict(client, texts=["late"] * 30, unit=units, segment="mail")
    assert {"angry@0.4", "angry@0.2;temperature=1.5"} == set(reply["recipe"])


def test_the_command_puts_what_it_has_fitted_live(
    pod: Callable[[], httpx.Client], bank: Bank, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = pod()
    rows = [f"{'mail' if i % 2 else 'chat'},the {'late slow good'.split()[i % 3]} order {i},{i % 3}" for i in range(60)]
    (tmp_path / "own.csv").write_text("\n".join(["channel,text,label", *rows]))
    parser = argparse.ArgumentParser()
    add_segments(parser)
    out = ["--variant", "angry", "--out", str(tmp_path / "fitted"), "--put", str(client.base_url)]
    options = parser.parse_args([str(tmp_path / "own.csv"), *out])
    assert run_segments(options, lambda options: LocalProvider(bank, 64), tmp_path / "logits") == 0
    assert f"Live at {client.base_url}, version 1" in capsys.readouterr().out
    fitted = json.loads((tmp_path / "fitted" / "segments.json").read_text())
    live = client.get("/v1/segments/angry").json()
    assert live["segments"] == fitted["segments"] and set(live["routed"]) == {"chat", "mail"}
    table = read_table(tmp_path / "fitted" / "segments.json")
    with pytest.raises(BadData, match="no variant 'rude'"):
        put_live(str(client.base_url), replace(table, variant="rude"))


# -- what Redis may do ---------------------------------------------------------------------------------


def test_a_table_that_redis_has_spoilt_is_put_right_by_a_pod_that_knows_it(
    pod: Callable[[], httpx.Client], bank: Bank, redis: Redis
) -> None:
    client = pod()
    put(client, table_at(0.2, bank))
    right = redis.hget("tween:segments", "angry")
    for spoilt in ("{", "[]", "{}", '{"name": "angry", "version": "x"}'):
        redis.hset("tween:segments", "angry", spoilt)
        redis.hset("tween:segments", ":mark", spoilt)
        until(lambda: redis.hget("tween:segments", "angry") == right)
    assert served(client) == "angry@0.2;temperature=1.5"


def test_a_table_that_was_taken_away_is_forgotten_in_the_end(
    pod: Callable[[], httpx.Client], bank: Bank, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = pod()
    put(client, table_at(0.2, bank))
    monkeypatch.setattr(replicated, "FORGET_SECONDS", 0)
    client.delete("/v1/segments/angry")
    until(lambda: not redis.hexists("tween:segments", "angry"))


def test_without_a_redis_a_table_lives_in_its_process(
    serve: Callable[..., Service], spec: BankSpec, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.bootstrap.find_server", lambda: None)
    client = serve(spec, redis_url=None).client
    assert put(client, table_at(0.2, bank))["shared"] is False
    (answer,) = predict(client, texts="late", recipe="angry@auto", segment="mail")["predictions"]
    assert answer["recipe"] == "angry@0.2;temperature=1.5"
