"""Equation 2: the weighted sum of the action losses and the teacher's loss (section 3.2)."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from airstreams.data.labels import NO_LABEL
from airstreams.models.airstreams import Output
from airstreams.models.representations import enlarge
from airstreams.models.tower import on_frames

# The teacher's loss is taken on every fourth pixel each way. The logits lie on a grid of 16 px, so the pixels between
# say little more, and S maps of the clip's full size would be the largest tensors of the step by far.
LABEL_STRIDE = 4


def compute_losses(
    output: Output, target: Tensor, label_map_BTHW: Tensor | None, weights: Mapping[str, float], label_smoothing: float
) -> dict[str, Tensor]:
    """The unweighted losses, scalars by name, of those with a weight over 0.

    Args:
        output: of the model, with the heads that have weight.
        target: (B,) class indices, or (B, K) of 0 and 1 for multi-label data.
        label_map_BTHW: the teacher's class ids, uint8, 255 ignored; None: no labels in this batch.
        weights: the lambdas by name.
        label_smoothing: of the softmax cross-entropy.
    """
    losses = {
        name: action_loss(output.logits[name], target, label_smoothing)
        for name, weight in weights.items()
        if name != "interm" and weight > 0
    }
    if weights.get("interm", 0) > 0:
        logits_BSThw = output.representations["semantic"].shown
        assert logits_BSThw is not None
        losses["interm"] = segmentation_loss(logits_BSThw, label_map_BTHW)
    return losses


def total_loss(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Equation 2."""
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


def action_loss(logits_BK: Tensor, target: Tensor, label_smoothing: float) -> Tensor:
    """Mean softmax cross-entropy of class indices (B,), or mean sigmoid cross-entropy of (B, K)."""
    if target.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits_BK.float(), target)
    return F.cross_entropy(logits_BK.float(), target, label_smoothing=label_smoothing)


def segmentation_loss(logits_BSThw: Tensor, label_map_BTHW: Tensor | None) -> Tensor:
    """Equation 1: pixel-wise softmax cross-entropy, on every `LABEL_STRIDE`th pixel each way; zero without labels."""
    if label_map_BTHW is None:
        return logits_BSThw.sum() * 0
    offset = LABEL_STRIDE // 2
    labels_BThw = label_map_BTHW[:, :, offset::LABEL_STRIDE, offset::LABEL_STRIDE].long()
    logits = on_frames(lambda frames: enlarge(frames, labels_BThw.shape[-2:]), logits_BSThw.float())
    summed = F.cross_entropy(logits, labels_BThw, ignore_index=NO_LABEL, reduction="sum")
    return summed / (labels_BThw != NO_LABEL).sum().clamp(min=1)
