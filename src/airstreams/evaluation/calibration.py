"""How far the answer's probabilities can be trusted: calibration error, and the temperature that lowers it.

A model is calibrated if, of the videos whose answer has a probability of 80 %, 80 % are right. For data with one label
per video only.

Guo et al. 2017, On Calibration of Modern Neural Networks, define the calibration error with bins of equal width. Ours
have equally many videos. Most answers of a network are very sure, so of 15 bins of equal width most are nearly empty,
which biases the error upwards. Nixon et al. 2019, Measuring Calibration in Deep Learning, and Roelofs et al. 2022,
Mitigating Bias in Calibration Error Estimation, found less bias with equally many videos.

Legend of shape suffixes: N videos, K classes, V views, B bins, R draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax, logsumexp, softmax

from airstreams.evaluation.intervals import REPLICATES, difference_interval, draws, proportion_interval

MOST_BINS = 15  # as in Guo et al. 2017
VIDEOS_PER_BIN = 20  # at least; with fewer the error of a bin is mostly chance
LOG_TEMPERATURES = np.linspace(np.log(0.05), np.log(20), 31)


@dataclass(frozen=True)
class CalibrationBin:
    """Videos whose answers have similar probabilities.

    probability: of their answers, the mean.
    accuracy: the share of right answers.
    interval: of the accuracy, 95 %.
    """

    videos: int
    probability: float
    accuracy: float
    interval: list[float]


@dataclass(frozen=True)
class TemperatureEffect:
    """What the fitted temperature does to the calibration error of the scored videos.

    temperature: the one that training fitted.
    videos: on how many validation videos.
    before, after: the calibration error without and with it.
    change: `after - before`.
    interval: of the change, 95 %, paired over groups.
    """

    temperature: float
    videos: int
    before: float
    after: float
    change: float
    interval: list[float]


@dataclass(frozen=True)
class Calibration:
    """How well the answer's probabilities fit its accuracy.

    error: the calibration error: the mean, over the videos, of the difference between mean probability and accuracy of
        the video's bin.
    interval: of the error, 95 %.
    error_if_calibrated: the mean error that perfectly calibrated probabilities would show with so few videos.
    probability: of the answers, the mean.
    bins: from the lowest probability to the highest.
    temperature: what the answer's logits were divided by.
    fitted: None where training fitted no temperature, and for validation videos, on which it was fitted.
    """

    error: float
    interval: list[float]
    error_if_calibrated: float
    probability: float
    bins: Sequence[CalibrationBin]
    temperature: float = 1.0
    fitted: TemperatureEffect | None = None


def calibration_of(probabilities_NK: np.ndarray, targets_N: np.ndarray, groups: Sequence[str]) -> Calibration:
    """The calibration of the most probable class of each video. Equal arguments give equal results.

    groups: the group of each video, for the intervals.
    """
    binned = _Binned(probabilities_NK, targets_N)
    number_of_groups = len(set(groups))
    drawn = [binned.sums(counts_N) for counts_N in draws(groups)]
    error = binned.sums().error
    rng = np.random.default_rng(0)
    chance = [binned.sums(right_N=rng.random(len(targets_N)) < binned.probability_N).error for _ in range(REPLICATES)]
    return Calibration(
        error=error,
        interval=proportion_interval(np.array([error]), np.array([[draw.error] for draw in drawn]), number_of_groups),
        error_if_calibrated=float(np.mean(chance)),
        probability=float(binned.probability_N.mean()),
        bins=_bins(binned, drawn, groups),
    )


def effect_of_temperature(
    temperature: float, videos: int, logits_NVK: np.ndarray, targets_N: np.ndarray, groups: Sequence[str]
) -> TemperatureEffect:
    """What a temperature does to the calibration error.

    videos: on how many it was fitted.
    logits_NVK: the answer's, for each view.
    """
    both = [_Binned(mean_probabilities(logits_NVK, divisor), targets_N) for divisor in (1.0, temperature)]
    before, after = (binned.sums().error for binned in both)
    drawn_R2 = np.array([[binned.sums(counts_N).error for binned in both] for counts_N in draws(groups)])
    change_R1 = drawn_R2[:, 1:] - drawn_R2[:, :1]
    interval = difference_interval(np.array([after - before]), change_R1, len(set(groups)))
    return TemperatureEffect(temperature, videos, before, after, after - before, interval)


def mean_probabilities(logits_NVK: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """The probabilities (N, K) of videos: the mean over the views, whose logits the temperature divides."""
    probabilities_NK: np.ndarray = softmax(logits_NVK / temperature, axis=2).mean(axis=1)
    return probabilities_NK


def fit_temperature(logits_NVK: np.ndarray, targets_N: np.ndarray) -> float | None:
    """The temperature with the least log loss. It divides the logits of each view, before softmax and mean.

    For one view the log loss is convex in 1 / temperature. For the mean of several it need not be, so the search begins
    at the least value of a grid.

    Returns:
        None where the least lies at an end of the grid, 1/20 or 20: then all answers are right, or they are no better
        than chance.
    """
    # This import takes a quarter of a second, which predicting must not wait for.
    from scipy.optimize import minimize_scalar

    logits_NVK = logits_NVK.astype(np.float64)

    def loss(log_temperature: float) -> float:
        log_probability_NVK = log_softmax(logits_NVK / np.exp(log_temperature), axis=2)
        of_target_NV = np.take_along_axis(log_probability_NVK, targets_N[:, None, None], axis=2)[:, :, 0]
        return -float((logsumexp(of_target_NV, axis=1) - np.log(of_target_NV.shape[1])).mean())

    least = int(np.argmin([loss(value) for value in LOG_TEMPERATURES]))
    if least in (0, len(LOG_TEMPERATURES) - 1):
        return None
    bounds = (LOG_TEMPERATURES[least - 1], LOG_TEMPERATURES[least + 1])
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


@dataclass(frozen=True)
class _Sums:
    """Sums over the videos of each bin: their number, their answers' probabilities, and the right answers."""

    videos_B: np.ndarray
    probability_B: np.ndarray
    right_B: np.ndarray

    @property
    def error(self) -> float:
        """The calibration error."""
        return float(np.abs(self.probability_B - self.right_B).sum() / self.videos_B.sum())


