"""A sweep's findings as a folder: results.json, curve.csv, the pictures, and report.html, which needs no other file."""

from __future__ import annotations

import csv
import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from string import Template

from app.sweep.metrics_of_t import METRICS
from app.sweep.report import plots
from app.sweep.report.summary import difference, margin_of, shown, span_of
from app.sweep.sweep_result import GuardResult, MeasuredBlend, SweepResult, Value

TEMPLATE = Path(__file__).parent / "report.html"
SMALL = "\n"
UNREAD = "label frequencies"
"""The row of the baseline, which looks at no text."""
JSON, CSV, HTML = "results.json", "curve.csv", "report.html"


def write(found: SweepResult, folder: Path) -> None:
    """Write everything; files of an earlier sweep are replaced. Raises `BadData` if there is nothing to draw with."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JSON).write_text(json.dumps(asdict(found), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _write_csv(found, folder / CSV)
    plots.draw(found, folder)
    plots.draw_ramp(found, folder)
    (folder / HTML).write_text(_page(found, folder), encoding="utf-8")


def _write_csv(found: SweepResult, path: Path) -> None:
    """A row for each t and data set; each metric with the ends of its interval."""
    names = list(dict.fromkeys(name for by_set in found.curve[0].data.values() for name in by_set))
    columns = [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["t", "temperature", "data", *columns], restval="")
        writer.writeheader()
        for point in found.curve:
            for data, values in point.data.items():
                row: dict[str, object] = {"t": point.t, "temperature": round(point.temperature, 4), "data": data}
                for name, v in values.items():
                    row |= {name: round(v.value, 5), f"{name}_low": round(v.low, 5), f"{name}_high": round(v.high, 5)}
                writer.writerow(row)


def table(found: SweepResult) -> list[list[str]]:
    """The start, the choice and the end on every data set, the first row being the head."""
    names = list(found.chosen.data[found.data[0].name])
    rows = [["blend", "T", "data", *(METRICS[name].title for name in names)]]
    for blend in _blends(found):
        for index, (data, values) in enumerate(blend.data.items()):
            first = [blend.recipe, f"{blend.temperature:.2f}"] if index == 0 else ["", ""]
            rows.append([*first, data, *(shown(METRICS[n], values[n].value) if n in values else "" for n in names)])
    for index, (data, values) in enumerate(found.baseline.items()):
        first = [UNREAD if index == 0 else "", ""]
        rows.append([*first, data, *(shown(METRICS[n], values[n].value) if n in values else "" for n in names)])
    return rows


def text_of(found: SweepResult) -> str:
    """The table and the sentence for a terminal."""
    rows = table(found)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    warnings = [f"Note: {warning}." for warning in found.warnings]
    steady = [
        f"{name}: " + ", ".join(f"{100 * at.flips.value:.1f} % at t = {at.t:g}" for at in along)
        for name, along in found.robustness.items()
    ]
    return "\n".join([*lines, *(["", "Labels that flip:", *steady] if steady else []), "", found.sentence, *warnings])


def _blends(found: SweepResult) -> list[MeasuredBlend]:
    """The start, the choice and the end, each once."""
    return list({blend.t: blend for blend in (found.start, found.chosen, found.end)}.values())


# -- the page ----------------------------------------------------------------------------------------------


def _page(found: SweepResult, folder: Path) -> str:
    best, metric = found.best, METRICS[found.objective]
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        line=_safe(found.line),
        recipe=_safe(best.recipe.partition(";")[0]),
        sentence=_safe(found.sentence),
        t=f"{best.t:g}",
        temperature=f"{best.temperature:.2f}",
        span=span_of(*best.interval),
        span_is=best.interval_is if best.interval_is.startswith("where") else f"t's {best.interval_is}",
        span_left=f"{100 * best.interval[0]:.2f}",
        span_width=f"{100 * (best.interval[1] - best.interval[0]):.2f}",
        pin=f"{100 * best.t:.2f}",
        start=_safe(found.start_name),
        end=_safe(found.end_name),
        objective=metric.title,
        honest=shown(metric, found.honest.scores[found.objective]),
        honest_accuracy=shown(METRICS["accuracy"], found.honest.scores["accuracy"]),
        one_t=", with one t" if found.ramp and found.ramp.better else "",
        optimism=f"{100 * found.honest.optimism:.2f} points" if metric.percent else f"{found.honest.optimism:.4f}",
        warnings="".join(f"<li>{_safe(warning)}.</li>" for warning in found.warnings),
        curve=_inline(folder / "curve.svg"),
        ramp=_drawn_ramp(folder) if found.ramp else "",
        reliability=_inline(folder / "reliability.svg"),
        scores=_html_table(_scores(found)),
        tests=_html_table(_tests(found)),
        guards=_section("What it costs elsewhere", _guards(found)),
        choice=_html_table(_choice(found)),
        robustness=_section("How steady the answers are", _robustness(found)),
        data=_html_table(_data(found)),
        checks=_html_table(_checks(found)),
        points=json.dumps(_slider(found)).replace("<", "\\u003c"),
        t_start=f"{best.t:g}",
    )


def _safe(text: str) -> str:
    return html.escape(text)


def _inline(path: Path) -> str:
    """The drawing without the head that only a file of its own needs."""
    text = path.read_text(encoding="utf-8")
    return text[text.index("<svg") :]


def _drawn_ramp(folder: Path) -> str:
    return (
        f"<section><h2>One t in the first layer, another in the last</h2>{_inline(folder / plots.RAMP_SVG)}"
        '<p class="about">Every pair is judged at the temperature that fits it. What is told of the best ramp is of '
        "its own blend; the cells are a surface through the logits of those that were run.</p></section>"
    )


def _html_table(rows: Sequence[Sequence[str]]) -> str:
    """A cell's second line is small print."""
    head, *body = rows
    return f"<table><thead>{_row(head, 'th')}</thead><tbody>{''.join(_row(row, 'td') for row in body)}</tbody></table>"


