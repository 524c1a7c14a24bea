"""The segmenter: a Dilated ResNet-18 of output stride 16, frame by frame (section 3.1, "Segmentation Stream").

A ResNet-18 (He et al. 2016) whose fourth stage dilates instead of striding (Yu, Koltun and Funkhouser 2017), so that
112 px give a 7x7 grid. Stages one to three stride as in the original: that is the output stride of 16 that the paper
asks for.
"""

from torch import Tensor, nn

STAGES = ((64, 1, 1), (128, 2, 1), (256, 2, 1), (512, 1, 2))  # channels, stride, dilation; two residual blocks each


class DilatedResNet18(nn.Module):
    """Per-pixel class logits of single frames.

    Args:
        classes: S, background included.
        width: scales the channels of every stage.
    """

    def __init__(self, classes: int, width: float = 1.0) -> None:
        super().__init__()
        channels = max(8, round(STAGES[0][0] * width))
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        blocks = []
        for stage_channels, stride, dilation in STAGES:
            out_channels = max(8, round(stage_channels * width))
            blocks += [
                ResidualBlock(channels, out_channels, stride, dilation),
                ResidualBlock(out_channels, out_channels, 1, dilation),
            ]
            channels = out_channels
        self.stages = nn.Sequential(*blocks)
        self.classifier = nn.Conv2d(channels, classes, 1)

    def forward(self, frames_N3HW: Tensor) -> Tensor:
        """Logits (N, S, ceil(H / 16), ceil(W / 16)) of frames in 0..1, centred on 0.5."""
        logits: Tensor = self.classifier(self.stages(self.stem(frames_N3HW)))
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
