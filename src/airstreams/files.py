"""Atomic writes and locks: every file is written under a temporary name first, so no reader sees half of it."""

import csv
import errno
import json
import os
import re
import secrets
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from hashlib import sha256
from pathlib import Path
from typing import IO

from airstreams.errors import InputError

LONGEST_NAME = 255  # bytes, on the usual file systems


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name that becomes `path` once everything is on the disk. A failed write leaves nothing behind.

    The folder is made if necessary. The temporary name has the suffix of `path`, which some writers look at.
    """
    temporary = temporary_name(path)
    try:
        yield temporary
        move_into_place(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk's error names no file
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: object, indent: int | None = 2) -> None:
    """Write a JSON file; with an indent, people can read it too."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file. Texts that a spreadsheet would take for a formula are escaped (`guarded`)."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(map(guarded, header))
        writer.writerows(map(guarded, row) for row in rows)


def guarded(cell: object) -> object:
    """A cell as it is written to a CSV file: a text that begins with = + - or @ gets a ' before it.

    Spreadsheets take such a text for a formula, which may run a program. Numbers stay.
    """
    return f"'{cell}" if isinstance(cell, str) and re.match(r"'*[=+\-@]", cell) else cell


def unguarded(cell: str) -> str:
    """A cell of a CSV file without the ' of `guarded`."""
    return cell[1:] if re.match(r"'+[=+\-@]", cell) else cell


def csv_rows(file: Iterable[str], strict: bool = False) -> Iterator[tuple[int, list[str]]]:
    """The line number and the cells of each row of a CSV file of ours. csv.Error: the file is damaged."""
    reader = csv.reader(file, strict=strict)
    for cells in reader:
        yield reader.line_num, [unguarded(cell) for cell in cells]


def read_rows(
    path: Path, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> list[tuple[int, dict[str, str]]]:
    """Read a CSV file of `write_rows`. Other columns are ignored.

    Returns:
        For each row its line number and a text for every known column, "" where the file lacks an optional column.

    Raises:
        InputError: a column is missing, or a row has more or fewer cells than the header.
    """
    expected = f"expected a CSV file with the header {','.join(required)}{''.join(f'[,{name}]' for name in optional)}"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = [(line, cells) for line, cells in csv_rows(file, strict=True) if any(cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as text ({error}); {expected}") from error
    header = table[0][1] if table else []
    for name in required:
        if name not in header:
            raise InputError(f"{path} has no column {name!r}; {expected}. Copy the file again.")
    blank = dict.fromkeys(required + optional, "")
    rows = []
    for line, cells in table[1:]:
        if len(cells) != len(header):
            raise InputError(f"{path}, line {line}: {len(cells)} cells, expected {len(header)}. Copy the file again.")
        row = dict(zip(header, cells, strict=True))
        rows.append((line, blank | {name: row[name] for name in header if name in blank}))
    return rows


def is_file(path: Path) -> bool:
    """Whether there is a file of this name; False for a name that no file can have, such as one of 5000 letters."""
    with suppress(OSError, ValueError):
        return path.is_file()
    return False


def is_folder(path: Path) -> bool:
    """Whether there is a folder of this name; False for a name that none can have."""
    with suppress(OSError, ValueError):
        return path.is_dir()
    return False


def require_writable(folder: Path) -> None:
    """Raise InputError for a folder that cannot be written or made. Call it before the work, not after."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{folder} cannot be written: {existing} is not a writable folder. Make it one.")


@contextmanager
def exclusive_lock(folder: Path, work: str) -> Iterator[None]:
    """Lock a folder against other processes, on all machines that share it.

    The folder is made if necessary, and removed if it is still empty at the end. `work` completes "another process is".
    InputError: another process holds the lock, or the folder cannot be written.
    """
    require_writable(folder)
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}). Give another folder.") from error
    try:
        with exclusive_lock_file(folder / ".lock", folder, f"another process is {work} there"):
            yield
    finally:
        if made:
            with suppress(OSError):  # not empty
                folder.rmdir()


@contextmanager
def exclusive_lock_file(path: Path, locked: Path, complaint: str) -> Iterator[None]:
    """Lock something against other processes by a file that exists meanwhile.

    InputError: another process holds the lock (`complaint` says what it does), or the file cannot be written.
    """
    if sys.platform == "win32":  # it has no such locks
        yield
        return
    try:
        lock = _lock(path)
    except OSError as error:
        raise InputError(f"{locked} cannot be written ({error.strerror}). Give another place.") from error
    if lock is None:
        raise InputError(f"{locked}: {complaint}. Wait for it, or end it.")
    with lock:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def lock_of_job(folder: Path, work: str) -> AbstractContextManager[None]:
    """`exclusive_lock`, which the first of the processes that `torchrun` starts takes for all of them."""
    return exclusive_lock(folder, work) if os.environ.get("RANK", "0") == "0" else nullcontext()


def _lock(path: Path) -> IO[str] | None:
    """The file, locked until it is closed; None: another process has locked it."""
    import fcntl  # missing on Windows

    while True:
        file = path.open("w")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike with flock, no child process inherits it
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.close()
                return None
            # Any other error: the file system has no locks, and the work goes on without one.
        with suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                return file
        file.close()  # the previous holder has removed this file; lock the new one


def temporary_name(path: Path) -> Path:
    """A name in the folder of `path`, to write under before `move_into_place`. The folder is made if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id is not enough: processes in two containers may have the same one.
    prefix = f".{os.getpid()}{secrets.randbelow(10**9):09}."
    too_long = len(os.fsencode(prefix + path.name)) > LONGEST_NAME
    name = sha256(os.fsencode(path.name)).hexdigest()[:32] + path.suffix if too_long else path.name
    return path.with_name(prefix + name)


def is_temporary(path: Path) -> bool:
    """Whether a file has a name of `temporary_name`: a process is writing it, or was killed while it did."""
    return re.match(r"\.\d+\.", path.name) is not None


def move_into_place(temporary: Path, path: Path) -> None:
    """Give a written file its final name."""
    with temporary.open("r+b") as file:
        os.fsync(file.fileno())  # else a power cut could leave an empty file
    temporary.replace(path)
