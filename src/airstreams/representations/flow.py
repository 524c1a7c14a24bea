"""The flow stream: optical flow, computed inside the network."""

from torch import Tensor, nn

from airstreams.config import FlowConfig
from airstreams.data.transforms import LUMA
from airstreams.models.flow import make_flow
from airstreams.representations import Representation


class Flow(nn.Module):
    """Optical flow between consecutive frames: of their grey values, or of each colour.

    The tower's input is the flow (B, 2, T, H, W), or that of red, green and blue (B, 6, T, H, W). The prediction is the
    mean flow over the colours.

    Args:
        config: the kind of flow, and its options.
        stop_gradient: keep the action losses from the layer's parameters (Table 2).
    """

    def __init__(self, config: FlowConfig, stop_gradient: bool) -> None:
        super().__init__()
        self.layer = make_flow(config)
        self.input = config.input
        self.channels = config.channels * self.layer.channels
        self.layer.requires_grad_(not stop_gradient)  # no other loss reaches these parameters

    def forward(self, clip_B3THW: Tensor) -> Representation:
        """From a clip in 0..1 to its `Representation`."""
        flow_BCTHW = self.layer(self.seen(clip_B3THW))
        if self.input == "grey":
            return Representation(flow_BCTHW, flow_BCTHW)
        return Representation(flow_BCTHW, flow_BCTHW.unflatten(1, (3, -1)).mean(dim=1))

    def seen(self, colours_B3X: Tensor) -> Tensor:
        """The channels (B, C, ...) whose flow is computed, of frames or clips (B, 3, ...)."""
        return grey(colours_B3X).unsqueeze(1) if self.input == "grey" else colours_B3X


def grey(colours_B3X: Tensor) -> Tensor:
    """The brightness (B, ...) of frames or clips (B, 3, ...)."""
    red, green, blue = colours_B3X.unbind(1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
