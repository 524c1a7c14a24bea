"""A trained model on disk: weights, config, classes and preprocessing in one place.

`model.safetensors` holds the weights and `model.json` all that is needed to use them; neither is a pickle, so a model
from a stranger runs no code.
"""

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise

import airstreams
from airstreams.config import Config, from_dict, to_dict
from airstreams.errors import InputError
from airstreams.files import replacing
from airstreams.models.airstreams import AIRStreams, build

FORMAT = 1
WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
_MEND = "expected the folder that `airstreams train --out` wrote"


@dataclass
class Description:
    """All that a model's use needs beside its weights.

    classes: action class names, in the order of the logits.
    segment_classes: the teacher's class names, background first, in the order of the segmentation logits.
    """

    config: Config
    classes: tuple[str, ...]
    segment_classes: tuple[str, ...]
    multi_label: bool


@dataclass
class SavedModel(Description):
    """A model with all that its use needs."""

    model: AIRStreams


def save(saved: SavedModel, run: Path) -> None:
    """Write a model into a run's folder; each file is whole at every moment."""
    description = {
        "format": FORMAT,
        "config": to_dict(saved.config),
        "classes": list(saved.classes),
        "segment_classes": list(saved.segment_classes),
        "multi_label": saved.multi_label,
        "preprocessing": _preprocessing(saved.config),
        "versions": {
            "airstreams": airstreams.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in saved.model.state_dict().items()}
    with replacing(run / WEIGHTS) as temporary:
        temporary.write_bytes(serialise(weights))  # save_file would keep the file from all other users
    with replacing(run / DESCRIPTION) as temporary:
        temporary.write_text(json.dumps(description, indent=2) + "\n")


def load(run: Path, device: torch.device | str = "cpu") -> SavedModel:
    """Read a model from a run's folder, in evaluation mode. InputError: not a run, or damaged files."""
    description = read_description(run)
    if not (run / WEIGHTS).is_file():
        raise InputError(f"{run}: no {WEIGHTS} in it; {_MEND}")
    model = build(description.config.model, len(description.classes), len(description.segment_classes))
    try:
        model.load_state_dict(load_file(run / WEIGHTS))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{run / WEIGHTS}: damaged, or of another model ({reason}); copy the run again") from error
    return SavedModel(**vars(description), model=model.eval().to(device))


def read_description(run: Path) -> Description:
    """Read what stands beside a model's weights. InputError: not a run, or a damaged file."""
    path = run / DESCRIPTION
    if not path.is_file():
        raise InputError(f"{run}: no {DESCRIPTION} in it; {_MEND}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["format"]
        if found == FORMAT:
            return Description(
                from_dict(content["config"]),
                tuple(content["classes"]),
                tuple(content["segment_classes"]),
                bool(content["multi_label"]),
            )
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); copy the run again") from error
    raise InputError(f"{path}: format {found}, expected {FORMAT}; update airstreams")


def _preprocessing(config: Config) -> dict[str, Any]:
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
