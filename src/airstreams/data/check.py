"""Every video is opened before it is used: which are good, and why each other one is not.

PyAV lets go of Python's lock while it reads and decodes, so threads use all cores without starting processes.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rich.progress import Progress

from airstreams.data.listing import Video
from airstreams.data.video import check
from airstreams.errors import VideoError


@dataclass(frozen=True)
class BadVideo:
    """A video that cannot be read, and why."""

    video: Video
    reason: str


def check_videos(videos: Sequence[Video], progress: Progress) -> tuple[list[Video], list[BadVideo]]:
    """Open every video, in parallel: the good ones, and the bad ones with their reasons, in the order given."""
    task = progress.add_task("checking videos", total=len(videos))
    good: list[Video] = []
    bad: list[BadVideo] = []
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for video, reason in zip(videos, pool.map(_reason_against, videos), strict=True):
            if reason is None:
                good.append(video)
            else:
                bad.append(BadVideo(video, reason))
            progress.advance(task)
    return good, bad


def _reason_against(video: Video) -> str | None:
    try:
        check(video.path)
    except VideoError as error:
        return str(error)
    return None
