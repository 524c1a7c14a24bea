"""Score a split of a data set with a trained run. The metrics, scores and confusion counts go into the run's folder."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath

import numpy as np
from rich.console import Console

from airstreams.config import SUPERVISED, EvaluationConfig
from airstreams.console import Progress, say, warn
from airstreams.data.check import check_distributed
from airstreams.data.clips import frame_rate_warning
from airstreams.data.content import with_contents
from airstreams.data.grouping import with_groups
from airstreams.data.label_maps import OTHER, LabelStore
from airstreams.data.listing import SPLITS, Source, Video, groups_of, require_consistent
from airstreams.data.splits import with_splits
from airstreams.data.targets import Targets
from airstreams.distributed import SharedProgress, device_of_process, is_main_process, share
from airstreams.errors import InputError, VideoError
from airstreams.evaluation.audit import AuditTask, audit
from airstreams.evaluation.calibration import Calibration, calibration_of, effect_of_temperature
from airstreams.evaluation.intervals import Intervals, intervals
from airstreams.evaluation.metrics import (
    METRICS,
    action_metrics,
    chance_metrics,
    confusion,
    constant_answer_metrics,
    outcomes_of,
    scored_mask,
)
from airstreams.evaluation.published import deviations, published_for
from airstreams.evaluation.results import (
    Baselines,
    ClassMetrics,
    Comparison,
    EvaluationMetrics,
    HeadMetrics,
    MostFrequentClass,
    NewVideosMetrics,
    ScoringProtocol,
    read_metrics,
    write_metrics,
)
from airstreams.evaluation.scoring import Scores, metrics_of, score_videos, targets_of
from airstreams.files import require_writable, write_json, write_rows
from airstreams.machine import cpus, keep_freed_memory
from airstreams.plural import count_of
from airstreams.representations.teaching import follow_targets, open_targets
from airstreams.runs import saved_model as saved_models
from airstreams.runs.folder import EvaluationFolder, RunFolder
from airstreams.runs.known_videos import KnownVideos, checksum
from airstreams.runs.saved_model import SavedModel


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found out about a split.

    metrics: in 0..1, as in `figures.json`.
    folder: RUN/evaluation/SPLIT and its files.
    confusion: counts of true class by predicted class; None for multi-label data.
    saved: the model, on the device that scored.
    videos: those that were scored.
    targets: the teachers' targets that predictions were compared with, by stream.
    """

    metrics: EvaluationMetrics
    folder: EvaluationFolder
    confusion: list[list[int]] | None
    saved: SavedModel
    videos: list[Video]
    targets: Mapping[str, Targets]


@dataclass(frozen=True)
class _Task:
    """A call of `evaluate` that was checked.

    source: with splits.
    videos: those of the split.
    trained_on: the names of those that the model was trained on.
    chose_epoch: the names of validation videos of the training.
    similar_names: how many of the others look like training videos, by their names only.
    training_labels: those of the training videos, as far as they are known.
    targets: the teachers' targets by stream, label maps with the segmenter's classes.
    """

    saved: SavedModel
    source: Source
    split: str
    videos: Sequence[Video]
    trained_on: set[str]
    chose_epoch: set[str]
    similar_names: int
    training_labels: Sequence[str]
    targets: Mapping[str, Targets]
    folder: EvaluationFolder


def evaluate(
    run: Path,
    source: Source,
    split: str,
    console: Console,
    device: str = "auto",
    trust: Collection[str] = (),
    precision: str | None = None,
    with_audit: bool = False,
    calibrated: bool = False,
) -> Evaluation:
    """Score `split` of a source, and write metrics, scores and confusion counts into the run's folder.

    Data without splits gets the run's own split; videos that are new to the run are test videos. The run finds its
    videos by their content, under any name. The results of its own split go into `evaluation/SPLIT`, those of any
    other videos into a folder named after the data.

    trust: names of modules that may be imported for custom streams.
    with_audit: also score counterfactual videos (`audit.py`).
    calibrated: divide the answer's logits by the temperature that training fitted.

    Raises:
        InputError: no run, no such split, an inconsistent source, classes that the model does not know, a folder that
            cannot be written, or no temperature.
        VideoError: no video can be read.
    """
    keep_freed_memory()
    on_device = device_of_process(device)
    if not is_main_process():
        console = Console(quiet=True)
    saved = saved_models.load(run, on_device, trust, precision, calibrated)
    task = _check(saved, run, source, split, console)
    scores = _score(task, console)
    metrics = _summary(task, scores)
    if with_audit:
        metrics = replace(metrics, audit=audit(_audit_task(task, run, source, console), scores, console))
    return _write(task, scores, metrics)


