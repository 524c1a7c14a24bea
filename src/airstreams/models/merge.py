"""How the features of all streams become the input of a merged tower: one module per merge level."""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn


class _Divisible(Protocol):
    """What every merge below can do."""

    def part_of(self, present: Sequence[bool]) -> Tensor | float:
        """The part of the whole that some streams have, over 0 and up to 1. Without the others, it divides the sum."""


def merge_of_some(merge: nn.Module, features: Mapping[str, Tensor], streams: Collection[str]) -> Tensor:
    """The merge of some streams, as if the model had no others: the mean of these, the scaled sum of these, ...

    All merges are linear, so the features of the others are set to 0 and the result is rescaled.

    Args:
        merge: of all streams.
        features: (B, C, T, H, W) by stream, of all of them in the model's order.
        streams: those to merge, at least one.
    """
    present = [stream in streams for stream in features]
    if all(present):
        merged: Tensor = merge(features)
        return merged
    kept = {
        stream: part if is_present else torch.zeros_like(part)
        for (stream, part), is_present in zip(features.items(), present, strict=True)
    }
    of_kept: Tensor = merge(kept)
    return of_kept / cast(_Divisible, merge).part_of(present)


def _count(present: Sequence[bool]) -> float:
    return sum(present) / len(present)


def make_merge(
    kind: Literal["mean", "sum", "weighted", "concat", "gain"], streams: Sequence[str], channels: int
) -> nn.Module:
    """The merge of a config's `model.merge`.

    Args:
        kind: one of the classes below.
        streams: the model's streams, in order.
        channels: C, those of the features.
    """
    if kind == "gain":
        return GainMerge(streams[1:], channels)
    if kind == "concat":
        return ConcatMerge(len(streams), channels)
    if kind == "weighted":
        return WeightedMerge(len(streams))
    return SumMerge() if kind == "sum" else MeanMerge()


class MeanMerge(nn.Module):
    """The mean over the streams (section 3.1)."""

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Features (B, C, T, H, W) by stream to (B, C, T, H, W)."""
        return torch.stack(list(features.values())).mean(dim=0)

    def part_of(self, present: Sequence[bool]) -> float:
        """See `_Divisible`: by number."""
        return _count(present)


class SumMerge(nn.Module):
    """The sum over the streams."""

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Features (B, C, T, H, W) by stream to (B, C, T, H, W)."""
        return torch.stack(list(features.values())).sum(dim=0)

    def part_of(self, present: Sequence[bool]) -> float:
        """See `_Divisible`: by number."""
        return _count(present)


class WeightedMerge(nn.Module):
    """A mean with a learnt weight per stream: the softmax of `scores`. It starts as the plain mean.

    Args:
        streams: how many.
    """

    def __init__(self, streams: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(streams))

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Features (B, C, T, H, W) by stream, in the model's order, to (B, C, T, H, W)."""
        weights = self.scores.softmax(dim=0)
        weighted = [part * weight.to(part.dtype) for part, weight in zip(features.values(), weights, strict=True)]
        return torch.stack(weighted).sum(dim=0)

    def part_of(self, present: Sequence[bool]) -> Tensor:
        """See `_Divisible`: by weight."""
        return self.scores.softmax(dim=0)[list(present)].sum()


class ConcatMerge(nn.Module):
    """A 1x1 convolution of the channels of all streams. It starts as their mean, so that towers start as with `mean`.

    Args:
        streams: how many.
        channels: C.
    """

    def __init__(self, streams: int, channels: int) -> None:
        super().__init__()
        self.join = nn.Conv3d(streams * channels, channels, 1, bias=False)
        mean = torch.eye(channels).repeat(1, streams) / streams
        with torch.no_grad():
            self.join.weight.copy_(mean[:, :, None, None, None])

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Features (B, C, T, H, W) by stream, in the model's order, to (B, C, T, H, W)."""
        joined: Tensor = self.join(torch.cat(list(features.values()), dim=1))
        return joined

    def part_of(self, present: Sequence[bool]) -> float:
        """See `_Divisible`: by number."""
        return _count(present)


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

    def part_of(self, present: Sequence[bool]) -> float:
        """See `_Divisible`: 1, since a stream adds to the first one and scales nothing."""
        return 1.0


class Gain(nn.Module):
    """A learnt factor on each channel, which starts at 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(channels))

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same."""
        return features_BCTHW * self.gain.to(features_BCTHW.dtype)[:, None, None, None]
