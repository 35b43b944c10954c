"""A t that runs over the layers: are one t in the first layer and another in the last better than one for all?

What lies beside the line of equal t's is looked at with few passes more. With m the middle of both t's and
d = last - first, a text's logits are those of the line at m, which are known (`logit_curve.py`), and what a ramp adds:

    z(first, last) = z_line(m) + d (a0 + a1 m + a2 m^2) + d^2 (b0 + b1 m + b2 m^2)

Six ramps give the six coefficients of each logit. The best point of that surface is run, becomes a seventh node, and
the surface is fitted anew until its best point is one that was run. What is told of a ramp is of its true pass.

One t is the simpler answer, so a ramp has to be clearly better: by more than one paired standard error on these texts,
and by anything at all on texts that had no say in it. Two t's that were chosen freely pass the first by chance about
once in twenty times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from app.sweep.choose_t import interval
from app.sweep.logits.line import Line
from app.sweep.logits.logit_cache import LogitCache
from app.sweep.logits.logit_curve import LogitCurve
from app.sweep.one_line import SweepChoice, choice_of, held_out_scores
from app.sweep.sweep_result import Ramp, RampPoint, SweepResult, Value
from app.sweep.sweep_spec import SweepSpec

Point = tuple[float, float]
"""t in the first layer and in the last."""
NODES: tuple[Point, ...] = ((0.0, 1.0), (1.0, 0.0), (0.0, 0.5), (0.5, 0.0), (0.5, 1.0), (1.0, 0.5))
ROUNDS = 3
STEPS = 10
"""The t's at both ends are looked at in so many steps."""


class Ramps:
    """Logits at ramps. `points` (G, 2) are those to choose from, the base first; `ts` are their numbers."""

    ordered = False

    def __init__(self, line: Line, curve: LogitCurve, texts: Sequence[Sequence[str]], passes: LogitCache) -> None:
        steps = np.arange(STEPS + 1) / STEPS
        self.points = np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2)
        self.ts = np.arange(len(self.points), dtype=np.float64)
        self.true: dict[Point, list[NDArray[np.float64]]] = {}
        """Logits (N, C) of each data set, by the ramps that were run."""
        self._line = line
        self._curve = curve
        self._texts = texts
        self._passes = passes
        passes.expect((len(NODES) + 1) * sum(map(len, texts)))
        passes.foresee([(each, line.ramp(*node)) for node in NODES for each in texts])
        for node in NODES:
            self.run(node)

    def run(self, point: Point) -> None:
        """Run the blend at a point, which becomes a node of the surface."""
        recipe = self._line.ramp(*point)
        self.true[point] = [self._passes.logits(texts, recipe) for texts in self._texts]

    def logits(self, data: int, ts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Logits (G, N, C) of a data set at the points with these numbers."""
        points, nodes = self.points[ts.astype(np.int64)], np.array(list(self.true))
        added = np.stack([by_set[data] for by_set in self.true.values()]) - self._on_line(data, nodes)
        weights = _terms(points) @ np.linalg.pinv(_terms(nodes))
        return np.asarray(self._on_line(data, points) + np.tensordot(weights, added, axes=1))

    def _on_line(self, data: int, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Logits (G, N, C) where the line has the t in the middle."""
        return self._curve.logits(data, np.round(points.mean(axis=1), 6))


class _Run:
    """Blends that were run, for a judge who is to compare them; the first is the base. Logits (N, C) by blend and data
    set."""

    ordered = False

    def __init__(self, true: Sequence[Sequence[NDArray[np.float64]]]) -> None:
        self.ts = np.arange(len(true), dtype=np.float64)
        self._true = true

    def logits(self, data: int, ts: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([self._true[int(t)][data] for t in ts])


def best_ramp(spec: SweepSpec, curve: LogitCurve, found: SweepResult, passes: LogitCache) -> Ramp | None:
    """The best of the ramps that were run, and what it gains on the chosen t; None where the guards allow none."""
    ramps = Ramps(spec.line, curve, [d.texts for d in spec.datasets], passes)
    missed = _follow_the_surface(ramps, spec)
    on_line, data = curve.ts_run, range(len(spec.datasets))
    points = [*((t, t) for t in on_line), *ramps.true]
    run = [*([curve.true(d, t) for d in data] for t in on_line), *ramps.true.values()]
    judged, surface = choice_of(spec, _Run(run)), choice_of(spec, ramps)
    one_t, first = on_line.index(found.best.t), len(on_line)
    best = first + int(np.where(judged.feasible, judged.scores, np.inf)[first:].argmin())
    if not judged.feasible[best]:
        return None
    gained = judged.resampled[:, one_t] - judged.resampled[:, best]
    low, high = interval(gained)
    honest = held_out_scores(spec, surface.judge, surface.errors, surface.feasible, 0.0)["objective"]
    held_out = spec.metric.sign * found.honest.scores[spec.objective] - honest
    lows, highs = interval(ramps.points[surface.best_ts.astype(np.int64)])
    ends = [Value(points[best][end], float(lows[end]), float(highs[end])) for end in (0, 1)]
    recipe, temperature = spec.line.ramp(*points[best]), float(1 / judged.judge.beta[best])
    mean, error = float(judged.scores[one_t] - judged.scores[best]), float(judged.errors[one_t, best])
    return Ramp(
        first=ends[0],
        last=ends[1],
        recipe=spec.line.cookbook.read(f"{recipe.text};temperature={temperature:.3g}").text,
        temperature=temperature,
        gained=Value(mean, float(low), float(high)),
        error=error,
        held_out=held_out,
        missed=missed,
        blends=len(ramps.true),
        better=mean > error and held_out > 0,
        surface=_places([(first, last) for first, last in ramps.points.tolist()], surface),
        run=_places(points, judged),
    )


def _places(points: Sequence[Point], choice: SweepChoice) -> list[RampPoint]:
    """What a choice among points says of each."""
    return [
        RampPoint(first, last, float(score), bool(allowed))
        for (first, last), score, allowed in zip(points, choice.scores, choice.feasible, strict=True)
    ]


def _follow_the_surface(ramps: Ramps, spec: SweepSpec) -> float:
    """Run the best point of the surface until it is one that was run. Gives by how much the surface missed a logit of
    what it proposed, on average and at the worst of these points; 0 where it proposed nothing new."""
    quick = replace(spec, draws=2)  # the best point alone is asked for here, not how sure it is
    is_ramp = ramps.points[:, 0] != ramps.points[:, 1]
    missed = 0.0
    for _ in range(ROUNDS):
        choice = choice_of(quick, ramps)
        number = int(np.where(choice.feasible & is_ramp, choice.scores, np.inf).argmin())
        first, last = ramps.points[number].tolist()
        if not (choice.feasible & is_ramp)[number] or (first, last) in ramps.true:
            break
        guesses = [ramps.logits(data, ramps.ts[[number]])[0] for data in range(len(spec.datasets))]
        ramps.run((first, last))
        gap = np.concatenate(guesses) - np.concatenate(ramps.true[first, last])
        missed = max(missed, float(np.abs(gap).mean()))
    return missed


def _terms(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """d and d^2, each times 1, m and m^2, at points (G, 2): (G, 6)."""
    middle, difference = points.mean(axis=1) - 0.5, points[:, 1] - points[:, 0]
    odd = np.stack([difference, difference * middle, difference * middle**2], axis=1)
    return np.concatenate([odd, odd * difference[:, None]], axis=1)
