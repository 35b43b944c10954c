"""Which calls need which role, and which only compute: the one table of it.

What is not named here needs the role that manages, so that a route which somebody adds is closed before it is opened.
"""

from __future__ import annotations

import re
from typing import Literal

Role = Literal["predict", "manage"]

COMPUTES = frozenset({"/v1/predict", "/v1/spectrum"})
"""Paths where a POST changes nothing."""

OPEN = re.compile(r"/|/livez|/readyz|/metrics|/docs|/openapi\.json|/static-offline-docs/.*")
"""Paths that need no key: probes, metrics, and the documentation."""

TELLS = re.compile(r"/v1/experiments/[^/]+/outcomes")
"""Paths where a POST tells what came of a prediction, which is for whoever predicts."""

GUARDED = re.compile(r"/v1/blends/[^/]+/weights|/v1/sweeps(/.*)?|/v1/experiments/[^/]+/(audit|export)")
"""Paths that only a manager reads: weights, what was found in labelled texts, who did what, what each unit did."""


def only_computes(method: str, path: str) -> bool:
    """Whether a call changes nothing although it is a POST, so that it may be stopped in the middle."""
    return path in COMPUTES and method == "POST"


def needs(method: str, path: str) -> Role | None:
    """The least role for a call; None where no key is needed."""
    if only_computes(method, path):
        return "predict"
    if method not in ("GET", "HEAD", "OPTIONS"):
        return "predict" if method == "POST" and TELLS.fullmatch(path) else "manage"
    if OPEN.fullmatch(path):
        return None
    return "manage" if GUARDED.fullmatch(path) else "predict"
