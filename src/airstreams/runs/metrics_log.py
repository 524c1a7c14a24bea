"""The log of a run: `metrics.jsonl`, and what trackers show of it."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from airstreams.errors import InputError
from airstreams.files import replacing
from airstreams.runs.folder import RunFolder
from airstreams.runs.trackers import Trackers


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

    trackers: get the metrics too; they are closed with the log.
    """

    def __init__(
        self, run: Path, epoch: int, step: int, is_main_process: bool, trackers: Trackers | None = None
    ) -> None:
        self.is_main_process = is_main_process
        self._trackers = trackers
        if is_main_process:
            folder = RunFolder(run)
            kept = _remove_after(folder.metrics, epoch, step)
            self._has_steps = any(entry["epoch"] > epoch for entry in kept)
            self._file = folder.metrics.open("a", encoding="utf-8")

    def write(self, entry: dict[str, Any]) -> None:
        """Write an entry, which has a `step`."""
        if not self.is_main_process:
            return
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())  # after a power cut, no state may be newer than its log
        ends_epoch = "train" in entry
        if self._trackers is not None:
            # The means of an epoch would show each loss twice. They stand in where the epoch is too short for a line.
            training = entry.get("train", entry)
            values = {} if ends_epoch and self._has_steps else _training_scalars(training)
            self._trackers.log(values | _validation_scalars(entry.get("val", {})), entry["step"])
        self._has_steps = not ends_epoch

    def picture(self, title: str, path: Path, step: int) -> None:
        """Give a PNG to the trackers."""
        if self._trackers is not None:
            self._trackers.log_picture(title, path, step)

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_main_process:
            self._file.close()
            if self._trackers is not None:
                self._trackers.close()


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


def _remove_after(metrics: Path, epoch: int, step: int) -> list[dict[str, Any]]:
    """Remove the lines that the training is about to write again; returns the others."""
    kept = [
        entry
        for entry in entries(metrics)
        if entry["step"] <= step and ("train" not in entry or entry["epoch"] <= epoch)
    ]
    with replacing(metrics) as temporary:
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
    return kept


def _training_scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of some steps by the names that trackers show, in groups."""
    named = {f"loss/{name}": value for name, value in metrics["losses"].items()}
    named |= {f"gradient_norm/{name}": value for name, value in metrics["gradient_norms"].items()}
    named |= {f"speed/{name}": metrics[name] for name in ("clips_per_second", "waiting")}
    named["optimizer/skipped_steps"] = metrics["skipped"]
    if "lr" in metrics:  # the means of an epoch have none
        named["optimizer/lr"] = metrics["lr"]
    return named


def _validation_scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The validation metrics that apply, of the answer and of each head."""
    named = {f"validation/{name}": metrics.get(name) for name in ("top1", "top5", "mean_per_class", "map", "log_loss")}
    for head, of_head in metrics.get("streams", {}).items():
        named |= {f"validation_{name}_by_stream/{head}": of_head.get(name) for name in ("top1", "map")}
    return {name: value for name, value in named.items() if value is not None}
