"""The training loop, top to bottom.

One process on a CPU or a CUDA card, or several under `torchrun`, through Accelerate. float32 on a CPU, bfloat16
autocast on CUDA. Nothing here makes a step wait for the device: what it says of itself is read every `LOG_EVERY` steps
only, and a step whose numbers are not finite is skipped on the device. Test data is never looked at: a validation part,
where there is one, chooses the checkpoint; without one the last is the result.
"""

import csv
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from airstreams.config import Config, TrainingConfig, save_config
from airstreams.data.cache import FrameCache
from airstreams.data.check import BadVideo
from airstreams.data.dataset import Batch, StepSampler, TrainingClips, bind_to_parent, ends_its_loaders, start_method
from airstreams.data.labels import COCO_CLASSES, NO_LABEL
from airstreams.data.listing import Source, Video
from airstreams.data.sources import SPLIT_FILE, automatic_split, read_splits, with_splits, write_splits
from airstreams.data.transforms import augment
from airstreams.distributed import (
    align_buffers,
    any_process,
    check_together,
    gather,
    hardware,
    leads,
    share,
    share_on_this_machine,
    synchronise_norms,
)
from airstreams.errors import InputError, Stopped, VideoError
from airstreams.evaluation.protocols import figures_of, score_videos
from airstreams.files import replacing, require_writable
from airstreams.memory import keep_freed_memory
from airstreams.models import saved as saved_models
from airstreams.models.airstreams import AIRStreams, build
from airstreams.models.saved import SavedModel
from airstreams.models.transfer import take_over
from airstreams.training.ema import WeightAverage
from airstreams.training.log import Log, Meter, StepClock, StepFigures, TakenStep, last_epoch, note, read, summary
from airstreams.training.losses import compute_losses, total_loss
from airstreams.training.signals import Signals
from airstreams.training.state import FOLDER as STATE_FOLDER
from airstreams.training.state import TrainingState, load_state, save_state

LOG_EVERY = 10  # steps
SAVE_AFTER = 60.0  # s; the end of an epoch is saved if the last save is longer ago: a state is five times the model
SKIP_LIMIT = 10  # steps in a row that could not be taken
LEFT_OUT = "left_out.csv"

Item = TypeVar("Item")


@ends_its_loaders()
def train(
    source: Source,
    config: Config,
    run: Path,
    resume: bool,
    console: Console,
    init: SavedModel | None = None,
    after_epoch: Callable[[dict[str, Any]], None] = lambda record: None,
) -> dict[str, Any]:
    """Train a model on a source's training part and leave it in `run`.

    Args:
        source: the data.
        config: of the run.
        run: its folder.
        resume: go on from the run's newest state.
        console: to talk to.
        init: a trained model to start from.
        after_epoch: called with each epoch's record. What it raises ends the training.

    Returns:
        The last epoch's record.

    Raises:
        InputError: a source that this config cannot be trained on; nothing is written into `run` then.
        VideoError: no clip could be read for some time.
        FloatingPointError: no step's numbers were finite for some time; the last good state is kept.
        Stopped: a signal asked for it; the state is saved.
    """
    with Signals() as signals:
        return _train(source, config, run, resume, console, init, after_epoch, signals)


