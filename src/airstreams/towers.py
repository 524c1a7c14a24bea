"""Towers as data: what a block consists of, and the towers that `model.backbone` knows by name.

models/tower.py builds the layers. docs/backbones.md helps to choose a tower, and compares these with published ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from airstreams.errors import require

LayerKind = Literal[
    "conv2d",
    "conv1d",
    "conv2d+1d",
    "pool2d",
    "pool1d",
    "context_gating",
    "squeeze_excite",
]


@dataclass
class Layer:
    """One layer of a block (Figure 7).

    Kinds with 2d act on each frame, those with 1d along time. `conv2d+1d` is a 2D convolution and then a 1D one. Batch
    normalisation follows each convolution, and ReLU each but the last. The two gates scale channels by weights that
    they compute from the channels' means over the clip.
    """

    kind: LayerKind
    kernel: int = 3
    """size of the window: px for 2d, frames for 1d"""
    stride: int = 1
    """px for 2d, frames for 1d. Only the first repetition of a block strides, and only it has the poolings"""
    channels: int | None = None
    """output channels of a convolution, before `model.width`; null: the block's"""
    ratio: float = 0.25
    """squeezed channels of squeeze_excite, as a fraction of all (Hu et al. 2018: 1/16 on far wider layers)"""

    def __post_init__(self) -> None:
        require(1 <= self.kernel <= 255, "kernel", self.kernel, "1 to 255")
        require(1 <= self.stride <= 255, "stride", self.stride, "1 to 255")
        require(self.channels is None or self.channels >= 1, "channels", self.channels, "at least 1, or null")
        require(0 < self.ratio <= 1, "ratio", self.ratio, "over 0 and at most 1")


@dataclass
class Block:
    """A block of a tower: layers in order, repeated, with a skip connection over each repetition."""

    channels: int
    """output channels of the last convolution, before `model.width`"""
    layers: list[Layer]
    """the layers in order"""
    repeats: int = 1
    """how often all the layers are repeated"""
    skip: bool = True
    """a skip connection; where the size changes, it averages, and where the channels change, a 1x1 convolution fits"""

    def __post_init__(self) -> None:
        require(self.channels >= 1, "channels", self.channels, "at least 1")
        require(self.repeats >= 1, "repeats", self.repeats, "at least 1")
        convolutions = [layer for layer in self.layers if "conv" in layer.kind]
        require(bool(convolutions), "layers", [layer.kind for layer in self.layers], "at least one convolution")
        last = convolutions[-1]
        require(last.channels is None, "channels", last.channels, "null in a block's last convolution")


def default_tower() -> list[Block]:
    """A tower with about the capacity of a ResNet-18 (section 3.5), of Figure 7's layer kinds in sizes of our own.

    The first three blocks run once per stream, so they reduce the resolution early. They cost most multiply-adds. The
    last three blocks run once at inference. They have most parameters.
    """
    return [
        Block(32, [Layer("conv2d", stride=2), Layer("pool2d", stride=2), Layer("conv1d")]),
        Block(64, [Layer("pool1d", stride=2), Layer("conv2d"), Layer("conv1d"), Layer("squeeze_excite")], repeats=2),
        Block(128, [Layer("conv2d", stride=2), Layer("conv1d"), Layer("squeeze_excite")], repeats=2),
        Block(256, [Layer("conv2d", stride=2), Layer("conv1d"), Layer("context_gating")], repeats=2),
        Block(
            512,
            [Layer("pool1d", stride=2), Layer("conv2d", stride=2), Layer("conv1d"), Layer("context_gating")],
            repeats=2,
        ),
        Block(512, [Layer("conv2d"), Layer("conv1d"), Layer("context_gating")]),
    ]


def r2plus1d18() -> list[Block]:
    """The (2+1)D ResNet-18 (Tran et al. 2018): a stem and four stages."""
    # The authors' released models have 45 channels between the two convolutions of the stem. Ours has 48, because our
    # channels are multiples of 8. (The authors' formula, which conv2d+1d follows, would give 83.)
    stem = Block(64, [Layer("conv2d", kernel=7, stride=2, channels=48), Layer("conv1d")], skip=False)
    stages = [
        Block(channels, [Layer("conv2d+1d", stride=stride), Layer("conv2d+1d")], repeats=2)
        for channels, stride in [(64, 1), (128, 2), (256, 2), (512, 2)]
    ]
    return [stem, *stages]


def r2plus1d50() -> list[Block]:
    """The (2+1)D ResNet-50: a stem and four stages of bottlenecks, as PyTorchVideo publishes it (R(2+1)D R50 16x4).

    Tran et al. (2018) define (2+1)D residual networks without bottlenecks. A bottleneck's 3x3 convolution becomes one
    along time and one over the frame, both with the bottleneck's channels.
    """

    def bottleneck(channels: int, temporal_stride: int) -> list[Layer]:
        along_time = Layer("conv1d", stride=temporal_stride, channels=channels)
        over_the_frame = Layer("conv2d", stride=2, channels=channels)
        return [Layer("conv2d", kernel=1, channels=channels), along_time, over_the_frame, Layer("conv2d", kernel=1)]

    stem = Block(64, [Layer("conv2d", kernel=7, stride=2)], skip=False)
    stages = [
        Block(4 * channels, bottleneck(channels, temporal_stride), repeats=repeats)
        for channels, temporal_stride, repeats in [(64, 1, 3), (128, 1, 4), (256, 2, 6), (512, 2, 3)]
    ]
    return [stem, *stages]


BackboneName = Literal["airstreams", "r2plus1d18", "r2plus1d50", "i3d", "r2plus1d_18", "r3d_18", "mc3_18", "s3d"]

BACKBONES: dict[str, Callable[[], list[Block]]] = {
    "airstreams": default_tower,
    "r2plus1d18": r2plus1d18,
    "r2plus1d50": r2plus1d50,
}
"""The packaged towers that blocks describe."""

OTHER_BACKBONES: dict[str, int] = {"i3d": 6, "r2plus1d_18": 5, "r3d_18": 5, "mc3_18": 5, "s3d": 6}
"""The number of blocks of each backbone with layers of its own (airstreams.models.backbones)."""

LEAST_FRAMES: dict[str, int] = {"s3d": 8}
"""The fewest frames of a clip that a backbone can take, if more than one. With four, s3d's last pooling has no output;
with five, the gradient of its first convolution along time crashes torch 2.13 on CPUs."""
