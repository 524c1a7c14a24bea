"""I3D: Inception-v1 with its filters inflated to 3D (Carreira and Zisserman 2017, Figure 3).

Its units keep the names of the published weights. Six blocks group them, so that a merge level means the same as in
the default tower. A merge after block 3, the paper's choice, sees features of 1/8 of the height and width and 1/2 of
the frames in both. Blocks 1 to 3 end at the units up to there, and blocks 4 to 6 are the rest:

| block | units | channels | frames, height and width divided by |
| --- | --- | --- | --- |
| 1 | Conv3d_1a_7x7 | 64 | 2, 2 |
| 2 | Conv3d_2b_1x1, Conv3d_2c_3x3 | 192 | 2, 4 |
| 3 | Mixed_3b, Mixed_3c | 480 | 2, 8 |
| 4 | Mixed_4b, Mixed_4c, Mixed_4d | 512 | 4, 16 |
| 5 | Mixed_4e, Mixed_4f | 832 | 4, 16 |
| 6 | Mixed_5b, Mixed_5c | 1024 | 8, 32 |
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from airstreams.models.cpu_bfloat16 import needs_padded_time
from airstreams.models.tower import Backbone, InputNorm

Size = tuple[int, int, int]

MIXED: dict[str, tuple[int, int, int, int, int, int]] = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
"""Channels of each mixed unit: branch 0; branch 1, both convolutions; branch 2, both; branch 3."""


class I3D(Backbone):
    """The I3D family of towers."""

    channels = (64, 192, 480, 512, 832, 1024)

    def input_norm(self, in_channels: int, is_rgb: bool) -> nn.Module:
        """RGB in 0..1 becomes -1..1, as the published weights expect. Anything else is normalised per channel."""
        return SignedRange() if is_rgb else InputNorm(in_channels)

    def block(self, number: int, in_channels: int) -> list[nn.Module]:
        """One block, 1 to 6, as one module whose units have the published names."""
        units: list[tuple[str, nn.Module]]
        if number == 1:
            units = [("Conv3d_1a_7x7", Unit(in_channels, 64, (7, 7, 7), (2, 2, 2)))]
        elif number == 2:
            units = [
                ("MaxPool3d_2a_3x3", SamePool((1, 3, 3), (1, 2, 2))),
                ("Conv3d_2b_1x1", Unit(in_channels, 64, (1, 1, 1))),
                ("Conv3d_2c_3x3", Unit(64, 192, (3, 3, 3))),
            ]
        elif number == 3:
            units = [("MaxPool3d_3a_3x3", SamePool((1, 3, 3), (1, 2, 2))), *_mixed(("3b", "3c"), in_channels)]
        elif number == 4:
            units = [("MaxPool3d_4a_3x3", SamePool((3, 3, 3), (2, 2, 2))), *_mixed(("4b", "4c", "4d"), in_channels)]
        elif number == 5:
            units = _mixed(("4e", "4f"), in_channels)
        else:
            units = [("MaxPool3d_5a_2x2", SamePool((2, 2, 2), (2, 2, 2))), *_mixed(("5b", "5c"), in_channels)]
        return [nn.Sequential(OrderedDict(units))]

    def merge_norm(self, channels: int) -> nn.Module:
        """No normalisation: one would change what the published weights compute."""
        return nn.Identity()


class SignedRange(nn.Module):
    """From 0..1 to -1..1."""

    def forward(self, clip_B3THW: Tensor) -> Tensor:
        """(B, 3, T, H, W) to the same."""
        return clip_B3THW * 2 - 1


class Unit(nn.Module):
    """A 3D convolution, batch normalisation and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Size, stride: Size = (1, 1, 1)) -> None:
        super().__init__()
        self.conv = SameConv(in_channels, out_channels, kernel, stride, bias=False)
        # The published weights need this epsilon (Sonnet's). The statistics follow new videos at torch's usual pace:
        # with Sonnet's 0.001 they would still be those of Kinetics after the few hundred steps of a fine-tuning.
        self.bn = nn.BatchNorm3d(out_channels, eps=1e-3)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C', T', H', W'), each size divided by the stride, rounded up."""
        return F.relu(self.bn(self.conv(features_BCTHW)), inplace=True)


class SameConv(nn.Conv3d):
    """A 3D convolution with TensorFlow's padding "SAME"."""

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C', T', H', W'), each size divided by the stride, rounded up."""
        if self._has_slow_input_gradient(features_BCTHW):
            return cast(Tensor, FirstConv.apply(features_BCTHW, self.weight))
        padded, padding = _padded(features_BCTHW, self.kernel_size, self.stride)
        return F.conv3d(padded, self.weight, self.bias, self.stride, padding)

    def _has_slow_input_gradient(self, features_BCTHW: Tensor) -> bool:
        """Whether this is the first layer of a learnt representation on a CPU, of even sizes."""
        is_first = self.kernel_size == (7, 7, 7) and self.stride == (2, 2, 2)
        even = all(size % 2 == 0 for size in features_BCTHW.shape[2:])
        return is_first and even and features_BCTHW.requires_grad and features_BCTHW.device.type == "cpu"


class FirstConv(torch.autograd.Function):
    """A 7x7x7 convolution of stride 2 whose input gradient is fast for few channels.

    oneDNN pads few input channels to 16 and takes as long for the input's gradient as for half of I3D's training step.
    Each of the 8 phases (even and odd frames, rows, columns) of that gradient is a stride-1 convolution of the output's
    gradient with every second tap of the kernel. Here one convolution computes all phases as channels. With 2 channels
    it took 0.12 s instead of 0.41 s (8 clips of 16 frames of 112 px, two cores, bfloat16).
    """

    @staticmethod
    def forward(ctx: Any, clip_BCTHW: Tensor, weight: Tensor) -> Tensor:
        """Clips (B, C, T, H, W) of even sizes to features (B, C', T / 2, H / 2, W / 2)."""
        ctx.dtypes = (clip_BCTHW.dtype, weight.dtype)
        if torch.is_autocast_enabled("cpu"):  # autocast does not look into this function
            dtype = torch.get_autocast_dtype("cpu")
            clip_BCTHW, weight = clip_BCTHW.to(dtype), weight.to(dtype)
        padded_BCTHW = F.pad(clip_BCTHW, (2, 3) * 3)
        ctx.save_for_backward(padded_BCTHW, weight)
        return F.conv3d(padded_BCTHW, weight, stride=2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None]:
        """The gradients of the clips and of the weight."""
        (gradient_BCTHW,) = gradients
        padded_BCTHW, weight = ctx.saved_tensors
        of_clip, of_weight = ctx.dtypes
        C = weight.shape[1]
        # Taps by pair and phase, in each direction. An eighth tap of 0 completes the last pair.
        taps = F.pad(weight, (0, 1) * 3).reshape(-1, C, 4, 2, 4, 2, 4, 2)
        kernel = taps.flip((2, 4, 6)).permute(1, 3, 5, 7, 0, 2, 4, 6).reshape(8 * C, -1, 4, 4, 4)
        kernel = kernel.contiguous(memory_format=torch.channels_last_3d)
        phases = F.conv3d(F.pad(gradient_BCTHW, (2, 1) * 3), kernel).unflatten(1, (C, 2, 2, 2))
        clip_BCTHW = phases.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        if not ctx.needs_input_grad[1]:
            return clip_BCTHW.to(of_clip), None
        _, weight_gradient, _ = torch.ops.aten.convolution_backward(
            gradient_BCTHW, padded_BCTHW, weight, None, (2, 2, 2), (0, 0, 0), (1, 1, 1), False, (0, 0, 0), 1,
            (False, True, False),
        )  # fmt: skip
        return clip_BCTHW.to(of_clip), weight_gradient.to(of_weight)


class SamePool(nn.Module):
    """Maximum over a window, with TensorFlow's padding "SAME"."""

    def __init__(self, kernel: Size, stride: Size) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W), nothing below 0, to (B, C, T', H', W'), each size divided by the stride, rounded up."""
        padded, padding = _padded(features_BCTHW, self.kernel, self.stride)
        return F.max_pool3d(padded, self.kernel, self.stride, padding)


class Mixed(nn.Module):
    """An inception unit: four branches, whose channels are joined."""

    def __init__(self, in_channels: int, channels: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        point, cube = (1, 1, 1), (3, 3, 3)

        def branch(**layers: nn.Module) -> nn.Sequential:
            return nn.Sequential(OrderedDict(layers))

        a, b1, b2, c1, c2, d = channels
        self.Branch_0 = branch(Conv3d_0a_1x1=Unit(in_channels, a, point))
        self.Branch_1 = branch(Conv3d_0a_1x1=Unit(in_channels, b1, point), Conv3d_0b_3x3=Unit(b1, b2, cube))
        self.Branch_2 = branch(Conv3d_0a_1x1=Unit(in_channels, c1, point), Conv3d_0b_3x3=Unit(c1, c2, cube))
        self.Branch_3 = branch(MaxPool3d_0a_3x3=SamePool(cube, (1, 1, 1)), Conv3d_0b_1x1=Unit(in_channels, d, point))

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C', T, H, W)."""
        branches = (self.Branch_0, self.Branch_1, self.Branch_2, self.Branch_3)
        return torch.cat([branch(features_BCTHW) for branch in branches], dim=1)


def _mixed(names: Sequence[str], in_channels: int) -> list[tuple[str, nn.Module]]:
    units: list[tuple[str, nn.Module]] = []
    for name in (f"Mixed_{name}" for name in names):
        channels = MIXED[name]
        units.append((name, Mixed(in_channels, channels)))
        a, _, b, _, c, d = channels
        in_channels = a + b + c + d
    return units


def _padded(features_BCTHW: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> tuple[Tensor, list[int]]:
    """TensorFlow's padding "SAME": the features, padded where they must be, and the padding that is left to do.

    The output has ceil(size / stride) values. An odd number of zeros puts the last one at the end. Zeros do not change
    a maximum of what a ReLU gave.
    """
    sizes = features_BCTHW.shape[2:]
    total = [
        max((-(-size // step) - 1) * step + width - size, 0)
        for size, width, step in zip(sizes, kernel, stride, strict=True)
    ]
    if all(zeros % 2 == 0 for zeros in total) and not (total[0] and needs_padded_time(features_BCTHW)):
        return features_BCTHW, [zeros // 2 for zeros in total]
    ends = [end for zeros in reversed(total) for end in (zeros // 2, zeros - zeros // 2)]
    return F.pad(features_BCTHW, ends), [0, 0, 0]
