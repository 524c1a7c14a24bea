"""Frame-exact decoding: `read_frames` returns exactly the frames asked for, or raises. It never returns a neighbour.

A frame's *index* is its 0-based position in presentation order. A frame is found by its index in one of two ways:

- By presentation time. MP4 and Matroska store one packet per frame with its presentation time (pts), for the codecs
  listed below. One pass over the packets, without decoding, gives the sorted times, and one can seek to a time.
- By counting. In other files (AVI, MPEG-TS, MPEG-4 part 2, VP8, ...) a packet may have no time, a wrong time or no
  picture. Such a file is decoded once to count its frames, and each read decodes from the beginning. This is correct
  but slow: a read takes longer the larger the index is. Convert long recordings to MP4 with H.264.

After a seek, frames are dropped until the decoder reports a key frame: frames that precede it in presentation order
(open GOP) depend on pictures that the decoder has not seen. From the key frame on, indices must be consecutive. A frame
missed this way is tried again from one key frame further back, then from the beginning. If that fails, it is an error.

Decoding and colour conversion use one thread each, since the loader's processes already use all cores. Each process
remembers what it found in a file, so that a data set that is read many times is examined once. Pixels are assumed
square. FFmpeg conceals damage that it detects and marks the frame, which is then refused. Damage that leaves a
decodable stream (most damage in MJPEG, HEVC and VP9, which have no checksums) is visible in the picture but not
detected.
"""

import math
import operator
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

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
# Tags of old files may not be UTF-8. PyAV before 19 raises an error for them by default.
_TAGS: Any = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
# The kinds of files that FFmpeg may open, by its names. It also knows playlists, which make it open other files and
# addresses (concat, hls, dash, sdp, image2), and takes a text or a photo for a video. A name decides nothing.
_CONTAINERS = (
    "mov,matroska,webm,avi,mpegts,mpegtsraw,mpeg,flv,live_flv,kux,ogg,asf,asf_o,wtv,mxf,gxf,nut,rm,dv,dhav,ivf,swf,nsv,"
    "nuv,pva,ty,xmv,mlv,cine,amv,gif,apng,jpegxl_anim,bink,smk,flic,roq,film_cpk,4xm,thp,vmd,moflex,mods,"
    "h261,h263,h264,hevc,vvc,evc,m4v,mpegvideo,mjpeg,mjpeg_2000,av1,obu,vc1,vc1test,dirac,dnxhd,cavsvideo,avs2,avs3,"
    "yuv4mpegpipe,"
    "wav,mp3,aac,flac,ac3,aiff,au,caf,w64"  # sound: then the reason is that there is no video stream
)
_ONLY_THIS_FILE = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
_HDR_TRANSFERS = (16, 18)  # FFmpeg's numbers of the transfer functions PQ (SMPTE ST 2084) and HLG (ARIB STD-B67)
# How much earlier than its header says a file may end, s: headers round, and include the ends of other streams.
_TOLERANCE_S = 0.25


@dataclass(frozen=True)
class Encoding:
    """How a file stores its frames.

    Attributes:
        codec: FFmpeg's name.
        key_frames_apart: largest number of frames from one key frame to the next, or to the end; all of them where
            reading starts at the beginning of the file. As many are decoded, at most, to read one frame.
        pixel_aspect: width of a pixel / its height, of the upright picture. Frames are read as if it were 1.
        interlaced: whether a frame is made of two fields.
        hdr: whether the brightness is stored as PQ or HLG. Frames are read as if it were not.
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
        width, height: px, of the upright picture (after rotation).
        times: float64 (frames,), s from the first frame, in presentation order; read-only.
        encoding: how the file stores them.
    """

    frames: int
    width: int
    height: int
    times: np.ndarray
    encoding: Encoding

    @property
    def fps(self) -> float:
        """Mean frames per second; 1 for a video of a single frame."""
        return float((self.frames - 1) / self.times[-1]) if self.frames > 1 else 1.0

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last. The last frame is assumed to last one mean interval."""
        return float(self.times[-1] + 1 / self.fps)


class Packet(NamedTuple):
    """A compressed picture as a file stores it, with the codec's name and its settings for the whole stream."""

    codec: str
    header: bytes
    data: bytes


@dataclass(frozen=True, eq=False)
class _Orientation:
    """How a stored picture is turned upright: transposed first, then flipped."""

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
    """What is needed to find the frames of one file."""

    info: VideoInfo
    stored_width: int
    stored_height: int
    orientation: _Orientation
    pts: np.ndarray | None  # int64 (frames,), ascending; None: frames are found by counting
    keyframes: np.ndarray  # the indices that one can seek to, ascending


