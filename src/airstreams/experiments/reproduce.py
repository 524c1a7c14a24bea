"""The paper's experiments: the trainings that a table or a figure needs, planned and done.

Each run (see `tables.py`) is trained once for every DATA (a split of the data set) and seed, by the same recipe and
hence the same budget, and is shared by all tables and figures in a folder. A finished one is only read; one that was
killed goes on. One call at a time works in a folder.
"""

import hashlib
import json
import multiprocessing
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from airstreams.config import Config
from airstreams.data.label_maps import COCO_CLASSES
from airstreams.data.listing import Source
from airstreams.data.splits import with_drawn_splits
from airstreams.errors import InputError
from airstreams.evaluation.evaluate import evaluate
from airstreams.evaluation.results import read_metrics
from airstreams.experiments.tables import PRETRAINED, Figure, Table, run_config
from airstreams.experiments.workers import end, start, worker_process
from airstreams.models import cost
from airstreams.models.airstreams import build
from airstreams.recipe import comparable, load_config
from airstreams.runs import saved_model as saved_models
from airstreams.runs.folder import RunFolder
from airstreams.training.learner import make_accelerator
from airstreams.training.loop import train
from airstreams.training.prepare import with_segment_classes
from airstreams.training.signals import asked_to_stop, interrupted_by_signals


@dataclass(frozen=True)
class Job:
    """One training and its evaluation; `name` is the run's. `init`: the run that it starts from."""

    name: str
    source: Source
    config: Config
    folder: Path
    init: Path | None = None

    @property
    def metrics_file(self) -> Path:
        """Written when all is done."""
        return RunFolder(self.folder).evaluation("test").metrics

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do. The run may have been evaluated on other data since."""
        return self.metrics_file.is_file() and read_metrics(self.metrics_file).data == self.source.name

    @property
    def score(self) -> float:
        """What `evaluate` said, in 0..1."""
        score = read_metrics(self.metrics_file)[self.source.metric]
        assert score is not None
        return score

    @property
    def seconds(self) -> float:
        """Of its training; what an interruption cost is not in it."""
        return sum(epoch["seconds"] for epoch in self._epochs())

    @property
    def hardware(self) -> set[str]:
        """On which it was trained; several where it went on elsewhere."""
        return {epoch.get("hardware", "hardware that was not recorded") for epoch in self._epochs()}

    def _epochs(self) -> list[dict[str, Any]]:
        lines = RunFolder(self.folder).metrics.read_text(encoding="utf-8").splitlines()
        return [entry["train"] for entry in map(json.loads, lines) if "train" in entry]

    @property
    def segment_classes(self) -> int:
        """How many its segmenter tells apart."""
        store = self.source.label_store
        return self.config.segmenter_classes(len(store.classes if store else COCO_CLASSES))

    def cost(self) -> cost.Cost:
        """Of its model, for one clip."""
        return cost.count(self.config, len(self.source.classes), self.segment_classes)


def plan(
    wanted: Table | Figure,
    recipe: Config,
    sources: Sequence[Source],
    seeds: int,
    out: Path,
    evolved: Mapping[str, float] | None = None,
    init: Path | None = None,
) -> list[Job]:
    """The trainings that a table or figure needs, finished or not; a seed of all runs after the other.

    Args:
        wanted: the table; or the figure, which takes the first source and one seed.
        recipe: of all runs.
        sources: the data; several are the splits of one data set.
        seeds: how many, from the recipe's on.
        out: the folder with `runs`.
        evolved: loss weights.
        init: the run from which pretrained runs start.

    Raises:
        InputError: what a run needs is not given or given in vain, or a folder holds a training of another recipe or
            on other data.
    """
    if recipe.model.representations:
        raise InputError(
            f"model.representations: got {', '.join(recipe.model.representations)}, expected none: the paper's tables "
            "and figures have the paper's streams; leave it out"
        )
    if isinstance(wanted, Figure):
        sources, seeds = sources[:1], 1
    pretrained = [name for name in wanted.runs if PRETRAINED in name]
    if pretrained and init is None:
        raise InputError(
            f"the run {pretrained[0]} starts from a trained one (the paper's from Moments); give --init RUN"
        )
    if init is not None and not pretrained:
        raise InputError("--init: these runs are trained from scratch, as the paper's; leave it out")
    # Data without splits of its own is split once, for all seeds.
    sources = [with_drawn_splits(source, recipe) for source in sources]
    for source in sources:
        if (source.classes, source.multi_label) != (sources[0].classes, sources[0].multi_label):
            raise InputError(
                f"{source.name}: has other classes than {sources[0].name}; expected splits of one data set, as the "
                "figure is their mean"
            )
        for needed in ("train", "test"):
            source.split(needed)  # complains where there is none
        if source.multi_label and isinstance(wanted, Table) and any(wanted.metrics):
            raise InputError(
                f"{source.name}: several labels a video, but the table counts right answers; give other data"
            )
    if len({source.name for source in sources}) < len(sources):
        raise InputError(
            f"--data: got {sources[0].name} or another twice; expected the splits of one data set, each once"
        )
    begins_with = "" if init is None else f"-{_fingerprint(init)}"
    jobs = []
    for seed in range(recipe.seed, recipe.seed + seeds):
        for split, source in enumerate(sources):
            for name in wanted.runs:
                config = replace(run_config(name, recipe, evolved), seed=seed)
                if config.needs_labels and source.label_store is None:
                    raise InputError(
                        f"{source.name}: no label maps, but the run {name} learns by them; give --labels LABELS"
                    )
                with_segment_classes(source, config)  # complains of a class that they lack
                begins = begins_with if name in pretrained else ""
                folder = out / "runs" / f"{_file_name(name)}{begins}-data{split}-seed{seed}"
                if RunFolder(folder).has_begun():
                    _refuse_another_training(folder, config, source)
                jobs.append(Job(name, source, config, folder, init if name in pretrained else None))
    return jobs


def _refuse_another_training(folder: Path, config: Config, source: Source) -> None:
    if comparable(load_config(RunFolder(folder).config)) != comparable(config):
        raise InputError(
            f"{folder}: a training of another recipe or of other weights; give another --out, or delete it"
        )
    if RunFolder(folder).read_splits() != {video.name: video.split for video in source.videos}:
        raise InputError(
            f"{folder}: a training on other videos or other splits than {source.name}; give another --out, or delete it"
        )


def multiply_adds(jobs: Sequence[Job]) -> list[int]:
    """Of each training's forward passes, in all."""
    of_a_clip: dict[tuple[str, str], int] = {}
    for job in jobs:
        if (job.name, job.source.name) not in of_a_clip:
            of_a_clip[job.name, job.source.name] = sum(job.cost().training.values())
    return [
        of_a_clip[job.name, job.source.name] * len(job.source.split("train")) * job.config.training.epochs
        for job in jobs
    ]


