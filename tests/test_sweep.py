"""Sweeps whose truth is known (`synthetic.py`), and one on a real bank against brute force."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic import COOKBOOK, LINE, Synthetic, drawn

from app.errors import BadData, BadRecipe, UnknownVariant
from app.models.bank import BankSpec
from app.sweep.baseline import frequencies
from app.sweep.build_result import findings
from app.sweep.choose_t import paired_errors
from app.sweep.data.dataset import Dataset
from app.sweep.data.weighted_pool import WeightedPool
from app.sweep.logits.line import Line
from app.sweep.logits.local_provider import LocalProvider
from app.sweep.logits.logit_cache import FolderLogitStore, LogitCache, LogitStore, MemoryLogitStore
from app.sweep.logits.logit_curve import CHECK, GRID, NODES, LogitCurve
from app.sweep.metrics_of_t import METRICS, ScoredTexts
from app.sweep.one_line import sweep
from app.sweep.sweep_result import SweepResult
from app.sweep.sweep_spec import Guard, SweepSpec
from app.sweep.temperature_scaling import fitted_beta


def ask(provider: Synthetic, store: LogitStore | None = None, **asked: object) -> SweepResult:
    """A sweep with fewer resamples than usual."""
    settings: dict[str, object] = {"line": LINE, "squared_length": 4.0, "draws": 400, **asked}
    settings.setdefault("shares", [1.0] * len(settings["targets"]))  # type: ignore[arg-type]
    spec = SweepSpec(**settings)  # type: ignore[arg-type]
    passes = LogitCache(provider, store or MemoryLogitStore())
    return findings(spec, *sweep(spec, passes), passes, provider.labels)


def test_the_t_and_the_temperature_that_made_the_labels_are_found_in_seven_passes() -> None:
    provider = Synthetic()
    found = ask(provider, targets=[drawn(provider, 1000, t=0.6, temperature=1.5, seed=1)], rule="best")
    assert found.passes == found.passes_run == 7
    assert found.best.interval[0] <= 0.6 <= found.best.interval[1]
    assert found.best.t == pytest.approx(0.6, abs=0.08)
    assert found.best.temperature == pytest.approx(1.5, rel=0.15)
    assert found.way == "polynomial" and all(check.mean < 1e-5 for check in found.checks)
    assert found.best.recipe == f"finance@{found.best.t:g};temperature={found.best.temperature:.3g}"
    assert found.sentence.startswith(f"Serve {found.best.recipe}: ")


@pytest.mark.parametrize("t", [0.3, 1.0])
def test_intervals_cover_the_truth_about_as_often_as_they_say(t: float) -> None:
    provider = Synthetic()
    covered = 0
    for seed in range(12):
        best = ask(provider, targets=[drawn(provider, 200, t, 1.0, seed)], repeats=1, folds=2).best
        covered += best.interval[0] <= t <= best.interval[1]
    assert covered >= 9, "fewer than 9 of 12 has a chance of 2 in 10,000"


def test_the_nearest_t_is_as_good_and_not_farther() -> None:
    provider = Synthetic()
    target = drawn(provider, 400, t=0.6, temperature=1.0, seed=2)
    near, best = (ask(provider, targets=[target], rule=rule) for rule in ("nearest", "best"))
    assert near.best.t == near.best.as_good[0] <= best.best.t <= near.best.as_good[1]
    assert best.best.t == near.best.t_of_best_score


def test_another_question_on_the_same_texts_costs_no_pass_and_a_crash_costs_only_what_was_not_done(
    tmp_path: Path,
) -> None:
    provider, store = Synthetic(), FolderLogitStore(tmp_path)
    targets = [drawn(provider, 300, t=0.5, temperature=1.0, seed=3)]

    def crash(done: int, expected: int) -> None:
        if done > 700:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LogitCurve(LINE, [targets[0].texts], LogitCache(provider, store, crash))
    assert 600 < len(provider.asked) < 900, "in the middle of the third blend"
    first = ask(provider, store, targets=targets)
    assert first.passes == 7 and first.passes_run == 5, "two blends were finished before the crash"
    asked = len(provider.asked)
    for other in ({"objective": "macro_f1"}, {"penalty": "folds", "rule": "best"}, {"seed": 5}):
        again = ask(provider, store, targets=targets, **other)
        assert again.passes_run <= 1, "a chosen t that was not run before is run"
    assert len(provider.asked) <= asked + 3 * 300
    assert ask(provider, store, targets=targets).passes_run == 0


def test_the_same_text_is_run_once(tmp_path: Path) -> None:
    provider = Synthetic()
    data = drawn(provider, 100, 0.5, 1.0, seed=4)
    twice = Dataset("own", data.texts * 2, np.tile(data.truth, 2), np.tile(data.groups, 2))
    passes = LogitCache(provider, MemoryLogitStore())
    logits = passes.logits(twice.texts, LINE.at(0.3))
    assert len(provider.asked) == 100
    np.testing.assert_array_equal(logits[:100], logits[100:])


def test_stored_logits_that_are_torn_are_made_again(tmp_path: Path) -> None:
    provider = Synthetic()
    texts = drawn(provider, 50, 0.5, 1.0, seed=5).texts
    first = LogitCache(provider, FolderLogitStore(tmp_path)).logits(texts, LINE.at(0.3))
    (stored,) = tmp_path.iterdir()
    stored.write_bytes(stored.read_bytes()[:200])
    again = LogitCache(provider, FolderLogitStore(tmp_path))
    np.testing.assert_array_equal(again.logits(texts, LINE.at(0.3)), first)
    assert again.run and len(list(tmp_path.iterdir())) == 1


def test_progress_ends_where_it_said_and_never_runs_over() -> None:
    for bend in (0.0, 0.2):
        provider, told = Synthetic(bend=bend), []
        targets = [drawn(provider, 300, 0.5, 1.0, seed=6)]
        passes = LogitCache(provider, MemoryLogitStore(), lambda done, expected: told.append((done, expected)))  # noqa: B023
        sweep(SweepSpec(LINE, targets, [1.0], 4.0, draws=50), passes)
        assert all(done <= expected for done, expected in told) and told == sorted(told)
        assert told[-1][0] >= 300 * 7 - 300


def test_where_a_polynomial_will_not_do_a_grid_and_a_spline_take_over() -> None:
    provider = Synthetic(degree=9)
    found = ask(provider, targets=[drawn(provider, 300, 0.5, 1.0, seed=7)])
    assert found.way == "spline" and found.passes <= len(GRID) + 3
    assert any("polynomial" in warning for warning in found.warnings)
    assert [check.way for check in found.checks][:2] == ["polynomial", "spline"]


def test_where_nothing_interpolates_the_choice_is_among_blends_that_were_run() -> None:
    provider = Synthetic(bend=0.5)
    found = ask(provider, targets=[drawn(provider, 300, 0.5, 1.0, seed=8)])
    assert found.way == "run"
    assert {at.t for at in found.compared} == {*GRID, *NODES, CHECK}


def test_a_grid_of_ones_own_is_run_and_nothing_between_it_is_considered() -> None:
    provider = Synthetic()
    found = ask(provider, targets=[drawn(provider, 300, t=0.6, temperature=1.0, seed=8)], grid=(0.33, 0.61, 0.9))
    ts = [0.0, 0.33, 0.5, 0.61, 0.9, 1.0]
    assert found.way == "run" and found.passes == 6 and found.best.t == 0.61 and not found.checks
    assert [point.t for point in found.curve] == [at.t for at in found.compared] == ts


def test_a_guard_bounds_t_and_says_how_sure_that_is() -> None:
    provider = Synthetic()
    target = drawn(provider, 400, t=0.9, temperature=1.0, seed=9)
    general = drawn(provider, 400, t=0.0, temperature=1.0, seed=10, name="general")
    free = ask(provider, targets=[target], rule="best")
    kept = ask(provider, targets=[target], guards=[Guard(general, "loss", 0.05)], rule="best")
    assert kept.best.t < free.best.t
    (guard,) = kept.guards
    assert guard.worse_by.value < guard.upper <= 0.05 + 1e-4 and 0.85 < guard.holds <= 1
    assert guard.up_to >= kept.best.t and guard.texts == 400
    assert "It keeps log loss on general within 0.05 of base (90 % sure, from 400 texts)." in kept.sentence
    assert not kept.compared[-1].allowed and kept.compared[0].allowed
    surer = ask(provider, targets=[target], guards=[Guard(general, "loss", 0.05, confidence=0.99)])
    assert surer.best.t < kept.best.t and "(99 % sure" in surer.sentence
    impossible = ask(provider, targets=[target], guards=[Guard(general, "loss", 0.0)])
    assert impossible.guards[0].worse_by.value <= 1e-4


def test_a_guard_of_few_texts_says_how_many_would_do_and_so_many_do() -> None:
    provider = Synthetic()
    target = drawn(provider, 400, t=0.9, temperature=1.0, seed=9)
    few, margin = drawn(provider, 100, t=0.3, temperature=1.0, seed=10, name="general"), 0.03
    (guard,) = ask(provider, targets=[target], guards=[Guard(few, "accuracy", margin)], repeats=1).guards
    assert guard.more is not None and guard.more.texts > 100 and guard.more.t > guard.up_to
    many = drawn(provider, 2 * guard.more.texts, t=0.3, temperature=1.0, seed=11, name="general")
    (guard,) = ask(provider, targets=[target], guards=[Guard(many, "accuracy", margin)], repeats=1).guards
    assert guard.up_to > 0.2 and guard.upper <= margin + 1e-6


def test_guards_heed_groups() -> None:
    """The same texts, once as independent ones and once as copies of a quarter of them."""
    provider = Synthetic()
    target = drawn(provider, 300, t=0.9, temperature=1.0, seed=9)
    once = drawn(provider, 150, t=0.0, temperature=1.0, seed=10, name="general")
    four = Dataset("general", once.texts * 4, np.tile(once.truth, 4), np.tile(once.groups, 4))
    bounds = [
        ask(provider, targets=[target], guards=[Guard(data, "loss", 0.05)], repeats=1).guards[0]
        for data in (once, four, replace(four, groups=np.arange(600)))
    ]
    assert bounds[0].up_to == bounds[1].up_to < bounds[2].up_to


def test_label_frequencies_are_those_of_the_other_texts() -> None:
    labels, groups = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 2, 3, 3, 4])
    found = frequencies(WeightedPool.of([Dataset("own", tuple("abcdef"), labels, groups)]), 3)
    expected = np.array([[1, 1, 3], [1, 1, 3], [2, 0, 3], [2, 1, 1], [2, 1, 1], [2, 1, 2]]) + 1 / 3
    np.testing.assert_allclose(found, expected / expected.sum(axis=1, keepdims=True))


def test_the_baseline_is_in_the_findings_and_gains_are_held_out() -> None:
    provider = Synthetic()
    targets = [drawn(provider, 200, 0.5, 1.0, seed=18), drawn(provider, 100, 0.5, 1.0, seed=19, name="general")]
    found = ask(provider, targets=targets)
    assert found.baseline.keys() == {"own", "general", "all targets"}
    shares = np.bincount(targets[0].truth) / 200
    assert found.baseline["own"]["loss"].value == pytest.approx(-(shares * np.log(shares)).sum(), abs=0.02)
    assert found.baseline["own"]["accuracy"].value == pytest.approx(shares.max(), abs=0.02)
    start, end = (found.gains[other]["loss"] for other in ("start", "end"))
    honest = found.honest.scores["loss"]
    assert start.value == pytest.approx(found.start.data["all targets"]["loss"].value - honest, abs=0.01)
    assert end.value == pytest.approx(found.end.data["all targets"]["loss"].value - honest, abs=0.01)
    assert start.low < start.value < start.high and found.gains["baseline"]["loss"].low > 0
    costs = ask(provider, targets=targets, objective="cost", cost=np.array([[0, 9, 9], [1, 0, 9], [1, 9, 0.0]]))
    others = 1 - np.bincount(targets[0].truth)[0] / 200
    assert costs.baseline["own"]["cost"].value == pytest.approx(others), "the cheapest label is 0"


def test_a_penalty_draws_the_choice_to_the_start() -> None:
    provider = Synthetic()
    target = drawn(provider, 400, t=0.7, temperature=1.0, seed=11)
    ts = [ask(provider, targets=[target], penalty=weight, rule="best").best.t for weight in (0.0, 0.02, 0.2, 100.0)]
    assert ts == sorted(ts, reverse=True) and ts[0] > 0.55 and ts[-1] == 0.0
    chosen = ask(provider, targets=[target], penalty=0.02, rule="best")
    assert chosen.penalty.at_the_end == pytest.approx(0.08) and "+ 0.08 t^2" in chosen.sentence
    by_folds = ask(provider, targets=[target], penalty="folds", rule="best")
    assert by_folds.penalty.by_folds and by_folds.best.t > 0.4


def test_shares_weigh_the_data_sets() -> None:
    provider = Synthetic()
    one = drawn(provider, 300, t=0.1, temperature=1.0, seed=12)
    two = drawn(provider, 300, t=0.9, temperature=1.0, seed=13, name="general")
    ts = [ask(provider, targets=[one, two], shares=[1, share], rule="best").best.t for share in (0.05, 1, 20)]
    assert ts[0] < ts[1] < ts[2] and ts[0] < 0.3 and ts[2] > 0.7


@pytest.mark.parametrize("objective", ["accuracy", "macro_f1", "ece", "brier", "cost", "worst_group"])
def test_every_objective_chooses_its_own_best(objective: str) -> None:
    provider = Synthetic()
    targets = [drawn(provider, 150, 0.4, 1.0, seed=14), drawn(provider, 150, 0.7, 1.0, seed=15, name="general")]
    cost = np.array([[0, 1, 4], [1, 0, 1], [2, 1, 0.0]])
    found = ask(provider, targets=targets, objective=objective, cost=cost, rule="best")
    metric = METRICS[objective]
    pool = WeightedPool.of(targets)
    scores = {}
    for t in (0.0, found.best.t, 1.0):
        z = np.concatenate([provider.of(data.texts, t) for data in targets])
        beta = fitted_beta(z, pool.labels, pool.weights)
        scores[t] = metric.sign * metric.of(ScoredTexts(beta * z, pool.labels, pool.groups, cost), pool.weights)
    assert scores[found.best.t] <= min(scores.values()) + 1e-6
    assert found.compared[round(100 * found.best.t)].value == pytest.approx(scores[found.best.t], abs=2e-3)


def test_an_objective_that_the_data_lack_is_refused() -> None:
    target = drawn(Synthetic(), 50, 0.5, 1.0, seed=16)
    with pytest.raises(BadData, match="worst_group needs a column of segments"):
        SweepSpec(LINE, [target], [1.0], 1.0, objective="worst_group")
    with pytest.raises(BadData, match="cost needs a cost matrix"):
        SweepSpec(LINE, [target], [1.0], 1.0, objective="cost")


def test_few_texts_are_warned_about_with_the_width_of_the_interval() -> None:
    provider = Synthetic()
    found = ask(provider, targets=[drawn(provider, 60, 0.5, 1.0, seed=17)])
    low, high = found.best.interval
    assert f"60 labelled texts are few: the best t may be anywhere from {low:.2f} to {high:.2f}" in found.warnings[0]


def test_held_out_scores_are_those_of_new_texts_and_the_optimism_is_the_gap() -> None:
    provider = Synthetic()
    estimates, truths, optimism = [], [], []
    new = drawn(provider, 4000, 0.5, 1.0, seed=500, name="new")
    for seed in range(20, 32):
        found = ask(provider, targets=[drawn(provider, 100, 0.5, 1.0, seed)], rule="best", draws=50)
        z = provider.of(new.texts, found.best.t) / found.best.temperature
        truths.append(float(METRICS["loss"].of(ScoredTexts(z, new.truth))))
        estimates.append(found.honest.scores["loss"])
        optimism.append(found.honest.optimism)
    error = np.std(np.array(estimates) - truths) / np.sqrt(len(truths))
    assert abs(np.mean(estimates) - np.mean(truths)) < 3 * error
    assert 0 < np.mean(optimism) < 0.1


def test_a_line_may_run_between_variants_and_to_a_point() -> None:
    assert LINE.text == "base..finance" and LINE.at(0).text == "base" and LINE.at(0.35).text == "finance@0.35"
    across = Line.read("airline..finance", COOKBOOK)
    assert across.at(0.25).text == "airline@0.75+finance@0.25" and across.at(1).text == "finance@1"
    point = Line.read("finance@0.4+airline@0.2", COOKBOOK)
    assert point.at(0.5).text == "airline@0.1+finance@0.2"
    products = np.array([[4.0, 1.0], [1.0, 9.0]])
    assert LINE.squared_length(products) == 4
    assert across.squared_length(products) == pytest.approx(4 + 9 - 2)
    with pytest.raises(UnknownVariant):
        Line.read("finanse", COOKBOOK)
    with pytest.raises(BadRecipe, match="a line is of weights alone: leave the temperature out"):
        Line.read("finance;temperature=1.3", COOKBOOK)
    with pytest.raises(BadRecipe, match="is no line"):
        Line.read("base", COOKBOOK)


# -- a real bank -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def provider(spec: BankSpec) -> LocalProvider:
    return LocalProvider.load(spec, torch.device("cpu"), torch.float32, max_tokens=64)


@pytest.fixture(scope="module")
def target(provider: LocalProvider) -> Dataset:
    """Texts whose labels come from angry@0.6."""
    rng = np.random.default_rng(0)
    words = "the parcel refund came late early broken works great awful fine thanks never slow fast order".split()
    texts = tuple(" ".join(rng.choice(words, rng.integers(3, 12))) for _ in range(150))
    truth = provider.logits(texts, provider.cookbook.read("angry@0.6")).astype(float)
    labels = (truth + rng.gumbel(size=truth.shape)).argmax(axis=1)
    return Dataset("own", texts, labels, np.unique(texts, return_inverse=True)[1])


def test_the_choice_is_that_of_brute_force_over_true_blends(provider: LocalProvider, target: Dataset) -> None:
    line = Line.read("angry", provider.cookbook)
    passes = LogitCache(provider, MemoryLogitStore())
    spec = SweepSpec(line, [target], [1.0], line.squared_length(provider.delta_products), rule="best", draws=300)
    found = findings(spec, *sweep(spec, passes), passes, provider.labels)

    pool, texts, labels = WeightedPool.of([target]), target.texts, target.truth
    losses, slow = {}, np.linspace(0, 1, 21)
    for t in slow:
        z = provider.logits(texts, line.at(float(t))).astype(float)
        losses[float(t)] = float(METRICS["loss"].of(ScoredTexts(fitted_beta(z, labels, pool.weights) * z, labels)))
    assert found.compared[found_at(found, found.best.t)].value <= min(losses.values()) + 1e-3
    for point in found.curve:
        if point.t in losses:
            assert point.data["own"]["loss"].value == pytest.approx(losses[point.t], abs=3e-3)
    assert found.penalty.squared_length == pytest.approx(provider.bank.delta_norms[0] ** 2, rel=1e-5)
    assert [found.start.recipe, found.end.recipe] == ["base", "angry@1"]


def found_at(found: SweepResult, t: float) -> int:
    return [at.t for at in found.compared].index(t)


def test_paired_errors_of_a_judge_are_those_of_the_losses(provider: LocalProvider, target: Dataset) -> None:
    """With the temperature fixed the error of a mean difference has a formula; the refit changes it little."""
    line, texts, labels = Line.read("angry", provider.cookbook), target.texts, target.truth
    passes = LogitCache(provider, MemoryLogitStore())
    spec = SweepSpec(line, [target], [1.0], 1.0, draws=2000)
    _, choice = sweep(spec, passes)
    z = np.stack([provider.logits(texts, line.at(t)).astype(float) for t in (0.0, 1.0)])
    beta = fitted_beta(z, labels, spec.pool.weights)
    losses = ScoredTexts(z * beta[:, None, None], labels).losses
    formula = (losses[1] - losses[0]).std(ddof=1) / np.sqrt(len(texts))
    assert paired_errors(choice.resampled)[0, -1] == pytest.approx(formula, rel=0.15)
