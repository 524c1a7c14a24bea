"""Intervals against closed forms, and against what happens with fresh videos."""

import numpy as np
import pytest

from airstreams.evaluation.intervals import intervals
from airstreams.evaluation.metrics import FIGURES, outcomes_of


def interval(outcomes, name):
    found = intervals(outcomes)[name]
    assert found is not None
    return found


def test_the_interval_of_an_accuracy_is_that_of_a_binomial():
    N, p = 600, 0.3
    scores = np.zeros((N, 7))
    scores[:, 0] = 1
    targets = np.where(np.arange(N) < p * N, 0, 6)  # the first 180 are right
    low, high = interval(outcomes_of(scores, targets), "top1")
    half = 1.96 * np.sqrt(p * (1 - p) / N)
    assert (low, high) == (pytest.approx(p - half, abs=0.006), pytest.approx(p + half, abs=0.006))


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
    return outcomes.figures(np.ones(outcomes.videos, dtype=np.int64))["map"]


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
    scores, targets = rng.random((30, 8)), rng.integers(0, 8, 30)
    found = intervals(outcomes_of(scores, targets))
    assert list(found) == list(FIGURES)
    assert found["map"] is None
    for name, value in outcomes_of(scores, targets).figures(np.ones(30)).items():
        if value is not None:
            low, high = found[name] or (1, 0)
            assert 0 <= low < value < high <= 1
    assert intervals(outcomes_of(scores, targets)) == found


def test_with_every_video_right_the_interval_is_a_point():
    assert interval(outcomes_of(np.eye(3), np.arange(3)), "top1") == [1, 1]
