"""The training loop, top to bottom.

One process on a CPU or a CUDA card, or several under `torchrun`, through Accelerate. float32 on a CPU, bfloat16
autocast on CUDA cards that have it. Nothing here makes a step wait for the device: what it says of itself is read every
`LOG_EVERY` steps only, and a step whose numbers are not finite is skipped on the device. Test data is never looked at:
a validation part, where there is one, chooses the checkpoint; without one the last is the result.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils.data import DataLoader

from airstreams.config import Config
from airstreams.data.cache import FrameCache
from airstreams.data.dataset import Batch, StepSampler, TrainingClips
from airstreams.data.label_maps import COCO_CLASSES, NO_LABEL
from airstreams.data.listing import Source, Video, labels_digest, overlapping
from airstreams.data.loader_processes import ends_its_loaders, loader_options
from airstreams.data.transforms import augment
from airstreams.distributed import any_process, broadcast_buffers, gather, is_main_process
from airstreams.errors import InputError, Stopped, VideoError, one_line
from airstreams.evaluation.scoring import metrics_of, score_videos
from airstreams.files import require_writable
from airstreams.machine import hardware
from airstreams.models.airstreams import AIRStreams, build
from airstreams.recipe import from_dict, load_config, save_config
from airstreams.representations.custom import try_out
from airstreams.runs import saved_model as saved_models
from airstreams.runs.checkpoint import TrainingState, load_state, save_state
from airstreams.runs.folder import RunFolder
from airstreams.runs.metrics_log import Log, record_of
from airstreams.runs.saved_model import SavedModel
from airstreams.training.learner import Learner, freeze, make_accelerator, make_learner
from airstreams.training.losses import compute_losses, total_loss
from airstreams.training.metrics import EpochMetrics, StepClock, StepMetrics, note, summary
from airstreams.training.prepare import prepare_source, prepare_videos, usual_rate
from airstreams.training.signals import Signals
from airstreams.training.transfer import take_over

LOG_EVERY = 10  # steps
SAVE_AFTER = 60.0  # s; the end of an epoch is saved if the last save is longer ago: a state is five times the model
FEW_STEPS = 300  # from random weights: 60 left a model of 16 videos short of telling these apart, 300 did not
SKIP_LIMIT = 10  # steps in a row that could not be taken

Item = TypeVar("Item")


@ends_its_loaders()
def train(
    source: Source,
    config: Config,
    run: Path,
    resume: bool,
    console: Console,
    init: Path | None = None,
    after_epoch: Callable[[dict[str, Any]], None] = lambda record: None,
) -> dict[str, Any]:
    """Train a model on a source's training part and leave it in `run`.

    Args:
        source: the data.
        config: of the run.
        run: its folder.
        resume: go on from the run's newest state.
        console: to talk to.
        init: a run to start from.
        after_epoch: called with each epoch's record. What it raises ends the training.

    Returns:
        The last epoch's record.

    Raises:
        InputError: a config that is none, a source that it cannot be trained on, or nothing to start from; nothing is
            written into `run` then.
        VideoError: no clip could be read for some time.
        FloatingPointError: no step's numbers were finite for some time; the last good state is kept.
        Stopped: a signal asked for it; the state is saved.
    """
    config = from_dict(asdict(config))  # one made in Python has met no parser, and could not be loaded again
    folder = RunFolder(run)
    with Signals() as signals:
        accelerator = make_accelerator(config.training)
        console = console if is_main_process() else Console(quiet=True)
        state = _state_to_resume(run, console) if resume else None
        source = prepare_source(source, config, run, resume, console)
        segment_classes = source.label_store.classes if source.label_store else COCO_CLASSES
        fingerprint = _data_fingerprint(source, segment_classes, config)
        if state is not None:
            _refuse_other_data(state, fingerprint, source, run)
            if state.epoch == config.training.epochs:
                console.print(f"{run}: all {state.epoch} epochs are done already", soft_wrap=True)
                return record_of(run, state.epoch)
        torch.manual_seed(config.seed)
        model = build(config.model, len(source.classes), len(segment_classes))
        trained_before = _start_from(init, model, source, segment_classes, console) if init else set[str]()
        frozen = freeze(model, config)
        for stream in config.model.streams:
            if stream in config.model.representations:
                try_out(model.representations[stream], config.clip, accelerator.device)
        require_writable(run)
        # All that can be refused has been refused by now: going through the videos can take hours.
        train_videos, val_videos, checked, cache = prepare_videos(source, config, run, resume, console)
        fingerprint["labels"] = labels_digest([*train_videos, *val_videos])
        tested = sum(video.split == "test" for video in source.videos)
        counts = f"{len(train_videos)} training, {len(val_videos)} validation and {tested} test videos"
        console.print(f"{counts} of {len(source.classes)} classes")
        sampler, loader = make_loader(train_videos, source, config, cache, accelerator)
        steps = config.training.epochs * sampler.steps
        if steps < FEW_STEPS and init is None and not resume:
            console.print(
                f"beware: {steps} steps are few to learn in from random weights; give more --training.epochs than "
                f"{config.training.epochs}, or --init RUN, a run on other videos",
                soft_wrap=True,
            )
        learner = make_learner(model, frozen, config, sampler, accelerator)
        # As the run began, wherever it goes on: so its description stays the same, and a crash between the model's two
        # files leaves a pair that belongs together.
        described = load_config(folder.config) if resume else config
        frame_rate = (
            usual_rate(train_videos, checked.rates) if state is None else state.data_fingerprint.get("frame_rate")
        )
        fingerprint["frame_rate"] = frame_rate
        saved = SavedModel(described, source.classes, segment_classes, source.multi_label, frame_rate, learner.model)
        if state is not None:
            _refuse_other_data(state, fingerprint, source, run)
            try:
                learner.restore(state.learner)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError) as error:
                mend = saved_models.mend_of_differing(model, state.learner["model"], config.model)
                raise InputError(f"{run}: its state does not fit ({one_line(error)[:200]}); {mend}") from error
        else:
            state = TrainingState(0, 0, 0, None, fingerprint, learner.state())
            if is_main_process():
                save_state(state, run, config.training.keep)
                folder.write_left_out(checked.bad)
                folder.write_splits(source)
                folder.write_trained_before(trained_before)
                save_config(config, folder.config)  # last: a folder that has it can be resumed
        accelerator.wait_for_everyone()

        step, best, last_save = state.step, state.best, time.monotonic()
        record: dict[str, Any] = {}
        columns = (
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Log(run, state.epoch, step, is_main_process()) as log, Progress(*columns, console=console) as progress:
            signals.has_steps = True
            task = progress.add_task("", total=config.training.epochs * sampler.steps, completed=step, note="")
            for epoch in range(state.epoch, config.training.epochs):
                sampler.start(epoch, state.epoch_step)
                metrics = EpochMetrics.resumed(state, is_main_process())
                due = True  # also where the epoch was saved at its very end, and no step of it is left
                learner.begin_training()
                clock = StepClock(accelerator.device)

                for batches in clock.waits_for(in_steps(loader, config.training.accumulate)):
                    step += 1
                    torch.manual_seed(seed_of_step(config.seed, step, accelerator.process_index))
                    values = training_step(learner, accelerator, batches, step, config)
                    epoch_step = step - epoch * sampler.steps
                    ends = epoch_step == sampler.steps
                    metrics.took(step, values, batches, clock.step(ends))
                    progress.update(task, advance=1)

                    due = ends and time.monotonic() - last_save > SAVE_AFTER
                    asked, stop, due = any_process([signals.save or signals.stop, signals.stop, due])
                    save = asked or due or step % config.training.save_every == 0
                    if step % LOG_EVERY == 0 or save or ends:
                        for skipped in metrics.read_back():
                            console.print(_why_skipped(skipped, gather(skipped.names)), soft_wrap=True)
                        _stop_where_all_goes_wrong(metrics, ends)
                    if step % LOG_EVERY == 0 and metrics.recent.steps:
                        said = metrics.since_last_line()
                        log.write({"epoch": epoch + 1, "step": step, "lr": learner.schedule.get_last_lr()[0]} | said)
                        progress.update(task, note=note(said))
                    # After a skipped step it may be about to fail: then what is there is kept.
                    if asked or (save and not metrics.whole.skipped_in_a_row):
                        so_far = metrics.state()
                        if is_main_process():
                            underway = TrainingState(
                                epoch, epoch_step, step, best, fingerprint, learner.state(), *so_far
                            )
                            save_state(underway, run, config.training.keep)
                        accelerator.wait_for_everyone()
                        last_save, signals.save = time.monotonic(), False
                        if stop:
                            raise Stopped(f"stopped at step {step}, in epoch {epoch + 1}; --resume goes on from there")

                record = {"epoch": epoch + 1, "step": step, "train": metrics.of_the_epoch()}
                record["train"]["hardware"] = hardware(accelerator.device)
                last = epoch + 1 == config.training.epochs
                score = None
                if val_videos and (last or (epoch + 1) % config.training.validate_every == 0):
                    broadcast_buffers(saved.model)
                    record["val"] = metrics_of(
                        saved, score_videos(saved, val_videos, workers=config.data.workers)
                    ).as_dict()
                    score = record["val"][source.metric]
                if not val_videos:
                    better = last or due
                elif score is None:  # it is not their turn, or they have no action among them
                    better = last and best is None
                else:
                    better = best is None or score >= best
                if better and (last or not metrics.whole.skipped_in_a_row):
                    best = score
                    if is_main_process():
                        saved_models.save(saved, run)
                log.write(record)
                console.print(summary(record, config.training.epochs), soft_wrap=True)
                row = {"skipped_in_a_row": metrics.whole.skipped_in_a_row}
                state = TrainingState(epoch + 1, 0, step, best, fingerprint, learner.state(), row)
                after_epoch(record)
            if is_main_process():
                save_state(state, run, config.training.keep)
        return record


def _start_from(
    init: Path, model: AIRStreams, source: Source, segment_classes: Sequence[str], console: Console
) -> set[str]:
    """Take over what fits of a run's model, and return the names of the videos that it learnt from."""
    console.print(str(take_over(model, source.classes, segment_classes, saved_models.load(init))), soft_wrap=True)
    trained_before = RunFolder(init).trained_on()
    held_out = [video.name for video in source.videos if video.split != "train"]
    if again := overlapping(held_out, trained_before):
        console.print(
            f"beware: {init} learnt from {len(again)} of the {len(held_out)} validation and test videos, by their "
            f"names, such as {again[0]}, so their metrics will flatter",
            soft_wrap=True,
        )
    return trained_before


