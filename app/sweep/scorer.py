"""Scores the targets all along a curve, for any weighting of their texts: all of them, a resample, a fold.

Every t is judged at the temperature that fits it. For the log loss that temperature is fitted anew to each resample and
each fold (`temperature.refitted`), since it is part of what is chosen; for other objectives it is the one of all texts.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.sweep.data.cv_splits import Split
from app.sweep.metrics_of_t import ScoredTexts
from app.sweep.sweep_spec import SweepSpec
from app.sweep.temperature_scaling import fitted_beta, loss_terms, refitted

BLOCK = 4_000_000
"""Logits held at a time, as (t, text, class)."""


class ScoreSource(Protocol):
    """Where logits of data sets come from: t's (G,) and the logits (g, N, C) of a data set at some of them.

    `ordered`: the t's go along a line from its start on, and are no numbers of points somewhere else.
    """

    @property
    def ordered(self) -> bool: ...

    @property
    def ts(self) -> NDArray[np.float64]: ...

    def logits(self, data: int, ts: NDArray[np.float64]) -> NDArray[np.float64]: ...


class Scorer:
    """Scores at every t of the curve, `ts` (G,). Less is better, whatever the objective."""

    def __init__(self, curve: ScoreSource, spec: SweepSpec) -> None:
        self.pool = spec.pool
        self.ts = curve.ts
        self._curve = curve
        self._spec = spec
        betas, terms, parts = [], [], []
        for block in np.array_split(self.ts, self._blocks()):
            logits = self._logits(block)
            beta = fitted_beta(logits, self.pool.labels, self.pool.weights)
            betas.append(beta)
            terms.append(np.stack(loss_terms(logits, self.pool.labels, beta), axis=-1))
            if spec.objective != "loss":
                parts.append(spec.metric.parts(self._outcome(logits * beta[:, None, None])))
        self.beta: NDArray[np.float64] = np.concatenate(betas)  # (G,)
        self._terms: NDArray[np.float64] = np.concatenate(terms)  # (G, N, 3)
        self._parts: NDArray[np.float64] = np.concatenate(parts) if parts else self._terms

    def scores(self) -> NDArray[np.float64]:
        """Scores of all texts, (G,)."""
        return self._scored(self.pool.mean(self._parts))

    def resampled(self) -> NDArray[np.float64]:
        """Scores in bootstrap resamples, (B, G)."""
        return self._scored(self.pool.resampled(self._parts, self._spec.draws, self._spec.seed))

    def scores_of(self, split: Split) -> NDArray[np.float64]:
        """Scores of the texts of a split that choose, (G,)."""
        return self._scored(self.pool.mean(self._parts, self.pool.restricted(split.train)))

    def beta_of(self, split: Split) -> NDArray[np.float64]:
        """1 / temperature that these texts ask for, (G,)."""
        return refitted(self.pool.mean(self._terms, self.pool.restricted(split.train)), self.beta)[1]

    def held_out(self, choices: list[tuple[Split, int, float]]) -> ScoredTexts:
        """The outcome when each split's test texts are answered at the t (a position) and beta chosen without them.

        Texts that no split tests keep logits of 0; they are for the caller to leave out.
        """
        logits = np.zeros(self._logits(self.ts[:1]).shape[1:])
        for split, position, beta in choices:
            logits[split.test] = beta * self._logits(self.ts[position : position + 1])[0][split.test]
        return self._outcome(logits)

    def _outcome(self, tempered: NDArray[np.float64]) -> ScoredTexts:
        return ScoredTexts(tempered, self.pool.labels, self.pool.groups, self._spec.cost)

    def _scored(self, means: NDArray[np.float64]) -> NDArray[np.float64]:
        if self._spec.objective == "loss":
            return refitted(means, self.beta)[0]
        return self._spec.metric.sign * self._spec.metric.score(means)

    def _logits(self, ts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Logits (g, N, C) of all targets."""
        return np.concatenate([self._curve.logits(data, ts) for data in range(len(self._spec.targets))], axis=1)

    def _blocks(self) -> int:
        return -(-len(self.ts) * self._logits(self.ts[:1]).size // BLOCK)
