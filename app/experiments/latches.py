"""What a report has said once and goes on saying: crossings, and what was said at the planned end.

A sequential test stops at its first crossing, so a later look does not undo it; and past the planned end no look is
paid for, so the deciding metric keeps what it said there. If windows were still open at that look, it is taken a second
and last time when they have closed. Latches lie in Redis beside the sums, each under the question that it answers: the
first phase that is judged, metric, direction, margin, arms and their recipes. Another question finds none of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from app.experiments.experiment import Experiment
from app.experiments.stats.report_schema import Comparison, Crossing, MetricReport

M = TypeVar("M", bound=BaseModel)
Latches = dict[str, str]
"""By question: JSON of a `Crossing`, or of the `MetricReport` at the end."""


class Latching:
    """What a report finds latched, and what it latches itself: `fresh`."""

    def __init__(self, experiment: Experiment, found: Mapping[str, str], now: float, since: int, young: int) -> None:
        """What is judged began in phase `since`; `young` units have a window that is open."""
        self.fresh: Latches = {}
        self._experiment = experiment
        self._found = found
        self._now = now
        self._since = since
        self._young = young

    def crossings(self, metrics: Sequence[MetricReport]) -> list[MetricReport]:
        """The metrics, with verdicts that were reached before."""
        return [
            metric.model_copy(update={"comparisons": [self._crossed(metric, one) for one in metric.comparisons]})
            for metric in metrics
        ]

    def at_end(self, metrics: Sequence[MetricReport]) -> list[MetricReport]:
        """The metrics when the plan is complete: the deciding one as it was when that was first seen."""
        return [self._ended(metric) if metric.decides and metric.comparisons else metric for metric in metrics]

    def _crossed(self, metric: MetricReport, one: Comparison) -> Comparison:
        question = self._question("crossed", metric, one.arm)
        crossing = _read(Crossing, self._found.get(question))
        if crossing is None and one.verdict in ("better", "worse"):
            crossing = Crossing(at=self._now, verdict=one.verdict, lift=one.lift, interval=one.interval, test=one.test)
            self.fresh[question] = crossing.model_dump_json()
        if crossing is None:
            return one
        latched = one.verdict != crossing.verdict
        return one.model_copy(update={"crossed": crossing, "verdict": crossing.verdict, "latched": latched})

    def _ended(self, metric: MetricReport) -> MetricReport:
        arms = [arm.name for arm in self._experiment.shown]
        first = self._question(f"ended at {self._experiment.planned_units}", metric, *arms)
        again = self._question(f"closed at {self._experiment.planned_units}", metric, *arms)
        for question in (again, first):
            before = _read(MetricReport, self._found.get(question))
            if before is None or before.ended is None:
                continue
            if question == again or not before.windows_open:
                return before
            if self._now < before.ended + self._experiment.window:
                return before
            return self._latch(again, metric, windows_open=0)
        return self._latch(first, metric, windows_open=self._young)

    def _latch(self, question: str, metric: MetricReport, windows_open: int) -> MetricReport:
        metric = metric.model_copy(update={"ended": self._now, "windows_open": windows_open})
        self.fresh[question] = metric.model_dump_json()
        return metric

    def _question(self, what: str, metric: MetricReport, *arms: str) -> str:
        recipes = [[name, str(self._experiment.arm(name).recipe)] for name in (self._experiment.control, *arms)]
        about = [metric.metric, metric.better, metric.role == "guardrail", metric.margin]
        return json.dumps([what, self._since, *about, recipes])


def _read(model: type[M], raw: str | None) -> M | None:
    """None for what another version of the service has written in another form."""
    try:
        return model.model_validate_json(raw) if raw else None
    except ValidationError:
        return None