def _train(
    source: Source,
    config: Config,
    run: Path,
    resume: bool,
    console: Console,
    init: SavedModel | None,
    after_epoch: Callable[[dict[str, Any]], None],
    signals: Signals,
) -> dict[str, Any]:
    accelerator = make_accelerator(config.training)
    if not leads():
        console = Console(quiet=True)
    _require_labels(source, config)
    for remark in source.remarks:
        console.print(remark, soft_wrap=True)
    state = _state_to_resume(run, console) if resume else None
    source = _with_splits(source, config, run, resume)
    source = with_segment_classes(source, config)
    if config.data.compact_classes:
        source = _compacted(source, console)
    segment_classes = source.label_store.classes if source.label_store else COCO_CLASSES
    learns = {
        "classes": list(source.classes),
        "segment_classes": list(segment_classes),
        "multi_label": source.multi_label,
        "teacher": source.label_store.identity if source.label_store and config.needs_labels else None,
    }
    if state is not None and any(learns.get(name, value) != value for name, value in state.learns.items()):
        raise InputError(f"--resume: {source.name} has other classes or label maps than {run} was trained on")
    if state is not None and state.epoch == config.training.epochs:
        console.print(f"{run}: all {state.epoch} epochs are done already", soft_wrap=True)
        return last_epoch(run)
    torch.manual_seed(config.seed)
    model = build(config.model, len(source.classes), len(segment_classes))
    if init is not None:
        console.print(str(take_over(model, source.classes, segment_classes, init)), soft_wrap=True)
    freeze(model, config)
    require_writable(run)
    # Refused is what can be before the videos are gone through, which takes hours where there are many.
    train_videos, val_videos, bad, cache = prepare_videos(source, config, run, resume, console)
    learns["labels"] = labels_digest([*train_videos, *val_videos])
    if state is not None and state.learns.get("labels", learns["labels"]) != learns["labels"]:
        raise InputError(
            f"--resume: {source.name} has other labels than {run} was trained on; give it those, or begin anew"
        )
    tested = sum(video.split == "test" for video in source.videos)
    console.print(
        f"{len(train_videos)} training, {len(val_videos)} validation and {tested} test videos of {len(source.classes)} "
        "classes"
    )

    sampler, loader = make_loader(train_videos, source, config, cache, accelerator)
    learner = make_learner(model, config, sampler, accelerator, console)
    saved = SavedModel(config, source.classes, segment_classes, source.multi_label, learner.result)
    if state is not None:
        learner.restore(state.learner)
    else:
        state = TrainingState(0, 0, 0, None, learns, learner.state())
        if leads():
            save_state(state, run, config.training.keep)
            _write_left_out(run / LEFT_OUT, bad)
            write_splits(run / SPLIT_FILE, source)
            save_config(config, run / "config.yaml")  # last: a folder that has it can be resumed
    accelerator.wait_for_everyone()

    step, best, last_save = state.step, state.best, time.monotonic()
    record: dict[str, Any] = {}
    columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    with Log(run, state.epoch, step, leads()) as log, Progress(*columns, console=console) as progress:
        signals.has_steps = True
        task = progress.add_task("", total=config.training.epochs * sampler.steps, completed=step, note="")
        for epoch in range(state.epoch, config.training.epochs):
            sampler.start(epoch, state.epoch_step)
            meter, recent, left_out = Meter(**state.meter), Meter(**state.recent), []
            if leads():
                left_out = list(state.left_out)
            taken: list[TakenStep] = []
            due = True
            learner.begin_training()
            clock = StepClock(accelerator.device)

            for batches in clock.waits_for(in_steps(loader, config.training.accumulate)):
                step += 1
                torch.manual_seed(seed_of_step(config.seed, step, accelerator.process_index))
                values = training_step(learner, accelerator, batches, step, config)
                epoch_step = step - epoch * sampler.steps
                ends = epoch_step == sampler.steps
                names = [name for batch in batches for name in batch.names]
                taken.append(TakenStep(step, values, names, clock.step(ends)))
                left_out += [f"{bad.video.name}: {bad.reason}" for batch in batches for bad in batch.bad_videos]
                progress.update(task, advance=1)

                due = ends and time.monotonic() - last_save > SAVE_AFTER
                asked, stop, due = any_process([signals.save or signals.stop, signals.stop, due])
                save = asked or due or step % config.training.save_every == 0
                if step % LOG_EVERY == 0 or save or ends:
                    for figures in read(taken):
                        meter.add(figures)
                        recent.add(figures)
                        if not figures.good:
                            console.print(_why_skipped(figures, gather(figures.names)), soft_wrap=True)
                    taken.clear()
                    _stop_where_all_goes_wrong(meter, left_out, ends)
                if step % LOG_EVERY == 0 and recent.steps:
                    entry = {"epoch": epoch + 1, "step": step, "lr": learner.schedule.get_last_lr()[0]}
                    log.write(entry | recent.figures())
                    progress.update(task, note=note(recent.figures()))
                    recent = Meter()
                # After a skipped step it may be about to fail: then what is there is kept.
                if asked or (save and not meter.skipped_in_a_row):
                    said = asdict(meter), asdict(recent), gather(left_out)
                    if leads():
                        underway = TrainingState(epoch, epoch_step, step, best, learns, learner.state(), *said)
                        save_state(underway, run, config.training.keep)
                    accelerator.wait_for_everyone()
                    last_save, signals.save = time.monotonic(), False
                    if stop:
                        raise Stopped(f"stopped at step {step}, in epoch {epoch + 1}; --resume goes on from there")

            record = {"epoch": epoch + 1, "step": step, "train": meter.figures() | {"left_out": gather(left_out)}}
            record["train"]["hardware"] = hardware(accelerator.device)
            whole = epoch + 1 == config.training.epochs
            figure = None
            if val_videos and (whole or (epoch + 1) % config.training.validate_every == 0):
                align_buffers(saved.model)
                scores = score_videos(saved, val_videos, workers=config.data.workers)
                record["val"] = figures_of(saved, scores)
                figure = record["val"]["map" if source.multi_label else "top1"]
            if not val_videos:
                better = whole or due
            elif figure is None:  # it is not their turn, or they have no action among them
                better = whole and best is None
            else:
                better = best is None or figure >= best
            if better and (whole or not meter.skipped_in_a_row):
                best = figure
                if leads():
                    saved_models.save(saved, run)
            log.write(record)
            console.print(summary(record, config.training.epochs), soft_wrap=True)
            state = TrainingState(epoch + 1, 0, step, best, learns, learner.state())
            state.meter = {"skipped_in_a_row": meter.skipped_in_a_row}
            after_epoch(record)
        if leads():
            save_state(state, run, config.training.keep)
    return record


