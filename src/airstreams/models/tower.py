"""A tower: six blocks that turn what a stream sees into a class (sections 3.1 and 3.5, Figure 7).

Blocks are described by data (`airstreams.config.Block`), so another tower is a matter of configuration. Here stand
the layers.

Features are (B, C, T, H, W) throughout, but lie in memory channels last. That makes "frames" (B T, C, H, W) and "time
lines" (B, C, T, H W) free views of the same numbers, so every convolution and pooling is a 2D one, which CPUs run
faster than the 3D operators with flat kernels that they equal.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from airstreams.config import Block, Layer

MERGE_LEVEL = 3  # blocks before the merge (section 3.1, "Merging streams")
SQUEEZE = 4  # squeeze-and-excite reduces channels by this (Hu et al. 2018 use 16 on far wider layers)


class EarlyTower(nn.Module):
    """Blocks 1 to 3 of a stream's tower: normalised input to features that can be averaged with other streams'.

    Each tower normalises its own input, whatever its scale. The last normalisation keeps the average of the streams
    from being one stream's alone.
    """

    def __init__(self, in_channels: int, blocks: Sequence[Block], width: float) -> None:
        super().__init__()
        self.input_norm = nn.BatchNorm3d(in_channels)
        self.blocks = build_blocks(in_channels, blocks[:MERGE_LEVEL], width)
        self.out_channels = scaled(blocks[MERGE_LEVEL - 1].channels, width)
        self.output_norm = FrameNorm(self.out_channels)

    def forward(self, representation_BCTHW: Tensor) -> Tensor:
        """Features after block 3, channels last."""
        # Channels first: of fewer channels than a vector register holds, CPUs normalise several times faster that way.
        normalised_BCTHW = self.input_norm(representation_BCTHW.contiguous())
        x = normalised_BCTHW.contiguous(memory_format=torch.channels_last_3d)
        features: Tensor = self.output_norm(self.blocks(x))
        return features


class LateTower(nn.Module):
    """Blocks 4 to 6 and the head (pooling and classifier); every stream has one, and so has the merge."""

    def __init__(self, in_channels: int, blocks: Sequence[Block], width: float, classes: int, dropout: float) -> None:
        super().__init__()
        self.blocks = build_blocks(in_channels, blocks[MERGE_LEVEL:], width)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(scaled(blocks[-1].channels, width), classes)

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """Class logits (B, K)."""
        pooled_BC = clip_mean(self.blocks(features_BCTHW))
        logits_BK: Tensor = self.classifier(self.dropout(pooled_BC))
        return logits_BK


def build_blocks(in_channels: int, blocks: Sequence[Block], width: float) -> nn.Sequential:
    """The blocks with their repetitions, in order."""
    built = []
    for block in blocks:
        out_channels = scaled(block.channels, width)
        for repetition in range(block.repeats):
            built.append(TowerBlock(in_channels, out_channels, block, first=repetition == 0))
            in_channels = out_channels
    return nn.Sequential(*built)


def scaled(channels: int, width: float) -> int:
    """Channels at a tower's width: a multiple of 8, which vector units like."""
    return max(8, round(channels * width / 8) * 8)


class TowerBlock(nn.Module):
    """One repetition of a block: its layers in order, with a skip connection over them.

    Only the first repetition pools and strides. The last normalisation starts at zero where there is a skip, so that
    training starts from a shallow network (Goyal et al. 2017).
    """

    def __init__(self, in_channels: int, out_channels: int, block: Block, first: bool) -> None:
        super().__init__()
        layers = [_at_repetition(layer, first) for layer in block.layers if first or not layer.kind.startswith("pool")]
        last_conv = max(index for index, layer in enumerate(layers) if layer.kind.startswith("conv"))
        body: list[nn.Module] = []
        channels = in_channels
        for index, layer in enumerate(layers):
            if layer.kind.startswith("conv"):
                body += [_LAYERS[layer.kind](channels, out_channels, layer), FrameNorm(out_channels)]
                if index < last_conv:
                    # Not in place: the frames' norm returns a view, whose gradient autograd would copy back and forth.
                    body.append(nn.ReLU())
                elif block.skip:
                    nn.init.zeros_(body[-1].weight)  # type: ignore[arg-type]
                channels = out_channels
            else:
                body.append(_LAYERS[layer.kind](channels, channels, layer))
        self.body = nn.Sequential(*body)
        self.shortcut = _shortcut(in_channels, out_channels, layers) if block.skip else None
        self.activation = nn.ReLU(inplace=True)

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C', T', H', W')."""
        out = self.body(features_BCTHW)
        if self.shortcut is not None:
            out = out + self.shortcut(features_BCTHW)
        activated: Tensor = self.activation(out)
        return activated


def on_frames(operation: Callable[[Tensor], Tensor], features_BCTHW: Tensor) -> Tensor:
    """Apply a 2D operation to every frame."""
    B = features_BCTHW.shape[0]
    frames_NCHW = features_BCTHW.transpose(1, 2).flatten(0, 1)
    return operation(frames_NCHW).unflatten(0, (B, -1)).transpose(1, 2)


def on_time_lines(operation: Callable[[Tensor], Tensor], features_BCTHW: Tensor) -> Tensor:
    """Apply a 2D operation of width 1 along time to every pixel."""
    H, W = features_BCTHW.shape[-2:]
    return operation(features_BCTHW.flatten(3)).unflatten(3, (H, W))


def clip_mean(features_BCTHW: Tensor) -> Tensor:
    """Each channel's mean over frames and pixels, (B, C)."""
    # A sum's gradient is a view that fits any memory layout; a mean's is written out, channels first.
    T, H, W = features_BCTHW.shape[2:]
    return features_BCTHW.sum(dim=(2, 3, 4)) / (T * H * W)


