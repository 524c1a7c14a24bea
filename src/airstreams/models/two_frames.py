"""A workaround: in bfloat16 on CPUs, 3D convolutions that pad two frames have wrong gradients.

torch 2.13 (oneDNN 3.12) computes the gradient of the weights of a `Conv3d` from memory that nobody wrote, if the input
has two frames and the convolution pads time. The result is NaN or, worse, wrong numbers. Any other number of frames is
right, and so are float32 and 2D convolutions. If the zeros are part of the input, it has more than two frames.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def needs_padded_time(features_BCTHW: Tensor) -> bool:
    """Whether a convolution of these features must not pad time by itself."""
    two_frames = features_BCTHW.shape[2] == 2 and features_BCTHW.device.type == "cpu"
    return two_frames and torch.is_autocast_enabled("cpu")


class PaddingConv3d(nn.Conv3d):
    """A 3D convolution that pads two frames first, where it has to."""

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C', T', H', W'), as `nn.Conv3d`."""
        frames, height, width = cast(tuple[int, int, int], self.padding)
        if not (frames and needs_padded_time(features_BCTHW)):
            return super().forward(features_BCTHW)
        padded = F.pad(features_BCTHW, (0, 0, 0, 0, frames, frames))
        return F.conv3d(padded, self.weight, self.bias, self.stride, (0, height, width), self.dilation, self.groups)
