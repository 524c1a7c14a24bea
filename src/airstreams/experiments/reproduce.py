"""The trainings that a table or a figure needs: planned, estimated and done.

Each run (see `tables.py`) is trained once per DATA (a split of the data set) and seed. All runs have the same recipe,
hence the same budget. All tables and figures in a folder share them: a finished run is only read, a killed one is
resumed. Only one call at a time works in a folder.
"""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from airstreams.config import Config
from airstreams.console import Progress, say, warn
from airstreams.data.label_maps import COCO_CLASSES
from airstreams.data.listing import Source
from airstreams.data.splits import with_fewer_training_videos
from airstreams.errors import InputError
from airstreams.estimate import TotalTime
from airstreams.evaluation.evaluate import evaluate
from airstreams.evaluation.results import EvaluationMetrics, read_metrics
from airstreams.experiments.display import UPDATE_EVERY, TrainingsDisplay
from airstreams.experiments.tables import PRETRAINED, STREAMS, TORCHVISION, Figure, Table, run_config, run_of
from airstreams.experiments.workers import EndedWorker, WorkerPool, show_steps
from airstreams.machine import autocast, precision_on
from airstreams.models import cost
from airstreams.models.airstreams import build
from airstreams.models.backbones.torchvision_video import torchvision_models
from airstreams.plural import count_of
from airstreams.recipe import load_config, training_settings
from airstreams.representations.teaching import without_targets
from airstreams.runs.folder import RunFolder
from airstreams.runs.metrics_log import epoch_records
from airstreams.runs.trust import custom_classes
from airstreams.training.data import with_checked_splits, with_segment_classes
from airstreams.training.learner import make_accelerator
from airstreams.training.loop import train
from airstreams.training.signals import asked_to_stop, interrupted_by_signals
from airstreams.training.start import Start, read_start, with_backbone_of, with_flow_of

QUIET = Console(quiet=True)

_costs: dict[str, cost.Cost] = {}


@dataclass(frozen=True)
class Job:
    """One training and its evaluation.

    name: of the run, as in `tables.py`.
    init: what `--init` named, if it starts from that.
    """

    name: str
    source: Source
    config: Config
    folder: Path
    init: str | None = None

    @property
    def metrics_file(self) -> Path:
        """The metrics of the test split, JSON; written when all is done."""
        return RunFolder(self.folder).evaluation("test").metrics

    @property
    def done(self) -> bool:
        """Whether nothing is left to do. A run that was evaluated on other data since then is not done."""
        return self.metrics_file.is_file() and self.read_metrics().are_of(self.source)

    @property
    def score(self) -> float:
        """The metric of the data, in 0..1."""
        score = self.read_metrics()[self.source.metric]
        assert score is not None
        return score

    @property
    def seconds(self) -> float:
        """The time of the training, without what an interruption cost."""
        return sum(record.train["seconds"] for record in epoch_records(self.folder))

    @property
    def hardware(self) -> set[str]:
        """What it was trained on; several if it was resumed elsewhere."""
        records = epoch_records(self.folder)
        return {record.train.get("hardware", "hardware that was not recorded") for record in records}

    @property
    def segment_classes(self) -> int:
        """The number of the segmenter's classes."""
        store = self.source.label_store
        return self.config.segmenter_classes(len(store.classes if store else COCO_CLASSES))

    def cost(self) -> cost.Cost:
        """The cost of its model for one clip. Equal models are counted once, because it takes a second."""
        config, classes = self.config, len(self.source.classes)
        model = str((config.clip, config.model, config.loss_weights, classes, self.segment_classes))
        if model not in _costs:
            _costs[model] = cost.count(config, classes, self.segment_classes)
        return _costs[model]

    def read_metrics(self) -> EvaluationMetrics:
        """The metrics of the test split. InputError: they are missing or damaged."""
        return read_metrics(self.metrics_file)


