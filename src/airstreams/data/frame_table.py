"""What is known of a file without its pictures: how many frames it has, their times, and how each is found.

See `video.py` for the two ways to find a frame.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from airstreams.data.containers import MATROSKA, MP4, Ending
from airstreams.data.decoding import Decoder
from airstreams.data.opening import find_ending, opened, version_of
from airstreams.data.pictures import HDR_TRANSFERS, Orientation, square_width
from airstreams.errors import VideoError

_CODECS_WITH_ONE_PACKET_A_FRAME = {"h264", "hevc", "vp9", "av1", "mjpeg"}
_CODECS_WITH_FIELDS = {"h264", "hevc"}  # in interlaced video, a packet may hold one of a frame's two fields
# An interval of so many usual ones has a frame missing. Film in video (telecine) has intervals of 1 and 1.5.
_GAP = 1.6
_REORDERED = 3  # usual intervals: pictures of a codec with B-frames may wait for a later one as long, or longer
_FEW = 8  # frames: with fewer, their usual interval is unknown


@dataclass(frozen=True)
class Encoding:
    """How a file stores its frames.

    Attributes:
        codec: FFmpeg's name.
        key_frames_apart: largest number of frames from one key frame to the next, or to the end; all of them where
            reading starts at the beginning of the file. As many are decoded, at most, to read one frame.
        pixel_aspect: width of a pixel / its height, of the upright picture. Frames are stretched to square pixels.
        interlaced: whether a frame is made of two fields. Only the first frame is looked at where frames are found by
            time, else all.
        hdr: whether the brightness is stored as PQ or HLG.
    """

    codec: str
    key_frames_apart: int
    pixel_aspect: float
    interlaced: bool
    hdr: bool


@dataclass(frozen=True, eq=False)
class VideoInfo:
    """A video's size and times.

    Attributes:
        frames: number of frames that can be read.
        width, height: px, of the upright picture (after rotation) with square pixels.
        times: float64 (frames,), s from the first frame, in presentation order; read-only.
        encoding: how the file stores them.
        stopped: whether the file ends within a picture, or without some before its last ones, as a recording that was
            stopped. The frames up to there are counted.
        joints: indices of the first frames of recordings that were joined to others. Times go on across a joint.
    """

    frames: int
    width: int
    height: int
    times: np.ndarray
    encoding: Encoding
    stopped: bool = False
    joints: tuple[int, ...] = ()

    @property
    def fps(self) -> float:
        """Mean frames per second; 1 for a video of a single frame."""
        return float((self.frames - 1) / self.times[-1]) if self.frames > 1 else 1.0

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last. The last frame is assumed to last one mean interval."""
        return float(self.times[-1] + 1 / self.fps)


@dataclass(frozen=True, eq=False)
class FrameTable:
    """What is needed to find the frames of one file. Its width is that of a picture with square pixels."""

    info: VideoInfo
    stored_width: int
    stored_height: int
    orientation: Orientation
    pts: np.ndarray | None  # int64 (frames,), ascending; None: frames are found by counting
    keyframes: np.ndarray  # the indices that one can seek to, ascending
    ending: Ending


Version = tuple[str, int, int]
"""A file's path, modification time in ns and size in bytes."""

_counted: dict[Version, FrameTable] = {}  # to make one again takes as long as decoding the file


@dataclass(frozen=True, eq=False)
class _Times:
    """When a file shows its frames: `seconds` from the first; the others as in `FrameTable` and `VideoInfo`."""

    seconds: np.ndarray
    pts: np.ndarray | None = None
    keyframes: np.ndarray | None = None
    joints: tuple[int, ...] = ()
    stopped: bool = False


def frame_table(path: str | os.PathLike[str]) -> FrameTable:
    """The table of a file. It is remembered until the file changes. VideoError: the file cannot be read."""
    return table_of_version(*version_of(path))


def counted_tables() -> dict[Version, FrameTable]:
    """The tables that were made by decoding files, since nothing was forgotten."""
    return dict(_counted)


