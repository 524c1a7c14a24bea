"""The data of a training: splits and label maps of its source, the videos that can be read, and their batches."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median_low
from typing import Any, TypeVar

from accelerate import Accelerator
from rich.console import Console
from torch.utils.data import DataLoader

from airstreams.config import Config, own_loss
from airstreams.console import Progress, say, warn
from airstreams.data.cache import FrameCache
from airstreams.data.check import Checked, check_distributed
from airstreams.data.clips import clip_length_warning, frame_rate_warning
from airstreams.data.dataset import Batch, StepSampler, TrainingClips
from airstreams.data.frame_table import counted_tables, remember_tables
from airstreams.data.grouping import with_alike, with_groups
from airstreams.data.kept_tables import read_tables
from airstreams.data.label_maps import LabelStore
from airstreams.data.listing import Source, Video, require_consistent
from airstreams.data.loader_processes import loader_options
from airstreams.data.similar import MOST_FILES
from airstreams.data.source_warnings import training_warnings
from airstreams.data.splits import with_drawn_splits, with_splits
from airstreams.distributed import SharedProgress, gather, share, share_on_this_machine
from airstreams.errors import InputError
from airstreams.plural import count_of
from airstreams.representations.teaching import follow_targets, open_targets, require_targets
from airstreams.runs.folder import RunFolder

Item = TypeVar("Item")


@dataclass
class TrainingVideos:
    """The videos of a training that can be read.

    train, val: the videos of the two splits.
    unlabelled: more videos to train on, whose class is not known.
    checked: what opening all files has found. A resumed training opens none.
    cache: decoded frames of the training videos; None: decode every time.
    warnings: about frame rates and lengths. A resumed training has none.
    """

    train: list[Video]
    val: list[Video]
    checked: Checked
    cache: FrameCache | None
    warnings: list[str] = field(default_factory=list)
    unlabelled: list[Video] = field(default_factory=list)


def prepare_source(source: Source, config: Config, folder: RunFolder, resume: bool, console: Console) -> Source:
    """Give a source its splits, the label maps of the segmenter's classes, and the keys of other streams' targets.

    InputError: the source contradicts itself or does not fit the config.
    """
    require_consistent(source)
    require_targets(source, config)
    source = _with_unlabelled_for(config, source, folder if resume else None, console)
    source = _with_splits_of_the_run(source, folder) if resume else with_checked_splits(source, config, console)
    for warning in source.warnings:
        warn(console, warning)
    source = with_segment_classes(source, config)
    if resume and config.taught:
        source = _with_recorded_contents(source, folder)
    source = follow_targets(source, config, console)
    _require_targets_of([*source.split("train"), *source.unlabelled], source, config)
    if not resume:
        source = _without_idle_videos(source, config, console)
    return _with_compact_classes(source, console) if config.data.compact_classes else source


def prepare_videos(source: Source, config: Config, folder: RunFolder, resume: bool, console: Console) -> TrainingVideos:
    """Open every training and validation video, and fill the cache of decoded frames.

    A resumed training opens none and takes the list of its beginning: other videos would change the order of its clips.

    InputError: a class without a readable training video, no targets for any of them, or a cache that another
    process fills.
    """
    unlabelled = {video.name for video in source.unlabelled}
    wanted = [
        *source.split("train"),
        *(video for video in source.videos if video.split == "val"),
        *source.unlabelled,
    ]
    cache = None
    if config.data.cache is not None:
        limit = round(config.data.cache_gb * 1e9)
        cache = FrameCache(Path(config.data.cache), limit, config.decoded_side, config.data.deinterlace)
        cache.make_folder()  # reports a problem before hours are spent on the videos
    with Progress(console=console) as progress:
        if resume:
            left_out = folder.read_left_out()
            checked = Checked([video for video in wanted if video.name not in left_out], [], {})
            remember_tables(read_tables(folder.frame_tables))
        else:
            checked = check_distributed(wanted, progress, cache)
            remember_tables(dict(gather(list(counted_tables().items()))))
        _require_every_class(source, checked.good)
        learnt_from = [video for video in checked.good if video.split == "train"]
        train_videos = [video for video in learnt_from if video.name not in unlabelled]
        val_videos = [video for video in checked.good if video.split == "val"]
        _require_targets_of(learnt_from, source, config)
        if cache is not None:
            stores = [
                (targets.store, [key for video in learnt_from if (key := targets.key_of(video)) is not None])
                for targets in open_targets(source, config).values()
                if isinstance(targets.store, LabelStore)
            ]
            cache.prepare(learnt_from, None, progress, share_on_this_machine(), stores)
    warnings = [] if resume else _warnings_of_files(train_videos, checked, config)
    without_label = [video for video in learnt_from if video.name in unlabelled]
    videos = TrainingVideos(train_videos, val_videos, checked, cache, warnings, without_label)
    _report_videos(videos, wanted, source, config, folder, console)
    return videos


def _warnings_of_files(train_videos: Sequence[Video], checked: Checked, config: Config) -> list[str]:
    rates = [checked.rates[video.path] for video in checked.good if video.path in checked.rates]
    found = (
        frame_rate_warning(rates, usual_frame_rate(train_videos, checked.rates), config.clip),
        clip_length_warning(train_videos, config.clip),
    )
    return [warning for warning in found if warning is not None]


def make_loader(
    videos: TrainingVideos, source: Source, config: Config, accelerator: Accelerator
) -> tuple[StepSampler, DataLoader[Batch]]:
    """The training clips in batches, and the sampler that chooses the clips of each batch."""
    targets = open_targets(source, config)
    clips = TrainingClips(
        videos.train, config, source.classes, source.multi_label, targets, videos.cache, videos.unlabelled
    )
    labels = [video.labels for video in videos.train]
    process, processes = accelerator.process_index, accelerator.num_processes
    sampler = StepSampler(labels, config, process, processes, len(videos.unlabelled))
    loader: DataLoader[Any] = DataLoader(
        clips,
        batch_sampler=sampler,
        persistent_workers=config.data.workers > 0,
        pin_memory=accelerator.device.type == "cuda",
        collate_fn=clips.collate,
        **loader_options(config.data.workers),
    )
    return sampler, loader


def in_steps(loader: Iterable[Item], accumulate: int) -> Iterator[tuple[Item, ...]]:
    """Group batches by optimiser step, `accumulate` of them each."""
    return zip(*[iter(loader)] * accumulate, strict=True)


def usual_frame_rate(videos: Sequence[Video], rates: Mapping[Path, float]) -> float | None:
    """The median frame rate of videos, in frames per second; None if no rate is known."""
    known = [rates[video.path] for video in videos if video.path in rates]
    return median_low(known) if known else None


def with_segment_classes(source: Source, config: Config) -> Source:
    """Reduce a source's label maps to `data.segment_classes`. InputError: the teacher lacks one of these classes."""
    store = source.label_store
    if store is None or not config.model.has_segmenter:
        return source
    return replace(source, label_store=store.with_others_merged(config.data.segment_classes))


