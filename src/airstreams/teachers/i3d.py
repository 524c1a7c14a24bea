"""I3D from Kinetics-400 as a teacher of features per clip, from the weights that `--init i3d-kinetics400` takes.

I3D takes frames of any size. Their shorter side becomes 224 px, as in training (Carreira and Zisserman 2017), and all
of the frame is seen. A clip has 16 frames.
"""

from collections import OrderedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from airstreams.models.backbones.i3d import I3D
from airstreams.models.pretrained import published_weights
from airstreams.models.tower import clip_mean
from airstreams.teachers.target_spec import TargetSpec

NAME = "i3d-kinetics400"
CLIP_FRAMES = 16
SHORTER_SIDE = 224


class I3DTeacher:
    """I3D up to the mean of its last features.

    network: takes RGB in 0..1, (B, 3, N, H, W), and gives features (B, C, N', H', W').
    shorter_side: of the frames that the network gets, in px.
    """

    target = TargetSpec("clip", clip_frames=CLIP_FRAMES)

    def __init__(self, network: nn.Module, device: torch.device, shorter_side: int = SHORTER_SIDE) -> None:
        self._shorter_side = shorter_side
        self._network = network.to(device).eval()
        self._device = device

    @torch.inference_mode()
    def __call__(self, clips_BNHW3: np.ndarray) -> np.ndarray:
        """Features, float32 (B, 1024), of uint8 RGB clips (B, N, H, W, 3), all in one batch."""
        B, N, H, W, _ = clips_BNHW3.shape
        frames = torch.from_numpy(clips_BNHW3.reshape(B * N, H, W, 3)).to(self._device).permute(0, 3, 1, 2).float()
        size = [round(side * self._shorter_side / min(H, W)) for side in (H, W)]
        resized = F.interpolate(frames / 255, size, mode="bilinear", antialias=True).clamp(0, 1)
        clips_B3NHW = resized.unflatten(0, (B, N)).transpose(1, 2)
        return clip_mean(self._network(clips_B3NHW)).float().cpu().numpy()


def load(device: torch.device, shorter_side: int = SHORTER_SIDE) -> I3DTeacher:
    """Load the teacher. InputError: the weights are not there and cannot be fetched.

    shorter_side: of the frames that the network gets, in px. Fewer are faster.
    """
    weights = published_weights(NAME, offline=False).weights
    return I3DTeacher(network_with(weights), device, shorter_side)


def network_with(weights: dict[str, torch.Tensor]) -> nn.Module:
    """I3D without its classifier, from RGB in 0..1, with weights under this package's names."""
    family = I3D()
    units: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for number, out_channels in enumerate(family.channels, start=1):
        for block in family.block(number, channels):
            units |= block.named_children()
        channels = out_channels
    network = nn.Sequential(units)
    own = {name: value for name, value in weights.items() if not name.startswith("classifier.")}
    counters = {name: value for name, value in network.state_dict().items() if name.endswith("num_batches_tracked")}
    network.load_state_dict(own | counters)
    return nn.Sequential(family.input_norm(3, is_rgb=True), network)