def remember_tables(tables: Mapping[Version, FrameTable]) -> None:
    """Take tables that another process, or an earlier one, made by decoding files."""
    _counted.update(tables)


def forget_tables() -> None:
    """Forget the tables of all files."""
    table_of_version.cache_clear()
    _counted.clear()


@lru_cache(maxsize=8192)
def table_of_version(path: str, mtime_ns: int, size: int) -> FrameTable:
    """`frame_table` of a version of a file."""
    if (known := _counted.get((path, mtime_ns, size))) is not None:
        return known
    with opened(path) as (container, stream):
        ending = find_ending(path, container, stream)
        codec = stream.codec_context.codec.canonical_name
        timed = container.format.name in (MP4, MATROSKA) and codec in _CODECS_WITH_ONE_PACKET_A_FRAME
        table = _table_by_time(container, stream, ending) if timed and ending.end is None else None
    if timed and ending.end is not None:
        with opened(path, ending.end) as (container, stream):
            table = _table_by_time(container, stream, ending)
    may_have_fields = timed and codec in _CODECS_WITH_FIELDS
    if table is None or (may_have_fields and table.info.encoding.interlaced):
        with opened(path, ending.end) as (container, stream):
            table = _table_by_counting(container, stream, ending, may_have_fields)
        _counted[path, mtime_ns, size] = table
    return table


def _table_by_time(container: InputContainer, stream: VideoStream, ending: Ending) -> FrameTable | None:
    """The table by the packets' times; None where a time is missing or occurs twice."""
    shown: list[int | None] = []
    keys: list[int | None] = []
    first: VideoFrame | None = None
    for packet in container.demux(stream):
        if packet.is_keyframe and packet.size:
            keys.append(packet.pts)
        if keys and first is None:
            first = next(iter(packet.decode()), None)
        # Packets marked as discarded are outside the edit list. They are decoded for other frames, but not shown.
        if packet.size and not packet.is_discard:
            shown.append(packet.pts)
    if not keys or None in keys or None in shown or len(set(shown)) < len(shown):
        return None
    pts = np.array(sorted(time for time in shown if time >= keys[0]), np.int64)  # type: ignore[operator, type-var]
    if not len(pts) or first is None:
        raise VideoError("unreadable: no frame can be decoded")
    found = len(pts)
    if ending.open_ended:
        in_order = np.array(shown, np.int64)
        pts = pts[: _certain_frames(pts, int((np.maximum.accumulate(in_order) - in_order).max()), stream)]
    times = (pts - pts[0]) * float(stream.time_base or 0)
    keyframes = np.flatnonzero(np.isin(pts, np.array(keys, np.int64)))
    return _make_table(
        stream, first, _Times(times, pts, keyframes, stopped=len(pts) < found), ending, bool(first.interlaced_frame)
    )


def _table_by_counting(
    container: InputContainer, stream: VideoStream, ending: Ending, may_have_fields: bool
) -> FrameTable:
    """The table by decoding the file. Where packets may be fields, one can seek to the frames that it found."""
    decoder = Decoder(container, stream, ending)
    pts: list[int | None] = []
    parts: list[int] = []
    first: VideoFrame | None = None
    interlaced = False
    for frame in decoder:
        first = first or frame
        interlaced = interlaced or bool(frame.interlaced_frame)
        pts.append(frame.pts)
        parts.append(decoder.part)
    if first is None:
        raise VideoError("unreadable: no frame can be decoded")
    starts = [index for index, (before, part) in enumerate(pairwise(parts), start=1) if part > before]
    found = _known_times(pts, starts, decoder.lag, stream, ending)
    if found is None:
        rate = float(stream.guessed_rate or 0)
        if not rate:
            raise VideoError("unreadable: no times and no frame rate")
        frames = max(1, len(pts) - decoder.held_back) if ending.stopped else len(pts)
        found = _Times(np.arange(frames) / rate, joints=tuple(starts), stopped=frames < len(pts))
    elif may_have_fields and first.interlaced_frame:
        ascending = np.array(pts[: len(found.seconds)], np.int64)
        keyframes = np.flatnonzero(np.isin(ascending, np.array(decoder.key_pts, np.int64)))
        found = replace(found, pts=ascending, keyframes=keyframes)
    return _make_table(stream, first, found, ending, interlaced)


