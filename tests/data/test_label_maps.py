import json
import pickle
import shutil
import tracemalloc
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from airstreams.data.label_maps import COCO_CLASSES, NO_LABEL, LabelMapWriter, LabelStore, create, resized, save
from airstreams.data.sources import open_source
from airstreams.errors import InputError, VideoError
from airstreams.evaluation.evaluate import evaluate

CLASSES = ["background", "person", "dog"]
FRAMES = np.array([0, 3, 7])


@pytest.fixture
def store(tmp_path):
    return create(tmp_path / "labels", "painter", CLASSES, {"stride": 3})


@pytest.fixture
def maps():
    return np.random.default_rng(0).choice(np.array([0, 1, 2, 255], np.uint8), size=(3, 5, 4))


def test_a_created_store_can_be_opened(store):
    assert LabelStore.open(store.root) == store
    assert (store.teacher, store.classes, store.settings) == ("painter", tuple(CLASSES), {"stride": 3})


def test_the_identity_depends_on_teacher_and_settings_but_not_their_order(store):
    store = replace(store, settings={"stride": 3, "threshold": 0.5})
    assert replace(store, settings={"threshold": 0.5, "stride": 3}).identity == store.identity
    assert replace(store, settings={"stride": 4, "threshold": 0.5}).identity != store.identity
    assert replace(store, teacher="sculptor").identity != store.identity


def test_read_gives_the_wanted_frames_and_no_label_elsewhere(store, maps):
    save(store.root, "clap/a.b", maps, FRAMES)
    read_NHW = store.read("clap/a.b", [7, 1, 0, 7, 8, 3, 100])
    assert read_NHW.dtype == np.uint8
    nothing_HW = np.full((5, 4), NO_LABEL)
    expected = [maps[2], nothing_HW, maps[0], maps[2], nothing_HW, maps[1], nothing_HW]
    np.testing.assert_array_equal(read_NHW, expected)
    np.testing.assert_array_equal(store.labelled_frames("clap/a.b"), FRAMES)
    assert store.has("clap/a.b")
    assert not store.has("clap/a")


def test_a_video_without_label_maps_reads_as_none(store):
    assert not store.has("none")
    assert store.read("none", [0, 1]) is None
    assert store.labelled_frames("none").size == 0


def test_a_video_without_labelled_frames_has_no_labels(store):
    save(store.root, "a", np.empty((0, 5, 4), np.uint8), [])
    assert store.labelled_frames("a").size == 0
    np.testing.assert_array_equal(store.read("a", [0, 1]), np.full((2, 5, 4), NO_LABEL))


def test_rewritten_label_maps_are_read_again(store, maps):
    save(store.root, "a", maps, FRAMES)
    assert store.labelled_frames("a").tolist() == [0, 3, 7]
    save(store.root, "a", maps[:2], [1, 2])
    assert store.labelled_frames("a").tolist() == [1, 2]
    np.testing.assert_array_equal(store.read("a", [2]), maps[1:2])


def test_labelled_frames_are_read_only(store, maps):
    save(store.root, "a", maps, FRAMES)
    with pytest.raises(ValueError, match="read-only"):
        store.labelled_frames("a")[0] = 5


def test_a_store_can_be_pickled(store, maps):
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


def test_no_temporary_file_is_left(store, maps):
    save(store.root, "a", maps, FRAMES)
    assert sorted(path.name for path in store.root.iterdir()) == ["a.npz", "labels.json"]


