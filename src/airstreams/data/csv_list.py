"""A list of videos as a CSV file, and whatever other CSV file with a header people may have written."""

import csv
import math
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from airstreams.data.listing import SPLITS, Source, Video, composed, listed, some, without_suffix
from airstreams.errors import InputError

REQUIRED_COLUMNS = ("path", "label")
OPTIONAL_COLUMNS = ("split", "start", "end", "group")


def read_csv(data: str, path: Path, missing_too: bool = False) -> Source:
    """The videos of a list; `missing_too`: also those that are not there.

    InputError: a row that does not fit, with its line, or a video that is not there.
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
                f"{path}, line {line}: the label is empty; expected a class name, or, if videos may have several "
                "actions or none, one row at least with several joined by ; (or `jump;` for one alone)"
            )
        if video.name in line_of:
            raise InputError(
                f"{path}, line {line}: {video.name} stands in line {line_of[video.name]} already; expected one row for "
                "each video or segment; delete one, or join their labels by ;"
            )
        line_of[video.name] = line
        videos.append(video)
        if not (missing_too or video.path.is_file()):
            missing.append(video)
    if missing:
        name = missing[0].name
        raise InputError(
            f"{path}, line {line_of[name]}: there is no file {missing[0].path}, and {len(missing)} of {len(rows)} rows "
            f"name files that are missing; expected paths relative to {path.parent}; mend the paths or delete the rows "
            "(`airstreams check-data` lists them)"
        )
    unsplit = [video for video in videos if video.split is None]
    if 0 < len(unsplit) < len(videos):
        raise InputError(
            f"{path}, line {line_of[unsplit[0].name]}: no split, as in {len(unsplit)} of {len(rows)} rows; "
            "expected one in every row or in none; fill the column or delete it"
        )
    return listed(data, videos, multi_label)


def read_rows(path: Path, required: tuple[str, ...], optional: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV file with a header, each with its line number and a text for every known column.

    InputError: another header, or cells that do not fit it.
    """
    expected = f"expected a CSV file with the header {','.join(required)}{''.join(f'[,{name}]' for name in optional)}"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            table = [(reader.line_num, cells) for cells in reader if any(cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        mend = "; save it as UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        raise InputError(f"{path} cannot be read as text ({error}); {expected}{mend}") from error
    if not table:
        raise InputError(f"{path} is empty; {expected}")
    header = [name.strip() for name in table[0][1]]
    if len(header) == 1 and (found := re.search(r"[;\t|]", header[0])):
        raise InputError(f"{path} has {found[0]!r} between its cells; {expected}; save it with commas")
    for name in required:
        if name not in header:
            raise InputError(f"{path} has no column {name!r} but {some(header)}; {expected}; add it to the first line")
    for name in header:
        if name not in required + optional:
            raise InputError(f"{path} has the unknown column {name!r}; {expected}; rename or delete it")
        if header.count(name) > 1:
            raise InputError(f"{path} has the column {name!r} {header.count(name)} times; {expected}; delete one")
    if len(table) == 1:
        raise InputError(f"{path} has a header but no rows; {expected} and a row for each video; add them")
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
            f"{path}, line {line}: the end {end:g} s does not lie after the start {start or 0:g} s; expected a later "
            "end; swap the two or leave end empty for the end of the file"
        )
    cell = PurePosixPath(row["path"]).as_posix()
    if cell == ".":
        raise InputError(f"{path}, line {line}: the path is empty; expected a video's; fill it in or delete the row")
    segment = (
        "" if start is None and end is None else "#t=" + ",".join("" if t is None else f"{t}" for t in (start, end))
    )
    return Video(
        path=path.parent / cell,
        name=composed(cell) + segment,
        labels=tuple(dict.fromkeys(filter(None, (composed(label.strip()) for label in row["label"].split(";"))))),
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
    """InputError: a split by another name than train, val and test."""
    if split not in SPLITS:
        raise InputError(f"{path}, line {line}: the split is {split!r}; expected {', '.join(SPLITS)}; rename it")