def plan(
    wanted: Table | Figure,
    recipe: Config,
    sources: Sequence[Source],
    seeds: int,
    out: Path,
    evolved: Mapping[str, float] | None = None,
    init: Start | None = None,
    console: Console = QUIET,
) -> list[Job]:
    """The trainings that a table or a figure needs, finished or not: all runs of one seed, then those of the next.

    Args:
        wanted: a table; or a figure, which takes the first source and one seed.
        recipe: of all runs. If it names no tower, they have that of published weights.
        sources: the data; several are the splits of one data set.
        seeds: how many, from the recipe's on.
        out: the folder in which `runs` is.
        evolved: loss weights of a study.
        init: what pretrained runs start from.
        console: gets progress and warnings about the data.

    Raises:
        InputError: something that a run needs is missing, something is given that no run uses, or a folder holds a
            training of another recipe or on other data.
    """
    _check_request(wanted, recipe, init)
    if init is not None:
        recipe = with_backbone_of(init, recipe)
    if isinstance(wanted, Figure):
        sources, seeds = sources[:1], 1
    # Data without splits is split once, for all seeds.
    sources = [with_checked_splits(source, recipe, console) for source in sources]
    for warning in dict.fromkeys(warning for source in sources for warning in source.warnings):
        warn(console, warning)
    _check_sources(wanted, sources)
    digest = "" if init is None else init.digest()[:8]
    sizes = sorted({clips for name in wanted.runs if (clips := run_of(name).clips) is not None})
    jobs = []
    for seed in range(recipe.seed, recipe.seed + seeds):
        for split, source in enumerate(sources):
            for name in wanted.runs:
                config = replace(run_config(name, recipe, evolved), seed=seed)
                start = init if PRETRAINED in name else None
                folder = out / "runs" / f"{_file_name(name)}{f'-{digest}' if start else ''}-data{split}-seed{seed}"
                if start is not None:
                    start.for_streams(config.model.streams)  # raises InputError if it has nothing for them
                    config = with_flow_of(start, config)
                clips = run_of(name).clips
                data = source if clips is None else with_fewer_training_videos(source, clips, sizes, seed)
                config = replace(config, training=config.training.for_videos(len(data.split("train"))))
                own = {stream: found for stream, found in data.targets.items() if stream in config.model.streams}
                data = replace(data, targets=own)
                jobs.append(Job(name, data, config, folder, None if start is None else start.given))
                _check_job(jobs[-1])
    return jobs


def without_missing_towers(wanted: Table | Figure, console: Console) -> Table | Figure:
    """A table without the runs whose towers need torchvision, where it cannot be imported."""
    runs = [name for name in wanted.runs if run_of(name).changes.get("model.backbone") in TORCHVISION]
    if not runs or isinstance(wanted, Figure):
        return wanted
    try:
        torchvision_models(f"{count_of(len(runs), 'row')} of this table")
    except InputError as error:
        warn(console, f"{error} Until then these rows are left out: {', '.join(wanted.rows_of(runs))}.")
        return wanted.without(runs, "for lack of torchvision")
    return wanted


def _check_request(wanted: Table | Figure, recipe: Config, init: Start | None) -> None:
    trained = {stream for name in wanted.runs for stream in run_of(name).changes["model.streams"]}
    unused = [stream for stream in recipe.model.representations if stream not in trained]
    if unused:
        raise InputError(
            f"model.representations: the recipe has {', '.join(unused)}, which no run of this table or figure has. "
            f"Leave the key out, or reproduce the table {STREAMS}."
        )
    pretrained = [name for name in wanted.runs if PRETRAINED in name]
    if pretrained and init is None:
        raise InputError(
            f"The run {pretrained[0]} starts from trained weights, in the paper from Moments in Time. Give --init RUN."
        )
    if init is not None and not pretrained:
        raise InputError("--init: these runs are trained from scratch. Leave it out.")


def _check_sources(wanted: Table | Figure, sources: Sequence[Source]) -> None:
    for source in sources:
        if (source.classes, source.multi_label) != (sources[0].classes, sources[0].multi_label):
            raise InputError(
                f"{source.name}: its classes differ from those of {sources[0].name}. Give splits of one data set: the "
                "table shows their mean."
            )
        for needed in ("train", "test"):
            source.split(needed)  # raises InputError if there is no such split
        if source.multi_label and isinstance(wanted, Table) and (any(wanted.metrics) or wanted.plot == "clips"):
            raise InputError(
                f"{source.name} has several labels per video, but this table needs one. Give data with one label per "
                "video."
            )
    names = [source.name for source in sources]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"--data: {twice[0]} is given twice. Give each split of the data set once.")


def _check_job(job: Job) -> None:
    """InputError: its data lack what it needs, or its folder holds another training."""
    for stream in job.config.taught:
        if stream not in job.source.target_folders:
            raise InputError(f"{job.source.name}: the run {job.name} has {without_targets(stream)}")
    with_segment_classes(job.source, job.config)  # raises InputError if the label maps lack a class
    run = RunFolder(job.folder)
    if not run.has_begun():
        return
    if training_settings(load_config(run.config)) != training_settings(job.config):
        raise InputError(
            f"{job.folder}: the folder holds a training with another recipe or other loss weights. Give another --out, "
            "or delete the folder."
        )
    if run.read_splits() != {video.name: video.split for video in job.source.all_videos}:
        raise InputError(
            f"{job.folder}: the folder holds a training on other videos or splits than {job.source.name}. Give another "
            "--out, or delete the folder."
        )
    content_of = {video.name: video.content for video in job.source.split("test")}
    changed = [
        known.name
        for known in run.read_videos()
        if known.content and (now := content_of.get(known.name)) and now != known.content
    ]
    if changed:
        raise InputError(_changed_videos(job, changed))


def _changed_videos(job: Job, names: Sequence[str]) -> str:
    return (
        f"{job.folder}: {count_of(len(names), 'test video')} changed since that training began, such as {names[0]}, so "
        "runs cannot be compared. Restore the files, or give another --out."
    )


def multiply_adds(jobs: Sequence[Job]) -> list[int]:
    """The multiply-adds of all forward passes of each training."""
    return [
        sum(job.cost().training.values()) * len(job.source.split("train")) * job.config.training.epochs for job in jobs
    ]


