import csv
import re

import av
import numpy as np
import pytest

from airstreams.config import ClipConfig, Config
from airstreams.data.clips import active_labels, clip_indices, frame_range, latest_start
from airstreams.data.dataset import TrainingClips
from airstreams.data.listing import Action
from airstreams.data.sources import open_source
from airstreams.data.video import read_frames
from airstreams.errors import InputError

HEADER = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length"
CLASSES = """\
c000 Holding some clothes
c001 Putting clothes somewhere
c015 Holding a phone/camera
c156 Someone is eating something
"""
# As in the official files: commas, semicolons, doubled quotes and line breaks inside quoted fields.
TRAIN = (
    'AAAA1,QR7T,Kitchen,6,7,Yes,"A person walks in, holding clothes.\nThey say ""hello"", and leave.",'
    'clothes;door,"Walks in; sits, eats.",c156 0.00 1.00;c000 11.90 21.20;c156 15.50 40.00,32.12\n'
    "AAAA2,Q9XY,Bedroom,7,7,Yes,A person stands.,bed,A person stands.,,20.00\n"
    'AAAA0,QR7T,Den,5,7,No,"One, two.",phone,Phones.,c015 3.00 3.00;c001 0.00 12.60,12.50\n'
)
TEST = (
    "BBBB1,ZZ12,Hallway,6,6,Yes,Throws clothes.,clothes,Throws.,c001 0.00 4.00,30.00\n"
    "BBBB2,ZZ12,Hallway,6,6,Yes,Nothing.,,Nothing.,,30.00\n"
)
NAMES = ("AAAA0", "AAAA1", "AAAA2", "BBBB1", "BBBB2")


@pytest.fixture
def root(tmp_path):
    """Charades' layout after unpacking its two archives, with five empty videos and four classes."""
    (tmp_path / "Charades").mkdir()
    (tmp_path / "Charades/Charades_v1_train.csv").write_text(f"{HEADER}\n{TRAIN}")
    (tmp_path / "Charades/Charades_v1_test.csv").write_text(f"{HEADER}\n{TEST}")
    (tmp_path / "Charades/Charades_v1_classes.txt").write_text(CLASSES)
    (tmp_path / "Charades_v1_480").mkdir()
    for name in NAMES:
        (tmp_path / f"Charades_v1_480/{name}.mp4").touch()
    return tmp_path


def refusal(root):
    with pytest.raises(InputError) as caught:
        open_source(f"charades:{root}")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_official_layout_is_read(root):
    (root / "Charades/Charades_v1_classes.txt").write_text("\n".join(reversed(CLASSES.splitlines())))
    source = open_source(f"charades:{root}")
    assert source.name == f"charades:{root}"
    assert source.classes == tuple(CLASSES.splitlines()) == tuple(sorted(source.classes))
    assert source.multi_label
    assert [video.name for video in source.videos] == [f"{name}.mp4" for name in NAMES]
    assert [video.split for video in source.videos] == ["train", "train", "train", "test", "test"]
    assert [video.group for video in source.videos] == ["QR7T", "QR7T", "Q9XY", "ZZ12", "ZZ12"]
    assert [video.label_map for video in source.videos] == list(NAMES)
    assert source.videos[3].path == root / "Charades_v1_480/BBBB1.mp4"


def test_actions_have_their_times_and_videos_their_labels(root):
    zero_length, several, none = open_source(f"charades:{root}").split("train")
    eating, holding = "c156 Someone is eating something", "c000 Holding some clothes"
    assert several.actions == (Action(eating, 0, 1), Action(holding, 11.9, 21.2), Action(eating, 15.5, 40))
    assert several.labels == (eating, holding)
    assert zero_length.actions[0] == Action("c015 Holding a phone/camera", 3, 3)
    assert active_labels(zero_length, 2.5, 3.5) == zero_length.labels
    assert (none.labels, none.actions, active_labels(none, 0, 9)) == ((), (), ())


