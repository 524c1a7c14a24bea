"""Counts of small stores, counted by hand, and the score of J-HMDB's real label maps and masks."""

import json
import tracemalloc
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from airstreams.console import Progress
from airstreams.data.label_maps import COCO_CLASSES, LabelStore, create, save
from airstreams.data.listing import Video
from airstreams.data.sources import open_source
from airstreams.data.video import read_frames
from airstreams.errors import InputError
from airstreams.teachers import inspect
from airstreams.teachers.inspect import ClassShare, count_labels, read_samples, score_against_masks

CLASSES = ("background", "person", "dog", "kite")


@pytest.fixture
def progress():
    return Progress(console=Console(quiet=True))


@pytest.fixture
def store(tmp_path):
    return create(tmp_path / "labels", "painter", CLASSES, {"stride": 2})


def test_shares_agree_with_counting_by_hand(store, progress):
    # 4 frames of 10 px and 20 of 5 px: 140 px in all.
    few = np.zeros((4, 2, 5), np.uint8)
    few[0, 0] = 1  # 5 px
    few[1, 0, 0], few[1, 1] = 2, 255  # 1 px and 5 px
    few[2] = 255  # 10 px, and no instance
    save(store.root, "walk/few", few, [0, 2, 4, 6])
    many = np.zeros((20, 1, 5), np.uint8)
    many[15:18, 0, 0] = 1  # in both pieces that the file is stored in
    save(store.root, "many", many, range(20))
    save(store.root, "empty", np.zeros((0, 1, 1), np.uint8), [])
    report = count_labels(store, progress)
    found = asdict(report.counts.shares(store.classes))
    size = sum(path.stat().st_size for path in store.root.rglob("*.npz"))
    assert found == {
        "classes": {
            "background": {"pixels": (140 - 5 - 6 - 10 - 3) / 140, "frames": 23 / 24},
            "person": {"pixels": 8 / 140, "frames": 4 / 24},
            "dog": {"pixels": 1 / 140, "frames": 1 / 24},
        },
        "videos": 3,
        "frames": 24,
        "frames_with_instance": 5 / 24,
        "pixels_without_label": 15 / 140,
        "bytes": size,
        "raw_share": size / 140,
    }
    assert list(found["classes"]) == ["background", "person", "dog"]
    assert json.loads(json.dumps(found)) == found
    assert report.bad == {}
    # The sample of a video is the middle one of its frames with an instance.
    assert report.samples == [("many", 16), ("walk/few", 2)]


def test_an_empty_store_has_empty_shares(store, progress):
    report = count_labels(store, progress)
    found = report.counts.shares(store.classes)
    assert (found.classes, found.videos, found.frames, found.raw_share) == ({}, 0, 0, 0)
    assert report.samples == []


def test_broken_files_are_reported_and_not_counted(store, progress):
    save(store.root, "good", np.ones((1, 2, 2), np.uint8), [0])
    (store.root / "text.npz").write_text("no archive")
    # Broken only in its last piece, after the others were counted.
    piece = np.full((16, 2, 2), 2, np.uint8)
    np.savez(store.root / "cut.npz", frame_indices=np.arange(48), labels_000000=piece, labels_000016=piece)
    save(store.root, "unnamed", np.full((1, 2, 2), 9, np.uint8), [0])
    report = count_labels(store, progress)
    assert {path.name for path in report.bad} == {"text.npz", "cut.npz", "unnamed.npz"}
    assert "class id 9" in report.bad[store.root / "unnamed.npz"]
    found = report.counts.shares(store.classes)
    assert (found.videos, found.frames) == (1, 1)
    assert found.classes == {"person": ClassShare(pixels=1.0, frames=1.0)}
    assert report.samples == [("good", 0)]


def test_samples_do_not_depend_on_the_order_and_prefer_instances(tmp_path, progress):
    found: list[list[tuple[str, int]]] = []
    for order in (range(40), reversed(range(40))):
        store = create(tmp_path / str(len(found)), "painter", CLASSES, {})
        for name in order:
            save(store.root, f"{name:02d}", np.full((3, 2, 2), int(name % 5 == 0), np.uint8), [0, 1, 2])
        found.append(count_labels(store, progress).samples)
    assert found[0] == found[1]
    keys = [key for key, _ in found[0]]
    assert len(set(keys)) == 12
    assert keys == sorted(keys)
    assert {f"{name:02d}" for name in range(0, 40, 5)} < set(keys)  # the eight with a person, and four others
    assert [key for key in keys if int(key) % 5] != ["01", "02", "03", "04"]
    assert [key for key, _ in count_labels(store, progress, may_be_sample={"03", "10", "absent"}).samples] == [
        "03",
        "10",
    ]


def test_memory_does_not_grow_with_the_store(store, progress, monkeypatch):
    """A further file may cost its path, under 1 kB. Its sums would take 2 kB, and its frames 480 kB."""
    monkeypatch.setattr(inspect, "FILES_AHEAD", 16)
    most = []
    for first, files in ((0, 40), (40, 240)):
        for name in range(first, files):
            np.savez(store.root / f"{name}.npz", frame_indices=np.arange(300), labels=np.zeros((300, 1, 1), np.uint8))
        tracemalloc.start()
        assert count_labels(store, progress).counts.videos == files
        most.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert most[1] < most[0] + 200 * 1_000  # Python 3.13 takes 870 bytes per path, 3.11 less


