"""From a source and a config to a training that is ready to run, or to go on where it stopped."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from torch.utils.data import DataLoader

from airstreams.config import Config, own_loss
from airstreams.console import say, warn
from airstreams.data.content import with_contents
from airstreams.data.dataset import Batch, StepSampler
from airstreams.data.frame_table import counted_tables
from airstreams.data.kept_tables import write_tables
from airstreams.data.label_maps import COCO_CLASSES
from airstreams.data.listing import Source, Video, labels_digest
from airstreams.data.targets import Targets
from airstreams.distributed import gather, is_main_process
from airstreams.errors import InputError, one_line, require
from airstreams.files import require_writable
from airstreams.machine import Precision, computes_in_bfloat16, precision_on
from airstreams.models import tvl1_cpu
from airstreams.models.airstreams import AIRStreams, build
from airstreams.plural import count_of
from airstreams.recipe import load_run_config, save_config
from airstreams.representations import Supervised
from airstreams.representations.custom import try_out
from airstreams.representations.teaching import identities, open_targets, recorded_identities, without_targets
from airstreams.runs import saved_model as saved_models
from airstreams.runs.checkpoint import TrainingState, load_state, remove_states, save_state, saved_states
from airstreams.runs.folder import RunFolder
from airstreams.runs.known_videos import KnownVideo
from airstreams.runs.metrics_log import epoch_records
from airstreams.runs.saved_model import SavedModel
from airstreams.runs.trust import remember
from airstreams.training.data import (
    TrainingVideos,
    make_loader,
    prepare_source,
    prepare_videos,
    usual_frame_rate,
)
from airstreams.training.learner import Learner, freeze, make_accelerator, make_learner
from airstreams.training.start import Start, StartRecord

CHANGES = {
    "classes": "other classes",
    "segment_classes": "other segmentation classes",
    "multi_label": "another number of labels per video",
    "labels": "other labels",
    "targets": "other teachers' targets",
}
"""The entries of a data fingerprint that are compared, and how a message says that they differ."""

FEW_STEPS = 300  # from random weights, a model fitted 16 videos in 300 steps, but not in 60


@dataclass
class Training:
    """A training that is ready to run.

    source: the data, with splits and the videos' keys in the stores of targets.
    videos: those that can be read.
    saved: the model with its description, as it is written to disk.
    state: where the training stands; the loop keeps it up to date.
    """

    config: Config
    folder: RunFolder
    source: Source
    videos: TrainingVideos
    sampler: StepSampler
    loader: DataLoader[Batch]
    accelerator: Accelerator
    learner: Learner
    saved: SavedModel
    state: TrainingState
    console: Console

    @property
    def metric(self) -> str:
        """Which validation metric chooses the checkpoint, `top1` or `map`."""
        return self.source.metric

    @property
    def val_videos(self) -> list[Video]:
        """The videos that choose it; none: the last epoch's weights are the result."""
        return self.videos.val

    @property
    def targets(self) -> dict[str, Targets]:
        """The targets of the streams that learn from a teacher."""
        return open_targets(self.source, self.config)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.config.training.epochs * self.sampler.steps

    def save_state(self) -> None:
        """Write the state as it stands; all processes return after it is on the disk."""
        self._save_state(max(1, self.config.training.keep))

    def save_state_alone(self, keep: int | None = None) -> None:
        """`save_state` without waiting for other processes. keep: how many states; None: `training.keep`."""
        if is_main_process():
            self.state.learner = self.learner.state()
            save_state(self.state, self.folder.path, max(1, self.config.training.keep) if keep is None else keep)

    def finish(self) -> None:
        """Leave a finished run, whose model and log are complete: with its last state, or without any.

        Older states go only now. A run that is killed before can be resumed from them.
        """
        if self.config.training.keep:
            self._save_state(keep=1)
        elif is_main_process():
            remove_states(self.folder.path)

    def _save_state(self, keep: int) -> None:
        self.save_state_alone(keep)
        self.accelerator.wait_for_everyone()


