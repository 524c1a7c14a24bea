"""Decoded frames on disk, so that training decodes each video once and not once per epoch.

The folder holds
- `frames/<key>.npy`: all frames of one video as `read_frames` returns them, uint8 (T, H, W, 3);
- `labels/<key>.npy`: all label maps of one npz file, uint8 (N, H, W), without compression;
- `digests/<key>.json`: size, modification time and digest of the file at one path.

The key of an entry is made from the file's content and the decoder's version. So a moved file is found again, a changed
file gets a new entry, and data sets can share a folder. To make a digest, the file is read. The digest is valid while
path, size and modification time stay the same. An entry exists only if all frames were decoded without an error, so it
also proves that its file is good.

There is no database and no lock: everything is written under a unique temporary name and then renamed. Any number of
processes and machines can do this at once on any file system. The price: two builds at the same time may do some work
twice, and see each other's bytes only when they list the folder. Uncompressed frames take 10 to 100 times the space of
the video. Digests of deleted files remain: a few hundred bytes each, which do not count towards the limit.
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

from airstreams.console import Progress, warn
from airstreams.data.deinterlace import Deinterlace
from airstreams.data.label_maps import NO_LABEL, LabelStore, file_of
from airstreams.data.listing import Video
from airstreams.data.video import iterate_frames, probe, read_frames
from airstreams.data.video_files import select_frames
from airstreams.errors import InputError, VideoError
from airstreams.files import replacing
from airstreams.machine import cpus

_VERSION = 3  # increase it when read_frames returns other pixels for the same file
_DECODER = f"{platform.machine()} {av.library_versions['libavcodec']} {av.library_versions['libswscale']}"
_OWN_NAME = re.compile(r"[0-9a-f]{32}\.npy|\.[0-9a-f]{32}")  # of an entry, and of a temporary file
_ABANDONED_NS = 600 * 10**9  # a temporary file that was not written to for this time is deleted


class _Digest(NamedTuple):
    """The digest of a file's content, valid while its size, bytes, and modification time are these."""

    size: int
    mtime_ns: int
    content: str


class _Content(NamedTuple):
    """A file with frames or label maps that are to become one entry."""

    file: Path
    kind: str  # the entry's folder: frames or labels
    settings: str  # what the arrays depend on besides the file's content
    read: Callable[[], tuple[int, Iterator[np.ndarray]]]  # gives the number of arrays and the arrays


