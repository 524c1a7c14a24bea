"""A tower: the blocks that turn a stream's representation into class logits (sections 3.1 and 3.5, Figure 7).

Blocks are data (`airstreams.towers`), so a config can describe another tower. This module has the layers.

Features are (B, C, T, H, W), in memory channels last. So frames (B T, C, H, W) and time lines (B, C, T, H W) are views
of the same numbers, without a copy. Every convolution and pooling is then a 2D operator. CPUs run it faster than the
equal 3D operator with a flat kernel.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from airstreams.models.checkpointing import through
from airstreams.models.cpu_bfloat16 import needs_no_stride
from airstreams.towers import Block, Layer


class Backbone(ABC):
    """A family of towers: how to build its blocks. `airstreams.models.backbones` has one file per family.

    channels: the output channels of each block.
    """

    channels: Sequence[int]

    @abstractmethod
    def input_norm(self, in_channels: int, is_rgb: bool) -> nn.Module:
        """The module that scales a tower's input, (B, C, T, H, W) to the same."""

    @abstractmethod
    def block(self, number: int, in_channels: int) -> list[nn.Module]:
        """The modules of one block, in order, from (B, C, T, H, W) to (B, C', T', H', W'). The first has number 1."""

    @abstractmethod
    def merge_norm(self, channels: int) -> nn.Module:
        """The module that scales a tower's features at a merge, (B, C, T, H, W) to the same."""


class EarlyTower(nn.Module):
    """A stream's blocks before the last merge. Their features are merged with those of other streams.

    Each tower scales its own input, as its backbone needs it. It also scales its features at each merge: no stream
    should dominate the mean.

    Args:
        in_channels: the channels of the stream's representation.
        backbone: the family of the tower.
        levels: the merge levels, each a number of blocks before a merge, in any order.
        is_rgb: the stream's representation is RGB in 0..1.
        merged_channels: the channels that each merge takes, by level. Where the tower's differ, a 1x1 convolution
            adapts them.
        input_scale: clip the input to plus and minus this number, and divide it by it; None: as the backbone scales it.
    """

    def __init__(
        self,
        in_channels: int,
        backbone: Backbone,
        levels: Sequence[int],
        is_rgb: bool = False,
        merged_channels: Mapping[int, int] | None = None,
        input_scale: float | None = None,
    ) -> None:
        super().__init__()
        *inner, last = sorted(levels)
        self.input_norm = ClippedScale(input_scale) if input_scale else backbone.input_norm(in_channels, is_rgb)
        self.blocks, ends = _joined(backbone, 1, last, in_channels)
        self.inner_norms = nn.ModuleDict(
            {str(level): backbone.merge_norm(backbone.channels[level - 1]) for level in inner}
        )
        self.output_norm = backbone.merge_norm(backbone.channels[last - 1])
        own = {level: backbone.channels[level - 1] for level in levels}
        wanted = own | dict(merged_channels or {})
        self.adaptors = nn.ModuleDict(
            {str(level): nn.Conv3d(own[level], wanted[level], 1) for level in levels if own[level] != wanted[level]}
        )
        self.ends = {level: ends[level - 1] for level in (*inner, last)}
        self.checkpointing = False

    def forward(self, representation_BCTHW: Tensor, last: int) -> dict[int, Tensor]:
        """Features (B, C, T, H, W) by merge level, up to the level `last`, channels last in memory."""
        # Channels first: CPUs normalise a few channels several times faster this way.
        normalised_BCTHW = self.input_norm(representation_BCTHW.contiguous())
        return self.after(0, normalised_BCTHW.contiguous(memory_format=torch.channels_last_3d), last)

    def after(self, done: int, x: Tensor, last: int) -> dict[int, Tensor]:
        """`forward` from the output (B, C, T, H, W) of the first `done` modules of `blocks` on."""
        features: dict[int, Tensor] = {}
        for level, end in self.ends.items():
            x = through(list(self.blocks)[done:end], x, self.checkpointing and self.training)
            x = self.inner_norms[str(level)](x) if str(level) in self.inner_norms else self.output_norm(x)
            features[level] = x
            done = end
            if level == last:
                break
        return features

    def for_merge(self, features_BCTHW: Tensor, level: int) -> Tensor:
        """The tower's features at a merge level, with the channels that the merge takes."""
        adapted: Tensor = self.adaptors[str(level)](features_BCTHW) if str(level) in self.adaptors else features_BCTHW
        return adapted


