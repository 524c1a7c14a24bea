"""Frame-exact decoding: `read_frames` hands out the frames asked for, or raises; it never hands out a neighbour.

A *index* is the 0-based position of a frame in presentation order. Two ways lead from an index to a picture:

- By presentation time. MP4 and Matroska store one packet a frame and each packet's time (pts), for the codecs listed
  below. A pass over the packets, without decoding, gives the sorted times, hence the indices, and one can seek.
- By counting. Elsewhere (AVI, MPEG-TS, MPEG-4 part 2, VP8, ...) packets may carry no time, a wrong one, or no picture
  at all. There the file is decoded once to count its frames, and each read decodes from the beginning. This is right
  and slow: the cost of a read grows with the index, so long recordings are better converted to MP4 with H.264.

After a seek nothing counts before the decoder itself reports a key frame: frames that precede it in presentation order
(open GOP) lean on pictures the decoder never saw. From there on the indices must follow one another without a gap.
A frame missed this way is sought from one key frame further back, then from the beginning; then it is an error.

Decoding and colour conversion use one thread each: parallelism comes from the loader's processes, and more threads
than cores only get in each other's way. What was learnt about a file is kept in memory per process, so that a data set
read many times pays for the look at each file once. Pixels are taken as square. FFmpeg conceals damage it can see
and marks the frame, which is then refused; damage that leaves a decodable stream (most of it in MJPEG, HEVC and VP9,
which carry no checksums) shows in the picture and nowhere else.
"""

import math
import operator
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import SideDataContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from airstreams.errors import InputError, VideoError

_MP4, _MATROSKA = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"  # FFmpeg's names
_CODECS_WITH_ONE_PACKET_A_FRAME = {"h264", "hevc", "vp9", "av1", "mjpeg"}
# Old files' tags need not be UTF-8, which PyAV before 19 complains of unless it is told not to.
_TAGS: Any = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
# FFmpeg draws a text as a picture of its letters, and shows a photo as a video of one frame.
_NO_VIDEO = re.compile(r"tty|bin|xbin|adf|idf|image2|\w+_pipe")  # its names
_CUT_S = 0.25  # how much earlier than its header says a file may end, s: headers round, and count other streams' tails


