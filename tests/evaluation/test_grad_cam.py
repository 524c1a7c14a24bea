"""Grad-CAM agrees with its closed form, finds what a model is known to look at, and leaves the model as it was."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from airstreams.config import ModelConfig
from airstreams.data.dataset import VideoViews
from airstreams.evaluation.grad_cam import enlarged, grad_cam, unit_range
from airstreams.models.airstreams import build
from airstreams.runs import saved_model as saved_models
from airstreams.towers import Block, Layer

SIZE = (8, 64, 64)
SQUARE = (slice(4, 6), slice(8, 24), slice(40, 56))  # frames, rows, columns


def model_of(**keys):
    torch.manual_seed(0)
    return build(ModelConfig(**{"streams": ["rgb", "rgb2"], "width": 0.25, **keys}), classes=3, segment_classes=2)


def noise(clips=2, size=SIZE):
    return torch.randint(256, (clips, 3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def sees_brightness():
    """A model whose features are the local brightness. It speaks for class 0 and against class 1."""
    tower = [Block(8, [Layer("conv2d", stride=2)], skip=False) for _ in range(3)]
    model = model_of(tower=tower, merge_levels=[2])
    with torch.no_grad():
        for name, values in model.named_parameters():
            if "conv" in name or values.ndim > 1:
                values.fill_(1 / values[0].numel())
        for late in model.late.values():
            late.classifier.weight[1] *= -1
    return model.eval()


@pytest.fixture
def bright_square():
    clip = torch.zeros(1, 3, *SIZE, dtype=torch.uint8)
    clip[0, :, *SQUARE] = 255
    return clip


def test_the_map_of_a_late_tower_is_its_weighted_features():
    model = model_of().eval()
    kept = []
    handle = model.late["merged"].blocks[-1].register_forward_hook(lambda module, given, out: kept.append(out))
    found = grad_cam(model, noise(), [1, 2])
    handle.remove()
    for clip, label in enumerate([1, 2]):
        weight_C = model.late["merged"].classifier.weight[label]
        wanted_thw = torch.einsum("c,cthw->thw", weight_C, kept[0][clip]).relu()
        torch.testing.assert_close(found.heads["merged"][clip], wanted_thw.detach(), rtol=1e-4, atol=1e-6)


def test_the_maps_of_streams_add_up_to_that_of_a_late_fusion():
    """Without blocks after the merge of two towers, the merged features are the mean of the streams' features."""
    tower = [Block(8, [Layer("conv2d", stride=2)], skip=False) for _ in range(2)]
    model = model_of(tower=tower, merge_levels=[2], merge_norm=False).eval()
    with torch.no_grad():
        model.late["merged"].classifier.weight.abs_()  # so that no part is cut off at 0
    found = grad_cam(model, noise(), [0, 2])
    assert found.heads["merged"].any()
    torch.testing.assert_close(found.streams["rgb"] + found.streams["rgb2"], found.heads["merged"])


def test_the_peak_lies_on_what_the_model_looks_at(bright_square):
    model = sees_brightness()
    for_it, against_it = (grad_cam(model, bright_square, [label]) for label in (0, 1))
    for maps in (for_it.streams["rgb"], for_it.streams["rgb2"], for_it.heads["merged"]):
        peak = np.unravel_index(int(enlarged(maps, SIZE).argmax()), SIZE)
        assert all(part.start <= place < part.stop for place, part in zip(peak, SQUARE, strict=True))
        assert unit_range(maps).max() == 1
    assert not against_it.heads["merged"].any()
    assert not unit_range(against_it.heads["merged"]).any()


def test_each_clip_of_a_batch_has_the_map_that_it_has_alone():
    model, clips = model_of().eval(), noise()
    both = grad_cam(model, clips, [0, 1])
    alone = grad_cam(model, clips[1:], [1])
    torch.testing.assert_close(both.heads["merged"][1:], alone.heads["merged"])
    torch.testing.assert_close(both.streams["rgb2"][1:], alone.streams["rgb2"])


@pytest.mark.parametrize(
    ("keys", "streams", "heads"),
    [
        ({"streams": ["rgb"]}, {"rgb": (4, 8, 8)}, {"rgb": (2, 2, 2)}),
        ({"streams": ["rgb"], "merge_levels": [6]}, {"rgb": (2, 2, 2)}, {}),
        ({"streams": ["rgb", "flow"]}, dict.fromkeys(("rgb", "flow"), (4, 8, 8)), {"merged": (2, 2, 2)}),
        (
            {"answer": "mean", "merge_levels": [3, 5], "merge": "gain"},
            dict.fromkeys(("rgb", "rgb2"), (2, 2, 2)),
            dict.fromkeys(("rgb", "rgb2", "merged_after_5", "merged"), (2, 2, 2)),
        ),
        ({"backbone": "i3d", "width": 1.0}, dict.fromkeys(("rgb", "rgb2"), (4, 8, 8)), {"merged": (1, 2, 2)}),
    ],
)
def test_each_tower_has_a_map(keys, streams, heads):
    found = grad_cam(model_of(**keys), noise(clips=1), [0])
    assert {name: tuple(maps.shape[1:]) for name, maps in found.streams.items()} == streams
    assert {name: tuple(maps.shape[1:]) for name, maps in found.heads.items()} == heads


def test_the_model_stays_as_it_was():
    model = model_of(merge_levels=[3]).train()
    model.early["rgb2"].requires_grad_(False)
    learning = [parameter.requires_grad for parameter in model.parameters()]
    before = copy.deepcopy(model.state_dict())
    with torch.inference_mode():  # as in code that scores
        first = grad_cam(model, noise(), [0, 0])
    assert [parameter.requires_grad for parameter in model.parameters()] == learning
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    torch.testing.assert_close(grad_cam(model, noise(), [0, 0]).heads["merged"], first.heads["merged"])


def test_the_map_of_random_weights_is_another(trained, source):
    """The model-randomisation test of Adebayo et al. (2018), of the late tower alone."""
    saved = saved_models.load(trained)
    random = copy.deepcopy(saved.model)
    generator = torch.Generator().manual_seed(1)
    for values in random.late["merged"].parameters():
        values.data.copy_(torch.randn(values.shape, generator=generator) * values.std() + values.mean())
    found: dict[str, list[float]] = {stream: [] for stream in saved.model.early}
    for video in source.split("test")[:4]:
        clip = VideoViews([video], saved.config).read(video).clips[:1].permute(0, 4, 1, 2, 3)
        before, after = (grad_cam(model, clip, [0]).streams for model in (saved.model, random))
        for stream, agreements in found.items():
            if before[stream].any() and after[stream].any():
                agreements.append(float(spearmanr(before[stream].flatten(), after[stream].flatten()).statistic))
    assert sum(map(len, found.values())) >= 4
    assert np.mean([agreement for agreements in found.values() for agreement in agreements]) < 0.5
