"""The AIRStreams network, the paper's Figure 2.

    clip ── representation ── blocks 1-3 ──┬── blocks 4-6, head ── logits of this stream (training only)
                                           │
            (the same for each stream) ── merge ── blocks 4-6, head ── merged logits: the model's answer

The merge is the mean of the streams' features (section 3.1), or what else `model.merge` says.

The block numbers are those of the default. `model.merge_levels` may name several levels to merge after. Then each
stream's tower runs through all of them. Each merge has blocks and a head of its own, and a stream's own head follows
the last merge level.

Shape suffixes: B batch, C channels, T frames, H, W pixels, K action classes, S segmentation classes, h, w the
segmenter's grid.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from airstreams.config import ModelConfig
from airstreams.errors import InputError
from airstreams.models.backbones import backbone_of
from airstreams.models.merge import draw_streams, make_merge, merge_of_some
from airstreams.models.tower import EarlyTower, LateTower
from airstreams.representations import Representation, Supervised
from airstreams.representations.custom import load_custom
from airstreams.representations.make import make_representation
from airstreams.representations.rgb import RGB


@dataclass
class Output:
    """The model's output for a batch of clips.

    logits: class logits (B, K) by head, for the heads asked for.
    representations: the representation of each stream that ran, by stream.
    pooled: pooled features (B, C) by head, the input of its classifier, for the same heads.
    """

    logits: dict[str, Tensor]
    representations: dict[str, Representation]
    pooled: dict[str, Tensor]


class AIRStreams(nn.Module):
    """Streams with one representation each, merged after block 3.

    A model with one stream has no merge. The stream's own head is its answer.

    Args:
        representations: the module that computes the input of the tower, by stream.
        early: the blocks before the last merge, by stream.
        late: the blocks after a merge with the classifier, by head.
        answer: whether the last head gives the model's answer, or the mean of the logits of all heads.
        stream_dropout: the probability that a clip loses a stream at the merges, in training.
    """

    def __init__(
        self,
        representations: dict[str, nn.Module],
        early: dict[str, EarlyTower],
        late: dict[str, LateTower],
        answer: Literal["merged", "mean"] = "merged",
        stream_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.representations = nn.ModuleDict(representations)
        self.early = nn.ModuleDict(early)
        self.late = nn.ModuleDict(late)
        self.answer = answer
        self.stream_dropout = stream_dropout
        self.levels = {head: tower.level for head, tower in late.items()}
        for towers in (self.early, self.late):
            _to_channels_last(towers)

    def forward(self, clip_B3THW: Tensor, heads: Sequence[str] | None = None) -> Output:
        """Compute class logits.

        Args:
            clip_B3THW: uint8, or float32 in 0..1. Any T, and H and W of at least 64. The model normalises it.
            heads: the heads to compute; None: those of the answer, as at inference. Parts that no head needs do not
                run.

        Raises:
            InputError: the clip has a wrong shape or type, or the model lacks one of the heads.
        """
        heads = self.answer_heads if heads is None else heads
        self._check_inputs(clip_B3THW, heads)
        clip_B3THW = to_unit_range(clip_B3THW)
        merges = [head for head in heads if head not in self.early]
        streams = [stream for stream in self.early if merges or stream in heads]
        last_level = max(self.levels[head] for head in heads)

        # Each stream: its representation of the clip, then the early blocks of its tower.
        representations = {stream: self.representations[stream](clip_B3THW) for stream in streams}
        features = {stream: self.early[stream](representations[stream].tower_input, last_level) for stream in streams}

        # The heads: a stream's own late blocks see its features, those of a merge see all streams.
        outputs = {stream: self.late[stream](features[stream][last_level]) for stream in streams if stream in heads}
        kept_BS = None
        if self.training and self.stream_dropout and merges:
            kept_BS = draw_streams(len(clip_B3THW), len(streams), self.stream_dropout, clip_B3THW.device)
        for head in merges:
            late = cast(LateTower, self.late[head])
            assert late.merge is not None
            outputs[head] = late(merge_of_some(late.merge, self._at_merge(head, features), kept_BS))

        logits = {head: logits_BK for head, (logits_BK, _) in outputs.items()}
        pooled = {head: pooled_BC for head, (_, pooled_BC) in outputs.items()}
        for stream in representations.keys() & pooled.keys():
            part = self.representations[stream]
            if isinstance(part, Supervised) and part.reads_pooled:
                predicted = part.predict(pooled[stream])
                representations[stream] = representations[stream]._replace(prediction=predicted)
        return Output(logits, representations, pooled)

    def _at_merge(self, head: str, features: Mapping[str, Mapping[int, Tensor]]) -> dict[str, Tensor]:
        """What a merged head's merge gets: features (B, C, T, H, W) by stream."""
        level = self.levels[head]
        at_merge = {
            stream: cast(EarlyTower, self.early[stream]).for_merge(of_levels[level], level)
            for stream, of_levels in features.items()
        }
        _require_one_size(at_merge, level)
        return at_merge

    def subset_logits(
        self, clip_B3THW: Tensor, heads: Sequence[str], subsets: Sequence[Collection[str]]
    ) -> list[dict[str, Tensor]]:
        """The logits of heads as if the model had some of its streams only. The towers run once.

        Args:
            clip_B3THW: as for `forward`.
            heads: some of the model's.
            subsets: the streams of each subset, at least one.

        Returns:
            For each subset logits (B, K) by head: of its own streams' heads among `heads`, and of the merges.
        """
        clip_B3THW = to_unit_range(clip_B3THW)
        last_level = max(self.levels[head] for head in heads)
        features = {
            stream: tower(self.representations[stream](clip_B3THW).tower_input, last_level)
            for stream, tower in self.early.items()
        }
        own = {head: self.late[head](features[head][last_level])[0] for head in heads if head in self.early}
        merges = {head: self._at_merge(head, features) for head in heads if head not in self.early}
        found = []
        for streams in subsets:
            logits = {stream: logits_BK for stream, logits_BK in own.items() if stream in streams}
            present = [stream in streams for stream in features]
            present_1S = None if all(present) else torch.tensor([present], device=clip_B3THW.device)
            for head, at_merge in merges.items():
                late = cast(LateTower, self.late[head])
                assert late.merge is not None
                logits[head] = late(merge_of_some(late.merge, at_merge, present_1S))[0]
            found.append(logits)
        return found

    @property
    def answer_heads(self) -> list[str]:
        """The heads that give the model's answer: `answer_of` their logits. All heads that are left, or the last."""
        heads = list(self.late)
        return heads if self.answer == "mean" else heads[-1:]

    def _check_inputs(self, clip: Tensor, heads: Sequence[str]) -> None:
        dtype = next(self.late.parameters()).dtype
        if clip.ndim != 5 or clip.shape[1] != 3 or clip.dtype not in (torch.uint8, dtype):
            raise InputError(
                f"clip: got {clip.dtype} of shape {tuple(clip.shape)}, expected torch.uint8, or {dtype} in 0..1, of "
                "shape (batch, 3, frames, height, width). Convert it with clip.to(torch.uint8), clip.float() or "
                "clip.permute(0, 4, 1, 2, 3)."
            )
        if isinstance(heads, str) or not heads or any(head not in self.late for head in heads):
            raise InputError(f"heads: got {heads!r}, expected a list of some of {', '.join(self.late)}, or None.")

    def keep_heads(self, heads: Collection[str]) -> None:
        """Remove all other heads with their late towers. Asking for a removed head is an InputError.

        Building all towers and removing some leaves the random weights of the others as they were.
        """
        for head in [head for head in self.late if head not in heads]:
            del self.late[head]

    def parts(self) -> dict[str, nn.Module]:
        """The parts by the names that `airstreams info` shows: `flow.representation`, `rgb.early`, `merged.late`, ...

        The representation of rgb is the clip itself, so it is no part.
        """
        computed = {stream: part for stream, part in self.representations.items() if not isinstance(part, RGB)}
        parts = {f"{stream}.representation": part for stream, part in computed.items()}
        parts |= {f"{stream}.early": part for stream, part in self.early.items()}
        parts |= {f"{head}.late": part for head, part in self.late.items()}
        return parts


