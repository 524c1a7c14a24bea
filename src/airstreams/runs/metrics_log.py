"""The log of a run: `metrics.jsonl` and TensorBoard."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from airstreams.errors import InputError
from airstreams.files import replacing
from airstreams.runs.folder import RunFolder


@dataclass
class EpochRecord:
    """The log's line on a whole epoch.

    epoch: counted from 1.
    step: optimiser steps so far.
    train: mean losses and gradient norms, clips, speed, skipped steps and unreadable videos of the epoch.
    val: metrics of the validation videos; None: not validated in this epoch.
    """

    epoch: int
    step: int
    train: dict[str, Any]
    val: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The line as it stands in `metrics.jsonl`."""
        line = {"epoch": self.epoch, "step": self.step, "train": self.train}
        return line if self.val is None else line | {"val": self.val}


class Log:
    """Writes the log of a run that stands at `step`, after `epoch` complete epochs.

    Lines on later steps and epochs are removed first. With several processes only the main one writes.
    """

    def __init__(self, run: Path, epoch: int, step: int, is_main_process: bool) -> None:
        self.is_main_process = is_main_process
        if is_main_process:
            folder = RunFolder(run)
            _remove_after(folder.metrics, epoch, step)
            self._file = folder.metrics.open("a", encoding="utf-8")
            self._board = SummaryWriter(str(folder.tensorboard), purge_step=step + 1)

    def write(self, entry: dict[str, Any]) -> None:
        """Write an entry, which has a `step`."""
        if self.is_main_process:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())  # after a power cut, no state may be newer than its log
            for name, value in _scalars(entry):
                self._board.add_scalar(name, value, entry["step"])

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_main_process:
            self._file.close()
            self._board.close()


def entries(metrics: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log, without those that a crash cut short; none if there is no file."""
    lines = metrics.read_bytes().splitlines() if metrics.exists() else []
    for line in lines:
        with suppress(ValueError):
            yield json.loads(line)


def epoch_records(run: Path) -> list[EpochRecord]:
    """The records of the epochs that a run has completed."""
    lines = entries(RunFolder(run).metrics)
    return [
        EpochRecord(line["epoch"], line["step"], line["train"], line.get("val")) for line in lines if "train" in line
    ]


def record_of(run: Path, epoch: int) -> EpochRecord:
    """The record of one completed epoch. InputError: the log lacks it."""
    for record in epoch_records(run):
        if record.epoch == epoch:
            return record
    raise InputError(
        f"Cannot read the metrics of epoch {epoch}: its line is missing in {RunFolder(run).metrics}. The model itself "
        "is complete: score it with `airstreams evaluate`."
    )


def _remove_after(metrics: Path, epoch: int, step: int) -> None:
    """Remove the lines that the training is about to write again."""
    kept = [
        entry
        for entry in entries(metrics)
        if entry["step"] <= step and ("train" not in entry or entry["epoch"] <= epoch)
    ]
    with replacing(metrics) as temporary:
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")


def _scalars(entry: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in entry.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and key not in ("step", "epoch"):
            yield f"{prefix}{key}", value
