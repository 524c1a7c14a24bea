"""Pictures of what trained models see: flow (the paper's Figure 3), segmentation (Figures 4 and 6), or all streams.

What a stream with a teacher predicts stands beside what the teacher says.

Each picture shows one video of each of the first classes, in the views that evaluation uses. The pictures for the
paper's figures are computed on the CPU.

Legend of shape suffixes: B views, T frames, H, W pixels, S segmentation classes, h, w the segmenter's grid.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from airstreams.config import Config
from airstreams.console import say
from airstreams.data.check import BadVideo
from airstreams.data.dataset import VideoViews, Views
from airstreams.data.label_maps import NO_LABEL, LabelStore
from airstreams.data.listing import Video
from airstreams.data.targets import ClassesPerPixel, Targets
from airstreams.errors import InputError, VideoError
from airstreams.models.airstreams import to_unit_range
from airstreams.models.segmenter import upsample
from airstreams.representations import Supervised
from airstreams.representations.flow import Flow
from airstreams.representations.semantic import Semantic
from airstreams.runs.saved_model import SavedModel
from airstreams.viewing.pictures import (
    RepresentationRow,
    SegmentedFrame,
    representations_picture,
    segmentations_picture,
)

FLOW_PARAMETERS = {"tau": "tau", "lambda": "lambda_", "theta": "theta"}
TEACHER = "teacher"
VIDEOS_SHOWN = 4  # of different classes


@dataclass(frozen=True)
class LearnedFlow:
    """What training changed in the flow layer, each with its value before and after.

    parameters: by name.
    mean_px: the mean length of the flow over all views of the videos shown, px per frame.
    videos: the names of those shown.
    """

    parameters: dict[str, tuple[float, float]]
    mean_px: tuple[float, float]
    videos: list[str]


def learned_flow_picture(
    path: Path, saved: SavedModel, videos: Sequence[Video], count: int, console: Console
) -> LearnedFlow:
    """Write a PNG of optical flow before and after training.

    Each video is shown by the frame with the largest motion before training, over all views, as little may move in the
    middle frame.

    Args:
        path: of the PNG.
        saved: the trained model.
        videos: to choose from.
        count: how many to show, of different classes.
        console: prints the videos that are left out.

    Raises:
        InputError: the model has no trainable flow.
        VideoError: no video can be read.
    """
    require_learned_flow(saved.config)
    trained = saved.model.representations["flow"]
    untrained = Flow(saved.config.model.flow, stop_gradient=False)
    rows, names, lengths = [], [], []
    for views in _one_per_class(videos, saved.config, {}, count, console):
        clips_B3THW = to_unit_range(views.clips.permute(0, 4, 1, 2, 3))
        with torch.inference_mode():
            before_BTHW2, after_BTHW2 = (
                flow(clips_B3THW).prediction.permute(0, 2, 3, 4, 1) for flow in (untrained, trained)
            )
        motion_BT = before_BTHW2.norm(dim=-1).mean(dim=(2, 3))
        view, frame = divmod(int(motion_BT.argmax()), motion_BT.shape[1])
        rows.append(
            RepresentationRow(
                title=_title(views.video),
                frame=views.clips[view, frame].numpy(),
                flow_before=before_BTHW2[view, frame].numpy(),
                flow=after_BTHW2[view, frame].numpy(),
            )
        )
        names.append(views.video.name)
        lengths.append([before_BTHW2.norm(dim=-1).mean(), after_BTHW2.norm(dim=-1).mean()])
    representations_picture(path, rows, {})
    parameters = {
        name: (getattr(untrained.layer, attribute).item(), getattr(trained.layer, attribute).item())
        for name, attribute in FLOW_PARAMETERS.items()
    }
    before, after = torch.tensor(lengths).mean(dim=0).tolist()
    return LearnedFlow(parameters, (before, after), names)


def streams_picture(
    path: Path, saved: SavedModel, videos: Sequence[Video], targets: Mapping[str, Targets], console: Console
) -> None:
    """Write a PNG of what a model's streams see: flow, predictions and their teachers' targets of one frame per video.

    The frame is the labelled one nearest to the middle or, without label maps, the one with the largest motion. A model
    without trainable flow and streams with a teacher, such as RGB alone, gets no PNG.

    Args:
        path: of the PNG.
        saved: the trained model.
        videos: to choose from.
        targets: the teachers' targets by stream, label maps with the segmenter's classes.
        console: prints the videos that are left out.

    Raises:
        VideoError: no video can be read.
    """
    model = saved.config.model
    flows = "flow" in model.streams and model.flow.kind == "tvl1"
    taught = {stream: part for stream, part in saved.model.representations.items() if isinstance(part, Supervised)}
    if not (flows or taught):
        return
    device = next(saved.model.parameters()).device
    rows, classes = list[RepresentationRow](), dict[str, Sequence[str]]()
    for views in _one_per_class(videos, saved.config, targets, VIDEOS_SHOWN, console):
        V, T = views.clips.shape[:2]
        with torch.inference_mode():
            representations = saved.model(views.clips.to(device).permute(0, 4, 1, 2, 3)).representations
        flow_BTHW2 = representations["flow"].prediction.permute(0, 2, 3, 4, 1).float().cpu() if flows else None
        if views.label_maps:
            view, frame = _labelled_frame(next(iter(views.label_maps.values())))
        elif flow_BTHW2 is not None:
            view, frame = divmod(int(flow_BTHW2.norm(dim=-1).mean(dim=(2, 3)).argmax()), T)
        else:
            view, frame = V // 2, T // 2
        panels: dict[str, np.ndarray] = {}
        for stream, part in taught.items():
            prediction = representations[stream].prediction
            if (names := _class_names(stream, part, prediction, targets, saved)) is not None:
                classes |= {stream: names, f"{stream}, {TEACHER}": names}
            panels |= _panels(stream, part, prediction, views, view, frame)
        rows.append(
            RepresentationRow(
                title=_title(views.video),
                frame=views.clips[view, frame].numpy(),
                flow=None if flow_BTHW2 is None else flow_BTHW2[view, frame].numpy(),
                panels=panels,
            )
        )
    if flows or any(row.panels for row in rows):
        representations_picture(path, rows, classes)


def _class_names(
    stream: str, part: Supervised, prediction: Tensor | None, targets: Mapping[str, Targets], saved: SavedModel
) -> Sequence[str] | None:
    """The names of the classes that a stream's prediction has for each pixel; None: it predicts no classes."""
    if not isinstance(part.target, ClassesPerPixel) or prediction is None or prediction.ndim != 5:
        return None
    if isinstance(part, Semantic):
        return saved.segment_classes
    count = prediction.shape[1]
    names = targets[stream].classes if stream in targets else None
    return names if names is not None and len(names) == count else [f"class {number}" for number in range(count)]


