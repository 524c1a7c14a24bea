"""The optimiser, its schedule, and how training runs."""

import math
import re
from dataclasses import dataclass, field, replace
from typing import Literal

from airstreams.errors import require
from airstreams.machine import DEVICE_NAMES


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
