"""How the features of all streams become the input of a merged tower: one module per merge level."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn


def make_merge(kind: Literal["mean", "gain"], streams: Sequence[str], channels: int) -> nn.Module:
    """The merge of a config's `model.merge`.

    Args:
        kind: `mean` or `gain`.
        streams: the model's streams, in order.
        channels: C, those of the features.
    """
    return GainMerge(streams[1:], channels) if kind == "gain" else MeanMerge()


class MeanMerge(nn.Module):
    """The mean over the streams (section 3.1)."""

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Features (B, C, T, H, W) by stream to (B, C, T, H, W)."""
        return torch.stack(list(features.values())).mean(dim=0)


class GainMerge(nn.ModuleDict):
    """The first stream's features, plus those of each other stream times its gain.

    It starts as the first stream alone. A mean with streams that are still learning would spoil what the first stream's
    tower has learnt before.

    Args:
        others: all streams but the first.
        channels: C.
    """

    def __init__(self, others: Sequence[str], channels: int) -> None:
        super().__init__({stream: Gain(channels) for stream in others})

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Features (B, C, T, H, W) by stream, the first stream's first, to (B, C, T, H, W)."""
        merged_BCTHW, *_ = features.values()
        for stream, gain in self.items():
            merged_BCTHW = merged_BCTHW + gain(features[stream])
        return merged_BCTHW


class Gain(nn.Module):
    """A learnt factor on each channel, which starts at 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(channels))

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same."""
        return features_BCTHW * self.gain.to(features_BCTHW.dtype)[:, None, None, None]
