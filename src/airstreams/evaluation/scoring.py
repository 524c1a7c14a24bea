"""How a video is scored: its views, averaged. Predict and evaluate both use `score_views`, so they cannot disagree."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from airstreams.data.check import BadVideo
from airstreams.data.dataset import VideoViews, Views, target_of
from airstreams.data.label_maps import LabelStore
from airstreams.data.listing import Video
from airstreams.data.loader_processes import ends_its_loaders, loader_options
from airstreams.distributed import gather, share
from airstreams.errors import VideoError
from airstreams.evaluation.metrics import METRICS, MultiLabelOutcomes, SegmentationMetrics, action_metrics, log_loss
from airstreams.machine import in_bfloat16
from airstreams.runs.saved_model import SavedModel

CLIPS_AT_ONCE = 16  # bounds the memory of a video with many views


@dataclass
class Scores:
    """Every scored video's probabilities.

    videos: those scored, N of them.
    probabilities: head name to (N, K).
    left_out: those that could not be read.
    segmentation: metrics of the segmenter against label maps and masks; None without any.
    """

    videos: list[Video]
    probabilities: dict[str, np.ndarray]
    left_out: list[BadVideo]
    segmentation: dict[str, Any] | None


def score_views(
    saved: SavedModel, clips_VTHW3: Tensor, heads: Sequence[str]
) -> tuple[dict[str, Tensor], Tensor | None, dict[str, Tensor]]:
    """One video's probabilities (K,) for each head, its segmentation logits (V T, S, h, w) where computed, and what
    each head's classifier sees (C,).

    The clips are its V views, uint8, over which all but the segmentation is averaged; probabilities are after softmax
    (or, for multi-label data, sigmoid).
    FloatingPointError: the scores are not numbers.
    """
    device = next(saved.model.parameters()).device
    autocast = torch.autocast("cuda", torch.bfloat16) if in_bfloat16(device) else nullcontext()
    probabilities: dict[str, list[Tensor]] = {head: [] for head in heads}
    pooled: dict[str, list[Tensor]] = {head: [] for head in heads}
    segmentations = []
    with torch.inference_mode(), autocast:
        for clips in clips_VTHW3.split(CLIPS_AT_ONCE):
            output = saved.model(clips.to(device).permute(0, 4, 1, 2, 3), heads)
            for head in heads:
                logits_VK = output.logits[head].float()
                probabilities[head].append(logits_VK.sigmoid() if saved.multi_label else logits_VK.softmax(dim=1))
                pooled[head].append(output.pooled[head].float())
            if "semantic" in output.representations:
                segmentations.append(output.representations["semantic"].prediction.transpose(1, 2).flatten(0, 1))
    averaged, features = (
        {head: torch.cat(parts).mean(dim=0).cpu() for head, parts in of_heads.items()}
        for of_heads in (probabilities, pooled)
    )
    if not all(probabilities_K.isfinite().all() for probabilities_K in averaged.values()):
        raise FloatingPointError(
            "the model's scores are not numbers, since its training diverged; train again with a lower --training.lr"
        )
    return averaged, torch.cat(segmentations) if segmentations else None, features


@ends_its_loaders()
def score_videos(
    saved: SavedModel,
    videos: Sequence[Video],
    label_store: LabelStore | None = None,
    workers: int = 0,
    on_video: Callable[[], None] = lambda: None,
) -> Scores:
    """Score every video with every trained head; leaves the model in evaluation mode.

    Of several processes each scores its share, and all return the scores of all videos, each counted once.

    Args:
        saved: the model.
        videos: what to score, each with a name of its own.
        label_store: the teacher's label maps, where the segmentation is to be scored too.
        workers: processes that decode.
        on_video: called after each video, for progress.
    """
    saved.model.eval()
    heads = saved.config.trained_heads()
    segments = label_store is not None and "semantic" in saved.config.model.streams
    metrics = SegmentationMetrics(saved.segment_classes) if segments else None
    views_of_videos = VideoViews(share(videos), saved.config, label_store if segments else None, masks=segments)
    scored: list[tuple[Video, dict[str, Tensor]]] = []
    left_out: list[BadVideo] = []
    for views in _read_ahead(views_of_videos, workers):
        if isinstance(views, BadVideo):
            left_out.append(views)
        else:
            probabilities, logits_NShw, _ = score_views(saved, views.clips, heads)
            scored.append((views.video, probabilities))
            if metrics is not None and logits_NShw is not None:
                labels, masks = (
                    None if maps is None else maps.flatten(0, 1).to(logits_NShw.device)
                    for maps in (views.label_maps, views.masks)
                )
                metrics.add(logits_NShw, labels, masks)
        on_video()
    order = {video.name: number for number, video in enumerate(videos)}
    left_out = gather(left_out)
    scored = sorted(gather(scored), key=lambda item: order[item[0].name])
    if not scored:
        raise VideoError(f"none of {len(videos)} videos could be read; the first: {left_out[0].reason}")
    stacked = {head: torch.stack([row[head] for _, row in scored]).numpy() for head in heads}
    segmentation = None
    if metrics is not None:
        first, *others = gather([metrics])
        segmentation = sum(others, start=first).metrics()
    return Scores([video for video, _ in scored], stacked, left_out, segmentation)


def targets_of(saved: SavedModel, videos: Sequence[Video]) -> np.ndarray:
    """(N,) class indices, or (N, K) of 0 and 1 for multi-label data."""
    return torch.stack([target_of(video.labels, saved.classes, saved.multi_label) for video in videos]).numpy()


def metrics_of(saved: SavedModel, scores: Scores) -> dict[str, Any]:
    """The metrics of `airstreams evaluate`: answer, heads and segmentation; None for what does not apply."""
    targets = targets_of(saved, scores.videos)
    by_head = {head: action_metrics(probabilities, targets) for head, probabilities in scores.probabilities.items()}
    answer, untrained = saved.config.model.answer, dict.fromkeys(METRICS)
    unlabelled, as_negatives = 0, None
    if saved.multi_label:
        competing = MultiLabelOutcomes(scores.probabilities[answer], targets, unlabelled_last=False)
        as_negatives = competing.metrics(np.ones(len(targets), dtype=np.int64))["map"]
        unlabelled = int((~targets.any(axis=1)).sum())
    return {
        "videos": len(scores.videos),
        "left_out": len(scores.left_out),
        "classes": len({label for video in scores.videos for label in video.labels}),  # that occur
        **by_head[answer],
        "log_loss": log_loss(scores.probabilities[answer], targets),
        "unlabelled": unlabelled,  # ranked last by `map`
        "map_unlabelled_as_negatives": as_negatives,
        "streams": {head: by_head.get(head, untrained) for head in saved.config.model.heads},
        "segmentation": scores.segmentation,
    }


def _read_ahead(views_of_videos: VideoViews, workers: int) -> Iterator[Views | BadVideo]:
    return iter(DataLoader(views_of_videos, batch_size=None, **loader_options(workers)))
