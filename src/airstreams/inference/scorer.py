"""Scores clips by the heads that give a model's answer, as fast as a CPU can.

The views of a short video overlap, so they share frames: on average, five views of a J-HMDB video have 23 different
frames out of 40. On a CPU, all that depends on one frame, or on the flow from one frame to another, is computed once:
up to the first layer that sees several frames. Batch normalisations are folded into the convolutions before them.
Probabilities differ from those of evaluation by rounding alone: about 1e-7. On a GPU the model itself scores.

Legend of shape suffixes: N frames, P pairs of frames, B clips, T frames of a clip, C channels, H, W pixels, K classes.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from airstreams.data.dataset import ClipFrames
from airstreams.evaluation.scoring import CLIPS_AT_ONCE, require_finite
from airstreams.machine import autocast
from airstreams.models.airstreams import AIRStreams, answer_of, to_unit_range
from airstreams.models.folding import FoldedBlock, FoldedConv, ShrinkingConv, folded_model
from airstreams.models.tower import EarlyTower, LateTower, SpatialConv, SpatialPool
from airstreams.representations.flow import Flow
from airstreams.representations.frame_network import FrameNetwork
from airstreams.representations.rgb import RGB
from airstreams.runs.saved_model import SavedModel


class Scorer:
    """The probabilities of clips. Several threads may use one."""

    def __init__(self, saved: SavedModel) -> None:
        self.multi_label = saved.multi_label
        self.device = next(saved.model.parameters()).device
        self.precision = saved.precision
        self.temperature = saved.temperature
        self.model = saved.model
        self.heads = saved.config.answer_heads
        self.on_cpu = OnCPU(saved.model, self.heads) if self.device.type == "cpu" else None

    def score(self, views_of_videos: Sequence[ClipFrames], at_once: int = CLIPS_AT_ONCE) -> list[Tensor]:
        """Score the views of several videos in shared passes through the model.

        Args:
            views_of_videos: the views of each.
            at_once: how many clips a pass takes.

        Returns:
            For each video the probabilities (K,), averaged over its views, on the CPU.

        Raises:
            FloatingPointError: a probability is NaN or infinite.
        """
        frames_NHW3 = torch.cat([views.frames_NHW3 for views in views_of_videos])
        places, first = [], 0
        for views in views_of_videos:
            places.append(views.places_VT + first)
            first += len(views.frames_NHW3)
        with torch.inference_mode(), autocast(self.device, self.precision):
            # Views of a short video may be the same clip.
            clips_BT, clip_of_view = torch.cat(places).unique(dim=0, return_inverse=True)
            logits = [self._logits(frames_NHW3, part) for part in clips_BT.split(at_once)]
            parts = [answer_of(of_part, self.multi_label, self.temperature) for of_part in logits]
            probabilities_BK = torch.cat(parts)
            probabilities_BK = probabilities_BK[clip_of_view.to(probabilities_BK.device)]
            averaged = [of_views.mean(dim=0) for of_views in probabilities_BK.cpu().split([*map(len, places)])]
        require_finite(averaged)
        return averaged

    def _logits(self, frames_NHW3: Tensor, places_BT: Tensor) -> Mapping[str, Tensor]:
        if self.on_cpu is not None:
            used, places = places_BT.unique(return_inverse=True)
            return self.on_cpu.logits(frames_NHW3[used], places)
        clips_B3THW = frames_NHW3[places_BT].to(self.device).permute(0, 4, 1, 2, 3)
        logits: Mapping[str, Tensor] = self.model(clips_B3THW, self.heads).logits
        return logits


class OnCPU:
    """The path of a model to its answer's heads, with folded normalisations, for clips that share frames."""

    def __init__(self, model: AIRStreams, heads: Sequence[str]) -> None:
        model = folded_model(model)
        self.representations = model.representations
        self.early = {stream: cast(EarlyTower, tower) for stream, tower in model.early.items()}
        self.late = {head: cast(LateTower, model.late[head]) for head in heads}
        self.last_level = max(tower.level for tower in self.late.values())

    def logits(self, frames_NHW3: Tensor, places_BT: Tensor) -> dict[str, Tensor]:
        """Logits (B, K) by head, of clips that are given as frames and their places."""
        frames_N3HW = to_unit_range(frames_NHW3.permute(0, 3, 1, 2))
        features = {}
        for stream, tower in self.early.items():
            seen_NCHW, places = _seen(self.representations[stream], frames_N3HW, places_BT)
            features[stream] = _features(tower, seen_NCHW, places, self.last_level)
        logits: dict[str, Tensor] = {}
        for head, late in self.late.items():
            level = late.level
            if late.merge is None:
                logits[head] = late(features[head][level])[0]
            else:
                at_merge = {
                    stream: tower.for_merge(features[stream][level], level) for stream, tower in self.early.items()
                }
                logits[head] = late(late.merge(at_merge))[0]
        return logits


