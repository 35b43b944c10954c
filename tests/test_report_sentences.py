"""Every sentence that a report can say comes of data, and none is written outside the table."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.api.page.experiment_page import page
from app.experiments.events.aggregates import Moments
from app.experiments.experiment import Experiment
from app.experiments.stats import dose_response, report_builder, report_summary
from app.experiments.stats.protocol import Amendment
from app.experiments.stats.report_builder import judge, report, with_uncounted
from app.experiments.stats.report_schema import Report
from app.experiments.stats.report_sentences import SENTENCES
from app.weights.recipe import Cookbook
from tests.units import binary_phase, halves, moments, phase, seconds_after

NOW = seconds_after(30)
BOUGHT = {"name": "bought", "role": "primary"}
CLICKS = {"name": "clicks", "kind": "count", "role": "primary", "per": "asks"}
ASKS = {"name": "asks", "kind": "count"}
WHY = "Guardrail errors fails: warm is worse than control by 1.0 to 2.0 points."


def made(metrics: list[dict[str, Any]] | None = None, arms: int = 2, **further: Any) -> Experiment:
    names = ["control", "warm", "c", "d", "e", "f"][:arms]
    shown = [{"name": n, "recipe": f"kind@{i / (arms - 1):g}", "share": 1 / arms} for i, n in enumerate(names)]
    body = {"arms": shown, "control": "control", "metrics": metrics or [BOUGHT], "status": "running", **further}
    return Experiment.model_validate(body)


def two(control: tuple[int, int], warm: tuple[int, int], role: dict[str, Any] = BOUGHT, **further: Any) -> Report:
    sums = binary_phase({"control": control, "warm": warm}, halves(["control", "warm"]), days=10)
    return report(made([role], **further), [sums], NOW)


def guarded(control: int, warm: int, units: int = 10_000) -> Report:
    return two((control, units), (warm, units), BOUGHT | {"role": "guardrail", "better": "lower", "margin": 0.01})


def along(*successes: int) -> Report:
    tested = made(arms=len(successes))
    counts = {arm.name: (count, 10_000) for arm, count in zip(tested.arms, successes, strict=True)}
    recipes = {arm.name: Cookbook(["kind"]).read(arm.recipe) for arm in tested.arms}
    return report(tested, [binary_phase(counts, halves(list(counts)))], NOW, recipes)


def amounts(lift: float = 0.0, missing: bool = False, correlation: float = 0.7) -> Report:
    random = np.random.default_rng(5)
    arms: dict[str, dict[str, Moments]] = {}
    for name, level in (("control", 2.0), ("warm", 2.0 + lift)):
        x = random.normal(0, 1, 4_000)
        z = 1.0 + random.poisson(3, 4_000)
        y = z * level + random.normal(0, 1, 4_000)
        extra = random.normal(0, 1, 4_000) + correlation * x
        x[: 2_000 if missing else 0] = np.nan
        arms[name] = {"clicks": moments(y, z), "asks": moments(z), "extra": moments(extra, x=x)}
    sums = phase(arms, {"control": 4_000, "warm": 4_000}, halves(["control", "warm"]))
    return report(made([CLICKS, ASKS, {"name": "extra", "kind": "continuous"}]), [sums], NOW)


def after_holm() -> Report:
    metrics = [BOUGHT, *({"name": f"extra{i}"} for i in range(8))]
    arms = {n: {m["name"]: moments(np.arange(10_000) < 1000.0) for m in metrics} for n in ("control", "warm")}
    arms["warm"]["extra0"] = moments(np.arange(10_000) < 1152.0)
    sums = phase(arms, {"control": 10_000, "warm": 10_000}, halves(["control", "warm"]))
    return report(made(metrics), [sums], NOW)


def looked(first: tuple[int, int], then: tuple[int, int], young: bool = False, **further: Any) -> Report:
    """The second of two looks, with what the first has latched."""
    tested, latched, found = made(**further), {}, None
    for control, warm in (first, then):
        sums = binary_phase({"control": (control, 10_000), "warm": (warm, 10_000)}, halves(["control", "warm"]))
        for arm in sums.arms.values():
            arm.mature -= 500 if young else 0
        found, fresh = judge(tested, [sums], NOW, latched=latched)
        latched |= fresh
    assert found is not None
    return found


def bandit(units: int, left_out: dict[str, str] | None = None) -> Report:
    sums = binary_phase({"control": (units // 10, units), "warm": (units // 4, units)}, halves(["control", "warm"]))
    return report(made(mode="bandit"), [sums], NOW, left_out=left_out)


def amended() -> Report:
    change = Amendment(at=NOW, by="ada", what="planned_units from 1 to 2", planned_units=1)
    sums = binary_phase({"control": (1000, 10_000), "warm": (1000, 10_000)}, halves(["control", "warm"]))
    return judge(made(), [sums], NOW, amendments=[change])[0]


def phases() -> Report:
    parts = [
        binary_phase({"control": (90, 900), "warm": (90, 900)}, halves(["control", "warm"]), number=n) for n in (1, 2)
    ]
    return report(made(), parts, NOW)


MADE: dict[str, Callable[[], Report]] = {
    "no units": lambda: report(made(), [], NOW),
    "mismatch": lambda: two((100, 1_000), (130, 1_300)),
    "nothing decides": lambda: guarded(100, 100),
    "no outcomes": lambda: report(
        made([{**BOUGHT, "kind": "count"}]),
        [binary_phase({"control": (0, 500), "warm": (0, 500)}, halves(["control", "warm"]))],
        NOW,
    ),
    "better": lambda: two((1000, 10_000), (1300, 10_000)),
    "worse": lambda: two((1300, 10_000), (1000, 10_000)),
    "shown before": lambda: looked((1000, 1300), (1000, 1010)),
    "undecided": lambda: two((1000, 10_000), (1030, 10_000), planned_units=40_000),
    "over": lambda: two((1000, 10_000), (1030, 10_000), planned_units=20_000),
    "few units": lambda: two((0, 60), (40, 60)),
    "few outcomes": lambda: two((0, 500), (0, 500)),
    "not after Holm": after_holm,
    "between": lambda: amounts(),
    "days to go": lambda: two((1000, 10_000), (1030, 10_000), planned_units=40_000),
    "guardrail": lambda: guarded(100, 100),
    "guardrail worse": lambda: guarded(100, 400),
    "guardrail harmless": lambda: guarded(100, 100),
    "guardrail undecided": lambda: guarded(100, 200),
    "guardrail too few units": lambda: guarded(10, 10, 60),
    "guardrail too few outcomes": lambda: guarded(0, 0),
    "failure": lambda: guarded(100, 400),
    "beyond": lambda: guarded(100, 400),
    "warming up": lambda: bandit(40),
    "best arm": lambda: bandit(1_000),
    "left out": lambda: bandit(1_000, {"warm": WHY}),
    "dose top": lambda: along(1000, 1300, 1420, 1310, 1000),
    "dose end": lambda: along(1000, 1120, 1210, 1330, 1440),
    "dose flat": lambda: along(1000, 1010, 990, 1000, 1005),
    "dose flat from": lambda: along(1000, 1300, 1305, 1295, 1300, 1298),
    "dose flat up to": lambda: along(1300, 1305, 1295, 1300, 1298, 1000),
    "dose between": lambda: along(1000, 1300, 1420, 1310, 1000),
    "dose misfit": lambda: along(1000, 1600, 1000, 1600, 900),
    "twyman": lambda: two((1000, 10_000), (1300, 10_000)),
    "amended": amended,
    "ended": lambda: looked((1000, 1010), (1000, 1010), planned_units=20_000),
    "windows open": lambda: looked((1000, 1010), (1000, 1010), young=True, planned_units=20_000),
    "overrun": lambda: two((1000, 10_000), (1030, 10_000), planned_units=15_000),
    "strata": phases,
    "no covariate": lambda: amounts(missing=True),
    "uncounted": lambda: with_uncounted(two((100, 1_000), (100, 1_000)), {"not met": 3}),
}


def said(found: Report) -> Iterator[str]:
    yield found.sentence
    yield from found.guardrail_failures
    yield from found.warnings
    for metric in found.metrics:
        yield metric.sentence
        if metric.dose is not None:
            yield metric.dose.sentence


@pytest.mark.parametrize("key", SENTENCES)
def test_each_sentence_of_the_table_is_made_from_data(key: str) -> None:
    pattern = re.sub(r"\\\{\w+\\\}", ".*", re.escape(SENTENCES[key].text))
    texts = list(said(MADE[key]()))
    assert any(re.search(pattern, text, re.IGNORECASE) for text in texts), texts
    assert SENTENCES[key].needs


def test_no_sentence_is_written_outside_the_table() -> None:
    for module in (report_summary, report_builder, dose_response):
        tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
        spoken = {
            id(part)
            for node in ast.walk(tree)
            for part in ast.walk(node)
            if isinstance(node, ast.Return | ast.Call | ast.Assign)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) in spoken:
                known = node.value in SENTENCES or node.value in report_summary.UNCOUNTED.values()
                assert known or len(node.value.split()) < 5, node.value


def test_amounts_are_told_by_what_they_are_counted_for() -> None:
    found = amounts(lift=0.3)
    assert re.fullmatch(r"warm beats control by .* of clicks per asks\.", found.sentence)
    assert " asks per unit than control" in found.metrics[1].sentence
    assert "per asks, primary" in page("tone", found)


def test_a_page_names_recipes_and_claims_no_more_than_the_test_promises() -> None:
    planned = page("tone", two((1000, 10_000), (1300, 10_000), planned_units=20_000))
    assert ">kind@1<" in planned and "<th>valid at a look a day, up to the planned end</th>" in planned
    assert "valid at every look" not in planned and "no mismatch shown" in planned
    assert "<th>valid at every look</th>" in page("tone", two((1000, 10_000), (1300, 10_000)))


def test_a_covariate_that_explains_nothing_is_not_said_to_remove_less_than_nothing() -> None:
    found = amounts(correlation=0.0)
    assert found.metrics[2].variance_removed is not None and found.metrics[2].variance_removed >= 0
    assert "covariate removes less than 1 % of the variance" in page("tone", found)


def test_a_plateau_is_told_by_where_it_begins() -> None:
    dose_response = along(1000, 1300, 1305, 1295, 1300, 1298).metrics[0].dose
    assert (
        dose_response is not None
        and dose_response.shape == "flat from"
        and dose_response.best == pytest.approx(0.2, abs=0.05)
    )
    assert dose_response.interval.low <= dose_response.best <= dose_response.interval.high
    assert dose_response.sentence.startswith("Flat from about t = 0.2")
