"""All settings of a run: one tree of typed dataclasses.

A recipe is a YAML file with some of these keys; the rest keep their defaults. `airstreams train --help` prints the text
below each key.

Sections and tables refer to the paper, *Adaptive Intermediate Representations for Video Understanding*. It gives no
clip size, augmentation, optimiser or number of views. So a value without a section is our own choice.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from airstreams.errors import InputError, did_you_mean, require
from airstreams.machine import DEVICE_NAMES
from airstreams.towers import BACKBONES, LEAST_FRAMES, OTHER_BACKBONES, BackboneName, Block

STREAMS = ("rgb", "flow", "semantic")

SUPERVISED = ("semantic",)
"""The built-in streams that learn from a teacher. `--labels` and a single number for `loss_weights.interm` are for the
first."""

ANSWER = "answer"
"""The name of the mean of several heads, where scores and metrics are by head."""

BUILT_IN_STREAMS = (*STREAMS, "rgb2", "rgb3")
"""rgb2 and rgb3 see the clip as rgb does, with towers of their own. They show what an ensemble of towers gains."""

_INTERM, _MERGED_AFTER = "interm", "merged_after_"

FULL_SIZE = 512
"""The channels at the end of a full-size tower: those of the default one at `model.width` 1."""


# Limits far above any use. A stranger's model.json must not make a program compute or allocate without end.
MOST_STEP = 1_000_000
MOST_PIXELS = 2**31  # of all views of a video together
MOST_LAYERS = 2000  # of a tower, with repetitions
MOST_ITERATIONS = 100_000  # of the flow, over all levels and warps


@dataclass
class ClipConfig:
    """The clips. A saved model keeps these values, so `predict` and `evaluate` use clips as in training."""

    frames: int = 16
    """The number of frames in a clip."""
    stride: int = 2
    """The step between frames of a clip, in frames of the video."""
    rate: float | None = None
    """Frames per second in a clip instead of a stride, for videos with different frame rates. null: use the stride."""
    size: int = 112
    """The height and width of a clip, in px."""

    def __post_init__(self) -> None:
        require(self.frames >= 1, "clip.frames", self.frames, "at least 1")
        require(1 <= self.stride <= MOST_STEP, "clip.stride", self.stride, f"1 to {MOST_STEP}")
        rate = self.rate
        is_rate = rate is None or 1 / MOST_STEP <= rate <= MOST_STEP
        require(is_rate, "clip.rate", rate, f"a rate over 0 and up to {MOST_STEP} frames per second, or null")
        require(self.size >= 64, "clip.size", self.size, "at least 64 px")


@dataclass
class DataConfig:
    """How training draws clips. Crop, flip and colour are the same for all frames of a clip."""

    crop_scale: list[float] = field(default_factory=lambda: [0.5, 1.0])
    """The smallest and largest area of a crop, as a fraction of the largest square."""
    crop_aspect: float = 4 / 3
    """The largest ratio of a crop's width to its height. The smallest is its inverse."""
    flip: bool = True
    """Mirror half of the clips. Turn it off if classes differ in left and right."""
    colour: float = 0.3
    """Change brightness, contrast and saturation by up to this fraction."""
    balanced: bool = False
    """Draw every class equally often. A video with several labels is drawn for each of them."""
    unlabelled_share: float = 0.5
    """The fraction of unlabelled clips in a batch, if DATA has unlabelled videos and a stream learns from a teacher."""
    group_by: str | None = None
    """Which videos stay in one split: auto (they look like one recording), or a regular expression. Its first group, or
    else the whole match, in a video's name without suffix is the group. A video without a match stays alone. null: the
    data's own groups."""
    val_fraction: float = 0.1
    """The fraction of the videos for validation, if the data has no splits."""
    test_fraction: float = 0.2
    """The fraction of the videos for testing, if the data has no splits."""
    workers: int = 2
    """The number of processes that decode videos."""
    segment_classes: list[str] = field(default_factory=list)
    """The teacher's classes to keep. All others become one class. Empty: keep all."""
    compact_classes: bool = False
    """Give the segmenter only the classes that occur in the training label maps."""
    patience: float = 300.0
    """How long to wait for a clip, in s, before the run ends with an error, as when a network disk hangs."""
    cache: str | None = None
    """A folder for decoded frames, which later epochs and runs read. null: decode every time."""
    cache_gb: float = 50.0
    """The largest size of the cache, in GB (10^9 bytes). Other frames are decoded every time."""

    def __post_init__(self) -> None:
        low, high = self.crop_scale if len(self.crop_scale) == 2 else (0.0, 0.0)
        require(0 < low <= high <= 1, "data.crop_scale", self.crop_scale, "two shares with 0 < low <= high <= 1")
        require(1 <= self.crop_aspect <= 100, "data.crop_aspect", self.crop_aspect, "1 to 100")
        require(0 <= self.colour < 1, "data.colour", self.colour, "0 to below 1")
        require(0 <= self.unlabelled_share < 1, "data.unlabelled_share", self.unlabelled_share, "0 to below 1")
        require(self.workers >= 0, "data.workers", self.workers, "at least 0")
        require(self.patience > 0, "data.patience", self.patience, "over 0 s")
        require(self.cache_gb > 0, "data.cache_gb", self.cache_gb, "over 0")
        for name in ("val_fraction", "test_fraction"):
            require(0 <= getattr(self, name) < 1, f"data.{name}", getattr(self, name), "0 to below 1")
        require(
            self.val_fraction + self.test_fraction < 1,
            "data.val_fraction + data.test_fraction",
            self.val_fraction + self.test_fraction,
            "below 1, so that something is left to train on",
        )
        if self.group_by is not None:
            try:
                re.compile(self.group_by)
            except re.error as error:
                wrong = f"auto or a regular expression ({error})"
                raise InputError(f"data.group_by: got {self.group_by!r}, expected {wrong}") from error
        if self.cache is not None:  # a run resumed from another working folder must find it
            self.cache = str(Path(self.cache).expanduser().absolute())


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
    """Also learn the kernels of gradients and divergence (Piergiovanni and Ryoo, 2019). Takes 20 times the memory."""
    scale: float | None = None
    """Clip the flow at this many px, and divide it by them: what published weights for flow expect (I3D: 20). --init
    sets it for them. null: the tower normalises each channel."""

    def __post_init__(self) -> None:
        require(self.iterations >= 1, "model.flow.iterations", self.iterations, "at least 1")
        require(self.levels >= 1, "model.flow.levels", self.levels, "at least 1")
        scale = self.scale
        require(scale is None or 0 < scale < math.inf, "model.flow.scale", scale, "over 0 px and finite, or null")
        least = 1 if self.levels > 1 else 0
        require(self.warps >= least, "model.flow.warps", self.warps, f"at least {least} with {self.levels} level(s)")
        steps = self.iterations * self.levels * max(1, self.warps)
        expected = f"at most {MOST_ITERATIONS} over all levels and warps"
        require(self.levels <= 32 and steps <= MOST_ITERATIONS, "model.flow.iterations", steps, expected)