def _check(saved: SavedModel, run: Path, source: Source, split: str, console: Console) -> _Task:
    """Refuse a call that cannot work, before any video is opened."""
    require_consistent(source)
    if source.unlabelled:
        say(console, f"{count_of(len(source.unlabelled), 'unlabelled video')} not scored")
        source = replace(source, unlabelled=())
    for warning in source.warnings:
        warn(console, warning)
    _check_classes(run, source, saved)
    run_folder = RunFolder(run)
    # A model that was copied without its list of videos can still score data with splits of its own.
    has_list = run_folder.splits.is_file()
    if not (has_list or source.has_splits):
        raise InputError(
            f"{run} has no {run_folder.splits.name}, which lists the videos it was trained on. Copy that file with the "
            "model, or give data with splits of its own."
        )
    known = KnownVideos(run_folder.read_videos() if has_list else [])
    learned = KnownVideos(run_folder.trained_on())
    if known.have_contents or learned.have_contents:
        source = with_contents(source, console, split if source.has_splits else None)
    given, source = source, _with_splits_of_the_run(source, known, console)
    videos = source.split(split)
    trained_on, chose_epoch, similar = set[str](), set[str](), dict[str, str]()
    if split != "train":
        trained_on = {video.name for video in learned.overlapping(videos)}
        similar = _renamed_training_videos(given, videos, known, trained_on)
    if split == "test":
        validation = KnownVideos(video for video in known if video.split == "val")
        chose_epoch = {video.name for video in validation.overlapping(videos)} - trained_on
    _warn_of_trained_videos(videos, trained_on, similar, console)
    if source.grouped_by is None:
        scored = with_groups(replace(source, videos=tuple(videos)), saved.config.data.group_by, console, strict=False)
        videos = scored.videos
    to_score, targets = _targets_to_score(saved, replace(source, videos=tuple(videos), unlabelled=()), console)
    videos = to_score.videos
    _warn_of_other_labels(videos, known, console)
    is_own_split = known.are_split(videos, split)
    folder = run_folder.evaluation(split, None if is_own_split else source.name)
    require_writable(folder.path)
    if not is_own_split:
        say(console, f"These videos are not the run's own {split} split. Their metrics go to {folder.path}")
    videos_sum = checksum(videos)
    _announce_replacement(folder, source, videos_sum, console)
    training_labels = _training_labels(run_folder, source, known)
    return _Task(saved, source, split, videos, trained_on, chose_epoch, len(similar), training_labels, targets, folder)


def _check_classes(run: Path, source: Source, saved: SavedModel) -> None:
    unknown = sorted(set(source.classes) - set(saved.classes))
    if unknown:
        given, expected = (", ".join(names[:5]) + " ..." * (len(names) > 5) for names in (unknown, saved.classes))
        raise InputError(
            f"{source.name}: {run} does not know the classes {given}. Give data whose classes are among {expected}."
        )
    if source.multi_label and not saved.multi_label:
        raise InputError(
            f"{source.name}: videos have several labels, but {run} was trained on one label per video. Give data with "
            "one label per video."
        )


def _with_splits_of_the_run(source: Source, known: KnownVideos, console: Console) -> Source:
    """A source without splits gets those that the run was trained with."""
    if source.has_splits:
        return source
    splits = known.splits_of(source.videos)
    if splits:
        counted = Counter(splits.values())
        counts = ", ".join(f"{counted[split]} {split}" for split in SPLITS if counted[split])
        say(console, f"{len(splits)} of {len(source.videos)} videos get the run's own split: {counts}")
    if new := len(source.videos) - len(splits):
        say(console, f"{new} of {len(source.videos)} videos are new to the run and count as test videos")
    return with_splits(source, {video.name: splits.get(video.name, "test") for video in source.videos})


