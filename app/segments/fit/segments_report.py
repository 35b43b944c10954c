"""Writes the results of `tween segments`: segments.json, results.json, and report.html, which needs no other file.

The page has one drawing: on the left t with its interval, in the colour of its variant, on the right its gain. It is
SVG written by hand, not by matplotlib: names come from data in any script, and a browser has the letters for them.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from string import Template

from app.segments.fit import fit_across_variants, fit_one_line
from app.segments.fit.evaluate_gain import Gain, SegmentFindings
from app.segments.segment_table import SegmentTable, Setting
from app.sweep.report.plots import CHOICE, INK, RULE, SETS, SOFT
from app.weights.arena import BASE
from app.weights.auto_recipe import AUTO

TEMPLATE = Path(__file__).parent / "segments_report.html"
TABLE, JSON, HTML = "segments.json", "results.json", "report.html"
OTHERS = "any other"


def write(found: SegmentFindings, table: SegmentTable, folder: Path) -> None:
    """Write everything; files of an earlier run are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TABLE).write_text(json.dumps(table.document(), ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / JSON).write_text(json.dumps(asdict(found), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / HTML).write_text(_page(found, table), encoding="utf-8")


def text_of(found: SegmentFindings, table: SegmentTable) -> str:
    """Both tables and the sentence, for a terminal."""
    blocks = [_aligned(methods_of(found, table)), _aligned(segments_of(found, table)), found.sentence]
    return "\n\n".join([*blocks, *(f"Note: {warning}." for warning in found.warnings)])


def methods_of(found: SegmentFindings, table: SegmentTable) -> list[list[str]]:
    """What each way to choose gains over the first one, the first row being the head."""
    titles = fit_across_variants.METHODS if table.variant == AUTO else fit_one_line.METHODS
    rows = [["held out", "log loss", "accuracy", "loss gained (95 %)", "points gained (95 %)"]]
    return rows + [[titles[name], *_cells(gain)] for name, gain in found.methods.items()]


def segments_of(found: SegmentFindings, table: SegmentTable) -> list[list[str]]:
    """The settings, across variants how sure each variant is, and what declaring gains in each segment."""
    head = ["segment", "texts", "t (95 %)", "T", "log loss", "accuracy", "loss gained (95 %)", "points gained (95 %)"]
    rows = [[*head[:2], *(["variant"] if table.variant == AUTO else []), *head[2:]]]
    for name, setting in [*table.segments.items(), (OTHERS, table.pooled)]:
        gain = found.by_segment.get(name)
        member = []
        if table.variant == AUTO:
            sure = found.wanted.get(name) if found.wanted else None
            member = [table.member(setting) + (_sure(sure[table.member(setting)]) if sure else "")]
        rows.append(
            [
                name,
                str(setting.texts),
                *member,
                _t(setting, table),
                f"{setting.temperature:.2f}",
                *(_cells(gain) if gain else [""] * 4),
            ]
        )
    return rows


def _t(setting: Setting, table: SegmentTable) -> str:
    """t with its interval; the base has none, since it lies at 0 whatever the texts say."""
    if table.member(setting) == BASE:
        return f"{setting.t:.2f}"
    low, high = setting.interval
    return f"{setting.t:.2f} ({low:.2f} to {high:.2f})"


def _sure(share: float) -> str:
    return f" ({100 * share:.0f} % sure)" if share < 0.995 else " (sure)"


def _cells(gain: Gain) -> list[str]:
    return [f"{gain.loss:.3f}", f"{100 * gain.accuracy:.1f} %", _loss_gained(gain), _points_gained(gain)]


def _loss_gained(gain: Gain) -> str:
    loss = gain.loss_gained
    return f"{loss.value:+.3f} ({loss.low:+.3f} to {loss.high:+.3f})"


def _points_gained(gain: Gain) -> str:
    points = gain.accuracy_gained
    return f"{100 * points.value:+.1f} ({100 * points.low:+.1f} to {100 * points.high:+.1f})"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


# -- the page ----------------------------------------------------------------------------------------------


def _page(found: SegmentFindings, table: SegmentTable) -> str:
    declared, guessed = found.methods["segment"], found.methods["router"]
    across = table.variant == AUTO
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        line=html.escape(found.line),
        recipe=html.escape(AUTO if across else f"{table.variant}@{AUTO}"),
        what="a variant and its t for each segment" if across else "a t for each segment",
        against="the best single recipe" if across else "one t",
        sentence=html.escape(found.sentence),
        declared=f"{declared.loss_gained.value:+.3f}",
        declared_interval=f"{declared.loss_gained.low:+.3f} to {declared.loss_gained.high:+.3f}",
        guessed=f"{guessed.loss_gained.value:+.3f}",
        guessed_interval=f"{guessed.loss_gained.low:+.3f} to {guessed.loss_gained.high:+.3f}",
        points=f"{100 * declared.accuracy_gained.value:+.1f}",
        routed=f"{100 * found.routed_rightly:.0f} %",
        warnings="".join(f"<li>{html.escape(warning)}.</li>" for warning in found.warnings),
        picture=picture(found, table),
        methods=_html(methods_of(found, table)),
        segments=_html(segments_of(found, table)),
        texts=f"{found.texts:,}",
        folds=str(found.folds),
    )


def _html(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    return f"<table><thead>{_row(head, 'th')}</thead><tbody>{''.join(_row(row, 'td') for row in body)}</tbody></table>"


def _row(cells: Iterable[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


WIDTH, ROW, TOP, BOTTOM = 1030, 38, 62, 34
T, GAIN = (190, 520), (700, 930)
"""Left and right of the axis of t, and of that of gains, in the drawing's own units; names stand at 0."""
LONGEST = 22
MOST = 40
"""Segments that are drawn, those of the most texts; the table below has all."""


def picture(found: SegmentFindings, table: SegmentTable) -> str:
    """The drawing as SVG, and what it does not say itself."""
    shown = sorted(table.segments.items(), key=lambda item: -item[1].texts)[:MOST]
    shown.sort(key=lambda item: (table.member(item[1]), -item[1].t))
    colours = _colours(table)
    low, high = _range(found, [name for name, _ in shown])
    bottom = TOP + ROW * len(shown)
    across = table.variant == AUTO
    parts = [*_axes(table, low, high, bottom), *(_legend(colours) if across else [])]
    for index, (name, setting) in enumerate(shown):
        y = TOP + ROW * index + ROW / 2
        member = table.member(setting)
        colour = colours[member]
        parts += _setting(name, setting, member if across else "", colour, y)
        parts += _gains(found, name, colour, y, low, high)
    left_out = len(table.segments) - len(shown)
    note = f" The {MOST} segments of most texts are drawn, {left_out} are not." if left_out else ""
    return (
        f'<svg viewBox="0 0 {WIDTH} {bottom + BOTTOM}" role="img" aria-label="t and gain of each segment">'
        f'{"".join(parts)}</svg><p class="about">Left: t, with the interval that it lies in (95 %); the dashed line is '
        "the t of any other segment. Right: log loss gained on held-out texts where the segment is declared (bar, with "
        f"its 95 % interval) and where it is guessed from the words (ring).{note}</p>"
    )


def _colours(table: SegmentTable) -> dict[str, str]:
    """A colour for each member that some segment goes by; soft for the base."""
    members = {table.member(setting) for _, setting in table.settings}
    named = {member: SETS[place % len(SETS)] for place, member in enumerate(sorted(members - {BASE}))}
    return named | ({BASE: SOFT} if BASE in members else {})


def _range(found: SegmentFindings, names: Iterable[str]) -> tuple[float, float]:
    """The gains that the axis shows, 0 among them."""
    gains = [g[name].loss_gained for name in names for g in (found.by_segment, found.guessed_by_segment) if name in g]
    low, high = min([0.0, *(g.low for g in gains)]), max([0.01, *(g.high for g in gains)])
    margin = 0.05 * (high - low)
    return low - margin, high + margin


def _x(value: float, place: tuple[int, int], low: float = 0.0, high: float = 1.0) -> float:
    left, right = place
    return round(left + (right - left) * (value - low) / (high - low), 1)


def _axes(table: SegmentTable, low: float, high: float, bottom: int) -> list[str]:
    """Grid, ticks and titles of both axes, and the t of any other segment."""
    parts = [
        f'<text x="{T[0]}" y="34" class="title">t</text>',
        f'<text x="{GAIN[0]}" y="34" class="title">log loss gained</text>',
    ]
    for t in (0, 0.25, 0.5, 0.75, 1):
        parts += _tick(_x(t, T), bottom, f"{t:g}", RULE)
    step = _step(high - low)
    for place in range(math.ceil(low / step), math.floor(high / step) + 1):
        value = place * step
        parts += _tick(_x(value, GAIN, low, high), bottom, f"{value:+.2g}" if place else "0", RULE if place else SOFT)
    pooled = table.pooled
    x = _x(pooled.t, T)
    side = ("end", -6) if pooled.t > 0.5 else ("start", 6)
    parts += [
        f'<line x1="{x}" x2="{x}" y1="{TOP - 12}" y2="{bottom}" stroke="{CHOICE}" stroke-width="1.4" '
        'stroke-dasharray="4 4"/>',
        f'<text x="{x + side[1]}" y="{TOP - 4}" class="tick" text-anchor="{side[0]}" style="fill: {CHOICE}">'
        f"any other: {_at(pooled, table.member(pooled) if table.variant == AUTO else '')}</text>",
    ]
    return parts


def _tick(x: float, bottom: int, label: str, colour: str) -> list[str]:
    return [
        f'<line x1="{x}" x2="{x}" y1="{TOP}" y2="{bottom}" stroke="{colour}"/>',
        f'<text x="{x}" y="{bottom + 18}" class="tick" text-anchor="middle">{label}</text>',
    ]


def _step(span: float) -> float:
    """1, 2 or 5 times a power of ten, for about four ticks."""
    power = 10.0 ** math.floor(math.log10(span / 4))
    return next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= 6)


def _legend(colours: dict[str, str]) -> list[str]:
    """The members and their colours, from left to right as they fit."""
    parts, x = [], float(T[0])
    for member, colour in colours.items():
        label = _shortened(member)
        if x + 7 * len(label) > WIDTH:
            break
        parts += [
            f'<circle cx="{x + 5:.0f}" cy="10" r="5" fill="{colour}"/>',
            f'<text x="{x + 16:.0f}" y="14" class="tick">{html.escape(label)}</text>',
        ]
        x += 36 + 7 * len(label)
    return parts


def _setting(name: str, setting: Setting, member: str, colour: str, y: float) -> list[str]:
    """A segment's name, its t with the interval, and t in words, behind the name of the member if that is told."""
    left, right = (_x(end, T) for end in setting.interval)
    return [
        f'<text x="0" y="{y + 5}" class="name">{html.escape(_shortened(name))}<title>{html.escape(name)}: '
        f"{setting.texts} texts</title></text>",
        f'<rect x="{left}" y="{y - 8}" width="{max(right - left, 2):.1f}" height="16" rx="5" fill="{colour}" '
        'opacity=".24"/>',
        f'<circle cx="{_x(setting.t, T)}" cy="{y}" r="5.5" fill="{colour}"/>',
        f'<text x="{T[1] + 16}" y="{y + 5}" class="words" style="fill: {colour}">{_at(setting, member)}</text>',
    ]


def _gains(found: SegmentFindings, name: str, colour: str, y: float, low: float, high: float) -> list[str]:
    """Nothing for a segment that no fold tested."""
    declared, guessed = found.by_segment.get(name), found.guessed_by_segment.get(name)
    if declared is None or guessed is None:
        return []

    def x(value: float) -> float:
        return _x(value, GAIN, low, high)

    gain = declared.loss_gained
    ends = sorted((x(0), x(gain.value)))
    return [
        f'<rect x="{ends[0]}" y="{y - 8}" width="{ends[1] - ends[0]:.1f}" height="16" rx="2" fill="{colour}" '
        f'opacity=".55"><title>{_titled("declared", declared)}</title></rect>',
        f'<line x1="{x(gain.low)}" x2="{x(gain.high)}" y1="{y}" y2="{y}" stroke="{INK}" stroke-width="1.4"/>',
        f'<circle cx="{x(guessed.loss_gained.value)}" cy="{y}" r="4.5" fill="#fff" stroke="{INK}" stroke-width="1.6">'
        f"<title>{_titled('guessed', guessed)}</title></circle>",
        f'<text x="{WIDTH}" y="{y + 5}" class="words" text-anchor="end">{gain.value:+.3f}</text>',
    ]


def _titled(how: str, gain: Gain) -> str:
    loss = gain.loss_gained
    return f"{how}: {loss.value:+.3f} ({loss.low:+.3f} to {loss.high:+.3f})"


def _at(setting: Setting, member: str) -> str:
    return BASE if member == BASE else f"{html.escape(_shortened(member))} {setting.t:.2f}".strip()


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "\u2026"
