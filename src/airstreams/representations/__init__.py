"""The representations: what each stream's tower sees, made from one RGB clip inside the network (section 3.1).

Each is a module with `channels` and a `forward` from a clip (B, 3, T, H, W) in 0..1 to a `Representation`. Custom ones
are users' own classes, imported by name (docs/new-stream.md).
"""

from typing import NamedTuple

from torch import Tensor


class Representation(NamedTuple):
    """What a tower sees, and what a person can look at.

    tower_input: (B, channels, T, H, W).
    prediction: flow in px a frame (B, 2, T, H, W), what another kind of flow has in its place, or segmentation logits
        (B, S, T, h, w) on the segmenter's grid; None for rgb. A further stream's is None or (B, any, T, any, any).
    """

    tower_input: Tensor
    prediction: Tensor | None