@dataclass(frozen=True, eq=False)
class VideoInfo:
    """What a video holds, seen without decoding it all.

    Attributes:
        frames: number of frames that can be read.
        width, height: px, of the upright picture (after rotation).
        times: float64 (frames,), s from the first frame, in presentation order; read-only.
    """

    frames: int
    width: int
    height: int
    times: np.ndarray

    @property
    def fps(self) -> float:
        """Mean frames a second; 1 for a single frame, which has no rate of its own."""
        return float((self.frames - 1) / self.times[-1]) if self.frames > 1 else 1.0

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last, which is taken to last one mean interval."""
        return float(self.times[-1] + 1 / self.fps)


@dataclass(frozen=True, eq=False)
class _Orientation:
    """How a stored picture becomes upright: transposed first, then flipped."""

    transpose: bool
    flip_rows: bool
    flip_columns: bool

    def size(self, width: int, height: int) -> tuple[int, int]:
        return (height, width) if self.transpose else (width, height)

    def apply(self, picture_HW3: np.ndarray) -> np.ndarray:
        picture = picture_HW3.transpose(1, 0, 2) if self.transpose else picture_HW3
        return picture[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


@dataclass(frozen=True, eq=False)
class _FrameTable:
    """Where the frames of one file are."""

    info: VideoInfo
    stored_width: int
    stored_height: int
    orientation: _Orientation
    pts: np.ndarray | None  # int64 (frames,), ascending; None: indices are found by counting
    keyframes: np.ndarray  # the indices one can seek to, ascending


def read_frames(path: str | os.PathLike[str], indices: Iterable[int], short_side: int | None = None) -> np.ndarray:
    """Reads frames by their index in presentation order.

    Args:
        path: a video file.
        indices: 0-based, in any order, repeats allowed.
        short_side: px; frames whose shorter side is longer than this are reduced to it, keeping the aspect (area
            average, during colour conversion). Never enlarged. None: as stored.

    Returns:
        uint8 (N, H, W, 3) RGB, upright, in the order of `indices`; all of the first frame's size.

    Raises:
        InputError: an index that the video does not have, or a short side below 1.
        VideoError: the file, or one of these frames, cannot be read; names the file.

    Example:
        >>> clip_THW3 = read_frames("wave.mp4", range(0, 32, 2), short_side=112)  # doctest: +SKIP
    """
    with _naming(path):
        table = _table(path)
    indices = [operator.index(index) for index in indices]
    for index in indices:
        if not 0 <= index < table.info.frames:
            raise InputError(f"{path}: frame {index} asked for; it has frames 0 to {table.info.frames - 1}")
    width, height = reduced_size(table.stored_width, table.stored_height, short_side)
    out_width, out_height = table.orientation.size(width, height)
    frames_NHW3 = np.empty((len(indices), out_height, out_width, 3), np.uint8)
    slots: dict[int, list[int]] = {}
    for slot, index in enumerate(indices):
        slots.setdefault(index, []).append(slot)
    converter = VideoReformatter()

    def take(index: int, frame: VideoFrame) -> None:
        picture = _upright(converter, frame, table.orientation, width, height)
        for slot in slots[index]:
            frames_NHW3[slot] = picture

    missing = sorted(slots)
    with _naming(path):
        for keyframes_back in (0, 1, len(table.keyframes)):
            if missing:
                with _opened(path) as (container, stream):
                    missing = _collect(container, stream, table, missing, keyframes_back, take)
        if missing:
            raise VideoError(f"unreadable: frame {missing[0]} of {table.info.frames} cannot be decoded")
    return frames_NHW3


def iterate_frames(
    path: str | os.PathLike[str], short_side: int | None = None, indices: Iterable[int] | None = None
) -> Iterator[np.ndarray]:
    """Decodes the whole file once and yields its frames, uint8 (H, W, 3), as `read_frames` would give them.

    For jobs that want many frames of a video that is too long for memory. It makes the comparisons of `check` as well,
    so a video from which this returns without an error is a good one. `indices`: the 0-based indices to yield, in
    ascending order whatever theirs is; None: all.

    Raises:
        InputError: a short side below 1.
        VideoError: as `check`, possibly after some frames; names the file.
    """
    with _naming(path):
        _refuse_truncated(path)
        table = _table(path)
        width, height = reduced_size(table.stored_width, table.stored_height, short_side)
        converter = VideoReformatter()
        wanted = None if indices is None else set(indices)
        decoded = 0
        with _opened(path) as (container, stream):
            for index, frame in _frames(container, stream, table):
                if wanted is None or index in wanted:
                    yield _upright(converter, frame, table.orientation, width, height)
                decoded += 1
        if decoded < table.info.frames:
            raise VideoError(f"unreadable: frame {decoded} of {table.info.frames} cannot be decoded")


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Looks at a video's packets, without decoding it where its container allows that; remembered until it changes.

    Raises:
        VideoError: the file cannot be read; names the file.
    """
    with _naming(path):
        return _table(path).info


def check(path: str | os.PathLike[str]) -> VideoInfo:
    """Decodes the whole file, as `read_frames` would, and compares it with what its header promises.

    Sampling the beginning and the end would be faster, but would pass damage in the middle, and could not promise that
    every frame can be read later. The price is a full decode: as long as one epoch over every frame. A file found good
    is not decoded again by this process while it stays as it is.

    Raises:
        VideoError: a short reason without the file's name: `does not exist`, `not a file`, `empty file`,
            `not a video: ...`, `truncated: ...`, `no video stream` or `unreadable: ...`.
    """
    version = _version(path)
    _check_version(*version)
    return _table_of_version(*version).info