def _seen(representation: nn.Module, frames_N3HW: Tensor, places_BT: Tensor) -> tuple[Tensor, Tensor]:
    """What a stream's tower sees: representations of single frames (N, C, H, W), and their places (B, T) in clips."""
    B, T = places_BT.shape
    if isinstance(representation, RGB):
        return frames_N3HW, places_BT
    if isinstance(representation, FrameNetwork):  # frame by frame
        return _frames_of(representation(_one_clip(frames_N3HW)).tower_input), places_BT
    if isinstance(representation, Flow) and T > 1:  # from a frame to the next; the last repeats the one before
        seen_NCHW = representation.seen(frames_N3HW)
        pairs_BT2 = torch.stack((places_BT[:, :-1], places_BT[:, 1:]), dim=2)
        pairs_BT2 = torch.cat((pairs_BT2, pairs_BT2[:, -1:]), dim=1)
        pairs_P2, places = pairs_BT2.flatten(0, 1).unique(dim=0, return_inverse=True)
        flow_PC2HW = representation.layer(seen_NCHW[pairs_P2].transpose(1, 2))
        return flow_PC2HW[:, :, 0], places.view(B, T)
    # Nothing is known of a custom stream, so it sees whole clips.
    seen_BCTHW = representation(_clips(frames_N3HW, places_BT)).tower_input
    return seen_BCTHW.transpose(1, 2).flatten(0, 1), torch.arange(B * T).view(B, T)


def _features(tower: EarlyTower, seen_NCHW: Tensor, places_BT: Tensor, last: int) -> dict[int, Tensor]:
    """The tower's features (B, C, T, H, W) by level up to `last`. Layers before the first that sees time run once."""
    block = tower.blocks[0]
    clip_1CNHW = tower.input_norm(_one_clip(seen_NCHW))
    if not isinstance(block, FoldedBlock):  # I3D sees time from its first layer on
        return tower.after(0, _clips(_frames_of(clip_1CNHW), places_BT), last)
    of_frames = [*itertools.takewhile(_sees_single_frames, block.body)]
    body = clip_1CNHW
    for layer in of_frames:
        body = layer(body)
    body = _clips(_frames_of(body), places_BT)
    for layer in block.body[len(of_frames) :]:
        body = layer(body)
    shortcut = None
    if isinstance(block.shortcut, ShrinkingConv):
        shortcut = _clips(_frames_of(block.shortcut(clip_1CNHW)), places_BT)
    elif block.shortcut is not None:
        shortcut = block.shortcut(_clips(_frames_of(clip_1CNHW), places_BT))
    return tower.after(1, block.end(body, shortcut), last)


def _sees_single_frames(layer: nn.Module) -> bool:
    return isinstance(layer, SpatialPool) or (isinstance(layer, FoldedConv) and isinstance(layer.conv, SpatialConv))


def _one_clip(frames_NCHW: Tensor) -> Tensor:
    """Frames as a single clip (1, C, N, H, W)."""
    return frames_NCHW.transpose(0, 1)[None]


def _frames_of(clip_1CNHW: Tensor) -> Tensor:
    """The frames (N, C, H, W) of a single clip."""
    return clip_1CNHW[0].transpose(0, 1)


def _clips(frames_NCHW: Tensor, places_BT: Tensor) -> Tensor:
    """Clips (B, C, T, H, W), channels last in memory, from frames and their places."""
    frames_NHWC = frames_NCHW.permute(0, 2, 3, 1).contiguous()
    chosen = frames_NHWC.index_select(0, places_BT.flatten())
    return chosen.unflatten(0, places_BT.shape).permute(0, 4, 1, 2, 3)
