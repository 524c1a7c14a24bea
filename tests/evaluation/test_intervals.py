"""Intervals against closed forms, and against simulations with new videos and seeds."""

from dataclasses import asdict
from statistics import NormalDist

import numpy as np
import pytest

from airstreams.evaluation.intervals import difference_interval, intervals, proportion_interval
from airstreams.evaluation.metrics import METRICS, outcomes_of


def interval(outcomes, name, groups=None):
    found = intervals(outcomes, groups or [str(number) for number in range(outcomes.videos)])[name]
    assert found is not None
    return found


def of_two_classes(right_N, classes=2):
    """Outcomes of videos of the first class; `right_N` says which are predicted correctly."""
    scores_NK = np.eye(classes)[np.where(right_N, 0, 1)]
    return outcomes_of(scores_NK, np.zeros(len(right_N), dtype=np.int64))


def wilson(right, N):
    """The textbook's formula of Wilson (1927)."""
    p, z = right / N, 1.96
    middle, half = p + z**2 / (2 * N), z * np.sqrt(p * (1 - p) / N + z**2 / (4 * N**2))
    return (middle - half) / (1 + z**2 / N), (middle + half) / (1 + z**2 / N)


@pytest.mark.parametrize(("right", "N"), [(180, 600), (57, 60), (1, 40)])
def test_the_interval_of_an_accuracy_is_wilsons(right, N):
    low, high = interval(of_two_classes(np.arange(N) < right, classes=7), "top1")
    width = high - low
    assert (low, high) == pytest.approx(wilson(right, N), abs=0.06 * width)


@pytest.mark.parametrize("share", [0, 1])
def test_without_variance_the_number_of_groups_sets_the_width(share):
    right = np.full(60, bool(share))
    for size in (1, 3):
        bounds = interval(of_two_classes(right), "top1", [f"g{number // size}" for number in range(60)])
        assert bounds == pytest.approx(wilson(share * 60 / size, 60 / size), abs=0.02)


def test_rounding_is_not_variance():
    """One in three videos of each group is right, so every draw gives a third, which binary cannot hold exactly."""
    right, groups = np.arange(30) % 3 == 0, [f"g{number // 3}" for number in range(30)]
    assert interval(of_two_classes(right), "top1", groups) == pytest.approx([0.11, 0.66], abs=0.02)


def test_a_constant_difference_still_has_an_interval():
    for difference, expected in ((0.0, (-0.166, 0.166)), (1.0, (0.834, 1.0))):
        drawn = np.full((1000, 1), difference)
        found = difference_interval(np.array([difference]), drawn, groups=24)
        t = 2.069  # from a table, for 23 degrees of freedom
        assert found == pytest.approx(expected, abs=0.02)
        assert found[1 if difference == 0 else 0] == pytest.approx(abs(difference - t**2 / (24 + t**2)), abs=1e-3)


def test_groups_that_agree_within_count_as_one_video_each():
    right = np.arange(400) // 4 % 10 < 3
    groups = [f"g{number // 4}" for number in range(400)]
    assert interval(of_two_classes(right), "top1", groups) == pytest.approx(wilson(30, 100), abs=0.01)


def test_one_group_gives_the_widest_interval():
    assert interval(of_two_classes(np.arange(9) < 3), "top1", ["film"] * 9) == [0, 1]
    assert difference_interval(np.array([0.1]), np.full((1000, 1), 0.1), groups=1) == [-1, 1]


def test_mean_per_class_has_the_interval_of_a_mean_of_binomials():
    sizes, shares = (400, 100), (0.8, 0.4)
    targets = np.repeat([0, 1], sizes)
    right = np.concatenate([np.arange(n) < p * n for n, p in zip(sizes, shares, strict=True)])
    scores = np.eye(2)[np.where(right, targets, 1 - targets)]
    low, high = interval(outcomes_of(scores, targets), "mean_per_class")
    half = 1.96 * np.sqrt(sum(p * (1 - p) / n for n, p in zip(sizes, shares, strict=True))) / 2
    assert (low, high) == (pytest.approx(0.6 - half, abs=0.008), pytest.approx(0.6 + half, abs=0.008))