def with_checked_splits(source: Source, config: Config, console: Console) -> Source:
    """Give a source its groups and splits by the config, and more warnings, which the caller prints.

    console: gets notes and progress.
    """
    source = with_groups(source, config.data.group_by, console)
    drawn = not source.has_splits
    source = with_drawn_splits(source, config)
    if len({video.split for video in source.videos}) > 1:
        source = with_alike(source, console, MOST_FILES)
    warnings = dict.fromkeys([*source.warnings, *training_warnings(source, config, drawn)])
    return replace(source, warnings=tuple(warnings))


def _with_unlabelled_for(config: Config, source: Source, resumed: RunFolder | None, console: Console) -> Source:
    """The source with the unlabelled videos that training may use: none, if no stream learns from a teacher.

    resumed: the run that goes on. It takes those that it began with, even if others have targets by now.
    """
    if not source.unlabelled:
        return source
    if resumed is not None:
        began_with = resumed.unlabelled_names()
        return replace(source, unlabelled=tuple(video for video in source.unlabelled if video.name in began_with))
    if not config.taught:
        why = "no stream learns from a teacher. Give --labels LABELS, or --targets STREAM=FOLDER"
    elif not config.data.unlabelled_share:
        why = "data.unlabelled_share is 0. Give a larger share to use them"
    else:
        return source
    warn(console, f"{count_of(len(source.unlabelled), 'unlabelled video')} left out, because {why}.")
    return replace(source, unlabelled=())


def _without_idle_videos(source: Source, config: Config, console: Console) -> Source:
    """The source without those unlabelled videos for which no stream has targets: nothing could learn from them."""
    stores = open_targets(source, config).values()
    useful = tuple(video for video in source.unlabelled if any(targets.has(video) for targets in stores))
    if len(useful) < len(source.unlabelled):
        warn(
            console,
            f"{len(source.unlabelled) - len(useful)} of {len(source.unlabelled)} unlabelled videos left out, because "
            "no teacher's targets are of them. Run `airstreams annotate` on DATA.",
        )
    return replace(source, unlabelled=useful)


