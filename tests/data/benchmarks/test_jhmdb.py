import os
import re
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from airstreams.data.benchmarks.jhmdb import CLASSES
from airstreams.data.label_maps import create, save
from airstreams.data.sources import open_source
from airstreams.data.splits import automatic_split
from airstreams.errors import InputError


@pytest.fixture
def real_root():
    data = os.environ.get("AIRSTREAMS_TEST_DATA")
    if not data or not Path(data, "jhmdb").is_dir():
        pytest.skip("real videos needed: set AIRSTREAMS_TEST_DATA to a folder that holds jhmdb/")
    return Path(data, "jhmdb")


@pytest.fixture
def small_root(tmp_path):
    """J-HMDB's layout with two clips per class, as empty files."""
    for label in CLASSES:
        clips = [f"film_{label}_f_cm_np1_{n}" for n in (0, 1)]
        for clip in clips:
            video = tmp_path / "videos" / label / f"{clip}.avi"
            video.parent.mkdir(parents=True, exist_ok=True)
            video.touch()
        (tmp_path / "splits").mkdir(exist_ok=True)
        (tmp_path / "splits" / f"{label}_test_split1.txt").write_text(f"{clips[0]}.avi 1\n{clips[1]}.avi 2\n")
    return tmp_path


def test_teacher_and_masks_are_optional(small_root):
    source = open_source(f"jhmdb:{small_root}")
    assert source.classes == CLASSES == tuple(sorted(CLASSES))
    assert source.label_store is None
    assert len(source.split("train")) == len(source.split("test")) == 21
    video = source.split("test")[2]
    assert video.path == small_root / "videos/clap/film_clap_f_cm_np1_1.avi"
    assert (video.name, video.labels) == ("clap/film_clap_f_cm_np1_1.avi", ("clap",))
    assert (video.group, video.label_map, video.mask) == ("clap/film", "clap/film_clap_f_cm_np1_1", None)


def test_the_folder_name_of_the_download_is_found(small_root):
    names = [video.name for video in open_source(f"jhmdb:{small_root}").videos]
    (small_root / "videos").rename(small_root / "ReCompress_Videos")
    assert [video.name for video in open_source(f"jhmdb:{small_root}").videos] == names


@pytest.mark.parametrize("lines", [1, 0])
def test_a_truncated_split_file_is_refused(lines, small_root):
    listed = small_root / "splits" / "run_test_split1.txt"
    listed.write_text("".join(listed.read_text().splitlines(keepends=True)[:lines]))
    with pytest.raises(InputError, match=r"run_test_split1\.txt lists no training clip or no test clip"):
        open_source(f"jhmdb:{small_root}")


def test_missing_files_are_named(small_root):
    (small_root / "videos/wave/film_wave_f_cm_np1_0.avi").unlink()
    (small_root / "splits/run_test_split1.txt").unlink()
    with pytest.raises(InputError, match=r"lacks 2 of the 41 .*splits/run_test_split1\.txt.*film_wave_f_cm_np1_0\.avi"):
        open_source(f"jhmdb:{small_root}")
    with pytest.raises(InputError, match="lacks 21 of the 21 "):
        open_source(f"jhmdb:{small_root}?split=2")


@pytest.mark.parametrize("line", ["film_run_f_cm_np1_0.avi 3", "film_run_f_cm_np1_0.avi", "film_run_f_cm_np1_0 1", ""])
def test_a_split_file_of_another_format_is_refused(small_root, line):
    (small_root / "splits/run_test_split1.txt").write_text(f"{line}\n")
    with pytest.raises(InputError, match=re.escape(f"run_test_split1.txt has the line {line!r}")):
        open_source(f"jhmdb:{small_root}")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("jhmbd:{root}", "'jhmbd' .*jhmdb"),
        ("jhmdb:{root}?split=4", r"'split=4' .*expected split=1\|2\|3"),
        ("jhmdb:{root}?fold=1", r"'fold=1' .*expected split=1\|2\|3, or folds="),
        ("jhmdb:{root}?folds=10&fold=11", r"'folds=10' .*fold=K"),
        ("jhmdb:{root}?folds=2&fold=1&split=1", r"'folds=2' .*fold=K"),
        ("jhmdb:{root}/nowhere?split=1", "the folder .*nowhere"),
        ("jhmdb:", "the folder ''"),
        ("jhmdb", "jhmdb does not exist; expected .* NAME:ROOT .*jhmdb"),
    ],
)
def test_wrong_data_set_names_and_options_are_refused(small_root, data, expected):
    with pytest.raises(InputError, match=expected):
        open_source(data.format(root=small_root))


