"""The stream keypoints: where the joints of people are, learnt from a teacher's keypoints."""

import math

import torch
from torch import Tensor

from airstreams.data.targets import Points
from airstreams.representations.frame_network import FrameNetwork
from airstreams.representations.losses import heat_map_loss, heat_of_points

COCO_KEYPOINTS = (
    "nose", "left eye", "right eye", "left ear", "right ear", "left shoulder", "right shoulder", "left elbow",
    "right elbow", "left wrist", "right wrist", "left hip", "right hip", "left knee", "right knee", "left ankle",
    "right ankle",
)  # fmt: skip
"""The 17 points of MS-COCO, in its order."""


class Keypoints(FrameNetwork):
    """The logits of a heat map for each of COCO's 17 points.

    Args: as for `FrameNetwork`, without `outputs`.
    """

    target = Points(len(COCO_KEYPOINTS))

    def __init__(self, width: float, stride: int, channels: int | None, stop_gradient: bool) -> None:
        super().__init__(len(COCO_KEYPOINTS), width, stride, channels, stop_gradient)

    def loss(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The divergence of heat maps, weighted by visibility: logits (B, P, T, h, w), points (B, T, M, P, 3)."""
        return heat_map_loss(prediction, target)

    def picture(self, values: Tensor) -> Tensor:
        """Heat maps (P, T, h, w), or points (T, M, P, 3) as heat maps. Each point has a hue of its own."""
        count = len(COCO_KEYPOINTS)
        if values.shape[2:] == (count, 3):
            heat_TPhw = heat_of_points(values.unsqueeze(0), (32, 32), spread=0.04)[0]
        else:
            heat_TPhw = values.transpose(0, 1).flatten(2).softmax(dim=2).view_as(values.transpose(0, 1))
        heat_TPhw = heat_TPhw / heat_TPhw.amax((2, 3), True).clamp(min=1e-6)
        turns_P1 = torch.arange(count, device=values.device)[:, None] / count
        thirds_3 = torch.arange(3, device=values.device) / 3
        hue_P3 = 0.5 + 0.5 * torch.cos(2 * math.pi * (turns_P1 + thirds_3))
        return (heat_TPhw[..., None] * hue_P3[:, None, None]).amax(dim=1)
