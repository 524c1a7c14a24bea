"""A trained model on disk: weights, config, classes and preprocessing in one place.

`model.safetensors` holds the weights and `model.json` all that is needed to use them; neither is a pickle, so a model
from a stranger runs no code, but for streams beyond the built-in ones: their classes' modules are imported, if Python
finds them on this machine.

safetensors has no checksum of its own, and class names of another run fit any weights of the same shapes. So the
weights' header holds two sha256 sums, of the tensors and of `model.json`, and nothing is read that they do not vouch
for. The price: every load hashes all weights, and `model.json` cannot be edited. The sums guard against accidents, not
against a forger, who would write new ones.
"""

import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor

from airstreams.config import Config, ModelConfig
from airstreams.errors import InputError, one_line
from airstreams.files import replacing
from airstreams.models.airstreams import AIRStreams, build
from airstreams.recipe import from_dict
from airstreams.runs.folder import RunFolder
from airstreams.version import __version__

FORMAT = 3
_MEND = "expected the folder that `airstreams train --out` wrote"
_OTHER_VERSION = "use the version of airstreams that model.json names"


@dataclass
class Description:
    """All that a model's use needs beside its weights.

    classes: action class names, in the order of the logits.
    segment_classes: the segmenter's class names, background first, in the order of the segmentation logits.
    frame_rate: frames a second of its training videos, by their median; None: unknown.
    """

    config: Config
    classes: tuple[str, ...]
    segment_classes: tuple[str, ...]
    multi_label: bool
    frame_rate: float | None


@dataclass
class SavedModel(Description):
    """A model with all that its use needs."""

    model: AIRStreams


