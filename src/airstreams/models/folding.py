"""A model for inference on a CPU: fewer passes over memory, with the same answers but for rounding.

Each batch normalisation is folded into the convolution before it. ReLUs and sums work in place.
"""

import copy
from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from airstreams.models.airstreams import AIRStreams
from airstreams.models.backbones.i3d import Unit
from airstreams.models.segmenter import ResidualBlock
from airstreams.models.tower import (
    EarlyTower,
    FactorisedConv,
    InputNorm,
    Shrink,
    TemporalPool,
    TowerBlock,
    on_frames,
    padded,
)
from airstreams.representations.frame_network import FrameNetwork


def folded_model(model: AIRStreams) -> AIRStreams:
    """A copy of a model, in evaluation mode, whose normalisations are folded. Custom streams stay as they are.

    In bfloat16 the folded weights are rounded, so answers differ from those of the model by up to 0.01. Everything that
    scores must then use the folded model.
    """
    copied = copy.deepcopy(model).eval()
    copied.early, copied.late = (cast(nn.ModuleDict, _replaced(towers)) for towers in (copied.early, copied.late))
    for stream, part in copied.representations.items():
        if isinstance(part, FrameNetwork):
            copied.representations[stream] = _replaced(part)
    return copied.requires_grad_(False)


def _replaced(module: nn.Module) -> nn.Module:
    if isinstance(module, TowerBlock):
        return FoldedBlock(module.body, module.shortcut)
    if isinstance(module, ResidualBlock):
        return FoldedBlock(module.body, module.skip)
    if isinstance(module, EarlyTower):  # it counts its modules
        module.blocks = nn.Sequential(*map(_replaced, module.blocks))
        module.input_norm = _replaced(module.input_norm)
        return module
    if type(module) is nn.Sequential:  # a subclass may have a forward of its own
        return nn.Sequential(*_layers(module))
    if isinstance(module, InputNorm):
        return FoldedInputNorm(module)
    if isinstance(module, Unit):
        _fold(module.conv, module.bn)
        module.bn = nn.Identity()  # type: ignore[assignment]
        return module
    for name, child in module.named_children():
        setattr(module, name, _replaced(child))
    return module


def _layers(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """The modules in order, each convolution together with the normalisation and the ReLU after it."""
    layers: list[nn.Module] = []
    for module in _flat(modules):
        before = layers[-1] if layers else None
        if isinstance(module, nn.Conv2d):
            layers.append(FoldedConv(module))
        elif isinstance(module, nn.BatchNorm2d) and isinstance(before, FoldedConv) and not before.relu:
            _fold(before.conv, module)
        elif isinstance(module, nn.ReLU) and isinstance(before, FoldedConv):
            before.relu = True
        elif isinstance(module, TemporalPool):
            layers.append(SlicedPool(module))
        else:
            layers.append(_replaced(module))
    return layers


def _flat(modules: Iterable[nn.Module]) -> Iterable[nn.Module]:
    for module in modules:
        yield from (module if isinstance(module, FactorisedConv) else (module,))


def _fold(conv: nn.Conv2d | nn.Conv3d, norm: nn.BatchNorm2d | nn.BatchNorm3d) -> None:
    bias = None if conv.bias is None else conv.bias.double()
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    weight, bias = fuse_conv_bn_weights(
        conv.weight.double(), bias, mean.double(), variance.double(), norm.eps, norm.weight.double(), norm.bias.double()
    )
    memory = torch.channels_last if conv.weight.ndim == 4 else torch.channels_last_3d
    conv.weight = nn.Parameter(weight.float().contiguous(memory_format=memory))
    conv.bias = nn.Parameter(bias.float())


class FoldedConv(nn.Module):
    """A 2D convolution of frames or along time, with its normalisation and ReLU."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.relu = False

    def forward(self, features: Tensor) -> Tensor:
        """Features to features, of the shapes that the convolution takes."""
        out: Tensor = self.conv(features)
        return out.relu_() if self.relu else out


class FoldedBlock(nn.Module):
    """A block's layers with its skip connection and last ReLU."""

    def __init__(self, body: Iterable[nn.Module], shortcut: nn.Module | None) -> None:
        super().__init__()
        self.body = nn.ModuleList(_layers(body))
        self.shortcut = None if shortcut is None else _replaced(shortcut)
        if isinstance(self.shortcut, nn.Sequential) and len(self.shortcut) == 2:
            shrink, conv = self.shortcut
            if isinstance(shrink, Shrink) and shrink.temporal == 1:
                self.shortcut = ShrinkingConv(shrink, cast(nn.Conv2d, conv.conv))

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C', T', H', W'), or single frames without T."""
        out = features
        for layer in self.body:
            out = layer(out)
        return self.end(out, None if self.shortcut is None else self.shortcut(features))

    def end(self, features: Tensor, shortcut: Tensor | None) -> Tensor:
        """The block's output from that of its layers and that of its shortcut."""
        return (features if shortcut is None else features.add_(shortcut)).relu_()


