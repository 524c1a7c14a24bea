"""Models of Hugging Face transformers as teachers. One module for each task.

The checkpoint's config says which task it is for: `architectures` names the class of transformers that loads it, and
`model_type` its family. The Auto classes are not used: they would also load a classifier's checkpoint, with a
segmentation head of random weights.

| config                                             | module       | target                        |
| -------------------------------------------------- | ------------ | ----------------------------- |
| `...ForSemanticSegmentation`, `...ForUniversal...` | segmentation | label maps                    |
| `DepthAnythingFor...`, `DPTForDepthEstimation`     | depth        | a map                         |
| `VitPoseForPoseEstimation`                         | keypoints    | points                        |
| dinov2, dinov2_with_registers, dinov3_vit          | features     | features on a grid            |
| clip, videomae, vjepa2                             | features     | features per clip             |
"""

import logging
from typing import Any

import torch

from airstreams.errors import InputError
from airstreams.teachers.hugging_face import depth, features, keypoints, segmentation
from airstreams.teachers.hugging_face.loading import Checkpoint, require_transformers, unreadable

SUPPORTED = (
    "segmentation models, DepthAnything, DPT, ViTPose, DINOv2, DINOv3, CLIP, VideoMAE and V-JEPA 2, such as "
    "facebook/mask2former-swin-tiny-coco-instance"
)


def load(
    model: str, device: torch.device, score_threshold: float | None = None, unsure_from: float | None = None
) -> Any:
    """Load a model from the Hugging Face hub, or from a folder that `save_pretrained` wrote, as a teacher.

    Args:
        model: its name or folder. ViTPose may be followed by `+` and a detector that finds the people.
        device: for the model.
        score_threshold: of a segmenter's instances or pixels, or of a detector's people. None: instances and people
            count from a score of 0.5 on, and all pixels.
        unsure_from: of a segmenter, see `teachers/drawing.py`.

    Raises:
        InputError: transformers is missing, the model cannot be loaded, its task has no teacher, or it has no such
            threshold.
    """
    require_transformers(model)
    # When the hub cannot be reached it would log each of five attempts; the error below says it once.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    # Weights that a teacher has no use for would be listed; those that it lacks are an error below.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    name, _, detector = model.partition("+")
    checkpoint = Checkpoint.of(name)
    given = {"score_threshold": score_threshold, "unsure_from": unsure_from}
    thresholds = {name: value for name, value in given.items() if value is not None}
    try:
        return _teacher(checkpoint, detector, device, thresholds)
    except InputError:
        raise
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise unreadable(name, error) from error


def _teacher(checkpoint: Checkpoint, detector: str, device: torch.device, thresholds: dict[str, float]) -> Any:
    architecture, family = checkpoint.architecture, checkpoint.config.model_type
    if detector and not architecture.endswith(keypoints.ARCHITECTURES):
        raise InputError(
            f"hf:{checkpoint.name}+{detector}: {checkpoint.name} is a {architecture}, which needs no detector. Leave "
            f"out +{detector}."
        )
    if architecture.endswith(segmentation.ARCHITECTURES) and checkpoint.has_class(architecture):
        return segmentation.load(checkpoint, device, **thresholds)
    if architecture.endswith(keypoints.ARCHITECTURES):
        _refuse(checkpoint, thresholds, () if not detector else ("score_threshold",))
        found = Checkpoint.of(detector) if detector else None
        return keypoints.load(checkpoint, found, device, thresholds.get("score_threshold"))
    if architecture in depth.ARCHITECTURES:
        _refuse(checkpoint, thresholds)
        return depth.load(checkpoint, device)
    if family in features.FAMILIES:
        _refuse(checkpoint, thresholds)
        return features.load(checkpoint, device)
    raise InputError(f"hf:{checkpoint.name} is a {architecture}, which cannot be a teacher. Give one of {SUPPORTED}.")


def _refuse(checkpoint: Checkpoint, thresholds: dict[str, float], known: tuple[str, ...] = ()) -> None:
    """InputError: there is a threshold that the model has no use for."""
    for name in thresholds:
        if name not in known:
            raise InputError(
                f"--{name.replace('_', '-')}: a {checkpoint.architecture} gives no such score. Leave it out."
            )
