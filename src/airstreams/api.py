"""What a script calls: `load`, `open_source`, `train`, `evaluate`. `import airstreams` has all of it."""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from airstreams.config import Config, DataConfig, LossWeights
from airstreams.console import say, warn
from airstreams.data import sources
from airstreams.data.grouping import with_groups
from airstreams.data.listing import Source, Video
from airstreams.data.targets import Targets
from airstreams.distributed import device_of_process, is_main_process
from airstreams.errors import InputError, one_line
from airstreams.evaluation import evaluate as evaluation
from airstreams.evaluation.evaluate import Evaluation
from airstreams.files import lock_of_job
from airstreams.inference.recogniser import Recogniser
from airstreams.recipe import GivenConfig, config_to_resume, key_types, load_recipe, named_keys, recipe_path
from airstreams.runs import trackers
from airstreams.runs.folder import RunFolder
from airstreams.runs.hub import local_run
from airstreams.runs.metrics_log import EpochRecord
from airstreams.runs.saved_model import Description, SavedModel, read_description
from airstreams.runs.trust import require_trusted, require_trusted_run
from airstreams.training import loop
from airstreams.training.defaults import config_of_new_run, warn_of_unused_start
from airstreams.training.start import Start, read_start


def load(
    run: str | Path,
    device: str | None = None,
    trust: Collection[str] = (),
    precision: str | None = None,
    calibrated: bool = False,
) -> Recogniser:
    """Load the recogniser that a training left in a folder.

    Args:
        run: the folder that `train` wrote, or `hf:OWNER/NAME` for a run on the Hugging Face hub.
        device: `cpu`, `cuda`, `cuda:1`, `mps`; None: CUDA where there is a card, else the CPU.
        trust: names of modules that may be imported for the custom streams of a run that was trained elsewhere.
        precision: `float32`, `bfloat16` or `auto`; None: the run's `training.precision`.
        calibrated: divide the answer's logits by the temperature that training fitted on its validation videos.

    Raises:
        InputError: `run` holds no model or cannot be fetched, names a module that is not trusted, or has no
            temperature, or this machine has no such device.
    """
    return Recogniser(local_run(_path("run", run)), device, trust, precision, calibrated)


def open_source(
    data: str | Path, *, labels: str | Path | None = None, targets: Mapping[str, str | Path] | None = None
) -> Source:
    """List the videos of a data set. No video is opened.

    Args:
        data: a folder of class folders, a folder of train/ val/ test/, a CSV file (FILE.csv?root=DIR: its paths are
            relative to DIR), or NAME:ROOT[?key=value].
        labels: the folder of a teacher's label maps, as `airstreams annotate` wrote it.
        targets: the folders of teachers' targets by stream, for custom streams that learn from a teacher.

    Raises:
        InputError: something is missing or contradicts itself, or there are fewer than two classes.
    """
    return _source(data, labels, targets=targets)


def train(
    data: str | Path | Source,
    run: str | Path,
    *,
    config: Config | str | Path | None = None,
    labels: str | Path | None = None,
    targets: Mapping[str, str | Path] | None = None,
    init: str | Path | None = None,
    offline: bool = False,
    resume: bool = False,
    log_to: Sequence[str] = trackers.DEFAULT,
    trust: Collection[str] = (),
    console: Console | None = None,
) -> EpochRecord:
    """Train a recogniser on a data set's training videos and leave it in a folder.

    Args:
        data: what `open_source` takes, or its result.
        run: the folder to write. It must be new or empty, unless `resume`.
        config: a `Config`, a recipe's name or its YAML file. None: `finetune` for published weights, else the defaults;
            without a CUDA card `finetune-small` and `small`; with `resume` the run's own. With `resume`, more epochs
            than the run has lengthen it.
        labels: the folder of a teacher's label maps, for the semantic stream. Without label maps, the model gets no
            semantic stream, unless the config names `model.streams`.
        targets: the folders of teachers' targets by stream, for custom streams that learn from a teacher.
        init: what to start from: a run, a file of published weights, or the name of some, such as `i3d-kinetics400`.
            A run that is resumed ignores it.
        offline: fetch no weights.
        resume: go on with the run from its last saved state, or begin it if there is none.
        log_to: the trackers that get the metrics: `tensorboard`, `wandb`, `mlflow`.
        trust: names of modules that may be imported for custom streams of a recipe, or of the run to start from.
        console: for progress and warnings; None prints nothing.

    Returns:
        The last epoch's record.

    Raises:
        InputError: an argument is wrong; nothing has been written then.
        VideoError: no clip could be read for some time.
        FloatingPointError: no step gave finite numbers for some time; the last good state is kept.
    """
    return carry_out(
        TrainingCall(
            data,
            _path("run", run),
            _given_config(config, trust),
            labels=labels,
            targets=targets,
            init=None if init is None else str(_path("init", init)),
            offline=offline,
            resume=resume,
            log_to=log_to,
            trust=trust,
            console=_console(console),
        )
    )