def build(
    config: ModelConfig,
    classes: int,
    segment_classes: int,
    make_custom: Callable[[str, str, bool], nn.Module] = load_custom,
) -> AIRStreams:
    """Build the model of a config with random weights.

    Args:
        config: streams, tower and widths.
        classes: K, the number of action classes.
        segment_classes: S, the number of the segmenter's classes with the background.
        make_custom: makes the representation of a custom stream from its name, its class, and whether it is in
            `model.stop_gradient`. The default imports the class, which runs its module's code: see `runs/trust.py`.

    Raises:
        InputError: the class of a custom stream cannot be used.
    """
    # The order in which the parts are built decides their random weights.
    representations = {
        stream: make_representation(stream, config, segment_classes, make_custom) for stream in config.streams
    }
    merged = backbone_of(config)
    merged_channels = {level: merged.channels[level - 1] for level in config.merges.values()}
    early = {
        stream: EarlyTower(
            part.channels,  # type: ignore[arg-type]
            backbone_of(config, stream),
            config.merge_levels,
            getattr(part, "sees_rgb", False),
            merged_channels,
            config.flow.scale if stream == "flow" else None,
        )
        for stream, part in representations.items()
    }
    own = {
        stream: LateTower(backbone_of(config, stream), max(config.merge_levels), classes, config.dropout)
        for stream in config.streams
    }
    merges = {
        head: LateTower(
            merged,
            level,
            classes,
            config.dropout,
            make_merge(config.merge, config.streams, merged_channels[level]),
        )
        for head, level in config.merges.items()
    }
    for stream, part in representations.items():
        if isinstance(part, Supervised) and part.reads_pooled:
            part.read_pooled(backbone_of(config, stream).channels[-1])
    return AIRStreams(representations, early, own | merges, config.answer, config.stream_dropout)