def read_frames(path: str | os.PathLike[str], indices: Iterable[int], short_side: int | None = None) -> np.ndarray:
    """Read frames by their index in presentation order.

    Args:
        path: a video file.
        indices: 0-based, in any order, repeats allowed.
        short_side: px. Larger frames are reduced so that their shorter side has this length (area average, during
            colour conversion). The aspect is kept, and frames are never enlarged. None: as stored.

    Returns:
        uint8 (N, H, W, 3) RGB, upright, in the order of `indices`, all of the first frame's size.

    Raises:
        InputError: the video has no frame of such an index, or the short side is below 1.
        VideoError: the file, or one of these frames, cannot be read.

    Example:
        >>> clip_THW3 = read_frames("wave.mp4", range(0, 32, 2), short_side=112)  # doctest: +SKIP
    """
    with _naming(path):
        table = _table(path)
    indices = [operator.index(index) for index in indices]
    for index in indices:
        if not 0 <= index < table.info.frames:
            raise InputError(f"{path}: got frame {index}, expected an index from 0 to {table.info.frames - 1}")
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
    """Decode the whole file once and yield its frames, uint8 (H, W, 3), as `read_frames` would return them.

    For many frames of a video that is too long for memory. The file is checked as `check` does: if this ends without an
    error, the video is good.

    Args:
        path: a video file.
        short_side: as for `read_frames`.
        indices: 0-based; the frames to yield, always in ascending order; None: all.

    Raises:
        InputError: the short side is below 1.
        VideoError: as `check`, possibly after some frames.
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
    """Get a video's size and times, without decoding it where the container allows that.

    The result is remembered until the file changes.

    Raises:
        VideoError: the file cannot be read.
    """
    with _naming(path):
        return _table(path).info


def check(path: str | os.PathLike[str]) -> VideoInfo:
    """Decode the whole file and compare it with its header.

    This takes as long as one epoch over every frame, but it finds damage in the middle of a file too: afterwards every
    frame can be read. A good file is not decoded again by this process until it changes.

    Raises:
        VideoError: with the reason `does not exist`, `not a file`, `empty file`, `not a video: ...`,
            `truncated: ...`, `no video stream` or `unreadable: ...`.
    """
    with _naming(path):
        version = _version(path)
        _check_version(*version)
        return _table_of_version(*version).info


def forget_files() -> None:
    """Forget what `probe` and `check` remember. The times of long videos take memory."""
    _table_of_version.cache_clear()
    _check_version.cache_clear()


@lru_cache(maxsize=2**20)
def _check_version(path: str, mtime_ns: int, size: int) -> None:
    _refuse_truncated(path)
    table = _table_of_version(path, mtime_ns, size)
    with _opened(path) as (container, stream):
        decoded = sum(1 for _ in _frames(container, stream, table))
    if decoded < table.info.frames:
        raise VideoError(f"unreadable: frame {decoded} of {table.info.frames} cannot be decoded")


def packets(path: str | os.PathLike[str]) -> Iterator[Packet]:
    """The packets of a video, in the order of the file, without decoding them.

    VideoError: the file cannot be read, possibly after some packets.
    """
    with _naming(path), _opened(path) as (container, stream):
        codec, header = stream.codec_context.name, stream.codec_context.extradata or b""
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:  # else it is outside the edit list, and not shown
                yield Packet(codec, header, bytes(packet))


def _table(path: str | os.PathLike[str]) -> _FrameTable:
    return _table_of_version(*_version(path))


def file_version(path: str | os.PathLike[str]) -> tuple[str, int, int]:
    """What changes when a file does: its path, modification time in ns and size in bytes.

    VideoError: there is no such file.
    """
    with _naming(path):
        return _version(path)


def _version(path: str | os.PathLike[str]) -> tuple[str, int, int]:
    """The file's path, modification time in ns and size in bytes."""
    try:
        status = Path(path).stat()
    except OSError as error:
        raise VideoError(_reason_not_to_open(path)) from error
    if not stat.S_ISREG(status.st_mode):  # reading from a pipe could block forever
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
    times = (pts - pts[0]) * float(stream.time_base or 0)
    return _make_table(stream, first, times, pts, keyframes=np.flatnonzero(np.isin(pts, np.array(keys, np.int64))))


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
        raise VideoError("unreadable: no times and no frame rate")
    return _make_table(stream, first, times, pts=None, keyframes=np.zeros(1, np.int64))


def _make_table(
    stream: VideoStream, first: VideoFrame, times: np.ndarray, pts: np.ndarray | None, keyframes: np.ndarray
) -> _FrameTable:
    orientation = _orientation(first)
    width, height = orientation.size(first.width, first.height)
    times.flags.writeable = False
    aspect = float(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1)
    encoding = Encoding(
        codec=stream.codec_context.codec.canonical_name,
        key_frames_apart=int(np.diff(keyframes, append=len(times)).max(initial=1)),
        pixel_aspect=1 / aspect if orientation.transpose else aspect,
        interlaced=bool(first.interlaced_frame),
        hdr=stream.codec_context.color_trc in _HDR_TRANSFERS,
    )
    info = VideoInfo(len(times), width, height, times, encoding)
    return _FrameTable(info, first.width, first.height, orientation, pts, keyframes)


