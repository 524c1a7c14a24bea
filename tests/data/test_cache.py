"""A file is replaced by garbage of the same size and time, so that only the cache can return its content."""

import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from rich.console import Console

from airstreams.console import Progress
from airstreams.data import cache as frame_cache
from airstreams.data import label_maps
from airstreams.data.cache import FrameCache
from airstreams.data.check import check_videos
from airstreams.data.label_maps import NO_LABEL
from airstreams.data.listing import Video
from airstreams.data.sources import open_source
from airstreams.data.video import iterate_frames, probe, read_frames
from airstreams.errors import InputError, VideoError
from airstreams.machine import cpus

PLENTY = 10**9
SIDE = 48  # px; the synthetic videos are of 64, 8 frames
ENTRY = 128 + 8 * SIDE * SIDE * 3  # bytes, with the header of .npy
QUIET = Progress(Console(quiet=True))

BUILD = """
import sys
from pathlib import Path
from rich.console import Console
from airstreams.console import Progress
from airstreams.data.cache import FrameCache
from airstreams.data.sources import open_source
data, root, limit, index, count = sys.argv[1:]
labels = Path(data) / "labels"
source = open_source(data + "/videos", labels if labels.exists() else None)
cache = FrameCache(Path(root), int(limit), 48)
print("ready", flush=True)
sys.stdin.readline()
cache.prepare(source.videos, source.label_store, Progress(Console(quiet=True)), (int(index), int(count)))
"""


@pytest.fixture
def root(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def data(tmp_path, synthetic):
    """Three training videos of each class, with their label maps, that may be damaged."""
    for name in ("labels/labels.json", *(f"{kind}/train/*/00[0-2].*" for kind in ("videos", "labels"))):
        for path in synthetic.glob(name):
            copy = tmp_path / "data" / path.relative_to(synthetic)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
    return tmp_path / "data"


@pytest.fixture
def source(data):
    return open_source(str(data / "videos"), data / "labels")


def entries(root, kind="frames"):
    return sorted(path for path in (root / kind).iterdir() if not path.name.startswith("."))


def temporaries(root):
    return [path for kind in ("frames", "labels") for path in (root / kind).glob(".*")]


def damage(path):
    """Make the file unreadable, but keep its size and modification time."""
    before = path.stat()
    path.write_bytes(b"\x01" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def prepare(root, source, limit=PLENTY, videos=None, side=SIDE):
    """The cache, and its warnings on the console."""
    cache, output = FrameCache(root, limit, side), io.StringIO()
    with Progress(Console(file=output, width=200)) as progress:
        cache.prepare(source.videos if videos is None else videos, source.label_store, progress)
    return cache, "".join(line for line in output.getvalue().splitlines(keepends=True) if line.startswith("warning: "))


def start_build(data, root, limit=PLENTY, share=(0, 1)):
    arguments = [str(value) for value in (data, root, limit, *share)]
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def build_at_once(processes):
    for process in processes:
        assert process.stdout.readline() == b"ready\n", process.communicate()[1].decode()
    for process in processes:
        process.stdin.write(b"\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()


def render(path, codec, pixels, size, turn=None, frames=20):
    """Render noise that changes from frame to frame, possibly with a rotation in the header."""
    rng = np.random.default_rng(0)
    width, height = size
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=30, options={"g": "6"})
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.codec_context.time_base = Fraction(1, 30)
        for count in range(frames):
            blocks = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
            picture = np.ascontiguousarray(blocks.repeat(8, 0).repeat(8, 1)[:height, :width])
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = count, Fraction(1, 30)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    if turn is not None:
        header = bytearray(path.read_bytes())
        begin = header.index(b"tkhd") + 44
        matrix = [value << 16 for value in turn]
        cells = [matrix[0], matrix[1], 0, matrix[2], matrix[3], 0, 0, 0, 1 << 30]
        header[begin : begin + 36] = b"".join(cell.to_bytes(4, "big", signed=True) for cell in cells)
        path.write_bytes(header)
    return path


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "size", "turn"),
    [
        ("turned.mp4", "libx264", "yuv420p", (160, 96), (0, 1, -1, 0)),
        ("mirrored.mp4", "libx264", "yuv420p", (160, 96), (-1, 0, 0, 1)),
        ("odd.mkv", "libx264", "yuv444p", (161, 91), None),
        ("counted.avi", "mpeg4", "yuv420p", (160, 96), None),
        ("vp9.webm", "libvpx-vp9", "yuv420p", (96, 160), None),
    ],
)
@pytest.mark.parametrize("side", [45, 500])
def test_cached_frames_equal_the_files_frames(tmp_path, root, name, codec, pixels, size, turn, side):
    video = Video(render(tmp_path / name, codec, pixels, size, turn), name, ("a",))
    asks: list[Sequence[int] | np.ndarray] = [range(20), [19], [3, 3, 0, 17, 4], np.array([5, 6]), []]
    expected = [read_frames(video.path, ask, short_side=side) for ask in asks]
    np.testing.assert_array_equal(list(iterate_frames(video.path, side)), expected[0])
    cache = FrameCache(root, PLENTY, side)
    cache.prepare([video], None, QUIET)
    damage(video.path)
    for ask, frames in zip(asks, expected, strict=True):
        cached = cache.read_frames(video.path, ask)
        assert cached.dtype == np.uint8
        np.testing.assert_array_equal(cached, frames)