@pytest.mark.parametrize(
    ("shape", "dtype", "frames"),
    [
        ((3, 5, 4), np.int64, [0, 1, 2]),
        ((5, 4), np.uint8, [0, 1, 2, 3, 4]),
        ((3, 5, 4), np.uint8, [0, 1]),
        ((3, 5, 4), np.uint8, [0, 2, 1]),
        ((3, 5, 4), np.uint8, [0, 1, 1]),
        ((3, 5, 4), np.uint8, [-1, 0, 1]),
    ],
)
def test_saving_wrong_arrays_is_refused(store, shape, dtype, frames):
    with pytest.raises(ValueError, match="uint8"):
        save(store.root, "a", np.zeros(shape, dtype), frames)
    assert not store.has("a")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "labels.json"),
        ("{", "JSON"),
        ("[]", "lacks teacher, classes, settings"),
        ('{"teacher": "t", "settings": {}}', "lacks classes;"),
        ('{"teacher": "t", "classes": "person", "settings": {}}', "classes is 'person'"),
        ('{"teacher": "t", "classes": [], "settings": {}}', "0 classes"),
        (json.dumps({"teacher": "t", "classes": ["x"] * 256, "settings": {}}), "256 classes"),
        ('{"teacher": "t", "classes": ["x"], "settings": 1}', "settings is 1"),
    ],
)
def test_a_folder_that_is_no_store_is_refused(tmp_path, text, expected):
    if text is not None:
        (tmp_path / "labels.json").write_text(text)
    with pytest.raises(InputError, match=expected) as caught:
        LabelStore.open(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_255_classes_are_accepted(tmp_path):
    assert len(create(tmp_path, "t", ["x"] * 255, {}).classes) == 255


def test_an_unknown_class_id_is_refused(store, maps):
    maps[1, 2, 3] = 3
    save(store.root, "a", maps, FRAMES)
    with pytest.raises(VideoError, match="class id 3; expected ids below 3") as raised:
        store.read("a", FRAMES)
    assert raised.value.path == store.root / "a.npz"


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
        arrays(frame_indices=np.array([1, 1])),
        arrays(frame_indices=np.array([0.0, 1.0])),
        arrays(frame_indices=np.array([[0], [1]])),
        arrays(labels=np.array([{"a": 1}, None])),  # would need unpickling
    ],
)
def test_a_file_with_wrong_arrays_is_refused(store, content):
    np.savez(store.root / "a.npz", **content)
    with pytest.raises(VideoError, match=r"a\.npz"):
        store.read("a", [0])


@pytest.mark.parametrize("damage", ["empty", "text", "array", "cut", "flipped", "encrypted"])
def test_a_damaged_file_is_refused(store, maps, damage):
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
    elif damage == "encrypted":
        for head, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            content[content.index(head) + flags] |= 1
        path.write_bytes(content)
    else:
        content[100:140] = bytes(255 - byte for byte in content[100:140])
        path.write_bytes(content)
    with pytest.raises(VideoError, match=r"a\.npz") as caught:
        store.read("a", [0])
    assert "\n" not in str(caught.value)


def test_coco_classes_have_cocos_ids():
    assert len(COCO_CLASSES) == len(set(COCO_CLASSES)) == 81
    # The contiguous ids that COCO's own annotations give, a few from beginning to end.
    for label, name in {
        0: "background",
        1: "person",
        17: "dog",
        33: "sports ball",
        57: "chair",
        80: "toothbrush",
    }.items():
        assert COCO_CLASSES[label] == name


def many_maps(count, height=6, width=5):
    return np.random.default_rng(1).choice(np.array([0, 1, 2, 255], np.uint8), size=(count, height, width))


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 32, 50])
def test_the_writer_and_save_write_the_same_bytes(store, count):
    maps, frames = many_maps(count), np.arange(count) * 3 + 1
    save(store.root, "at_once", maps, frames)
    writer = LabelMapWriter(store.root, "one_by_one")
    for frame, label_map_HW in zip(frames.tolist(), maps, strict=True):
        writer.add(frame, label_map_HW)
        assert not store.has("one_by_one")
    writer.finish(maps.shape[1:])
    assert (store.root / "one_by_one.npz").read_bytes() == (store.root / "at_once.npz").read_bytes()
    np.testing.assert_array_equal(store.labelled_frames("one_by_one"), frames)
    wanted = np.random.default_rng(2).permutation(3 * count + 2)
    expected = np.full((3 * count + 2, 6, 5), NO_LABEL, np.uint8)
    expected[frames] = maps
    np.testing.assert_array_equal(store.read("one_by_one", wanted), expected[wanted])


@pytest.mark.parametrize("count", [0, 5, 40])
def test_a_discarded_file_leaves_nothing(store, count):
    writer = LabelMapWriter(store.root, "clap/a")
    for frame, label_map_HW in enumerate(many_maps(count)):
        writer.add(frame, label_map_HW)
    writer.discard()
    assert not [path for path in store.root.rglob("*") if path.is_file() and path.name != "labels.json"]


