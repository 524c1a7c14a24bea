"""A teacher's values on disk: maps, points and features, all targets but label maps.

A folder as `video_files.py` describes it, with `targets.json`: the teacher, the kind and names of its values, and how
they are stored. Each video has a safetensors file, with `frame_indices` int32 (N,), the labelled frames in ascending
order, and `values` (N, ...), one row for each of them:

| kind   | row       | what it is                                                                  |
| ------ | --------- | --------------------------------------------------------------------------- |
| maps   | (C, h, w) | C maps of a frame, such as depth, of any size                               |
| points | (M, P, 3) | P points of up to M people: x, y in 0..1 of the frame, and how visible      |
| grid   | (K, h, w) | features on a grid                                                          |
| clip   | (D,)      | features of the part of the video from this frame to the next labelled one  |

Values are stored in one byte or two. `uint8` cuts a range into 254 steps: the error is at most half a step, 0.2 % of
the range, and values outside become its ends. 255 means *no value here*. `float16` keeps 11 bits: the error is at most
0.05 % of the value, or 3e-8 for tiny ones. Values beyond 65504 become 65504. NaN means *no value here*. In memory,
values are float32, and NaN where there is none.

Nothing is compressed: values of networks hardly get smaller by it, and reading them takes over a hundred times as long
(docs/results/target-store.md).

Features are projected before they are stored (`Projection`). `projection.npz` has what the projection learnt.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from safetensors import safe_open

from airstreams.data.label_maps import read_array
from airstreams.data.video_files import VideoFiles, checked_frames, is_ascending, mirrored_pairs, select_frames
from airstreams.errors import InputError, VideoError, one_line
from airstreams.files import is_file, move_into_place, replacing, temporary_name, write_json

Kind = Literal["maps", "points", "grid", "clip"]
DIMENSIONS: dict[str, int] = {"maps": 3, "points": 3, "grid": 3, "clip": 1}
STEPS = 254
"""The steps between the ends of the range of a uint8. The code after them means *no value here*."""
PER_CHUNK = 16
"""The rows that are read at a time where all are."""
HEADER_BYTES = 512
"""The header of a file. It has two arrays, and takes some 200 bytes."""
_DTYPES = {"uint8": "U8", "float16": "F16"}  # the format's names
ABOUT, PROJECTION = "targets.json", "projection.npz"


@dataclass(frozen=True)
class ValueStore(VideoFiles):
    """The values of many videos by one teacher. Cheap to pickle: it holds no open file and no value."""

    suffix: ClassVar[str] = ".safetensors"

    teacher: str
    kind: Kind
    names: tuple[str, ...]
    """Of the maps, points or features: as many as a row has."""
    settings: dict[str, Any] = field(default_factory=dict)
    dtype: Literal["uint8", "float16"] = "float16"
    low: float = 0.0
    high: float = 1.0
    """The range of a uint8."""
    mirrored: tuple[tuple[str, str], ...] = ()
    """Pairs of names that change places in a mirrored picture, such as left hand and right hand."""
    negated: tuple[str, ...] = ()
    """Names of maps whose values change sign in a mirrored picture: those along x of a vector."""
    in_px: bool = False
    """Whether the values of maps are lengths in px of the map, such as flow. A crop that enlarges the map scales them.
    Maps in `negated` are along x, the others along y."""

    @property
    def identity(self) -> str:
        """A text that differs between teachers and between settings of one teacher."""
        projection = self.root / PROJECTION
        digest = sha256(projection.read_bytes()).hexdigest() if is_file(projection) else None
        return json.dumps([self.description(), digest], sort_keys=True)

    def description(self) -> dict[str, Any]:
        """The JSON of `targets.json`."""
        described = {name: value for name, value in asdict(self).items() if name != "root"}
        content: dict[str, Any] = json.loads(json.dumps(described))
        return content

    @classmethod
    def open(cls, root: Path) -> "ValueStore":
        """The store in the folder `root`. InputError: `targets.json` is missing or wrong."""
        about = root / ABOUT
        fix = "give a folder with targets.json and one safetensors file per video"
        try:
            content = json.loads(about.read_text(encoding="utf-8"))
        except FileNotFoundError:
            has = "label maps, and no targets.json" if is_file(root / "labels.json") else "no targets.json"
            raise InputError(f"{root} has {has}; {fix}") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{about} cannot be read as JSON ({error}); {fix}") from error
        if not isinstance(content, dict) or not {"teacher", "kind", "names", "settings"} <= content.keys():
            raise InputError(f"{about} lacks one of teacher, kind, names and settings; {fix}")
        known = {name: value for name, value in content.items() if name in cls.__dataclass_fields__ and name != "root"}
        names = known["names"]
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise InputError(f"{about}: names is {names!r:.200}; expected a list of names; {fix}")
        known |= {"names": tuple(names), "mirrored": mirrored_pairs(about, known.get("mirrored"), names)}
        try:
            store = cls(root, **(known | {"negated": tuple(known.get("negated", ()))}))
            store._check(about)
        except TypeError as error:  # a number where a list belongs, and the like
            raise InputError(f"{about} has a value of a wrong type ({error}); {fix}") from error
        return store

    def _check(self, about: Path) -> None:
        wrong = None
        if self.kind not in get_args(Kind):
            wrong = f"kind is {self.kind!r}, expected {', '.join(get_args(Kind))}"
        elif self.dtype not in ("uint8", "float16"):
            wrong = f"dtype is {self.dtype!r}, expected uint8 or float16"
        elif not self.low < self.high:
            wrong = f"the range is {self.low} to {self.high}, expected low < high"
        elif not set(self.negated) <= set(self.names):
            wrong = f"negated is {list(self.negated)!r:.200}, expected some of names"
        if wrong:
            raise InputError(f"{about}: {wrong}; annotate into a new folder")

    @property
    def error(self) -> str:
        """The largest error of a stored value, as a text for people."""
        if self.dtype == "float16":
            return "0.05 % of the value"
        return f"{(self.high - self.low) / STEPS / 2:.2g} between {self.low:g} and {self.high:g}"

    def projection(self) -> "Projection | None":
        """The projection of features; None: they are stored as they are. VideoError: its file is broken."""
        path = self.root / PROJECTION
        if not is_file(path):
            return None
        return Projection(*(read_array(path, name) for name in ("mean", "deviations", "components")))

    def writer(self, key: str) -> "ValueWriter":
        """A writer of a video's values."""
        return ValueWriter(self, key)

    def write(self, key: str, frames: Sequence[int] | np.ndarray, rows: np.ndarray) -> None:
        """Write one video's values: ascending frame indices (N,) and rows (N, ...). ValueError: they do not fit."""
        indices = np.asarray(frames, np.int64)
        if len(indices) != len(rows) or not is_ascending(indices):
            raise ValueError(f"got {len(rows)} rows and the frames {indices.tolist()}, expected N ascending indices")
        writer = self.writer(key)
        try:
            for frame, row in zip(indices.tolist(), rows, strict=True):
                writer.add(frame, row)
        except ValueError:
            writer.discard()
            raise
        writer.finish()

    def read(self, key: str, indices: Sequence[int] | np.ndarray) -> np.ndarray | None:
        """Read the values of the frames `indices`, float32 (len(indices), ...).

        A frame without values is NaN everywhere. None: the video has no file. VideoError: the file is broken.
        """
        path = self.file_of(key)
        if not is_file(path):
            return None
        frames = self.labelled_frames(key)
        absent = STEPS + 1 if self.dtype == "uint8" else np.nan
        codes = select_frames(indices, frames, lambda positions: self._codes_at(path, positions, len(frames)), absent)
        return None if codes is None else self._decoded(codes)

    def chunks(self, key: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield all values of a video in order, some at a time: frame indices int64 (M,), float32 (M, ...).

        VideoError: the file is broken or missing.
        """
        path = self.file_of(key)
        frames = self.read_frame_indices(path)
        for start in range(0, len(frames), PER_CHUNK):
            positions = np.arange(start, min(start + PER_CHUNK, len(frames)))
            yield frames[positions], self._decoded(self._codes_at(path, positions, len(frames)))

    @staticmethod
    def read_frame_indices(path: Path) -> np.ndarray:
        """The labelled frames of a file, int64 (N,), ascending. VideoError: the file is broken."""
        with _opened(path) as file:
            return checked_frames(path, file.get_tensor("frame_indices"))

    def _codes_at(self, path: Path, positions: np.ndarray, count: int) -> np.ndarray:
        """The rows (M, ...) at `positions` (M,) among the `count` rows of a file, as they are stored."""
        with _opened(path) as file:
            stored = file.get_slice("values")
            rows, *shape = stored.get_shape()
            if stored.get_dtype() != _DTYPES[self.dtype] or rows != count or (rows and self.row_problem(tuple(shape))):
                raise VideoError(
                    f"broken targets: values is {stored.get_dtype()} ({rows}, {', '.join(map(str, shape))}), which "
                    f"does not fit its store or its {count} frame_indices; annotate the video again",
                    path,
                )
            codes = np.empty((len(positions), *shape), self.dtype)
            for row, position in zip(codes, positions.tolist(), strict=True):
                row[...] = stored[position : position + 1][0]
            return codes

    def encoded(self, values: np.ndarray) -> np.ndarray:
        """A row as it is stored."""
        if self.dtype == "float16":
            return np.clip(values, -65504, 65504).astype(np.float16)
        steps = np.rint((np.clip(values, self.low, self.high) - self.low) * (STEPS / (self.high - self.low)))
        return np.where(np.isnan(steps), STEPS + 1, steps).astype(np.uint8)

    def _decoded(self, codes: np.ndarray) -> np.ndarray:
        if self.dtype == "float16":
            return codes.astype(np.float32)
        values = self.low + np.arange(STEPS + 2) * ((self.high - self.low) / STEPS)
        values[STEPS + 1] = np.nan
        return values.astype(np.float32)[codes]

    @property
    def least_shape(self) -> tuple[int, ...]:
        """The shape of a row of the least size."""
        count = len(self.names)
        return {"points": (1, count, 3), "clip": (count,)}.get(self.kind, (count, 1, 1))

    def row_problem(self, shape: tuple[int, ...]) -> str | None:
        """Why a row of this shape does not belong in the store; None: it does."""
        count = len(self.names)
        expected = {
            "maps": f"({count}, height, width)",
            "points": f"(people, {count}, 3)",
            "grid": f"({count}, height, width)",
            "clip": f"({count},)",
        }[self.kind]
        place = 1 if self.kind == "points" else 0
        fits = len(shape) == DIMENSIONS[self.kind] and shape[place] == count and 0 not in shape
        fits = fits and (self.kind != "points" or shape[2] == 3)
        return None if fits else f"values of one frame have the shape {shape}, expected {expected}"


class ValueWriter:
    """Writes one video's values one by one. The file appears under its name in `finish`.

    One row is in memory. The same rows give the same bytes.
    """

    def __init__(self, store: ValueStore, key: str) -> None:
        self._store, self._path = store, store.file_of(key)
        self._temporary = temporary_name(self._path)
        self._file = self._temporary.open("wb")
        self._file.write(bytes(HEADER_BYTES))  # of the header, which needs the number of frames
        self._frames: list[int] = []
        self._shape: tuple[int, ...] | None = None

    def add(self, frame: int, row: np.ndarray) -> None:
        """Add the row of a frame, NaN where there is no value. Frames must come in ascending order.

        ValueError: the row does not fit the store or the rows before.
        """
        shape = np.shape(row)
        problem = self._store.row_problem(shape)
        if problem is None and shape != (self._shape or shape):
            problem = f"values of one frame have the shape {shape}, those before {self._shape}"
        if problem is not None:
            raise ValueError(problem)
        self._shape = shape
        self._frames.append(frame)
        self._file.write(np.ascontiguousarray(self._store.encoded(np.asarray(row, np.float32))).data)

    def finish(self) -> None:
        """Finish the file."""
        values = self._file.tell() - HEADER_BYTES
        frames = np.array(self._frames, "<i4")
        self._file.write(frames.tobytes())
        shape = self._shape or self._store.least_shape
        tensors = {
            "values": _tensor(_DTYPES[self._store.dtype], (len(frames), *shape), 0, values),
            "frame_indices": _tensor("I32", frames.shape, values, values + frames.nbytes),
        }
        size = HEADER_BYTES - 8  # the format begins with the size of its header, which may end with blanks
        header = json.dumps(tensors, separators=(",", ":")).encode().ljust(size)
        self._file.seek(0)
        self._file.write(size.to_bytes(8, "little") + header)
        self._file.close()
        move_into_place(self._temporary, self._path)

    def discard(self) -> None:
        """Remove what was written."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)


def _tensor(dtype: str, shape: tuple[int, ...], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file, whose arrays are read on access. Any error inside the block becomes a VideoError."""
    try:
        with safe_open(path, "numpy") as file:
            yield file
    except VideoError:
        raise
    except Exception as error:  # a damaged header can raise many types of errors
        raise VideoError(f"cannot be read: {one_line(error)}", path) from error


@dataclass(frozen=True)
class Projection:
    """Standardises features, and keeps their principal components.

    mean: (D,) of the sample.
    deviations: (D,), by which features are divided.
    components: (K, D), orthonormal, those of the largest variance first.
    """

    mean: np.ndarray
    deviations: np.ndarray
    components: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Features (..., D) to (..., K), float32."""
        projected: np.ndarray = ((features - self.mean) / self.deviations) @ self.components.T
        return projected.astype(np.float32)


def learn_projection(sample_ND: np.ndarray, components: int, standardise: bool) -> Projection:
    """Learn the principal components of a sample of features.

    The direction of each component is the one in which its largest entry is positive, so equal samples give equal
    projections.

    Args:
        sample_ND: N features of D channels.
        components: K; fewer are kept if N or D is smaller.
        standardise: divide each channel by its standard deviation first.

    Raises:
        ValueError: there are less than two features, or some are not finite.
    """
    sample = np.asarray(sample_ND, np.float64)
    if sample.ndim != 2 or len(sample) < 2 or not np.isfinite(sample).all():
        raise ValueError(f"got features of shape {sample.shape}, expected (N, D), N at least 2, all finite")
    mean = sample.mean(axis=0)
    deviations = sample.std(axis=0) if standardise else np.ones_like(mean)
    deviations = np.where(deviations < 1e-6, 1.0, deviations)
    _, _, directions = np.linalg.svd((sample - mean) / deviations, full_matrices=False)
    kept = directions[:components]
    signs = np.sign(np.take_along_axis(kept, np.abs(kept).argmax(axis=1)[:, None], axis=1))
    return Projection(mean, deviations, kept * signs)


def create(store: ValueStore, projection: Projection | None = None) -> ValueStore:
    """Write `targets.json`, and the projection if there is one, into the store's folder, which is made if needed.

    Files of videos in it are kept. InputError: the description contradicts itself.
    """
    about = store.root / ABOUT
    mirrored_pairs(about, store.mirrored, store.names)
    store._check(about)
    if projection is not None:
        with replacing(store.root / PROJECTION) as temporary:  # with a suffix that no video's file has
            np.savez(temporary, **vars(projection))
    write_json(about, store.description())
    return ValueStore.open(store.root)
