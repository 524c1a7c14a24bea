"""The answers of an evaluation, the most confident mistakes among them, and a strip of frames of each mistake.

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
class Answer:
    """The most probable class of a video. It is a mistake if it is none of the video's labels.

    labels: the true classes, joined by `;`; empty for a video without labels.
    probability: of the predicted class, in 0..1.
    """

    name: str
    labels: str
    predicted: str
    probability: float


def read_answers(folder: EvaluationFolder, multi_label: bool) -> tuple[list[Answer], list[Answer]]:
    """The mistakes and the right answers in `scores.csv`, each the most confident first.

    ValueError, OSError, csv.Error: the file is damaged.
    """
    with folder.scores.open(encoding="utf-8", newline="") as file:
        header, *rows = (cells for _, cells in csv_rows(file))
    mistakes, right = list[Answer](), list[Answer]()
    for name, labels, predicted, *probabilities in rows:
        if len(probabilities) == len(header) - 3:  # a video that was left out has none
            is_right = predicted in labels.split(";") if multi_label else predicted == labels
            probability = float(probabilities[header.index(predicted, 3) - 3])
            (right if is_right else mistakes).append(Answer(name, labels, predicted, probability))
    for answers in (mistakes, right):
        answers.sort(key=lambda answer: (-answer.probability, answer.name))
    return mistakes, right


def write_strips(
    folder: EvaluationFolder, mistakes: Sequence[Answer], videos: Mapping[str, Video], console: Console
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
    return folder.mistakes / file_name(name)


def file_name(name: str) -> str:
    """The name of a JPEG for a video."""
    return f"{sha256(name.encode()).hexdigest()[:16]}.jpg"
