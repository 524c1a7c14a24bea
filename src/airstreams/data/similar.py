"""Videos that look like one recording: their names differ only in a number, or their frames are nearly identical.

If such videos are on both sides of a split, the model is scored on what it was trained on. Frames are compared with the
package imagehash (the extra `near-duplicates`). Without it, only names are compared.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from airstreams.console import Progress, Shared
from airstreams.data.listing import SPLITS, Alike, Source
from airstreams.data.video import probe, read_frames
from airstreams.errors import VideoError
from airstreams.machine import cpus

MOST_FILES = 5000
"""Files whose frames are compared at the start of every training; with more files, only their names."""

# Measured on the 928 clips of J-HMDB: 62 of them were encoded again in four ways (H.264 or MPEG-4, 0.5 to 2 times the
# size, 60 to 800 kbit/s, all or half of the frames). The copies were at distances of up to 0.125 from their originals,
# and up to 0.042 with all frames. Of the 428 000 pairs of different films, the nearest are at 0.167 (one person at two
# lessons) and 0.229. At 0.15, none of them is found, and 308 of the 1939 pairs of one film are.
LARGEST_DISTANCE = 0.15
"""Share of the bits of two videos' hashes that may differ."""

# Of the compared frames, as fractions of the video's frames. Two more at 0.7 and 0.9 find the same pairs, but a short
# video must then be decoded nearly to its end.
_MOMENTS = (0.1, 0.3, 0.5)
_FEWEST_FRAMES = 2  # with contrast, that two videos need in common to be compared
_SIDE = 64  # px, of the decoded frames: twice the side that the hash reduces them to
_LEAST_CONTRAST = 5.0  # standard deviation of grey values, 0 to 255; the hash of a black frame is noise
_BITS = 64  # of a frame's hash
_BLOCK = 1024  # videos that are compared with all others at once, to limit the memory

_HMDB = re.compile(r"(.+)_[fhlu]_(?:cm|nm)_np\d+_(?:ba|fr|le|ri)_(?:bad|med|goo)_\d+")  # after the film and the class
_MARK = re.compile(
    r"(?P<rest>.+?)(?:\s*\(\d+\)|[\s_.-]+(?:copy|(?:copy|part|pt|cam|camera|view|clip)[\s_.-]*\d+))", re.IGNORECASE
)
_LAST_NUMBER = re.compile(r"(.*?)\d+(\D*)", re.DOTALL)
_UNTELLING = frozenset(
    (
        "cam", "camera", "capture", "clip", "cut", "dsc", "file", "gh", "gopr", "gx", "image", "img", "mov", "movie",
        "mvi", "output", "part", "participant", "person", "pxl", "record", "recording", "sample", "scene", "segment",
        "shot", "subject", "take", "trim", "untitled", "vid", "video", "view", "whatsapp",
    )
)  # fmt: skip
"""Words before a number that say nothing about the recording."""
_DATE_DIGITS = 6  # a number of so many digits is a date or a time, or counts all files of a camera


def find_alike(
    source: Source, progress: Progress | None, limit: int | None = None
) -> tuple[tuple[Alike, ...], str | None]:
    """Find the videos that look like one recording.

    1000 clips of J-HMDB take about 10 s of one core: 2 s to open them, which their check then need not do again, 5 s to
    decode, 3 s to hash. The check itself takes 6 s. To compare 10 000 videos takes 1.4 s.

    Args:
        source: the videos, also unlabelled ones. Missing and unreadable files are compared by their names alone.
        progress: gets a bar; None: compare only names.
        limit: the largest number of files whose frames are compared; None: any number.

    Returns:
        The sets of alike videos, and a note if frames were not compared.
    """
    alike = siblings(source)
    if source.unlabelled:
        alike += _siblings_with_unlabelled(source)
    files = sorted({video.path for video in source.all_videos})
    if progress is None:
        return tuple(alike), None
    if find_spec("imagehash") is None:
        return tuple(alike), (
            "Only the names of the videos are compared. To find copies with other names too, run "
            "pip install 'airstreams[near-duplicates]'."
        )
    if limit is not None and len(files) > limit:
        return tuple(alike), (
            f"{len(files)} videos are too many to compare their frames at every start (limit: {limit}). "
            "`airstreams check-data` compares them."
        )
    hashes = _hashes(files, progress)
    names = defaultdict(list)
    for video in source.all_videos:
        names[video.path].append(video.name)
    alike += [
        Alike(tuple(name for path in paths for name in names[path]), "frames") for paths in near_identical(hashes)
    ]
    return tuple(alike), None


