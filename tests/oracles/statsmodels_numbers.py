"""statsmodels: two proportions, Holm, the slope that CUPED uses, power, and a quadratic over a dose."""

from __future__ import annotations

import cases
import numpy as np
import statsmodels.api as sm
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import confint_proportions_2indep
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

DOSES = [0.0, 0.25, 0.5, 0.75, 1.0]


def main() -> None:
    proportions = []
    for a_units, a_sum, b_units, b_sum in cases.PROPORTIONS:
        low, high = confint_proportions_2indep(b_sum, b_units, a_sum, a_units, method="wald", compare="diff")
        proportions.append({"case": [a_units, a_sum, b_units, b_sum], "interval": [float(low), float(high)]})

    control, arm = np.array(cases.CONTROL), np.array(cases.ARM)
    welch = CompareMeans(DescrStatsW(arm[:, 0]), DescrStatsW(control[:, 0]))
    _, p, degrees = welch.ttest_ind(usevar="unequal")
    both = np.vstack([control, arm])
    shown = np.repeat([0.0, 1.0], [len(control), len(arm)])
    ancova = sm.OLS(both[:, 0], np.column_stack([np.ones(len(both)), shown, both[:, 2]])).fit()

    random = np.random.default_rng(3)
    t = np.repeat(DOSES, 300)
    y = 0.5 + 0.8 * t - 0.9 * t**2 + random.normal(0, 0.5, len(t))
    curve = sm.OLS(y, np.column_stack([np.ones(len(t)), t, t**2])).fit(cov_type="HC0")
    arms = [
        {"t": dose, "units": 300, "mean": float(y[t == dose].mean()), "variance": float(y[t == dose].var())}
        for dose in DOSES
    ]

    cases.write(
        "statsmodels_numbers",
        ["statsmodels", "numpy", "scipy"],
        {
            "proportions": proportions,
            "control": {"units": len(control), "moments": cases.sums(cases.CONTROL)},
            "arm": {"units": len(arm), "moments": cases.sums(cases.ARM)},
            "welch": {
                "p": float(p),
                "degrees": float(degrees),
                "interval": [float(end) for end in welch.tconfint_diff(usevar="unequal")],
            },
            "ancova": {"lift": float(ancova.params[1]), "slope": float(ancova.params[2])},
            "holm": [{"p": ps, "adjusted": multipletests(ps, method="holm")[1].tolist()} for ps in cases.P_VALUES],
            "power": [
                {"effect": d, "units": float(NormalIndPower().solve_power(effect_size=d, alpha=0.05, power=0.8))}
                for d in (0.05, 0.1, 0.3)
            ],
            "dose": {
                "arms": arms,
                "coefficients": curve.params[1:].tolist(),
                "covariance": curve.cov_params()[1:, 1:].tolist(),
            },
        },
    )


if __name__ == "__main__":
    main()
