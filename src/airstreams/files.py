"""Files that are whole or not there: whatever is written goes to a temporary name first."""

import csv
import errno
import json
import os
import re
import secrets
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import IO

from airstreams.errors import InputError

LONGEST_NAME = 255  # bytes, on the usual file systems


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name that becomes `path` once all is on the disk; nothing is left behind when writing fails.

    The folder is made if need be. The temporary name ends as `path` does, for writers that go by the suffix.
    """
    temporary = temporary_name(path)
    try:
        yield temporary
        move_into_place(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk's names no file
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: object, indent: int | None = 2) -> None:
    """Write a JSON file for programs, and with an indent for people too."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def require_writable(folder: Path) -> None:
    """InputError, before the work and not after it: nothing can be written in this folder, or it cannot be made."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: nothing can be written there, by {there}; make that a writable folder")


@contextmanager
def exclusive_lock(folder: Path, work: str) -> Iterator[None]:
    """Keep other processes, on all machines that see the folder, from the same work in it meanwhile.

    The folder is made if need be, and removed if nothing came into it. InputError: another process is at work there.
    """
    if sys.platform == "win32":  # which has no such locks
        yield
        return
    require_writable(folder)
    made, path = not folder.exists(), folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
    except OSError as error:
        raise InputError(f"{folder}: nothing can be written there ({error.strerror}); give another one") from error
    if lock is None:
        raise InputError(f"{folder}: another process is {work} there; wait for it or end it")
    with lock:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            if made:
                with suppress(OSError):  # it is not empty
                    folder.rmdir()


def _lock(path: Path) -> IO[str] | None:
    """The file, opened and locked until it is closed; None: another process has it."""
    import fcntl  # which Windows has not

    while True:
        file = path.open("w")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, no process that decodes inherits it
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.close()
                return None
            # Other errors are of a file system without locks.
        with suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                return file
        file.close()  # who held it before has removed it meanwhile


def temporary_name(path: Path) -> Path:
    """Where to write what is to become `path`, in its folder, which is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Containers that share a folder give their processes the same numbers.
    prefix = f".{os.getpid()}{secrets.randbelow(10**9):09}."
    too_long = len(os.fsencode(prefix + path.name)) > LONGEST_NAME
    name = sha256(os.fsencode(path.name)).hexdigest()[:32] + path.suffix if too_long else path.name
    return path.with_name(prefix + name)


def is_temporary(path: Path) -> bool:
    """Whether a file has such a name, and so was left behind by a process that was killed, unless it is alive."""
    return re.match(r"\.\d+\.", path.name) is not None


def move_into_place(temporary: Path, path: Path) -> None:
    """Give a file that is written its name."""
    with temporary.open("r+b") as file:
        os.fsync(file.fileno())  # or a power cut could leave the new name with nothing under it
    temporary.replace(path)
