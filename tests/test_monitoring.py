"""Rules, dashboard and scaling speak of metrics that a running service has, and the rules do what they say."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from conftest import Service
from kustomize import ROOT, of_kind
from prometheus_client.parser import text_string_to_metric_families

from app.models.bank import BankSpec

MONITORING = ROOT / "k8s" / "monitoring"
RULES = MONITORING / "tween.rules.yml"
DASHBOARD = json.loads((MONITORING / "tween.dashboard.json").read_text(encoding="utf-8"))

METRIC = re.compile(r"\btween_\w+")
RECORDED = re.compile(r"\btween:[\w:]+")
LABEL_VALUE = re.compile(r'(\w+)=~?"([^"$]+)"')
OF_PROMETHEUS = {"job", "namespace"}


def promtool() -> str:
    found = shutil.which("promtool")
    beside = ROOT / ".venv" / "debian" / "usr" / "bin" / "promtool"
    if found is None and not beside.exists():
        pytest.skip(
            "no promtool: it comes with Prometheus (Debian's package `prometheus`; make .venv/debian unpacks it)"
        )
    return found or str(beside)


def rules() -> list[dict[str, str]]:
    return [rule for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]]


def queries() -> Iterator[tuple[str, str]]:
    """Where it stands, and what is asked of Prometheus there."""
    for rule in rules():
        yield rule.get("alert") or rule["record"], rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["definition"]
    adapter = yaml.safe_load((MONITORING / "adapter.values.yaml").read_text(encoding="utf-8"))
    for rule in adapter["rules"]["custom"]:
        yield "prometheus-adapter", rule["seriesQuery"]


@pytest.fixture(scope="module")
def samples(spec: BankSpec, redis_url: str) -> dict[str, list[dict[str, str]]]:
    """What a service publishes that has served, been refused, and moved an alias: labels of each sample by name."""
    from conftest import running

    with running(spec, redis_url=redis_url, memory_tier_mib=16) as service:
        service.client.put("/v1/aliases/prod", json={"recipe": "angry@0.4"}).raise_for_status()
        service.client.post("/v1/predict", json={"texts": "late again"}).raise_for_status()
        text = service.client.get("/metrics").text
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


@pytest.mark.parametrize(("place", "query"), list(queries()))
def test_every_metric_asked_for_is_published(place: str, query: str, samples: dict[str, list[dict[str, str]]]) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert set(RECORDED.findall(query)) <= recorded
    names = METRIC.findall(query)
    assert names or RECORDED.search(query) or "up{" in query
    assert set(names) <= set(samples), f"{place} asks for what /metrics does not have"
    # A value that is asked for by its label must exist too: {state="idel"} is a line that is for ever empty.
    for name, selector in re.findall(r"\b(tween_\w+)\{([^}]*)\}", query):
        for label, wanted in LABEL_VALUE.findall(selector):
            if label not in OF_PROMETHEUS:
                there = {labels.get(label) for labels in samples[name]}
                assert set(wanted.split("|")) <= there, f"{place}: {name} has no {label}={wanted}"


def test_autoscaling_reads_a_metric_that_the_adapter_gives(samples: dict[str, list[dict[str, str]]]) -> None:
    (scaler,) = of_kind("production", "HorizontalPodAutoscaler")
    (by_queue,) = [metric["pods"] for metric in scaler["spec"]["metrics"] if metric["type"] == "Pods"]
    adapter = yaml.safe_load((MONITORING / "adapter.values.yaml").read_text(encoding="utf-8"))
    (rule,) = adapter["rules"]["custom"]
    assert by_queue["metric"]["name"] == rule["name"]["as"]
    assert rule["name"]["as"] in samples


def test_rules_do_what_their_tests_say() -> None:
    command = [promtool(), "test", "rules", str(MONITORING / "tween.rules.test.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_has_a_test() -> None:
    tests = (MONITORING / "tween.rules.test.yml").read_text(encoding="utf-8")
    # A recorded series is tested by itself or by an alert that reads it.
    read_by_alerts = {name for rule in rules() if "alert" in rule for name in RECORDED.findall(rule["expr"])}
    untested = {rule.get("alert") or rule["record"] for rule in rules()} - read_by_alerts
    assert {name for name in untested if name not in tests} <= {"tween:tokens:rate5m"}


def test_prometheus_configuration_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "prometheus.yml").write_bytes((ROOT / "compose" / "prometheus.yml").read_bytes())
    (tmp_path / RULES.name).write_bytes(RULES.read_bytes())
    command = [promtool(), "check", "config", str(tmp_path / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and "14 rules" in done.stdout, done.stdout + done.stderr


def test_metrics_are_named_as_prometheus_wants_them(serve: Callable[..., Service], spec: BankSpec) -> None:
    text = serve(spec).client.get("/metrics").text
    command = [promtool(), "check", "metrics"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_operator_gets_the_same_rules() -> None:
    (theirs,) = of_kind("production", "PrometheusRule")
    assert theirs["spec"] == yaml.safe_load(RULES.read_text(encoding="utf-8")), "make rules writes them anew"


def test_panels_have_names_and_places_of_their_own() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)
