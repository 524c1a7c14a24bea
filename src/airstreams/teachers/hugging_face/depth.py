"""Depth from one image: DPT and Depth Anything (Ranftl et al. 2021, Yang et al. 2024)."""

from typing import Any

import numpy as np
import torch

from airstreams.teachers.hugging_face.loading import Checkpoint
from airstreams.teachers.target_spec import TargetSpec, reduced

ARCHITECTURES = ("DepthAnythingForDepthEstimation", "DPTForDepthEstimation")


class DepthTeacher:
    """A depth model of transformers with its image processor.

    Most models give the inverse of the depth, up to a scale and a shift that differ from frame to frame. Metric ones
    give metres.
    """

    def __init__(self, model: Any, processor: Any, device: torch.device) -> None:
        is_metric = getattr(model.config, "depth_estimation_type", "relative") == "metric"
        self.target = TargetSpec("maps", ("depth",), "m") if is_metric else TargetSpec("maps", ("inverse depth",))
        self._model, self._processor, self._device = model, processor, device

    @torch.inference_mode()
    def __call__(self, frames_THW3: np.ndarray) -> np.ndarray:
        """Depth, float32 (T, 1, h, w), of uint8 RGB frames (T, H, W, 3), all in one batch."""
        inputs = self._processor(images=list(frames_THW3), return_tensors="pt", input_data_format="channels_last")
        depth_Thw = self._model(**inputs.to(self._device)).predicted_depth
        return reduced(depth_Thw[:, None].float().cpu()).numpy()


def load(checkpoint: Checkpoint, device: torch.device) -> DepthTeacher:
    """Load a depth model as a teacher. InputError: some of its weights are missing."""
    network = checkpoint.network(checkpoint.architecture, "depth estimation", device)
    return DepthTeacher(network, checkpoint.processor(), device)
