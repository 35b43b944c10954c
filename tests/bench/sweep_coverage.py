"""What sweeps say against what is true: `python -m tests.bench.sweep_coverage`, a minute or two on one core.

A world of synthetic texts whose logits are known at every t: labels of the target's texts are drawn from the blend at
one t, those of the guard's texts from the base. The truth is that of `MANY` further texts, by the probabilities of
their labels. Each trial draws texts anew and asks a sweep:

- guards: is the guard's metric kept within its margin at the t that is chosen? By the upper bound that a sweep goes
  by, and by the point estimate alone.
- intervals: does what a sweep says of where the best t lies hold the t that is best in truth?
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from app.sweep.choose_t import interval
from app.sweep.data.dataset import Dataset
from app.sweep.metrics_of_t import METRICS
from app.sweep.one_line import SweepChoice, choice_of
from app.sweep.sweep_spec import Guard, SweepSpec
from tests.synthetic import LINE

TS = np.round(np.linspace(0, 1, 26), 2)
CLASSES = 3
MANY = 20_000
OTHERS = 2_000
TRIALS = 120
DRAWS = 400


@dataclass(frozen=True)
class Texts:
    """Logits (N, C) at t are a + t b + t^2 c; `labels` (N,) are drawn, `p` (N, C) is what they are drawn from."""

    a: NDArray[np.float64]
    b: NDArray[np.float64]
    c: NDArray[np.float64]
    p: NDArray[np.float64]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]

    def logits(self, ts: NDArray[np.float64]) -> NDArray[np.float64]:
        """(G, N, C)"""
        return self.a + ts[:, None, None] * self.b + (ts**2)[:, None, None] * self.c

    def dataset(self, name: str) -> Dataset:
        return Dataset(name, tuple(map(str, range(len(self.labels)))), self.labels, self.groups)


@dataclass(frozen=True)
class World:
    """`delta` is how much the variant changes logits; the target's labels come from the blend at `t`. Texts come in
    groups of `group`, whose members have most of their logits in common."""

    delta: float = 0.5
    t: float = 0.8
    group: int = 1

    def drawn(self, texts: int, t: float, rng: np.random.Generator) -> Texts:
        """Texts whose labels come from the blend at t."""
        groups = np.arange(texts) // self.group
        shared = rng.normal(size=(3, groups[-1] + 1, CLASSES))[:, groups]
        own = rng.normal(size=(3, texts, CLASSES))
        both = own if self.group == 1 else np.sqrt(0.9) * shared + np.sqrt(0.1) * own
        a, b, c = both * np.array([2.0, 3 * self.delta, self.delta])[:, None, None]
        p = softmax(a + t * b + t**2 * c, axis=-1)
        labels = (np.log(p) + rng.gumbel(size=p.shape)).argmax(axis=1)
        return Texts(a, b, c, p, labels, groups)


class Known:
    """The curve of a sweep over texts whose logits are known."""

    ts = TS
    ordered = True

    def __init__(self, *texts: Texts) -> None:
        self._texts = texts

    def logits(self, data: int, ts: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._texts[data].logits(ts)


def accuracy_of(texts: Texts) -> NDArray[np.float64]:
    """Accuracy to be expected on further labels of the same texts, (G,)."""
    return np.array(
        [texts.p[np.arange(len(texts.p)), texts.logits(np.array([t]))[0].argmax(axis=1)].mean() for t in TS]
    )


@dataclass(frozen=True)
class Guarded:
    """How a guard fared in trials, and how far t went, (TRIALS,): losses are what the chosen t loses in truth."""

    losses: NDArray[np.float64]
    ts: NDArray[np.float64]
    margin: float

    @property
    def kept(self) -> int:
        return int((self.losses <= self.margin + 1e-9).sum())

    @property
    def promised(self) -> int:
        """In how many trials a t above 0 was chosen."""
        return int((self.ts > 0).sum())


def guarded(
    world: World, texts: int, margin: float, trials: int = TRIALS, confidence: float = 0.9
) -> tuple[Guarded, Guarded]:
    """A guard of as many texts on accuracy: with the upper bound of its loss, and with the point estimate alone."""
    accuracy = accuracy_of(world.drawn(MANY, 0.0, np.random.default_rng(99)))
    losses = accuracy[0] - accuracy
    chosen = []
    for seed in range(trials):
        rng = np.random.default_rng((7, seed))
        target, general = world.drawn(400, world.t, rng), world.drawn(texts, 0.0, rng)
        guard = Guard(general.dataset("general"), "accuracy", margin, confidence)
        spec = SweepSpec(LINE, [target.dataset("own")], [1.0], 1.0, [guard], draws=DRAWS, folds=2, repeats=1, seed=seed)
        choice = choice_of(spec, Known(target, general))
        chosen.append((choice.chosen.chosen, _by_point_estimate(choice, general, margin)))
    return tuple(Guarded(losses[np.array(at)], TS[np.array(at)], margin) for at in zip(*chosen, strict=True))


def _by_point_estimate(choice: SweepChoice, general: Texts, margin: float) -> int:
    """The best t among those that lose no more than the margin on the guard's own texts."""
    right = (general.logits(TS).argmax(axis=-1) == general.labels).mean(axis=1)
    return int(np.where(right[0] - right <= margin + 1e-6, choice.scores, np.inf).argmin())


