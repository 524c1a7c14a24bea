"""What a data set's files are like: lengths, sizes, frame rates, and how they are encoded.

`check.py` gathers the facts of each file while it opens it. Here they become a summary, and remarks on what slows
training down or makes videos differ in what they should not.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from airstreams.config import ClipConfig
from airstreams.data.clips import LARGEST_RATE_RATIO
from airstreams.data.listing import Video
from airstreams.data.pictures import ASPECT_TOLERANCE
from airstreams.data.video import VideoInfo
from airstreams.plural import count_of

_FAR_APART = 128  # frames between key frames: four times those that a clip of the default config spans
_UNEVEN = 0.5  # an interval between frames that differs from the usual one by more than this part of it is odd
_ODD_INTERVALS = 0.05  # of all intervals: with more of them, the frame times of a file are uneven
_PAUSE_S = 1.0  # a single interval of this length makes them uneven, too
_PAST_END_S = 0.5  # headers and annotations round: an end this much after the video's own is no mistake
_TO_SDR = "zscale=t=linear:npl=100,format=gbrpf32le,zscale=p=bt709,tonemap=hable,zscale=t=bt709:m=bt709:r=tv"


@dataclass(frozen=True)
class FileFacts:
    """What is known of a file that was opened.

    duration: s.
    frame_rate: mean frames per second.
    width, height: px, upright.
    key_frames_apart: the largest number of frames from one key frame to the next; see `video.Encoding`.
    """

    frames: int
    duration: float
    frame_rate: float
    width: int
    height: int
    codec: str
    key_frames_apart: int
    pixel_aspect: float
    interlaced: bool
    hdr: bool
    uneven: bool
    stopped: bool = False
    joined: bool = False

    @classmethod
    def of(cls, info: VideoInfo) -> "FileFacts":
        """The facts of an opened file."""
        return cls(
            frames=info.frames,
            duration=info.duration,
            frame_rate=info.fps,
            width=info.width,
            height=info.height,
            uneven=_is_uneven(info.times),
            stopped=info.stopped,
            joined=bool(info.joints),
            **asdict(info.encoding),
        )

    @property
    def key_frame_gap(self) -> float:
        """The longest time from one key frame to the next, s."""
        return self.key_frames_apart / self.frame_rate


@dataclass(frozen=True)
class Spread:
    """How far a number spreads over the files."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of at least one number."""
        return cls(min(values), median(values), max(values))


@dataclass(frozen=True)
class Remark:
    """A property of some files that is worth a change.

    key: its name in `--json`.
    title: the property.
    videos: the names of the videos of those files, one for each.
    advice: what the property does, and what to do, as sentences.
    """

    key: str
    title: str
    videos: tuple[str, ...]
    advice: str

    def sentence(self, total: int) -> str:
        """The remark on one line. `total`: number of all files."""
        counted = f"{len(self.videos)} of {count_of(total, 'file')}"
        return f"{self.title}: {counted}, such as {' and '.join(self.videos[:2])}. {self.advice}"


