"""Starting from published weights: every tower of their backbone takes them, whatever its stream (section 4.3.2).

Weights for RGB also start the towers of other streams: the first layer is averaged over its input channels, and the
mean stands for each of the stream's channels (cross-modality initialisation, Wang et al. 2016).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from airstreams.config import ModelConfig
from airstreams.errors import InputError
from airstreams.models.airstreams import AIRStreams
from airstreams.models.pretrained import PublishedWeights
from airstreams.representations.semantic import Semantic
from airstreams.training.transfer import Transfer, weights_prefix

CLASSIFIER = "classifier."


@dataclass(frozen=True)
class _Copied:
    """What a tower took: the names of its weights, and in words."""

    names: list[str]
    outcome: str


def take_published(
    model: AIRStreams,
    config: ModelConfig,
    everywhere: PublishedWeights | None,
    by_stream: Mapping[str, PublishedWeights],
    segmenter: PublishedWeights | None = None,
) -> Transfer:
    """Copy published weights into the towers that have their backbone. The other parts keep their own weights.

    Args:
        model: freshly built; changed in place.
        config: its config.
        everywhere: the weights of all towers that `by_stream` does not name, the merged ones included.
        by_stream: weights of single streams.
        segmenter: weights of a ResNet-18 for the semantic stream's segmenter.

    Raises:
        InputError: no tower has the weights' backbone, they lack a layer, they take another number of channels than a
            named stream has, or the model has no segmenter that they fit.
    """
    unknown = ", ".join(stream for stream in by_stream if stream not in config.streams)
    if unknown:
        raise InputError(f"--init: {unknown} is no stream of the model. Choose from {', '.join(config.streams)}.")
    outcomes: dict[str, str] = {}
    taken: list[str] = []
    if segmenter is not None and not any(isinstance(part, Semantic) for part in model.representations.values()):
        raise InputError(
            f"--init segmenter={segmenter.name}: the model has no semantic stream. Give --labels and semantic in "
            "--model.streams, or leave out segmenter=."
        )
    parts = model.parts()
    towers = [name for name in parts if not name.endswith(".representation")]
    for name, part in parts.items():
        head, kind = name.split(".")
        stream = head if head in model.early else None
        weights = by_stream.get(stream, everywhere) if stream else everywhere or _of_first(config, by_stream)
        if kind == "representation":
            if isinstance(part, Semantic) and segmenter is not None:
                names = _copy_segmenter(part.segmenter, segmenter)
                taken += [f"{weights_prefix(name)}.segmenter.{key}" for key in names]
                outcomes[name] = f"taken from {segmenter.name} without its classifier and reduction"
            continue
        backbone = config.backbone_of(stream)
        if weights is None:
            outcomes[name] = "not taken: no weights are given for it"
        elif weights.backbone != backbone:
            outcomes[name] = f"not taken: the weights are for {weights.backbone}, the tower is {backbone or 'your own'}"
        else:
            copied = _copy(part, weights, named=stream in by_stream)
            outcomes[name] = copied.outcome
            taken += [f"{weights_prefix(name)}.{key}" for key in copied.names]
    given = everywhere or next(iter(by_stream.values()), None)
    if given and not any(outcome.startswith("taken") for name, outcome in outcomes.items() if name in towers):
        raise InputError(
            f"--init {given.name}: the weights are for the backbone {given.backbone}, which no tower of the model has. "
            f"Set --model.backbone {given.backbone}."
        )
    parameters = dict(model.named_parameters())
    counted = sum(parameters[name].numel() for name in taken if name in parameters)
    total = sum(parameter.numel() for parameter in parameters.values())
    every = (everywhere, *by_stream.values(), segmenter)
    origin = ", ".join(dict.fromkeys(weights.name for weights in every if weights))
    return Transfer(outcomes, (), counted, total, frozenset(taken), origin)


def _of_first(config: ModelConfig, by_stream: Mapping[str, PublishedWeights]) -> PublishedWeights | None:
    """Merged towers without weights of their own start from the first stream's that has some."""
    return next((by_stream[stream] for stream in config.streams if stream in by_stream), None)


def _copy(part: nn.Module, weights: PublishedWeights, named: bool) -> _Copied:
    """Copy the layers that the weights have into a tower, batch statistics included."""
    state = part.state_dict()
    new: dict[str, Tensor] = {}
    notes = []
    for key, own in state.items():
        layer = re.sub(r"^blocks\.\d+\.", "", key)
        published = weights.weights.get(layer)
        if published is None:
            if key.startswith("blocks.") and not key.endswith("num_batches_tracked"):
                raise _unfit(weights, f"the layer {layer} is missing")
            continue
        if layer.startswith(CLASSIFIER):
            if published.shape != own.shape:
                notes += [f"without its classifier ({len(published)} classes there, {len(own)} here)"]
                continue
        elif published.shape != own.shape:
            if published.ndim != own.ndim or own.ndim < 4 or published[:, :1].shape != own[:, :1].shape:
                there, here = ("x".join(map(str, shape)) for shape in (published.shape, own.shape))
                raise _unfit(weights, f"the layer {layer} has {there} there and {here} here")
            published = _for_channels(published, own.shape[1], weights, named)
            notes += [f"its first layer is the mean over {weights.input_channels} channels"]
        new[key] = published
    part.load_state_dict(new, strict=False)
    return _Copied(list(new), ", ".join(["taken", *dict.fromkeys(notes)][:2]))


def _copy_segmenter(segmenter: nn.Module, weights: PublishedWeights) -> list[str]:
    """Copy all layers of a ResNet-18 but its classifier into the segmenter; returns their names."""
    own = segmenter.state_dict()
    wanted = [key for key in own if key.startswith(("stem.", "stages.")) and not key.endswith("num_batches_tracked")]
    for key in wanted:
        if key not in weights.weights:
            raise _unfit(weights, f"the segmenter's layer {key} is missing")
        if weights.weights[key].shape != own[key].shape:
            there, here = ("x".join(map(str, shape)) for shape in (weights.weights[key].shape, own[key].shape))
            raise InputError(
                f"--init segmenter={weights.name}: {key} has {there} there and {here} here. Set "
                "--model.segmenter_width 1."
            )
    segmenter.load_state_dict({key: weights.weights[key] for key in wanted}, strict=False)
    return wanted


def _unfit(weights: PublishedWeights, reason: str) -> InputError:
    return InputError(f"--init {weights.name}: {reason}. Download the weights again.")


def _for_channels(kernel: Tensor, channels: int, weights: PublishedWeights, named: bool) -> Tensor:
    """A first layer (out, in, t, h, w) for another number of input channels."""
    if named:
        raise InputError(
            f"--init {weights.name}: the weights take {kernel.shape[1]} channels, but the stream has {channels}. Give "
            "weights for this kind of input, or leave the stream's name out."
        )
    return kernel.mean(dim=1, keepdim=True).expand(-1, channels, *[-1] * (kernel.ndim - 2)).to(torch.float32)