def answer_logits(logits: Mapping[str, Tensor]) -> Tensor:
    """The answer's logits (B, K), float32: the mean of its heads' logits (B, K), which are given by head."""
    of_heads = [logits_BK.float() for logits_BK in logits.values()]
    return of_heads[0] if len(of_heads) == 1 else torch.stack(of_heads).mean(dim=0)


def answer_of(logits: Mapping[str, Tensor], multi_label: bool, temperature: float = 1.0) -> Tensor:
    """The answer's probabilities (B, K), from the mean of its heads' logits.

    For softmax, this is the geometric mean of the heads' probabilities, scaled to a sum of 1. A sure head counts more
    in it than in their plain mean.

    Args:
        logits: (B, K) by head, of these heads alone.
        multi_label: whether probabilities are the sigmoid of logits; else they are their softmax.
        temperature: divides the logits (Guo et al. 2017). Over 1 it makes the answer less sure.
    """
    logits_BK = answer_logits(logits)
    if temperature != 1:
        logits_BK = logits_BK / temperature
    return logits_BK.sigmoid() if multi_label else logits_BK.softmax(dim=1)


def _require_one_size(features: Mapping[str, Tensor], level: int) -> None:
    """InputError: the towers' features (B, C, T, H, W) differ in frames, height or width."""
    sizes = {stream: tuple(features_BCTHW.shape[2:]) for stream, features_BCTHW in features.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{stream} {size}" for stream, size in sizes.items())
        raise InputError(
            f"model.merge_levels: after block {level} the streams' features have different sizes ({listed}). Choose "
            "backbones that have one size there, or another level."
        )


def _to_channels_last(module: nn.Module) -> None:
    """Put the weights of 2D and 3D convolutions into the memory format that they run fastest in."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in module.parameters():
        if parameter.ndim in formats:
            parameter.data = parameter.data.to(memory_format=formats[parameter.ndim])


def to_unit_range(clip_B3THW: Tensor) -> Tensor:
    """A float clip in 0..1 from a uint8 clip or a float one."""
    return clip_B3THW.float() / 255 if clip_B3THW.dtype == torch.uint8 else clip_B3THW
