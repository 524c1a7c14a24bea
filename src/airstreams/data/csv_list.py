"""Reads a list of videos from a CSV file that people made."""

import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from airstreams.data.csv_table import Columns, Table, WrongCells, read_table
from airstreams.data.listing import (
    CONTROL_CHARACTERS,
    SPLITS,
    UNLABELLED,
    Source,
    Video,
    make_source,
    shortlist,
    to_nfc,
    without_suffix,
)
from airstreams.errors import InputError
from airstreams.files import is_file, is_folder, write_rows

_NAMES_OF_COLUMNS = {
    "path": ("file", "filename", "file_name", "filepath", "file_path", "video", "video_path", "clip_path"),
    "label": ("labels", "class", "class_name", "action", "category"),
    "split": ("subset",),
    "start": ("start_s", "start_sec", "start_seconds"),
    "end": ("end_s", "end_sec", "end_seconds"),
}
COLUMNS = Columns(
    required=("path", "label"),
    optional=("split", "start", "end", "group"),
    synonyms={other: name for name, others in _NAMES_OF_COLUMNS.items() for other in others},
)
SPLIT_NAMES = {
    **{name: name for name in SPLITS},
    "training": "train",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "dev": "val",
    "testing": "test",
}
"""Names of splits in a CSV file, in lower case. `eval` is not among them: it may be either."""

_SPLITS_IN_WORDS = f"{', '.join(SPLITS[:-1])} or {SPLITS[-1]}"
_FEW = 0.05  # of the rows with several labels: a mistake rather than multi-label data
_LISTED = 10  # missing files that a message names


def read_csv(data: str, path: Path, include_missing: bool = False, root: Path | None = None) -> Source:
    """List the videos of a CSV file.

    A row without a label, or with the label `_unlabelled`, is an unlabelled training video. In a multi-label list, a
    row without a label is a video that shows none of the classes.

    Args:
        data: DATA as it was given.
        path: the CSV file.
        include_missing: list videos that do not exist, too.
        root: the folder that the paths are relative to; None: the CSV file's.

    Raises:
        InputError: the file is no list of videos; or wrong cells, named by their lines; or videos that do not exist.
    """
    table = read_table(path, COLUMNS)
    folder = path.parent if root is None else root
    shown = folder.absolute()
    multi_label = any(";" in row["label"] for _, row in table.rows)
    line_of: dict[str, int] = {}
    videos: list[Video] = []
    unlabelled: list[Video] = []
    for line, row in table.rows:
        video = _video_of_row(table, line, row, folder)
        if video is None:
            continue
        is_unlabelled = UNLABELLED in video.labels or not (multi_label or video.labels)
        if is_unlabelled:
            _check_unlabelled(table.wrong, line, video)
            video = replace(video, labels=(), split="train")
        if video.name in line_of:
            table.wrong.add(
                line,
                f"{video.name} is already in line {line_of[video.name]}",
                "Keep one row for each video or segment, and join its labels by ;",
            )
        line_of.setdefault(video.name, line)
        (unlabelled if is_unlabelled else videos).append(video)
    table.wrong.refuse()
    warnings = [*table.notes, *_label_warnings(table, multi_label)]
    listed = sorted([*videos, *unlabelled], key=lambda video: line_of[video.name])
    missing = [video for video in listed if not is_file(video.path)]
    if missing and not include_missing:
        raise InputError(_missing_files(path, shown, missing, listed, line_of))
    if missing and len(missing) == len(listed):
        warnings.append(f"{path}: none of the files exists. {_where_they_are(path, shown, missing[0])}")
    unsplit = [video for video in videos if video.split is None]
    if 0 < len(unsplit) < len(videos):
        raise InputError(
            f"{path}, line {line_of[unsplit[0].name]}: the split is empty ({len(unsplit)} of {len(videos)} rows have "
            "none); expected a split in every row or in none; fill the column or delete it"
        )
    source = make_source(data, videos, multi_label, unlabelled)
    return replace(source, warnings=tuple(warnings), own_groups=any(video.group for video in listed))


def read_paths(path: Path, root: Path | None = None) -> tuple[list[Video], tuple[str, ...]]:
    """List the videos and segments of a CSV file without regard to its labels, in the order of its rows.

    Args:
        path: the CSV file.
        root: the folder that the paths are relative to; None: the CSV file's.

    Returns:
        The videos, and what was ignored as sentences. A file may be missing, and a row may occur again.

    Raises:
        InputError: the file is no list of videos, or it has wrong cells, named by their lines.
    """
    optional = ("label", *COLUMNS.optional)
    table = read_table(path, replace(COLUMNS, required=("path",), optional=optional))
    folder = path.parent if root is None else root
    rows = [_video_of_row(table, line, row, folder) for line, row in table.rows]
    table.wrong.refuse()
    return [video for video in rows if video is not None], table.notes


