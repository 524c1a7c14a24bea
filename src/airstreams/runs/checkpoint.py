"""What resuming needs: the state of a training between two steps.

`state/step-<number>.pt` is read with `weights_only`, so it runs no code either; predict and export never look at it.
There is no random generator in it: the draws of data depend on (seed, epoch, draw) alone, and dropout's generator is
seeded anew for every step.
"""

import re
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from airstreams.errors import InputError
from airstreams.files import is_temporary, replacing
from airstreams.runs.folder import RunFolder


@dataclass
class TrainingState:
    """After `step` optimiser steps, of which the last `epoch_step` belong to the epoch after `epoch` whole ones."""

    epoch: int
    epoch_step: int
    step: int
    best: float | None  # figure of the best validation so far
    data_fingerprint: dict[
        str, Any
    ]  # classes, segment_classes, multi_label, teacher, labels; resuming must find them unchanged
    learner: dict[str, Any]  # weights, optimiser and schedule
    meter: dict[str, Any] = field(default_factory=dict)  # the figures of the epoch under way so far
    recent: dict[str, Any] = field(default_factory=dict)  # and those since the last line of the log
    left_out: list[str] = field(default_factory=list)  # in the epoch under way


def save_state(state: TrainingState, run: Path, keep: int) -> None:
    """Write the state under its own name, so that the ones before are there until it is whole; keep the newest."""
    path = RunFolder(run).states / f"step-{state.step:09d}.pt"
    with replacing(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(vars(state), file)  # not asdict, which would copy every tensor first
        except RuntimeError as error:  # which of a full disk says "unexpected pos"
            if isinstance(cause := error.__context__, OSError):
                raise OSError(cause.errno, cause.strerror, str(path)) from None
            raise
    # A state of a later step is a damaged one that was passed over; temporary files are what a kill left half-written.
    states = saved_states(run)
    kept = [path for path in states if _step_of(path) <= state.step][:keep]
    for path in [*states, *filter(is_temporary, chain(run.iterdir(), RunFolder(run).states.iterdir()))]:
        if path not in kept:
            with suppress(OSError):  # somebody may be reading it, or have removed it
                path.unlink()


def saved_states(run: Path) -> list[Path]:
    """The files of the saved states, newest first."""
    found = [path for path in RunFolder(run).states.glob("step-*.pt") if re.fullmatch(r"step-\d{9,}", path.stem)]
    return sorted(found, key=_step_of, reverse=True)


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def load_state(run: Path) -> tuple[TrainingState, list[Path]]:
    """The newest state that is whole, and the damaged files that were passed over. InputError: none."""
    damaged: list[Path] = []
    for path in saved_states(run):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            if "learns" in content:  # its name in version 0.1
                content["data_fingerprint"] = content.pop("learns")
            return TrainingState(**content), damaged
        except MemoryError:
            raise
        except Exception:  # torch, pickle and zipfile tell of damage in many ways
            damaged.append(path)
    if damaged:
        raise InputError(f"{damaged[0]}: damaged, and there is no other state; start again with a new --out")
    raise InputError(
        f"{run}: nothing to resume (no state in {RunFolder(run).states}); drop --resume and give a new --out"
    )
