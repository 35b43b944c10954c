"""An experiment's report as one page that needs no other file."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from string import Template

from app.experiments.stats.report_schema import ArmValue, BanditArm, Comparison, Interval, MetricReport, Report

TEMPLATE = Path(__file__).parent / "experiment_report.html"

WIDTH, LEFT, RIGHT, ROW = 980, 170, 150, 46
"""Of a drawing of intervals, in its own units: in all, beside the arm's name, beside its lift, and per arm."""

COLOURS = {"better": "#15803d", "worse": "#b91c1c", "harmless": "#15803d"}
UNDECIDED = "#5b6878"
VALID = {
    "group-sequential": "valid at a look a day, up to the planned end",
    "confidence sequence": "valid at every look",
}


def page(name: str, found: Report) -> str:
    outlook = found.outlook
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        name=_safe(name),
        sentence=_safe(found.sentence),
        tone="alarm" if not found.trustworthy or found.guardrail_failures else "",
        at=f"{datetime.fromtimestamp(found.at, UTC):%Y-%m-%d %H:%M} UTC",
        units=f"{outlook.units:,}",
        plan=f"of {outlook.planned_units:,} planned" if outlook.planned_units else "open end",
        pace=f"{outlook.units_per_day:,.0f}" if outlook.units_per_day else "&ndash;",  # before the first full day
        days="&ndash;" if outlook.days_to_go is None else str(outlook.days_to_go),
        split=_split(found),
        failures=_list(found.guardrail_failures),
        warnings=_list(f"{warning}." for warning in found.warnings),
        bandit=_bandit(found.bandit) if found.bandit else "",
        metrics="".join(_metric(found.control, metric) for metric in found.metrics),
        arms=_table(_arms(found)),
    )


def _safe(text: str) -> str:
    return html.escape(text)


def _list(sentences: Iterable[str]) -> str:
    return "".join(f"<li>{_safe(sentence)}</li>" for sentence in sentences)


def _split(found: Report) -> str:
    if found.sample_ratio is None:
        return "&ndash;"
    return "off" if found.sample_ratio.alarm else "no mismatch shown"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    return f"<table><thead>{_row(head, 'th')}</thead><tbody>{''.join(_row(row, 'td') for row in body)}</tbody></table>"


