"""Features of images and of clips: DINOv2, DINOv3 and CLIP, VideoMAE and V-JEPA 2.

| model          | target             | input                                                          |
| -------------- | ------------------ | -------------------------------------------------------------- |
| DINOv2, DINOv3 | features on a grid | the whole frame, the shorter side as long as in training       |
| CLIP           | features per clip  | the middle square of one frame                                 |
| VideoMAE       | features per clip  | the middle square of as many frames as in training             |
| V-JEPA 2       | features per clip  | as VideoMAE                                                    |

The features of a clip are the mean over all tokens. CLIP's are those of its image.

Frames are prepared here with torch, by the mean, the deviation and the size of the checkpoint: the processors of some
of these models need torchvision.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from airstreams.teachers.hugging_face.loading import Checkpoint
from airstreams.teachers.target_spec import TargetSpec

FAMILIES = ("dinov2", "dinov2_with_registers", "dinov3_vit", "clip", "clip_vision_model", "videomae", "vjepa2")
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Preparation:
    """How frames become a network's input.

    size: px of the shorter side.
    patch: both sides are multiples of it. None: the frame is cut to its middle square.
    """

    def __init__(self, preprocessing: dict[str, Any], size: int, patch: int | None) -> None:
        mean = preprocessing.get("image_mean", IMAGENET_MEAN)
        deviation = preprocessing.get("image_std", IMAGENET_DEVIATION)
        self._mean, self._deviation = (torch.tensor(values)[:, None, None] for values in (mean, deviation))
        self._size, self._patch = size, patch

    def __call__(self, frames_NHW3: np.ndarray) -> Tensor:
        """Frames uint8 (N, H, W, 3) to float32 (N, 3, h, w)."""
        frames_N3HW = torch.from_numpy(np.ascontiguousarray(frames_NHW3)).permute(0, 3, 1, 2).float()
        shorter = min(frames_N3HW.shape[2:])
        unit = self._patch or 1
        size = [max(1, round(side * self._size / shorter / unit)) * unit for side in frames_N3HW.shape[2:]]
        resized = F.interpolate(frames_N3HW, size, mode="bicubic", antialias=True).clamp(0, 255) / 255
        if self._patch is None:
            top, left = ((side - self._size) // 2 for side in size)
            resized = resized[..., top : top + self._size, left : left + self._size]
        return (resized - self._mean) / self._deviation


class GridTeacher:
    """A vision transformer whose patches' features are the target."""

    target = TargetSpec("grid")

    def __init__(self, model: Any, preparation: Preparation, device: torch.device) -> None:
        self._model, self._preparation, self._device = model, preparation, device
        self._patch = int(model.config.patch_size)

    @torch.inference_mode()
    def __call__(self, frames_THW3: np.ndarray) -> np.ndarray:
        """Features, float32 (T, D, h, w), of uint8 RGB frames (T, H, W, 3), all in one batch."""
        frames_T3HW = self._preparation(frames_THW3).to(self._device)
        h, w = (side // self._patch for side in frames_T3HW.shape[2:])
        tokens_TND = self._model(pixel_values=frames_T3HW).last_hidden_state
        # The class token and the registers come first.
        grid_ThwD = tokens_TND[:, -h * w :].unflatten(1, (h, w))
        return grid_ThwD.permute(0, 3, 1, 2).float().cpu().numpy()


class ClipTeacher:
    """A network whose features of a clip are the target.

    call: takes frames float32 (B, N, 3, S, S), and returns features (B, D).
    """

    def __init__(self, call: Any, preparation: Preparation, device: torch.device, clip_frames: int) -> None:
        self.target = TargetSpec("clip", clip_frames=clip_frames)
        self._call, self._preparation, self._device = call, preparation, device

    @torch.inference_mode()
    def __call__(self, clips_BNHW3: np.ndarray) -> np.ndarray:
        """Features, float32 (B, D), of uint8 RGB clips (B, N, H, W, 3), all in one batch."""
        batch = len(clips_BNHW3)
        frames = self._preparation(clips_BNHW3.reshape(-1, *clips_BNHW3.shape[2:]))
        features_BD: Tensor = self._call(frames.unflatten(0, (batch, -1)).to(self._device))
        return features_BD.float().cpu().numpy()


def load(checkpoint: Checkpoint, device: torch.device) -> GridTeacher | ClipTeacher:
    """Load a model of `FAMILIES` as a teacher. InputError: some of its weights are missing."""
    family, config = checkpoint.config.model_type, checkpoint.config
    preprocessing = checkpoint.preprocessing()
    task = "image features"
    if family.startswith("dino"):
        class_name = {"dinov2": "Dinov2Model", "dinov3_vit": "DINOv3ViTModel"}.get(family, "Dinov2WithRegistersModel")
        model = checkpoint.network(class_name, task, device)
        size = _size(preprocessing, 224)
        return GridTeacher(model, Preparation(preprocessing, size, int(config.patch_size)), device)
    if family == "videomae":
        model = checkpoint.network("VideoMAEModel", task, device)
        preparation = Preparation(preprocessing, config.image_size, None)
        return ClipTeacher(lambda clips: _mean_token(model(pixel_values=clips)), preparation, device, config.num_frames)
    if family == "vjepa2":
        model = checkpoint.network("VJEPA2Model", task, device)
        preparation = Preparation(preprocessing, config.crop_size, None)

        def encode(clips: Tensor) -> Tensor:
            return _mean_token(model(pixel_values_videos=clips, skip_predictor=True))

        return ClipTeacher(encode, preparation, device, config.frames_per_clip)
    return _clip(checkpoint, preprocessing, device)


def _clip(checkpoint: Checkpoint, preprocessing: dict[str, Any], device: torch.device) -> ClipTeacher:
    """CLIP's image encoder, with the projection to the space of its texts where the checkpoint has it."""
    has_projection = checkpoint.architecture != "CLIPVisionModel"
    class_name = "CLIPVisionModelWithProjection" if has_projection else "CLIPVisionModel"
    model = checkpoint.network(class_name, "image features", device)

    def embed(clips_B13SS: Tensor) -> Tensor:
        outputs = model(pixel_values=clips_B13SS[:, 0])
        features: Tensor = outputs.image_embeds if has_projection else outputs.pooler_output
        return features

    return ClipTeacher(embed, Preparation(preprocessing, model.config.image_size, None), device, clip_frames=1)


def _size(preprocessing: dict[str, Any], default: int) -> int:
    """The px of the shorter side of a training image."""
    for name in ("crop_size", "size"):
        given = preprocessing.get(name)
        if isinstance(given, int):
            return given
        for side in ("height", "shortest_edge"):
            if isinstance(given, dict) and given.get(side):
                return int(given[side])
    return default


def _mean_token(outputs: Any) -> Tensor:
    mean: Tensor = outputs.last_hidden_state.mean(dim=1)
    return mean
