"""Score a split of a data set with a trained run; figures, scores and confusions are left in the run's folder."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from accelerate import PartialState
from rich.console import Console
from rich.progress import Progress

from airstreams.config import EvaluationConfig
from airstreams.data.check import check_together
from airstreams.data.clips import frame_rate_warning
from airstreams.data.label_maps import OTHER, LabelStore
from airstreams.data.listing import SPLITS, Source, Video, groups_of, overlapping, require_consistent
from airstreams.data.splits import with_splits
from airstreams.distributed import device_of_process, is_main_process
from airstreams.errors import InputError, VideoError
from airstreams.evaluation.intervals import intervals
from airstreams.evaluation.metrics import METRICS, confusion, outcomes_of, scored_mask
from airstreams.evaluation.published import deviations, published_for
from airstreams.evaluation.scoring import Scores, metrics_of, score_videos, targets_of
from airstreams.files import require_writable, write_json, write_rows
from airstreams.machine import cpus, keep_freed_memory
from airstreams.runs import saved_model as saved_models
from airstreams.runs.folder import EvaluationFolder, RunFolder
from airstreams.runs.saved_model import SavedModel


@dataclass
class Evaluation:
    """The figures of a split, and where its files lie.

    figures: what `figures.json` holds (docs/evaluation.md), in 0..1.
    folder: RUN/evaluation/SPLIT and its files.
    confusion: counts of true class by predicted class; None for multi-label data.
    saved: the model, on the device that scored.
    videos: those scored.
    label_store: the teacher's label maps by which its segmentation was scored; None: it was not.
    """

    figures: dict[str, Any]
    folder: EvaluationFolder
    confusion: list[list[int]] | None
    saved: SavedModel
    videos: list[Video]
    label_store: LabelStore | None


def evaluate(run: Path, source: Source, split: str, console: Console) -> Evaluation:
    """Score `split` of a source, and leave figures, scores and confusions in the run's folder.

    Data without splits of its own takes those that training drew; videos that training never saw are test videos.

    Raises:
        InputError: no run, no such split, a source at odds with itself, class names that the model does not know, or a
            folder that cannot be written.
        VideoError: no video can be read.
    """
    keep_freed_memory()
    device = device_of_process()
    if not is_main_process():
        console = Console(quiet=True)
    saved = saved_models.load(run, device)
    require_consistent(source)
    for remark in source.remarks:
        console.print(remark, soft_wrap=True)
    unknown = sorted(set(source.classes) - set(saved.classes))
    if unknown:
        given, expected = (", ".join(names[:5]) + " ..." * (len(names) > 5) for names in (unknown, saved.classes))
        raise InputError(f"{source.name}: classes that {run} does not know: {given}; expected some of {expected}")
    if source.multi_label and not saved.multi_label:
        raise InputError(f"{source.name}: several labels a video, but {run} was trained on one each; give such data")
    # A model copied without its list can still score data that brings splits of its own.
    run_folder = RunFolder(run)
    listed = run_folder.splits.is_file()
    if not (listed or source.has_splits):
        raise InputError(
            f"{run}: no {run_folder.splits.name} in it, which says what the model was trained on; copy it with the "
            "model, or give data with splits of its own"
        )
    drawn = run_folder.read_splits() if listed else {}
    splits_of_its_own = source.has_splits
    source = _with_drawn_splits(source, drawn, console)
    wanted = source.split(split)
    trained_on = len(overlapping([video.name for video in wanted], run_folder.trained_on()))
    if trained_on and split != "train":
        console.print(
            f"beware: {trained_on} of these {len(wanted)} videos were trained on, by their names, so the figures "
            "flatter",
            soft_wrap=True,
        )
    elif not (splits_of_its_own and any(video.name in drawn for video in source.videos)):
        _warn_of_other_names(wanted, drawn, console)
    label_store = source.label_store if "semantic" in saved.config.model.streams else None
    grouped = {OTHER} if saved.config.data.segment_classes else set()
    if label_store is not None and not set(saved.segment_classes) <= {*label_store.classes, *grouped}:
        console.print(f"segmentation not scored: {label_store.teacher}'s classes are not those of the run's teacher")
        label_store = None
    elif label_store is not None and label_store.classes != saved.segment_classes:
        rest = OTHER if OTHER in set(saved.segment_classes) - set(label_store.classes) else label_store.classes[0]
        console.print(f"segmentation: what the run's segmenter has no class for is scored as {rest}")
        label_store = label_store.with_classes(saved.segment_classes)
    folder = run_folder.evaluation(split)
    require_writable(folder.path)
    _say_what_is_replaced(folder, source, console)
    with Progress(console=console) as progress:
        good, bad, rates = check_together(wanted, progress)
        if not good:
            raise VideoError(
                f"none of {len(wanted)} videos can be read; the first, {bad[0].video.name}: {bad[0].reason}"
            )
        task = progress.add_task("scoring", total=len(good))
        scores = score_videos(
            saved,
            good,
            label_store,
            min(saved.config.data.workers, cpus()),  # which another machine may have had more of
            on_video=lambda: progress.advance(task, PartialState().num_processes),  # the others are about as far
        )
    scores.left_out += bad
    if scores.left_out:
        first = scores.left_out[0]
        console.print(
            f"{len(scores.left_out)} of {len(wanted)} videos left out; such as {first.video.name}: {first.reason}"
        )
    known = [rates[video.path] for video in good if video.path in rates]
    if said := frame_rate_warning(known, saved.frame_rate, saved.config.clip):
        console.print(said, soft_wrap=True)
    figures = {"data": source.name, "split": split, "trained_on": trained_on, **metrics_of(saved, scores)}
    figures["protocol"] = _protocol(source, split, saved.config.evaluation, len(scores.left_out))
    _add_intervals(figures, saved, scores, groups_of(wanted))
    figures["per_class"] = _per_class(saved, scores)
    return _write(folder, saved, scores, figures, label_store)


def _say_what_is_replaced(folder: EvaluationFolder, source: Source, console: Console) -> None:
    with suppress(OSError, ValueError, KeyError):  # there are none, or they are damaged
        before = json.loads(folder.metrics.read_text(encoding="utf-8"))["data"]
        if before != source.name:
            console.print(f"{folder.path}: its figures of {before} will be replaced", soft_wrap=True)


def _with_drawn_splits(source: Source, drawn: Mapping[str, str], console: Console) -> Source:
    """A source without splits takes the run's."""
    if source.has_splits:
        return source
    known = Counter(drawn[video.name] for video in source.videos if video.name in drawn)
    if known:
        shares = ", ".join(f"{known[split]} {split}" for split in SPLITS if known[split])
        console.print(f"{known.total()} of {len(source.videos)} videos go by the names of the run's own: {shares}")
    new = [video for video in source.videos if video.name not in drawn]
    if new:
        console.print(f"{len(new)} of {len(source.videos)} videos are new to the run: they count as test videos")
    return with_splits(source, {video.name: drawn.get(video.name, "test") for video in source.videos})


