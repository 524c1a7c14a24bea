"""95 % intervals: how far a metric would move with other videos of the same kind and with other seeds.

Videos of one group (of one person, or cut from one film) tend to be right or wrong together. So a bootstrap resamples
whole groups, `REPLICATES` times with a fixed seed. Only its variance is used. Its percentiles would be misleading for
three reasons: a video that is drawn twice ranks beside itself, which raises the mAP; where all videos are right, they
are right in every draw; and three seeds are too few to resample.

Legend of shape suffixes: N videos, R draws, S seeds.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.special import stdtrit

from airstreams.evaluation.metrics import METRICS, Outcomes

REPLICATES = 1000

Intervals = dict[str, list[float] | None]
"""Metric to its interval, [low, high] in 0..1; None for a metric that does not apply."""


def intervals(outcomes: Outcomes, group_of_N: Sequence[str]) -> Intervals:
    """The 95 % interval of each metric. Equal arguments give equal intervals.

    group_of_N: the group of each video. The outcomes hold only videos that count: see `metrics.scored_mask`.
    """
    groups = len(set(group_of_N))
    drawn = [outcomes.metrics(counts_N) for counts_N in draws(group_of_N)]
    measured = outcomes.metrics(np.ones(len(group_of_N), dtype=np.int64))
    found: Intervals = {}
    for name in METRICS:
        value = measured[name]
        drawn_R1 = np.array([[metrics[name]] for metrics in drawn], dtype=np.float64)
        found[name] = None if value is None else proportion_interval(np.array([value]), drawn_R1, groups)
    return found


def change_interval(before: Outcomes, after: Outcomes, group_of_N: Sequence[str], metric: str) -> list[float]:
    """The 95 % interval of the change of a metric between two ways to score the same videos, drawn together."""

    def change(counts_N: np.ndarray) -> list[float | None]:
        was, now = before.metrics(counts_N)[metric], after.metrics(counts_N)[metric]
        return [None if was is None or now is None else now - was]

    drawn_R1 = np.array([change(counts_N) for counts_N in draws(group_of_N)], dtype=np.float64)
    measured = np.array(change(np.ones(len(group_of_N), dtype=np.int64)), dtype=np.float64)
    return difference_interval(measured, drawn_R1, len(set(group_of_N)))


def draws(group_of_N: Sequence[str]) -> Iterator[np.ndarray]:
    """How often each video counts (N,) in each bootstrap draw of whole groups. Always the same draws."""
    rng = np.random.default_rng(0)
    names, group_N = np.unique(group_of_N, return_inverse=True)
    for _ in range(REPLICATES):
        yield draw_groups(rng, len(names))[group_N]


def draw_groups(rng: np.random.Generator, groups: int) -> np.ndarray:
    """One bootstrap draw: how often each group comes up when as many groups are drawn with replacement."""
    return np.bincount(rng.integers(groups, size=groups), minlength=groups)


def proportion_interval(values_S: np.ndarray, drawn_RS: np.ndarray, groups: int, comparisons: int = 1) -> list[float]:
    """The 95 % interval of a metric in 0..1, averaged over seeds. It stays within 0..1.

    It is Wilson's interval for the number of independent videos that would give the estimated variance. Where the
    variance is 0, that number is the number of groups.

    Args:
        values_S: the metric of each seed.
        drawn_RS: the same for each bootstrap draw.
        groups: how many groups there are.
        comparisons: of how many intervals all are to hold together with 95 % (Bonferroni).
    """
    if groups == 1:
        return [0.0, 1.0]
    share = float(values_S.mean())
    variance, t = _spread(values_S, drawn_RS, groups, comparisons)
    videos = share * (1 - share) / variance if variance > 0 else 0.0
    a = t**2 / (videos or groups)
    # Wilson (1927): each bound is a proportion p whose own interval, of variance p (1 - p) / videos, ends at `share`.
    middle, half = share + a / 2, np.sqrt(a * share * (1 - share) + a**2 / 4)
    return [float(np.clip((middle + side * half) / (1 + a), 0, 1)) for side in (-1, 1)]


def difference_interval(values_S: np.ndarray, drawn_RS: np.ndarray, groups: int, comparisons: int = 1) -> list[float]:
    """The 95 % interval of the difference of two metrics, averaged over seeds. Arguments as in `proportion_interval`.

    Where the variance is 0, no group of videos changes the difference. Such groups may still exist, and their share is
    at most Wilson's upper bound for 0 of `groups`: this bound is then the interval's half width.
    """
    if groups == 1:
        return [-1.0, 1.0]
    variance, t = _spread(values_S, drawn_RS, groups, comparisons)
    half = t * np.sqrt(variance) if variance > 0 else t**2 / (groups + t**2)
    return [float(np.clip(values_S.mean() + side * half, -1, 1)) for side in (-1, 1)]


def _spread(values_S: np.ndarray, drawn_RS: np.ndarray, groups: int, comparisons: int) -> tuple[float, float]:
    """The variance of the mean over seeds, and the t value of its 95 % interval, wider for several comparisons.

    The variance has two parts. The part over videos comes from the bootstrap. The part over seeds is the variance among
    the seeds' values, minus what the choice of videos alone would cause among them: the first part has this already.
    Both parts are estimates, the second one from few seeds. So the bounds use Student's t, with the degrees of freedom
    of Satterthwaite (1946).
    """
    S = len(values_S)
    bias = (groups - 1) / groups  # of a bootstrap variance
    variance = over_videos = drawn_RS.mean(axis=1).var() / bias
    uncertainty = over_videos**2 / (groups - 1)
    if S > 1:
        among_seeds = values_S.var(ddof=1)
        by_videos = (drawn_RS - drawn_RS.mean(axis=1, keepdims=True)).var(axis=0).sum() / (S - 1) / bias
        variance += max(0.0, among_seeds - by_videos) / S
        uncertainty += (among_seeds / S) ** 2 / (S - 1)
    quantile = 1 - 0.025 / comparisons
    if variance < 1e-18:  # 0 but for rounding
        return 0.0, float(stdtrit(groups - 1, quantile))
    return float(variance), float(stdtrit(max(1.0, variance**2 / uncertainty), quantile))
