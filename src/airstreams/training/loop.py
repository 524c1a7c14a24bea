"""The training loop, top to bottom.

One process on a CPU or a CUDA card, through Accelerate. float32 on a CPU, bfloat16 autocast on CUDA. Losses stay on
the device and are read every `LOG_EVERY` steps only, so that a step never waits for the device. Test data is never
looked at: a validation part, where there is one, chooses the checkpoint; without one the last is the result.
"""

import csv
import json
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from airstreams.config import Config, TrainingConfig, save_config
from airstreams.data.check import BadVideo, check_videos
from airstreams.data.dataset import Batch, EpochSampler, TrainingClips, collate
from airstreams.data.labels import COCO_CLASSES
from airstreams.data.listing import Source, Video
from airstreams.data.sources import SPLIT_FILE, automatic_split, read_splits, with_splits, write_splits
from airstreams.errors import InputError, VideoError
from airstreams.evaluation.protocols import figures_of, score_videos
from airstreams.files import replacing
from airstreams.models import saved as saved_models
from airstreams.models.airstreams import build
from airstreams.models.saved import SavedModel
from airstreams.training.losses import compute_losses, total_loss
from airstreams.training.state import TrainingState, load_state, save_state

LOG_EVERY = 10  # steps
LEFT_OUT, METRICS = "left_out.csv", "metrics.jsonl"

Item = TypeVar("Item")


def train(source: Source, config: Config, run: Path, resume: bool, console: Console) -> dict[str, Any]:
    """Train a model on a source's training part and leave it in `run`.

    Returns the last epoch's record. InputError: a source that this config cannot be trained on; nothing is written
    then.
    """
    accelerator = make_accelerator(config.training)
    set_seed(config.seed)
    _require_labels(source, config)
    state = load_state(run) if resume else None
    source = _with_splits(source, config, run, resume)
    segment_classes = source.label_store.classes if source.label_store else COCO_CLASSES
    learns = {
        "classes": list(source.classes),
        "segment_classes": list(segment_classes),
        "multi_label": source.multi_label,
    }
    if state is not None and state.learns != learns:
        raise InputError(f"--resume: {source.name} has other classes or label maps than {run} was trained on")
    wanted = [*source.split("train"), *(video for video in source.videos if video.split == "val")]
    with Progress(console=console) as progress:
        good, bad = check_videos(wanted, progress)
    train_videos, val_videos = _parts(source, good)
    run.mkdir(parents=True, exist_ok=True)
    save_config(config, run / "config.yaml")
    write_splits(run / SPLIT_FILE, source)
    _write_left_out(run / LEFT_OUT, bad)
    if bad:
        console.print(f"{len(bad)} of {len(wanted)} videos left out, listed in {run / LEFT_OUT}; such as")
        console.print(f"  {bad[0].video.name}: {bad[0].reason}", markup=False)

    sampler, loader = make_loader(train_videos, source, config, accelerator.device)
    model = build(config.model, len(source.classes), len(segment_classes))
    saved = SavedModel(config, source.classes, segment_classes, source.multi_label, model)
    optimizer = make_optimizer(model, config.training)
    schedule = make_schedule(optimizer, config.training, steps_per_epoch=len(loader))
    prepared, optimizer = accelerator.prepare(model, optimizer)
    learner = Learner(model, optimizer, schedule)
    if state is None:
        state = learner.state(0, step=0, best=None, learns=learns)
        save_state(state, run)
    else:
        learner.restore(state)
        _forget_after(run / METRICS, state.epoch)
    step, best = state.step, state.best
    record: dict[str, Any] = {}
    writer = SummaryWriter(str(run / "tensorboard"), purge_step=step)
    columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=console) as progress, (run / METRICS).open("a") as metrics:

        def log(entry: dict[str, Any]) -> None:
            metrics.write(json.dumps(entry) + "\n")
            metrics.flush()
            for name, value in _flat(entry):
                writer.add_scalar(name, value, entry["step"])

        task = progress.add_task("", total=config.training.epochs * len(loader), completed=step, note="")
        for epoch in range(state.epoch, config.training.epochs):
            sampler.epoch = epoch
            recent, whole = Meter(), Meter()
            left_out: list[BadVideo] = []
            prepared.train()
            for batch, waited in timed(loader):
                left_out += batch.bad_videos
                if len(batch.clip):
                    losses = training_step(prepared, optimizer, accelerator, batch, config)
                    recent.add(losses, len(batch.clip), waited)
                    whole.add(losses, len(batch.clip), waited)
                schedule.step()
                step += 1
                if step % LOG_EVERY == 0 and recent.steps:
                    entry = {"epoch": epoch + 1, "step": step, "lr": schedule.get_last_lr()[0], **recent.read()}
                    log(entry)
                    progress.update(task, note=_note(entry))
                    recent = Meter()
                progress.update(task, advance=1)

            if not whole.steps:
                raise VideoError(f"no clip of epoch {epoch + 1} could be read; the first: {left_out[0].reason}")
            record = {"epoch": epoch + 1, "step": step, "train": whole.read()}
            record["train"]["left_out"] = [f"{bad.video.name}: {bad.reason}" for bad in left_out]
            if not math.isfinite(record["train"]["losses"]["total"]):
                raise FloatingPointError(
                    f"a loss is not finite after epoch {epoch + 1}: {record['train']['losses']}; "
                    "start again with a new --out and a lower --training.lr"
                )
            figure = None
            if val_videos:
                scores = score_videos(saved, val_videos, workers=config.data.workers)
                record["val"] = figures_of(saved, scores)
                figure = record["val"]["map" if source.multi_label else "top1"]
            if figure is None or best is None or figure >= best:
                best = figure
                saved_models.save(saved, run)
            log(record)
            console.print(_summary(record, config.training.epochs), markup=False, soft_wrap=True)
            save_state(learner.state(epoch + 1, step, best, learns), run)
    writer.close()
    return record


