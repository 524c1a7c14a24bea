"""A trained model that answers: a video file or frames in, classes and probabilities out."""

import math
import os
from collections.abc import Collection, Generator, Iterable
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import TypeGuard, overload

import numpy as np
import torch

from airstreams.config import LEAST_WINDOW, Config
from airstreams.data.dataset import ClipFrames, FrameViews, VideoViews
from airstreams.data.listing import Video
from airstreams.data.video import check
from airstreams.errors import InputError, VideoError
from airstreams.evaluation.scoring import score_views
from airstreams.inference.parts import Parts, Prediction, Window, parts_of, read_parts
from airstreams.inference.pipeline import predictions
from airstreams.inference.scorer import Scorer
from airstreams.machine import device_named, keep_freed_memory
from airstreams.runs import saved_model as saved_models
from airstreams.runs.saved_model import SavedModel

__all__ = ["Prediction", "Recogniser", "Window"]


class Recogniser:
    """Predicts what happens in videos.

    Args:
        run: the folder that training wrote.
        device: `cpu`, `cuda`, `cuda:1`, ...; None: CUDA where there is a card, else the CPU.
        trust: names of modules that may be imported for the custom streams of a run that was trained elsewhere.
        precision: `float32`, `bfloat16` or `auto`; None: the run's `training.precision`.
        calibrated: divide the answer's logits by the temperature that training fitted.

    Raises:
        InputError: `run` holds no model, names a module that is not trusted, or has no temperature, or this machine has
            no such device.
    """

    def __init__(
        self,
        run: Path | str,
        device: str | None = None,
        trust: Collection[str] = (),
        precision: str | None = None,
        calibrated: bool = False,
    ) -> None:
        self.run = Path(run)
        on_device = device_named(device or "auto")
        self.saved: SavedModel = saved_models.load(self.run, on_device, trust, precision, calibrated)

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
    def predict(self, videos: Path | str, window: float | None = None) -> Prediction: ...  # type: ignore[overload-overlap]

    @overload
    def predict(self, videos: Iterable[Path | str], window: float | None = None) -> list[Prediction]: ...

    def predict(
        self, videos: Path | str | Iterable[Path | str], window: float | None = None
    ) -> Prediction | list[Prediction]:
        """Score one video file, or each of many.

        A short video is scored by the views that evaluation uses. A video longer than two windows is scored window by
        window, each by such views; its own probabilities are the mean over its windows. The last window lasts half to
        one and a half of a window.

        Args:
            videos: a path, or several.
            window: the length of a window, s; None: `evaluation.window` of the config.

        Returns:
            A prediction for one path; a list in the same order for several.

        Raises:
            InputError: `videos` is neither, or `window` is too short.
            VideoError: a file cannot be read.
        """
        _require_window(window)
        if _is_path(videos):
            return self._predict(Path(videos), window)
        paths = list(videos) if isinstance(videos, Iterable) else [videos]
        if not all(map(_is_path, paths)):
            wrong = next(path for path in paths if not _is_path(path))
            raise InputError(f"videos: got {type(wrong).__name__}, expected a path (str or Path), or a list of paths")
        return [self._predict(Path(path), window) for path in paths]

    def predict_many(
        self, videos: Iterable[Path | str | Video], workers: int = 2, window: float | None = None
    ) -> Generator[Prediction | VideoError]:
        """Predict any number of videos, in their order and a few at a time: faster than `predict`, in bounded memory.

        Args:
            videos: paths, or `Video`s with `start` and `end` for segments of files. They are taken as they are needed.
            workers: how many threads decode ahead.
            window: the length of a window, s; None: `evaluation.window` of the config.

        Yields:
            The prediction of each video. A file that cannot be read gives a `VideoError`, which is not raised.

        Raises:
            InputError: an item is neither, there is no worker, or `window` is too short.

        Example:
            >>> for path, answer in zip(paths, recogniser.predict_many(paths)):  # doctest: +SKIP
            ...     print(path, answer if isinstance(answer, VideoError) else next(iter(answer.probabilities)))
        """
        _require_window(window)
        if not isinstance(workers, int) or workers < 1:
            raise InputError(f"workers: got {workers}, expected at least 1")
        if _is_path(videos) or not isinstance(videos, Iterable):
            raise InputError(f"videos: got {type(videos).__name__}, expected paths (str or Path) in a list or iterator")
        keep_freed_memory()
        return predictions(self.saved, self._scorer, map(_as_video, videos), workers, window)

    def _predict(self, path: Path, window: float | None) -> Prediction:
        parts, views_of_parts = read_parts(_as_video(path), self.config, window)
        return self._prediction(parts, views_of_parts)

    def predict_frames(self, frames: np.ndarray, fps: float) -> Prediction:
        """Score frames, such as a camera's, as `predict` scores a file.

        The frames of a file (`read_frames(path, range(n))`, at its rate) get the same answer as the file. There is one
        exception: frames larger than the model needs. A file's are reduced before they become RGB, so colours differ
        slightly, and probabilities by about 0.01. Of interlaced video, read the frames with the `deinterlace` of the
        model's `data.deinterlace`.

        Args:
            frames: uint8 (T, H, W, 3), RGB. OpenCV gives BGR: pass `frames[..., ::-1]`.
            fps: frames per second.

        Raises:
            InputError: frames of another type or layout, or no rate.
        """
        _require_frames(frames, fps)
        times, rate = np.arange(len(frames)) / fps, fps if len(frames) > 1 else None
        video = Video(path=Path("frames"), name="frames", labels=())
        parts = parts_of(times, rate, len(frames) / fps, video, self.config.evaluation.window)
        reader = FrameViews(parts.of(video), self.config, frames, times)
        return self._prediction(parts, map(reader.clip_frames, reader.videos))

    def features(self, path: Path | str) -> np.ndarray:
        """The features of a video file, for retrieval and clustering.

        They are the input of the last layer of the head that gives the answer. Where the answer is the mean of several
        heads, these features follow each other, in the order of the heads.

        Returns:
            float32 (C,), the mean over the views of the whole video, which `predict` scores.

        Raises:
            VideoError: the file cannot be read.
        """
        video = Video(path=Path(path), name=str(path), labels=())
        check(video.path)
        views = VideoViews([video], self.config).read(video)
        features = score_views(self.saved, views.clips, self.config.answer_heads).features
        return torch.cat([*features.values()]).numpy()

    @cached_property
    def _scorer(self) -> Scorer:
        return Scorer(self.saved)

    def _prediction(self, parts: Parts, views_of_parts: Iterable[ClipFrames]) -> Prediction:
        scores = [self._scorer.score([views])[0] for views in views_of_parts]
        return parts.prediction(scores, self.classes)


def _is_path(value: object) -> TypeGuard[str | os.PathLike[str]]:
    return isinstance(value, str | os.PathLike)


def _as_video(video: object) -> Video:
    if isinstance(video, Video):
        return video
    if not _is_path(video):
        raise InputError(f"videos: got {type(video).__name__}, expected a path (str or Path), or a Video")
    return Video(path=Path(video), name=os.fspath(video), labels=())


def _require_window(window: float | None) -> None:
    if window is not None and not (isinstance(window, Real) and LEAST_WINDOW <= window < math.inf):
        raise InputError(f"window: got {window}, expected at least {LEAST_WINDOW} s")


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
