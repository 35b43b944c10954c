"""Names and units in any script: read the same however they are spelt, and over HTTP from end to end."""

from __future__ import annotations

import csv
import io
import json
import logging
import shutil
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import httpx
import pytest
from conftest import Service
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

from app.__main__ import main
from app.api.auth.api_keys import new_key
from app.api.http_server.header_text import header_text
from app.errors import BadBank, BadExperiment, BadHeader, UnknownVariant
from app.experiments.assignment import u
from app.experiments.experiment import Experiment, check_name
from app.models.bank import BankSpec
from app.names import MAX_NAME, is_name, nfc
from app.segments.segment_table import table_of
from app.sweep.data.dataset import Columns, dataset_of
from app.weights.auto_recipe import Auto, automatic
from app.weights.recipe import RESERVED, Cookbook

pytestmark = pytest.mark.patient("a call that a busy machine delays must not count as Redis away")

SCRIPTS = ["财务", "産品", "ürün", "Ελλάδα", "продажи", "مبيعات", "बिक्री", "ขาย", "한국어", "二〇二六", "v٣", "Zoë_2-b"]
NO_NAMES = ["", " ", "a b", "a@b", "a+b", "a:b", "a;b", "a=b", "a,b", "a/b", "a.\u200db", "@a", "-a", "a\n", "a\u200b"]
NO_NAMES += ["a\u202e", "a\u2028b", "a\u3000b", "\ud800", "a\ufe0f", "\u3164", "\u0301a", "a\x00", "a\u00ad", "😀"]
NO_NAMES += ["a＠b", "财" * 65]
SPELLINGS = [(nfc(name), unicodedata.normalize("NFD", name)) for name in SCRIPTS]
DECOMPOSED = [(composed, decomposed) for composed, decomposed in SPELLINGS if composed != decomposed]
VECTORS = Path(__file__).parent.parent / "docs" / "experiments.md"


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_name_may_be_of_any_script(name: str) -> None:
    assert is_name(nfc(name)) and check_name(name) == nfc(name)
    cookbook = Cookbook([nfc(name), "other"])
    assert cookbook.read(f" {name} @ 0.4+other@0.1").text == "+".join(sorted([f"{nfc(name)}@0.4", "other@0.1"]))
    assert automatic(f"{name}@auto") == automatic(f" {name} @ auto ") == Auto(nfc(name))


@pytest.mark.parametrize("name", NO_NAMES, ids=ascii)
def test_what_recipes_need_and_what_nobody_sees_is_in_no_name(name: str) -> None:
    assert not is_name(nfc(name)) and automatic(f"{name}x@auto") in (None, Auto("x"))
    with pytest.raises(BadExperiment):
        check_name(name)


def test_a_name_has_a_length() -> None:
    assert is_name("财" * MAX_NAME) and not is_name("财" * (MAX_NAME + 1))
    syllables = unicodedata.normalize("NFD", "한" * MAX_NAME)
    assert len(syllables) == 3 * MAX_NAME and check_name(syllables) == "한" * MAX_NAME


def test_a_long_run_of_marks_costs_no_time() -> None:
    """Sorting such a run takes time by the square of its length."""
    started = time.process_time()
    marks = "a" + "\u0301\u0323" * 500_000
    assert nfc(marks) == marks and automatic(f"{marks}@auto") is None
    with pytest.raises(UnknownVariant):
        Cookbook(["x"]).read({"variant": marks})
    assert time.process_time() - started < 2


