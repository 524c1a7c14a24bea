"""Reads what annotation tools write: each annotation becomes a video, or a part of one, with a label.

A reader is a module with `NAME`, `recognise(content)` and `read(content, tier, given)`. What the file holds says which
reader it is for, so its suffix does not matter.
"""

import csv
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from airstreams.data.importers import boris, cvat, elan, label_studio, via
from airstreams.data.importers.annotation import Annotation, Found, read_json, read_xml
from airstreams.data.listing import Source, Video, make_source, shortlist, to_nfc, without_suffix
from airstreams.errors import InputError, VideoError
from airstreams.plural import count_of

READERS = (boris, elan, cvat, label_studio, via)
TOOLS = ", ".join(reader.NAME for reader in READERS)

_XML, _JSON, _TABLES = (".eaf", ".xml"), (".boris", ".json"), (".csv", ".tsv", ".txt")
_LISTED = 10  # wrong entries that a message names


def is_annotation_file(path: Path) -> bool:
    """Whether a file is to be read here: by its suffix, or as a table with the columns of BORIS."""
    suffix = path.suffix.lower()
    return suffix in (*_XML, *_JSON) or (suffix in _TABLES and _boris_header(path) is not None)


def read_annotations(
    data: str,
    path: Path,
    root: Path | None = None,
    tier: str | None = None,
    around: float | None = None,
    include_missing: bool = False,
) -> Source:
    """List the annotated videos, and parts of videos, of an annotation tool's file.

    Args:
        data: DATA as it was given.
        path: the file.
        root: the folder of the videos; None: the file's.
        tier: the tier, attribute, control or subject whose annotations are read.
        around: seconds before and after an event without a duration; None: such events are ignored.
        include_missing: list videos that do not exist, too.

    Raises:
        InputError: the file is of no known tool, has wrong entries or no labels, or its videos do not exist.
    """
    found = _read(data, path, tier)
    if found.wrong:
        listed, more = "; ".join(found.wrong[:_LISTED]), len(found.wrong) - _LISTED
        raise InputError(
            f"{path} has {count_of(len(found.wrong), 'mistake')}: {listed}"
            f"{f'; and {more} more' if more > 0 else ''}. Correct them in the tool, and export it again."
        )
    annotations, notes = _without_points(found.annotations, around, data)
    if not annotations:
        raise InputError(f"{path} has no labels. Annotate the videos first, or choose another ?tier=NAME.")
    folder = path.parent if root is None else root
    paths = _find_media(path, folder, {annotation.media for annotation in annotations}, include_missing)
    labels: dict[tuple[Path, float | None, float | None], list[str]] = defaultdict(list)
    for annotation in annotations:
        start, end = _seconds(paths[annotation.media], annotation, path)
        labels[paths[annotation.media], start, end].append(to_nfc(annotation.label.strip()))
    videos = [_video(file, folder, start, end, names) for (file, start, end), names in labels.items()]
    multi_label = any(len(video.labels) > 1 for video in videos)
    source = make_source(data, videos, multi_label)
    return replace(source, warnings=tuple(f"{path}: {note}" for note in [*found.notes, *notes]))


def _read(data: str, path: Path, tier: str | None) -> Found:
    suffix = path.suffix.lower()
    if suffix in _TABLES and (header := _boris_header(path)) is not None:
        return boris.read_table(_rows(path, *header), tier)
    content: Any = read_xml(path) if suffix in _XML else read_json(path)
    given = data.partition("?")[0] if not Path(data).exists() else data
    for reader in READERS:
        if reader.recognise(content):
            try:
                return reader.read(content, tier, given)
            except InputError:  # a ValueError, too, but it says already what is wrong
                raise
            except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
                raise InputError(
                    f"{path} is not as {reader.NAME} writes it ({type(error).__name__}: {error}). Export it again."
                ) from error
    raise InputError(f"{path} is of no annotation tool that airstreams reads ({TOOLS}). Give a CSV file.")


