"""How the features of all streams become the input of a merged tower: one module per merge level."""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn


class _Divisible(Protocol):
    """What every merge below can do."""

    def part_of(self, present_BS: Tensor) -> Tensor:
        """The part of the whole that some streams have (B,), over 0 and up to 1. The sum of these is divided by it.

        present_BS: 1 for the streams that a clip has, else 0, in the model's order.
        """


def merge_of_some(merge: nn.Module, features: Mapping[str, Tensor], present_BS: Tensor | None) -> Tensor:
    """The merge of some streams, as if the model had no others: the mean of these, the scaled sum of these, ...

    All merges are linear, so the features of the others are set to 0 and the result is rescaled.

    Args:
        merge: of all streams.
        features: (B, C, T, H, W) by stream, of all of them in the model's order.
        present_BS: the streams of each clip, at least one: true or false, in the model's order. One row serves all
            clips. None: every clip has all of them.
    """
    if present_BS is None:
        merged: Tensor = merge(features)
        return merged
    of_stream = present_BS.T[..., None, None, None, None]
    kept = {name: part * has.to(part.dtype) for (name, part), has in zip(features.items(), of_stream, strict=True)}
    of_kept: Tensor = merge(kept)
    part_B = cast(_Divisible, merge).part_of(present_BS.float())
    return of_kept / part_B.to(of_kept.dtype)[:, None, None, None, None]


def draw_streams(clips: int, streams: int, dropout: float, device: torch.device) -> Tensor:
    """The streams (B, S) that each clip keeps at the merges. A clip that would lose all of them keeps all.

    dropout: the probability that a clip loses a stream.
    """
    kept_BS = torch.rand(clips, streams, device=device) >= dropout
    return kept_BS | ~kept_BS.any(dim=1, keepdim=True)


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

    def part_of(self, present_BS: Tensor) -> Tensor:
        """See `_Divisible`: by number."""
        return present_BS.mean(dim=1)


class SumMerge(nn.Module):
    """The sum over the streams."""

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Features (B, C, T, H, W) by stream to (B, C, T, H, W)."""
        return torch.stack(list(features.values())).sum(dim=0)

    def part_of(self, present_BS: Tensor) -> Tensor:
        """See `_Divisible`: by number."""
        return present_BS.mean(dim=1)


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

    def part_of(self, present_BS: Tensor) -> Tensor:
        """See `_Divisible`: by weight."""
        return present_BS @ self.scores.float().softmax(dim=0)


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

    def part_of(self, present_BS: Tensor) -> Tensor:
        """See `_Divisible`: by number."""
        return present_BS.mean(dim=1)


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

    def part_of(self, present_BS: Tensor) -> Tensor:
        """See `_Divisible`: 1, since a stream adds to the first one and scales nothing."""
        return torch.ones_like(present_BS[:, 0])


class Gain(nn.Module):
    """A learnt factor on each channel, which starts at 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(channels))

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same."""
        return features_BCTHW * self.gain.to(features_BCTHW.dtype)[:, None, None, None]
