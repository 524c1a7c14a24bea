"""The training loop, top to bottom.

It runs as one process on a CPU or a CUDA card, or as several under `torchrun`, through Accelerate. Networks run in
bfloat16 autocast where `machine.precision_on` says so, else in float32. A step never waits for the device: its
metrics are read every `LOG_EVERY` steps. Test videos choose nothing. A few of their frames are compared with training
videos, to warn of copies. The validation videos, if there are any, choose the checkpoint; without them the last epoch's
weights are the result.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from airstreams.config import Config
from airstreams.console import say, warn
from airstreams.data.listing import Source, groups_of
from airstreams.data.loader_processes import ending, ends_its_loaders
from airstreams.data.patience import StoppedWaitingError, patiently
from airstreams.distributed import any_process, broadcast_buffers, gather, is_main_process
from airstreams.errors import Stopped, VideoError
from airstreams.evaluation.calibration import fit_temperature
from airstreams.evaluation.intervals import intervals
from airstreams.evaluation.metrics import outcomes_of, scored_mask
from airstreams.evaluation.scoring import Scores, metrics_of, score_videos, targets_of
from airstreams.machine import hardware
from airstreams.recipe import from_dict
from airstreams.runs import saved_model as saved_models
from airstreams.runs import trackers
from airstreams.runs.folder import RunFolder
from airstreams.runs.metrics_log import EpochRecord, Log, record_of
from airstreams.runs.saved_model import KeptEpoch
from airstreams.training.data import in_steps
from airstreams.training.display import TrainingDisplay, is_validated
from airstreams.training.metrics import EpochMetrics, StepClock, StepMetrics, summary
from airstreams.training.pictures import Draw, Pictures
from airstreams.training.setup import Training, set_up
from airstreams.training.signals import Signals
from airstreams.training.start import Start
from airstreams.training.step import training_step

LOG_EVERY = 10  # steps
SAVE_AFTER = 60.0  # seconds; states are large, so an epoch's end is saved only if the last save is longer ago
SKIP_LIMIT = 10  # skipped steps in a row that end a training


@ends_its_loaders()
def train(
    source: Source,
    config: Config,
    run: Path,
    resume: bool,
    console: Console,
    init: Start | None = None,
    after_epoch: Callable[[EpochRecord], None] = lambda record: None,
    after_step: Callable[[int, int], None] = lambda done, total: None,
    log_to: Sequence[str] = trackers.DEFAULT,
    draw: Draw | None = None,
) -> EpochRecord:
    """Train a model on a source's training split and leave it in a run folder.

    Args:
        source: the data.
        config: the complete recipe.
        run: the run's folder.
        resume: go on from the run's newest state.
        console: receives progress and warnings.
        init: the weights to start from.
        after_epoch: called with the record of each epoch. An exception that it raises ends the training.
        after_step: called after each step with the number of finished steps and that of all steps.
        log_to: the trackers that get the metrics, keys of `runs.trackers.PACKAGES`.
        draw: draws what the streams see, now and then, for the trackers.

    Returns:
        The record of the last epoch.

    Raises:
        InputError: the config is invalid, the source does not fit it, or there is nothing to start from. Nothing is
            written into `run` then.
        VideoError: no clip could be read for some time.
        FloatingPointError: the losses or gradients of many steps were not finite. The last good state is kept.
        Stopped: a signal asked for it. The state is saved.
    """
    config = from_dict(asdict(config))  # checks a config that was made in Python as the command line checks its own
    trackers.require_trackers(log_to)
    began = time.monotonic()
    with Signals() as signals:
        training = set_up(source, config, RunFolder(run), resume, console, init)
        if training is None:
            return record_of(run, config.training.epochs)
        with (
            ending(training.loader),
            TrainingDisplay(training, began, after_step) as display,
            _open_log(training, log_to) as log,
        ):
            return _run_epochs(training, signals, display, log, Pictures(training, log, draw), after_epoch)


def _run_epochs(
    training: Training,
    signals: Signals,
    display: TrainingDisplay,
    log: Log,
    pictures: Pictures,
    after_epoch: Callable[[EpochRecord], None],
) -> EpochRecord:
    """Train from the state to the last epoch."""
    state, epochs = training.state, training.config.training.epochs
    signals.has_steps = True
    saver = _Saver(training, signals)
    while state.epoch < epochs:
        metrics = EpochMetrics.resumed(state, is_main_process())
        with saver.saves_if_stopped(metrics):
            _train_epoch(training, signals, display, log, saver, metrics)
            record = EpochRecord(state.epoch + 1, state.step, metrics.of_the_epoch())
            record.train["hardware"] = hardware(training.accelerator.device)
            record.train["precision"] = training.saved.precision
            scores = _validate(training, signals, record, display)
        _keep_if_best(training, record, scores, saver.epoch_end_is_due, metrics.whole.skipped_in_a_row)
        log.write(record.as_dict())
        pictures.log_if_due(record.epoch)
        say(training.console, summary(record, epochs))
        state.start_epoch(state.epoch + 1, metrics.whole.skipped_in_a_row)
        after_epoch(record)
    training.finish()
    return record


def _train_epoch(
    training: Training,
    signals: Signals,
    display: TrainingDisplay,
    log: Log,
    saver: "_Saver",
    metrics: EpochMetrics,
) -> None:
    """Take the remaining steps of the epoch."""
    state = training.state
    for epoch_ends in _steps(training, signals, metrics, display.step):
        saver.check(epoch_ends)
        log_is_due = state.step % LOG_EVERY == 0
        if has_read := log_is_due or saver.wants_save or epoch_ends:
            _read_metrics(training, metrics, epoch_ends)
        if log_is_due and metrics.recent.steps:
            recent = metrics.since_last_line()
            rate = training.learner.schedule.get_last_lr()[0]
            log.write({"epoch": state.epoch + 1, "step": state.step, "lr": rate} | recent)
            display.show(recent)
        display.say_total(has_read)
        saver.save_if_due(metrics)


def _open_log(training: Training, log_to: Sequence[str]) -> Log:
    """The run's log with its trackers, which only the main process has."""
    folder, state = training.folder, training.state
    if not is_main_process():
        return Log(folder.path, state.epoch, state.step, False)
    shown = trackers.Trackers(log_to, folder, state.step, training.config, training.console)
    return Log(folder.path, state.epoch, state.step, True, shown)


