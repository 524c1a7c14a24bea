"""The clips, and how training draws them from the videos."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from airstreams.config.limits import MOST_STEP
from airstreams.errors import InputError, require


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
    label_stride: int = 4
    """The step between the pixels of a clip's label maps that the segmentation loss uses, in px, also of other targets
    per pixel. 1: every pixel (equation 1)."""
    compact_classes: bool = False
    """Give the segmenter only the classes that occur in the training label maps."""
    deinterlace: Literal["auto", "off"] = "auto"
    """auto: deinterlace interlaced video, one frame of each frame (FFmpeg's bwdif). off: frames as stored. A model
    keeps this value."""
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
        require(1 <= self.label_stride <= 16, "data.label_stride", self.label_stride, "1 to 16 px")
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
