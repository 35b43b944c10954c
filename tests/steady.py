"""How long state machines run: seconds in `make test`, longer in `make fuzz`, and the same steps every time."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("TWEEN_FUZZ_EXAMPLES", "5"))
STEADY = settings(
    max_examples=2 * EXAMPLES,
    stateful_step_count=20,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