def _steps(training: Training, signals: Signals, metrics: EpochMetrics, advance: Callable[[], None]) -> Iterator[bool]:
    """Take the remaining steps of the epoch; yields after each one whether it was the epoch's last.

    StoppedWaitingError: a signal asked to stop while no clip arrived.
    """
    state, config, accelerator = training.state, training.config, training.accelerator
    training.sampler.start(state.epoch, state.epoch_step)
    training.learner.begin_training()
    clock = StepClock(accelerator.device)
    loader = patiently(training.loader, config.data.patience, stop=lambda: signals.stop)
    for batches in clock.waits_for(in_steps(loader, config.training.accumulate)):
        state.step += 1
        state.epoch_step += 1
        torch.manual_seed(seed_of_step(config.seed, state.step, accelerator.process_index))
        values = training_step(training.learner, accelerator, batches, config)
        epoch_ends = state.epoch_step == training.sampler.steps
        metrics.took(state.step, values, batches, clock.step(epoch_ends))
        advance()
        yield epoch_ends


class _Saver:
    """Decides when a state is saved: on request, every `save_every` steps, and at an epoch's end after `SAVE_AFTER`.

    After each step, call `check`, then `save_if_due`. Between the two the loop reads the metrics that the state keeps.

    wants_save: whether the state is to be saved after this step.
    epoch_end_is_due: whether this step ends an epoch whose end is saved.
    """

    def __init__(self, training: Training, signals: Signals) -> None:
        self.training, self.signals = training, signals
        self.epoch_end_is_due = True  # also for an epoch that was saved at its very end and has no steps left
        self.wants_save = False
        self._asked, self._stop = False, False
        self._last_save = time.monotonic()

    def check(self, epoch_ends: bool) -> None:
        """Ask all processes, after a step, whether one of them wants to save or stop."""
        signals, due = self.signals, epoch_ends and time.monotonic() - self._last_save > SAVE_AFTER
        self._asked, self._stop, self.epoch_end_is_due = any_process([signals.save or signals.stop, signals.stop, due])
        every = self.training.config.training.save_every
        self.wants_save = self._asked or self.epoch_end_is_due or self.training.state.step % every == 0

    def save_if_due(self, metrics: EpochMetrics) -> None:
        """Save the state. Stopped: a signal asked for it."""
        # After a skipped step the training may be about to fail. Then the state before it is kept.
        if not (self._asked or (self.wants_save and not metrics.whole.skipped_in_a_row)):
            return
        state = self.training.state
        state.meter, state.recent, state.left_out = metrics.state()
        self.training.save_state()
        self._last_save, self.signals.save = time.monotonic(), False
        if self._stop:
            raise self._stopped()

    @contextmanager
    def saves_if_stopped(self, metrics: EpochMetrics) -> Iterator[None]:
        """Save the state of the last step if a signal stops the block while it waits for a clip.

        Then this process does not wait for the others, which may wait for a clip too. Stopped: this happened.
        """
        try:
            yield
        except StoppedWaitingError:
            metrics.read_back()
            state = self.training.state
            state.meter, state.recent, state.left_out = metrics.state(alone=True)
            self.training.save_state_alone()
            raise self._stopped() from None

    def _stopped(self) -> Stopped:
        state = self.training.state
        return Stopped(f"stopped at step {state.step}, in epoch {state.epoch + 1}; --resume goes on from there")