class FrameCache:
    """Reads frames and label maps from a cache folder, and from their own files where the folder lacks them.

    Both give the same arrays, bit for bit. Cheap to make and to pickle. It remembers the digests that it found, so a
    loader's processes that are forked after `prepare` need not read them again.

    The folder is kept below `limit_bytes`. To free space, `prepare` removes entries that its videos do not use, least
    recently used first. It never removes an entry of its own videos for another one: each epoch reads each video once,
    so every entry would be removed just before it is needed. Videos without space are decoded at each read. Several
    processes that build at once can exceed the limit by 1 % of it each, or by one entry if that is more. The next
    `prepare` corrects that.

    Args:
        root: the folder, created by `prepare`.
        limit_bytes: for all frames and label maps together.
        short_side: px, as for `read_frames`.
        deinterlace: as for `read_frames`.
    """

    def __init__(self, root: Path, limit_bytes: int, short_side: int, deinterlace: Deinterlace = "off") -> None:
        self.root = root
        self.limit_bytes = limit_bytes
        self.short_side = short_side
        self.deinterlace = deinterlace
        self._digests: dict[Path, _Digest] = {}

    def prepare(
        self,
        videos: Sequence[Video],
        label_store: LabelStore | None,
        progress: Progress,
        share: tuple[int, int] = (0, 1),
        label_stores: Sequence[tuple[LabelStore, Sequence[str]]] = (),
    ) -> None:
        """Add the missing frames and label maps of these videos, in parallel threads.

        Files that cannot be read are skipped: whoever reads them gets the error. If the disk or the cache is full, a
        warning is printed.

        Args:
            videos: all videos that the run reads.
            label_store: their label maps, by the keys of the videos.
            progress: gets a task for the look-up, and one for each kind of entry that is missing.
            share: index and number of the processes that prepare the same videos. Each adds its part.
            label_stores: more label maps: stores, with the keys of the videos in each.

        Raises:
            InputError: the folder cannot be created or written to.
        """
        index, count = share
        space = _Space(self.root, self.limit_bytes, self.make_folder())
        if label_store is not None:
            keys = [video.label_map for video in videos if video.label_map is not None]
            label_stores = [(label_store, keys), *label_stores]
        wanted = self._wanted(videos, label_stores)
        is_own = [number % count == index for number in range(len(wanted))]
        missing: dict[str, dict[Path, _Content]] = {"frames": {}, "labels": {}}
        with ThreadPoolExecutor(max_workers=max(1, cpus() // count)) as pool:
            # All entries in use get a new time of use before any entry is removed.
            task = progress.add_task("looking up the frame cache", len(wanted), "files", brief=True)
            for content, entry in zip(wanted, pool.map(self._missing_entry, wanted, is_own), strict=True):
                if entry is not None:
                    missing[content.kind][entry] = content
                task.advance()
            space.shrink()
            for kind, entries in missing.items():
                if entries:
                    task = progress.add_task(f"caching {kind}", len(entries), "files")
                    for _ in pool.map(partial(self._add, space), entries.keys(), entries.values()):
                        task.advance()
        if space.failure is not None:
            warn(
                progress.console,
                f"cache {self.root}: {space.failure}. Videos that are not in it are decoded each time.",
            )
        elif space.refused:
            warn(
                progress.console,
                f"cache {self.root}: {self.limit_bytes / 1e9:g} GB have no space for {space.refused} files, which are "
                "decoded each time. Raise data.cache_gb to speed training up.",
            )

    def holds(self, path: Path) -> bool:
        """Whether all frames of this file are in the cache, and the file has not changed since."""
        entry = self._entry(path, "frames", self._frame_settings)
        return entry is not None and entry.is_file()

    def read_frames(self, path: Path, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Read frames as `video.read_frames(path, indices, ...)` does, with the same result and errors."""
        wanted = [operator.index(index) for index in indices]
        entry = self._entry(path, "frames", self._frame_settings)
        frames_NHW3 = None if entry is None else _arrays_at(entry, wanted)
        if frames_NHW3 is None:
            return read_frames(path, wanted, self.short_side, self.deinterlace)
        return frames_NHW3

    def read_label_maps(
        self, label_store: LabelStore, key: str, indices: Sequence[int] | np.ndarray
    ) -> np.ndarray | None:
        """Read label maps as `label_store.read(key, indices)` does, with the same result and errors."""
        entry = self._entry(file_of(label_store.root, key), "labels", _label_map_settings(label_store))
        maps_NHW = None
        if entry is not None:
            frames = label_store.labelled_frames(key)
            maps_NHW = select_frames(indices, frames, lambda positions: _arrays_at(entry, positions.tolist()), NO_LABEL)
        return label_store.read(key, indices) if maps_NHW is None else maps_NHW

    @property
    def _frame_settings(self) -> str:
        return f"{_DECODER} {self.short_side} deinterlace {self.deinterlace}"

    def make_folder(self) -> int:
        """Create the folder.

        Returns:
            The time now, ns, by the clock of the machine that holds the folder.

        Raises:
            InputError: the folder cannot be created or written to.
        """
        try:
            for name in ("frames", "labels", "digests"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root / "frames") as file:
                return os.fstat(file.fileno()).st_mtime_ns
        except OSError as error:
            raise InputError(
                f"data.cache: got {self.root}, which cannot be written to ({error.strerror}), expected a folder for "
                "decoded frames; give another one, or none"
            ) from error

    def _wanted(
        self, videos: Sequence[Video], label_stores: Sequence[tuple[LabelStore, Sequence[str]]]
    ) -> list[_Content]:
        wanted = [
            _Content(path, "frames", self._frame_settings, partial(_frames_of, path, self.short_side, self.deinterlace))
            for path in sorted({video.path for video in videos})
        ]
        for label_store, keys in label_stores:
            settings = _label_map_settings(label_store)
            for key in sorted(set(keys)):
                file = file_of(label_store.root, key)
                wanted.append(_Content(file, "labels", settings, partial(_label_maps_of, label_store, key)))
        return wanted

    def _missing_entry(self, content: _Content, is_own: bool) -> Path | None:
        """The entry that this process has to add. An existing entry gets the time now as its time of use."""
        identity = content.file, content.kind, content.settings
        entry = self._entry(*identity)
        if entry is None and is_own:
            self._make_digest(content.file)
            entry = self._entry(*identity)
        if entry is None:
            return None
        try:
            os.utime(entry)
        except FileNotFoundError:
            return entry if is_own else None
        except OSError:
            pass  # the entry of another user, which seems to be unused for longer than it is
        return None

    def _entry(self, file: Path, kind: str, settings: str) -> Path | None:
        """The path of the file's entry, which may not exist; None: there is no valid digest of the file."""
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

    def _make_digest(self, file: Path) -> None:
        """Read the file and store its digest, unless it cannot be read or changes meanwhile."""
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

    def _add(self, space: "_Space", entry: Path, content: _Content) -> None:
        """Write one entry, unless there is no space or the file cannot be read."""
        if space.failure is not None or entry.exists():
            return
        if space.full:
            space.refused += 1
            return
        try:
            self._write(space, entry, content)
        except VideoError:
            return  # whoever reads the file gets the error
        except OSError as error:
            space.failure = error.strerror or str(error)

    def _write(self, space: "_Space", entry: Path, content: _Content) -> None:
        count, arrays = content.read()
        first = next(arrays, None)
        if first is None:
            return
        # `replacing` makes names by process numbers, which are not unique among threads and machines.
        temporary = entry.with_name(f".{uuid4().hex}")
        try:
            with temporary.open("wb") as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": (count, *first.shape)}
                np.lib.format.write_array_header_1_0(file, header)
                if not space.reserve(file, file.tell() + count * first.nbytes):
                    return
                for array in chain([first], arrays):
                    file.write(np.ascontiguousarray(array).data)
                file.flush()
                # Without this, a power failure could leave a file of the right size with wrong content.
                os.fsync(file.fileno())
            if self._entry(content.file, content.kind, content.settings) == entry:  # the file did not change meanwhile
                space.keep(temporary, entry)
        finally:
            temporary.unlink(missing_ok=True)


class _Space:
    """The free space of the folder as one build sees it, and the problems of that build.

    Listing the folder counts all files in it, including those that other builds are writing. Between two listings only
    the files of this build are counted, and the folder is listed again after at most 1 % of the limit.
    """

    def __init__(self, root: Path, limit_bytes: int, began_ns: int) -> None:
        self.failure: str | None = None  # why nothing more can be written
        self.refused = 0  # number of entries without space
        self.full = False  # almost no space is left, so the sizes of further entries are not determined
        self._folders = (root / "frames", root / "labels")
        self._limit_bytes = limit_bytes
        self._began_ns = began_ns  # entries not used since then are not in use by a build that runs now
        self._left = 0  # bytes
        self._until_listing = 0  # bytes
        self._entries: deque[tuple[int, int, Path]] = deque()  # time of use in ns and bytes; least recently used first
        self._lock = threading.Lock()

    def shrink(self) -> None:
        """Bring the folder below its limit, which may be lower than before or exceeded by several builds at once."""
        self._list()
        while self._left < 0 and self._entries:
            self._remove_oldest()

    def reserve(self, file: BufferedWriter, size: int) -> bool:
        """Free space for a file and give it its final size, which other builds see. False: there is no space."""
        with self._lock:
            if size > self._until_listing:
                self._list()
            while size > self._left and self._entries and self._entries[0][0] < self._began_ns:
                self._remove_oldest()
            if size > self._left:
                self.refused += 1
                self.full = self._left < self._limit_bytes // 100
                return False
            file.truncate(size)
            self._left -= size
            self._until_listing -= size
            return True

    def keep(self, temporary: Path, entry: Path) -> None:
        """Give a finished entry its name."""
        with self._lock:  # a thread that lists the folder might otherwise see neither the old nor the new name
            temporary.replace(entry)

    def _list(self) -> None:
        used = 0
        entries = []
        for folder in self._folders:
            for item in os.scandir(folder):
                if not _OWN_NAME.fullmatch(item.name):  # files of others, in a folder with the same name
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
        self._until_listing = self._limit_bytes // 100
        self._entries = deque(sorted(entries))

    def _remove_oldest(self) -> None:
        _, size, path = self._entries.popleft()
        with suppress(FileNotFoundError, PermissionError):  # another build removed it and uses the space
            path.unlink()
            self._left += size


def _frames_of(path: Path, short_side: int, deinterlace: Deinterlace) -> tuple[int, Iterator[np.ndarray]]:
    return probe(path).frames, iterate_frames(path, short_side, deinterlace=deinterlace)


def _label_maps_of(label_store: LabelStore, key: str) -> tuple[int, Iterator[np.ndarray]]:
    maps_NHW = label_store.read(key, label_store.labelled_frames(key))
    if maps_NHW is None:
        raise VideoError("the label maps were removed", file_of(label_store.root, key))
    return len(maps_NHW), (label_map_HW for label_map_HW in maps_NHW)


def _label_map_settings(label_store: LabelStore) -> str:
    # Ids are checked against the number of classes once, when they are added to the cache.
    return f"{len(label_store.classes)} classes, renamed {label_store.new_ids}"


def _arrays_at(entry: Path, positions: Sequence[int]) -> np.ndarray | None:
    """The arrays of an entry at some positions; None: the entry was removed or damaged, or it has no such positions."""
    # No memory map: if another machine removes the file, reading raises an error, but a memory map kills the process.
    try:
        with entry.open("rb", buffering=0) as file:
            np.lib.format.read_magic(file)
            (count, *size), _, _ = np.lib.format.read_array_header_1_0(file)
            begin = file.tell()
            arrays = np.empty((len(positions), *size), np.uint8)
            for array, position in zip(arrays, positions, strict=True):
                if not 0 <= position < count:
                    return None
                file.seek(begin + position * array.nbytes)
                if file.readinto(array) != array.nbytes:
                    return None
    except (OSError, ValueError):
        return None
    return arrays


def _read_digest(file: Path) -> _Digest | None:
    try:
        return _Digest(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _hash(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:32]