def _row(cells: Iterable[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{_safe(cell)}</{tag}>" for cell in cells) + "</tr>"


def _arms(found: Report) -> list[list[str]]:
    rows = [["arm", "recipe", "share", "units", "window closed", "exposures", "gives the label shown"]]
    for arm in found.arms:
        agreement = "" if arm.agreement is None else f"{100 * arm.agreement:.1f} %"
        share = "shadow" if arm.shadow else f"{100 * arm.share:.4g} %"
        counts = [f"{count:,}" for count in (arm.units, arm.mature, arm.exposures)]
        rows.append([arm.arm, arm.recipe, share, *counts, agreement])
    return rows


# -- a metric ----------------------------------------------------------------------------------------------


def _metric(control: str, metric: MetricReport) -> str:
    about = [metric.role, f"{metric.better} is better"]
    if metric.per:
        about.insert(0, f"per {metric.per}")
    if metric.variance_removed is not None:
        removed = "less than 1" if metric.variance_removed < 0.01 else f"{100 * metric.variance_removed:.0f}"
        about.append(f"covariate removes {removed} % of the variance")
    drawing = _intervals(metric) + _decisions(metric) if metric.comparisons else ""
    phases = _table(_phases(metric)) if metric.phases else ""
    dose = f'<p class="dose">{_safe(metric.dose.sentence)}</p>' if metric.dose else ""
    return (
        f"<section><h2>{_safe(metric.metric)} <span>{_safe(', '.join(about))}</span></h2>"
        f"<p>{_safe(metric.sentence)}</p>{drawing}{_table(_values(control, metric))}{phases}{dose}</section>"
    )


def _decisions(metric: MetricReport) -> str:
    """When each arm was told from control, and by which interval."""
    decided = [
        f"{one.arm}: {one.crossed.verdict} on {datetime.fromtimestamp(one.crossed.at, UTC):%Y-%m-%d}, "
        f"with {_span(metric, one.crossed.interval)}"
        for one in metric.comparisons
        if one.crossed
    ]
    return f'<p class="about">First decided: {_safe("; ".join(decided))}.</p>' if decided else ""


def _number(metric: MetricReport, value: float | None, points: bool = False) -> str:
    if value is None:
        return ""
    if metric.unit == "share":
        return f"{100 * value:+.2f} points" if points else f"{100 * value:.2f} %"
    return f"{value:+.4g}" if points else f"{value:.4g}"


def _values(control: str, metric: MetricReport) -> list[list[str]]:
    by_arm = {one.arm: one for one in metric.comparisons}
    valid = VALID[metric.comparisons[0].test] if metric.comparisons else "interval"
    rows = [["arm", "units", "mean", "lift", valid, "relative", "single look", "p of a single look"]]
    for value in metric.arms:
        one = by_arm.get(value.arm)
        rows.append([value.arm, f"{value.units:,}", _number(metric, value.mean), *_lift(control, metric, value, one)])
    return rows


def _lift(control: str, metric: MetricReport, value: ArmValue, one: Comparison | None) -> list[str]:
    if one is None:
        return ["control" if value.arm == control else "", "", "", "", ""]
    relative = f"{100 * one.relative:+.1f} %" if one.relative is not None else ""
    return [
        _number(metric, one.lift, points=True),
        _span(metric, one.interval),
        relative,
        _span(metric, one.fixed.interval),
        f"{one.fixed.p:.3g}",
    ]


def _span(metric: MetricReport, span: Interval) -> str:
    scale = 100 if metric.unit == "share" else 1
    return f"{scale * span.low:+.3g} to {scale * span.high:+.3g}"


def _phases(metric: MetricReport) -> list[list[str]]:
    rows = [["phase", "arm", "mean", "control's mean", "lift", "single look"]]
    for one in metric.phases:
        numbers = [_number(metric, one.mean), _number(metric, one.control), _number(metric, one.lift, points=True)]
        rows.append([str(one.phase), one.arm, *numbers, _span(metric, one.interval)])
    return rows


def _intervals(metric: MetricReport) -> str:
    """A row for each arm: the interval that counts as a bar, the single-look one as a line, the lift as a dot."""
    spans = [one.interval for one in metric.comparisons]
    low, high = min(0.0, *(span.low for span in spans)), max(0.0, *(span.high for span in spans))
    margin = 0.06 * (high - low)
    low, high = low - margin, high + margin

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low)

    height = ROW * len(spans) + 22
    parts = [
        f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="4" y2="{height - 20}" stroke="#16202e" stroke-dasharray="3 4"/>'
    ]
    parts.append(f'<text x="{x(0):.1f}" y="{height - 4}" class="tick" text-anchor="middle">no difference</text>')
    for index, one in enumerate(metric.comparisons):
        y, colour = ROW * index + ROW / 2, COLOURS.get(one.verdict, UNDECIDED)
        left, width = x(one.interval.low), x(one.interval.high) - x(one.interval.low)
        inner = (x(one.fixed.interval.low), x(one.fixed.interval.high))
        parts += [
            f'<text x="0" y="{y + 5}" class="arm">{_safe(one.arm)}</text>',
            f'<rect x="{left:.1f}" y="{y - 9}" width="{width:.1f}" height="18" rx="5" fill="{colour}" opacity=".22"/>',
            f'<line x1="{inner[0]:.1f}" x2="{inner[1]:.1f}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"/>',
            f'<circle cx="{x(one.lift):.1f}" cy="{y}" r="5" fill="{colour}"/>',
            f'<text x="{WIDTH}" y="{y + 5}" class="lift" text-anchor="end" fill="{colour}">'
            f"{_safe(_number(metric, one.lift, points=True))}</text>",
        ]
    test = metric.comparisons[0].test
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(parts)}</svg>'
        f'<p class="about">Bars: {100 * metric.comparisons[0].confidence:.4g} %, {test}, {VALID[test]}. '
        "Lines inside: the textbook interval for a single look.</p>"
    )


def _bandit(arms: Sequence[BanditArm]) -> str:
    rows = [["arm", "probability best", "expected loss", "estimate (95 %)", "next share"]]
    for arm in arms:
        estimate = "" if arm.estimate is None or arm.interval is None else f"{arm.estimate:.4g}"
        if arm.interval is not None:
            estimate += f" ({arm.interval.low:.4g} to {arm.interval.high:.4g})"
        best = "warming up" if arm.probability_best is None else f"{100 * arm.probability_best:.1f} %"
        if arm.left_out:
            best = "gets no new units"
        loss = "" if arm.expected_loss is None else f"{arm.expected_loss:.4g}"
        rows.append([arm.arm, best, loss, estimate, f"{100 * arm.next_share:.1f} %"])
    note = "Estimates weigh each unit by 1 / the probability of its arm. No p-values: shares follow outcomes."
    return f'<section><h2>Bandit</h2>{_table(rows)}<p class="about">{note}</p></section>'
