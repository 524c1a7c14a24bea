"""The packaged towers against their authors' descriptions, counted independently, and each in a small model."""

from dataclasses import replace
from typing import get_args

import pytest
import torch

from airstreams.config import ClipConfig, Config, ModelConfig
from airstreams.errors import InputError
from airstreams.models.airstreams import build
from airstreams.models.cost import count
from airstreams.models.tower import build_blocks
from airstreams.recipe import load_config
from airstreams.towers import BACKBONES, BackboneName, Block, Layer
from tests.pages import blocks, page

EACH_BACKBONE = pytest.mark.parametrize("name", list(BACKBONES))

# The figures of google-research/tiny_video_nets/found_tvns.py, a row a block: filters, expand, repeats, spatial type,
# kernel, temporal type, kernel, temporal stride, squeeze, context gate, skip.
TVNS = {
    "tvn1": [
        (64, 4, 2, "std", 4, "maxpool", 2, 2, 0.0, 1, 0),
        (128, 4, 1, "maxpool", 3, "1d", 1, 1, 0.9067600752736579, 0, 0),
        (128, 4, 2, "depth", 5, "avgpool", 1, 1, 0.0, 1, 1),
        (256, 8, 2, "std", 3, "avgpool", 1, 1, 0.7265534208526172, 1, 0),
    ],
    "tvn2": [
        (64, 4, 3, "depth", 5, "1d", 2, 1, 0.06667482492426025, 1, 1),
        (128, 4, 5, "std", 4, "maxpool", 2, 2, 0.693452618624749, 1, 1),
        (1024, 1, 6, "depth", 4, "1d", 1, 1, 0.0, 0, 0),
        (256, 4, 1, "avgpool", 3, "1d", 1, 1, 0.0, 1, 0),
        (512, 4, 6, "avgpool", 4, "1d", 1, 1, 0.9472192794783585, 0, 0),
        (512, 4, 4, "depth", 3, "maxpool", 1, 1, 0.0, 0, 0),
        (348, 6, 1, "maxpool", 2, "maxpool", 1, 1, 0.0, 1, 0),
    ],
    "tvn3": [
        (64, 3, 2, "depth", 3, "1d", 5, 2, 0.6457257964198263, 1, 0),
        (256, 5, 4, "depth", 3, "1d", 1, 1, 0.9061418818635367, 0, 1),
        (256, 2, 4, "depth", 5, "maxpool", 3, 2, 0.0, 0, 1),
        (512, 5, 4, "std", 3, "maxpool", 3, 3, 0.0, 1, 0),
    ],
    "tvn4": [
        (64, 4, 5, "std", 5, "1d", 3, 2, 0.4775900391242449, 0, 1),
        (256, 6, 4, "depth", 5, "maxpool", 2, 2, 0.0, 1, 0),
        (256, 8, 4, "depth", 5, "1d", 1, 1, 0.25309102981899967, 1, 0),
    ],
}


def parameters(blocks, channels=3):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_blocks(channels, blocks, width=1).parameters())


def kinds(layers):
    return [type(layer).__name__ for layer in layers]


def norm(channels):
    return 2 * channels


def test_the_configs_type_names_the_packaged_towers():
    assert get_args(BackboneName) == tuple(BACKBONES)


def test_the_2_plus_1_d_resnet_18_has_the_parameters_of_its_papers_formula():
    def factorised(channels, out, t=3, d=3):
        between = (t * d * d * channels * out) // (d * d * channels + t * out)
        return d * d * channels * between + norm(between) + t * between * out + norm(out)

    expected = (7 * 7 * 3 * 48 + norm(48)) + (3 * 48 * 64 + norm(64))
    for channels, out in [(64, 64), (64, 128), (128, 256), (256, 512)]:
        expected += factorised(channels, out) + 3 * factorised(out, out)
        expected += 0 if channels == out else channels * out + norm(out)
    assert parameters(BACKBONES["r2plus1d18"]()) == expected