def video(tmp_path, name, mask_THW=None):
    if mask_THW is not None:
        np.savez(tmp_path / f"{name}.npz", mask=mask_THW)
    mask = None if mask_THW is None else tmp_path / f"{name}.npz"
    return Video(tmp_path / f"{name}.mp4", name, ("walk",), label_map=name, mask=mask)


def test_person_iou_agrees_with_counting_by_hand(store, tmp_path, progress):
    mask_THW = np.zeros((6, 2, 4), np.uint8)
    mask_THW[:, 0] = 1
    half = np.zeros((3, 2, 4), np.uint8)
    half[:, :, :2] = 1  # intersection 2 px, union 6 px, in each frame
    half[0, 0, 0] = 255  # no label is no person: intersection 1 px
    half[1, 1, 0] = 2  # union 5 px
    save(store.root, "half", half, [0, 4, 6])  # the mask has no frame 6
    small = np.zeros((1, 1, 2), np.uint8)
    small[0, 0, 1] = 1  # the right half of twice the height and width
    save(store.root, "small", small, [3])
    right_THW = np.zeros((4, 2, 4), np.uint8)
    right_THW[3, :, 2:] = 1
    nobody_THW = np.zeros((1, 2, 4), np.uint8)
    save(store.root, "nobody", nobody_THW, [0])
    missed_THW = np.zeros((1, 2, 4), np.uint8)
    missed_THW[0, 1, 1:] = 1  # union 3 px, intersection 0
    save(store.root, "missed", nobody_THW, [0])
    save(store.root, "beyond", half, [1, 2, 3])
    videos = [
        video(tmp_path, "half", mask_THW),
        video(tmp_path, "small", right_THW),
        video(tmp_path, "nobody", nobody_THW),
        video(tmp_path, "missed", missed_THW),
        video(tmp_path, "beyond", nobody_THW),
        video(tmp_path, "not_labelled", nobody_THW),
        video(tmp_path, "no_mask"),
    ]
    found = score_against_masks(store, videos, progress)
    assert found.as_dict() == {
        "person_iou": (1 + 2 + 4) / (6 + 5 + 4 + 3),
        "person_iou_mean": pytest.approx((3 / 11 + 1 + 0) / 3),
        "videos": 4,
        "frames": 5,
        "videos_with_masks": 6,
    }
    assert found.bad == {}

    (tmp_path / "half.npz").write_bytes(b"")
    (store.root / "nobody.npz").write_bytes(b"")
    np.savez(tmp_path / "flat.npz", mask=mask_THW[0])
    save(store.root, "flat", half, [0, 4, 6])
    flat = replace(videos[0], mask=tmp_path / "flat.npz", label_map="flat")
    found = score_against_masks(store, [*videos, flat], progress)
    assert (found.person_iou, found.videos) == (4 / (4 + 3), 2)
    assert set(found.bad) == {tmp_path / "half.npz", store.root / "nobody.npz", tmp_path / "flat.npz"}


def test_data_without_masks_or_persons_is_refused(store, tmp_path, progress):
    with pytest.raises(InputError, match="masks"):
        score_against_masks(store, [video(tmp_path, "a")], progress)
    dogs = create(tmp_path / "dogs", "painter", ["background", "dog"], {})
    with pytest.raises(InputError, match="person"):
        score_against_masks(dogs, [video(tmp_path, "a", np.zeros((1, 2, 2), np.uint8))], progress)
    nobody = np.zeros((1, 2, 2), np.uint8)
    save(store.root, "a", nobody, [0])
    found = score_against_masks(store, [video(tmp_path, "a", nobody)], progress)
    assert (found.person_iou, found.person_iou_mean, found.videos) == (None, None, 1)


def test_samples_have_the_frames_of_the_videos(synthetic):
    store = LabelStore.open(synthetic / "labels")
    path = synthetic / "videos" / "test" / "disc_up" / "000.mp4"
    key = "test/disc_up/000"
    bad = synthetic / "absent.mp4"
    other = "test/disc_up/001"
    samples, reasons = read_samples(store, [(key, 4), (other, 2)], {key: path, other: bad})
    np.testing.assert_array_equal(samples[0].frame, read_frames(path, [4])[0])
    np.testing.assert_array_equal(samples[0].label_map, store.read(key, [4])[0])  # type: ignore[index]
    assert key in samples[0].title
    assert "4" in samples[0].title
    assert samples[1].frame is None
    np.testing.assert_array_equal(samples[1].label_map, store.read(other, [2])[0])  # type: ignore[index]
    assert list(reasons) == [bad]
    assert reasons[bad]


def test_jhmdbs_label_maps_reach_their_person_iou(test_data: Path, progress):
    source = open_source(f"jhmdb:{test_data / 'jhmdb'}?split=1")
    assert source.label_store is not None
    assert source.label_store.classes == COCO_CLASSES
    found = score_against_masks(source.label_store, source.videos, progress)
    assert (found.videos, found.frames, found.bad) == (928, 16003, {})
    assert found.person_iou == pytest.approx(0.637, abs=0.0005)
