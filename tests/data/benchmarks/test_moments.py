import shutil

import numpy as np
import pytest
from rich.console import Console

from airstreams.console import Progress
from airstreams.data.check import check_videos
from airstreams.data.sources import open_source
from airstreams.data.splits import automatic_split
from airstreams.data.synthetic import encode, make_clip
from airstreams.errors import InputError

TRAIN = """\
dancing/yt-5of6ffo6-Bw_205.mp4,dancing,3,0
dancing/yt-5of6ffo6-Bw_31.mp4,dancing,4,1
dancing/flickr-2-7-9-9-3-24227993375_8.mp4,dancing,3,0
playing+music/yt-5of6ffo6-Bw_90.mp4,playing+music,3,0
playing+music/getty-karate-video-id635808620_4.mp4,playing+music,5,2
"""
VALIDATION = """\
playing+music/yt-zz_zz_1.mp4,playing+music,12,1
dancing/yt-5of6ffo6-Bw_205.mp4,dancing,9,0
"""
NEWER = ["dancing", "playing+music", *(f"verb{number:03d}" for number in range(303))]
OLDER = [*NEWER, *(f"verb{number:03d}" for number in range(303, 337))]


def write_classes(root, release):
    if release == "305":
        (root / "moments_classes.txt").write_text("".join(f"{name}\n" for name in reversed(NEWER)))
    else:
        lines = [f"{name},{number}\n" for number, name in enumerate(reversed(OLDER))]
        (root / "moments_categories.txt").write_text("".join(lines))


@pytest.fixture
def bare(tmp_path):
    """Moments' layout with seven empty videos, without the list of classes."""
    for folder, rows in (("training", TRAIN), ("validation", VALIDATION)):
        (tmp_path / f"{folder}Set.csv").write_text(rows)
        for row in rows.splitlines():
            video = tmp_path / folder / row.partition(",")[0]
            video.parent.mkdir(parents=True, exist_ok=True)
            video.touch()
    return tmp_path


@pytest.fixture
def root(bare):
    """The same with the older release's classes."""
    write_classes(bare, "339")
    return bare


def refusal(data):
    with pytest.raises(InputError) as caught:
        open_source(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("release", "classes"), [("339", OLDER), ("305", NEWER)])
def test_both_releases_are_read(bare, release, classes):
    write_classes(bare, release)
    source = open_source(f"moments:{bare}")
    assert source.classes == tuple(sorted(classes))
    assert len(source.classes) == int(release)
    assert source.videos == open_source(f"moments:{bare}?release={release}").videos
    assert [video.name for video in source.videos] == sorted(
        [f"training/{row.split(',')[0]}" for row in TRAIN.splitlines()]
        + [f"validation/{row.split(',')[0]}" for row in VALIDATION.splitlines()]
    )
    assert not source.multi_label
    assert (len(source.split("train")), len(source.split("test"))) == (5, 2)
    video = source.split("test")[1]
    assert video.path == bare / "validation/playing+music/yt-zz_zz_1.mp4"
    assert video.labels == ("playing+music",)
    assert (video.group, video.label_map) == ("yt-zz_zz", "validation/playing+music/yt-zz_zz_1")


def test_the_real_class_names_are_read(bare, test_data):
    shutil.copyfile(test_data / "annotations" / "moments_classes.txt", bare / "moments_classes.txt")
    classes = open_source(f"moments:{bare}?release=305").classes
    assert len(classes) == 305
    assert classes[:2] == ("adult+female+singing", "adult+female+speaking")


def test_clips_of_one_video_stay_in_one_split(root):
    train = open_source(f"moments:{root}").split("train")
    assert [video.group for video in train] == [
        "flickr-2-7-9-9-3-24227993375",
        "yt-5of6ffo6-Bw",
        "yt-5of6ffo6-Bw",
        "getty-karate-video-id635808620",
        "yt-5of6ffo6-Bw",
    ]
    for seed in range(5):
        split = automatic_split(train, seed, val_fraction=0.4, test_fraction=0)
        assert len({split[video.name] for video in train if video.group == "yt-5of6ffo6-Bw"}) == 1


def test_a_missing_or_ambiguous_release_is_refused(bare):
    text = refusal(f"moments:{bare}")
    assert "lacks moments_categories.txt or moments_classes.txt. " in text
    write_classes(bare, "305")
    text = refusal(f"moments:{bare}?release=339")
    assert "lacks moments_categories.txt but has moments_classes.txt, of release=305. " in text
    write_classes(bare, "339")
    assert "?release=339 or 305" in refusal(f"moments:{bare}")
    assert len(open_source(f"moments:{bare}?release=339").classes) == 339
    assert len(open_source(f"moments:{bare}?release=305").classes) == 305


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            [f"{name},0" for name in NEWER],
            "has 305 class names in 305 lines; expected 339, one per line, as `name,index`",
        ),
        (OLDER, "has 0 class names in 339 lines; expected 339"),
        ([f"{name},0" for name in [*OLDER[:-1], "dancing"]], "has 338 class names in 339 lines; expected 339"),
        ([], "has 0 class names in 0 lines; expected 339"),
    ],
)
def test_wrong_class_lists_are_refused(bare, lines, expected):
    (bare / "moments_categories.txt").write_text("".join(f"{line}\n" for line in lines))
    assert expected in refusal(f"moments:{bare}")


def test_missing_files_are_named(root):
    (root / "training/dancing/yt-5of6ffo6-Bw_31.mp4").unlink()
    shutil.rmtree(root / "validation/playing+music")
    text = refusal(f"moments:{root}")
    assert "lacks 2 of 7 videos, such as training/dancing/yt-5of6ffo6-Bw_31.mp4. " in text
    assert "http://moments.csail.mit.edu" in text
    (root / "validationSet.csv").unlink()
    assert "lacks validationSet.csv. " in refusal(f"moments:{root}")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("dancing/a_1.mp4,dancing,3", "line 3: 'dancing/a_1.mp4,dancing,3'; expected rows"),
        ("dancing/a_1.mp4,dancing,3,0,0", "line 3: 'dancing/a_1.mp4,dancing,3,0,0'; expected rows"),
        ("dancing/a_1.mp4,,3,0", "line 3: 'dancing/a_1.mp4,,3,0'; expected rows"),
        ("", "line 3: ''; expected rows"),
        ('"dancing/a_1.mp4', "(unexpected end of data); expected rows"),
        ("dancing/a_1.mp4,waltzing,3,0", "line 3: 'waltzing' "),
        ("playing+music/yt-zz_zz_1.mp4,dancing,3,0", "line 3: playing+music/yt-zz_zz_1.mp4 "),
    ],
)
def test_lists_of_another_format_are_refused(root, row, expected):
    (root / "validationSet.csv").write_text(f"{VALIDATION}{row}\n")
    text = refusal(f"moments:{root}")
    assert "validationSet.csv" in text
    assert expected in text


def test_videos_of_the_data_set_are_decoded(root):
    source = open_source(f"moments:{root}")
    for number, video in enumerate(source.videos[1:]):
        clip = make_clip("cross", "circle", frames=6, size=32, rng=np.random.default_rng(number))
        encode(video.path, clip.frames, fps=30)
    good, bad, _ = check_videos(source.videos, Progress(Console(quiet=True)))
    assert good == list(source.videos[1:])
    assert [item.video for item in bad] == [source.videos[0]]
