"""What `predict` scores of a video: its windows or, of a short video, the whole; and the prediction that they make."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from airstreams.config import Config
from airstreams.data.dataset import ClipFrames, VideoViews
from airstreams.data.listing import Video
from airstreams.data.video import probe


@dataclass
class Window:
    """The probabilities of a part of a video, from `start` to `end`, in s."""

    start: float
    end: float
    probabilities: dict[str, float]


@dataclass
class Prediction:
    """What a video shows.

    probabilities: every class name with its probability, the highest first. For a long video they are the mean over its
        windows. With several labels per video each class has a probability of its own, and they do not add up to 1.
    windows: the same for each window of a long video; empty for a short one.
    fps: frames per second of the video; None where it has a single frame.
    """

    probabilities: dict[str, float]
    windows: list[Window]
    fps: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Parts:
    """The parts of a video that are scored.

    windows: start and end of each, in s of the file; empty for a short video, whose only part is the whole.
    fps: frames per second of the file; None where it has a single frame.
    """

    windows: list[tuple[float, float]]
    fps: float | None

    def of(self, video: Video) -> list[Video]:
        """The parts as segments of a video."""
        return [replace(video, start=start, end=end) for start, end in self.windows] or [video]

    def prediction(self, scores: Sequence[Tensor], classes: Sequence[str]) -> Prediction:
        """From the probabilities (K,) of each part, in their order."""
        whole = _by_class(torch.stack(list(scores)).mean(dim=0), classes)
        windows = [
            Window(*window, _by_class(of_window, classes))
            for window, of_window in zip(self.windows, scores, strict=False)
        ]
        return Prediction(whole, windows, self.fps)


def parts_of(times: np.ndarray, fps: float | None, duration: float, video: Video, length: float) -> Parts:
    """Divide a video or segment into windows of `length` s, if it is longer than two of them.

    The last window has half to one and a half of that length.

    Args:
        times: of all frames of the file, s.
        fps: of the file.
        duration: of the file, s.
        video: the video or segment.
        length: of a window, s.
    """
    first, last = video.start or 0.0, duration if video.end is None else min(video.end, duration)
    if last - first <= 2 * length:
        return Parts([], fps)
    count = int((last - first) / length + 0.5)
    # Only windows near a frame are looked at: a wrong time stamp can make a file last for years.
    near = np.unique(np.floor((times - first) / length).astype(np.int64)[:, None] + (-1, 0, 1))
    windows = [
        (first + index * length, last if index == count - 1 else first + (index + 1) * length)
        for index in np.unique(near.clip(0, count - 1)).tolist()
    ]
    # A still part of a video may hold no frame.
    has_frame = [np.searchsorted(times, start) < np.searchsorted(times, end) for start, end in windows]
    return Parts([window for window, has in zip(windows, has_frame, strict=True) if has], fps)


def read_parts(video: Video, config: Config, window: float | None = None) -> tuple[Parts, Iterator[ClipFrames]]:
    """The parts of a video, and the views of each. The file is decoded once, as they are asked for.

    window: the length of a window, s; None: `evaluation.window`.

    Raises:
        VideoError: the file cannot be read. Damage is found at the end, so wait for it before using any score.
    """
    info = probe(video.path)
    length = config.evaluation.window if window is None else window
    parts = parts_of(info.times, info.fps if info.frames > 1 else None, info.duration, video, length)
    return parts, VideoViews(parts.of(video), config).in_one_pass()


def _by_class(probabilities_K: Tensor, classes: Sequence[str]) -> dict[str, float]:
    order = probabilities_K.argsort(descending=True).tolist()
    return {classes[index]: float(probabilities_K[index]) for index in order}