def siblings(source: Source) -> list[Alike]:
    """Videos of one class and folder whose names suggest one recording.

    - `tape1_003` and `tape1_004`: only the last number differs. The rest of the name must tell recordings apart, so
      words such as `clip`, the class's name or a date are not enough. A rest that all videos of a folder share, or more
      than ten videos and over half of them, only counts the videos.
    - `a`, `a (2)` and `a copy`; `b_part1` and `b_part2`; `c_cam1` and `c_cam2`.
    - names of HMDB-51 and J-HMDB: they begin with the film.
    """
    return _siblings(_files(source), source.classes)


def _siblings(of_files: Sequence["_File"], classes: Collection[str]) -> list[Alike]:
    class_words = {word for label in classes for word in _words(label)}
    sizes = Counter(file.place for file in of_files)
    numbered: dict[tuple[str, ...], list[_File]] = defaultdict(list)
    recordings: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for file in of_files:
        if film := _HMDB.fullmatch(file.stem):
            recordings[*file.place, film[1]].append(file.name)
            continue
        file = file._replace(stem=_without_marks(file.stem, class_words))
        number = _LAST_NUMBER.fullmatch(file.stem)
        if number and _tells_recordings_apart(number[1] + number[2], class_words):
            numbered[*file.place, number[1], number[2]].append(file)
        else:
            recordings[_recording(file, class_words)].append(file.name)
    for key, files in numbered.items():
        size = sizes[files[0].place]
        counts = (len({file.stem for file in files}) > 2 and len(files) == size) or len(files) > max(10, size / 2)
        for file in files:
            recordings[_recording(file, class_words) if counts else (*key, "")].append(file.name)
    return [Alike(tuple(names), "names") for names in recordings.values() if len(names) > 1]


def _siblings_with_unlabelled(source: Source) -> list[Alike]:
    """As `siblings`, the sets that hold both labelled and unlabelled videos. Their classes and folders may differ."""
    files = [file._replace(place=()) for file in _files(replace(source, videos=source.all_videos))]
    unlabelled = {video.name for video in source.unlabelled}
    found = _siblings(files, source.classes)
    return [alike for alike in found if 0 < len(unlabelled.intersection(alike.names)) < len(alike.names)]


class _File(NamedTuple):
    """A file by its name.

    name: of one of its videos.
    place: the class and the folder, without folders such as `train`.
    folder: the whole folder.
    stem: the file's name without suffix, in lower case.
    """

    name: str
    place: tuple[str, ...]
    folder: str
    stem: str


def _files(source: Source) -> list[_File]:
    files: dict[PurePosixPath, _File] = {}
    for video in source.videos:
        path = PurePosixPath(video.name.partition("#t=")[0])
        labels = () if source.multi_label else video.labels
        folders = (part for part in path.parent.parts if part not in SPLITS and part not in labels)
        files.setdefault(path, _File(video.name, (*labels, "in", *folders), str(path.parent), path.stem.casefold()))
    return list(files.values())


def _recording(file: _File, class_words: Collection[str]) -> tuple[str, ...]:
    """The key of a file's recording by its whole name. `train/run/001` and `test/run/001` are two recordings."""
    return (*file.place, file.stem) if _telling_words(file.stem, class_words) else ("in", file.folder, file.stem)


def _without_marks(stem: str, class_words: Collection[str]) -> str:
    """A file's name without endings such as ` (2)`, `_part3` and `_cam1`."""
    while found := _MARK.fullmatch(stem):
        if not (re.search(r"\d", found["rest"]) or _telling_words(found["rest"], class_words)):
            break
        stem = found["rest"]
    return stem


