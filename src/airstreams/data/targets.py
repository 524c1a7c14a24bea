"""Targets: what a teacher says about a video, and how a clip for training gets it.

A kind of target is one class. It opens the folder that holds the targets of many videos, and fits those of a clip to
the clip's crop, flip and size. A representation names its kind in `target`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from airstreams.config import ClipConfig
from airstreams.data.label_maps import NO_LABEL, LabelStore
from airstreams.data.listing import Video, shortlist
from airstreams.data.transforms import Crop, crop_label_map, crop_values
from airstreams.data.value_store import Kind, ValueStore
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

    def file_of(self, key: str) -> Path:
        """The path of a video's file."""

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

    def frames_of(self, labelled: np.ndarray, frames: int) -> np.ndarray:
        """The indices of the frames of a video for which the labelled ones give a target: those alone.

        Args:
            labelled: the labelled frames, ascending.
            frames: how many the video has.
        """
        return labelled

    def read(self, store: TargetStore, key: str, indices: np.ndarray) -> np.ndarray | None:
        """The rows of a clip's frames, as `store.read`."""
        return store.read(key, indices)

    def at_stride(self, stride: int) -> "TargetKind":
        """This kind with targets at every so many pixels. A kind that has no pixels stays as it is."""
        return self

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


@dataclass(frozen=True, kw_only=True)
class _PerPixel(TargetKind):
    """The kinds with targets on the pixels of a clip.

    stride: from one used pixel of a row or a column to the next (`data.label_stride`). The predictions are on a grid of
        4 to 16 px, so by default the pixels between add little. Predictions of the clip's full size for each class
        would be the step's largest tensor.
    """

    stride: int = 4

    def at_stride(self, stride: int) -> Self:
        """This kind with targets at every so many pixels."""
        return replace(self, stride=stride)

    def side(self, clip: ClipConfig) -> int:
        """The height and width of a clip's target."""
        return clip.size // self.stride


