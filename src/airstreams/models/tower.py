"""A tower: blocks that turn what a stream sees into a class (sections 3.1 and 3.5, Figure 7).

Blocks are described by data (`airstreams.towers`), so another tower is a matter of configuration. Here stand
the layers.

Features are (B, C, T, H, W) throughout, but lie in memory channels last. That makes "frames" (B T, C, H, W) and "time
lines" (B, C, T, H W) free views of the same numbers, so every convolution and pooling is a 2D one, which CPUs run
faster than the 3D operators with flat kernels that they equal.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from airstreams.towers import Block, Layer


class EarlyTower(nn.Module):
    """A stream's tower up to its last merge: normalised input to features that can be averaged with other streams'.

    Each tower normalises its own input, whatever its scale. The normalisation at each merge keeps the average of the
    streams from being one stream's alone.

    Args:
        in_channels: of what the stream sees.
        blocks: of the whole tower.
        width: scales the blocks' channels.
        levels: numbers of blocks after which there is a merge, in any order.
    """

    def __init__(self, in_channels: int, blocks: Sequence[Block], width: float, levels: Sequence[int]) -> None:
        super().__init__()
        *inner, last = sorted(levels)
        self.input_norm = InputNorm(in_channels)
        self.blocks = build_blocks(in_channels, blocks[:last], width)
        self.inner_norms = nn.ModuleDict(
            {str(level): FrameNorm(channels_after(level, blocks, width)) for level in inner}
        )
        self.output_norm = FrameNorm(channels_after(last, blocks, width))
        self.ends = {level: sum(block.repeats for block in blocks[:level]) for level in (*inner, last)}

    def forward(self, representation_BCTHW: Tensor, deepest: int) -> dict[int, Tensor]:
        """Features at each level up to the deepest one wanted, channels last."""
        # Channels first: of fewer channels than a vector register holds, CPUs normalise several times faster that way.
        normalised_BCTHW = self.input_norm(representation_BCTHW.contiguous())
        x = normalised_BCTHW.contiguous(memory_format=torch.channels_last_3d)
        features: dict[int, Tensor] = {}
        done = 0
        for level, end in self.ends.items():
            for block in list(self.blocks)[done:end]:
                x = block(x)
            x = self.inner_norms[str(level)](x) if str(level) in self.inner_norms else self.output_norm(x)
            features[level] = x
            done = end
            if level == deepest:
                break
        return features


class LateTower(nn.Module):
    """The blocks after a merge and the head (pooling and classifier); every stream has one, and so has each merge.

    Args:
        blocks: of the whole tower.
        level: how many of them lie before.
        width: scales the blocks' channels.
        classes: K.
        dropout: before the classifier.
    """

    def __init__(self, blocks: Sequence[Block], level: int, width: float, classes: int, dropout: float) -> None:
        super().__init__()
        self.level = level
        self.blocks = build_blocks(channels_after(level, blocks, width), blocks[level:], width)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(scaled(blocks[-1].channels, width), classes)

    def forward(self, features_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (B, K), and what the classifier makes them of (B, C), before dropout."""
        pooled_BC = clip_mean(self.blocks(features_BCTHW))
        return self.classifier(self.dropout(pooled_BC)), pooled_BC


def build_blocks(in_channels: int, blocks: Sequence[Block], width: float) -> nn.Sequential:
    """The blocks with their repetitions, in order."""
    built = []
    for block in blocks:
        out_channels = scaled(block.channels, width)
        for repetition in range(block.repeats):
            built.append(TowerBlock(in_channels, block, width, repetition))
            in_channels = out_channels
    return nn.Sequential(*built)


def channels_after(level: int, blocks: Sequence[Block], width: float) -> int:
    """Channels of the features after so many blocks, of which there is one at least."""
    return scaled(blocks[level - 1].channels, width)


def scaled(channels: int, width: float) -> int:
    """Channels at a tower's width: a multiple of 8, which vector units like."""
    return max(8, round(channels * width / 8) * 8)


class TowerBlock(nn.Module):
    """One repetition of a block: its layers in order, with a skip connection over them.

    Only the first repetition strides, and only it has the poolings. The last normalisation starts at zero where there
    is a skip, so that training starts from a shallow network (Goyal et al. 2017).
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
                    # Not in place: the frames' norm returns a view, whose gradient autograd would copy back and forth.
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


class InputNorm(nn.BatchNorm3d):
    """Batch normalisation of what a stream sees, which has few channels.

    cuDNN's kernels give each channel to one thread block, so that two to eight blocks do all the work: 11 of 24 ms of
    a step of RGB alone on an H100. On CUDA it is written out as reductions, which use the whole card.
    """

    def forward(self, representation_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same."""
        if self.training and representation_BCTHW.is_cuda:
            return self.written_out(representation_BCTHW)
        return super().forward(representation_BCTHW)

    def written_out(self, representation_BCTHW: Tensor) -> Tensor:
        """What `nn.BatchNorm3d` does in training, as plain operations."""
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
        self.uneven = _uneven(layer)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C', T, ceil(H / stride), ceil(W / stride))."""
        return on_frames(super().forward, padded(features_BCTHW, pixels=self.uneven))


class TemporalConv(nn.Conv2d):
    """A 1D convolution along time of every pixel."""

    def __init__(self, in_channels: int, out_channels: int, layer: Layer) -> None:
        super().__init__(
            in_channels, out_channels, (layer.kernel, 1), (layer.stride, 1), (_padding(layer), 0), bias=False
        )
        self.uneven = _uneven(layer)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C', ceil(T / stride), H, W)."""
        return on_time_lines(super().forward, padded(features_BCTHW, frames=self.uneven))


class FactorisedConv(nn.Sequential):
    """A (2+1)D convolution (Tran et al. 2018): a 2D one, normalisation, ReLU, and a 1D one along time.

    Between the two lie so many channels that both have the parameters of the 3D convolution that they stand for.
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
        self.uneven = _uneven(layer)

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C, T, ceil(H / stride), ceil(W / stride))."""
        return on_frames(super().forward, padded(features_BCTHW, pixels=self.uneven, mode="replicate"))


class TemporalPool(nn.MaxPool2d):
    """Maximum over neighbouring frames of each pixel."""

    def __init__(self, in_channels: int, out_channels: int, layer: Layer) -> None:
        super().__init__((layer.kernel, 1), (layer.stride, 1), (_padding(layer), 0))
        self.uneven = _uneven(layer)

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C, ceil(T / stride), H, W)."""
        return on_time_lines(super().forward, padded(features_BCTHW, frames=self.uneven, mode="replicate"))


def padded(features_BCTHW: Tensor, frames: int = 0, pixels: int = 0, mode: str = "constant") -> Tensor:
    """Features with so much more at the end of time, or of height and width: 1, where a kernel is even.

    An even window then gives as many outputs as an odd one. A pooling sees the last frame, or row and column, twice.
    """
    if not (frames or pixels):
        return features_BCTHW
    return F.pad(features_BCTHW, (0, pixels, 0, pixels, 0, frames), mode)


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
        squeezed = max(8, int(in_channels * layer.ratio))
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
    "conv2d+1d": FactorisedConv,
    "pool2d": SpatialPool,
    "pool1d": TemporalPool,
    "context_gating": ContextGating,
    "squeeze_excite": SqueezeExcite,
}


def _padding(layer: Layer) -> int:
    return (layer.kernel - 1) // 2


def _uneven(layer: Layer) -> int:
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
