"""The network."""

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from airstreams.config.limits import MOST_ITERATIONS, MOST_LAYERS
from airstreams.config.streams import ANSWER, BUILT_IN_STREAMS, MERGED_AFTER, NEVER_CUSTOM, STREAMS, SUPERVISED
from airstreams.errors import did_you_mean, require
from airstreams.towers import BACKBONES, OTHER_BACKBONES, BackboneName, Block

FULL_SIZE = 512
"""The channels at the end of a full-size tower: those of the default one at `model.width` 1."""


@dataclass
class FlowConfig:
    """The flow stream (`models/flow.py`). All keys except `kind` and `scale` are for TV-L1."""

    kind: Literal["tvl1", "difference"] = "tvl1"
    """TV-L1 optical flow, or the difference of two frames as a baseline."""
    iterations: int = 20
    """TV-L1 iterations, at each warp if there are any. Piergiovanni and Ryoo (2019) use 10 to 20."""
    levels: int = 1
    """Pyramid levels, each half the size of the one before. 1: full size only."""
    warps: int = 0
    """Warps of the second frame at each level. 0: none, for motion of at most a pixel or two."""
    learn_kernels: bool = False
    """Also learn the kernels of gradients and divergence (Piergiovanni and Ryoo, 2019)."""
    kernels_per_channel: bool = False
    """With learn_kernels: each channel of `input` learns its own. Otherwise all channels share them."""
    input: Literal["grey", "rgb"] = "grey"
    """The flow of the grey clip, or of each of its three colours, which gives the tower six channels instead of two."""
    kernel: Literal["torch", "fused"] = "torch"
    """How a CPU computes the iterations: by torch's operations, or fused in C, which is faster and needs a C compiler.
    The two differ by rounding, so a run keeps its own."""
    scale: float | None = None
    """Clip the flow at this many px, and divide it by them: what published weights for flow expect (I3D: 20). --init
    sets it for them. null: the tower normalises each channel."""

    def __post_init__(self) -> None:
        require(self.iterations >= 1, "model.flow.iterations", self.iterations, "at least 1")
        require(self.levels >= 1, "model.flow.levels", self.levels, "at least 1")
        scale = self.scale
        require(scale is None or 0 < scale < math.inf, "model.flow.scale", scale, "over 0 px and finite, or null")
        given, expected = f"{self.kernels_per_channel} without learn_kernels", "false, or learn_kernels true"
        require(self.learn_kernels or not self.kernels_per_channel, "model.flow.kernels_per_channel", given, expected)
        least = 1 if self.levels > 1 else 0
        require(self.warps >= least, "model.flow.warps", self.warps, f"at least {least} with {self.levels} level(s)")
        steps = self.iterations * self.levels * max(1, self.warps)
        expected = f"at most {MOST_ITERATIONS} over all levels and warps"
        require(self.levels <= 32 and steps <= MOST_ITERATIONS, "model.flow.iterations", steps, expected)

    @property
    def channels(self) -> int:
        """How many channels the flow is computed for."""
        return 3 if self.input == "rgb" else 1


