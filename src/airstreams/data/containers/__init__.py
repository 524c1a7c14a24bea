"""Whether a video file is whole, from the headers of its container. Nothing is decoded.

A file that was cut ends inside an element of its container: a box (MP4), an element (Matroska), a packet (MPEG-TS), a
chunk (AVI), a tag (FLV), a page (Ogg) or a block (GIF). `ending` finds this in one of two kinds of files:

- The header states the length, as in a finished MP4. Such a file is refused as truncated.
- A recorder may stop at any moment, as in MPEG-TS or in Matroska that was written live. Such a file is read up to its
  last whole element.

Checksums and counters are compared where a container has them: Matroska (CRC-32), Ogg (CRC-32), MPEG-TS (continuity
counters, lengths of PES packets).
"""

import os
from pathlib import Path

from airstreams.data.containers import flv, gif, matroska, mp4, mpegps, mpegts, ogg, riff
from airstreams.data.containers.ending import Ending

# FFmpeg's names of the containers.
MP4, MATROSKA, MPEGTS, AVI = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts", "avi"
_ENDINGS = {
    MP4: mp4.ending,
    MATROSKA: matroska.ending,
    AVI: riff.ending,
    "flv": flv.ending,
    "gif": gif.ending,
    "mpeg": mpegps.ending,
    "ogg": ogg.ending,
}
# Streams without a container. Nothing says where the last picture ends.
_RAW = {"cavsvideo", "dirac", "h261", "h263", "h264", "hevc", "m4v", "mpegvideo", "obu", "vc1", "vvc"}

__all__ = ["AVI", "MATROSKA", "MP4", "MPEGTS", "Ending", "ending"]


def ending(path: str | os.PathLike[str], container: str, stream_id: int) -> Ending:
    """Where the sound part of a file ends.

    Args:
        path: a file that FFmpeg opens.
        container: FFmpeg's name of its format.
        stream_id: the container's number of the video stream.

    Raises:
        VideoError: the file is truncated, or damaged in the middle.
    """
    if container in _RAW:
        return Ending(open_ended=True, last_picture_whole=False)
    with Path(path).open("rb") as file:
        length = os.fstat(file.fileno()).st_size
        if container == MPEGTS:
            return mpegts.ending(file, length, stream_id)
        inspect = _ENDINGS.get(container)
        return inspect(file, length) if inspect is not None else Ending()
