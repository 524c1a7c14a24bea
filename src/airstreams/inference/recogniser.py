"""A trained model that answers: a video file or frames in, classes and probabilities out."""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from numbers import Real
from pathlib import Path
from typing import TypeGuard, overload

import numpy as np
from torch import Tensor

from airstreams.config import Config
from airstreams.data.dataset import FrameViews, VideoViews, Views
from airstreams.data.listing import Video
from airstreams.data.video import check
from airstreams.errors import InputError
from airstreams.evaluation.scoring import score_views
from airstreams.machine import device_named
from airstreams.runs import saved_model as saved_models
from airstreams.runs.saved_model import SavedModel


@dataclass
class Window:
    """The probabilities of a part of a video, from `start` to `end`, in s."""

    start: float
    end: float
    probabilities: dict[str, float]


@dataclass
class Prediction:
    """What a video shows.

    probabilities: every class name with its probability, the highest first. With several labels per video each class
        has a probability of its own, and they do not add up to 1.
    windows: the same for each window of a long video; empty for a short one.
    fps: frames per second of the video; None where it has a single frame.
    """

    probabilities: dict[str, float]
    windows: list[Window]
    fps: float | None = field(default=None, compare=False)


class Recogniser:
    """Predicts what happens in videos.

    Args:
        run: the folder that training wrote.
        device: `cpu`, `cuda`, `cuda:1`, ...; None: CUDA where there is a card, else the CPU.

    Raises:
        InputError: `run` holds no model, or this machine has no such device.
    """

    def __init__(self, run: Path | str, device: str | None = None) -> None:
        self.run = Path(run)
        self.saved: SavedModel = saved_models.load(self.run, device_named(device or "auto"))

    def __repr__(self) -> str:
        streams = ", ".join(self.config.model.streams)
        return f"Recogniser({str(self.run)!r}, {len(self.classes)} classes, streams: {streams})"

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the model's logits."""
        return self.saved.classes

    @property
    def config(self) -> Config:
        """The config that the model was trained with."""
        return self.saved.config

    @overload
    def predict(self, videos: Path | str) -> Prediction: ...  # type: ignore[overload-overlap]

    @overload
    def predict(self, videos: Iterable[Path | str]) -> list[Prediction]: ...

    def predict(self, videos: Path | str | Iterable[Path | str]) -> Prediction | list[Prediction]:
        """Score one video file, or each of many, by the views that evaluation uses.

        A video longer than two windows is also scored window by window. A window lasts `evaluation.window` s of the
        config; the last one lasts half to one and a half of that.

        Args:
            videos: a path, or several.

        Returns:
            A prediction for one path; a list in the same order for several.

        Raises:
            InputError: `videos` is neither.
            VideoError: a file cannot be read.
        """
        if _is_path(videos):
            return self._predict(Path(videos))
        paths = list(videos) if isinstance(videos, Iterable) else [videos]
        if not all(map(_is_path, paths)):
            wrong = next(path for path in paths if not _is_path(path))
            raise InputError(f"videos: got {type(wrong).__name__}, expected a path (str or Path), or a list of paths")
        return [self._predict(Path(path)) for path in paths]

    def _predict(self, path: Path) -> Prediction:
        video = Video(path=path, name=str(path), labels=())
        info = check(video.path)  # decodes all frames, as evaluation does: a damaged file is never scored
        windows = self._windows(info.times, info.duration)
        reader = VideoViews([*_parts(video, windows), video], self.config)
        views = reader.in_one_pass() if windows else [reader.read(video)]
        return self._prediction(windows, views, info.fps if info.frames > 1 else None)

    def predict_frames(self, frames: np.ndarray, fps: float) -> Prediction:
        """Score frames, such as a camera's, as `predict` scores a file.

        The frames of a file (`read_frames(path, range(n))`, at its rate) get the same answer as the file. There is one
        exception: frames larger than the model needs. A file's are reduced before they become RGB, so colours differ
        slightly, and probabilities by about 0.01.

        Args:
            frames: uint8 (T, H, W, 3), RGB. OpenCV gives BGR: pass `frames[..., ::-1]`.
            fps: frames per second.

        Raises:
            InputError: frames of another type or layout, or no rate.
        """
        _require_frames(frames, fps)
        times, duration = np.arange(len(frames)) / fps, len(frames) / fps
        video = Video(path=Path("frames"), name="frames", labels=())
        windows = self._windows(times, duration)
        reader = FrameViews([*_parts(video, windows), video], self.config, frames, times)
        return self._prediction(windows, map(reader.read, reader.videos), fps if len(frames) > 1 else None)

    def features(self, path: Path | str) -> np.ndarray:
        """The features of a video file, for retrieval and clustering.

        They are the input of the last layer of the head that gives the answer.

        Returns:
            float32 (C,), the mean over the views of the whole video, which `predict` scores.

        Raises:
            VideoError: the file cannot be read.
        """
        video = Video(path=Path(path), name=str(path), labels=())
        check(video.path)
        answer = self.config.model.answer
        views = VideoViews([video], self.config).read(video)
        _, _, features = score_views(self.saved, views.clips, [answer])
        return features[answer].numpy()

    def _windows(self, times: np.ndarray, duration: float) -> list[tuple[float, float]]:
        """Start and end of each window of frames at these times; none for a short video."""
        length = self.config.evaluation.window
        if duration <= 2 * length:
            return []
        edges = [index * length for index in range(int(duration / length + 0.5))] + [duration]
        # A still part of a video may hold no frame.
        return [(start, end) for start, end in pairwise(edges) if ((times >= start) & (times < end)).any()]

    def _prediction(
        self, windows: list[tuple[float, float]], views_of_all: Iterable[Views], fps: float | None
    ) -> Prediction:
        """From the views of each window and, last, of the whole video."""
        answer = self.config.model.answer
        scored = []
        for views in views_of_all:
            probabilities, *_ = score_views(self.saved, views.clips, [answer])
            scored.append(self._by_class(probabilities[answer]))
        *of_windows, whole = scored
        return Prediction(whole, [Window(*w, scores) for w, scores in zip(windows, of_windows, strict=True)], fps)

    def _by_class(self, probabilities_K: Tensor) -> dict[str, float]:
        order = probabilities_K.argsort(descending=True).tolist()
        return {self.classes[index]: float(probabilities_K[index]) for index in order}


def _is_path(value: object) -> TypeGuard[str | os.PathLike[str]]:
    return isinstance(value, str | os.PathLike)


def _parts(video: Video, windows: list[tuple[float, float]]) -> list[Video]:
    return [replace(video, start=start, end=end) for start, end in windows]


def _require_frames(frames: np.ndarray, fps: float) -> None:
    is_array = isinstance(frames, np.ndarray)
    if not (is_array and frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[3] == 3 and frames.size):
        given = f"{frames.dtype} {frames.shape}" if is_array else type(frames).__name__
        raise InputError(
            f"frames: got {given}, expected a numpy array uint8 (T, H, W, 3) of RGB in 0..255, at least one frame. "
            "np.stack makes one of a list; np.moveaxis moves the channels to the end."
        )
    if not (isinstance(fps, Real) and 0 < fps < math.inf):
        raise InputError(f"fps: got {fps}, expected a finite number over 0. Give frames per second, such as 30.")
