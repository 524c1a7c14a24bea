"""Counterfactual clips in closed form: what stays, what goes, and that nothing of what goes can be seen."""

import numpy as np
import pytest
import torch

from airstreams.errors import VideoError
from airstreams.evaluation.counterfactuals import COUNTERFACTUALS, GREY, region_mask, shuffled_order

CLASSES = ("background", "person", "car")
V, T, H, W = 2, 5, 40, 48


@pytest.fixture
def clips():
    return torch.randint(256, (V, T, H, W, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def mask():
    mask = torch.zeros(V, T, H, W, dtype=torch.bool)
    mask[:, :, 10:20, 8:30] = True
    return mask


def changed(name, clips, mask=None):
    before = clips.clone()
    result = COUNTERFACTUALS[name].change(clips, mask)
    assert torch.equal(clips, before)
    assert (result.shape, result.dtype) == (clips.shape, clips.dtype)
    return result


def test_frozen_frames_are_all_the_middle_one(clips):
    assert torch.equal(changed("motion_frozen", clips), clips[:, 2:3].repeat(1, T, 1, 1, 1))


def test_time_reversed_twice_is_the_clip(clips):
    once = changed("time_reversed", clips)
    assert torch.equal(once[:, 0], clips[:, -1])
    assert torch.equal(changed("time_reversed", once), clips)


def test_shuffling_is_a_fixed_permutation(clips):
    assert torch.equal(changed("time_shuffled", clips), changed("time_shuffled", clips)[:])
    for frames in range(1, 20):
        order = shuffled_order(frames)
        assert sorted(order) == list(range(frames))
        assert frames == 1 or order != sorted(order)
        assert frames < 3 or order[::-1] != sorted(order)
    assert torch.equal(changed("time_shuffled", clips), clips[:, shuffled_order(T)])


def test_grey_pixels_have_the_luma_of_bt_601(clips):
    grey = changed("colour_removed", clips).numpy()
    expected = np.rint(clips.numpy() @ np.array([0.299, 0.587, 0.114]))
    assert np.abs(grey - expected[..., None]).max() <= 1  # float32 rounds a tie elsewhere
    assert (grey == grey[..., :1]).all()


def test_only_the_border_is_painted(clips):
    result = changed("border_painted", clips)
    inner = (slice(None), slice(None), slice(6, 34), slice(7, 41))  # 15 % of 40 and of 48 px
    assert torch.equal(result[inner], clips[inner])
    result[inner] = GREY
    assert (result == GREY).all()


@pytest.mark.parametrize("name", ["people_painted", "objects_painted"])
def test_nothing_of_a_painted_region_is_left(name, clips, mask):
    result = changed(name, clips, mask)
    assert torch.equal(result[~mask], clips[~mask])
    other = clips.clone()
    other[mask] = 255 - other[mask]
    assert torch.equal(changed(name, other, mask), result)
    mean = clips[1, 3][~mask[1, 3]].double().mean(dim=0).round()
    assert torch.equal(result[1, 3][mask[1, 3]].double(), mean.expand(220, 3))
    assert (changed(name, clips, torch.ones_like(mask)) == GREY).all()


@pytest.mark.parametrize("name", ["background_blurred", "background_replaced"])
def test_a_changed_background_leaves_objects_and_takes_nothing_of_them(name, clips, mask):
    result = changed(name, clips, mask)
    assert torch.equal(result[mask], clips[mask])
    other = clips.clone()
    other[mask] = 255 - other[mask]
    assert torch.equal(changed(name, other, mask)[~mask], result[~mask])
    assert result[~mask].float().std() < 0.5 * clips[~mask].float().std()


def test_a_replaced_background_tells_nothing(clips, mask):
    assert (changed("background_replaced", clips, mask)[~mask] == GREY).all()


def test_a_blurred_even_background_stays_even(clips, mask):
    clips[~mask] = 77
    assert (changed("background_blurred", clips, mask)[~mask] == 77).all()


def test_a_mask_grows_and_unlabelled_frames_take_the_nearest_one():
    maps = torch.zeros(1, 4, H, W, dtype=torch.uint8)
    maps[:, 0, 10, 10], maps[:, 2, 20, 20], maps[:, 2, 30, 30] = 1, 2, 255
    maps[:, 1], maps[:, 3] = 255, 255
    objects = region_mask(maps, CLASSES, "objects")
    assert objects[0, 0, 9:12, 9:12].all()
    assert objects[0, 0].sum() == objects[0, 2].sum() == 9
    assert torch.equal(objects[0, 3], objects[0, 2])
    people = region_mask(maps, CLASSES, "people")
    assert torch.equal(people[0, 0], objects[0, 0])
    assert not people[0, 2].any()
    maps[:] = 255
    with pytest.raises(VideoError):
        region_mask(maps, CLASSES, "objects")


def test_only_what_needs_label_maps_misses_them():
    without = {name for name, made in COUNTERFACTUALS.items() if made.missing(None)}
    assert without == {name for name, made in COUNTERFACTUALS.items() if made.region}
    assert {name for name, made in COUNTERFACTUALS.items() if made.missing(("background", "hand"))} == {
        "people_painted"
    }