class FrameNorm(nn.BatchNorm2d):
    """Batch normalisation over clips, frames and pixels."""

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same."""
        return on_frames(super().forward, features_BCTHW)


class SpatialConv(nn.Conv2d):
    """A 2D convolution of every frame."""

    def __init__(self, in_channels: int, out_channels: int, layer: Layer) -> None:
        super().__init__(in_channels, out_channels, layer.kernel, layer.stride, layer.kernel // 2, bias=False)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C', T, ceil(H / stride), ceil(W / stride))."""
        return on_frames(super().forward, features_BCTHW)


class TemporalConv(nn.Conv2d):
    """A 1D convolution along time of every pixel."""

    def __init__(self, in_channels: int, out_channels: int, layer: Layer) -> None:
        super().__init__(
            in_channels, out_channels, (layer.kernel, 1), (layer.stride, 1), (layer.kernel // 2, 0), bias=False
        )
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C', ceil(T / stride), H, W)."""
        return on_time_lines(super().forward, features_BCTHW)


class SpatialPool(nn.MaxPool2d):
    """Maximum over a window of each frame."""

    def __init__(self, in_channels: int, out_channels: int, layer: Layer) -> None:
        super().__init__(layer.kernel, layer.stride, layer.kernel // 2)

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C, T, ceil(H / stride), ceil(W / stride))."""
        return on_frames(super().forward, features_BCTHW)


class TemporalPool(nn.MaxPool2d):
    """Maximum over neighbouring frames of each pixel."""

    def __init__(self, in_channels: int, out_channels: int, layer: Layer) -> None:
        super().__init__((layer.kernel, 1), (layer.stride, 1), (layer.kernel // 2, 0))

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C, ceil(T / stride), H, W)."""
        return on_time_lines(super().forward, features_BCTHW)


class ContextGating(nn.Module):
    """Channels weighed by one linear layer's view of their means (Xie et al. 2018)."""

    def __init__(self, in_channels: int, out_channels: int, layer: Layer) -> None:
        super().__init__()
        self.gate = nn.Linear(in_channels, in_channels)

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same."""
        weights_BC = torch.sigmoid(self.gate(clip_mean(features_BCTHW)))
        return features_BCTHW * weights_BC[:, :, None, None, None]


class SqueezeExcite(nn.Module):
    """Channels weighed by two linear layers' view of their means (Hu et al. 2018)."""

    def __init__(self, in_channels: int, out_channels: int, layer: Layer) -> None:
        super().__init__()
        squeezed = max(8, in_channels // SQUEEZE)
        self.squeeze = nn.Linear(in_channels, squeezed)
        self.excite = nn.Linear(squeezed, in_channels)

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same."""
        squeezed = F.relu(self.squeeze(clip_mean(features_BCTHW)))
        return features_BCTHW * torch.sigmoid(self.excite(squeezed))[:, :, None, None, None]


class Shrink(nn.Module):
    """Mean over windows of `stride` frames and `stride` px, so that a skip connection fits what it skips."""

    def __init__(self, temporal: int, spatial: int) -> None:
        super().__init__()
        self.temporal, self.spatial = temporal, spatial

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C, ceil(T / temporal), ceil(H / spatial), ceil(W / spatial))."""
        x = features_BCTHW
        if self.spatial > 1:
            x = on_frames(lambda frames: F.avg_pool2d(frames, self.spatial, ceil_mode=True), x)
        if self.temporal > 1:
            x = on_time_lines(lambda lines: F.avg_pool2d(lines, (self.temporal, 1), ceil_mode=True), x)
        return x


_LAYERS: dict[str, Callable[[int, int, Layer], nn.Module]] = {
    "conv2d": SpatialConv,
    "conv1d": TemporalConv,
    "pool2d": SpatialPool,
    "pool1d": TemporalPool,
    "context_gating": ContextGating,
    "squeeze_excite": SqueezeExcite,
}


def _at_repetition(layer: Layer, first: bool) -> Layer:
    return layer if first else Layer(layer.kind, layer.kernel)


def _shortcut(in_channels: int, out_channels: int, layers: Sequence[Layer]) -> nn.Module:
    temporal, spatial = 1, 1
    for layer in layers:
        if layer.kind.endswith("1d"):
            temporal *= layer.stride
        elif layer.kind.endswith("2d"):
            spatial *= layer.stride
    parts: list[nn.Module] = []
    if temporal > 1 or spatial > 1:
        parts.append(Shrink(temporal, spatial))
    if in_channels != out_channels:
        parts += [SpatialConv(in_channels, out_channels, Layer("conv2d", kernel=1)), FrameNorm(out_channels)]
    return nn.Sequential(*parts)
