"""`airstreams labels` on maps, points and features: numbers, contact sheets, and the score by masks."""

from dataclasses import replace

import numpy as np
import pytest

from airstreams.data.label_maps import LabelStore
from airstreams.data.sources import open_source
from airstreams.data.value_store import ValueStore, create
from airstreams.errors import InputError
from airstreams.teachers.inspect_values import ValueSample, score_values
from airstreams.viewing.target_colours import colours_of
from tests.calls import complaint, with_json


@pytest.fixture
def labels(synthetic):
    return LabelStore.open(synthetic / "labels")


def made(root, labels, kind, names, rows_of, **changes):
    """A store of values that are made of label maps (N, H, W)."""
    store = create(ValueStore(root, "maths", kind, names, {"stride": 2}, **changes))
    for key in list(labels.keys()):
        frames = labels.labelled_frames(key)[::2]
        store.write(key, frames, rows_of(labels.read(key, frames)))
    return store


def test_maps_are_counted_and_drawn(call, synthetic, labels, tmp_path):
    store = made(tmp_path / "depth", labels, "maps", ("depth",), lambda maps: np.where(maps[:, None] > 0, 3.0, np.nan))
    found = with_json(call("labels", store.root, "--data", synthetic / "videos", "--json"))
    assert (found["videos"], found["frames"], found["kind"], found["bad"]) == (32, 32 * 4, "maps", [])
    depth = found["values"]["depth"]
    pixels = np.concatenate([labels.read(key, labels.labelled_frames(key)[::2]) for key in list(labels.keys())])
    assert depth["known"] == pytest.approx((pixels > 0).mean())
    assert (depth["mean"], depth["deviation"], depth["low"], depth["high"]) == (3, 0, 3, 3)
    assert (store.root / "contact_sheet.png").is_file()
    broken = next(store.root.rglob("*.safetensors"))
    broken.write_bytes(b"no tensors")
    status, out, _ = call("labels", store.root)
    assert status == 1
    assert [line for line in out.splitlines() if line.startswith("bad: ") and broken.name in line]
    complaint(call("labels", store.root, "--truth", synthetic / "videos"), "--truth")


def test_points_are_scored_by_masks(labels, synthetic, tmp_path):
    def middle(maps_NHW):
        places = [np.mean(np.nonzero(one)[::-1], axis=1) / 64 for one in maps_NHW]
        return np.array([[[(*place, 1.0), (0.01, 0.01, 0.5)]] for place in places])

    store = made(tmp_path / "points", labels, "points", ("middle", "corner"), middle)
    videos = []
    for number, video in enumerate(open_source(str(synthetic / "videos")).videos[:3]):
        mask = tmp_path / f"{number}.npz"
        maps_NHW = labels.read(video.label_map, range(8))
        np.savez(mask, mask=(maps_NHW > 0).astype(np.uint8))
        videos.append(replace(video, mask=mask))
    score = score_values(store, videos)
    assert (score.videos, score.frames) == (3, 12)
    assert score.on_people == pytest.approx(1 / 1.5)  # discs and squares have their middle inside
    people = made(tmp_path / "soft", labels, "maps", ("a", "person"), lambda maps: np.stack([maps, maps > 0], axis=1))
    assert score_values(people, videos).person_iou == 1
    with pytest.raises(InputError, match="masks"):
        score_values(people, open_source(str(synthetic / "videos")).videos)


@pytest.mark.parametrize(
    ("kind", "names", "shape", "changes"),
    [
        ("maps", tuple("xy"), (2, 6, 8), {"in_px": True, "negated": ("x",)}),
        ("maps", tuple("xyz"), (3, 6, 8), {}),
        ("maps", tuple("abcde"), (5, 6, 8), {}),
        ("grid", tuple("abcd"), (4, 6, 8), {}),
        ("clip", tuple("abcde"), (5,), {}),
        ("points", tuple("ab"), (3, 2, 3), {}),
    ],
)
def test_every_kind_has_colours(tmp_path, kind, names, shape, changes):
    store = ValueStore(tmp_path, "maths", kind, names, **changes)
    row = np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)
    unknown = row.copy()
    unknown[0] = np.nan
    first, second = colours_of(store, [ValueSample("a", row, None), ValueSample("b", unknown, None)])
    assert first.dtype == np.uint8
    assert first.shape == {"clip": (3, 3, 3), "points": (120, 160, 3)}.get(kind, (6, 8, 3))
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 2
    if kind in ("maps", "grid"):
        assert (second == 199).all()
    frame = np.full((60, 80, 3), 9, np.uint8)
    (drawn,) = colours_of(store, [ValueSample("a", row, frame)])
    assert (drawn.shape == frame.shape) == (kind == "points")