def training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator, batch: Batch, config: Config
) -> dict[str, Tensor]:
    """One optimiser step on one batch; the unweighted losses and their weighted `total`, still on the device."""
    device = accelerator.device
    weights = config.active_loss_weights()
    label_map = None if batch.label_map is None else batch.label_map.to(device, non_blocking=True)
    output = model(batch.clip.to(device, non_blocking=True), config.trained_heads())
    losses = compute_losses(
        output, batch.target.to(device, non_blocking=True), label_map, weights, config.training.label_smoothing
    )
    total = total_loss(losses, weights)
    accelerator.backward(total)
    if config.training.clip_norm:
        accelerator.clip_grad_norm_(model.parameters(), config.training.clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    return {name: loss.detach() for name, loss in (losses | {"total": total}).items()}


@dataclass
class Learner:
    """All that changes while a model learns."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR

    def state(self, epoch: int, step: int, best: float | None, learns: dict[str, Any]) -> TrainingState:
        """What resuming needs."""
        return TrainingState(
            epoch=epoch,
            step=step,
            best=best,
            learns=learns,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            schedule=self.schedule.state_dict(),
            rng=torch.get_rng_state(),
        )

    def restore(self, state: TrainingState) -> None:
        """Go back to where a state was taken."""
        self.model.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        self.schedule.load_state_dict(state.schedule)
        torch.set_rng_state(state.rng)


def make_loader(
    videos: list[Video], source: Source, config: Config, device: torch.device
) -> tuple[EpochSampler, DataLoader[Batch]]:
    """The training clips in batches, and the sampler that orders them anew for each epoch."""
    label_store = source.label_store if config.needs_labels else None
    clips = TrainingClips(videos, config, source.classes, source.multi_label, label_store)
    labels = [video.labels[0] if video.labels else "" for video in videos]
    sampler = EpochSampler(labels, config.seed, config.data.balanced)
    loader: DataLoader[Any] = DataLoader(
        clips,
        batch_size=config.training.batch_size,
        sampler=sampler,
        drop_last=len(clips) > config.training.batch_size,  # a last batch of one or two would upset batch normalisation
        num_workers=config.data.workers,
        persistent_workers=config.data.workers > 0,
        pin_memory=device.type == "cuda",
        collate_fn=collate,
        generator=torch.Generator(),  # its own, so that starting workers does not move dropout's
    )
    return sampler, loader


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """The device of a config, and its precision. InputError: a device that this machine lacks."""
    if config.device == "mps":
        raise InputError("training.device: mps is not supported; expected cpu or cuda; give --training.device cpu")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("training.device: got cuda, but torch sees no CUDA card here; give --training.device cpu")
    on_cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    return Accelerator(cpu=not on_cuda, mixed_precision="bf16" if on_cuda else "no")


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW or SGD over the parameters that learn; weight decay on convolution and linear weights alone."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},  # norms, biases, the flow's parameters
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=config.lr)


def make_schedule(optimizer: torch.optim.Optimizer, config: TrainingConfig, steps_per_epoch: int) -> LambdaLR:
    """Linear warm-up, then a cosine to 0 at the end."""
    warmup = config.warmup_epochs * steps_per_epoch
    total = config.epochs * steps_per_epoch

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1.0, total - warmup))))

    return LambdaLR(optimizer, factor)


@dataclass
class Meter:
    """Mean losses, clips a second and the share of time spent waiting for data, since it was made."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    clips: int = 0
    waited: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    def add(self, losses: dict[str, Tensor], clips: int, waited: float) -> None:
        """Count a step, without waiting for the device."""
        for name, loss in losses.items():
            self.sums[name] = self.sums[name] + loss if name in self.sums else loss
        self.steps += 1
        self.clips += clips
        self.waited += waited

    def read(self) -> dict[str, Any]:
        """The figures; this waits for the device."""
        losses = {name: float(value) / self.steps for name, value in self.sums.items()}
        seconds = time.perf_counter() - self.since
        return {
            "losses": losses,
            "clips_per_second": self.clips / seconds,
            "waiting": self.waited / seconds,
            "clips": self.clips,
            "seconds": seconds,
        }


def timed(items: Iterable[Item]) -> Iterator[tuple[Item, float]]:
    """Each item with the seconds that it was waited for."""
    iterator = iter(items)
    while True:
        asked = time.perf_counter()
        item = next(iterator, None)
        if item is None:
            return
        yield item, time.perf_counter() - asked


def _with_splits(source: Source, config: Config, run: Path, resume: bool) -> Source:
    """The source with its own splits, or with drawn ones.

    A resumed run's stay what they were: with others, test clips would leak into training.
    """
    if not resume:
        if source.has_splits:
            return source
        data = config.data
        return with_splits(source, automatic_split(source.videos, config.seed, data.val_fraction, data.test_fraction))
    splits = read_splits(run / SPLIT_FILE)
    if not source.has_splits:
        return with_splits(source, splits)
    if {video.name: video.split for video in source.videos} != splits:
        raise InputError(
            f"--resume: {source.name} has other videos or splits than {run / SPLIT_FILE}; give its own DATA"
        )
    return source


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
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["name", "reason"])
        rows.writerows([video.video.name, video.reason] for video in bad)


def _forget_after(metrics: Path, epoch: int) -> None:
    """Drop the lines of epochs after `epoch`, which are about to be run again, and one that a crash cut short."""
    if not metrics.exists():
        return
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    with replacing(metrics) as temporary:
        temporary.write_text("".join(line for line in whole if json.loads(line)["epoch"] <= epoch))


def _flat(entry: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in entry.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and key not in ("step", "epoch"):
            yield f"{prefix}{key}", value


def _note(entry: dict[str, Any]) -> str:
    losses = " ".join(f"{name} {value:.2f}" for name, value in entry["losses"].items())
    return f"{losses} | {entry['clips_per_second']:.1f} clips/s, waiting {entry['waiting']:.0%}"


def _summary(record: dict[str, Any], epochs: int) -> str:
    line = f"epoch {record['epoch']}/{epochs}: {_note(record['train'])}, {record['train']['seconds']:.0f} s"
    if "val" in record:
        figures = {name: record["val"][name] for name in ("top1", "map") if record["val"][name] is not None}
        line += ", val " + " ".join(f"{name} {value:.1%}" for name, value in figures.items())
    if record["train"]["left_out"]:
        line += f", {len(record['train']['left_out'])} clips left out"
    return line
