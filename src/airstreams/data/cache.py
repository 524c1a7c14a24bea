"""Decoded frames on disk, so that training decodes each video once and not once an epoch.

The folder holds
- `frames/<key>.npy`: all frames of one video as `read_frames` gives them, uint8 (T, H, W, 3);
- `labels/<key>.npy`: all label maps of one npz file, uint8 (N, H, W), which the npz holds compressed;
- `digests/<key>.json`: the size, time of writing and digest of the file at one path.

Frames and label maps are called by what the file contains and by what decodes it, so a file that was moved is found
again, a file that changed is not mistaken for its former self, and data sets share a folder. A digest costs reading
the file; it is remembered for as long as path, size and time of writing stay the same. An entry exists only if every
frame was decoded without complaint, so it also says that its file is good.

There is no database and no lock: whatever is written gets a name of its own and is then renamed, which several
processes and machines can do at once on any file system. The price: two that build at the same time may do a piece of
work twice, and know of each other's bytes only when they look. Uncompressed frames take 10 to 100 times the room of
the video. Digests of files that are gone stay: a few hundred bytes each, which do not count towards the bound.
"""

import hashlib
import json
import operator
import os
import platform
import re
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from io import BufferedWriter
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import av
import numpy as np
from rich.progress import Progress

from airstreams.data.label_maps import LabelStore, file_of, select_frames
from airstreams.data.listing import Video
from airstreams.data.video import iterate_frames, probe, read_frames
from airstreams.errors import InputError, VideoError
from airstreams.files import replacing
from airstreams.machine import cpus

_VERSION = 1  # raise it when read_frames begins to give other pixels for the same file
_DECODER = f"{platform.machine()} {av.library_versions['libavcodec']} {av.library_versions['libswscale']}"
_OURS = re.compile(r"[0-9a-f]{32}\.npy|\.[0-9a-f]{32}")  # an entry's name, and a temporary one
_ABANDONED_NS = 600 * 10**9  # without a write; then whoever was writing a temporary file is taken to be dead


class _Digest(NamedTuple):
    """What the file at some path contains while it has this size, bytes, and time of writing."""

    size: int
    mtime_ns: int
    content: str


class _Pictures(NamedTuple):
    """A file whose pictures make one entry."""

    file: Path
    kind: str  # the entry's folder
    settings: str  # what the pictures depend on besides the file's content
    read: Callable[[], tuple[int, Iterator[np.ndarray]]]  # how many, and each of them