def _panels(
    stream: str, part: Supervised, prediction: Tensor | None, views: Views, view: int, frame: int
) -> dict[str, np.ndarray]:
    """What a stream predicts for one frame and what its teacher says: class ids or colours, by title."""
    found: dict[str, Tensor | None] = {}
    target, titles = views.targets.get(stream), (stream, f"{stream}, {TEACHER}")
    if prediction is not None and isinstance(part.target, ClassesPerPixel) and prediction.ndim == 5:
        logits_1Shw = prediction[view : view + 1, :, frame]
        found[titles[0]] = upsample(logits_1Shw, views.clips.shape[2:4]).argmax(dim=1)[0]
        found[titles[1]] = views.label_maps[stream][view, frame] if stream in views.label_maps else None
    else:
        values = (None if prediction is None else prediction[view], None if target is None else target[view])
        for title, value in zip(titles, values, strict=True):
            colours_THW3 = None if value is None else part.picture(value.float())
            found[title] = None if colours_THW3 is None else (colours_THW3[frame] * 255).clamp(0, 255).byte()
    return {title: panel.cpu().numpy() for title, panel in found.items() if panel is not None}


def require_learned_flow(config: Config) -> None:
    """InputError: the model has no trainable flow."""
    model = config.model
    if "flow" not in model.streams or model.flow.kind != "tvl1":
        given = f"flow of kind {model.flow.kind}" if "flow" in model.streams else f"streams {', '.join(model.streams)}"
        raise InputError(
            f"The model has no trainable flow ({given}). Change the recipe: model.streams with flow, and "
            "model.flow.kind tvl1."
        )


