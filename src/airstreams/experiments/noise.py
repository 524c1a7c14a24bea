"""Whether scores differ by more than noise, and whether they are above what needs no look at the videos.

A search compares many trials on the same few held-out videos. Its highest score is high by luck alone: of 100 equally
good trials with an accuracy of 50 % on 40 videos, the best one scores about 70 %. So the highest score has to stand out
from the highest of as many equally good trials, before its weights are called the best. The number of right answers of
a trial is then binomial. Trials share their videos, so their scores vary less than that. Their trainings differ, so
their scores vary more. The trainings with fresh seeds measure all of it: if they spread more than the binomial does,
the number of videos is reduced until it has the same variance. A trial of several seeds has their mean as its score,
whose variance is smaller.

A table of the paper has an interval for each run and each difference. There are several of them, so each is widened
until all hold together with 95 % (Bonferroni).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from scipy.special import betainc

from airstreams.data.listing import Source, groups_of
from airstreams.evaluation.intervals import difference_interval, proportion_interval
from airstreams.evaluation.metrics import chance_metrics, constant_answer_metrics

SIGNIFICANT = 0.05  # the probability below which luck is no explanation


@dataclass(frozen=True)
class Verdict:
    """Whether some scores can be told apart.

    distinguishable: None: one seed, or one score, gives no verdict.
    reason: why not. `chance`: no score is above the baseline. `noise`: the scores lie within noise of each other.
    baseline: the metric that answers without a look at the videos reach, in 0..1; None: unknown.
    """

    distinguishable: bool | None
    reason: Literal["chance", "noise"] | None
    baseline: float | None


def baseline_of(source: Source) -> float:
    """The metric on the validation videos that needs no look at them: of chance, or of always the same answer.

    The answer is the most frequent class of the training videos. For multi-label data there is only chance.
    """
    videos = [video for video in source.split("val") if video.labels]
    if source.multi_label:
        targets_NK = np.array([[name in video.labels for name in source.classes] for video in videos], dtype=np.int64)
        return chance_metrics(len(source.classes), targets_NK).map or 0.0
    counts = Counter(label for video in source.split("train") for label in video.labels)
    frequent = max(range(len(source.classes)), key=lambda number: counts[source.classes[number]])
    targets_N = np.array([source.classes.index(video.labels[0]) for video in videos])
    chance, constant = chance_metrics(len(source.classes), targets_N), constant_answer_metrics(frequent, targets_N)
    return max(chance.top1 or 0.0, constant.top1 or 0.0)


def independent_videos(source: Source) -> int:
    """How many validation videos count as independent: one of each group."""
    group_of = groups_of([video for video in source.split("val") if video.labels])
    return len(set(group_of.values()))


def judge_trials(
    values: Sequence[float],
    fresh: Sequence[Sequence[float]],
    baseline: float,
    videos: int,
    winner: float | None,
    by_seed: Sequence[Sequence[float]] = (),
) -> Verdict:
    """Whether the highest trial of a search stands out.

    Args:
        values: the scores of the trials.
        fresh: for each weighting, its scores with fresh seeds.
        baseline: see `baseline_of`.
        videos: how many independent videos a score is over.
        winner: the mean score of the highest trial's weights with fresh seeds; None: not known yet.
        by_seed: for each trial, its scores by seed, whose mean is the trial's score; empty: a trial has one seed.
    """
    if not values:
        return Verdict(None, None, baseline)
    mean = float(np.mean(values))
    effective = effective_videos(mean, videos, fresh, by_seed)
    best = max(values)
    by_luck = probability_of_best(best, baseline, len(values), effective)
    if by_luck > SIGNIFICANT or (winner is not None and winner <= baseline):
        return Verdict(False, "chance", baseline)
    if probability_of_best(best, mean, len(values), effective) > SIGNIFICANT:
        return Verdict(False, "noise", baseline)
    return Verdict(True, None, baseline)


def probability_of_best(best: float, level: float, trials: int, videos: float) -> float:
    """The probability that the best of some trials scores `best` or more, if each answer is right by `level`.

    The scores are independent, and binomial over `videos`, which need not be a whole number.
    """
    if best <= 0:
        return 1.0
    right = best * videos
    one = float(betainc(right, max(videos - right, 0.0) + 1, level))  # P(X >= right) of a binomial X
    return 1.0 - (1.0 - one) ** trials


def effective_videos(
    level: float, videos: int, fresh: Sequence[Sequence[float]], by_seed: Sequence[Sequence[float]] = ()
) -> float:
    """The number of independent videos whose binomial variance at `level` is the variance of a trial's score.

    It is at most `videos`, and at least 1. Without two seeds of one weighting it is `videos`.

    The trainings with fresh seeds have the variance of one training. The score of a trial with k seeds is a mean on the
    same held-out videos. So the part of the variance that its seeds show is divided by k, and the rest remains.

    Args:
        level: the mean score.
        videos: how many independent videos a score is over.
        fresh: for each weighting, its scores with fresh seeds.
        by_seed: for each trial, its scores by seed; empty: a trial has one seed.
    """
    of_seeds, seeds = _pooled_variance(by_seed), len(by_seed[0]) if by_seed else 1
    variance = max(_pooled_variance(fresh) - of_seeds * (1 - 1 / seeds), of_seeds / seeds)
    if not variance:
        return float(videos)
    return float(np.clip(level * (1 - level) / variance, 1, videos))


def _pooled_variance(samples: Sequence[Sequence[float]]) -> float:
    """The variance within samples that may have different means; 0 if none has two values."""
    squares = sum(float(np.sum((np.array(values) - np.mean(values)) ** 2)) for values in samples if len(values))
    freedom = sum(max(0, len(values) - 1) for values in samples)
    return squares / freedom if freedom else 0.0


def judge_runs(
    values: dict[str, np.ndarray], resampled: dict[str, np.ndarray], groups: int, baseline: float | None
) -> Verdict:
    """Whether the runs of a table can be told apart.

    Args:
        values: run to its metric for each seed (S,).
        resampled: run to its metric on resampled groups of videos (R, S).
        groups: how many groups there are.
        baseline: the metric without a look at the videos; None: unknown.
    """
    runs = list(values)
    lowest = [proportion_interval(values[run], resampled[run], groups, comparisons=len(runs))[0] for run in runs]
    if baseline is not None and max(lowest) <= baseline:
        return Verdict(False, "chance", baseline)
    pairs = list(combinations(runs, 2))
    intervals = [
        difference_interval(
            values[one] - values[other], resampled[one] - resampled[other], groups, comparisons=len(pairs)
        )
        for one, other in pairs
    ]
    if pairs and all(low <= 0 <= high for low, high in intervals):
        return Verdict(False, "noise", baseline)
    seeds = len(values[runs[0]])
    return Verdict(True if pairs and seeds > 1 else None, None, baseline)
