"""The most confident mistakes of an evaluation, and a strip of frames of each.

`airstreams evaluate` writes the strips while it has the videos. So a report needs no video, and no path to one.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from matplotlib.image import imsave
from rich.console import Console

from airstreams.console import say
from airstreams.data.clips import frame_range
from airstreams.data.listing import Video
from airstreams.data.video import read_frames
from airstreams.errors import VideoError
from airstreams.files import csv_rows, replacing
from airstreams.runs.folder import EvaluationFolder

MISTAKES_LISTED = 15
STRIPS = 8
FRAMES_PER_STRIP = 5
STRIP_HEIGHT = 96  # px of the frames' shorter side


@dataclass(frozen=True)
class Mistake:
    """A video whose most probable class is none of its labels.

    labels: the true classes, joined by `;`; empty for a video without labels.
    probability: of the predicted class, in 0..1.
    """

    name: str
    labels: str
    predicted: str
    probability: float


def read_mistakes(folder: EvaluationFolder, multi_label: bool) -> list[Mistake]:
    """The mistakes in `scores.csv`, the most confident first. ValueError, OSError, csv.Error: it is damaged."""
    with folder.scores.open(encoding="utf-8", newline="") as file:
        header, *rows = (cells for _, cells in csv_rows(file))
    mistakes = []
    for name, labels, predicted, *probabilities in rows:
        right = predicted in labels.split(";") if multi_label else predicted == labels
        if len(probabilities) == len(header) - 3 and not right:  # a video that was left out has none
            probability = float(probabilities[header.index(predicted, 3) - 3])
            mistakes.append(Mistake(name, labels, predicted, probability))
    return sorted(mistakes, key=lambda mistake: (-mistake.probability, mistake.name))


def write_strips(
    folder: EvaluationFolder, mistakes: Sequence[Mistake], videos: Mapping[str, Video], console: Console
) -> None:
    """Write a JPEG of some frames of each of the first `STRIPS` mistakes. Strips of an earlier evaluation are deleted.

    videos: by name.
    console: prints the videos that cannot be read any more; they get no strip.
    """
    for path in folder.mistakes.glob("*.jpg"):
        path.unlink()
    for mistake in mistakes[:STRIPS]:
        video = videos[mistake.name]
        try:
            strip = frame_strip(video)
        except VideoError as error:
            say(console, f"No frames of the mistake {mistake.name} can be shown: {error.reason}")
            continue
        with replacing(strip_of(folder, mistake.name)) as temporary:
            temporary.write_bytes(strip)


def frame_strip(video: Video) -> bytes:
    """A JPEG of some frames of a video, side by side. VideoError: it cannot be read."""
    part = frame_range(video)
    indices = np.linspace(part.first, part.last, FRAMES_PER_STRIP).round().astype(int)
    frames_NHW3 = read_frames(video.path, indices, STRIP_HEIGHT, deinterlace="auto")
    file = io.BytesIO()
    imsave(file, np.concatenate(list(frames_NHW3), axis=1), format="jpg", pil_kwargs={"quality": 80})
    return file.getvalue()


def strip_of(folder: EvaluationFolder, name: str) -> Path:
    """The JPEG of a video's frames. The name is a hash, because a video's name may hold slashes."""
    return folder.mistakes / f"{sha256(name.encode()).hexdigest()[:16]}.jpg"
