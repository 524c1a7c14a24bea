"""Reads a table that people made: a CSV file of any spreadsheet or script, with commas, semicolons or tabs.

Columns are found by their names, in any case and order. Everything wrong is collected, so that one message lists it.
"""

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from airstreams.data.listing import shortlist
from airstreams.errors import InputError
from airstreams.files import unguarded
from airstreams.plural import count_of

_SEPARATORS = (",", ";", "\t", "|")  # the first of equals is taken
_BEGINNINGS = (  # of other files that people give in place of a CSV file: what it is, and what to do
    (b"PK\x03\x04", "a zip archive or a spreadsheet (.xlsx, .ods)", "Save the sheet as CSV, or unpack the archive"),
    (b"\xd0\xcf\x11\xe0", "a spreadsheet (.xls)", "Save the sheet as CSV"),
    (b"PAR1", "a Parquet file", "Save the table as CSV"),
    (b"\x1f\x8b", "compressed by gzip", "Unpack it"),
    (b"7z\xbc\xaf", "a 7z archive", "Unpack it"),
    (b"Rar!", "a rar archive", "Unpack it"),
    (b"%PDF", "a PDF file", "Save the table as CSV"),
    (b"<", "an HTML or XML file", "Save the table as CSV"),
    (b"{", "a JSON file", "Save the table as CSV"),
    (b"[", "a JSON file", "Save the table as CSV"),
)
_HEAD = 4096  # bytes that are looked at before the whole file is read
_LISTED = 10  # wrong cells that a message names
_TIME_WORDS = {"start": "start", "begin": "start", "from": "start", "end": "end", "stop": "end"}


@dataclass
class WrongCells:
    """What is wrong in a file's cells, by line."""

    path: Path
    found: list[tuple[int, str, str]] = field(default_factory=list)

    def add(self, line: int, wrong: str, fix: str) -> None:
        """Note a wrong cell: what is wrong, and what to do as a sentence without its full stop."""
        self.found.append((line, wrong, fix))

    def refuse(self) -> None:
        """Raise InputError with the first ten, if there are any."""
        if not self.found:
            return
        found = sorted(self.found)
        fixes = "".join(f"{fix}. " for fix in dict.fromkeys(fix for _, _, fix in found[:_LISTED])).strip()
        if len(found) == 1:
            raise InputError(f"{self.path}, line {found[0][0]}: {found[0][1]}. {fixes}")
        listed = "; ".join(f"line {line}: {wrong}" for line, wrong, _ in found[:_LISTED])
        more = f"; and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        raise InputError(f"{self.path} has {len(found)} wrong cells: {listed}{more}. {fixes}")


