"""One whole picture of each interlaced frame, by FFmpeg's filter bwdif.

An interlaced frame holds two fields: its even and its odd lines, which a camera takes one after the other. Between them
things move, so moving edges look like combs. bwdif keeps the lines of the first field. It makes the other lines from
them, from the second field, and from the frames before and after.

So a picture depends on three frames and on nothing else, and it is the same wherever reading began. The first frame of
a recording has none before it, the last one none after it. Frames that the file marks as progressive stay as they are.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from typing import Literal

from av.error import BlockingIOError as NotReadyError
from av.error import EOFError as EndError
from av.filter import Graph
from av.video.frame import VideoFrame

Deinterlace = Literal["auto", "off"]
"""auto: deinterlace interlaced video. off: take frames as they are stored."""


class Deinterlacer:
    """Deinterlaces frames that come in ascending order, also with gaps.

    Args:
        give: called with the index and the picture of each frame, when it is known.
        joints: the indices at which another recording begins. See `VideoInfo`.
    """

    def __init__(self, give: Callable[[int, VideoFrame], None], joints: Collection[int] = ()) -> None:
        self._give = give
        self._joints = frozenset(joints)
        self._graph: Graph | None = None
        self._format: tuple[int, int, str] | None = None
        self._waiting: deque[int] = deque()  # indices of the frames in the graph

    def push(self, index: int, frame: VideoFrame) -> None:
        """Take a frame. It is given when the next one has come, or at the end."""
        frame_format = (frame.width, frame.height, frame.format.name)
        follows = bool(self._waiting) and index == self._waiting[-1] + 1 and index not in self._joints
        if not follows or frame_format != self._format:
            self.end()
        if self._graph is None:
            self._graph, self._format = _graph(frame), frame_format
        self._graph.vpush(frame)
        self._waiting.append(index)
        self._pull(self._graph)

    def end(self) -> None:
        """Give the last frame, which none follows."""
        if self._graph is not None:
            self._graph.vpush(None)
            self._pull(self._graph)
            self._graph = None

    def _pull(self, graph: Graph) -> None:
        with suppress(NotReadyError, EndError):
            while True:
                picture = graph.vpull()
                self._give(self._waiting.popleft(), picture)


def with_neighbours(indices: Iterable[int], frames: int, joints: Collection[int]) -> dict[int, set[int]]:
    """For each index, the indices of the frames that its picture depends on.

    Args:
        indices: of the pictures.
        frames: number of frames of the file.
        joints: as for `Deinterlacer`.
    """
    first, last = {0, *joints}, {frames - 1, *(joint - 1 for joint in joints)}
    return {
        index: {index, index if index in first else index - 1, index if index in last else index + 1}
        for index in indices
    }


def deinterlaced(
    frames: Iterable[tuple[int, VideoFrame]], last: int, joints: Collection[int]
) -> Iterator[tuple[int, VideoFrame]]:
    """Deinterlace all frames of a file, the last one at the index `last`. If they end before, the end is left out."""
    done: list[tuple[int, VideoFrame]] = []
    deinterlacer = Deinterlacer(lambda index, picture: done.append((index, picture)), joints)
    for index, frame in frames:
        deinterlacer.push(index, frame)
        if index == last:
            deinterlacer.end()
        yield from done
        done.clear()


def _graph(frame: VideoFrame) -> Graph:
    graph = Graph()
    graph.threads = 1  # the loader's processes use all cores already
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or None
    )
    filters = [graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced"), graph.add("buffersink")]
    for before, after in zip([source, *filters], filters, strict=False):
        before.link_to(after)
    graph.configure()
    return graph
