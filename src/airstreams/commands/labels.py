"""`airstreams labels LABELS`: what a teacher saw."""

import os
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from airstreams.commands.command import DATA_HELP, DONE, FAILED, ROOT_HELP, Command, print_json, with_root
from airstreams.console import Progress, SafeTable, print_line, say, stderr, stdout
from airstreams.errors import InputError
from airstreams.percent import percent

if TYPE_CHECKING:
    from airstreams.data.label_maps import LabelStore
    from airstreams.data.listing import Video
    from airstreams.data.value_store import ValueStore
    from airstreams.teachers.inspect import StoreShares

MOST_NAMES = 30
"""The maps, points or features that the table lists."""


def add_arguments(parser: ArgumentParser) -> None:
    """LABELS, and the videos to show or to score them with."""
    parser.add_argument("labels", metavar="LABELS", type=Path, help="a teacher's label maps or other targets")
    parser.add_argument("--data", metavar="DATA", type=str, help="show the frames too; " + DATA_HELP)
    parser.add_argument("--root", metavar="DIR", type=Path, help=ROOT_HELP)
    parser.add_argument("--picture", metavar="PNG", type=Path, help="the contact sheet (LABELS/contact_sheet.png)")
    parser.add_argument("--truth", metavar="DATA", type=str, help="score people against the masks of DATA")


def run(call: Namespace) -> int:
    """Count, draw the contact sheet, and score. The exit status is FAILED where a file is bad."""
    from airstreams.data.content import follow_label_maps
    from airstreams.data.label_maps import LabelStore
    from airstreams.data.sources import open_source
    from airstreams.data.value_store import ABOUT, ValueStore
    from airstreams.teachers import inspect as label_report
    from airstreams.viewing.pictures import contact_sheet

    if (call.labels / ABOUT).is_file():
        return _run_of_values(call, ValueStore.open(call.labels))
    store = LabelStore.open(call.labels)
    picture = _picture_of(call)
    data, videos = call.data or call.truth, {}
    if data is not None:
        source = follow_label_maps(open_source(with_root(data, call.root), call.labels, for_training=False), stderr)
        videos = {video.label_map: video.path for video in source.all_videos if video.label_map is not None}
    with_masks = None
    if call.truth is not None:
        with_masks = follow_label_maps(open_source(call.truth, call.labels, for_training=False), stderr)
    with Progress(stderr) as progress:
        truth = None if with_masks is None else label_report.score_against_masks(store, with_masks.videos, progress)
        report = label_report.count_labels(store, progress, None if data is None else videos)
    frames, unread = label_report.read_samples(store, report.samples, videos)
    if frames:
        contact_sheet(picture, frames, store.classes)
    bad = sorted((report.bad | unread | (truth.bad if truth else {})).items())
    shares = report.counts.shares(store.classes)
    if call.json:
        print_json(
            {
                "teacher": store.teacher,
                "settings": store.settings,
                **asdict(shares),
                "truth": truth.as_dict() if truth else None,
                "picture": str(picture) if frames else None,
                "bad": [{"path": str(path), "reason": reason} for path, reason in bad],
            }
        )
        return FAILED if bad else DONE
    _print_shares(store, shares)
    if truth:
        say(
            stdout,
            f"person IoU {percent(truth.person_iou)} over all pixels, {percent(truth.person_iou_mean)} as the mean of "
            f"videos: {truth.frames} frames of {truth.videos} of {truth.videos_with_masks} videos with masks",
        )
    for path, reason in bad:
        print_line(f"bad: {path}: {reason}")
    if frames:
        print_line(f"contact sheet: {picture}")
    return FAILED if bad else DONE


def _picture_of(call: Namespace) -> Path:
    """Where the contact sheet goes. InputError: it cannot be written there."""
    if call.picture is None and not os.access(call.labels, os.W_OK):
        raise InputError(f"{call.labels}: the contact sheet cannot be written there. Give --picture PNG.")
    picture: Path = call.picture or call.labels / "contact_sheet.png"
    return picture


