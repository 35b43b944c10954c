"""A sweep in pictures: scores along t with their intervals, and reliability diagrams. SVG and PNG from one drawing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import BadData
from app.sweep.metrics_of_t import METRICS, Bin
from app.sweep.report.summary import span_of
from app.sweep.sweep_result import MeasuredBlend, SweepResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, RULE, CHOICE, SPAN = "#16202e", "#5b6878", "#dfe4ea", "#c2410c", "#fdeadd"
SETS = ("#1d5fd0", "#0f8a6c", "#8a4fbf", "#b0831a", "#4a5a6a", "#a8326e")
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": RULE,
    "axes.labelcolor": SOFT,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
    "svg.hashsalt": "tween",
}
DPI = 160


def draw(found: SweepResult, folder: Path) -> None:
    """Write curve.svg, curve.png and reliability.svg. Raises `BadData` if there is nothing to draw with."""
    try:
        import matplotlib
    except ImportError as error:
        raise BadData(
            "pictures need matplotlib (pip install 'tween[sweep]'); results.json and curve.csv are written"
        ) from error
    with matplotlib.rc_context(STYLE):
        curve = _curve(found)
        curve.savefig(folder / "curve.svg", metadata={"Date": None})
        curve.savefig(folder / "curve.png", dpi=DPI)
        _reliability(found).savefig(folder / "reliability.svg", metadata={"Date": None})


def _curve(found: SweepResult) -> Figure:
    """Four panels: what is minimised, its paired difference from the best, accuracy, and the temperature that fits."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 6.6), layout="constrained")
    ((loss, difference), (accuracy, temperature)) = figure.subplots(2, 2, sharex=True)
    _along(found, loss, found.objective if found.objective != "accuracy" else "loss")
    _differences(found, difference)
    _along(found, accuracy, "accuracy")
    _temperatures(found, temperature)
    for axes in (loss, difference, accuracy, temperature):
        axes.axvspan(*found.best.interval, color=SPAN, lw=0, zorder=0)
        _refused(found, axes)
        axes.axvline(found.best.t, color=CHOICE, lw=1.3, zorder=3)
        axes.set_xlim(0, 1)
        axes.margins(y=0.08)
    for axes in (accuracy, temperature):
        axes.set_xlabel(f"t   (0 is {found.start_name}, 1 is {found.end_name})")
    low, high = found.best.interval
    loss.annotate(
        f"t = {found.best.t:g}",
        (found.best.t, 1),
        xycoords=("data", "axes fraction"),
        xytext=(5, -4) if found.best.t < 0.8 else (-5, -4),
        textcoords="offset points",
        ha="left" if found.best.t < 0.8 else "right",
        va="top",
        color=CHOICE,
        fontweight="bold",
    )
    shaded = found.best.interval_is if found.best.interval_is.startswith("where") else f"t's {found.best.interval_is}"
    figure.legend(*loss.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    captioned(
        figure,
        f"Shaded: {shaded}, {span_of(low, high)} (95 %). Bands: 95 % intervals over the texts.",
        all(at.allowed for at in found.compared),
    )
    return figure


def captioned(figure: Figure, text: str, all_allowed: bool) -> None:
    """What is to be seen, above a picture; with what hatching means where guards refuse some t's."""
    hatched = "" if all_allowed else " Hatched: t's that break a guard."
    figure.suptitle(text + hatched, x=0.01, ha="left", fontsize=9, color=SOFT)


def _refused(found: SweepResult, axes: Axes) -> None:
    """Hatch the t's that break a guard."""
    half = (found.compared[1].t - found.compared[0].t) / 2
    for at in found.compared:
        if not at.allowed:
            axes.axvspan(at.t - half, at.t + half, facecolor="none", edgecolor=RULE, hatch="////", lw=0, zorder=0)


def _along(found: SweepResult, axes: Axes, name: str) -> None:
    """A metric of every data set, and of all targets together."""
    metric = METRICS[name]
    scale = 100.0 if metric.percent else 1.0
    ts = [point.t for point in found.curve]
    about = {a.name: a for a in found.data}
    for data, color in zip(found.chosen.data, _colors(found), strict=True):
        if name not in found.chosen.data[data]:
            continue
        values = [point.data[data][name] for point in found.curve]
        label = f"{data} ({about[data].role}, {about[data].texts} texts)" if data in about else data
        style = "--" if data in about and about[data].role == "guard" else "-"
        axes.fill_between(
            ts, [scale * v.low for v in values], [scale * v.high for v in values], color=color, alpha=0.13
        )
        axes.plot(ts, [scale * v.value for v in values], color=color, lw=2, ls=style, label=label)
        run = [(b.t, scale * b.data[data][name].value) for b in (found.start, found.chosen, found.end)]
        axes.plot(*zip(*run, strict=True), "o", color=color, ms=5, mec="white", mew=1, zorder=4)
    axes.set_title(metric.title[0].upper() + metric.title[1:] + (", %" if metric.percent else ""))


def _differences(found: SweepResult, axes: Axes) -> None:
    scale = 100.0 if METRICS[found.objective].percent else 1.0
    ts = [at.t for at in found.compared]
    axes.fill_between(
        ts,
        [scale * at.difference.low for at in found.compared],
        [scale * at.difference.high for at in found.compared],
        color=INK,
        alpha=0.12,
    )
    axes.plot(ts, [scale * at.difference.value for at in found.compared], color=INK, lw=2)
    axes.axhline(0, color=SOFT, lw=0.8)
    axes.set_title("Worse than the best t by, on the same texts")


def _temperatures(found: SweepResult, axes: Axes) -> None:
    axes.plot([point.t for point in found.curve], [point.temperature for point in found.curve], color=INK, lw=2)
    axes.axhline(1, color=SOFT, lw=0.8)
    axes.plot(found.best.t, found.chosen.temperature, "o", color=CHOICE, ms=6, mec="white", mew=1, zorder=4)
    axes.set_title("Temperature that fits")


def _colors(found: SweepResult) -> list[str]:
    """A color for each data set, and ink for all targets together."""
    sets = [about.name for about in found.data]
    return [SETS[sets.index(name) % len(SETS)] if name in sets else INK for name in found.chosen.data]


def _reliability(found: SweepResult) -> Figure:
    """How often the answers of each confidence are right, for the start, the choice and the end."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 3.7), layout="constrained")
    # By t, since recipes of several variants are too long to stand side by side.
    titles = ("t = 0", f"t = {found.best.t:g}, the choice", "t = 1")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, title, blend in zip(panels, titles, (found.start, found.chosen, found.end), strict=True):
        _diagram(axes, blend)
        axes.set_title(title)
        axes.set_xlabel("confidence, %")
    panels[0].set_ylabel("right, %")
    panels[0].legend(loc="upper left")
    return figure


def _diagram(axes: Axes, blend: MeasuredBlend) -> None:
    axes.plot([0, 100], [0, 100], color=SOFT, lw=0.8)
    for bins, color, label in (
        (blend.reliability_raw, SOFT, "as it is"),
        (blend.reliability, CHOICE, "at its temperature"),
    ):
        axes.plot(*_steps(bins), color=color, lw=1.6, marker="o", ms=3.5, label=label)
    axes.bar(
        [50 * (b.low + b.high) for b in blend.reliability],
        [100 * b.share for b in blend.reliability],
        width=[100 * (b.high - b.low) * 0.86 for b in blend.reliability],
        color=SPAN,
        zorder=1,
    )
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_aspect("equal")


def _steps(bins: Sequence[Bin]) -> tuple[list[float], list[float]]:
    """Bins with too few texts to say anything are left out."""
    told = [b for b in bins if b.share >= 0.01]
    return [100 * b.confidence for b in told], [100 * b.accuracy for b in told]
