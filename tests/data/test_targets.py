"""How the targets of a clip follow its crop, flip and size, against sums in plain Python."""

import math

import numpy as np
import pytest
import torch

from airstreams.config import ClipConfig
from airstreams.data import label_maps
from airstreams.data.targets import ClassesPerPixel, FeaturesOnGrid, FeaturesPerClip, MapsPerPixel, Points
from airstreams.data.transforms import Crop
from airstreams.data.value_store import ValueStore, create
from airstreams.errors import InputError

CLIP = ClipConfig(frames=3, size=64)
WHOLE = Crop(0, 0, 1, 1)
CROP = Crop(0.13, 0.21, 0.55, 0.62)
PLACE = [np.float64(number) for number in (0.13, 0.21, 0.55, 0.62)]  # draw_crop gives numpy's numbers
FLIPPED = Crop(PLACE[0], PLACE[1], PLACE[2], PLACE[3], flip=True)


def store_of(root, kind, names, **changes):
    return create(ValueStore(root, "rays-1", kind, names, **changes))


def resampled(row_HW, crop, side):
    """Bilinear with anti-aliasing, one pixel at a time: a triangle of one pixel of the coarser grid on each side."""
    H, W = row_HW.shape
    out = np.full((side, side), np.nan)
    for i in range(side):
        for j in range(side):
            total = weight = every = 0.0
            for y in range(H):
                for x in range(W):
                    one = 1.0
                    for place, start, length, n, pixel in (
                        (i, crop.top, crop.height, H, y),
                        (j, crop.left, crop.width, W, x),
                    ):
                        step = length * n / side
                        centre = start * n + (place + 0.5) * step
                        one *= max(0.0, 1 - abs(pixel + 0.5 - centre) / max(step, 1))
                    every += one
                    if not math.isnan(row_HW[y, x]):
                        total, weight = total + one * row_HW[y, x], weight + one
            if weight > every / 2:
                out[i, j] = total / weight
    return out[:, ::-1] if crop.flip else out


def close(tensor, expected):
    np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("crop", [WHOLE, CROP, FLIPPED])
@pytest.mark.parametrize("size", [(11, 13), (40, 30)])  # enlarged, and reduced
def test_maps_are_resampled_without_unknown_pixels(tmp_path, crop, size):
    store = store_of(tmp_path, "maps", ("depth",))
    rows = np.random.default_rng(0).uniform(0, 1, (3, 1, *size)).astype(np.float32)
    rows[0, 0, :7, 2:9] = np.nan
    rows[2] = np.nan
    target = MapsPerPixel(1).of_clip(store, rows, crop, CLIP)
    assert target.shape == MapsPerPixel(1).blank(CLIP).shape == (1, 3, 16, 16)
    close(target[0, 0], resampled(rows[0, 0], crop, 16))
    assert 0 < target[0, 0].isnan().sum() < 256
    assert target[0, 2].isnan().all()
    assert MapsPerPixel(1).count(target[None]) == (~target.isnan()).sum()


def test_flipped_maps_change_places_and_sign(tmp_path):
    names = ("left hand", "right hand", "x", "y")
    store = store_of(tmp_path, "maps", names, mirrored=(names[:2],), negated=("x",))
    rows = np.random.default_rng(0).normal(size=(3, 4, 20, 20)).astype(np.float32)
    target = MapsPerPixel(4).of_clip(store, rows, FLIPPED, CLIP)
    for place, (source, sign) in enumerate([(1, 1), (0, 1), (2, -1), (3, 1)]):
        close(target[place, 1], sign * resampled(rows[1, source], FLIPPED, 16))


def test_flow_is_measured_in_px_of_the_clip(tmp_path):
    store = store_of(tmp_path, "maps", ("x", "y"), negated=("x",), in_px=True)
    rows = np.stack([np.stack([np.full((24, 32), 2.0), np.full((24, 32), 3.0)])] * 3).astype(np.float32)
    target = MapsPerPixel(2).of_clip(store, rows, Crop(0.25, 0.25, 0.5, 0.25, flip=True), CLIP)
    close(target[:, 0, 5, 5], [-2 * 64 / (0.25 * 32), 3 * 64 / (0.5 * 24)])


def test_grid_features_are_the_first_components(tmp_path):
    store = store_of(tmp_path, "grid", tuple("abcd"))
    rows = np.random.default_rng(0).normal(size=(3, 4, 6, 8)).astype(np.float32)
    kind = FeaturesOnGrid(2, stride=16)
    target = kind.of_clip(store, rows, FLIPPED, CLIP)
    assert target.shape == kind.blank(CLIP).shape == (2, 3, 4, 4)
    for place in range(2):
        close(target[place, 2], resampled(rows[2, place], FLIPPED, 4))
    assert kind.count(torch.stack([target, kind.blank(CLIP)])) == 3 * 16