def _run_of_values(call: Namespace, store: "ValueStore") -> int:
    """`run` for all targets but label maps."""
    from airstreams.data.content import keys_by_content, with_contents
    from airstreams.data.sources import open_source
    from airstreams.teachers.inspect_values import count_values, read_value_samples, score_values
    from airstreams.viewing.pictures import colours_sheet
    from airstreams.viewing.target_colours import colours_of

    def videos_of(data: str) -> list["Video"]:
        """The videos with their keys in the store."""
        videos = open_source(with_root(data, call.root), for_training=False).videos
        keys = {video.name: video.label_map for video in videos}
        if store.knows_contents:
            source = with_contents(open_source(with_root(data, call.root), for_training=False), stderr)
            videos, keys = source.videos, keys_by_content(store, source.videos, keys, stderr)
        return [replace(video, label_map=keys[video.name]) for video in videos]

    picture = _picture_of(call)
    score = None if call.truth is None else score_values(store, videos_of(call.truth))
    data = call.data or call.truth
    paths = {} if data is None else {v.label_map: v.path for v in videos_of(data) if v.label_map is not None}
    with Progress(stderr) as progress:
        counts, chosen, bad = count_values(store, progress, None if data is None else paths)
    samples, unread = read_value_samples(store, chosen, paths)
    if samples:
        colours = colours_of(store, samples)
        colours_sheet(picture, [(one.title, one.frame, drawn) for one, drawn in zip(samples, colours, strict=True)])
    names, wrong = counts.by_name(store.names), sorted((bad | unread).items())
    if call.json:
        print_json(
            {
                **store.description(),
                "values": {name: asdict(share) for name, share in names.items()},
                "videos": counts.videos,
                "frames": counts.frames,
                "bytes": counts.bytes,
                "truth": None if score is None else score._asdict(),
                "picture": str(picture) if samples else None,
                "bad": [{"path": str(path), "reason": reason} for path, reason in wrong],
            }
        )
        return FAILED if wrong else DONE
    settings = ", ".join(f"{name} {value}" for name, value in store.settings.items())
    say(stdout, f"{store.teacher}; {store.kind}; {settings or 'no settings'}")
    what = "visibility" if store.kind == "points" else "mean"
    table = SafeTable(store.kind, "share with a value", what, "deviation", "from", "to")
    for name, share in islice(names.items(), MOST_NAMES):
        numbers = (f"{value:.3g}" for value in (share.mean, share.deviation, share.low, share.high))
        table.add_row(name, f"{share.known:.1%}", *numbers)
    stdout.print(table)
    if len(names) > MOST_NAMES:
        say(stdout, f"and {len(names) - MOST_NAMES} more, which --json lists")
    say(stdout, f"{counts.videos} videos, {counts.frames} frames labelled, {counts.bytes / 1e6:.1f} MB")
    say(stdout, f"stored as {store.dtype}, with an error of at most {store.error}")
    if score is not None:
        found = "of the visible points lie on people" if store.kind == "points" else "person IoU"
        value = score.on_people if store.kind == "points" else score.person_iou
        say(stdout, f"{percent(value)} {found}: {score.frames} frames of {score.videos} videos with masks")
    for path, reason in wrong:
        print_line(f"bad: {path}: {reason}")
    if samples:
        print_line(f"contact sheet: {picture}")
    return FAILED if wrong else DONE


def _print_shares(store: "LabelStore", shares: "StoreShares") -> None:
    settings = ", ".join(f"{name} {value}" for name, value in store.settings.items())
    say(stdout, f"{store.teacher}; {settings or 'no settings'}")
    table = SafeTable("class", "share of pixels", "share of frames")
    for name, row in shares.classes.items():
        table.add_row(name, f"{row.pixels:.2%}", f"{row.frames:.1%}")
    stdout.print(table)
    say(
        stdout,
        f"{shares.videos} videos, {shares.frames} frames labelled, {shares.frames_with_instance:.1%} of them "
        f"with any instance; {shares.pixels_without_label:.2%} of the pixels have no label",
    )
    say(stdout, f"{shares.bytes / 1e6:.1f} MB, {shares.raw_share:.2%} of one byte per pixel")


COMMAND = Command("Show what a teacher saw", "labels labels/ --data videos/", add_arguments, run)
