"""The backbones compared with their papers. test_backbone_conformance.py has what each of them can do."""

import json
from dataclasses import asdict, replace
from hashlib import sha256
from typing import get_args

import pytest
import torch

from airstreams.config import ClipConfig, Config, ModelConfig
from airstreams.errors import InputError
from airstreams.models.airstreams import build
from airstreams.models.backbones.i3d import SameConv, Unit
from airstreams.models.cost import count
from airstreams.models.tower import build_blocks
from airstreams.recipe import load_config
from airstreams.towers import BACKBONES, OTHER_BACKBONES, BackboneName, Block, Layer
from tests.pages import blocks, page


def parameters(blocks, channels=3):
    with torch.device("meta"):
        return sum(p.numel() for block in build_blocks(channels, blocks, width=1) for p in block.parameters())


def kinds(layers):
    return [type(layer).__name__ for layer in layers]


def norm(channels):
    return 2 * channels


def test_the_type_of_backbone_lists_all_backbones():
    assert get_args(BackboneName) == (*BACKBONES, *OTHER_BACKBONES)


@pytest.mark.parametrize(
    ("name", "digest"),
    [("airstreams", "79b956de1a2bede5"), ("r2plus1d18", "8fd1f3e5531fb9e7"), ("r2plus1d50", "a544a25d0dd0fb7c")],
)
def test_a_packaged_tower_never_changes(name, digest):
    """Saved models name their tower. Another tower needs another name, or these models could not be loaded."""
    blocks = json.dumps([asdict(block) for block in BACKBONES[name]()], sort_keys=True)
    assert sha256(blocks.encode()).hexdigest()[:16] == digest


def test_r2plus1d18_has_the_parameters_of_the_papers_formula():
    def factorised(channels, out, t=3, d=3):
        between = (t * d * d * channels * out) // (d * d * channels + t * out)
        return d * d * channels * between + norm(between) + t * between * out + norm(out)

    expected = (7 * 7 * 3 * 48 + norm(48)) + (3 * 48 * 64 + norm(64))
    for channels, out in [(64, 64), (64, 128), (128, 256), (256, 512)]:
        expected += factorised(channels, out) + 3 * factorised(out, out)
        expected += 0 if channels == out else channels * out + norm(out)
    assert parameters(BACKBONES["r2plus1d18"]()) == expected


def test_r2plus1d18_has_the_published_size_and_cost():
    # The model zoo of facebookresearch/VMZ: 33.3 million parameters, 20.7 G for 8 x 112 x 112 and 400 classes.
    model = ModelConfig(streams=["rgb"], backbone="r2plus1d18")
    cost = count(Config(clip=ClipConfig(frames=8), model=model), classes=400, segment_classes=3)
    assert sum(cost.parameters.values()) == pytest.approx(33.3e6, abs=0.1e6)
    assert sum(cost.inference.values()) == pytest.approx(20.7e9, abs=0.1e9)


def test_r2plus1d50_has_the_published_size_and_cost():
    # The model zoo of PyTorchVideo, R(2+1)D R50 16x4: 28.11 million parameters, and 76.45 G for a clip of 256 px. Its
    # count includes normalisations.
    model = ModelConfig(streams=["rgb"], backbone="r2plus1d50")
    cost = count(Config(clip=ClipConfig(frames=16, size=256), model=model), classes=400, segment_classes=3)
    assert sum(cost.parameters.values()) == pytest.approx(28.11e6, abs=0.005e6)
    assert sum(cost.inference.values()) == pytest.approx(76.45e9, rel=0.02)


def test_only_the_first_repetition_has_the_poolings():
    layers = [Layer("pool2d"), Layer("pool1d"), Layer("conv1d"), Layer("conv2d")]
    first, second = build_blocks(8, [Block(8, layers, repeats=2)], width=1)
    convolutions = ["TemporalConv", "FrameNorm", "ReLU", "SpatialConv", "FrameNorm"]
    assert kinds(first.body) == ["SpatialPool", "TemporalPool", *convolutions]
    assert kinds(second.body) == convolutions


def test_the_documented_own_tower_works_and_needs_its_merge_level(tmp_path):
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