def _data_fingerprint(source: Source, segment_classes: Sequence[str], config: Config) -> dict[str, Any]:
    """What a resumed training has to find as it was."""
    return {
        "classes": list(source.classes),
        "segment_classes": list(segment_classes),
        "multi_label": source.multi_label,
        "teacher": source.label_store.identity if source.label_store and config.needs_labels else None,
    }


def _refuse_other_data(state: TrainingState, fingerprint: dict[str, Any], source: Source, run: Path) -> None:
    # A state of an earlier version may lack some.
    others = [name for name, value in fingerprint.items() if state.data_fingerprint.get(name, value) != value]
    if others:
        raise InputError(
            f"--resume: {source.name} has other {' and '.join(others)} than {run} was trained on; give it those, or "
            "begin anew"
        )


def training_step(
    learner: Learner, accelerator: Accelerator, batches: Sequence[Batch], step: int, config: Config
) -> dict[str, Tensor]:
    """One optimiser step on the batches that it adds up; its values, still on the device.

    Where a loss or a gradient is not finite, neither weights nor optimiser nor batch statistics change: the step is
    skipped without the host having to know.
    """
    batches = [to_device(batch, accelerator.device) for batch in batches]
    clips, pixels = _in_the_whole_step(batches, accelerator)
    statistics = [buffer for buffer in learner.model.buffers() if buffer.is_floating_point()]
    before = torch.cat([buffer.flatten() for buffer in statistics])

    one_pass = partial(forward_and_backward, learner, accelerator, config)
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(batches, 1):
        clip_B3THW = augment(*batch[:5], size=config.clip.size)
        weight = torch.full_like(clips, 1.0 if batch.names else 0.0)  # none for a black clip that stands in
        inputs = (clip_B3THW, batch.target, batch.label_map, weight, clips, pixels)
        with accelerator.no_sync(learner.prepared) if number < len(batches) else nullcontext():
            losses = one_pass(*inputs) if learner.captured_pass is None else learner.captured_pass(one_pass, inputs)
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + loss
    step_losses = accelerator.reduce(torch.stack(list(sums.values())), "sum")

    norms = gradient_norms(learner.model)
    norm = torch.linalg.vector_norm(torch.stack(list(norms.values())))
    good = step_losses.isfinite().all() & norm.isfinite() & (clips > 0)
    if config.training.clip_norm:
        clip_grads_with_norm_(learner.model.parameters(), config.training.clip_norm, norm)
    # By this, which is meant for gradient scalers, fused optimisers skip a step.
    learner.optimizer.found_inf = (~good).to(torch.float32)  # type: ignore[attr-defined]
    learner.optimizer.step()
    learner.optimizer.zero_grad()
    after = torch.where(good, torch.cat([buffer.flatten() for buffer in statistics]), before)
    parts = after.split([buffer.numel() for buffer in statistics])
    torch._foreach_copy_(statistics, [part.view_as(buffer) for part, buffer in zip(parts, statistics, strict=True)])
    learner.schedule.step()

    values = {f"losses/{name}": loss for name, loss in zip(sums, step_losses, strict=True)}
    values |= {f"gradient_norms/{name}": value for name, value in norms.items()}
    return values | {"gradient_norms/all": norm, "clips": clips, "good": good}