@dataclass
class ModelConfig:
    """The network (Figures 2 and 7)."""

    streams: list[str] = field(default_factory=lambda: list(STREAMS))
    """The streams: rgb, flow, semantic, custom streams. rgb2, rgb3: more towers that see RGB."""
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
    """Representations that action losses do not reach: flow, semantic (Table 2, left column), and custom streams that
    learn from a teacher."""
    dropout: float = 0.5
    """The probability of dropout before each classifier."""

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
            free = free and stream not in (*BUILT_IN_STREAMS, "interm", "total")
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
        learnt = [stream for stream in STREAMS if stream != "rgb"]
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
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "0 to below 1")

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
        merges = {f"{_MERGED_AFTER}{level}": level for level in others} | {"merged": first}
        return merges if len(self.streams) > 1 else {}

    @property
    def heads(self) -> list[str]:
        """All heads: one of each stream, and one of each merge. With one stream there is no merge."""
        return [*self.streams, *self.merges]


@dataclass
class LossWeights:
    """The weights of the losses, lambda in equation 2. The defaults are those of section 4.2.3."""

    rgb: float = 1.0
    """The weight of the rgb tower's action loss."""
    flow: float = 0.0
    """The weight of the flow tower's action loss."""
    semantic: float = 0.0
    """The weight of the semantic tower's action loss."""
    merged: float = 1.0
    """The weight of the action loss of every merge."""
    interm: float | dict[str, float] = 1.0
    """The weights of the losses on the teachers' targets, by stream. A stream without an entry: 1. A number: semantic's
    weight."""
    custom: dict[str, float] = field(default_factory=dict)
    """The weights of the action losses of custom streams, rgb2 and rgb3. A missing name: 0."""
    merged_after: dict[int, float] = field(default_factory=dict)
    """The weights of further merges, by number of blocks, such as {5: 0.5}. A merge without an entry: `merged`."""

    def __post_init__(self) -> None:
        values: dict[str, float] = {stream: getattr(self, stream) for stream in (*STREAMS, "merged")}
        if isinstance(self.interm, dict):
            values |= {f"interm.{name}": value for name, value in self.interm.items()}
        else:
            values["interm"] = self.interm
        values |= {f"custom.{name}": value for name, value in self.custom.items()}
        values |= {f"merged_after.{level}": value for level, value in self.merged_after.items()}
        for name, value in values.items():
            require(0 <= value < math.inf, f"loss_weights.{name}", value, "at least 0 and finite")

    @property
    def own_losses(self) -> dict[str, float]:
        """The weights of the losses on the teachers' targets that the config names, by stream."""
        return self.interm if isinstance(self.interm, dict) else {SUPERVISED[0]: self.interm}

    def of(self, loss: str) -> float:
        """The weight of a loss by its name. For a custom stream's action loss without a weight: 0."""
        if (stream := stream_of(loss)) is not None:
            return self.own_losses.get(stream, 1.0)
        if loss.startswith(_MERGED_AFTER):
            return self.merged_after.get(int(loss.removeprefix(_MERGED_AFTER)), self.merged)
        return self.custom.get(loss, 0.0) if _is_custom(loss) else getattr(self, loss)

    def updated(self, weights: Mapping[str, float]) -> "LossWeights":
        """These weights, with new ones for some losses, by name."""
        own = {stream: weight for loss, weight in weights.items() if (stream := stream_of(loss)) is not None}
        levels = {loss: int(loss.removeprefix(_MERGED_AFTER)) for loss in weights if loss.startswith(_MERGED_AFTER)}
        heads = {loss: weight for loss, weight in weights.items() if stream_of(loss) is None and loss not in levels}
        interm: float | dict[str, float] = self.interm
        if own:
            interm = self.own_losses | own
            interm = interm[SUPERVISED[0]] if interm.keys() == {SUPERVISED[0]} else interm
        return replace(
            self,
            **{name: weight for name, weight in heads.items() if not _is_custom(name)},
            interm=interm,
            custom=self.custom | {name: weight for name, weight in heads.items() if _is_custom(name)},
            merged_after=self.merged_after | {level: weights[loss] for loss, level in levels.items()},
        )


