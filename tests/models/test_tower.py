"""The layers of a tower compared with torch's 3D operators, and what holds for towers with any input."""

import pytest
import torch
import torch.nn.functional as F

from airstreams.models.tower import (
    BlockTowers,
    ContextGating,
    EarlyTower,
    FactorisedConv,
    FrameNorm,
    InputNorm,
    LateTower,
    SpatialConv,
    SpatialPool,
    SqueezeExcite,
    TemporalConv,
    TemporalPool,
    TowerBlock,
    build_blocks,
)
from airstreams.towers import Block, Layer, default_tower

FORMATS = pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last_3d], ids=["channels first", "channels last"]
)
WINDOWS = pytest.mark.parametrize(
    ("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (5, 2), (3, 3), (2, 1), (2, 2), (4, 2), (4, 3)]
)


def features(memory_format=torch.contiguous_format, channels=6):
    torch.manual_seed(0)
    return torch.randn(2, channels, 5, 9, 12).to(memory_format=memory_format)


def padded(x, frames=1, pixels=1, value=0.0):
    """Padded so that windows of this size give as many outputs as inputs. An odd rest goes to the end."""
    time, space = ((frames - 1) // 2, frames // 2), ((pixels - 1) // 2, pixels // 2)
    return F.pad(x, (*space, *space, *time), value=value)


@FORMATS
@WINDOWS
def test_spatial_convolution_is_the_flat_3d_one(kernel, stride, memory_format):
    layer, x = SpatialConv(6, 8, Layer("conv2d", kernel, stride)), features(memory_format)
    weight = layer.weight.unsqueeze(2)
    expected = F.conv3d(padded(x, pixels=kernel), weight, stride=(1, stride, stride))
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@FORMATS
@WINDOWS
def test_temporal_convolution_is_the_thin_3d_one(kernel, stride, memory_format):
    layer, x = TemporalConv(6, 8, Layer("conv1d", kernel, stride)), features(memory_format)
    weight = layer.weight.unsqueeze(-1)
    expected = F.conv3d(padded(x, frames=kernel), weight, stride=(stride, 1, 1))
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@FORMATS
@WINDOWS
def test_poolings_are_the_flat_and_the_thin_3d_ones(kernel, stride, memory_format):
    x, low = features(memory_format), float("-inf")
    spatial = F.max_pool3d(padded(x, pixels=kernel, value=low), (1, kernel, kernel), (1, stride, stride))
    assert torch.equal(SpatialPool(6, 6, Layer("pool2d", kernel, stride))(x), spatial)
    temporal = F.max_pool3d(padded(x, frames=kernel, value=low), (kernel, 1, 1), (stride, 1, 1))
    assert torch.equal(TemporalPool(6, 6, Layer("pool1d", kernel, stride))(x), temporal)


@pytest.mark.parametrize("stride", [1, 2])
def test_factorised_convolution_is_two_3d_ones_with_the_parameters_of_one(stride):
    x, layer = features(), FactorisedConv(6, 8, Layer("conv2d+1d", 3, stride)).eval()
    flat, thin = layer[0], layer[3]
    assert isinstance(flat, SpatialConv)
    assert isinstance(thin, TemporalConv)
    assert flat.out_channels == 3 * 9 * 6 * 8 // (9 * 6 + 3 * 8)
    whole = 27 * 6 * 8
    assert whole * 0.95 < flat.weight.numel() + thin.weight.numel() <= whole
    between = F.conv3d(x, flat.weight.unsqueeze(2), stride=(1, stride, stride), padding=(0, 1, 1))
    between = F.relu(between / (1 + 1e-5) ** 0.5)  # the initial norm
    expected = F.conv3d(between, thin.weight.unsqueeze(-1), stride=(stride, 1, 1), padding=(1, 0, 0))
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@FORMATS
def test_normalisation_is_over_clips_frames_and_pixels(memory_format):
    x, norm, reference = features(memory_format) * 3 + 1, FrameNorm(6), torch.nn.BatchNorm3d(6)
    torch.testing.assert_close(norm(x), reference(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.running_var, reference.running_var)
    torch.testing.assert_close(norm.eval()(x), reference.eval()(x), rtol=1e-5, atol=1e-5)


def test_input_norm_by_reductions_equals_batch_norm():
    ours, plain = InputNorm(6).double(), torch.nn.BatchNorm3d(6).double()
    with torch.no_grad():
        for layer in (ours, plain):
            layer.weight.copy_(torch.linspace(0.5, 2, 6))
            layer.bias.copy_(torch.linspace(-1, 1, 6))
    weights = torch.randn(2, 6, 5, 9, 12, dtype=torch.float64)
    found = []
    for layer, normalise in ((ours, ours.by_reductions), (plain, plain)):
        for scale in (3, 0.5):  # two steps, so that the running statistics move twice
            x = (scale * features().double() + scale).requires_grad_()
            y = normalise(x)
        gradients = torch.autograd.grad((y * weights).sum(), [x, layer.weight, layer.bias])
        found.append([y, *gradients, *(buffer.double() for buffer in layer.buffers())])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("gate", [ContextGating, SqueezeExcite])
def test_gates_scale_channels_by_the_whole_clip(gate):
    layer, x = gate(6, 6, Layer("context_gating")), features()
    weights = layer(x) / x
    one_a_channel = weights[:, :, :1, :1, :1].expand_as(weights)
    torch.testing.assert_close(weights, one_a_channel, rtol=1e-3, atol=1e-3)
    assert ((weights > 0) & (weights < 1)).all()
    shuffled = x.flatten(2)[:, :, torch.randperm(5 * 9 * 12)].view_as(x)  # the same means
    torch.testing.assert_close((layer(shuffled) / shuffled)[:, :, 0, 0, 0], weights[:, :, 0, 0, 0], rtol=1e-3, atol=0)
    brighter = x.clone()
    brighter[:, 0] += 5
    assert not torch.allclose((layer(brighter) / brighter)[:, 1, 0, 0, 0], weights[:, 1, 0, 0, 0], rtol=1e-3)


def test_gates_equal_their_formulas():
    x, one, two = features(), ContextGating(6, 6, Layer("context_gating")), SqueezeExcite(6, 6, Layer("squeeze_excite"))
    means = x.mean(dim=(2, 3, 4))

    def weighed(logits):
        return x * (1 / (1 + torch.exp(-logits)))[..., None, None, None]

    torch.testing.assert_close(one(x), weighed(means @ one.gate.weight.T + one.gate.bias))
    squeezed = means @ two.squeeze.weight.T + two.squeeze.bias
    assert (squeezed < 0).any()
    excited = squeezed * (squeezed > 0) @ two.excite.weight.T + two.excite.bias
    torch.testing.assert_close(two(x), weighed(excited))


@pytest.mark.parametrize("gate", ["context_gating", "squeeze_excite"])
def test_a_block_without_change_of_size_starts_as_the_identity(gate):
    block = TowerBlock(8, Block(8, [Layer("conv2d"), Layer("conv1d"), Layer(gate)]), width=1, repetition=0)
    x = features(channels=8)
    assert torch.equal(block(x), F.relu(x))


def test_a_striding_block_starts_as_its_averaging_shortcut():
    block = TowerBlock(8, Block(8, [Layer("pool1d", stride=2), Layer("conv2d", stride=2)]), width=1, repetition=0)
    x = features(channels=8)[:, :, :4, :8]
    torch.testing.assert_close(block(x), F.relu(F.avg_pool3d(x, 2)))


def test_a_block_without_skip_starts_with_a_working_body():
    block = TowerBlock(8, Block(8, [Layer("conv2d"), Layer("conv1d")], skip=False), width=1, repetition=0)
    x = features(channels=8)
    assert block.shortcut is None
    assert block(x).std() > 0.1
    assert not torch.allclose(block(x), F.relu(x), atol=0.1)


def test_only_the_first_repetition_of_a_block_pools_and_strides():
    layers = [Layer("conv2d", stride=2), Layer("pool1d", stride=2)]
    blocks = torch.nn.Sequential(*build_blocks(3, [Block(8, layers, repeats=3)], width=1))
    assert blocks(torch.rand(1, 3, 8, 64, 64)).shape == (1, 8, 4, 32, 32)


@pytest.mark.parametrize("size", [(1, 64, 64), (2, 65, 64), (3, 71, 100), (5, 67, 65), (7, 83, 69)])
def test_the_default_tower_takes_any_number_of_frames_and_any_size(size):
    early = EarlyTower(3, BlockTowers(default_tower(), 0.125), [3]).eval()
    late = LateTower(BlockTowers(default_tower(), 0.125), 3, 4, 0.5).eval()
    logits_BK, pooled_BC = late(early(torch.rand(2, 3, *size), 3)[3])
    assert logits_BK.shape == (2, 4)
    assert pooled_BC.shape == (2, late.classifier.in_features)


@pytest.mark.parametrize(
    "layers",
    [[Layer("conv2d+1d", stride=2)], [Layer("conv2d", stride=3)], [Layer("conv2d", 5, 2), Layer("pool2d", stride=2)]],
)
@pytest.mark.parametrize("size", range(9, 22))
def test_skip_connections_fit_their_blocks_at_every_size(layers, size):
    block = TowerBlock(
        8, Block(16, [*layers, Layer("pool1d", stride=2), Layer("conv1d", stride=2)]), width=1, repetition=0
    )
    assert block(torch.rand(1, 8, size, size, size)).shape[1] == 16


def test_the_default_tower_has_the_capacity_of_a_resnet_18():
    tower = default_tower()
    parts = [EarlyTower(3, BlockTowers(tower, 1), [3]), LateTower(BlockTowers(tower, 1), 3, 51, 0.5)]
    parameters = sum(parameter.numel() for part in parts for parameter in part.parameters())
    assert parameters == pytest.approx(11e6, rel=0.2)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1000.0])
def test_features_have_one_scale_whatever_the_input_scale(scale):
    torch.manual_seed(0)
    tower = EarlyTower(2, BlockTowers(default_tower(), 0.25), [3])
    representation = torch.randn(4, 2, 8, 64, 64) * scale
    features_BCTHW = tower(representation, 3)[3]
    means, variances = features_BCTHW.mean(dim=(0, 2, 3, 4)), features_BCTHW.var(dim=(0, 2, 3, 4))
    torch.testing.assert_close(means, torch.zeros_like(means), rtol=0, atol=1e-3)
    torch.testing.assert_close(variances, torch.ones_like(variances), rtol=0, atol=2e-2)


def test_features_do_not_depend_on_the_input_scale():
    torch.manual_seed(0)
    tower = EarlyTower(2, BlockTowers(default_tower(), 0.25), [3])
    representation = torch.randn(2, 2, 4, 64, 64)
    torch.testing.assert_close(tower(representation * 1000, 3), tower(representation, 3), rtol=0, atol=1e-2)