def _warn_of_trained_videos(
    videos: Sequence[Video], trained_on: Collection[str], similar: Mapping[str, str], console: Console
) -> None:
    if trained_on:
        warn(
            console,
            f"the run was trained on {len(trained_on)} of these {len(videos)} videos, so its metrics are too high. "
            "Score videos that it has not seen.",
        )
    for name, example in [*similar.items()][:1]:
        warn(
            console,
            f"{len(similar)} of these {len(videos)} videos look like training videos by their names ({name} for "
            f"{example}). If they are, for example after a conversion, the metrics are too high: give DATA in the form "
            "that training had.",
        )


def _warn_of_other_labels(videos: Sequence[Video], known: KnownVideos, console: Console) -> None:
    """Warn of videos whose labels are not those that the run has for them."""
    if relabelled := known.relabelled(videos):
        video, label = relabelled[0]
        warn(
            console,
            f"{len(relabelled)} of these {len(videos)} videos have other labels than in the run's data, such as "
            f"{video.name}: {';'.join(video.labels) or 'none'}, and {label} there. Correct the labels that are wrong.",
        )


def _renamed_training_videos(
    source: Source, videos: Sequence[Video], known: KnownVideos, trained_on: Collection[str]
) -> dict[str, str]:
    """Videos that look like training videos by their names only, for example after a conversion: to the other name."""
    own = known.splits_of(videos)
    of_training = known.names("train")
    short = {_short_name(name): name for name in of_training}
    if source.has_splits and own:  # DATA names its videos as training did, so only equal names are suspicious
        short = {}
    similar = {
        video.name: video.name if video.name in of_training else short.get(_short_name(video.name))
        for video in videos
        if video.name not in own and video.name not in trained_on
    }
    return {name: other for name, other in similar.items() if other is not None}


def _short_name(name: str) -> tuple[str, ...]:
    """What of a video's name stays the same in another folder or after a conversion: last folder, stem and segment."""
    file, _, segment = name.partition("#t=")
    path = PurePosixPath(file)
    return path.parent.name, path.stem, segment


def _training_labels(folder: RunFolder, source: Source, known: KnownVideos) -> Sequence[str]:
    """The labels of the training videos, from the run or, for a run of versions up to 0.2, from the same data."""
    if labels := folder.training_labels():
        return labels
    splits = known.splits_of(source.videos)
    return [";".join(video.labels) for video in source.videos if splits.get(video.name) == "train"]


def _targets_to_score(saved: SavedModel, source: Source, console: Console) -> tuple[Source, dict[str, Targets]]:
    """The source with the videos' keys in the stores of targets, and the targets of the model's streams by stream."""
    config = saved.config
    if unknown := ", ".join(stream for stream in source.targets if stream not in config.model.streams):
        raise InputError(f"--targets {unknown}: the run has the streams {', '.join(config.model.streams)}. Name these.")
    source = replace(source, label_store=_label_store_to_score(saved, source, console))
    streams = [stream for stream in config.model.streams if stream in source.target_folders]
    source = follow_targets(source, config, console, streams)
    return source, open_targets(source, config, streams)


def _label_store_to_score(saved: SavedModel, source: Source, console: Console) -> LabelStore | None:
    """The source's label maps with the segmenter's classes; None where the segmentation cannot be scored."""
    store = source.label_store if saved.config.model.has_segmenter else None
    if store is None or store.classes == saved.segment_classes:
        return store
    grouped = {OTHER} if saved.config.data.segment_classes else set()
    if not set(saved.segment_classes) <= {*store.classes, *grouped}:
        say(
            console,
            f"The segmentation is not scored: the classes of {store.teacher} are not those of the run's teacher. "
            "Give --labels with maps of the same teacher.",
        )
        return None
    rest = OTHER if OTHER in set(saved.segment_classes) - set(store.classes) else store.classes[0]
    say(console, f"Segmentation: classes that the run's segmenter does not have are scored as {rest}.")
    return store.with_classes(saved.segment_classes)