def may_begin(run: Path) -> bool:
    """Whether a training may begin in this folder: it holds nothing but what one that was killed at its start left."""
    remains = {LEFT_OUT, SPLIT_FILE, STATE_FOLDER}
    if not run.exists():
        return True
    return run.is_dir() and all(path.name in remains or path.name.startswith(".") for path in run.iterdir())


def training_step(
    learner: "Learner", accelerator: Accelerator, batches: Sequence[Batch], step: int, config: Config
) -> dict[str, Tensor]:
    """One optimiser step on the batches that it adds up; its values, still on the device.

    Where a loss or a gradient is not finite, neither weights nor optimiser nor batch statistics change: the step is
    skipped without the host having to know.
    """
    weights, heads = config.active_loss_weights(), config.trained_heads()
    batches = [to_device(batch, accelerator.device) for batch in batches]
    clips, pixels = _in_the_whole_step(batches, accelerator)
    statistics = [buffer for buffer in learner.model.buffers() if buffer.is_floating_point()]
    before = torch.cat([buffer.flatten() for buffer in statistics])

    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(batches, 1):
        with accelerator.no_sync(learner.prepared) if number < len(batches) else nullcontext():
            clip_B3THW = augment(*batch[:5], size=config.clip.size)
            output = learner.prepared(clip_B3THW, heads)
            losses = compute_losses(
                output, batch.target, batch.label_map, weights, config.training.label_smoothing, clips, pixels
            )
            losses["total"] = total_loss(losses, weights)
            has_weight = 1.0 if batch.names else 0.0  # none for a black clip that stands in
            # Processes average their gradients, but a step's losses are sums of their shares.
            accelerator.backward(losses["total"] * (has_weight * accelerator.num_processes))
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + loss.detach() * has_weight
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
    if learner.average is not None:
        learner.average.update(step)

    values = {f"losses/{name}": loss for name, loss in zip(sums, step_losses, strict=True)}
    values |= {f"gradient_norms/{name}": value for name, value in norms.items()}
    return values | {"gradient_norms/all": norm, "clips": clips, "good": good}


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