def test_the_2_plus_1_d_resnet_18_has_the_size_and_the_cost_that_its_authors_give():
    # facebookresearch/VMZ, model zoo: 33.3 million parameters, 20.7 G for 8 x 112 x 112, 400 classes.
    model = ModelConfig(streams=["rgb"], backbone="r2plus1d18")
    cost = count(Config(clip=ClipConfig(frames=8), model=model), classes=400, segment_classes=3)
    assert sum(cost.parameters.values()) == pytest.approx(33.3e6, abs=0.1e6)
    assert sum(cost.inference.values()) == pytest.approx(20.7e9, abs=0.1e9)


@pytest.mark.parametrize("name", TVNS)
def test_tiny_video_networks_have_the_parameters_of_their_authors_description(name):
    expected, channels = 0, 3
    for filters, expand, repeats, spatial, k, temporal, t, t_stride, squeeze, gate, skip in TVNS[name]:
        out = filters * expand
        for repetition in range(repeats):
            expected += norm(out)
            if spatial in ("std", "depth"):
                expected += channels * filters + norm(filters)  # 1x1 before either
                expected += k * k * filters * (filters if spatial == "std" else 1) + norm(filters)
            if temporal == "1d" and t > 1 and repetition % 2 == 0:
                expected += t * filters * filters + norm(filters)
            expected += (filters if spatial in ("std", "depth") else channels) * out
            squeezed = max(int(out * squeeze), 8)
            expected += 2 * out * squeezed + squeezed + out if squeeze else 0
            expected += out * out + out if gate else 0
            if skip and not (repetition == 0 and t_stride > 1):  # only where the frames are as many as before
                expected += channels * out + norm(out)
            channels = out
    assert parameters(BACKBONES[name]()) == expected


@EACH_BACKBONE
def test_every_packaged_tower_learns_from_any_clip(name):
    torch.manual_seed(0)
    config = ModelConfig(streams=["rgb", "rgb2"], backbone=name, width=0.03, dropout=0.0)
    model = build(config, classes=3, segment_classes=4)
    logits = model(torch.rand(2, 3, 2, 64, 65), config.heads).logits
    torch.stack([logits_BK.square().sum() for logits_BK in logits.values()]).sum().backward()
    assert all(logits_BK.shape == (2, 3) for logits_BK in logits.values())
    grads = [parameter.grad for parameter in model.parameters()]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)


def test_a_layer_may_be_in_every_so_manyth_repetition_and_poolings_are_else_in_the_first():
    layers = [Layer("pool2d"), Layer("pool1d", every=1), Layer("conv1d", every=2), Layer("conv2d")]
    blocks = build_blocks(8, [Block(8, layers, repeats=4)], width=1)
    assert [kinds(block.body) for block in blocks] == [
        ["SpatialPool", "TemporalPool", "TemporalConv", "FrameNorm", "ReLU", "SpatialConv", "FrameNorm"],
        ["TemporalPool", "SpatialConv", "FrameNorm"],
        ["TemporalPool", "TemporalConv", "FrameNorm", "ReLU", "SpatialConv", "FrameNorm"],
        ["TemporalPool", "SpatialConv", "FrameNorm"],
    ]


def test_a_projection_is_a_convolution_even_without_change_and_none_where_frames_become_fewer():
    layers = [Layer("pool1d", stride=2), Layer("conv2d", channels=16), Layer("conv2d", kernel=1)]
    first, second = build_blocks(8, [Block(8, layers, repeats=2, skip="projection")], width=1)
    assert first.shortcut is None
    assert first.body[-1].weight.all()  # not silent at the start, since nothing goes round it
    assert kinds(second.shortcut) == ["SpatialConv", "FrameNorm"]


def test_the_pages_tower_of_ones_own_gives_an_answer_and_needs_its_merge_level(tmp_path):
    (recipe,) = blocks(page("backbones.md"), "yaml")
    (tmp_path / "own.yaml").write_text(recipe)
    config = load_config(tmp_path / "own.yaml").model
    assert [block.channels for block in config.tower] == [32, 64]
    model = build(replace(config, streams=["rgb", "flow"]), 4, 5).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 3, 4, 64, 64)).logits["merged"].shape == (1, 4)
    (tmp_path / "own.yaml").write_text(recipe.replace("  merge_levels: [1]\n", ""))
    with pytest.raises(InputError, match=r"merge_levels: got \[?3"):
        load_config(tmp_path / "own.yaml")