def _read_metrics(training: Training, metrics: EpochMetrics, epoch_ends: bool) -> None:
    """Read the metrics of the last steps from the device, and warn of skipped steps.

    Raises:
        VideoError: too many steps had no readable clip.
        FloatingPointError: too many steps had numbers that were not finite.
    """
    for skipped in metrics.read_back():
        warn(training.console, _why_skipped(skipped, gather(skipped.names)))
    meter = metrics.whole
    if meter.skipped_in_a_row < SKIP_LIMIT and not (epoch_ends and meter.skipped > meter.steps):
        return
    if left_out := gather(metrics.left_out):
        raise VideoError(
            f"{meter.skipped} steps of this epoch were skipped, with unreadable clips. The last one: {left_out[-1]}"
        )
    raise FloatingPointError(
        f"{meter.skipped} steps of this epoch were skipped: their losses or gradients were not finite. The last good "
        "state is kept. Start again with a new --out and a lower --training.lr."
    )


def _why_skipped(metrics: StepMetrics, names: list[str]) -> str:
    if not names:
        return f"step {metrics.step} was skipped: none of its clips could be read"
    wrong = ", ".join(f"{name} is {value}" for name, value in metrics.not_finite.items() if name != "losses/total")
    return f"step {metrics.step} was skipped: {wrong}. Its clips: {', '.join(names)}"


def _validate(training: Training, signals: Signals, record: EpochRecord, display: TrainingDisplay) -> Scores | None:
    """Score the validation videos, if it is their turn.

    StoppedWaitingError: a signal asked to stop while no video arrived.
    """
    if not (training.val_videos and is_validated(record.epoch, training.config)):
        return None
    began = time.monotonic()
    broadcast_buffers(training.saved.model)
    with display.validation() as on_video:
        workers = training.config.data.workers
        scores = score_videos(
            training.saved,
            training.val_videos,
            workers=workers,
            on_video=on_video,
            stop=lambda: signals.stop,
            remark=partial(warn, training.console),
        )
    record.val = metrics_of(training.saved, scores).as_dict()
    record.val["seconds"] = time.monotonic() - began
    return scores


def _keep_if_best(
    training: Training, record: EpochRecord, scores: Scores | None, epoch_end_is_due: bool, skipped_in_a_row: int
) -> None:
    """Write the model if it is to replace the one in the run folder.

    With validation videos it must be at least as good as the best so far. Without them it replaces the older one after
    the last epoch, and whenever the epoch's end is saved.
    """
    state, last = training.state, record.epoch == training.config.training.epochs
    score = None if record.val is None else record.val[training.metric]
    if not training.val_videos:
        better = last or epoch_end_is_due
    elif score is None:  # not validated in this epoch, or no validation video has an action
        better = last and state.best is None
    else:
        better = state.best is None or score >= state.best
    if better and (last or not skipped_in_a_row):
        state.best = score
        if is_main_process():
            training.saved.kept = _kept_epoch(training, record, scores)
            saved_models.save(training.saved, training.folder.path)


def _kept_epoch(training: Training, record: EpochRecord, scores: Scores | None) -> KeptEpoch:
    """Why this epoch's weights are kept, with the metric that chose them, its interval, and the fitted temperature."""
    value = None if record.val is None else record.val[training.metric]
    if value is None or scores is None:
        return KeptEpoch(record.epoch, "last")
    targets = targets_of(training.saved, scores.videos)
    counted = scored_mask(targets)
    answer_NK = scores.probabilities[training.saved.config.answer]
    group_of = groups_of(training.val_videos)
    groups = [group_of[video.name] for video, counts in zip(scores.videos, counted, strict=True) if counts]
    interval = intervals(outcomes_of(answer_NK[counted], targets[counted]), groups)[training.metric]
    temperature = None if training.saved.multi_label else fit_temperature(scores.logits_NVK, targets)
    return KeptEpoch(record.epoch, "best", training.metric, value, interval, len(groups), temperature)


def seed_of_step(seed: int, step: int, process: int) -> int:
    """The seed of torch's generator (dropout) for a step. A resumed training draws the same numbers."""
    return int(np.random.SeedSequence((seed, step, process)).generate_state(1)[0])
