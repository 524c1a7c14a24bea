"""The stream depth: how near each pixel is, up to a scale and a shift, learnt from a teacher's depth maps."""

import torch
from torch import Tensor

from airstreams.data.targets import MapsPerPixel
from airstreams.representations.frame_network import FrameNetwork
from airstreams.representations.losses import scale_invariant_loss


class Depth(FrameNetwork):
    """One depth map for each frame. The tower sees the map itself.

    Args: as for `FrameNetwork`, without `outputs` and `channels`.
    """

    target = MapsPerPixel(1)

    def __init__(self, width: float, stride: int, stop_gradient: bool) -> None:
        super().__init__(1, width, stride, None, stop_gradient)

    def loss(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The error after the best scale and shift of each frame, for depth (B, 1, T, h, w) and (B, 1, T, s, s)."""
        return scale_invariant_loss(prediction, target)

    def picture(self, values: Tensor) -> Tensor:
        """Shades of grey, from the smallest value of each frame to its largest. Pixels without a value are black."""
        known = ~values.isnan()
        low = values.where(known, torch.inf).amin((2, 3), True)
        high = values.where(known, -torch.inf).amax((2, 3), True)
        shades = ((values - low) / (high - low).clamp(min=1e-6)).where(known, 0.0)
        return shades[0].unsqueeze(-1).expand(-1, -1, -1, 3)
