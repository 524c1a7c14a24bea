"""A trained model that answers: video file or frames in, classes and probabilities out. RGB is all it needs."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from numbers import Real
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from airstreams.data.dataset import FrameViews, VideoViews, Views
from airstreams.data.listing import Video
from airstreams.data.video import check
from airstreams.errors import InputError, one_line
from airstreams.evaluation.scoring import score_views
from airstreams.runs import saved_model as saved_models
from airstreams.runs.saved_model import SavedModel


@dataclass
class Window:
    """The probabilities of a stretch of a video, `start` to `end` in s."""

    start: float
    end: float
    probabilities: dict[str, float]


@dataclass
class Prediction:
    """All class names to probabilities, surest first; and of a long video the same for each window of time.

    With several labels a video each class's probability stands for itself, and they do not add up to 1.
    """

    probabilities: dict[str, float]
    windows: list[Window]


class Recogniser:
    """Predicts what happens in videos.

    Args:
        run: the folder that training wrote.
        device: `cpu`, `cuda`, `cuda:1`, ...; None: CUDA where there is a card.

    Raises:
        InputError: `run` holds no model, or this machine has no such device.
    """

    def __init__(self, run: Path | str, device: str | None = None) -> None:
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            torch.empty(0, device=device)
        except (AssertionError, RuntimeError) as error:  # the first where torch was built without CUDA
            reason = one_line(error)[:100]
            raise InputError(
                f"device: got {device}, expected cpu, cuda or cuda:N of a card that torch sees; leave it out to take "
                f"what there is ({reason})"
            ) from error
        self.saved: SavedModel = saved_models.load(Path(run), device)

    def predict(self, path: Path | str) -> Prediction:
        """Score a video file by the views that evaluation uses; a long video window by window too.

        Windows are of `evaluation.window` s (the recipe's), the last one of half to one and a half of that, and there
        are some where the video is longer than two.

        Raises:
            VideoError: the file cannot be read; the message is the reason.
        """
        video = Video(path=Path(path), name=str(path), labels=())
        info = check(video.path)  # decodes it all, as evaluation does: a damaged file is never scored
        windows = self._windows(info.times, info.duration)
        reader = VideoViews([*_parts(video, windows), video], self.saved.config)
        return self._prediction(windows, reader.in_one_pass() if windows else [reader.read(video)])

    def predict_frames(self, frames: np.ndarray, fps: float) -> Prediction:
        """Score frames, as of a camera, in the way of `predict`.

        Of a file's own frames (`read_frames(path, range(n))`, at its rate) the answer is that of `predict`. Only where
        frames are larger than the model needs them do colours, and so probabilities (by 0.01 or so), differ, since the
        file's are reduced before they become RGB.

        Args:
            frames: uint8 (T, H, W, 3), RGB; of OpenCV's, which are BGR, `frames[..., ::-1]`.
            fps: frames a second.

        Raises:
            InputError: frames of another type or layout, or no rate.
        """
        _require_frames(frames, fps)
        times, duration = np.arange(len(frames)) / fps, len(frames) / fps
        video = Video(path=Path("frames"), name="frames", labels=())
        windows = self._windows(times, duration)
        reader = FrameViews([*_parts(video, windows), video], self.saved.config, frames, times)
        return self._prediction(windows, map(reader.read, reader.videos))

    def features(self, path: Path | str) -> np.ndarray:
        """What the answer's classifier sees of a video file, by which it can be compared with others: for retrieval and
        clustering.

        Returns:
            float32 (C,), the mean over the whole video's views, which `predict` scores.

        Raises:
            VideoError: the file cannot be read; the message is the reason.
        """
        video = Video(path=Path(path), name=str(path), labels=())
        check(video.path)
        answer = self.saved.config.model.answer
        views = VideoViews([video], self.saved.config).read(video)
        _, _, features = score_views(self.saved, views.clips, [answer])
        return features[answer].numpy()

    def _windows(self, times: np.ndarray, duration: float) -> list[tuple[float, float]]:
        """Start and end of each window of frames at these times; none of a short video."""
        length = self.saved.config.evaluation.window
        if duration <= 2 * length:
            return []
        edges = [index * length for index in range(int(duration / length + 0.5))] + [duration]
        # A still stretch may hold no frame.
        return [(start, end) for start, end in pairwise(edges) if ((times >= start) & (times < end)).any()]

    def _prediction(self, windows: list[tuple[float, float]], views_of_all: Iterable[Views]) -> Prediction:
        """Of each window's views and, last, the whole video's."""
        answer = self.saved.config.model.answer
        scored = []
        for views in views_of_all:
            probabilities, *_ = score_views(self.saved, views.clips, [answer])
            scored.append(self._named(probabilities[answer]))
        return Prediction(
            scored[-1], [Window(*between, named) for between, named in zip(windows, scored[:-1], strict=True)]
        )

    def _named(self, probabilities_K: Tensor) -> dict[str, float]:
        order = probabilities_K.argsort(descending=True).tolist()
        return {self.saved.classes[index]: float(probabilities_K[index]) for index in order}


def _parts(video: Video, windows: list[tuple[float, float]]) -> list[Video]:
    return [replace(video, start=start, end=end) for start, end in windows]


def _require_frames(frames: np.ndarray, fps: float) -> None:
    is_array = isinstance(frames, np.ndarray)
    if not (is_array and frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[3] == 3 and frames.size):
        given = f"{frames.dtype} {frames.shape}" if is_array else type(frames).__name__
        raise InputError(
            f"frames: got {given}, expected a numpy array uint8 (T, H, W, 3) of RGB in 0..255, one frame at least; "
            "np.stack makes one of a list, and np.moveaxis puts channels last"
        )
    if not (isinstance(fps, Real) and 0 < fps < math.inf):
        raise InputError(f"fps: got {fps}, expected frames a second, over 0 and finite; give the camera's, such as 30")
