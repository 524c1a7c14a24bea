"""The representations: what each stream's tower sees, made from one RGB clip inside the network (section 3.1).

Each is a module with `channels` and a `forward` from a clip (B, 3, T, H, W) in 0..1 to a `Representation`. Further ones
are classes of their user's, imported by name (docs/new-stream.md).
"""

import importlib
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from airstreams.config import FlowConfig
from airstreams.data.transforms import LUMA
from airstreams.errors import InputError, named
from airstreams.models.flow import make_flow
from airstreams.models.segmenter import DilatedResNet18, upsample
from airstreams.models.tower import on_frames


class Representation(NamedTuple):
    """What a tower sees, and what a person can look at.

    tower_input: (B, channels, T, H, W).
    shown: flow in px a frame (B, 2, T, H, W), what another kind of flow has in its place, or segmentation logits
        (B, S, T, h, w) on the segmenter's grid; None for rgb. A further stream's is None or (B, any, T, any, any).
    """

    tower_input: Tensor
    shown: Tensor | None


class RGB(nn.Module):
    """The clip itself."""

    channels = 3

    def forward(self, clip_B3THW: Tensor) -> Representation:
        """See `Representation`."""
        return Representation(clip_B3THW, None)


class Flow(nn.Module):
    """Optical flow between consecutive grey frames.

    Args:
        config: which kind, and its options.
        stop_gradient: cut the action losses from what the layer learns (Table 2).
    """

    def __init__(self, config: FlowConfig, stop_gradient: bool) -> None:
        super().__init__()
        self.layer = make_flow(config)
        self.channels = self.layer.channels
        self.stop_gradient = stop_gradient
        self.layer.requires_grad_(not stop_gradient)  # nothing but the action losses ever reaches them

    def forward(self, clip_B3THW: Tensor) -> Representation:
        """See `Representation`."""
        red, green, blue = clip_B3THW.unbind(1)
        grey_B1THW = (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).unsqueeze(1)
        flow_BCTHW = self.layer(grey_B1THW)
        return Representation(flow_BCTHW, flow_BCTHW)


class Semantic(nn.Module):
    """The segmenter's pre-softmax logits, reduced and brought to the clip's size.

    A 1x1 reduction commutes with a bilinear enlargement, so it is done on the segmenter's small grid: a tower stem
    over S channels at full size would cost about half of the model's budget.

    Args:
        classes: S, background included.
        segmenter_width: scales the segmenter's channels.
        segmenter_stride: px from one of its logits to the next: 16, 8 or 4.
        channels: what the tower sees of the S logits.
        stop_gradient: cut the action losses from the segmenter (Table 2); the teacher's loss still reaches it.
    """

    def __init__(
        self, classes: int, segmenter_width: float, segmenter_stride: int, channels: int, stop_gradient: bool
    ) -> None:
        super().__init__()
        self.channels = channels
        self.segmenter = DilatedResNet18(classes, segmenter_width, segmenter_stride)
        self.reduction = nn.Conv2d(classes, channels, 1, bias=False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.stop_gradient = stop_gradient

    def forward(self, clip_B3THW: Tensor) -> Representation:
        """See `Representation`."""
        size = clip_B3THW.shape[-2:]
        centred_B3THW = (clip_B3THW - 0.5).contiguous(memory_format=torch.channels_last_3d)
        logits_BSThw = on_frames(self.segmenter, centred_B3THW)
        for_tower = logits_BSThw.detach() if self.stop_gradient else logits_BSThw
        return Representation(on_frames(lambda frames: upsample(self.reduction(frames), size), for_tower), logits_BSThw)


def further(stream: str, place: str) -> nn.Module:
    """A representation of a class that is not this package's.

    Args:
        stream: which `model.representations` gives the class.
        place: of the class, `MODULE:CLASS`. Importing it runs the module's code.

    InputError: it cannot be imported or made, or is no module with `channels`.
    """
    key = f"model.representations.{stream}: {place}"
    module_name, class_name = place.split(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise InputError(
            f"{key} cannot be imported ({named(error)}); expected a module that Python finds; put its folder on "
            "PYTHONPATH or pip install it"
        ) from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        there = "which is no torch.nn.Module" if hasattr(module, class_name) else f"which is not in {module.__file__}"
        raise InputError(f"{key}, {there}; expected a subclass of torch.nn.Module; mend the class or its name")
    if hasattr(nn.ModuleDict(), stream):
        raise InputError(f"{key}: torch uses {stream} itself; expected another name, such as {stream}_stream")
    try:
        representation = found()
    except Exception as error:
        raise InputError(
            f"{key} cannot be made ({named(error)}); expected {class_name}() to do, on torch's "
            "meta device as well, where tensors hold no values"
        ) from error
    channels = getattr(representation, "channels", None)
    if not isinstance(channels, int) or channels < 1:
        raise InputError(f"{key}: `channels` is {channels}; expected their number in what its tower sees, such as 3")
    representation.register_forward_hook(partial(_check, key))
    return representation


def _check(key: str, representation: nn.Module, inputs: tuple[Tensor], output: Any) -> None:
    B, _, T, H, W = inputs[0].shape
    expected = (B, representation.channels, T, H, W)
    given = tuple(output.tower_input.shape) if isinstance(output, Representation) else type(output).__name__
    if given != expected:
        raise InputError(f"{key}: forward gave {given}, expected Representation(tower_input of {expected}, shown)")
