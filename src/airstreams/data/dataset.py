"""Videos become clips: the data sets that training and evaluation read from.

A clip is a function of (seed, epoch, draw), never of a worker's state, so the number of workers changes nothing. A
video that cannot be read yields a `BadVideo` in its place: it is counted, never replaced by another one.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from airstreams.config import Config
from airstreams.data.check import BadVideo
from airstreams.data.clips import clip_places, frame_range, latest_start
from airstreams.data.labels import NO_LABEL, LabelStore, read_array
from airstreams.data.listing import Video
from airstreams.data.transforms import (
    apply_colour,
    crop_frames,
    crop_label_map,
    draw_colour,
    draw_crop,
    square_crops,
)
from airstreams.data.video import read_frames
from airstreams.errors import VideoError

# Frames whose shorter side is over this many times a clip's are reduced while they are decoded: converting a full
# 1080p frame to RGB costs more than decoding it. Large enough that the crop that follows still has twice the pixels
# it needs.
DECODED_SIDE = 3


class Sample(NamedTuple):
    """One clip for training: uint8 (T, H, W, 3), its target, and label maps (T, H, W) where there are any."""

    clip: Tensor
    target: Tensor
    label_map: Tensor | None


class Batch(NamedTuple):
    """Clips uint8 (B, 3, T, H, W), targets (B,) of indices or (B, K) of 0 and 1, label maps uint8 (B, T, H, W)."""

    clip: Tensor
    target: Tensor
    label_map: Tensor | None
    bad_videos: list[BadVideo]


class Views(NamedTuple):
    """One video's views: uint8 (V, T, H, W, 3), and label maps and human masks uint8 (V, T, H, W) or None."""

    video: Video
    clips: Tensor
    label_maps: Tensor | None
    masks: Tensor | None


def target_of(video: Video, classes: Sequence[str], multi_label: bool) -> Tensor:
    """A class index, or for multi-label data (K,) of 0 and 1."""
    if not multi_label:
        return torch.tensor(classes.index(video.labels[0]))
    return torch.tensor([float(name in video.labels) for name in classes])


class TrainingClips(Dataset[Sample | BadVideo]):
    """Random clips of videos, by keys (epoch, draw, index) as `EpochSampler` gives them."""

    def __init__(
        self,
        videos: Sequence[Video],
        config: Config,
        classes: Sequence[str],
        multi_label: bool,
        label_store: LabelStore | None,
    ) -> None:
        self.videos = videos
        self.config = config
        self.targets = [target_of(video, classes, multi_label) for video in videos]
        self.label_store = label_store

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: tuple[int, int, int]) -> Sample | BadVideo:
        epoch, draw, index = key
        rng = np.random.default_rng((self.config.seed, epoch, draw))
        try:
            return self._draw(index, rng)
        except VideoError as error:
            return BadVideo(self.videos[index], str(error))

    def _draw(self, index: int, rng: np.random.Generator) -> Sample:
        video, clip = self.videos[index], self.config.clip
        part = frame_range(video)
        latest = latest_start(part, clip)
        start = int(rng.integers(part.first, latest + 1))
        labelled = self._labelled_frames(video)
        if len(labelled) and not np.isin(clip_places(part, start, clip), labelled).any():
            # A stride can step over every labelled frame (J-HMDB's are the even ones): begin on the nearest instead.
            nearest = int(labelled[np.abs(labelled - start).argmin()])
            start = min(max(nearest, part.first), latest)
        places = clip_places(part, start, clip)
        frames = read_frames(video.path, places, short_side=DECODED_SIDE * clip.size)
        crop = draw_crop(frames.shape[1], frames.shape[2], self.config.data, rng)
        clip_THW3 = crop_frames(frames, crop, clip.size)
        if self.config.data.colour:
            clip_THW3 = apply_colour(clip_THW3, draw_colour(self.config.data.colour, rng))
        labels = read_labels(self.label_store, video, places)
        label_map = None if labels is None else crop_label_map(labels, crop, clip.size)
        return Sample(clip_THW3, self.targets[index], label_map)

    def _labelled_frames(self, video: Video) -> np.ndarray:
        if self.label_store is None or video.label_map is None:
            return np.empty(0, dtype=int)
        return self.label_store.labelled_frames(video.label_map)


