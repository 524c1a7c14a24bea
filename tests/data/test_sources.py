import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from airstreams.data.label_maps import create, save
from airstreams.data.listing import Video
from airstreams.data.sources import open_source
from airstreams.errors import InputError


def touch(root: Path, *names: str) -> Path:
    """Create empty files: sources never open a video."""
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


def test_class_folders_are_listed(tmp_path):
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
    with pytest.raises(InputError, match=r"split 'train'; it has none"):
        source.split("train")


def test_names_that_are_not_utf_8_are_refused(tmp_path):
    touch(tmp_path, "clap/a.mp4", os.fsdecode(b"wave/caf\xe9.mp4"))
    assert "'wave/caf\\udce9.mp4'" in refusal(tmp_path)


def test_class_folders_may_be_links(tmp_path):
    touch(tmp_path, "store/one/a.mp4", "store/two/b.mp4")
    (tmp_path / "data/clap").mkdir(parents=True)
    (tmp_path / "data/clap/more").symlink_to(tmp_path / "store/one")
    (tmp_path / "data/wave").symlink_to(tmp_path / "store/two")
    assert [video.name for video in open_source(str(tmp_path / "data")).videos] == ["clap/more/a.mp4", "wave/b.mp4"]


def test_links_to_the_same_folder_are_followed_once(tmp_path):
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
    assert "clap/a.mp4" in text
    assert link in text


def test_skipped_files_are_warned_of(tmp_path):
    touch(tmp_path, "clap/a.mp4", "clap/a.txt", "clap/.DS_Store", "wave/b.MOV", "wave/deep/b.wav", "wave/c.wav")
    (tmp_path / "empty").mkdir()
    source = open_source(str(tmp_path))
    assert [video.name for video in source.videos] == ["clap/a.mp4", "wave/b.MOV"]
    folders, files = source.warnings
    assert "empty" in folders
    assert "2 .wav, 1 .txt" in files


def test_what_systems_leave_behind_is_skipped(tmp_path):
    touch(tmp_path, "train/clap/a.mp4", "train/wave/b.mp4", "train/wave/Thumbs.db", "train/wave/@eaDir/b.mp4")
    touch(tmp_path, "test/clap/c.mp4", "test/wave/desktop.ini", "test/wave/d.mp4", "__MACOSX/clap/._a.mp4")
    source = open_source(str(tmp_path))
    assert source.warnings == ()
    assert [video.name for video in source.videos] == [
        "test/clap/c.mp4", "test/wave/d.mp4", "train/clap/a.mp4", "train/wave/b.mp4",
    ]  # fmt: skip


def test_names_that_look_the_same_are_told(tmp_path):
    apart, together = (unicodedata.normalize(form, "Läufe") for form in ("NFD", "NFC"))
    touch(tmp_path / "accents", f"{apart}/a.mp4", f"{together}/a.mp4", "wave/b.mp4")
    assert "L\\xe4ufe" in refusal(tmp_path / "accents")
    touch(tmp_path / "blanks", "clap/a.mp4", "clap /b.mp4", "wave/c.mp4", "wave\u200b/d.mp4")
    (warning,) = open_source(str(tmp_path / "blanks")).warnings
    assert "'clap' and 'clap ', 'wave' and 'wave\\u200b'" in warning
    touch(tmp_path / "splits", "train/clap/a.mp4", "train/wave/b.mp4", "test/Clap/c.mp4")
    assert "'Clap' is 'clap' in train" in refusal(tmp_path / "splits")
    touch(tmp_path / "breaks", "clap/a\n.mp4", "wave/b.mp4")
    assert "'clap/a\\n.mp4'" in refusal(tmp_path / "breaks")


def test_names_with_accents_are_normalised(tmp_path):
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


def test_split_folders_are_listed(tmp_path):
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
    with pytest.raises(InputError, match=r"'dev'.*train, val, test"):
        source.split("dev")


def test_a_class_may_be_called_train(tmp_path):
    touch(tmp_path, "train/a.mp4", "bus/a.mp4")
    source = open_source(str(tmp_path))
    assert source.classes == ("bus", "train")
    assert not source.has_splits


@pytest.mark.parametrize(
    "folders", [("train", "validation"), ("train", "val", "extra"), ("Train", "Test"), ("training", "testing")]
)
def test_folders_with_names_like_splits_are_refused(tmp_path, folders):
    touch(tmp_path, *(f"{folder}/{label}/a.mp4" for folder in folders for label in ("clap", "wave")))
    text = refusal(tmp_path)
    assert ", ".join(sorted(folders)) in text
    assert "train, val and test" in text