def set_up(
    source: Source, config: Config, folder: RunFolder, resume: bool, console: Console, init: Start | None
) -> Training | None:
    """Make a training ready; None if the run to resume is finished already.

    Checks that need no video come first, because opening the videos can take hours. Nothing is written into the folder
    before all checks have passed.

    InputError: the config, the data or the run to resume or to start from is unsuitable.
    """
    accelerator = make_accelerator(config.training)
    console = console if is_main_process() else Console(quiet=True)
    if resume and _is_done_without_state(folder, config.training.epochs):
        say(console, f"{folder.path}: all {config.training.epochs} epochs are done already")
        return None
    state = _state_to_resume(folder, console) if resume else None
    precision = _precision(config, state, folder, accelerator.device, console)
    _require_kernel(config, accelerator.device)
    source = prepare_source(source, config, folder, resume, console)
    if not resume:
        config = _with_least_steps(config, source, console)
    segment_classes = source.label_store.classes if source.label_store else COCO_CLASSES
    fingerprint = _data_fingerprint(source, segment_classes, config)
    if state is not None:
        _require_same_data(state, fingerprint, source, folder)
        if state.epoch == config.training.epochs:
            say(console, f"{folder.path}: all {state.epoch} epochs are done already")
            return None
    if init is not None:
        source = with_contents(source, console)  # finds the videos that the starting model was trained on
    model = _new_model(source, segment_classes, config, accelerator.device)
    frozen = freeze(model, config)
    start, trained_before = StartRecord.read(folder) if resume else None, list[KnownVideo]()
    if init is not None:
        start, trained_before = _start_from(init, model, source, segment_classes, config, console)
    require_writable(folder.path)

    videos = prepare_videos(source, config, folder, resume, console)
    if not resume:
        source = with_contents(source, console)
    fingerprint |= _fingerprint_of_videos(videos, state)
    _say_sizes(source, videos, console)
    sampler, loader = make_loader(videos, source, config, accelerator)
    if init is None and not resume:
        _warn_of_few_steps(config.training.epochs, sampler.steps, console)
    taken = start.taken if start else ()
    learner = make_learner(model, frozen, config, sampler, accelerator, taken, precision)
    described = _config_of_run(folder, config) if resume else config
    rate = fingerprint["frame_rate"]
    saved = SavedModel(
        described, source.classes, segment_classes, source.multi_label, rate, learner.model, precision=precision
    )
    if state is None:
        state = TrainingState(0, 0, 0, None, fingerprint, learner.state(), precision=precision)
        if is_main_process():
            _begin_run(folder, state, source, config, videos, trained_before, start)
    else:
        _require_same_data(state, fingerprint, source, folder)
        _restore(learner, state, folder, config)
        state.precision = precision
        _keep_config(described, folder)
    accelerator.wait_for_everyone()
    return Training(config, folder, source, videos, sampler, loader, accelerator, learner, saved, state, console)


def _with_least_steps(config: Config, source: Source, console: Console) -> Config:
    """The config with as many epochs as `training.min_steps` needs. A resumed run has them already."""
    videos = len(source.split("train"))
    training = config.training.for_videos(videos)
    if training.epochs > config.training.epochs:
        say(
            console,
            f"{videos} training videos: {training.epochs} epochs instead of {config.training.epochs}, to reach "
            f"training.min_steps, {training.min_steps}. For fewer, give --training.min_steps 0.",
        )
    return replace(config, training=training)


def _precision(
    config: Config, state: TrainingState | None, folder: RunFolder, device: torch.device, console: Console
) -> Precision:
    """The precision of a new run, or the one that a run began with. InputError: the config names another one."""
    asked, key = config.training.precision, "training.precision"
    if state is None:
        return precision_on(device, asked, config.model.is_full_size, key)
    # Versions up to 0.2 had no choice: float32 on a CPU.
    began = state.precision or precision_on(device, is_full_size=False)
    if asked not in ("auto", began):
        raise InputError(f"{key}: got {asked}, but {folder.path} began in {began}. Leave it out, or give a new --out.")
    if began == "bfloat16" and device.type not in ("cpu", "cuda"):
        raise InputError(f"--resume: {folder.path} began in bfloat16, which {device.type} lacks. Give --device cpu.")
    if began == "bfloat16" and not computes_in_bfloat16(device):
        where = "this CPU" if device.type == "cpu" else "this card"
        warn(console, f"{folder.path} began in bfloat16, which {where} only emulates. It goes on, but slowly")
    return began


def _require_kernel(config: Config, device: torch.device) -> None:
    """Raise InputError if this machine cannot build the kernel that the flow stream of a run is to use."""
    flow = config.model.flow
    uses_kernel = device.type == "cpu" and "flow" in config.model.streams and flow.kernel == "fused"
    if uses_kernel and tvl1_cpu.library(torch.float32, learnt=flow.learn_kernels) is None:
        raise InputError(
            "model.flow.kernel: fused needs a C compiler, and none here can build it. Install gcc or clang, or train a "
            "new run with --model.flow.kernel torch."
        )


def _new_model(source: Source, segment_classes: Sequence[str], config: Config, device: torch.device) -> AIRStreams:
    """Build the model from the config's seed, and run its custom streams once. InputError: one of them fails."""
    torch.manual_seed(config.seed)
    model = build(config.model, len(source.classes), len(segment_classes))
    for stream in config.model.streams:
        representation = model.representations[stream]
        if isinstance(representation, Supervised) and representation.reads_pooled and stream in config.taught:
            trained = stream in config.trained_heads()
            require(trained, f"loss_weights.custom.{stream}", 0.0, "over 0, because its teacher trains the same tower")
        if stream in config.model.representations:
            if isinstance(representation, Supervised) and own_loss(stream) not in config.active_loss_weights():
                raise InputError(f"model.streams: {without_targets(stream)}")
            try_out(representation, config.clip, device)
    return model


def _keep_config(described: Config, folder: RunFolder) -> None:
    """Rewrite the config of a run that is lengthened."""
    if is_main_process() and described != load_run_config(folder.config):
        save_config(described, folder.config)


