"""Reads a list of videos from a CSV file, and other CSV files with a header that users write."""

import csv
import math
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from airstreams.data.listing import SPLITS, Source, Video, make_source, shortlist, to_nfc, without_suffix
from airstreams.errors import InputError

REQUIRED_COLUMNS = ("path", "label")
OPTIONAL_COLUMNS = ("split", "start", "end", "group")


def read_csv(data: str, path: Path, include_missing: bool = False) -> Source:
    """List the videos of a CSV file.

    Args:
        data: DATA as it was given.
        path: the CSV file.
        include_missing: list videos that do not exist, too.

    Raises:
        InputError: a wrong row, named by its line, or a video that does not exist.
    """
    rows = [
        (line, {name: cell.strip() for name, cell in row.items()})
        for line, row in read_rows(path, REQUIRED_COLUMNS, OPTIONAL_COLUMNS)
    ]
    multi_label = any(";" in row["label"] for _, row in rows)
    line_of: dict[str, int] = {}
    videos, missing = [], []
    for line, row in rows:
        video = _video_of_row(path, line, row)
        if not multi_label and not video.labels:
            raise InputError(
                f"{path}, line {line}: the label is empty; expected a class name; write one. If videos may have "
                "several labels or none, join several by ; in at least one row (or write `jump;` for a single one)"
            )
        if video.name in line_of:
            raise InputError(
                f"{path}, line {line}: {video.name} is already in line {line_of[video.name]}; expected one row for "
                "each video or segment; delete one row, or join the labels by ;"
            )
        line_of[video.name] = line
        videos.append(video)
        if not (include_missing or video.path.is_file()):
            missing.append(video)
    if missing:
        name = missing[0].name
        raise InputError(
            f"{path}, line {line_of[name]}: {missing[0].path} does not exist ({len(missing)} of {len(rows)} rows name "
            f"missing files); expected paths relative to {path.parent}; correct the paths or delete the rows, which "
            "`airstreams check-data` lists"
        )
    unsplit = [video for video in videos if video.split is None]
    if 0 < len(unsplit) < len(videos):
        raise InputError(
            f"{path}, line {line_of[unsplit[0].name]}: the split is empty ({len(unsplit)} of {len(rows)} rows have "
            "none); expected a split in every row or in none; fill the column or delete it"
        )
    return make_source(data, videos, multi_label)


def read_rows(path: Path, required: tuple[str, ...], optional: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """Read the rows of a CSV file with a header.

    Returns:
        For each row its line number and a text for every known column, "" where the file lacks an optional column.

    Raises:
        InputError: the header has other columns, or a row has more or fewer cells than the header.
    """
    expected = f"expected a CSV file with the header {','.join(required)}{''.join(f'[,{name}]' for name in optional)}"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            table = [(reader.line_num, cells) for cells in reader if any(cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        fix = "; save it as UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        raise InputError(f"{path} cannot be read as text ({error}); {expected}{fix}") from error
    if not table:
        raise InputError(f"{path} is empty; {expected}")
    header = [name.strip() for name in table[0][1]]
    if len(header) == 1 and (found := re.search(r"[;\t|]", header[0])):
        raise InputError(f"{path} has {found[0]!r} between its cells; {expected}; save it with commas")
    for name in required:
        if name not in header:
            raise InputError(
                f"{path} has no column {name!r} but {shortlist(header)}; {expected}; add it to the first line"
            )
    for name in header:
        if name not in required + optional:
            raise InputError(f"{path} has the unknown column {name!r}; {expected}; rename or delete it")
        if header.count(name) > 1:
            raise InputError(f"{path} has the column {name!r} {header.count(name)} times; {expected}; delete one")
    if len(table) == 1:
        raise InputError(f"{path} has a header but no rows; {expected} and a row for each video; add rows")
    blank = dict.fromkeys(required + optional, "")
    rows = []
    for line, cells in table[1:]:
        if len(cells) != len(header):
            raise InputError(
                f"{path}, line {line}: {len(cells)} cells; expected {len(header)} as in the first line; "
                'put a cell that holds a comma in double quotes ("")'
            )
        rows.append((line, blank | dict(zip(header, cells, strict=True))))
    return rows


def _video_of_row(path: Path, line: int, row: Mapping[str, str]) -> Video:
    if row["split"]:
        check_split(path, line, row["split"])
    start, end = (_seconds(path, line, column, row[column]) for column in ("start", "end"))
    if end is not None and end <= (start or 0):
        raise InputError(
            f"{path}, line {line}: the end {end:g} s is not after the start {start or 0:g} s; expected a later end; "
            "swap the two, or leave the end empty for the end of the file"
        )
    cell = PurePosixPath(row["path"]).as_posix()
    if cell == ".":
        raise InputError(
            f"{path}, line {line}: the path is empty; expected a video file; write its path or delete the row"
        )
    segment = (
        "" if start is None and end is None else "#t=" + ",".join("" if t is None else f"{t}" for t in (start, end))
    )
    return Video(
        path=path.parent / cell,
        name=to_nfc(cell) + segment,
        labels=tuple(dict.fromkeys(filter(None, (to_nfc(label.strip()) for label in row["label"].split(";"))))),
        split=row["split"] or None,
        start=start,
        end=end,
        group=row["group"] or None,
        label_map=without_suffix(cell),
    )


def _seconds(path: Path, line: int, column: str, cell: str) -> float | None:
    if not cell:
        return None
    try:
        seconds = float(cell)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise InputError(
            f"{path}, line {line}: the {column} is {cell!r}; expected seconds from the first frame, such as 1.5; "
            "write a number of at least 0 or leave the cell empty"
        )
    return seconds


def check_split(path: Path, line: int, split: str) -> None:
    """Raise InputError for a split that is not train, val or test."""
    if split not in SPLITS:
        raise InputError(f"{path}, line {line}: the split is {split!r}; expected {', '.join(SPLITS)}; rename it")
