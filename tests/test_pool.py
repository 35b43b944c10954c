from __future__ import annotations

import numpy as np
import pytest

from app.sweep.data.cv_splits import splits
from app.sweep.data.dataset import Dataset
from app.sweep.data.weighted_pool import WeightedPool


def data(texts: int, groups: int | None = None, order: bool = False, name: str = "own") -> Dataset:
    rng = np.random.default_rng(texts)
    return Dataset(
        name,
        tuple(f"{name} {i}" for i in range(texts)),
        rng.integers(0, 3, texts),
        np.arange(texts) if groups is None else np.arange(texts) % groups,
        order=rng.permutation(texts) if order else None,
        columns={"group": "user"} if groups else {},
    )


def test_a_data_set_counts_by_its_share_and_not_by_its_size() -> None:
    pool = WeightedPool.of([data(100), data(50, name="general")], [1, 3])
    assert pool.weights.sum() == pytest.approx(1)
    assert pool.weights[:100].sum() == pytest.approx(0.25)
    first_half = pool.restricted(np.arange(150) % 2 == 0)
    assert first_half.sum() == pytest.approx(1) and first_half[:100].sum() == pytest.approx(0.25)
    only_one = pool.restricted(np.arange(150) < 100)
    assert only_one.sum() == pytest.approx(1), "an absent data set leaves its share to the others"


def test_the_bootstrap_error_of_a_mean_is_the_one_of_the_formula() -> None:
    pool = WeightedPool.of([data(400)])
    values = np.random.default_rng(1).normal(size=400)
    drawn = pool.resampled(values[None, :, None], draws=4000)[:, 0, 0]
    assert drawn.mean() == pytest.approx(values.mean(), abs=0.005)
    assert drawn.std() == pytest.approx(values.std() / 20, rel=0.05)


def test_the_bootstrap_of_a_mix_draws_within_each_data_set() -> None:
    pool = WeightedPool.of([data(300), data(75, name="general")], [3, 1])
    values = np.random.default_rng(2).normal(size=375) + 10 * (np.arange(375) < 300)
    drawn = pool.resampled(values[None, :, None], draws=4000)[:, 0, 0]
    formula = np.sqrt(0.75**2 * values[:300].var() / 300 + 0.25**2 * values[300:].var() / 75)
    assert drawn.std() == pytest.approx(formula, rel=0.05)


def test_texts_of_a_group_are_drawn_together() -> None:
    values = np.repeat(np.random.default_rng(3).normal(size=40), 10)
    grouped = Dataset("own", tuple(map(str, range(400))), np.arange(400) % 3, np.repeat(np.arange(40), 10))
    drawn = WeightedPool.of([grouped]).resampled(values[None, :, None], draws=4000)[:, 0, 0]
    assert drawn.std() == pytest.approx(values.std() / np.sqrt(40), rel=0.06), "40 observations, not 400"


def test_resamples_follow_from_the_seed_alone() -> None:
    pool, parts = WeightedPool.of([data(60)]), np.random.default_rng(0).normal(size=(2, 60, 1))
    together = pool.resampled(parts, draws=300, seed=4)
    np.testing.assert_array_equal(together, pool.resampled(parts, draws=300, seed=4))
    np.testing.assert_allclose(together[:, 1], pool.resampled(parts[1:], draws=300, seed=4)[:, 0], atol=1e-5)
    assert not np.array_equal(together, pool.resampled(parts, draws=300, seed=5))


def test_every_text_is_held_out_once_and_no_group_stands_on_both_sides() -> None:
    pool = WeightedPool.of([data(103, groups=17), data(40, name="general")])
    repeats = splits(pool, folds=5, repeats=3)
    assert len(repeats) == 3
    for repeat in repeats:
        assert np.array_equal(sum(split.test.astype(int) for split in repeat), np.ones(143))
        for split in repeat:
            assert not (split.train & split.test).any()
            assert not set(pool.clusters[split.train]) & set(pool.clusters[split.test])
    assert not np.array_equal(repeats[0][0].test, repeats[1][0].test)


def test_with_times_the_past_chooses_and_the_future_judges() -> None:
    pool = WeightedPool.of([data(100, groups=30, order=True)])
    (only,) = splits(pool, folds=5, repeats=3)
    assert pool.order is not None and len(only) == 4
    for split in only:
        assert pool.order[split.train].max() < pool.order[split.test].min()
        assert not set(pool.clusters[split.train]) & set(pool.clusters[split.test])
        assert split.test.sum() == 20


def test_the_worst_group_is_looked_for_among_segments_then_groups_then_data_sets() -> None:
    assert WeightedPool.of([data(30)]).groups is None
    assert len(WeightedPool.of([data(30, groups=4)]).group_names) == 4
    assert WeightedPool.of([data(30), data(20, name="general")]).group_names == ("general", "own")