class FoldedInputNorm(nn.Module):
    """The normalisation of few channels. Rows of pixels are as one vector, which is fast for channels last."""

    def __init__(self, norm: InputNorm) -> None:
        super().__init__()
        mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        scale = norm.weight.double() * (variance.double() + norm.eps).rsqrt()
        self.scale = nn.Parameter(scale.float())
        self.shift = nn.Parameter((norm.bias.double() - mean.double() * scale).float())

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same, channels last in memory."""
        rows_BTHX = clip_BCTHW.permute(0, 2, 3, 4, 1).contiguous().flatten(3)
        W = clip_BCTHW.shape[4]
        rows_BTHX = torch.addcmul(self.shift.repeat(W), rows_BTHX, self.scale.repeat(W))
        return rows_BTHX.unflatten(3, (W, -1)).permute(0, 4, 1, 2, 3)


class SlicedPool(nn.Module):
    """`TemporalPool` as maxima of slices: `nn.MaxPool2d` also finds the places of the maxima, which is slow."""

    def __init__(self, pool: TemporalPool) -> None:
        super().__init__()
        sizes = (pool.kernel_size, pool.stride, pool.padding)
        self.kernel, self.stride, self.padding = (cast(tuple[int, int], size)[0] for size in sizes)
        self.extra = pool.extra

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C, ceil(T / stride), H, W)."""
        x_BTHWC = padded(features_BCTHW, frames=self.extra, mode="replicate").permute(0, 2, 3, 4, 1)
        T, stride = x_BTHWC.shape[1], self.stride
        windows = (T + 2 * self.padding - self.kernel) // stride + 1
        out_BTHWC = x_BTHWC[:, : windows * stride : stride].clone(memory_format=torch.contiguous_format)
        for tap in range(-self.padding, self.kernel - self.padding):
            inside = [number for number in range(windows) if 0 <= number * stride + tap < T]
            if tap and inside:
                of_tap = x_BTHWC[:, inside[0] * stride + tap : inside[-1] * stride + tap + 1 : stride]
                part = out_BTHWC[:, inside[0] : inside[-1] + 1]
                torch.maximum(part, of_tap, out=part)
        return out_BTHWC.permute(0, 4, 1, 2, 3)


class ShrinkingConv(nn.Module):
    """The mean over windows of pixels, then a 1x1 convolution: as one convolution, where whole windows fill a frame."""

    def __init__(self, shrink: Shrink, conv: nn.Conv2d) -> None:
        super().__init__()
        self.shrink, self.conv = shrink, conv
        side = shrink.spatial
        spread = conv.weight.expand(-1, -1, side, side) / side**2
        self.weight = nn.Parameter(spread.contiguous(memory_format=torch.channels_last))

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C', T, ceil(H / side), ceil(W / side))."""
        side = self.shrink.spatial
        if features_BCTHW.shape[3] % side or features_BCTHW.shape[4] % side:
            smaller: Tensor = self.conv(self.shrink(features_BCTHW))
            return smaller
        return on_frames(lambda frames: F.conv2d(frames, self.weight, self.conv.bias, stride=side), features_BCTHW)
