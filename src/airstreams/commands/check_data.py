"""`airstreams check-data DATA`: open every video and list the bad ones."""

from collections import Counter

from jsonargparse import ArgumentParser, Namespace
from rich.table import Table

from airstreams.commands.command import DONE, FAILED, Command, add_data, data_of, print_json
from airstreams.console import Progress, stderr, stdout, warn
from airstreams.plural import count_of


def add_arguments(parser: ArgumentParser) -> None:
    """DATA."""
    add_data(parser)


def run(call: Namespace) -> int:
    """Check, then print counts and bad files. The exit status is FAILED where a file is bad."""
    from airstreams.data.check import check_videos
    from airstreams.data.sources import open_source

    source = open_source(data_of(call), include_missing=True)
    for warning in source.warnings:
        warn(stderr, warning)
    with Progress(stderr) as progress:
        good, bad, rates = check_videos(source.videos, progress)
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
                "frame_rates": {"lowest": min(rates.values()), "highest": max(rates.values())} if rates else None,
            }
        )
        return FAILED if bad else DONE
    table = Table("class", "good videos")
    for name in source.classes:
        table.add_row(name, str(classes[name]))
    stdout.print(table)
    for split, count in splits.items():
        stdout.print(f"{split}: {count_of(count, 'video')}")
    if rates:
        stdout.print(f"frames per second: {min(rates.values()):.4g} to {max(rates.values()):.4g}")
    stdout.print(f"{len(good)} of {len(source.videos)} videos are good")
    for item in bad:
        print(f"bad: {item.video.location}: {item.reason}")
    return FAILED if bad else DONE


COMMAND = Command("Open every video and list the bad ones", "check-data videos/", add_arguments, run)