def _orientation(frame: VideoFrame) -> _Orientation:
    """Read the display matrix itself, since PyAV's angle is wrong for mirrored pictures."""
    # frame.side_data makes a reference cycle: the picture (12 MB in 4K) would stay in memory until Python's garbage
    # collector runs, which is rare.
    # Displayed x = a x + c y, displayed y = b x + d y, rounded to the nearest quarter turn.
    try:
        matrix = SideDataContainer(frame).get("DISPLAYMATRIX")  # type: ignore[call-arg]
    except ValueError:  # there is side data of a kind that PyAV does not know, such as a camera's EXIF
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
    """The frame in RGB, resized to `width` and `height` as stored, then turned upright."""
    picture = converter.reformat(frame, width, height, "rgb24", interpolation="AREA", threads=1).to_ndarray()
    return orientation.apply(picture)


def reduced_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """A frame's width and height, px, after reduction to a shorter side. InputError: a short side below 1."""
    if short_side is None:
        return width, height
    if short_side < 1:
        raise InputError(f"short_side: got {short_side}, expected a number of pixels of at least 1, or None")
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
    """Call `take` for each target index (ascending) of a newly opened file; return the indices that were not found.

    `keyframes_back`: seek to the key frame this many before the nearest one. With as many as there are, never seek.
    """
    missed = []
    frames = _frames(container, stream, table)
    index, frame = -1, None
    for target in targets:
        nearest = int(np.searchsorted(table.keyframes, target, side="right")) - 1 - keyframes_back
        start = int(table.keyframes[nearest]) if nearest >= 0 else 0
        if start > index + 1:  # otherwise the key frame is no nearer than the next frame
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
    """Yield (index, frame) from a newly opened file, or after a seek to the frame `start`.

    Ends at the first lost or damaged frame, since the frames after it may depend on it.
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
    """Decode from the next key frame on; packets before it cannot be decoded.

    At damage this raises. Frames that the decoder still holds are lost then, since their count could be wrong.
    """
    found_key = False
    for packet in container.demux(stream):
        found_key = found_key or packet.is_keyframe
        if packet.is_corrupt:
            raise VideoError("truncated: a packet is incomplete")
        if found_key:
            yield from packet.decode()


def _refuse_truncated(path: str | os.PathLike[str]) -> None:
    """Compare the header with the packets that the file contains."""
    # The edit list is ignored, since the header's number of frames includes the frames that it hides.
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
        # FFmpeg estimates an AVI's duration from its content. Its streams have gaps, so times are compared, not counts.
        declared = 0.0
        if container.format.name == "avi" and stream.guessed_rate:
            declared = stream.frames / float(stream.guessed_rate)
        elif container.format.name == _MATROSKA:
            declared = (container.duration or 0) / av.time_base
        if end < declared - _TOLERANCE_S:
            raise VideoError(f"truncated: {end:.2f} s of {declared:.2f} s")


@contextmanager
def _opened(
    path: str | os.PathLike[str], options: dict[str, str] | None = None
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and find its video stream. An error of FFmpeg inside the block becomes a VideoError."""
    try:
        # "file:" keeps a colon in the name from being read as a protocol.
        container = av.open(f"file:{os.fspath(path)}", "r", options=_ONLY_THIS_FILE | (options or {}), **_TAGS)
    except av.error.ArgumentError as error:  # FFmpeg's answer to a format that is not on the list, among others
        raise VideoError(_reason_not_to_open(path, "a picture, a text or a playlist")) from error
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(_reason_not_to_open(path)) from error
    with container:
        if not len(container.streams):
            raise VideoError(_reason_not_to_open(path))
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


def _reason_not_to_open(path: str | os.PathLike[str], otherwise: str = "no known format") -> str:
    file = Path(path)
    try:
        if not file.exists():
            return "does not exist"
        if file.is_dir():
            return "a folder, not a video; give the files in it"
        if not file.is_file():
            return "not a file"
        with file.open("rb") as opened:
            head = opened.read(12)
    except OSError as error:
        return f"unreadable: {error.strerror}"
    if not head:
        return "empty file"
    is_avi = head.startswith(b"RIFF") and head[8:] in (b"AVI ", b"")
    if is_avi or head[4:8] in (b"ftyp", b"moov", b"mdat") or head.startswith(b"\x1aE\xdf\xa3"):
        return "truncated: it begins like a video, but its header or index is missing or cut"
    return f"not a video: {otherwise}"


def _ends_within_a_box(path: str | os.PathLike[str]) -> bool:
    """Whether an MP4 file ends before its last box does. It is a sequence of boxes that begin with their size."""
    length = Path(path).stat().st_size
    offset = 0
    with Path(path).open("rb") as file:
        while offset + 8 <= length:
            file.seek(offset)
            size = int.from_bytes(file.read(4), "big")
            if size == 1:  # the size is in the eight bytes after the box's name
                file.seek(offset + 8)
                size = int.from_bytes(file.read(8), "big")
            if size < 8:  # 0: the box extends to the end
                return False
            offset += size
    return offset > length


@contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Every VideoError inside the block gets the file's path."""
    try:
        yield
    except VideoError as error:
        raise VideoError(error.reason, path) from error