def test_a_folder_may_be_named_like_a_data_set(tmp_path, monkeypatch):
    for label in ("a", "b"):
        (tmp_path / "jhmdb:x?split=9" / label).mkdir(parents=True)
        (tmp_path / "jhmdb:x?split=9" / label / "v.mp4").touch()
    monkeypatch.chdir(tmp_path)
    assert open_source("jhmdb:x?split=9").classes == ("a", "b")


@pytest.mark.parametrize(("split", "train", "test"), [(1, 660, 268), (2, 658, 270), (3, 663, 265)])
def test_the_official_splits_have_their_published_sizes(real_root, split, train, test):
    source = open_source(f"jhmdb:{real_root}?split={split}")
    assert source.name == f"jhmdb:{real_root}?split={split}"
    assert (len(source.videos), len(source.split("train")), len(source.split("test"))) == (928, train, test)
    assert len(source.classes) == 21
    assert source.has_splits
    with pytest.raises(InputError, match=rf"'val'; .*train \({train}\), test \({test}\)"):
        source.split("val")
    shared = {video.group for video in source.split("train")} & {video.group for video in source.split("test")}
    assert shared <= {"clap/boom_snap"}  # two films with similar names, which get one group


def test_split_1_is_the_default_with_283_training_films(real_root):
    source = open_source(f"jhmdb:{real_root}")
    assert source.videos == open_source(f"jhmdb:{real_root}?split=1").videos
    assert len({video.group for video in source.split("train")}) == 283


def test_teacher_and_masks_belong_to_their_videos(real_root):
    source = open_source(f"jhmdb:{real_root}")
    store = source.label_store
    assert store is not None
    assert len(store.classes) == 81
    people = 0.0
    for video in source.videos[::60]:
        assert video.label_map is not None
        assert video.mask is not None
        assert video.path.stem == Path(video.label_map).name == video.mask.stem
        with np.load(video.mask) as archive:
            mask_THW = archive["mask"]
        frames = store.labelled_frames(video.label_map)
        np.testing.assert_array_equal(frames, np.arange(0, len(mask_THW), 2))
        maps_NHW = store.read(video.label_map, frames)
        assert maps_NHW is not None
        assert maps_NHW.shape[1:] == mask_THW.shape[1:]
        people += (maps_NHW[mask_THW[frames] == 1] == store.classes.index("person")).mean()
    # With classes in a wrong order, or with maps of another video, almost no pixel of the actor would be a person.
    assert people / len(source.videos[::60]) > 0.5


def test_given_label_maps_replace_the_data_sets_own(real_root, tmp_path):
    source = open_source(f"jhmdb:{real_root}")
    create(tmp_path, "mine", ["background"], {})
    key = source.videos[5].label_map
    assert key is not None
    save(tmp_path, key, np.zeros((1, 2, 2), np.uint8), [4])
    mine = open_source(f"jhmdb:{real_root}", labels=tmp_path)
    assert mine.label_store is not None
    assert mine.label_store.teacher == "mine"
    assert mine.label_store.labelled_frames(key).tolist() == [4]
    assert mine.videos == source.videos


def test_an_automatic_split_keeps_films_whole(real_root):
    train = open_source(f"jhmdb:{real_root}").split("train")
    split = automatic_split(train, seed=0, val_fraction=0.15, test_fraction=0)
    groups = {name: {v.group for v in train if split[v.name] == name} for name in ("train", "val", "test")}
    assert not groups["train"] & groups["val"]
    assert groups["test"] == set()
    assert list(split.values()).count("val") == pytest.approx(0.15 * 660, abs=3)
    for label in CLASSES:
        members = [split[video.name] for video in train if video.labels == (label,)]
        assert members.count("val") == pytest.approx(0.15 * len(members), abs=4)


def test_ten_folds_test_every_clip_once_and_divide_no_film(real_root):
    folds = [open_source(f"jhmdb:{real_root}?folds=10&fold={fold}") for fold in range(1, 11)]
    tested = [source.split("test") for source in folds]
    assert sorted(video.name for videos in tested for video in videos) == [video.name for video in folds[0].videos]
    assert [len(videos) for videos in tested] == pytest.approx([92.8] * 10, abs=2)
    films = [{video.name.partition("_" + video.labels[0] + "_")[0].partition("/")[2] for video in v} for v in tested]
    assert sum(map(len, films)) == len(set().union(*films))  # also across classes
    for source in folds:
        assert {video.labels[0] for video in source.split("train")} == set(CLASSES)
        assert source.label_store is not None
    assert folds[2].name == f"jhmdb:{real_root}?folds=10&fold=3"
    names = repr([sorted(video.name for video in videos) for videos in tested])
    assert sha256(names.encode()).hexdigest().startswith("35e36baa09b77beb")  # the same folds for everybody
