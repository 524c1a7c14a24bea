"""Every knob of a run: one tree of typed dataclasses. A recipe is a YAML file with some of these keys; the rest are
the defaults. The text below a key is what `airstreams train --help` says of it.

Sections and tables named here are those of the paper, *Adaptive Intermediate Representations for Video Understanding*.
It gives no size of a clip, no augmentation, no optimiser and no views: values without a section are ours.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from airstreams.errors import require
from airstreams.towers import BACKBONES, BackboneName, Block

STREAMS = ("rgb", "flow", "semantic")

BUILT_IN_STREAMS = (*STREAMS, "rgb2", "rgb3")
"""rgb2 and rgb3 see what rgb sees, with towers of their own: the control for what a mere ensemble of towers brings."""


@dataclass
class ClipConfig:
    """What one clip is. It is stored with the model: predict and evaluate see what training saw."""

    frames: int = 16
    """frames of a clip, T"""
    stride: int = 2
    """source frames from one frame of the clip to the next"""
    rate: float | None = None
    """frames a second instead of a stride, for videos of differing frame rates"""
    size: int = 112
    """height and width in px"""

    def __post_init__(self) -> None:
        require(self.frames >= 1, "clip.frames", self.frames, "at least 1")
        require(self.stride >= 1, "clip.stride", self.stride, "at least 1")
        require(self.rate is None or self.rate > 0, "clip.rate", self.rate, "a rate over 0 frames a second, or null")
        require(self.size >= 64, "clip.size", self.size, "at least 64 px")


@dataclass
class DataConfig:
    """How training draws clips. Crop, flip and colour are drawn once a clip."""

    crop_scale: list[float] = field(default_factory=lambda: [0.5, 1.0])
    """least and greatest area of a crop, as a share of the largest square"""
    crop_aspect: float = 4 / 3
    """a crop's width over its height is drawn between this and its inverse"""
    flip: bool = True
    """mirror half of the clips; off where left and right are classes"""
    colour: float = 0.3
    """scale brightness, contrast and saturation by up to this much more or less"""
    balanced: bool = False
    """draw every class equally often"""
    val_fraction: float = 0.1
    """share of the videos to validate by, of data that brings no splits"""
    test_fraction: float = 0.2
    """share of the videos to test by, of data that brings no splits"""
    workers: int = 2
    """processes that decode"""
    segment_classes: list[str] = field(default_factory=list)
    """the teacher's classes to learn apart, all others as one; empty: all are apart"""
    compact_classes: bool = False
    """give the segmenter only those classes that some training label map has"""
    cache: str | None = None
    """a folder for decoded frames, which later epochs and runs read; null: decode every time"""
    cache_gb: float = 50.0
    """10^9 bytes that the cache stays below; what does not fit is decoded every time"""

    def __post_init__(self) -> None:
        low, high = self.crop_scale if len(self.crop_scale) == 2 else (0.0, 0.0)
        require(0 < low <= high <= 1, "data.crop_scale", self.crop_scale, "two shares with 0 < low <= high <= 1")
        require(self.crop_aspect >= 1, "data.crop_aspect", self.crop_aspect, "at least 1")
        require(0 <= self.colour < 1, "data.colour", self.colour, "0 to below 1")
        require(self.workers >= 0, "data.workers", self.workers, "at least 0")
        require(self.cache_gb > 0, "data.cache_gb", self.cache_gb, "over 0")
        for name in ("val_fraction", "test_fraction"):
            require(0 <= getattr(self, name) < 1, f"data.{name}", getattr(self, name), "0 to below 1")
        require(
            self.val_fraction + self.test_fraction < 1,
            "data.val_fraction + data.test_fraction",
            self.val_fraction + self.test_fraction,
            "below 1, so that something is left to train on",
        )
        if self.cache is not None:  # what goes on from another folder is to find it again
            self.cache = str(Path(self.cache).expanduser().absolute())


@dataclass
class FlowConfig:
    """What the flow stream sees. All but the kind are of TV-L1; see `models/flow.py`."""

    kind: Literal["tvl1", "difference"] = "tvl1"
    """TV-L1, or the difference of two frames, to compare with"""
    iterations: int = 20
    """TV-L1 iterations, at each warp where there are any; Piergiovanni and Ryoo (2019) use 10 to 20"""
    levels: int = 1
    """pyramid levels, each half the size of the one before; 1: full size only"""
    warps: int = 0
    """warps of the second frame by the flow so far, at each level; 0: none, for motion of up to a pixel or two"""
    learn_kernels: bool = False
    """learn the kernels of gradients and divergence too, as Piergiovanni and Ryoo (2019) do; 20 times the memory"""

    def __post_init__(self) -> None:
        require(self.iterations >= 1, "model.flow.iterations", self.iterations, "at least 1")
        require(self.levels >= 1, "model.flow.levels", self.levels, "at least 1")
        least = 1 if self.levels > 1 else 0
        require(self.warps >= least, "model.flow.warps", self.warps, f"at least {least} with {self.levels} level(s)")


