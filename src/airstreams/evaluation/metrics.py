"""Figures from scores: accuracy, mean average precision, confusion, and overlap of segmentations."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from airstreams.data.label_maps import NO_LABEL
from airstreams.models.segmenter import upsample

METRICS = ("top1", "top5", "mean_per_class", "map")


class Outcomes(Protocol):
    """What scored videos have come to: their figures, with each video counted as often as one likes.

    A bootstrap counts its draws; sorting scores is done once for all of them.
    """

    @property
    def videos(self) -> int:
        """N."""

    def metrics(self, counts_N: np.ndarray) -> dict[str, float | None]:
        """`METRICS` in 0..1, None where one does not apply; `counts_N`: how often each video counts."""

    def by_class(self, counts_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each class its videos (K,), and their share that is right, or its average precision (K,); NaN of none."""


def outcomes_of(scores_NK: np.ndarray, targets: np.ndarray) -> Outcomes:
    """Of videos with one label each, targets (N,) of class indices, or of multi-label ones, (N, K) of 0 and 1."""
    return MultiLabelOutcomes(scores_NK, targets) if targets.ndim == 2 else SingleLabelOutcomes(scores_NK, targets)


def scored_mask(targets: np.ndarray) -> np.ndarray:
    """Which videos the metrics count (N,): all, but for those without any label among multi-label ones."""
    return np.asarray(targets.any(axis=1)) if targets.ndim == 2 else np.ones(len(targets), dtype=bool)


def action_metrics(scores_NK: np.ndarray, targets: np.ndarray) -> dict[str, float | None]:
    """`METRICS` in 0..1; None where a figure does not apply. docs/evaluation.md defines each.

    Args:
        scores_NK: a video's score for each class.
        targets: (N,) class indices; or (N, K) of 0 and 1 for multi-label data, for which only `map` applies.
    """
    return outcomes_of(scores_NK, targets).metrics(np.ones(len(scores_NK), dtype=np.int64))


