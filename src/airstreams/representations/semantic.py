"""The semantic stream: segmentation logits, learnt from a teacher's label maps."""

import torch
from torch import Tensor, nn

from airstreams.models.segmenter import DilatedResNet18, upsample
from airstreams.models.tower import on_frames
from airstreams.representations import Representation


class Semantic(nn.Module):
    """The segmenter's pre-softmax logits, reduced and brought to the clip's size.

    A 1x1 reduction commutes with a bilinear enlargement, so it is done on the segmenter's small grid: a tower stem
    over S channels at full size would cost about half of the model's budget.

    Args:
        classes: S, background included.
        segmenter_width: scales the segmenter's channels.
        segmenter_stride: px from one of its logits to the next: 16, 8 or 4.
        channels: what the tower sees of the S logits.
        stop_gradient: cut the action losses from the segmenter (Table 2); the teacher's loss still reaches it.
    """

    def __init__(
        self, classes: int, segmenter_width: float, segmenter_stride: int, channels: int, stop_gradient: bool
    ) -> None:
        super().__init__()
        self.channels = channels
        self.segmenter = DilatedResNet18(classes, segmenter_width, segmenter_stride)
        self.reduction = nn.Conv2d(classes, channels, 1, bias=False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.stop_gradient = stop_gradient

    def forward(self, clip_B3THW: Tensor) -> Representation:
        """See `Representation`."""
        size = clip_B3THW.shape[-2:]
        centred_B3THW = (clip_B3THW - 0.5).contiguous(memory_format=torch.channels_last_3d)
        logits_BSThw = on_frames(self.segmenter, centred_B3THW)
        for_tower = logits_BSThw.detach() if self.stop_gradient else logits_BSThw
        return Representation(on_frames(lambda frames: upsample(self.reduction(frames), size), for_tower), logits_BSThw)