def test_frames_and_label_maps_come_from_the_cache(root, source):
    indices = np.array([0, 7, 3, 3])
    frames = [read_frames(video.path, indices, short_side=SIDE) for video in source.videos]
    labels = [source.label_store.read(video.label_map, indices) for video in source.videos]
    cache, output = prepare(root, source)
    assert output == ""
    assert temporaries(root) == []
    for video in source.videos:
        damage(video.path)
        damage(source.label_store.root / f"{video.label_map}.npz")
    again = FrameCache(root, PLENTY, SIDE)  # as in a later run
    again.prepare(source.videos, source.label_store, QUIET)
    for reader in (cache, again, pickle.loads(pickle.dumps(cache))):
        for video, frames_NHW3, labels_NHW in zip(source.videos, frames, labels, strict=True):
            np.testing.assert_array_equal(reader.read_frames(video.path, indices), frames_NHW3)
            np.testing.assert_array_equal(
                reader.read_label_maps(source.label_store, video.label_map, indices), labels_NHW, strict=True
            )


def test_cached_label_maps_equal_the_stores(root, source):
    store, video = source.label_store, source.videos[0]
    maps = np.random.default_rng(0).integers(0, 2, (2, 6, 5), np.uint8)
    label_maps.save(store.root, "some", maps, [2, 5])
    label_maps.save(store.root, "nothing", maps[:0], [])
    label_maps.save(store.root, "wrong", maps + 100, [0, 1])
    videos = [replace(video, label_map=key) for key in ("some", "nothing", "wrong", "absent")]
    cache, _ = prepare(root, source, videos=videos)
    np.testing.assert_array_equal(
        cache.read_label_maps(store, "some", [5, 0, 2, 9, 5]),
        [maps[1], np.full((6, 5), NO_LABEL), maps[0], np.full((6, 5), NO_LABEL), maps[1]],
    )
    for key, indices in (("some", [3]), ("some", []), ("nothing", [0, 1])):
        np.testing.assert_array_equal(cache.read_label_maps(store, key, indices), store.read(key, indices), strict=True)
    assert cache.read_label_maps(store, "absent", [0]) is None
    with pytest.raises(VideoError, match="class id"):
        cache.read_label_maps(store, "wrong", [0])
    fewer = replace(store, classes=store.classes[:1])  # the cached ids were checked with more classes
    with pytest.raises(VideoError, match="class id"):
        cache.read_label_maps(fewer, "some", [2])


def test_an_index_out_of_range_is_refused(root, source):
    cache, _ = prepare(root, source)
    for index in (-1, 8):
        with pytest.raises(InputError, match=r"got frame .* 0 to 7"):
            cache.read_frames(source.videos[0].path, [0, index])