@dataclass
class ModelConfig:
    """The network of Figures 2 and 7."""

    streams: list[str] = field(default_factory=lambda: list(STREAMS))
    """rgb, flow, semantic, custom streams; rgb2, rgb3: more towers that see RGB"""
    representations: dict[str, str] = field(default_factory=dict)
    """custom streams: name to MODULE:CLASS"""
    backbone: BackboneName | None = None
    """the tower of every stream by name; null: `airstreams`, or `tower`"""
    tower: list[Block] = field(default_factory=list)
    """blocks of your own in place of a backbone (Figure 7); empty: the backbone's"""
    merge_levels: list[int] = field(default_factory=lambda: [3])
    """numbers of blocks after which the streams' features are averaged (section 3.1); the first gives
    the answer, and the number of all blocks is late fusion"""
    width: float = 1.0
    """scales every tower's channels"""
    segmenter_width: float = 1.0
    """scales the Dilated ResNet-18's channels"""
    segmenter_stride: Literal[16, 8, 4] = 16
    """px from one of the segmenter's logits to the next (section 3.1: 16)"""
    semantic_channels: int = 8
    """channels to which the logits are reduced before they are enlarged for their tower"""
    flow: FlowConfig = field(default_factory=FlowConfig)
    stop_gradient: list[str] = field(default_factory=list)
    """flow, semantic: representations that action losses do not reach (Table 2, left column)"""
    dropout: float = 0.5
    """before each classifier"""

    def __post_init__(self) -> None:
        require(len(self.streams) > 0, "model.streams", self.streams, f"at least one of {', '.join(STREAMS)}")
        unique = len(set(self.streams)) == len(self.streams)
        require(unique, "model.streams", self.streams, "each stream once")
        for stream, place in self.representations.items():
            free = stream.isidentifier() and not stream.startswith("merged")
            free = free and stream not in (*BUILT_IN_STREAMS, "interm", "total")
            require(free, "model.representations", stream, "a stream's name in letters and digits that is not taken")
            named = re.fullmatch(r"[\w.]+:\w+", place) is not None
            require(named, f"model.representations.{stream}", place, "MODULE:CLASS, such as my_streams:Edges")
        unknown = [stream for stream in self.streams if stream not in (*BUILT_IN_STREAMS, *self.representations)]
        expected = f"{', '.join(BUILT_IN_STREAMS)} or a name to which model.representations gives a class"
        require(not unknown, "model.streams", ", ".join(unknown), expected)
        uncut = ", ".join(stream for stream in self.stop_gradient if stream not in ("flow", "semantic"))
        expected = "flow, semantic; training.freeze keeps any stream's representation from learning"
        require(not uncut, "model.stop_gradient", uncut, expected)
        alone = self.backbone is None or not self.tower
        require(alone, "model.backbone", self.backbone, "null beside a model.tower of your own; leave out one")
        blocks = len(self.blocks)
        require(blocks >= 2, "model.tower", f"{blocks} blocks", "at least two")
        levels = self.merge_levels
        good = bool(levels) and len(set(levels)) == len(levels) and all(1 <= level <= blocks for level in levels)
        require(good, "model.merge_levels", levels, f"numbers of blocks from 1 to {blocks}, each once")
        require(self.width > 0, "model.width", self.width, "over 0")
        require(self.segmenter_width > 0, "model.segmenter_width", self.segmenter_width, "over 0")
        require(self.semantic_channels >= 1, "model.semantic_channels", self.semantic_channels, "at least 1")
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "0 to below 1")

    @property
    def blocks(self) -> list[Block]:
        """The blocks of every stream's tower."""
        return self.tower or BACKBONES[self.backbone or "airstreams"]()

    @property
    def merges(self) -> dict[str, int]:
        """The merged heads with the number of blocks after which each merges; the last answers. One stream: none."""
        answering, *further = self.merge_levels
        merges = {f"merged_after_{level}": level for level in further} | {"merged": answering}
        return merges if len(self.streams) > 1 else {}

    @property
    def heads(self) -> list[str]:
        """The heads that the model has. With one stream there is no merge: its own tower answers."""
        return [*self.streams, *self.merges]

    @property
    def answer(self) -> str:
        """The head whose output is the model's answer."""
        return self.heads[-1]


