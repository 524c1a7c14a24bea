"""Representations: what each stream's tower sees, computed from one RGB clip inside the network (section 3.1).

A representation is a module with an attribute `channels`. Its `forward` turns a clip (B, 3, T, H, W) in 0..1 into a
`Representation`. A custom stream is a class of the user's own, imported by name (docs/new-stream.md).
"""

from typing import NamedTuple

from torch import Tensor


class Representation(NamedTuple):
    """What a stream computes from a clip.

    tower_input: the input of the stream's tower, (B, channels, T, H, W).
    prediction: the network's own prediction, which a loss compares with a target and which pictures show. For flow:
        optical flow in px per frame (B, 2, T, H, W), or the difference of frames (B, 1, T, H, W). For semantic:
        segmentation logits on the segmenter's grid (B, S, T, h, w). For rgb: None. For a custom stream: None, or any
        (B, any, T, any, any).
    """

    tower_input: Tensor
    prediction: Tensor | None
