"""The identity of a video by its content: a copy, another name or another folder does not change it.

The content of a file is a hash of its compressed pictures, in the order of the file. Nothing is decoded. A video that
was copied into another container without encoding it again (`ffmpeg -c copy`) keeps its content. One that was encoded
again or cut gets another.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from airstreams.config import SUPERVISED
from airstreams.console import Progress, say, warn
from airstreams.data.listing import Source, Video
from airstreams.data.video import Packet, file_version, packets
from airstreams.errors import InputError, VideoError
from airstreams.machine import cpus
from airstreams.plural import count_of

if TYPE_CHECKING:
    from airstreams.data.targets import TargetStore  # imports torch

_START_CODE = b"\0\0\1"
SHOW_PROGRESS_AFTER = 1.0  # seconds


def content_of(path: str | PathLike[str]) -> str:
    """The content of a video file: 32 hexadecimal digits. It is remembered until the file changes.

    VideoError: the file cannot be read.
    """
    return _content_of_version(*file_version(path))


@lru_cache(maxsize=2**20)
def _content_of_version(path: str, mtime_ns: int, size: int) -> str:
    pictures = sha256()
    empty = True
    for packet in packets(path):
        for part in _pictures_of(packet):
            pictures.update(len(part).to_bytes(8))
            pictures.update(part)
            empty = False
    if empty:
        raise VideoError("unreadable: no pictures", path)
    return pictures.hexdigest()[:32]


def _pictures_of(packet: Packet) -> Iterator[bytes]:
    """The parts of a packet that hold pictures.

    Containers differ in what they put beside the pictures of H.264 and HEVC, and in how they mark where each unit
    begins: by its length (MP4, Matroska) or by a start code (MPEG-TS, AVI). Other codecs' packets are taken whole.
    """
    if packet.codec not in ("h264", "hevc"):
        yield packet.data
        return
    by_length = packet.header[:1] == b"\x01"
    for padded in _units_by_length(packet) if by_length else packet.data.split(_START_CODE):
        unit = padded.rstrip(b"\0")
        # The first byte holds the kind of the unit: section 7.4.1 of the standard H.264, 7.4.2.2 of H.265.
        if unit and (1 <= unit[0] & 31 <= 5 if packet.codec == "h264" else unit[0] >> 1 & 63 <= 31):
            yield unit


def _units_by_length(packet: Packet) -> Iterator[bytes]:
    data, begin = packet.data, 0
    digits = 1 + (packet.header[4 if packet.codec == "h264" else 21] & 3)  # bytes of a length
    while begin + digits < len(data):
        end = begin + digits + int.from_bytes(data[begin : begin + digits])
        yield data[begin + digits : end]
        begin = end


def with_contents(source: Source, console: Console, split: str | None = None) -> Source:
    """The source with the content of each video; None where the file cannot be read.

    Args:
        source: videos whose content is known already keep it.
        console: shows the progress if it takes more than a second.
        split: only the videos of this split; None: all.
    """
    chosen = [video for video in source.all_videos if split is None or video.split == split]
    contents = contents_of((video.path for video in chosen if video.content is None), console)
    return source.with_all_videos(
        [replace(video, content=video.content or contents.get(video.path)) for video in source.all_videos]
    )


def contents_of(paths: Iterable[Path], console: Console) -> dict[Path, str]:
    """The content of each file that can be read.

    In a distributed run each process reads its share of the files, and all get the same result.
    """
    in_order = sorted(set(paths))
    if not in_order:
        return {}
    from airstreams.distributed import gather, share  # imports torch, which takes longer than reading many videos

    return dict(gather(_read(share(in_order), console)))


def _read(paths: Sequence[Path], console: Console) -> list[tuple[Path, str]]:
    """Path and content of each file that can be read, in parallel."""
    contents: list[tuple[Path, str]] = []
    started, task = time.monotonic(), None
    with ThreadPoolExecutor(max_workers=cpus()) as pool, Progress(console) as progress:
        for done, (path, content) in enumerate(zip(paths, pool.map(content_or_none, paths), strict=True), start=1):
            if content is not None:
                contents.append((path, content))
            if task is not None:
                task.advance()
            elif time.monotonic() - started > SHOW_PROGRESS_AFTER:
                task = progress.add_task("identifying videos", len(paths), done=done, brief=True)
    return contents


def content_or_none(path: Path) -> str | None:
    """`content_of`; None for a file that cannot be read."""
    try:
        return content_of(path)
    except VideoError:
        return None


def follow_label_maps(source: Source, console: Console, split: str | None = None) -> Source:
    """The source with each video's key in its label store, found by content. Files are read only if the store has some.

    Args:
        source: with or without contents.
        console: as for `keys_by_content`.
        split: only the videos of this split; None: all.

    InputError: the store has label maps for none of the videos.
    """
    store = source.label_store
    if store is None or not store.knows_contents:
        return source
    source = with_contents(source, console, split)
    keys = {video.name: video.label_map for video in source.all_videos}
    return source.with_target_keys(SUPERVISED[0], keys_by_content(store, source.all_videos, keys, console))


def keys_by_content(
    store: "TargetStore", videos: Sequence[Video], own_keys: Mapping[str, str | None], console: Console
) -> dict[str, str | None]:
    """The key of each video in a store, by the video's name.

    A video whose content is not known, or that the store does not know, keeps its key.

    Args:
        store: a store that knows the contents of its videos.
        videos: with contents.
        own_keys: those by the videos' names.
        console: gets a line about videos that were renamed or changed since they were annotated.

    InputError: the store has targets of none of the videos.
    """
    known = store.read_contents()
    keys_of: dict[str, list[str]] = {}
    for key, content in known.items():
        keys_of.setdefault(content, []).append(key)
    of_source = {video.content for video in videos}
    renamed, changed, ambiguous = list[str](), list[str](), list[str]()

    def key_of(video: Video) -> str | None:
        own = own_keys[video.name]
        if video.content is None or (own is not None and known.get(own) == video.content and store.has(own)):
            return own
        if keys := [key for key in keys_of.get(video.content, ()) if store.has(key)]:
            renamed.append(f"{keys[0]} for {video.name}")
            if len(keys) > 1:
                ambiguous.append(f"{keys[0]} and {keys[1]}")
            return keys[0]
        if own in known and store.has(own):
            if known[own] in of_source:  # they are the targets of another video
                return None
            changed.append(video.name)
        return own

    found = {video.name: key_of(video) for video in videos}
    if not any(key is not None and store.has(key) for key in found.values()):
        raise InputError(
            f"{store.root} has no label maps or other targets of any of these {count_of(len(videos), 'video')}. Give "
            "the folder with those of these videos."
        )
    _report_keys(store.root, renamed, changed, ambiguous, console)
    return found


def _report_keys(
    root: Path, renamed: Sequence[str], changed: Sequence[str], ambiguous: Sequence[str], console: Console
) -> None:
    if renamed:
        say(
            console,
            f"{root} has the targets of {count_of(len(renamed), 'video')} under other names, such as {renamed[0]}. "
            "They are found by content.",
        )
    if ambiguous:
        warn(
            console,
            f"{root} has the targets of {count_of(len(ambiguous), 'video')} several times, such as {ambiguous[0]}. "
            "The first are used. Delete the others.",
        )
    if changed:
        warn(
            console,
            f"{count_of(len(changed), 'video')} changed since {root} was made, such as {changed[0]}. The targets of "
            "these names are used. If the videos show something else now, annotate them into a new folder.",
        )
