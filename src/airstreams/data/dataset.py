"""Turns videos into clips: the data sets that training and evaluation read from.

A clip is a function of (seed, epoch, draw) and of no worker's state, so the number of workers changes nothing. Which
clips an optimiser step takes does not depend on the number of processes either. A video that cannot be read yields a
`BadVideo` instead: it is counted and never replaced by another video.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from airstreams.config import Config
from airstreams.data.cache import FrameCache
from airstreams.data.check import BadVideo
from airstreams.data.clips import FrameRange, active_labels, clip_indices, frame_range, latest_start
from airstreams.data.label_maps import LabelStore, read_array
from airstreams.data.listing import Video
from airstreams.data.loader_processes import share_memory
from airstreams.data.packed import PackedVideos
from airstreams.data.patience import reading
from airstreams.data.targets import Targets
from airstreams.data.transforms import (
    crop_frames,
    crop_label_map,
    draw_colour,
    draw_crop,
    reduced,
    square_crops,
)
from airstreams.data.video import iterate_frames, read_frames
from airstreams.errors import InputError, VideoError

NO_CLASS = -100
"""The target of an unlabelled clip, in all of its values: the index that PyTorch's cross-entropy ignores."""

Key = tuple[int, int, int]
"""(epoch, draw, index): the number of the draw in its epoch, and the video's index in the list."""


class Sample(NamedTuple):
    """One clip for training, with the augmentation that `augment` applies on the device.

    frames: uint8 (T, h, w, 3), the part of the decoded frames that the crop touches.
    box: top, left, height and width of the crop in px of `frames`.
    target: a class index, or (K,) of 0 and 1. Of an unlabelled video `NO_CLASS`, or (K,) of it.
    teachers: the teachers' targets by stream, already cropped and flipped, of the streams that have some of the video.
    """

    name: str
    frames: np.ndarray
    box: tuple[float, float, float, float]
    flip: bool
    colour: np.ndarray
    target: Tensor
    teachers: dict[str, Tensor]


class Batch(NamedTuple):
    """Clips for one pass through the model.

    frames_BTHW3, box_B4, inside_B2, flip_B, colour_B3: the arguments of `augment`.
    target: (B,) of indices or (B, K) of 0 and 1, `NO_CLASS` where the video is unlabelled.
    teachers: the teachers' targets (B, ...) by stream, blank in a clip without any. A stream is left out if no clip
        has any.
    names: of the clips' videos. Empty where no video could be read: then the batch is one black clip that must get no
        weight, since processes that train together must all take every step.
    """

    frames_BTHW3: Tensor
    box_B4: Tensor
    inside_B2: Tensor
    flip_B: Tensor
    colour_B3: Tensor
    target: Tensor
    teachers: dict[str, Tensor]
    names: list[str]
    bad_videos: list[BadVideo]


class Views(NamedTuple):
    """One video's views.

    clips: uint8 (V, T, H, W, 3).
    targets: the teachers' targets (V, ...) by stream, of the streams that have some of the video.
    label_maps: those of them that are label maps, in full size: uint8 (V, T, H, W) by stream.
    masks: human masks, uint8 (V, T, H, W), or None.
    """

    video: Video
    clips: Tensor
    targets: dict[str, Tensor]
    label_maps: dict[str, Tensor]
    masks: Tensor | None


class ClipFrames(NamedTuple):
    """Clips that may share frames: each frame once, and where each clip has it.

    frames_NHW3: uint8.
    places_VT: int64, for each clip its frames, as indices of `frames_NHW3`.
    """

    frames_NHW3: Tensor
    places_VT: Tensor

    @property
    def clips(self) -> Tensor:
        """uint8 (V, T, H, W, 3)."""
        return self.frames_NHW3[self.places_VT]


def target_of(labels: Sequence[str] | None, classes: Sequence[str], multi_label: bool) -> Tensor:
    """A class index, or for multi-label data (K,) of 0 and 1. Without labels (None) `NO_CLASS` in their place."""
    if labels is None:
        return torch.full((len(classes),), float(NO_CLASS)) if multi_label else torch.tensor(NO_CLASS)
    if not multi_label:
        return torch.tensor(classes.index(labels[0]))
    return torch.tensor([float(name in labels) for name in classes])


def has_label(target: Tensor) -> Tensor:
    """Which clips of a batch have a label, bool (B,), from their targets (B,) or (B, K)."""
    return (target if target.ndim == 1 else target[:, 0]) != NO_CLASS


