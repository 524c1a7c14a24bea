"""Targets: what a teacher says about a video, and how a clip for training gets it.

A kind of target is one class. It opens the folder that holds the targets of many videos, and fits those of a clip to
the clip's crop, flip and size. A representation names its kind in `target`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from airstreams.config import ClipConfig
from airstreams.data.label_maps import NO_LABEL, LabelStore, file_of
from airstreams.data.listing import Video
from airstreams.data.transforms import LABEL_MAP_STRIDE, Crop, crop_label_map
from airstreams.data.video import probe
from airstreams.errors import InputError, VideoError


class TargetStore(Protocol):
    """A folder with the targets of many videos by one teacher. Each video has a key in it."""

    @property
    def root(self) -> Path:
        """The folder."""

    @property
    def identity(self) -> str:
        """A text that differs between teachers and between settings of one teacher."""

    @property
    def knows_contents(self) -> bool:
        """Whether the store knows the contents of its videos."""

    def read_contents(self) -> dict[str, str]:
        """The content of each video by its key."""

    def has(self, key: str) -> bool:
        """Whether a video has targets."""

    def labelled_frames(self, key: str) -> np.ndarray:
        """The indices of the frames with a target, ascending. VideoError: the file is broken."""

    def read(self, key: str, indices: Sequence[int] | np.ndarray) -> np.ndarray | None:
        """The targets of some frames, one row each; None: the video has none. VideoError: the file is broken."""


class TargetKind(ABC):
    """How the targets of one kind are stored, and how those of a clip follow its crop, flip and size."""

    @abstractmethod
    def open(self, folder: Path) -> TargetStore:
        """The store in a folder. InputError: it holds no targets of this kind."""

    @abstractmethod
    def of_clip(self, store: TargetStore, rows: np.ndarray, crop: Crop, clip: ClipConfig) -> Tensor:
        """The target of a clip: what `loss` of a representation gets, without the batch's dimension.

        Args:
            store: where the rows are from.
            rows: what the store reads for the clip's frames.
            crop: the clip's rectangle of the frame, and whether it is mirrored.
            clip: the clip's frames and size.
        """

    def label_maps(self, rows: np.ndarray, crop: Crop, size: int) -> Tensor | None:
        """The label maps of a clip in its full size, uint8 (T, size, size): evaluation scores them, pictures show them.

        None: the targets are of another kind. Then evaluation has the loss on `of_clip` alone.
        """
        return None

    @abstractmethod
    def blank(self, clip: ClipConfig) -> Tensor:
        """The target of a clip without targets, of the same shape and type. It counts nothing."""

    @abstractmethod
    def count(self, target: Tensor) -> Tensor:
        """How many places of a batch's targets have a value, a scalar: what a loss is averaged over."""


@dataclass(frozen=True)
class ClassesPerPixel(TargetKind):
    """Label maps: a class id for each pixel, 255 where there is none. A crop takes the nearest pixels.

    The target of a clip is uint8 (T, s, s), every `LABEL_MAP_STRIDE`-th pixel of a row and of a column.

    classes: how many classes the label maps must have, with the background; None: any.
    """

    classes: int | None = None

    def open(self, folder: Path) -> LabelStore:
        """The label store in a folder. InputError: it is none, or it has another number of classes."""
        store = LabelStore.open(folder)
        if self.classes not in (None, len(store.classes)):
            raise InputError(
                f"{folder} has label maps of {len(store.classes)} classes, but the representation expects "
                f"{self.classes}. Give label maps of another teacher."
            )
        return store

    def of_clip(self, store: TargetStore, rows: np.ndarray, crop: Crop, clip: ClipConfig) -> Tensor:
        """The label maps of a clip, uint8 (T, s, s)."""
        return crop_label_map(rows, crop, self._side(clip))

    def label_maps(self, rows: np.ndarray, crop: Crop, size: int) -> Tensor:
        """The label maps of a clip, every pixel."""
        return crop_label_map(rows, crop, size)

    def blank(self, clip: ClipConfig) -> Tensor:
        """255 everywhere."""
        return torch.full((clip.frames, self._side(clip), self._side(clip)), NO_LABEL, dtype=torch.uint8)

    def count(self, target: Tensor) -> Tensor:
        """The number of labelled pixels."""
        return (target != NO_LABEL).sum()

    def _side(self, clip: ClipConfig) -> int:
        return clip.size // LABEL_MAP_STRIDE


@dataclass(frozen=True)
class Targets:
    """The targets of one stream. Cheap to pickle: it holds no open file.

    keys: the video's key in the store by its name, where it is another one than `Video.label_map`.
    """

    kind: TargetKind
    store: TargetStore
    keys: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the classes of label maps; None: the targets are of another kind."""
        if isinstance(self.kind, ClassesPerPixel) and isinstance(self.store, LabelStore):
            return self.store.classes
        return None

    def key_of(self, video: Video) -> str | None:
        """The key of a video in the store; None: it has none."""
        return self.keys.get(video.name, video.label_map)

    def has(self, video: Video) -> bool:
        """Whether a video has targets."""
        key = self.key_of(video)
        return key is not None and self.store.has(key)

    def frames_of(self, video: Video) -> np.ndarray:
        """The indices of the video's frames that have targets.

        Raises:
            VideoError: the targets are of another video, which has more frames.
        """
        return labelled_frames(self.store, video, self.key_of(video))

    def read(self, video: Video, indices: np.ndarray) -> np.ndarray | None:
        """The targets of some frames of a video, as `TargetStore.read`."""
        key = self.key_of(video)
        return None if key is None else self.store.read(key, indices)


def labelled_frames(store: TargetStore, video: Video, key: str | None) -> np.ndarray:
    """The indices of the video's frames that have targets under a key. VideoError: as `Targets.frames_of`."""
    if key is None:
        return np.empty(0, dtype=int)
    indices = store.labelled_frames(key)
    frames = len(probe(video.path).times)
    if len(indices) and indices[-1] >= frames:
        raise VideoError(
            f"its label maps are of another video: one is of frame {indices[-1]}, the video has {frames} frames; "
            f"delete {file_of(store.root, key)} and annotate again",
            video.path,
        )
    return indices
