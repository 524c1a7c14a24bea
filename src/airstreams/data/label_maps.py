"""The teacher's label maps on disk: a folder with `labels.json` and, for each labelled video, `<key>.npz`.

`labels.json` says which teacher with which settings saw which classes. An npz holds `frame_indices` int32 (N,), the
frames labelled, increasing, and their maps in order, `labels` uint8 (N, H, W): class ids where 0 is background and 255
is *no label here*. More than sixteen maps are cut into pieces, `labels_000000`, `labels_000016` and so on, since a
frame of an hour's video should not cost the hour; one array of any length can be read. One file a video keeps a job
that annotates easy to resume and to run in parallel. docs/results/label-maps.md compares formats by size and speed.
"""

import functools
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from airstreams.errors import InputError, VideoError, one_line
from airstreams.files import move_into_place, temporary_name, write_json
from airstreams.machine import cpus

MAPS_A_PIECE = 16
NO_LABEL = 255
"""The id of a pixel about which the teacher said nothing."""
OTHER = "other"
"""The class of all things that the segmenter need not tell apart."""

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
"""What a teacher trained on MS-COCO sees: background and the 80 things, in COCO's own order. (The paper speaks of 90
classes, section 3.2: COCO's ids go to 90, and ten of them are unused.)
"""


@dataclass(frozen=True)
class LabelStore:
    """Label maps of many videos by one teacher. Cheap to pickle: it holds no open file and no label map."""

    root: Path
    teacher: str
    classes: tuple[str, ...]
    """Name of each class id; `classes[0]` is the background."""
    settings: dict[str, Any] = field(default_factory=dict)
    renamed: tuple[int, ...] | None = None
    """For each id in the files, the id that `read` gives instead; None: the same."""

    @property
    def identity(self) -> str:
        """Tells apart what different teachers, or one with different settings, said."""
        return json.dumps([self.teacher, self.settings], sort_keys=True)

    @classmethod
    def open(cls, root: Path) -> "LabelStore":
        """The store in the folder `root`. InputError when `labels.json` is missing or does not describe one."""
        about = root / "labels.json"
        mend = "give a folder with labels.json and an npz file a video"
        try:
            content = json.loads(about.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{root} is no folder of label maps: it has no labels.json; {mend}") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{about} cannot be read as JSON ({error}); {mend}") from error
        missing = [k for k in ("teacher", "classes", "settings") if not isinstance(content, dict) or k not in content]
        if missing:
            raise InputError(f"{about} lacks {', '.join(missing)}; expected teacher, classes and settings; {mend}")
        classes = content["classes"]
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise InputError(f"{about}: classes is {classes!r}; expected a list of names; {mend}")
        if not isinstance(content["settings"], dict):
            raise InputError(f"{about}: settings is {content['settings']!r}; expected names with values; {mend}")
        if not 1 <= len(classes) <= NO_LABEL:
            raise InputError(
                f"{about} names {len(classes)} classes; expected 1 to {NO_LABEL} with the background, as an id is one "
                f"byte and {NO_LABEL} means no label; merge classes and annotate again"
            )
        return cls(root, content["teacher"], tuple(classes), content["settings"])

    def apart(self, names: Sequence[str]) -> "LabelStore":
        """The same label maps with the classes `names` told apart and all others as one; no names: all are apart.

        InputError: the store does not have one of them, or has a class `OTHER` of its own.
        """
        if not names:
            return self
        things = self.classes[1:]
        if OTHER in self.classes or len(set(names)) < len(names) or not set(names) <= set(things):
            raise InputError(
                f"data.segment_classes: got {', '.join(names)}; expected some of the classes of {self.root} "
                f"({', '.join(things[:5])} ...), each once, and none called {OTHER} among these; [] tells all apart"
            )
        return self.with_classes((self.classes[0], *names, OTHER))

    def with_classes(self, classes: Sequence[str]) -> "LabelStore":
        """The same label maps in the ids of `classes`, some of this store's; the others' pixels become background.

        They become `OTHER` where that is one of `classes` and not the store's own. The background comes first.
        InputError: a class that the store does not have.
        """
        groups = OTHER in classes and OTHER not in self.classes
        absent = [name for name in classes if name not in self.classes and not (groups and name == OTHER)]
        if absent or tuple(classes[:1]) != self.classes[:1]:
            wrong = f"has no label maps of {', '.join(absent)}" if absent else "was asked for classes without the first"
            raise InputError(
                f"{self.root} {wrong}; expected {self.classes[0]} and some of {', '.join(self.classes[1:6])} ..."
            )
        rest = classes.index(OTHER) if groups else 0
        ids = [classes.index(name) if name in classes else rest for name in self.classes]
        before = range(len(self.classes)) if self.renamed is None else self.renamed
        return replace(self, classes=tuple(classes), renamed=tuple(ids[label] for label in before))

    def keys(self) -> Iterator[str]:
        """The videos that have label maps, in the order in which the disk names them, while it is being walked.

        What begins with a dot is passed over, as it is among videos: such files are still being written.
        """
        folders = [self.root]
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        folders.append(Path(entry.path))
                    elif entry.name.endswith(".npz"):
                        yield _key_of(self.root, Path(entry.path))

    def has(self, key: str) -> bool:
        """Whether the video has label maps."""
        return file_of(self.root, key).is_file()

    def labelled_frames(self, key: str) -> np.ndarray:
        """The frames with a label map, increasing, int64 (N,), read-only; empty for a video without label maps.

        Remembered, since training asks in every epoch. VideoError when the file is broken.
        """
        path = file_of(self.root, key)
        if not path.is_file():
            return np.empty(0, np.int64)
        # The time of writing is part of the memory's key: a file that was annotated again is read again.
        return _frame_indices(str(path), path.stat().st_mtime_ns)

    def read(self, key: str, indices: Sequence[int] | np.ndarray) -> np.ndarray | None:
        """Label maps of the frames `indices`, in that order: uint8 (len(indices), H, W), at the teacher's resolution.

        255 everywhere in a frame that is not labelled; None for a video without label maps. VideoError when the file
        is broken, or holds ids of classes that the store does not name.
        """
        path = file_of(self.root, key)
        if not path.is_file():
            return None
        frames = self.labelled_frames(key)
        return at_frames(
            indices, frames, lambda positions: self._in_our_ids(path, _maps_at(path, positions, len(frames)))
        )

    def pieces(self, key: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All label maps of a video, in order: some frames at a time, int64 (M,), and their maps, uint8 (M, H, W).

        Nothing is remembered, for walks over more videos than memory has room for. Errors as `read`, and VideoError
        for a video without label maps.
        """
        path = file_of(self.root, key)
        for frames, maps_MHW in _pieces_of(path):
            yield frames, self._in_our_ids(path, maps_MHW)

    def _in_our_ids(self, path: Path, maps_MHW: np.ndarray) -> np.ndarray:
        known = len(self.classes if self.renamed is None else self.renamed)
        unknown = maps_MHW[(maps_MHW >= known) & (maps_MHW != NO_LABEL)]
        if unknown.size:
            raise VideoError(
                f"{path} holds the class id {unknown[0]}; expected ids below {known}, the number of "
                f"classes of this store, or {NO_LABEL}; annotate the video again, or name the class in labels.json"
            )
        if self.renamed is None:
            return maps_MHW
        ids = np.full(NO_LABEL + 1, NO_LABEL, np.uint8)
        ids[:known] = self.renamed
        return ids[maps_MHW]

    def occurring(self, keys: Sequence[str], on_video: Callable[[], None] = lambda: None) -> tuple[str, ...]:
        """The background, and the classes that some pixel of these videos has, in the store's order.

        Reads every label map, in parallel; a broken file counts for nothing.
        """

        def ids_of(key: str) -> set[int]:
            try:
                return {int(label) for _, maps_MHW in self.pieces(key) for label in np.unique(maps_MHW)}
            except VideoError:
                return set()

        with ThreadPoolExecutor(max_workers=cpus()) as pool:
            seen = {0}
            for ids in pool.map(ids_of, keys):
                seen |= ids
                on_video()
        return tuple(name for label, name in enumerate(self.classes) if label in seen)


def create(root: Path, teacher: str, classes: Sequence[str], settings: Mapping[str, Any]) -> LabelStore:
    """Write `labels.json` into the folder `root`, which is made if need be; label maps already there stay."""
    content = {"teacher": teacher, "classes": list(classes), "settings": dict(settings)}
    write_json(root / "labels.json", content)
    return LabelStore.open(root)


class LabelWriter:
    """One video's label maps, written as they come; nothing is under its name before `finish`.

    It holds no more than a piece in memory. The same maps make the same bytes.
    """

    def __init__(self, root: Path, key: str) -> None:
        self._path = file_of(root, key)
        self._temporary = temporary_name(self._path)
        self._archive = zipfile.ZipFile(self._temporary, "w", zipfile.ZIP_DEFLATED)
        self._frames: list[int] = []
        self._piece: list[np.ndarray] = []

    def add(self, frame: int, label_map_HW: np.ndarray) -> None:
        """The label map, uint8, of a frame after all before."""
        if len(self._piece) == MAPS_A_PIECE:
            self._write_piece()
        self._frames.append(frame)
        self._piece.append(label_map_HW)

    def finish(self, size: tuple[int, int] = (1, 1)) -> None:
        """Give the video its label maps; `size`, height and width, is theirs where there is none."""
        if len(self._frames) > MAPS_A_PIECE:
            self._write_piece()
        else:
            self._write("labels", np.stack(self._piece) if self._piece else np.zeros((0, *size), np.uint8))
        self._write("frame_indices", np.array(self._frames, np.int32))
        self._archive.close()
        move_into_place(self._temporary, self._path)

    def discard(self) -> None:
        """Leave nothing behind."""
        self._archive.close()
        self._temporary.unlink(missing_ok=True)

    def _write_piece(self) -> None:
        self._write(_piece(len(self._frames) - len(self._piece)), np.stack(self._piece))
        self._piece = []

    def _write(self, name: str, array: np.ndarray) -> None:
        with self._archive.open(f"{name}.npy", "w") as file:
            np.lib.format.write_array(file, array, allow_pickle=False)


def save(root: Path, key: str, labels_NHW: np.ndarray, frame_indices: Sequence[int] | np.ndarray) -> None:
    """Write one video's label maps, uint8 (N, H, W), of the frames `frame_indices` (N,), increasing.

    ValueError when the two do not fit each other.
    """
    frames = np.asarray(frame_indices, np.int32)
    if labels_NHW.dtype != np.uint8 or labels_NHW.ndim != 3 or len(labels_NHW) != len(frames) or not _increase(frames):
        raise ValueError(
            f"given labels {labels_NHW.dtype} {labels_NHW.shape} and frame_indices {frames.tolist()}; "
            "expected uint8 (N, H, W) and N increasing indices"
        )
    writer = LabelWriter(root, key)
    for frame, label_map_HW in zip(frames.tolist(), labels_NHW, strict=True):
        writer.add(frame, label_map_HW)
    writer.finish(labels_NHW.shape[1:])


def at_frames(
    indices: Sequence[int] | np.ndarray, frames: np.ndarray, read: Callable[[np.ndarray], np.ndarray | None]
) -> np.ndarray | None:
    """The label maps of the frames `indices`, uint8 (N, H, W), 255 where a frame has none; None: `read` found nothing.

    read: what gives those (M, H, W) that stand at some positions (M,) among the labelled `frames`.
    """
    wanted = np.asarray(indices, np.int64)
    labelled = np.isin(wanted, frames)
    maps_MHW = read(np.searchsorted(frames, wanted[labelled]))
    if maps_MHW is None:
        return None
    chosen_NHW = np.full((len(wanted), *maps_MHW.shape[1:]), NO_LABEL, np.uint8)
    chosen_NHW[labelled] = maps_MHW
    return chosen_NHW


def resized(labels_NHW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Label maps (..., H, W) at another height and width, by the nearest pixel."""
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(size, labels_NHW.shape[-2:], strict=True)
    )
    return labels_NHW[..., rows[:, None], columns]


