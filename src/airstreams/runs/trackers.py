"""Trackers: where the metrics of a training go beside `metrics.jsonl`. All of them are Accelerate's.

TensorBoard's files are in the run. Weights & Biases and MLflow are optional packages that send the metrics to where
they are set up to send them, and only when they are asked for. A resumed training goes on in the same runs of theirs:
`trackers.json` keeps their ids.
"""

import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import (
    GeneralTracker,
    MLflowTracker,
    TensorBoardTracker,
    WandBTracker,
    get_available_trackers,
)
from rich.console import Console

from airstreams.config import Config
from airstreams.console import say, warn
from airstreams.errors import InputError, one_line
from airstreams.files import write_json
from airstreams.runs.folder import RunFolder

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow-skinny"}
"""The trackers, and the package to install for each."""

DEFAULT = ("tensorboard",)
PROJECT = "airstreams"  # unless the tracker's own environment variable names another
ADVICE = {
    "tensorboard": "Free some space on the disk",
    "wandb": "Run `wandb login`, or set WANDB_MODE=offline",
    "mlflow": "Check MLFLOW_TRACKING_URI",
}


def require_trackers(names: Sequence[str]) -> None:
    """InputError: an unknown tracker, or one whose package is missing."""
    unknown = [name for name in names if name not in PACKAGES]
    if unknown or not names:
        given = ", ".join(unknown) or "nothing"
        raise InputError(f"--log-to: got {given}, expected some of {', '.join(PACKAGES)}, joined by commas")
    installed = [str(tracker) for tracker in get_available_trackers()]
    for name in names:
        if name not in installed:
            raise InputError(f"--log-to {name}: the package is missing. Run pip install {PACKAGES[name]}.")


class Trackers:
    """The trackers of one training. Only its main process has them.

    A tracker that fails during the training is left out from then on, with a warning: hours of training are worth more.

    Args:
        names: keys of `PACKAGES`.
        folder: of the run.
        step: optimiser steps so far. What TensorBoard has of later steps is removed.
        config: is shown beside the metrics.
        console: gets warnings.

    Raises:
        InputError: a tracker cannot start.
    """

    def __init__(self, names: Sequence[str], folder: RunFolder, step: int, config: Config, console: Console) -> None:
        require_trackers(names)
        self._console = console
        self._trackers: dict[str, GeneralTracker] = {}
        ids = _read_ids(folder)
        for name in names:
            try:
                tracker, is_new = _start(name, folder, step, ids)
                if is_new:
                    tracker.store_init_configuration(_flat(asdict(config)))
            except Exception as error:  # each tracker has errors of its own
                self.close()
                raise InputError(
                    f"--log-to {name}: it cannot start ({one_line(error)[:200]}). {ADVICE[name]}, then give --resume."
                ) from error
            self._trackers[name] = tracker
        if ids:
            write_json(folder.trackers, ids)
        for name in ids.keys() - set(names):
            say(console, f"{folder.path} was logged to {name} before. Give --log-to {name} to go on there.")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log scalars of one step."""
        self._each(lambda name, tracker: tracker.log(dict(values), step=step))

    def log_picture(self, title: str, path: Path, step: int) -> None:
        """Log a PNG of one step."""
        from matplotlib.image import imread  # takes half a second to import

        picture_HW3 = (imread(path)[:, :, :3] * 255).round().astype(np.uint8)

        def log(name: str, tracker: GeneralTracker) -> None:
            if isinstance(tracker, TensorBoardTracker):
                tracker.log_images({title: picture_HW3[None]}, step=step, dataformats="NHWC")
            elif isinstance(tracker, WandBTracker):
                tracker.log_images({title: [picture_HW3]}, step=step)
            else:
                tracker.log_artifact(str(path), title)

        self._each(log)

    def close(self) -> None:
        """Finish all trackers."""
        self._each(lambda name, tracker: tracker.finish())
        self._trackers.clear()

    def _each(self, call: Callable[[str, Any], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                call(name, tracker)
            except Exception as error:  # such as a server that cannot be reached
                del self._trackers[name]
                warn(self._console, f"{name} failed ({one_line(error)[:200]}). The training goes on without it.")


def _start(name: str, folder: RunFolder, step: int, ids: dict[str, str]) -> tuple[GeneralTracker, bool]:
    """Start a tracker, and note its id; also returns whether its run is a new one that wants the config."""
    is_new = name not in ids
    tracker: GeneralTracker
    if name == "tensorboard":
        board = folder.tensorboard
        tracker = TensorBoardTracker(board.name, board.parent, purge_step=step + 1)
        tracker.start()
        return tracker, False
    if name == "wandb":
        ids.setdefault(name, os.environ.get("WANDB_RUN_ID", uuid.uuid4().hex[:8]))
        options = {"name": os.environ.get("WANDB_NAME", folder.path.resolve().name), "id": ids[name], "resume": "allow"}
        options["dir"] = os.environ.get("WANDB_DIR", str(folder.path))
        tracker = WandBTracker(os.environ.get("WANDB_PROJECT", PROJECT), **options)
        tracker.start()
        return tracker, is_new
    tracker = MLflowTracker(PROJECT, run_id=ids.get(name), run_name=folder.path.resolve().name)
    tracker.start()
    ids[name] = tracker.tracker.info.run_id
    return tracker, is_new


def _read_ids(folder: RunFolder) -> dict[str, str]:
    """Tracker to the id of its run."""
    try:
        return dict(json.loads(folder.trackers.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # a damaged file costs a second run in the tracker, not the training
        return {}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a config by their keys, such as `training.lr`; lists as text."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value) if isinstance(value, list) else value
    return flat