class _Binned:
    """Videos in bins of equally many, by the probability of their answers. Equal probabilities share a bin."""

    def __init__(self, probabilities_NK: np.ndarray, targets_N: np.ndarray) -> None:
        N = len(targets_N)
        self.probability_N = probabilities_NK.max(axis=1).astype(np.float64)
        self.right_N = probabilities_NK.argmax(axis=1) == targets_N
        self.B = int(np.clip(N // VIDEOS_PER_BIN, 1, MOST_BINS))
        self.bin_N = np.searchsorted(np.sort(self.probability_N), self.probability_N) * self.B // N

    def sums(self, counts_N: np.ndarray | None = None, right_N: np.ndarray | None = None) -> _Sums:
        """The sums where video n counts `counts_N[n]` times, by default once. right_N: other outcomes than its own."""
        counts_N = np.ones(len(self.bin_N)) if counts_N is None else counts_N
        right_N = self.right_N if right_N is None else right_N
        weights = (counts_N, counts_N * self.probability_N, counts_N * right_N)
        return _Sums(*(np.bincount(self.bin_N, weights_N, self.B) for weights_N in weights))


def _bins(binned: _Binned, drawn: Sequence[_Sums], groups: Sequence[str]) -> list[CalibrationBin]:
    """The bins that have videos. drawn: the sums of the bootstrap draws."""
    found, sums = [], binned.sums()
    for number in np.flatnonzero(sums.videos_B):
        videos, accuracy = sums.videos_B[number], sums.right_B[number] / sums.videos_B[number]
        drawn_R1 = np.array([[draw.right_B[number] / draw.videos_B[number]] for draw in drawn if draw.videos_B[number]])
        groups_of_bin = len(set(np.asarray(groups)[binned.bin_N == number]))
        interval = proportion_interval(np.array([accuracy]), drawn_R1, groups_of_bin)
        found.append(CalibrationBin(int(videos), float(sums.probability_B[number] / videos), float(accuracy), interval))
    return found
