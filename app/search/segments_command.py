"""`tween segments`: labelled texts of several segments in; tables, a sentence and a folder out."""

from __future__ import annotations

import argparse
import html
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING
from urllib.parse import quote

from app.errors import BadData
from app.search.command import Load, add_common, columns_of, dataset_of_path, line_of, progress, weighed

if TYPE_CHECKING:
    from app.search.by_segment import Gain, SegmentFindings
    from app.serving.segment_table import SegmentTable

TABLE, JSON, HTML = "segments.json", "results.json", "report.html"
PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>$line by segment</title><style>
body { margin: 0 auto; max-width: 960px; padding: 40px 24px; font: 15px/1.55 system-ui, sans-serif; color: #16202e; }
table { border-collapse: collapse; width: 100%; margin: 0 0 28px; font-variant-numeric: tabular-nums; }
th { text-align: left; color: #5b6878; font-weight: 500; border-bottom: 1px solid #dfe4ea; padding: 6px 14px 6px 0; }
td { border-bottom: 1px solid #eef1f4; padding: 7px 14px 7px 0; }
.lead { font-size: 17px; }
</style></head><body>
<h1>$line by segment</h1>
<p class="lead">$sentence</p>
<h2>What it gains over one t, on held-out texts</h2>$methods
<h2>t by segment</h2>$segments
<p>Gains and intervals (95 %) are of paired differences over resampled groups. $warnings</p>
</body></html>
""")


def add_segments(command: argparse.ArgumentParser) -> None:
    """The options of `tween segments`."""
    command.add_argument(
        "data",
        nargs="+",
        metavar="DATA[:WEIGHT]",
        help="labelled texts with a column of segments; several files without one are a segment each",
    )
    command.add_argument(
        "--unlabelled",
        action="append",
        default=[],
        metavar="DATA",
        help="more texts with their segments, from which the router learns; may be repeated",
    )
    command.add_argument("--seed", type=int, default=0, help="of resamples and folds (0)")
    command.add_argument("--out", type=Path, help="folder of the results (segments-VARIANT)")
    command.add_argument(
        "--put",
        metavar="URL",
        help="put the table live on that service, with the key in TWEEN_API_KEY if it asks for one",
    )
    add_common(command)


def run_segments(options: argparse.Namespace, load: Load, store: Path) -> int:
    """Fit, judge on held-out texts, print the answer, write the folder."""
    from app.search.by_segment import fit_table, judged
    from app.search.curve import Curve
    from app.search.passes import FolderStore, Passes
    from app.search.segment_texts import SegmentTexts
    from app.search.segmented import Segmented

    provider = load(options)
    line = line_of(options, provider)
    if line.text != f"{line.start_name}..{line.end_name}" or line.end_name not in provider.cookbook.variants:
        raise BadData("t's by segment are of one variant; name it by --variant")
    columns = columns_of(options)
    pairs = [weighed(text) for text in options.data]
    datasets = [dataset_of_path(path, provider, columns) for path, _ in pairs]
    more = [
        (text, unlabelled.segment_names[segment])
        for unlabelled in (dataset_of_path(path, provider, columns, labelled=False) for path in options.unlabelled)
        if unlabelled.segments is not None
        for text, segment in zip(unlabelled.texts, unlabelled.segments, strict=True)
    ]
    with progress("segments") as on_progress:
        passes = Passes(provider, FolderStore(store), on_progress)
        curve = Curve(line, [dataset.texts for dataset in datasets], passes)
        data = Segmented(SegmentTexts(datasets, [share for _, share in pairs]), curve)
    table = fit_table(data, line.end_name, provider.bank.fingerprint, more)
    found = judged(data, line.text, more, seed=options.seed)
    folder = options.out or Path(f"segments-{line.end_name}")
    write(found, table, folder)
    print(f"\n{text_of(found, table)}\nWritten to {folder}: {', '.join(sorted(p.name for p in folder.iterdir()))}")
    if options.put:
        print(f"Live at {options.put}, version {put_live(options.put, table)}")
    return 0


def put_live(server: str, table: SegmentTable) -> int:
    """Have every pod of a service go by the table: its version there. Raises `BadData` with the service's sentence."""
    from app.search.follow import call

    reply = call(f"{server.rstrip('/')}/v1/segments/{quote(table.variant, safe='')}", table.document(), "PUT")
    return int(reply["live"]["version"])


def write(found: SegmentFindings, table: SegmentTable, folder: Path) -> None:
    """The table that is served, what it gains, and a page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TABLE).write_text(json.dumps(table.document(), ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / JSON).write_text(json.dumps(asdict(found), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    page = PAGE.substitute(
        line=html.escape(found.line),
        sentence=html.escape(found.sentence),
        methods=_html(methods_of(found)),
        segments=_html(segments_of(found, table)),
        warnings=html.escape("".join(f"Note: {warning}. " for warning in found.warnings)),
    )
    (folder / HTML).write_text(page, encoding="utf-8")


def text_of(found: SegmentFindings, table: SegmentTable) -> str:
    """Both tables and the sentence, for a terminal."""
    blocks = [_aligned(methods_of(found)), _aligned(segments_of(found, table)), found.sentence]
    return "\n\n".join([*blocks, *(f"Note: {warning}." for warning in found.warnings)])


def methods_of(found: SegmentFindings) -> list[list[str]]:
    """What each way to choose t gains over one t, the first row being the head."""
    from app.search.segmented import METHODS

    rows = [["held out", "log loss", "accuracy", "loss gained (95 %)", "points gained (95 %)"]]
    return rows + [[METHODS[name], *_cells(gain)] for name, gain in found.methods.items()]


def segments_of(found: SegmentFindings, table: SegmentTable) -> list[list[str]]:
    """The t's, and what declaring gains in each segment."""
    rows = [["segment", "texts", "t (95 %)", "T", "log loss", "accuracy", "loss gained (95 %)", "points gained (95 %)"]]
    for name, setting in [*table.segments.items(), ("any other", table.pooled)]:
        low, high = setting.interval
        gain = found.by_segment.get(name)
        cells = _cells(gain) if gain else [""] * 4
        rows.append(
            [
                name,
                str(setting.texts),
                f"{setting.t:.2f} ({low:.2f} to {high:.2f})",
                f"{setting.temperature:.2f}",
                *cells,
            ]
        )
    return rows


def _cells(gain: Gain) -> list[str]:
    loss, points = gain.loss_gained, gain.accuracy_gained
    return [
        f"{gain.loss:.3f}",
        f"{100 * gain.accuracy:.1f} %",
        f"{loss.value:+.3f} ({loss.low:+.3f} to {loss.high:+.3f})",
        f"{100 * points.value:+.1f} ({100 * points.low:+.1f} to {100 * points.high:+.1f})",
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _html(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
    return f"<table><tr>{head.replace('td>', 'th>')}</tr>{''.join(f'<tr>{row}</tr>' for row in body)}</table>"