@lru_cache(maxsize=2**20)
def _check_version(path: str, mtime_ns: int, size: int) -> None:
    _refuse_truncated(path)
    table = _table_of_version(path, mtime_ns, size)
    with _opened(path) as (container, stream):
        decoded = sum(1 for _ in _frames(container, stream, table))
    if decoded < table.info.frames:
        raise VideoError(f"unreadable: frame {decoded} of {table.info.frames} cannot be decoded")


def _table(path: str | os.PathLike[str]) -> _FrameTable:
    return _table_of_version(*_version(path))


def _version(path: str | os.PathLike[str]) -> tuple[str, int, int]:
    """The file's name, time of writing in ns, and bytes."""
    try:
        status = Path(path).stat()
    except OSError as error:
        raise VideoError(_reason_not_to_open(path)) from error
    if not stat.S_ISREG(status.st_mode):  # what is written to a pipe would be awaited forever
        raise VideoError(_reason_not_to_open(path))
    return os.fspath(path), status.st_mtime_ns, status.st_size


@lru_cache(maxsize=8192)
def _table_of_version(path: str, mtime_ns: int, size: int) -> _FrameTable:
    with _opened(path) as (container, stream):
        timed = (
            container.format.name in (_MP4, _MATROSKA)
            and stream.codec_context.codec.canonical_name in _CODECS_WITH_ONE_PACKET_A_FRAME
        )
        table = _table_by_time(container, stream) if timed else None
    if table is None:
        with _opened(path) as (container, stream):
            table = _table_by_counting(container, stream)
    return table


def _table_by_time(container: InputContainer, stream: VideoStream) -> _FrameTable | None:
    """The index from the packets' times; None where a time is missing or stands twice."""
    shown: list[int | None] = []
    keys: list[int | None] = []
    first: VideoFrame | None = None
    for packet in container.demux(stream):
        if packet.is_keyframe and packet.size:
            keys.append(packet.pts)
        if keys and first is None:
            first = next(iter(packet.decode()), None)
        # Packets marked to be discarded lie outside the edit list: decoded for the others' sake, not shown.
        if packet.size and not packet.is_discard:
            shown.append(packet.pts)
    if not keys or None in keys or None in shown or len(set(shown)) < len(shown):
        return None
    pts = np.array(sorted(time for time in shown if time >= keys[0]), np.int64)  # type: ignore[operator, type-var]
    if not len(pts) or first is None:
        raise VideoError("unreadable: no frame can be decoded")
    times = (pts - pts[0]) * float(stream.time_base or 0)
    return _make_table(first, times, pts, keyframes=np.flatnonzero(np.isin(pts, np.array(keys, np.int64))))


def _table_by_counting(container: InputContainer, stream: VideoStream) -> _FrameTable:
    pts: list[int | None] = []
    first: VideoFrame | None = None
    for frame in _decoded(container, stream):
        first = first or frame
        pts.append(frame.pts)
    if first is None:
        raise VideoError("unreadable: no frame can be decoded")
    known = [time for time in pts if time is not None]
    if len(known) == len(pts) and all(earlier < later for earlier, later in pairwise(known)):
        times = (np.array(known) - known[0]) * float(stream.time_base or 0)
    elif stream.guessed_rate:
        times = np.arange(len(pts)) / float(stream.guessed_rate)
    else:
        raise VideoError("unreadable: it has neither times nor a frame rate")
    return _make_table(first, times, pts=None, keyframes=np.zeros(1, np.int64))


def _make_table(first: VideoFrame, times: np.ndarray, pts: np.ndarray | None, keyframes: np.ndarray) -> _FrameTable:
    orientation = _orientation(first)
    width, height = orientation.size(first.width, first.height)
    times.flags.writeable = False
    info = VideoInfo(len(times), width, height, times)
    return _FrameTable(info, first.width, first.height, orientation, pts, keyframes)


