"""`VARIANT@auto` over HTTP: a t for each text, by its segment or by its words."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import torch
from conftest import Service
from test_http import predict, problem

from app.bootstrap import tables_of
from app.errors import BadBank
from app.models.bank import Bank, BankSpec
from app.segments.segment_classifier import BUCKETS, SegmentClassifier, buckets_of
from app.segments.segment_table import SegmentTable, Setting

TEXTS = ["the refund came fast, great!", "they never answer. awful", "parcel is late again"]


@pytest.fixture(scope="module")
def table(bank: Bank) -> SegmentTable:
    """Mail at t = 0.2, chat at 0.8; the word `refund` is told to be mail, `awful` chat."""
    weights = torch.zeros(BUCKETS, 2)
    weights[buckets_of("refund"), 0] = weights[buckets_of("awful"), 1] = 3.0
    return SegmentTable(
        variant="angry",
        bank=bank.fingerprint,
        pooled=Setting(0.5, 1.25, (0.3, 0.7), 400),
        segments={"mail": Setting(0.2, 1.5, (0.1, 0.3), 200), "chat": Setting(0.8, 2.0, (0.7, 0.9), 200)},
        router=SegmentClassifier(("mail", "chat"), weights, torch.zeros(2)),
    )


@pytest.fixture(scope="module")
def with_table(folders: Path, table: SegmentTable, tmp_path_factory: pytest.TempPathFactory) -> BankSpec:
    root = tmp_path_factory.mktemp("segments")
    (root / "angry.json").write_text(json.dumps(table.document()))
    members = "".join(f'{name} = "{folders / name}"\n' for name in ("angry", "polite"))
    text = f'base = "{folders / "base"}"\n[variants]\n{members}[segments]\nangry = "angry.json"\n'
    (root / "bank.toml").write_text(text)
    return BankSpec.from_toml(root / "bank.toml")


@pytest.fixture
def client(serve: Callable[..., Service], with_table: BankSpec) -> httpx.Client:
    return serve(with_table).client


def test_a_declared_segment_is_looked_up(client: httpx.Client) -> None:
    reply = predict(client, texts=TEXTS, recipe="angry@auto", segment=["mail", "chat", "fax"])
    assert (reply["recipe"], reply["key"]) == ("angry@auto", None)
    recipes = [p["recipe"] for p in reply["predictions"]]
    assert recipes == ["angry@0.2;temperature=1.5", "angry@0.8;temperature=2", "angry@0.5;temperature=1.25"]
    assert [p["t"] for p in reply["predictions"]] == [{"angry": 0.2}, {"angry": 0.8}, {"angry": 0.5}]
    assert [p["chosen_by"] for p in reply["predictions"]] == ["segment", "segment", "pooled"]
    assert [p["segment"] for p in reply["predictions"]] == ["mail", "chat", None]
    for text, recipe, prediction in zip(TEXTS, recipes, reply["predictions"], strict=True):
        same = predict(client, texts=text, recipe=recipe)
        (alone,) = same["predictions"]
        assert prediction["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)
        assert prediction["key"] == same["key"] and "key" not in alone and "recipe" not in alone
        assert alone["chosen_by"] is None
    assert 'tween_automatic_t_total{by="pooled"} 1.0' in client.get("/metrics").text
    one = predict(client, texts=TEXTS, recipe={"variant": "angry", "t": "auto"}, segment="chat")
    assert {p["segment"] for p in one["predictions"]} == {"chat"} and one["recipe"] == "angry@auto"
    assert len({p["key"] for p in one["predictions"]}) == 1


def test_without_a_segment_t_is_mixed_by_what_the_words_tell(client: httpx.Client) -> None:
    reply = predict(client, texts=TEXTS, recipe="angry@auto")
    mail, chat, neither = reply["predictions"]
    assert (mail["segment"], chat["segment"]) == ("mail", "chat")
    assert 0.2 < mail["t"]["angry"] < 0.5 < chat["t"]["angry"] < 0.8
    assert neither["t"] == {"angry": 0.5} and neither["recipe"] == "angry@0.5;temperature=1.73"
    assert {p["chosen_by"] for p in reply["predictions"]} == {"router"}


def test_a_list_mixes_automatic_and_other_recipes(client: httpx.Client) -> None:
    reply = predict(
        client, texts=TEXTS, recipe=["angry@auto", "polite@0.4", "angry@auto"], segment=["mail", None, None]
    )
    assert reply["recipe"][:2] == ["angry@0.2;temperature=1.5", "polite@0.4"]
    assert [p["chosen_by"] for p in reply["predictions"]] == ["segment", None, "router"]
    assert predict(client, texts=TEXTS, recipe="polite@0.4", segment="mail")["recipe"] == "polite@0.4"


def test_what_cannot_be_chosen_is_refused(client: httpx.Client) -> None:
    def refused(status: int, **body: object) -> str:
        return problem(client.post("/v1/predict", json=body), status)

    detail = refused(404, texts="ok", recipe="polite@auto")
    assert "no t's by segment were fitted for 'polite'; there are some for: angry" in detail
    assert "tween segments" in detail
    assert "no variant 'rude'" in refused(404, texts="ok", recipe="rude@auto")
    assert "3 texts and 2 segments" in refused(422, texts=TEXTS, recipe="angry@auto", segment=["mail", "chat"])
    assert "3 texts and 1 recipes" in refused(422, texts=TEXTS, recipe=["angry@auto"], segment="mail")
    body, json_type = b'{"texts": "\\ud800", "recipe": "angry@auto"}', {"Content-Type": "application/json"}
    assert "lone surrogate" in problem(client.post("/v1/predict", content=body, headers=json_type), 422)
    assert "'auto' takes nothing after it" in refused(422, texts="ok", recipe="angry@auto:entropy")
    assert "its own t, alone" in refused(422, texts="ok", recipe="angry@auto+polite@0.2")
    assert "its own t" in problem(client.post("/v1/blends", json={"recipe": "angry@auto"}), 422)


def test_tables_can_be_looked_at(client: httpx.Client, table: SegmentTable) -> None:
    found = client.get("/v1/segments/angry").json()
    assert found["segments"]["mail"] == {"t": 0.2, "temperature": 1.5, "interval": [0.1, 0.3], "texts": 200}
    assert found["routed"] == ["mail", "chat"] and found["fitted_on_this_bank"] is True
    assert client.get("/v1/segments").json() == {"segments": [found]}
    assert "there are some for: angry" in problem(client.get("/v1/segments/polite"), 404)


def test_a_table_in_the_bank_file_must_fit_the_bank(with_table: BankSpec, bank: Bank, tmp_path: Path) -> None:
    with pytest.raises(BadBank, match="a table for 'angry' is given for 'polite'"):
        tables_of(replace(with_table, segments={"polite": with_table.segments["angry"]}), bank)
    with pytest.raises(BadBank, match="cannot be read"):
        tables_of(replace(with_table, segments={"angry": tmp_path / "absent.json"}), bank)
