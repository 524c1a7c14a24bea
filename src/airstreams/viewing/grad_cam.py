"""Pictures of where and when a model looks in some videos: Grad-CAM over frames (`evaluation/grad_cam.py`).

`airstreams evaluate --audit` writes them while it has the videos. So a report needs no video, and no path to one.

Legend of shape suffixes: V views, T frames, H, W pixels, K classes; N frames that are shown.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from airstreams.console import Progress, say
from airstreams.data.dataset import VideoViews
from airstreams.data.listing import Video
from airstreams.data.video import probe
from airstreams.errors import VideoError
from airstreams.evaluation.grad_cam import GradCam, enlarged, grad_cam, unit_range
from airstreams.evaluation.scoring import score_views
from airstreams.files import replacing
from airstreams.inference.parts import parts_of
from airstreams.models.airstreams import answer_of
from airstreams.runs.folder import EvaluationFolder
from airstreams.runs.saved_model import SavedModel
from airstreams.viewing.colours import LINE_COLOURS, Bytes
from airstreams.viewing.mistakes import Answer, file_name
from airstreams.viewing.pictures import DPI, shortened

MISTAKES_SHOWN = 4
RIGHT_SHOWN = 4  # of different classes
FRAMES_SHOWN = 4
MOST_WINDOWS = 60
COLOURS = "inferno"  # perceptually uniform
MOST_OPAQUE = 0.8
WIDTH = 4.2  # inches; a report shows a picture in 390 px or more
LINE_HEIGHT = 0.19


@dataclass(frozen=True)
class Looked:
    """One clip and the maps of it.

    clip_THW3: uint8, as the model gets it.
    maps: float32 (T, H, W) in 0..1, in the size of the clip, by title.
    probability: of the class, in this clip or, for a window, over all its clips.
    strength: the mean of the main head's map, in logits.
    """

    clip_THW3: Bytes
    maps: dict[str, NDArray[np.float32]]
    probability: float
    strength: float


@dataclass(frozen=True)
class Window:
    """What the model sees in a part of a long video, from `start` to `end`, in s. See `Looked` for the rest."""

    start: float
    end: float
    probability: float
    strength: float


def shown_answers(mistakes: Sequence[Answer], right: Sequence[Answer]) -> list[Answer]:
    """The answers that get a picture: the most confident mistakes, and right answers of different classes.

    Both lists have the most confident answer first.
    """
    of_class: dict[str, Answer] = {}
    for answer in right:
        of_class.setdefault(answer.predicted, answer)
    return [*mistakes[:MISTAKES_SHOWN], *[*of_class.values()][:RIGHT_SHOWN]]


def picture_of(folder: EvaluationFolder, name: str) -> Path:
    """The JPEG of a video."""
    return folder.grad_cam / file_name(name)


def write_grad_cams(
    folder: EvaluationFolder,
    answers: Sequence[Answer],
    saved: SavedModel,
    videos: Mapping[str, Video],
    console: Console,
) -> None:
    """Write a JPEG for each answer. Those of an earlier evaluation are deleted.

    videos: by name.
    console: shows the progress, and the videos that cannot be read any more; they get no picture.
    """
    for path in folder.grad_cam.glob("*.jpg"):
        path.unlink()
    if not answers:
        return
    with Progress(console) as progress:
        for answer in progress.track(answers, len(answers), "drawing Grad-CAM"):
            try:
                looked, windows = _look(saved, videos[answer.name], answer)
            except VideoError as error:
                say(console, f"No Grad-CAM of {answer.name}: {error.reason}")
                continue
            with replacing(picture_of(folder, answer.name)) as temporary:
                draw(temporary, _title(answer), looked, windows)


def _title(answer: Answer) -> str:
    true = answer.labels.replace(";", ", ") or "none"
    return f"answer: {shortened(answer.predicted)} ({answer.probability:.0%}); true class: {shortened(true)}"


def _look(saved: SavedModel, video: Video, answer: Answer) -> tuple[Looked, list[Window]]:
    """The maps of the clip with the most probable answer, and the windows of a long video."""
    info = probe(video.path)
    start = video.start or 0.0
    end = info.duration if video.end is None else min(info.duration, video.end)
    length = max(saved.config.evaluation.window, (end - start) / MOST_WINDOWS)
    parts = parts_of(info.times, info.fps, info.duration, video, length)
    reader = VideoViews(parts.of(video), saved.config)
    found = [_look_at_clips(saved, reader.read(part).clips, answer) for part in reader.videos]
    windows = [
        Window(*times, looked.probability, looked.strength) for times, looked in zip(parts.windows, found, strict=False)
    ]
    return max(found, key=lambda looked: looked.probability), windows


def _look_at_clips(saved: SavedModel, clips_VTHW3: Tensor, answer: Answer) -> Looked:
    scored = score_views(saved, clips_VTHW3, saved.config.answer_heads)
    assert scored.logits_VK is not None
    label = saved.classes.index(answer.predicted)
    clip_1THW3 = clips_VTHW3[int(answer_of({"": scored.logits_VK}, saved.multi_label)[:, label].argmax())][None]
    maps, strength = _maps(saved, clip_1THW3, answer.predicted)
    true = [name for name in answer.labels.split(";") if name in saved.classes]
    if true and answer.predicted not in true:
        (main, map_THW), *rest = maps.items()
        of_true, _ = _maps(saved, clip_1THW3, true[0])
        maps = dict([(main, map_THW), next(iter(of_true.items())), *rest])
    probability = float(scored.probabilities[saved.config.answer][label])
    return Looked(clip_1THW3[0].numpy(), maps, probability, strength)


def _maps(saved: SavedModel, clip_1THW3: Tensor, label: str) -> tuple[dict[str, NDArray[np.float32]], float]:
    """The maps of a clip for a class, by title, that of the main head first, and the strength of that one."""
    device = next(saved.model.parameters()).device
    clip_13THW = clip_1THW3.to(device).permute(0, 4, 1, 2, 3)
    found: GradCam = grad_cam(saved.model, clip_13THW, [saved.classes.index(label)])
    level = max(saved.model.levels.values())
    titled = {f"{head} tower": map_1thw for head, map_1thw in reversed(found.heads.items())}
    titled |= {f"{stream} tower, block {level}": map_1thw for stream, map_1thw in found.streams.items()}
    size = clip_1THW3.shape[1:4]
    maps = {
        f"{title}, for {shortened(label, 30)}": enlarged(unit_range(map_1thw.cpu()), size)[0].numpy()
        for title, map_1thw in titled.items()
    }
    return maps, float(next(iter(titled.values())).mean())


def draw(path: Path, title: str, looked: Looked, windows: Sequence[Window]) -> None:
    """Write a JPEG: a row of frames, the same frames below each map, and a plot over time of a long video."""
    T, H, W = looked.clip_THW3.shape[:3]
    shown_N = ((np.arange(FRAMES_SHOWN) + 0.5) * T / FRAMES_SHOWN).astype(int)
    frames_NHW3 = looked.clip_THW3[shown_N] / 255
    rows = [("frames of the clip", frames_NHW3)]
    for name, map_THW in looked.maps.items():
        rows.append((name if map_THW.any() else f"{name}: nothing", overlaid(frames_NHW3, map_THW[shown_N])))
    title = "\n".join(textwrap.wrap(title, 58, max_lines=3, placeholder=" …"))
    top, bottom = LINE_HEIGHT * (1 + title.count("\n")) + 0.05, 1.5 if windows else 0.0
    row_height = WIDTH / FRAMES_SHOWN * H / W + LINE_HEIGHT
    height = top + len(rows) * row_height + bottom
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    figure.text(0.01, 1 - 0.03 / height, title, fontsize=9, va="top", weight="bold", parse_math=False)
    for number, (name, pictures_NHW3) in enumerate(rows):
        upper = height - top - number * row_height
        figure.text(0.01, (upper - 0.03) / height, name, fontsize=8, va="top", parse_math=False)
        ax = figure.add_axes((0, (upper - row_height) / height, 1, (row_height - LINE_HEIGHT) / height))
        ax.imshow(np.concatenate([*pictures_NHW3], axis=1), aspect="auto", interpolation="bilinear")
        ax.set_axis_off()
    if windows:
        _plot_windows(figure, windows, height)
    figure.savefig(path, format="jpg", dpi=1.4 * DPI, pil_kwargs={"quality": 82})


def overlaid(frames_NHW3: NDArray[np.floating], map_NHW: NDArray[np.floating]) -> NDArray[np.floating]:
    """The frames in grey, in 0..1, with the map in colours. It is the more opaque, the stronger the map is."""
    grey_NHW1 = frames_NHW3.mean(axis=3, keepdims=True)
    alpha_NHW1 = MOST_OPAQUE * np.sqrt(map_NHW)[..., None]
    over_NHW3: NDArray[np.floating] = alpha_NHW1 * colormaps[COLOURS](map_NHW)[..., :3] + (1 - alpha_NHW1) * grey_NHW1
    return over_NHW3


def _plot_windows(figure: Figure, windows: Sequence[Window], height: float) -> None:
    """The answer's probability in each window, and how strongly the map speaks for it."""
    ax = figure.add_axes((0.11, 0.4 / height, 0.86, 0.85 / height))
    edges = [*(window.start for window in windows), windows[-1].end]
    strongest = max(window.strength for window in windows) or 1
    ax.stairs(
        [window.strength / strongest for window in windows],
        edges,
        fill=True,
        color=colormaps[COLOURS](0.75),
        label="strength of the map (largest: 1)",
    )
    ax.stairs([window.probability for window in windows], edges, color=LINE_COLOURS[0], label="probability", lw=1.5)
    ax.set_ylim(0, 1.02)
    ax.set_xlim(edges[0], edges[-1])
    ax.set_xlabel("s", fontsize=8, labelpad=0)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=7, frameon=False, borderaxespad=0)