def _announce_replacement(folder: EvaluationFolder, source: Source, videos_sum: str, console: Console) -> None:
    with suppress(InputError):  # the folder is new, or its file is damaged
        before = read_metrics(folder.metrics)
        same = before.are_of(source) if before.videos_sum is None else before.videos_sum == videos_sum
        if not same:
            say(console, f"{folder.path}: the metrics of {before.data} will be replaced.")


def _score(task: _Task, console: Console) -> Scores:
    """Score every readable video of the split."""
    saved, videos = task.saved, task.videos
    with Progress(console=console) as progress:
        checked = check_distributed(videos, progress)
        good, bad, rates = checked.good, checked.bad, checked.rates
        if not good:
            raise VideoError(
                f"none of {len(videos)} videos can be read; the first, {bad[0].video.name}: {bad[0].reason}"
            )
        scored = progress.add_task("scoring", len(share(good)), shared=SharedProgress())
        scores = score_videos(
            saved,
            good,
            task.targets,
            workers=min(saved.config.data.workers, cpus()),  # this machine may have fewer than the one that trained
            on_video=scored.advance,
            remark=partial(warn, console),
        )
    scores.left_out += bad
    if scores.left_out:
        first = scores.left_out[0]
        say(
            console,
            f"{len(scores.left_out)} of {len(videos)} videos left out, for example {first.video.name}: {first.reason}",
        )
    known_rates = [rates[video.path] for video in good if video.path in rates]
    if warning := frame_rate_warning(known_rates, saved.frame_rate, saved.config.clip):
        warn(console, warning)
    return scores


def _audit_task(task: _Task, run: Path, given: Source, console: Console) -> AuditTask:
    """What an audit needs. Its label maps are those of `given`, with the teacher's own classes."""
    saved, maps = task.saved, None
    if given.label_store is not None:
        source = replace(given, videos=tuple(task.videos), unlabelled=())
        source = follow_targets(source, saved.config, console, SUPERVISED)
        maps = open_targets(source, saved.config, SUPERVISED)[SUPERVISED[0]]
        maps = replace(maps, keys={video.name: maps.key_of(video) for video in source.videos})
    parts = [
        saved_models.identity_of(run),
        repr((saved.precision, saved.temperature)),
        checksum(task.videos),
        *(video.name for video in task.videos),
        "" if maps is None else f"{maps.store.root.resolve()} {maps.store.identity}",
    ]
    workers = min(saved.config.data.workers, cpus())
    return AuditTask(saved, maps, groups_of(task.videos), task.folder.audit, "\n".join(parts), workers)


def _summary(task: _Task, scores: Scores) -> EvaluationMetrics:
    """All metrics of the scored videos, with intervals."""
    saved = task.saved
    measured = metrics_of(saved, scores)
    targets = targets_of(saved, scores.videos)
    counted = scored_mask(targets)
    group_of = groups_of(task.videos)
    groups = np.array([group_of[video.name] for video in scores.videos])
    not_known = dict.fromkeys(METRICS)
    intervals_of = {head: _intervals(values, targets, groups, counted) for head, values in scores.probabilities.items()}
    streams = {
        head: HeadMetrics(**vars(row), intervals=intervals_of.get(head, not_known))
        for head, row in measured.streams.items()
    }
    return EvaluationMetrics(
        **vars(measured) | {"streams": streams},
        data=task.source.short_name,
        data_sum=task.source.name_sum,
        videos_sum=checksum(task.videos),
        split=task.split,
        trained_on=sum(video.name in task.trained_on for video in scores.videos),
        similar_names=task.similar_names,
        new_only=_new_only(task, scores, targets, groups),
        chose_epoch=sum(video.name in task.chose_epoch for video in scores.videos),
        protocol=_protocol(task.source, task.split, saved.config.evaluation, len(scores.left_out)),
        groups=len(set(groups[counted])),
        intervals=intervals_of[saved.config.answer],
        per_class=_per_class(saved, scores),
        baselines=_baselines(task, targets),
        precision=saved.precision,
        calibration=None if saved.multi_label else _calibration(task, scores, targets, groups.tolist()),
    )


