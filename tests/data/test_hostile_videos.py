"""Files that pose as videos make FFmpeg open no other file and no address, and they are refused at once."""

import os
import shutil
import socket
import time

import pytest

from airstreams.data.video import check, probe, read_frames
from airstreams.errors import VideoError

SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n"
DASH = (
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT9S">'
    "<Period><AdaptationSet><Representation id='0' bandwidth='1' mimeType='video/mp4'><BaseURL>{address}</BaseURL>"
    "</Representation></AdaptationSet></Period></MPD>"
)
PLAYLISTS = {
    "concat.mp4": "ffconcat version 1.0\nfile '{video}'\n",
    "repeats.mp4": "ffconcat version 1.0\n" + "file '{video}'\n" * 2**14,
    "network.mp4": "ffconcat version 1.0\nfile '{address}'\n",
    "local.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{video}\n#EXT-X-ENDLIST\n",
    "remote.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{address}\n#EXT-X-ENDLIST\n",
    "endless.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{video}\n",
    "dash.mpd": DASH,
    "dash.mp4": DASH,
    "session.sdp": SDP,
    "session.mp4": SDP,
}


@pytest.fixture
def listener():
    """A socket of this machine; `accept` raises BlockingIOError unless somebody has connected."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


@pytest.fixture
def video(synthetic, tmp_path):
    found = next((synthetic / "videos").rglob("*.mp4"))
    return shutil.copy(found, tmp_path / "good.mp4")


@pytest.mark.parametrize("name", PLAYLISTS)
def test_playlists_that_pose_as_videos_are_refused(name, video, listener, tmp_path):
    port = listener.getsockname()[1]
    address = f"http://127.0.0.1:{port}/a.mp4"
    path = tmp_path / name
    path.write_text(PLAYLISTS[name].format(video=video, address=address, port=port))
    began = time.monotonic()
    for read in (check, probe, lambda file: read_frames(file, [0])):
        with pytest.raises(VideoError, match="not a video"):
            read(path)
    assert time.monotonic() - began < 2
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_a_numbered_picture_does_not_open_its_neighbours(video, tmp_path):
    for number in range(3):
        (tmp_path / f"frame{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99))
    for name in ("frame%d.png", "frame0.png"):
        with pytest.raises(VideoError, match=r"does not exist|not a video"):
            check(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_fifo_is_refused_without_being_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match="not a file"):
        check(tmp_path / "pipe.mp4")