def _orientation(frame: VideoFrame) -> _Orientation:
    """Reads the display matrix itself rather than its angle, which is wrong for mirrored pictures."""
    # Not frame.side_data, which ties the frame to itself: its picture, 12 MB of 4K, would stay until Python's collector
    # comes, and that is rarely.
    # Shown x = a x + c y, shown y = b x + d y; rounded to the nearest quarter turn.
    try:
        matrix = SideDataContainer(frame).get("DISPLAYMATRIX")  # type: ignore[call-arg]
    except ValueError:  # beside it stands data of a kind that PyAV does not know, such as a camera's EXIF
        angle = math.radians(frame.rotation)
        a, b, c, d = math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)
    else:
        if matrix is None:
            return _Orientation(False, False, False)
        a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    transpose = abs(b) > abs(a)
    return _Orientation(transpose, flip_rows=(b if transpose else d) < 0, flip_columns=(c if transpose else a) < 0)


def _upright(
    converter: VideoReformatter, frame: VideoFrame, orientation: _Orientation, width: int, height: int
) -> np.ndarray:
    """The frame in RGB, brought to width and height as stored, then upright."""
    picture = converter.reformat(frame, width, height, "rgb24", interpolation="AREA", threads=1).to_ndarray()
    return orientation.apply(picture)


def reduced_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """A frame's width and height, px, once its shorter side is no longer than that. InputError: a side below 1."""
    if short_side is None:
        return width, height
    if short_side < 1:
        raise InputError(f"short_side {short_side} asked for; expected a number of pixels of at least 1, or None")
    shorter = min(width, height)
    if shorter <= short_side:
        return width, height
    return round(width * short_side / shorter), round(height * short_side / shorter)


def _collect(
    container: InputContainer,
    stream: VideoStream,
    table: _FrameTable,
    targets: Sequence[int],
    keyframes_back: int,
    take: Callable[[int, VideoFrame], None],
) -> list[int]:
    """Takes the targets (ascending) from a freshly opened file; returns those it could not get.

    `keyframes_back`: how many key frames before the nearest one to seek to; as many as there are: never seek.
    """
    missed = []
    frames = _frames(container, stream, table)
    index, frame = -1, None
    for target in targets:
        nearest = int(np.searchsorted(table.keyframes, target, side="right")) - 1 - keyframes_back
        start = int(table.keyframes[nearest]) if nearest >= 0 else 0
        if start > index + 1:  # else decoding on is no further than the key frame
            frames = _frames(container, stream, table, start)
        while index < target:
            step = next(frames, None)
            if step is None:
                break
            index, frame = step
        if index == target and frame is not None:
            take(target, frame)
        else:
            missed.append(target)
    return missed


def _frames(
    container: InputContainer, stream: VideoStream, table: _FrameTable, start: int = 0
) -> Iterator[tuple[int, VideoFrame]]:
    """Yields (index, frame) from a freshly opened file, or from a seek to the index `start`.

    Ends at the first frame that is lost or damaged, because those after it may lean on it.
    """
    expected = None if start else 0
    count = -1
    try:
        if start and table.pts is not None:
            container.seek(int(table.pts[start]), stream=stream)
        for frame in _decoded(container, stream):
            if table.pts is None:
                index = count = count + 1
            else:
                if frame.pts is None:
                    return
                index = int(np.searchsorted(table.pts, frame.pts))
                if index == len(table.pts) or table.pts[index] != frame.pts:
                    continue
            if expected is None:
                if not frame.key_frame:
                    continue
                expected = index
            if index != expected or frame.is_corrupt:
                return
            yield index, frame
            expected += 1
    except (av.error.FFmpegError, VideoError):
        return


