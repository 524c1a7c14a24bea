"""A trained model on disk: weights, config, classes and preprocessing in one folder.

`model.safetensors` holds the weights, `model.json` everything else. Neither is a pickle, so loading a stranger's model
runs no code. A model with custom streams names their modules. They are imported only with consent (`trust.py`).

safetensors has no checksum, and class names of another run fit any weights of the same shapes. So the header of the
weights holds sha256 sums: of the tensors, and of `model.json`. Files that do not match them are not read. The
price is that every load hashes all weights, and that nobody can edit `model.json`. The sums protect against accidents.
They do not protect against forgery, because a forger can write new ones.
"""

import hashlib
import json
import math
import platform
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor

from airstreams.config import Config, ModelConfig
from airstreams.errors import InputError, one_line, require
from airstreams.files import replacing
from airstreams.machine import Precision, computes_in_bfloat16, precision_on
from airstreams.models.airstreams import AIRStreams, build
from airstreams.old_keys import with_keys_of_older_runs
from airstreams.recipe import from_dict
from airstreams.runs.folder import RunFolder
from airstreams.runs.trust import custom_classes, remember, require_trusted_run
from airstreams.version import __version__

FORMAT = 3
_GIVE_A_RUN = "Give the folder that `airstreams train --out` wrote."
_USE_ITS_VERSION = "Use the version of airstreams that model.json names."


@dataclass(frozen=True)
class KeptEpoch:
    """Which epoch's weights a model has, and why.

    epoch: counted from 1.
    why: `best`: no epoch that was validated has a higher metric. `last`: nothing was validated, so the newest weights
        are kept.
    metric: the validation metric of `best`, `top1` or `map`; None for `last`.
    value: the metric after this epoch, in 0..1.
    interval: its 95 % interval.
    videos: how many validation videos it is over.
    temperature: by which the answer's logits must be divided for the least log loss on these videos; None: unknown,
        there is no least one, or the data is multi-label.
    """

    epoch: int
    why: Literal["best", "last"]
    metric: str | None = None
    value: float | None = None
    interval: list[float] | None = None
    videos: int = 0
    temperature: float | None = None


@dataclass
class Description:
    """Everything that using a model needs beside its weights.

    classes: names of the action classes, in the order of the logits.
    segment_classes: names of the segmenter's classes, background first, in the order of the segmentation logits.
    multi_label: whether a video may have several labels.
    frame_rate: the median frame rate of the training videos, in frames per second; None: unknown.
    kept: which epoch the weights are from; None: unknown, as in files of earlier versions.
    """

    config: Config
    classes: tuple[str, ...]
    segment_classes: tuple[str, ...]
    multi_label: bool
    frame_rate: float | None
    kept: KeptEpoch | None = field(default=None, kw_only=True)


@dataclass
class SavedModel(Description):
    """A model with everything that using it needs.

    precision: in which it runs here. Its weights are float32 in both.
    temperature: divides the answer's logits here.
    """

    model: AIRStreams
    precision: Precision = field(default="float32", kw_only=True)
    temperature: float = field(default=1.0, kw_only=True)


