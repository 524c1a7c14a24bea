"""Files that are whole or not there: whatever is written goes to a temporary name first."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name that becomes `path` once all is on the disk; nothing is left behind when writing fails.

    The folder is made if need be. The temporary name ends as `path` does, for writers that go by the suffix.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())  # or a power cut could leave the new name with nothing under it
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
