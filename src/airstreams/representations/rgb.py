"""The rgb stream: the clip itself."""

from torch import Tensor, nn

from airstreams.representations import Representation


class RGB(nn.Module):
    """The clip itself, without a prediction."""

    channels = 3
    sees_rgb = True

    def forward(self, clip_B3THW: Tensor) -> Representation:
        """From a clip in 0..1 to its `Representation`."""
        return Representation(clip_B3THW, None)