@dataclass(frozen=True)
class TrainingCall:
    """What a call of `train`, in Python or on the command line, asks for.

    given: the config, and the keys of it that the caller named.
    evolved: gives the loss weights of a study for a config; None: the config has its own.
    The other fields are the arguments of `train`.
    """

    data: str | Path | Source
    run: Path
    given: GivenConfig
    labels: str | Path | None
    init: str | None
    offline: bool
    resume: bool
    log_to: Sequence[str]
    trust: Collection[str]
    console: Console
    evolved: Callable[[Config], LossWeights] | None = None
    targets: Mapping[str, str | Path] | None = None


def carry_out(call: TrainingCall) -> EpochRecord:
    """Train, or go on with a training. Returns and raises what `train` does."""
    folder = RunFolder(call.run)
    goes_on = call.resume and folder.has_begun()  # asked before the processes of torchrun meet, or one might begin it
    source, config, init = _resumed(call, folder) if goes_on else _new(call, folder)
    source = _with_useful_labels(source, call.labels, config)
    with lock_of_job(folder.path, "training"):
        record = loop.train(
            source, config, folder.path, goes_on, call.console, init, log_to=call.log_to, draw=_streams_picture
        )
        _write_card(folder.path, call.console, source)
        return record


def _new(call: TrainingCall, folder: RunFolder) -> tuple[Source, Config, Start | None]:
    """The data, the config and the start of a run that begins."""
    _require_new(folder)
    start = None if call.init is None else read_start(call.init, call.offline, call.trust)
    source = _source(call.data, call.labels, targets=call.targets)
    config = config_of_new_run(call.given, source, call.console, start)
    if start is None:
        warn_of_unused_start(config, call.console)
    if call.evolved is not None:
        config = replace(config, loss_weights=call.evolved(config))
    if call.resume and is_main_process():
        say(call.console, f"{folder.path} holds no run yet: starting a new one.")
    return source, config, start


def _resumed(call: TrainingCall, folder: RunFolder) -> tuple[Source, Config, None]:
    """The data and the config of a run that goes on. The call may be the one that began it: schedulers repeat it."""
    given = call.given
    if call.evolved is not None:  # the run has the weights of the study
        given = replace(given, named=frozenset(key for key in given.named if not key.startswith("loss_weights.")))
    config = config_to_resume(folder.config, given)
    if not any(key.startswith("model.representations") for key in given.named):  # else the call names the same modules
        require_trusted_run(folder.path, config.model, call.trust)
    source = _source(call.data, call.labels, targets=call.targets)
    device_of_process(config.training.device, "training.device")  # is_main_process must know it
    ignored = [name for name, value in (("--init", call.init), ("--weights-from", call.evolved)) if value is not None]
    if ignored and is_main_process():
        say(call.console, f"{folder.path} goes on from its own state. For a new run alone: {', '.join(ignored)}.")
    return source, config, None


