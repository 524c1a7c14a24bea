"""Metrics from scores: accuracy, mean average precision, confusion counts, and overlap of segmentations.

Legend of shape suffixes: N videos or frames, K action classes, M videos in a ranking, P pairs of a class and one of its
videos, S segmentation classes, H, W pixels, h, w the segmenter's grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from airstreams.data.label_maps import NO_LABEL
from airstreams.models.segmenter import upsample


@dataclass(frozen=True)
class ActionMetrics:
    """The metrics of one head in 0..1; None for what does not apply. docs/evaluation.md defines each.

    `metrics["top1"]` is `metrics.top1`, for code that gets the metric's name at run time.
    """

    top1: float | None = None
    top5: float | None = None
    mean_per_class: float | None = None
    map: float | None = None

    def __getitem__(self, name: str) -> float | None:
        value: float | None = getattr(self, name)
        return value


METRICS = tuple(metric.name for metric in fields(ActionMetrics))


class Outcomes(Protocol):
    """Scored videos with their true classes, ready for metrics in which each video has a weight of its own.

    A bootstrap asks for metrics many times, with other weights each time; the scores are sorted only once.
    """

    @property
    def videos(self) -> int:
        """N."""

    def metrics(self, counts_N: np.ndarray) -> ActionMetrics:
        """The metrics where video n counts `counts_N[n]` times."""

    def by_class(self, counts_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The videos of each class (K,), and its accuracy or average precision (K,), NaN for a class without videos."""


def outcomes_of(scores_NK: np.ndarray, targets: np.ndarray) -> Outcomes:
    """Outcomes of scores and targets: (N,) class indices, or (N, K) of 0 and 1 for multi-label data."""
    return MultiLabelOutcomes(scores_NK, targets) if targets.ndim == 2 else SingleLabelOutcomes(scores_NK, targets)


def scored_mask(targets: np.ndarray) -> np.ndarray:
    """The videos that count in the metrics (N,): all of them, except multi-label videos without any label."""
    return np.asarray(targets.any(axis=1)) if targets.ndim == 2 else np.ones(len(targets), dtype=bool)


def action_metrics(scores_NK: np.ndarray, targets: np.ndarray) -> ActionMetrics:
    """The metrics of videos that count once each.

    Args:
        scores_NK: each video's score for each class.
        targets: (N,) class indices; or (N, K) of 0 and 1 for multi-label data, where only `map` applies.
    """
    return outcomes_of(scores_NK, targets).metrics(np.ones(len(scores_NK), dtype=np.int64))


def chance_metrics(classes: int, targets: np.ndarray) -> ActionMetrics:
    """The metrics that a model reaches on average with scores that do not depend on the video.

    For one label per video, the scores are random: each of the K classes is as likely as any other to be first. For
    multi-label data, all scores are equal, and `map` is the mean share of the videos that show a class.

    classes: K, those of the model.
    targets: as for `outcomes_of`.
    """
    if targets.ndim == 2:
        return action_metrics(np.zeros(targets.shape), targets)
    return ActionMetrics(top1=1 / classes, top5=5 / classes if classes > 5 else None, mean_per_class=1 / classes)


def constant_answer_metrics(answer: int, targets_N: np.ndarray) -> ActionMetrics:
    """The metrics of always answering the class `answer`, on videos with one label each. There is no top-5."""
    right = float((targets_N == answer).mean())
    return ActionMetrics(top1=right, mean_per_class=1 / len(np.unique(targets_N)) if right else 0.0)