def test_i3d_has_the_published_sizes_and_cost():
    # Carreira and Zisserman (2017) give 12 M parameters. Feichtenhofer et al. (2019) give 108 G for 64 x 224 x 224.
    cost = count(
        Config(clip=ClipConfig(frames=64, size=224), model=ModelConfig(streams=["rgb"], backbone="i3d")), 400, 3
    )
    assert sum(cost.parameters.values()) == pytest.approx(12.7e6, abs=0.1e6)
    assert sum(cost.inference.values()) == pytest.approx(108e9, rel=0.04)


@pytest.mark.parametrize("size", [(1, 64, 64), (3, 67, 90)])
def test_i3d_pads_like_tensorflow(size):
    """Every size is divided by its stride and rounded up, and an odd zero goes to the end."""
    torch.manual_seed(0)
    features_BCTHW = torch.rand(1, 2, *size)
    unit = Unit(2, 3, (7, 7, 7), (2, 2, 2)).eval()
    outputs = unit(features_BCTHW)
    assert outputs.shape[2:] == tuple(-(-length // 2) for length in size)
    kernel = unit.conv.weight
    before = [max((-(-length // 2) - 1) * 2 + 7 - length, 0) // 2 for length in size]
    wide = torch.zeros(1, 2, *(length + 14 for length in size))
    wide[0, :, 7 : 7 + size[0], 7 : 7 + size[1], 7 : 7 + size[2]] = features_BCTHW
    for at in [(0, 0, 0), tuple(length - 1 for length in outputs.shape[2:])]:
        start = [7 + 2 * index - zeros for index, zeros in zip(at, before, strict=True)]
        t, h, w = (slice(first, first + 7) for first in start)
        expected = (wide[0, :, t, h, w] * kernel).sum(dim=(1, 2, 3, 4)).clamp(min=0) / (1 + 1e-3) ** 0.5
        torch.testing.assert_close(outputs[0, :, at[0], at[1], at[2]], expected)


def test_streams_may_have_different_backbones():
    config = ModelConfig(streams=["rgb", "flow"], backbones={"rgb": "i3d"}, backbone="airstreams")
    model = build(config, classes=3, segment_classes=4).eval()
    with torch.no_grad():
        output = model(torch.rand(1, 3, 4, 64, 64), config.heads)
    widths = {head: pooled.shape[1] for head, pooled in output.pooled.items()}
    assert widths == {"rgb": 1024, "flow": 512, "merged": 512}
    adapted = {name.split(".")[1] for name in model.state_dict() if ".adaptors.3." in name}
    assert adapted == {"rgb"}
    assert ModelConfig(streams=["rgb", "flow"], backbones={"rgb": "i3d"}).backbone_of(None) == "i3d"
    with pytest.raises(InputError, match=r"model\.width"):
        ModelConfig(backbone="i3d", width=0.5)
    with pytest.raises(InputError, match=r"model\.backbones"):
        ModelConfig(streams=["rgb"], backbones={"flow": "i3d"})


def test_towers_of_different_sizes_at_a_merge_are_rejected():
    config = ModelConfig(streams=["rgb", "flow"], backbones={"rgb": "r2plus1d18"}, width=0.1)
    model = build(config, classes=3, segment_classes=4).eval()
    with pytest.raises(InputError, match=r"model\.merge_levels"), torch.no_grad():
        model(torch.rand(1, 3, 4, 64, 64))


@pytest.mark.parametrize("channels", [2, 5])
def test_the_first_convolution_has_the_gradients_of_torchs_own(channels):
    conv = SameConv(channels, 6, (7, 7, 7), (2, 2, 2), bias=False).double()
    clip = torch.randn(2, channels, 4, 10, 6, dtype=torch.double, requires_grad=True)
    out = conv(clip)
    weights = torch.randn_like(out)
    plain = torch.nn.functional.conv3d(torch.nn.functional.pad(clip, (2, 3) * 3), conv.weight, stride=2)
    for own, expected in zip(
        torch.autograd.grad((out * weights).sum(), (clip, conv.weight)),
        torch.autograd.grad((plain * weights).sum(), (clip, conv.weight)),
        strict=True,
    ):
        torch.testing.assert_close(own, expected)
    torch.testing.assert_close(out, plain)
    conv.requires_grad_(False)
    assert torch.autograd.grad(conv(clip).sum(), clip)[0].abs().sum() > 0