@dataclass
class LossWeights:
    """The five lambdas of equation 2. The defaults are the paper's fixed weights (section 4.2.3)."""

    rgb: float = 1.0
    """of the RGB tower's action loss"""
    flow: float = 0.0
    """of the flow tower's"""
    semantic: float = 0.0
    """of the semantic tower's"""
    merged: float = 1.0
    """of the merged tower's, and of each further merge's"""
    interm: float = 1.0
    """of the segmentation loss, by the teacher's label maps"""
    custom: dict[str, float] = field(default_factory=dict)
    """of streams beyond the paper's three; left out: 0"""

    def __post_init__(self) -> None:
        values = {name: value for name, value in vars(self).items() if name != "custom"}
        values |= {f"custom.{name}": value for name, value in self.custom.items()}
        for name, value in values.items():
            require(0 <= value < math.inf, f"loss_weights.{name}", value, "at least 0 and finite")

    def of(self, loss: str) -> float:
        """The weight of a loss by its name; a custom stream's is 0 where none is given."""
        return self.custom.get(loss, 0.0) if _is_custom(loss) else getattr(self, loss)

    def updated(self, weights: Mapping[str, float]) -> "LossWeights":
        """These weights with others for the losses named."""
        custom = {name: weight for name, weight in weights.items() if _is_custom(name)}
        own = {name: weight for name, weight in weights.items() if not _is_custom(name)}
        return replace(self, **own, custom=self.custom | custom)


@dataclass
class TrainingConfig:
    """The optimiser and its schedule."""

    epochs: int = 60
    """passes over the training videos"""
    batch_size: int = 16
    """clips of one optimiser step, over all processes and accumulated batches"""
    accumulate: int = 1
    """batches that one optimiser step adds up, for want of memory"""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """sgd has a Nesterov momentum of 0.9"""
    lr: float = 1e-3
    """learning rate at its peak"""
    weight_decay: float = 0.05
    """not on norms, biases and the flow's parameters"""
    warmup_epochs: float = 2.0
    """the learning rate rises linearly from 0, then falls by a cosine to 0"""
    clip_norm: float = 5.0
    """gradients are scaled down to this norm, taken over all of them; 0: no clipping"""
    label_smoothing: float = 0.1
    """of the softmax cross-entropy (section 3.2: none)"""
    freeze: list[str] = field(default_factory=list)
    """parts that stay as they are, as `airstreams info` names them"""
    sync_batch_norm: bool = False
    """normalise over the clips of all processes, not of each alone"""
    deterministic: bool = False
    """on CUDA: slower, and the same numbers every time (a CPU's always are); not for a learnt flow of several warps"""
    cuda_graph: bool = True
    """on CUDA: start a step's kernels as one; not with accumulate, custom streams or several processes"""
    validate_every: int = 1
    """epochs from one validation to the next; the last epoch is validated in any case"""
    save_every: int = 500
    """steps from one saved state to the next; an epoch's end is saved once a minute has passed"""
    keep: int = 2
    """saved states to keep"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a CUDA card where there is one"""

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "training.epochs", self.epochs, "at least 1")
        require(self.batch_size >= 1, "training.batch_size", self.batch_size, "at least 1")
        accumulate = self.accumulate
        fits = accumulate >= 1 and self.batch_size % accumulate == 0
        require(fits, "training.accumulate", accumulate, f"a divisor of training.batch_size, {self.batch_size}")
        require(0 < self.lr < math.inf, "training.lr", self.lr, "over 0 and finite")
        require(self.weight_decay >= 0, "training.weight_decay", self.weight_decay, "at least 0")
        require(self.warmup_epochs >= 0, "training.warmup_epochs", self.warmup_epochs, "at least 0")
        require(self.clip_norm >= 0, "training.clip_norm", self.clip_norm, "at least 0 (0: no clipping)")
        require(0 <= self.label_smoothing < 1, "training.label_smoothing", self.label_smoothing, "0 to below 1")
        require(self.validate_every >= 1, "training.validate_every", self.validate_every, "at least 1")
        require(self.save_every >= 1, "training.save_every", self.save_every, "at least 1")
        require(self.keep >= 1, "training.keep", self.keep, "at least 1")


