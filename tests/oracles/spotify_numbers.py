"""Spotify's confidence: bounds of group-sequential tests by its solver (spending alpha f^2), and a z-test."""

from __future__ import annotations

import cases
import numpy as np
import pandas as pd
from spotify_confidence import ZTest
from spotify_confidence.analysis.frequentist.sequential_bound_solver import bounds


def main() -> None:
    tests = []
    for a_units, a_sum, b_units, b_sum in cases.PROPORTIONS:
        frame = pd.DataFrame(
            {"group": ["a", "b"], "sum": [a_sum, b_sum], "squares": [a_sum, b_sum], "units": [a_units, b_units]}
        )
        test = ZTest(
            frame,
            numerator_column="sum",
            numerator_sum_squares_column="squares",
            denominator_column="units",
            categorical_group_columns="group",
        )
        row = test.difference(level_1="a", level_2="b").iloc[0]
        tests.append(
            {
                "case": [a_units, a_sum, b_units, b_sum],
                "lift": float(row["difference"]),
                "interval": [float(row["ci_lower"]), float(row["ci_upper"])],
                "p": float(row["p-value"]),
            }
        )
    solved = []
    for looks in cases.LOOKS:
        result = bounds(np.array(looks), alpha=0.05, rho=2, ztrun=8, sides=2, max_nints=1000)
        solved.append({"looks": looks, "bounds": result.df["zb"].tolist()})
    cases.write(
        "spotify_numbers", ["spotify-confidence", "numpy", "scipy", "pandas"], {"z_tests": tests, "bounds": solved}
    )


if __name__ == "__main__":
    main()