def write_csv(path: Path, videos: Sequence[Video], multi_label: bool, unlabelled: Sequence[Video] = ()) -> None:
    """Write a list of videos that `read_csv` reads back. The paths are relative to the file where that is possible.

    Args:
        path: the CSV file.
        videos: with labels, and with splits, parts and groups if they have any.
        multi_label: each label ends with `;`, so that a list in which no video has several stays multi-label.
        unlabelled: videos without a label, listed after the others.

    Raises:
        InputError: the file is there already.
    """
    if path.exists():
        raise InputError(f"{path} is there already. Delete it, or give another file.")
    folder = path.absolute().parent
    rows: list[tuple[str, ...]] = []
    splits = {video.split for video in videos} - {None}
    for video in (*videos, *unlabelled):
        file = video.path.absolute()
        place = file.relative_to(folder) if file.is_relative_to(folder) else file
        times = ["" if time is None else f"{time}" for time in (video.start, video.end)]
        labels = "".join(f"{label};" for label in video.labels) if multi_label else "".join(video.labels)
        split = video.split or ""
        if len(rows) >= len(videos):
            labels, split = UNLABELLED, "train" if splits else ""
        rows.append((place.as_posix(), labels, split, *times, video.group or ""))
    used = [0, 1, *(column for column in range(2, 6) if any(row[column] for row in rows))]
    header = ("path", "label", "split", "start", "end", "group")
    write_rows(path, [header[column] for column in used], [[row[column] for column in used] for row in rows])


def _video_of_row(table: Table, line: int, row: dict[str, str], folder: Path) -> Video | None:
    """The row's video; None for a wrong row, and what is wrong is noted in `table.wrong`."""
    wrong = table.wrong
    wrong_before = len(wrong.found)
    split = SPLIT_NAMES.get(row["split"].casefold())
    if row["split"] and split is None:
        wrong.add(line, f"the split is {row['split']!r}", f"Write {_SPLITS_IN_WORDS}")
    start, end = (_seconds(table, line, column, row[column]) for column in ("start", "end"))
    if end is not None and end <= (start or 0):
        wrong.add(
            line,
            f"the end {end:g} s is not after the start {start or 0:g} s",
            "Swap the two, or leave the end empty for the end of the file",
        )
    for column in ("path", "label", "group"):
        if CONTROL_CHARACTERS.search(row[column]):
            wrong.add(
                line,
                f"the {column} {row[column]!a} has a line break or another control character",
                "Write the name on one line, and rename the file or class if it has one",
            )
    _check_path(wrong, line, row["path"], folder)
    if len(wrong.found) > wrong_before:
        return None
    cell = PurePosixPath(row["path"]).as_posix()
    segment = (
        "" if start is None and end is None else "#t=" + ",".join("" if t is None else f"{t}" for t in (start, end))
    )
    return Video(
        path=folder / cell,
        name=to_nfc(cell) + segment,
        labels=_labels(row["label"]),
        split=split,
        start=start,
        end=end,
        group=row["group"] or None,
        label_map=without_suffix(cell),
    )


def _check_unlabelled(wrong: WrongCells, line: int, video: Video) -> None:
    if len(video.labels) > 1:
        wrong.add(line, f"the label {UNLABELLED} stands beside others", "Leave it out, or leave out the others")
    if video.split not in (None, "train"):
        wrong.add(
            line,
            f"the label is empty, but the split is {video.split}",
            "Write the label. A video without one can only be in train",
        )


def _labels(cell: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, (to_nfc(label.strip()) for label in cell.split(";")))))


def _check_path(wrong: WrongCells, line: int, cell: str, folder: Path) -> None:
    if not PurePosixPath(cell).name:
        wrong.add(line, "the path is empty", "Write the path of a video file, or delete the row")
    elif re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", cell):
        wrong.add(
            line,
            f"the path {cell} is an address",
            "Download the videos first, and write the paths of the files",
        )
    elif os.sep == "/" and re.match(r"[A-Za-z]:[\\/]", cell):
        wrong.add(
            line,
            f"the path {cell} is one of Windows, with a drive",
            "Write paths relative to the CSV file, with / between folders",
        )
    elif os.sep == "/" and "\\" in cell and not is_file(folder / cell):
        wrong.add(
            line,
            f"the path {cell} has backslashes, which do not separate folders on this system",
            "Write / between folders",
        )


def _seconds(table: Table, line: int, column: str, cell: str) -> float | None:
    if not cell:
        return None
    # A decimal comma needs another separator between cells. With commas, "1,500" in quotes may as well be 1500.
    number = cell if table.separator == "," else re.sub(r"^(\d*),(\d*)$", r"\1.\2", cell)
    try:
        seconds = float(number)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        table.wrong.add(
            line,
            f"the {column} is {cell!r}",
            "Write the seconds from the first frame as a number such as 1.5, or leave the cell empty",
        )
        return None
    return seconds


