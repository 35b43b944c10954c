"""Arms at several t of one variant are a dose: a quadratic through all of them says where the best t lies.

y = a + b t + c t^2 by least squares over units (`contrasts.py`); the best t is -b / 2c where the curve has its top
inside the range that was tried, and otherwise an end of the range. Its interval comes from draws of b and c: each draw
has its own best t within the range, and the interval holds the middle 95 % of these. So a curve that is flat gives the
whole range, and one that bends the wrong way gives its ends, which is the honest answer in both cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from app.experiments.contrasts import Cell, dose_rows, fit
from app.weights.automatic import Auto
from app.weights.recipe import Recipe

DRAWS = 20_000
SEED = 20_240_911
"""The same sums give the same report."""

FEWEST_DOSES = 3
"""Different t's that a quadratic needs."""

Shape = Literal["top inside", "best at an end", "flat"]


@dataclass(frozen=True)
class Dose:
    """What the curve over t says."""

    best: float
    low: float
    high: float
    """The best t and its 95 % interval, within the range that was tried; for a single look, not for peeking."""
    linear: float
    quadratic: float
    """b and c of y = a + b t + c t^2."""
    shape: Shape
    flat_p: float
    """The p of no dependence on t at all (Wald)."""
    misfit_p: float | None
    """The p of a curve that is a quadratic; None with three t's in one phase, which any quadratic goes through."""


def doses_of(recipes: Mapping[str, Recipe | Auto]) -> dict[str, float] | None:
    """The t of each arm, if all arms are t's of one variant (the base being t = 0) and at least three differ."""
    ts = {arm: recipe.t_by_variant for arm, recipe in recipes.items() if isinstance(recipe, Recipe)}
    if len(ts) < len(recipes):  # an arm that has a t for each text has no one dose
        return None
    variants = {variant for t in ts.values() for variant in t}
    if len(variants) != 1:
        return None
    (variant,) = variants
    values = {arm: t.get(variant, 0.0) for arm, t in ts.items()}
    doses = {arm: t for arm, t in values.items() if isinstance(t, float)}
    if len(doses) < len(values):  # an arm whose t runs over the layers has no one dose
        return None
    return doses if len(set(doses.values())) >= FEWEST_DOSES else None


def dose_response(cells: Sequence[Cell], doses: Mapping[str, float], higher_is_better: bool = True) -> Dose | None:
    """The curve through arms at these t's; None where the cells cannot tell three t's apart in any phase."""
    found = fit(cells, dose_rows(doses))
    if found is None or not np.any(found.covariance):
        return None
    sign = 1.0 if higher_is_better else -1.0
    tried = sorted({doses[cell.arm] for cell in cells})
    low, high = tried[0], tried[-1]
    best = float(best_t(sign * found.coefficients[None], low, high)[0])
    draws = best_t(sign * found.draws(DRAWS, np.random.default_rng(SEED)), low, high)
    ends = np.quantile(draws, [0.025, 0.975])
    wald = float(found.coefficients @ np.linalg.solve(found.covariance, found.coefficients))
    flat_p = float(chi2.sf(wald, 2))
    return Dose(
        best,
        float(ends[0]),
        float(ends[1]),
        float(found.coefficients[0]),
        float(found.coefficients[1]),
        "flat" if flat_p > 0.05 else "top inside" if low < best < high else "best at an end",
        flat_p,
        float(chi2.sf(found.misfit, found.degrees)) if found.degrees > 0 else None,
    )


def best_t(coefficients: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """The t of the highest b t + c t^2 within the range, for each row (b, c); (rows,)."""
    b, c = coefficients[:, 0], coefficients[:, 1]
    ends = np.where(b * high + c * high**2 > b * low + c * low**2, high, low)
    concave = c < 0
    top = -b / np.where(concave, 2 * c, 1.0)
    return np.where(concave, np.clip(top, low, high), ends)
