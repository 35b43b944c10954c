"""`auto` over HTTP: a variant and its t for each text, by its segment, on real services that share a real Redis."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from conftest import Service
from redis import Redis
from servers import until
from test_http import predict, problem
from test_live_tables import table_at

from app.bootstrap import tables_of
from app.cli.segments_command import add_segments, run_segments
from app.errors import BadBank, BadSegments
from app.models.bank import Bank, BankSpec
from app.segments.segment_classifier import BUCKETS, SegmentClassifier, buckets_of
from app.segments.segment_table import SegmentTable, Setting, table_of
from app.sweep.logits.local_provider import LocalProvider

pytestmark = pytest.mark.patient("a call that a busy machine delays must not count as Redis away")

TEXTS = ["the refund came fast, great!", "they never answer. awful", "parcel is late again", "late again, awful"]
MAIL, CHAT, NOTE = "angry@0.2;temperature=1.5", "polite@0.8;temperature=2", "base;temperature=1.4"
POOLED = "polite@0.5;temperature=1.25"


@pytest.fixture(scope="module")
def table(bank: Bank) -> SegmentTable:
    """Mail and post want one variant, chat the other, and notes the base; a word of each tells them apart."""
    names = ("mail", "chat", "note", "post")
    weights = torch.zeros(BUCKETS, len(names))
    for place, word in enumerate(("refund", "awful", "parcel", "stamp")):
        weights[buckets_of(word), place] = 12.0
    return SegmentTable(
        variant="auto",
        bank=bank.fingerprint,
        pooled=Setting(0.5, 1.25, (0.3, 0.7), 400, "polite"),
        segments={
            "mail": Setting(0.2, 1.5, (0.1, 0.3), 200, "angry"),
            "chat": Setting(0.8, 2.0, (0.7, 0.9), 200, "polite"),
            "note": Setting(0.0, 1.4, (0.0, 0.0), 200, "base"),
            "post": Setting(0.6, 1.0, (0.5, 0.7), 200, "angry"),
        },
        router=SegmentClassifier(names, weights, torch.tensor([0.3, 0.4, 0.0, 0.2])),
    )


@pytest.fixture
def pod(serve: Callable[..., Service], spec: BankSpec, redis: Redis) -> Callable[[], httpx.Client]:
    """Start a pod of one service; all that are started share a Redis."""
    return lambda: serve(spec).client


def answered(reply: dict[str, Any]) -> list[str]:
    """The recipe of each text that `auto` chose for."""
    return [prediction["recipe"] for prediction in reply["predictions"]]


def put(client: httpx.Client, table: SegmentTable) -> dict[str, Any]:
    reply = client.put("/v1/segments/auto", json=table.document())
    assert reply.status_code in (200, 201), reply.text
    found: dict[str, Any] = reply.json()
    return found


def test_a_declared_segment_gets_its_variant_and_t(pod: Callable[[], httpx.Client], table: SegmentTable) -> None:
    client = pod()
    put(client, table)
    asked = {"texts": TEXTS, "segment": ["mail", "chat", "note", "fax"]}
    reply = predict(client, recipe="auto", **asked)
    assert reply["recipe"] == "auto" and answered(reply) == [MAIL, CHAT, NOTE, POOLED]
    assert [p["t"] for p in reply["predictions"]] == [{"angry": 0.2}, {"polite": 0.8}, {}, {"polite": 0.5}]
    assert [p["chosen_by"] for p in reply["predictions"]] == ["segment", "segment", "segment", "pooled"]
    assert [p["segment"] for p in reply["predictions"]] == ["mail", "chat", "note", None]
    for text, recipe, prediction in zip(TEXTS, answered(reply), reply["predictions"], strict=True):
        (alone,) = predict(client, texts=text, recipe=recipe)["predictions"]
        assert prediction["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)
    counts = client.get("/metrics").text
    assert 'tween_automatic_t_total{by="segment"} 3.0' in counts and '{by="pooled"} 1.0' in counts
    assert answered(predict(client, recipe={"t": "auto"}, **asked)) == answered(reply)
    one = predict(client, texts=TEXTS[0], recipe="auto", segment="note")
    assert answered(one) == [NOTE] and one["predictions"][0]["chosen_by"] == "segment"


def test_without_a_segment_the_words_tell_the_variant(pod: Callable[[], httpx.Client], table: SegmentTable) -> None:
    client = pod()
    put(client, table)
    reply = predict(client, texts=[*TEXTS, "!?"], recipe="auto")
    mail, chat, note, awful, nothing = reply["predictions"]
    assert [p["segment"] for p in reply["predictions"]] == ["mail", "chat", "note", "chat", "chat"]
    assert {p["chosen_by"] for p in reply["predictions"]} == {"router"}
    assert mail["t"]["angry"] == pytest.approx(0.2, abs=0.02) and chat["t"] == awful["t"] == {"polite": 0.8}
    assert note["t"] == {} and note["recipe"] == NOTE
    # Without words all are about as likely: two segments want one variant, and it outweighs the likeliest segment.
    shares = torch.tensor([0.3, 0.2]).softmax(dim=0)
    assert nothing["t"]["angry"] == pytest.approx(float(shares @ torch.tensor([0.2, 0.6])), abs=0.0051)
    put(client, replace(table, router=None))
    assert answered(predict(client, texts="!?", recipe="auto")) == [POOLED]


def test_a_list_mixes_it_with_other_recipes(pod: Callable[[], httpx.Client], table: SegmentTable, bank: Bank) -> None:
    client = pod()
    put(client, table)
    assert client.put("/v1/segments/angry", json=table_at(0.3, bank)).status_code == 201
    mixed = ["auto", "angry@auto", "polite@0.4", "base"]
    reply = predict(client, texts=TEXTS, recipe=mixed, segment=["chat", "mail", "mail", "mail"])
    assert reply["recipe"] == [CHAT, "angry@0.3;temperature=1.5", "polite@0.4", "base"]
    assert [p["chosen_by"] for p in reply["predictions"]] == ["segment", "segment", None, None]
    found = client.get("/v1/segments").json()["segments"]
    assert [one["variant"] for one in found] == ["angry", "auto"]
    assert found[1]["segments"]["chat"] == {
        "variant": "polite",
        "t": 0.8,
        "temperature": 2.0,
        "interval": [0.7, 0.9],
        "texts": 200,
    }
    assert "variant" not in found[0]["segments"]["mail"]
    assert found[1]["pooled"]["variant"] == "polite" and found[1]["fitted_on_this_bank"]


def test_what_cannot_be_chosen_is_refused(pod: Callable[[], httpx.Client]) -> None:
    client = pod()

    def refused(status: int, recipe: object) -> str:
        return problem(client.post("/v1/predict", json={"texts": "ok", "recipe": recipe}), status)

    detail = refused(404, "auto")
    assert "no t's by segment were fitted for 'auto'; there are some for: none" in detail
    assert "`tween segments DATA` fits them" in detail and "/v1/segments/auto" in detail
    assert "'auto' takes nothing after it" in refused(422, "auto:entropy")
    assert "'auto' is no member" in refused(422, "auto+polite@0.2")
    assert "'auto' is no member" in problem(client.post("/v1/blends", json={"recipe": "auto"}), 422)
    assert "for 'auto'" in problem(client.put("/v1/aliases/prod", json={"recipe": "auto"}), 404)
    assert "for 'auto'" in problem(client.get("/v1/segments/auto"), 404)


def test_an_alias_of_it_serves_every_pod(pod: Callable[[], httpx.Client], table: SegmentTable) -> None:
    one, two = pod(), pod()
    put(one, table)
    moved = one.put("/v1/aliases/prod", json={"recipe": {"t": "auto"}}).json()
    assert (moved["recipe"], moved["key"]) == ("auto", None)

    def served(client: httpx.Client) -> list[str] | None:
        reply = client.post("/v1/predict", json={"texts": TEXTS[:2], "recipe": "@prod", "segment": ["mail", "chat"]})
        return answered(reply.json()) if reply.status_code == 200 else None

    for client in (one, two):
        until(lambda: served(client) == [MAIL, CHAT])  # noqa: B023
    assert answered(predict(two, texts="late", segment="note")) == [NOTE], "it is the default"
    assert "alias 'prod' is auto, which needs the table" in problem(two.delete("/v1/segments/auto"), 409)
    assert one.put("/v1/aliases/prod", json={"recipe": "angry@0.4"}).status_code == 200
    until(lambda: predict(two, texts="late")["recipe"] == "angry@0.4")
    assert two.delete("/v1/segments/auto").json()["falls_back"] is False
    assert "for 'auto'" in problem(two.post("/v1/predict", json={"texts": "ok", "recipe": "auto"}), 404)


def test_a_guard_looks_at_the_table_that_is_needed(
    pod: Callable[[], httpx.Client], table: SegmentTable, bank: Bank
) -> None:
    client = pod()
    put(client, table)
    client.put("/v1/segments/angry", json=table_at(0.3, bank))
    client.put("/v1/aliases/prod", json={"recipe": "angry@auto"})
    assert client.delete("/v1/segments/auto").status_code == 200
    put(client, table)
    client.put("/v1/aliases/prod", json={"recipe": "auto"})
    assert client.delete("/v1/segments/angry").status_code == 200


def test_an_arm_and_a_shadow_may_be_it(pod: Callable[[], httpx.Client], table: SegmentTable) -> None:
    client = pod()
    arms = [
        {"name": "one", "recipe": "angry@0.4", "share": 0.5},
        {"name": "each", "recipe": "auto", "share": 0.5},
        {"name": "beside", "recipe": "auto", "share": 0, "shadow": True},
    ]
    body = {"arms": arms, "control": "one", "status": "running", "overrides": {"tester": "each", "other": "one"}}
    assert "for 'auto'" in problem(client.put("/v1/experiments/tone", json=body), 404)
    put(client, table)
    assert client.put("/v1/experiments/tone", json=body).status_code == 201
    asked = {"recipe": "exp:tone", "texts": TEXTS[:2], "segment": ["mail", "chat"]}
    reply = predict(client, unit="tester", **asked)
    assert reply["recipe"] == "auto" and answered(reply) == [MAIL, CHAT]
    assert reply["experiment"] == {"name": "tone", "arm": "each"}
    assert predict(client, unit=["other", "tester"], **asked)["recipe"] == ["angry@0.4", CHAT]
    assert "arm 'each' of experiment 'tone' is auto" in problem(client.delete("/v1/segments/auto"), 409)
    assert client.get("/v1/experiments/tone/report").status_code == 200
    promoted = client.post("/v1/experiments/tone/promote", json={"arm": "each", "alias": "prod"})
    assert promoted.status_code in (200, 201), promoted.text
    assert answered(predict(client, texts="late", segment="chat")) == [CHAT]


def test_an_alias_may_be_rolled_out_to_it(pod: Callable[[], httpx.Client], table: SegmentTable) -> None:
    client = pod()
    put(client, table)
    client.put("/v1/aliases/prod", json={"recipe": "angry@0.4"})
    arms = [{"name": name, "recipe": recipe, "share": 0.5} for name, recipe in (("old", "angry@0.4"), ("new", "auto"))]
    body = {"arms": arms, "control": "old", "metrics": [{"name": "solved", "role": "guardrail"}]}
    assert client.put("/v1/experiments/tone", json=body).status_code == 201
    plan = {"arm": "new", "alias": "prod", "guarded": True, "steps": [0.5, 1], "step_seconds": 600}
    begun = client.post("/v1/experiments/tone/promote", json=plan)
    assert begun.status_code == 202, begun.text
    until(lambda: predict(client, texts="late", unit="a", segment="mail").get("experiment") is not None)
    reply = predict(client, texts=["late"] * 30, unit=[str(i) for i in range(30)], segment="chat")
    assert set(reply["recipe"]) == {"angry@0.4", CHAT}


def test_the_command_puts_what_it_has_fitted_live(
    pod: Callable[[], httpx.Client], bank: Bank, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = pod()
    rows = [f"{'mail' if i % 2 else 'chat'},the {'late slow good'.split()[i % 3]} order {i},{i % 3}" for i in range(60)]
    (tmp_path / "own.csv").write_text("\n".join(["channel,text,label", *rows]))
    parser = argparse.ArgumentParser()
    add_segments(parser)
    out = ["--out", str(tmp_path / "fitted"), "--put", str(client.base_url)]
    options = parser.parse_args([str(tmp_path / "own.csv"), *out])
    assert run_segments(options, lambda options: LocalProvider(bank, 64), tmp_path / "logits") == 0
    assert f"Live at {client.base_url}, version 1" in capsys.readouterr().out
    fitted = json.loads((tmp_path / "fitted" / "segments.json").read_text())
    live = client.get("/v1/segments/auto").json()
    assert live["segments"] == fitted["segments"] and set(live["routed"]) == {"chat", "mail"}
    mail = fitted["segments"]["mail"]
    (prediction,) = predict(client, texts="late", recipe="auto", segment="mail")["predictions"]
    assert prediction["t"] == ({} if mail["variant"] == "base" or not mail["t"] else {mail["variant"]: mail["t"]})


# -- the table -----------------------------------------------------------------------------------------


def test_a_table_survives_the_file(table: SegmentTable, bank: Bank) -> None:
    document = json.loads(json.dumps(table.document()))
    assert document["format"] == "tween segments 2" and document["segments"]["note"]["variant"] == "base"
    again = table_of(document)
    assert again.document() == table.document() and again.segments == table.segments
    old = table_at(0.2, bank)
    assert old["format"] == "tween segments 1" and set(old["pooled"]) == {"t", "temperature", "interval", "texts"}
    assert table_of(json.loads(json.dumps(old))).document() == old


SETTING = {"t": 0.4, "temperature": 1.0, "interval": [0.0, 1.0], "texts": 1, "variant": "angry"}
REFUSED = [
    ({"pooled": {**SETTING, "variant": "base"}}, "t of the base is '0.4', and must be a number from 0 to 0"),
    ({"pooled": {**SETTING, "variant": 7}}, "variant is '7', and must be the name of one, or 'base'"),
    ({"pooled": {**SETTING, "variant": None}}, "variant is 'None', and must be the name of one"),
    ({"pooled": {k: v for k, v in SETTING.items() if k != "variant"}}, "no entry 'variant'"),
    ({"format": "tween segments 1"}, "'tween segments 2' is that of 'auto', and of no other table"),
    ({"format": "tween segments 3"}, "is not 'tween segments 1' or 'tween segments 2'"),
    ({"variant": "angry"}, "'tween segments 2' is that of 'auto', and of no other table"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_a_table_that_does_not_fit_is_refused(table: SegmentTable, change: dict[str, Any], words: str) -> None:
    with pytest.raises(BadSegments, match=words):
        table_of(table.document() | change)


def test_what_a_put_may_bring_is_checked_against_the_bank(
    pod: Callable[[], httpx.Client], table: SegmentTable, bank: Bank
) -> None:
    client = pod()

    def refused(name: str, document: dict[str, Any]) -> str:
        return problem(client.put(f"/v1/segments/{name}", json=document), 422)

    stranger = {"segments": {"mail": {**SETTING, "variant": "rude"}}, "router": None}
    assert "segment 'mail' goes by 'rude'; loaded: base, angry, polite" in refused("auto", table.document() | stranger)
    assert "segment 'pooled' goes by 'auto'" in refused(
        "auto", table.document() | {"pooled": {**SETTING, "variant": ""}}
    )
    assert "a table for 'auto' is given for 'angry'" in refused("angry", table.document())
    assert "a table for 'angry' is given for 'auto'" in refused("auto", table_at(0.2, bank))
    assert "fitted on weights 'another'" in refused("auto", table.document() | {"bank": "another"})
    for change, _ in REFUSED:
        refused("auto", table.document() | change)
    assert client.get("/v1/segments").json() == {"segments": []}


def test_a_bank_file_may_name_it(
    serve: Callable[..., Service], folders: Path, table: SegmentTable, bank: Bank, redis: Redis, tmp_path: Path
) -> None:
    (tmp_path / "all.json").write_text(json.dumps(table.document()))
    members = "".join(f'{name} = "{folders / name}"\n' for name in ("angry", "polite"))
    text = f'base = "{folders / "base"}"\n[variants]\n{members}[segments]\nauto = "all.json"\n'
    (tmp_path / "bank.toml").write_text(text)
    spec = BankSpec.from_toml(tmp_path / "bank.toml")
    client = serve(spec).client
    assert answered(predict(client, texts="late", recipe="auto", segment="chat")) == [CHAT]
    moved = replace(table, segments={"chat": replace(table.segments["chat"], t=0.3)}, router=None)
    assert put(client, moved)["live"]["version"] == 1
    assert answered(predict(client, texts="late", recipe="auto", segment="chat")) == ["polite@0.3;temperature=2"]
    assert client.delete("/v1/segments/auto").json()["falls_back"] is True
    assert answered(predict(client, texts="late", recipe="auto", segment="chat")) == [CHAT]
    with pytest.raises(BadBank, match="a table for 'auto' is given for 'angry'"):
        tables_of(replace(spec, segments={"angry": tmp_path / "all.json"}), bank)
