"""Every video is opened before it is used: which are good, and why each other one is not.

PyAV lets go of Python's lock while it reads and decodes, so threads use all cores without starting processes.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from rich.progress import Progress

from airstreams.data.cache import FrameCache
from airstreams.data.clips import frame_range
from airstreams.data.listing import Video
from airstreams.data.video import check, probe
from airstreams.errors import VideoError
from airstreams.machine import cpus

T = TypeVar("T")


@dataclass(frozen=True)
class BadVideo:
    """A video that cannot be read, and why."""

    video: Video
    reason: str


def check_videos(
    videos: Sequence[Video], progress: Progress, cache: FrameCache | None = None
) -> tuple[list[Video], list[BadVideo]]:
    """Open every file once, in parallel: the good videos, and the bad ones with their reasons, in the order given.

    Files that the cache knows to be good are not decoded again.
    """
    paths = sorted({video.path for video in videos})
    reasons: dict[Path, str | None] = {}

    def look(path: Path) -> object:
        # `probe` learns where the frames are, before a loader's processes are started and each learns it anew.
        return probe(path) if cache is not None and cache.knows_good(path) else check(path)

    task = progress.add_task("checking videos", total=len(paths))
    with ThreadPoolExecutor(max_workers=cpus()) as pool:
        for path, reason in zip(paths, pool.map(partial(_complaint, look), paths), strict=True):
            reasons[path] = reason
            progress.advance(task)
    good: list[Video] = []
    bad: list[BadVideo] = []
    for video in videos:
        is_part = video.start is not None or video.end is not None  # the whole of a good file has frames
        reason = reasons[video.path] or (_complaint(frame_range, video) if is_part else None)
        if reason is None:
            good.append(video)
        else:
            bad.append(BadVideo(video, reason))
    return good, bad


def check_together(
    videos: Sequence[Video], progress: Progress, cache: FrameCache | None = None
) -> tuple[list[Video], list[BadVideo]]:
    """`check_videos`, each process opening its share."""
    from airstreams.distributed import gather, share  # with torch, which takes longer than to check a hundred videos

    _, bad = check_videos(share(videos), progress, cache)
    reasons = {item.video.name: item for item in gather(bad)}
    good = [video for video in videos if video.name not in reasons]
    return good, [reasons[video.name] for video in videos if video.name in reasons]


def _complaint(look: Callable[[T], object], thing: T) -> str | None:
    try:
        look(thing)
    except VideoError as error:
        return str(error)
    return None
