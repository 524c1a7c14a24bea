"""Pictures whose pixels encode their position, so that the result shows what crop and flip did."""

import numpy as np
import pytest
import torch

from airstreams.config import DataConfig
from airstreams.data.transforms import (
    Crop,
    augment,
    crop_frames,
    crop_label_map,
    draw_colour,
    draw_crop,
    square_crops,
)

SIZE = 64


def striped_maps(height, width, columns=8, rows=4):
    """Label maps (2, H, W) of a grid of classes 0 to columns * rows - 1."""
    row = np.arange(height) * rows // height
    column = np.arange(width) * columns // width
    return np.broadcast_to(row[:, None] * columns + column, (2, height, width)).astype(np.uint8)


def as_picture(maps_THW):
    return np.repeat((maps_THW * 8)[..., None], 3, axis=-1)


@pytest.mark.parametrize("label_scale", [1, 0.5, 1.7], ids=["same", "half", "larger"])
def test_frames_and_label_maps_get_the_same_crop_and_flip(label_scale):
    rng = np.random.default_rng(0)
    flips = set()
    for _ in range(30):
        height, width = rng.integers(70, 200, 2)
        frames = as_picture(striped_maps(height, width))
        labels = striped_maps(round(height * label_scale), round(width * label_scale))
        crop = draw_crop(height, width, DataConfig(), rng)
        flips.add(crop.flip)
        seen = crop_frames(frames, crop, SIZE).numpy()[..., 0] / 8
        label_map = crop_label_map(labels, crop, SIZE).numpy()
        # Only pixels beside an edge may differ: there the frame is a blend of two classes.
        assert (np.abs(seen - label_map) < 0.6).mean() > 0.75
        flat = label_map == np.roll(label_map, 3, axis=2)
        for shift, axis in ((-3, 2), (3, 1), (-3, 1)):
            flat &= label_map == np.roll(label_map, shift, axis=axis)
        flat[:, [0, 1, 2, -3, -2, -1]] = flat[:, :, [0, 1, 2, -3, -2, -1]] = False
        assert (np.abs(seen - label_map)[flat] < 0.6).all()
    assert flips == {True, False}


def test_a_crop_shows_its_part_of_the_frame():
    x = np.broadcast_to(np.arange(200, dtype=np.uint8), (1, 100, 200))
    y = np.broadcast_to(np.arange(100, dtype=np.uint8)[:, None], (1, 100, 200))
    frames = np.stack([x, y, np.zeros_like(x)], axis=-1)
    shown = crop_frames(frames, Crop(top=0.2, left=0.5, height=0.5, width=0.25), 64).float()
    assert shown[0, 0, 0, :2].tolist() == pytest.approx([100, 20], abs=1)
    assert shown[0, -1, -1, :2].tolist() == pytest.approx([149, 69], abs=1)
    mirrored = crop_frames(frames, Crop(top=0.2, left=0.5, height=0.5, width=0.25, flip=True), 64).float()
    assert mirrored[0, 0, 0, :2].tolist() == pytest.approx([149, 20], abs=1)


def test_a_cropped_label_map_has_no_new_classes():
    labels = np.random.default_rng(0).choice(np.array([0, 7, 80, 255], np.uint8), (3, 120, 160))
    for size in (64, 112, 300):
        found = crop_label_map(labels, Crop(0.1, 0.1, 0.7, 0.6, flip=True), size)
        assert found.dtype == torch.uint8
        assert set(found.unique().tolist()) == {0, 7, 80, 255}


def test_a_resized_label_map_takes_the_middle_pixels():
    across = np.broadcast_to(np.arange(112, dtype=np.uint8), (1, 112, 112))
    middles = torch.arange(2, 112, 4, dtype=torch.uint8).expand(1, 28, 28)
    whole = Crop(0, 0, 1, 1)
    assert torch.equal(crop_label_map(across, whole, 28), middles)
    assert torch.equal(crop_label_map(across.transpose(0, 2, 1), whole, 28), middles.mT)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (20, 400), (400, 20), (1, 90), (240, 320)])
def test_drawn_crops_have_the_wanted_area_and_aspect(height, width):
    config = DataConfig(crop_scale=[0.3, 0.9], crop_aspect=1.5)
    rng = np.random.default_rng(1)
    areas = []
    for _ in range(200):
        crop = draw_crop(height, width, config, rng)
        assert min(crop.top, crop.left) >= 0
        assert crop.top + crop.height <= 1 + 1e-9
        assert crop.left + crop.width <= 1 + 1e-9
        high, wide = crop.height * height, crop.width * width
        assert 1 / 1.5 - 1e-9 <= wide / high <= 1.5 + 1e-9
        areas.append(high * wide / min(height, width) ** 2)
        frames = np.zeros((2, height, width, 3), np.uint8)
        assert crop_frames(frames, crop, SIZE).shape == (2, SIZE, SIZE, 3)
        assert crop_label_map(frames[..., 0], crop, SIZE).shape == (2, SIZE, SIZE)
    assert 0.29 < min(areas) < 0.36
    assert 0.8 < max(areas) <= 0.9


