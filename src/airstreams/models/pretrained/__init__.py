"""Published weights: known names, files that users have, and where a download is kept.

Each family of weights has one file with its formats. All give the names of this package's layers, without the number
of the block: `Conv3d_1a_7x7.conv.weight`. `classifier.weight` (K, C) and `classifier.bias` (K,) are the last layer's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from airstreams.errors import InputError, one_line
from airstreams.models.pretrained import i3d, torchvision_weights
from airstreams.models.pretrained.download import cached_weights

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class PublishedWeights:
    """A tower's weights.

    name: as the user gave it.
    backbone: the backbone that they are for; resnet18: they are for the segmenter.
    input_channels: 3 for RGB, 2 for flow.
    weights: by layer, batch statistics included.
    source: where they come from, with the licence, in a sentence; empty if the file does not say.
    """

    name: str
    backbone: str
    input_channels: int
    weights: Weights
    source: str = ""


@dataclass(frozen=True)
class Known:
    """Weights that have a name of their own.

    backbone: the backbone that they are for.
    file: the name of their safetensors file in a cache.
    fetch: downloads and converts them.
    source: where they come from, with the licence.
    """

    backbone: str
    file: str
    fetch: Callable[[], Weights]
    source: str


KNOWN = {"i3d-kinetics400": Known("i3d", "i3d_kinetics400.safetensors", i3d.fetch, i3d.SOURCE)}
"""Published weights by name."""


def published_weights(name: str, offline: bool) -> PublishedWeights:
    """The weights of a known name. They are downloaded once and kept in the user's cache.

    Raises:
        InputError: they are not in the cache and cannot be fetched.
    """
    known = KNOWN[name]
    path = cached_weights(name, known.file, known.fetch, offline)
    return _recognised(name, load_file(path), known.source)


def torchvision_weights_of(name: str, offline: bool) -> PublishedWeights:
    """The weights that torchvision knows by a name. torchvision downloads them once and keeps them in torch's cache.

    Raises:
        InputError: torchvision is missing, the name is unknown, or the weights are not there and cannot be fetched.
    """
    found, source = torchvision_weights.fetch(name, offline)
    return _recognised(f"torchvision:{name}", _read(found) if isinstance(found, Path) else found, source)


def weights_of_file(path: Path) -> PublishedWeights:
    """The weights in a file of a published format.

    Raises:
        InputError: the file is damaged, or its format is unknown.
    """
    return _recognised(str(path), _read(path), "")


def _read(path: Path) -> Weights:
    if not path.is_file():
        raise InputError(f"--init {path}: there is no such file. Give a run's folder, a file of weights, or a name.")
    try:
        # weights_only: a pickle from elsewhere could run code.
        content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # safetensors, zipfile, pickle and torch report damage in many ways
        raise _unreadable(path, one_line(error)[:200]) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise _unreadable(path, "it holds no state_dict")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def _unreadable(path: Path, reason: str) -> InputError:
    return InputError(f"--init {path}: the file cannot be read as weights ({reason}). Download it again.")


def _recognised(name: str, weights: Weights, source: str) -> PublishedWeights:
    if (found := i3d.recognise(weights)) is not None:
        return PublishedWeights(name, "i3d", found[i3d.FIRST_LAYER].shape[1], found, source)
    if (known := torchvision_weights.recognise(weights)) is not None:
        network, channels, found = known
        return PublishedWeights(name, network, channels, found, source)
    raise InputError(
        f"--init {name}: its layers ({', '.join(list(weights)[:3])}, ...) are of no known format. Give I3D weights as "
        "safetensors, the rgb_imagenet.pt or flow_imagenet.pt of pytorch-i3d, or torchvision's "
        f"{', '.join(torchvision_weights.NETWORKS)}."
    )