def _decoded(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Decodes from the first key frame ahead; what stands before it in the file cannot be decoded.

    Stops with an error at damage, also at frames that the decoder still held back: their count could be off.
    """
    found_key = False
    for packet in container.demux(stream):
        found_key = found_key or packet.is_keyframe
        if packet.is_corrupt:
            raise VideoError("truncated: a packet is incomplete")
        if found_key:
            yield from packet.decode()


def _refuse_truncated(path: str | os.PathLike[str]) -> None:
    """Compares what the header promises with the packets that are there."""
    # Without the edit list, since the header's number of frames counts those that the list hides.
    with _opened(path, {"ignore_editlist": "1"}) as (container, stream):
        packets, end = 0, 0.0
        for packet in container.demux():
            if packet.stream_index == stream.index and packet.size:
                packets += 1
                if packet.is_corrupt:
                    raise VideoError(f"truncated: packet {packets} is incomplete")
            moment = packet.pts if packet.pts is not None else packet.dts
            if moment is not None:
                end = max(end, float((moment + (packet.duration or 0)) * packet.time_base))
        if container.format.name == _MP4 and packets < stream.frames:
            raise VideoError(f"truncated: {packets} of {stream.frames} frames")
        # AVI: its duration is estimated from what is there. Its streams have gaps, hence times rather than counts.
        declared = 0.0
        if container.format.name == "avi" and stream.guessed_rate:
            declared = stream.frames / float(stream.guessed_rate)
        elif container.format.name == _MATROSKA:
            declared = (container.duration or 0) / av.time_base
        if end < declared - _CUT_S:
            raise VideoError(f"truncated: {end:.2f} s of {declared:.2f} s")


@contextmanager
def _opened(
    path: str | os.PathLike[str], options: dict[str, str] | None = None
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens a file and finds its video stream; FFmpeg's errors inside the block become a VideoError."""
    try:
        # "file:" keeps a colon in the name from being read as a protocol.
        container = av.open(f"file:{os.fspath(path)}", "r", options=options, **_TAGS)
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(_reason_not_to_open(path)) from error
    with container:
        if not len(container.streams):
            raise VideoError(_reason_not_to_open(path))
        if _NO_VIDEO.fullmatch(container.format.name):
            raise VideoError("not a video: a picture or a text")
        covers = av.stream.Disposition.attached_pic
        stream = next((stream for stream in container.streams.video if not stream.disposition & covers), None)
        if stream is None:
            cut = container.format.name == _MP4 and _ends_within_a_box(path)
            raise VideoError("truncated: its index is cut" if cut else "no video stream")
        if stream.codec_context is None:
            raise VideoError("unreadable: no decoder for its codec")
        stream.codec_context.thread_count = 1
        try:
            yield container, stream
        except av.error.FFmpegError as error:
            raise VideoError(f"unreadable: {error.strerror}") from error


def _reason_not_to_open(path: str | os.PathLike[str]) -> str:
    file = Path(path)
    try:
        if not file.exists():
            return "does not exist"
        if file.is_dir():
            return "a folder, not a video; give the files in it"
        if not file.is_file():
            return "not a file"
        with file.open("rb") as opened:
            head = opened.read(8)
    except OSError as error:
        return f"unreadable: {error.strerror}"
    if not head:
        return "empty file"
    if head[4:] in (b"ftyp", b"moov", b"mdat") or head[:4] in (b"RIFF", b"\x1aE\xdf\xa3"):
        return "truncated: it begins like a video, but its header or index is missing or cut"
    return "not a video: no known format"


def _ends_within_a_box(path: str | os.PathLike[str]) -> bool:
    """Whether an MP4 file, which is a row of boxes that begin with their size, ends before its last box does."""
    length = Path(path).stat().st_size
    offset = 0
    with Path(path).open("rb") as file:
        while offset + 8 <= length:
            file.seek(offset)
            size = int.from_bytes(file.read(4), "big")
            if size == 1:  # the size stands behind the box's name, in eight bytes
                file.seek(offset + 8)
                size = int.from_bytes(file.read(8), "big")
            if size < 8:  # 0: the box goes on to the end
                return False
            offset += size
    return offset > length


@contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except VideoError as error:
        raise VideoError(f"{os.fspath(path)}: {error}") from error