def _label_warnings(table: Table, multi_label: bool) -> list[str]:
    """What is probably not meant.

    A blank beside a label, a wrong separator between labels, or a single cell that makes a list multi-label.
    """
    warnings, path = [], table.wrong.path
    cells = Counter(row["label"] for _, row in table.rows)
    first_line = {row["label"]: line for line, row in reversed(table.rows)}
    for sign in ",|":
        if joined := [cell for cell in cells if re.search(rf"\S\s*[{sign}]\s*\S", cell)]:
            example, name = joined[0], {",": "comma", "|": "|"}[sign]
            parts = [part.strip(" []\"'") for part in example.split(sign)]  # a list of Python, too
            warnings.append(
                f"{path}: labels with a {name}: {shortlist([repr(cell) for cell in joined])}, first in line "
                f"{first_line[example]}. Each is one class. If it means several labels, separate them by ; as in "
                f"{'; '.join(parts)}."
            )
    spellings: dict[str, list[str]] = defaultdict(list)
    for cell in table.written["label"]:
        spellings[cell.strip()].append(cell)
    if differ := [names for label, names in spellings.items() if label and len(names) > 1]:
        named = shortlist([" and ".join(map(repr, names[:2])) for names in differ])
        line = next(table.written["label"][name] for name in differ[0] if name != name.strip())
        warnings.append(
            f"{path}: labels that differ only by an outer blank: {named} (line {line}). Each pair is one class. Delete "
            "the blank, or give the second class another name."
        )
    several = {cell: count for cell, count in cells.items() if len(_labels(cell)) > 1}
    rows = sum(several.values())
    if multi_label and len(table.rows) > rows > 0 and (len(several) == 1 or rows < _FEW * len(table.rows)):
        example = next(iter(several))
        warnings.append(
            f"{path}: only {rows} of {len(table.rows)} rows have several labels, such as {example!r} (line "
            f"{first_line[example]}), since ; separates labels. The whole list is multi-label for it. If it is one "
            "label, write another sign than ; in it."
        )
    return warnings


def _missing_files(
    path: Path, folder: Path, missing: Sequence[Video], videos: Sequence[Video], line_of: dict[str, int]
) -> str:
    if len(missing) == len(videos):
        first = missing[0]
        return (
            f"{path}: none of its {len(videos)} files exists, such as {first.path} (line {line_of[first.name]}). "
            f"{_where_they_are(path, folder, first)}"
        )
    listed = "; ".join(f"line {line_of[video.name]}: {video.path}" for video in missing[:_LISTED])
    more = f"; and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
    return (
        f"{path}: {len(missing)} of {len(videos)} rows name missing files: {listed}{more}. {_near_file(missing[0])}"
        f"Paths are relative to {folder}. Correct the paths or delete the rows, which `airstreams check-data` lists."
    )


def _where_they_are(path: Path, folder: Path, first: Video) -> str:
    """What to do if no file exists: where to look, and where the first one was found."""
    cell = PurePosixPath(first.name.partition("#t=")[0])
    if cell.is_absolute() or cell.parts[0].startswith("~"):
        if is_file(folder / cell.name):
            return f"A file {cell.name} is in {folder}. Write paths relative to it."
        return f"Write paths relative to {folder}, or relative to another folder DIR and give --root DIR."
    own = path.parent.absolute()
    relative_to = f"Paths are relative to {'the folder of the CSV file, ' if folder == own else ''}{folder}."
    for place in (Path.cwd(), own, own.parent, *sorted(own.glob("*/"))):
        if place != folder and is_file(place / cell):
            return f"{relative_to} The first file is in {place}. Give --root {place}."
    return f"{relative_to} {_near_file(first)}Give the folder that they are relative to as --root DIR."


def _near_file(video: Video) -> str:
    """A hint at a file with the same name but another suffix or case; else nothing."""
    parent, name = video.path.parent.absolute(), video.path.name
    try:
        names = sorted(file.name for file in parent.iterdir())
    except OSError:
        return ""
    near = [other for other in names if name.casefold() in (other.casefold(), PurePosixPath(other).stem.casefold())]
    near = near or [other for other in names if PurePosixPath(other).stem == PurePosixPath(name).stem]
    if is_folder(video.path):
        return f"{name} is a folder, not a video. "
    return f"{parent} has {near[0]} instead of {name}. " if near else ""


def check_split(path: Path, line: int, split: str) -> None:
    """Raise InputError for a split that is not train, val or test."""
    if split not in SPLITS:
        raise InputError(f"{path}, line {line}: the split is {split!r}; expected {_SPLITS_IN_WORDS}; rename it")