def segmenters_picture(
    path: Path,
    models: dict[str, SavedModel],
    stream: str,
    with_teacher: bool,
    targets: Targets,
    videos: Sequence[Video],
    count: int,
    console: Console,
) -> list[str]:
    """Write a PNG of what the segmenters of some models predict; return the names of the videos shown.

    The logits on the segmenter's grid are enlarged, and the largest one gives the class. Each video is shown by the
    labelled frame nearest to the middle.

    Args:
        path: of the PNG.
        models: row title to model, all with the same segmentation classes and the same views.
        stream: whose predictions to show.
        with_teacher: show the teacher's label maps too.
        targets: the teacher's label maps.
        videos: to choose from; those without label maps are skipped.
        count: how many to show, of different classes.
        console: prints the videos that are left out.

    Raises:
        InputError: no video has label maps.
        VideoError: no video can be read.
    """
    first = next(iter(models.values()))
    store = targets.store
    if isinstance(store, LabelStore) and store.classes != first.segment_classes:
        targets = replace(targets, store=store.with_classes(first.segment_classes))
    labelled = [video for video in videos if targets.has(video)]
    if not labelled:
        raise InputError(f"{store.root} has no label maps of the {len(videos)} test videos. Annotate these videos too.")
    frames, names = [], []
    for views in _one_per_class(labelled, first.config, {stream: targets}, count, console):
        maps_VTHW = views.label_maps[stream]
        view, frame = _labelled_frame(maps_VTHW)
        clip_THW3 = views.clips[view]
        maps = {title: _segmentation(saved, stream, clip_THW3, frame) for title, saved in models.items()}
        if with_teacher:
            maps[TEACHER] = maps_VTHW[view, frame].numpy()
        frames.append(SegmentedFrame(_title(views.video), clip_THW3[frame].numpy(), maps))
        names.append(views.video.name)
    segmentations_picture(path, frames, first.segment_classes)
    return names


def _one_per_class(
    videos: Sequence[Video], config: Config, targets: Mapping[str, Targets], count: int, console: Console
) -> Iterator[Views]:
    """Yield the views of the first readable video of each of the first `count` classes.

    VideoError: no video can be read.
    """
    views_of_videos = VideoViews(videos, config, targets)
    shown: set[tuple[str, ...]] = set()
    reason = ""
    for index, video in enumerate(videos):
        if len(shown) == count:
            break
        if video.labels in shown:
            continue
        views = views_of_videos[index]
        if isinstance(views, BadVideo):
            reason = f"{video.name}: {views.reason}"
            say(console, f"left out: {reason}")
            continue
        shown.add(video.labels)
        yield views
    if not shown:
        raise VideoError(f"none of {len(videos)} videos can be read; the last: {reason}")


def _title(video: Video) -> str:
    return ", ".join(video.labels) or video.name


def _labelled_frame(maps_VTHW: Tensor) -> tuple[int, int]:
    """The view and frame nearest to the middle, of those that the teacher labelled."""
    V, T = maps_VTHW.shape[:2]
    labelled = (maps_VTHW != NO_LABEL).flatten(2).any(dim=2).nonzero().numpy()
    if not len(labelled):
        return V // 2, T // 2
    distance = np.abs(labelled - [(V - 1) / 2, (T - 1) / 2])
    view, frame = labelled[np.lexsort((distance[:, 1], distance[:, 0]))[0]].tolist()
    return view, frame


def _segmentation(saved: SavedModel, stream: str, clip_THW3: Tensor, frame: int) -> np.ndarray:
    """The class ids (H, W) that the segmenter predicts for one frame of a clip."""
    clip_13THW = to_unit_range(clip_THW3[None, frame : frame + 1].permute(0, 4, 1, 2, 3))
    with torch.inference_mode():
        logits_1SThw = saved.model.representations[stream](clip_13THW).prediction
    ids: np.ndarray = upsample(logits_1SThw[:, :, 0], clip_THW3.shape[1:3]).argmax(dim=1)[0].numpy()
    return ids
