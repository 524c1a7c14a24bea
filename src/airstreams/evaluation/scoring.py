"""Scoring: a video's probabilities are the mean over its views.

`inference/scorer.py` gives the same answers faster on a CPU, for predict.

Legend of shape suffixes: N videos, K action classes, V views, T frames, H, W pixels, C features, S segmentation
classes, h, w the segmenter's grid.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from airstreams.config import SUPERVISED
from airstreams.data.check import BadVideo
from airstreams.data.dataset import VideoViews, Views, target_of
from airstreams.data.listing import Video
from airstreams.data.loader_processes import ends_its_loaders, loader_options
from airstreams.data.patience import patiently
from airstreams.data.targets import Targets
from airstreams.distributed import gather, share
from airstreams.errors import VideoError
from airstreams.evaluation.metrics import (
    ActionMetrics,
    MultiLabelOutcomes,
    SegmentationCounts,
    SegmentationMetrics,
    TargetMetrics,
    action_metrics,
    log_loss,
)
from airstreams.evaluation.results import SplitMetrics
from airstreams.machine import autocast
from airstreams.models.airstreams import AIRStreams, answer_logits, answer_of
from airstreams.models.folding import folded_model
from airstreams.representations import Supervised
from airstreams.runs.saved_model import SavedModel

CLIPS_AT_ONCE = 16  # limits the memory that a video with many views takes


@dataclass
class Scores:
    """The probabilities of all scored videos.

    videos: those that were scored, N of them.
    probabilities: head name to (N, K); if the answer is the mean of several heads, also `ANSWER` to that mean.
    left_out: those that could not be read.
    logits_NVK: those of the answer for each view, before any temperature.
    targets: the metrics of each stream that was compared with its teacher's targets.
    """

    videos: list[Video]
    probabilities: dict[str, np.ndarray]
    left_out: list[BadVideo]
    logits_NVK: np.ndarray
    targets: dict[str, TargetMetrics]

    @property
    def segmentation(self) -> SegmentationMetrics | None:
        """That of the stream semantic; None where there were no label maps to compare with."""
        found = self.targets.get(SUPERVISED[0])
        return None if found is None else found.segmentation


@dataclass
class TargetCounts:
    """Adds up what a stream's `TargetMetrics` need.

    total, places: the sum of the stream's losses, and the number of places that have a target.
    segmentation: of label maps; None for other kinds of targets.
    """

    segmentation: SegmentationCounts | None
    total: float = field(default=0.0)
    places: float = field(default=0.0)

    def add(self, stream: str, representation: Supervised, prediction: Tensor, views: Views) -> None:
        """Count one video.

        Args:
            stream: its name.
            representation: computes the loss.
            prediction: (V, ...), of all views.
            views: with the stream's targets.
        """
        device = prediction.device
        with torch.inference_mode():
            total, places = representation.loss(prediction, views.targets[stream].to(device))
        self.total += float(total)
        self.places += float(places)
        is_of_maps = prediction.ndim == 5 and stream in views.label_maps  # (V, S, T, h, w)
        if self.segmentation is None or not is_of_maps or prediction.shape[1] != len(self.segmentation.classes):
            return
        masks = None if views.masks is None else views.masks.flatten(0, 1).to(device)
        logits_NShw = prediction.transpose(1, 2).flatten(0, 1)
        self.segmentation.add(logits_NShw, views.label_maps[stream].flatten(0, 1).to(device), masks)

    def __add__(self, other: "TargetCounts") -> "TargetCounts":
        both = None
        if self.segmentation is not None and other.segmentation is not None:
            both = self.segmentation + other.segmentation
        return TargetCounts(both, self.total + other.total, self.places + other.places)

    def metrics(self) -> TargetMetrics | None:
        """The metrics of all videos counted; None where none had a target."""
        found = None if self.segmentation is None else self.segmentation.metrics()
        if not (self.places or found):
            return None
        is_number = self.places > 0 and math.isfinite(self.total)
        return TargetMetrics(self.total / self.places if is_number else None, found)


@dataclass(frozen=True)
class Change:
    """How to change the clips of a video before the model gets them.

    clips: gives clips of the same shape and type, uint8 (V, T, H, W, 3). VideoError: it cannot.
    targets: what it needs from label maps, by a name of its own in `Views.label_maps`.
    """

    clips: Callable[[Views], Tensor]
    targets: Mapping[str, Targets] = field(default_factory=dict)


class ClipsAtOnce:
    """How many clips a pass through the model takes. It falls where a card runs out of memory, and stays there.

    remark: called with a text each time.
    """

    def __init__(self, remark: Callable[[str], None] = lambda text: None) -> None:
        self.number = CLIPS_AT_ONCE
        self._remark = remark

    def halve(self) -> None:
        """Take half as many. OutOfMemoryError, the one being handled: it is one already."""
        if self.number == 1:
            raise
        self.number //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._remark(f"out of memory while scoring. From now on, a pass takes at most {self.number} clips")


class ScoredViews(NamedTuple):
    """What the views of a video give.

    probabilities: (K,) by head, averaged over the views, after softmax or, for multi-label data, sigmoid. Also those of
        the answer, if the mean of some of the heads gives it.
    predictions: (V, ...) by stream, for those streams that were asked for and that the heads need.
    features: (C,) by head, what its classifier gets, averaged over the views.
    logits_VK: those of the answer, before any temperature; None where the heads do not give the answer.
    """

    probabilities: dict[str, Tensor]
    predictions: dict[str, Tensor]
    features: dict[str, Tensor]
    logits_VK: Tensor | None


def score_views(
    saved: SavedModel,
    clips_VTHW3: Tensor,
    heads: Sequence[str],
    at_once: ClipsAtOnce | None = None,
    streams: Collection[str] = (),
) -> ScoredViews:
    """Score one video. Where a card has too little memory, passes take fewer clips.

    clips_VTHW3: its views, uint8.
    at_once: how many clips a pass takes; None: `CLIPS_AT_ONCE`.
    streams: whose predictions to return.

    Raises:
        FloatingPointError: a probability is NaN or infinite.
    """
    at_once = at_once or ClipsAtOnce()
    while True:
        try:
            return _score_views(saved, clips_VTHW3, heads, at_once.number, streams)
        except torch.OutOfMemoryError:
            at_once.halve()


def _score_views(
    saved: SavedModel, clips_VTHW3: Tensor, heads: Sequence[str], at_once: int, streams: Collection[str]
) -> ScoredViews:
    device = next(saved.model.parameters()).device
    probabilities: dict[str, list[Tensor]] = defaultdict(list)
    answer, of_answer = saved.config.answer, saved.config.answer_heads
    has_answer = set(of_answer) <= set(heads)
    logits: list[Tensor] = []
    pooled: dict[str, list[Tensor]] = {head: [] for head in heads}
    predictions: dict[str, list[Tensor]] = defaultdict(list)
    with torch.inference_mode(), autocast(device, saved.precision):
        for clips in clips_VTHW3.split(at_once):
            output = saved.model(clips.to(device).permute(0, 4, 1, 2, 3), heads)
            for head in heads:
                if head != answer:
                    probabilities[head].append(answer_of({head: output.logits[head]}, saved.multi_label))
                pooled[head].append(output.pooled[head].float())
            if has_answer:
                of_heads = {head: output.logits[head] for head in of_answer}
                probabilities[answer].append(answer_of(of_heads, saved.multi_label, saved.temperature))
                logits.append(answer_logits(of_heads))
            for stream in output.representations.keys() & streams:
                predictions[stream].append(output.representations[stream].prediction)
    averaged, features = (
        {head: torch.cat(parts).mean(dim=0).cpu() for head, parts in by_head.items()}
        for by_head in (probabilities, pooled)
    )
    require_finite(averaged.values())
    of_streams = {stream: torch.cat(parts) for stream, parts in predictions.items()}
    return ScoredViews(averaged, of_streams, features, torch.cat(logits).cpu() if logits else None)


def require_finite(scores: Iterable[Tensor]) -> None:
    """Raise FloatingPointError if a probability is NaN or infinite."""
    if not all(probabilities_K.isfinite().all() for probabilities_K in scores):
        raise FloatingPointError(
            "The model's scores are not numbers, because its training diverged. Train again with a lower --training.lr."
        )


def model_for_scoring(saved: SavedModel) -> AIRStreams:
    """The model that scores: in bfloat16 on a CPU the folded one, as in predict."""
    is_folded = saved.precision == "bfloat16" and next(saved.model.parameters()).device.type == "cpu"
    return folded_model(saved.model) if is_folded and isinstance(saved.model, AIRStreams) else saved.model


@ends_its_loaders()
def score_videos(
    saved: SavedModel,
    videos: Sequence[Video],
    targets: Mapping[str, Targets] | None = None,
    workers: int = 0,
    on_video: Callable[[], None] = lambda: None,
    stop: Callable[[], bool] = lambda: False,
    remark: Callable[[str], None] = lambda text: None,
    change: Change | None = None,
    heads: Sequence[str] | None = None,
) -> Scores:
    """Score every video with every trained head, and with the answer; leaves the model in evaluation mode.

    Under torchrun each process scores a share of the videos, and every process returns the scores of all.

    Args:
        saved: the model.
        videos: what to score; their names must differ.
        targets: the teachers' targets by stream, to score the streams' predictions.
        workers: how many processes decode.
        on_video: called after each video, for progress.
        stop: asked while no video arrives: whether to stop waiting.
        remark: called with a text where a card has too little memory for a whole batch.
        heads: those to score; None: all trained ones.
        change: what to do to the clips first; None: nothing. A video that it cannot change is left out.

    Raises:
        VideoError: no video can be read, or none arrives for `data.patience` seconds.
        StoppedWaitingError: `stop` was true.
        FloatingPointError: the scores are not numbers.
    """
    saved.model.eval()
    representations = saved.model.representations
    saved = replace(saved, model=model_for_scoring(saved))
    heads = heads or saved.config.trained_heads()
    targets = targets or {}
    counts = {
        stream: TargetCounts(None if found.classes is None else SegmentationCounts(found.classes))
        for stream, found in targets.items()
    }
    with_masks = any(found.classes is not None for found in targets.values())
    wanted = {**targets, **change.targets} if change else targets
    views_of_videos = VideoViews(share(videos), saved.config, wanted, masks=with_masks)
    scored: list[tuple[Video, ScoredViews]] = []
    left_out: list[BadVideo] = []
    at_once = ClipsAtOnce(remark)
    loader = DataLoader(views_of_videos, batch_size=None, **loader_options(workers))
    for views in (_changed(read, change) for read in patiently(loader, saved.config.data.patience, stop)):
        if isinstance(views, BadVideo):
            left_out.append(views)
        else:
            found = score_views(saved, views.clips, heads, at_once, counts.keys() & views.targets)
            scored.append((views.video, found._replace(predictions={}, features={})))
            for stream, prediction in found.predictions.items():
                representation = representations[stream]
                assert isinstance(representation, Supervised)  # others have no targets
                counts[stream].add(stream, representation, prediction, views)
        on_video()
    order = {video.name: number for number, video in enumerate(videos)}
    left_out = gather(left_out)
    scored = sorted(gather(scored), key=lambda item: order[item[0].name])
    if not scored:
        bad = left_out[0]
        raise VideoError(f"none of {len(videos)} videos could be read; the first, {bad.video.name}: {bad.reason}")
    first, *others = gather([counts])
    sums = {stream: sum((other[stream] for other in others), start=first[stream]) for stream in counts}
    of_targets = {stream: metrics for stream, total in sums.items() if (metrics := total.metrics()) is not None}
    probabilities, logits_NVK = _stacked([row for _, row in scored])
    return Scores([video for video, _ in scored], probabilities, left_out, logits_NVK, of_targets)


def _stacked(rows: Sequence[ScoredViews]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The probabilities (N, K) by head and the answer's logits (N, V, K), which are empty without the answer."""
    heads = rows[0].probabilities
    probabilities = {head: torch.stack([row.probabilities[head] for row in rows]).numpy() for head in heads}
    logits = [row.logits_VK for row in rows if row.logits_VK is not None]
    return probabilities, torch.stack(logits).numpy() if logits else np.empty((0, 0, 0), dtype=np.float32)