def evaluate(
    run: str | Path,
    data: str | Path | Source,
    *,
    split: str = "test",
    labels: str | Path | None = None,
    targets: Mapping[str, str | Path] | None = None,
    group_by: str | None = None,
    device: str | None = None,
    trust: Collection[str] = (),
    precision: str | None = None,
    audit: bool = False,
    calibrated: bool = False,
    console: Console | None = None,
) -> Evaluation:
    """Score a split of a data set with a trained run. Metrics and scores are left in the run's folder too.

    Args:
        run: the folder that `train` wrote.
        data: what `open_source` takes, or its result.
        split: `train`, `val` or `test`.
        labels: the folder of a teacher's label maps, to score the segmentation.
        targets: the folders of teachers' targets by stream, to score the predictions of these streams.
        group_by: the groups of the 95 % intervals, as the config key `data.group_by`; None: those of the run.
        device: `cpu`, `cuda`, `cuda:1`, `mps`; None: CUDA where there is a card, else the CPU.
        trust: as for `load`.
        precision: `float32`, `bfloat16` or `auto`; None: the run's `training.precision`.
        audit: also find what the answers rest on. Its label maps are those of DATA or of `labels`.
        calibrated: as for `load`.
        console: for progress and warnings; None prints nothing.

    Raises:
        InputError: no run, no such split, or data that does not fit the run.
        VideoError: no video can be read.
    """
    folder, console = _path("run", run), _console(console)
    config = read_description(folder).config
    source = _source(data, labels, for_training=False, targets=targets)
    source = source if audit else _with_useful_labels(source, labels, config)
    if group_by is not None:
        source = with_groups(source, DataConfig(group_by=group_by).group_by, console)
    result = evaluation.evaluate(folder, source, split, console, device or "auto", trust, precision, audit, calibrated)
    _write_card(folder, console, described=result.saved)
    return result


def _streams_picture(
    path: Path, saved: SavedModel, videos: Sequence[Video], targets: Mapping[str, Targets], console: Console
) -> None:
    from airstreams.viewing.representations import streams_picture  # matplotlib takes half a second to import

    streams_picture(path, saved, videos, targets, console)


def _write_card(
    run: Path, console: Console, source: Source | None = None, described: Description | None = None
) -> None:
    """Write the run's model card. If that fails, the training or evaluation is complete all the same."""
    if not is_main_process():
        return
    from airstreams.viewing.model_card import write_model_card

    try:
        write_model_card(run, source, described)
    except (InputError, OSError) as error:
        warn(console, f"the model card was not written ({one_line(error)}). Run `airstreams evaluate` to write it.")


def _require_new(folder: RunFolder) -> None:
    if folder.may_begin():
        return
    resume = ", or --resume to go on with its run" if folder.has_begun() else ""
    raise InputError(f"{folder.path} is already there. Give another folder{resume}.")


def _given_config(config: Config | str | Path | None, trust: Collection[str]) -> GivenConfig:
    if config is None:
        return GivenConfig(Config())
    if isinstance(config, Config):
        return GivenConfig(config, frozenset(key_types()), has_recipe=True)
    if isinstance(config, str | Path):
        values, whole = load_recipe(recipe_path(str(config)))
        require_trusted(whole.model, trust, config)
        return GivenConfig(whole, frozenset(named_keys(values)), has_recipe=True)
    raise InputError(f"config: got {type(config).__name__}, expected a Config, or a recipe's name or YAML file")


def _source(
    data: str | Path | Source,
    labels: str | Path | None,
    for_training: bool = True,
    targets: Mapping[str, str | Path] | None = None,
) -> Source:
    store = None if labels is None else _path("labels", labels)
    folders = {stream: _path(f"targets.{stream}", path) for stream, path in (targets or {}).items()}
    if isinstance(data, Source):
        if store is not None or folders:
            key, what = ("labels", "label maps") if store is not None else ("targets", "targets")
            raise InputError(f"{key}: data is a Source already. Give the {what} to open_source instead.")
        return data
    if isinstance(data, str | Path):
        return sources.open_source(str(data), store, for_training, targets=folders)
    raise InputError(f"data: got {type(data).__name__}, expected a path, NAME:ROOT or a Source of open_source")


def _with_useful_labels(source: Source, labels: object, config: Config) -> Source:
    """The source, with a warning where label maps were given that no stream of the model uses."""
    if labels is None or config.model.has_segmenter:
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
