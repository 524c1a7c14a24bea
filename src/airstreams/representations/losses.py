"""Losses on teachers' targets, for the representations to share. Each returns a sum and the count of its places.

Targets of values are NaN where there is none. Such places take no part.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from airstreams.data.label_maps import NO_LABEL
from airstreams.data.targets import has_value, point_weights
from airstreams.models.segmenter import upsample
from airstreams.models.tower import on_frames


def class_loss(logits_BSThw: Tensor, label_map_BTHW: Tensor) -> tuple[Tensor, Tensor]:
    """Equation 1: pixel-wise softmax cross-entropy, summed over the labelled pixels, and the number of these pixels.

    The logits are resized to the grid of the label maps, which may have any size.
    """
    logits_BSTHW = on_frames(lambda frames: upsample(frames, label_map_BTHW.shape[-2:]), logits_BSThw.float())
    # One row per pixel: that is how the logits lie in memory.
    rows_NS = logits_BSTHW.permute(0, 2, 3, 4, 1).flatten(0, 3)
    # reduction="sum" would give the whole sum to one thread block of a GPU.
    losses_N = F.cross_entropy(rows_NS, label_map_BTHW.flatten().long(), ignore_index=NO_LABEL, reduction="none")
    return losses_N.sum(), (label_map_BTHW != NO_LABEL).sum()


def absolute_loss(prediction_BCX: Tensor, target_BCX: Tensor) -> tuple[Tensor, Tensor]:
    """The absolute difference (L1), averaged over the C channels and summed over the places with a value.

    Predictions (B, C, T, h, w) are resized to the grid of targets (B, C, T, H, W). Vectors (B, C) are one place each.
    """
    return _over_places(prediction_BCX, target_BCX, lambda given, wanted: (given - wanted).abs().mean(dim=1))


def squared_loss(prediction_BCX: Tensor, target_BCX: Tensor) -> tuple[Tensor, Tensor]:
    """The squared difference (L2), averaged over the C channels and summed over places, as `absolute_loss`."""
    return _over_places(prediction_BCX, target_BCX, lambda given, wanted: (given - wanted).square().mean(dim=1))


def cosine_loss(prediction_BCX: Tensor, target_BCX: Tensor) -> tuple[Tensor, Tensor]:
    """1 minus the cosine between the vectors of C channels, summed over the places with a value, as `absolute_loss`."""
    return _over_places(prediction_BCX, target_BCX, lambda given, wanted: 1 - F.cosine_similarity(given, wanted, dim=1))


def scale_invariant_loss(prediction_B1Thw: Tensor, target_B1THW: Tensor) -> tuple[Tensor, Tensor]:
    """The squared error of depth that is left after the best scale and shift of each frame.

    Teachers know depth only up to a scale and a shift. So each frame's prediction is aligned with its target by least
    squares over the pixels with a value (Ranftl et al., "Towards Robust Monocular Depth Estimation", TPAMI 2022,
    equations 3 and 4). The error is divided by the target's variance in the frame, because its scale has no meaning.
    The loss of a frame is then 1 - r^2, with the correlation r of prediction and target: 0 to 1 for each pixel.
    """
    prediction = _on_grid_of(prediction_B1Thw, target_B1THW)[:, 0].flatten(2)  # (B, T, pixels)
    known = has_value(target_B1THW).flatten(2)
    target = torch.where(known, target_B1THW[:, 0].flatten(2), 0.0).to(prediction.dtype)
    count_BT1 = known.sum(dim=2, keepdim=True)

    def centred(values: Tensor) -> Tensor:
        masked = torch.where(known, values, 0.0)
        return torch.where(known, masked - masked.sum(dim=2, keepdim=True) / count_BT1.clamp(min=1), 0.0)

    given, wanted = centred(prediction), centred(target)
    tiny = torch.finfo(given.dtype).tiny ** 0.5
    scale = (given * wanted).sum(dim=2, keepdim=True) / (given.square().sum(dim=2, keepdim=True) + tiny)
    variance = wanted.square().sum(dim=2, keepdim=True)
    error = (scale * given - wanted).square().sum(dim=2, keepdim=True)
    flat = variance <= tiny  # a target without any depth has nothing to teach
    losses = torch.where(flat, 0.0, count_BT1 * error / torch.where(flat, 1.0, variance))
    return losses.sum(), known.sum()


def heat_map_loss(logits_BPThw: Tensor, points_BTMP3: Tensor, spread: float = 0.04) -> tuple[Tensor, Tensor]:
    """How far the heat map of each point is from Gaussians at its places, weighted by its visibility.

    The softmax of a point's logits over a frame is its heat map. It is compared with Gaussians at the places of this
    point of all people, weighted by how visible they are, by the Kullback-Leibler divergence.

    Args:
        logits_BPThw: of P points, on any grid.
        points_BTMP3: x and y in 0..1 of the clip and the visibility in 0..1, of up to M people.
        spread: the standard deviation of the Gaussians, as a fraction of the clip's side. On a coarse grid it is at
            least half of a cell.

    Returns:
        The sum, weighted by visibility, and the sum of these weights.
    """
    logits = _at_least_float32(logits_BPThw).transpose(1, 2).flatten(3)  # (B, T, P, cells)
    points = points_BTMP3.to(logits.dtype)
    heat = heat_of_points(points, logits_BPThw.shape[-2:], spread).flatten(3)
    heat = heat / heat.sum(dim=3, keepdim=True).clamp(min=torch.finfo(heat.dtype).tiny)
    divergence = (torch.xlogy(heat, heat) - heat * logits.log_softmax(dim=3)).sum(dim=3)
    return (point_weights(points) * divergence).sum(), point_weights(points_BTMP3).sum()


def heat_of_points(points_BTMP3: Tensor, size: tuple[int, int] | torch.Size, spread: float) -> Tensor:
    """Heat maps (B, T, P, h, w) of points: Gaussians, weighted by visibility and added over people.

    Args: as for `heat_map_loss`; size: h and w.
    """
    h, w = size
    bells = [
        torch.exp(-((cell + 0.5) / cells - points_BTMP3[..., axis, None]).square() / (2 * width**2))
        for axis, cells in ((1, h), (0, w))
        for width in [max(spread, 0.5 / cells)]
        for cell in [torch.arange(cells, device=points_BTMP3.device, dtype=points_BTMP3.dtype)]
    ]
    return torch.einsum("btmp,btmpy,btmpx->btpyx", points_BTMP3[..., 2], *bells)


def _over_places(prediction: Tensor, target: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The sum of a loss (B, ...) of predictions and targets (B, C, ...) over the places with a value."""
    prediction = _on_grid_of(prediction, target)
    known = has_value(target)
    # A NaN that is multiplied by 0 would still be a NaN, in the gradient too.
    losses = loss(prediction, torch.where(known.unsqueeze(1), target, 0.0).to(prediction.dtype))
    return torch.where(known, losses, 0.0).sum(), known.sum()


def _on_grid_of(prediction: Tensor, target: Tensor) -> Tensor:
    """Predictions (B, C, T, h, w) on the grid of targets; vectors (B, C) as they are."""
    prediction = _at_least_float32(prediction)
    if prediction.ndim == 2 or prediction.shape[-2:] == target.shape[-2:]:
        return prediction
    return on_frames(lambda frames: upsample(frames, target.shape[-2:]), prediction)


def _at_least_float32(prediction: Tensor) -> Tensor:
    return prediction if prediction.dtype == torch.float64 else prediction.float()
