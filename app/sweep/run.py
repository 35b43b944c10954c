"""The entry of a sweep: a spec and logits in, the result out. Command line, service and workers all call `run_sweep`.

Of several variants the best mix is looked for first (`multi_variant.py`). Along the line t is chosen (`one_line.py`)
and reported (`build_result.py`), then, where that is asked, ramps over the layers are held against it
(`layer_ramp.py`), and texts are perturbed and attacked along t (`diagnostics/robustness.py`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from app.sweep.build_result import findings
from app.sweep.diagnostics.robustness import TS, Attack, robustness
from app.sweep.layer_ramp import best_ramp
from app.sweep.logits.logit_cache import LogitCache
from app.sweep.multi_variant import towards_the_best_mix
from app.sweep.one_line import sweep
from app.sweep.report.summary import tell
from app.sweep.sweep_result import SweepResult
from app.sweep.sweep_spec import BankFacts, SweepSpec


def run_sweep(spec: SweepSpec, bank: BankFacts, passes: LogitCache, attack: Attack | None = None) -> SweepResult:
    """All that is asked of a sweep. An `attack` needs gradients; without one, texts are perturbed only, and the result
    says so."""
    direction = None
    if spec.mixed:
        line, direction = towards_the_best_mix(spec, spec.mixed, passes)
        spec = replace(spec, line=line, squared_length=line.squared_length(np.array(bank.products)))
    curve, choice = sweep(spec, passes)
    found = findings(spec, curve, choice, passes, bank.labels)
    found.direction = direction
    if spec.ramp and curve.way != "run":  # else logits change too unevenly along the line to look beside it
        found.ramp = best_ramp(spec, curve, found, passes)
    if found.ramp is not None and found.ramp.better:
        found.best = replace(found.best, recipe=found.ramp.recipe, temperature=found.ramp.temperature)
    if spec.robustness:
        ts = sorted({*TS, found.best.t})
        found.robustness = robustness(spec.line, spec.targets[0], ts, passes, spec.seed, attack)
    found.passes, found.passes_run = len(passes.recipes), len(passes.run)
    tell(found)
    return found
