"""The log of a run: `metrics.jsonl` and TensorBoard."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from airstreams.errors import InputError
from airstreams.files import replacing
from airstreams.runs.folder import RunFolder


class Log:
    """`metrics.jsonl` and TensorBoard of a run that stands at `step`, after `epoch` whole epochs.

    What they say of later steps and epochs is dropped. Only the main process writes.
    """

    def __init__(self, run: Path, epoch: int, step: int, is_main_process: bool) -> None:
        self.is_main_process = is_main_process
        if is_main_process:
            _forget_after(RunFolder(run).metrics, epoch, step)
            self._file = RunFolder(run).metrics.open("a", encoding="utf-8")
            self._board = SummaryWriter(str(RunFolder(run).tensorboard), purge_step=step + 1)

    def write(self, entry: dict[str, Any]) -> None:
        """An entry with its `step`."""
        if self.is_main_process:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())  # or a power cut could leave a state without what was said before it
            for name, value in _flat(entry):
                self._board.add_scalar(name, value, entry["step"])

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_main_process:
            self._file.close()
            self._board.close()


def record_of(run: Path, epoch: int) -> dict[str, Any]:
    """The record of one of the epochs that a run has done. InputError: it was lost."""
    for entry in entries(RunFolder(run).metrics):
        if "train" in entry and entry["epoch"] == epoch:
            return entry
    raise InputError(
        f"{RunFolder(run).metrics}: lacks epoch {epoch}, which is done; `airstreams evaluate` scores the run"
    )


def _forget_after(metrics: Path, epoch: int, step: int) -> None:
    """Drop what is about to be said again."""
    kept = [
        entry
        for entry in entries(metrics)
        if entry["step"] <= step and ("train" not in entry or entry["epoch"] <= epoch)
    ]
    with replacing(metrics) as temporary:
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")


def entries(metrics: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file that may not be there, but for those that a crash cut short."""
    lines = metrics.read_bytes().splitlines() if metrics.exists() else []
    for line in lines:
        with suppress(ValueError):
            yield json.loads(line)


def _flat(entry: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in entry.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and key not in ("step", "epoch"):
            yield f"{prefix}{key}", value