@dataclass(frozen=True)
class ClassesPerPixel(_PerPixel):
    """Label maps: a class id for each pixel, 255 where there is none. A crop takes the nearest pixels.

    Where a clip is mirrored, left and right classes change places if the store says which (`mirrored`).

    The target of a clip is uint8 (T, s, s), every `stride`-th pixel of a row and of a column.

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
        maps_Tss = crop_label_map(rows, crop, self.side(clip))
        mirrored = store.mirrored_ids() if crop.flip and isinstance(store, LabelStore) else None
        return maps_Tss if mirrored is None else torch.from_numpy(mirrored[maps_Tss.numpy()])

    def label_maps(self, rows: np.ndarray, crop: Crop, size: int) -> Tensor:
        """The label maps of a clip, every pixel."""
        return crop_label_map(rows, crop, size)

    def blank(self, clip: ClipConfig) -> Tensor:
        """255 everywhere."""
        return torch.full((clip.frames, self.side(clip), self.side(clip)), NO_LABEL, dtype=torch.uint8)

    def count(self, target: Tensor) -> Tensor:
        """The number of labelled pixels."""
        return (target != NO_LABEL).sum()


class _Values(TargetKind):
    """The kinds whose values a `ValueStore` holds, NaN where there is none."""

    kind: ClassVar[Kind]

    def open(self, folder: Path) -> ValueStore:
        """The store in a folder. InputError: it holds another kind of targets, or too few of them."""
        store = ValueStore.open(folder)
        if store.kind != self.kind:
            raise InputError(
                f"{folder} has targets of the kind {store.kind}, but the representation expects {self.kind}. Give "
                "targets of another teacher."
            )
        wanted, has = self.wanted(), len(store.names)
        # Principal components come in the order of their variance, so a representation may take the first of them.
        may_have_more = self.kind in ("grid", "clip")
        if wanted is not None and (has < wanted or (has > wanted and not may_have_more)):
            raise InputError(
                f"{folder} has {has} {self.kind} values per place ({shortlist([*store.names])}), but the "
                f"representation expects {wanted}{' or more' if may_have_more else ''}. Give targets of another "
                "teacher."
            )
        return store

    @abstractmethod
    def wanted(self) -> int | None:
        """How many maps, points or features a row has; None: any number."""

    def count(self, target: Tensor) -> Tensor:
        """The number of places with a value."""
        return has_value(target).sum()


def has_value(target_BCX: Tensor) -> Tensor:
    """The places (B, ...) of targets (B, C, ...) at which all C values are known."""
    return ~target_BCX.isnan().any(dim=1)


@dataclass(frozen=True)
class MapsPerPixel(_PerPixel, _Values):
    """Maps of values for each pixel, such as depth, normals or soft parts. A crop takes them bilinearly.

    Where a clip is mirrored, maps change places or sign if the store says which (`mirrored`, `negated`). Lengths in px
    of the map (`in_px`) become px of the clip.

    The target of a clip is float32 (C, T, s, s), every `stride`-th pixel of a row and of a column, NaN where
    there is no value.

    channels: how many maps a frame must have, C.
    """

    channels: int
    kind: ClassVar[Kind] = "maps"

    def wanted(self) -> int:
        """The channels."""
        return self.channels

    def of_clip(self, store: TargetStore, rows: np.ndarray, crop: Crop, clip: ClipConfig) -> Tensor:
        """The maps of a clip, float32 (C, T, s, s)."""
        assert isinstance(store, ValueStore)
        maps_TCss = crop_values(rows, crop, self.side(clip))
        along_x = torch.tensor([name in store.negated for name in store.names])
        if store.in_px:
            H, W = rows.shape[2:]
            scale_x, scale_y = clip.size / (crop.width * W), clip.size / (crop.height * H)
            maps_TCss = maps_TCss * torch.where(along_x, scale_x, scale_y)[:, None, None]
        if crop.flip:
            sign_C11 = 1 - 2 * along_x[:, None, None].float()
            maps_TCss = (maps_TCss * sign_C11)[:, mirrored_places(store)]
        return maps_TCss.transpose(0, 1).contiguous()

    def blank(self, clip: ClipConfig) -> Tensor:
        """NaN everywhere."""
        return torch.full((self.channels, clip.frames, self.side(clip), self.side(clip)), torch.nan)


@dataclass(frozen=True)
class FeaturesOnGrid(_Values):
    """Features on a grid of each frame: the first principal components of a teacher's. A crop takes them bilinearly.

    The target of a clip is float32 (K, T, g, g), NaN where there is no value.

    channels: how many components to take, K.
    stride: px of the clip from one place of the grid to the next.
    """

    channels: int
    stride: int = 16
    kind: ClassVar[Kind] = "grid"

    def wanted(self) -> int:
        """The channels."""
        return self.channels

    def of_clip(self, store: TargetStore, rows: np.ndarray, crop: Crop, clip: ClipConfig) -> Tensor:
        """The features of a clip, float32 (K, T, g, g)."""
        grid_TKgg = crop_values(rows[:, : self.channels], crop, clip.size // self.stride)
        return grid_TKgg.transpose(0, 1).contiguous()

    def blank(self, clip: ClipConfig) -> Tensor:
        """NaN everywhere."""
        side = clip.size // self.stride
        return torch.full((self.channels, clip.frames, side, side), torch.nan)


@dataclass(frozen=True)
class Points(_Values):
    """Points of people in each frame, such as joints. Left and right points change places where a clip is mirrored.

    The target of a clip is float32 (T, M, P, 3): x and y in 0..1 of the clip, and the visibility in 0..1. It is 0 for a
    point that is outside of the clip, that the teacher does not see, or that belongs to no person.

    points: how many a person has, P.
    people: the people of a frame that are kept, M. The teacher lists the surest first.
    """

    points: int
    people: int = 4
    kind: ClassVar[Kind] = "points"

    def wanted(self) -> int:
        """The points."""
        return self.points

    def of_clip(self, store: TargetStore, rows: np.ndarray, crop: Crop, clip: ClipConfig) -> Tensor:
        """The points of a clip, float32 (T, M, P, 3)."""
        assert isinstance(store, ValueStore)
        x_TMP, y_TMP, visible_TMP = np.moveaxis(rows[:, : self.people], -1, 0)
        x_TMP = (x_TMP - crop.left) / crop.width
        y_TMP = (y_TMP - crop.top) / crop.height
        if crop.flip:
            places = mirrored_places(store)
            x_TMP, y_TMP, visible_TMP = (1 - x_TMP)[..., places], y_TMP[..., places], visible_TMP[..., places]
        # Comparisons with NaN are false, so points without a value are not inside.
        inside_TMP = (x_TMP >= 0) & (x_TMP <= 1) & (y_TMP >= 0) & (y_TMP <= 1) & (visible_TMP > 0)
        points = np.stack([x_TMP, y_TMP, visible_TMP], axis=-1)
        target = self.blank(clip)
        target[:, : points.shape[1]] = torch.from_numpy(np.where(inside_TMP[..., None], points, 0).astype(np.float32))
        return target

    def blank(self, clip: ClipConfig) -> Tensor:
        """Points that are not visible."""
        return torch.zeros(clip.frames, self.people, self.points, 3)

    def count(self, target: Tensor) -> Tensor:
        """The sum of the visibilities of the points, each the largest of all people."""
        return point_weights(target).sum()


def point_weights(target_BTMP3: Tensor) -> Tensor:
    """How visible each kind of point is in each frame, (B, T, P): the largest visibility of all people."""
    return target_BTMP3[..., 2].amax(dim=2)


@dataclass(frozen=True)
class FeaturesPerClip(_Values):
    """A vector of features for a whole clip. Crops and flips do not change it.

    A row of the store holds from its frame to the next labelled one. The target of a clip is float32 (D,), the mean of
    the rows of its frames, NaN where there is none.

    channels: how many features to take, D.
    """

    channels: int
    kind: ClassVar[Kind] = "clip"

    def wanted(self) -> int:
        """The channels."""
        return self.channels

    def frames_of(self, labelled: np.ndarray, frames: int) -> np.ndarray:
        """All frames from the first labelled one."""
        return np.arange(labelled[0], frames) if len(labelled) else labelled

    def read(self, store: TargetStore, key: str, indices: np.ndarray) -> np.ndarray | None:
        """For each frame the row that holds there. Before the first labelled frame it is that frame's."""
        labelled = store.labelled_frames(key)
        if not len(labelled):
            return store.read(key, indices)
        return store.read(key, labelled[np.maximum(np.searchsorted(labelled, indices, side="right") - 1, 0)])

    def of_clip(self, store: TargetStore, rows: np.ndarray, crop: Crop, clip: ClipConfig) -> Tensor:
        """The features of a clip, float32 (D,)."""
        known = rows[~np.isnan(rows).any(axis=1), : self.channels]
        return torch.from_numpy(known.mean(axis=0)) if len(known) else self.blank(clip)

    def blank(self, clip: ClipConfig) -> Tensor:
        """NaN."""
        return torch.full((self.channels,), torch.nan)


