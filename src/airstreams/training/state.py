"""What resuming needs: the state of a training before its first and after its last whole epoch.

`state/last.pt` is read with `weights_only`, so it runs no code either; predict and export never look at it.
"""

import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from airstreams.errors import InputError
from airstreams.files import replacing


@dataclass
class TrainingState:
    """After `epoch` epochs and `step` optimiser steps."""

    epoch: int
    step: int
    best: float | None  # figure of the best validation so far
    learns: dict[str, Any]  # what the data taught: classes, segment_classes, multi_label
    model: dict[str, Any]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    rng: torch.Tensor  # dropout's generator; the data's draws depend on seed and epoch alone


def save_state(state: TrainingState, run: Path) -> None:
    """Write the state; a half-written one is never seen."""
    with replacing(run / "state" / "last.pt") as temporary:
        torch.save(asdict(state), temporary)


def load_state(run: Path) -> TrainingState:
    """Read the state. InputError: none, or damaged."""
    path = run / "state" / "last.pt"
    if not path.is_file():
        raise InputError(f"{run}: nothing to resume (no state/last.pt); drop --resume and give a new --out")
    try:
        return TrainingState(**torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"{path}: damaged ({str(error).splitlines()[0]}); start again with a new --out") from error
