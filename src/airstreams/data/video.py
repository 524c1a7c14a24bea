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
remembers what it found in a file, so that a data set that is read many times is examined once. Pictures are stretched
to square pixels, and HDR becomes usual video. Interlaced frames stay as they are stored, unless the caller asks for
deinterlacing. FFmpeg conceals damage that it detects and marks the frame, which is then refused. Damage that leaves
a decodable stream (most damage in MJPEG, HEVC and VP9, which have no checksums) is visible in the picture but not
detected. A cut is found by the container's headers: see `containers/`.
"""

import operator
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from airstreams.data.containers import AVI, MATROSKA, MP4, MPEGTS, Ending
from airstreams.data.decoding import Decoder
from airstreams.data.deinterlace import Deinterlace, Deinterlacer, deinterlaced, with_neighbours
from airstreams.data.frame_table import Encoding, FrameTable, VideoInfo, forget_tables, frame_table, table_of_version
from airstreams.data.opening import naming, opened, version_of
from airstreams.data.pictures import reduced_size, upright
from airstreams.errors import InputError, VideoError

__all__ = [
    "Encoding",
    "Packet",
    "VideoInfo",
    "check",
    "file_version",
    "forget_files",
    "iterate_frames",
    "packets",
    "probe",
    "read_frames",
    "reduced_size",
]

# How much earlier than its header says a file may end, s: headers round, and include the ends of other streams.
_TOLERANCE_S = 0.25
_LONGEST_REORDERING = 16  # frames: the pictures that a decoder of H.264 or HEVC holds at most


class Packet(NamedTuple):
    """A compressed picture as a file stores it, with the codec's name and its settings for the whole stream."""

    codec: str
    header: bytes
    data: bytes


def read_frames(
    path: str | os.PathLike[str],
    indices: Iterable[int],
    short_side: int | None = None,
    deinterlace: Deinterlace = "off",
) -> np.ndarray:
    """Read frames by their index in presentation order.

    Args:
        path: a video file.
        indices: 0-based, in any order, repeats allowed.
        short_side: px. Larger frames are reduced so that their shorter side has this length (area average, during
            colour conversion). The aspect is kept, and frames are never enlarged. None: their own size.
        deinterlace: auto: deinterlace the frames of interlaced video, see `deinterlace.py`. It decodes the frames
            before and after each, too.

    Returns:
        uint8 (N, H, W, 3) RGB, upright, in the order of `indices`, all of the first frame's size.

    Raises:
        InputError: the video has no frame of such an index, or the short side is below 1.
        VideoError: the file, or one of these frames, cannot be read.

    Example:
        >>> clip_THW3 = read_frames("wave.mp4", range(0, 32, 2), short_side=112)  # doctest: +SKIP
    """
    with naming(path):
        table = frame_table(path)
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
        picture = upright(converter, frame, table.orientation, width, height)
        for slot in slots[index]:
            frames_NHW3[slot] = picture

    deinterlaces = deinterlace == "auto" and table.info.encoding.interlaced
    missing = sorted(slots)
    with naming(path):
        for keyframes_back in (0, 1, len(table.keyframes)):
            if missing:
                missing = _attempt(path, table, missing, keyframes_back, take, deinterlaces)
        if missing:
            raise VideoError(f"unreadable: frame {missing[0]} of {table.info.frames} cannot be decoded")
    return frames_NHW3