def _row(cells: Iterable[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{_cell(*cell.split(SMALL))}</{tag}>" for cell in cells) + "</tr>"


def _cell(text: str, small: str = "") -> str:
    return _safe(text) + (f"<small>{_safe(small)}</small>" if small else "")


def _section(title: str, rows: Sequence[Sequence[str]]) -> str:
    """Nothing where the table has a head alone."""
    return f"<section><h2>{title}</h2>{_html_table(rows)}</section>" if len(rows) > 1 else ""


def _scores(found: SweepResult) -> list[list[str]]:
    """The table with intervals."""
    names = list(found.chosen.data[found.data[0].name])
    rows = [["blend", "temperature", "data", *(METRICS[name].title for name in names)]]
    for blend in _blends(found):
        for index, (data, values) in enumerate(blend.data.items()):
            first = [blend.recipe, f"{blend.temperature:.2f}"] if index == 0 else ["", ""]
            rows.append([*first, data, *(_with_interval(n, values[n]) if n in values else "" for n in names)])
    for index, (data, values) in enumerate(found.baseline.items()):
        first = [UNREAD if index == 0 else "", ""]
        rows.append([*first, data, *(_with_interval(n, values[n]) if n in values else "" for n in names)])
    return rows


def _with_interval(name: str, v: Value) -> str:
    metric = METRICS[name]
    scale, digits = (100.0, 1) if metric.percent else (1.0, 3)
    return f"{shown(metric, v.value)}{SMALL}{scale * v.low:.{digits}f} to {scale * v.high:.{digits}f}"


def _tests(found: SweepResult) -> list[list[str]]:
    rows = [["against", "choice right", "other right", "p (McNemar)"]]
    for name, test in ((found.start_name, found.against_start), (found.end_name, found.against_end)):
        rows.append([name, str(test.only_chosen), str(test.only_other), f"{test.p:.3g}"])
    return rows


def _guards(found: SweepResult) -> list[list[str]]:
    rows = [["data", "metric", "at the start", "at the choice", "worse by", "at most", "margin", "up to t"]]
    for g in found.guards:
        metric = METRICS[g.metric]
        rows.append(
            [
                g.name,
                metric.title,
                shown(metric, g.at_start),
                shown(metric, g.at_chosen),
                _with_interval(g.metric, g.worse_by),
                f"{difference(metric, g.upper)}{SMALL}{100 * g.confidence:g} % sure",
                margin_of(g),
                f"{g.up_to:g}{SMALL}{_more(g)}",
            ]
        )
    return rows


def _more(guard: GuardResult) -> str:
    return "" if guard.more is None else f"{guard.more.t:g} with about {guard.more.texts:,} texts"


def _choice(found: SweepResult) -> list[list[str]]:
    best, penalty, honest = found.best, found.penalty, found.honest
    how = f"{honest.folds} parts by time" if honest.by_time else f"{honest.folds} folds, {honest.repeats} times"
    return [
        ["question", "answer"],
        ["objective, rule", f"{METRICS[found.objective].title}, {found.rule}"],
        ["t of the best score", f"{best.t_of_best_score:g}"],
        ["t's within one standard error of it", f"{best.as_good[0]:g} to {best.as_good[1]:g}"],
        ["best t of a resample is an end", f"{100 * best.at_an_end:.0f} %"],
        ["first guess from three losses", f"{found.first_guess:.2f}"],
        ["length of the delta", f"{penalty.squared_length**0.5:.3f}"],
        ["lambda", f"{penalty.weight:.3g}{' (by folds)' if penalty.by_folds else ''}"],
        ["held-out estimate", how],
        ["passes", f"{found.passes} blends, {found.passes_run} run now"],
        *_direction(found),
        *_ramp(found),
    ]


def _ramp(found: SweepResult) -> list[list[str]]:
    if found.ramp is None:
        return []
    ramp, metric = found.ramp, METRICS[found.objective]
    ends = " to ".join(f"{v.value:g} ({v.low:.1f} to {v.high:.1f})" for v in (ramp.first, ramp.last))
    gained = f"better by {difference(metric, ramp.gained.value)}, held out by {difference(metric, ramp.held_out)}"
    verdict = "clearly better than one t" if ramp.better else "not clearly better than one t"
    return [[f"t from first layer to last, best of {ramp.blends} that were run", f"{ends}: {gained}; {verdict}"]]


def _direction(found: SweepResult) -> list[list[str]]:
    if found.direction is None:
        return []
    ts = [f"{name} {v.value:.2f} ({v.low:.2f} to {v.high:.2f})" for name, v in found.direction.t.items()]
    return [[f"best mix, by {found.direction.way} over {found.direction.blends} blends", ", ".join(ts)]]


def _data(found: SweepResult) -> list[list[str]]:
    rows = [["data", "role", "share", "texts", *found.labels, "columns", "digest"]]
    for about in found.data:
        counts = [*about.labels, *[0] * (len(found.labels) - len(about.labels))]
        columns = ", ".join(f"{role}: {column}" for role, column in about.columns.items())
        share = f"{100 * about.share:.0f} %" if about.role == "target" else ""
        rows.append([about.name, about.role, share, str(about.texts), *map(str, counts), columns, about.digest[:12]])
    return rows


def _robustness(found: SweepResult) -> list[list[str]]:
    """Flips, and accuracy below, of each perturbation at each t."""
    if not found.robustness:
        return [[]]
    accuracy = METRICS["accuracy"]
    rows = [["labels that flip, accuracy", *(f"t = {at.t:g}" for at in next(iter(found.robustness.values())))]]
    for name, along in found.robustness.items():
        cells = [f"{shown(accuracy, a.flips.value)}{SMALL}accuracy {shown(accuracy, a.accuracy.value)}" for a in along]
        rows.append([name, *cells])
    return rows


def _checks(found: SweepResult) -> list[list[str]]:
    rows = [["t", "logits by", "mean error", "largest error", "labels that differ"]]
    for c in found.checks:
        rows.append([f"{c.t:g}", c.way, f"{c.mean:.4f}", f"{c.largest:.3f}", f"{100 * c.labels:.2f} %"])
    return rows


def _slider(found: SweepResult) -> list[dict[str, object]]:
    """What the page shows as its slider moves."""
    return [
        {
            "t": point.t,
            "temperature": round(point.temperature, 2),
            "data": {
                data: {METRICS[n].title: shown(METRICS[n], v.value) for n, v in values.items()}
                for data, values in point.data.items()
            },
        }
        for point in found.curve
    ]