def _with_splits_of_the_run(source: Source, folder: RunFolder) -> Source:
    """The source with its own splits, or those of the run to resume: with others, test clips would leak."""
    splits = folder.read_splits()
    given = {video.name: video.split if source.has_splits else splits.get(video.name) for video in source.videos}
    given |= {video.name: video.split for video in source.unlabelled}
    different = [
        name
        for name in sorted((given.keys() | splits.keys()) - folder.read_left_out().keys())
        if name not in given or name not in splits or given[name] != splits[name]
    ]
    if different:
        name = different[0]
        if name not in given:
            how = "is missing"
        elif name not in splits:
            how = "is new"
        else:
            how = f"is in {given[name]}, and was in {splits[name]}"
        raise InputError(
            f"--resume: {source.name} has other videos or splits than {folder.splits}, such as {name}, which {how}. "
            "Give the DATA that the run began with, with all of its videos."
        )
    return source if source.has_splits else with_splits(source, splits)


def _with_recorded_contents(source: Source, folder: RunFolder) -> Source:
    """The source with the contents that its files had when the run began, so that no file need be read.

    A run of version 0.2 knows none. It goes on with the names that it began with.
    """
    contents = {video.name: video.content for video in folder.read_videos()}
    if not any(contents.values()):
        return source
    return source.with_all_videos([replace(video, content=contents.get(video.name)) for video in source.all_videos])


def _with_compact_classes(source: Source, console: Console) -> Source:
    """Reduce a source's label maps to the classes that occur in training videos."""
    store = source.label_store
    if store is None:
        raise InputError(
            f"data.compact_classes: {source.name} has no label maps. Give --labels LABELS, or leave the key out."
        )
    learnt_from = (*source.split("train"), *source.unlabelled)
    keys = share([video.label_map for video in learnt_from if video.label_map is not None])
    with Progress(console=console) as progress:
        task = progress.add_task("looking for classes", len(keys), "files", shared=SharedProgress())
        seen = set(gather(list(store.occurring_classes(keys, task.advance))))
    kept = [name for name in store.classes if name in seen]
    dropped = [name for name in store.classes if name not in seen]
    say(
        console,
        f"The segmenter learns {len(kept)} of {len(store.classes)} classes. These are in no training label map: "
        f"{', '.join(dropped) or 'none'}",
    )
    return replace(source, label_store=store.with_classes(kept))


def _report_videos(
    videos: TrainingVideos,
    wanted: Sequence[Video],
    source: Source,
    config: Config,
    folder: RunFolder,
    console: Console,
) -> None:
    """Say which videos are left out, play at another frame rate, or have no targets."""
    bad = videos.checked.bad
    if bad:
        warn(
            console, f"{len(bad)} of {len(wanted)} videos cannot be read and are left out. {folder.left_out} lists them"
        )
        say(console, f"  such as {bad[0].video.name}: {bad[0].reason}")
    for warning in videos.warnings:
        warn(console, warning)
    for stream, targets in ({} if console.quiet else open_targets(source, config)).items():  # goes through all files
        keys = {targets.key_of(video) for video in videos.train}
        labelled = {key for key in keys if key is not None and targets.store.has(key)}
        if len(labelled) < len(keys):
            warn(
                console,
                f"{len(labelled)} of {len(keys)} training videos have targets for the stream {stream}. The rest train "
                "it by action losses alone",
            )


def _require_every_class(source: Source, good: Sequence[Video]) -> None:
    seen = {label for video in good if video.split == "train" for label in video.labels}
    missing = [name for name in source.classes if name not in seen]
    if missing:
        raise InputError(
            f"{source.name}: no readable training video of {', '.join(missing[:5])}{' ...' if missing[5:] else ''}. "
            "Every class needs at least one. `airstreams check-data` lists the unreadable files."
        )


def _require_targets_of(videos: Sequence[Video], source: Source, config: Config) -> None:
    """Raise InputError if a stream has targets of none of these videos."""
    for stream, targets in open_targets(source, config).items():
        if not any(targets.has(video) for video in videos):
            raise InputError(
                f"{targets.store.root}: no targets of any training video for the stream {stream}. Run `airstreams "
                f"annotate` on these videos, or set --loss_weights.{own_loss(stream)} 0."
            )