def _config_of_run(folder: RunFolder, config: Config) -> Config:
    """The config that describes a resumed run and its model: the one that it began with, perhaps with more epochs.

    Unless the run is lengthened, the description of its model then never changes, and a crash between the model's two
    files leaves a pair that belongs together.
    """
    began = load_run_config(folder.config)
    return replace(began, training=replace(began.training, epochs=config.training.epochs))


def _begin_run(
    folder: RunFolder,
    state: TrainingState,
    source: Source,
    config: Config,
    videos: TrainingVideos,
    trained_before: Sequence[KnownVideo],
    start: StartRecord | None,
) -> None:
    """Write the files of a run's beginning. The config comes last: a folder that has it can be resumed."""
    save_state(state, folder.path, keep=1)
    write_tables(folder.frame_tables, counted_tables())
    folder.write_left_out(videos.checked.bad)
    folder.write_splits(source)
    folder.write_data_warnings([*source.warnings, *videos.warnings])
    folder.write_trained_before(trained_before)
    folder.start.unlink(missing_ok=True)  # of a training that was killed at its start
    if start is not None:
        start.write(folder)
    remember(folder.path, config.model)
    save_config(config, folder.config)


def _is_done_without_state(folder: RunFolder, epochs: int) -> bool:
    """Whether a run has all epochs but no state, because it was to keep none."""
    return not saved_states(folder.path) and any(record.epoch == epochs for record in epoch_records(folder.path))


def _state_to_resume(folder: RunFolder, console: Console) -> TrainingState:
    state, damaged = load_state(folder.path)
    if len(set(gather([state.step]))) > 1:
        raise InputError(
            f"--resume: the processes found different states in {folder.path}. Use a disk that all processes share."
        )
    for path in damaged:
        warn(console, f"{path} is damaged. Training goes on from the state before it")
    return state


def _restore(learner: Learner, state: TrainingState, folder: RunFolder, config: Config) -> None:
    """Set the learner to a saved state. InputError: the state is of another model."""
    try:
        learner.restore(state.learner)
        state.learner = learner.state()  # frees the copy that was read from disk
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        fix = saved_models.fix_for_other_weights(learner.model, state.learner["model"], config.model)
        raise InputError(f"{folder.path}: its state does not fit the model ({one_line(error)[:200]}). {fix}") from error


def _start_from(
    init: Start,
    model: AIRStreams,
    source: Source,
    segment_classes: Sequence[str],
    config: Config,
    console: Console,
) -> tuple[StartRecord, list[KnownVideo]]:
    """Copy the weights that fit; returns what was taken, and the videos that a run was trained on before."""
    transfer = init.apply(model, config.model, source.classes, segment_classes)
    say(console, str(transfer))
    record = StartRecord(init.given, init.source, sorted(transfer.names))
    held_out = [video for video in source.videos if video.split != "train"]
    for warning in init.overlap_warnings(held_out, "validation and test videos"):
        warn(console, warning)
    return record, [video for run in init.runs for video in RunFolder(run).trained_on()]


def _data_fingerprint(source: Source, segment_classes: Sequence[str], config: Config) -> dict[str, Any]:
    """What a resumed training must find unchanged; the caller adds the labels of the videos."""
    return {
        "classes": list(source.classes),
        "segment_classes": list(segment_classes),
        "multi_label": source.multi_label,
        "targets": identities(open_targets(source, config)),
    }


def _fingerprint_of_videos(videos: TrainingVideos, state: TrainingState | None) -> dict[str, Any]:
    """The part of the data fingerprint that needs the videos. A resumed run keeps the frame rate that it began with."""
    labels = labels_digest([*videos.train, *videos.val, *videos.unlabelled])
    if state is None:
        return {"labels": labels, "frame_rate": usual_frame_rate(videos.train, videos.checked.rates)}
    return {"labels": labels, "frame_rate": state.data_fingerprint.get("frame_rate")}


def _require_same_data(state: TrainingState, fingerprint: dict[str, Any], source: Source, folder: RunFolder) -> None:
    """Raise InputError if the data changed since the run began. States of earlier versions may lack some entries."""
    before = recorded_identities(state.data_fingerprint)
    changes = [CHANGES[name] for name, value in fingerprint.items() if before.get(name, value) != value]
    if changes:
        raise InputError(
            f"--resume: {source.name} has {' and '.join(changes)} than {folder.path} was trained on. Give the "
            "DATA that the run began with, or begin a new run with another --out."
        )


def _warn_of_few_steps(epochs: int, steps_per_epoch: int, console: Console) -> None:
    steps = epochs * steps_per_epoch
    if steps < FEW_STEPS:
        warn(
            console,
            f"{steps} steps are few for random weights. Give more --training.epochs than {epochs}, or start from "
            "another run with --init RUN",
        )


def _say_sizes(source: Source, videos: TrainingVideos, console: Console) -> None:
    tested = sum(video.split == "test" for video in source.videos)
    beside = f", and {count_of(len(videos.unlabelled), 'unlabelled video')} for training" if videos.unlabelled else ""
    say(
        console,
        f"{len(videos.train)} training, {len(videos.val)} validation and {tested} test videos of "
        f"{len(source.classes)} classes{beside}",
    )
