"""Which frames of a video a clip takes, and which labels are active in it."""

from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from airstreams.config import ClipConfig
from airstreams.data.listing import Video
from airstreams.data.video import probe
from airstreams.errors import VideoError

LARGEST_RATE_RATIO = 1.3  # between similar frame rates, such as 24, 25 and 30 frames per second
LENGTHS = 200  # videos whose lengths are compared with a clip's


class FrameRange(NamedTuple):
    """The frames of a video or segment: indices `first` to `last`, and the times of all frames of the file, s.

    `joints`: see `VideoInfo`. No clip crosses one.
    """

    times: np.ndarray
    first: int
    last: int
    joints: tuple[int, ...] = ()


def frame_range(video: Video, times: np.ndarray | None = None) -> FrameRange:
    """The frames between the video's start and end.

    Args:
        video: a video or a segment of it.
        times: of all frames, s; None: read from the file.

    Raises:
        VideoError: there are none, or the file cannot be read.
    """
    joints: tuple[int, ...] = ()
    if times is None:
        info = probe(video.path)
        times, joints = info.times, info.joints
    first = 0 if video.start is None else int(np.searchsorted(times, video.start - 1e-6))
    last = len(times) - 1 if video.end is None else int(np.searchsorted(times, video.end - 1e-6)) - 1
    if first > last:
        if video.start is not None and video.start > times[-1]:
            reason = f"the start {video.start} s lies after the video's last frame at {times[-1]:.2f} s"
            raise VideoError(f"{reason}; times are in seconds from the first frame", video.path)
        raise VideoError(f"no frame lies between {video.start or 0} s and {video.end} s", video.path)
    return FrameRange(times, first, last, joints)


def clip_indices(part: FrameRange, start: int, clip: ClipConfig) -> np.ndarray:
    """The indices (T,) of a clip's frames.

    A clip that runs past the end repeats the last frame. A loop would add false motion at its seam. A clip that would
    cross a joint starts earlier.
    """
    if part.joints:
        part = _recording_of(part, start)
        start = min(start, latest_start(part, clip))
    if clip.rate is None:
        indices = start + np.arange(clip.frames) * clip.stride
    else:
        wanted = part.times[start] + np.arange(clip.frames) / clip.rate
        indices = _nearest(part.times, wanted)
    return np.minimum(indices, part.last)


def _recording_of(part: FrameRange, index: int) -> FrameRange:
    """The frames between the joints around a frame."""
    borders = (part.first, *(joint for joint in part.joints if part.first < joint <= part.last), part.last + 1)
    after = next(place for place, border in enumerate(borders) if border > index)
    return FrameRange(part.times, borders[after - 1], borders[after] - 1)


def latest_start(part: FrameRange, clip: ClipConfig) -> int:
    """The index of the last frame at which a whole clip can start; the first frame where no whole clip fits."""
    if clip.rate is None:
        start = part.last - (clip.frames - 1) * clip.stride
    else:
        span = (clip.frames - 1) / clip.rate
        start = int(_nearest(part.times, part.times[part.last] - span))
    return max(part.first, start)


def frame_rate_warning(rates: Collection[float], usual: float | None, clip: ClipConfig) -> str | None:
    """A warning where videos have other frame rates than the usual one and clips take every n-th frame."""
    if clip.rate is not None or usual is None:
        return None
    others = [rate for rate in rates if max(rate / usual, usual / rate) > LARGEST_RATE_RATIO]
    if not others:
        return None
    return (
        f"{len(others)} of {len(rates)} videos have another frame rate than the usual {usual:.4g} per second, such as "
        f"{others[0]:.4g}, so motion looks faster or slower in their clips. Train with --clip.rate "
        f"{usual / clip.stride:.3g} to take frames by time."
    )


def clip_length_warning(videos: Sequence[Video], clip: ClipConfig) -> str | None:
    """A warning where clips are longer than most videos, judged by about `LENGTHS` of those that can be read."""
    short = known = 0
    for video in videos[:: max(1, len(videos) // LENGTHS)]:
        with suppress(VideoError):
            part = frame_range(video)
            span = part.times[part.last] - part.times[part.first]
            frames = part.last - part.first + 1
            known += 1
            if clip.rate is None:
                short += frames < (clip.frames - 1) * clip.stride + 1
            else:
                short += span < (clip.frames - 1.5) / clip.rate
    if 2 * short <= known:
        return None
    step = f"clip.stride {clip.stride}" if clip.rate is None else f"clip.rate {clip.rate:g}"
    return (
        f"clips are longer than {short / known:.0%} of the videos (clip.frames {clip.frames}, {step}), so they end in "
        f"copies of the last frame. Give a smaller --clip.frames or a {'smaller' if clip.rate is None else 'larger'} "
        f"--{step.split()[0]}."
    )


def active_labels(video: Video, start_s: float, end_s: float) -> tuple[str, ...]:
    """The labels that are active at any moment from `start_s` to `end_s`, both inclusive, each once.

    A label counts even if it is active in a single frame of the clip. A minimum duration would be one more
    hyperparameter, and actions without duration could never reach it.
    """
    if not video.actions:
        return video.labels
    overlapping = (action for action in video.actions if action.start <= end_s and action.end >= start_s)
    return tuple(dict.fromkeys(action.label for action in overlapping))


def _nearest(times: np.ndarray, moments: np.ndarray | float) -> np.ndarray:
    """The index of the frame nearest to each moment; midway between two frames, the earlier one.

    The frame that a player shows at that moment would be wrong: files round times (Matroska to 1 ms), and 30 fps is
    often 29.97, so at a rate near the file's own one frame would be doubled and the next one skipped.
    """
    # The small shift makes the tie independent of rounding in the file's times (8 per second of 30 has ties).
    return np.searchsorted((times[1:] + times[:-1]) / 2, moments - 1e-6)
