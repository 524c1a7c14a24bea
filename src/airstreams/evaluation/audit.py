"""What an answer rests on: the metric of the same videos with one thing taken away (`counterfactuals.py`).

Legend of shape suffixes: N videos, K action classes, R draws.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import cast

import numpy as np
from rich.console import Console
from torch import Tensor

from airstreams.console import Progress, warn
from airstreams.data.dataset import Views
from airstreams.data.listing import Video
from airstreams.data.targets import Targets
from airstreams.distributed import SharedProgress, gather, is_main_process, share
from airstreams.errors import VideoError
from airstreams.evaluation.counterfactuals import COUNTERFACTUALS, Counterfactual, region_mask
from airstreams.evaluation.intervals import change_interval, difference_interval, draws
from airstreams.evaluation.metrics import outcomes_of, scored_mask
from airstreams.evaluation.results import Audit, BackgroundClass, CounterfactualMetrics, StreamsAudit
from airstreams.evaluation.scoring import Change, Scores, model_for_scoring, score_videos, targets_of
from airstreams.evaluation.streams import SubsetModel, measure_streams, too_few_or_many, video_rows
from airstreams.files import csv_rows, write_json, write_rows
from airstreams.models.airstreams import AIRStreams
from airstreams.runs.saved_model import SavedModel

BACKGROUND_CLASSES = 5  # that are named at most
_STREAMS = "streams"
_MAPS = "label maps"  # their key among the targets of `Views`


@dataclass(frozen=True)
class AuditTask:
    """What an audit needs beside the scores of the unchanged videos.

    maps: the label maps; None: there are none.
    group_of: the group of each video by its name.
    folder: keeps the scores of each counterfactual, so that the same call goes on where it stopped.
    identity: a text that differs where these scores would.
    workers: how many processes decode.
    """

    saved: SavedModel
    maps: Targets | None
    group_of: Mapping[str, str]
    folder: Path
    identity: str
    workers: int


def audit(task: AuditTask, scores: Scores, console: Console) -> Audit:
    """Score the videos again with each counterfactual. Under torchrun every process must call it.

    scores: of the unchanged videos.
    """
    possible, left_out = dict[str, Counterfactual](), dict[str, str]()
    for name, counterfactual in COUNTERFACTUALS.items():
        if reason := counterfactual.missing(None if task.maps is None else task.maps.classes):
            left_out[name] = reason
        else:
            possible[name] = counterfactual
    kept = _kept(task)
    found = dict[str, CounterfactualMetrics]()
    drops = dict[str, tuple[np.ndarray, np.ndarray]]()
    with Progress(console) as progress:
        videos_of = {name: _videos(task, scores.videos, made) for name, made in possible.items()}
        to_score = sum(len(share(videos)) for name, videos in videos_of.items() if name not in kept)
        scored = progress.add_task("auditing", to_score, shared=SharedProgress())
        for name, made in possible.items():
            if name not in kept:
                try:
                    after = score_videos(
                        task.saved,
                        videos_of[name],
                        workers=task.workers,
                        on_video=scored.advance,
                        remark=lambda text: warn(console, text),
                        change=_change(task, made),
                    )
                except VideoError as error:
                    left_out[name] = str(error)
                    continue
                kept[name] = _rows(task, after)
                _keep(task, name, kept[name])
            chosen, after_NK = _paired(scores, kept[name])
            if (measured := _measured(task, scores, chosen, after_NK)) is None:
                left_out[name] = "no video has a label"
                continue
            found[name] = measured
            if made.of_background:
                drops[name] = chosen, after_NK
        streams = None
        if reason := too_few_or_many(task.saved.config.model.streams):
            left_out[_STREAMS] = reason
        else:
            streams = _streams(task, scores.videos, progress, console)
    return Audit(found, left_out, background_classes(task, scores, drops), streams)


def _streams(task: AuditTask, videos: Sequence[Video], progress: Progress, console: Console) -> StreamsAudit | None:
    """What each stream adds, with the shares of each video as a file."""
    saved = task.saved
    model = SubsetModel(model_for_scoring(saved).eval(), saved.config.answer_heads, saved.temperature)
    scored = progress.add_task("auditing streams", len(share(videos)), shared=SharedProgress())
    scores = score_videos(
        replace(saved, model=cast(AIRStreams, model)),
        videos,
        workers=task.workers,
        on_video=scored.advance,
        remark=lambda text: warn(console, text),
        heads=list(model.subsets),
    )
    if is_main_process():
        write_rows(task.folder / f"{_STREAMS}.csv", *video_rows(saved, scores))
    return measure_streams(saved, scores, task.group_of)


def _videos(task: AuditTask, videos: Sequence[Video], made: Counterfactual) -> list[Video]:
    maps = task.maps
    return [video for video in videos if made.region is None or (maps is not None and maps.has(video))]


def _change(task: AuditTask, made: Counterfactual) -> Change:
    region, maps = made.region, task.maps
    if region is None or maps is None or maps.classes is None:
        return Change(lambda views: made.change(views.clips, None))
    classes = maps.classes

    def changed(views: Views) -> Tensor:
        if _MAPS not in views.label_maps:
            raise VideoError("it has no label maps")
        return made.change(views.clips, region_mask(views.label_maps[_MAPS], classes, region))

    return Change(changed, {_MAPS: maps})


def _kept(task: AuditTask) -> dict[str, dict[str, np.ndarray]]:
    """The finished scores (K,) by counterfactual and video. Those of another model, of other videos, are removed."""
    identity = task.folder / "identity.json"
    digest = sha256(task.identity.encode(errors="surrogateescape")).hexdigest()
    kept = dict[str, dict[str, np.ndarray]]()
    if is_main_process():
        before = None
        with suppress(OSError, ValueError):
            before = json.loads(identity.read_text(encoding="utf-8"))
        for name in COUNTERFACTUALS:
            path = _path(task, name)
            if before != digest:
                path.unlink(missing_ok=True)
            elif path.is_file():
                with suppress(OSError, ValueError, csv.Error):
                    kept[name] = _read(path)
        write_json(identity, digest)
    return gather([kept])[0]


def _path(task: AuditTask, name: str) -> Path:
    return task.folder / f"{name}.csv"


def _read(path: Path) -> dict[str, np.ndarray]:
    with path.open(encoding="utf-8", newline="") as file:
        _, *rows = [cells for _, cells in csv_rows(file, strict=True)]
    return {name: np.array(row, dtype=np.float32) for name, *row in rows}


def _rows(task: AuditTask, scores: Scores) -> dict[str, np.ndarray]:
    answer_NK = scores.probabilities[task.saved.config.answer]
    return {video.name: row for video, row in zip(scores.videos, answer_NK, strict=True)}


def _keep(task: AuditTask, name: str, answers: Mapping[str, np.ndarray]) -> None:
    if is_main_process():
        rows = ((video, *(f"{value:.9g}" for value in row)) for video, row in answers.items())
        write_rows(_path(task, name), ("name", *task.saved.classes), rows)


def _paired(scores: Scores, after: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The indices (N,) of the videos that were scored in both ways, and their scores (N, K) in the second one."""
    chosen = [index for index, video in enumerate(scores.videos) if video.name in after]
    return np.array(chosen), np.stack([after[scores.videos[index].name] for index in chosen])


