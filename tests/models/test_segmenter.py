"""The segmenter compared with the published ResNet-18, and its grid and dilation with the paper's output stride."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from airstreams.models.segmenter import DilatedResNet18


@pytest.mark.parametrize(
    ("size", "stride", "grid"),
    [
        ((112, 112), 16, (7, 7)),
        ((64, 64), 16, (4, 4)),
        ((65, 100), 16, (5, 7)),
        ((81, 95), 16, (6, 6)),
        ((112, 112), 8, (14, 14)),
        ((65, 100), 8, (9, 13)),
        ((112, 112), 4, (28, 28)),
        ((65, 100), 4, (17, 25)),
    ],
)
def test_the_grid_has_one_cell_per_stride_rounded_up(size, stride, grid):
    segmenter = DilatedResNet18(5, width=0.125, stride=stride).eval()
    assert segmenter(torch.rand(2, 3, *size)).shape == (2, 5, *grid)


def test_has_the_parameters_of_a_resnet_18_and_a_pixel_wise_classifier():
    parameters = sum(parameter.numel() for parameter in DilatedResNet18(81).parameters())
    assert parameters == 11_176_512 + 81 * (512 + 1)  # torchvision's resnet18 without its 1000-class layer


def test_a_frame_of_112_px_costs_0_76_giga_multiply_adds():
    with torch.device("meta"):
        segmenter, frame = DilatedResNet18(81), torch.empty(1, 3, 112, 112)
    with FlopCounterMode(display=False) as counter:
        segmenter(frame)
    assert counter.get_total_flops() / 2 == pytest.approx(0.76e9, rel=0.02)


def test_the_fourth_stage_dilates_instead_of_striding():
    stage_four = DilatedResNet18(2, width=0.125).eval().stages[6:]
    with torch.no_grad():
        for parameter in stage_four.parameters():
            parameter.abs_().add_(0.01)  # all positive, so no path cancels another and no ReLU is 0
    features = torch.rand(1, 32, 25, 25).requires_grad_()
    out = stage_four(features)
    assert out.shape[-2:] == (25, 25)
    out[0, :, 12, 12].sum().backward()
    assert features.grad is not None
    seen = features.grad[0].abs().sum(dim=0) > 0
    expected = torch.zeros(25, 25, dtype=torch.bool)
    expected[4:21:2, 4:21:2] = True  # four 3x3 convolutions, each with a reach of 2 more cells
    assert torch.equal(seen, expected)


def test_the_stem_strides_twice():
    torch.manual_seed(0)
    stem, frames = DilatedResNet18(2, width=0.125).eval().stem, torch.randn(2, 3, 37, 50)
    weight = stem.get_parameter("0.weight")
    convolved = F.conv2d(frames, weight, stride=2, padding=3) / (1 + 1e-5) ** 0.5  # the initial norm
    expected = F.max_pool2d(F.relu(convolved), 3, stride=2, padding=1)
    torch.testing.assert_close(stem(frames), expected)


@pytest.mark.parametrize("stride", [8, 4])
def test_finer_logits_add_those_of_earlier_stages(stride):
    torch.manual_seed(0)
    segmenter = DilatedResNet18(5, width=0.125, stride=stride).eval()
    stages = {}
    for index, name in ((1, "one"), (3, "two"), (7, "four")):
        segmenter.stages[index].register_forward_hook(lambda _, __, out, name=name: stages.update({name: out}))
    logits = segmenter(torch.rand(2, 3, 70, 90))
    assert stages["two"].shape[-2:] == (9, 12)
    assert stages["one"].shape[-2:] == (18, 23)
    expected = segmenter.classifier(stages["four"])
    for name, finer in (("two", 8), ("one", 4)):
        if finer >= stride:
            larger = F.interpolate(expected, stages[name].shape[-2:], mode="bilinear", align_corners=False)
            layer = segmenter.finer_classifiers[str(finer)]
            assert isinstance(layer, torch.nn.Conv2d)
            expected = larger + F.conv2d(stages[name], layer.weight, layer.bias)
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize(("stride", "learns"), [(16, False), (4, True)])
def test_only_a_finer_grid_learns_small_cells(stride, learns):
    torch.manual_seed(0)
    segmenter = DilatedResNet18(2, width=0.25, stride=stride).train()
    optimizer = torch.optim.Adam(segmenter.parameters(), 1e-2)
    thin = torch.zeros(8, 64, 64, dtype=torch.long)  # a bar 8 px wide, elsewhere in each frame
    for number in range(8):
        thin[number, 8:56, 4 + 6 * number : 12 + 6 * number] = 1
    frames = thin[:, None].expand(-1, 3, -1, -1) - 0.5 + 0.1 * torch.randn(8, 3, 64, 64)
    for _ in range(40):
        logits = F.interpolate(segmenter(frames), (64, 64), mode="bilinear")
        F.cross_entropy(logits, thin).backward()
        optimizer.step()
        optimizer.zero_grad()
    found = logits.argmax(dim=1) == 1
    overlap = (found & (thin == 1)).sum() / (found | (thin == 1)).sum()
    assert overlap > 0.1  # it learns something
    assert (overlap > 0.7) == learns