def test_evaluation_data_may_have_one_class_or_only_a_test_split(tmp_path):
    touch(tmp_path, "new/test/clap/a.mp4", "one/clap/a.mp4")
    assert [(video.labels, video.split) for video in open_source(str(tmp_path / "new")).videos] == [(("clap",), "test")]
    assert open_source(str(tmp_path / "one"), for_training=False).classes == ("clap",)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ((), "expected DATA/<class>/<video>"),
        (("clap/readme.txt", "wave/data.npz"), "expected DATA/<class>/<video>"),
        (("clap/a.mp4", "clap/b.mp4", "wave/readme.txt"), "class clap; expected at least 2"),
        (("a.mp4", "b.mp4"), "a.mp4; expected"),
        (("a.mp4", "clap/a.mp4", "wave/a.mp4"), "a.mp4; expected"),
        (("train/a.mp4", "test/clap/b.mp4"), "train/<class>/<video>"),
        (("train/clap/a.mp4", "train/wave/a.mp4", "test/jump/a.mp4"), "no training video of jump"),
        (("clap/a.mp4", "clap/a.avi", "wave/a.mp4"), "both clap/a.avi and clap/a.mp4"),
    ],
)
def test_folders_unfit_for_training_are_refused(tmp_path, files, expected):
    text = refusal(touch(tmp_path, *files))
    assert expected in text
    assert str(tmp_path) in text


def test_missing_data_is_refused(tmp_path):
    assert "nowhere does not exist; expected" in refusal(tmp_path / "nowhere")


# CSV files


@pytest.fixture
def folder(tmp_path):
    return touch(tmp_path, "v/a.mp4", "v/b.mp4", "v/c.mp4", "other/d.mp4")


def write(folder: Path, *lines: str) -> Path:
    path = folder / "list.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_csv_with_all_columns_is_listed(folder):
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


def test_several_labels_in_a_cell_are_read(folder):
    path = write(folder, "path,label", "v/a.mp4,wave; clap;wave", "v/b.mp4,", "v/c.mp4,jump")
    source = open_source(str(path))
    assert source.multi_label
    assert source.classes == ("clap", "jump", "wave")
    assert [video.labels for video in source.videos] == [("wave", "clap"), (), ("jump",)]


def test_a_csv_for_evaluation_may_lack_training_videos_and_classes(folder):
    source = open_source(str(write(folder, "path,label,split", "v/a.mp4,wave,test")))
    assert len(source.split("test")) == 1


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([""], ["is empty; expected", "path,label"]),
        (["path,label"], ["has a header but no rows"]),
        (["path,kind", "v/a.mp4,x"], ["column 'label'", "path, kind", "path,label[,split]"]),
        (["v/a.mp4,x", "v/b.mp4,y"], ["column 'path'", "v/a.mp4, x"]),
        (["path,label,label", "v/a.mp4,x,y"], ["column 'label' 2 times"]),
        (["path,label", "v/a.mp4,x", "v/b.mp4,y,z"], ["line 3: 3 cells; expected 2"]),
        (["path,label", '"v/a.mp4"x,y'], ["cannot be read as text"]),
        (
            ["path,label", "v/a.mp4,x", "v/B.mp4,y", "v/c.mp4,x", "v,y"],
            ["line 3: ", "v/B.mp4", "2 of 4 rows"],
        ),
        (["path,label,split", "v/a.mp4,x,train", "v/b.mp4,,val"], ["line 3: the label"]),
        (["path,label,start", "v/a.mp4,x,", "v/b.mp4,y,1:30"], ["line 3: the start is '1:30'"]),
        (["path,label,start", "v/a.mp4,x,nan", "v/b.mp4,y,"], ["line 2: the start is 'nan'"]),
        (["path,label,end", "v/a.mp4,x,-1", "v/b.mp4,y,"], ["line 2: the end is '-1'"]),
        (
            ["path,label,start,end", "v/a.mp4,x,2,2", "v/b.mp4,y,,"],
            ["line 2: the end 2 s", "the start 2 s"],
        ),
        (["path,label,end", "v/a.mp4,x,0", "v/b.mp4,y,"], ["line 2: the end 0 s", "the start 0 s"]),
        (
            ["path,label,split", "v/a.mp4,x,eval", "v/b.mp4,y,"],
            ["line 2: the split is 'eval'"],
        ),
        (
            ["path,label,split", "v/a.mp4,x,train", "v/b.mp4,y,", "v/c.mp4,y,"],
            ["line 3: the split", "2 of 3 rows"],
        ),
        (
            ["path,label,split", "v/a.mp4,x,train", "v/b.mp4,y,train", "v/c.mp4,z,test"],
            ["training video of z,"],
        ),
        (
            ["path,label,split", "v/a.mp4,x;y,train", "v/b.mp4,x;z,val"],
            ["training video of z,"],
        ),
        (["path,label", "v/a.mp4,x", "v/b.mp4,y", "./v/a.mp4,x"], ["line 4: v/a.mp4", "in line 2"]),
        (["path,label,start", "v/a.mp4,x,1", "v/a.mp4,y,1.0"], ["line 3: v/a.mp4#t=1.0,", "in line 2"]),
        (["path,label", "v/a.mp4,x", "v/b.mp4,x"], ["class x; expected at least 2"]),
        (["path,label", "v/a.mp4,x", ",y"], ["line 3: the path"]),
        (["path,label", "v/a.mp4,x", "other/../v/a.mp4,y"], ["other/../v/a.mp4 and v/a.mp4"]),
        (["path,label", "v/a.mp4,;", "v/b.mp4,"], ["class none"]),
    ],
)
def test_wrong_csv_files_are_refused(folder, lines, expected):
    text = refusal(write(folder, *lines))
    assert "list.csv" in text
    for part in expected:
        assert part in text


