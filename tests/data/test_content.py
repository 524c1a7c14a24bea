"""The content of a video file: the same for copies under any name, in any container; another after encoding again."""

import io
import shutil

import av
import numpy as np
import pytest
from rich.console import Console

from airstreams.data import content, label_maps
from airstreams.data.content import content_of, with_contents
from airstreams.data.sources import open_source
from airstreams.errors import InputError, VideoError

QUIET = Console(quiet=True)


def encode(path, codec="libx264", gop=12, frames=10, pixels="yuv420p"):
    """A noisy video, whose H.264 and HEVC have B-frames."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 96, 64, pixels, gop
        for number in range(frames):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(noise, number, 1), format="rgb24")))
        file.mux(stream.encode())
    return path


def copied_stream(path, to):
    """What `ffmpeg -c copy` does."""
    with av.open(str(path)) as file, av.open(str(to), "w") as out:
        stream = out.add_stream_from_template(file.streams.video[0])
        for packet in file.demux(file.streams.video[0]):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    return to


@pytest.mark.parametrize(
    ("codec", "first", "others"),
    [
        ("libx264", "mp4", ("mkv", "mov", "ts")),
        ("libx265", "mp4", ("mkv", "ts")),
        ("libvpx-vp9", "webm", ("mp4",)),
        ("mpeg4", "avi", ("mp4", "ts")),
        ("mjpeg", "avi", ("mp4", "mkv")),
    ],
)
def test_another_container_keeps_the_content(tmp_path, codec, first, others):
    video = encode(tmp_path / f"a.{first}", codec, pixels="yuvj420p" if codec == "mjpeg" else "yuv420p")
    for other in others:
        moved = copied_stream(video, tmp_path / f"b.{other}")
        assert content_of(moved) == content_of(video)
        if other == "ts":
            assert content_of(copied_stream(moved, tmp_path / "back.mp4")) == content_of(video)


def test_a_copy_keeps_the_content_and_other_pictures_change_it(tmp_path):
    video = encode(tmp_path / "a.mp4")
    assert content_of(shutil.copy(video, tmp_path / "[ö], b")) == content_of(video)
    encoded_again, shorter = encode(tmp_path / "b.mp4", gop=5), encode(tmp_path / "c.mp4", frames=9)
    assert len({content_of(path) for path in (video, encoded_again, shorter)}) == 3
    before = content_of(video)
    shutil.copy(shorter, video)
    assert content_of(video) == content_of(shorter) != before


def test_a_file_that_cannot_be_read_has_no_content(videos, tmp_path):
    (videos / "test" / "disc_up" / "000.mp4").write_text("Not a film at all.")
    with pytest.raises(VideoError):
        content_of(videos / "test" / "disc_up" / "000.mp4")
    with pytest.raises(VideoError, match="does not exist"):
        content_of(tmp_path / "missing.mp4")
    source = with_contents(open_source(str(videos)), QUIET, "test")
    found = {video.name: video.content for video in source.videos}
    assert found["test/disc_up/000.mp4"] is None
    assert len({content for content in found.values() if content}) == 7
    assert not any(content for name, content in found.items() if name.startswith("train"))


def test_progress_is_shown_only_where_it_takes_a_while(videos, monkeypatch):
    shown = []

    class Recorder(content.Progress):
        def add_task(self, description, total, *options, **more_options):
            shown.append((description, total))
            return super().add_task(description, total, *options, **more_options)

    source = open_source(str(videos))
    monkeypatch.setattr(content, "Progress", Recorder)
    with_contents(source, QUIET)
    assert shown == []
    monkeypatch.setattr(content, "SHOW_PROGRESS_AFTER", 0.0)
    with_contents(source, QUIET)
    assert shown == [("identifying videos", 32)]


@pytest.fixture
def store(videos, tmp_path):
    """Label maps of the four classes' first test videos, which the store knows by content too."""
    source = with_contents(open_source(str(videos)), QUIET)
    kept = label_maps.create(tmp_path / "labels", "somebody", ["background", "thing"], {})
    contents = {}
    for video in source.split("test")[::2]:
        label_maps.save(kept.root, str(video.label_map), np.zeros((1, 32, 32), np.uint8), [0])
        contents[str(video.label_map)] = str(video.content)
    kept.write_contents(contents)
    return kept


def found(data, store, split=None):
    """The key of each video that has label maps, and what was printed."""
    output = io.StringIO()
    source = content.follow_label_maps(open_source(str(data), store.root), Console(file=output, width=500), split)
    keys = {video.name: video.label_map for video in source.videos}
    return {name: key for name, key in keys.items() if key is not None and store.has(key)}, output.getvalue()


def test_label_maps_are_found_after_a_move_from_a_folder_to_a_csv(videos, store, tmp_path):
    names = [f"test/{name}/000.mp4" for name in ("disc_left", "disc_up", "square_left", "square_up")]
    expected = {name: name[:-4] for name in names}
    assert found(videos, store) == (expected, "")
    shutil.move(videos / "test", tmp_path / "[x] ö")
    rows = [f'"[x] ö/{name[5:]}",{name.split("/")[1]}' for name in names]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    keys, said = found(tmp_path / "list.csv", store)
    assert keys == {f"[x] ö/{name[5:]}": name[:-4] for name in names}
    assert "4 videos under other names, such as test/disc_left/000 for [x] ö/disc_left/000.mp4" in said
    assert "warning" not in said


def test_the_content_decides_between_two_label_maps(videos, store):
    first, second = (videos / "test" / name / "000.mp4" for name in ("disc_left", "disc_up"))
    first.rename(videos / "swapped.mp4")
    second.rename(first)
    (videos / "swapped.mp4").rename(second)
    keys, _ = found(videos, store)
    assert keys["test/disc_left/000.mp4"] == "test/disc_up/000"
    assert keys["test/disc_up/000.mp4"] == "test/disc_left/000"
    # Another video has the name now, and the label maps of that name belong to `second`.
    encode(first)
    keys, _ = found(videos, store)
    assert "test/disc_left/000.mp4" not in keys
    assert keys["test/disc_up/000.mp4"] == "test/disc_left/000"


def test_a_changed_video_keeps_the_label_maps_of_its_name_with_a_warning(videos, store):
    encode(videos / "test" / "disc_up" / "000.mp4")
    keys, said = found(videos, store)
    assert keys["test/disc_up/000.mp4"] == "test/disc_up/000"
    assert "warning: 1 video changed" in said
    assert "test/disc_up/000.mp4" in said


def test_label_maps_that_are_there_twice_give_one_warning(videos, store):
    shutil.copy(store.root / "test/disc_up/000.npz", store.root / "copy.npz")
    store.write_contents(store.read_contents() | {"copy": store.read_contents()["test/disc_up/000"]})
    assert found(videos, store)[1] == ""  # the name decides
    (videos / "test" / "disc_up" / "000.mp4").rename(videos / "test" / "disc_up" / "new.mp4")
    keys, said = found(videos, store)
    assert keys["test/disc_up/new.mp4"] == "copy"
    assert "warning" in said
    assert "copy and test/disc_up/000" in said


def test_a_store_without_these_videos_is_refused(videos, store, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "other" / name).mkdir(parents=True)
        encode(tmp_path / "other" / name / "1.mp4", gop=ord(name))
    with pytest.raises(InputError, match="no label maps"):
        found(tmp_path / "other", store)
    (store.root / "contents.csv").unlink()  # as of version 0.2
    with pytest.raises(InputError, match="no label maps"):
        open_source(str(tmp_path / "other"), store.root)
    assert len(found(videos, store)[0]) == 4
