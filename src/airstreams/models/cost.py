"""Parameters and cost of a model, part by part: what `airstreams info` prints.

The cost is counted in multiply-adds, as in the video literature (SlowFast: 213 G). Operations are twice as many.
torch's own counter counts convolutions and linear layers, on the meta device, so nothing is computed. It skips
element-wise work. The flow layer consists of such work, so its cost comes from a formula. Normalisations, activations
and poolings are not counted, as usual.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from airstreams.config import Config
from airstreams.models.airstreams import AIRStreams, build
from airstreams.representations import Representation
from airstreams.representations.flow import Flow

GREY_OPERATIONS = 6  # per pixel: the grey value of the flow stream's input, and its scale


@dataclass
class Cost:
    """Parameters and multiply-adds per clip, by part: `rgb.early`, `semantic.representation`, `merged.late`, ...

    parameters: of the saved model.
    inference: multiply-adds of the answer.
    training: multiply-adds of the forward pass of a training step.
    parameters_at_inference: the number of parameters that inference uses. They need not be whole parts.
    """

    parameters: dict[str, int]
    inference: dict[str, int]
    training: dict[str, int]
    parameters_at_inference: int


class _NotImported(nn.Module):
    """Stands for the representation of a custom stream: black, with the channels that its tower takes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, clip_B3THW: Tensor) -> Representation:
        B, _, T, H, W = clip_B3THW.shape
        return Representation(clip_B3THW.new_zeros(B, self.channels, T, H, W), None)


def count(config: Config, classes: int, segment_classes: int, channels: Mapping[str, int] | None = None) -> Cost:
    """Count a config's model, as training saves it, for one clip of the config's size.

    The late towers of heads whose loss has no weight are not saved, and not counted.

    channels: of the representation of each custom stream. Its class is not imported then, and the representation is
        not counted. None: the classes are imported and counted.
    """
    with torch.device("meta"):
        if channels is None:
            model = build(config.model, classes, segment_classes)
        else:
            known = channels
            model = build(config.model, classes, segment_classes, lambda stream, *_: _NotImported(known[stream]))
    model.keep_heads(config.trained_heads())
    parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in _counted(model).items()}
    _skip_norms(model)
    used: set[nn.Module] = set()
    hooks = [module.register_forward_pre_hook(lambda module, _: used.add(module)) for module in model.modules()]
    inference = _multiply_adds(model, config, config.answer_heads)
    for hook in hooks:
        hook.remove()
    same = sorted(config.answer_heads) == sorted(config.trained_heads())
    training = dict(inference) if same else _multiply_adds(model, config, config.trained_heads())
    used_parameters = sum(parameter.numel() for module in used for parameter in module.parameters(recurse=False))
    return Cost(parameters, inference, training, used_parameters)


def _counted(model: AIRStreams) -> dict[str, nn.Module]:
    return {name: part for name, part in model.parts().items() if not isinstance(part, _NotImported)}


def totals(config: Config, classes: int, segment_classes: int) -> tuple[int, int]:
    """The parameters of the saved model and the multiply-adds of the answer, which `count` gives part by part."""
    with torch.device("meta"):
        model = build(config.model, classes, segment_classes)
    model.keep_heads(config.trained_heads())
    _skip_norms(model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return parameters, sum(_multiply_adds(model, config, config.answer_heads).values())


def _skip_norms(model: AIRStreams) -> None:
    """Let batch normalisations do nothing. They take half of the time, and are not counted."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.forward = nn.Identity().forward  # type: ignore[method-assign]


def _multiply_adds(model: AIRStreams, config: Config, heads: list[str]) -> dict[str, int]:
    clip = config.clip
    counter = FlopCounterMode(display=False)
    with counter:
        model(torch.empty(1, 3, clip.frames, clip.size, clip.size, device="meta"), heads)
    counted = counter.get_flop_counts()
    costs = {}
    for name in _counted(model):
        stream, kind = name.split(".")
        group = "representations" if kind == "representation" else kind
        operations = sum(counted.get(f"AIRStreams.{group}.{stream}", {}).values())
        part = model.representations[stream] if kind == "representation" else None
        if isinstance(part, Flow) and any(key.startswith(f"AIRStreams.early.{stream}") for key in counted):
            operations += clip.frames * GREY_OPERATIONS * clip.size**2 if part.input == "grey" else 0
            pairs = config.model.flow.channels * (clip.frames - 1)
            operations += pairs * part.layer.operations(clip.size, clip.size)
        costs[name] = int(operations) // 2
    return costs
