"""The streams that segment: semantic, for the classes of any teacher, and parts, for the parts of people's bodies."""

from torch import Tensor

from airstreams.data.targets import ClassesPerPixel
from airstreams.representations.frame_network import FrameNetwork
from airstreams.representations.losses import class_loss

BODY_PARTS = 24


class Semantic(FrameNetwork):
    """Segmentation logits (before softmax), learnt from a teacher's label maps.

    Args:
        classes: S, with the background.
        segmenter_width: scales the segmenter's channels.
        segmenter_stride: px from one logit to the next: 16, 8 or 4.
        channels: the channels of the projection that the tower sees; None: the tower sees the logits.
        stop_gradient: keep the action losses from the segmenter (Table 2). The teacher's loss still reaches it.
    """

    target = ClassesPerPixel()

    def __init__(
        self, classes: int, segmenter_width: float, segmenter_stride: int, channels: int | None, stop_gradient: bool
    ) -> None:
        super().__init__(classes, segmenter_width, segmenter_stride, channels, stop_gradient)

    def loss(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Equation 1, for logits (B, S, T, h, w) and label maps (B, T, s, s)."""
        return class_loss(prediction, target)


class Parts(FrameNetwork):
    """Logits of the background and of 24 parts of people's bodies, learnt from label maps of such a teacher.

    Args: as for `FrameNetwork`, without `outputs`.
    """

    target = ClassesPerPixel(1 + BODY_PARTS)

    def __init__(self, width: float, stride: int, channels: int | None, stop_gradient: bool) -> None:
        super().__init__(1 + BODY_PARTS, width, stride, channels, stop_gradient)

    def loss(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Equation 1, as for `Semantic`."""
        return class_loss(prediction, target)