class LateTower(nn.Module):
    """The blocks after a merge with pooling and classifier. Each stream has one, and each merge.

    Args:
        backbone: the family of the tower.
        level: the number of blocks before the merge.
        classes: K, the number of action classes.
        dropout: the probability of dropout before the classifier.
        merge: a merged tower's module that joins the streams' features into the tower's input; None: a stream's own.
    """

    def __init__(
        self, backbone: Backbone, level: int, classes: int, dropout: float, merge: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.level = level
        self.merge = merge
        self.checkpointing = False
        self.blocks, _ = _joined(backbone, level + 1, len(backbone.channels), backbone.channels[level - 1])
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(backbone.channels[-1], classes)

    def forward(self, features_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (B, K), and the pooled features (B, C) before dropout."""
        pooled_BC = clip_mean(through(self.blocks, features_BCTHW, self.checkpointing and self.training))
        return self.classifier(self.dropout(pooled_BC)), pooled_BC


def _joined(backbone: Backbone, first: int, last: int, in_channels: int) -> tuple[nn.Sequential, list[int]]:
    """The blocks `first` to `last` in one sequence, and the number of its modules up to the end of each block."""
    modules: list[nn.Module] = []
    ends = []
    for number in range(first, last + 1):
        modules += backbone.block(number, in_channels)
        ends.append(len(modules))
        in_channels = backbone.channels[number - 1]
    return nn.Sequential(*modules), ends


class BlockTowers(Backbone):
    """The family of towers that are described by blocks: the packaged ones, and a user's own.

    Args:
        blocks: the blocks of the whole tower.
        width: scales the blocks' channels.
        has_merge_norm: whether features are normalised before a merge. The paper says nothing of it (section 3.1).
    """

    def __init__(self, blocks: Sequence[Block], width: float, has_merge_norm: bool = True) -> None:
        self.description, self.width, self.has_merge_norm = blocks, width, has_merge_norm
        self.channels = [scaled(block.channels, width) for block in blocks]

    def input_norm(self, in_channels: int, is_rgb: bool) -> nn.Module:
        """Batch normalisation, whatever the scale."""
        return InputNorm(in_channels)

    def block(self, number: int, in_channels: int) -> list[nn.Module]:
        """The repetitions of one block."""
        return build_blocks(in_channels, self.description[number - 1 : number], self.width)

    def merge_norm(self, channels: int) -> nn.Module:
        """Batch normalisation, or nothing."""
        return FrameNorm(channels) if self.has_merge_norm else nn.Identity()


def build_blocks(in_channels: int, blocks: Sequence[Block], width: float) -> list[nn.Module]:
    """The blocks with all repetitions, in order."""
    built: list[nn.Module] = []
    for block in blocks:
        out_channels = scaled(block.channels, width)
        for repetition in range(block.repeats):
            built.append(TowerBlock(in_channels, block, width, repetition))
            in_channels = out_channels
    return built


def scaled(channels: int, width: float) -> int:
    """Channels times the width, rounded to a multiple of 8, which suits vector units."""
    return max(8, round(channels * width / 8) * 8)


class TowerBlock(nn.Module):
    """One repetition of a block: its layers in order, with a skip connection over them.

    Only the first repetition strides, and only it has the poolings. If there is a skip connection, the scale of the
    last normalisation starts at zero, so training starts with a shallow network (Goyal et al. 2017).
    """

    def __init__(self, in_channels: int, block: Block, width: float, repetition: int) -> None:
        super().__init__()
        layers = block.layers
        if repetition > 0:
            layers = [replace(layer, stride=1) for layer in layers if "pool" not in layer.kind]
        last_conv = max(index for index, layer in enumerate(layers) if "conv" in layer.kind)
        body: list[nn.Module] = []
        channels = in_channels
        for index, layer in enumerate(layers):
            if "conv" in layer.kind:
                out_channels = scaled(layer.channels or block.channels, width)
                last_norm = FrameNorm(out_channels)
                body += [_LAYERS[layer.kind](channels, out_channels, layer), last_norm]
                if index < last_conv:
                    # Not in place: FrameNorm returns a view, and autograd would copy its gradient back and forth.
                    body.append(nn.ReLU())
                channels = out_channels
            else:
                body.append(_LAYERS[layer.kind](channels, channels, layer))
        self.body = nn.Sequential(*body)
        self.shortcut = _shortcut(in_channels, channels, block, layers)
        if self.shortcut is not None:
            nn.init.zeros_(last_norm.weight)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C', T', H', W')."""
        out = self.body(features_BCTHW)
        if self.shortcut is not None:
            out = out + self.shortcut(features_BCTHW)
        activated: Tensor = self.activation(out)
        return activated


def on_frames(operation: Callable[[Tensor], Tensor], features_BCTHW: Tensor) -> Tensor:
    """Apply a function of frames to every frame of a clip, (B, C, T, H, W) to (B, C', T, H', W').

    operation: a module or a plain function from (N, C, H, W) to (N, C', H', W'), such as a 2D convolution.
    """
    B = features_BCTHW.shape[0]
    frames_NCHW = features_BCTHW.transpose(1, 2).flatten(0, 1)
    return operation(frames_NCHW).unflatten(0, (B, -1)).transpose(1, 2)


def on_time_lines(operation: Callable[[Tensor], Tensor], features_BCTHW: Tensor) -> Tensor:
    """Apply a 2D operation of width 1 along time to every pixel."""
    H, W = features_BCTHW.shape[-2:]
    return operation(features_BCTHW.flatten(3)).unflatten(3, (H, W))


def clip_mean(features_BCTHW: Tensor) -> Tensor:
    """The mean of each channel over frames and pixels, (B, C)."""
    # The gradient of a sum is a view in any memory layout. The gradient of a mean is a copy, channels first.
    T, H, W = features_BCTHW.shape[2:]
    return features_BCTHW.sum(dim=(2, 3, 4)) / (T * H * W)


class ClippedScale(nn.Module):
    """Clips at plus and minus `limit`, and divides by it.

    I3D's weights for flow were trained on px clipped at 20 and divided by 20 (Carreira and Zisserman 2017). Our flow is
    in px from one frame of a clip to the next, so it is scaled by nothing else: a clip of half the size halves it, and
    a step of two frames doubles it. Weights for RGB never saw flow. For towers that start from their mean over the
    channels, a batch norm per channel gives the first layer inputs of about the size that it has seen.
    """

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, representation_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same, in -1..1."""
        return representation_BCTHW.clamp(-self.limit, self.limit) / self.limit


class InputNorm(nn.BatchNorm3d):
    """Batch normalisation of a tower's input, which has few channels.

    cuDNN gives each channel to one thread block, so only two to eight blocks work. That took 11 of the 24 ms of a step
    with RGB alone on an H100. In training on CUDA plain reductions take its place, which use the whole GPU.
    """

    def forward(self, representation_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same."""
        if self.training and representation_BCTHW.is_cuda:
            return self.by_reductions(representation_BCTHW)
        return super().forward(representation_BCTHW)

    def by_reductions(self, representation_BCTHW: Tensor) -> Tensor:
        """`nn.BatchNorm3d` in training mode, as plain operations."""
        assert self.momentum is not None
        representation_BCTHW = representation_BCTHW.to(self.weight.dtype)
        variance_C, mean_C = torch.var_mean(representation_BCTHW, dim=(0, 2, 3, 4), correction=0)
        with torch.no_grad():
            count = representation_BCTHW.numel() // representation_BCTHW.shape[1]
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean_C, self.momentum)
            self.running_var.lerp_(variance_C * (count / (count - 1)), self.momentum)
        scale_C = self.weight * (variance_C + self.eps).rsqrt()
        shift_C = self.bias - mean_C * scale_C
        return representation_BCTHW * scale_C[:, None, None, None] + shift_C[:, None, None, None]


class FrameNorm(nn.BatchNorm2d):
    """Batch normalisation over clips, frames and pixels."""

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same."""
        return on_frames(super().forward, features_BCTHW)


class SpatialConv(nn.Conv2d):
    """A 2D convolution of every frame."""

    def __init__(self, in_channels: int, out_channels: int, layer: Layer) -> None:
        super().__init__(in_channels, out_channels, layer.kernel, layer.stride, _padding(layer), bias=False)
        self.extra = _extra(layer)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C', T, ceil(H / stride), ceil(W / stride))."""
        features_BCTHW = padded(features_BCTHW, pixels=self.extra)
        if needs_no_stride(features_BCTHW):
            return on_frames(lambda frames: F.conv2d(frames, self.weight, padding=self.padding), features_BCTHW)
        return on_frames(super().forward, features_BCTHW)


class TemporalConv(nn.Conv2d):
    """A 1D convolution along time of every pixel."""

    def __init__(self, in_channels: int, out_channels: int, layer: Layer) -> None:
        super().__init__(
            in_channels, out_channels, (layer.kernel, 1), (layer.stride, 1), (_padding(layer), 0), bias=False
        )
        self.extra = _extra(layer)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C', ceil(T / stride), H, W)."""
        return on_time_lines(super().forward, padded(features_BCTHW, frames=self.extra))


class FactorisedConv(nn.Sequential):
    """A (2+1)D convolution (Tran et al. 2018): a 2D convolution, normalisation, ReLU, and a 1D one along time.

    The number of channels between the two gives both together the parameters of the 3D convolution that they replace.
    """

    def __init__(self, in_channels: int, out_channels: int, layer: Layer) -> None:
        t = d = layer.kernel
        between = t * d**2 * in_channels * out_channels // (d**2 * in_channels + t * out_channels)
        super().__init__(
            SpatialConv(in_channels, between, layer),
            FrameNorm(between),
            nn.ReLU(),
            TemporalConv(between, out_channels, layer),
        )


class SpatialPool(nn.MaxPool2d):
    """Maximum over a window of each frame."""

    def __init__(self, in_channels: int, out_channels: int, layer: Layer) -> None:
        super().__init__(layer.kernel, layer.stride, _padding(layer))
        self.extra = _extra(layer)

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C, T, ceil(H / stride), ceil(W / stride))."""
        return on_frames(super().forward, padded(features_BCTHW, pixels=self.extra, mode="replicate"))


class TemporalPool(nn.MaxPool2d):
    """Maximum over neighbouring frames of each pixel."""

    def __init__(self, in_channels: int, out_channels: int, layer: Layer) -> None:
        super().__init__((layer.kernel, 1), (layer.stride, 1), (_padding(layer), 0))
        self.extra = _extra(layer)

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C, ceil(T / stride), H, W)."""
        return on_time_lines(super().forward, padded(features_BCTHW, frames=self.extra, mode="replicate"))


