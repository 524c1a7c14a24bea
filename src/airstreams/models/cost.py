"""Parameters and cost of a model, part by part: what `airstreams info` prints.

Cost is counted in multiply-adds, as the literature's video figures are (SlowFast's 213 G); operations are twice that.
Convolutions and linear layers come from torch's own counter, run on the meta device, so nothing is computed. Counters
skip element-wise work, which the flow layer is made of, so that is counted off its formula. Normalisations,
activations and poolings are left out, as everywhere.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from airstreams.config import Config
from airstreams.models.airstreams import AIRStreams, build
from airstreams.models.flow import make_flow

GREY_OPERATIONS = 6  # a pixel: the luma of the flow stream's frames, and their scale


@dataclass
class Cost:
    """Parameters and multiply-adds a clip by part: `rgb.early`, `semantic.representation`, `merged.late`, ...

    scoring: parameters of what runs at inference, which need not be whole parts.
    """

    parameters: dict[str, int]
    inference: dict[str, int]
    training: dict[str, int]  # of a training step's forward pass
    scoring: int


def count(config: Config, classes: int, segment_classes: int) -> Cost:
    """Count a config's model, as training saves it, for one clip of its own size.

    The late towers of heads whose loss has no weight are not saved, and not counted.
    """
    with torch.device("meta"):
        model = build(config.model, classes, segment_classes)
    model.keep_heads(config.trained_heads())
    parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in model.parts().items()}
    return Cost(
        parameters,
        _multiply_adds(model, config, [config.model.answer]),
        _multiply_adds(model, config, config.trained_heads()),
        _parameters_that_score(model, config),
    )


def _parameters_that_score(model: AIRStreams, config: Config) -> int:
    run: set[nn.Module] = set()
    for module in model.modules():
        module.register_forward_pre_hook(lambda module, _: run.add(module))
    _run(model, config, [config.model.answer])
    return sum(parameter.numel() for module in run for parameter in module.parameters(recurse=False))


def _run(model: AIRStreams, config: Config, heads: list[str]) -> None:
    clip = config.clip
    model(torch.empty(1, 3, clip.frames, clip.size, clip.size, device="meta"), heads)


def _multiply_adds(model: AIRStreams, config: Config, heads: list[str]) -> dict[str, int]:
    clip = config.clip
    counter = FlopCounterMode(display=False)
    with counter:
        _run(model, config, heads)
    counted = counter.get_flop_counts()
    costs = {}
    for name in model.parts():
        stream, kind = name.split(".")
        group = "representations" if kind == "representation" else kind
        operations = sum(counted.get(f"AIRStreams.{group}.{stream}", {}).values())
        if name == "flow.representation" and any(key.startswith("AIRStreams.early.flow") for key in counted):
            operations += clip.frames * GREY_OPERATIONS * clip.size**2
            operations += (clip.frames - 1) * make_flow(config.model.flow).operations(clip.size, clip.size)
        costs[name] = int(operations) // 2
    return costs
