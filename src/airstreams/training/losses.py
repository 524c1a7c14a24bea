"""Equation 2: the weighted sum of the action losses and the losses on teachers' targets (section 3.2)."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from airstreams.config import stream_of
from airstreams.data.dataset import NO_CLASS, has_label
from airstreams.models.airstreams import Output
from airstreams.representations import Supervised


class PassInputs(NamedTuple):
    """What one pass through the model reads.

    clip_B3THW: float32 in 0..1.
    target: (B,) class indices, or (B, K) of 0 and 1 for multi-label data, with `NO_CLASS` for unlabelled clips.
    teachers: the teachers' targets (B, ...) by stream, without the streams that have none in this batch.
    weight: scalar, the weight of the batch: 1, or 0 for a black clip that stands in for unreadable videos.
    clips: scalar, the labelled clips of the whole optimiser step, at least 1.
    counts: by stream, a scalar: the places of the whole optimiser step for which its teacher has a value, at least 1.
    """

    clip_B3THW: Tensor
    target: Tensor
    teachers: dict[str, Tensor]
    weight: Tensor
    clips: Tensor
    counts: dict[str, Tensor]

    def map(self, function: Callable[[Tensor], Tensor]) -> "PassInputs":
        """A function of each tensor."""
        return PassInputs(
            function(self.clip_B3THW),
            function(self.target),
            {stream: function(target) for stream, target in self.teachers.items()},
            function(self.weight),
            function(self.clips),
            {stream: function(count) for stream, count in self.counts.items()},
        )

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        named = {name: value for name, value in self._asdict().items() if isinstance(value, Tensor)}
        named |= {f"teachers.{stream}": target for stream, target in self.teachers.items()}
        return named | {f"counts.{stream}": count for stream, count in self.counts.items()}


def compute_losses(
    output: Output,
    inputs: PassInputs,
    weights: Mapping[str, float],
    label_smoothing: float,
    representations: Mapping[str, nn.Module],
) -> dict[str, Tensor]:
    """This batch's shares of a step's losses, unweighted scalars by name, for the losses with a weight over 0.

    A step's losses are means over its labelled clips, or over the places for which a teacher has a value. The shares of
    all its batches, over processes and accumulation, add up to these means.

    Args:
        output: the model's output, with the logits of every head that has a weight.
        inputs: the targets, and the counts to divide by.
        weights: loss name to weight (the lambdas of equation 2).
        label_smoothing: for the softmax cross-entropy.
        representations: the modules that have the losses on teachers' targets, by stream.
    """
    losses = {}
    for name in (name for name, weight in weights.items() if weight > 0):
        stream = stream_of(name)
        if stream is None:
            losses[name] = action_loss(output.logits[name], inputs.target, label_smoothing) / inputs.clips
            continue
        prediction, representation = output.representations[stream].prediction, representations[stream]
        assert prediction is not None
        assert isinstance(representation, Supervised)
        if stream in inputs.teachers:
            total, _ = representation.loss(prediction, inputs.teachers[stream])
        else:
            total = prediction.sum() * 0
        losses[name] = total / inputs.counts[stream]
    return losses


def total_loss(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The weighted sum of equation 2."""
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


def action_loss(logits_BK: Tensor, target: Tensor, label_smoothing: float) -> Tensor:
    """Softmax cross-entropy for class indices (B,), or sigmoid cross-entropy for (B, K), averaged over the K classes.

    Returns the sum over the labelled clips.
    """
    if target.ndim == 2:
        loss_B = F.binary_cross_entropy_with_logits(logits_BK.float(), target, reduction="none").mean(dim=1)
        return torch.where(has_label(target), loss_B, 0.0).sum()
    # The softmax cross-entropy ignores `NO_CLASS` by itself.
    return F.cross_entropy(
        logits_BK.float(), target, label_smoothing=label_smoothing, ignore_index=NO_CLASS, reduction="sum"
    )