@dataclass
class EvaluationConfig:
    """Which views of a video are scored and averaged. Stored with the model."""

    views: int = 3
    """clips a video, evenly spaced"""
    crops: int = 1
    """largest squares, evenly spaced along the longer side; 1: the centre"""
    window: float = 10.0
    """s; predict scores a video of over two windows window by window as well"""

    def __post_init__(self) -> None:
        require(self.views >= 1, "evaluation.views", self.views, "at least 1")
        require(self.crops >= 1, "evaluation.crops", self.crops, "at least 1")
        require(self.window > 0, "evaluation.window", self.window, "over 0 s")


@dataclass
class EvolutionConfig:
    """How `airstreams evolve` searches for the loss weights (section 3.3). Training itself reads none of it."""

    population_size: int = 10
    """weightings that may become parents"""
    tournament_size: int = 3
    """weightings drawn from the population, of which the best becomes the parent"""
    dies: Literal["worst", "oldest"] = "worst"
    """who leaves the population; oldest: regularised evolution (Real et al. 2019)"""
    epochs: int | None = None
    """of a trial's training; null: training.epochs"""
    held_out: float = 0.2
    """share of the training videos by which trials are scored"""
    pruner: Literal["none", "median", "halving"] = "none"
    """Optuna's pruner, which stops a trial that falls behind the others"""
    fresh_seeds: int = 3
    """trainings by which the winner and the references are compared at the end"""

    def __post_init__(self) -> None:
        size = self.population_size
        require(size >= 1, "evolution.population_size", size, "at least 1")
        require(1 <= self.tournament_size <= size, "evolution.tournament_size", self.tournament_size, f"1 to {size}")
        require(self.epochs is None or self.epochs >= 1, "evolution.epochs", self.epochs, "at least 1, or null")
        require(0 < self.held_out < 1, "evolution.held_out", self.held_out, "between 0 and 1")
        require(self.fresh_seeds >= 1, "evolution.fresh_seeds", self.fresh_seeds, "at least 1")


@dataclass
class Config:
    """A run."""

    seed: int = 0
    """of every random draw: weights, splits, clips, dropout, loss weights"""
    clip: ClipConfig = field(default_factory=ClipConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss_weights: LossWeights = field(default_factory=LossWeights)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    evolution: EvolutionConfig = field(default_factory=EvolutionConfig)

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "at least 0")
        merged = self.loss_weights.merged
        answered = len(self.model.streams) == 1 or merged > 0
        require(answered, "loss_weights.merged", merged, "over 0, since the merged head gives the model's answer")
        weighed = [*filter(_is_custom, BUILT_IN_STREAMS), *self.model.representations]
        unknown = ", ".join(name for name in self.loss_weights.custom if name not in weighed)
        require(not unknown, "loss_weights.custom", unknown, f"custom streams' names: {', '.join(weighed)}")

    def active_loss_weights(self) -> dict[str, float]:
        """The losses that this model has, with their weights (over 0 or not); a lone stream's own loss has weight 1."""
        heads = self.model.heads
        weights = {head: 1.0 if len(heads) == 1 else self.loss_weights.of(head) for head in heads}
        weights |= dict.fromkeys(self.model.merges, self.loss_weights.merged)
        if "semantic" in heads:
            weights["interm"] = self.loss_weights.interm
        return weights

    def lambdas(self) -> list[str]:
        """Those of equation 2's loss weights that this model has; all merged heads have one in common."""
        return [name for name in self.active_loss_weights() if name == "merged" or name not in self.model.merges]

    def trained_heads(self) -> list[str]:
        """The heads whose loss has weight, and which therefore have something to say."""
        return [head for head, weight in self.active_loss_weights().items() if head != "interm" and weight > 0]

    def segmenter_classes(self, of_teacher: int) -> int:
        """How many classes the segmenter learns of so many, if none is left out because it never occurs."""
        apart = len(self.data.segment_classes)
        return 1 + apart + 1 if apart else of_teacher  # the background, and all others as one

    @property
    def decoded_side(self) -> int:
        """The shorter side, px, of frames as they are decoded: the least at which the smallest crop is not enlarged.

        Frames that are smaller stay as they are. Converting a 1080p frame to RGB costs more than decoding it.
        """
        return math.ceil(self.clip.size * math.sqrt(self.data.crop_aspect / self.data.crop_scale[0]))

    @property
    def needs_labels(self) -> bool:
        """Whether training reads the teacher's label maps."""
        return self.active_loss_weights().get("interm", 0) > 0


def _is_custom(loss: str) -> bool:
    """Whether a loss is none of equation 2's five."""
    return loss not in (*STREAMS, "merged", "interm")
