"""`data.group_by`: which videos an automatic split keeps together."""

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from airstreams.console import Progress, say
from airstreams.data.listing import Source, Video, groups_of, without_suffix
from airstreams.data.similar import find_alike
from airstreams.data.source_warnings import shared_between_splits
from airstreams.errors import InputError
from airstreams.plural import count_of

AUTO = "auto"
"""The value of `data.group_by` that keeps videos of one recording together, as far as they can be recognised."""

_LIMIT_S, _LIMIT_FOR_A_NAME_S = 20.0, 1e-4
_SEARCH = """
import json, re, sys
expression, names = json.load(sys.stdin)
found = [re.search(expression, name) for name in names]
json.dump([item and item[1 if item.re.groups else 0] for item in found], sys.stdout)
"""

_Group = tuple[str, Sequence[str]]  # its name, and the names of its videos


def with_groups(source: Source, group_by: str | None, console: Console, strict: bool = True) -> Source:
    """The source with the groups of `data.group_by`, beside those that it has already.

    Args:
        source: the videos. Groups that people made, such as a CSV file's column, are kept as they are.
        group_by: `auto`; or a regular expression, which is searched for in each video's name without
            suffix: its first group, or else the whole match, is the video's group. A video without a match stays alone.
            None: nothing changes.
        console: gets notes and progress.
        strict: refuse an expression that matches no video.

    Raises:
        InputError: no video matches.
    """
    if group_by is None or source.grouped_by == group_by:
        return source
    if source.own_groups:
        say(console, f"note: --group-by has no effect, because {source.name} has groups of its own.")
        return replace(source, grouped_by=group_by)
    if group_by == AUTO:  # `alike_across_splits` warns where the data's own splits divide these groups
        source = with_alike(source, console)
        groups = [(f"like {alike.names[0]}", alike.names) for alike in source.alike or ()]
        return replace(source, videos=_joined(source.videos, groups), grouped_by=group_by)
    matches = _matches(source, group_by, console, strict)
    before = shared_between_splits(source.videos)
    source = source.with_all_videos(_joined(source.all_videos, matches))
    warnings = [warning for warning in source.warnings if warning not in before] + shared_between_splits(source.videos)
    return replace(source, warnings=tuple(warnings), grouped_by=group_by)


def with_alike(source: Source, console: Console, limit: int | None = None) -> Source:
    """The source with the videos that look like one recording, unless somebody has looked for them already.

    Unlabelled videos are kept apart, so that the groups of the others do not depend on them.

    limit: as for `find_alike`.
    """
    if source.alike is not None:
        return source
    with Progress(console) as progress:
        alike, note = find_alike(source, progress, limit)
    if note:
        say(console, f"note: {note}")
    unlabelled = {video.name for video in source.unlabelled}
    of_labelled = [
        replace(found, names=tuple(name for name in found.names if name not in unlabelled)) for found in alike
    ]
    mixed = [found for found, rest in zip(alike, of_labelled, strict=True) if 0 < len(rest.names) < len(found.names)]
    several = tuple(found for found in of_labelled if len(found.names) > 1)
    return replace(source, alike=several, unlabelled_alike=tuple(mixed))


def _matches(source: Source, expression: str, console: Console, strict: bool) -> list[_Group]:
    groups: dict[str, list[str]] = defaultdict(list)
    alone = []
    names = [_searched_name(video) for video in source.all_videos]
    for video, text in zip(source.all_videos, _texts(expression, names), strict=True):
        if text:
            groups[text].append(video.name)
        else:
            alone.append(_searched_name(video))
    if not groups and strict:
        raise InputError(
            f"--group-by {expression}: it matches none of the {len(source.all_videos)} videos of {source.name}, such "
            f"as {alone[0]}. Write an expression for these names, or give --group-by auto."
        )
    if alone:
        say(
            console,
            f"note: {len(alone)} of {len(source.all_videos)} videos do not match --group-by, such as {alone[0]}. "
            "Each stays a group of its own.",
        )
    return [*groups.items()]


def _texts(expression: str, names: Sequence[str]) -> list[str | None]:
    """What an expression finds in each name. InputError: it takes too long.

    Another process searches, since Python cannot stop a search, and some expressions would take years.
    """
    limit = _LIMIT_S + len(names) * _LIMIT_FOR_A_NAME_S
    command = [sys.executable, "-I", "-c", _SEARCH]
    try:
        found = subprocess.run(
            command, input=json.dumps([expression, names]), stdout=subprocess.PIPE, text=True, timeout=limit, check=True
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"--group-by {expression}: it took over {limit:.0f} s for {count_of(len(names), 'name')}. Write a simpler "
            "expression, without repetitions inside repetitions such as (a+)+."
        ) from error
    texts: list[str | None] = json.loads(found.stdout)
    return texts


def _searched_name(video: Video) -> str:
    """The name without suffix: `\\d` would find the 4 of `.mp4`."""
    return without_suffix(video.name.partition("#t=")[0])


def _joined(videos: Sequence[Video], groups: Sequence[_Group]) -> tuple[Video, ...]:
    """The videos with these groups, joined with the groups that they overlap. A group keeps the name that it has."""
    joined = groups_of(videos, [names for _, names in groups])
    named = {video.group for video in videos}
    name_of: dict[str, str] = {}
    for group, names in groups:
        for root in (joined[name] for name in names if name in joined):
            name_of.setdefault(root, root if root in named else group)
    return tuple(replace(video, group=name_of.get(joined[video.name], video.group)) for video in videos)