def file_of(root: Path, key: str) -> Path:
    """Where the label maps of the video `key` lie in a store."""
    # A CSV file may name videos outside its folder; their label maps still belong inside the store.
    inside = {"/": "%2F", "//": "%2F", "..": "%2E%2E"}
    *folders, name = (inside.get(part, part) for part in PurePosixPath(key).parts)
    return root.joinpath(*folders, f"{name}.npz")


def _key_of(root: Path, path: Path) -> str:
    """The inverse of `file_of`."""
    outside = {"%2F": "/", "%2E%2E": ".."}
    return str(PurePosixPath(*(outside.get(part, part) for part in path.relative_to(root).with_suffix("").parts)))


@functools.cache
def _frame_indices(path: str, modified_ns: int) -> np.ndarray:
    return _read_frame_indices(Path(path))


def _read_frame_indices(path: Path) -> np.ndarray:
    stored = read_array(path, "frame_indices")
    frames = stored.astype(np.int64)
    if not np.issubdtype(stored.dtype, np.integer) or frames.ndim != 1 or not _increase(frames):
        raise VideoError(f"label maps {path} are broken: frame_indices is not a list of increasing whole numbers")
    frames.flags.writeable = False
    return frames


def _increase(frames: np.ndarray) -> bool:
    return bool((frames >= 0).all() and (np.diff(frames) > 0).all())