@dataclass
class Learner:
    """All that changes while a model learns.

    prepared: the model as a step calls it: on its device, compiled, wrapped for several processes.
    frozen: what stays as it is, batch statistics included.
    """

    model: AIRStreams
    prepared: nn.Module
    frozen: list[nn.Module]
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    average: WeightAverage | None

    @property
    def result(self) -> AIRStreams:
        """The model that training is for."""
        return self.model if self.average is None else self.average.model

    def begin_training(self) -> None:
        """Training mode."""
        _train_mode(self.prepared, self.frozen)

    def state(self) -> dict[str, Any]:
        """What resuming needs."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": None if self.average is None else self.average.model.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to where a state was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.average is not None:
            self.average.model.load_state_dict(state["average"])


def _train_mode(model: nn.Module, frozen: Sequence[nn.Module]) -> None:
    model.train()
    for part in frozen:
        part.eval()


def make_learner(
    model: AIRStreams, config: Config, sampler: StepSampler, accelerator: Accelerator, console: Console
) -> Learner:
    """Put the model on its device and give it an optimiser. InputError: a part to freeze that it does not have."""
    frozen = freeze(model, config)
    if config.training.sync_batch_norm and accelerator.num_processes > 1:
        synchronise_norms(model, accelerator.device)
    model = model.to(accelerator.device)
    average = WeightAverage(model, config.training.ema) if config.training.ema else None
    optimizer = make_optimizer(model, config.training)
    schedule = make_schedule(optimizer, config.training, sampler.steps)
    stepped: nn.Module = model
    if config.training.compile:
        stepped = compiled(model, frozen, config, sampler.batch_size, console)
    return Learner(model, accelerator.prepare(stepped), frozen, optimizer, schedule, average)


def freeze(model: AIRStreams, config: Config) -> list[nn.Module]:
    """Stop the learning of the parts that the config names and of those that no loss reaches; returns them.

    A process that waits for gradients that never come would wait for ever, hence the second kind.
    """
    parts = model.parts()
    unknown = [name for name in config.training.freeze if name not in parts]
    if unknown:
        raise InputError(f"training.freeze: got {', '.join(unknown)}; expected some of {', '.join(parts)}")
    frozen = [parts[name] for name in config.training.freeze]
    frozen += [late for head, late in model.late.items() if head not in config.trained_heads()]
    if "semantic" in config.model.stop_gradient and not config.needs_labels and "semantic" in model.representations:
        frozen.append(model.representations["semantic"].segmenter)  # type: ignore[arg-type]
    if config.clip.frames == 1 and "flow" in model.representations:  # of one frame there is none
        frozen.append(model.representations["flow"])
    for part in frozen:
        part.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"training.freeze: got {', '.join(config.training.freeze)}; expected a part left to learn")
    return frozen


def compiled(
    model: AIRStreams, frozen: Sequence[nn.Module], config: Config, batch_size: int, console: Console
) -> nn.Module:
    """The model compiled, which is tried out on a black batch; as it was, with a warning, where that fails."""
    clip = config.clip
    device = next(model.parameters()).device
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        graph: nn.Module = torch.compile(model)  # type: ignore[assignment]
        _train_mode(graph, frozen)
        black = torch.zeros(batch_size, clip.frames, clip.size, clip.size, 3, device=device).permute(0, 4, 1, 2, 3)
        with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
            output = graph(black, config.trained_heads())
        torch.stack([logits.float().sum() for logits in output.logits.values()]).sum().backward()
    except Exception as error:  # the compiler's failures have no common type
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        console.print(f"torch.compile failed, going on without it: {reason}", soft_wrap=True)
        graph = model
    model.zero_grad()
    model.load_state_dict(before)  # the black batch has moved the batch statistics
    return graph


def make_cache(config: Config) -> FrameCache | None:
    """The cache of decoded frames that the config asks for."""
    if config.data.cache is None:
        return None
    return FrameCache(Path(config.data.cache), round(config.data.cache_gb * 1e9), config.decoded_side)


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
        num_workers=config.data.workers,
        multiprocessing_context=start_method(config.data.workers),
        persistent_workers=config.data.workers > 0,
        pin_memory=accelerator.device.type == "cuda",
        collate_fn=clips.collate,
        worker_init_fn=bind_to_parent,
    )
    return sampler, loader


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """The device of a config, and its precision. InputError: a device that this machine lacks."""
    if config.device == "mps":
        raise InputError("training.device: mps is not supported; expected cpu or cuda; give --training.device cpu")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("training.device: got cuda, but torch sees no CUDA card here; give --training.device cpu")
    on_cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    if not on_cuda:
        keep_freed_memory()
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(config.deterministic)
    torch.backends.cudnn.benchmark = not config.deterministic
    # Machines may prepare their videos for hours apart. Of a process that died, torchrun tells the others.
    patience = InitProcessGroupKwargs(timeout=timedelta(days=1))
    precision = "bf16" if on_cuda else "no"
    return Accelerator(cpu=not on_cuda, mixed_precision=precision, kwargs_handlers=[patience])


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW or SGD over the parameters that learn; weight decay on convolution and linear weights alone."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},  # norms, biases, the flow's parameters
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=True)
    optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True, fused=True)
    for parameter in learning:  # or a skipped first step would leave whatever lay in memory
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def make_schedule(optimizer: torch.optim.Optimizer, config: TrainingConfig, steps_per_epoch: int) -> LambdaLR:
    """Linear warm-up, then a cosine to 0 at the end."""
    warmup = config.warmup_epochs * steps_per_epoch
    total = config.epochs * steps_per_epoch

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1.0, total - warmup))))

    return LambdaLR(optimizer, factor)


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


def prepare_videos(
    source: Source, config: Config, run: Path, resume: bool, console: Console
) -> tuple[list[Video], list[Video], list[BadVideo], FrameCache | None]:
    """The training and the validation videos that can be read, those that cannot, and the cache with the frames.

    A resumed run goes by what was found at its beginning: with other videos its order would be another one.
    """
    wanted = [*source.split("train"), *(video for video in source.videos if video.split == "val")]
    cache = make_cache(config)
    bad: list[BadVideo] = []
    with Progress(console=console) as progress:
        if resume:
            left_out = _read_left_out(run / LEFT_OUT)
            good = [video for video in wanted if video.name not in left_out]
        else:
            good, bad = check_together(wanted, progress, cache)
        train_videos, val_videos = _parts(source, good)
        if cache is not None:
            label_store = source.label_store if config.needs_labels else None
            cache.prepare(train_videos, label_store, progress, share_on_this_machine())
    if bad:
        console.print(f"{len(bad)} of {len(wanted)} videos left out, listed in {run / LEFT_OUT}; such as")
        console.print(f"  {bad[0].video.name}: {bad[0].reason}")
    if config.needs_labels and source.label_store is not None and not console.quiet:  # it goes through all of them
        keys = {video.label_map for video in train_videos}
        labelled = keys & set(source.label_store.keys())
        if len(labelled) < len(keys):
            console.print(f"label maps of {len(labelled)} of {len(keys)} training videos; the others teach no segments")
    return train_videos, val_videos, bad, cache


def _state_to_resume(run: Path, console: Console) -> TrainingState:
    state, damaged = load_state(run)
    if len(set(gather([state.step]))) > 1:
        raise InputError(f"--resume: processes found different states in {run}; expected it on a disk that all share")
    for path in damaged:
        console.print(f"{path} is damaged: going on from the state before", soft_wrap=True)
    return state


def _why_skipped(figures: StepFigures, names: list[str]) -> str:
    if not names:
        return f"step {figures.step} skipped: none of its clips could be read"
    wrong = ", ".join(f"{name} is {value}" for name, value in figures.not_finite.items() if name != "losses/total")
    return f"step {figures.step} skipped: {wrong}; its clips: {', '.join(names)}"


def _stop_where_all_goes_wrong(meter: Meter, left_out: list[str], epoch_ends: bool) -> None:
    if meter.skipped_in_a_row < SKIP_LIMIT and not (epoch_ends and meter.skipped > meter.steps):
        return
    left_out = gather(left_out)
    if left_out:
        raise VideoError(
            f"{meter.skipped} steps skipped in this epoch, with unreadable clips; the last: {left_out[-1]}"
        )
    raise FloatingPointError(
        f"{meter.skipped} steps of this epoch skipped, whose losses or gradients were not finite; the last good state "
        "is kept; start again with a new --out and a lower --training.lr"
    )


def _with_splits(source: Source, config: Config, run: Path, resume: bool) -> Source:
    """The source with its own splits, or with drawn ones.

    A resumed run's stay what they were: with others, test clips would leak into training.
    """
    if not resume:
        return with_drawn_splits(source, config)
    splits = read_splits(run / SPLIT_FILE)
    if not source.has_splits:
        source = with_splits(source, splits)
    here = {video.name: video.split for video in source.videos}
    different = [
        name
        for name in sorted((here.keys() | splits.keys()) - _read_left_out(run / LEFT_OUT))
        if here.get(name) != splits.get(name)
    ]
    if different:
        raise InputError(
            f"--resume: {source.name} has other videos or splits than {run / SPLIT_FILE}, such as {different[0]}; give "
            "its own DATA, with all of its videos"
        )
    return source


def labels_digest(videos: Iterable[Video]) -> str:
    """A checksum of what people said of these videos."""
    said = [(video.name, video.labels, video.start, video.end, video.actions) for video in videos]
    return sha256(repr(said).encode()).hexdigest()


def with_drawn_splits(source: Source, config: Config) -> Source:
    """The source with its own splits, or with some drawn by the config's seed and fractions."""
    if source.has_splits:
        return source
    data = config.data
    return with_splits(source, automatic_split(source.videos, config.seed, data.val_fraction, data.test_fraction))


