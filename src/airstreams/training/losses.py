"""Equation 2: the weighted sum of the action losses and the teacher's loss (section 3.2)."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from airstreams.data.label_maps import NO_LABEL
from airstreams.models.airstreams import Output
from airstreams.models.segmenter import upsample
from airstreams.models.tower import on_frames


def compute_losses(
    output: Output,
    target: Tensor,
    label_map_BThw: Tensor | None,
    weights: Mapping[str, float],
    label_smoothing: float,
    clips: Tensor,
    pixels: Tensor,
) -> dict[str, Tensor]:
    """This batch's shares of a step's unweighted losses, scalars by name, of those with a weight over 0.

    The shares of all batches of an optimiser step, over processes and accumulation, add up to the step's mean losses.

    Args:
        output: of the model, with the heads that have weight.
        target: (B,) class indices, or (B, K) of 0 and 1 for multi-label data.
        label_map_BThw: the teacher's class ids, uint8, 255 ignored; None: no labels in this batch.
        weights: the lambdas by name.
        label_smoothing: of the softmax cross-entropy.
        clips: in the whole step, scalar.
        pixels: labelled ones in the whole step, scalar.
    """
    losses = {
        name: action_loss(output.logits[name], target, label_smoothing) / clips
        for name, weight in weights.items()
        if name != "interm" and weight > 0
    }
    if weights.get("interm", 0) > 0:
        logits_BSThw = output.representations["semantic"].prediction
        assert logits_BSThw is not None
        losses["interm"] = segmentation_loss(logits_BSThw, label_map_BThw) / pixels
    return losses


def total_loss(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Equation 2."""
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


def action_loss(logits_BK: Tensor, target: Tensor, label_smoothing: float) -> Tensor:
    """Softmax cross-entropy of class indices (B,), or sigmoid cross-entropy of (B, K) averaged over the K classes.

    Summed over the clips.
    """
    if target.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits_BK.float(), target, reduction="none").mean(dim=1).sum()
    return F.cross_entropy(logits_BK.float(), target, label_smoothing=label_smoothing, reduction="sum")


def segmentation_loss(logits_BSThw: Tensor, label_map_BTHW: Tensor | None) -> Tensor:
    """Equation 1: pixel-wise softmax cross-entropy, summed over the labelled pixels; zero without labels.

    The label maps, of any size, say at which places the logits are compared with them.
    """
    if label_map_BTHW is None:
        return logits_BSThw.sum() * 0
    logits_BSTHW = on_frames(lambda frames: upsample(frames, label_map_BTHW.shape[-2:]), logits_BSThw.float())
    # A row a pixel, as the logits lie in memory.
    rows_NS = logits_BSTHW.permute(0, 2, 3, 4, 1).flatten(0, 3)
    # reduction="sum" would leave the sum to a single thread block of a GPU.
    return F.cross_entropy(rows_NS, label_map_BTHW.flatten().long(), ignore_index=NO_LABEL, reduction="none").sum()