class SingleLabelOutcomes:
    """One label a video, targets (N,): accuracies. Of equal scores the class of the lower index comes first."""

    def __init__(self, scores_NK: np.ndarray, targets_N: np.ndarray) -> None:
        self.videos, self._K = scores_NK.shape
        self._targets_N = targets_N
        scores_NK = nan_last(scores_NK)
        own_N1 = np.take_along_axis(scores_NK, targets_N[:, None], axis=1)
        ahead_NK = (scores_NK > own_N1) | ((scores_NK == own_N1) & (np.arange(self._K) < targets_N[:, None]))
        self._rank_N = ahead_NK.sum(axis=1)  # of the video's own class; 0 is the first

    def metrics(self, counts_N: np.ndarray) -> dict[str, float | None]:
        """See `Outcomes`; `mean_per_class` is over the classes that occur."""
        total = counts_N.sum()
        videos_K, share_K = self.by_class(counts_N)
        return {
            "top1": float(counts_N @ (self._rank_N == 0) / total),
            "top5": float(counts_N @ (self._rank_N < 5) / total) if self._K > 5 else None,
            "mean_per_class": float(share_K[videos_K > 0].mean()),
            "map": None,
        }

    def by_class(self, counts_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Outcomes`."""
        videos_K = np.bincount(self._targets_N, counts_N, self._K)
        right_K = np.bincount(self._targets_N, counts_N * (self._rank_N == 0), self._K)
        return videos_K, _share(right_K, videos_K)


class MultiLabelOutcomes:
    """Any number of labels a video, targets (N, K) of 0 and 1: the mean average precision.

    A class's average precision is the mean over its videos of the share of such videos among all that score at least
    as high for the class; so equal scores count together, in whatever order the videos come. The mean is over the
    classes that occur.

    unlabelled_last: rank videos without any label behind all others, which comes to leaving them out. So does the
        official script of Charades (Charades_v1_classify.m): it scores what it finds no actions of as -inf. False:
        they compete by their scores.
    """

    def __init__(self, scores_NK: np.ndarray, targets_NK: np.ndarray, unlabelled_last: bool = True) -> None:
        self.videos, self._K = scores_NK.shape
        scores_NK = nan_last(scores_NK)
        ranked = np.flatnonzero(targets_NK.any(axis=1)) if unlabelled_last else np.arange(self.videos)
        scores_KM = scores_NK[ranked].T  # M videos take part
        order_KM = np.argsort(-scores_KM, axis=1, kind="stable")
        scores_KM = np.take_along_axis(scores_KM, order_KM, axis=1)
        positive_KM = np.take_along_axis(targets_NK[ranked].T, order_KM, axis=1) > 0
        M = len(ranked)
        is_last_KM = np.ones((self._K, M), dtype=bool)
        is_last_KM[:, :-1] = scores_KM[:, 1:] != scores_KM[:, :-1]
        last_KM = np.where(is_last_KM, np.arange(M), M)
        last_KM = np.minimum.accumulate(last_KM[:, ::-1], axis=1)[:, ::-1]  # of those with the same score, its place
        # P pairs of a class and a video of it, in the order of the classes and then of the scores.
        self._class_P, place_P = np.nonzero(positive_KM)
        self._video_P = ranked[order_KM[self._class_P, place_P]]
        self._last_P = self._class_P * M + last_KM[self._class_P, place_P]
        self._pairs_before_P = np.searchsorted(self._class_P, self._class_P)  # those of earlier classes
        self._pairs_up_to_P = np.searchsorted(self._class_P * M + place_P, self._last_P, side="right")
        self._order_KM = ranked[order_KM]

    def metrics(self, counts_N: np.ndarray) -> dict[str, float | None]:
        """See `Outcomes`; `map` is None where no class occurs."""
        videos_K, precision_K = self.by_class(counts_N)
        occurs_K = videos_K > 0
        mean = float(precision_K[occurs_K].mean()) if occurs_K.any() else None
        return {"top1": None, "top5": None, "mean_per_class": None, "map": mean}

    def by_class(self, counts_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Outcomes`."""
        at_least_KM = counts_N[self._order_KM].cumsum(axis=1)
        counts_P = counts_N[self._video_P]
        summed = np.concatenate([[0], counts_P.cumsum()])
        positives_P = summed[self._pairs_up_to_P] - summed[self._pairs_before_P]
        precision_P = positives_P / np.maximum(at_least_KM.ravel()[self._last_P], 1)
        videos_K = np.bincount(self._class_P, counts_P, self._K)
        return videos_K, _share(np.bincount(self._class_P, counts_P * precision_P, self._K), videos_K)


def _share(part_K: np.ndarray, whole_K: np.ndarray) -> np.ndarray:
    return np.divide(part_K, whole_K, out=np.full(len(whole_K), np.nan), where=whole_K > 0)


def log_loss(probabilities_NK: np.ndarray, targets: np.ndarray) -> float:
    """The mean over videos of -ln of what was given to the truth; with several labels a video, over classes as well.

    Beside the accuracy it tells early that a model begins to learn its training videos by heart. Targets as for
    `outcomes_of`.
    """
    if targets.ndim == 1:
        given = np.take_along_axis(probabilities_NK, targets[:, None], axis=1)
    else:
        given = np.where(targets > 0, probabilities_NK, 1 - probabilities_NK)
    return float(-np.log(np.clip(given, np.finfo(np.float32).eps, 1)).mean())


def confusion(scores_NK: np.ndarray, targets_N: np.ndarray) -> np.ndarray:
    """Counts (K, K): true class down, predicted class across."""
    K = scores_NK.shape[1]
    predicted_N = nan_last(scores_NK).argmax(axis=1)
    return np.bincount(targets_N * K + predicted_N, minlength=K * K).reshape(K, K)


def nan_last(scores_NK: np.ndarray) -> np.ndarray:
    """The scores with what is not a number, as a model that diverged gives it, below everything else."""
    return np.where(np.isnan(scores_NK), -np.inf, scores_NK)


@dataclass
class SegmentationMetrics:
    """Counts pixels of the segmentation against label maps, and beside it of the ceiling: what the label maps keep when
    they are reduced to the segmenter's grid and enlarged again, as the best possible segmenter's output would be.

    classes: the segmenter's, background first. A human mask is scored against the class "person", where there is one.
    """

    classes: Sequence[str]
    counts: Tensor = field(init=False)  # (S, S), label map's class down, predicted class across
    ceiling: Tensor = field(init=False)  # (S, S)
    person: dict[str, Tensor] = field(init=False)  # intersection and union with the human masks, px

    def __post_init__(self) -> None:
        S = len(self.classes)
        self.counts = torch.zeros(S, S, dtype=torch.long)
        self.ceiling = torch.zeros(S, S, dtype=torch.long)
        self.person = {name: torch.zeros(2, dtype=torch.long) for name in ("segmenter", "teacher", "ceiling")}

    def add(self, logits_NShw: Tensor, labels_NHW: Tensor | None, masks_NHW: Tensor | None) -> None:
        """Count frames: logits on the segmenter's grid, label maps with 255 where there is none, masks of 0 and 1.

        Masks are scored on the frames that the teacher labelled, so that its figure stands beside the segmenter's.
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

    def __add__(self, other: "SegmentationMetrics") -> "SegmentationMetrics":
        both = SegmentationMetrics(self.classes)
        both.counts, both.ceiling = self.counts + other.counts, self.ceiling + other.ceiling
        both.person = {name: counts + other.person[name] for name, counts in self.person.items()}
        return both

    def metrics(self) -> dict[str, Any] | None:
        """Pixel accuracy, mean IoU over the label maps' classes, person IoU, the ceilings; None: nothing counted."""
        if not self.counts.sum():
            return None
        result = _overlap(self.counts)
        result["ceiling"] = _overlap(self.ceiling)
        if self.person["teacher"][1] > 0:
            ious = {name: float(counts[0] / counts[1]) for name, counts in self.person.items()}
            result["person_iou"] = ious["segmenter"]
            result["teacher_person_iou"] = ious["teacher"]
            result["ceiling"]["person_iou"] = ious["ceiling"]
        return result

    def _confusion(self, labels_NHW: Tensor, predicted_NHW: Tensor) -> Tensor:
        S = len(self.classes)
        known = labels_NHW != NO_LABEL
        pairs = labels_NHW[known] * S + predicted_NHW[known]
        return torch.bincount(pairs, minlength=S * S).view(S, S).cpu()


def reduce_to_grid(labels_NHW: Tensor, grid: tuple[int, int]) -> Tensor:
    """Label maps as the best output on a grid shows them.

    Each class's share of each cell, enlarged as logits are; the class of the largest share wins.
    """
    present = torch.unique(labels_NHW[labels_NHW != NO_LABEL]).tolist() or [0]
    # Only classes that occur, one map each: S one-hot maps of full size would be large.
    shares = [F.adaptive_avg_pool2d((labels_NHW == name).float().unsqueeze(1), grid) for name in present]
    chosen = upsample(torch.cat(shares, dim=1), labels_NHW.shape[-2:]).argmax(dim=1)
    return torch.tensor(present, device=labels_NHW.device)[chosen]


def _overlap(counts_SS: Tensor) -> dict[str, Any]:
    counts = counts_SS.double()
    hit = counts.diagonal()
    occurs = counts.sum(dim=1) > 0
    union = counts.sum(dim=0) + counts.sum(dim=1) - hit
    return {
        "pixel_accuracy": float(hit.sum() / counts.sum()),
        "miou": float((hit[occurs] / union[occurs]).mean()),
    }
