"""Backbones: families of towers, one file each. `backbone_of` finds the family of a stream."""

from airstreams.config import ModelConfig
from airstreams.models.backbones.i3d import I3D
from airstreams.models.backbones.torchvision_video import CHANNELS, TorchvisionVideo
from airstreams.models.tower import Backbone, BlockTowers


def backbone_of(config: ModelConfig, stream: str | None = None) -> Backbone:
    """The family of a stream's tower; without a stream, that of the merged towers.

    InputError: the backbone is torchvision's, which cannot be imported.
    """
    name = config.backbone_of(stream)
    if name == "i3d":
        return I3D()
    if name in CHANNELS:
        return TorchvisionVideo(name)
    return BlockTowers(config.blocks_of(stream), config.width, config.merge_norm)
