"""When the scores of trials and runs are told apart, against closed forms and simulations."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from airstreams.data.listing import Source, Video
from airstreams.evaluation.intervals import difference_interval, draw_groups
from airstreams.experiments.noise import (
    baseline_of,
    effective_videos,
    independent_videos,
    judge_runs,
    judge_trials,
    probability_of_best,
)


def source_of(train, val, multi_label=False, groups=None):
    """A source with the labels of its training and validation videos, each a tuple."""
    classes = tuple(sorted({label for labels in [*train, *val] for label in labels}))
    videos = [
        Video(Path(f"{split}{n}"), f"{split}{n}", labels, split=split, group=groups[n] if groups else None)
        for split, rows in (("train", train), ("val", val))
        for n, labels in enumerate(rows)
    ]
    return Source("data", classes, tuple(videos), multi_label)


@pytest.mark.parametrize(
    ("best", "level", "trials", "videos", "expected"),
    [
        (1.0, 0.5, 1, 10, 1 / 1024),  # all ten right
        (0.1, 0.5, 1, 10, 1 - 1 / 1024),  # at least one right
        (1.0, 0.5, 3, 10, 1 - (1 - 1 / 1024) ** 3),
        (0.7, 0.5, 100, 40, 1 - binom.cdf(27, 40, 0.5) ** 100),
        (0.0, 0.5, 1, 10, 1.0),
    ],
)
def test_the_probability_of_the_best_trial_is_binomial(best, level, trials, videos, expected):
    assert probability_of_best(best, level, trials, videos) == pytest.approx(expected)


def test_trainings_that_spread_more_than_videos_leave_fewer_of_them():
    assert effective_videos(0.5, 40, []) == 40
    assert effective_videos(0.5, 40, [[0.5], [0.5]]) == 40  # one seed shows no spread
    assert effective_videos(0.5, 40, [[0.4, 0.6]]) == pytest.approx(0.25 / 0.02)
    assert effective_videos(0.5, 40, [[0.4, 0.6], [0.5, 0.5]]) == pytest.approx(0.25 / 0.01)
    assert effective_videos(0.5, 40, [[0.49, 0.51]]) == 40  # never more than there are


def test_several_seeds_leave_more_videos_but_never_more_than_there_are():
    fresh, spread = [[0.4, 0.6]], [0.4, 0.6]  # both have the variance 0.02
    assert effective_videos(0.5, 40, fresh, [spread]) == pytest.approx(0.25 / 0.01)  # half of it remains
    assert effective_videos(0.5, 40, fresh, [spread, [0.5, 0.5]]) == pytest.approx(0.25 / 0.015)
    assert effective_videos(0.5, 40, [], [spread]) == pytest.approx(0.25 / 0.01)  # the seeds alone show the noise
    assert effective_videos(0.5, 20, fresh, [spread]) == 20


def test_equally_good_trials_seldom_have_a_best_one():
    draws = np.random.default_rng(0).binomial(30, 0.5, size=(2000, 20)) / 30
    found = [judge_trials(list(values), [], 0.25, 30, None).distinguishable is True for values in draws]
    assert np.mean(found) < 0.05
    values = [*draws[0][:19], 29 / 30]  # one that is really better
    assert judge_trials(values, [], 0.25, 30, None).distinguishable is True


@pytest.mark.parametrize(
    ("values", "winner", "distinguishable", "reason"),
    [
        ([0.2, 0.25, 0.3], None, False, "chance"),
        ([0.2, 0.25, 0.9], None, True, None),
        ([0.2, 0.25, 0.9], 0.25, False, "chance"),  # with fresh seeds its weights are no better
        ([0.7, 0.75, 0.8], 0.7, False, "noise"),
        ([0.9], None, False, "noise"),  # nothing to compare with
        ([], None, None, None),
    ],
)
def test_a_search_says_why_it_has_no_best(values, winner, distinguishable, reason):
    verdict = judge_trials(values, [], 0.25, 40, winner)
    assert (verdict.distinguishable, verdict.reason, verdict.baseline) == (distinguishable, reason, 0.25)


def test_the_baseline_is_the_best_answer_without_a_look():
    a, b, c, d = ("a",), ("b",), ("c",), ("d",)
    frequent = source_of([a, a, b, c], [a, a, a, b])
    assert baseline_of(frequent) == 0.75  # always a
    rare = source_of([a, a, b, c], [b, b, c, c])
    assert baseline_of(rare) == pytest.approx(1 / 3)  # by chance
    several = source_of([a, b], [("a", "b"), a, a, d], multi_label=True)
    assert baseline_of(several) == pytest.approx((3 / 4 + 1 / 4 + 1 / 4) / 3)


def test_videos_of_one_group_count_once():
    videos = [("a",), ("b",), ("a",), ("b",)]
    assert independent_videos(source_of(videos, videos)) == 4
    grouped = source_of(videos, videos, groups=["g", "g", "h", "i"])
    assert independent_videos(grouped) == 3
    unlabelled = replace(grouped, videos=tuple(replace(v, labels=()) if v.group == "i" else v for v in grouped.videos))
    assert independent_videos(unlabelled) == 2


def runs_of(rates, seeds, videos=200):
    """Run to its accuracy for each seed, and to that on resampled videos, which are right independently."""
    rng = np.random.default_rng(0)
    right = {run: rng.random((videos, seeds)) < rate for run, rate in rates.items()}
    counts = np.stack([draw_groups(rng, videos) for _ in range(500)])
    values = {run: right_VS.mean(axis=0) for run, right_VS in right.items()}
    return values, {run: counts @ right_VS / videos for run, right_VS in right.items()}


@pytest.mark.parametrize(
    ("rates", "seeds", "baseline", "distinguishable", "reason"),
    [
        ({"x": 0.5, "y": 0.5, "z": 0.5}, 3, 0.25, False, "noise"),
        ({"x": 0.5, "y": 0.5, "z": 0.9}, 3, 0.25, True, None),
        ({"x": 0.5, "y": 0.5, "z": 0.9}, 1, 0.25, None, None),  # one seed gives no verdict
        ({"x": 0.5, "y": 0.5}, 1, 0.25, False, "noise"),  # more seeds would only add to the noise
        ({"x": 0.25, "y": 0.2}, 3, 0.25, False, "chance"),
        ({"x": 0.25}, 3, 0.25, False, "chance"),
        ({"x": 0.5}, 3, 0.25, None, None),  # one run
        ({"x": 0.25}, 3, None, None, None),  # the baseline is unknown
    ],
)
def test_a_table_says_why_it_has_no_best(rates, seeds, baseline, distinguishable, reason):
    values, resampled = runs_of(rates, seeds)
    verdict = judge_runs(values, resampled, groups=200, baseline=baseline)
    assert (verdict.distinguishable, verdict.reason) == (distinguishable, reason)


def test_more_comparisons_widen_an_interval():
    values, drawn = runs_of({"x": 0.5, "y": 0.6}, seeds=1)
    difference = (values["y"] - values["x"], drawn["y"] - drawn["x"])
    widths = [np.ptp(difference_interval(*difference, 200, comparisons=number)) for number in (1, 10)]
    assert widths[1] / widths[0] == pytest.approx(2.838 / 1.972, rel=1e-3)  # Student's t of 199 degrees of freedom