def save(saved: SavedModel, run: Path) -> None:
    """Write a model into a run's folder. Each file is complete at any moment.

    The late towers of heads whose loss has no weight are left out, because they still have their random weights. The
    folder of `data.cache` is left out too: it is of one machine, and nobody who uses the model needs it.

    A run's description is the same at each save, except for the versions and the kept epoch, which the sum ignores. So
    a crash between the two files leaves two that match. The kept epoch has a sum of its own: after such a crash it is
    unknown.
    """
    config = asdict(saved.config)
    config["data"]["cache"] = None
    description = {
        "format": FORMAT,
        "config": config,
        "classes": list(saved.classes),
        "segment_classes": list(saved.segment_classes),
        "multi_label": saved.multi_label,
        "frame_rate": saved.frame_rate,
        "preprocessing": preprocessing(saved.config),
        **({} if saved.kept is None else {"kept": asdict(saved.kept)}),
        "versions": {
            "airstreams": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    trained = saved.config.trained_heads()
    untrained = tuple(f"late.{head}." for head in saved.config.model.heads if head not in trained)
    # Copies: safetensors refuses tensors that share memory, as a custom stream's tied weights do.
    weights = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in saved.model.state_dict().items()
        if not name.startswith(untrained)
    }
    sums = {"sha256": _sum_of_weights(weights), "description": _sum_of_description(description)}
    if saved.kept is not None:
        sums["kept"] = _sum_of(description["kept"])
    with replacing(RunFolder(run).weights) as temporary:
        # save_file makes a file that other users cannot read. There is one entry, because the order of several varies.
        temporary.write_bytes(serialise(weights, {"sums": json.dumps(sums)}))
    with replacing(RunFolder(run).description) as temporary:
        temporary.write_text(_as_text(description), encoding="utf-8")
    remember(run, saved.config.model)  # this process has imported the modules


def load(
    run: Path,
    device: torch.device | str = "cpu",
    trust: Collection[str] = (),
    precision: str | None = None,
    calibrated: bool = False,
) -> SavedModel:
    """Read a model from a run's folder, in evaluation mode, with the heads that were saved.

    trust: names of modules that may be imported for custom streams. Those of a run that was trained here may, too.
    precision: in which the model will run: `float32`, `bfloat16` or `auto`. None: the config's, but float32 where the
        device would only emulate bfloat16.
    calibrated: divide the answer's logits by the temperature that training fitted.

    Raises:
        InputError: the folder is no run, its format is another, a bit of it changed (outside of `versions`), it names a
            module that is not trusted, or it has no temperature.
    """
    description = read_description(run)
    temperature = _temperature(run, description) if calibrated else 1.0
    require_trusted_run(run, description.config.model, trust)
    path = RunFolder(run).weights
    _require_fitting(path, description)
    weights = load_file(path)
    if _sum_of_weights(weights) != _sums(path)["sha256"]:
        raise InputError(f"{path}: the file is damaged (its weights changed). Copy the run again.")
    model = _built(description, weights)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = one_line(error)[:200]
        fix = fix_for_other_weights(model, weights, description.config.model)
        raise InputError(f"{path}: the weights do not fit the run's config ({reason}). {fix}") from error
    device = torch.device(device)
    return SavedModel(
        **vars(description),
        model=model.eval().to(device),
        precision=_precision(device, precision, description.config),
        temperature=temperature,
    )


def _temperature(run: Path, description: Description) -> float:
    """The temperature that training fitted. InputError: there is none."""
    kept = description.kept
    if kept is None or kept.temperature is None:
        why = "its data is multi-label" if description.multi_label else "no validation videos gave one"
        raise InputError(f"--calibrated: {run} has no temperature, because {why}. Leave it out.")
    return kept.temperature


def _precision(device: torch.device, asked: str | None, config: Config) -> Precision:
    if asked is None:
        asked = config.training.precision
        if asked == "bfloat16" and not computes_in_bfloat16(device):  # of the machine that trained
            asked = "float32"
    return precision_on(device, asked, config.model.is_full_size)


def _built(description: Description, names: Collection[str]) -> AIRStreams:
    """The model of a description with the heads that weights of these names have."""
    model = build(description.config.model, len(description.classes), len(description.segment_classes))
    saved_heads = {name.split(".")[1] for name in names if name.startswith("late.")}  # version 0.1 saved them all
    model.keep_heads(saved_heads.union(description.config.trained_heads()))
    return model


def _require_fitting(path: Path, description: Description) -> None:
    """Raise InputError if the weights have other shapes than the model, before anything is allocated."""
    shapes = _shapes(path)
    try:
        with torch.device("meta"):
            model = _built(description, shapes)
    except InputError:
        raise
    except (RuntimeError, ArithmeticError, ValueError, TypeError) as error:  # sizes that torch does not take
        raise InputError(f"{path}: the run's config gives no model ({one_line(error)[:200]}). {_GIVE_A_RUN}") from error
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if len(wrong := own.items() ^ shapes.items()):
        name = min(name for name, _ in wrong)
        found, wanted = (f"{there[name]}" if name in there else "none" for there in (shapes, own))
        fix = fix_for_other_weights(model, shapes, description.config.model)
        raise InputError(f"{path}: the weights do not fit the run's config ({name}: {found}, expected {wanted}). {fix}")


def custom_channels(run: Path) -> dict[str, int]:
    """The channels of the representation of each custom stream, read from the weights: nothing is imported.

    InputError: `run` holds no model, or its weights do not fit its config.
    """
    shapes = _shapes(RunFolder(run).weights)
    names = {
        stream: f"early.{stream}.input_norm.weight" for stream in custom_classes(read_description(run).config.model)
    }
    if missing := [name for name in names.values() if len(shapes.get(name, ())) != 1]:
        raise InputError(f"{RunFolder(run).weights}: there is no {missing[0]} in it. {_USE_ITS_VERSION}")
    return {stream: shapes[name][0] for stream, name in names.items()}


def identity_of(run: Path) -> str:
    """A text that differs between models: of their weights, config and classes. InputError: `run` holds no model."""
    read_description(run)
    return hashlib.sha256(json.dumps(_sums(RunFolder(run).weights), sort_keys=True).encode()).hexdigest()


def fix_for_other_weights(
    model: AIRStreams, weights: Mapping[str, Tensor | tuple[int, ...]], config: ModelConfig
) -> str:
    """What to do about weights that do not fit the model of their config.

    Either the class of a custom stream has changed since, or airstreams has.
    """
    here = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    there = {name: tuple(item.shape) if isinstance(item, Tensor) else item for name, item in weights.items()}
    parts = {tuple(name.split(".")[:2]) for name, _ in here.items() ^ there.items()}
    # If `channels` changed, the first layers of the stream's tower differ too.
    changed = [stream for stream in config.representations if parts & {("representations", stream), ("early", stream)}]
    if not parts:  # other trainable parameters, or another order
        changed = [stream for stream in config.streams if stream in config.representations]
    if not changed or any(group == "late" or stream not in changed for group, stream in parts):
        return _USE_ITS_VERSION
    classes = ", ".join(config.representations[stream] for stream in changed)
    return f"{classes} has changed since the training. Restore it, or put the old one first on PYTHONPATH."


def read_description(run: Path) -> Description:
    """Read the description of a run's model. InputError: no run, another format, or a damaged file."""
    folder = RunFolder(run)
    missing = [file.name for file in (folder.description, folder.weights) if not file.is_file()]
    if missing:
        begun = len(missing) == 2 and folder.has_begun()
        fix = (
            "Its training has saved no model yet. Go on with `airstreams train ... --resume`." if begun else _GIVE_A_RUN
        )
        raise InputError(f"{run}: there is no {missing[0]} in it. {fix}")
    content = _checked_content(folder)
    try:
        return _described(content)
    except (InputError, KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise InputError(f"{folder.description}: {one_line(error)[:300].rstrip('.')}. {_USE_ITS_VERSION}") from error


def _described(content: dict[str, Any]) -> Description:
    """The description that the values of `model.json` give. InputError: one of them is of another kind."""
    for name, least in (("classes", 1), ("segment_classes", 0)):
        names = content[name]
        are_names = isinstance(names, list) and all(isinstance(item, str) and item for item in names)
        require(are_names and len(names) >= least, name, _shortly(names), "a list of names")
    classes, multi_label = content["classes"], content["multi_label"]
    require(len(set(classes)) == len(classes), "classes", _shortly(classes), "each class once")
    require(isinstance(multi_label, bool), "multi_label", _shortly(multi_label), "true or false")
    rate = content.get("frame_rate")  # the first versions did not write it
    require(rate is None or _is_number(rate, 0), "frame_rate", _shortly(rate), "frames per second, or null")
    versions = content.get("versions", {})
    are_versions = isinstance(versions, dict) and all(isinstance(value, str) for value in versions.values())
    require(are_versions, "versions", _shortly(versions), "texts by name")
    config = content["config"]
    require(isinstance(config, dict), "config", _shortly(config), "keys with values")
    kept = _kept(content["kept"]) if "kept" in content else None
    segment_classes = tuple(content["segment_classes"])
    config = from_dict(with_keys_of_older_runs(config))
    return Description(config, tuple(classes), segment_classes, multi_label, rate, kept=kept)


def _kept(values: Any) -> KeptEpoch:
    require(isinstance(values, dict), "kept", _shortly(values), "keys with values")
    kept = KeptEpoch(**values)
    interval, whole = kept.interval, (kept.epoch, kept.videos)
    is_interval = interval is None or (
        isinstance(interval, list) and len(interval) == 2 and all(map(_is_number, interval))
    )
    fits = all(isinstance(number, int) and number >= 0 for number in whole) and kept.why in ("best", "last")
    fits = fits and isinstance(kept.metric, str | None) and (kept.value is None or _is_number(kept.value))
    fits = fits and (kept.temperature is None or _is_number(kept.temperature, 0))
    require(fits and is_interval, "kept", _shortly(values), "an epoch and its metric")
    return kept


def _is_number(value: Any, above: float = -math.inf) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and above < value < math.inf


def _shortly(value: Any) -> str:
    return one_line(repr(value))[:80]


def _checked_content(folder: RunFolder) -> dict[str, Any]:
    """The values of `model.json`. InputError: damaged, changed, or in another format."""
    path = folder.description
    try:
        text = path.read_text(encoding="utf-8")
        content: dict[str, Any] = json.loads(text)
        older, newer = content["format"] < FORMAT, content["format"] > FORMAT
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: the file is damaged ({error}). Copy the run again.") from error
    if older or newer:
        fix = "Train the model again with this version." if older else "Update airstreams."
        raise InputError(f"{path}: got format {content['format']}, expected {FORMAT}. {fix}")
    # The sum covers the values. Comparing the text finds changes of no value, such as 1E-05 for 1e-05.
    sums = _sums(folder.weights)
    if _sum_of_description(content) != sums["description"] or text != _as_text(content):
        raise InputError(
            f"{path}: the file changed, or is not of the run of {folder.weights.name}. Copy the run again."
        )
    if "kept" in content and _sum_of(content["kept"]) != sums.get("kept"):  # the weights are of another epoch
        del content["kept"]
    return content


def _sums(path: Path) -> dict[str, str]:
    """The sums in the header of the weights. InputError: the file has a damaged header or a wrong length."""
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, str] = file.metadata() or {}
        # The first versions wrote them as two entries.
        sums: dict[str, str] = json.loads(header["sums"]) if "sums" in header else header
    except (SafetensorError, ValueError) as error:
        reason = one_line(error)[:200]
        raise InputError(f"{path}: the file is damaged ({reason}). Copy the run again.") from error
    if sums.keys() - {"kept"} != {"sha256", "description"}:
        raise InputError(f"{path}: the file is damaged (no checksums in its header). Copy the run again.")
    return sums


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights, read from the header alone. InputError: as `_sums`."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path}: the file is damaged ({one_line(error)[:200]}). Copy the run again.") from error


def _sum_of_weights(weights: dict[str, Tensor]) -> str:
    """sha256 of the names, types, shapes and bytes of contiguous tensors on the CPU."""
    summed = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        summed.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        summed.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return summed.hexdigest()


def _sum_of_description(description: dict[str, Any]) -> str:
    """sha256 of all values except the versions and the kept epoch, which differ from one save of a run to the next."""
    return _sum_of({key: value for key, value in description.items() if key not in ("versions", "kept")})


def _sum_of(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _as_text(description: dict[str, Any]) -> str:
    return json.dumps(description, indent=2) + "\n"


def preprocessing(config: Config) -> dict[str, Any]:
    """How to prepare a clip, for readers without airstreams. airstreams itself uses the config."""
    return {
        "input": "RGB, uint8 0..255 or float 0..1, batch x 3 x frames x height x width",
        "frames": config.clip.frames,
        "stride": config.clip.stride,
        "rate": config.clip.rate,
        "deinterlace": config.data.deinterlace,
        "height": config.clip.size,
        "width": config.clip.size,
        "crop": "largest square, bilinear with anti-aliasing",
        "views": config.evaluation.views,
        "crops": config.evaluation.crops,
    }
