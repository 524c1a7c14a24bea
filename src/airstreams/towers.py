"""Towers as data: what a block is made of, and the towers that `model.backbone` knows by name.

The layers themselves stand in `tower.py`. How to choose a tower, and how these differ from the published ones:
docs/backbones.md.
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
    """One layer of a block (Figure 7). Convolutions are followed by batch normalisation and, but for the last, ReLU.

    Kinds with 2d act on the frames, those with 1d along time; `conv2d+1d` is first the one and then the other. The two
    gates weigh channels by their mean over the clip.
    """

    kind: LayerKind
    kernel: int = 3
    """px or frames"""
    stride: int = 1
    """px or frames; only a block's first repetition strides, and only it has the poolings"""
    channels: int | None = None
    """that a convolution gives, before `model.width`; null: the block's"""
    ratio: float = 0.25
    """of squeeze_excite's squeezed channels (Hu et al. 2018: 1/16 on far wider layers)"""

    def __post_init__(self) -> None:
        require(self.kernel >= 1, "kernel", self.kernel, "at least 1")
        require(self.stride >= 1, "stride", self.stride, "at least 1")
        require(self.channels is None or self.channels >= 1, "channels", self.channels, "at least 1, or null")
        require(0 < self.ratio <= 1, "ratio", self.ratio, "over 0 and at most 1")


@dataclass
class Block:
    """One of a tower's blocks: its layers in order, repeated, with a skip connection over each repetition."""

    channels: int
    """that its last convolution gives, before `model.width`"""
    layers: list[Layer]
    """in order"""
    repeats: int = 1
    """how often all of them"""
    skip: bool = True
    """over a change of size it takes means, and a 1x1 convolution if the channels change too"""

    def __post_init__(self) -> None:
        require(self.channels >= 1, "channels", self.channels, "at least 1")
        require(self.repeats >= 1, "repeats", self.repeats, "at least 1")
        convolutions = [layer for layer in self.layers if "conv" in layer.kind]
        require(bool(convolutions), "layers", [layer.kind for layer in self.layers], "at least one convolution")
        last = convolutions[-1]
        require(last.channels is None, "channels", last.channels, "null in a block's last convolution")


def default_tower() -> list[Block]:
    """A tower of about a ResNet-18's capacity (section 3.5) in the layer types of Figure 7; the sizes are ours.

    Most of the cost lies in the first three blocks, which run once a stream, so they leave high resolution early;
    most of the parameters lie in the last three, which inference runs once.
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
    """The (2+1)D ResNet-18 (Tran et al. 2018): stem and four stages."""
    # Between the stem's two lie 45 channels in the models that the authors released (by their formula, by which
    # conv2d+1d goes, there would be 83); here 48, as all channels given are multiples of 8.
    stem = Block(64, [Layer("conv2d", kernel=7, stride=2, channels=48), Layer("conv1d")], skip=False)
    stages = [
        Block(channels, [Layer("conv2d+1d", stride=stride), Layer("conv2d+1d")], repeats=2)
        for channels, stride in [(64, 1), (128, 2), (256, 2), (512, 2)]
    ]
    return [stem, *stages]


BackboneName = Literal["airstreams", "r2plus1d18"]

BACKBONES: dict[BackboneName, Callable[[], list[Block]]] = {"airstreams": default_tower, "r2plus1d18": r2plus1d18}
