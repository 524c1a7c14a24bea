"""torchvision's video networks as towers, made of its own modules: r2plus1d_18, r3d_18, mc3_18 and s3d.

The first three are ResNets (Tran et al. 2018). Their blocks are the stem and the four stages:

| block | module | channels | height and width divided by | frames divided by (mc3_18) |
| --- | --- | --- | --- | --- |
| 1 | stem | 64 | 2 | 1 (1) |
| 2 | layer1 | 64 | 2 | 1 (1) |
| 3 | layer2 | 128 | 4 | 2 (1) |
| 4 | layer3 | 256 | 8 | 4 (1) |
| 5 | layer4 | 512 | 16 | 8 (1) |

s3d is an Inception (Xie et al. 2018). Its blocks end where the resolution changes next, as those of I3D, so a merge
level means the same in both:

| block | modules of `features` | channels | height and width divided by | frames divided by |
| --- | --- | --- | --- | --- |
| 1 | 0 | 64 | 2 | 2 |
| 2 | 1 to 3 | 192 | 4 | 2 |
| 3 | 4 to 6 | 480 | 8 | 2 |
| 4 | 7 to 10 | 512 | 16 | 4 |
| 5 | 11, 12 | 832 | 16 | 4 |
| 6 | 13 to 15 | 1024 | 32 | 8 |

The head takes the mean over all frames and pixels. torchvision's s3d takes means of windows of 2 x 7 x 7 first. That is
the same for 16 frames of 224 px. For longer or larger clips the answers differ a little.
"""

import copy
from collections import OrderedDict
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from airstreams.errors import InputError, one_line
from airstreams.models.cpu_bfloat16 import PaddingConv3d
from airstreams.models.tower import Backbone, InputNorm

_RESNET_STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")
_S3D_UNITS = ((0,), (1, 2, 3), (4, 5, 6), (7, 8, 9, 10), (11, 12), (13, 14, 15))
_RESNET_CHANNELS = (64, 64, 128, 256, 512)

CHANNELS: dict[str, tuple[int, ...]] = {
    "r2plus1d_18": _RESNET_CHANNELS,
    "r3d_18": _RESNET_CHANNELS,
    "mc3_18": _RESNET_CHANNELS,
    "s3d": (64, 192, 480, 512, 832, 1024),
}
"""The output channels of each block, by torchvision's name of the network."""

MEAN, DEVIATION = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
"""What torchvision's video weights expect of RGB in 0..1: this is subtracted, and the rest divided by the second."""


def torchvision_models(purpose: str) -> Any:
    """The module `torchvision.models`. InputError: it cannot be imported. purpose: what needs it."""
    try:
        from torchvision import models
    except (ImportError, RuntimeError, OSError) as error:  # a build for another torch fails in any of these ways
        raise InputError(
            f"{purpose} needs a torchvision that fits torch {torch.__version__} ({one_line(error)[:120]}). "
            f"Run pip install torchvision torch=={torch.__version__}, from the index that torch came from."
        ) from error
    return models


class TorchvisionVideo(Backbone):
    """A family of towers: one of torchvision's video networks.

    name: torchvision's name of the network.
    InputError: torchvision cannot be imported.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.channels = CHANNELS[name]
        self._network = _without_weights(name)

    def input_norm(self, in_channels: int, is_rgb: bool) -> nn.Module:
        """RGB in 0..1 is scaled as torchvision's weights expect it. Anything else is normalised per channel."""
        return Standardised() if is_rgb else InputNorm(in_channels)

    def block(self, number: int, in_channels: int) -> list[nn.Module]:
        """One block as one module, whose layers have torchvision's names."""
        if self.name == "s3d":
            units = OrderedDict((str(unit), self._network.features[unit]) for unit in _S3D_UNITS[number - 1])
            block = nn.Sequential(OrderedDict(features=nn.Sequential(units)))
        else:
            stage = _RESNET_STAGES[number - 1]
            block = nn.Sequential(OrderedDict([(stage, getattr(self._network, stage))]))
        block = copy.deepcopy(block)
        if number == 1:
            _replace_first_convolution(block, in_channels)
        for layer in block.modules():
            if isinstance(layer, nn.Conv3d):  # torchvision's subclasses add nothing to how it computes
                layer.__class__ = PaddingConv3d
        return [_initialised(block, as_resnet=self.name != "s3d")]

    def merge_norm(self, channels: int) -> nn.Module:
        """No normalisation: one would change what the published weights compute."""
        return nn.Identity()


class Standardised(nn.Module):
    """RGB in 0..1, without torchvision's mean and divided by its deviation."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, values in (("mean", MEAN), ("deviation", DEVIATION)):
            self.register_buffer(name, torch.tensor(values)[:, None, None, None], persistent=False)

    def forward(self, clip_B3THW: Tensor) -> Tensor:
        """(B, 3, T, H, W) to the same."""
        return (clip_B3THW - self.mean) / self.deviation


@cache
def _without_weights(name: str) -> Any:
    """torchvision's network without numbers: each tower copies its blocks from it and draws its own."""
    video = torchvision_models(f"model.backbone {name}").video
    with torch.device("meta"):
        return getattr(video, name)(weights=None)


def _replace_first_convolution(block: nn.Module, in_channels: int) -> None:
    """Let a network's first block take other channels than the three of RGB."""
    path, first = next((path, layer) for path, layer in block.named_modules() if isinstance(layer, nn.Conv3d))
    parent, _, child = path.rpartition(".")
    with torch.device("meta"):
        other = nn.Conv3d(
            in_channels,
            first.out_channels,
            first.kernel_size,  # type: ignore[arg-type]
            first.stride,  # type: ignore[arg-type]
            first.padding,  # type: ignore[arg-type]
            bias=False,
        )
    setattr(block.get_submodule(parent), child, other)


def _initialised(block: nn.Module, as_resnet: bool) -> nn.Module:
    """Draw a block's random weights as torchvision does."""
    block = block.to_empty(device=torch.get_default_device())
    for layer in block.modules():
        if isinstance(layer, nn.Conv3d) and as_resnet:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Conv3d | nn.BatchNorm3d):
            layer.reset_parameters()
    return block