@pytest.mark.parametrize(("composed", "decomposed"), DECOMPOSED)
def test_two_spellings_of_a_name_are_one(composed: str, decomposed: str) -> None:
    cookbook = Cookbook([composed])
    readings = [
        cookbook.read(f"{decomposed}@0.4"),
        cookbook.read({"t": {decomposed: 0.4}}),
        cookbook.read({"variant": decomposed, "t": 0.4}),
        cookbook.read({"from": "base", "t": {decomposed: 0.4}}),
    ]
    assert {(one, one.key("bank")) for one in readings} == {(one := cookbook.read(f"{composed}@0.4"), one.key("bank"))}
    cookbook.aliases[composed] = readings[0]
    assert cookbook.read(f"@{decomposed}") == readings[0]
    assert automatic({"variant": decomposed, "t": "auto"}) == Auto(composed)
    arms = [{"name": decomposed, "recipe": "base", "share": 1}]
    metrics = [{"name": decomposed, "kind": "count"}, {"name": "other", "per": decomposed}]
    experiment = Experiment.model_validate({"arms": arms, "control": composed, "metrics": metrics})
    assert (experiment.arms[0].name, experiment.control) == (composed, composed)
    assert (experiment.metrics[0].name, experiment.metrics[1].per) == (composed, composed)


def test_two_spellings_of_one_name_in_a_bank_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "bank.toml"
    file.write_text('base = "b"\n[variants]\n"\u00fcr" = "x"\n"u\u0308r" = "y"\n', encoding="utf-8")
    with pytest.raises(BadBank, match="names 'ür' twice"):
        BankSpec.from_toml(file)
    with pytest.raises(BadBank, match="names 'ür' twice"):
        BankSpec.from_options("b", ["\u00fcr=x", "u\u0308r=y"])


def test_two_spellings_of_a_segment_are_one() -> None:
    spellings = ["\u00fc", "u\u0308"] * 40
    rows = [(f"row {i}", {"text": f"text {i}", "label": i % 2, "segment": s}) for i, s in enumerate(spellings)]
    assert dataset_of("data", iter(rows), ["no", "yes"], Columns()).segment_names == ("\u00fc",)
    setting = {"t": 0.3, "temperature": 1, "interval": [0, 1], "texts": 9}
    document = {
        "format": "tween segments 1",
        "variant": "u\u0308",
        "bank": "b",
        "pooled": setting,
        "segments": {"u\u0308": setting},
        "router": None,
        "entropy": None,
    }
    table = table_of(document)
    assert (table.variant, list(table.segments)) == ("\u00fc", ["\u00fc"])


def vectors() -> list[tuple[str, str, str, float]]:
    """Header, unit, its bytes in UTF-8, and u(tone/arm, unit), from the table that is published."""
    lines = VECTORS.read_text(encoding="utf-8").split("| header | unit | UTF-8 | u(`tone/arm`, unit) |")[1].splitlines()
    found = []
    for line in lines[2:]:
        if not line.startswith("|"):
            break
        header, unit, raw, lot = (cell.strip().strip("`") for cell in line.strip("|").split("|"))
        found.append((header, unit.encode().decode("unicode_escape") if "\\u" in unit else unit, raw, float(lot)))
    return found


def test_the_published_units_in_headers_are_read_as_published() -> None:
    assert len(vectors()) >= 6
    for header, unit, raw, lot in vectors():
        assert unit.encode().hex(" ") == raw
        assert header_text("X-Tween-Unit", header.encode().decode("latin-1")) == unit, "as a server gets it"
        assert header_text("X-Tween-Unit", quote(unit, safe="")) == unit
        assert u("tone/arm", unit) == lot


@pytest.mark.parametrize("value", ["50%", "%", "%zz", "%2", "a%E5", "%FF", "\xff", "%ED%A0%80"])
def test_a_header_that_is_no_text_is_refused(value: str) -> None:
    with pytest.raises(BadHeader, match="X-Tween-Unit (has a %|is not UTF-8)"):
        header_text("X-Tween-Unit", value)


@given(st.text(max_size=80))
def test_what_is_a_name_reads_back_as_itself(text: str) -> None:
    name = nfc(text)
    assert nfc(name) == name and isinstance(is_name(name), bool)
    if is_name(name) and name not in RESERVED:
        for recipe in ({"variant": text}, f"{text}@1", f" {name} "):
            assert Cookbook([name]).read(recipe).t == ((name, 1_000_000),)
        assert automatic(f"{text}@auto") == Auto(name)