def test_no_crop_is_flipped_without_flip():
    rng = np.random.default_rng(0)
    assert not any(draw_crop(64, 64, DataConfig(flip=False), rng).flip for _ in range(100))


def test_half_of_the_crops_are_flipped():
    rng = np.random.default_rng(0)
    assert 450 < sum(draw_crop(64, 64, DataConfig(), rng).flip for _ in range(1000)) < 550  # standard deviation 16


@pytest.mark.parametrize(("height", "width"), [(60, 160), (160, 60), (90, 90), (61, 160)])
@pytest.mark.parametrize("crops", [1, 3, 5])
def test_square_crops_are_evenly_spaced_and_reach_both_ends(height, width, crops):
    found = square_crops(height, width, crops)
    assert len(found) == crops
    for crop in found:
        assert crop.height * height == pytest.approx(min(height, width))
        assert crop.width * width == pytest.approx(min(height, width))
        assert not crop.flip
    starts = [crop.top + crop.left for crop in found]
    ends = [crop.top + crop.height if height > width else crop.left + crop.width for crop in found]
    if crops == 1:
        assert starts[0] == pytest.approx(1 - ends[0])
    else:
        assert starts[0] == 0
        assert ends[-1] == pytest.approx(1)
        assert np.diff(starts) == pytest.approx(np.full(crops - 1, (starts[-1] - starts[0]) / (crops - 1)))


def test_three_square_crops_cover_a_wide_frame():
    frames = np.broadcast_to(np.arange(160, dtype=np.uint8)[:, None], (1, 64, 160, 3)).copy()
    seen = torch.cat([crop_frames(frames, crop, 64).flatten() for crop in square_crops(64, 160, 3)])
    assert set(seen.tolist()) == set(range(160))


def test_a_crop_that_needs_no_resizing_keeps_every_pixel():
    frames = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    assert torch.equal(crop_frames(frames, square_crops(SIZE, SIZE, 1)[0], SIZE), torch.from_numpy(frames))


def test_shrinking_averages_the_pixels():
    every_fourth = np.where(np.arange(256) % 4 == 0, 255, 0).astype(np.uint8)
    columns = np.broadcast_to(every_fourth[:, None], (1, 256, 256, 3)).copy()
    for frames in (columns, columns.transpose(0, 2, 1, 3)):
        shrunk = crop_frames(frames, Crop(0, 0, 1, 1), SIZE).float()[:, 2:-2, 2:-2]
        assert (shrunk - 255 / 4).abs().max() < 1  # without anti-aliasing it would be 0


def augmented(clips, crops, colours, size=SIZE):
    """A batch of uint8 clips (T, H, W, 3) of any sizes, padded with noise; crops are fractions of each clip's frame."""
    height, width = (max(clip.shape[axis] for clip in clips) + 3 for axis in (1, 2))
    frames = torch.randint(0, 256, (len(clips), clips[0].shape[0], height, width, 3), dtype=torch.uint8)
    for padded, clip in zip(frames, clips, strict=True):
        padded[:, : clip.shape[1], : clip.shape[2]] = torch.from_numpy(clip)
    inside = torch.tensor([clip.shape[1:3] for clip in clips])
    box = torch.tensor([(crop.top, crop.left, crop.height, crop.width) for crop in crops]).float() * inside.repeat(1, 2)
    flip = torch.tensor([crop.flip for crop in crops])
    return augment(frames, box, inside, flip, torch.tensor(np.array(colours)).float(), size)


def noise(*shape):
    return np.random.default_rng(sum(shape)).integers(0, 256, (*shape, 3), dtype=np.uint8)


PLAIN = (1.0, 1.0, 1.0)