class TrainingClips(Dataset[Sample | BadVideo]):
    """Random clips of videos, by the keys of `StepSampler`.

    For multi-label data a clip's target is the labels that are active in it.

    Args:
        videos: to draw from.
        config: `seed`, `clip` and `data`.
        classes: the action classes.
        multi_label: whether a video may have several labels.
        targets: the teachers' targets by stream.
        cache: decoded frames; None: decode every time.
        unlabelled: more videos to draw from, which get `NO_CLASS`. Their indices follow those of `videos`.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        config: Config,
        classes: Sequence[str],
        multi_label: bool,
        targets: Mapping[str, Targets],
        cache: FrameCache | None = None,
        unlabelled: Sequence[Video] = (),
    ) -> None:
        self.videos = PackedVideos([*videos, *unlabelled])  # the loader's processes read it
        self.labelled = len(videos)
        self.config = config
        self.classes = classes
        self.multi_label = multi_label
        self.targets = targets
        self.cache = cache

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: Key) -> Sample | BadVideo:
        epoch, draw, index = key
        with reading(self.videos[index].path):
            return self._sample(epoch, draw, index)

    def _sample(self, epoch: int, draw: int, index: int) -> Sample | BadVideo:
        rng = np.random.default_rng((self.config.seed, epoch, draw))
        try:
            return self._draw(self.videos[index], index < self.labelled, rng)
        except VideoError as error:
            return BadVideo.from_error(self.videos[index], error)

    def collate(self, samples: Sequence[Sample | BadVideo]) -> Batch:
        """Make a batch of the clips that could be read."""
        good = [sample for sample in samples if isinstance(sample, Sample)]
        bad_videos = [sample for sample in samples if isinstance(sample, BadVideo)]
        names = [sample.name for sample in good]
        if not good:
            good = [self._black()]
        frames = [torch.from_numpy(sample.frames) for sample in good]
        inside_B2 = torch.tensor([tuple(clip_THW3.shape[1:3]) for clip_THW3 in frames])
        T, (H, W) = len(frames[0]), inside_B2.amax(dim=0).tolist()
        frames_BTHW3 = torch.zeros(len(good), T, H, W, 3, dtype=torch.uint8)
        for padded, clip_THW3 in zip(frames_BTHW3, frames, strict=True):
            padded[:, : clip_THW3.shape[1], : clip_THW3.shape[2]] = clip_THW3
        batch = Batch(
            frames_BTHW3,
            torch.tensor([sample.box for sample in good], dtype=torch.float32),
            inside_B2,
            torch.tensor([sample.flip for sample in good]),
            torch.from_numpy(np.stack([sample.colour for sample in good])).float(),
            torch.stack([sample.target for sample in good]),
            self._stacked_targets(good),
            names,
            bad_videos,
        )
        share_memory([*batch, *batch.teachers.values()])
        return batch

    def _draw(self, video: Video, is_labelled: bool, rng: np.random.Generator) -> Sample:
        clip, data = self.config.clip, self.config.data
        part = frame_range(video)
        latest = latest_start(part, clip)
        start = int(rng.integers(part.first, latest + 1))
        labelled_of_streams = [targets.frames_of(video) for targets in self.targets.values()]
        for labelled in sorted(filter(len, labelled_of_streams), key=len):  # those with the fewest frames come first
            if not np.isin(clip_indices(part, start, clip), labelled).any():
                # A stride can skip all labelled frames (J-HMDB's are the even ones): start at the nearest of them.
                nearest = int(labelled[np.abs(labelled - start).argmin()])
                start = min(max(nearest, part.first), latest)
                break
        indices = clip_indices(part, start, clip)
        frames = self._read_frames(video, indices)
        H, W = frames.shape[1:3]
        crop = draw_crop(H, W, data, rng)
        top, left = math.floor(crop.top * H), math.floor(crop.left * W)
        bottom, right = math.ceil((crop.top + crop.height) * H), math.ceil((crop.left + crop.width) * W)
        rows_of = {stream: self._read_targets(targets, video, indices) for stream, targets in self.targets.items()}
        active = active_labels(video, *part.times[indices[[0, -1]]].tolist()) if is_labelled else None
        return Sample(
            video.name,
            np.ascontiguousarray(frames[:, top:bottom, left:right]),
            (crop.top * H - top, crop.left * W - left, crop.height * H, crop.width * W),
            crop.flip,
            draw_colour(data.colour, rng),
            target_of(active, self.classes, self.multi_label),
            {
                stream: self.targets[stream].kind.of_clip(self.targets[stream].store, rows, crop, clip)
                for stream, rows in rows_of.items()
                if rows is not None
            },
        )

    def _read_frames(self, video: Video, indices: np.ndarray) -> np.ndarray:
        if self.cache is None:
            return read_frames(video.path, indices, self.config.decoded_side, self.config.data.deinterlace)
        return self.cache.read_frames(video.path, indices)

    def _read_targets(self, targets: Targets, video: Video, indices: np.ndarray) -> np.ndarray | None:
        key = targets.key_of(video)
        if self.cache is None or key is None or not isinstance(targets.store, LabelStore):
            return targets.read(video, indices)
        return self.cache.read_label_maps(targets.store, key, indices)

    def _stacked_targets(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        stacked = {}
        for stream, targets in self.targets.items():
            if any(stream in sample.teachers for sample in samples):
                blank = targets.kind.blank(self.config.clip)
                stacked[stream] = torch.stack([sample.teachers.get(stream, blank) for sample in samples])
        return stacked

    def _black(self) -> Sample:
        size = self.config.clip.size
        frames = np.zeros((self.config.clip.frames, size, size, 3), np.uint8)
        target = target_of(self.classes[:1], self.classes, self.multi_label)
        return Sample("", frames, (0.0, 0.0, size, size), False, np.ones(3), target, {})


class StepSampler(Sampler[list[Key]]):
    """The clips of each optimiser step, in a seeded order for each epoch, as lists of keys (epoch, draw, index).

    A step takes the next `batch_size` draws of the epoch, for any number of processes and of accumulated batches. The
    draws left at the end of an epoch are dropped: a last batch of one or two clips would harm batch normalisation.

    `data.balanced` samples by class (Shen, Lin and Huang 2016, section 3.2): every class gets equally many draws, and
    each of its videos comes up in turn. A video with several labels is a member of each of its classes, and videos
    without labels are a class of their own. So each class is drawn equally often for itself. A class that often occurs
    together with others is seen more often than that.

    With unlabelled videos, `data.unlabelled_share` of a step's clips are theirs, spread evenly over the step. An epoch
    is still one pass over the labelled videos. Unlabelled videos come up in turn too, in a seeded order that goes on
    from epoch to epoch.

    Args:
        labels: the labels of each labelled video, for balanced sampling.
        config: seed, batch size, accumulation and balancing.
        process: the index of this process.
        processes: number of processes that train together.
        unlabelled: number of unlabelled videos. Their indices follow those of the labelled ones.

    Raises:
        InputError: the clips of a step cannot be divided evenly.
    """

    def __init__(
        self,
        labels: Sequence[Sequence[str]],
        config: Config,
        process: int = 0,
        processes: int = 1,
        unlabelled: int = 0,
    ) -> None:
        self.labels = labels
        self.config = config
        self.process = process
        self.processes = processes
        self.unlabelled = unlabelled
        self.epoch, self.first_step = 0, 0
        training = config.training
        shares = training.accumulate * processes
        videos = len(labels) + unlabelled
        step_clips = min(training.batch_size, videos // shares * shares)
        while step_clips - self._unlabelled_of(step_clips) > len(labels):  # no labelled video twice in a step
            step_clips -= shares
        if step_clips <= 0 or step_clips % shares:
            raise InputError(
                f"training.batch_size: got {training.batch_size} for {videos} videos, expected a multiple of "
                f"{shares} ({processes} processes x training.accumulate {training.accumulate}), and at least that many "
                "videos; change it, or the number of processes"
            )
        self.batch_size = step_clips // shares
        self.unlabelled_clips = self._unlabelled_of(step_clips)  # of a step
        self.labelled_clips = step_clips - self.unlabelled_clips
        self.steps = len(labels) // self.labelled_clips  # in an epoch

    def start(self, epoch: int, first_step: int) -> None:
        """Set the epoch, and the step in it, that iteration starts from."""
        self.epoch, self.first_step = epoch, first_step

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.config.training.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        rng = np.random.default_rng((self.config.seed, self.epoch))
        order = rng.permutation(len(self.labels))
        if self.config.data.balanced:
            order = self._balanced(order, rng)
        keys = [(self.epoch, draw, int(index)) for draw, index in enumerate(order)]
        if self.unlabelled_clips:
            keys = self._mixed(keys)
        accumulate = self.config.training.accumulate
        for batch in range(self.first_step * accumulate, self.steps * accumulate):
            first = (batch * self.processes + self.process) * self.batch_size
            yield keys[first : first + self.batch_size]

    def _unlabelled_of(self, step_clips: int) -> int:
        """How many of a step's clips are unlabelled: the share, and where it is over 0 at least one of each kind."""
        share = self.config.data.unlabelled_share
        if not self.unlabelled or not share:
            return 0
        return max(0, min(self.unlabelled, step_clips - 1, max(1, round(share * step_clips))))

    def _mixed(self, labelled: Sequence[Key]) -> list[Key]:
        """The keys of all steps of the epoch, with the unlabelled ones among the labelled ones."""
        clips = self.unlabelled_clips
        first = self.epoch * self.steps * clips
        rounds = range(first // self.unlabelled, (first + self.steps * clips) // self.unlabelled + 1)
        orders = [np.random.default_rng((self.config.seed, turn, 0, 1)).permutation(self.unlabelled) for turn in rounds]
        order = np.concatenate(orders)[first % self.unlabelled :] + len(self.labels)
        # The draws of an epoch have numbers of their own, since each is the seed of its clip.
        unlabelled = ((self.epoch, len(labelled) + draw, int(index)) for draw, index in enumerate(order))
        step_clips = self.labelled_clips + clips
        places = [(place + 1) * clips // step_clips > place * clips // step_clips for place in range(step_clips)]
        known = iter(labelled)
        return [next(unlabelled if is_unlabelled else known) for _ in range(self.steps) for is_unlabelled in places]

    def _balanced(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        by_class: dict[str, list[int]] = {}
        for index in order:
            for label in self.labels[index] or ("",):
                by_class.setdefault(label, []).append(int(index))
        turns = -(-len(order) // len(by_class))
        drawn = [members[turn % len(members)] for members in by_class.values() for turn in range(turns)]
        return rng.permutation(drawn)[: len(order)]


class VideoViews(Dataset[Views | BadVideo]):
    """The views of each video that evaluation and prediction score: always the same clips and crops for a file.

    Args:
        videos: the videos to read.
        config: `clip` and `evaluation` define the views.
        targets: the teachers' targets by stream, for scores and pictures.
        masks: read the human masks, too.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        config: Config,
        targets: Mapping[str, Targets] | None = None,
        masks: bool = False,
    ) -> None:
        self.videos = PackedVideos(videos)
        self.config = config
        self.targets = targets or {}
        self.masks = masks

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> Views | BadVideo:
        try:
            with reading(self.videos[index].path):
                return self.read(self.videos[index])
        except VideoError as error:
            return BadVideo.from_error(self.videos[index], error)

    def in_one_pass(self) -> Iterator[ClipFrames]:
        """The views of all videos, which must be segments of one file. The file is decoded once, to its end.

        So damage anywhere in the file is found, as `check` does: if this ends without an error, the file is good.

        Decoding each segment by itself is slow where frames are found by counting, as in AVI: each read then starts at
        the file's beginning. Sort the segments by their ends to hold few frames in memory.

        Raises:
            VideoError: the file cannot be read.
        """
        indices_of = [self._indices(video) for video in self.videos]
        uses = Counter(int(index) for indices_VT in indices_of for index in np.unique(indices_VT))
        frames: dict[int, np.ndarray] = {}
        wanted = sorted(uses)
        path, config = self.videos[0].path, self.config
        frames_in_order = iterate_frames(path, config.decoded_side, wanted, config.data.deinterlace)
        decoded = zip(wanted, frames_in_order, strict=True)
        for indices_VT in indices_of:
            unique = np.unique(indices_VT)
            while unique[-1] not in frames:
                index, frame = next(decoded)
                frames[index] = frame
            yield self._cropped(indices_VT, np.stack([frames[index] for index in unique]))
            for index in unique.tolist():
                uses[index] -= 1
                if not uses[index]:
                    del frames[index]
        next(decoded, None)  # decodes the rest

    def read(self, video: Video) -> Views:
        """The views of one video. VideoError: it cannot be read."""
        indices_VT = self._indices(video)
        return self._views(video, indices_VT, self._frames(video, np.unique(indices_VT)))

    def _range(self, video: Video) -> FrameRange:
        return frame_range(video)

    def _frames(self, video: Video, indices: np.ndarray) -> np.ndarray:
        return read_frames(video.path, indices, self.config.decoded_side, self.config.data.deinterlace)

    def _indices(self, video: Video) -> np.ndarray:
        """The frame indices (V, T) of each view."""
        clip, evaluation = self.config.clip, self.config.evaluation
        part = self._range(video)
        latest = latest_start(part, clip)
        if evaluation.views == 1:
            starts = np.array([(part.first + latest) // 2])
        else:
            starts = np.linspace(part.first, latest, evaluation.views).astype(int)
        return np.stack([clip_indices(part, int(start), clip) for start in starts])

    def _cropped(self, indices_VT: np.ndarray, frames_NHW3: np.ndarray) -> ClipFrames:
        """The views, crop by crop of each, from `frames_NHW3`: the frames of all views, each once and sorted."""
        inverse = np.unique(indices_VT, return_inverse=True)[1].reshape(indices_VT.shape)
        crops = square_crops(frames_NHW3.shape[1], frames_NHW3.shape[2], self.config.evaluation.crops)
        frames = torch.cat([crop_frames(frames_NHW3, crop, self.config.clip.size) for crop in crops])
        first_C = len(frames_NHW3) * torch.arange(len(crops))
        places_VCT = torch.from_numpy(inverse)[:, None] + first_C[:, None]
        return ClipFrames(frames, places_VCT.flatten(0, 1))

    def _views(self, video: Video, indices_VT: np.ndarray, frames_NHW3: np.ndarray) -> Views:
        """Make the views from `frames_NHW3`: the frames of all views, each once and sorted."""
        clip = self.config.clip
        crops = square_crops(frames_NHW3.shape[1], frames_NHW3.shape[2], self.config.evaluation.crops)
        parts = [(indices, crop) for indices in indices_VT for crop in crops]
        unique = np.unique(indices_VT)
        of_stream, maps_of_stream = dict[str, Tensor](), dict[str, Tensor]()
        for stream, targets in self.targets.items():
            targets.frames_of(video)  # raises where they are of another video
            if (rows := targets.read(video, unique)) is None:
                continue
            cut = [(rows[np.searchsorted(unique, indices)], crop) for indices, crop in parts]
            kind, store = targets.kind, targets.store
            of_stream[stream] = torch.stack([kind.of_clip(store, chosen, crop, clip) for chosen, crop in cut])
            maps = [found for chosen, crop in cut if (found := kind.label_maps(chosen, crop, clip.size)) is not None]
            if maps:
                maps_of_stream[stream] = torch.stack(maps)
        mask = _read_mask(video) if self.masks else None
        masks = None
        if mask is not None:
            last = len(mask) - 1
            masks = torch.stack(
                [crop_label_map(mask[np.minimum(indices, last)], crop, clip.size) for indices, crop in parts]
            )
        views = Views(video, self._cropped(indices_VT, frames_NHW3).clips, of_stream, maps_of_stream, masks)
        share_memory([*views, *of_stream.values(), *maps_of_stream.values()])
        return views


class FrameViews(VideoViews):
    """The views of frames in memory.

    Args:
        videos: segments of these frames; their `path` is not read.
        config: as for `VideoViews`.
        frames_THW3: uint8, RGB.
        times: (T,), s from the first frame.
    """

    def __init__(self, videos: Sequence[Video], config: Config, frames_THW3: np.ndarray, times: np.ndarray) -> None:
        super().__init__(videos, config)
        self.frames_THW3 = frames_THW3
        self.times = times

    def clip_frames(self, video: Video) -> ClipFrames:
        """The views of one segment."""
        indices_VT = self._indices(video)
        return self._cropped(indices_VT, self._frames(video, np.unique(indices_VT)))

    def _range(self, video: Video) -> FrameRange:
        return frame_range(video, self.times)

    def _frames(self, video: Video, indices: np.ndarray) -> np.ndarray:
        return np.stack([reduced(self.frames_THW3[index], self.config.decoded_side) for index in indices])


def _read_mask(video: Video) -> np.ndarray | None:
    if video.mask is None:
        return None
    return read_array(video.mask, "mask")
