"""Which frames of a video a clip takes, and which labels hold while it lasts."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from airstreams.config import ClipConfig
from airstreams.data.listing import Video
from airstreams.data.video import probe
from airstreams.errors import VideoError

RATES_APART = 1.3  # times; 24, 25 and 30 frames a second are not


class FrameRange(NamedTuple):
    """The part of a video that is its own: indices first to last, and every index's time in s."""

    times: np.ndarray
    first: int
    last: int


def frame_range(video: Video, times: np.ndarray | None = None) -> FrameRange:
    """The frames between the video's start and end. VideoError: none. `times`: of all frames, s; None: the file's."""
    times = probe(video.path).times if times is None else times
    first = 0 if video.start is None else int(np.searchsorted(times, video.start - 1e-6))
    last = len(times) - 1 if video.end is None else int(np.searchsorted(times, video.end - 1e-6)) - 1
    if first > last:
        raise VideoError(f"no frames between {video.start} s and {video.end} s; it ends at {times[-1]:.2f} s")
    return FrameRange(times, first, last)


def clip_indices(part: FrameRange, start: int, clip: ClipConfig) -> np.ndarray:
    """The indices (T,) of a clip's frames.

    A clip that runs past the end repeats the last frame: a loop's seam would be false motion.
    """
    if clip.rate is None:
        indices = start + np.arange(clip.frames) * clip.stride
    else:
        wanted = part.times[start] + np.arange(clip.frames) / clip.rate
        indices = _nearest(part.times, wanted)
    return np.minimum(indices, part.last)


def latest_start(part: FrameRange, clip: ClipConfig) -> int:
    """The last index from which a whole clip fits; the first index where none does."""
    if clip.rate is None:
        start = part.last - (clip.frames - 1) * clip.stride
    else:
        span = (clip.frames - 1) / clip.rate
        start = int(_nearest(part.times, part.times[part.last] - span))
    return max(part.first, start)


def frame_rate_warning(rates: Collection[float], usual: float | None, clip: ClipConfig) -> str | None:
    """A remark on videos whose clips, of every nth frame, last far longer or shorter than at the usual frame rate."""
    if clip.rate is not None or usual is None:
        return None
    others = [rate for rate in rates if max(rate / usual, usual / rate) > RATES_APART]
    if not others:
        return None
    return (
        f"beware: {len(others)} of {len(rates)} videos have another frame rate, such as {others[0]:.4g} a second, than "
        f"the usual {usual:.4g}, so motion of one speed has another in their clips; a run with --clip.rate "
        f"{usual / clip.stride:.3g} takes frames by time"
    )


def active_labels(video: Video, start_s: float, end_s: float) -> tuple[str, ...]:
    """The class names that hold at some moment from `start_s` to `end_s`, both inclusive, each once.

    A label counts however short its part of the clip is: a share to reach would be one more number to choose, and an
    action of no length could never reach it. The price: a clip may carry a label of which a single frame is to be seen.
    """
    if not video.actions:
        return video.labels
    overlapping = (action for action in video.actions if action.start <= end_s and action.end >= start_s)
    return tuple(dict.fromkeys(action.label for action in overlapping))


def _nearest(times: np.ndarray, moments: np.ndarray | float) -> np.ndarray:
    # Not the frame shown at that moment: files round times (Matroska to 1 ms) and 30 fps is often 29.97, so at a rate
    # near the file's own a hair's breadth would double one frame and skip the next, which is false motion.
    # Midway (8 a second of 30) it is the earlier frame, wherever the last bits of a file's times lie.
    return np.searchsorted((times[1:] + times[:-1]) / 2, moments - 1e-6)