def forward_and_backward(
    learner: Learner,
    accelerator: Accelerator,
    config: Config,
    clip_B3THW: Tensor,
    target: Tensor,
    label_map_BThw: Tensor | None,
    weight: Tensor,
    clips: Tensor,
    pixels: Tensor,
) -> dict[str, Tensor]:
    """This batch's shares of the step's losses and of their sum, times `weight`, and their gradients."""
    weights = config.active_loss_weights()
    output = learner.prepared(clip_B3THW, config.trained_heads())
    losses = compute_losses(output, target, label_map_BThw, weights, config.training.label_smoothing, clips, pixels)
    losses["total"] = total_loss(losses, weights)
    # Processes average their gradients, but a step's losses are sums of their shares.
    accelerator.backward(losses["total"] * (weight * accelerator.num_processes))
    return {name: loss.detach() * weight for name, loss in losses.items()}


def _in_the_whole_step(batches: Sequence[Batch], accelerator: Accelerator) -> tuple[Tensor, Tensor]:
    """The clips and the labelled pixels of a step, over accumulated batches and processes."""
    # Filled in there: a copy from the host would wait for the device.
    clips = torch.full((), float(sum(len(batch.names) for batch in batches)), device=accelerator.device)
    pixels = torch.zeros_like(clips)
    for batch in batches:
        if batch.label_map is not None:
            pixels = pixels + (batch.label_map != NO_LABEL).sum()
    clips, pixels = accelerator.reduce(torch.stack((clips, pixels)), "sum")
    return clips, pixels.clamp(min=1)


