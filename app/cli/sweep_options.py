"""Options that `tween sweep`, `tween segments` and `tween barrier` share, and how they are read."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from app.errors import BadData
from app.names import nfc

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from app.sweep.data.dataset import Columns, Dataset
    from app.sweep.logits.line import Line
    from app.sweep.logits.local_provider import LocalProvider
    from app.sweep.logits.logit_cache import Progress
    from app.sweep.sweep_spec import Guard, SweepSpec

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


def question_of(options: argparse.Namespace, provider: LocalProvider) -> SweepSpec:
    """The question that the options put. Raises `BadData`, `BadRecipe` or `UnknownVariant`."""
    from app.sweep.sweep_spec import SweepSpec

    columns = columns_of(options)
    targets, shares = [], []
    for text in options.data:
        path, share = weighed(text)
        targets.append(dataset_of_path(path, provider, columns))
        shares.append(share)
    line = line_of(options, provider)
    penalty = penalty_of(options.penalty)
    question = SweepSpec(
        line=line,
        targets=targets,
        shares=shares,
        squared_length=line.squared_length(provider.delta_products),
        guards=[_guard(text, provider, columns) for text in options.guard],
        objective=options.objective,
        rule=options.rule,
        penalty=penalty,
        cost=cost_of(options.cost, len(provider.labels)),
        ramp=options.ramp,
        seed=options.seed,
    )
    names = [dataset.name for dataset in question.datasets]
    if len(set(names)) < len(names):
        raise BadData(f"two data sets have one name: {', '.join(sorted(names))}; name the files apart")
    for dataset in question.datasets:
        print(
            f"{dataset.name}: {len(dataset)} texts; " + ", ".join(f"{r} from {c!r}" for r, c in dataset.columns.items())
        )
    return question


def line_of(options: argparse.Namespace, provider: LocalProvider) -> Line:
    """The line to move along: --line, else to what --variant names (of several the first), else the only variant."""
    from app.sweep.data.dataset import check_labels
    from app.sweep.logits.line import Line

    check_labels(provider.bank.problem_type)
    loaded = provider.cookbook.variants
    if options.line is None and not options.variant and len(loaded) != 1:
        raise BadData(f"which way? name a --variant, or a --line; loaded: {', '.join(loaded) or 'none'}")
    return Line.read(options.line or (variants_of(options, provider) or loaded)[0], provider.cookbook)


def variants_of(options: argparse.Namespace, provider: LocalProvider) -> list[str]:
    """The variants that --variant names, each of which must exist; none beside --line."""
    if options.line is not None:
        return []
    names = list(dict.fromkeys(nfc(text.partition("=")[0]) for text in options.variant))
    for name in names:
        provider.cookbook.read(name)
    return names


def columns_of(options: argparse.Namespace) -> Columns:
    from app.sweep.data.dataset import Columns

    where = None
    if options.where is not None:
        column, equals, value = options.where.partition("=")
        if not equals:
            raise BadData(f"--where {options.where}: write COLUMN=VALUE")
        where = (column, value)
    return Columns(options.text, options.label, options.group, options.segment, options.time, where)


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


def _guard(text: str, provider: LocalProvider, columns: Columns) -> Guard:
    from app.sweep.sweep_spec import Guard

    path, metric, margin, confidence = guard_parts(text)
    return Guard(dataset_of_path(path, provider, columns), metric, margin, confidence)


def guard_parts(text: str) -> tuple[str, str, float, float]:
    """`general.csv:1pt:loss:0.9` is a path, a metric, a margin and a confidence; the last two parts may be left out."""
    from app.sweep.metrics_of_t import CURVE_METRICS
    from app.sweep.sweep_spec import CONFIDENCE, check_confidence

    path, _, rest = text.partition(":")
    margin, *parts = rest.split(":")
    value = _number(margin.removesuffix("pt")) * (POINT if margin.endswith("pt") else 1)
    if not 0 <= value < float("inf") or len(parts) > 2:
        raise BadData(f"--guard {text}: write DATA:MARGIN, such as {path or 'general.csv'}:1pt")
    sure = _number(parts[-1]) if parts else float("nan")
    confidence = CONFIDENCE if isnan(sure) else sure
    check_confidence(f"--guard {text}", confidence)
    metric = "".join(parts if isnan(sure) else parts[:-1]) or "accuracy"
    if metric not in CURVE_METRICS:
        raise BadData(f"--guard {text}: no metric {metric!r}; metrics: {', '.join(CURVE_METRICS)}")
    return path, metric, value, confidence


def _number(text: str) -> float:
    """NaN for what is no number."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


def penalty_of(text: str) -> float | Literal["folds"]:
    if text == "folds":
        return "folds"
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise BadData(f"--lambda {text}: give a number from 0 up, or 'folds'")
    return value


def cost_of(text: str | None, classes: int | None = None) -> NDArray[np.float64] | None:
    """Rows of costs; without `classes`, a square of any size."""
    import numpy as np

    if text is None:
        return None
    try:
        rows = [[float(cell) for cell in row.split(",")] for row in text.split(";")]
    except ValueError:
        rows = []
    classes = len(rows) or 2 if classes is None else classes
    if len(rows) != classes or any(len(row) != classes for row in rows) or not np.isfinite(rows).all():
        raise BadData(f"--cost {text}: give {classes} rows of {classes} numbers, such as '0,1;5,0' for two labels")
    return np.array(rows)


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
