"""Arms at several t of one variant are a dose: a quadratic through all of them says where the best t lies.

y = a + b t + c t^2 by least squares over units (`regression.py`); the best t is -b / 2c where the curve has its top
inside the range that was tried, and otherwise an end of the range. Its interval comes from draws of b and c: each draw
has its own best t within the range, and the interval holds the middle 95 % of these. So a curve that is flat gives the
whole range, and one that bends the wrong way gives its ends, which is the honest answer in both cases.

A quadratic through a plateau has a top that is not there. So a line that is flat beyond a bend is fitted as well, with
as many coefficients: where it is nearer to the arms and fits them, the plateau is told and no top. The bend's interval
holds every bend whose chi-square is within 3.84 of the least.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from app.experiments.stats.regression import RegressionCell, RegressionFit, dose_rows, fit
from app.weights.auto_recipe import Auto
from app.weights.recipe import Recipe

DRAWS = 20_000
SEED = 20_240_911
"""The same sums give the same report."""

FEWEST_DOSES = 3
"""Different t's that a quadratic needs."""

FEWEST_FOR_PLATEAU = 4
"""Different t's that two models of three coefficients can be told apart by."""
WITHIN = 3.84
"""Chi-square of one degree of freedom at 95 %."""
BENDS = 101
"""Places within the range where a plateau may begin."""

Shape = Literal["top inside", "best at an end", "flat", "flat from", "flat up to"]


@dataclass(frozen=True)
class Dose:
    """What the curve over t says."""

    best: float
    low: float
    high: float
    """The best t and its 95 % interval, within the range that was tried; for a single look, not for peeking. Of a
    plateau (`flat from`, `flat up to`), where it begins or ends."""
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


def dose_response(
    cells: Sequence[RegressionCell], doses: Mapping[str, float], higher_is_better: bool = True
) -> Dose | None:
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
    plateau = _plateau(cells, doses, sign, found.misfit) if flat_p <= 0.05 else None
    if plateau is not None:
        shape, bend, ends = plateau
        linear, quadratic = found.coefficients.tolist()
        return Dose(bend, float(ends[0]), float(ends[1]), linear, quadratic, shape, flat_p, _misfit_p(found))
    return Dose(
        best,
        float(ends[0]),
        float(ends[1]),
        float(found.coefficients[0]),
        float(found.coefficients[1]),
        "flat" if flat_p > 0.05 else "top inside" if low < best < high else "best at an end",
        flat_p,
        _misfit_p(found),
    )


def _misfit_p(found: RegressionFit) -> float | None:
    return float(chi2.sf(found.misfit, found.degrees)) if found.degrees > 0 else None


def _plateau(
    cells: Sequence[RegressionCell], doses: Mapping[str, float], sign: float, misfit: float
) -> tuple[Shape, float, NDArray[np.float64]] | None:
    """A line that is flat beyond a bend, on its better side, with the bend and its interval; None where a quadratic of
    this misfit is as near, no bend is shown, or arms contradict the line as well. At least two t's lie on the flat
    part."""
    tried = sorted({doses[cell.arm] for cell in cells})
    if len(tried) < FEWEST_FOR_PLATEAU:
        return None
    # A bend between an end and its neighbour cannot be told from one at the neighbour.
    bends = np.linspace(tried[1], tried[-2], BENDS)
    sides: tuple[Shape, ...] = ("flat from", "flat up to")
    best: tuple[float, Shape, float, NDArray[np.float64]] | None = None
    for shape in sides:
        clip = np.minimum if shape == "flat from" else np.maximum
        fits = [fit(cells, {arm: [float(clip(t, bend))] for arm, t in doses.items()}) for bend in bends]
        rises = 1.0 if shape == "flat from" else -1.0
        misfits = np.array([one.misfit if one and rises * sign * one.coefficients[0] > 0 else np.inf for one in fits])
        least = int(misfits.argmin())
        if misfits[least] < (best[0] if best else misfit):
            best = float(misfits[least]), shape, float(bends[least]), bends[misfits <= misfits[least] + WITHIN][[0, -1]]
    degrees = len(cells) - len({cell.phase for cell in cells}) - 2
    straight = fit(cells, {arm: [t] for arm, t in doses.items()})
    if best is None or straight is None or straight.misfit < best[0] + WITHIN or chi2.sf(best[0], degrees) < 0.05:
        return None
    return best[1:]


def best_t(coefficients: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """The t of the highest b t + c t^2 within the range, for each row (b, c); (rows,)."""
    b, c = coefficients[:, 0], coefficients[:, 1]
    ends = np.where(b * high + c * high**2 > b * low + c * low**2, high, low)
    concave = c < 0
    top = -b / np.where(concave, 2 * c, 1.0)
    return np.where(concave, np.clip(top, low, high), ends)
