import re
import shutil
import tarfile
from collections import Counter, defaultdict

import av
import numpy as np
import pytest
from rich.console import Console

from airstreams.console import Progress
from airstreams.data.benchmarks.hmdb51 import CLASSES
from airstreams.data.check import check_videos
from airstreams.data.sources import open_source
from airstreams.data.synthetic import make_clip
from airstreams.errors import InputError

# <film>_<class>, then visible body part, camera motion, people, viewpoint, quality and number.
OFFICIAL_NAME = re.compile(r"(?P<film_and_class>.+)_[fhlu]_[cn]m_np\d+_(ba|fr|le|ri)_(bad|goo|med)_\d+\.avi")


@pytest.fixture
def root(tmp_path):
    """HMDB-51's layout with a training, a test and an unused clip per class. The last is missing, the others empty."""
    (tmp_path / "splits").mkdir()
    for label in CLASSES:
        clips = [f"film#{n}_{label}_u_cm_np1_fr_med_{n}.avi" for n in (0, 1, 2)]
        (tmp_path / "videos" / label).mkdir(parents=True)
        for clip in clips[:2]:
            (tmp_path / "videos" / label / clip).touch()
        lines = [f"{clip} {digit} \n" for clip, digit in zip(clips, "120", strict=True)]
        (tmp_path / "splits" / f"{label}_test_split1.txt").write_text("".join(lines))
    return tmp_path


@pytest.fixture(scope="module")
def official(test_data, tmp_path_factory):
    """The real split files under their official name, and an empty file for every clip in them."""
    root = tmp_path_factory.mktemp("hmdb51")
    with tarfile.open(test_data / "annotations" / "hmdb51_splits.tar.gz") as archive:
        archive.extractall(root, filter="data")
    (root / "hmdb51_splits").rename(root / "testTrainMulti_7030_splits")
    for path in (root / "testTrainMulti_7030_splits").glob("*_test_split1.txt"):
        folder = root / "videos" / path.name.removesuffix("_test_split1.txt")
        folder.mkdir(parents=True)
        for line in path.read_text().splitlines():
            (folder / line.split()[0]).touch()
    return root


def test_unused_clips_are_left_out(root):
    source = open_source(f"hmdb51:{root}")
    assert source.videos == open_source(f"hmdb51:{root}?split=1").videos
    assert source.classes == CLASSES == tuple(sorted(CLASSES))
    assert len(source.videos) == 102
    assert len(source.split("train")) == len(source.split("test")) == 51
    video = source.split("test")[6]
    assert video.path == root / "videos/climb_stairs/film#1_climb_stairs_u_cm_np1_fr_med_1.avi"
    assert (video.name, video.labels) == ("climb_stairs/film#1_climb_stairs_u_cm_np1_fr_med_1.avi", ("climb_stairs",))
    assert (video.group, video.label_map) == (
        "climb_stairs/film#1",
        "climb_stairs/film#1_climb_stairs_u_cm_np1_fr_med_1",
    )


def test_videos_may_be_mp4_files(root):
    for path in list((root / "videos").glob("*/*.avi")):
        path.rename(path.with_suffix(".mp4"))
    assert {video.path.suffix for video in open_source(f"hmdb51:{root}").videos} == {".mp4"}


@pytest.mark.parametrize("split", [1, 2, 3])
def test_the_official_splits_have_their_published_sizes(official, split):
    source = open_source(f"hmdb51:{official}?split={split}")
    assert source.name == f"hmdb51:{official}?split={split}"
    train, test = source.split("train"), source.split("test")
    assert (len(source.videos), len(train), len(test)) == (5100, 3570, 1530)
    assert Counter(video.labels[0] for video in train) == dict.fromkeys(CLASSES, 70)
    assert Counter(video.labels[0] for video in test) == dict.fromkeys(CLASSES, 30)


@pytest.mark.parametrize(
    ("split", "train_groups", "shared"), [(1, 1431, set()), (2, 1430, {"pour/How_to"}), (3, 1416, set())]
)
def test_the_official_splits_separate_films(official, split, train_groups, shared):
    source = open_source(f"hmdb51:{official}?split={split}")
    films, groups, group_of = defaultdict(set), defaultdict(set), defaultdict(set)
    for name in ("train", "test"):
        for video in source.split(name):
            parts = OFFICIAL_NAME.fullmatch(video.path.name)
            assert parts is not None
            film, found, rest = parts["film_and_class"].rpartition(f"_{video.labels[0]}")
            assert (bool(found), rest) == (True, "")
            films[name].add((video.labels[0], film))
            groups[name].add(video.group)
            group_of[video.labels[0], film].add(video.group)
    assert not films["train"] & films["test"]
    assert all(len(found) == 1 for found in group_of.values())  # no film is divided
    assert len(groups["train"]) == train_groups
    assert groups["train"] & groups["test"] == shared  # two films with similar names, which get one group


def test_the_folder_name_of_the_download_is_found(root):
    names = [video.name for video in open_source(f"hmdb51:{root}").videos]
    (root / "videos").rename(root / "hmdb51_org")
    assert [video.name for video in open_source(f"hmdb51:{root}").videos] == names


@pytest.mark.parametrize("lines", [1, 0])
def test_a_truncated_split_file_is_refused(lines, root):
    listed = root / "splits" / "run_test_split1.txt"
    listed.write_text("".join(listed.read_text().splitlines(keepends=True)[:lines]))
    with pytest.raises(InputError, match=r"run_test_split1\.txt lists no training clip or no test clip"):
        open_source(f"hmdb51:{root}")


def test_missing_files_are_named(root):
    (root / "videos/wave/film#0_wave_u_cm_np1_fr_med_0.avi").unlink()
    (root / "splits/run_test_split1.txt").unlink()
    with pytest.raises(InputError) as caught:
        open_source(f"hmdb51:{root}")
    text = str(caught.value)
    missing = "splits/run_test_split1.txt, videos/wave/film#0_wave_u_cm_np1_fr_med_0.avi"
    assert f"lacks 2 of the 101 videos and split files, such as {missing}. " in text
    assert "serre-lab.clps.brown.edu" in text
    assert "CC BY 4.0" in text
    assert "\n" not in text
    shutil.rmtree(root / "splits")
    with pytest.raises(InputError, match="lacks 51 of the 51 "):
        open_source(f"hmdb51:{root}")


@pytest.mark.parametrize("line", ["a_run_b.avi 3", "a_run_b.avi", "a_run_b 1", ""])
def test_a_split_file_of_another_format_is_refused(root, line):
    (root / "splits/run_test_split1.txt").write_text(f"{line}\n")
    with pytest.raises(InputError, match=re.escape(f"run_test_split1.txt has the line {line!r}")):
        open_source(f"hmdb51:{root}")


def test_videos_of_the_data_set_are_decoded(root):
    frames_THW3 = make_clip("disc", "left", frames=6, size=32, rng=np.random.default_rng(0)).frames
    with av.open(str(root / "clip.avi"), "w") as out:
        stream = out.add_stream("mpeg4", rate=30)  # the codec of the official files
        stream.width = stream.height = 32
        for frame_HW3 in frames_THW3:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HW3, format="rgb24")))
        out.mux(stream.encode(None))
    source = open_source(f"hmdb51:{root}")
    for video in source.videos[1:]:
        shutil.copyfile(root / "clip.avi", video.path)
    good, bad, _ = check_videos(source.videos, Progress(Console(quiet=True)))
    assert good == list(source.videos[1:])
    assert [item.video for item in bad] == [source.videos[0]]
    assert "empty" in bad[0].reason
