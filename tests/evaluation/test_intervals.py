"""Intervals against closed forms, and against what happens with fresh videos and seeds."""

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
    """Outcomes of videos of the first class, of which some are right."""
    scores_NK = np.eye(classes)[np.where(right_N, 0, 1)]
    return outcomes_of(scores_NK, np.zeros(len(right_N), dtype=np.int64))


def wilson(right, N):
    """Wilson (1927), the textbook's form."""
    p, z = right / N, 1.96
    middle, half = p + z**2 / (2 * N), z * np.sqrt(p * (1 - p) / N + z**2 / (4 * N**2))
    return (middle - half) / (1 + z**2 / N), (middle + half) / (1 + z**2 / N)


@pytest.mark.parametrize(("right", "N"), [(180, 600), (57, 60), (1, 40)])
def test_the_interval_of_an_accuracy_is_wilsons(right, N):
    low, high = interval(of_two_classes(np.arange(N) < right, classes=7), "top1")
    width = high - low
    assert (low, high) == pytest.approx(wilson(right, N), abs=0.06 * width)


@pytest.mark.parametrize("share", [0, 1])
def test_where_nothing_varies_as_many_videos_count_as_there_are_groups(share):
    right = np.full(60, bool(share))
    for size in (1, 3):
        bounds = interval(of_two_classes(right), "top1", [f"g{number // size}" for number in range(60)])
        assert bounds == pytest.approx(wilson(share * 60 / size, 60 / size), abs=0.02)


def test_what_rounding_alone_moves_does_not_vary():
    """Of each group one in three is right, in every draw; a third has no end in binary."""
    right, groups = np.arange(30) % 3 == 0, [f"g{number // 3}" for number in range(30)]
    assert interval(of_two_classes(right), "top1", groups) == pytest.approx([0.11, 0.66], abs=0.02)


def test_where_no_difference_varies_an_unseen_group_may_still_differ():
    for difference, expected in ((0.0, (-0.166, 0.166)), (1.0, (0.834, 1.0))):
        drawn = np.full((1000, 1), difference)
        found = difference_interval(np.array([difference]), drawn, groups=24)
        t = 2.069  # of 23 degrees of freedom, from a table
        assert found == pytest.approx(expected, abs=0.02)
        assert found[1 if difference == 0 else 0] == pytest.approx(abs(difference - t**2 / (24 + t**2)), abs=1e-3)


def test_groups_that_are_right_or_wrong_as_a_whole_count_as_one_video_each():
    right = np.arange(400) // 4 % 10 < 3
    groups = [f"g{number // 4}" for number in range(400)]
    assert interval(of_two_classes(right), "top1", groups) == pytest.approx(wilson(30, 100), abs=0.01)


def test_of_one_group_nothing_is_known():
    assert interval(of_two_classes(np.arange(9) < 3), "top1", ["film"] * 9) == [0, 1]
    assert difference_interval(np.array([0.1]), np.full((1000, 1), 0.1), groups=1) == [-1, 1]


def test_the_interval_of_the_mean_per_class_is_that_of_a_mean_of_binomials():
    sizes, shares = (400, 100), (0.8, 0.4)
    targets = np.repeat([0, 1], sizes)
    right = np.concatenate([np.arange(n) < p * n for n, p in zip(sizes, shares, strict=True)])
    scores = np.eye(2)[np.where(right, targets, 1 - targets)]
    low, high = interval(outcomes_of(scores, targets), "mean_per_class")
    half = 1.96 * np.sqrt(sum(p * (1 - p) / n for n, p in zip(sizes, shares, strict=True))) / 2
    assert (low, high) == (pytest.approx(0.6 - half, abs=0.008), pytest.approx(0.6 + half, abs=0.008))


def draw(seed, videos):
    """Sixty rare classes and scores that tell something of them."""
    rng = np.random.default_rng(seed)
    targets = rng.random((videos, 60)) < 0.04
    return outcomes_of(rng.normal(size=targets.shape) + 1.5 * targets, targets)


def figure(outcomes):
    return outcomes.metrics(np.ones(outcomes.videos, dtype=np.int64))["map"]