def _changed(views: Views | BadVideo, change: Change | None) -> Views | BadVideo:
    """The views with the change, or why there are none."""
    if change is None or isinstance(views, BadVideo):
        return views
    try:
        return views._replace(clips=change.clips(views))
    except VideoError as error:
        return BadVideo.from_error(views.video, error)


def targets_of(saved: SavedModel, videos: Sequence[Video]) -> np.ndarray:
    """(N,) class indices, or (N, K) of 0 and 1 for multi-label data."""
    return torch.stack([target_of(video.labels, saved.classes, saved.multi_label) for video in videos]).numpy()


def metrics_of(saved: SavedModel, scores: Scores) -> SplitMetrics:
    """The metrics of the scored videos."""
    targets = targets_of(saved, scores.videos)
    by_head = {head: action_metrics(probabilities, targets) for head, probabilities in scores.probabilities.items()}
    answer, untrained = saved.config.answer, ActionMetrics()
    unlabelled, as_negatives = 0, None
    if saved.multi_label:
        ranked = MultiLabelOutcomes(scores.probabilities[answer], targets, unlabelled_last=False)
        as_negatives = ranked.metrics(np.ones(len(targets), dtype=np.int64)).map
        unlabelled = int((~targets.any(axis=1)).sum())
    return SplitMetrics(
        **vars(by_head[answer]),
        videos=len(scores.videos),
        left_out=len(scores.left_out),
        classes=len({label for video in scores.videos for label in video.labels}),
        log_loss=log_loss(scores.probabilities[answer], targets),
        unlabelled=unlabelled,
        map_unlabelled_as_negatives=as_negatives,
        streams={head: by_head.get(head, untrained) for head in dict.fromkeys((*saved.config.model.heads, answer))},
        segmentation=scores.segmentation,
        targets=scores.targets,
    )