def mirrored_places(store: ValueStore) -> list[int]:
    """For each name of a store, the place of the one that takes its place in a mirrored picture."""
    names = list(store.names)
    for left, right in store.mirrored:
        first, second = names.index(left), names.index(right)
        names[first], names[second] = right, left
    return [store.names.index(name) for name in names]


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
        labelled = labelled_frames(self.store, video, self.key_of(video))
        return self.kind.frames_of(labelled, len(probe(video.path).times)) if len(labelled) else labelled

    def read(self, video: Video, indices: np.ndarray) -> np.ndarray | None:
        """The rows of a clip's frames; None: the video has no targets. VideoError: the file is broken."""
        key = self.key_of(video)
        return None if key is None else self.kind.read(self.store, key, indices)


def labelled_frames(store: TargetStore, video: Video, key: str | None) -> np.ndarray:
    """The indices of the video's frames that have targets under a key. VideoError: as `Targets.frames_of`."""
    if key is None:
        return np.empty(0, dtype=int)
    indices = store.labelled_frames(key)
    frames = len(probe(video.path).times)
    if len(indices) and indices[-1] >= frames:
        raise VideoError(
            f"its targets are of another video: one is of frame {indices[-1]}, the video has {frames} frames; "
            f"delete {store.file_of(key)} and annotate again",
            video.path,
        )
    return indices
