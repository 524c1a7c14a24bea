"""Pictures of what the streams see during a training, for its trackers."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from airstreams.console import warn
from airstreams.data.listing import Video
from airstreams.data.targets import Targets
from airstreams.distributed import is_main_process
from airstreams.errors import VideoError, one_line
from airstreams.runs.metrics_log import Log
from airstreams.runs.saved_model import SavedModel
from airstreams.training.setup import Training

Draw = Callable[[Path, SavedModel, Sequence[Video], Mapping[str, Targets], Console], None]
"""Writes a PNG of what a model's streams see in some of the videos, or nothing if there is nothing to show."""

EVERY = 5  # epochs between two pictures, at least
PICTURES = 10  # of a long training, about


class Pictures:
    """Draws the same few validation videos now and then. Without validation videos it takes training videos.

    A picture changes nothing in the training: no weights, no batch statistics, no random draws.

    draw: None draws nothing.
    """

    def __init__(self, training: Training, log: Log, draw: Draw | None) -> None:
        self._training, self._log, self._draw = training, log, draw

    def log_if_due(self, epoch: int) -> None:
        """Give a picture to the log after the first and the last epoch, and every few epochs between them."""
        training, epochs = self._training, self._training.config.training.epochs
        if self._draw is None or not is_main_process():
            return
        if epoch not in (1, epochs) and epoch % max(EVERY, epochs // PICTURES):
            return
        saved = training.saved
        saved.model.eval()  # the next epoch begins by setting it to training mode
        # One view a video: during a training a card may have no memory for more.
        one_view = replace(saved.config.evaluation, views=1, crops=1)
        shown = replace(saved, config=replace(saved.config, evaluation=one_view))
        videos = training.videos.val or training.videos.train
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=()):
            path = Path(folder) / f"step-{training.state.step:09d}.png"
            try:
                self._draw(path, shown, videos, training.targets, Console(quiet=True))
                if path.exists():
                    self._log.picture("representations", path, training.state.step)
            except (VideoError, RuntimeError, OSError) as error:  # RuntimeError: a card without memory for it
                warn(training.console, f"no picture of epoch {epoch} ({one_line(error)[:200]}). The training goes on.")
