"""What a script calls: `load`, `open_source`, `train`, `evaluate`. `import airstreams` has all of it."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from airstreams.config import Config, DataConfig
from airstreams.data import sources
from airstreams.data.grouping import with_groups
from airstreams.data.label_maps import LabelStore
from airstreams.data.listing import Source, Video
from airstreams.errors import InputError
from airstreams.evaluation import evaluate as evaluation
from airstreams.evaluation.evaluate import Evaluation
from airstreams.files import lock_of_job
from airstreams.inference.recogniser import Recogniser
from airstreams.recipe import load_config, recipe_path, training_settings
from airstreams.runs import trackers
from airstreams.runs.folder import RunFolder
from airstreams.runs.metrics_log import EpochRecord
from airstreams.runs.saved_model import SavedModel, read_description
from airstreams.training import loop
from airstreams.training.start import read_start, with_backbone_of


def load(run: str | Path, device: str | None = None) -> Recogniser:
    """Load the recogniser that a training left in a folder.

    Args:
        run: the folder that `train` wrote.
        device: `cpu`, `cuda`, `cuda:1`, `mps`; None: CUDA where there is a card, else the CPU.

    Raises:
        InputError: `run` holds no model, or this machine has no such device.
    """
    return Recogniser(_path("run", run), device)


def open_source(data: str | Path, *, labels: str | Path | None = None) -> Source:
    """List the videos of a data set. No video is opened.

    Args:
        data: a folder of class folders, a folder of train/ val/ test/, a CSV file (FILE.csv?root=DIR: its paths are
            relative to DIR), or NAME:ROOT[?key=value].
        labels: the folder of a teacher's label maps, as `airstreams annotate` wrote it.

    Raises:
        InputError: something is missing or contradicts itself, or there are fewer than two classes.
    """
    return _source(data, labels)


def train(
    data: str | Path | Source,
    run: str | Path,
    *,
    config: Config | str | Path | None = None,
    labels: str | Path | None = None,
    init: str | Path | None = None,
    offline: bool = False,
    resume: bool = False,
    log_to: Sequence[str] = trackers.DEFAULT,
    console: Console | None = None,
) -> EpochRecord:
    """Train a recogniser on a data set's training videos and leave it in a folder.

    Args:
        data: what `open_source` takes, or its result.
        run: the folder to write. It must be new or empty, unless `resume`.
        config: a `Config`, a recipe's name or its YAML file; None: the defaults or, with `resume`, the run's own.
        labels: the folder of a teacher's label maps, for the semantic stream.
        init: what to start from: a run, a file of published weights, or the name of some, such as `i3d-kinetics400`.
        offline: fetch no weights.
        resume: go on with the run from its last saved state.
        log_to: the trackers that get the metrics: `tensorboard`, `wandb`, `mlflow`.
        console: for progress and warnings; None prints nothing.

    Returns:
        The last epoch's record.

    Raises:
        InputError: an argument is wrong; nothing has been written then.
        VideoError: no clip could be read for some time.
        FloatingPointError: no step gave finite numbers for some time; the last good state is kept.
    """
    folder = RunFolder(_path("run", run))
    start = None if init is None else read_start(str(_path("init", init)), offline)
    console = _console(console)
    if resume:
        require_run(folder)
        settings = _config_to_resume(folder, config)
    else:
        settings = Config() if config is None else _config(config)
        settings = settings if start is None else with_backbone_of(start, settings)
        _require_new(folder)
    source = _with_useful_labels(_source(data, labels), labels, settings)
    with lock_of_job(folder.path, "training"):
        return loop.train(source, settings, folder.path, resume, console, start, log_to=log_to, draw=_streams_picture)


def evaluate(
    run: str | Path,
    data: str | Path | Source,
    *,
    split: str = "test",
    labels: str | Path | None = None,
    group_by: str | None = None,
    device: str | None = None,
    console: Console | None = None,
) -> Evaluation:
    """Score a split of a data set with a trained run. Metrics and scores are left in the run's folder too.

    Args:
        run: the folder that `train` wrote.
        data: what `open_source` takes, or its result.
        split: `train`, `val` or `test`.
        labels: the folder of a teacher's label maps, to score the segmentation.
        group_by: the groups of the 95 % intervals, as the config key `data.group_by`; None: those of the run.
        device: `cpu`, `cuda`, `cuda:1`, `mps`; None: CUDA where there is a card, else the CPU.
        console: for progress and warnings; None prints nothing.

    Raises:
        InputError: no run, no such split, or data that does not fit the run.
        VideoError: no video can be read.
    """
    folder, console = _path("run", run), _console(console)
    config = read_description(folder).config
    source = _with_useful_labels(_source(data, labels, for_training=False), labels, config)
    if group_by is not None:
        source = with_groups(source, DataConfig(group_by=group_by).group_by, console)
    return evaluation.evaluate(folder, source, split, console, device or "auto")


def require_run(folder: RunFolder) -> None:
    """Raise InputError for a folder that holds no run to resume."""
    if not folder.has_begun():
        raise InputError(f"{folder.path} holds no run to resume. Leave out --resume, or give the folder of a run.")


def _streams_picture(
    path: Path, saved: SavedModel, videos: Sequence[Video], store: LabelStore | None, console: Console
) -> None:
    from airstreams.viewing.representations import streams_picture  # matplotlib takes half a second to import

    streams_picture(path, saved, videos, store, console)


def _require_new(folder: RunFolder) -> None:
    if folder.may_begin():
        return
    resume = ", or --resume to go on with its run" if folder.has_begun() else ""
    raise InputError(f"{folder.path} is already there. Give another folder{resume}.")


def _config(config: Config | str | Path) -> Config:
    if isinstance(config, Config):
        return config
    if isinstance(config, str | Path):
        return load_config(recipe_path(str(config)))
    raise InputError(f"config: got {type(config).__name__}, expected a Config, or a recipe's name or YAML file")


def _config_to_resume(folder: RunFolder, config: Config | str | Path | None) -> Config:
    """The run's own config, or one that trains the same model, perhaps on another device."""
    own = load_config(folder.config)
    if config is None:
        return own
    given = _config(config)
    if training_settings(given) != training_settings(own):
        raise InputError(f"config: it differs from {folder.config}, which resuming goes by. Leave config out.")
    return given


def _source(data: str | Path | Source, labels: str | Path | None, for_training: bool = True) -> Source:
    store = None if labels is None else _path("labels", labels)
    if isinstance(data, Source):
        if store is not None:
            raise InputError("labels: data is a Source already. Give the label maps to open_source instead.")
        return data
    if isinstance(data, str | Path):
        return sources.open_source(str(data), store, for_training)
    raise InputError(f"data: got {type(data).__name__}, expected a path, NAME:ROOT or a Source of open_source")


def _with_useful_labels(source: Source, labels: object, config: Config) -> Source:
    """The source, with a warning where label maps were given that no stream of the model uses."""
    if labels is None or "semantic" in config.model.streams:
        return source
    warning = "--labels has no effect, since the model has no semantic stream. Leave it out."
    return replace(source, warnings=(*source.warnings, warning))


def _path(name: str, value: object) -> Path:
    if not isinstance(value, str | os.PathLike):
        raise InputError(f"{name}: got {type(value).__name__}, expected a path (str or Path)")
    return Path(value)


def _console(console: Console | None) -> Console:
    if console is None:
        return Console(quiet=True)
    if not isinstance(console, Console):
        raise InputError(f"console: got {type(console).__name__}, expected a rich.console.Console or None")
    return console
