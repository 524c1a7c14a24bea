"""Makes the representation of each stream of a config. The packaged ones are listed here."""

from collections.abc import Callable

import torch
from torch import nn

from airstreams.config import ModelConfig
from airstreams.data.targets import TargetKind
from airstreams.representations import Supervised
from airstreams.representations.custom import load_custom
from airstreams.representations.depth import Depth
from airstreams.representations.distil import Distil
from airstreams.representations.flow import Flow
from airstreams.representations.keypoints import Keypoints
from airstreams.representations.rgb import RGB
from airstreams.representations.semantic import Parts, Semantic


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
    if stream in _CLASSES and stream not in config.representations:
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
    return Semantic(segment_classes, *_network(config), config.semantic_channels, stop_gradient)


def _network(config: ModelConfig) -> tuple[float, int]:
    """The width and the stride of the network of single frames."""
    return config.segmenter_width, config.segmenter_stride


_CLASSES: dict[str, Callable[[ModelConfig, bool, int], nn.Module]] = {
    "rgb": lambda *_: RGB(),
    "rgb2": lambda *_: RGB(),
    "rgb3": lambda *_: RGB(),
    "flow": lambda config, stop_gradient, _: Flow(config.flow, stop_gradient),
    "semantic": _semantic,
    "parts": lambda config, stop_gradient, _: Parts(*_network(config), config.semantic_channels, stop_gradient),
    "depth": lambda config, stop_gradient, _: Depth(*_network(config), stop_gradient),
    "keypoints": lambda config, stop_gradient, _: Keypoints(*_network(config), config.semantic_channels, stop_gradient),
    "distil": lambda *_: Distil(),
}