def iterate_frames(
    path: str | os.PathLike[str],
    short_side: int | None = None,
    indices: Iterable[int] | None = None,
    deinterlace: Deinterlace = "off",
) -> Iterator[np.ndarray]:
    """Decode the whole file once and yield its frames, uint8 (H, W, 3), as `read_frames` would return them.

    For many frames of a video that is too long for memory. The file is checked as `check` does: if this ends without an
    error, the video is good.

    Args:
        path: a video file.
        short_side: as for `read_frames`.
        indices: 0-based; the frames to yield, always in ascending order; None: all.
        deinterlace: as for `read_frames`.

    Raises:
        InputError: the short side is below 1.
        VideoError: as `check`, possibly after some frames.
    """
    with naming(path):
        table = frame_table(path)
        _refuse_truncated(path, table.ending)
        width, height = reduced_size(table.stored_width, table.stored_height, short_side)
        converter = VideoReformatter()
        wanted = None if indices is None else set(indices)
        decoded = 0
        with opened(path, table.ending.end) as (container, stream):
            frames = _frames(container, stream, table, Decoder(container, stream, table.ending))
            if deinterlace == "auto" and table.info.encoding.interlaced:
                frames = deinterlaced(frames, table.info.frames - 1, table.info.joints)
            for index, frame in frames:
                if wanted is None or index in wanted:
                    yield upright(converter, frame, table.orientation, width, height)
                decoded += 1
        if decoded < table.info.frames:
            raise VideoError(f"unreadable: frame {decoded} of {table.info.frames} cannot be decoded")


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Get a video's size and times, without decoding it where the container allows that.

    The result is remembered until the file changes.

    Raises:
        VideoError: the file cannot be read.
    """
    with naming(path):
        return frame_table(path).info


def check(path: str | os.PathLike[str]) -> VideoInfo:
    """Decode the whole file and compare it with its header.

    This takes as long as one epoch over every frame, but it finds damage in the middle of a file too: afterwards every
    frame can be read. A good file is not decoded again by this process until it changes.

    Raises:
        VideoError: with the reason `does not exist`, `not a file`, `empty file`, `not a video: ...`,
            `truncated: ...`, `no video stream` or `unreadable: ...`.
    """
    with naming(path):
        version = version_of(path)
        _check_version(*version)
        return table_of_version(*version).info


def forget_files() -> None:
    """Forget what `probe` and `check` remember. The times of long videos take memory."""
    forget_tables()
    _check_version.cache_clear()


@lru_cache(maxsize=2**20)
def _check_version(path: str, mtime_ns: int, size: int) -> None:
    table = table_of_version(path, mtime_ns, size)
    _refuse_truncated(path, table.ending)
    with opened(path, table.ending.end) as (container, stream):
        decoded = sum(1 for _ in _frames(container, stream, table, Decoder(container, stream, table.ending)))
    if decoded < table.info.frames:
        raise VideoError(f"unreadable: frame {decoded} of {table.info.frames} cannot be decoded")


def packets(path: str | os.PathLike[str]) -> Iterator[Packet]:
    """The packets of a video, in the order of the file, without decoding them.

    VideoError: the file cannot be read, possibly after some packets.
    """
    with naming(path), opened(path) as (container, stream):
        codec, header = stream.codec_context.name, stream.codec_context.extradata or b""
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:  # else it is outside the edit list, and not shown
                yield Packet(codec, header, bytes(packet))


def file_version(path: str | os.PathLike[str]) -> tuple[str, int, int]:
    """What changes when a file does: its path, modification time in ns and size in bytes.

    VideoError: there is no such file.
    """
    with naming(path):
        return version_of(path)


def _attempt(
    path: str | os.PathLike[str],
    table: FrameTable,
    indices: Sequence[int],
    keyframes_back: int,
    take: Callable[[int, VideoFrame], None],
    deinterlaces: bool,
) -> list[int]:
    """Open the file and call `take` for each index (ascending); return the indices that were not found.

    `keyframes_back`: as for `_collect`.
    """
    with opened(path, table.ending.end) as (container, stream):
        if not deinterlaces:
            return _collect(container, stream, table, indices, keyframes_back, take)
        needed_by = with_neighbours(indices, table.info.frames, table.info.joints)

        def take_wanted(index: int, frame: VideoFrame) -> None:
            if index in needed_by:
                take(index, frame)

        deinterlacer = Deinterlacer(take_wanted, table.info.joints)
        needed = sorted(set().union(*needed_by.values()))
        lost = _collect(container, stream, table, needed, keyframes_back, deinterlacer.push)
        deinterlacer.end()
        return [index for index in indices if not needed_by[index].isdisjoint(lost)]


def _collect(
    container: InputContainer,
    stream: VideoStream,
    table: FrameTable,
    targets: Sequence[int],
    keyframes_back: int,
    take: Callable[[int, VideoFrame], None],
) -> list[int]:
    """Call `take` for each target index (ascending) of a newly opened file; return the indices that were not found.

    `keyframes_back`: seek to the key frame this many before the nearest one. With as many as there are, never seek.
    """
    missed: list[int] = []
    taken: list[int] = []  # since the last seek
    decoder = Decoder(container, stream, table.ending)
    frames = _frames(container, stream, table, decoder)
    index, frame = -1, None

    def end_run() -> None:
        if decoder.found_damage():  # frames that are shown before the damaged one may depend on it
            missed.extend(target for target in taken if target > index - _LONGEST_REORDERING)
        taken.clear()

    for target in targets:
        nearest = int(np.searchsorted(table.keyframes, target, side="right")) - 1 - keyframes_back
        start = int(table.keyframes[nearest]) if nearest >= 0 else 0
        if start > index + 1:  # otherwise the key frame is no nearer than the next frame
            end_run()
            decoder = Decoder(container, stream, table.ending)
            frames = _frames(container, stream, table, decoder, start)
        while index < target:
            step = next(frames, None)
            if step is None:
                break
            index, frame = step
        if index == target and frame is not None:
            take(target, frame)
            taken.append(target)
        else:
            missed.append(target)
    end_run()
    return sorted(missed)


def _frames(
    container: InputContainer, stream: VideoStream, table: FrameTable, decoder: Decoder, start: int = 0
) -> Iterator[tuple[int, VideoFrame]]:
    """Yield (index, frame) from a newly opened file, or after a seek to the frame `start`.

    Ends at the first lost or damaged frame, since the frames after it may depend on it.
    """
    expected = None if start else 0
    count = -1
    try:
        if start and table.pts is not None:
            container.seek(int(table.pts[start]), stream=stream)
        for frame in decoder:
            if table.pts is None:
                index = count = count + 1
                if index == table.info.frames:  # the frames after it are not certain
                    return
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


def _refuse_truncated(path: str | os.PathLike[str], ending: Ending) -> None:
    """Compare the header with the packets that the file contains."""
    # The edit list is ignored, since the header's number of frames includes the frames that it hides.
    with opened(path, ending.end, {"ignore_editlist": "1"}) as (container, stream):
        packets, end = 0, 0.0
        for packet in container.demux():
            if packet.stream_index == stream.index and packet.size:
                packets += 1
                if packet.is_corrupt and container.format.name != MPEGTS:  # whose packets were checked
                    raise VideoError(f"truncated: packet {packets} is incomplete")
            moment = packet.pts if packet.pts is not None else packet.dts
            if moment is not None:
                end = max(end, float((moment + (packet.duration or 0)) * packet.time_base))
        if container.format.name == MP4 and packets < stream.frames:
            raise VideoError(f"truncated: {packets} of {stream.frames} frames")
        # FFmpeg estimates an AVI's duration from its content. Its streams have gaps, so times are compared, not counts.
        declared = 0.0
        if container.format.name == AVI and stream.guessed_rate:
            declared = stream.frames / float(stream.guessed_rate)
        elif container.format.name == MATROSKA:
            declared = (container.duration or 0) / av.time_base
        if end < declared - _TOLERANCE_S:
            raise VideoError(f"truncated: {end:.2f} s of {declared:.2f} s")
