"""Options that `tween sweep`, `tween segments` and `tween barrier` share, and how they are read."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isfinite, isnan
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from app.errors import BadData
from app.names import nfc

if TYPE_CHECKING:
    from app.sweep.data.dataset import Columns, Dataset
    from app.sweep.logits.line import Line
    from app.sweep.logits.local_provider import LocalProvider
    from app.sweep.logits.logit_cache import Progress
    from app.sweep.sweep_spec import GivenData, SweepOrder

Load = Callable[[argparse.Namespace], "LocalProvider"]
"""Loads the bank that the options name."""

POINT = 0.01


def add_common(
    command: argparse.ArgumentParser,
    variant: str = "the variant to move towards, or several to find the best mix of; beside --base, NAME=SOURCE",
) -> None:
    """The options that name a bank, a line and columns; `variant` says what naming one, or several, means."""
    command.add_argument("--bank", type=Path, help="the bank file (TWEEN_BANK)")
    command.add_argument("--base", help="folder or hub name of the base, instead of --bank")
    command.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="NAME",
        help=variant,
    )
    command.add_argument(
        "--line", help="where to move instead: airline..finance, or to a recipe: finance@0.4+airline@0.2"
    )
    command.add_argument("--where", metavar="COLUMN=VALUE", help="only rows with this value, such as split=test")
    for role in ("text", "label", "group", "segment", "time"):
        command.add_argument(
            f"--{role}", metavar="COLUMN", help=f"the column of the {role}, if it is not found; '-': none"
        )


def variant_at_the_end(line: Line) -> str:
    """The variant that a line leads to from the base."""
    if line.start_name != "base" or line.end_name not in line.cookbook.variants:
        raise BadData(f"--record: {line.text} is no line from the base to a variant, beside which it could be kept")
    return line.end_name


def order_of(options: argparse.Namespace) -> SweepOrder:
    """The sweep that the options order; its files are not read yet. Raises `BadData`."""
    from app.sweep.data.dataset import NAMES
    from app.sweep.sweep_spec import GivenData, SweepOrder

    targets = [(Path(path), weight) for path, weight in map(weighed, options.data)]
    named = {role: getattr(options, role) for role in NAMES}
    return SweepOrder(
        data=[
            *(GivenData(path.stem, path, weight=weight) for path, weight in targets),
            *map(_guard, options.guard),
        ],
        variants=variants_of(options),
        line=options.line,
        objective=options.objective,
        rule=options.rule,
        penalty=_penalty(options.penalty),
        cost=_cost(options.cost),
        ramp=options.ramp,
        robustness=options.robustness,
        seed=options.seed,
        columns={role: column for role, column in named.items() if column is not None},
        where=_where(options.where),
    )


def line_of(options: argparse.Namespace, provider: LocalProvider) -> Line:
    """The line to move along: --line, else to what --variant names (of several the first), else the only variant."""
    from app.sweep.data.dataset import check_labels
    from app.sweep.sweep_spec import line_from

    check_labels(provider.bank.problem_type)
    return line_from(options.line, variants_of(options), provider.cookbook)


def variants_of(options: argparse.Namespace) -> list[str]:
    """The variants that --variant names; none beside --line."""
    if options.line is not None:
        return []
    return list(dict.fromkeys(nfc(text.partition("=")[0]) for text in options.variant))


def columns_of(options: argparse.Namespace) -> Columns:
    from app.sweep.data.dataset import Columns

    where = _where(options.where)
    return Columns(options.text, options.label, options.group, options.segment, options.time, where)


def _where(text: str | None) -> tuple[str, str] | None:
    """`split=test` is a column and the value that rows are to have there."""
    if text is None:
        return None
    column, equals, value = text.partition("=")
    if not equals:
        raise BadData(f"--where {text}: write COLUMN=VALUE")
    return column, value


def dataset_of_path(path: str, provider: LocalProvider, columns: Columns, labelled: bool = True) -> Dataset:
    from app.sweep.data.dataset import read_dataset

    return read_dataset(Path(path), provider.labels, columns, labelled)


def weighed(text: str) -> tuple[str, float]:
    """`own.csv:2` is a path and a weight; a path alone weighs 1."""
    path, colon, weight = text.rpartition(":")
    if not colon:
        return text, 1.0
    try:
        share = float(weight)
    except ValueError:
        return text, 1.0
    if not 0 < share < float("inf"):
        raise BadData(f"{text}: a weight must be above 0")
    return path, share


def _guard(text: str) -> GivenData:
    """`general.csv:1pt:loss:0.9` is a path, a margin, a metric and a confidence; the last two parts may be left out."""
    from app.sweep.sweep_spec import CONFIDENCE, GivenData

    path, _, rest = text.partition(":")
    margin, *parts = rest.split(":")
    value = _number(margin.removesuffix("pt")) * (POINT if margin.endswith("pt") else 1)
    if not 0 <= value < float("inf") or len(parts) > 2:
        raise BadData(f"--guard {text}: write DATA:MARGIN, such as {path or 'general.csv'}:1pt")
    sure = _number(parts[-1]) if parts else float("nan")
    confidence = CONFIDENCE if isnan(sure) else sure
    metric = "".join(parts if isnan(sure) else parts[:-1]) or "accuracy"
    return GivenData(Path(path).stem, Path(path), "guard", 1.0, value, metric, confidence)


def _number(text: str) -> float:
    """NaN for what is no number."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _penalty(text: str) -> float | Literal["folds"]:
    if text == "folds":
        return "folds"
    value = _number(text)
    if not 0 <= value < float("inf"):
        raise BadData(f"--lambda {text}: give a number from 0 up, or 'folds'")
    return value


def _cost(text: str | None) -> list[list[float]] | None:
    """Rows of costs, a row per true label."""
    if text is None:
        return None
    rows = [[_number(cell) for cell in row.split(",")] for row in text.split(";")]
    if not all(isfinite(cell) for row in rows for cell in row):
        raise BadData(f"--cost {text}: give rows of numbers, such as '0,1;5,0' for two labels")
    return rows


@contextmanager
def progress(title: str) -> Iterator[Progress]:
    """A progress bar in texts, where tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda done, expected: None
        return
    with tqdm(desc=title, unit="text", dynamic_ncols=True) as bar:

        def show(done: int, expected: int) -> None:
            bar.total = expected
            bar.update(done - bar.n)

        yield show