def _tells_recordings_apart(text: str, class_words: Collection[str]) -> bool:
    """Whether the name without its last number names a recording: by a word, or by a further short number."""
    if _telling_words(text, class_words):
        return True
    return bool(_words(text)) and any(len(number) < _DATE_DIGITS for number in re.findall(r"\d+", text))


def _telling_words(text: str, class_words: Collection[str]) -> set[str]:
    return {word for word in _words(text) if len(word) > 1} - _UNTELLING - set(class_words)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.casefold())


def near_identical(hashes: Mapping[Path, np.ndarray]) -> list[list[Path]]:
    """Files whose frames are nearly identical, in sets that are connected through such pairs.

    Frames at the same fractions of two videos are compared, so copies are found after encoding, resizing and a change
    of the frame rate, but not after cutting. Clips of a fixed camera may be found too.

    hashes: int8 (frames, bits) of 1 and -1, or of 0 for a frame without contrast.
    """
    paths = sorted(hashes)
    if len(paths) < 2:
        return []
    frames = np.stack([hashes[path] for path in paths])  # (videos, frames, bits)
    bits = frames.shape[2]
    has_contrast = np.abs(frames[:, :, 0]).astype(np.float32)
    signs = frames.reshape(len(paths), -1).astype(np.float32)  # equal bits minus different bits is a matrix product
    label = np.arange(len(paths))
    for first in range(0, len(paths), _BLOCK):
        rows = slice(first, first + _BLOCK)
        common = has_contrast[rows] @ has_contrast[: first + _BLOCK].T
        agreement = signs[rows] @ signs[: first + _BLOCK].T
        found = (common >= _FEWEST_FRAMES) & (agreement >= (1 - 2 * LARGEST_DISTANCE) * bits * common)
        for row in np.flatnonzero(np.tril(found, first - 1).any(axis=1)):
            joined = np.unique(label[np.flatnonzero(found[row])])
            label[np.isin(label, joined)] = joined[0]
    sets: dict[int, list[Path]] = defaultdict(list)
    for path, number in zip(paths, label.tolist(), strict=True):
        sets[number].append(path)
    return [members for members in sets.values() if len(members) > 1]


def _hashes(files: Sequence[Path], progress: Progress) -> dict[Path, np.ndarray]:
    """The hashes of all readable files. Under `torchrun` each process reads its share."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return _hashes_here(files, progress)
    from airstreams.distributed import SharedProgress, gather, share  # imports torch, which check-data does not need

    return dict(gather(list(_hashes_here(share(files), progress, SharedProgress()).items())))


def _hashes_here(files: Sequence[Path], progress: Progress, shared: Shared | None = None) -> dict[Path, np.ndarray]:
    task = progress.add_task("comparing frames", len(files), brief=True, shared=shared)
    found = {}
    with ThreadPoolExecutor(max_workers=cpus()) as pool:
        for path, hashes in zip(files, pool.map(_hashes_or_none, files), strict=True):
            task.advance()
            if hashes is not None:
                found[path] = hashes
    return found


def _hashes_or_none(path: Path) -> np.ndarray | None:
    try:
        status = path.stat()
        return frame_hashes(path, status.st_mtime_ns, status.st_size)
    except (OSError, VideoError):  # whoever checks the videos reports the error
        return None


@lru_cache(maxsize=2**17)
def frame_hashes(path: Path, mtime_ns: int, size: int) -> np.ndarray:
    """The perceptual hashes of a few frames of a file, as `near_identical` takes them, remembered until it changes."""
    from imagehash import phash
    from PIL import Image

    frames = probe(path).frames
    pictures_NHW3 = read_frames(path, [int(moment * frames) for moment in _MOMENTS], _SIDE)
    hashes = np.zeros((len(_MOMENTS), _BITS), np.int8)
    for number, picture in enumerate(pictures_NHW3):
        grey = Image.fromarray(picture).convert("L")
        if np.asarray(grey).std() >= _LEAST_CONTRAST:
            hashes[number] = np.where(phash(grey).hash.ravel(), 1, -1)
    return hashes