@dataclass(frozen=True)
class Columns:
    """The columns that a table may have.

    synonyms: other name, in lower case with underscores -> name.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...]
    synonyms: Mapping[str, str]

    @property
    def expected(self) -> str:
        """The header, for a message."""
        optional = "".join(f"[,{name}]" for name in self.optional)
        return f"expected a CSV file with the header {','.join(self.required)}{optional}"

    def name_of(self, header: str) -> str | None:
        """The column that a header means, or None."""
        name = _folded(header)
        return name if name in self.required + self.optional else self.synonyms.get(name)


@dataclass(frozen=True)
class Table:
    """A table's rows.

    rows: for each row its line number and a text without outer blanks for every known column, "" where it has none.
    separator: the sign between the cells.
    notes: what was ignored, as sentences.
    written: for each known column every text as it is in the file, with its outer blanks, and its first line.
    wrong: rows that are not among `rows`, since they have too many or too few cells.
    """

    rows: list[tuple[int, dict[str, str]]]
    separator: str
    notes: tuple[str, ...]
    written: Mapping[str, Mapping[str, int]]
    wrong: WrongCells


def read_table(path: Path, columns: Columns) -> Table:
    """Read a CSV file with a header.

    Raises:
        InputError: the file is no such table, or a required column is missing or ambiguous.
    """
    text = _read_text(path, columns.expected)
    lines = text.splitlines()
    first = next((line for line in lines if line.strip()), "")
    if said := re.fullmatch(r'"?sep=(.)"?[\s,;]*', first, re.IGNORECASE):  # Excel's own first line
        separator, text = said[1], text.replace(first, "", 1)
    elif not first:
        raise InputError(f"{path} is empty; {columns.expected}")
    else:
        separator = max(_SEPARATORS, key=lambda sign: _known_columns(first, sign, columns))
    records = _split_into_cells(path, text, separator, columns.expected)
    if not records:
        raise InputError(f"{path} is empty; {columns.expected}")
    header = _stripped(records[0][1])
    places, ignored = _find_columns(path, header, columns)
    if len(records) == 1:
        raise InputError(f"{path} has a header but no rows; {columns.expected} and a row for each video; add rows")
    rows, wrong = [], WrongCells(path)
    written: dict[str, dict[str, int]] = {name: {} for name in places}
    quote = {",": "a comma", ";": "a semicolon", "\t": "a tab"}.get(separator, separator)
    for line, as_written in records[1:]:
        cells = _stripped(as_written)
        if len(cells) < len(header) or any(cells[len(header) :]):
            fix = f'Put a cell that holds {quote} in double quotes ("")'
            wrong.add(line, f"{len(cells)} cells; expected {len(header)} as in the header", fix)
        else:
            cell_of = {name: unguarded(cells[place]) for name, place in places.items()}
            rows.append((line, dict.fromkeys(columns.required + columns.optional, "") | cell_of))
            for name, place in places.items():
                written[name].setdefault(as_written[place], line)
    used = [
        place
        for place in ignored
        if header[place] or any("".join(cells[place : place + 1]).strip() for _, cells in records)
    ]
    named = [header[place] or f"number {place + 1} (without a name)" for place in used]
    return Table(rows, separator, tuple(_notes(path, named, columns)), written, wrong)


def _read_text(path: Path, expected: str) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
        wide = head[:2] in (b"\xff\xfe", b"\xfe\xff")  # UTF-16, Excel's "Unicode text"
        start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
        for beginning, kind, fix in _BEGINNINGS:
            if start.startswith(beginning):
                raise InputError(f"{path} is {kind}; {expected}. {fix}.")
        content = head if b"\0" in head and not wide else path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); {expected}. Make it readable.") from error
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path} cannot be read as text: line {line} is not UTF-8; {expected}. Save it as UTF-8. Excel calls this "
            "`CSV UTF-8`."
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(
            f"{path} cannot be read as text: line {line} has a NUL character; {expected}. Save it as UTF-8, without it."
        )
    return text


def _known_columns(first_line: str, separator: str, columns: Columns) -> int:
    """How many columns are known if the header is split at this sign."""
    header = next(csv.reader([first_line], delimiter=separator, skipinitialspace=True))
    return sum(columns.name_of(name) is not None for name in header)


def _split_into_cells(path: Path, text: str, separator: str, expected: str) -> list[tuple[int, list[str]]]:
    """The rows that are not empty, each with the number of its first line."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
    records, line = [], 1
    try:
        for cells in reader:
            if any(_stripped(cells)):
                records.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path} cannot be read as text: line {line} cannot be split into cells ({error}); {expected}. Check "
            'the quotes in it, and double a quote inside a cell ("").'
        ) from error
    return records


def _stripped(cells: list[str]) -> list[str]:
    return [cell.strip() for cell in cells]


def _find_columns(path: Path, header: list[str], columns: Columns) -> tuple[dict[str, int], list[int]]:
    """For each known column its place; and the places of the others, except for pandas' index."""
    meant: dict[str, list[int]] = {}
    for place, name in enumerate(header):
        if known := columns.name_of(name):
            meant.setdefault(known, []).append(place)
    places = {}
    for name, found in meant.items():
        exact = [place for place in found if _folded(header[place]) == name] or found
        if len(exact) > 1:
            same = [header[place] for place in exact]
            if len(set(same)) == 1:
                wrong, fix = f"the column {same[0]!r} {len(same)} times", "Delete one"
            else:
                wrong = f"the columns {shortlist(same)}, and each may be the {name}"
                fix = f"Delete all but one, or rename the right one to {name}"
            raise InputError(f"{path} has {wrong}; {columns.expected}. {fix}.")
        places[name] = exact[0]
    for name in columns.required:
        if name not in places:
            similar = get_close_matches(name, [_folded(given) for given in header], n=1, cutoff=0.6)
            fix = f"Rename {similar[0]} to {name}" if similar else "Add it to the first line, which names the columns"
            raise InputError(f"{path} has no column {name!r} but {shortlist(header)}; {columns.expected}. {fix}.")
    index = {place for place, name in enumerate(header) if re.fullmatch(r"Unnamed: [\d.]+", name)}
    if not header[0]:
        index.add(0)
    return places, [place for place in range(len(header)) if place not in {*places.values(), *index}]


def _notes(path: Path, ignored: list[str], columns: Columns) -> list[str]:
    if not ignored:
        return []
    counted = count_of(len(ignored), "unknown column")
    note = f"{path}: {counted} ignored: {shortlist(ignored)}."
    for name in ignored:
        times = [_TIME_WORDS[word] for word in re.split(r"_|(?<=\d)", _folded(name)) if word in _TIME_WORDS]
        similar = get_close_matches(_folded(name), columns.optional, n=1, cutoff=0.75)
        if meant := [column for column in similar or times if column in columns.optional]:
            note += f" Rename {name} to {meant[0]} if it is that{' in seconds' if times else ''}."
    return [note]


def _folded(header: str) -> str:
    return re.sub(r"[\s_-]+", "_", header.strip().casefold())
