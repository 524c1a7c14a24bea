"""How often 95 % intervals contain the truth, and how often equally good runs differ significantly.

    python benchmarks/intervals.py

Reference: 95 % and 5 %. The test sets are simulated, so that the truth is known: the videos of a group tend to be right
or wrong together, and the seeds of a run have different true accuracies.
"""

from itertools import product
from statistics import NormalDist

import numpy as np

from airstreams.evaluation.intervals import difference_interval, intervals
from airstreams.evaluation.metrics import outcomes_of

NORMAL = NormalDist()
CLASSES = 6
ALIKE = 0.6  # the part of a video's difficulty that it shares with its group, or between seeds


def right_videos(rng: np.random.Generator, accuracy: float, videos: int, group_size: int) -> np.ndarray:
    """Whether each video is right (N,); the videos of a group tend to be right together."""
    share = ALIKE if group_size > 1 else 0.0
    group = np.repeat(rng.normal(size=-(-videos // group_size)), group_size)[:videos]
    hard = np.sqrt(share) * group + np.sqrt(1 - share) * rng.normal(size=videos)
    return hard < NORMAL.inv_cdf(accuracy)


def coverage(accuracy: float, videos: int, group_size: int, sets: int = 300) -> float:
    """The share of test sets whose interval of top-1 contains the true accuracy."""
    rng = np.random.default_rng(0)
    groups = [str(number // group_size) for number in range(videos)]
    held = 0
    for _ in range(sets):
        targets = rng.integers(CLASSES, size=videos)
        right = right_videos(rng, accuracy, videos, group_size)
        scores = np.eye(CLASSES)[np.where(right, targets, (targets + 1) % CLASSES)]
        low, high = intervals(outcomes_of(scores, targets), groups)["top1"] or (0, 0)
        held += low <= accuracy <= high
    return held / sets


def significant_share(videos: int, seed_deviation: float, seeds: int, pairs: int = 400, draws: int = 200) -> float:
    """The share of pairs of runs, both with a true accuracy of 30 %, whose difference is significant.

    seed_deviation: the standard deviation of a seed's true accuracy.
    """
    rng = np.random.default_rng(0)
    bound = NORMAL.inv_cdf(0.3)
    different = 0
    for _ in range(pairs):
        luck = rng.normal(size=(2, seeds, 1)) * seed_deviation / NORMAL.pdf(bound)
        hard = np.sqrt(ALIKE) * rng.normal(size=videos) + np.sqrt(1 - ALIKE) * rng.normal(size=(2, seeds, videos))
        right = hard + luck < bound
        difference_SN = right[0].astype(np.float64) - right[1]
        drawn_RS = np.stack([difference_SN[:, rng.integers(videos, size=videos)].mean(axis=1) for _ in range(draws)])
        low, high = difference_interval(difference_SN.mean(axis=1), drawn_RS, videos)
        different += not low <= 0 <= high
    return different / pairs


if __name__ == "__main__":
    print("top-1 intervals that contain the truth (aim: 95 %)")
    for accuracy, videos, group_size in ((0.95, 30, 1), (0.97, 100, 1), (0.3, 300, 1), (0.3, 268, 2), (0.3, 270, 10)):
        held = coverage(accuracy, videos, group_size)
        print(f"{accuracy:.0%} right of {videos} videos in groups of {group_size}: {held:.1%}")
    print("equally good runs that differ significantly (aim: 5 %)")
    for videos, deviation, seeds in product((268, 1530, 5433), (0.0, 0.01, 0.025, 0.035), (1, 2, 3, 5)):
        share = significant_share(videos, deviation, seeds)
        print(f"{videos} videos, seeds {deviation:.1%} apart, {seeds} of them: {share:.1%}", flush=True)
