"""Videos that look like one recording, by their names and by their frames."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from rich.console import Console

from airstreams.console import Progress
from airstreams.data import similar
from airstreams.data.listing import Video, make_source
from airstreams.data.similar import find_alike, near_identical, siblings


def source_of(*names, labels=None, root=Path()):
    videos = [Video(root / name, name, labels or (name.split("/")[-2],)) for name in names]
    return make_source("data", videos, multi_label=labels is not None and len(labels) > 1)


@pytest.mark.parametrize(
    "names",
    [
        ("clap/tape1_003.mp4", "clap/tape1_004.mp4"),
        ("clap/Alice_clap_u_nm_np1_fr_med_0.mp4", "clap/Alice_clap_u_cm_np1_le_goo_11.mp4"),
        ("clap/person01_clap_d1_uncomp.avi", "clap/person01_clap_d2_uncomp.avi"),
        ("clap/Zoë.mp4", "clap/Zoë (2).mp4", "clap/Zoë - Copy.mp4", "clap/Zoë copy 2.mp4"),
        ("clap/Zoë_part3.mp4", "clap/Zoë part 4.mp4", "clap/Zoë.mp4"),
        ("clap/7_cam1.mp4", "clap/7-cam2.mp4"),
        ("train/turn left/Zoë, [1].mp4", "test/turn left/Zoë, [2].mp4"),
    ],
)
def test_sibling_names_are_found(names):
    folder = names[0].rpartition("/")[0]
    (found,) = siblings(source_of(*names, *(f"{folder}/{other}.mp4" for other in ("one more", "0815_x", "bob_3"))))
    assert set(found.names) == set(names)
    assert found.by == "names"


@pytest.mark.parametrize(
    "names",
    [
        ("clap/001.mp4", "clap/002.mp4"),
        ("clap/clip_1.mp4", "clap/clip_2.mp4"),
        ("clap/clap1.mp4", "clap/clap2.mp4"),
        ("clap/IMG_20230101_101010.mp4", "clap/IMG_20230101_101120.mp4"),
        ("clap/alice.mp4", "clap/bob.mp4"),
        ("clap/tape1_003.mp4", "wave/tape1_004.mp4"),
        ("train/clap/001.mp4", "test/clap/001.mp4"),
        *[tuple(f"clap/festival_{number}.mp4" for number in range(count)) for count in (3, 30)],
        tuple(f"clap/{name}.mp4" for name in ("a", "b", "c", *(f"festival_{number}" for number in range(12)))),
    ],
)
def test_names_that_only_count_are_no_siblings(names):
    assert siblings(source_of(*names)) == []


def test_siblings_of_multi_label_data_may_have_other_labels():
    videos = [
        Video(Path(name), name, labels) for name, labels in (("x/tape1_1.mp4", ("a", "b")), ("x/tape1_2.mp4", ()))
    ]
    (found,) = siblings(make_source("data", [*videos, Video(Path("x/y.mp4"), "x/y.mp4", ("b",))], multi_label=True))
    assert found.names == ("x/tape1_1.mp4", "x/tape1_2.mp4")


def encode_again(path, copy):
    """Half the size, another codec, few bits, and every second frame."""
    with av.open(str(path)) as read, av.open(str(copy), "w") as written:
        seen = read.streams.video[0]
        stream = written.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = seen.width // 4 * 2, seen.height // 4 * 2, "yuv420p"
        stream.bit_rate = 80_000
        for number, frame in enumerate(read.decode(seen)):
            if number % 2 == 0:
                picture = frame.reformat(stream.width, stream.height, "yuv420p")
                picture.pts = number // 2
                picture.time_base = Fraction(1, 12)
                written.mux(stream.encode(picture))
        written.mux(stream.encode())


def test_a_real_clip_that_was_encoded_again_is_found(test_data, tmp_path):
    clips = sorted((test_data / "jhmdb" / "videos" / "wave").glob("*.mp4"))[::4]
    for number, clip in enumerate(clips):
        (tmp_path / "wave").mkdir(exist_ok=True)
        (tmp_path / "wave" / f"{'abcdefghijklmnopqrstuvwxyz'[number]}.mp4").symlink_to(clip)
    encode_again(clips[3], tmp_path / "wave" / "again.mp4")
    (tmp_path / "wave" / "broken.mp4").write_bytes(b"no video")
    names = [f"wave/{path.name}" for path in (tmp_path / "wave").iterdir()]
    with Progress(Console(quiet=True)) as progress:
        found, note = find_alike(source_of(*names, "wave/absent.mp4", root=tmp_path), progress)
        _, too_many = find_alike(source_of(*names, root=tmp_path), progress, limit=3)
    assert note is None
    assert {item.names for item in found if item.by == "frames"} == {("wave/again.mp4", "wave/d.mp4")}
    assert too_many is not None


def test_without_imagehash_only_names_are_compared(monkeypatch):
    monkeypatch.setattr(similar, "find_spec", lambda name: None)
    found, note = find_alike(
        source_of("clap/tape1_1.mp4", "clap/tape1_2.mp4", "clap/x.mp4"), Progress(Console(quiet=True))
    )
    assert [item.by for item in found] == ["names"]
    assert "airstreams[near-duplicates]" in str(note)


def test_near_identical_agrees_with_a_plain_comparison(monkeypatch):
    """Random hashes, some of them copies with few flipped bits, some without contrast, in several blocks."""
    monkeypatch.setattr(similar, "_BLOCK", 7)
    draw = np.random.default_rng(0)
    hashes: dict[Path, np.ndarray] = {}
    for number in range(40):
        if number % 3 and number > 3:
            new = hashes[Path(f"{draw.integers(number):02}")].copy()
            new[draw.random(new.shape) < draw.choice([0.03, 0.1, 0.3])] *= -1
        else:
            new = draw.choice(np.array([-1, 1], np.int8), (3, 64))
        new[draw.random(3) < 0.1] = 0
        hashes[Path(f"{number:02}")] = new

    def alike(one, other):
        both = (one[:, 0] != 0) & (other[:, 0] != 0)
        return both.sum() >= 2 and (one[both] != other[both]).mean() <= similar.LARGEST_DISTANCE

    sets = [{path} for path in hashes]
    for one in hashes:
        for other in hashes:
            if alike(hashes[one], hashes[other]):
                joined = [members for members in sets if members & {one, other}]
                sets = [members for members in sets if members not in joined] + [set().union(*joined)]
    expected = sorted(sorted(members) for members in sets if len(members) > 1)
    assert sorted(near_identical(hashes)) == expected
    assert len(expected) > 3