def _known_times(
    pts: Sequence[int | None], starts: Sequence[int], lag: int, stream: VideoStream, ending: Ending
) -> _Times | None:
    """The times of frames in presentation order; None where some are unknown or not ascending.

    Args:
        pts: of each frame.
        starts: indices of frames that follow a joint. The times of each recording begin anew.
        lag: see `Decoder`.
        stream: of these frames.
        ending: of the file.
    """
    known = np.array([time for time in pts if time is not None], np.int64)
    intervals = np.diff(known)
    joints = [start for start in starts if start < len(known)]
    usual = (
        float(np.median(np.delete(intervals, np.array(joints, np.int64) - 1))) if len(known) > len(joints) + 1 else 1
    )
    # Segments of one recording go on without a gap: such a joint is none.
    joints = [start for start in joints if not 0 < intervals[start - 1] < _GAP * usual]
    intervals = intervals.astype(np.float64)
    intervals[np.array(joints, np.int64) - 1] = usual
    if len(known) < len(pts) or (intervals <= 0).any():
        return None
    frames = len(pts)
    if ending.open_ended:
        last = joints[-1] if joints else 0
        frames = last + _certain_frames(known[last:], lag, stream)
    ticks = np.concatenate([np.zeros(1), np.cumsum(intervals)])[:frames]
    times = ticks * float(stream.time_base or 0)
    return _Times(times, joints=tuple(joints), stopped=frames < len(pts))


def _certain_frames(pts: np.ndarray, lag: int, stream: VideoStream) -> int:
    """The number of frames before which none can be missing, in a file that may lack pictures at its end.

    A picture is stored before those that are shown earlier but depend on it (B-frames). Where the file ends between
    them, its last frames have a gap in their times.

    Args:
        pts: int64 (frames,), ascending.
        lag: see `Decoder`.
        stream: of these frames.
    """
    if len(pts) < 2:
        return len(pts)
    intervals = np.diff(pts)
    usual = float(np.median(intervals))
    if len(pts) < _FEW and stream.guessed_rate and stream.time_base:
        usual = min(usual, float(1 / (stream.guessed_rate * stream.time_base)))
    reach = max(float(lag), _REORDERED * usual if stream.codec_context.has_b_frames else 0.0)
    late = pts[1:] >= pts[-1] - reach
    gaps = np.flatnonzero(late & (intervals > _GAP * usual)) if reach else np.empty(0)
    return int(gaps[0]) + 1 if len(gaps) else len(pts)


def _make_table(
    stream: VideoStream,
    first: VideoFrame,
    found: _Times,
    ending: Ending,
    interlaced: bool,
) -> FrameTable:
    keyframes = np.zeros(1, np.int64) if found.keyframes is None else found.keyframes
    orientation = Orientation.of(first)
    aspect = float(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1)
    stored_width = square_width(first.width, aspect)
    width, height = orientation.size(stored_width, first.height)
    found.seconds.flags.writeable = False
    encoding = Encoding(
        codec=stream.codec_context.codec.canonical_name,
        key_frames_apart=int(np.diff(keyframes, append=len(found.seconds)).max(initial=1)),
        pixel_aspect=1 / aspect if orientation.transpose else aspect,
        interlaced=interlaced,
        hdr=stream.codec_context.color_trc in HDR_TRANSFERS,
    )
    stopped = ending.stopped or found.stopped or not ending.last_picture_whole
    info = VideoInfo(len(found.seconds), width, height, found.seconds, encoding, stopped, found.joints)
    return FrameTable(info, stored_width, first.height, orientation, found.pts, keyframes, ending)