def random_outcomes(seed, videos):
    """Outcomes with sixty rare classes and scores that are better than chance."""
    rng = np.random.default_rng(seed)
    targets = rng.random((videos, 60)) < 0.04
    return outcomes_of(rng.normal(size=targets.shape) + 1.5 * targets, targets)


def map_of(outcomes):
    return outcomes.metrics(np.ones(outcomes.videos, dtype=np.int64)).map


def test_the_interval_of_map_covers_the_mean_over_other_videos():
    """At least 16 of 20 intervals must cover it: correct ones fail this 3 times in 1000. Plain percentiles reach 12."""
    elsewhere = [map_of(random_outcomes(seed, videos=300)) for seed in range(1000, 1200)]
    bounds = np.array([interval(random_outcomes(seed, videos=300), "map") for seed in range(20)])
    holds = (bounds[:, 0] <= np.mean(elsewhere)) & (np.mean(elsewhere) <= bounds[:, 1])
    assert holds.sum() >= 16
    widths = bounds[:, 1] - bounds[:, 0]
    assert widths.mean() == pytest.approx(2 * 1.96 * np.std(elsewhere), rel=0.25)


def test_intervals_contain_their_metric_and_are_reproducible():
    rng = np.random.default_rng(0)
    outcomes = outcomes_of(rng.random((30, 8)), rng.integers(0, 8, 30))
    groups = [f"g{number // 2}" for number in range(30)]
    found = intervals(outcomes, groups)
    assert list(found) == list(METRICS)
    assert found["map"] is None
    for name, value in asdict(outcomes.metrics(np.ones(30))).items():
        if value is not None:
            low, high = found[name] or (1, 0)
            assert 0 <= low < value < high <= 1
    assert intervals(outcomes, groups) == found


def test_with_many_videos_the_seeds_give_students_t():
    values_S = np.array([0.2, 0.5, 0.6])
    drawn_RS = values_S + np.random.default_rng(0).normal(size=(1000, 3)) * 1e-4
    half = 4.303 * values_S.std(ddof=1) / np.sqrt(3)  # from a table, for 2 degrees of freedom
    expected = values_S.mean() - half, values_S.mean() + half
    assert difference_interval(values_S, drawn_RS, groups=10**6) == pytest.approx(expected, rel=1e-3)


def test_differences_among_seeds_that_few_videos_explain_are_not_counted_twice():
    rng = np.random.default_rng(0)
    drawn_RS = rng.normal(size=(20000, 1)) * 0.03 + rng.normal(size=(20000, 3)) * 0.06
    low, high = difference_interval(np.array([-0.06, 0.0, 0.06]), drawn_RS, groups=1000)
    # Satterthwaite's 6.125 degrees of freedom, between the table's 2.447 for 6 and 2.365 for 7.
    assert high == pytest.approx(2.435 * np.sqrt(0.03**2 + 0.06**2 / 3), rel=0.02)
    assert low == pytest.approx(-high)


@pytest.mark.slow
@pytest.mark.parametrize(("videos", "seed_deviation"), [(268, 0.0), (268, 0.025), (5433, 0.025)])
def test_equally_good_runs_rarely_differ_significantly(videos, seed_deviation):
    """200 pairs with three seeds each: 5 % are expected to differ; more than 18 has a probability of 1 %."""
    rng = np.random.default_rng(0)
    normal = NormalDist()
    different = 0
    weights_RN = rng.multinomial(videos, [1 / videos] * videos, size=200) / videos  # as always, the same for all runs
    for _ in range(200):
        hard_N = rng.normal(size=videos) * 0.8
        shifts = rng.normal(size=(2, 3, 1)) * seed_deviation / normal.pdf(normal.inv_cdf(0.3))
        right = hard_N + 0.6 * rng.normal(size=(2, 3, videos)) + shifts < normal.inv_cdf(0.3)
        difference_SN = right[0].astype(float) - right[1]
        low, high = difference_interval(difference_SN.mean(axis=1), weights_RN @ difference_SN.T, groups=videos)
        different += not low <= 0 <= high
    assert different <= 18


def test_a_proportion_interval_stays_within_0_and_1():
    values_S = np.array([0.9, 0.99, 1.0])
    drawn_RS = values_S + np.random.default_rng(0).normal(size=(1000, 3)) * 0.01
    low, high = proportion_interval(values_S, drawn_RS, groups=50)
    assert 0 < low < values_S.mean() < high < 1