def test_rows_of_pythons_csv_writer_are_read(root):
    rows = [
        ["CCCC1", "S,1", "", "", "", "", 'a "b"\n\n,;', "", "x\r\ny", "c015 0.10 0.20", "3"],
        ["CCCC2", "S\r\n2", "", "", "", "", ",", "", '"', "c000 0.10 0.20;c001 1 2;c156 0 0.5", "3"],
    ]
    with (root / "Charades/Charades_v1_train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([HEADER.split(","), *rows])
    for row in rows:
        (root / f"Charades_v1_480/{row[0]}.mp4").touch()
    train = open_source(f"charades:{root}").split("train")
    assert [(video.path.stem, video.group) for video in train] == [(row[0], row[1]) for row in rows]
    assert [len(video.actions) for video in train] == [1, 3]


@pytest.mark.parametrize("folder", ["Charades_v1", "videos"])
def test_other_folder_names_are_found(root, folder):
    for path in list((root / "Charades").iterdir()):
        path.rename(root / path.name)
    (root / "Charades_v1_480").rename(root / folder)
    assert open_source(f"charades:{root}").videos[0].path == root / folder / "AAAA0.mp4"


def test_missing_files_are_named(root):
    (root / "Charades_v1_480/BBBB1.mp4").unlink()
    (root / "Charades_v1_480/AAAA2.mp4").unlink()
    text = refusal(root)
    assert "lacks 2 of 5 videos, such as Charades_v1_480/AAAA2.mp4. " in text
    assert "https://prior.allenai.org/projects/charades" in text
    (root / "Charades/Charades_v1_test.csv").unlink()
    assert "lacks Charades_v1_test.csv. " in refusal(root)
    (root / "Charades/Charades_v1_classes.txt").unlink()
    assert "lacks Charades_v1_test.csv, Charades_v1_classes.txt. " in refusal(root)


@pytest.mark.parametrize(
    "action",
    [
        "c157 0.00 1.00",
        "c000 2.00 1.99",
        "c000 -1.00 1.00",
        "c000 0.00 end",
        "c000 nan 1.00",
        "c000 0.00 inf",
        "c000 0.00",
        "c000 0.00 1.00 2.00",
        " ",
    ],
)
def test_wrong_actions_are_refused(root, action):
    text = (root / "Charades/Charades_v1_train.csv").read_text()
    (root / "Charades/Charades_v1_train.csv").write_text(text.replace("c000 11.90 21.20", action))
    # The row covers lines 2 and 3 of the file, since its script has a line break.
    assert f"Charades_v1_train.csv, line 3: the action {action!r}; " in refusal(root)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("subject", "person", "Charades_v1_test.csv .*columns id, person, scene, .*; expected .* subject"),
        (f"{HEADER}\n{TEST}", "", "Charades_v1_test.csv .*columns none"),
        ("Nothing.,,30.00", "Nothing.,30.00", "Charades_v1_test.csv, line 3: .*cells"),
        ("Nothing.,,30.00", "No, thing.,,30.00", "Charades_v1_test.csv, line 3: .*cells"),
        ("Throws.", '"Throws.', r"Charades_v1_test.csv .*\(unexpected end of data\)"),
        ("BBBB1", "BBBB2", "Charades_v1_test.csv, line 3: BBBB2 "),
        ("BBBB1", "AAAA1", "Charades_v1_test.csv, line 2: AAAA1 "),
    ],
)
def test_lists_of_another_format_are_refused(root, old, new, expected):
    path = root / "Charades/Charades_v1_test.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    assert re.search(expected, refusal(root))


@pytest.mark.parametrize("line", ["c002", "c000 Holding some clothes again", ""])
def test_wrong_class_lists_are_refused(root, line):
    (root / "Charades/Charades_v1_classes.txt").write_text(f"{CLASSES}{line}\nc003 And so on\n")
    assert f"Charades_v1_classes.txt, line 5: {line!r}; " in refusal(root)


def test_a_class_without_training_video_is_refused(root):
    path = root / "Charades/Charades_v1_train.csv"
    path.write_text(path.read_text().replace(";c001 0.00 12.60", ""))
    assert "training video of c001 Putting clothes somewhere" in refusal(root)
    assert len(open_source(f"charades:{root}", for_training=False).classes) == 4


def test_options_are_refused(root):
    with pytest.raises(InputError, match=r"'val=1' .*charades; expected nothing"):
        open_source(f"charades:{root}?val=1")


def test_a_clips_target_matches_its_frames(root):
    """The video is red during one action and blue during the other; both, one and none occur."""
    path = root / "Charades_v1_480/AAAA0.mp4"
    red_s, blue_s = (0.5, 1.0), (0.8, 1.5)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=24)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for time in np.arange(48) / 24:
            picture = np.zeros((32, 32, 3), np.uint8)
            picture[:16, :, 0] = 255 * (red_s[0] <= time <= red_s[1])
            picture[16:, :, 2] = 255 * (blue_s[0] <= time <= blue_s[1])
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    lists = root / "Charades/Charades_v1_train.csv"
    lists.write_text(lists.read_text().replace("c015 3.00 3.00;c001 0.00 12.60", "c015 0.50 1.00;c001 0.80 1.50"))
    source = open_source(f"charades:{root}")
    video, red, blue = source.videos[0], "c015 Holding a phone/camera", "c001 Putting clothes somewhere"

    def shown(frames_THW3):
        seen = ((red, frames_THW3[:, :14, :, 0]), (blue, frames_THW3[:, 18:, :, 2]))
        return {label for label, part in seen if (part.mean(axis=(1, 2)) > 127).any()}

    clip = ClipConfig(frames=4, stride=1, size=64)
    part = frame_range(video)
    found = []
    for start in range(latest_start(part, clip) + 1):
        indices = clip_indices(part, start, clip)
        found.append(set(active_labels(video, *part.times[indices[[0, -1]]].tolist())))
        assert found[-1] == shown(read_frames(path, indices))
    assert all(labels in found for labels in (set(), {red}, {blue}, {red, blue}))

    clips = TrainingClips([video], Config(clip=clip), source.classes, source.multi_label, {})
    batch = clips.collate([clips[0, draw, 0] for draw in range(60)])
    assert set(map(tuple, batch.target.tolist())) == {(0, b, r, 0) for r in (0, 1) for b in (0, 1)}
