"""Custom streams: a user's own representation, imported by name and checked."""

import copy
import importlib
from functools import partial

import torch
from torch import Tensor, nn

from airstreams.config import ClipConfig
from airstreams.errors import InputError, describe
from airstreams.representations import Representation, Supervised


def load_custom(stream: str, class_path: str, stop_gradient: bool = False) -> nn.Module:
    """Make the representation of a custom stream.

    Args:
        stream: its name, a key of `model.representations`.
        class_path: its class, `MODULE:CLASS`. Importing it runs the module's code.
        stop_gradient: keep the action losses from what its teacher trains.

    Raises:
        InputError: the class cannot be imported or made, it is no module with `channels`, or it has no teacher whose
            loss could train it under `stop_gradient`.
    """
    key = f"model.representations.{stream}: {class_path}"
    found = _find_class(stream, class_path)
    try:
        representation = found()
    except Exception as error:
        raise InputError(
            f"{key} cannot be made ({describe(error)}). {found.__name__}() must work, also on torch's meta device, "
            "where tensors hold no values."
        ) from error
    channels = getattr(representation, "channels", None)
    if not isinstance(channels, int) or channels < 1:
        raise InputError(f"{key}: `channels` is {channels}. Set it to the number of channels that its tower sees.")
    not_tensors = [name for name, value in representation.state_dict().items() if not isinstance(value, Tensor)]
    if not_tensors:
        raise InputError(
            f"{key}: {not_tensors[0]} in its state_dict is no tensor and cannot be saved. Return a tensor from "
            "get_extra_state, or remove it."
        )
    if stop_gradient:
        if not isinstance(representation, Supervised):
            raise InputError(
                f"model.stop_gradient: got {stream}, whose class {class_path} learns from no teacher. To stop its "
                "training, name it in training.freeze."
            )
        representation.stop_gradient = True
    # Replaced on the instance, because a wrapping module would rename the weights.
    representation.forward = partial(_checked_forward, key, representation)
    return representation


def _find_class(stream: str, class_path: str) -> type[nn.Module]:
    key = f"model.representations.{stream}: {class_path}"
    module_name, class_name = class_path.split(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise InputError(
            f"{key} cannot be imported ({describe(error)}). Put its module's folder on PYTHONPATH, or pip install it."
        ) from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        problem = "is no torch.nn.Module" if hasattr(module, class_name) else f"is not in {module.__file__}"
        raise InputError(f"{key} {problem}. Give a subclass of torch.nn.Module.")
    if hasattr(nn.ModuleDict(), stream):
        raise InputError(f"{key}: torch reserves the name {stream}. Choose another, such as {stream}_stream.")
    return found


def _checked_forward(key: str, representation: nn.Module, clip_B3THW: Tensor) -> Representation:
    """A custom stream's forward. InputError, naming the stream: it fails, or returns what no tower can take."""
    before = _version(clip_B3THW)
    try:
        output = type(representation).forward(representation, clip_B3THW)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        fix = "--debug shows where."
        if clip_B3THW.is_meta:
            fix = f"It must also work on torch's meta device, where tensors hold no values. {fix}"
        raise InputError(f"{key}: forward failed ({describe(error)}). {fix}") from error
    if _version(clip_B3THW) != before:
        raise InputError(
            f"{key}: forward changed the clip in place, but other streams see the same clip. Write clip - mean instead "
            "of clip.sub_(mean)."
        )
    B, _, T, H, W = clip_B3THW.shape
    shape, dtype = (B, representation.channels, T, H, W), clip_B3THW.dtype
    seen = output.tower_input if isinstance(output, Representation) else None
    if not isinstance(seen, Tensor) or seen.shape != shape or not (seen.dtype == dtype or _from_autocast(seen)):
        given = type(output if seen is None else seen).__name__
        given = f"{tuple(seen.shape)}, {seen.dtype}" if isinstance(seen, Tensor) else given
        raise InputError(
            f"{key}: forward gave {given}, expected Representation(tower_input of {shape}, {dtype}; prediction)."
        )
    return output


def try_out(representation: nn.Module, clip: ClipConfig, device: torch.device) -> None:
    """Run the forward of a custom stream on a black clip, so that it fails before hours of work and not after them.

    It runs on a copy, because forward may change the module. It runs in the modes of validation and of prediction. The
    loss of one that learns from a teacher runs too.

    Raises:
        InputError: it fails, or action losses reach what the teacher trains in spite of `stop_gradient`.
    """
    tried = copy.deepcopy(representation).to(device).eval()
    black_13THW = torch.zeros(1, 3, clip.frames, clip.size, clip.size, device=device)
    for mode in (torch.no_grad, torch.inference_mode):  # only no_grad counts changes in place
        with mode():
            tried(black_13THW)
    if isinstance(tried, Supervised):
        _try_loss(tried, black_13THW, clip)


def _try_loss(representation: Supervised, black_13THW: Tensor, clip: ClipConfig) -> None:
    name = f"{type(representation).__module__}:{type(representation).__name__}"
    seen, prediction = representation(black_13THW)
    if representation.reads_pooled:  # of a tower, which is not at hand
        return
    if prediction is None:
        raise InputError(f"{name}: forward gave no prediction. Return one for the loss to compare with the target.")
    target = representation.target.blank(clip).unsqueeze(0).to(black_13THW.device)
    try:
        total, count = representation.loss(prediction, target)
    except Exception as error:
        raise InputError(f"{name}: loss failed ({describe(error)}). --debug shows where.") from error
    if total.numel() != 1 or float(count) != float(representation.target.count(target)):
        raise InputError(
            f"{name}: loss gave {tuple(total.shape)} and the count {float(count)} for a clip without targets, expected "
            "a scalar and 0. Return the sum over the places with a value, and their number."
        )
    if not representation.stop_gradient:
        return
    parameters = [parameter for parameter in representation.parameters() if parameter.requires_grad]
    reached = [
        torch.autograd.grad(output.sum(), parameters, retain_graph=True, allow_unused=True)
        if output.requires_grad
        else [None] * len(parameters)
        for output in (seen, prediction)
    ]
    if any(by_action is not None and by_teacher is not None for by_action, by_teacher in zip(*reached, strict=True)):
        raise InputError(
            f"model.stop_gradient: {name} lets the gradient through. In forward, compute the tower's input from "
            "self.for_tower(prediction)."
        )


def _from_autocast(tensor: Tensor) -> bool:
    in_bfloat16 = tensor.dtype == torch.bfloat16 and not tensor.is_meta  # autocast does not know the meta device
    return in_bfloat16 and torch.is_autocast_enabled(tensor.device.type)


def _version(tensor: Tensor) -> int | None:
    """How often a tensor was changed in place; None in inference mode and under torch.compile, which do not count."""
    return None if torch.compiler.is_compiling() or tensor.is_inference() else tensor._version
