"""The representations: what each stream's tower sees, made from one RGB clip inside the network (section 3.1).

Each is a module with `channels` and a `forward` from a clip (B, 3, T, H, W) in 0..1 to a `Representation`. Further ones
are classes of their user's, imported by name (docs/new-stream.md).
"""

import copy
import importlib
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from airstreams.config import ClipConfig, FlowConfig
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
    stateful = [name for name, value in representation.state_dict().items() if not isinstance(value, Tensor)]
    if stateful:
        raise InputError(
            f"{key}: {stateful[0]} of its state_dict is no tensor and could not be saved; expected tensors alone; "
            "let get_extra_state give one, or leave it out"
        )
    representation.forward = partial(_watched, key, representation)  # a module around it would rename its weights
    return representation


def _watched(key: str, representation: nn.Module, clip_B3THW: Tensor) -> Representation:
    """A further stream's forward; InputError, which names the stream, for whatever goes wrong in it."""
    before = _version(clip_B3THW)
    try:
        output = type(representation).forward(representation, clip_B3THW)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        on_meta = "expected it to do on torch's meta device as well, where tensors hold no values"
        mend = on_meta if clip_B3THW.is_meta else "mend it"
        raise InputError(f"{key}: forward failed ({named(error)}); {mend}; --debug shows where") from error
    if _version(clip_B3THW) != before:
        raise InputError(
            f"{key}: forward changed the clip in place, which other streams see too; expected it as it was; write "
            "clip - mean for clip.sub_(mean)"
        )
    B, _, T, H, W = clip_B3THW.shape
    shape, dtype = (B, representation.channels, T, H, W), clip_B3THW.dtype
    seen = output.tower_input if isinstance(output, Representation) else None
    if not isinstance(seen, Tensor) or seen.shape != shape or not (seen.dtype == dtype or _by_autocast(seen)):
        given = type(output if seen is None else seen).__name__
        given = f"{tuple(seen.shape)}, {seen.dtype}" if isinstance(seen, Tensor) else given
        raise InputError(
            f"{key}: forward gave {given}, expected Representation(tower_input of {shape}, {dtype}; shown)"
        )
    return output


def try_out(representation: nn.Module, clip: ClipConfig, device: torch.device) -> None:
    """Run a further stream's forward on a black clip, before hours of work: as in training, and as where it predicts.

    On a copy, for forward may change it, as by what it sets once for all by the first clip that it sees.

    InputError: it fails.
    """
    tried = copy.deepcopy(representation).to(device).eval()
    black_13THW = torch.zeros(1, 3, clip.frames, clip.size, clip.size, device=device)
    for mode in (torch.no_grad, torch.inference_mode):  # the latter counts no changes in place
        with mode():
            tried(black_13THW)


def _by_autocast(tensor: Tensor) -> bool:
    in_bfloat16 = tensor.dtype == torch.bfloat16 and not tensor.is_meta  # which autocast does not know
    return in_bfloat16 and torch.is_autocast_enabled(tensor.device.type)


def _version(tensor: Tensor) -> int | None:
    """How often a tensor was changed in place; None where that is not counted: in inference mode and torch.compile."""
    return None if torch.compiler.is_compiling() or tensor.is_inference() else tensor._version
