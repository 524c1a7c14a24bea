"""torchvision's keypoint R-CNN, and its video networks, as teachers.

| name                                                      | target                                          |
| --------------------------------------------------------- | ----------------------------------------------- |
| keypointrcnn_resnet50_fpn                                 | the 17 COCO points of each person               |
| r2plus1d_18, r3d_18, mc3_18, s3d, mvit_v1_b, swin3d_t, ... | features per clip of 16 frames, before the classifier |

torchvision is imported only when such a teacher is loaded. It downloads the default weights once.
"""

import pickle
from typing import Any

import numpy as np
import torch
from torch import nn

from airstreams.errors import InputError, did_you_mean, one_line
from airstreams.models.backbones.torchvision_video import torchvision_models
from airstreams.teachers.drawing import SCORE_THRESHOLD
from airstreams.teachers.target_spec import PEOPLE, TargetSpec

KEYPOINTS = "keypointrcnn_resnet50_fpn"
CLIP_FRAMES = 16
_CLASSIFIERS = ("fc", "classifier", "head")


class KeypointRCNN:
    """A torchvision keypoint R-CNN.

    model: takes a list of float (3, H, W) in 0..1, and returns for each a dict with scores, keypoints and
        keypoints_scores.
    names: of the points.
    threshold: the least score of a person.
    """

    def __init__(self, model: nn.Module, names: list[str], device: torch.device, threshold: float) -> None:
        self.target = TargetSpec("points", tuple(names))
        self._model = model.to(device).eval()
        self._device, self._threshold = device, threshold

    @torch.inference_mode()
    def __call__(self, frames_THW3: np.ndarray) -> np.ndarray:
        """Points, float32 (T, people, points, 3), of uint8 RGB frames (T, H, W, 3), all in one batch.

        How visible a point is, is the sigmoid of its score.
        """
        frames_T3HW = torch.from_numpy(frames_THW3).to(self._device).permute(0, 3, 1, 2).float() / 255
        size = torch.tensor([frames_THW3.shape[2], frames_THW3.shape[1]])
        points_TMP3 = np.zeros((len(frames_THW3), PEOPLE, len(self.target.names), 3), np.float32)
        for drawn_MP3, found in zip(points_TMP3, self._model(list(frames_T3HW)), strict=True):
            scores = found["scores"].cpu()
            surest = scores.argsort(descending=True, stable=True)
            surest = surest[scores[surest] >= self._threshold][:PEOPLE]
            drawn_MP3[: len(surest), :, :2] = (found["keypoints"].cpu()[surest, :, :2] / size).numpy()
            drawn_MP3[: len(surest), :, 2] = found["keypoints_scores"].cpu()[surest].sigmoid().numpy()
        return points_TMP3


class VideoNetwork:
    """A torchvision video network whose input of the classifier is the target.

    prepare: takes uint8 clips (B, N, 3, H, W), and gives what the network takes.
    """

    target = TargetSpec("clip", clip_frames=CLIP_FRAMES)

    def __init__(self, model: nn.Module, prepare: Any, device: torch.device) -> None:
        for name in _CLASSIFIERS:
            if hasattr(model, name):
                setattr(model, name, nn.Identity())
        self._model = model.to(device).eval()
        self._prepare, self._device = prepare, device

    @torch.inference_mode()
    def __call__(self, clips_BNHW3: np.ndarray) -> np.ndarray:
        """Features, float32 (B, D), of uint8 RGB clips (B, N, H, W, 3), all in one batch."""
        clips_BN3HW = torch.from_numpy(clips_BNHW3).to(self._device).permute(0, 1, 4, 2, 3)
        return self._model(self._prepare(clips_BN3HW)).flatten(1).float().cpu().numpy()


def load(name: str, device: torch.device, score_threshold: float | None = None) -> KeypointRCNN | VideoNetwork:
    """Load a network with torchvision's default weights as a teacher.

    InputError: torchvision is missing, the name is unknown, the weights cannot be loaded, or the network has no such
    threshold.
    """
    models = torchvision_models(f"The teacher torchvision:{name}")
    known = [KEYPOINTS, *models.list_models(module=models.video)]
    if name not in known:
        raise InputError(
            f"There is no teacher torchvision:{name}.{did_you_mean(name, known)} Give one of {', '.join(known)}."
        )
    if name != KEYPOINTS and score_threshold is not None:
        raise InputError(f"--score-threshold: torchvision:{name} gives features, which have no score. Leave it out.")
    weights = models.get_model_weights(name).DEFAULT
    try:
        model = models.get_model(name, weights=weights)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(
            f"The weights of torchvision:{name} cannot be loaded ({one_line(error)}). Download {weights.url} to "
            f"{torch.hub.get_dir()}/checkpoints."
        ) from error
    if name != KEYPOINTS:
        return VideoNetwork(model, weights.transforms(), device)
    threshold = SCORE_THRESHOLD if score_threshold is None else score_threshold
    return KeypointRCNN(model, weights.meta["keypoint_names"], device, threshold)
