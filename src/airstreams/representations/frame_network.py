"""What the streams with a teacher share that predict something for each place of a frame."""

import torch
from torch import Tensor, nn

from airstreams.models.segmenter import DilatedResNet18, upsample
from airstreams.models.tower import on_frames
from airstreams.representations import Representation, Supervised


class FrameNetwork(Supervised):
    """The outputs of a Dilated ResNet-18, or a learnt projection of them, enlarged to the size of the clip.

    The tower sees `channels` channels instead of the N outputs, whose full size would be the largest tensor: with 81
    outputs, 1.1 G multiply-adds more per clip than with 8 channels. A 1x1 projection and a bilinear enlargement
    commute, so the projection is computed first, on the network's small grid.

    Args:
        outputs: N.
        width: scales the network's channels.
        stride: px from one output to the next: 16, 8 or 4.
        channels: the channels of the projection; None: none, the tower sees the outputs (section 3.1).
        stop_gradient: keep the action losses from the network (Table 2). The teacher's loss still reaches it.
    """

    def __init__(self, outputs: int, width: float, stride: int, channels: int | None, stop_gradient: bool) -> None:
        super().__init__()
        self.channels = channels or outputs
        self.segmenter = DilatedResNet18(outputs, width, stride)
        self.reduction: nn.Module = nn.Conv2d(outputs, channels, 1, bias=False) if channels else nn.Identity()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.stop_gradient = stop_gradient

    def forward(self, clip_B3THW: Tensor) -> Representation:
        """From a clip in 0..1 to its `Representation`. The prediction is the outputs (B, N, T, h, w)."""
        size = clip_B3THW.shape[-2:]
        centred_B3THW = (clip_B3THW - 0.5).contiguous(memory_format=torch.channels_last_3d)
        outputs_BNThw = on_frames(self.segmenter, centred_B3THW)
        reduced_BCTHW = on_frames(lambda frames: upsample(self.reduction(frames), size), self.for_tower(outputs_BNThw))
        return Representation(reduced_BCTHW, outputs_BNThw)

    def taught(self) -> list[nn.Module]:
        """The network without the projection."""
        return [self.segmenter]