@dataclass
class TrainingConfig:
    """The optimiser, its schedule, and how training runs."""

    epochs: int = 60
    """Passes over the training videos."""
    min_steps: int = 0
    """The least number of steps. With few videos, training takes more epochs than `epochs` to reach it."""
    batch_size: int = 16
    """The clips of one optimiser step, over all processes and accumulated batches."""
    accumulate: int = 1
    """The number of batches that one step accumulates. More take less memory."""
    checkpointing: bool = False
    """Keep only the inputs of the towers' blocks, and compute the rest again for the gradients: less memory, more
    time."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """The optimiser. sgd has a Nesterov momentum of 0.9."""
    lr: float = 1e-3
    """The peak learning rate."""
    lr_taken: float | None = None
    """The peak learning rate of layers whose weights --init took. null: lr."""
    hold_epochs: float = 0.0
    """Epochs at the start in which the layers that --init took keep their weights."""
    taken_norms: Literal["learnt", "fixed"] = "learnt"
    """Batch statistics of the layers that --init took: follow the new videos, or stay as taken."""
    lr_factors: dict[str, float] = field(default_factory=dict)
    """Factors on the learning rate of single streams: of their representation, early and late tower. With `lr_taken`
    only of the layers that --init took."""
    weight_decay: float = 0.05
    """Weight decay, except on norms, biases and the flow's parameters."""
    warmup_epochs: float = 2.0
    """Epochs of linear warm-up from 0. Then the learning rate falls to 0 by a cosine."""
    clip_norm: float = 5.0
    """Scale all gradients down to this total norm. 0: no clipping."""
    label_smoothing: float = 0.1
    """Label smoothing of the softmax cross-entropy (section 3.2: none)."""
    freeze: list[str] = field(default_factory=list)
    """Parts that are not trained, by the names of `airstreams info`."""
    sync_batch_norm: bool = False
    """Normalise over the clips of all processes, not of each alone."""
    deterministic: bool = False
    """Repeatable numbers on CUDA, at the cost of speed. Not for a learnt flow of several warps. CPUs always repeat."""
    cuda_graph: bool = True
    """On CUDA: run a step as one CUDA graph. Off with accumulate, checkpointing, custom streams or several
    processes."""
    validate_every: int = 1
    """Epochs between validations. The last epoch is always validated."""
    save_every: int = 500
    """Steps between saved states. The end of an epoch is saved too, at most once a minute."""
    keep: int = 2
    """The number of saved states to keep during training. A finished run keeps one. 0: it keeps none."""
    device: str = "auto"
    """The device: cpu, cuda, cuda:1, mps (Apple). auto: CUDA if there is a card. `--device` sets it too."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """The numbers that networks compute with. auto: bfloat16 where the device computes in it, on CPUs only for
    full-size towers. `--precision` sets it too."""

    def __post_init__(self) -> None:
        named = re.fullmatch(DEVICE_NAMES, self.device) is not None
        require(named, "training.device", self.device, "auto, cpu, cuda, cuda:N or mps")
        require(self.epochs >= 1, "training.epochs", self.epochs, "at least 1")
        require(self.min_steps >= 0, "training.min_steps", self.min_steps, "at least 0")
        require(self.batch_size >= 1, "training.batch_size", self.batch_size, "at least 1")
        accumulate = self.accumulate
        fits = accumulate >= 1 and self.batch_size % accumulate == 0
        require(fits, "training.accumulate", accumulate, f"a divisor of training.batch_size, {self.batch_size}")
        require(0 < self.lr < math.inf, "training.lr", self.lr, "over 0 and finite")
        lr_taken = self.lr_taken
        require(lr_taken is None or 0 <= lr_taken < math.inf, "training.lr_taken", lr_taken, "at least 0, or null")
        for stream, factor in self.lr_factors.items():
            require(0 <= factor < math.inf, f"training.lr_factors.{stream}", factor, "at least 0 and finite")
        require(self.hold_epochs >= 0, "training.hold_epochs", self.hold_epochs, "at least 0")
        require(self.weight_decay >= 0, "training.weight_decay", self.weight_decay, "at least 0")
        require(self.warmup_epochs >= 0, "training.warmup_epochs", self.warmup_epochs, "at least 0")
        require(self.clip_norm >= 0, "training.clip_norm", self.clip_norm, "at least 0 (0: no clipping)")
        require(0 <= self.label_smoothing < 1, "training.label_smoothing", self.label_smoothing, "0 to below 1")
        require(self.validate_every >= 1, "training.validate_every", self.validate_every, "at least 1")
        require(self.save_every >= 1, "training.save_every", self.save_every, "at least 1")
        require(self.keep >= 0, "training.keep", self.keep, "at least 0")

    def for_videos(self, videos: int) -> "TrainingConfig":
        """This training with as many epochs as `min_steps` needs over so many training videos."""
        steps_per_epoch = max(1, videos // self.batch_size)
        return replace(self, epochs=max(self.epochs, math.ceil(self.min_steps / steps_per_epoch)))


LEAST_WINDOW = 0.01
"""The shortest window, in s."""


@dataclass
class EvaluationConfig:
    """The views of a video, whose scores are averaged. A saved model keeps these values."""

    views: int = 3
    """Clips per video, evenly spaced."""
    crops: int = 1
    """Square crops per clip, evenly spaced along the longer side. 1: the centre."""
    window: float = 10.0
    """The length of a window, in s. `predict` scores videos longer than two of these in windows."""

    def __post_init__(self) -> None:
        require(self.views >= 1, "evaluation.views", self.views, "at least 1")
        require(self.crops >= 1, "evaluation.crops", self.crops, "at least 1")
        least, most = LEAST_WINDOW, MOST_STEP
        require(least <= self.window <= most, "evaluation.window", self.window, f"{least} to {most} s")


@dataclass
class EvolutionConfig:
    """The search of `airstreams evolve` for loss weights (section 3.3). Training ignores it."""

    population_size: int = 10
    """The number of weightings in the population."""
    tournament_size: int = 3
    """The weightings drawn from the population. The best of them becomes the parent."""
    dies: Literal["worst", "oldest"] = "worst"
    """Which weighting leaves the population. oldest: regularised evolution (Real et al. 2019)."""
    epochs: int | None = None
    """The epochs of a trial. null: training.epochs."""
    held_out: float = 0.2
    """The fraction of the training videos that score the trials."""
    pruner: Literal["none", "median", "halving"] = "none"
    """Optuna's pruner, which stops trials that fall behind."""
    fresh_seeds: int = 3
    """The trainings that compare the winner with the references at the end."""
    fixed: list[str] = field(default_factory=list)
    """Losses whose weight is not searched, by the names in metrics.jsonl. They keep that of loss_weights."""

    def __post_init__(self) -> None:
        size = self.population_size
        require(size >= 1, "evolution.population_size", size, "at least 1")
        require(1 <= self.tournament_size <= size, "evolution.tournament_size", self.tournament_size, f"1 to {size}")
        require(self.epochs is None or self.epochs >= 1, "evolution.epochs", self.epochs, "at least 1, or null")
        require(0 < self.held_out < 1, "evolution.held_out", self.held_out, "between 0 and 1")
        require(self.fresh_seeds >= 1, "evolution.fresh_seeds", self.fresh_seeds, "at least 1")


