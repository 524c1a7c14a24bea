"""What a training learns from: its videos with their splits and label maps, and what a run's folder says of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median_low

from rich.console import Console
from rich.progress import Progress

from airstreams.config import Config
from airstreams.console import warn
from airstreams.data.cache import FrameCache
from airstreams.data.check import Checked, check_distributed
from airstreams.data.clips import frame_rate_warning
from airstreams.data.listing import Source, Video, require_consistent
from airstreams.data.splits import with_drawn_splits, with_splits
from airstreams.distributed import gather, share, share_on_this_machine
from airstreams.errors import InputError
from airstreams.runs.folder import RunFolder


def prepare_source(source: Source, config: Config, run: Path, resume: bool, console: Console) -> Source:
    """The source with splits and with label maps of the segmenter's classes. InputError: it does not fit the config, or
    is at odds with itself.
    """
    require_consistent(source)
    _require_labels(source, config)
    if config.data.balanced and source.multi_label and not resume:
        raise InputError(
            f"data.balanced: got true for {source.name}, whose videos have several labels; expected one a video; set "
            "data.balanced to false"
        )
    for warning in source.warnings:
        warn(console, warning)
    source = with_segment_classes(_with_splits(source, config, run, resume), config)
    _require_labels_to_learn_from(source, source.split("train"), config)
    return _with_compact_classes(source, console) if config.data.compact_classes else source


def prepare_videos(
    source: Source, config: Config, run: Path, resume: bool, console: Console
) -> tuple[list[Video], list[Video], Checked, FrameCache | None]:
    """The training and the validation videos that can be read, all that was found, and the cache with the frames.

    A resumed run looks at none: with other videos than at its beginning its order would be another one.
    """
    wanted = [*source.split("train"), *(video for video in source.videos if video.split == "val")]
    cache = None
    if config.data.cache is not None:
        cache = FrameCache(Path(config.data.cache), round(config.data.cache_gb * 1e9), config.decoded_side)
        cache.make_folder()  # complains before the videos are gone through
    with Progress(console=console) as progress:
        if resume:
            left_out = RunFolder(run).read_left_out()
            checked = Checked([video for video in wanted if video.name not in left_out], [], {})
        else:
            checked = check_distributed(wanted, progress, cache)
        train_videos, val_videos = _parts(source, checked.good)
        _require_labels_to_learn_from(source, train_videos, config)
        if cache is not None:
            label_store = source.label_store if config.needs_labels else None
            cache.prepare(train_videos, label_store, progress, share_on_this_machine())
    if checked.bad:
        console.print(
            f"{len(checked.bad)} of {len(wanted)} videos left out, listed in {RunFolder(run).left_out}; such as"
        )
        console.print(f"  {checked.bad[0].video.name}: {checked.bad[0].reason}")
    rates = [checked.rates[video.path] for video in checked.good if video.path in checked.rates]
    if warning := frame_rate_warning(rates, usual_rate(train_videos, checked.rates), config.clip):
        warn(console, warning)
    if config.needs_labels and source.label_store is not None and not console.quiet:  # it goes through all of them
        keys = {video.label_map for video in train_videos}
        labelled = keys & set(source.label_store.keys())
        if len(labelled) < len(keys):
            console.print(f"label maps of {len(labelled)} of {len(keys)} training videos; the others teach no segments")
    return train_videos, val_videos, checked, cache


def usual_rate(videos: Sequence[Video], rates: Mapping[Path, float]) -> float | None:
    """The median of the videos' frames a second; None of none."""
    known = [rates[video.path] for video in videos if video.path in rates]
    return median_low(known) if known else None


def _with_splits(source: Source, config: Config, run: Path, resume: bool) -> Source:
    """The source with its own splits, or with drawn ones.

    A resumed run's stay what they were: with others, test clips would leak into training.
    """
    if not resume:
        return with_drawn_splits(source, config)
    folder = RunFolder(run)
    splits = folder.read_splits()
    if not source.has_splits:
        source = with_splits(source, splits)
    here = {video.name: video.split for video in source.videos}
    different = [
        name
        for name in sorted((here.keys() | splits.keys()) - RunFolder(run).read_left_out().keys())
        if here.get(name) != splits.get(name)
    ]
    if different:
        raise InputError(
            f"--resume: {source.name} has other videos or splits than {folder.splits}, such as {different[0]}; give "
            "its own DATA, with all of its videos"
        )
    return source


def with_segment_classes(source: Source, config: Config) -> Source:
    """The source with label maps of the classes that the segmenter is to tell apart. InputError: they lack one."""
    store = source.label_store
    if store is None or "semantic" not in config.model.streams:
        return source
    return replace(source, label_store=store.with_others_merged(config.data.segment_classes))


def _with_compact_classes(source: Source, console: Console) -> Source:
    """The source with label maps of those classes alone that occur in training."""
    store = source.label_store
    if store is None:
        raise InputError(f"{source.name}: --compact-classes needs label maps; give --labels LABELS, or leave it out")
    keys = share([video.label_map for video in source.split("train") if video.label_map is not None])
    with Progress(console=console) as progress:
        task = progress.add_task("looking for classes", total=len(keys))
        seen = set(gather(list(store.occurring_classes(keys, lambda: progress.advance(task)))))
    kept = [name for name in store.classes if name in seen]
    dropped = [name for name in store.classes if name not in seen]
    console.print(
        f"segmenter: {len(kept)} of {len(store.classes)} classes; in no training label map: "
        f"{', '.join(dropped) or 'none'}",
        soft_wrap=True,
    )
    return replace(source, label_store=store.with_classes(kept))


def _parts(source: Source, good: list[Video]) -> tuple[list[Video], list[Video]]:
    train_videos = [video for video in good if video.split == "train"]
    seen = {label for video in train_videos for label in video.labels}
    missing = [name for name in source.classes if name not in seen]
    if missing:
        raise InputError(
            f"{source.name}: no readable training video of {', '.join(missing[:5])}{' ...' if missing[5:] else ''}; "
            "expected one at least of every class; `airstreams check-data` lists the bad files"
        )
    return train_videos, [video for video in good if video.split == "val"]


def _require_labels(source: Source, config: Config) -> None:
    if config.needs_labels and source.label_store is None:
        raise InputError(
            f"{source.name}: no label maps, but loss_weights.interm is {config.loss_weights.interm}; "
            "give --labels LABELS, or --loss_weights.interm 0, or leave semantic out of --model.streams"
        )


def _require_labels_to_learn_from(source: Source, videos: Sequence[Video], config: Config) -> None:
    keys = [video.label_map for video in videos if video.label_map is not None]
    store = source.label_store
    if config.needs_labels and store is not None and not any(store.has(key) for key in keys):
        raise InputError(
            f"{store.root} has label maps of none of the training videos; annotate these, or give "
            "--loss_weights.interm 0"
        )
