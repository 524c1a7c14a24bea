"""Workarounds for convolutions whose gradients are wrong in bfloat16 on CPUs.

torch 2.13 (oneDNN 3.12) computes the gradient of the weights from memory that nobody wrote in two cases. The result is
NaN or, worse, wrong numbers. float32 is right.

- A `Conv3d` pads time by itself and sees two frames. If the zeros are part of its input, it sees more.
- A `Conv2d` strides over features of one pixel. There a stride has no effect, so it can be left out.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def needs_padded_time(features_BCTHW: Tensor) -> bool:
    """Whether a convolution of these features must not pad time by itself."""
    return features_BCTHW.shape[2] == 2 and _is_affected(features_BCTHW)


def needs_no_stride(features_BCTHW: Tensor) -> bool:
    """Whether a convolution of these frames must not stride."""
    return features_BCTHW.shape[-2:] == (1, 1) and _is_affected(features_BCTHW)


def _is_affected(features: Tensor) -> bool:
    return features.device.type == "cpu" and torch.is_autocast_enabled("cpu")


class PaddingConv3d(nn.Conv3d):
    """A 3D convolution that pads two frames first, where it has to."""

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C', T', H', W'), as `nn.Conv3d`."""
        frames, height, width = cast(tuple[int, int, int], self.padding)
        if not (frames and needs_padded_time(features_BCTHW)):
            return super().forward(features_BCTHW)
        padded = F.pad(features_BCTHW, (0, 0, 0, 0, frames, frames))
        return F.conv3d(padded, self.weight, self.bias, self.stride, (0, height, width), self.dilation, self.groups)
