"""What each stream adds to the answer: the answer of every subset of streams, and each stream's Shapley value.

Shapley (1953) shares a value among players: a stream's share is what it adds to the value of the streams before it,
averaged over all orders. The shares sum to the value of all streams minus that of none.

Legend of shape suffixes: N videos, K action classes, B clips, R draws.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import chain, combinations
from math import factorial
from typing import TypeVar

import numpy as np
from torch import Tensor, nn

from airstreams.evaluation.intervals import difference_interval, draws
from airstreams.evaluation.metrics import outcomes_of, scored_mask
from airstreams.evaluation.results import StreamMetrics, StreamsAudit
from airstreams.evaluation.scoring import Scores, targets_of
from airstreams.models.airstreams import AIRStreams, Output, answer_logits
from airstreams.runs.saved_model import SavedModel

MOST_STREAMS = 4  # 15 subsets; each needs late blocks of its own
NONE = "none"

Value = TypeVar("Value", float, np.ndarray)


def subsets_of(streams: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """All subsets but the empty one, by a name such as `rgb+flow`."""
    found = chain.from_iterable(combinations(streams, size) for size in range(1, len(streams) + 1))
    return {"+".join(subset): subset for subset in found}


def too_few_or_many(streams: Sequence[str]) -> str:
    """Why a model of these streams has no shares. Empty if it has."""
    if len(streams) == 1:
        return "the model has one stream"
    return "" if len(streams) <= MOST_STREAMS else f"the model has more than {MOST_STREAMS} streams"


class SubsetModel(nn.Module):
    """A model whose heads are the answers of subsets of its streams, by the names of `subsets_of`.

    The towers run once for a clip. Each subset has a pass of the merged tower, fed by its streams alone.

    Args:
        model: in evaluation mode.
        heads: those of the model that give its answer. A subset has those of its own streams and of the merges.
        temperature: divides the logits.
    """

    def __init__(self, model: AIRStreams, heads: Sequence[str], temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.model = model
        self.answer = heads
        self.subsets = subsets_of(list(model.early))

    @property
    def representations(self) -> nn.ModuleDict:
        """Those of the model."""
        return self.model.representations

    def forward(self, clip_B3THW: Tensor, heads: Sequence[str]) -> Output:
        """As `AIRStreams.forward`: logits (B, K) by subset. The features have no meaning."""
        found = self.model.subset_logits(clip_B3THW, self.answer, [self.subsets[head] for head in heads])
        mean = {head: answer_logits(logits) / self.temperature for head, logits in zip(heads, found, strict=True)}
        return Output(mean, {}, mean)


def shapley(values: Mapping[frozenset[str], Value], streams: Sequence[str]) -> dict[str, Value]:
    """Each stream's Shapley value, exact.

    values: of every subset of the streams, with the empty one.
    """
    n = len(streams)
    shares: dict[str, Value] = {}
    for stream in streams:
        others = [other for other in streams if other != stream]
        total = values[frozenset(streams)] * 0
        for size in range(n):
            weight = factorial(size) * factorial(n - size - 1) / factorial(n)
            for subset in map(frozenset, combinations(others, size)):
                total = total + weight * (values[subset | {stream}] - values[subset])
        shares[stream] = total
    return shares


def measure_streams(saved: SavedModel, scores: Scores, group_of: Mapping[str, str]) -> StreamsAudit | None:
    """What each stream adds; None where no video has a label.

    scores: by subset, from `SubsetModel`.
    group_of: the group of each video by its name.
    """
    streams, videos = saved.config.model.streams, scores.videos
    targets = targets_of(saved, videos)
    counted = scored_mask(targets)
    if not counted.any():
        return None
    probabilities = _with_none(scores, len(saved.classes))
    group_of_N = [group_of[video.name] for video, counts in zip(videos, counted, strict=True) if counts]
    groups = len(set(group_of_N))
    metric = "map" if saved.multi_label else "top1"
    outcomes = {subset: outcomes_of(values[counted], targets[counted]) for subset, values in probabilities.items()}

    def measured(counts_N: np.ndarray) -> dict[frozenset[str], float]:
        found = {subset: float(of_subset.metrics(counts_N)[metric] or 0) for subset, of_subset in outcomes.items()}
        # Equal scores answer with the first class by name. That is an accident, so no stream answers by chance.
        return found if saved.multi_label else found | {frozenset[str](): 1 / len(saved.classes)}

    values = measured(np.ones(len(group_of_N), dtype=np.int64))
    drawn_values = [measured(counts_N) for counts_N in draws(group_of_N)]
    drawn = {subset: np.array([of_draw[subset] for of_draw in drawn_values]) for subset in values}
    every, shares, drawn_shares = frozenset(streams), shapley(values, streams), shapley(drawn, streams)
    rows = {}
    for stream in streams:
        without = every - {stream}
        rows[stream] = StreamMetrics(
            without=values[without],
            loss=values[every] - values[without],
            loss_interval=_interval(values[every] - values[without], drawn[every] - drawn[without], groups),
            share=shares[stream],
            share_interval=_interval(shares[stream], drawn_shares[stream], groups),
        )
    of_videos = video_shares(saved, scores)
    per_class = {
        label: {stream: float(values_N[shows].mean()) for stream, values_N in of_videos.items()}
        for label in saved.classes
        if (shows := np.array([label in video.labels for video in videos])).any()
    }
    named = {"+".join(sorted(subset, key=streams.index)) or NONE: value for subset, value in values.items()}
    return StreamsAudit(rows, named, per_class)


def video_shares(saved: SavedModel, scores: Scores) -> dict[str, np.ndarray]:
    """Each stream's share of the probability of the right class (of several: their mean), (N,) by stream."""
    targets = targets_of(saved, scores.videos)
    right_NK = targets if targets.ndim == 2 else np.eye(len(saved.classes))[targets]
    right_NK = right_NK / np.maximum(right_NK.sum(axis=1, keepdims=True), 1)
    values = {
        subset: (found_NK * right_NK).sum(axis=1) for subset, found_NK in _with_none(scores, len(saved.classes)).items()
    }
    return shapley(values, saved.config.model.streams)


def _with_none(scores: Scores, classes: int) -> dict[frozenset[str], np.ndarray]:
    """The probabilities (N, K) of each subset. Without any stream, all classes have the same."""
    by_subset = {frozenset(name.split("+")): values for name, values in scores.probabilities.items()}
    return by_subset | {frozenset[str](): np.full((len(scores.videos), classes), 1 / classes)}


def _interval(value: float, drawn_R: np.ndarray, groups: int) -> list[float]:
    return difference_interval(np.array([value]), drawn_R[:, None], groups)


def video_rows(saved: SavedModel, scores: Scores) -> tuple[Sequence[str], Collection[Sequence[object]]]:
    """The header and the rows of the CSV file with the shares of each video."""
    shares = video_shares(saved, scores)
    names = [f"share_{stream}" for stream in shares]
    rows = [
        (video.name, ";".join(video.labels), *(round(float(values_N[index]), 6) for values_N in shares.values()))
        for index, video in enumerate(scores.videos)
    ]
    return ("name", "label", *names), rows