def with_segment_classes(source: Source, config: Config) -> Source:
    """The source with label maps of the classes that the segmenter is to tell apart. InputError: they lack one."""
    store = source.label_store
    if store is None or "semantic" not in config.model.streams:
        return source
    return replace(source, label_store=store.apart(config.data.segment_classes))


def _compacted(source: Source, console: Console) -> Source:
    """The source with label maps of those classes alone that occur in training."""
    store = source.label_store
    if store is None:
        raise InputError(f"{source.name}: --compact-classes needs label maps; give --labels LABELS, or leave it out")
    keys = [video.label_map for video in source.split("train") if video.label_map is not None]
    seen = set(gather(list(store.occurring(share(keys)))))
    kept = [name for name in store.classes if name in seen]
    dropped = [name for name in store.classes if name not in seen]
    console.print(
        f"segmenter: {len(kept)} of {len(store.classes)} classes; in no training label map: "
        f"{', '.join(dropped) or 'none'}",
        soft_wrap=True,
    )
    return replace(source, label_store=store.with_classes(kept))


def _parts(source: Source, good: list[Video]) -> tuple[list[Video], list[Video]]:
    train_videos = [video for video in good if video.split == "train"]
    seen = {label for video in train_videos for label in video.labels}
    missing = [name for name in source.classes if name not in seen]
    if missing:
        raise InputError(
            f"{source.name}: no readable training video of {', '.join(missing[:5])}{' ...' if missing[5:] else ''}; "
            "expected one at least of every class; `airstreams check-data` lists the bad files"
        )
    return train_videos, [video for video in good if video.split == "val"]


def _require_labels(source: Source, config: Config) -> None:
    if config.needs_labels and source.label_store is None:
        raise InputError(
            f"{source.name}: no label maps, but loss_weights.interm is {config.loss_weights.interm}; "
            "give --labels LABELS, or --loss_weights.interm 0, or leave semantic out of --model.streams"
        )


def _write_left_out(path: Path, bad: list[BadVideo]) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["name", "reason"])
        rows.writerows([video.video.name, video.reason] for video in bad)


def _read_left_out(path: Path) -> set[str]:
    with path.open(encoding="utf-8", newline="") as file:
        return {row["name"] for row in csv.DictReader(file)}