def test_nothing_is_written_before_prepare(root, source):
    cache = FrameCache(root, PLENTY, SIDE)
    path = source.videos[0].path
    assert not cache.holds(path)
    np.testing.assert_array_equal(cache.read_frames(path, [1]), read_frames(path, [1], short_side=SIDE))
    assert not root.exists()


def test_an_unchanged_good_file_is_not_checked_again(root, source):
    prepare(root, source)
    good, renamed, rewritten, evicted = source.videos[:4]
    for video in (good, renamed, rewritten, evicted):
        probe(video.path)
        damage(video.path)
    os.utime(rewritten.path)
    renamed.path.rename(renamed.path.with_name("renamed.mp4"))
    renamed = replace(renamed, path=renamed.path.with_name("renamed.mp4"))
    cache = FrameCache(root, PLENTY, SIDE)
    entry = cache._entry(evicted.path, "frames", cache._frame_settings)
    assert entry is not None
    entry.unlink()
    videos = [good, renamed, rewritten, evicted]
    assert [cache.holds(video.path) for video in videos] == [True, False, False, False]
    passed, bad, _ = check_videos(videos, QUIET, cache)
    assert passed == [good]
    assert [item.video for item in bad] == [renamed, rewritten, evicted]
    assert [item.video for item in check_videos(videos, QUIET)[1]] == videos


