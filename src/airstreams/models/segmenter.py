"""The segmenter: a Dilated ResNet-18 with output stride 16, frame by frame (section 3.1, "Segmentation Stream").

It is a ResNet-18 (He et al. 2016) whose fourth stage dilates instead of striding (Yu, Koltun and Funkhouser 2017).
Stages one to three stride as in the original, which gives the paper's output stride of 16: a 7x7 grid for 112 px. A
finer grid is our addition (measured in docs/results/semantic-stream.md). There earlier stages, whose grids are finer,
add logits of their own, as in a fully convolutional network (Long, Shelhamer and Darrell 2015).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = ((64, 1, 1), (128, 2, 1), (256, 2, 1), (512, 1, 2))  # channels, stride, dilation; two residual blocks each


class DilatedResNet18(nn.Module):
    """Per-pixel class logits of single frames.

    Args:
        classes: S, with the background.
        width: scales the channels of all stages.
        stride: px from one logit to the next: 16, or 8 (stage two adds logits) or 4 (so do stages two and one).
    """

    def __init__(self, classes: int, width: float = 1.0, stride: int = 16) -> None:
        super().__init__()
        widths = [max(8, round(stage_channels * width)) for stage_channels, _, _ in STAGES]
        channels = widths[0]
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        blocks = []
        for out_channels, (_, stage_stride, dilation) in zip(widths, STAGES, strict=True):
            blocks += [
                ResidualBlock(channels, out_channels, stage_stride, dilation),
                ResidualBlock(out_channels, out_channels, 1, dilation),
            ]
            channels = out_channels
        self.stages = nn.Sequential(*blocks)
        self.classifier = nn.Conv2d(channels, classes, 1)
        self.finer_classifiers = nn.ModuleDict(
            {str(finer): nn.Conv2d(widths[stage], classes, 1) for finer, stage in ((8, 1), (4, 0)) if stride <= finer}
        )

    def forward(self, frames_N3HW: Tensor) -> Tensor:
        """Logits (N, S, ceil(H / stride), ceil(W / stride)) of frames in 0..1, centred on 0.5."""
        features = [self.stem(frames_N3HW)]
        for block in self.stages:
            features.append(block(features[-1]))
        logits: Tensor = self.classifier(features[-1])
        for finer, earlier in (("8", features[4]), ("4", features[2])):  # after stages two and one
            if finer in self.finer_classifiers:
                logits = upsample(logits, earlier.shape[-2:]) + self.finer_classifiers[finer](earlier)
        return logits


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a skip connection."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, dilation, dilation, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, 1, dilation, dilation, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.skip = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        self.activation = nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H / stride, W / stride)."""
        out: Tensor = self.activation(self.body(features) + self.skip(features))
        return out


def upsample(frames_NCHW: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Enlarge (N, C, H, W) to a height and width, bilinearly. It brings logits from their grid to the clip's size."""
    if frames_NCHW.shape[-2:] == tuple(size):
        return frames_NCHW
    if frames_NCHW.is_cuda:
        return upsample_by_matmul(frames_NCHW, size)
    return F.interpolate(frames_NCHW, size=tuple(size), mode="bilinear", align_corners=False)


def upsample_by_matmul(frames_NCHW: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """`upsample` as matrix products. On a GPU the gradient of an interpolation is slow: many pixels add to one."""
    down, across = (
        F.interpolate(torch.eye(n, device=frames_NCHW.device, dtype=frames_NCHW.dtype)[None], m, mode="linear")[0].T
        for n, m in zip(frames_NCHW.shape[-2:], size, strict=True)
    )
    wide_NhWC = torch.matmul(across, frames_NCHW.permute(0, 2, 3, 1))
    return torch.matmul(down, wide_NhWC.flatten(2)).unflatten(2, (size[1], -1)).permute(0, 3, 1, 2)