@dataclass(frozen=True)
class Covered:
    """In how many trials an interval held the t that is best in truth, in how many the best one of `OTHERS` other texts
    (or one of the best), and how wide they were on average."""

    held: int
    held_of_others: int
    width: float


def covered(world: World, objective: str, texts: int, trials: int = TRIALS) -> tuple[Covered, Covered]:
    """What a sweep says of where the best t lies, and the middle 95 % of the resamples' best t's."""
    said, percentile, best_of_others = [], [], []
    for seed in range(trials):
        rng = np.random.default_rng((8, seed))
        target, others = world.drawn(texts, world.t, rng), world.drawn(OTHERS, world.t, rng)
        choice, beyond = (_choice(each, objective, draws) for each, draws in ((target, DRAWS), (others, 2)))
        said.append(choice.interval)
        percentile.append(tuple(float(end) for end in interval(choice.best_ts)))
        best_of_others.append(beyond.scores <= beyond.scores.min() + 1e-9)
    return tuple(_covered(np.array(ends), world.t, np.array(best_of_others)) for ends in (said, percentile))


def _choice(texts: Texts, objective: str, draws: int) -> SweepChoice:
    spec = SweepSpec(LINE, [texts.dataset("own")], [1.0], 1.0, objective=objective, draws=draws)
    return choice_of(spec, Known(texts))


def _covered(ends: NDArray[np.float64], best: float, best_of_others: NDArray[np.bool_]) -> Covered:
    """Labels come from the softmax at `best`, so no other t has a lower loss or is right more often in truth."""
    inside = (ends[:, :1] <= TS + 1e-9) & (TS - 1e-9 <= ends[:, 1:])
    return Covered(
        held=int(inside[:, np.abs(TS - best).argmin()].sum()),
        held_of_others=int((inside & best_of_others).any(axis=1).sum()),
        width=float((ends[:, 1] - ends[:, 0]).mean()),
    )


WORLD = World()
GUARDS = [
    *((WORLD, "", texts, margin) for texts in (200, 500, 2000) for margin in (0.01, 0.02)),
    *((replace(WORLD, delta=0.25), ", a delta of half the length", *case) for case in ((500, 0.02), (2000, 0.01))),
    *((replace(WORLD, group=4), ", groups of 4", *case) for case in ((500, 0.02), (2000, 0.01))),
]
OBJECTIVES = [(objective, texts) for objective in ("loss", "accuracy", "macro_f1") for texts in (200, 400)]


def rows() -> Iterator[str]:
    yield (
        "| guard on accuracy | kept, upper bound | t above 0 | mean t | kept, estimate | mean t "
        "| worst loss, estimate |"
    )
    yield "|---" * 7 + "|"
    for world, what, texts, margin in GUARDS:
        bound, estimate = guarded(world, texts, margin)
        yield (
            f"| {texts} texts, {100 * margin:g} pt{what} | {bound.kept} of {TRIALS} | {bound.promised} "
            f"| {bound.ts.mean():.2f} | {estimate.kept} of {TRIALS} | {estimate.ts.mean():.2f} "
            f"| {100 * estimate.losses.max():.1f} pt |"
        )
    yield ""
    yield (
        f"| objective, labels | said: best t, best of {OTHERS:,} others | mean width "
        "| resamples' best t's: best t, best of others | mean width |"
    )
    yield "|---" * 5 + "|"
    for objective, texts in OBJECTIVES:
        cells = [
            f"{one.held}, {one.held_of_others} of {TRIALS} | {one.width:.2f}"
            for one in covered(WORLD, objective, texts)
        ]
        yield f"| {METRICS[objective].title}, {texts} | {' | '.join(cells)} |"


if __name__ == "__main__":
    for row in rows():
        print(row, flush=True)