@dataclass(frozen=True)
class Statistics:
    """A summary of the good files of a data set.

    duration: of the videos or segments, s; all others are of files.
    key_frame_gap: the longest time between key frames of a file, s.
    resolutions, frame_rates, codecs: number of files, most frequent first. Frame rates are rounded.
    """

    files: int
    duration: Spread
    frames: Spread
    frame_rate: Spread
    width: Spread
    height: Spread
    key_frame_gap: Spread
    resolutions: dict[str, int]
    frame_rates: dict[str, int]
    codecs: dict[str, int]
    remarks: tuple[Remark, ...]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`. Each remark has its number of files and up to five examples."""
        content = asdict(self)
        content["remarks"] = {
            remark.key: {"files": len(remark.videos), "examples": list(remark.videos[:5])} for remark in self.remarks
        }
        return content


def summarise(videos: Sequence[Video], files: Mapping[Path, FileFacts]) -> Statistics | None:
    """Summarise good videos and their files; None if there are none."""
    named: dict[Path, str] = {}
    for video in videos:
        named.setdefault(video.path, video.name.partition("#t=")[0])
    facts = {path: files[path] for path in named}
    if not facts:
        return None

    def spread(value: Callable[[FileFacts], float]) -> Spread:
        return Spread.of([value(of_file) for of_file in facts.values()])

    def counted(value: Callable[[FileFacts], str]) -> dict[str, int]:
        return dict(Counter(map(value, facts.values())).most_common())

    return Statistics(
        files=len(facts),
        duration=Spread.of([_seconds(video, files[video.path]) for video in videos]),
        frames=spread(lambda of_file: of_file.frames),
        frame_rate=spread(lambda of_file: of_file.frame_rate),
        width=spread(lambda of_file: of_file.width),
        height=spread(lambda of_file: of_file.height),
        key_frame_gap=spread(lambda of_file: of_file.key_frame_gap),
        resolutions=counted(lambda of_file: f"{of_file.width}x{of_file.height}"),
        frame_rates=counted(lambda of_file: f"{of_file.frame_rate:.{0 if of_file.frame_rate >= 10 else 1}f}"),
        codecs=counted(lambda of_file: of_file.codec),
        remarks=(*_remarks_on_files(facts, named), *_remarks_on_segments(videos, files)),
    )


def _seconds(video: Video, facts: FileFacts) -> float:
    end = facts.duration if video.end is None else min(video.end, facts.duration)
    return end - (video.start or 0.0)


def _is_uneven(times: np.ndarray) -> bool:
    intervals = np.diff(times)
    if len(intervals) < 2:
        return False
    usual = float(np.median(intervals))
    odd = np.abs(intervals - usual) > _UNEVEN * usual
    return bool(odd.mean() > _ODD_INTERVALS or intervals[odd].max(initial=0.0) > _PAUSE_S)


def _remarks_on_files(facts: Mapping[Path, FileFacts], named: Mapping[Path, str]) -> list[Remark]:
    usual = median(of_file.frame_rate for of_file in facts.values())
    by_time = f"--clip.rate {usual / ClipConfig().stride:.3g}"
    farthest = max(of_file.key_frames_apart for of_file in facts.values())
    rules: list[tuple[str, str, Callable[[FileFacts], bool], str]] = [
        (
            "other_frame_rates",
            f"another frame rate than the usual {usual:.4g} per second",
            lambda of_file: max(of_file.frame_rate / usual, usual / of_file.frame_rate) > LARGEST_RATE_RATIO,
            f"Motion looks faster or slower in their clips. Train with {by_time} to take frames by time.",
        ),
        (
            "uneven_frame_times",
            "uneven frame times",
            lambda of_file: of_file.uneven,
            "If these times are right, motion is uneven in clips that take every n-th frame. Train with "
            f"{by_time}, which takes frames by time, unless your recipe has a clip.rate, as small has.",
        ),
        (
            "far_key_frames",
            "key frames far apart, or no seeking",
            lambda of_file: of_file.key_frames_apart >= _FAR_APART,
            f"A clip costs up to {farthest} more decoded frames, half as many on average. Train with --data.cache, or "
            f"convert them: {_ffmpeg()}",
        ),
        (
            "stopped",
            "cut, or recorded until the recorder was stopped",
            lambda of_file: of_file.stopped,
            "Their frames up to there are used. Get whole files if these were copied or downloaded.",
        ),
        (
            "joined",
            "several recordings in one file",
            lambda of_file: of_file.joined,
            "No clip crosses a joint. Give each recording a file of its own if their labels differ.",
        ),
        (
            "interlaced",
            "interlaced",
            lambda of_file: of_file.interlaced,
            "They are deinterlaced when they are read (data.deinterlace). This decodes up to three times the frames. "
            f"To save the time, convert them: {_ffmpeg('bwdif=mode=send_frame')}",
        ),
        (
            "hdr",
            "HDR",
            lambda of_file: of_file.hdr,
            "They are read as usual video: what is brighter than white paper is compressed. For other colours, convert "
            f"them: {_ffmpeg(_TO_SDR)}",
        ),
        (
            "non_square_pixels",
            "pixels that are not square",
            lambda of_file: abs(of_file.pixel_aspect - 1) > ASPECT_TOLERANCE,
            "Their pictures are stretched to square pixels, as a player shows them. Label maps that another program "
            "made may be for the pictures as stored. Look at them with `airstreams labels`.",
        ),
    ]
    found = [
        Remark(key, title, tuple(named[path] for path, of_file in facts.items() if applies(of_file)), advice)
        for key, title, applies, advice in rules
    ]
    return [remark for remark in found if remark.videos]


def _ffmpeg(filters: str = "") -> str:
    """The command that encodes a file again."""
    chain = f"-vf '{filters}' " if filters else ""
    return f"ffmpeg -i IN {chain}-c:v libx264 -crf 18 -g 30 -pix_fmt yuv420p OUT.mp4"


def _remarks_on_segments(videos: Sequence[Video], files: Mapping[Path, FileFacts]) -> list[Remark]:
    past = [v.name for v in videos if v.end is not None and v.end > files[v.path].duration + _PAST_END_S]
    advice = "These segments end with the video. Give `end` in seconds from the first frame."
    return [Remark("ends_past_the_video", "an end after the video's own", tuple(past), advice)] if past else []