@given(st.binary(max_size=40))
def test_whatever_a_header_holds_is_a_text_or_refused(raw: bytes) -> None:
    try:
        text = header_text("X-Tween-Unit", raw.decode("latin-1"))
    except BadHeader:
        return
    assert header_text("X-Tween-Unit", quote(text, safe="")) == text


# -- from end to end ---------------------------------------------------------------------------------------

CUSTOMERS = [f"客户-{i}" for i in range(8)]
METRIC, EXPERIMENT = "购买", "语气"
ARMS = [{"name": "温和", "recipe": "base", "share": 0.5}, {"name": "坚定", "recipe": "财务@0.4", "share": 0.5}]


@pytest.fixture(scope="module")
def chinese(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> BankSpec:
    root = tmp_path_factory.mktemp("chinese")
    shutil.copytree(folders, root, dirs_exist_ok=True)
    variants = '"财务" = "angry"\n"u\u0308ru\u0308n" = "polite"\n'
    (root / "bank.toml").write_text(f'base = "base"\n[variants]\n{variants}', "utf-8")
    return BankSpec.from_toml(root / "bank.toml")


@pytest.fixture
def client(serve: Callable[..., Service], chinese: BankSpec, redis: Redis) -> httpx.Client:
    return serve(chinese).client


def ask(client: httpx.Client, recipe: object, header: str | None = None, **body: Any) -> dict[str, Any]:
    headers = {} if header is None else {b"X-Tween-Unit": header.encode()}
    reply = client.post("/v1/predict", json={"texts": "a b c", "recipe": recipe, **body}, headers=headers)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def test_a_variant_in_any_script_is_served_from_recipe_to_metrics(client: httpx.Client) -> None:
    shown = ask(client, "财务@0.4")
    assert shown["recipe"] == "财务@0.4" and shown["predictions"][0]["t"] == {"财务": 0.4}
    composed, decomposed = ask(client, "\u00fcr\u00fcn@0.4"), ask(client, "u\u0308ru\u0308n@0.4")
    assert composed["recipe"] == decomposed["recipe"] and composed["key"] == decomposed["key"]
    actor = {"X-Tween-Actor": quote("李雷")}
    made = client.put("/v1/aliases/产品", json={"recipe": "财务@0.4"}, headers=actor)
    assert made.status_code == 201 and made.json()["by"] == "李雷"
    assert ask(client, "@产品")["key"] == shown["key"]
    client.put("/v1/aliases/u\u0308", json={"recipe": "base"}, headers={b"From": "李雷".encode()})
    assert client.get("/v1/aliases/\u00fc").json()["by"] == "李雷"
    blend = client.post("/v1/blends", json={"recipe": {"t": {"财务": 0.2, "u\u0308ru\u0308n": 0.2}}}).json()
    assert client.get(f"/v1/blends/{blend['key']}").json()["recipe"] == blend["recipe"] == "\u00fcr\u00fcn@0.2+财务@0.2"
    assert 'tween_alias_version{alias="产品"} 1.0' in client.get("/metrics").text
    missing = client.post("/v1/predict", json={"texts": "a", "recipe": "财@0.4"})
    assert missing.status_code == 404 and "loaded: base, 财务, \u00fcr\u00fcn" in missing.json()["detail"]


def test_a_unit_named_by_header_and_by_body_is_one_customer(client: httpx.Client, redis: Redis) -> None:
    path = f"/v1/experiments/{quote(EXPERIMENT)}"
    definition = {
        "arms": ARMS,
        "control": "温和",
        "metrics": [{"name": METRIC, "role": "primary"}],
        "status": "running",
    }
    made = client.put(path, json=definition, headers={"X-Tween-Actor": quote("韩梅梅")})
    assert made.status_code == 201, made.text
    for unit in CUSTOMERS:
        ways = [
            ask(client, f"exp:{EXPERIMENT}", unit=unit),
            ask(client, f"exp:{EXPERIMENT}", unit),
            ask(client, f"exp:{EXPERIMENT}", quote(unit)),
        ]
        assert len({way["experiment"]["arm"] for way in ways}) == 1
        assert client.get(f"{path}/assignment", params={"unit": unit}).json()["arm"] == ways[0]["experiment"]["arm"]
    outcomes = [{"unit": unit, "metric": METRIC} for unit in CUSTOMERS]
    assert client.post(f"{path}/outcomes", json=outcomes).json()["accepted"] == len(CUSTOMERS)
    rows = exported(client, path)
    assert {row["unit"]: (row["exposures"], row[METRIC]) for row in rows} == {unit: ("3", "1.0") for unit in CUSTOMERS}
    assert len(rows) == len(CUSTOMERS)
    report = client.get(f"{path}/report").json()
    assert {arm["arm"] for arm in report["arms"]} == {"温和", "坚定"} and report["metrics"][0]["metric"] == METRIC
    shown = client.get(f"{path}/report", params={"format": "html"}).text
    assert EXPERIMENT in shown and "坚定" in shown
    assert [entry["by"] for entry in client.get(f"{path}/audit").json()["audit"]] == ["韩梅梅"]


def exported(client: httpx.Client, path: str) -> list[dict[str, str]]:
    """The rows of an export, once all outcomes have been counted."""
    deadline = time.monotonic() + 30
    while True:
        reply = client.get(f"{path}/export")
        rows = list(csv.DictReader(io.StringIO(reply.content.decode())))
        if sum(float(row[METRIC]) for row in rows) == len(CUSTOMERS) or time.monotonic() > deadline:
            assert reply.headers["content-disposition"] == f"attachment; filename*=UTF-8''{quote(EXPERIMENT)}.csv"
            return rows
        time.sleep(0.1)


def test_the_audit_log_tells_of_names_in_any_script(
    serve: Callable[..., Service],
    chinese: BankSpec,
    redis: Redis,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "tween.audit")
    key, entry = new_key("boss", "manage")
    (tmp_path / "keys.toml").write_text(entry)
    client = serve(chinese, api_keys=tmp_path / "keys.toml").client
    headers = {"Authorization": f"Bearer {key}", "X-Tween-Actor": quote("李雷")}
    reply = client.put("/v1/aliases/产品", json={"recipe": "财务@0.4"}, headers=headers)
    assert reply.status_code == 201 and reply.json()["by"] == "boss", "and not what a header says"
    assert "boss PUT /v1/aliases/产品: 201" in unquote(caplog.text), "paths are percent-encoded there"


@pytest.mark.parametrize(
    ("header", "value", "sentence"),
    [
        ("X-Tween-Actor", "50%", "write % as %25"),
        ("X-Tween-Actor", "%FF", "is not UTF-8"),
        ("X-Tween-Actor", "a%0Ab", "cannot be seen"),
        ("From", "a%E2%80%AEb", "cannot be seen"),
        ("X-Tween-Actor", "x" * 201, "at most 200 characters"),
    ],
)
def test_who_acts_is_a_text_that_can_be_read(client: httpx.Client, header: str, value: str, sentence: str) -> None:
    reply = client.put("/v1/aliases/prod", json={"recipe": "base"}, headers={header: value})
    assert reply.status_code == 422 and sentence in reply.json()["detail"], reply.text
    reply = client.post("/v1/predict", json={"texts": "a"}, headers={"X-Tween-Unit": "50%"})
    assert reply.status_code == 422 and "write % as %25" in reply.json()["detail"]


def test_a_user_with_a_name_in_any_script_may_use_the_command(
    client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "experiments.toml"
    arms = ", ".join(f'{{name = "{arm["name"]}", recipe = "{arm["recipe"]}", share = 0.5}}' for arm in ARMS)
    file.write_text(f'["{EXPERIMENT}"]\ncontrol = "温和"\narms = [{arms}]\n', "utf-8")
    monkeypatch.setenv("LOGNAME", "王小明")
    for arguments in (["apply", str(file)], ["start", EXPERIMENT], ["show", EXPERIMENT]):
        monkeypatch.setattr("sys.argv", ["tween", "experiment", *arguments, "--server", str(client.base_url)])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        assert end.value.code == 0, printed.err
    assert {entry["by"] for entry in json.loads(printed.out)["audit"]} == {"王小明"}
