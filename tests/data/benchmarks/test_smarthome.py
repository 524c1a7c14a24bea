import shutil

import numpy as np
import pytest
from rich.console import Console

from airstreams.console import Progress
from airstreams.data.benchmarks.smarthome import CLASSES, CROSS_VIEW_CLASSES
from airstreams.data.check import check_videos
from airstreams.data.sources import open_source
from airstreams.data.splits import automatic_split
from airstreams.data.synthetic import encode, make_clip
from airstreams.errors import InputError

TRAIN_SUBJECTS = (3, 4, 6, 7, 9, 12, 13, 15, 17, 19, 25)
TEST_SUBJECTS = (2, 10, 11, 14, 16, 18, 20)
CAMERAS = (1, 2, 3, 4, 5, 6, 7)
# The real data set has a few videos of this action, which is not among the 31.
EXTRA = "Pour.Fromcup_p03_r00_v01_c01.mp4"


@pytest.fixture
def root(tmp_path):
    """Smarthome's layout: each class once by each subject, and once by subject 3 in front of all cameras."""
    names = [EXTRA]
    for number, label in enumerate(CLASSES):
        for index, subject in enumerate(TRAIN_SUBJECTS + TEST_SUBJECTS):
            names.append(f"{label}_p{subject:02d}_r00_v05_c{CAMERAS[(number + index) % 7]:02d}.mp4")
        names += [f"{label}_p03_r01_v02_c{camera:02d}.mp4" for camera in CAMERAS]
    (tmp_path / "mp4").mkdir()
    for name in names:
        (tmp_path / "mp4" / name).touch()
    (tmp_path / "mp4" / "._Walk_p03_r00_v05_c01.mp4").touch()  # an archive from a Mac contains such files
    (tmp_path / "mp4" / "README.txt").touch()
    return tmp_path


def subject_of(video):
    return int(video.name.partition("_p")[2][:2])


def camera_of(video):
    return int(video.name[-6:-4])


def refusal(data):
    with pytest.raises(InputError) as caught:
        open_source(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_cross_subject_protocol_divides_subjects(root):
    source = open_source(f"smarthome:{root}")
    assert source.name == f"smarthome:{root}"
    assert source.videos == open_source(f"smarthome:{root}?protocol=cs").videos
    assert source.classes == CLASSES == tuple(sorted(CLASSES))
    assert len(CLASSES) == 31
    train, test = source.split("train"), source.split("test")
    assert (len(train), len(test), len(source.videos)) == (31 * 18, 31 * 7, 31 * 25)
    assert {subject_of(video) for video in train} == set(TRAIN_SUBJECTS)
    assert {subject_of(video) for video in test} == set(TEST_SUBJECTS)
    assert {camera_of(video) for video in train} == set(CAMERAS)
    video = test[0]
    assert video.path == root / "mp4" / video.name
    assert (video.name, video.labels) == ("Cook.Cleandishes_p02_r00_v05_c05.mp4", ("Cook.Cleandishes",))
    assert (video.group, video.label_map) == ("p02", "Cook.Cleandishes_p02_r00_v05_c05")


@pytest.mark.parametrize(("protocol", "train_cameras"), [("cv1", {1}), ("cv2", {1, 3, 4, 6, 7})])
def test_the_cross_view_protocols_divide_cameras(root, protocol, train_cameras):
    source = open_source(f"smarthome:{root}?protocol={protocol}")
    assert source.classes == CROSS_VIEW_CLASSES == tuple(sorted(CROSS_VIEW_CLASSES))
    assert len(CROSS_VIEW_CLASSES) == 19
    listed = [path.name for path in (root / "mp4").glob("[!.]*.mp4")]
    of_classes = [name for name in listed if name.partition("_")[0] in CROSS_VIEW_CLASSES]
    for split, cameras in (("train", train_cameras), ("test", {2})):
        expected = sorted(name for name in of_classes if int(name[-6:-4]) in cameras)
        assert [video.name for video in source.split(split)] == expected
    assert {video.labels for video in source.videos} == {(label,) for label in CROSS_VIEW_CLASSES}


def test_validation_videos_show_no_subject_or_moment_of_training(root):
    subjects = open_source(f"smarthome:{root}?protocol=cs").split("train")
    split = automatic_split(subjects, seed=0, val_fraction=0.15, test_fraction=0)
    people = {name: {subject_of(v) for v in subjects if split[v.name] == name} for name in ("train", "val")}
    assert people["val"]
    assert not people["train"] & people["val"]

    views = open_source(f"smarthome:{root}?protocol=cv2").split("train")
    several = [video for video in views if "_p03_r01_" in video.name]
    assert {video.group for video in several} == {"p03_r01"}
    assert len(several) == 19 * 5
    assert "p03_r00" in {video.group for video in views}


def test_videos_in_the_folder_itself_are_found(root):
    for path in list((root / "mp4").iterdir()):
        path.rename(root / path.name)
    (root / "mp4").rmdir()
    source = open_source(f"smarthome:{root}")
    assert len(source.videos) == 31 * 25
    assert source.videos[0].path.parent == root


@pytest.mark.parametrize(
    "name",
    [
        "Walk_p03_r00_v05.mp4",
        "Walk_p03_v05_r00_c01.mp4",
        "Walk_p03_r00_v05_c01_small.mp4",
        "Walk-p03-r00-v05-c01.mp4",
        "_p03_r00_v05_c01.mp4",
        "Walk_p03_r00_v05_c01.MP4",
    ],
)
def test_names_of_another_format_are_refused(root, name):
    (root / "mp4" / name).touch()
    text = refusal(f"smarthome:{root}")
    assert f" {name}; expected <Class>_p<subject>_r<repetition>_v<version>_c<camera>.mp4" in text


def test_missing_parts_are_named(root):
    for path in list((root / "mp4").glob("Walk_p*_c02.mp4")) + list((root / "mp4").glob("*_c07.mp4")):
        path.unlink()
    text = refusal(f"smarthome:{root}?protocol=cv2")
    assert "2 of the 43 parts of cv2, such as Walk in test, camera 7 in train, among" in text
    assert "https://project.inria.fr/toyotasmarthome" in text
    for path in (root / "mp4").glob("*_p25_*"):
        path.unlink()
    assert "1 of the 73 parts of cs, such as subject 25 in train" in refusal(f"smarthome:{root}")
    shutil.rmtree(root / "mp4")
    text = refusal(f"smarthome:{root}")
    assert "expected <Class>_p<subject>" in text
    assert "https://project.inria.fr/toyotasmarthome" in text


def test_an_unknown_protocol_is_refused(root):
    text = refusal(f"smarthome:{root}?protocol=cv3")
    assert "'protocol=cv3' is not an option of smarthome; expected protocol=cs|cv1|cv2" in text


def test_videos_of_the_data_set_are_decoded(root):
    source = open_source(f"smarthome:{root}?protocol=cv1")
    frames_THW3 = make_clip("ring", "up", frames=6, size=32, rng=np.random.default_rng(0)).frames
    encode(root / "clip.mp4", frames_THW3, fps=30)
    for video in source.videos[1:]:
        shutil.copyfile(root / "clip.mp4", video.path)
    good, bad, _ = check_videos(source.videos, Progress(Console(quiet=True)))
    assert good == list(source.videos[1:])
    assert [item.video for item in bad] == [source.videos[0]]