def read_labels(store: LabelStore | None, video: Video, places: np.ndarray) -> np.ndarray | None:
    """The teacher's label maps of the frames at `places`, uint8 (N, H, W), 255 on frames without; None: no labels."""
    if store is None or video.label_map is None:
        return None
    return store.read(video.label_map, places)


class EpochSampler(Sampler[tuple[int, int, int]]):
    """A seeded order of the videos for each epoch, as keys (epoch, draw, index).

    Args:
        labels: each video's first label, for balanced sampling.
        seed: of the run.
        balanced: draw classes equally often, videos within a class in turn.
    """

    def __init__(self, labels: Sequence[str], seed: int, balanced: bool) -> None:
        self.labels = labels
        self.seed = seed
        self.balanced = balanced
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self.labels))
        if self.balanced:
            order = self._balanced(order, rng)
        return iter([(self.epoch, draw, int(index)) for draw, index in enumerate(order)])

    def _balanced(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        by_class: dict[str, list[int]] = {}
        for index in order:
            by_class.setdefault(self.labels[index], []).append(int(index))
        turns = -(-len(order) // len(by_class))
        drawn = [members[turn % len(members)] for members in by_class.values() for turn in range(turns)]
        return rng.permutation(drawn)[: len(order)]


def collate(samples: list[Sample | BadVideo]) -> Batch:
    """A batch of the clips that could be read; an unlabelled video's label maps are 255 throughout."""
    good = [sample for sample in samples if isinstance(sample, Sample)]
    bad_videos = [sample for sample in samples if isinstance(sample, BadVideo)]
    if not good:
        return Batch(torch.empty(0), torch.empty(0), None, bad_videos)
    clips = torch.stack([sample.clip for sample in good]).permute(0, 4, 1, 2, 3)
    label_map = None
    if any(sample.label_map is not None for sample in good):
        blank = torch.full(good[0].clip.shape[:3], NO_LABEL, dtype=torch.uint8)
        label_map = torch.stack([blank if sample.label_map is None else sample.label_map for sample in good])
    return Batch(clips, torch.stack([sample.target for sample in good]), label_map, bad_videos)


class VideoViews(Dataset[Views | BadVideo]):
    """The views of each video that evaluation and prediction score: the same clips and crops for the same file, always.

    Args:
        videos: what to read.
        config: `clip` and `evaluation` say which views.
        label_store: the teacher's label maps, where the segmentation is to be scored.
        masks: read the human masks too.
    """

    def __init__(
        self, videos: Sequence[Video], config: Config, label_store: LabelStore | None = None, masks: bool = False
    ) -> None:
        self.videos = videos
        self.config = config
        self.label_store = label_store
        self.masks = masks

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> Views | BadVideo:
        try:
            return self._read(self.videos[index])
        except VideoError as error:
            return BadVideo(self.videos[index], str(error))

    def _read(self, video: Video) -> Views:
        clip, evaluation = self.config.clip, self.config.evaluation
        part = frame_range(video)
        latest = latest_start(part, clip)
        if evaluation.views == 1:
            starts = np.array([(part.first + latest) // 2])
        else:
            starts = np.linspace(part.first, latest, evaluation.views).astype(int)
        places_VT = np.stack([clip_places(part, int(start), clip) for start in starts])
        unique, inverse = np.unique(places_VT, return_inverse=True)
        frames = read_frames(video.path, unique, short_side=DECODED_SIDE * clip.size)[inverse.reshape(places_VT.shape)]
        labels = read_labels(self.label_store, video, unique)
        mask = _read_mask(video) if self.masks else None
        clips, label_maps, masks = [], [], []
        for view, places in enumerate(places_VT):
            for crop in square_crops(frames.shape[2], frames.shape[3], evaluation.crops):
                clips.append(crop_frames(frames[view], crop, clip.size))
                if labels is not None:
                    label_maps.append(crop_label_map(labels[np.searchsorted(unique, places)], crop, clip.size))
                if mask is not None:
                    masks.append(crop_label_map(mask[np.minimum(places, len(mask) - 1)], crop, clip.size))
        return Views(
            video,
            torch.stack(clips),
            torch.stack(label_maps) if label_maps else None,
            torch.stack(masks) if masks else None,
        )


def _read_mask(video: Video) -> np.ndarray | None:
    if video.mask is None:
        return None
    return read_array(video.mask, "mask")