def hours_left(jobs: Sequence[Job], work: Sequence[int]) -> float:
    """An estimate of the hours of training that are left, one run after the other.

    The speed is that of the finished runs. If there are none, it is measured on one training step on noise.

    Args:
        jobs: finished or not.
        work: the multiply-adds of each.
    """
    done = sum(count for job, count in zip(jobs, work, strict=True) if job.done)
    if done == sum(work):
        return 0.0
    if done:
        speed = done / sum(job.seconds for job in jobs if job.done)
    else:
        largest, job = max(zip(work, jobs, strict=True), key=lambda pair: pair[0])
        clips = len(job.source.split("train")) * job.config.training.epochs
        speed = largest / clips * _clips_per_second(job)
    return (sum(work) - done) / speed / 3600


def _clips_per_second(job: Job) -> float:
    """The speed of a training step on noise, without its data and its optimiser."""
    config, clip = job.config, job.config.clip
    accelerator = make_accelerator(config.training)
    device = accelerator.device
    precision = precision_on(device, config.training.precision, config.model.is_full_size)
    model = build(config.model, len(job.source.classes), job.segment_classes).to(device)
    clips = 2
    if device.type == "cuda":  # a card is fast only with many clips at once
        clips = config.training.batch_size // config.training.accumulate
    noise_B3THW = torch.rand(clips, 3, clip.frames, clip.size, clip.size, device=device)
    seconds = 0.0
    for _ in range(2):  # the first pass is a warm-up
        started = time.monotonic()
        with autocast(device, precision):
            output = model(noise_B3THW, config.trained_heads())
        torch.stack([logits_BK.float().sum() for logits_BK in output.logits.values()]).sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.monotonic() - started
    return clips / seconds


def run_jobs(jobs: Sequence[Job], workers: int, console: Console) -> None:
    """Do what is not done yet, `workers` jobs at a time, each in a process of its own.

    If a job fails or its process is killed, the others are still done.

    Raises:
        InputError: that of a job; the others are stopped.
        RuntimeError: some jobs failed.
    """
    todo = [job for job in jobs if not job.done]
    waiting, failed = deque(todo), list[str]()
    running: dict[int, Job] = {}
    work_of = dict(zip((job.folder for job in todo), multiply_adds(todo), strict=True))
    done, done_work = len(jobs) - len(todo), 0.0
    with Progress(console) as progress, interrupted_by_signals(), WorkerPool(workers) as pool:
        average = sum(work_of.values()) / len(todo) if todo else 1.0
        display = TrainingsDisplay(progress, "training", "runs", len(jobs), TotalTime(), average)
        while waiting or running:
            at_work = [(*steps, work_of[running[number].folder]) for number, steps in pool.steps.items()]
            display.update(done, at_work, done_work)
            display.say_total("reproduce")
            while waiting and not pool.is_full:
                job = waiting.popleft()
                running[pool.start(job.config.training.device, run_job, job)] = job
            for ended in pool.wait(UPDATE_EVERY):
                job = running.pop(ended.number)
                done_work += work_of[job.folder]  # of a failed one too: it takes no more time
                if ended.exit_code == 0:
                    done += 1
                    say(console, f"{job.folder.name}: {job.score:.1%} in {job.seconds:.0f} s")
                else:
                    failed.append(f"{job.folder.name}: {_reason(ended)}")
                    say(console, f"failed: {failed[-1]}")
        display.update(done, [], done_work)
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(todo)} runs failed. Repeat the call to try again. {failed[0]}")


def run_job(job: Job) -> None:
    """Train, or resume, and evaluate. InputError: the folder holds something else."""
    quiet = Console(quiet=True)
    run = RunFolder(job.folder)
    begun = run.has_begun()
    if not begun and not run.may_begin():
        raise InputError(f"{job.folder}: the folder holds something else. Delete it, or give another --out.")
    start = None
    if job.init is not None and not begun:  # the plan has fetched it
        start = read_start(job.init, offline=True).for_streams(job.config.model.streams)
    train(job.source, job.config, job.folder, begun, quiet, start, after_step=show_steps)
    if asked_to_stop.is_set():
        raise KeyboardInterrupt
    modules = [path.partition(":")[0] for path in custom_classes(job.config.model).values()]  # the call trusts them
    evaluation = evaluate(job.folder, job.source, "test", quiet, job.config.training.device, modules)
    if not evaluation.folder.is_own_split:
        raise InputError(_changed_videos(job, [video.name for video in evaluation.videos]))


def _reason(ended: EndedWorker) -> str:
    """Why a job failed. InputError: it reported one."""
    if isinstance(ended.error, InputError):
        raise ended.error
    if ended.error is not None:
        return str(ended.error)
    advice = ", perhaps for lack of memory. Give fewer --workers." if ended.exit_code < 0 else ""
    return f"its process ended with exit code {ended.exit_code}{advice}"


def _file_name(run: str) -> str:
    return run.replace("(", "").replace(")", "").replace("+", "-").replace(" ", "-")