@dataclass
class Config:
    """All settings of a run: its clips, data, model, losses, training, evaluation and search.

    A wrong value raises `InputError`, which names the key. `load_config` reads a recipe, and `save_config` writes one.
    """

    seed: int = 0
    """The seed of all random draws: weights, splits, clips, dropout, loss weights."""
    clip: ClipConfig = field(default_factory=ClipConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss_weights: LossWeights = field(default_factory=LossWeights)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    evolution: EvolutionConfig = field(default_factory=EvolutionConfig)

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, "seed", self.seed, "0 to below 2^63")
        clip, evaluation = self.clip, self.evaluation
        pixels = evaluation.views * evaluation.crops * clip.frames * clip.size**2
        expected = f"at most {MOST_PIXELS} pixels, counted as views x crops x clip.frames x clip.size x clip.size"
        require(pixels <= MOST_PIXELS, "evaluation.views", f"{pixels} pixels of a video", expected)
        for name in {self.model.backbone_of(stream) for stream in (*self.model.streams, None)}:
            least = LEAST_FRAMES.get(name, 1)
            require(self.clip.frames >= least, "clip.frames", self.clip.frames, f"at least {least} with {name}")
        if len(self.model.streams) > 1 and not self.loss_weights.merged:
            self._check_without_merge()
        known = [*BUILT_IN_STREAMS, *self.model.representations]
        others = ", ".join(name for name in self.training.lr_factors if name not in known)
        require(not others, "training.lr_factors", others, f"some of the streams {', '.join(known)}")
        custom = [*filter(_is_custom, BUILT_IN_STREAMS), *self.model.representations]
        unknown = ", ".join(name for name in self.loss_weights.custom if name not in custom)
        require(not unknown, "loss_weights.custom", unknown, f"custom streams' names: {', '.join(custom)}")
        taught = [*SUPERVISED, *self.model.representations]
        unknown = ", ".join(name for name in self.loss_weights.own_losses if name not in taught)
        require(not unknown, "loss_weights.interm", unknown, f"streams that learn from a teacher: {', '.join(taught)}")
        levels = self.model.merge_levels[1:]
        unknown = ", ".join(str(level) for level in self.loss_weights.merged_after if level not in levels)
        others = f"levels of model.merge_levels after the first: {', '.join(map(str, levels)) or 'there are none'}"
        require(not unknown, "loss_weights.merged_after", unknown, others)

    def _check_without_merge(self) -> None:
        """Some head must give the answer, and some head must train each tower."""
        expected = "over 0, because the merged head gives the answer"
        require(self.model.answer == "mean", "loss_weights.merged", self.loss_weights.merged, expected)
        for stream in self.model.streams:
            weight, key = self.loss_weights.of(stream), f"custom.{stream}" if _is_custom(stream) else stream
            expected = "over 0, because without the merged head only its own head trains its tower"
            require(weight > 0, f"loss_weights.{key}", weight, expected)

    def active_loss_weights(self) -> dict[str, float]:
        """The weights of the losses of this model, also those that are 0. The action loss of a lone stream has 1."""
        heads = self.model.heads
        weights = {head: 1.0 if len(heads) == 1 else self.loss_weights.of(head) for head in heads}
        return weights | {own_loss(stream): self.loss_weights.of(own_loss(stream)) for stream in self.supervised}

    @property
    def supervised(self) -> list[str]:
        """The streams with a loss on a teacher's targets, also those whose loss has the weight 0."""
        named = self.loss_weights.own_losses
        return [stream for stream in self.model.streams if stream in SUPERVISED or stream in named]

    @property
    def taught(self) -> list[str]:
        """The streams that learn from a teacher's targets. Training needs these targets."""
        return [stream for stream in self.supervised if self.loss_weights.of(own_loss(stream)) > 0]

    def lambdas(self) -> list[str]:
        """The names of this model's weights in equation 2."""
        return list(self.active_loss_weights())

    def searched_lambdas(self) -> list[str]:
        """The weights that `airstreams evolve` searches."""
        return [name for name in self.lambdas() if name not in self.evolution.fixed]

    def trained_heads(self) -> list[str]:
        """The heads whose loss has a weight over 0. The others keep their random weights."""
        weights = self.active_loss_weights()
        return [head for head in self.model.heads if weights[head] > 0]

    @property
    def answer_heads(self) -> list[str]:
        """The heads that give the model's answer: that of their mean logits."""
        return self.trained_heads() if self.model.answer == "mean" else self.model.heads[-1:]

    @property
    def answer(self) -> str:
        """The answer's name where scores and metrics are by head: its head's, or `ANSWER` for the mean of several."""
        first, *others = self.answer_heads
        return ANSWER if others else first

    def segmenter_classes(self, of_teacher: int) -> int:
        """The number of the segmenter's classes for a teacher with so many, without `data.compact_classes`."""
        kept = len(self.data.segment_classes)
        return 1 + kept + 1 if kept else of_teacher  # the background, and one class for all others

    @property
    def decoded_side(self) -> int:
        """The shorter side of decoded frames, in px: the smallest at which no crop has to be enlarged.

        Smaller frames keep their size. Converting a 1080p frame to RGB costs more than decoding it.
        """
        return math.ceil(self.clip.size * math.sqrt(self.data.crop_aspect / self.data.crop_scale[0]))

    @property
    def needs_labels(self) -> bool:
        """Whether training needs the targets that `--labels` names."""
        return SUPERVISED[0] in self.taught


def targets_option(stream: str) -> str:
    """What a call adds to give a stream its teacher's targets."""
    return "--labels LABELS" if stream == SUPERVISED[0] else f"--targets {stream}=FOLDER"


def own_loss(stream: str) -> str:
    """The name of the loss of a stream on its teacher's targets: `interm.parts`. Of semantic: `interm`, as in 0.1."""
    return _INTERM if stream == SUPERVISED[0] else f"{_INTERM}.{stream}"


def stream_of(loss: str) -> str | None:
    """The stream whose loss on its teacher's targets has this name; None: it is a head's action loss."""
    name, _, stream = loss.partition(".")
    return (stream or SUPERVISED[0]) if name == _INTERM else None


def _is_custom(loss: str) -> bool:
    """Whether a head's action loss is not one of the four of equation 2."""
    return loss not in (*STREAMS, "merged")