def _calibration(task: _Task, scores: Scores, targets_N: np.ndarray, groups: Sequence[str]) -> Calibration:
    """The answer's calibration, with what the fitted temperature does to it."""
    saved, kept = task.saved, task.saved.kept
    found = calibration_of(scores.probabilities[saved.config.answer], targets_N, groups)
    fitted = None
    if kept is not None and kept.temperature is not None and task.split != "val":  # it was fitted on validation videos
        fitted = effect_of_temperature(kept.temperature, kept.videos, scores.logits_NVK, targets_N, groups)
    return replace(found, temperature=saved.temperature, fitted=fitted)


def _baselines(task: _Task, targets: np.ndarray) -> Baselines:
    classes = task.saved.classes
    chance = chance_metrics(len(classes), targets)
    counts = Counter(task.training_labels)
    frequent = max(classes, key=lambda name: counts[name])  # of equally frequent classes the first
    if task.saved.multi_label or not counts[frequent]:
        return Baselines(chance)
    always = constant_answer_metrics(classes.index(frequent), targets)
    return Baselines(chance, MostFrequentClass(**vars(always), label=frequent))


def _intervals(values: np.ndarray, targets: np.ndarray, groups: np.ndarray, chosen: np.ndarray) -> Intervals:
    """The 95 % intervals of the metrics over the chosen videos (N,)."""
    if not chosen.any():
        return dict.fromkeys(METRICS)
    return intervals(outcomes_of(values[chosen], targets[chosen]), groups[chosen].tolist())


def _new_only(task: _Task, scores: Scores, targets: np.ndarray, groups: np.ndarray) -> NewVideosMetrics | None:
    """The metrics over the scored videos that training did not use at all; None where these are all or none."""
    seen = task.trained_on | task.chose_epoch
    new = np.array([video.name not in seen for video in scores.videos])
    if new.all() or not new.any():
        return None
    answer_NK = scores.probabilities[task.saved.config.answer]
    return NewVideosMetrics(
        **vars(action_metrics(answer_NK[new], targets[new])),
        videos=int(new.sum()),
        intervals=_intervals(answer_NK, targets, groups, new & scored_mask(targets)),
    )


def _protocol(source: Source, split: str, evaluation: EvaluationConfig, left_out: int) -> ScoringProtocol:
    comparison = None
    if found := published_for(source):
        name, published = found
        comparison = Comparison(name, published, deviations(published, source, split, evaluation, left_out))
    return ScoringProtocol(evaluation.views, evaluation.crops, comparison)


def _per_class(saved: SavedModel, scores: Scores) -> dict[str, ClassMetrics]:
    """The metric of each class that occurs."""
    outcomes = outcomes_of(scores.probabilities[saved.config.answer], targets_of(saved, scores.videos))
    videos_K, values_K = outcomes.by_class(np.ones(len(scores.videos), dtype=np.int64))
    key = "average_precision" if saved.multi_label else "accuracy"
    rows = zip(saved.classes, videos_K.tolist(), values_K.tolist(), strict=True)
    return {name: ClassMetrics(int(videos), **{key: value}) for name, videos, value in rows if videos}


def _write(task: _Task, scores: Scores, metrics: EvaluationMetrics) -> Evaluation:
    saved, folder = task.saved, task.folder
    answer_NK = scores.probabilities[saved.config.answer]
    counts = None
    if not saved.multi_label:
        counts = confusion(answer_NK, targets_of(saved, scores.videos)).tolist()
    evaluation = Evaluation(metrics, folder, counts, saved, scores.videos, task.targets)
    if not is_main_process():
        return evaluation
    folder.metrics.unlink(missing_ok=True)  # else a crash could leave old metrics beside new scores
    if counts is not None:
        write_json(folder.confusion, {"classes": list(saved.classes), "counts": counts}, indent=None)
    scored = (
        (video.name, ";".join(video.labels), saved.classes[int(row.argmax())], *(f"{value:.9g}" for value in row))
        for video, row in zip(scores.videos, answer_NK, strict=True)
    )
    left_out = ((bad.video.name, ";".join(bad.video.labels), f"left out: {bad.reason}") for bad in scores.left_out)
    write_rows(folder.scores, ("name", "label", "predicted", *saved.classes), chain(scored, left_out))
    write_metrics(folder.metrics, metrics)  # last: where it exists, the other files are complete
    return evaluation