def _maps_at(path: Path, positions: np.ndarray, count: int) -> np.ndarray:
    """The label maps (M, H, W) that stand at `positions` (M,) among the `count` of a file, as they are."""
    with _opened(path) as archive:
        if "labels" in archive.files:
            return _whole(path, _array_of(archive, "labels"), count)[positions]
        starts = np.unique(positions // MAPS_A_PIECE * MAPS_A_PIECE).tolist() or [0]
        sizes = [min(start + MAPS_A_PIECE, count) - start for start in starts]
        pieces = [_whole(path, _array_of(archive, _piece(at)), n) for at, n in zip(starts, sizes, strict=True)]
        if any(piece.shape[1:] != pieces[0].shape[1:] for piece in pieces):
            raise VideoError(f"label maps {path} are broken: they are of several sizes")
        maps_MHW = np.empty((len(positions), *pieces[0].shape[1:]), np.uint8)
        for start, piece in zip(starts, pieces, strict=True):
            here = positions // MAPS_A_PIECE * MAPS_A_PIECE == start
            maps_MHW[here] = piece[positions[here] - start]
        return maps_MHW


def _pieces_of(path: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    frames = _read_frame_indices(path)
    with _opened(path) as archive:
        if "labels" in archive.files:
            yield frames, _whole(path, _array_of(archive, "labels"), len(frames))
            return
        for start in range(0, len(frames), MAPS_A_PIECE):
            some = frames[start : start + MAPS_A_PIECE]
            yield some, _whole(path, _array_of(archive, _piece(start)), len(some))


def _piece(start: int) -> str:
    """The name in an npz of the label maps from position `start` on."""
    return f"labels_{start:06d}"


def _whole(path: Path, labels_NHW: np.ndarray, count: int) -> np.ndarray:
    if labels_NHW.dtype != np.uint8 or labels_NHW.ndim != 3 or len(labels_NHW) != count:
        raise VideoError(
            f"label maps {path} are broken: labels is {labels_NHW.dtype} {labels_NHW.shape}, "
            f"expected uint8 ({count}, height, width), as it has frame_indices"
        )
    return labels_NHW


def read_array(path: Path, name: str) -> np.ndarray:
    """One array of an npz file. VideoError: the file is broken or lacks it."""
    with _opened(path) as archive:
        return _array_of(archive, name)


def _array_of(archive: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    for _ in range(3):
        # CPython before 3.11.8, and 3.12 before 3.12.2, may raise SystemError where two threads parse npz headers at
        # once (gh-106905).
        with suppress(SystemError):
            return archive[name]
    return archive[name]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An npz file, whose arrays are read when asked for. VideoError: it is broken or lacks one."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            yield archive
    except VideoError:
        raise
    except Exception as error:  # numpy tells the ways in which a file can be broken through as many types of them
        raise VideoError(f"{path} cannot be read: {one_line(error)}") from error
