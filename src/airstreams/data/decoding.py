"""Decoding the frames of an opened file in presentation order."""

from collections.abc import Iterator

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from airstreams.data.containers import MPEGTS, Ending
from airstreams.errors import VideoError

_JOINABLE = {MPEGTS, "mpeg"}  # containers whose files may be joined end to end
_BACK_S, _AHEAD_S = 0.5, 3600.0  # a decoding time that jumps by more begins another recording


class Decoder:
    """Decodes a newly opened file from the next key frame on; packets before it cannot be decoded.

    Attributes:
        part: how many recordings were joined before the frame that was yielded last.
        lag: the longest time by which a picture is stored after one that is shown later, in ticks of the stream.
        held_back: number of frames that the decoder kept until the end of the file.
        key_pts: the times of the packets with a key frame.
    """

    def __init__(self, container: InputContainer, stream: VideoStream, ending: Ending) -> None:
        self.part = 0
        self.lag = 0
        self.held_back = 0
        self.key_pts: list[int] = []
        self._container, self._stream, self._ending = container, stream, ending
        self._joints = list(ending.joints)
        self._damaged = self._ended = False
        self._last_dts: int | None = None
        self._latest_pts: int | None = None

    def __iter__(self) -> Iterator[VideoFrame]:
        """Yield frames.

        At damage this raises. Frames that the decoder still holds are lost then, since their count could be wrong.
        """
        found_key = False
        for packet in self._packets():
            if self._begins_another_recording(packet):
                yield from self._noted(self._stream.codec_context.decode(None))
                self._stream.codec_context.flush_buffers()
                self.part += 1
                self._latest_pts, found_key = None, False
            found_key = found_key or packet.is_keyframe
            # The packets of MPEG-TS were checked. FFmpeg also marks whole pictures before a joint as corrupt.
            if packet.is_corrupt and self._container.format.name != MPEGTS:
                raise VideoError("truncated: a packet is incomplete")
            if found_key:
                self._note_order(packet)
                self._ended = not packet.size
                frames = packet.decode()
                self.held_back += 0 if packet.size else len(frames)
                yield from self._noted(frames)

    def found_damage(self) -> bool:
        """Whether a picture that was decoded so far is damaged, even if it was not yielded yet. Decoding ends here."""
        if not self._stream.codec_context.has_b_frames:
            return False  # then no frame depends on one that is shown later
        try:
            held_back = [] if self._ended else self._stream.codec_context.decode(None)
        except av.error.FFmpegError:
            return True
        return self._damaged or any(frame.is_corrupt for frame in held_back)

    def _noted(self, frames: list[VideoFrame]) -> list[VideoFrame]:
        self._damaged = self._damaged or any(frame.is_corrupt for frame in frames)
        return frames

    def _packets(self) -> Iterator[Packet]:
        """The packets without a last one that may be cut. An empty packet at the end yields the frames held back."""
        held: Packet | None = None
        for packet in self._container.demux(self._stream):
            if self._ending.last_picture_whole:
                yield packet
                continue
            if not packet.size:
                # Without times, nothing shows whether a frame is missing before those held back.
                if self._latest_pts is not None:
                    yield packet
                return
            if held is not None:
                yield held
            held = packet

    def _begins_another_recording(self, packet: Packet) -> bool:
        if self._container.format.name not in _JOINABLE or packet.dts is None:
            return False
        last, self._last_dts = self._last_dts, packet.dts
        if self._joints and packet.pos is not None and packet.pos >= self._joints[0]:
            self._joints = [joint for joint in self._joints if joint > packet.pos]
            return True
        jump = 0.0 if last is None else float((packet.dts - last) * (packet.time_base or 0))
        return not -_BACK_S <= jump <= _AHEAD_S

    def _note_order(self, packet: Packet) -> None:
        if packet.size and packet.pts is not None:
            latest = packet.pts if self._latest_pts is None else max(self._latest_pts, packet.pts)
            self.lag = max(self.lag, latest - packet.pts)
            self._latest_pts = latest
            if packet.is_keyframe:
                self.key_pts.append(packet.pts)
