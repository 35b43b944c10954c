"""GrowthBook's statistics: Welch, ratio metrics, CUPED, confidence sequences, the chi-square of the split."""

from __future__ import annotations

from typing import Any

import cases
from gbstats.frequentist.tests import FrequentistConfig, SequentialConfig, SequentialTwoSidedTTest, TwoSidedTTest
from gbstats.models.statistics import (
    ProportionStatistic,
    RatioStatistic,
    RegressionAdjustedStatistic,
    SampleMeanStatistic,
    compute_theta,
)
from gbstats.utils import check_srm


def outcome(test: Any) -> dict[str, Any]:
    result = test.compute_result()
    return {"lift": result.expected, "interval": list(result.ci), "p": result.p_value}


def sample(rows: list[tuple[float, float, float]], column: int) -> SampleMeanStatistic:
    values = [row[column] for row in rows]
    return SampleMeanStatistic(n=len(values), sum=sum(values), sum_squares=sum(v * v for v in values))


def ratio(rows: list[tuple[float, float, float]]) -> RatioStatistic:
    return RatioStatistic(
        n=len(rows),
        m_statistic=sample(rows, 0),
        d_statistic=sample(rows, 1),
        m_d_sum_of_products=cases.sums(rows)["yz"],
    )


def adjusted(rows: list[tuple[float, float, float]]) -> RegressionAdjustedStatistic:
    return RegressionAdjustedStatistic(
        n=len(rows),
        post_statistic=sample(rows, 0),
        pre_statistic=sample(rows, 2),
        post_pre_sum_of_products=cases.sums(rows)["xy"],
        theta=0.0,  # the test puts its own there
    )


def main() -> None:
    fixed = FrequentistConfig(difference_type="absolute", alpha=0.05)
    control, arm = cases.CONTROL, cases.ARM
    sequences = []
    for a_units, a_sum, b_units, b_sum in cases.PROPORTIONS:
        for tuning in (1_000, 10_000):
            config = SequentialConfig(difference_type="absolute", alpha=0.05, sequential_tuning_parameter=tuning)
            a, b = ProportionStatistic(n=a_units, sum=a_sum), ProportionStatistic(n=b_units, sum=b_sum)
            case = {"case": [a_units, a_sum, b_units, b_sum], "tuned_for": tuning}
            sequences.append(case | outcome(SequentialTwoSidedTTest(a, b, config)))
    cases.write(
        "gbstats_numbers",
        ["gbstats", "numpy", "scipy"],
        {
            "control": {"units": len(control), "moments": cases.sums(control)},
            "arm": {"units": len(arm), "moments": cases.sums(arm)},
            "welch": outcome(TwoSidedTTest(sample(control, 0), sample(arm, 0), fixed)),
            "ratio": outcome(TwoSidedTTest(ratio(control), ratio(arm), fixed)),
            "cuped": {"theta": compute_theta(adjusted(control), adjusted(arm))}
            | outcome(TwoSidedTTest(adjusted(control), adjusted(arm), fixed)),
            "sequences": sequences,
            "split": [{"counts": n, "shares": s, "p": float(check_srm(n, s))} for n, s in cases.COUNTS],
        },
    )


if __name__ == "__main__":
    main()
