"""A trained model that answers: video file in, classes and probabilities out. RGB is all it needs."""

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from airstreams.data.dataset import VideoViews
from airstreams.data.listing import Video
from airstreams.data.video import check
from airstreams.evaluation.protocols import score_views
from airstreams.models import saved as saved_models
from airstreams.models.saved import SavedModel


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
        device: `cpu`, `cuda`, ...; None: CUDA where there is a card.

    Raises:
        InputError: `run` holds no model.
    """

    def __init__(self, run: Path | str, device: str | None = None) -> None:
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
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
        duration = info.duration
        length = self.saved.config.evaluation.window
        parts, times = list[Video](), list[tuple[float, float]]()
        if duration > 2 * length:
            edges = [index * length for index in range(int(duration / length + 0.5))] + [duration]
            for start, end in pairwise(edges):
                if len(info.times[(info.times >= start) & (info.times < end)]):  # a still stretch may hold no frame
                    parts.append(replace(video, start=start, end=end))
                    times.append((start, end))
        answer = self.saved.config.model.answer
        reader = VideoViews([*parts, video], self.saved.config)
        scored = []
        for views in reader.in_one_pass() if parts else [reader.read(video)]:
            probabilities, _ = score_views(self.saved, views.clips, [answer])
            scored.append(self._named(probabilities[answer]))
        windows = [Window(*between, named) for between, named in zip(times, scored[:-1], strict=True)]
        return Prediction(scored[-1], windows)

    def _named(self, probabilities_K: Tensor) -> dict[str, float]:
        order = probabilities_K.argsort(descending=True).tolist()
        return {self.saved.classes[index]: float(probabilities_K[index]) for index in order}
