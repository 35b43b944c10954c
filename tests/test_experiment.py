"""An experiment that makes no sense is refused with a sentence that says why."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.experiments.experiment import Experiment


def experiment(**changes: Any) -> Experiment:
    arms = [{"name": "plain", "recipe": "base", "share": 0.5}, {"name": "warm", "recipe": "kind@0.4", "share": 0.5}]
    return Experiment.model_validate({"arms": arms, "control": "plain"} | changes)


def test_arms_that_are_shown_come_in_their_order() -> None:
    arms = [
        {"name": "plain", "recipe": "base", "share": 1},
        {"name": "next", "recipe": "kind@0.5", "share": 0, "shadow": True},
    ]
    tested = experiment(arms=arms)
    assert [arm.name for arm in tested.shown] == ["plain"]
    assert tested.arm("next").shadow


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"control": "cold"}, "control is 'cold'; arms that are shown: plain, warm"),
        ({"arms": [{"name": "plain", "recipe": "base", "share": 0.4}]}, "add up to 0.4 instead of 1"),
        ({"overrides": {"anna": "cold"}}, "an override is arm 'cold'; arms that are shown: plain, warm"),
        ({"metrics": [{"name": "solved"}, {"name": "solved"}]}, "two metrics are called 'solved'"),
        ({"metrics": [{"name": "a", "role": "primary"}, {"name": "b", "role": "primary"}]}, "more than one metric"),
        ({"metrics": [{"name": "solved", "per": "calls"}]}, "'solved' is per 'calls', which is no count metric here"),
        ({"layer": {"name": "tone", "low": 0.5, "high": 0.5}}, "goes from 0.5 to 0.5: empty"),
        ({"start": 20.0, "stop": 10.0}, "stop lies before start"),
        ({"nonsense": 1}, "Extra inputs are not permitted"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        experiment(**changes)
