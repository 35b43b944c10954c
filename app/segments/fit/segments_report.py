"""What `tween segments` found as a folder: segments.json, results.json, and report.html, which needs no other file."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from string import Template

from app.segments.fit import fit_across_variants, fit_one_line
from app.segments.fit.evaluate_gain import Gain, SegmentFindings
from app.segments.fit.segments_plot import picture
from app.segments.segment_table import SegmentTable, Setting
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
