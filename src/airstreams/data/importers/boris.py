"""BORIS (Friard and Gamba 2016): project files, and its exports "tabular events" and "aggregated events".

In a project, `observations` has for each observation the media files (`file`), and `events`: lists of time, subject,
behaviour, modifiers, comment. A state event is written twice, at its start and at its stop. `behaviors_conf` says which
behaviours are states and which are points.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from airstreams.data.importers.annotation import Annotation, Found, number

NAME = "BORIS"
AGGREGATED, TABULAR = {"behavior", "start (s)", "stop (s)"}, {"behavior", "time"}


def recognise(content: Any) -> bool:
    """Whether this is the content of a project file."""
    return isinstance(content, dict) and "observations" in content and "behaviors_conf" in content


def recognise_header(names: Sequence[str]) -> bool:
    """Whether a table with these columns is an export."""
    folded = {name.strip().casefold() for name in names}
    return folded >= AGGREGATED or (folded >= TABULAR and bool({"status", "behavior type"} & folded))


def read(content: dict[str, Any], tier: str | None, given: str) -> Found:
    """The events of all observations. `tier` is a subject: only its events are read."""
    found = Found()
    points = _point_behaviours(content)
    for name, observation in content["observations"].items():
        place = f"observation {name}"
        media = [file for player in _sorted_values(observation.get("file")) for file in player or ()]
        if not media:
            found.notes.append(f"{place} has no media file. It is ignored.")
            continue
        if len(media) > 1:
            found.notes.append(f"{place} has {len(media)} media files. Its events are taken for the first, {media[0]}.")
        offset = number(_first(observation, "media_info", "offset")) or 0.0
        open_since: dict[tuple[str, str], float] = {}
        for index, event in enumerate(observation.get("events") or (), 1):
            where = f"{place}, event {index}"
            time = number(event[0]) if isinstance(event, list) and len(event) >= 3 else None
            if time is None:
                found.wrong.append(f"{where}: no time, subject and behaviour")
                continue
            subject, label = str(event[1]), str(event[2])
            if tier is not None and subject != tier:
                continue
            time += offset
            if label in points:
                found.annotations.append(Annotation(media[0], label, where, time, is_point=True))
            elif (subject, label) in open_since:
                start = open_since.pop((subject, label))
                found.annotations.append(Annotation(media[0], label, where, start, time))
            else:
                open_since[subject, label] = time
        found.notes += _never_stopped(place, open_since)
    return found


def read_table(rows: Sequence[tuple[int, Mapping[str, str]]], tier: str | None) -> Found:
    """The rows of an export, with line numbers and columns in lower case."""
    found = Found()
    open_since: dict[tuple[str, str, str], float] = {}
    for line, row in rows:
        where = f"line {line}"
        media = row.get("media file name") or row.get("media file path") or row.get("media file") or ""
        media = media.split(";")[0].strip().removeprefix("player #1:")
        subject, label = row.get("subject", ""), row.get("behavior", "")
        if tier is not None and subject != tier:
            continue
        kind = (row.get("status") or row.get("behavior type") or "").strip().upper()
        start = number(row.get("start (s)") if "start (s)" in row else row.get("time"))
        if not media or not label or start is None:
            found.wrong.append(f"{where}: no media file, behaviour or time")
        elif kind.startswith("POINT"):
            found.annotations.append(Annotation(media, label, where, start, is_point=True))
        elif "stop (s)" in row:
            end = number(row["stop (s)"])
            if end is None:
                found.wrong.append(f"{where}: the stop is {row['stop (s)']!r}")
            else:
                found.annotations.append(Annotation(media, label, where, start, end))
        elif kind == "STOP" and (media, subject, label) in open_since:
            begun = open_since.pop((media, subject, label))
            found.annotations.append(Annotation(media, label, where, begun, start))
        else:
            open_since[media, subject, label] = start
    by_media: dict[str, dict[tuple[str, str], float]] = defaultdict(dict)
    for (media, subject, label), begun in open_since.items():
        by_media[media][subject, label] = begun
    for media, opened in by_media.items():
        found.notes += _never_stopped(media, opened)
    return found


def _never_stopped(place: str, open_since: Mapping[tuple[str, str], float]) -> list[str]:
    if not open_since:
        return []
    (_, label), time = next(iter(open_since.items()))
    return [f"{place}: States without a stop are ignored: {len(open_since)}, such as {label} at {time:g} s."]


def _point_behaviours(content: dict[str, Any]) -> set[str]:
    kinds = content["behaviors_conf"]
    entries = kinds.values() if isinstance(kinds, dict) else kinds
    return {str(kind.get("code")) for kind in entries if str(kind.get("type", "")).casefold().startswith("point")}


def _sorted_values(players: object) -> Iterator[Any]:
    if isinstance(players, dict):
        yield from (players[key] for key in sorted(players))


def _first(observation: dict[str, Any], *keys: str) -> object:
    """The value of player 1 under nested keys, or None."""
    value: object = observation
    for key in (*keys, "1"):
        value = value.get(key) if isinstance(value, dict) else None
    return value
