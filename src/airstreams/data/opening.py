"""Opening a video file with FFmpeg: its video stream, or the reason why there is none."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from airstreams.data.containers import MP4, Ending, ending
from airstreams.errors import VideoError

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


@contextmanager
def opened(
    path: str | os.PathLike[str], end: int | None = None, options: dict[str, str] | None = None
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and find its video stream. An error of FFmpeg inside the block becomes a VideoError.

    Args:
        path: the file.
        end: read only so many bytes of it; None: all.
        options: for FFmpeg's reader of the container.
    """
    # "file:" keeps a colon in the name from being read as a protocol.
    url = f"file:{os.fspath(path)}"
    protocols = "file"
    if end is not None:
        url, protocols = f"subfile,,start,0,end,{end},,:{url}", "subfile,file"
    only_this_file = {"format_whitelist": _CONTAINERS, "protocol_whitelist": protocols}
    try:
        container = av.open(url, "r", options=only_this_file | (options or {}), **_TAGS)
    except av.error.ArgumentError as error:  # FFmpeg's answer to a format that is not on the list, among others
        raise VideoError(_reason_not_to_open(path, "a picture, a text or a playlist")) from error
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(_reason_not_to_open(path)) from error
    with container:
        if not len(container.streams):
            raise VideoError(_reason_not_to_open(path))
        stream = _video_stream(container)
        if stream is None:
            if container.format.name == MP4:
                ending(path, MP4, 0)  # refuses a file whose index is cut
            raise VideoError("no video stream")
        if stream.codec_context is None:
            raise VideoError("unreadable: no decoder for its codec")
        stream.codec_context.thread_count = 1
        try:
            yield container, stream
        except av.error.FFmpegError as error:
            raise VideoError(f"unreadable: {error.strerror}") from error


def _video_stream(container: InputContainer) -> VideoStream | None:
    """The default video stream, then the largest, then the first; never a cover picture. None: there is none."""
    flags = av.stream.Disposition

    def rank(stream: VideoStream) -> tuple[bool, bool, int]:
        context = stream.codec_context
        size = 0 if context is None else (context.width or 0) * (context.height or 0)
        return context is not None, bool(stream.disposition & flags.default), size

    videos = [stream for stream in container.streams.video if not stream.disposition & flags.attached_pic]
    return max(videos, key=rank, default=None)


def find_ending(path: str | os.PathLike[str], container: InputContainer, stream: VideoStream) -> Ending:
    """Where the sound part of an opened file ends. VideoError: it is truncated, or damaged in the middle."""
    found = ending(path, container.format.name, stream.id)
    if found.end == 0:
        raise VideoError("truncated: it has no whole picture")
    return found


def version_of(path: str | os.PathLike[str]) -> tuple[str, int, int]:
    """The file's path, modification time in ns and size in bytes."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError) as error:
        raise VideoError(_reason_not_to_open(path)) from error
    if not stat.S_ISREG(status.st_mode):  # reading from a pipe could block forever
        raise VideoError(_reason_not_to_open(path))
    return os.fspath(path), status.st_mtime_ns, status.st_size


def _reason_not_to_open(path: str | os.PathLike[str], otherwise: str = "no known format") -> str:
    file = Path(path)
    try:
        if not file.exists():
            return "does not exist"
        if file.is_dir():
            return "a folder, not a video; give the files in it"
        if not file.is_file():
            return "not a file"
        with file.open("rb") as content:
            head = content.read(12)
    except OSError as error:
        return f"unreadable: {error.strerror}"
    if not head:
        return "empty file"
    is_avi = head.startswith(b"RIFF") and head[8:] in (b"AVI ", b"")
    if is_avi or head[4:8] in (b"ftyp", b"moov", b"mdat") or head.startswith(b"\x1aE\xdf\xa3"):
        return "truncated: it begins like a video, but its header or index is missing or cut"
    return f"not a video: {otherwise}"


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Every VideoError inside the block gets the file's path."""
    try:
        yield
    except VideoError as error:
        raise VideoError(error.reason, path) from error