def _warn_of_other_names(wanted: Sequence[Video], drawn: Mapping[str, str], console: Console) -> None:
    """Say what looks as if the run had learnt from it under another name, as where data come in another form."""
    learnt = {_ending(name): name for name, use in drawn.items() if use == "train"}
    alike = [video for video in wanted if video.name not in drawn and _ending(video.name) in learnt]
    if alike:
        once = learnt[_ending(alike[0].name)]
        console.print(
            f"beware: {len(alike)} of these {len(wanted)} videos look like some that were trained on under other names "
            f"({alike[0].name} for {once}); if they are, the figures flatter: give DATA in the form in which training "
            "had it",
            soft_wrap=True,
        )


def _ending(name: str) -> tuple[str, ...]:
    """By which a video is recognised in another folder, or after it was encoded anew."""
    file, _, part = name.partition("#t=")
    path = PurePosixPath(file)
    return path.parent.name, path.stem, part


def _protocol(source: Source, split: str, evaluation: EvaluationConfig, left_out: int) -> dict[str, Any]:
    """By which views the figures are, and, for a published data set, what is reported on it."""
    protocol: dict[str, Any] = {"views": evaluation.views, "crops": evaluation.crops, "published": None}
    if found := published_for(source):
        name, published = found
        deviates = deviations(published, source, split, evaluation, left_out)
        protocol["published"] = {"name": name, **published._asdict(), "deviations": deviates}
    return protocol


def _add_intervals(figures: dict[str, Any], saved: SavedModel, scores: Scores, group_of: Mapping[str, str]) -> None:
    targets = targets_of(saved, scores.videos)
    counted = scored_mask(targets)
    groups = [group_of[video.name] for video, counts in zip(scores.videos, counted, strict=True) if counts]
    figures["groups"] = len(set(groups))
    by_head = {
        head: intervals(outcomes_of(values[counted], targets[counted]), groups) if groups else dict.fromkeys(METRICS)
        for head, values in scores.probabilities.items()
    }
    figures["intervals"] = by_head[saved.config.model.answer]
    for head, row in figures["streams"].items():
        figures["streams"][head] = row | {"intervals": by_head.get(head, dict.fromkeys(METRICS))}


def _per_class(saved: SavedModel, scores: Scores) -> dict[str, dict[str, float]]:
    """The figure of each class that occurs: its accuracy, or with several labels a video its average precision."""
    outcomes = outcomes_of(scores.probabilities[saved.config.model.answer], targets_of(saved, scores.videos))
    videos_K, figure_K = outcomes.by_class(np.ones(len(scores.videos), dtype=np.int64))
    key = "average_precision" if saved.multi_label else "accuracy"
    of_class = zip(saved.classes, videos_K.tolist(), figure_K.tolist(), strict=True)
    return {name: {"videos": int(videos), key: figure} for name, videos, figure in of_class if videos}


def _write(
    folder: EvaluationFolder, saved: SavedModel, scores: Scores, figures: dict[str, Any], label_store: LabelStore | None
) -> Evaluation:
    answer = scores.probabilities[saved.config.model.answer]
    counts = None
    if not saved.multi_label:
        counts = confusion(answer, targets_of(saved, scores.videos)).tolist()
    evaluation = Evaluation(figures, folder, counts, saved, scores.videos, label_store)
    if not is_main_process():
        return evaluation
    folder.metrics.unlink(missing_ok=True)  # or it could stand beside other figures' scores
    if counts is not None:
        write_json(folder.confusion, {"classes": list(saved.classes), "counts": counts}, indent=None)
    scored = (
        (video.name, ";".join(video.labels), saved.classes[int(row.argmax())], *(f"{value:.9g}" for value in row))
        for video, row in zip(scores.videos, answer, strict=True)
    )
    left_out = ((bad.video.name, ";".join(bad.video.labels), f"left out: {bad.reason}") for bad in scores.left_out)
    write_rows(folder.scores, ("name", "label", "predicted", *saved.classes), chain(scored, left_out))
    write_json(folder.metrics, figures)  # last: where it is, the others are
    return evaluation
