"""How far a figure would move with other videos of the same kind and with other seeds: 95 % intervals.

Videos of one group (cut from one film, of one person) are right or wrong together, so a bootstrap draws whole groups.
The draws tell variances alone. Plain percentiles of them will not do: drawn twice, a video stands beside itself in the
ranking of mAP, which raises it; where all videos are right, they are so in every draw; and of three seeds there are
few draws.

Legend of shape suffixes: N videos, R draws, S seeds.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from airstreams.evaluation.metrics import Outcomes

REPLICATES = 1000


def intervals(outcomes: Outcomes, group_of_N: Sequence[str]) -> dict[str, list[float] | None]:
    """Each figure's 95 % interval, [low, high] in 0..1; the same ones every time. None for what does not apply.

    group_of_N: each video's. They are to be those that count: see `metrics.scored_mask`.
    """
    rng = np.random.default_rng(0)
    names, group_N = np.unique(group_of_N, return_inverse=True)
    groups = len(names)
    drawn = [outcomes.metrics(draw_groups(rng, groups)[group_N]) for _ in range(REPLICATES)]
    found: dict[str, list[float] | None] = {}
    for name, figure in outcomes.metrics(np.ones(len(group_N), dtype=np.int64)).items():
        drawn_R1 = np.array([[values[name]] for values in drawn], dtype=np.float64)
        found[name] = None if figure is None else proportion_interval(np.array([figure]), drawn_R1, groups)
    return found


def draw_groups(rng: np.random.Generator, groups: int) -> np.ndarray:
    """How often each of so many groups counts when as many are drawn with replacement."""
    return np.bincount(rng.integers(groups, size=groups), minlength=groups)


def proportion_interval(values_S: np.ndarray, drawn_RS: np.ndarray, groups: int) -> list[float]:
    """The 95 % interval of the mean over seeds of a figure in 0..1, which it never leaves.

    It is Wilson's for as many independent videos as would vary as much; where nothing varies, for as many as there are
    groups.

    Args:
        values_S: each seed's figure.
        drawn_RS: the same over drawn groups of videos.
        groups: how many there are to be drawn from.
    """
    if groups == 1:
        return [0.0, 1.0]
    share = float(values_S.mean())
    variance, t = _spread(values_S, drawn_RS, groups)
    videos = share * (1 - share) / variance if variance > 0 else 0.0
    a = t**2 / (videos or groups)
    # The shares whose own interval, of a variance in proportion to share (1 - share), just reaches this one.
    middle, half = share + a / 2, np.sqrt(a * share * (1 - share) + a**2 / 4)
    return [float(np.clip((middle + side * half) / (1 + a), 0, 1)) for side in (-1, 1)]


def difference_interval(values_S: np.ndarray, drawn_RS: np.ndarray, groups: int) -> list[float]:
    """The 95 % interval of the mean over seeds of a difference of two figures. Arguments as of `proportion_interval`.

    Where nothing varies, the videos that would change it are a share that no group is of: it may be Wilson's.
    """
    if groups == 1:
        return [-1.0, 1.0]
    variance, t = _spread(values_S, drawn_RS, groups)
    half = t * np.sqrt(variance) if variance > 0 else t**2 / (groups + t**2)
    return [float(np.clip(values_S.mean() + side * half, -1, 1)) for side in (-1, 1)]


def _spread(values_S: np.ndarray, drawn_RS: np.ndarray, groups: int) -> tuple[float, float]:
    """The variance of a mean over seeds, and by how many standard deviations the bounds of 95 % lie to either side.

    It is that of other videos, by the draws, and that of other seeds: what the seeds' figures differ by, less what
    they would differ by for each erring on other videos, which is in the first part already. Both are estimates, the
    second one of few seeds, so the bounds are Student's, with degrees of freedom by Satterthwaite (1946).
    """
    S = len(values_S)
    too_little = (groups - 1) / groups  # what is drawn from so few varies
    variance = of_videos = drawn_RS.mean(axis=1).var() / too_little
    uncertain = of_videos**2 / (groups - 1)
    if S > 1:
        among_seeds = values_S.var(ddof=1)
        erring = (drawn_RS - drawn_RS.mean(axis=1, keepdims=True)).var(axis=0).sum() / (S - 1) / too_little
        variance += max(0.0, among_seeds - erring) / S
        uncertain += (among_seeds / S) ** 2 / (S - 1)
    if variance < 1e-18:  # rounding's, where nothing varies
        return 0.0, float(stdtrit(groups - 1, 0.975))
    return float(variance), float(stdtrit(max(1.0, variance**2 / uncertain), 0.975))