def test_reading_a_frame_opens_one_chunk(store, monkeypatch):
    maps = many_maps(600)
    save(store.root, "long", maps, np.arange(600) * 2)
    opened = []
    really_open = zipfile.ZipFile.open

    def watched(archive, name, *options, **more):
        opened.append(getattr(name, "filename", name))
        return really_open(archive, name, *options, **more)

    monkeypatch.setattr(zipfile.ZipFile, "open", watched)
    assert len(store.labelled_frames("long")) == 600
    assert set(opened) == {"frame_indices.npy"}
    for wanted, chunks in (([814], {400}), ([1, 3], set()), ([2, 0, 30, 32, 1198], {0, 16, 592})):
        opened.clear()
        read_NHW = store.read("long", wanted)
        labelled = [position for position, frame in enumerate(wanted) if frame % 2 == 0]
        np.testing.assert_array_equal(read_NHW[labelled], maps[[wanted[position] // 2 for position in labelled]])
        found = {int(name.removeprefix("labels_").removesuffix(".npy")) for name in opened}
        assert found == chunks or (not chunks and len(found) == 1)  # one chunk, for the size of the maps


def test_the_writer_holds_few_maps_in_memory(store):
    label_map_HW = np.zeros((100, 150), np.uint8)
    tracemalloc.start()
    writer = LabelMapWriter(store.root, "long")
    for frame in range(600):
        writer.add(frame, label_map_HW.copy())
    writer.finish()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 200 * label_map_HW.nbytes


@pytest.mark.parametrize("damage", ["absent", "short", "of another size"])
def test_wrong_chunks_are_refused(store, damage):
    content = {f"labels_{start:06d}": many_maps(16) for start in (0, 16, 32)}
    if damage == "absent":
        del content["labels_000016"]
    elif damage == "short":
        content["labels_000016"] = content["labels_000016"][:15]
    else:
        content["labels_000016"] = many_maps(16, 5, 6)
    np.savez(store.root / "a.npz", frame_indices=np.arange(48, dtype=np.int32), **content)
    with pytest.raises(VideoError, match=r"a\.npz"):
        store.read("a", range(48))
    assert store.read("a", [3, 40]).shape == (2, 6, 5)


def test_with_classes_reads_in_new_ids(store, maps):
    save(store.root, "a", maps, FRAMES)
    some = store.with_classes(["background", "dog"])
    assert some.classes == ("background", "dog")
    read_NHW = some.read("a", [7, 5, 0, 3])
    for theirs, ours in {0: 0, 1: 0, 2: 1, 255: 255}.items():
        assert (maps == theirs).any()
        assert (read_NHW[[2, 3, 0]][maps == theirs] == ours).all()
    assert (read_NHW[1] == NO_LABEL).all()
    np.testing.assert_array_equal(store.read("a", FRAMES), maps)  # as it was
    turned = store.with_classes(["background", "dog", "person"])
    np.testing.assert_array_equal(turned.read("a", FRAMES), np.array([0, 2, 1, *[255] * 253])[maps])
    copy = pickle.loads(pickle.dumps(some))
    np.testing.assert_array_equal(copy.read("a", [0]), some.read("a", [0]))


def test_with_classes_can_be_applied_twice(store, maps):
    save(store.root, "a", maps, FRAMES)
    twice = store.with_classes(["background", "dog", "person"]).with_classes(["background", "dog"])
    np.testing.assert_array_equal(twice.read("a", FRAMES), store.with_classes(["background", "dog"]).read("a", FRAMES))


def test_other_classes_are_merged_into_one(store, maps):
    save(store.root, "a", maps, FRAMES)
    merged = store.with_others_merged(["dog"])
    assert merged.classes == ("background", "dog", "other")
    expected = np.array([0, 2, 1, *[255] * 253])[maps]  # the person is merged into other
    np.testing.assert_array_equal(merged.read("a", FRAMES), expected)
    np.testing.assert_array_equal(store.with_classes(merged.classes).read("a", FRAMES), expected)
    again = merged.with_classes(["background", "other"])  # now other is an ordinary class
    np.testing.assert_array_equal(again.read("a", FRAMES), np.array([0, 1, 0, *[255] * 253])[maps])
    assert store.with_others_merged([]) is store
    for names in (["cat"], ["dog", "dog"], ["background"]):
        with pytest.raises(InputError, match=rf"data.segment_classes: got {names[0]}"):
            store.with_others_merged(names)
    with pytest.raises(InputError, match="class other"):  # the teacher has such a class
        replace(store, classes=("background", "dog", "other")).with_others_merged(["dog"])


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (["background", "cat"], "of cat; got background, cat, expected background and some of person, dog"),
        (["person", "dog"], "got person, dog, expected background and some of person, dog"),
        ([], "expected background and some of person, dog"),
    ],
)
def test_unknown_classes_are_refused(store, classes, expected):
    with pytest.raises(InputError, match=expected):
        store.with_classes(classes)


def test_an_unknown_class_id_is_refused_in_new_ids_too(store, maps):
    maps[1, 2, 3] = 3
    save(store.root, "a", maps, FRAMES)
    with pytest.raises(VideoError, match="class id 3; expected ids below 3"):
        store.with_classes(["background", "dog"]).read("a", FRAMES)


def test_keys_are_those_that_were_saved(store, maps):
    keys = {"a", "a.b", "clap/a.b", "clap/deep/a", "/outside/a", "../../up", "x/../y", "clap/..", "labels"}
    for key in keys:
        save(store.root, key, maps, FRAMES)
    (store.root / ".17.a.npz").write_bytes(b"being written")
    (store.root / "clap" / "._a.npz").write_bytes(b"a desktop's own")
    (store.root / "contact_sheet.png").write_bytes(b"no label maps")
    found = list(store.keys())
    assert sorted(found) == sorted(keys)
    assert all(store.has(key) for key in found)


def test_an_empty_store_has_no_keys(store):
    assert list(store.keys()) == []


@pytest.mark.parametrize("count", [0, 3, 16, 17, 40])
def test_the_chunks_together_are_all_label_maps(store, count):
    maps, frames = many_maps(count), np.arange(count) * 2
    save(store.root, "in_chunks", maps, frames)
    np.savez(store.root / "one_array.npz", labels=maps, frame_indices=frames.astype(np.int32))
    for key in ("in_chunks", "one_array"):
        chunks = list(store.chunks(key))
        np.testing.assert_array_equal(np.concatenate([indices for indices, _ in chunks]), frames)
        np.testing.assert_array_equal(np.concatenate([maps_MHW for _, maps_MHW in chunks]), maps)
    few = store.with_classes(["background", "dog"])
    for indices, maps_MHW in few.chunks("in_chunks"):
        np.testing.assert_array_equal(maps_MHW, few.read("in_chunks", indices))


def test_chunks_of_broken_or_absent_files_are_refused(store, maps):
    with pytest.raises(VideoError, match=r"absent\.npz"):
        list(store.chunks("absent"))
    np.savez(store.root / "a.npz", frame_indices=np.arange(20, dtype=np.int32), labels_000000=many_maps(16))
    with pytest.raises(VideoError, match=r"a\.npz"):
        list(store.chunks("a"))
    save(store.root, "b", np.full((1, 2, 2), 3, np.uint8), [0])
    with pytest.raises(VideoError, match="class id 3"):
        list(store.chunks("b"))


def test_label_maps_are_resized_by_the_nearest_pixel():
    small = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    large = resized(small, (4, 9))
    np.testing.assert_array_equal(large, small.repeat(2, axis=1).repeat(3, axis=2))
    np.testing.assert_array_equal(resized(large, (2, 3)), small)
    # The middle one of five columns.
    assert resized(np.arange(5, dtype=np.uint8)[None], (1, 1)).item() == 2


def test_pythons_race_in_reading_headers_is_retried(store, maps, monkeypatch):
    def fails_once(archive, name):
        if name not in asked:
            asked.append(name)
            raise SystemError("AST constructor recursion depth mismatch (before=54, after=42)")
        return real(archive, name)

    save(store.root, "a", maps, FRAMES)
    asked: list[str] = []
    real = np.lib.npyio.NpzFile.__getitem__
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", fails_once)
    np.testing.assert_array_equal(store.read("a", FRAMES), maps)
    assert len(asked) == 2


def test_occurring_classes_are_found(store):
    for key, ids in {"none": [255], "nothing": [0], "person": [0, 1], "dog": [2, 255], "both": [1, 2]}.items():
        save(store.root, key, np.resize(np.array(ids, np.uint8), (20, 4, 4)), range(20))
    (store.root / "broken.npz").write_bytes(b"no archive")
    assert store.occurring_classes([]) == ("background",)
    assert store.occurring_classes(["none", "absent", "broken", "nothing"]) == ("background",)
    assert store.occurring_classes(["dog", "none"]) == ("background", "dog")
    assert store.occurring_classes(["dog", "person", "absent"]) == ("background", "person", "dog")
    assert store.with_classes(["background", "dog"]).occurring_classes(["both"]) == ("background", "dog")


def test_occurring_classes_are_found_a_chunk_at_a_time(store):
    maps = np.zeros((400, 100, 150), np.uint8)
    maps[399, 99, 149] = 2
    save(store.root, "long", maps, range(400))
    tracemalloc.start()
    assert store.occurring_classes(["long"]) == ("background", "dog")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < maps.nbytes


def test_a_run_is_scored_with_a_store_of_more_classes(synthetic, trained, tmp_path):
    """The store has other ids, and a class that the segmenter lacks. Its pixels count as background."""
    theirs = LabelStore.open(synthetic / "labels")
    more, plain = (tmp_path / name for name in ("more", "plain"))
    create(more, theirs.teacher, ["background", "hat", *theirs.classes[:0:-1]], {})
    create(plain, theirs.teacher, theirs.classes, {})
    hats = 0
    for path in sorted((synthetic / "labels" / "test").rglob("*.npz")):
        key = str(path.relative_to(synthetic / "labels").with_suffix(""))
        frames = theirs.labelled_frames(key)
        labels_NHW = theirs.read(key, frames)
        is_hat_NHW = (labels_NHW > 0) & (np.arange(64) % 4 == 0)  # type: ignore[operator]
        hats += is_hat_NHW.sum()
        save(plain, key, np.where(is_hat_NHW, 0, labels_NHW).astype(np.uint8), frames)  # type: ignore[arg-type]
        turned_NHW = np.where(labels_NHW == 0, 0, len(theirs.classes) + 1 - labels_NHW.astype(int))  # type: ignore[union-attr]
        save(more, key, np.where(is_hat_NHW, 1, turned_NHW).astype(np.uint8), frames)
    assert hats > 1000
    found = []
    for labels in (plain, more):
        run = shutil.copytree(trained, tmp_path / f"run_{labels.name}")
        source = open_source(str(synthetic / "videos"), labels)
        found.append(evaluate(run, source, "test", Console(quiet=True)).metrics.segmentation)
    assert found[0] == found[1]
    assert found[0] is not None
    assert found[0].pixel_accuracy > 0


@pytest.mark.parametrize("name", ["labels", "frame_indices"])
def test_a_small_file_of_huge_arrays_is_refused_at_once(store, name):
    """Deflate packs zeros a thousand times: this file of a few bytes claims 8 GB, and 8 EB."""
    path = store.root / "bomb.npz"
    for shape in ((2**15, 512, 512), (2**60,)):
        with zipfile.ZipFile(path, "w") as archive:
            for member, its_shape in (("labels", (1, 2, 2)), ("frame_indices", (1,)), (name, shape)):
                if member != name or its_shape == shape:
                    with archive.open(f"{member}.npy", "w") as file:
                        header = {"descr": "<i4" if member != "labels" else "|u1", "fortran_order": False}
                        np.lib.format.write_array_header_1_0(file, header | {"shape": its_shape})
                        file.write(bytes(64))
        tracemalloc.start()
        with pytest.raises(VideoError, match=r"bomb\.npz: .*bytes"):
            list(store.chunks("bomb"))
        assert tracemalloc.get_traced_memory()[1] < 2**24
        tracemalloc.stop()