def save(saved: SavedModel, run: Path) -> None:
    """Write a model into a run's folder; each file is whole at every moment.

    The late towers of heads whose loss has no weight are left out: they are still as random as they were built.

    A run's description is the same at each save (but for the versions, which are not summed), so that a crash between
    the two files leaves a pair that belongs together.
    """
    description = {
        "format": FORMAT,
        "config": asdict(saved.config),
        "classes": list(saved.classes),
        "segment_classes": list(saved.segment_classes),
        "multi_label": saved.multi_label,
        "frame_rate": saved.frame_rate,
        "preprocessing": preprocessing(saved.config),
        "versions": {
            "airstreams": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    trained = saved.config.trained_heads()
    untrained = tuple(f"late.{head}." for head in saved.config.model.heads if head not in trained)
    # Copies, as safetensors refuses tensors that share memory: a further stream's tied weights do.
    weights = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in saved.model.state_dict().items()
        if not name.startswith(untrained)
    }
    sums = {"sha256": _sum_of_weights(weights), "description": _sum_of_description(description)}
    with replacing(RunFolder(run).weights) as temporary:
        # save_file would keep the file from all other users; of several entries the order would change each time.
        temporary.write_bytes(serialise(weights, {"sums": json.dumps(sums)}))
    with replacing(RunFolder(run).description) as temporary:
        temporary.write_text(_as_text(description), encoding="utf-8")


def load(run: Path, device: torch.device | str = "cpu") -> SavedModel:
    """Read a model from a run's folder, in evaluation mode, with the heads that were saved.

    InputError: not a run, of another format, or damaged, be it by one bit; only `versions` is not guarded.
    """
    description = read_description(run)
    path = RunFolder(run).weights
    weights = load_file(path)
    if _sum_of_weights(weights) != _sums(path)["sha256"]:
        raise InputError(f"{path}: damaged (the weights are not those that were saved); copy the run again")
    model = build(description.config.model, len(description.classes), len(description.segment_classes))
    saved_heads = {name.split(".")[1] for name in weights if name.startswith("late.")}  # version 0.1 saved them all
    model.keep_heads(saved_heads.union(description.config.trained_heads()))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = one_line(error)[:200]
        mend = mend_of_differing(model, weights, description.config.model)
        raise InputError(f"{path}: not a model of this config ({reason}); {mend}") from error
    return SavedModel(**vars(description), model=model.eval().to(device))


def mend_of_differing(model: AIRStreams, weights: dict[str, Tensor], config: ModelConfig) -> str:
    """What to do about weights that are not a model's of this config: its streams' classes, or airstreams, changed."""
    here, there = ({name: tensor.shape for name, tensor in kept.items()} for kept in (model.state_dict(), weights))
    parts = {tuple(name.split(".")[:2]) for name, _ in here.items() ^ there.items()}
    # Of other `channels` the tower's first layers differ too.
    changed = [stream for stream in config.representations if parts & {("representations", stream), ("early", stream)}]
    if not parts:  # they differ in what learns, or in its order
        changed = [stream for stream in config.streams if stream in config.representations]
    if not changed or any(group == "late" or stream not in changed for group, stream in parts):
        return _OTHER_VERSION
    places = ", ".join(config.representations[stream] for stream in changed)
    return f"{places} is not the class that was trained; bring that one back, or put it first on PYTHONPATH"


def read_description(run: Path) -> Description:
    """Read what stands beside a model's weights. InputError: not a run, of another format, or a damaged file."""
    folder = RunFolder(run)
    lacking = [file.name for file in (folder.description, folder.weights) if not file.is_file()]
    if lacking:
        begun = len(lacking) == 2 and folder.has_begun()
        mend = "its training has not got so far; `airstreams train ... --resume` goes on with it" if begun else _MEND
        raise InputError(f"{run}: no {lacking[0]} in it; {mend}")
    path = folder.description
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        older, newer = content["format"] < FORMAT, content["format"] > FORMAT
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: damaged ({error}); copy the run again") from error
    if older or newer:
        mend = "train it again with this version" if older else "update airstreams"
        raise InputError(f"{path}: format {content['format']}, expected {FORMAT}; {mend}")
    # The sum is of the values; the text shows what changes none of them, such as 1E-05 for 1e-05.
    if _sum_of_description(content) != _sums(folder.weights)["description"] or text != _as_text(content):
        raise InputError(f"{path}: changed, damaged or of another run than {folder.weights.name}; copy the run again")
    try:
        config = from_dict(content["config"])
        described = Description(
            config,
            tuple(content["classes"]),
            tuple(content["segment_classes"]),
            bool(content["multi_label"]),
            content.get("frame_rate"),  # which earlier versions did not write
        )
    except (InputError, KeyError, TypeError) as error:
        raise InputError(f"{path}: {error}; {_OTHER_VERSION}") from error
    return described


def _sums(path: Path) -> dict[str, str]:
    """The two sums in the weights' header. InputError: damaged, in its header or its length."""
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, str] = file.metadata() or {}
        # An earlier version had them there one by one.
        sums: dict[str, str] = json.loads(header["sums"]) if "sums" in header else header
    except (SafetensorError, ValueError) as error:
        reason = one_line(error)[:200]
        raise InputError(f"{path}: damaged ({reason}); copy the run again") from error
    if sums.keys() != {"sha256", "description"}:
        raise InputError(f"{path}: damaged (no checksums in its header); copy the run again")
    return sums


def _sum_of_weights(weights: dict[str, Tensor]) -> str:
    """sha256 of names, types, shapes and bytes of contiguous tensors on the CPU."""
    summed = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        summed.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        summed.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return summed.hexdigest()


def _sum_of_description(description: dict[str, Any]) -> str:
    """sha256 of all values but the versions, which may differ from one save of a run to the next."""
    summed = {key: value for key, value in description.items() if key != "versions"}
    return hashlib.sha256(json.dumps(summed, sort_keys=True).encode()).hexdigest()


def _as_text(description: dict[str, Any]) -> str:
    return json.dumps(description, indent=2) + "\n"


def preprocessing(config: Config) -> dict[str, Any]:
    """What the model must be shown, for a reader without airstreams; airstreams itself goes by the config."""
    return {
        "input": "RGB, uint8 0..255 or float 0..1, batch x 3 x frames x height x width",
        "frames": config.clip.frames,
        "stride": config.clip.stride,
        "rate": config.clip.rate,
        "height": config.clip.size,
        "width": config.clip.size,
        "crop": "largest square, bilinear with anti-aliasing",
        "views": config.evaluation.views,
        "crops": config.evaluation.crops,
    }
