"""Backbones: families of towers, one file each. `backbone_of` finds the family of a stream."""

from airstreams.config import ModelConfig
from airstreams.models.backbones.i3d import I3D
from airstreams.models.tower import Backbone, BlockTowers


def backbone_of(config: ModelConfig, stream: str | None = None) -> Backbone:
    """The family of a stream's tower; without a stream, that of the merged towers."""
    if config.backbone_of(stream) == "i3d":
        return I3D()
    return BlockTowers(config.blocks_of(stream), config.width)
