"""Saved states: what resuming needs, taken between two optimiser steps.

`state/step-NUMBER.pt` is read with `weights_only`, so reading it runs no code. `predict` and `export` never read it.
A state holds no random generator: the draws of the data depend on (seed, epoch, draw) alone, and the generator of
dropout is seeded anew for every step.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from airstreams.errors import InputError
from airstreams.files import is_temporary, replacing
from airstreams.machine import Precision
from airstreams.runs.folder import RunFolder


@dataclass
class TrainingState:
    """Where a training stands: after `step` optimiser steps, `epoch_step` of them in the epoch under way.

    epoch: epochs that are complete.
    best: the best validation metric so far.
    data_fingerprint: what resuming must find unchanged (classes, segment_classes, multi_label, targets, labels).
    learner: weights, optimiser and schedule.
    meter, recent: metrics of the epoch so far, and since the last line of the log.
    left_out: videos that could not be read in the epoch so far.
    precision: in which the network runs; None in states of earlier versions.
    """

    epoch: int
    epoch_step: int
    step: int
    best: float | None
    data_fingerprint: dict[str, Any]
    learner: dict[str, Any]
    meter: dict[str, Any] = field(default_factory=dict)
    recent: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    precision: Precision | None = None

    def start_epoch(self, epoch: int, skipped_in_a_row: int) -> None:
        """Stand at the beginning of the epoch after `epoch` complete ones."""
        self.epoch, self.epoch_step = epoch, 0
        self.meter, self.recent, self.left_out = {"skipped_in_a_row": skipped_in_a_row}, {}, []


def save_state(state: TrainingState, run: Path, keep: int) -> None:
    """Write a state under a name of its own, and keep the newest `keep` states."""
    folder = RunFolder(run)
    path = folder.states / f"step-{state.step:09d}.pt"
    with replacing(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(vars(state), file)  # asdict would copy every tensor
        except RuntimeError as error:  # torch reports a full disk as "unexpected pos"
            if isinstance(cause := error.__context__, OSError):
                raise OSError(cause.errno, cause.strerror, str(path)) from None
            raise
    # A state of a later step was damaged and passed over. Temporary files were left by a process that was killed.
    states = saved_states(run)
    kept = [path for path in states if _step_of(path) <= state.step][:keep]
    _remove(path for path in [*states, *_temporary_files(run)] if path not in kept)


def remove_states(run: Path) -> None:
    """Delete all saved states. The run can then be neither resumed nor lengthened."""
    _remove([*saved_states(run), *_temporary_files(run), RunFolder(run).frame_tables])
    with suppress(OSError):  # the folder has other files
        RunFolder(run).states.rmdir()


def _temporary_files(run: Path) -> Iterator[Path]:
    states = RunFolder(run).states
    return filter(is_temporary, chain(run.iterdir(), states.iterdir() if states.is_dir() else ()))


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with suppress(OSError):  # another process may read it, or have removed it
            path.unlink()


def saved_states(run: Path) -> list[Path]:
    """The files of the saved states, newest first."""
    found = [path for path in RunFolder(run).states.glob("step-*.pt") if re.fullmatch(r"step-\d{9,}", path.stem)]
    return sorted(found, key=_step_of, reverse=True)


def load_state(run: Path) -> tuple[TrainingState, list[Path]]:
    """Read the newest undamaged state; also returns the damaged files. InputError: there is no state to resume."""
    damaged: list[Path] = []
    for path in saved_states(run):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except MemoryError:
            raise
        except Exception:  # torch, pickle and zipfile report damage in many ways
            damaged.append(path)
        else:
            return TrainingState(**_with_current_names(content, path)), damaged
    if damaged:
        raise InputError(f"{damaged[0]}: damaged, and there is no other state. Start again with a new --out.")
    raise InputError(
        f"{run}: no saved state in {RunFolder(run).states}, so the training cannot go on. Give a new --out without "
        f"--resume; --init {run} starts from its model, if it has one."
    )


def _with_current_names(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """A state of version 0.1 under today's names."""
    if "learns" in content:
        content["data_fingerprint"] = content.pop("learns")
    if content["learner"].pop("average", None) is not None:
        raise InputError(f"{path}: the run averages its weights (training.ema). Resume it with airstreams 0.1.")
    return content


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))