class SingleLabelOutcomes:
    """Accuracies of videos with one label each, targets (N,). Of equal scores the class with the lower index wins."""

    def __init__(self, scores_NK: np.ndarray, targets_N: np.ndarray) -> None:
        self.videos, self._K = scores_NK.shape
        self._targets_N = targets_N
        scores_NK = nan_last(scores_NK)
        own_N1 = np.take_along_axis(scores_NK, targets_N[:, None], axis=1)
        ahead_NK = (scores_NK > own_N1) | ((scores_NK == own_N1) & (np.arange(self._K) < targets_N[:, None]))
        self._rank_N = ahead_NK.sum(axis=1)  # rank of the true class; 0 is the best

    def metrics(self, counts_N: np.ndarray) -> ActionMetrics:
        """See `Outcomes`; `mean_per_class` is over the classes that occur."""
        total = counts_N.sum()
        videos_K, accuracy_K = self.by_class(counts_N)
        return ActionMetrics(
            top1=float(counts_N @ (self._rank_N == 0) / total),
            top5=float(counts_N @ (self._rank_N < 5) / total) if self._K > 5 else None,
            mean_per_class=float(accuracy_K[videos_K > 0].mean()),
        )

    def by_class(self, counts_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Outcomes`."""
        videos_K = np.bincount(self._targets_N, counts_N, self._K)
        correct_K = np.bincount(self._targets_N, counts_N * (self._rank_N == 0), self._K)
        return videos_K, _ratio(correct_K, videos_K)


class MultiLabelOutcomes:
    """Mean average precision of videos with any number of labels, targets (N, K) of 0 and 1.

    The precision at a video is the share of the class's videos among all videos that score at least as high for the
    class. Videos with equal scores therefore count together, and their order does not matter. A class's average
    precision is the mean precision at its videos; `map` is the mean over the classes that occur.

    unlabelled_last: rank videos without any label behind all others, which amounts to leaving them out. The official
        script of Charades (Charades_v1_classify.m) does so too: it gives them a score of -inf. False: rank them by
        their scores.
    """

    def __init__(self, scores_NK: np.ndarray, targets_NK: np.ndarray, unlabelled_last: bool = True) -> None:
        self.videos, self._K = scores_NK.shape
        scores_NK = nan_last(scores_NK)
        ranked = np.flatnonzero(targets_NK.any(axis=1)) if unlabelled_last else np.arange(self.videos)
        scores_KM = scores_NK[ranked].T
        order_KM = np.argsort(-scores_KM, axis=1, kind="stable")
        scores_KM = np.take_along_axis(scores_KM, order_KM, axis=1)
        positive_KM = np.take_along_axis(targets_NK[ranked].T, order_KM, axis=1) > 0
        M = len(ranked)
        is_last_KM = np.ones((self._K, M), dtype=bool)
        is_last_KM[:, :-1] = scores_KM[:, 1:] != scores_KM[:, :-1]
        last_KM = np.where(is_last_KM, np.arange(M), M)
        last_KM = np.minimum.accumulate(last_KM[:, ::-1], axis=1)[:, ::-1]  # the last rank with the same score
        # The pairs are ordered by class, then by falling score.
        self._class_P, rank_P = np.nonzero(positive_KM)
        self._video_P = ranked[order_KM[self._class_P, rank_P]]
        self._last_P = self._class_P * M + last_KM[self._class_P, rank_P]
        self._pairs_before_P = np.searchsorted(self._class_P, self._class_P)  # pairs of earlier classes
        self._pairs_up_to_P = np.searchsorted(self._class_P * M + rank_P, self._last_P, side="right")
        self._order_KM = ranked[order_KM]

    def metrics(self, counts_N: np.ndarray) -> ActionMetrics:
        """See `Outcomes`; `map` is None where no class occurs."""
        videos_K, precision_K = self.by_class(counts_N)
        occurs_K = videos_K > 0
        mean = float(precision_K[occurs_K].mean()) if occurs_K.any() else None
        return ActionMetrics(map=mean)

    def by_class(self, counts_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Outcomes`."""
        at_least_KM = counts_N[self._order_KM].cumsum(axis=1)
        counts_P = counts_N[self._video_P]
        summed = np.concatenate([[0], counts_P.cumsum()])
        positives_P = summed[self._pairs_up_to_P] - summed[self._pairs_before_P]
        precision_P = positives_P / np.maximum(at_least_KM.ravel()[self._last_P], 1)
        videos_K = np.bincount(self._class_P, counts_P, self._K)
        return videos_K, _ratio(np.bincount(self._class_P, counts_P * precision_P, self._K), videos_K)


def _ratio(part_K: np.ndarray, whole_K: np.ndarray) -> np.ndarray:
    return np.divide(part_K, whole_K, out=np.full(len(whole_K), np.nan), where=whole_K > 0)


def log_loss(probabilities_NK: np.ndarray, targets: np.ndarray) -> float:
    """The mean over videos of -ln(probability of the true class); for multi-label data over videos and classes.

    It rises early when a model overfits, often before the accuracy falls. Targets as for `outcomes_of`.
    """
    if targets.ndim == 1:
        given = np.take_along_axis(probabilities_NK, targets[:, None], axis=1)
    else:
        given = np.where(targets > 0, probabilities_NK, 1 - probabilities_NK)
    return float(-np.log(np.clip(given, np.finfo(np.float32).eps, 1)).mean())


def confusion(scores_NK: np.ndarray, targets_N: np.ndarray) -> np.ndarray:
    """Counts (K, K): a row per true class, a column per predicted class."""
    K = scores_NK.shape[1]
    predicted_N = nan_last(scores_NK).argmax(axis=1)
    return np.bincount(targets_N * K + predicted_N, minlength=K * K).reshape(K, K)


def nan_last(scores_NK: np.ndarray) -> np.ndarray:
    """The scores with NaN, which a diverged model gives, below all other values."""
    return np.where(np.isnan(scores_NK), -np.inf, scores_NK)


@dataclass(frozen=True)
class Overlap:
    """How well class ids match label maps, in 0..1.

    miou: mean intersection over union of the classes that the label maps have.
    person_iou: that of the class "person" with masks drawn by people; None without such masks.
    """

    pixel_accuracy: float
    miou: float
    person_iou: float | None = None


@dataclass(frozen=True)
class SegmentationMetrics:
    """A segmenter's overlap with the teacher's label maps; fields as in `Overlap`.

    ceiling: that of the label maps themselves, reduced to the segmenter's grid and enlarged again. No segmenter with
        this grid can do much better.
    teacher_person_iou: that of the teacher's class "person" with masks drawn by people.
    """

    pixel_accuracy: float
    miou: float
    ceiling: Overlap
    person_iou: float | None = None
    teacher_person_iou: float | None = None


@dataclass(frozen=True)
class TargetMetrics:
    """How well a stream predicts its teacher's targets.

    loss: the mean of the stream's own loss over all places of the scored views that have a target; None where it is not
        finite.
    segmentation: for label maps; None for other kinds of targets.
    """

    loss: float | None
    segmentation: SegmentationMetrics | None = None


@dataclass
class SegmentationCounts:
    """Adds up pixels for `SegmentationMetrics`.

    classes: the segmenter's, background first. Masks are scored against the class "person", where there is one.
    """

    classes: Sequence[str]
    counts: Tensor = field(init=False)  # (S, S), a row per class of the label maps, a column per predicted class
    ceiling: Tensor = field(init=False)  # (S, S)
    person: dict[str, Tensor] = field(init=False)  # intersection and union with the masks, px

    def __post_init__(self) -> None:
        S = len(self.classes)
        self.counts = torch.zeros(S, S, dtype=torch.long)
        self.ceiling = torch.zeros(S, S, dtype=torch.long)
        self.person = {name: torch.zeros(2, dtype=torch.long) for name in ("segmenter", "teacher", "ceiling")}

    def add(self, logits_NShw: Tensor, labels_NHW: Tensor | None, masks_NHW: Tensor | None) -> None:
        """Count frames: logits on the segmenter's grid, label maps with 255 for *no label*, masks of 0 and 1.

        Masks are scored only on frames that the teacher labelled, so that segmenter and teacher can be compared.
        """
        if labels_NHW is None:
            return
        labelled = (labels_NHW != NO_LABEL).flatten(1).any(dim=1)
        if not labelled.any():
            return
        labels_NHW = labels_NHW[labelled].long()
        size, (h, w) = labels_NHW.shape[-2:], logits_NShw.shape[-2:]
        predicted_NHW = upsample(logits_NShw[labelled].float(), size).argmax(dim=1)
        reduced_NHW = reduce_to_grid(labels_NHW, (h, w))
        self.counts += self._confusion(labels_NHW, predicted_NHW)
        self.ceiling += self._confusion(labels_NHW, reduced_NHW)
        if masks_NHW is not None and "person" in self.classes:
            person = self.classes.index("person")
            mask = masks_NHW[labelled].bool()
            mask_grid = reduce_to_grid(mask.long(), (h, w)).bool()
            for name, found in (
                ("segmenter", predicted_NHW == person),
                ("teacher", labels_NHW == person),
                ("ceiling", mask_grid),
            ):
                self.person[name] += torch.stack([(mask & found).sum(), (mask | found).sum()]).cpu()

    def __add__(self, other: "SegmentationCounts") -> "SegmentationCounts":
        both = SegmentationCounts(self.classes)
        both.counts, both.ceiling = self.counts + other.counts, self.ceiling + other.ceiling
        both.person = {name: counts + other.person[name] for name, counts in self.person.items()}
        return both

    def metrics(self) -> SegmentationMetrics | None:
        """The metrics of all frames counted; None where no pixel was."""
        if not self.counts.sum():
            return None
        ious = dict[str, float]()
        if self.person["teacher"][1] > 0:
            ious = {name: float(counts[0] / counts[1]) for name, counts in self.person.items()}
        found = _overlap(self.counts)
        return SegmentationMetrics(
            pixel_accuracy=found.pixel_accuracy,
            miou=found.miou,
            ceiling=replace(_overlap(self.ceiling), person_iou=ious.get("ceiling")),
            person_iou=ious.get("segmenter"),
            teacher_person_iou=ious.get("teacher"),
        )

    def _confusion(self, labels_NHW: Tensor, predicted_NHW: Tensor) -> Tensor:
        S = len(self.classes)
        known = labels_NHW != NO_LABEL
        pairs = labels_NHW[known] * S + predicted_NHW[known]
        return torch.bincount(pairs, minlength=S * S).view(S, S).cpu()


def reduce_to_grid(labels_NHW: Tensor, grid: tuple[int, int]) -> Tensor:
    """Label maps as the best possible segmenter with this grid would give them.

    Each class's share of each cell is enlarged as logits are; the class of the largest share wins.
    """
    present = torch.unique(labels_NHW[labels_NHW != NO_LABEL]).tolist() or [0]
    # One map per class that occurs: S one-hot maps of full size would take much memory.
    shares = [F.adaptive_avg_pool2d((labels_NHW == name).float().unsqueeze(1), grid) for name in present]
    chosen = upsample(torch.cat(shares, dim=1), labels_NHW.shape[-2:]).argmax(dim=1)
    return torch.tensor(present, device=labels_NHW.device)[chosen]


def _overlap(counts_SS: Tensor) -> Overlap:
    counts = counts_SS.double()
    hit = counts.diagonal()
    occurs = counts.sum(dim=1) > 0
    union = counts.sum(dim=0) + counts.sum(dim=1) - hit
    return Overlap(
        pixel_accuracy=float(hit.sum() / counts.sum()),
        miou=float((hit[occurs] / union[occurs]).mean()),
    )