def padded(features_BCTHW: Tensor, frames: int = 0, pixels: int = 0, mode: str = "constant") -> Tensor:
    """Pad the end of time by `frames`, and of height and width by `pixels`: 1 for an even kernel, else 0.

    An even kernel then gives as many outputs as an odd one. A pooling sees the last frame, or row and column, twice.
    """
    if not (frames or pixels):
        return features_BCTHW
    return F.pad(features_BCTHW, (0, pixels, 0, pixels, 0, frames), mode)


class ContextGating(nn.Module):
    """Channels scaled by weights that one linear layer computes from their means (Xie et al. 2018)."""

    def __init__(self, in_channels: int, out_channels: int, layer: Layer) -> None:
        super().__init__()
        self.gate = nn.Linear(in_channels, in_channels)

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same."""
        weights_BC = torch.sigmoid(self.gate(clip_mean(features_BCTHW)))
        return features_BCTHW * weights_BC[:, :, None, None, None]


class SqueezeExcite(nn.Module):
    """Channels scaled by weights that two linear layers compute from their means (Hu et al. 2018)."""

    def __init__(self, in_channels: int, out_channels: int, layer: Layer) -> None:
        super().__init__()
        squeezed = max(8, int(in_channels * layer.ratio))
        self.squeeze = nn.Linear(in_channels, squeezed)
        self.excite = nn.Linear(squeezed, in_channels)

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same."""
        squeezed = F.relu(self.squeeze(clip_mean(features_BCTHW)))
        return features_BCTHW * torch.sigmoid(self.excite(squeezed))[:, :, None, None, None]


class Shrink(nn.Module):
    """The mean over windows of `temporal` frames and `spatial` px, so that a skip connection fits its block."""

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
    "conv2d+1d": FactorisedConv,
    "pool2d": SpatialPool,
    "pool1d": TemporalPool,
    "context_gating": ContextGating,
    "squeeze_excite": SqueezeExcite,
}


def _padding(layer: Layer) -> int:
    return (layer.kernel - 1) // 2


def _extra(layer: Layer) -> int:
    return 1 - layer.kernel % 2


def _shortcut(in_channels: int, out_channels: int, block: Block, layers: Sequence[Layer]) -> nn.Module | None:
    if not block.skip:
        return None
    temporal = math.prod(layer.stride for layer in layers if "1d" in layer.kind)
    spatial = math.prod(layer.stride for layer in layers if "2d" in layer.kind)
    parts: list[nn.Module] = []
    if temporal > 1 or spatial > 1:
        parts.append(Shrink(temporal, spatial))
    if in_channels != out_channels:
        parts += [SpatialConv(in_channels, out_channels, Layer("conv2d", kernel=1)), FrameNorm(out_channels)]
    return nn.Sequential(*parts)
