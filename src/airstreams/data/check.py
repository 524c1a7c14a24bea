"""Opens every video before it is used: which ones are good, and why each other one is not.

PyAV releases Python's lock while it reads and decodes, so threads use all cores.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from airstreams.console import Progress, Shared
from airstreams.data.cache import FrameCache
from airstreams.data.clips import frame_range
from airstreams.data.content import content_or_none
from airstreams.data.listing import Video
from airstreams.data.statistics import FileFacts
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

    @classmethod
    def from_error(cls, video: Video, error: VideoError) -> "BadVideo":
        """The reason names the file only where it is not the video's, such as its label maps."""
        return cls(video, error.reason if error.path in (None, video.path) else str(error))


class Checked(NamedTuple):
    """The result of a check.

    good, bad: videos that can be read and those that cannot, in the order given.
    files: the facts of each good file.
    """

    good: list[Video]
    bad: list[BadVideo]
    files: dict[Path, FileFacts]

    @property
    def rates(self) -> dict[Path, float]:
        """Frames per second of each good file with more than one frame."""
        return {path: facts.frame_rate for path, facts in self.files.items() if facts.frames > 1}


def check_videos(
    videos: Sequence[Video], progress: Progress, cache: FrameCache | None = None, shared: Shared | None = None
) -> Checked:
    """Open every file once, in parallel. Files whose frames are all in the cache are not decoded again."""
    paths = sorted({video.path for video in videos})

    def facts_of(path: Path) -> FileFacts:
        # `probe` finds the frames before a loader's processes start, so that they need not all do it again.
        info = probe(path) if cache is not None and cache.holds(path) else check(path)
        content_or_none(path)  # remembered for `with_contents`; now, because the file has just been read
        return FileFacts.of(info)

    found: dict[Path, FileFacts | str] = {}
    sizes = {path: _bytes(path) for path in paths}  # files of another size take another time
    task = progress.add_task("checking videos", len(paths), work=sum(sizes.values()), shared=shared)
    with ThreadPoolExecutor(max_workers=cpus()) as pool:
        for path, facts_or_reason in zip(paths, pool.map(partial(_or_reason, facts_of), paths), strict=True):
            found[path] = facts_or_reason
            task.advance(work=sizes[path])
    good: list[Video] = []
    bad: list[BadVideo] = []
    for video in videos:
        result: object = found[video.path]
        is_segment = video.start is not None or video.end is not None
        if is_segment and not isinstance(result, str):
            result = _or_reason(frame_range, video)
        if isinstance(result, str):
            bad.append(BadVideo(video, result))
        else:
            good.append(video)
    return Checked(good, bad, {path: facts for path, facts in found.items() if isinstance(facts, FileFacts)})


def check_distributed(videos: Sequence[Video], progress: Progress, cache: FrameCache | None = None) -> Checked:
    """`check_videos` in a distributed run: each process opens its share of the videos, all get the same result."""
    # This imports torch, which takes longer than checking a hundred videos.
    from airstreams.distributed import SharedProgress, gather, share

    own = check_videos(share(videos), progress, cache, SharedProgress())
    reasons = {item.video.name: item for item in gather(own.bad)}
    good = [video for video in videos if video.name not in reasons]
    bad = [reasons[video.name] for video in videos if video.name in reasons]
    return Checked(good, bad, dict(gather(list(own.files.items()))))


def _bytes(path: Path) -> int:
    """The file's size; at least 1."""
    try:
        return max(1, path.stat().st_size)
    except OSError:
        return 1


def _or_reason(work: Callable[[T], U], argument: T) -> U | str:
    """The result, or the reason of a VideoError."""
    try:
        return work(argument)
    except VideoError as error:
        return error.reason
