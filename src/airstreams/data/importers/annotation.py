"""What the readers of annotation files share: the annotations that they find, and how files are parsed safely."""

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airstreams.data.listing import shortlist
from airstreams.errors import InputError, one_line

LARGEST_FILE = 500_000_000  # bytes; annotations of thousands of hours have less


@dataclass(frozen=True)
class Annotation:
    """A label of a video, or of a part of it.

    media: the video as the annotation file names it: a path, a file name or an address.
    label: the class.
    where: the place in the annotation file, for messages.
    start, end: seconds from the first frame; None: the beginning or the end of the video.
    frames: the first and the last frame of the part, counted from 0, in place of `start` and `end`.
    is_point: the label has a time, `start`, but no duration.
    """

    media: str
    label: str
    where: str
    start: float | None = None
    end: float | None = None
    frames: tuple[int, int] | None = None
    is_point: bool = False


@dataclass
class Found:
    """What a reader found in an annotation file.

    annotations: in the file's order.
    notes: what was ignored, as sentences.
    wrong: entries that cannot be read, each with its place.
    """

    annotations: list[Annotation] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def read_json(path: Path) -> Any:
    """The content of a JSON file. InputError: it is too large or damaged."""
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no valid JSON ({one_line(error)[:200]}). Export it again.") from error


def read_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file. InputError: it is too large, damaged, or defines entities, which could open files."""
    text = _text(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError(f"{path} defines a document type or entities, which no tool writes. Export it again.")
    try:
        # Without a document type the parser has no entity to expand, and no file to open.
        return ElementTree.fromstring(text.encode())
    except ElementTree.ParseError as error:
        raise InputError(f"{path} is no valid XML ({one_line(error)[:200]}). Export it again.") from error


def _text(path: Path) -> str:
    if path.stat().st_size > LARGEST_FILE:
        raise InputError(f"{path} has over {LARGEST_FILE // 1_000_000} MB. Export fewer videos at a time.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason}). Export it again as UTF-8.") from error


def chosen(kind: str, names: Iterable[str], wanted: str | None, given: str) -> str | None:
    """The one of several tiers or attributes that holds the labels.

    Args:
        kind: what the tool calls them.
        names: those with annotations.
        wanted: the value of `?tier=`, or None.
        given: DATA, for messages.

    Returns:
        None: there is none at all.

    Raises:
        InputError: the wanted one is not there, or there are several and none is wanted.
    """
    listed = list(dict.fromkeys(names))
    if wanted is not None and wanted not in listed:
        raise InputError(f"{given}: there is no {kind} {wanted!r} with annotations. Choose from {shortlist(listed)}.")
    if wanted is None and len(listed) > 1:
        raise InputError(
            f"{given} has annotations of {len(listed)} {kind}s: {shortlist(listed)}. Say which one holds the classes: "
            f"{given}?tier={listed[0]}"
        )
    return wanted or (listed[0] if listed else None)


def number(value: object) -> float | None:
    """A finite number from a number or its text; None: it is none."""
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return found if abs(found) < 1e9 else None
