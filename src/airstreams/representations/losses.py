"""Losses on teachers' targets, for the representations to share. Each returns a sum and the count of its places."""

import torch.nn.functional as F
from torch import Tensor

from airstreams.data.label_maps import NO_LABEL
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
