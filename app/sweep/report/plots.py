"""Plots of a sweep: scores along t with intervals, reliability diagrams, and for a ramp the fitted surface over its two
t's with t by layer. SVG and PNG from one drawing."""

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


from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from app.sweep.sweep_result import Ramp

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import BoundaryNorm, ListedColormap
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


RAMP_SVG, RAMP_PNG = "ramp.svg", "ramp.png"
BETTER, WORSE = ("#fdeadd", "#e2702a"), ("#eff3f8", "#56759a")
"""The faintest and the deepest shade of what is better and worse than one t."""
SMALLEST, SMALLEST_POINTS = 0.001, 0.1
"""The faintest shade reaches so far from zero, the next ones 2, 5, 10, 20, 50, ... times as far."""
DASHED = (0, (4, 3))


def draw_ramp(found: SweepResult, folder: Path) -> None:
    """Write ramp.svg and ramp.png, or delete those of an earlier sweep if this one has no ramp."""
    if found.ramp is None:
        for name in (RAMP_SVG, RAMP_PNG):
            (folder / name).unlink(missing_ok=True)
        return
    import matplotlib

    with matplotlib.rc_context({**STYLE, "hatch.linewidth": 0.5}):
        figure = _figure(found, found.ramp)
        figure.savefig(folder / RAMP_SVG, metadata={"Date": None})
        figure.savefig(folder / RAMP_PNG, dpi=DPI)


def _figure(found: SweepResult, ramp: Ramp) -> Figure:
    """Left the surface over both t's, right the t of each layer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 5.4), layout="constrained")
    surface, layers = figure.subplots(1, 2, width_ratios=(1.5, 1))
    _surface(found, ramp, figure, surface)
    _layers(found, ramp, layers)
    handles, labels = surface.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    captioned(
        figure,
        "Orange: better than the best one t. Cells are read off a surface that was fitted to the blends that were run.",
        all(place.allowed for place in ramp.surface),
    )
    return figure


def _surface(found: SweepResult, ramp: Ramp, figure: Figure, axes: Axes) -> None:
    """A cell for each pair of t's that was looked at: by how much it is worse or better than the best one t."""
    metric = METRICS[found.objective]
    scale, smallest = (100.0, SMALLEST_POINTS) if metric.percent else (1.0, SMALLEST)
    ts = sorted({place.first for place in ramp.surface})
    one_t = next(place.value for place in ramp.run if place.first == place.last == found.best.t)
    worse = np.array([scale * (place.value - one_t) for place in ramp.surface]).reshape(len(ts), -1)  # (first, last)
    colors, norm, bounds = _shades(float(worse.min()), float(worse.max()), smallest)
    cells = axes.pcolormesh(ts, ts, worse.T, cmap=colors, norm=norm, edgecolors="white", linewidth=0.8)
    half = (ts[1] - ts[0]) / 2
    for place in ramp.surface:
        if not place.allowed:
            across = (place.first - half, place.first + half)
            axes.fill_between(
                across, place.last - half, place.last + half, facecolor="none", edgecolor=INK, hatch="////", lw=0
            )
    axes.plot([0, 1], [0, 1], color=INK, lw=1, ls=DASHED, label="one t in all layers")
    run = [(place.first, place.last) for place in ramp.run]
    axes.plot(*zip(*run, strict=True), "o", color=INK, ms=4.5, mec="white", mew=1, label="blends that were run")
    axes.plot(found.best.t, found.best.t, "o", color=INK, ms=10, mec="white", mew=1.4, label="best one t")
    axes.plot(ramp.first.value, ramp.last.value, "D", color=CHOICE, ms=9, mec="white", mew=1.4, label="best ramp")
    axes.set_aspect("equal")
    axes.grid(False)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xlabel(f"t in the first layer   (0 is {found.start_name}, 1 is {found.end_name})")
    axes.set_ylabel("t in the last layer")
    axes.set_title(f"Worse than t = {found.best.t:g} in {metric.title} by{', points' if metric.percent else ''}")
    bar = figure.colorbar(cells, ax=axes, ticks=bounds, spacing="uniform", aspect=28, pad=0.02)
    bar.ax.set_yticklabels([f"{bound:+g}" if bound else "0" for bound in bounds])
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)


def _shades(low: float, high: float, smallest: float) -> tuple[ListedColormap, BoundaryNorm, list[float]]:
    """As many shades below and above zero as values from low to high need, and their bounds."""
    from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap, ListedColormap

    def bounds(reach: float) -> list[float]:
        steps = (smallest * (1, 2, 5)[step % 3] * 10 ** (step // 3) for step in count())
        reached = [next(steps)]
        while reached[-1] < reach:
            reached.append(next(steps))
        return reached

    below, above = bounds(-low), bounds(high)
    better, worse = (LinearSegmentedColormap.from_list("", ends) for ends in (BETTER, WORSE))
    colors = ListedColormap([*better(np.linspace(1, 0, len(below))), *worse(np.linspace(0, 1, len(above)))])
    shown = [*(-bound for bound in reversed(below)), 0.0, *above]
    return colors, BoundaryNorm(shown, colors.N), shown


def _layers(found: SweepResult, ramp: Ramp, axes: Axes) -> None:
    """The t of each layer: the best ramp's, and the best one t."""
    axes.axhspan(*found.best.interval, color=RULE, alpha=0.6, lw=0)
    axes.axhline(found.best.t, color=INK, lw=1.6, ls=DASHED)
    ends = (ramp.first, ramp.last)
    for x, end in enumerate(ends):
        axes.plot([x, x], [end.low, end.high], color=CHOICE, lw=5, alpha=0.3, solid_capstyle="round")
    axes.plot([0, 1], [end.value for end in ends], "D-", color=CHOICE, lw=2.2, ms=9, mec="white", mew=1.4)
    axes.set_xlim(-0.12, 1.12)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xticks([0, 1], ["first layer", "last layer"])
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.grid(False, axis="x")
    axes.set_ylabel("t")
    axes.set_title("t through the layers, with 95 % intervals")