def test_videos_in_several_splits_are_warned_of(folder):
    rows = ["v/a.mp4,x,train,0,2,", "v/a.mp4,x,test,1,3,", "v/b.mp4,y,train,0,2,g", "v/b.mp4,y,val,2,4,g"]
    (warning,) = open_source(str(write(folder, "path,label,split,start,end,group", *rows))).warnings
    assert ": the group g, v/a.mp4#t=1.0,3.0." in warning
    apart = ["v/a.mp4,x,train,0,1,", "v/a.mp4,x,test,1,3,", "v/b.mp4,y,train,0,2,g", "v/b.mp4,y,train,2,4,g"]
    assert open_source(str(write(folder, "path,label,split,start,end,group", *apart))).warnings == ()


def test_two_encodings_of_a_video_are_refused_for_training_only(tmp_path):
    touch(tmp_path, "wave/a.mov", "wave/a.webm", "clap/b.mp4")
    assert len(open_source(str(tmp_path), for_training=False).videos) == 3
    assert "wave/a.mov and wave/a.webm" in refusal(tmp_path)


def test_a_file_that_is_no_csv_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_bytes(bytes(range(256)))
    assert "a.mp4 is a video" in refusal(tmp_path / "a.mp4")
    (tmp_path / "list").write_bytes(bytes(range(256)))
    text = refusal(tmp_path / "list")
    assert str(tmp_path / "list") in text
    assert "path,label[,split][,start][,end][,group]" in text
    assert "UTF-8" in text


# Label stores


def test_label_maps_are_found_by_the_name_without_suffix(folder):
    path = write(folder, "path,label,start", "v/a.mp4,x,", "v/b.mp4,y,1", "v/b.mp4,y,2")
    store = create(folder / "labels", "painter", ["background", "dog"], {})
    save(store.root, "v/b", np.ones((1, 2, 3), np.uint8), [4])
    source = open_source(str(path), labels=store.root)
    assert source.label_store == store
    labelled = [store.labelled_frames(video.label_map or "").tolist() for video in source.videos]
    assert labelled == [[], [4], [4]]


def test_label_maps_of_other_data_are_refused(folder):
    path = write(folder, "path,label", "v/a.mp4,x", "v/b.mp4,y")
    store = create(folder / "labels", "painter", ["background", "dog"], {})
    save(store.root, "elsewhere/b", np.ones((1, 2, 3), np.uint8), [4])
    assert f"{store.root} has no label maps" in refusal(path, labels=store.root)
    assert "labels.json" in refusal(path, labels=folder / "v")


@pytest.mark.parametrize(("data", "labels", "key"), [(3, None, "data"), (None, None, "data"), ("v", 3, "labels")])
def test_paths_of_another_type_are_refused(data, labels, key):
    with pytest.raises(InputError, match=f"{key}: got "):
        open_source(data, labels)
