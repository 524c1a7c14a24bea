"""The segmenter against what is published of ResNet-18, and its grid and dilation against the paper's output stride."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from airstreams.models.segmenter import DilatedResNet18


@pytest.mark.parametrize(
    ("size", "grid"), [((112, 112), (7, 7)), ((64, 64), (4, 4)), ((65, 100), (5, 7)), ((81, 95), (6, 6))]
)
def test_one_cell_of_the_grid_stands_for_16_px_and_a_rest_gets_its_own(size, grid):
    segmenter = DilatedResNet18(5, width=0.125).eval()
    assert segmenter(torch.rand(2, 3, *size)).shape == (2, 5, *grid)


def test_has_the_parameters_of_a_resnet_18_and_a_pixel_wise_classifier():
    parameters = sum(parameter.numel() for parameter in DilatedResNet18(81).parameters())
    assert parameters == 11_176_512 + 81 * (512 + 1)  # torchvision's resnet18 less its 1000-class layer


def test_takes_three_quarters_of_a_giga_multiply_add_for_a_frame_of_112_px():
    with torch.device("meta"):
        segmenter, frame = DilatedResNet18(81), torch.empty(1, 3, 112, 112)
    with FlopCounterMode(display=False) as counter:
        segmenter(frame)
    assert counter.get_total_flops() / 2 == pytest.approx(0.76e9, rel=0.02)


def test_the_fourth_stage_looks_at_every_second_cell_instead_of_striding():
    stage_four = DilatedResNet18(2, width=0.125).eval().stages[6:]
    with torch.no_grad():
        for parameter in stage_four.parameters():
            parameter.abs_().add_(0.01)  # all positive: no path from input to output cancels or is cut by a ReLU
    features = torch.rand(1, 32, 25, 25).requires_grad_()
    out = stage_four(features)
    assert out.shape[-2:] == (25, 25)
    out[0, :, 12, 12].sum().backward()
    assert features.grad is not None
    seen = features.grad[0].abs().sum(dim=0) > 0
    expected = torch.zeros(25, 25, dtype=torch.bool)
    expected[4:21:2, 4:21:2] = True  # four 3x3 convolutions, each reaching 2 cells further
    assert torch.equal(seen, expected)