def test_the_interval_of_map_holds_what_other_videos_give_on_average():
    """Of 20 intervals of 95 %, 16 or more do, but for three times in a thousand. Of plain percentiles 12 do."""
    elsewhere = [figure(draw(seed, videos=300)) for seed in range(1000, 1200)]
    bounds = np.array([interval(draw(seed, videos=300), "map") for seed in range(20)])
    holds = (bounds[:, 0] <= np.mean(elsewhere)) & (np.mean(elsewhere) <= bounds[:, 1])
    assert holds.sum() >= 16
    widths = bounds[:, 1] - bounds[:, 0]
    assert widths.mean() == pytest.approx(2 * 1.96 * np.std(elsewhere), rel=0.25)


def test_intervals_hold_their_figures_lie_in_0_to_1_and_are_the_same_every_time():
    rng = np.random.default_rng(0)
    outcomes = outcomes_of(rng.random((30, 8)), rng.integers(0, 8, 30))
    groups = [f"g{number // 2}" for number in range(30)]
    found = intervals(outcomes, groups)
    assert list(found) == list(METRICS)
    assert found["map"] is None
    for name, value in outcomes.metrics(np.ones(30)).items():
        if value is not None:
            low, high = found[name] or (1, 0)
            assert 0 <= low < value < high <= 1
    assert intervals(outcomes, groups) == found


def test_of_many_videos_a_mean_over_seeds_has_the_interval_of_students_t():
    values_S = np.array([0.2, 0.5, 0.6])
    drawn_RS = values_S + np.random.default_rng(0).normal(size=(1000, 3)) * 1e-4
    half = 4.303 * values_S.std(ddof=1) / np.sqrt(3)  # of two degrees of freedom, from a table
    expected = values_S.mean() - half, values_S.mean() + half
    assert difference_interval(values_S, drawn_RS, groups=10**6) == pytest.approx(expected, rel=1e-3)


def test_seeds_that_differ_by_their_errors_on_few_videos_alone_make_no_interval_wider():
    rng = np.random.default_rng(0)
    drawn_RS = rng.normal(size=(20000, 1)) * 0.03 + rng.normal(size=(20000, 3)) * 0.06
    low, high = difference_interval(np.array([-0.06, 0.0, 0.06]), drawn_RS, groups=1000)
    # Satterthwaite's 6.125 degrees of freedom, between the table's 2.447 for 6 and 2.365 for 7.
    assert high == pytest.approx(2.435 * np.sqrt(0.03**2 + 0.06**2 / 3), rel=0.02)
    assert low == pytest.approx(-high)


@pytest.mark.parametrize(("videos", "seed_deviation"), [(268, 0.0), (268, 0.025), (5433, 0.025)])
def test_runs_that_are_equally_good_are_seldom_called_different(videos, seed_deviation):
    """Of 200 pairs with three seeds each: 5 % by the intervals' promise, over 18 only once in a hundred times."""
    rng = np.random.default_rng(0)
    normal = NormalDist()
    different = 0
    for _ in range(200):
        hard_N = rng.normal(size=videos) * 0.8
        shifts = rng.normal(size=(2, 3, 1)) * seed_deviation / normal.pdf(normal.inv_cdf(0.3))
        right = hard_N + 0.6 * rng.normal(size=(2, 3, videos)) + shifts < normal.inv_cdf(0.3)
        difference_SN = right[0].astype(float) - right[1]
        weights_RN = rng.multinomial(videos, [1 / videos] * videos, size=200) / videos
        low, high = difference_interval(difference_SN.mean(axis=1), weights_RN @ difference_SN.T, groups=videos)
        different += not low <= 0 <= high
    assert different <= 18


def test_a_share_over_seeds_stays_within_0_and_1():
    values_S = np.array([0.9, 0.99, 1.0])
    drawn_RS = values_S + np.random.default_rng(0).normal(size=(1000, 3)) * 0.01
    low, high = proportion_interval(values_S, drawn_RS, groups=50)
    assert 0 < low < values_S.mean() < high < 1
