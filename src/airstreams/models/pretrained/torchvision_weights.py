"""Formats of torchvision's published weights, and their download.

Its video networks keep their names, apart from the classifier, which is `fc` or `classifier.1` there. Its resnet18
(ImageNet) fits the segmenter, a Dilated ResNet-18, layer for layer:

| torchvision | segmenter |
| --- | --- |
| `conv1`, `bn1` | `stem.0`, `stem.1` |
| `layer2.1.conv1`, `.bn1`, `.conv2`, `.bn2` | `stages.3.body.0`, `.1`, `.3`, `.4` |
| `layer2.0.downsample.0`, `.1` | `stages.2.skip.0`, `.1` |
"""

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from airstreams.errors import InputError, did_you_mean, one_line
from airstreams.models.backbones.torchvision_video import CHANNELS, torchvision_models
from airstreams.models.pretrained.download import weights_folders

Weights = dict[str, Tensor]

SEGMENTER = "resnet18"
"""The network whose weights start the segmenter."""

NETWORKS = (*CHANNELS, SEGMENTER)

_FIRST_LAYERS = dict.fromkeys(NETWORKS, "stem.0.weight") | {"s3d": "features.0.0.0.weight"}
_IMAGENET_MEAN, _IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BODY = {"conv1": "body.0", "bn1": "body.1", "conv2": "body.3", "bn2": "body.4", "downsample": "skip"}
_LICENCE = "torchvision has the licence BSD-3-Clause, and names none for its weights"


def recognise(weights: Weights) -> tuple[str, int, Weights] | None:
    """The name of the network, its input channels, and its weights under this package's names; None: another one."""
    network = _network_of(weights)
    if network is None:
        return None
    floats = {key: value.float() for key, value in weights.items() if not key.endswith("num_batches_tracked")}
    if network == SEGMENTER:
        renamed = _for_segmenter(floats)
    else:
        renamed = {re.sub(r"^(fc|classifier\.1)\.", "classifier.", key): value for key, value in floats.items()}
        renamed["classifier.weight"] = renamed["classifier.weight"].flatten(1)
    return network, renamed[_FIRST_LAYERS[network]].shape[1], renamed


def fetch(name: str, offline: bool) -> tuple[Path | Weights, str]:
    """The weights that torchvision knows by a name, or a file that has them; and where they come from.

    name: of a network, such as `r2plus1d_18`, whose default weights these are; or of weights, such as
        `R2Plus1D_18_Weights.KINETICS400_V1`.

    Raises:
        InputError: torchvision is missing, the name is unknown, or the weights are not there and cannot be fetched.
    """
    network = name.partition(".")[0].lower().removesuffix("_weights")
    if network not in NETWORKS:
        raise InputError(
            f"--init torchvision:{name}: expected one of {', '.join(NETWORKS)}.{did_you_mean(network, NETWORKS)}"
        )
    entry = _entry(torchvision_models(f"--init torchvision:{name}"), name)
    recipe = entry.meta.get("recipe")
    source = f"torchvision's {entry}, {entry.url}{f', trained as in {recipe}' if recipe else ''} ({_LICENCE})"
    file = entry.url.rsplit("/", 1)[-1]
    checkpoints = Path(torch.hub.get_dir()) / "checkpoints"
    for folder in (*weights_folders(), checkpoints):
        if (folder / file).is_file():
            return folder / file, source
    if offline:
        raise InputError(
            f"--init torchvision:{name}: {checkpoints / file} is not there, and --offline forbids to fetch it. Leave "
            f"out --offline once, or download {entry.url}."
        )
    try:
        return dict(entry.get_state_dict(progress=True, check_hash=True)), source
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(
            f"--init torchvision:{name}: {entry.url} cannot be fetched ({one_line(error)[:120]}). Check the network, "
            f"or put the file into {checkpoints}."
        ) from error


def _entry(models: Any, name: str) -> Any:
    """torchvision's entry of some weights. InputError: it has none of this name."""
    try:
        return models.get_weight(name) if "." in name else models.get_model_weights(name).DEFAULT
    except (ValueError, KeyError, AttributeError) as error:
        raise InputError(
            f"--init torchvision:{name}: torchvision has no such weights. Give the name of a network alone: one of "
            f"{', '.join(NETWORKS)}."
        ) from error


def _network_of(weights: Weights) -> str | None:
    """The network whose layers these are, by a few of their names. Deeper ResNets have more or other blocks."""
    if {"features.0.0.0.weight", "classifier.1.weight"} <= weights.keys():
        return "s3d"
    if "fc.weight" not in weights or any(name.startswith(("layer1.2.", "layer1.0.conv3.")) for name in weights):
        return None
    if {"conv1.weight", "bn1.running_mean", "layer4.1.conv2.weight"} <= weights.keys():
        return SEGMENTER if weights["conv1.weight"].shape == (64, 3, 7, 7) else None
    if {"stem.3.weight", "layer4.1.conv2.0.3.weight"} <= weights.keys():
        return "r2plus1d_18"
    if {"stem.0.weight", "layer2.0.conv1.0.weight", "layer4.1.conv2.0.weight"} <= weights.keys():
        return "r3d_18" if weights["layer2.0.conv1.0.weight"].shape[2:3] == (3,) else "mc3_18"
    return None


def _for_segmenter(weights: Weights) -> Weights:
    """A ResNet-18 under the segmenter's names, for its input: frames in 0..1, centred on 0.5.

    ImageNet's mean and deviation go into the first convolution and the normalisation after it. Beyond a frame's edges
    the segmenter sees grey, where torchvision's network sees ImageNet's mean colour.
    """
    renamed = {}
    for key, value in weights.items():
        if key.startswith(("conv1.", "bn1.")):
            key = key.replace("conv1.", "stem.0.").replace("bn1.", "stem.1.")
        elif (found := re.fullmatch(r"layer(\d)\.(\d)\.(\w+)\.(.+)", key)) and found[3] in _BODY:
            key = f"stages.{2 * (int(found[1]) - 1) + int(found[2])}.{_BODY[found[3]]}.{found[4]}"
        else:
            continue  # the classifier of ImageNet's classes
        renamed[key] = value
    mean_C, deviation_C = (torch.tensor(values) for values in (_IMAGENET_MEAN, _IMAGENET_DEVIATION))
    kernel = renamed["stem.0.weight"] / deviation_C[:, None, None]
    shift = (kernel.sum(dim=(2, 3)) * (0.5 - mean_C)).sum(dim=1)
    return renamed | {"stem.0.weight": kernel, "stem.1.running_mean": renamed["stem.1.running_mean"] - shift}