@dataclass
class ModelConfig:
    """The network (Figures 2 and 7)."""

    streams: list[str] = field(default_factory=lambda: list(STREAMS))
    """The streams: rgb, flow, semantic, parts, depth, keypoints, distil, custom streams. rgb2, rgb3: more towers
    that see RGB."""
    representations: dict[str, str] = field(default_factory=dict)
    """The classes of custom streams: name to MODULE:CLASS."""
    backbone: BackboneName | None = None
    """The tower of every stream, by name. null: the blocks of `tower` if it has any, else airstreams."""
    backbones: dict[str, BackboneName] = field(default_factory=dict)
    """The towers of some streams, by stream, instead of `backbone`. Without `backbone`, merges take the first
    stream's."""
    tower: list[Block] = field(default_factory=list)
    """Your own blocks instead of a backbone's (Figure 7). Empty: the backbone's."""
    merge_levels: list[int] = field(default_factory=lambda: [3])
    """The numbers of blocks after which the streams merge (section 3.1). The first merge gives the answer. The number
    of all blocks is late fusion."""
    merge: Literal["mean", "sum", "weighted", "concat", "gain"] = "mean"
    """How features merge: their mean (section 3.1), their sum, a mean with learnt weights per stream, a 1x1 convolution
    of all of them, or the first stream's plus those of the others times a learnt gain per channel. Gains start at 0, so
    the merged tower starts as the first stream alone."""
    merge_norm: bool = True
    """Normalise each stream's features before the merge, in towers without published weights."""
    answer: Literal["merged", "mean"] = "merged"
    """The model's answer: the merged head's, or that of the mean logits of all trained heads. The mean takes the late
    towers of all these heads at inference."""
    width: float = 1.0
    """A factor on the channels of every tower."""
    segmenter_width: float = 1.0
    """A factor on the channels of the segmenter, a Dilated ResNet-18."""
    segmenter_stride: Literal[16, 8, 4] = 16
    """The distance between the segmenter's logits, in px (section 3.1: 16)."""
    semantic_channels: int | None = 8
    """The channels of the learnt projection of the logits that the semantic tower sees. null: the logits themselves
    (section 3.1)."""
    flow: FlowConfig = field(default_factory=FlowConfig)
    stop_gradient: list[str] = field(default_factory=list)
    """Representations that action losses do not reach: flow, semantic (Table 2, left column), and others that learn
    from a teacher."""
    dropout: float = 0.5
    """The probability of dropout before each classifier."""
    stream_dropout: float = 0.0
    """The probability that a training clip loses a stream at the merges. A clip never loses all streams."""

    def __post_init__(self) -> None:
        self._check_streams()
        self._check_tower()
        require(0 < self.segmenter_width <= 100, "model.segmenter_width", self.segmenter_width, "over 0, up to 100")
        channels = self.semantic_channels
        valid = channels is None or 1 <= channels <= 4096
        require(valid, "model.semantic_channels", channels, "1 to 4096, or null")

    def _check_streams(self) -> None:
        require(len(self.streams) > 0, "model.streams", self.streams, f"at least one of {', '.join(STREAMS)}")
        require(len(self.streams) <= 32, "model.streams", f"{len(self.streams)} streams", "at most 32")
        unique = len(set(self.streams)) == len(self.streams)
        require(unique, "model.streams", self.streams, "each stream once")
        for stream, class_path in self.representations.items():
            free = stream.isidentifier() and not stream.startswith("merged")
            free = free and stream not in (*NEVER_CUSTOM, "interm", "total")
            require(free, "model.representations", stream, "a name of letters and digits that is not reserved")
            is_path = re.fullmatch(r"[\w.]+:\w+", class_path) is not None
            require(is_path, f"model.representations.{stream}", class_path, "MODULE:CLASS, such as my_streams:Edges")
        taken = self.answer == "mean" and ANSWER in self.representations  # runs with a merged answer may have it
        require(not taken, "model.representations", ANSWER, "another name, because model.answer has this one")
        known = (*BUILT_IN_STREAMS, *self.representations)
        unknown = [stream for stream in self.streams if stream not in known]
        expected = f"{', '.join(BUILT_IN_STREAMS)} or a stream with a class in model.representations"
        expected += f".{did_you_mean(unknown[0], known)}" if unknown else ""
        require(not unknown, "model.streams", ", ".join(unknown), expected)
        learnt = ["flow", *SUPERVISED]
        others = ", ".join(stream for stream in self.stop_gradient if stream not in (*learnt, *self.representations))
        expected = f"{', '.join(learnt)}, or a custom stream that learns from a teacher"
        require(not others, "model.stop_gradient", others, expected)

    def _check_tower(self) -> None:
        only_one = self.backbone is None or not self.tower
        require(only_one, "model.backbone", self.backbone, "null or no model.tower; leave one of them out")
        unknown = ", ".join(stream for stream in self.backbones if stream not in self.streams)
        require(not unknown, "model.backbones", unknown, f"some of the streams {', '.join(self.streams)}")
        families = {self.backbone_of(stream) for stream in (*self.streams, None)}
        fixed = ", ".join(name for name in families if name in OTHER_BACKBONES)
        require(not fixed or self.width == 1, "model.width", self.width, f"1 with {fixed}, whose channels are fixed")
        layers = sum(block.repeats * len(block.layers) for block in self.tower)
        require(layers <= MOST_LAYERS, "model.tower", f"{layers} layers", f"at most {MOST_LAYERS}, with repetitions")
        blocks = min(self.block_count(stream) for stream in (*self.streams, None))
        require(blocks >= 2, "model.tower", f"{blocks} blocks", "at least two")
        levels = self.merge_levels
        valid = bool(levels) and len(set(levels)) == len(levels) and all(1 <= level <= blocks for level in levels)
        require(valid, "model.merge_levels", levels, f"numbers of blocks from 1 to {blocks}, each once")
        require(0 < self.width <= 100, "model.width", self.width, "over 0, up to 100")
        for name in ("dropout", "stream_dropout"):
            require(0 <= getattr(self, name) < 1, f"model.{name}", getattr(self, name), "0 to below 1")

    def backbone_of(self, stream: str | None) -> str:
        """The name of a stream's tower; without a stream, that of the merged towers. `model.tower` has the name ""."""
        if stream in self.backbones:
            return self.backbones[stream]
        if self.backbone is None and not self.tower and stream is None and self.streams[0] in self.backbones:
            return self.backbones[self.streams[0]]
        return "" if self.tower else self.backbone or "airstreams"

    def block_count(self, stream: str | None = None) -> int:
        """The number of blocks of a stream's tower; without a stream, of the merged towers."""
        name = self.backbone_of(stream)
        return OTHER_BACKBONES[name] if name in OTHER_BACKBONES else len(self.blocks_of(stream))

    def blocks_of(self, stream: str | None = None) -> list[Block]:
        """The blocks of a tower that blocks describe, as `backbone_of`."""
        name = self.backbone_of(stream)
        return BACKBONES[name]() if name else self.tower

    @property
    def has_segmenter(self) -> bool:
        """Whether a stream predicts the classes of the label maps that `--labels` names: the stream semantic."""
        return SUPERVISED[0] in self.streams

    @property
    def is_full_size(self) -> bool:
        """Whether all towers end with at least `FULL_SIZE` channels. A CPU then gains from bfloat16."""
        return all(
            name in OTHER_BACKBONES or self.blocks_of(stream)[-1].channels * self.width >= FULL_SIZE
            for stream in (*self.streams, None)
            for name in [self.backbone_of(stream)]
        )

    @property
    def merges(self) -> dict[str, int]:
        """The merged heads, each with its number of blocks. The last is the main one. Empty for one stream."""
        first, *others = self.merge_levels
        merges = {f"{MERGED_AFTER}{level}": level for level in others} | {"merged": first}
        return merges if len(self.streams) > 1 else {}

    @property
    def heads(self) -> list[str]:
        """All heads: one of each stream, and one of each merge. With one stream there is no merge."""
        return [*self.streams, *self.merges]
