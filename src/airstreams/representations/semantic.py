"""The semantic stream: segmentation logits, learnt from a teacher's label maps."""

import torch
from torch import Tensor, nn

from airstreams.data.targets import ClassesPerPixel
from airstreams.models.segmenter import DilatedResNet18, upsample
from airstreams.models.tower import on_frames
from airstreams.representations import Representation, Supervised
from airstreams.representations.losses import class_loss


class Semantic(Supervised):
    """The segmenter's logits (before softmax), or a learnt projection of them, enlarged to the size of the clip.

    The tower sees `channels` channels instead of the S logits, whose full size would be the largest tensor: 81 channels
    and 1.1 G multiply-adds more per clip than 8 channels. A 1x1 projection and a bilinear enlargement commute, so the
    projection is computed first, on the segmenter's small grid.

    Args:
        classes: S, with the background.
        segmenter_width: scales the segmenter's channels.
        segmenter_stride: px from one logit to the next: 16, 8 or 4.
        channels: the channels of the projection; None: none, the tower sees the logits (section 3.1).
        stop_gradient: keep the action losses from the segmenter (Table 2). The teacher's loss still reaches it.
    """

    target = ClassesPerPixel()

    def __init__(
        self, classes: int, segmenter_width: float, segmenter_stride: int, channels: int | None, stop_gradient: bool
    ) -> None:
        super().__init__()
        self.channels = channels or classes
        self.segmenter = DilatedResNet18(classes, segmenter_width, segmenter_stride)
        self.reduction: nn.Module = nn.Conv2d(classes, channels, 1, bias=False) if channels else nn.Identity()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.stop_gradient = stop_gradient

    def forward(self, clip_B3THW: Tensor) -> Representation:
        """From a clip in 0..1 to its `Representation`. The prediction is the logits (B, S, T, h, w)."""
        size = clip_B3THW.shape[-2:]
        centred_B3THW = (clip_B3THW - 0.5).contiguous(memory_format=torch.channels_last_3d)
        logits_BSThw = on_frames(self.segmenter, centred_B3THW)
        reduced_BCTHW = on_frames(lambda frames: upsample(self.reduction(frames), size), self.for_tower(logits_BSThw))
        return Representation(reduced_BCTHW, logits_BSThw)

    def loss(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Equation 1, for logits (B, S, T, h, w) and label maps (B, T, s, s)."""
        return class_loss(prediction, target)

    def taught(self) -> list[nn.Module]:
        """The segmenter."""
        return [self.segmenter]