def test_another_short_side_has_entries_of_its_own(root, source):
    prepare(root, source)
    path = source.videos[0].path
    other = FrameCache(root, PLENTY, SIDE // 2)
    assert not other.holds(path)
    assert other.read_frames(path, [0]).shape == (1, SIDE // 2, SIDE // 2, 3)


def test_a_changed_file_is_cached_anew(root, source):
    cache, _ = prepare(root, source)
    first, second = source.videos[0].path, source.videos[1].path
    expected = read_frames(second, range(8), short_side=SIDE)
    shutil.copy(second, first)
    np.testing.assert_array_equal(cache.read_frames(first, range(8)), expected)
    count = len(entries(root))
    cache.prepare(source.videos, source.label_store, QUIET)
    assert len(entries(root)) == count  # both files are equal now, and the old entry stays until space is needed
    damage(first)
    np.testing.assert_array_equal(cache.read_frames(first, range(8)), expected)


def test_moved_and_copied_videos_are_found(root, source, data):
    prepare(root, source)
    before = {path: path.stat().st_ino for kind in ("frames", "labels") for path in entries(root, kind)}
    (data / "videos").rename(data / "elsewhere")
    shutil.copytree(data / "elsewhere", data / "copy")
    for folder in ("elsewhere", "copy"):
        moved = open_source(str(data / folder), data / "labels")
        cache, _ = prepare(root, moved)
        assert all(cache.holds(video.path) for video in moved.videos)
    assert {path: path.stat().st_ino for kind in ("frames", "labels") for path in entries(root, kind)} == before


@pytest.mark.parametrize("damaged", ["removed", "cut", "empty", "garbage"])
def test_a_missing_or_damaged_entry_is_replaced_by_decoding(root, source, damaged):
    cache, _ = prepare(root, source)
    for kind in ("frames", "labels"):
        for entry in entries(root, kind):
            whole = entry.read_bytes()
            entry.unlink()
            if damaged != "removed":
                entry.write_bytes({"cut": whole[:1000], "empty": b"", "garbage": b"x" * len(whole)}[damaged])
    store, video = source.label_store, source.videos[0]
    expected = read_frames(video.path, range(8), short_side=SIDE)
    np.testing.assert_array_equal(cache.read_frames(video.path, range(8)), expected)
    np.testing.assert_array_equal(
        cache.read_label_maps(store, video.label_map, range(8)), store.read(video.label_map, range(8))
    )


def test_a_bad_video_is_skipped_and_refused_when_read(root, source):
    cut, damaged, good = source.videos[:3]
    whole = cut.path.read_bytes()
    cut.path.write_bytes(whole[: len(whole) // 2])
    content = bytearray(damaged.path.read_bytes())
    begin = content.index(b"mdat") + 4
    content[begin + (len(content) - begin) // 2 :] = b"\xff" * ((len(content) - begin + 1) // 2)
    damaged.path.write_bytes(content)
    cache, output = prepare(root, source, videos=[cut, damaged, good])
    assert output == ""
    assert temporaries(root) == []
    assert [cache.holds(video.path) for video in (cut, damaged, good)] == [False, False, True]
    with pytest.raises(VideoError):
        cache.read_frames(cut.path, range(8))


def test_videos_without_space_are_decoded_with_one_warning(root, source):
    frames_only = replace(source, label_store=None)
    cache, output = prepare(root, frames_only, limit=5 * ENTRY)
    assert [path.stat().st_size for path in entries(root)] == [ENTRY] * 5
    left_out = len(source.videos) - 5
    assert output.count("\n") == 1
    assert str(root) in output
    assert f" {left_out} files" in output
    before = entries(root)
    prepare(root, frames_only, limit=5 * ENTRY)  # the run's own entries do not remove each other
    assert entries(root) == before
    for video in source.videos:
        np.testing.assert_array_equal(
            cache.read_frames(video.path, [7, 0]), read_frames(video.path, [7, 0], short_side=SIDE)
        )


def test_the_longest_unused_entries_are_removed(root, source):
    frames_only = replace(source, label_store=None)
    sets = [source.videos[begin : begin + 2] for begin in (0, 2, 4)]
    own: list[set[Path]] = []
    for age, videos in ((300, sets[0]), (100, sets[1]), (200, sets[2])):
        earlier = set().union(*own)
        prepare(root, frames_only, videos=videos)
        own.append(set(entries(root)) - earlier)
        for path in own[-1]:
            moment = time.time() - age
            os.utime(path, (moment, moment))
    # There is space for six entries. The oldest set is in use again and stays, so the second oldest is removed.
    new = source.videos[6:9]
    prepare(root, frames_only, limit=6 * ENTRY, videos=[*sets[0], *new])
    left = set(entries(root))
    assert len(left) == 6
    assert own[0] < left
    assert not own[2] & left
    assert len(own[1] & left) == 1


def test_foreign_files_are_never_removed(root, source):
    """For example a label store, where the cache is given the folder that contains it."""
    theirs = [root / "labels" / "labels.json", root / "labels" / ".gitignore", root / "frames" / "notes.npy"]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        os.utime(path, (0, 0))
    prepare(root, source)
    prepare(root, source, limit=ENTRY)
    assert [path.read_text() for path in theirs] == ["mine"] * 3
    own = {*entries(root), *entries(root, "labels")} - set(theirs)
    assert sum(path.stat().st_size for path in own) <= ENTRY


def test_a_full_cache_opens_no_further_videos(root, source, monkeypatch):
    frames_only = replace(source, label_store=None)
    prepare(root, frames_only, limit=5 * ENTRY)
    opened: list[Path] = []
    frames_of = frame_cache._frames_of

    def open_frames(path, side, deinterlace):
        opened.append(path)
        return frames_of(path, side, deinterlace)

    monkeypatch.setattr(frame_cache, "_frames_of", open_frames)
    _, output = prepare(root, frames_only, limit=5 * ENTRY)
    assert len(opened) <= cpus()  # those in progress when the first was refused
    assert f" {len(source.videos) - 5} files" in output


def test_a_lower_limit_shrinks_the_folder(root, source):
    prepare(root, source)
    limit = 3 * ENTRY + 100
    prepare(root, source, limit=limit)
    assert sum(path.stat().st_size for kind in ("frames", "labels") for path in entries(root, kind)) <= limit
    assert entries(root) or entries(root, "labels")


def test_processes_can_build_one_folder_at_once(data, root, source):
    build_at_once([start_build(data, root) for _ in range(3)])
    assert temporaries(root) == []
    assert len(entries(root)) == len(source.videos)
    cache = FrameCache(root, PLENTY, SIDE)
    for video in source.videos:
        assert cache.holds(video.path)
        expected = read_frames(video.path, range(8), short_side=SIDE)
        damage(video.path)
        np.testing.assert_array_equal(cache.read_frames(video.path, range(8)), expected)


def test_each_process_adds_its_share(data, root, source):
    build_at_once([start_build(data, root, share=(1, 3))])
    assert len(entries(root)) + len(entries(root, "labels")) == pytest.approx(2 * len(source.videos) / 3, abs=1)
    build_at_once([start_build(data, root, share=(index, 3)) for index in (0, 2)])
    cache = FrameCache(root, PLENTY, SIDE)
    assert all(cache.holds(video.path) for video in source.videos)
    assert len(entries(root, "labels")) == len(source.videos)


def test_the_limit_holds_for_processes_that_build_at_once(data, root, source):
    limit, count = 8 * ENTRY, 3
    build_at_once([start_build(data, root, limit) for _ in range(count)])
    used = sum(path.stat().st_size for kind in ("frames", "labels") for path in entries(root, kind))
    in_progress = count * cpus() * ENTRY  # counted while it is written, also where several write the same entry
    assert max(0, limit - in_progress) < used <= limit + (count - 1) * ENTRY
    prepare(root, source, limit)
    assert sum(path.stat().st_size for kind in ("frames", "labels") for path in entries(root, kind)) <= limit


@pytest.mark.slow
def test_a_killed_build_leaves_only_whole_entries(tmp_path, root):
    for number in range(6):
        folder = tmp_path / "long" / "videos" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        render(folder / f"{number}.mp4", "libx264", "yuv420p", (64 + 2 * number, 64), frames=400)
    source = open_source(str(tmp_path / "long" / "videos"))
    process = start_build(tmp_path / "long", root)
    assert process.stdout.readline() == b"ready\n", process.communicate()[1].decode()
    process.stdin.write(b"\n")
    process.stdin.flush()
    for _ in range(10_000):  # until one entry is whole and one is in progress
        process.send_signal(signal.SIGSTOP)
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), "it finished before it could be killed"
        if (root / "frames").exists() and entries(root) and any(path.stat().st_size for path in temporaries(root)):
            break
        process.send_signal(signal.SIGCONT)
        time.sleep(0.005)
    process.kill()
    process.communicate()
    abandoned = temporaries(root)
    sizes = [path.stat().st_size for path in abandoned]
    assert max(sizes) >= 400 * SIDE * SIDE * 3, "an entry has its full size from the beginning"
    whole = entries(root)
    assert 0 < len(whole) < 6
    for path in whole:
        assert np.load(path).shape[0] == 400

    cache, _ = prepare(root, source)
    assert temporaries(root) == abandoned  # another process might still be writing them
    for video in source.videos:
        expected = read_frames(video.path, range(400), short_side=SIDE)
        damage(video.path)
        np.testing.assert_array_equal(cache.read_frames(video.path, range(400)), expected)
    for path in abandoned:
        os.utime(path, (time.time() - 3600, time.time() - 3600))
    cache.prepare(source.videos, None, QUIET)
    assert temporaries(root) == []
    assert len(entries(root)) == 6


def test_a_full_disk_gives_one_warning(data, root, source):
    # A limit on the size of files has the same effect as a full disk: writing fails.
    script = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({ENTRY // 2}, {ENTRY // 2}))
{BUILD.replace("Progress(Console(quiet=True))", "Progress(Console())")}
from airstreams.data.video import read_frames
for video in source.videos:
    assert (cache.read_frames(video.path, [1, 0]) == read_frames(video.path, [1, 0], short_side=48)).all()
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(data), str(root), str(PLENTY), "0", "1"],
        input="\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(str(root)) == done.stdout.count("warning: ") == 1, done.stdout
    assert temporaries(root) == []
    assert entries(root) == []


@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, source, folder):
    (tmp_path / "file").write_text("not a folder")
    cache = FrameCache(tmp_path / folder, PLENTY, SIDE)
    assert not cache.holds(source.videos[0].path)
    with pytest.raises(InputError, match=f"cache: got {tmp_path}"):
        cache.prepare(source.videos, None, QUIET)
