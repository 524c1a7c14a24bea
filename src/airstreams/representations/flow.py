"""The flow stream: optical flow, computed inside the network."""

from torch import Tensor, nn

from airstreams.config import FlowConfig
from airstreams.data.transforms import LUMA
from airstreams.models.flow import make_flow
from airstreams.representations import Representation


class Flow(nn.Module):
    """Optical flow between consecutive grey frames.

    Args:
        config: which kind, and its options.
        stop_gradient: cut the action losses from what the layer learns (Table 2).
    """

    def __init__(self, config: FlowConfig, stop_gradient: bool) -> None:
        super().__init__()
        self.layer = make_flow(config)
        self.channels = self.layer.channels
        self.stop_gradient = stop_gradient
        self.layer.requires_grad_(not stop_gradient)  # nothing but the action losses ever reaches them

    def forward(self, clip_B3THW: Tensor) -> Representation:
        """See `Representation`."""
        red, green, blue = clip_B3THW.unbind(1)
        grey_B1THW = (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).unsqueeze(1)
        flow_BCTHW = self.layer(grey_B1THW)
        return Representation(flow_BCTHW, flow_BCTHW)
