"""`airstreams check-data DATA`: open every video and list the bad ones."""

from collections import Counter
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace
from rich.table import Table

from airstreams.commands.command import DONE, FAILED, Command, add_data, data_of, print_json
from airstreams.console import Progress, say, stderr, stdout, warn
from airstreams.data.listing import shortlist
from airstreams.plural import count_of

if TYPE_CHECKING:
    from airstreams.data.statistics import Statistics


def add_arguments(parser: ArgumentParser) -> None:
    """DATA."""
    add_data(parser)


def run(call: Namespace) -> int:
    """Check, then print counts and bad files. The exit status is FAILED where a file is bad."""
    from airstreams.data.check import check_videos
    from airstreams.data.sources import open_source
    from airstreams.data.statistics import summarise

    source = open_source(data_of(call), include_missing=True)
    for warning in source.warnings:
        warn(stderr, warning)
    with Progress(stderr) as progress:
        good, bad, files = check_videos(source.videos, progress)
    statistics = summarise(good, files)
    for remark in statistics.remarks if statistics else ():
        warn(stderr, remark.sentence(len(files)))
    classes = Counter(label for video in good for label in video.labels)
    splits = Counter(video.split for video in good if video.split)
    if call.json:
        print_json(
            {
                "videos": len(source.videos),
                "good": len(good),
                "bad": [{"path": str(item.video.path), "name": item.video.name, "reason": item.reason} for item in bad],
                "classes": {name: classes[name] for name in source.classes},
                "splits": dict(splits),
                "frame_rates": statistics
                and {"lowest": statistics.frame_rate.min, "highest": statistics.frame_rate.max},
                "statistics": statistics and statistics.as_dict(),
            }
        )
        return FAILED if bad else DONE
    table = Table("class", "good videos")
    for name in source.classes:
        table.add_row(name, str(classes[name]))
    stdout.print(table)
    for split, count in splits.items():
        stdout.print(f"{split}: {count_of(count, 'video')}")
    if statistics:
        _print_statistics(statistics)
    stdout.print(f"{len(good)} of {len(source.videos)} videos are good")
    for item in bad:
        print(f"bad: {item.video.location}: {item.reason}")
    return FAILED if bad else DONE


def _print_statistics(statistics: "Statistics") -> None:
    table = Table("", "lowest", "median", "highest")
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


COMMAND = Command("Open every video and list the bad ones", "check-data videos/", add_arguments, run)
