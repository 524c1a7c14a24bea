"""`airstreams check-data DATA`: open every video and list the bad ones."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from airstreams.commands.command import DONE, FAILED, Command, add_data, add_group_by, data_of, print_json, set_group_by
from airstreams.config import Config
from airstreams.console import Progress, SafeTable, print_line, say, stderr, stdout, warn
from airstreams.plural import count_of

if TYPE_CHECKING:
    from airstreams.data.listing import Alike, Source
    from airstreams.data.statistics import Statistics


BAD_LISTED = 10


def add_arguments(parser: ArgumentParser) -> None:
    """DATA."""
    add_data(parser)
    add_group_by(parser)
    parser.add_argument("--write-csv", metavar="FILE", type=Path, help="write the list of good videos as a CSV file")


def run(call: Namespace) -> int:
    """Check, then print counts and bad files. The exit status is FAILED where a file is bad."""
    from airstreams.data.check import check_videos
    from airstreams.data.csv_list import write_csv
    from airstreams.data.grouping import AUTO, with_groups
    from airstreams.data.sources import open_source
    from airstreams.data.statistics import summarise

    config = Config()
    set_group_by(call, config)
    source = open_source(data_of(call), include_missing=True)
    if config.data.group_by != AUTO:  # a wrong expression is refused before the videos are opened
        source = with_groups(source, config.data.group_by, stderr)
    for warning in source.warnings:
        warn(stderr, warning)
    with Progress(stderr) as progress:
        good, bad, files = check_videos(source.all_videos, progress)
    statistics = summarise(good, files)
    names = {video.name for video in source.unlabelled}
    unlabelled = tuple(video for video in good if video.name in names)
    good = [video for video in good if video.name not in names]
    found = _look_for_traps(replace(source, videos=tuple(good), unlabelled=unlabelled), config)
    remarks = [remark.sentence(len(files)) for remark in statistics.remarks] if statistics else []
    for warning in (*remarks, *found.warnings):
        warn(stderr, warning)
    if call.write_csv is not None:
        write_csv(call.write_csv, good, source.multi_label, unlabelled)
    classes = Counter(label for video in good for label in video.labels)
    splits = Counter(video.split for video in good if video.split)
    if call.json:
        print_json(
            {
                "videos": len(source.all_videos),
                "good": len(good) + len(unlabelled),
                "bad": [{"path": str(item.video.path), "name": item.video.name, "reason": item.reason} for item in bad],
                "classes": {name: classes[name] for name in source.classes},
                "splits": dict(splits),
                "unlabelled": len(unlabelled),
                "frame_rates": statistics
                and {"lowest": statistics.frame_rate.min, "highest": statistics.frame_rate.max},
                "statistics": statistics and statistics.as_dict(),
                "groups": {
                    "count": found.groups,
                    "alike": [{"videos": list(alike.names), "by": alike.by} for alike in found.alike],
                    "automatic_split": found.automatic_split,
                },
                "warnings": [*source.warnings, *remarks, *found.warnings],
            }
        )
        return FAILED if bad else DONE
    table = SafeTable("class", "good videos")
    for name in source.classes:
        table.add_row(name, str(classes[name]))
    stdout.print(table)
    for split, count in splits.items():
        say(stdout, f"{split}: {count_of(count, 'video')}")
    if source.unlabelled:
        say(stdout, f"unlabelled: {count_of(len(unlabelled), 'video')}, for training alone")
    if statistics:
        _print_statistics(statistics)
    _print_groups(found)
    say(stdout, f"{len(good) + len(unlabelled)} of {len(source.all_videos)} videos are good")
    for item in bad[:BAD_LISTED]:
        print_line(f"bad: {item.video.location}: {item.reason}")
    if len(bad) > BAD_LISTED:
        print_line(f"and {len(bad) - BAD_LISTED} more (--json lists all)")
    return FAILED if bad else DONE


def _print_groups(found: "_Traps") -> None:
    if found.alike:
        alike = len({name for group in found.alike for name in group.names})
        say(stdout, f"look like one recording: {alike} videos in {count_of(found.recordings, 'set')}")
    if found.automatic_split:
        sizes = ", ".join(f"{count} {split}" for split, count in found.automatic_split.items())
        say(stdout, f"automatic split: {sizes}, drawn from {count_of(found.groups, 'group')}")


def _print_statistics(statistics: "Statistics") -> None:
    from airstreams.data.listing import shortlist

    table = SafeTable("", "lowest", "median", "highest")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, spread in (
        ("duration, s", statistics.duration),
        ("frames", statistics.frames),
        ("frames per second", statistics.frame_rate),
        ("width, px", statistics.width),
        ("height, px", statistics.height),
        ("longest time between key frames, s", statistics.key_frame_gap),
    ):
        table.add_row(name, *(f"{value:.4g}" for value in (spread.min, spread.median, spread.max)))
    stdout.print(table)
    for name, counts in (
        ("resolutions", statistics.resolutions),
        ("frame rates", statistics.frame_rates),
        ("codecs", statistics.codecs),
    ):
        listed = [f"{value} ({count})" for value, count in counts.items()]
        say(stdout, f"{name}: {shortlist(listed)}")


@dataclass(frozen=True)
class _Traps:
    """What would mislead a training on these videos.

    recordings: the number of sets of alike videos, where sets that share a video count as one.
    groups: the number of groups that an automatic split does not divide.
    automatic_split: split to its number of videos; None: the data has splits.
    """

    warnings: list[str]
    alike: Sequence["Alike"]
    recordings: int
    groups: int
    automatic_split: dict[str, int] | None


def _look_for_traps(source: "Source", config: Config) -> _Traps:
    """The warnings that a training by this config would give, beside the source's own."""
    from airstreams.data.clips import clip_length_warning
    from airstreams.data.grouping import with_alike, with_groups
    from airstreams.data.listing import SPLITS, groups_of
    from airstreams.data.source_warnings import training_warnings
    from airstreams.data.splits import with_drawn_splits

    if not source.videos:
        return _Traps([], (), 0, 0, None)
    before, drawn = source.warnings, not source.has_splits
    source = with_drawn_splits(with_alike(with_groups(source, config.data.group_by, stderr), stderr), config)
    found = [warning for warning in source.warnings if warning not in before] + training_warnings(source, config, drawn)
    if too_long := clip_length_warning(source.videos, config.clip):
        found.append(too_long)
    alike = source.alike or ()
    ungrouped = [replace(video, group=None) for video in source.videos]
    recording_of = groups_of(ungrouped, [item.names for item in alike])
    sizes = Counter(video.split or "" for video in source.videos)
    return _Traps(
        found,
        alike,
        len({recording_of[item.names[0]] for item in alike}),
        len(set(groups_of(source.videos).values())),
        {split: sizes[split] for split in SPLITS} if drawn else None,
    )


COMMAND = Command("Open every video and list the bad ones", "check-data videos/", add_arguments, run)
