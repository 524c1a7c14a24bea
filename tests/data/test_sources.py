import os
import random
import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from airstreams.data.labels import create, save
from airstreams.data.listing import Video
from airstreams.data.sources import (
    automatic_split,
    open_source,
    read_splits,
    with_splits,
    write_splits,
)
from airstreams.errors import InputError


def touch(root: Path, *names: str) -> Path:
    """Sources never open a video, so an empty file will do."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def refusal(data, **options) -> str:
    with pytest.raises(InputError) as caught:
        open_source(str(data), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Folders


def test_a_folder_of_class_folders(tmp_path):
    touch(tmp_path, "wave/b.MP4", "wave/a.avi", "clap/long/way/down/c.d.webm", "clap/notes.txt", "clap/.hidden.mp4")
    touch(tmp_path, "clap/.cache/x.mp4", ".trash/y.mp4", "docs/readme.md", "readme.md")
    source = open_source(str(tmp_path))
    assert source.name == str(tmp_path)
    assert source.classes == ("clap", "wave")
    assert not source.has_splits
    assert not source.multi_label
    assert source.videos == (
        Video(tmp_path / "clap/long/way/down/c.d.webm", "clap/long/way/down/c.d.webm", ("clap",),
              label_map="clap/long/way/down/c.d"),
        Video(tmp_path / "wave/a.avi", "wave/a.avi", ("wave",), label_map="wave/a"),
        Video(tmp_path / "wave/b.MP4", "wave/b.MP4", ("wave",), label_map="wave/b"),
    )  # fmt: skip
    with pytest.raises(InputError, match=r"no videos in the split 'train'; .*: none"):
        source.split("train")


def test_names_that_are_no_text_are_refused(tmp_path):
    touch(tmp_path, "clap/a.mp4", os.fsdecode(b"wave/caf\xe9.mp4"))
    assert refusal(tmp_path) == f"{tmp_path} holds 'wave/caf\\udce9.mp4', a name that is not UTF-8; rename it"


def test_class_folders_may_be_links(tmp_path):
    touch(tmp_path, "store/one/a.mp4", "store/two/b.mp4")
    (tmp_path / "data/clap").mkdir(parents=True)
    (tmp_path / "data/clap/more").symlink_to(tmp_path / "store/one")
    (tmp_path / "data/wave").symlink_to(tmp_path / "store/two")
    assert [video.name for video in open_source(str(tmp_path / "data")).videos] == ["clap/more/a.mp4", "wave/b.mp4"]


def test_links_that_lead_back_are_not_followed(tmp_path):
    touch(tmp_path, "clap/a.mp4", "clap/more/b.mp4", "wave/c.mp4")
    (tmp_path / "clap/more/back").symlink_to(tmp_path / "clap")
    (tmp_path / "wave/all").symlink_to(tmp_path / "wave")
    (tmp_path / "wave/twice").symlink_to(tmp_path / "wave")
    touch(tmp_path, ".store/d.mp4")
    for name in ("m", "b", "z"):
        (tmp_path / "wave" / name).symlink_to(tmp_path / ".store")
    names = [video.name for video in open_source(str(tmp_path)).videos]
    assert names == ["clap/a.mp4", "clap/more/b.mp4", "wave/b/d.mp4", "wave/c.mp4"]


@pytest.mark.parametrize("link", ["wave/again.mp4", "wave", "clap/other.mp4"])
def test_a_video_under_two_names_is_refused(tmp_path, link):
    touch(tmp_path, "clap/a.mp4", "shout/b.mp4")
    target = tmp_path / "clap" if link == "wave" else tmp_path / "clap/a.mp4"
    (tmp_path / link).parent.mkdir(exist_ok=True)
    (tmp_path / link).symlink_to(target)
    text = refusal(tmp_path)
    assert "which are one file" in text
    assert "clap/a.mp4" in text
    assert link in text


def test_what_is_passed_over_is_told(tmp_path):
    touch(tmp_path, "clap/a.mp4", "clap/a.txt", "clap/.DS_Store", "wave/b.MOV", "wave/deep/b.wav", "wave/c.wav")
    (tmp_path / "empty").mkdir()
    source = open_source(str(tmp_path))
    assert [video.name for video in source.videos] == ["clap/a.mp4", "wave/b.MOV"]
    assert source.remarks == (
        "no class, since there is no video in it: empty",
        "3 files passed over, which are no videos by their names: 2 .wav, 1 .txt",
    )


def test_accents_are_compared_as_people_read_them(tmp_path):
    apart, together = (unicodedata.normalize(form, "Läufe") for form in ("NFD", "NFC"))
    touch(tmp_path / "mac", f"{apart}/ü.mp4".replace("ü", unicodedata.normalize("NFD", "ü")), "wave/b.mp4")
    write(tmp_path / "mac", "path,label", *(f"{path.relative_to(tmp_path / 'mac')},{path.parent.name}" for path in
                                            (tmp_path / "mac").glob("*/*.mp4")))  # fmt: skip
    for data in (tmp_path / "mac", tmp_path / "mac/list.csv"):
        source = open_source(str(data))
        assert source.classes == (together, "wave")
        assert source.videos[0].name == unicodedata.normalize("NFC", f"{together}/ü.mp4")
        assert source.videos[0].path.is_file()
        assert f"{source.videos[0].label_map}.mp4" == str(source.videos[0].path.relative_to(tmp_path / "mac"))


def test_a_folder_with_splits(tmp_path):
    touch(tmp_path, "train/clap/a.mp4", "train/wave/b.mp4", "train/wave/c.mp4", "val/clap/a.mp4", "test/wave/x/a.mp4")
    touch(tmp_path, "list.txt", ".cache/a.mp4")
    source = open_source(str(tmp_path))
    assert source.has_splits
    assert source.classes == ("clap", "wave")
    assert [video.name for video in source.split("train")] == [
        "train/clap/a.mp4",
        "train/wave/b.mp4",
        "train/wave/c.mp4",
    ]
    assert [video.label_map for video in source.split("val")] == ["val/clap/a"]
    assert [video.labels for video in source.split("test")] == [("wave",)]
    with pytest.raises(InputError, match="no split is called 'dev'; expected train, val, test"):
        source.split("dev")


def test_a_class_may_be_called_train(tmp_path):
    touch(tmp_path, "train/a.mp4", "bus/a.mp4")
    source = open_source(str(tmp_path))
    assert source.classes == ("bus", "train")
    assert not source.has_splits


@pytest.mark.parametrize(
    "folders", [("train", "validation"), ("train", "val", "extra"), ("Train", "Test"), ("training", "testing")]
)
def test_folders_that_are_nearly_splits_are_not_taken_for_classes(tmp_path, folders):
    touch(tmp_path, *(f"{folder}/{label}/a.mp4" for folder in folders for label in ("clap", "wave")))
    text = refusal(tmp_path)
    assert ", ".join(sorted(folders)) in text
    assert "train, val and test" in text


def test_data_to_be_scored_may_hold_a_test_folder_alone_or_a_single_class(tmp_path):
    touch(tmp_path, "new/test/clap/a.mp4", "one/clap/a.mp4")
    assert [(video.labels, video.split) for video in open_source(str(tmp_path / "new")).videos] == [(("clap",), "test")]
    assert open_source(str(tmp_path / "one"), to_learn_from=False).classes == ("clap",)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ((), "holds no videos; expected DATA/<class>/<video>"),
        (("clap/readme.txt", "wave/data.npz"), "holds no videos"),
        (("clap/a.mp4", "clap/b.mp4", "wave/readme.txt"), "only the class clap; expected at least 2"),
        (("a.mp4", "b.mp4"), "2 videos outside any class folder, such as a.mp4"),
        (("a.mp4", "clap/a.mp4", "wave/a.mp4"), "1 videos outside any class folder"),
        (("train/a.mp4", "test/clap/b.mp4"), "train holds 1 videos outside"),
        (("train/clap/a.mp4", "train/wave/a.mp4", "test/jump/a.mp4"), "no training video of jump"),
        (("clap/a.mp4", "clap/a.avi", "wave/a.mp4"), "both clap/a.avi and clap/a.mp4"),
    ],
)
def test_folders_that_no_model_could_learn_from(tmp_path, files, words):
    text = refusal(touch(tmp_path, *files))
    assert words in text
    assert str(tmp_path) in text


def test_a_place_that_is_not_there(tmp_path):
    assert "nowhere does not exist; expected a folder of class folders, a CSV file" in refusal(tmp_path / "nowhere")


# CSV files


@pytest.fixture
def folder(tmp_path):
    return touch(tmp_path, "v/a.mp4", "v/b.mp4", "v/c.mp4", "other/d.mp4")


def write(folder: Path, *lines: str) -> Path:
    path = folder / "list.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_csv_of_all_columns(folder):
    path = write(
        folder,
        "\ufeffgroup,end,path,start,label,split",
        'film 1,4,v/a.mp4,1.5,"drink, hot",train',
        "film 1,,v/a.mp4,4,wave,train",
        "",
        ",2,./v/b.mp4,, wave ,test",
        f",,{folder}/other/d.mp4,,wave,val",
    )
    source = open_source(str(path))
    assert source.classes == ("drink, hot", "wave")
    assert not source.multi_label
    d = f"{folder}/other/d"
    a, b = folder / "v/a.mp4", folder / "v/b.mp4"
    assert source.videos == (
        Video(Path(f"{d}.mp4"), f"{d}.mp4", ("wave",), "val", label_map=d),
        Video(a, "v/a.mp4#t=1.5,4.0", ("drink, hot",), "train", 1.5, 4.0, "film 1", "v/a"),
        Video(a, "v/a.mp4#t=4.0,", ("wave",), "train", 4.0, None, "film 1", "v/a"),
        Video(b, "v/b.mp4#t=,2.0", ("wave",), "test", None, 2.0, None, "v/b"),
    )


def test_several_labels_in_one_cell(folder):
    path = write(folder, "path,label", "v/a.mp4,wave; clap;wave", "v/b.mp4,", "v/c.mp4,jump")
    source = open_source(str(path))
    assert source.multi_label
    assert source.classes == ("clap", "jump", "wave")
    assert [video.labels for video in source.videos] == [("wave", "clap"), (), ("jump",)]


def test_a_csv_to_evaluate_on_may_lack_training_videos_and_classes(folder):
    source = open_source(str(write(folder, "path,label,split", "v/a.mp4,wave,test")))
    assert len(source.split("test")) == 1


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([""], ["no column 'path' but none"]),
        (["path,label"], ["has a header but no rows"]),
        (["path,class", "v/a.mp4,x"], ["no column 'label' but path, class", "path,label[,split]"]),
        (["v/a.mp4,x", "v/b.mp4,y"], ["no column 'path' but v/a.mp4, x"]),
        (["path,label,fps", "v/a.mp4,x,3"], ["unknown column 'fps'", "path,label[,split]"]),
        (["path,label,label", "v/a.mp4,x,y"], ["column 'label' 2 times"]),
        (["path,label", "v/a.mp4,x", "v/b.mp4,y,z"], ["line 3: 3 cells; expected 2"]),
        (["path,label", '"v/a.mp4"x,y'], ["cannot be read as text"]),
        (
            ["path,label", "v/a.mp4,x", "v/B.mp4,y", "v/c.mp4,x", "v,y"],
            ["line 3: there is no file", "v/B.mp4, and 2 of 4 rows", "relative to"],
        ),
        (["path,label", "v/a.mp4,x", "v/b.mp4,"], ["line 3: the label is empty"]),
        (["path,label,start", "v/a.mp4,x,", "v/b.mp4,y,1:30"], ["line 3: the start is '1:30'; expected seconds"]),
        (["path,label,start", "v/a.mp4,x,nan", "v/b.mp4,y,"], ["line 2: the start is 'nan'"]),
        (["path,label,end", "v/a.mp4,x,-1", "v/b.mp4,y,"], ["line 2: the end is '-1'"]),
        (
            ["path,label,start,end", "v/a.mp4,x,2,2", "v/b.mp4,y,,"],
            ["line 2: the end 2 s does not lie after the start 2 s"],
        ),
        (["path,label,end", "v/a.mp4,x,0", "v/b.mp4,y,"], ["line 2: the end 0 s does not lie after the start 0 s"]),
        (
            ["path,label,split", "v/a.mp4,x,training", "v/b.mp4,y,"],
            ["line 2: the split is 'training'; expected train, val"],
        ),
        (
            ["path,label,split", "v/a.mp4,x,train", "v/b.mp4,y,", "v/c.mp4,y,"],
            ["line 3: no split, as in 2 of 3 rows; expected one in every row or in none"],
        ),
        (
            ["path,label,split", "v/a.mp4,x,train", "v/b.mp4,y,train", "v/c.mp4,z,test"],
            ["no training video of z, only videos in val or test"],
        ),
        (
            ["path,label,split", "v/a.mp4,x;y,train", "v/b.mp4,x;z,val"],
            ["no training video of z, only videos in val or test"],
        ),
        (["path,label", "v/a.mp4,x", "v/b.mp4,y", "./v/a.mp4,x"], ["line 4: v/a.mp4 stands in line 2 already", "joi"]),
        (["path,label,start", "v/a.mp4,x,1", "v/a.mp4,y,1.0"], ["line 3: v/a.mp4#t=1.0, stands in line 2 already"]),
        (["path,label", "v/a.mp4,x", "v/b.mp4,x"], ["only the class x; expected at least 2"]),
        (["path;label", "v/a.mp4;x", "v/b.mp4;y"], ["has ';' between its cells", "save it with commas"]),
        (["path,label", "v/a.mp4,x", ",y"], ["line 3: the path is empty"]),
        (["path,label", "v/a.mp4,x", "other/../v/a.mp4,y"], ["both other/../v/a.mp4 and v/a.mp4, which are one file"]),
        (["path,label", "v/a.mp4,;", "v/b.mp4,"], ["only the class none"]),
    ],
)
def test_a_csv_that_cannot_be_meant(folder, lines, words):
    text = refusal(write(folder, *lines))
    assert "list.csv" in text
    for part in words:
        assert part in text


def test_a_video_instead_of_a_csv(tmp_path):
    (tmp_path / "a.mp4").write_bytes(bytes(range(256)))
    assert "a.mp4 is a video; expected a folder of class folders or a CSV file" in refusal(tmp_path / "a.mp4")
    (tmp_path / "list").write_bytes(bytes(range(256)))
    assert "list cannot be read as text" in refusal(tmp_path / "list")
    assert "expected a CSV file with the header path,label[,split][,start][,end][,group]" in refusal(tmp_path / "list")
    assert "save it as UTF-8" in refusal(tmp_path / "list")


# Label stores


def test_label_maps_are_found_by_the_name_without_suffix(folder):
    path = write(folder, "path,label,start", "v/a.mp4,x,", "v/b.mp4,y,1", "v/b.mp4,y,2")
    store = create(folder / "labels", "painter", ["background", "dog"], {})
    save(store.root, "v/b", np.ones((1, 2, 3), np.uint8), [4])
    source = open_source(str(path), labels=store.root)
    assert source.label_store == store
    labelled = [store.labelled_frames(video.label_map or "").tolist() for video in source.videos]
    assert labelled == [[], [4], [4]]


def test_label_maps_of_another_data_set(folder):
    path = write(folder, "path,label", "v/a.mp4,x", "v/b.mp4,y")
    store = create(folder / "labels", "painter", ["background", "dog"], {})
    save(store.root, "elsewhere/b", np.ones((1, 2, 3), np.uint8), [4])
    assert "label maps of none of the 2 videos" in refusal(path, labels=store.root)
    assert "no labels.json" in refusal(path, labels=folder / "v")


# Splits


def listed(sizes: dict[str, int], group_of=lambda label, i: None) -> list[Video]:
    names = [(label, i) for label in sizes for i in range(sizes[label])]
    return [Video(Path(f"{c}/{i}.mp4"), f"{c}/{i}.mp4", (c,), group=group_of(c, i)) for c, i in names]


def counts(videos: list[Video], split: dict[str, str]) -> dict[str, tuple[int, int, int]]:
    """(train, val, test) of each class."""
    found = Counter((label, split[video.name]) for video in videos for label in video.labels)
    labels = {label for video in videos for label in video.labels}
    return {label: (found[label, "train"], found[label, "val"], found[label, "test"]) for label in sorted(labels)}


def test_an_automatic_split_has_the_fractions_in_every_class():
    videos = listed({"a": 10, "b": 20, "c": 100})
    split = automatic_split(videos, seed=0)
    assert counts(videos, split) == {"a": (7, 1, 2), "b": (14, 2, 4), "c": (70, 10, 20)}
    split = automatic_split(videos, seed=0, val_fraction=0.5, test_fraction=0)
    assert counts(videos, split) == {"a": (5, 5, 0), "b": (10, 10, 0), "c": (50, 50, 0)}


def test_the_seed_decides_and_the_order_does_not():
    videos = listed({"a": 20, "b": 20}, lambda label, i: f"{label}{i // 2}")
    split = automatic_split(videos, seed=3)
    mixed = videos.copy()
    random.Random(1).shuffle(mixed)
    moved = [replace(video, path=Path("/else/where", video.path)) for video in mixed]
    assert automatic_split(moved, seed=3) == split
    assert len({tuple(sorted(automatic_split(videos, seed).items())) for seed in range(10)}) == 10


def test_every_video_may_come_into_the_test():
    videos = listed({"a": 10, "b": 10})
    tested = Counter(n for seed in range(300) for n, s in automatic_split(videos, seed).items() if s == "test")
    assert all(30 <= tested[video.name] <= 90 for video in videos)  # 60 expected, 7 standard deviation


def test_small_classes_train_first_then_test_then_validate():
    videos = listed({"one": 1, "two": 2})
    assert counts(videos, automatic_split(videos, 0)) == {"one": (1, 0, 0), "two": (1, 0, 1)}
    assert counts(videos, automatic_split(videos, 0, val_fraction=0.5)) == {"one": (1, 0, 0), "two": (1, 0, 1)}
    videos = listed({f"c{i}": 4 for i in range(10)})
    found = counts(videos, automatic_split(videos, 0)).values()
    assert sum(val for _, val, _ in found) == 4
    assert all(test == 1 and train >= 2 for train, _, test in found)


def test_segments_of_one_file_stay_together(folder):
    lines = [f"v/{file}.mp4,{'xy'[start % 2]},{start}" for file in "abc" for start in range(10)]
    source = open_source(str(write(folder, "path,label,start", *lines)))
    for seed in range(20):
        split = automatic_split(source.videos, seed)
        sides = {(video.path, split[video.name]) for video in source.videos}
        assert len(sides) == 3
        assert Counter(side for _, side in sides)["test"] == 1


@pytest.mark.parametrize("trial", range(30))
def test_whole_groups_and_training_videos_in_any_data(trial):
    """Drawn data sets: groups of many sizes, some across classes, one or more labels a video, some without."""
    chance = random.Random(trial)
    labels = [f"c{i}" for i in range(chance.randint(2, 8))]
    several = trial % 3 == 0
    videos = []
    for g in range(chance.randint(2, 60)):
        label = chance.choice(labels)
        for i in range(chance.randint(1, 6)):
            own = tuple(chance.sample(labels, chance.randint(0, 2))) if several else (label,)
            if trial % 3 == 1:
                own = (chance.choice(labels),)
            videos.append(Video(Path(f"{g}/{i}"), f"{g}/{i}", own, group=f"g{g}"))
    split = automatic_split(videos, seed=trial)
    assert split.keys() == {video.name for video in videos}
    for group in {video.group for video in videos}:
        assert len({split[video.name] for video in videos if video.group == group}) == 1
    for label, (train, _, test) in counts(videos, split).items():
        assert train >= 1
        groups = {video.group for video in videos if label in video.labels}
        if not several and trial % 3 == 2:  # each group has one class, so nothing else can stand in the way
            assert (test >= 1) == (len(groups) > 1)


def test_groups_come_close_to_the_fractions():
    """Groups of 1 to 6 videos, 15 a class: within one small group of the best that is possible, whatever the seed."""
    chance = random.Random(0)
    sizes = {label: [chance.randint(1, 6) for _ in range(15)] for label in "abcd"}
    videos = [
        Video(Path(f"{c}{g}/{i}"), f"{c}{g}/{i}", (c,), group=f"{c}{g}")
        for c in sizes
        for g, size in enumerate(sizes[c])
        for i in range(size)
    ]
    for seed in range(50):
        split = automatic_split(videos, seed)
        for label, (_, val, test) in counts(videos, split).items():
            total = sum(sizes[label])
            assert abs(test - 0.2 * total) <= 2
            assert abs(val - 0.1 * total) <= 2


def test_groups_larger_than_any_class_can_spare_still_fill_the_split_as_a_whole():
    videos = listed({f"c{i}": 12 for i in range(10)}, lambda label, i: f"{label}{i // 4}")
    split = automatic_split(videos, seed=0, val_fraction=0.1, test_fraction=0)
    assert Counter(split.values()) == {"train": 108, "val": 12}


def test_videos_without_actions_are_shared_out_too():
    videos = [Video(Path(f"{i}"), f"{i}", ("x", "y") if i % 2 else ()) for i in range(40)]
    split = automatic_split(videos, seed=0)
    assert Counter(split[video.name] for video in videos if not video.labels) == {"train": 14, "val": 2, "test": 4}


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (-0.1, 0.2), (0.1, 1.2)])
def test_fractions_that_leave_nothing_to_train(val, test):
    with pytest.raises(InputError, match="less than 1 together"):
        automatic_split(listed({"a": 5}), 0, val, test)


def test_splits_survive_the_file(tmp_path):
    touch(tmp_path / "d", *(f'{label}/{i}, "ä".mp4' for label in ("clap", " wave") for i in range(10)))
    source = open_source(str(tmp_path / "d"))
    split = with_splits(source, automatic_split(source.videos, seed=0))
    assert [len(split.split(name)) for name in ("train", "val", "test")] == [14, 2, 4]
    write_splits(tmp_path / "splits.csv", split)
    assert (tmp_path / "splits.csv").read_text(encoding="utf-8").startswith("name,split\n")
    assert with_splits(source, read_splits(tmp_path / "splits.csv")) == split
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "splits.csv"]


def test_splits_of_another_data_set(tmp_path):
    source = open_source(str(touch(tmp_path, "a/1.mp4", "b/1.mp4", "b/2.mp4")))
    with pytest.raises(InputError, match=r"none for 2 of the 3 videos of .*, such as b/1\.mp4"):
        with_splits(source, {"a/1.mp4": "train", "elsewhere.mp4": "test"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("video,split\na,train\n", "no column 'name'"),
        ("name,split\na,dev\n", "line 2: the split is 'dev'"),
        ("name,split\na,\n", "line 2: the split is ''"),
        ("name,split\na,train\na,test\n", "line 3: a stands there twice"),
    ],
)
def test_a_file_that_holds_no_splits(tmp_path, text, words):
    path = tmp_path / "splits.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_splits(path)
