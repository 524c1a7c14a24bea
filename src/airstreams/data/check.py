"""Every video is opened before it is used: which are good, and why each other one is not.

PyAV lets go of Python's lock while it reads and decodes, so threads use all cores without starting processes.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from rich.progress import Progress

from airstreams.data.cache import FrameCache
from airstreams.data.clips import frame_range
from airstreams.data.listing import Video
from airstreams.data.video import check, probe
from airstreams.errors import VideoError
from airstreams.machine import cpus

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class BadVideo:
    """A video that cannot be read, and why."""

    video: Video
    reason: str


class Checked(NamedTuple):
    """What a look at videos has found.

    good, bad: which can be read and which not, in the order given.
    rates: frames a second of each good file that has more than one.
    """

    good: list[Video]
    bad: list[BadVideo]
    rates: dict[Path, float]


def check_videos(videos: Sequence[Video], progress: Progress, cache: FrameCache | None = None) -> Checked:
    """Open every file once, in parallel. Files that the cache knows to be good are not decoded again."""
    paths = sorted({video.path for video in videos})
    found: dict[Path, float | str] = {}

    def look(path: Path) -> float:
        # `probe` learns where the frames are, before a loader's processes are started and each learns it anew.
        info = probe(path) if cache is not None and cache.knows_good(path) else check(path)
        return info.fps if info.frames > 1 else 0.0

    task = progress.add_task("checking videos", total=len(paths))
    with ThreadPoolExecutor(max_workers=cpus()) as pool:
        for path, looked in zip(paths, pool.map(partial(_or_complaint, look), paths), strict=True):
            found[path] = looked
            progress.advance(task)
    good: list[Video] = []
    bad: list[BadVideo] = []
    for video in videos:
        is_part = video.start is not None or video.end is not None  # the whole of a good file has frames
        looked = found[video.path]
        part = _or_complaint(frame_range, video) if is_part and not isinstance(looked, str) else looked
        if isinstance(part, str):
            bad.append(BadVideo(video, part))
        else:
            good.append(video)
    return Checked(good, bad, {path: rate for path, rate in found.items() if isinstance(rate, float) and rate})


def check_together(videos: Sequence[Video], progress: Progress, cache: FrameCache | None = None) -> Checked:
    """`check_videos`, each process opening its share."""
    from airstreams.distributed import gather, share  # with torch, which takes longer than to check a hundred videos

    own = check_videos(share(videos), progress, cache)
    reasons = {item.video.name: item for item in gather(own.bad)}
    good = [video for video in videos if video.name not in reasons]
    bad = [reasons[video.name] for video in videos if video.name in reasons]
    return Checked(good, bad, dict(gather(list(own.rates.items()))))


def _or_complaint(look: Callable[[T], U], thing: T) -> U | str:
    try:
        return look(thing)
    except VideoError as error:
        return str(error)
