"""Figures from scores: accuracy, mean average precision, confusion, and overlap of segmentations."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_confusion_matrix,
    multilabel_average_precision,
)

from airstreams.data.labels import NO_LABEL
from airstreams.models.representations import enlarge


def action_figures(scores_NK: np.ndarray, targets: np.ndarray) -> dict[str, float | None]:
    """`top1`, `top5`, `mean_per_class`, `map` in 0..1; None where a figure does not apply.

    Args:
        scores_NK: a video's score for each class.
        targets: (N,) class indices; or (N, K) of 0 and 1 for multi-label data, for which only `map` applies: the mean
            over the classes that occur of the average precision of video-level scores.
    """
    if targets.ndim == 2:
        precisions = multilabel_average_precision(
            torch.from_numpy(scores_NK), torch.from_numpy(targets).long(), scores_NK.shape[1], average=None
        )
        occurs = torch.from_numpy(targets.any(axis=0))
        return {"top1": None, "top5": None, "mean_per_class": None, "map": float(precisions[occurs].mean())}
    counts_KK = confusion(scores_NK, targets)
    occurs_K = counts_KK.sum(axis=1) > 0
    per_class = counts_KK.diagonal()[occurs_K] / counts_KK.sum(axis=1)[occurs_K]
    return {
        "top1": float(counts_KK.trace() / counts_KK.sum()),
        "top5": _top(scores_NK, targets, 5) if scores_NK.shape[1] > 5 else None,
        "mean_per_class": float(per_class.mean()),
        "map": None,
    }


def confusion(scores_NK: np.ndarray, targets_N: np.ndarray) -> np.ndarray:
    """Counts (K, K): true class down, predicted class across."""
    K = scores_NK.shape[1]
    counts = multiclass_confusion_matrix(torch.from_numpy(scores_NK.argmax(axis=1)), torch.from_numpy(targets_N), K)
    return counts.numpy()


def _top(scores_NK: np.ndarray, targets_N: np.ndarray, k: int) -> float:
    best_Nk = np.argsort(-scores_NK, axis=1, kind="stable")[:, :k]
    return float((best_Nk == targets_N[:, None]).any(axis=1).mean())


@dataclass
class SegmentationFigures:
    """Counts pixels of the segmentation against label maps, and beside it of the ceiling: what the label maps keep when
    they are reduced to the segmenter's grid and enlarged again, as the best possible segmenter's output would be.

    classes: the teacher's, background first. A human mask is scored against the class "person", where there is one.
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
        predicted_NHW = enlarge(logits_NShw[labelled].float(), size).argmax(dim=1)
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

    def __add__(self, other: "SegmentationFigures") -> "SegmentationFigures":
        both = SegmentationFigures(self.classes)
        both.counts, both.ceiling = self.counts + other.counts, self.ceiling + other.ceiling
        both.person = {name: counts + other.person[name] for name, counts in self.person.items()}
        return both

    def figures(self) -> dict[str, Any] | None:
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
    chosen = enlarge(torch.cat(shares, dim=1), labels_NHW.shape[-2:]).argmax(dim=1)
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