def _boris_header(path: Path) -> tuple[int, str] | None:
    """The line of the header of BORIS' table, counted from 0, and the sign between its cells; None: there is none."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            first_lines = [file.readline(100_000) for _ in range(40)]  # older exports have lines before the header
    except OSError:
        return None
    for number, line in enumerate(first_lines):
        for sign in (",", "\t", ";"):
            if boris.recognise_header(next(csv.reader([line], delimiter=sign), [])):
                return number, sign
    return None


def _rows(path: Path, header_line: int, sign: str) -> list[tuple[int, dict[str, str]]]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        records = list(csv.reader(file, delimiter=sign))
    names = [name.strip().casefold() for name in records[header_line]]
    rows = enumerate(records[header_line + 1 :], header_line + 2)
    return [(line, dict(zip(names, row, strict=False))) for line, row in rows if any(cell.strip() for cell in row)]


def _without_points(
    annotations: Sequence[Annotation], around: float | None, data: str
) -> tuple[list[Annotation], list[str]]:
    """The annotations with a duration; events without one are widened by `around`, or left out with a note."""
    kept = [annotation for annotation in annotations if not annotation.is_point]
    points = [annotation for annotation in annotations if annotation.is_point]
    if around is None:
        if not points:
            return kept, []
        names = shortlist(sorted({point.label for point in points}))
        ignored = f"Events without a duration are ignored: {len(points)} ({names})."
        return kept, [f"{ignored} Give {data}?around=1 to take 1 s before and after each."]
    for point in points:
        assert point.start is not None
        kept.append(replace(point, start=max(point.start - around, 0.0), end=point.start + around))
    return kept, []


def _find_media(path: Path, folder: Path, media: set[str], include_missing: bool) -> dict[str, Path]:
    """The file of each video: as it is named, else by its name, in the folder or below it."""
    below: dict[str, list[Path]] | None = None
    found: dict[str, Path] = {}
    missing = []
    for name in sorted(media):
        plain = unquote(urlsplit(name).path) if "://" in name else name
        plain = plain.replace("\\", "/")
        file = PurePosixPath(plain).name
        if not file or "\x00" in plain:
            raise InputError(f"{path} names the video {name!a}, which is no file. Correct it in the tool.")
        candidates = [folder / plain, folder / file]
        direct = next((candidate for candidate in candidates if os.path.isfile(candidate)), None)  # noqa: PTH113 (no error for long names)
        if direct is None:
            if below is None:
                below = defaultdict(list)
                for candidate in sorted(folder.rglob("*")):
                    below[candidate.name].append(candidate)
            same = [candidate for candidate in below.get(file, []) if candidate.is_file()]
            if len(same) > 1:
                raise InputError(
                    f"{path} names {file}, and {folder} has it {len(same)} times, such as {same[0]} and {same[1]}. "
                    "Give --root DIR with the folder that has the right ones."
                )
            direct = same[0] if same else None
        if direct is None:
            missing.append(file)
        found[name] = direct or folder / file
    if missing and not include_missing:
        raise InputError(
            f"{path} names videos that are not in {folder}: {shortlist(missing)}. Put them there, or give their folder "
            "as --root DIR."
        )
    return found


def _seconds(video: Path, annotation: Annotation, path: Path) -> tuple[float | None, float | None]:
    """The start and end of an annotation in s, rounded to ms."""
    start, end = annotation.start, annotation.end
    if annotation.frames is not None:
        from airstreams.data.video import probe  # takes half a second, and only files that count in frames need it

        try:
            times = probe(video).times
        except (VideoError, OSError) as error:
            raise InputError(f"{path} counts in frames, but {video} cannot be read ({error}). Repair it.") from error
        first, last = annotation.frames
        if first >= len(times):
            raise InputError(
                f"{path}, {annotation.where}: frame {first} lies after the end of {video}, which has {len(times)}. "
                "Give the video that was annotated."
            )
        start = float(times[first])
        end = float(times[last + 1]) if last + 1 < len(times) else None
    if end is not None and end <= (start or 0):
        raise InputError(
            f"{path}, {annotation.where}: the end {end:g} s is not after the start {start or 0:g} s. Correct it in the "
            "tool."
        )
    return tuple(None if time is None else max(round(time, 3), 0.0) for time in (start, end))  # type: ignore[return-value]


def _video(file: Path, folder: Path, start: float | None, end: float | None, labels: list[str]) -> Video:
    inside = file.is_relative_to(folder)
    name = to_nfc((file.relative_to(folder) if inside else file).as_posix())
    times = ",".join("" if time is None else f"{time}" for time in (start, end))
    segment = "" if times == "," else f"#t={times}"
    unique = tuple(dict.fromkeys(labels))
    return Video(file, name + segment, unique, None, start, end, None, without_suffix(name))