def hours_left(jobs: Sequence[Job], work: Sequence[int]) -> float:
    """Of training, one run after the other, by the pace of what is finished, or else by that of a step on noise.

    `work`: multiply-adds of each.
    """
    done = sum(count for job, count in zip(jobs, work, strict=True) if job.done)
    if done == sum(work):
        return 0.0
    if done:
        pace = done / sum(job.seconds for job in jobs if job.done)
    else:
        largest, job = max(zip(work, jobs, strict=True), key=lambda pair: pair[0])
        clips = len(job.source.split("train")) * job.config.training.epochs
        pace = largest / clips * _clips_a_second(job)
    return (sum(work) - done) / pace / 3600


def _clips_a_second(job: Job) -> float:
    """Of a training step on noise, without its data and its optimiser."""
    config, clip = job.config, job.config.clip
    accelerator = make_accelerator(config.training)
    device = accelerator.device
    model = build(config.model, len(job.source.classes), job.segment_classes).to(device)
    clips = 2
    if device.type == "cuda":  # a card is fast with many at once alone
        clips = config.training.batch_size // config.training.accumulate
    noise_B3THW = torch.rand(clips, 3, clip.frames, clip.size, clip.size, device=device)
    seconds = 0.0
    for _ in range(2):  # of which the first makes everything ready
        started = time.monotonic()
        with accelerator.autocast():
            output = model(noise_B3THW, config.trained_heads())
        torch.stack([logits_BK.float().sum() for logits_BK in output.logits.values()]).sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.monotonic() - started
    return clips / seconds


def run_jobs(jobs: Sequence[Job], workers: int, console: Console) -> None:
    """Do what is not done yet, `workers` at a time, each in a process of its own. One that fails, or whose process is
    killed, does not keep the others from being done.

    Raises:
        InputError: a job's.
        RuntimeError: some failed.
    """
    todo = [job for job in jobs if not job.done]
    context = multiprocessing.get_context("spawn")
    columns = (TextColumn("runs"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn())
    waiting, failed = deque(todo), list[str]()
    running: dict[SpawnProcess, tuple[Job, Connection, int]] = {}
    with Progress(*columns, console=console) as progress, interrupted_by_signals():
        task = progress.add_task("", total=len(jobs), completed=len(jobs) - len(todo))
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    job = waiting.popleft()
                    receiver, sender = context.Pipe(duplex=False)
                    number = min(set(range(workers)) - {taken for _, _, taken in running.values()})
                    process = context.Process(target=_work, args=(job, number, workers, sender))
                    running[process] = job, receiver, number
                    start(process)
                    sender.close()
                wait([process.sentinel for process in running])
                for process in [process for process in running if process.exitcode is not None]:
                    job, receiver, _ = running.pop(process)
                    if process.exitcode == 0:
                        progress.advance(task)
                        console.print(f"{job.folder.name}: {job.score:.1%} in {job.seconds:.0f} s")
                        continue
                    failed.append(f"{job.folder.name}: {_why_it_failed(process, receiver)}")
                    console.print(f"failed: {failed[-1]}", soft_wrap=True)
        finally:
            end(running)
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(todo)} runs failed; the same call tries them again; {failed[0]}")


def _why_it_failed(process: SpawnProcess, receiver: Connection) -> str:
    """What its process said before it ended. InputError: it said one."""
    try:
        error = receiver.recv()
    except EOFError:
        killed = process.exitcode is not None and process.exitcode < 0
        why = ", perhaps for want of memory; give fewer --workers" if killed else ""
        return f"its process ended with exit code {process.exitcode}{why}"
    if isinstance(error, InputError):
        raise error
    return str(error)


def _work(job: Job, number: int, workers: int, sender: Connection) -> None:
    """A process's life."""
    with worker_process(number, workers, job.config.training.device, sender.send):
        _do(job)


def _do(job: Job) -> None:
    quiet = Console(quiet=True)
    begun = RunFolder(job.folder).has_begun()
    if not begun and not RunFolder(job.folder).may_begin():
        raise InputError(f"{job.folder}: holds something else; delete it, or give another --out")
    train(job.source, job.config, job.folder, begun, quiet, None if begun else job.init)
    if asked_to_stop.is_set():
        raise KeyboardInterrupt
    evaluate(job.folder, job.source, "test", quiet)


def _fingerprint(run: Path) -> str:
    """Tells runs apart to start from, so that none is taken for another one. InputError: not a run."""
    saved_models.read_description(run)
    with RunFolder(run).weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]


def _file_name(run: str) -> str:
    return run.replace("(", "").replace(")", "").replace("+", "-").replace(" ", "-")
