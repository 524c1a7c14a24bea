"""Makes the representation of each stream of a config. The packaged ones are listed here."""

from collections.abc import Callable

import torch
from torch import nn

from airstreams.config import ModelConfig
from airstreams.data.targets import TargetKind
from airstreams.representations import Supervised
from airstreams.representations.custom import load_custom
from airstreams.representations.flow import Flow
from airstreams.representations.rgb import RGB
from airstreams.representations.semantic import Semantic


def make_representation(
    stream: str,
    config: ModelConfig,
    segment_classes: int,
    make_custom: Callable[[str, str, bool], nn.Module] = load_custom,
) -> nn.Module:
    """Make the representation of a stream.

    Args:
        stream: its name.
        config: its options, or the class of a custom stream.
        segment_classes: S, the number of the segmenter's classes with the background.
        make_custom: makes a custom stream's from its name, its class and whether action losses are kept from it.

    Raises:
        InputError: the class of a custom stream cannot be used.
    """
    stop_gradient = stream in config.stop_gradient
    if stream in _CLASSES:
        return _CLASSES[stream](config, stop_gradient, segment_classes)
    return make_custom(stream, config.representations[stream], stop_gradient)


def target_kind(stream: str, config: ModelConfig) -> TargetKind | None:
    """The kind of targets that a stream learns from; None: it has no teacher. It makes the class, without values.

    InputError: as `make_representation`.
    """
    with torch.device("meta"):
        representation = make_representation(stream, config, segment_classes=1)
    return representation.target if isinstance(representation, Supervised) else None


def has_segmenter(stream: str) -> bool:
    """Whether a packaged stream's representation is a segmenter, which takes published weights of its own."""
    return _CLASSES.get(stream) is _semantic


def _semantic(config: ModelConfig, stop_gradient: bool, segment_classes: int) -> Semantic:
    width, stride, channels = config.segmenter_width, config.segmenter_stride, config.semantic_channels
    return Semantic(segment_classes, width, stride, channels, stop_gradient)


_CLASSES: dict[str, Callable[[ModelConfig, bool, int], nn.Module]] = {
    "rgb": lambda *_: RGB(),
    "rgb2": lambda *_: RGB(),
    "rgb3": lambda *_: RGB(),
    "flow": lambda config, stop_gradient, _: Flow(config.flow, stop_gradient),
    "semantic": _semantic,
}
