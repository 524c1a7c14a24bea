"""Equation 2: the weighted sum of the action losses and the teacher's loss (section 3.2)."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from airstreams.data.label_maps import NO_LABEL
from airstreams.models.airstreams import Output
from airstreams.models.segmenter import upsample
from airstreams.models.tower import on_frames


class PassInputs(NamedTuple):
    """What one pass through the model reads.

    clip_B3THW: float32 in 0..1.
    target: (B,) class indices, or (B, K) of 0 and 1 for multi-label data.
    label_map_BThw: the teacher's class ids, uint8, 255 is ignored; None: no label maps in this batch.
    weight: scalar, the weight of the batch: 1, or 0 for a black clip that stands in for unreadable videos.
    clips: scalar, clips of the whole optimiser step.
    pixels: scalar, labelled pixels of the whole optimiser step, at least 1.
    """

    clip_B3THW: Tensor
    target: Tensor
    label_map_BThw: Tensor | None
    weight: Tensor
    clips: Tensor
    pixels: Tensor


def compute_losses(
    output: Output, inputs: PassInputs, weights: Mapping[str, float], label_smoothing: float
) -> dict[str, Tensor]:
    """This batch's shares of a step's losses, unweighted scalars by name, for the losses with a weight over 0.

    A step's losses are means over its clips, or over its labelled pixels. The shares of all its batches, over processes
    and accumulation, add up to these means.

    Args:
        output: the model's output, with the logits of every head that has a weight.
        inputs: the targets, and the counts to divide by.
        weights: loss name to weight (the lambdas of equation 2).
        label_smoothing: for the softmax cross-entropy.
    """
    losses = {
        name: action_loss(output.logits[name], inputs.target, label_smoothing) / inputs.clips
        for name, weight in weights.items()
        if name != "interm" and weight > 0
    }
    if weights.get("interm", 0) > 0:
        logits_BSThw = output.representations["semantic"].prediction
        assert logits_BSThw is not None
        losses["interm"] = segmentation_loss(logits_BSThw, inputs.label_map_BThw) / inputs.pixels
    return losses


def total_loss(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The weighted sum of equation 2."""
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


def action_loss(logits_BK: Tensor, target: Tensor, label_smoothing: float) -> Tensor:
    """Softmax cross-entropy for class indices (B,), or sigmoid cross-entropy for (B, K), averaged over the K classes.

    Returns the sum over the clips.
    """
    if target.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits_BK.float(), target, reduction="none").mean(dim=1).sum()
    return F.cross_entropy(logits_BK.float(), target, label_smoothing=label_smoothing, reduction="sum")


def segmentation_loss(logits_BSThw: Tensor, label_map_BTHW: Tensor | None) -> Tensor:
    """Equation 1: pixel-wise softmax cross-entropy, summed over the labelled pixels; zero without label maps.

    The logits are resized to the grid of the label maps, which may have any size.
    """
    if label_map_BTHW is None:
        return logits_BSThw.sum() * 0
    logits_BSTHW = on_frames(lambda frames: upsample(frames, label_map_BTHW.shape[-2:]), logits_BSThw.float())
    # One row per pixel: that is how the logits lie in memory.
    rows_NS = logits_BSTHW.permute(0, 2, 3, 4, 1).flatten(0, 3)
    # reduction="sum" would give the whole sum to one thread block of a GPU.
    return F.cross_entropy(rows_NS, label_map_BTHW.flatten().long(), ignore_index=NO_LABEL, reduction="none").sum()
