"""Scores clips by the head that gives a model's answer, as fast as a CPU can.

The views of a short video overlap, so they share frames: on average, five views of a J-HMDB video have 23 different
frames out of 40. On a CPU each is segmented once, and the flow between two frames is computed once. Batch
normalisations are folded into the convolutions before them. Probabilities differ from those of the model itself by
rounding alone, about 1e-7. On a GPU the model itself scores.

Legend of shape suffixes: N frames, P pairs of frames, B clips, T frames of a clip, C channels, H, W pixels, K classes.
"""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from airstreams.data.dataset import ClipFrames
from airstreams.evaluation.scoring import CLIPS_AT_ONCE, require_finite
from airstreams.machine import in_bfloat16
from airstreams.models.airstreams import AIRStreams, to_unit_range
from airstreams.models.tower import EarlyTower
from airstreams.representations.flow import Flow
from airstreams.representations.rgb import RGB
from airstreams.representations.semantic import Semantic
from airstreams.runs.saved_model import SavedModel


class Scorer:
    """The probabilities of clips. Several threads may use one."""

    def __init__(self, saved: SavedModel) -> None:
        self.multi_label = saved.multi_label
        self.device = next(saved.model.parameters()).device
        self.model = saved.model
        self.on_cpu = OnCPU(saved.model) if self.device.type == "cpu" else None

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
        autocast = torch.autocast("cuda", torch.bfloat16) if in_bfloat16(self.device) else nullcontext()
        with torch.inference_mode(), autocast:
            logits_BK = torch.cat([self._logits(frames_NHW3, part) for part in torch.cat(places).split(at_once)])
            probabilities_BK = logits_BK.sigmoid() if self.multi_label else logits_BK.softmax(dim=1)
            averaged = [of_views.mean(dim=0) for of_views in probabilities_BK.cpu().split([*map(len, places)])]
        require_finite(averaged)
        return averaged

    def _logits(self, frames_NHW3: Tensor, places_BT: Tensor) -> Tensor:
        if self.on_cpu is not None:
            used, places = places_BT.unique(return_inverse=True)
            return self.on_cpu.logits(frames_NHW3[used], places)
        clips_B3THW = frames_NHW3[places_BT].to(self.device).permute(0, 4, 1, 2, 3)
        return self.model(clips_B3THW).logits[self.model.answer].float()


class OnCPU:
    """The path of a model to its answer, with folded normalisations, for clips that share frames."""

    def __init__(self, model: AIRStreams) -> None:
        self.representations = {
            stream: _folded(part) if isinstance(part, Semantic) else part
            for stream, part in model.representations.items()
        }
        self.early = {stream: cast(EarlyTower, _folded(tower)) for stream, tower in model.early.items()}
        self.late = _folded(model.late[model.answer])
        self.level = model.levels[model.answer]
        self.merges = model.answer not in model.early

    def logits(self, frames_NHW3: Tensor, places_BT: Tensor) -> Tensor:
        """Logits (B, K) of clips that are given as frames and their places."""
        frames_N3HW = to_unit_range(frames_NHW3.permute(0, 3, 1, 2))
        features = []
        for stream, tower in self.early.items():
            seen_BCTHW = self._tower_input(self.representations[stream], frames_N3HW, places_BT)
            features_BCTHW = tower(seen_BCTHW, self.level)[self.level]
            features.append(tower.for_merge(features_BCTHW, self.level) if self.merges else features_BCTHW)
        # A model without a merge has one stream.
        merged_BCTHW = torch.stack(features).mean(dim=0) if self.merges else features[0]
        logits_BK: Tensor = self.late(merged_BCTHW)[0]
        return logits_BK.float()

    def _tower_input(self, representation: nn.Module, frames_N3HW: Tensor, places_BT: Tensor) -> Tensor:
        """The representation (B, C, T, H, W) of each clip."""
        T = places_BT.shape[1]
        if isinstance(representation, RGB):
            return _clips(frames_N3HW, places_BT)
        if isinstance(representation, Semantic):  # frame by frame
            all_3NHW = frames_N3HW.transpose(0, 1)
            return _clips(representation(all_3NHW[None]).tower_input[0].transpose(0, 1), places_BT)
        if isinstance(representation, Flow) and T > 1:  # from a frame to the next; the last repeats the one before
            pairs_BT2 = torch.stack((places_BT[:, :-1], places_BT[:, 1:]), dim=2)
            pairs_BT2 = torch.cat((pairs_BT2, pairs_BT2[:, -1:]), dim=1)
            pairs_P2, places = pairs_BT2.flatten(0, 1).unique(dim=0, return_inverse=True)
            flow_PC2HW = representation(_clips(frames_N3HW, pairs_P2)).tower_input
            return _clips(flow_PC2HW[:, :, 0], places.view_as(places_BT))
        seen_BCTHW: Tensor = representation(_clips(frames_N3HW, places_BT)).tower_input
        return seen_BCTHW


def _clips(frames_NCHW: Tensor, places_BT: Tensor) -> Tensor:
    """(B, C, T, H, W) from frames and their places."""
    return frames_NCHW[places_BT].transpose(1, 2)


def _folded(module: nn.Module) -> nn.Module:
    """A copy of a module in evaluation mode, with each batch normalisation folded into the convolution before it."""
    module = copy.deepcopy(module).eval()
    for sequence in [part for part in module.modules() if isinstance(part, nn.Sequential)]:
        for number, (conv, norm) in enumerate(zip(list(sequence)[:-1], list(sequence)[1:], strict=True)):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                _fold(conv, norm)
                sequence[number + 1] = nn.Identity()
    return module.requires_grad_(False)


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    bias = None if conv.bias is None else conv.bias.double()
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    weight, bias = fuse_conv_bn_weights(
        conv.weight.double(), bias, mean.double(), variance.double(), norm.eps, norm.weight.double(), norm.bias.double()
    )
    conv.weight = nn.Parameter(weight.float().contiguous(memory_format=torch.channels_last))
    conv.bias = nn.Parameter(bias.float())