def test_a_batch_is_transformed_like_single_clips():
    """Compared with torch's own resizing with anti-aliasing, for frames larger and smaller than the clip."""
    clips = [noise(3, 100, 160), noise(3, 64, 64), noise(3, 40, 50), noise(3, 240, 90)]
    whole = [Crop(0, 0, 1, 1), Crop(0, 0, 1, 1, flip=True), Crop(0, 0, 1, 1, flip=True), Crop(0, 0, 1, 1)]
    seen = augmented(clips, whole, [PLAIN] * 4)
    assert seen.shape == (4, 3, 3, SIZE, SIZE)
    assert seen.is_contiguous(memory_format=torch.channels_last_3d)
    for clip, crop, found in zip(clips, whole, seen, strict=True):
        frames = torch.from_numpy(clip).permute(0, 3, 1, 2) / 255
        resized = torch.nn.functional.interpolate(frames, (SIZE, SIZE), mode="bilinear", antialias=True)
        expected = resized.flip(-1) if crop.flip else resized
        torch.testing.assert_close(found.transpose(0, 1), expected, atol=1e-6, rtol=0)


def test_a_batchs_crops_show_their_parts_of_the_frames():
    x = np.broadcast_to(np.arange(200, dtype=np.uint8), (1, 100, 200))
    y = np.broadcast_to(np.arange(100, dtype=np.uint8)[:, None], (1, 100, 200))
    ramp = np.stack([x, y, np.zeros_like(x)], axis=-1)
    crop = Crop(top=0.203, left=0.504, height=0.507, width=0.251)  # 20.3 to 71 px down, 100.8 to 151 px across
    mirrored = Crop(crop.top, crop.left, crop.height, crop.width, flip=True)
    plain, flipped = augmented([ramp, ramp], [crop, mirrored], [PLAIN] * 2) * 255
    centres = (torch.arange(SIZE) + 0.5) / SIZE
    inner = slice(2, -2)  # at its ends the anti-aliased ramp is truncated
    across = (100.8 + 50.2 * centres - 0.5).expand(SIZE, SIZE)
    down = (20.3 + 50.7 * centres - 0.5)[:, None].expand(SIZE, SIZE)
    for found, expected in ((plain[0, 0], across), (plain[1, 0], down), (flipped[0, 0], across.flip(1))):
        torch.testing.assert_close(found[inner, inner], expected[inner, inner], atol=0.02, rtol=0)


def test_frames_and_label_maps_of_a_drawn_clip_agree():
    rng = np.random.default_rng(0)
    for _ in range(10):
        height, width = rng.integers(70, 200, 2)
        labels = striped_maps(height, width)
        crop = draw_crop(height, width, DataConfig(), rng)
        seen = augmented([as_picture(labels)], [crop], [PLAIN])[0, 0].numpy() * 255 / 8
        label_map = crop_label_map(labels, crop, SIZE).numpy()
        assert (np.abs(seen - label_map) < 0.6).mean() > 0.75  # pixels beside an edge are blends of two classes


def test_colour_changes_all_frames_of_one_clip_alike():
    clip = np.repeat(noise(1, SIZE, SIZE), 5, axis=0)
    plain, coloured = augmented([clip, clip], [Crop(0, 0, 1, 1)] * 2, [PLAIN, (1.2, 0.8, 0.7)])
    torch.testing.assert_close(coloured, coloured[:, :1].expand_as(coloured))
    torch.testing.assert_close(plain, torch.from_numpy(clip).permute(3, 0, 1, 2) / 255)
    assert not torch.allclose(plain, coloured, atol=0.05)


def test_colour_scales_brightness_then_contrast_then_saturation():
    real = noise(2, SIZE, SIZE) // 4 + 60
    for brightness, contrast, saturation in ((1.5, 1, 1), (1, 0.5, 1), (1, 1, 0), (1.2, 0.8, 0.6), (0.8, 1.2, 1.3)):
        found = augmented([real], [Crop(0, 0, 1, 1)], [(brightness, contrast, saturation)])[0]
        expected = real / 255 * brightness
        expected = (expected - expected.mean()) * contrast + expected.mean()
        grey = (expected @ [0.299, 0.587, 0.114])[..., None]
        expected = ((expected - grey) * saturation + grey).clip(0, 1)
        assert np.abs(found.permute(1, 2, 3, 0).numpy() - expected).max() < 1e-5
    bright = np.full((1, SIZE, SIZE, 3), 250, np.uint8)
    assert (augmented([bright], [Crop(0, 0, 1, 1)], [(1.3, 1, 1)]) == 1).all()


def test_drawn_colours_stay_within_their_strength_and_are_independent():
    rng = np.random.default_rng(0)
    drawn = np.array([draw_colour(0.3, rng) for _ in range(300)])
    assert drawn.min() >= 0.7
    assert drawn.max() <= 1.3
    assert (np.ptp(drawn, axis=0) > 0.55).all()
    assert np.abs(np.corrcoef(drawn, rowvar=False) - np.eye(3)).max() < 0.2  # standard deviation 0.06