def test_points_move_with_the_crop_and_change_sides(tmp_path):
    names = ("nose", "left hand", "right hand")
    store = store_of(tmp_path, "points", names, mirrored=(names[1:],))
    rows = np.full((3, 2, 3, 3), np.nan, np.float32)
    rows[0, 0] = [(0.5, 0.4, 1.0), (0.3, 0.5, 0.75), (0.7, 0.6, 0.5)]
    rows[1, 1, 0] = (0.1, 0.4, 1.0)  # left of the crop
    kind = Points(3, people=3)
    plain, flipped = (kind.of_clip(store, rows, crop, CLIP) for crop in (CROP, FLIPPED))
    assert plain.shape == kind.blank(CLIP).shape == (3, 3, 3, 3)
    place = [((x - 0.21) / 0.62, (y - 0.13) / 0.55, seen) for x, y, seen in rows[0, 0]]
    close(plain[0, 0], place)
    close(flipped[0, 0], [(1 - x, y, seen) for x, y, seen in (place[0], place[2], place[1])])
    assert not plain[1:].any()
    assert kind.count(plain[None]) == 2.25


def test_clip_features_hold_until_the_next_row(tmp_path):
    store = store_of(tmp_path, "clip", tuple("abc"))
    rows = np.arange(9.0).reshape(3, 3).astype(np.float32)
    store.write("a", [0, 8, 16], rows)
    kind = FeaturesPerClip(2)
    np.testing.assert_array_equal(kind.frames_of(store.labelled_frames("a"), 20), np.arange(20))
    read = kind.read(store, "a", np.array([6, 7, 8, 19]))
    assert read is not None
    np.testing.assert_array_equal(read, rows[[0, 0, 1, 2]])
    close(kind.of_clip(store, read, FLIPPED, CLIP), rows[[0, 0, 1, 2], :2].mean(axis=0))
    assert kind.of_clip(store, np.full((3, 3), np.nan, np.float32), WHOLE, CLIP).isnan().all()
    assert kind.count(torch.stack([kind.blank(CLIP), torch.zeros(2)])) == 1


def test_flipped_classes_change_sides_where_the_teacher_says_so(tmp_path):
    classes = ("background", "left hand", "right hand", "ball")
    maps = np.random.default_rng(0).integers(0, 4, (3, 20, 30)).astype(np.uint8)
    maps[0, :5] = 255
    plain = label_maps.create(tmp_path / "plain", "hands-1", classes, {})
    sided = label_maps.create(tmp_path / "sided", "hands-1", classes, {}, [("left hand", "right hand")])
    assert plain.identity != sided.identity
    kind = ClassesPerPixel(4)
    expected = kind.of_clip(plain, maps, FLIPPED, CLIP).numpy()
    other = {0: 0, 1: 2, 2: 1, 3: 3, 255: 255}
    np.testing.assert_array_equal(kind.of_clip(sided, maps, FLIPPED, CLIP), np.vectorize(other.get)(expected))
    np.testing.assert_array_equal(kind.of_clip(sided, maps, CROP, CLIP), kind.of_clip(plain, maps, CROP, CLIP))
    few = sided.with_classes(["background", "ball"])
    np.testing.assert_array_equal(few.mirrored_ids(), np.arange(256))
    with pytest.raises(InputError, match="mirrored"):
        label_maps.create(tmp_path / "wrong", "hands-1", classes, {}, [("left hand", "left foot")])


@pytest.mark.parametrize(
    ("kind", "has"),
    [
        (MapsPerPixel(2), ("maps", 3)),
        (FeaturesOnGrid(4), ("grid", 3)),
        (Points(3), ("maps", 3)),
        (FeaturesPerClip(9), ("clip", 3)),
    ],
)
def test_other_targets_are_refused(tmp_path, kind, has):
    store_of(tmp_path, has[0], tuple("abc"))
    with pytest.raises(InputError, match=f"{has[0]}.*expects"):
        kind.open(tmp_path)
    label_maps.create(tmp_path / "labels", "hands-1", ("background", "hand"), {})
    with pytest.raises(InputError, match="label maps"):
        kind.open(tmp_path / "labels")


@pytest.mark.parametrize(("kind", "sides"), [(ClassesPerPixel(), [8, 64]), (MapsPerPixel(1), [8, 64])])
def test_targets_per_pixel_follow_the_stride(kind, sides):
    assert [kind.at_stride(stride).blank(CLIP).shape[-1] for stride in (8, 1)] == sides
    assert FeaturesPerClip(2).at_stride(8) == FeaturesPerClip(2)
