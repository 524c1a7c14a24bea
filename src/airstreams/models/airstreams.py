"""AIRStreams: the paper's Figure 2.

    clip ── representation ── blocks 1-3 ──┬── blocks 4-6, head ── rgb, flow and semantic logits (training)
                                           │
            (the same for each stream) ── mean ── blocks 4-6, head ── merged logits: the answer

The numbers are the default's. With several merge levels (`model.merge_levels`) a stream's blocks go on through all of
them: at each there is a mean, which has the blocks after it and a head of its own, and a stream's own head comes after
the last.

Legend of shape suffixes: B batch, C channels, T frames, H, W pixels, K action classes, S segmentation classes, h, w
the segmenter's grid.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from airstreams.config import ModelConfig
from airstreams.errors import InputError
from airstreams.models.tower import EarlyTower, LateTower
from airstreams.representations import Representation
from airstreams.representations.custom import load_custom
from airstreams.representations.flow import Flow
from airstreams.representations.rgb import RGB
from airstreams.representations.semantic import Semantic


@dataclass
class Output:
    """What the model says of a batch of clips.

    logits: head name to (B, K), for the heads asked for.
    representations: stream name to what it saw; see `Representation`.
    pooled: head name to (B, C), what its classifier sees, for the same heads.
    """

    logits: dict[str, Tensor]
    representations: dict[str, Representation]
    pooled: dict[str, Tensor]


class AIRStreams(nn.Module):
    """Streams of representations, merged after block 3. With one stream there is no merge: its own tower answers.

    Args:
        representations: stream name to the module that makes what its tower sees.
        early: stream name to blocks 1 to 3 (with several merges, up to the last).
        late: head name to blocks 4 to 6 (those after its merge) with that head; the last is the model's answer.
    """

    def __init__(
        self, representations: dict[str, nn.Module], early: dict[str, EarlyTower], late: dict[str, LateTower]
    ) -> None:
        super().__init__()
        self.representations = nn.ModuleDict(representations)
        self.early = nn.ModuleDict(early)
        self.late = nn.ModuleDict(late)
        self.answer = list(late)[-1]
        self.levels = {head: tower.level for head, tower in late.items()}
        for towers in (self.early, self.late):
            towers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, clip_B3THW: Tensor, heads: Sequence[str] | None = None) -> Output:
        """Score clips.

        Args:
            clip_B3THW: uint8, or float32 in 0..1; any T, H and W from 64 up. Normalisation is done here, so that no
                caller can get it wrong.
            heads: which logits to compute; None: the answer's alone, as at inference, without what only other heads
                need.

        InputError: what is no such clip or no such heads.
        """
        heads = (self.answer,) if heads is None else heads
        self._require(clip_B3THW, heads)
        clip_B3THW = to_unit_range(clip_B3THW)
        merged = [head for head in heads if head not in self.early]
        streams = [name for name in self.early if merged or name in heads]
        deepest = max(self.levels[head] for head in heads)
        representations = {name: self.representations[name](clip_B3THW) for name in streams}
        features = {name: self.early[name](representations[name].tower_input, deepest) for name in streams}
        answers = {name: self.late[name](features[name][deepest]) for name in streams if name in heads}
        for head in merged:
            at_level = tuple(features[name][self.levels[head]] for name in streams)
            merged_BCTHW = torch.stack(at_level).mean(dim=0)
            answers[head] = self.late[head](merged_BCTHW)
        logits = {head: logits_BK for head, (logits_BK, _) in answers.items()}
        pooled = {head: pooled_BC for head, (_, pooled_BC) in answers.items()}
        return Output(logits, representations, pooled)

    def _require(self, clip: Tensor, heads: Sequence[str]) -> None:
        dtype = next(self.late.parameters()).dtype
        if clip.ndim != 5 or clip.shape[1] != 3 or clip.dtype not in (torch.uint8, dtype):
            raise InputError(
                f"clip: got {clip.dtype} of {tuple(clip.shape)}, expected torch.uint8, or {dtype} in 0..1, of (batch, "
                "3, frames, height, width); clip.to(torch.uint8), clip.float() or clip.permute(0, 4, 1, 2, 3) makes it"
            )
        if isinstance(heads, str) or not heads or any(head not in self.late for head in heads):
            raise InputError(f"heads: got {heads!r}, expected a list of some of {', '.join(self.late)}, or None")

    def keep_heads(self, heads: Collection[str]) -> None:
        """Remove all other heads with their late towers. Asking for a removed head is an InputError.

        Building all towers and removing some leaves the random weights of the others as they were.
        """
        for head in [head for head in self.late if head not in heads]:
            del self.late[head]

    def parts(self) -> dict[str, nn.Module]:
        """The parts by the names that `airstreams info` shows: `flow.representation`, `rgb.early`, `merged.late`, ...

        rgb has no representation to speak of.
        """
        made = {name: part for name, part in self.representations.items() if not isinstance(part, RGB)}
        parts = {f"{name}.representation": part for name, part in made.items()}
        parts |= {f"{name}.early": part for name, part in self.early.items()}
        parts |= {f"{name}.late": part for name, part in self.late.items()}
        return parts


def build(config: ModelConfig, classes: int, segment_classes: int) -> AIRStreams:
    """The model of a config, from random weights.

    Args:
        config: streams, tower and widths.
        classes: K, action classes.
        segment_classes: S, those that the segmenter tells apart, background included.

    InputError: a custom stream's class that cannot be used.
    """
    stopped = config.stop_gradient
    makers: dict[str, Callable[[], nn.Module]] = {
        "rgb": RGB,
        "rgb2": RGB,
        "rgb3": RGB,
        "flow": lambda: Flow(config.flow, "flow" in stopped),
        "semantic": lambda: Semantic(
            segment_classes,
            config.segmenter_width,
            config.segmenter_stride,
            config.semantic_channels,
            "semantic" in stopped,
        ),
    }
    streams = config.streams
    representations = {
        name: makers[name]() if name in makers else load_custom(name, config.representations[name]) for name in streams
    }
    early = {
        name: EarlyTower(representations[name].channels, config.blocks, config.width, config.merge_levels)  # type: ignore[arg-type]
        for name in streams
    }
    levels = dict.fromkeys(streams, max(config.merge_levels)) | config.merges
    late = {
        head: LateTower(config.blocks, level, config.width, classes, config.dropout) for head, level in levels.items()
    }
    return AIRStreams(representations, early, late)


def to_unit_range(clip_B3THW: Tensor) -> Tensor:
    """A float clip in 0..1 from a uint8 or a float one."""
    return clip_B3THW.float() / 255 if clip_B3THW.dtype == torch.uint8 else clip_B3THW
