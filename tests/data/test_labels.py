import json
import pickle
import shutil

import numpy as np
import pytest

from airstreams.data.labels import COCO_CLASSES, NO_LABEL, LabelStore, create, save
from airstreams.errors import InputError, VideoError

CLASSES = ["background", "person", "dog"]
FRAMES = np.array([0, 3, 7])


@pytest.fixture
def store(tmp_path):
    return create(tmp_path / "labels", "painter", CLASSES, {"stride": 3})


@pytest.fixture
def maps():
    return np.random.default_rng(0).choice(np.array([0, 1, 2, 255], np.uint8), size=(3, 5, 4))


def test_what_is_created_is_what_opens(store):
    assert LabelStore.open(store.root) == store
    assert (store.teacher, store.classes, store.settings) == ("painter", tuple(CLASSES), {"stride": 3})


def test_reads_the_frames_asked_for_in_their_order_and_no_label_elsewhere(store, maps):
    save(store.root, "clap/a.b", maps, FRAMES)
    read_NHW = store.read("clap/a.b", [7, 1, 0, 7, 8, 3, 100])
    assert read_NHW.dtype == np.uint8
    nothing_HW = np.full((5, 4), NO_LABEL)
    expected = [maps[2], nothing_HW, maps[0], maps[2], nothing_HW, maps[1], nothing_HW]
    np.testing.assert_array_equal(read_NHW, expected)
    np.testing.assert_array_equal(store.labelled_frames("clap/a.b"), FRAMES)
    assert store.has("clap/a.b")
    assert not store.has("clap/a")


def test_a_video_without_labels(store):
    assert not store.has("none")
    assert store.read("none", [0, 1]) is None
    assert store.labelled_frames("none").size == 0


def test_a_video_of_which_no_frame_was_labelled(store):
    save(store.root, "a", np.empty((0, 5, 4), np.uint8), [])
    assert store.labelled_frames("a").size == 0
    np.testing.assert_array_equal(store.read("a", [0, 1]), np.full((2, 5, 4), NO_LABEL))


def test_labels_written_anew_are_read_anew(store, maps):
    save(store.root, "a", maps, FRAMES)
    assert store.labelled_frames("a").tolist() == [0, 3, 7]
    save(store.root, "a", maps[:2], [1, 2])
    assert store.labelled_frames("a").tolist() == [1, 2]
    np.testing.assert_array_equal(store.read("a", [2]), maps[1:2])


def test_the_remembered_frames_cannot_be_changed_by_mistake(store, maps):
    save(store.root, "a", maps, FRAMES)
    with pytest.raises(ValueError, match="read-only"):
        store.labelled_frames("a")[0] = 5


def test_survives_pickling(store, maps):
    save(store.root, "a", maps, FRAMES)
    copy = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(copy.read("a", [3]), maps[1:2])


@pytest.mark.parametrize("key", ["../../outside", "/outside", "//outside", "x/../../../outside"])
def test_no_key_leads_out_of_the_store(store, maps, key, tmp_path):
    save(store.root, key, maps, FRAMES)
    assert [path for path in tmp_path.rglob("*.npz") if store.root not in path.parents] == []
    assert store.has(key)
    assert not store.has("outside")
    np.testing.assert_array_equal(store.read(key, FRAMES), maps)


def test_nothing_temporary_stays(store, maps):
    save(store.root, "a", maps, FRAMES)
    assert sorted(path.name for path in store.root.iterdir()) == ["a.npz", "labels.json"]


@pytest.mark.parametrize(
    ("shape", "dtype", "frames"),
    [
        ((3, 5, 4), np.int64, [0, 1, 2]),
        ((5, 4), np.uint8, [0, 1, 2, 3, 4]),
        ((3, 5, 4), np.uint8, [0, 1]),
        ((3, 5, 4), np.uint8, [0, 2, 1]),
        ((3, 5, 4), np.uint8, [-1, 0, 1]),
    ],
)
def test_refuses_to_save_what_does_not_fit(store, shape, dtype, frames):
    with pytest.raises(ValueError, match="expected uint8"):
        save(store.root, "a", np.zeros(shape, dtype), frames)
    assert not store.has("a")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no labels.json"),
        ("{", "JSON"),
        ("[]", "lacks teacher, classes, settings"),
        ('{"teacher": "t", "settings": {}}', "lacks classes;"),
        ('{"teacher": "t", "classes": "person", "settings": {}}', "list of names"),
        ('{"teacher": "t", "classes": [], "settings": {}}', "names 0 classes"),
        (json.dumps({"teacher": "t", "classes": ["x"] * 256, "settings": {}}), "names 256 classes"),
    ],
)
def test_opening_what_is_no_store(tmp_path, text, words):
    if text is not None:
        (tmp_path / "labels.json").write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        LabelStore.open(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_255_classes_are_the_most(tmp_path):
    assert len(create(tmp_path, "t", ["x"] * 255, {}).classes) == 255


def test_an_id_without_a_class(store, maps):
    maps[1, 2, 3] = 3
    save(store.root, "a", maps, FRAMES)
    with pytest.raises(InputError, match=r"a\.npz holds the class id 3; expected ids below 3"):
        store.read("a", FRAMES)


def arrays(**changed):
    return {"labels": np.zeros((2, 5, 4), np.uint8), "frame_indices": np.array([0, 1], np.int32)} | changed


@pytest.mark.parametrize(
    "content",
    [
        {"labels": np.zeros((2, 5, 4), np.uint8)},
        {"frame_indices": np.array([0, 1])},
        arrays(labels=np.zeros((3, 5, 4), np.uint8)),
        arrays(labels=np.zeros((2, 5, 4), np.float32)),
        arrays(labels=np.zeros((2, 5), np.uint8)),
        arrays(frame_indices=np.array([1, 0], np.uint32)),
        arrays(frame_indices=np.array([0.0, 1.0])),
        arrays(frame_indices=np.array([[0], [1]])),
        arrays(labels=np.array([{"a": 1}, None])),  # would have to be unpickled
    ],
)
def test_a_file_with_other_arrays_is_broken(store, content):
    np.savez(store.root / "a.npz", **content)
    with pytest.raises(VideoError, match=r"a\.npz"):
        store.read("a", [0])


@pytest.mark.parametrize("damage", ["empty", "text", "array", "cut", "flipped"])
def test_a_damaged_file_is_broken(store, maps, damage):
    save(store.root, "a", maps.repeat(100, axis=1), FRAMES)
    path = store.root / "a.npz"
    content = bytearray(path.read_bytes())
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_bytes(b"no archive")
    elif damage == "array":
        np.save(store.root / "a.npy", maps)
        shutil.move(store.root / "a.npy", path)
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[100:140] = bytes(255 - byte for byte in content[100:140])
        path.write_bytes(content)
    with pytest.raises(VideoError, match=r"a\.npz") as caught:
        store.read("a", [0])
    assert "\n" not in str(caught.value)


def test_coco_names_stand_at_cocos_ids():
    assert len(COCO_CLASSES) == len(set(COCO_CLASSES)) == 81
    # The contiguous ids that COCO's own annotations give, a few from beginning to end.
    for place, name in {
        0: "background",
        1: "person",
        17: "dog",
        33: "sports ball",
        57: "chair",
        80: "toothbrush",
    }.items():
        assert COCO_CLASSES[place] == name
