"""Custom streams: a user's own representation, imported by name and checked."""

import copy
import importlib
from functools import partial

import torch
from torch import Tensor, nn

from airstreams.config import ClipConfig
from airstreams.errors import InputError, describe
from airstreams.representations import Representation


def load_custom(stream: str, place: str) -> nn.Module:
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
            f"{key} cannot be imported ({describe(error)}); expected a module that Python finds; put its folder on "
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
            f"{key} cannot be made ({describe(error)}); expected {class_name}() to do, on torch's "
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
    """A custom stream's forward; InputError, which names the stream, for whatever goes wrong in it."""
    before = _version(clip_B3THW)
    try:
        output = type(representation).forward(representation, clip_B3THW)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        on_meta = "expected it to do on torch's meta device as well, where tensors hold no values"
        mend = on_meta if clip_B3THW.is_meta else "mend it"
        raise InputError(f"{key}: forward failed ({describe(error)}); {mend}; --debug shows where") from error
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
            f"{key}: forward gave {given}, expected Representation(tower_input of {shape}, {dtype}; prediction)"
        )
    return output


def try_out(representation: nn.Module, clip: ClipConfig, device: torch.device) -> None:
    """Run a custom stream's forward on a black clip, before hours of work: as in training, and as where it predicts.

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
