"""The teacher's label maps on disk: a folder with `labels.json` and, for each labelled video, `<key>.npz`.

`video_files.py` describes the folder. Stores of versions up to 0.2 lack `contents.csv`.

`labels.json` records the teacher, its settings and its class names. A teacher that tells left from right also has
`mirrored`: pairs of classes that change places where a picture is mirrored. An npz file holds `frame_indices` int32
(N,), the labelled frames in ascending order, and `labels` uint8 (N, H, W), their maps: class ids, where 0 is the
background and 255 means *no label here*. More than 16 maps are split into chunks `labels_000000`, `labels_000016` and
so on, so that reading one frame of a long video does not read all maps. A single array of any length can be read, too.
docs/results/label-maps.md compares formats by size and speed.
"""

import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from airstreams.data.video_files import VideoFiles, checked_frames, is_ascending, mirrored_pairs, path_of, select_frames
from airstreams.errors import InputError, VideoError, one_line
from airstreams.files import is_file, move_into_place, temporary_name, write_json
from airstreams.machine import cpus

MAPS_PER_CHUNK = 16
MOST_BYTES = 2**30
"""The largest array of an npz file that is read. A file of 1 MB can unpack to many GB."""
NO_LABEL = 255
"""The id of a pixel without a label."""
OTHER = "other"
"""The class that replaces all classes that the segmenter does not distinguish."""

