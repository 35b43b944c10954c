"""The picture of a sweep over two t's: axes the right way round, shades that say on which side of one t a pair is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from synthetic import LINE, Synthetic, drawn

from app.sweep.build_result import findings
from app.sweep.logits.logit_cache import LogitCache, MemoryLogitStore
from app.sweep.one_line import sweep
from app.sweep.report import plots, sweep_report
from app.sweep.sweep_result import Ramp, RampPoint, SweepResult, Value
from app.sweep.sweep_spec import SweepSpec

TENTHS = [step / 10 for step in range(11)]


@pytest.fixture(scope="module")
def found() -> SweepResult:
    """A sweep whose best ramp goes from 0.2 to 0.9; a t of 1 in the first layer breaks a guard."""
    provider = Synthetic()
    passes = LogitCache(provider, MemoryLogitStore())
    spec = SweepSpec(LINE, [drawn(provider, 60, 0.6, 1.3, seed=1)], [1.0], 4.0, draws=100)
    found = findings(spec, *sweep(spec, passes), passes, provider.labels)
    surface = [
        RampPoint(first, last, 0.5 + (first - 0.2) ** 2 + (last - 0.9) ** 2, allowed=first < 1)
        for first in TENTHS
        for last in TENTHS
    ]
    t = found.best.t
    found.ramp = Ramp(
        first=Value(0.2, 0.1, 0.4),
        last=Value(0.9, 0.8, 1.0),
        recipe="finance@0.2:0.9;temperature=1.3",
        temperature=1.3,
        gained=Value(0.05, 0.02, 0.08),
        error=0.01,
        held_out=0.04,
        missed=0.01,
        blends=7,
        better=True,
        surface=surface,
        run=[RampPoint(t, t, 0.55, True), RampPoint(0.2, 0.9, 0.5, True)],
    )
    found.best = replace(found.best, recipe=found.ramp.recipe, temperature=found.ramp.temperature)
    return found


def test_the_first_layer_runs_across_and_the_last_one_up(found: SweepResult) -> None:
    assert found.ramp is not None
    surface = plots._figure(found, found.ramp).axes[0]
    assert surface.get_xlabel() == "t in the first layer   (0 is base, 1 is finance)"
    assert surface.get_ylabel() == "t in the last layer"
    [cells] = [drawn for drawn in surface.collections if isinstance(drawn, QuadMesh)]
    worse = np.asarray(cells.get_array())
    assert np.unravel_index(worse.argmin(), worse.shape) == (9, 2), "a row for each t of the last layer"
    assert worse.min() == pytest.approx(-0.05) and worse[0, 10] == pytest.approx(0.64 + 0.81 - 0.05)
    marks = {line.get_label(): (line.get_xdata()[0], line.get_ydata()[0]) for line in surface.lines}
    assert marks["best ramp"] == (0.2, 0.9) and marks["best one t"] == (found.best.t, found.best.t)
    hatched = [drawn for drawn in surface.collections if drawn.get_hatch()]
    assert len(hatched) == len(TENTHS), "those with a t of 1 in the first layer"


@pytest.mark.parametrize(("low", "high"), [(-0.05, 1.4), (0.0, 0.0), (-3.0, 0.2)])
def test_shades_change_colour_at_zero_and_reach_over_all_values(low: float, high: float) -> None:
    colors, norm, bounds = plots._shades(low, high, 0.001)
    assert bounds == sorted(bounds) and bounds[0] <= low and high <= bounds[-1] and colors.N == len(bounds) - 1
    better, worse = (colors(norm(value)) for value in (-0.0005, 0.0005))
    assert better[0] > better[2], "the faintest orange"
    assert worse[0] < worse[2], "the faintest blue"


def test_the_folder_and_the_page_have_the_picture_as_long_as_there_is_a_ramp(
    found: SweepResult, tmp_path: Path
) -> None:
    sweep_report.write(found, tmp_path)
    assert (tmp_path / "ramp.png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(tmp_path / "ramp.svg").getroot().tag.endswith("svg")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 3 and "One t in the first layer, another in the last" in page
    assert "<h1>finance@0.2:0.9 <span>at temperature 1.30<" in page and "to expect on new texts, with one t<" in page
    sweep_report.write(replace(found, ramp=None), tmp_path)
    assert not list(tmp_path.glob("ramp.*")) and (tmp_path / "report.html").read_text().count("<svg") == 2
