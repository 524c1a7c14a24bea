"""One optimiser step: the passes over its batches, the skip where numbers are not finite, the update.

Nothing here makes the host wait for the device.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from airstreams.config import Config
from airstreams.data.dataset import Batch, has_label
from airstreams.data.targets import TargetKind
from airstreams.data.transforms import augment
from airstreams.machine import autocast
from airstreams.models.airstreams import AIRStreams
from airstreams.training.learner import Learner
from airstreams.training.losses import PassInputs, compute_losses, total_loss


def training_step(
    learner: Learner, accelerator: Accelerator, batches: Sequence[Batch], config: Config
) -> dict[str, Tensor]:
    """Take one optimiser step on the batches that it accumulates.

    If a loss or a gradient is not finite, the step is skipped on the device: weights, optimiser and batch statistics
    stay as they were, and the host need not know.

    Returns:
        Scalars on the device by name: `losses/NAME`, `gradient_norms/PART`, `clips`, and `good` (0: a skipped step).
    """
    batches = [to_device(batch, accelerator.device) for batch in batches]
    clips, labelled, counts = _count_in_step(batches, accelerator, learner.model, config.taught)
    statistics = [buffer for buffer in learner.model.buffers() if buffer.is_floating_point()]
    statistics_before = torch.cat([buffer.flatten() for buffer in statistics])

    losses = _accumulate(learner, accelerator, batches, config, labelled, counts)
    step_losses = accelerator.reduce(torch.stack(list(losses.values())), "sum")
    norms = gradient_norms(learner.model)
    norm = torch.linalg.vector_norm(torch.stack(list(norms.values())))
    good = step_losses.isfinite().all() & norm.isfinite() & (clips > 0)
    if config.training.clip_norm:
        clip_grads_with_norm_(learner.model.parameters(), config.training.clip_norm, norm)

    # Fused optimisers skip a step if this is set. It is meant for gradient scalers.
    learner.optimizer.found_inf = (~good).to(torch.float32)  # type: ignore[attr-defined]
    learner.optimizer.step()
    learner.optimizer.zero_grad()
    _restore_unless(good, statistics, statistics_before)
    learner.schedule.step()

    values = {f"losses/{name}": loss for name, loss in zip(losses, step_losses, strict=True)}
    values |= {f"gradient_norms/{name}": value for name, value in norms.items()}
    return values | {"gradient_norms/all": norm, "clips": clips, "good": good}


def forward_and_backward(
    learner: Learner, accelerator: Accelerator, config: Config, inputs: PassInputs
) -> dict[str, Tensor]:
    """Compute this batch's shares of the step's losses, their weighted sum `total`, and the gradients."""
    weights = config.active_loss_weights()
    with autocast(accelerator.device, learner.precision):
        output = learner.prepared(inputs.clip_B3THW, config.trained_heads())
    smoothing, representations = config.training.label_smoothing, learner.model.representations
    losses = compute_losses(output, inputs, weights, smoothing, representations)  # type: ignore[arg-type]
    losses["total"] = total_loss(losses, weights)
    # Processes average their gradients, but a step's losses are sums of their shares.
    accelerator.backward(losses["total"] * (inputs.weight * accelerator.num_processes))
    return {name: loss.detach() * inputs.weight for name, loss in losses.items()}


def gradient_norms(model: AIRStreams) -> dict[str, Tensor]:
    """The gradient norm of each part that has a gradient, by the names of `AIRStreams.parts`."""
    gradients = {
        name: [parameter.grad for parameter in part.parameters() if parameter.grad is not None]
        for name, part in model.parts().items()
    }
    return {name: get_total_norm(tensors) for name, tensors in gradients.items() if tensors}


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch's tensors to a device."""
    tensors: dict[str, Any] = {name: item for name, item in batch._asdict().items() if isinstance(item, Tensor)}
    teachers = {stream: target.to(device, non_blocking=True) for stream, target in batch.teachers.items()}
    moved = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
    return batch._replace(**moved, teachers=teachers)


def _accumulate(
    learner: Learner,
    accelerator: Accelerator,
    batches: Sequence[Batch],
    config: Config,
    labelled: Tensor,
    counts: dict[str, Tensor],
) -> dict[str, Tensor]:
    """Run every batch forward and backward; returns the sums of their losses in this process."""
    one_pass = partial(forward_and_backward, learner, accelerator, config)
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(batches, 1):
        clip_B3THW = augment(
            batch.frames_BTHW3, batch.box_B4, batch.inside_B2, batch.flip_B, batch.colour_B3, size=config.clip.size
        )
        # A black clip stands in for a batch without a readable clip. It gets no weight.
        weight = torch.full_like(labelled, 1.0 if batch.names else 0.0)
        inputs = PassInputs(clip_B3THW, batch.target, batch.teachers, weight, labelled, counts)
        with accelerator.no_sync(learner.prepared) if number < len(batches) else nullcontext():
            run = one_pass if learner.captured_pass is None else partial(learner.captured_pass, one_pass)
            losses = run(inputs)
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + loss
    return sums


def _count_in_step(
    batches: Sequence[Batch], accelerator: Accelerator, model: AIRStreams, taught: Sequence[str]
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Count over accumulated batches and processes what a step's losses are averaged over.

    Returns:
        The step's clips, those with a label, and by stream the places for which its teacher has a value. Of the last
        two each is at least 1.
    """
    # Filled on the device: a copy from the host would wait for it.
    clips = torch.full((), float(sum(len(batch.names) for batch in batches)), device=accelerator.device)
    labelled = torch.zeros_like(clips)
    for batch in batches:
        if batch.names:
            labelled = labelled + has_label(batch.target).sum()
    counts = {stream: torch.zeros_like(clips) for stream in taught}
    for batch in batches:
        for stream, target in batch.teachers.items():
            kind: TargetKind = model.representations[stream].target  # type: ignore[assignment]
            counts[stream] = counts[stream] + kind.count(target)
    clips, labelled, *summed = accelerator.reduce(torch.stack((clips, labelled, *counts.values())), "sum")
    counts = {stream: count.clamp(min=1) for stream, count in zip(counts, summed, strict=True)}
    return clips, labelled.clamp(min=1), counts


def _restore_unless(good: Tensor, statistics: list[Tensor], before: Tensor) -> None:
    """Set batch statistics back to `before` if the step was not good, without asking the device whether it was."""
    after = torch.where(good, torch.cat([buffer.flatten() for buffer in statistics]), before)
    parts = after.split([buffer.numel() for buffer in statistics])
    torch._foreach_copy_(statistics, [part.view_as(buffer) for part, buffer in zip(parts, statistics, strict=True)])