COCO_CLASSES = (
    "background", "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep",
    "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven",
    "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""The classes of a teacher trained on MS-COCO: the background and COCO's 80 classes, in COCO's order.

(Section 3.2 of the paper mentions 90 classes: COCO's ids go up to 90, and ten of them are unused.)
"""


@dataclass(frozen=True)
class LabelStore(VideoFiles):
    """The label maps of many videos by one teacher. Cheap to pickle: it holds no open file and no label map."""

    suffix: ClassVar[str] = ".npz"

    teacher: str
    classes: tuple[str, ...]
    """The name of each class id; `classes[0]` is the background."""
    settings: dict[str, Any] = field(default_factory=dict)
    new_ids: tuple[int, ...] | None = None
    """For each class id in the files, the id that `read` returns instead; None: the same."""
    mirrored: tuple[tuple[str, str], ...] = ()
    """Pairs of classes that change places in a mirrored picture, such as left hand and right hand."""

    @property
    def identity(self) -> str:
        """A text that differs between teachers and between settings of one teacher."""
        return json.dumps([self.teacher, self.settings, *([self.mirrored] if self.mirrored else [])], sort_keys=True)

    def mirrored_ids(self) -> np.ndarray | None:
        """For each id of a pixel, the id that it has in a mirrored picture, uint8 (256,); None: always the same."""
        ids = np.arange(NO_LABEL + 1, dtype=np.uint8)
        for names in self.mirrored:
            if all(name in self.classes for name in names):
                left, right = (self.classes.index(name) for name in names)
                ids[[left, right]] = right, left
        return ids if self.mirrored else None

    def writer(self, key: str) -> "LabelMapWriter":
        """A writer of a video's label maps."""
        return LabelMapWriter(self.root, key)

    @classmethod
    def open(cls, root: Path) -> "LabelStore":
        """The store in the folder `root`. InputError: `labels.json` is missing or wrong."""
        about = root / "labels.json"
        fix = "give a folder with labels.json and one npz file per video"
        try:
            content = json.loads(about.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{root} is not a folder of label maps: it has no labels.json; {fix}") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{about} cannot be read as JSON ({error}); {fix}") from error
        missing = [k for k in ("teacher", "classes", "settings") if not isinstance(content, dict) or k not in content]
        if missing:
            raise InputError(f"{about} lacks {', '.join(missing)}; expected teacher, classes and settings; {fix}")
        classes = content["classes"]
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise InputError(f"{about}: classes is {classes!r}; expected a list of names; {fix}")
        if not isinstance(content["settings"], dict):
            raise InputError(f"{about}: settings is {content['settings']!r}; expected names with values; {fix}")
        if not 1 <= len(classes) <= NO_LABEL:
            raise InputError(
                f"{about} names {len(classes)} classes; expected 1 to {NO_LABEL} with the background, since an id "
                f"is one byte and {NO_LABEL} means no label; merge classes and annotate again"
            )
        mirrored = mirrored_pairs(about, content.get("mirrored", []), classes)
        return cls(root, content["teacher"], tuple(classes), content["settings"], mirrored=mirrored)

    def with_others_merged(self, names: Sequence[str]) -> "LabelStore":
        """The same label maps with the classes `names`, and all other classes merged into `OTHER`.

        No names: the store itself, with all classes.

        Raises:
            InputError: the store does not have one of these classes, or it has a class `OTHER` of its own.
        """
        if not names:
            return self
        foreground = self.classes[1:]
        if OTHER in self.classes or len(set(names)) < len(names) or not set(names) <= set(foreground):
            raise InputError(
                f"data.segment_classes: got {', '.join(names)}; expected some of the classes of {self.root} "
                f"({', '.join(foreground[:5])} ...), each once, in a store without a class {OTHER}; give [] for all"
            )
        return self.with_classes((self.classes[0], *names, OTHER))

    def with_classes(self, classes: Sequence[str]) -> "LabelStore":
        """The same label maps with the ids of `classes`: the background and some of this store's classes.

        Pixels of all other classes become background, or `OTHER` where `classes` has it and the store has not.

        Raises:
            InputError: the store does not have one of the classes, or the first is not its background.
        """
        merges = OTHER in classes and OTHER not in self.classes
        absent = [name for name in classes if name not in self.classes and not (merges and name == OTHER)]
        if absent or tuple(classes[:1]) != self.classes[:1]:
            wrong = f"has no label maps of {', '.join(absent)}" if absent else f"begins with {self.classes[0]}"
            raise InputError(
                f"{self.root} {wrong}; got {', '.join(classes) or 'no classes'}, expected {self.classes[0]} and some "
                f"of {', '.join(self.classes[1:6])} ..."
            )
        id_of_others = classes.index(OTHER) if merges else 0
        ids = [classes.index(name) if name in classes else id_of_others for name in self.classes]
        before = range(len(self.classes)) if self.new_ids is None else self.new_ids
        return replace(self, classes=tuple(classes), new_ids=tuple(ids[class_id] for class_id in before))

    @staticmethod
    def read_frame_indices(path: Path) -> np.ndarray:
        """The labelled frames of a file, int64 (N,), ascending. VideoError: the file is broken."""
        return checked_frames(path, read_array(path, "frame_indices"))

    def read(self, key: str, indices: Sequence[int] | np.ndarray) -> np.ndarray | None:
        """Read the label maps of the frames `indices`, uint8 (len(indices), H, W), at the teacher's resolution.

        A frame without a label map is 255 everywhere. None: the video has no label maps.

        Raises:
            VideoError: the file is broken, or it holds ids of classes that the store does not have.
        """
        path = file_of(self.root, key)
        if not is_file(path):
            return None
        frames = self.labelled_frames(key)
        return select_frames(
            indices,
            frames,
            lambda positions: self._translated(path, _maps_at(path, positions, len(frames))),
            absent=NO_LABEL,
        )

    def chunks(self, key: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield all label maps of a video in order, a chunk at a time: frame indices int64 (M,), maps uint8 (M, H, W).

        Nothing is remembered, so this can go through any number of videos.

        Raises:
            VideoError: as `read`, or the video has no label maps.
        """
        path = file_of(self.root, key)
        for frames, maps_MHW in _chunks_of(path):
            yield frames, self._translated(path, maps_MHW)

    def _translated(self, path: Path, maps_MHW: np.ndarray) -> np.ndarray:
        known = len(self.classes if self.new_ids is None else self.new_ids)
        unknown = maps_MHW[(maps_MHW >= known) & (maps_MHW != NO_LABEL)]
        if unknown.size:
            raise VideoError(
                f"it holds the class id {unknown[0]}; expected ids below {known}, the number of classes of this store, "
                f"or {NO_LABEL}; annotate the video again, or add the class to labels.json",
                path,
            )
        if self.new_ids is None:
            return maps_MHW
        ids = np.full(NO_LABEL + 1, NO_LABEL, np.uint8)
        ids[:known] = self.new_ids
        return ids[maps_MHW]

    def occurring_classes(self, keys: Sequence[str], on_video: Callable[[], None] = lambda: None) -> tuple[str, ...]:
        """The background and all classes that occur in the label maps of these videos, in the store's order.

        Reads every label map, in parallel. Broken files are ignored.
        """

        def ids_of(key: str) -> set[int]:
            try:
                return {int(class_id) for _, maps_MHW in self.chunks(key) for class_id in np.unique(maps_MHW)}
            except VideoError:
                return set()

        with ThreadPoolExecutor(max_workers=cpus()) as pool:
            seen = {0}
            for ids in pool.map(ids_of, keys):
                seen |= ids
                on_video()
        return tuple(name for class_id, name in enumerate(self.classes) if class_id in seen)


def create(
    root: Path,
    teacher: str,
    classes: Sequence[str],
    settings: Mapping[str, Any],
    mirrored: Sequence[tuple[str, str]] = (),
) -> LabelStore:
    """Write `labels.json` into the folder `root`, which is created if needed. Label maps in it are kept.

    InputError: `mirrored` is not pairs of these classes.
    """
    content: dict[str, Any] = {"teacher": teacher, "classes": list(classes), "settings": dict(settings)}
    if pairs := mirrored_pairs(root / "labels.json", mirrored, classes):
        content["mirrored"] = [list(pair) for pair in pairs]
    write_json(root / "labels.json", content)
    return LabelStore.open(root)


class LabelMapWriter:
    """Writes one video's label maps one by one. The file appears under its name in `finish`.

    At most one chunk is in memory. The same maps give the same bytes.
    """

    def __init__(self, root: Path, key: str) -> None:
        self._path = file_of(root, key)
        self._temporary = temporary_name(self._path)
        self._archive = zipfile.ZipFile(self._temporary, "w", zipfile.ZIP_DEFLATED)
        self._frames: list[int] = []
        self._chunk: list[np.ndarray] = []

    def add(self, frame: int, label_map_HW: np.ndarray) -> None:
        """Add the label map, uint8 (H, W), of a frame. Frames must come in ascending order."""
        if len(self._chunk) == MAPS_PER_CHUNK:
            self._write_chunk()
        self._frames.append(frame)
        self._chunk.append(label_map_HW)

    def finish(self, size: tuple[int, int] = (1, 1)) -> None:
        """Finish the file. `size` is the height and width that a file without label maps gets."""
        if len(self._frames) > MAPS_PER_CHUNK:
            self._write_chunk()
        else:
            self._write("labels", np.stack(self._chunk) if self._chunk else np.zeros((0, *size), np.uint8))
        self._write("frame_indices", np.array(self._frames, np.int32))
        self._archive.close()
        move_into_place(self._temporary, self._path)

    def discard(self) -> None:
        """Remove what was written."""
        self._archive.close()
        self._temporary.unlink(missing_ok=True)

    def _write_chunk(self) -> None:
        self._write(_chunk_name(len(self._frames) - len(self._chunk)), np.stack(self._chunk))
        self._chunk = []

    def _write(self, name: str, array: np.ndarray) -> None:
        with self._archive.open(f"{name}.npy", "w") as file:
            np.lib.format.write_array(file, array, allow_pickle=False)


def save(root: Path, key: str, maps_NHW: np.ndarray, frame_indices: Sequence[int] | np.ndarray) -> None:
    """Write one video's label maps.

    Args:
        root: the folder of the store.
        key: the key of the video.
        maps_NHW: uint8 (N, H, W).
        frame_indices: (N,), ascending.

    Raises:
        ValueError: the two do not fit each other.
    """
    frames = np.asarray(frame_indices, np.int32)
    if maps_NHW.dtype != np.uint8 or maps_NHW.ndim != 3 or len(maps_NHW) != len(frames) or not is_ascending(frames):
        raise ValueError(
            f"got label maps {maps_NHW.dtype} {maps_NHW.shape} and frame_indices {frames.tolist()}; "
            "expected uint8 (N, H, W) and N ascending indices"
        )
    writer = LabelMapWriter(root, key)
    for frame, label_map_HW in zip(frames.tolist(), maps_NHW, strict=True):
        writer.add(frame, label_map_HW)
    writer.finish(maps_NHW.shape[1:])


def resized(maps_NHW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize label maps (..., H, W) to another height and width by the nearest pixel."""
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(size, maps_NHW.shape[-2:], strict=True)
    )
    return maps_NHW[..., rows[:, None], columns]


def file_of(root: Path, key: str) -> Path:
    """The path of a video's label maps in a store."""
    return path_of(root, key, LabelStore.suffix)


def _maps_at(path: Path, positions: np.ndarray, count: int) -> np.ndarray:
    """The label maps (M, H, W) at `positions` (M,) among the `count` maps of a file, with the ids of the file."""
    with _opened(path) as archive:
        if "labels" in archive.files:
            return _checked(path, _array_of(archive, "labels"), count)[positions]
        starts = np.unique(positions // MAPS_PER_CHUNK * MAPS_PER_CHUNK).tolist() or [0]
        sizes = [min(start + MAPS_PER_CHUNK, count) - start for start in starts]
        chunks = [_checked(path, _array_of(archive, _chunk_name(at)), n) for at, n in zip(starts, sizes, strict=True)]
        if any(chunk.shape[1:] != chunks[0].shape[1:] for chunk in chunks):
            raise VideoError("broken label maps: the chunks have different sizes", path)
        maps_MHW = np.empty((len(positions), *chunks[0].shape[1:]), np.uint8)
        for start, chunk in zip(starts, chunks, strict=True):
            here = positions // MAPS_PER_CHUNK * MAPS_PER_CHUNK == start
            maps_MHW[here] = chunk[positions[here] - start]
        return maps_MHW


def _chunks_of(path: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    frames = LabelStore.read_frame_indices(path)
    with _opened(path) as archive:
        if "labels" in archive.files:
            yield frames, _checked(path, _array_of(archive, "labels"), len(frames))
            return
        for start in range(0, len(frames), MAPS_PER_CHUNK):
            some = frames[start : start + MAPS_PER_CHUNK]
            yield some, _checked(path, _array_of(archive, _chunk_name(start)), len(some))


def _chunk_name(start: int) -> str:
    """The name in the npz file of the chunk that begins with the map at position `start`."""
    return f"labels_{start:06d}"


def _checked(path: Path, maps_NHW: np.ndarray, count: int) -> np.ndarray:
    if maps_NHW.dtype != np.uint8 or maps_NHW.ndim != 3 or len(maps_NHW) != count:
        raise VideoError(
            f"broken label maps: labels is {maps_NHW.dtype} {maps_NHW.shape}, expected uint8 ({count}, height, width) "
            f"for its {count} frame_indices",
            path,
        )
    return maps_NHW


def read_array(path: Path, name: str) -> np.ndarray:
    """Read one array of an npz file. VideoError: the file is broken or lacks the array."""
    with _opened(path) as archive:
        return _array_of(archive, name)


def _array_of(archive: Any, name: str) -> np.ndarray:
    for _ in range(3):
        # CPython before 3.11.8, and 3.12 before 3.12.2, may raise SystemError when two threads parse npz headers at
        # once (gh-106905).
        with suppress(SystemError):
            return _read_array(archive, name)
    return _read_array(archive, name)


def _read_array(archive: Any, name: str) -> np.ndarray:
    """One array of an open npz file. ValueError: it is too large; KeyError: there is none of this name."""
    member = f"{name}.npy"
    if member in archive.zip.namelist():
        with archive.zip.open(member) as file:
            version = np.lib.format.read_magic(file)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read_header(file)
        size = math.prod(shape) * dtype.itemsize
        if size > MOST_BYTES:
            raise ValueError(f"{name} has {size} bytes, expected at most {MOST_BYTES}; annotate the video again")
    array: np.ndarray = archive[name]
    return array


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open an npz file, whose arrays are read on access. Any error inside the block becomes a VideoError."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            yield archive
    except VideoError:
        raise
    except Exception as error:  # numpy and zipfile raise many types of errors for broken files
        raise VideoError(f"cannot be read: {one_line(error)}", path) from error