class FrameCache:
    """Reads frames and label maps from a folder where it holds them, and from their own files where it does not.

    What comes out is the same, bit for bit. Cheap to make and to pickle. It remembers what it found, so a loader's
    processes that are forked after `prepare` need not look again.

    The folder is kept below `limit_bytes`. To make room, `prepare` removes what the videos it was given do not use,
    least recently prepared first. It never removes one of these for another one: each epoch visits each video once, so
    every visit would find that what it wants was just removed. What does not fit is decoded at each visit. Several
    processes that build at once can pass the limit by a hundredth of it each (or by one entry, where that is more);
    the next `prepare` takes that back.

    Args:
        root: the folder; made by `prepare`.
        limit_bytes: of all frames and label maps together.
        short_side: px, as for `read_frames`.
    """

    def __init__(self, root: Path, limit_bytes: int, short_side: int) -> None:
        self.root = root
        self.limit_bytes = limit_bytes
        self.short_side = short_side
        self._digests: dict[Path, _Digest] = {}

    def prepare(
        self,
        videos: Sequence[Video],
        label_store: LabelStore | None,
        progress: Progress,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """Enter what is missing of these videos' frames and label maps, in parallel threads.

        Files that cannot be read are passed over: the reason is told where they are read. When the disk is full, this
        stops with one line on the console.

        Args:
            videos: all that the run reads.
            label_store: their label maps.
            progress: gets a bar for the look into the cache, and one for each kind of entry of which some are missing.
            share: index and count: of several processes that prepare the same videos, each enters its part.

        Raises:
            InputError: the folder cannot be made or written to.
        """
        index, count = share
        room = _Room(self.root, self.limit_bytes, self.make_folder())
        wanted = self._wanted(videos, label_store)
        mine = [number % count == index for number in range(len(wanted))]
        missing: dict[str, dict[Path, _Pictures]] = {"frames": {}, "labels": {}}
        with ThreadPoolExecutor(max_workers=max(1, cpus() // count)) as pool:
            # Everything in use is marked so before anything is removed.
            task = progress.add_task("looking into the frame cache", total=len(wanted))
            for pictures, entry in zip(wanted, pool.map(self._missing, wanted, mine), strict=True):
                if entry is not None:
                    missing[pictures.kind][entry] = pictures
                progress.advance(task)
            room.shrink()
            for kind, entries in missing.items():
                if entries:
                    task = progress.add_task(f"caching {kind}", total=len(entries))
                    for _ in pool.map(partial(self._enter, room), entries.keys(), entries.values()):
                        progress.advance(task)
        problem = room.failure
        if problem is None and room.refused:
            problem = f"{self.limit_bytes / 1e9:g} GB leave no room for the pictures of {room.refused} files"
        if problem is not None:
            told = f"cache {self.root}: {problem}; what is not in it is decoded each time"
            progress.console.print(told, soft_wrap=True)

    def holds(self, path: Path) -> bool:
        """Whether all frames of this file, unchanged since, were once decoded without complaint."""
        entry = self._entry(path, "frames", self._frame_settings)
        return entry is not None and entry.is_file()

    def read_frames(self, path: Path, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """What `video.read_frames(path, indices, short_side)` gives, uint8 (N, H, W, 3); raises what that raises."""
        wanted = [operator.index(index) for index in indices]
        entry = self._entry(path, "frames", self._frame_settings)
        frames_NHW3 = None if entry is None else _pictures_at(entry, wanted)
        return read_frames(path, wanted, short_side=self.short_side) if frames_NHW3 is None else frames_NHW3

    def read_label_maps(
        self, label_store: LabelStore, key: str, indices: Sequence[int] | np.ndarray
    ) -> np.ndarray | None:
        """What `label_store.read(key, indices)` gives, uint8 (N, H, W) or None; raises what that raises."""
        entry = self._entry(file_of(label_store.root, key), "labels", _label_map_settings(label_store))
        maps_NHW = None
        if entry is not None:
            frames = label_store.labelled_frames(key)
            maps_NHW = select_frames(indices, frames, lambda positions: _pictures_at(entry, positions.tolist()))
        return label_store.read(key, indices) if maps_NHW is None else maps_NHW

    @property
    def _frame_settings(self) -> str:
        return f"{_DECODER} {self.short_side}"

    def make_folder(self) -> int:
        """Make the folder and write to it. The time of that, ns, by the clock of the machine that holds the folder.

        InputError: that cannot be.
        """
        try:
            for name in ("frames", "labels", "digests"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root / "frames") as file:
                return os.fstat(file.fileno()).st_mtime_ns
        except OSError as error:
            raise InputError(
                f"cache: got {self.root}, which cannot be written to ({error.strerror}), expected a folder for decoded "
                "frames; give another one, or none"
            ) from error

    def _wanted(self, videos: Sequence[Video], label_store: LabelStore | None) -> list[_Pictures]:
        wanted = [
            _Pictures(path, "frames", self._frame_settings, partial(_frames_of, path, self.short_side))
            for path in sorted({video.path for video in videos})
        ]
        if label_store is not None:
            settings = _label_map_settings(label_store)
            for key in sorted({video.label_map for video in videos if video.label_map is not None}):
                file = file_of(label_store.root, key)
                wanted.append(_Pictures(file, "labels", settings, partial(_label_maps_of, label_store, key)))
        return wanted

    def _missing(self, pictures: _Pictures, mine: bool) -> Path | None:
        """The entry to be made, if it is this process's to make; one that exists is marked as used now."""
        named = pictures.file, pictures.kind, pictures.settings
        entry = self._entry(*named)
        if entry is None and mine:
            self._digest(pictures.file)
            entry = self._entry(*named)
        if entry is None:
            return None
        try:
            os.utime(entry)
        except FileNotFoundError:
            return entry if mine else None
        except OSError:
            pass  # another user's; it looks longer unused than it is
        return None

    def _entry(self, file: Path, kind: str, settings: str) -> Path | None:
        """Where the file's pictures are or belong; None: its content is not known, or not any more."""
        try:
            status = file.stat()
        except OSError:
            return None
        digest = self._digests.get(file)
        if digest is None or digest[:2] != (status.st_size, status.st_mtime_ns):
            digest = _read_digest(self._digest_file(file))
            if digest is None or digest[:2] != (status.st_size, status.st_mtime_ns):
                return None
            self._digests[file] = digest
        return self.root / kind / f"{_hash(f'{_VERSION} {settings} {digest.content}'.encode())}.npy"

    def _digest(self, file: Path) -> None:
        """Read the file and remember what it contains, unless it cannot be read or changes meanwhile."""
        with suppress(OSError):
            before = file.stat()
            with file.open("rb") as opened:
                content = hashlib.file_digest(opened, "sha256").hexdigest()
            after = file.stat()
            if (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns):
                self._digests[file] = digest = _Digest(after.st_size, after.st_mtime_ns, content)
                with replacing(self._digest_file(file)) as temporary:
                    temporary.write_text(json.dumps(digest._asdict()))

    def _digest_file(self, file: Path) -> Path:
        return self.root / "digests" / f"{_hash(os.fsencode(file.absolute()))}.json"

    def _enter(self, room: "_Room", entry: Path, pictures: _Pictures) -> None:
        """Write one entry, unless it turns out that it cannot be."""
        if room.failure is not None or entry.exists():
            return
        if room.full:
            room.refused += 1
            return
        try:
            self._write(room, entry, pictures)
        except VideoError:
            return  # it is told where the file is read
        except OSError as error:
            room.failure = error.strerror or str(error)

    def _write(self, room: "_Room", entry: Path, pictures: _Pictures) -> None:
        count, each = pictures.read()
        first = next(each, None)
        if first is None:
            return
        # Not `replacing`: several threads, and machines that give processes the same numbers, write here.
        temporary = entry.with_name(f".{uuid4().hex}")
        try:
            with temporary.open("wb") as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": (count, *first.shape)}
                np.lib.format.write_array_header_1_0(file, header)
                if not room.reserve(file, file.tell() + count * first.nbytes):
                    return
                for picture in chain([first], each):
                    file.write(np.ascontiguousarray(picture).data)
                file.flush()
                os.fsync(file.fileno())  # else a power cut could leave a file of the right size and the wrong content
            if self._entry(pictures.file, pictures.kind, pictures.settings) == entry:  # it did not change meanwhile
                room.keep(temporary, entry)
        finally:
            temporary.unlink(missing_ok=True)


class _Room:
    """The bytes of the folder as one build sees them, and what that build has to tell in the end.

    A look at the folder counts everything in it, also what others are writing. Between two looks only what this build
    writes is counted, and that is kept to a hundredth of the limit.
    """

    def __init__(self, root: Path, limit_bytes: int, began_ns: int) -> None:
        self.failure: str | None = None  # why nothing more can be written
        self.refused = 0  # entries for which there was no room
        self.full = False  # there is hardly room for any: looking how large each one is would take long
        self._folders = (root / "frames", root / "labels")
        self._limit_bytes = limit_bytes
        self._began_ns = began_ns  # entries not used since then are no one's who is preparing now
        self._left = 0  # bytes
        self._until_look = 0  # bytes
        self._entries: deque[tuple[int, int, Path]] = deque()  # time of use in ns, bytes; least recently used first
        self._lock = threading.Lock()

    def shrink(self) -> None:
        """Bring the folder below its limit, which may be lower than it was, or passed by several builds at once."""
        self._look()
        while self._left < 0 and self._entries:
            self._remove_oldest()

    def reserve(self, file: BufferedWriter, size: int) -> bool:
        """Give the file its final size, where others see it, and make room for that. False: there is no room."""
        with self._lock:
            if size > self._until_look:
                self._look()
            while size > self._left and self._entries and self._entries[0][0] < self._began_ns:
                self._remove_oldest()
            if size > self._left:
                self.refused += 1
                self.full = self._left < self._limit_bytes // 100
                return False
            file.truncate(size)
            self._left -= size
            self._until_look -= size
            return True

    def keep(self, temporary: Path, entry: Path) -> None:
        """Give a finished entry its name. Not while another thread looks: it might see neither the old nor the new."""
        with self._lock:
            temporary.replace(entry)

    def _look(self) -> None:
        used = 0
        entries = []
        for folder in self._folders:
            for item in os.scandir(folder):
                if not _OURS.fullmatch(item.name):  # somebody's files, whose folder has such a name too
                    continue
                with suppress(FileNotFoundError, PermissionError):
                    status = item.stat()
                    if not item.name.startswith("."):
                        entries.append((status.st_mtime_ns, status.st_size, Path(item.path)))
                    elif status.st_mtime_ns < self._began_ns - _ABANDONED_NS:
                        Path(item.path).unlink()
                        continue
                    used += status.st_size
        self._left = self._limit_bytes - used
        self._until_look = self._limit_bytes // 100
        self._entries = deque(sorted(entries))

    def _remove_oldest(self) -> None:
        _, size, path = self._entries.popleft()
        with suppress(FileNotFoundError, PermissionError):  # another build removed it, and the room is its
            path.unlink()
            self._left += size


def _frames_of(path: Path, short_side: int) -> tuple[int, Iterator[np.ndarray]]:
    return probe(path).frames, iterate_frames(path, short_side)


def _label_maps_of(label_store: LabelStore, key: str) -> tuple[int, Iterator[np.ndarray]]:
    maps_NHW = label_store.read(key, label_store.labelled_frames(key))
    if maps_NHW is None:
        raise VideoError(f"the label maps {key} were removed")
    return len(maps_NHW), (label_map_HW for label_map_HW in maps_NHW)


def _label_map_settings(label_store: LabelStore) -> str:
    # Ids are checked against the classes once, when they are entered.
    return f"{len(label_store.classes)} classes, renamed {label_store.new_ids}"


def _pictures_at(entry: Path, positions: Sequence[int]) -> np.ndarray | None:
    """Some of an entry's pictures; None: it was removed, or has no such positions."""
    # Not a memory map: when another machine removes the file meanwhile, reading raises, but a map kills the process.
    try:
        with entry.open("rb", buffering=0) as file:
            np.lib.format.read_magic(file)
            (count, *size), _, _ = np.lib.format.read_array_header_1_0(file)
            begin = file.tell()
            pictures = np.empty((len(positions), *size), np.uint8)
            for picture, position in zip(pictures, positions, strict=True):
                if not 0 <= position < count:
                    return None
                file.seek(begin + position * picture.nbytes)
                if file.readinto(picture) != picture.nbytes:
                    return None
    except (OSError, ValueError):
        return None
    return pictures


def _read_digest(file: Path) -> _Digest | None:
    try:
        return _Digest(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _hash(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:32]