def _measured(
    task: AuditTask, scores: Scores, chosen: np.ndarray, after_NK: np.ndarray
) -> CounterfactualMetrics | None:
    videos = [scores.videos[index] for index in chosen]
    targets = targets_of(task.saved, videos)
    counted = scored_mask(targets)
    if not counted.any():
        return None
    before_NK = scores.probabilities[task.saved.config.answer][chosen]
    before, after = (outcomes_of(values[counted], targets[counted]) for values in (before_NK, after_NK))
    ones = np.ones(int(counted.sum()), dtype=np.int64)
    metric = "map" if task.saved.multi_label else "top1"
    was, now = before.metrics(ones)[metric], after.metrics(ones)[metric]
    assert was is not None
    assert now is not None
    groups = [task.group_of[video.name] for video, counts in zip(videos, counted, strict=True) if counts]
    return CounterfactualMetrics(
        videos=len(videos),
        before=was,
        after=now,
        change=now - was,
        interval=change_interval(before, after, groups, metric),
        remains=now / was if was else None,
    )


def background_classes(
    task: AuditTask, scores: Scores, changed: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> list[BackgroundClass]:
    """The classes whose probability falls most without the background, in the videos that show them.

    A class is named only if the interval of its mean drop lies above 0. The intervals are so wide that all of them hold
    together with 95 % (Bonferroni), over classes and counterfactuals.

    changed: for each counterfactual the indices of its videos in `scores`, and its scores (N, K).
    """
    saved = task.saved
    tested = list[tuple[str, str, np.ndarray, list[str]]]()
    for name, (chosen, after_NK) in changed.items():
        drop_NK = scores.probabilities[saved.config.answer][chosen] - after_NK
        videos = [scores.videos[index] for index in chosen]
        for place, label in enumerate(saved.classes):
            shows_N = np.array([label in video.labels for video in videos])
            groups = [task.group_of[video.name] for video, shows in zip(videos, shows_N, strict=True) if shows]
            if groups:
                tested.append((label, name, drop_NK[shows_N, place].astype(float), groups))
    rows = dict[str, BackgroundClass]()
    for label, name, drop_N, groups in tested:
        drop = float(drop_N.mean())
        interval = _mean_interval(drop_N, groups, len(tested))
        if interval[0] > 0 and (label not in rows or drop > rows[label].drop):
            rows[label] = BackgroundClass(label, name, len(drop_N), drop, interval)
    return sorted(rows.values(), key=lambda row: -row.drop)[:BACKGROUND_CLASSES]


def _mean_interval(values_N: np.ndarray, group_of_N: Sequence[str], comparisons: int) -> list[float]:
    """The interval of a mean over videos, by a bootstrap over groups."""
    draws_RN = np.stack([*draws(group_of_N)])
    means_R = draws_RN @ values_N / draws_RN.sum(axis=1)
    return difference_interval(values_N.mean(keepdims=True), means_R[:, None], len(set(group_of_N)), comparisons)
