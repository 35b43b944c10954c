"""A sweep over two t's in a picture: the surface that was fitted to the ramps, and how t runs through the layers."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from app.sweep.metrics_of_t import METRICS
from app.sweep.report.plots import CHOICE, DPI, INK, RULE, STYLE, captioned
from app.sweep.sweep_result import Ramp, SweepResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.figure import Figure

SVG, PNG = "ramp.svg", "ramp.png"
BETTER, WORSE = ("#fdeadd", "#e2702a"), ("#eff3f8", "#56759a")
"""The faintest and the deepest shade of what is better and worse than one t."""
SMALLEST, SMALLEST_POINTS = 0.001, 0.1
"""The faintest shade reaches so far from zero, the next ones 2, 5, 10, 20, 50, ... times as far."""
DASHED = (0, (4, 3))


def draw(found: SweepResult, folder: Path) -> None:
    """Write ramp.svg and ramp.png; where no ramp was found, take those of an earlier sweep away."""
    if found.ramp is None:
        for name in (SVG, PNG):
            (folder / name).unlink(missing_ok=True)
        return
    import matplotlib

    with matplotlib.rc_context({**STYLE, "hatch.linewidth": 0.5}):
        figure = _figure(found, found.ramp)
        figure.savefig(folder / SVG, metadata={"Date": None})
        figure.savefig(folder / PNG, dpi=DPI)


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