def gradient_norms(model: AIRStreams) -> dict[str, Tensor]:
    """The norm of the gradient of each part that has one."""
    gradients = {
        name: [parameter.grad for parameter in part.parameters() if parameter.grad is not None]
        for name, part in model.parts().items()
    }
    return {name: get_total_norm(tensors) for name, tensors in gradients.items() if tensors}


def make_loader(
    videos: list[Video], source: Source, config: Config, cache: FrameCache | None, accelerator: Accelerator
) -> tuple[StepSampler, DataLoader[Batch]]:
    """The training clips in batches, and the sampler that says which."""
    label_store = source.label_store if config.needs_labels else None
    clips = TrainingClips(videos, config, source.classes, source.multi_label, label_store, cache)
    labels = [video.labels[0] if video.labels else "" for video in videos]
    sampler = StepSampler(labels, config, accelerator.process_index, accelerator.num_processes)
    loader: DataLoader[Any] = DataLoader(
        clips,
        batch_sampler=sampler,
        persistent_workers=config.data.workers > 0,
        pin_memory=accelerator.device.type == "cuda",
        collate_fn=clips.collate,
        **loader_options(config.data.workers),
    )
    return sampler, loader


def seed_of_step(seed: int, step: int, process: int) -> int:
    """What torch's generator (dropout) starts a step from, so that a resumed training draws the same."""
    return int(np.random.SeedSequence((seed, step, process)).generate_state(1)[0])


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors there."""
    tensors: dict[str, Any] = {name: item for name, item in batch._asdict().items() if isinstance(item, Tensor)}
    return batch._replace(**{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})


def in_steps(loader: Iterable[Item], accumulate: int) -> Iterator[tuple[Item, ...]]:
    """The batches of each optimiser step."""
    return zip(*[iter(loader)] * accumulate, strict=True)


def _state_to_resume(run: Path, console: Console) -> TrainingState:
    state, damaged = load_state(run)
    if len(set(gather([state.step]))) > 1:
        raise InputError(f"--resume: processes found different states in {run}; expected it on a disk that all share")
    for path in damaged:
        console.print(f"{path} is damaged: going on from the state before", soft_wrap=True)
    return state


def _why_skipped(metrics: StepMetrics, names: list[str]) -> str:
    if not names:
        return f"step {metrics.step} skipped: none of its clips could be read"
    wrong = ", ".join(f"{name} is {value}" for name, value in metrics.not_finite.items() if name != "losses/total")
    return f"step {metrics.step} skipped: {wrong}; its clips: {', '.join(names)}"


def _stop_where_all_goes_wrong(metrics: EpochMetrics, epoch_ends: bool) -> None:
    meter = metrics.whole
    if meter.skipped_in_a_row < SKIP_LIMIT and not (epoch_ends and meter.skipped > meter.steps):
        return
    left_out = gather(metrics.left_out)
    if left_out:
        raise VideoError(
            f"{meter.skipped} steps skipped in this epoch, with unreadable clips; the last: {left_out[-1]}"
        )
    raise FloatingPointError(
        f"{meter.skipped} steps of this epoch skipped, whose losses or gradients were not finite; the last good state "
        "is kept; start again with a new --out and a lower --training.lr"
    )
