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
    "depthwise_conv2d",
    "pool2d",
    "pool1d",
    "average_pool2d",
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
    """px or frames; only a block's first repetition strides"""
    channels: int | None = None
    """that a convolution gives, before `model.width`; null: the block's"""
    ratio: float = 0.25
    """of squeeze_excite's squeezed channels (Hu et al. 2018: 1/16 on far wider layers)"""
    every: int | None = None
    """it is in every so-manyth repetition; null: in each, and a pooling in the first alone"""

    def __post_init__(self) -> None:
        require(self.kernel >= 1, "kernel", self.kernel, "at least 1")
        require(self.stride >= 1, "stride", self.stride, "at least 1")
        require(self.channels is None or self.channels >= 1, "channels", self.channels, "at least 1, or null")
        require(0 < self.ratio <= 1, "ratio", self.ratio, "over 0 and at most 1")
        require(self.every is None or self.every >= 1, "every", self.every, "at least 1, or null")

    def is_in(self, repetition: int) -> bool:
        """Whether a repetition of its block, counted from 0, has this layer."""
        if self.every is None:
            return repetition == 0 or "pool" not in self.kind
        return repetition % self.every == 0


@dataclass
class Block:
    """One of a tower's blocks: its layers in order, repeated, with a skip connection over each repetition."""

    channels: int
    """that its last convolution gives, before `model.width`"""
    layers: list[Layer]
    """in order"""
    repeats: int = 1
    """how often all of them"""
    skip: bool | Literal["projection"] = True
    """over a change of size, true takes means, and a convolution if the channels change too; projection (Tiny Video
    Networks) is always a 1x1 convolution that strides, and is left out where the frames become fewer"""

    def __post_init__(self) -> None:
        require(self.channels >= 1, "channels", self.channels, "at least 1")
        require(self.repeats >= 1, "repeats", self.repeats, "at least 1")
        # A depthwise convolution keeps the channels that it is given.
        convolutions = [layer for layer in self.layers if layer.kind in ("conv2d", "conv1d", "conv2d+1d")]
        kinds = [layer.kind for layer in self.layers]
        require(bool(convolutions), "layers", kinds, "at least one convolution in a block that is not depthwise")
        last = convolutions[-1]
        require(last.channels is None, "channels", last.channels, "null in a block's last convolution")
        require(last.is_in(1), "every", last.every, "null or 1 in a block's last convolution")


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


# The Tiny Video Networks that their authors found and published (Piergiovanni, Angelova and Ryoo 2019, arXiv
# 1910.06961). The figures are those of google-research/tiny_video_nets, squeeze rounded to five digits.


def tvn1() -> list[Block]:
    """TVN-1, searched for clips of 2 frames of 224 px, every fourth frame."""
    return [
        _tiny_block(64, ("std", 4, 2), ("maxpool", 2, 2), expand=4, repeats=2, gate=True),
        _tiny_block(128, ("maxpool", 3, 2), ("1d", 1, 1), expand=4, repeats=1, squeeze=0.90676),
        _tiny_block(128, ("depth", 5, 3), ("avgpool", 1, 1), expand=4, repeats=2, gate=True, skip=True),
        _tiny_block(256, ("std", 3, 2), ("avgpool", 1, 1), expand=8, repeats=2, squeeze=0.72655, gate=True),
    ]


def tvn2() -> list[Block]:
    """TVN-2, searched for clips of 2 frames of 256 px, every seventh frame."""
    return [
        _tiny_block(64, ("depth", 5, 3), ("1d", 2, 1), expand=4, repeats=3, squeeze=0.06667, gate=True, skip=True),
        _tiny_block(128, ("std", 4, 2), ("maxpool", 2, 2), expand=4, repeats=5, squeeze=0.69345, gate=True, skip=True),
        _tiny_block(1024, ("depth", 4, 1), ("1d", 1, 1), expand=1, repeats=6),
        _tiny_block(256, ("avgpool", 3, 2), ("1d", 1, 1), expand=4, repeats=1, gate=True),
        _tiny_block(512, ("avgpool", 4, 3), ("1d", 1, 1), expand=4, repeats=6, squeeze=0.94722),
        _tiny_block(512, ("depth", 3, 3), ("maxpool", 1, 1), expand=4, repeats=4),
        _tiny_block(348, ("maxpool", 2, 1), ("maxpool", 1, 1), expand=6, repeats=1, gate=True),
    ]


def tvn3() -> list[Block]:
    """TVN-3, searched for clips of 8 frames of 160 px, every second frame."""
    return [
        _tiny_block(64, ("depth", 3, 2), ("1d", 5, 2), expand=3, repeats=2, squeeze=0.64573, gate=True),
        _tiny_block(256, ("depth", 3, 2), ("1d", 1, 1), expand=5, repeats=4, squeeze=0.90614, skip=True),
        _tiny_block(256, ("depth", 5, 4), ("maxpool", 3, 2), expand=2, repeats=4, skip=True),
        _tiny_block(512, ("std", 3, 2), ("maxpool", 3, 3), expand=5, repeats=4, gate=True),
    ]


def tvn4() -> list[Block]:
    """TVN-4, searched for clips of 8 frames of 128 px, every fourth frame."""
    return [
        _tiny_block(64, ("std", 5, 2), ("1d", 3, 2), expand=4, repeats=5, squeeze=0.47759, skip=True),
        _tiny_block(256, ("depth", 5, 2), ("maxpool", 2, 2), expand=6, repeats=4, gate=True),
        _tiny_block(256, ("depth", 5, 3), ("1d", 1, 1), expand=8, repeats=4, squeeze=0.25309, gate=True),
    ]


def _tiny_block(
    filters: int,
    spatial: tuple[str, int, int],
    temporal: tuple[str, int, int],
    expand: int,
    repeats: int,
    squeeze: float = 0.0,
    gate: bool = False,
    skip: bool = False,
) -> Block:
    """A block in its authors' terms; spatial and temporal are type, kernel and stride.

    The spatial layer, in every second repetition the temporal one, a 1x1 convolution that expands, and gates. A
    temporal layer whose kernel is 1 is none.
    """
    kind, kernel, stride = spatial
    before = [Layer("conv2d", 1, channels=filters)]
    layers = {
        "std": [*before, Layer("conv2d", kernel, stride, channels=filters)],
        "depth": [*before, Layer("depthwise_conv2d", kernel, stride)],
        "maxpool": [Layer("pool2d", kernel, stride, every=1)],
        "avgpool": [Layer("average_pool2d", kernel, stride, every=1)],
    }[kind]
    kind, kernel, stride = temporal
    if kernel > 1:
        layers += {
            "1d": [Layer("conv1d", kernel, stride, channels=filters, every=2)],
            "maxpool": [Layer("pool1d", kernel, stride, every=2)],
        }[kind]
    layers.append(Layer("conv2d", 1))
    if squeeze:
        layers.append(Layer("squeeze_excite", ratio=squeeze))
    if gate:
        layers.append(Layer("context_gating"))
    return Block(filters * expand, layers, repeats, "projection" if skip else False)


BackboneName = Literal["airstreams", "r2plus1d18", "tvn1", "tvn2", "tvn3", "tvn4"]

BACKBONES: dict[BackboneName, Callable[[], list[Block]]] = {
    "airstreams": default_tower,
    "r2plus1d18": r2plus1d18,
    "tvn1": tvn1,
    "tvn2": tvn2,
    "tvn3": tvn3,
    "tvn4": tvn4,
}
