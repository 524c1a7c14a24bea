"""The iterations of TV-L1: the form in place compared with the unrolled one, and its memory."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from airstreams.models import tvl1
from airstreams.models.tvl1 import divergence, recomputed, unrolled


def arguments(pairs, height, width, dtype=torch.float64, seed=0):
    """offset, slope, gradient, tau and start of `iterate`. The step is clamped at some of the pixels."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*leading):
        return torch.randn(*leading, pairs, height, width, generator=generator, dtype=dtype)

    return [normal(), normal(2), 0.3 * normal(2), torch.tensor(0.2, dtype=dtype), normal(2)]


def random_taps(pairs):
    """Taps of each pair, near -1 and 1."""
    fixed = torch.tensor([-1.0, 1.0], dtype=torch.float64)[:, None]
    generator = torch.Generator().manual_seed(1)
    return fixed + 0.3 * torch.randn(2, 2, 2, pairs, generator=generator, dtype=torch.float64)


def values_and_gradients(solve, given: list[Tensor], iterations, from_rest=False, scale=1.0, taps=None):
    """The flow, and the gradients of all inputs for a loss with a different weight for every pixel."""
    *rest, start = [x.detach().requires_grad_() for x in given]
    taps = None if taps is None else taps.detach().requires_grad_()
    flow = solve(*rest, iterations, None if from_rest else start, taps)
    weights = torch.randn(flow.shape, generator=torch.Generator().manual_seed(9), dtype=flow.dtype)
    asked = [*rest, *([] if from_rest else [start]), *([] if taps is None else [taps])]
    return [flow.detach(), *torch.autograd.grad((flow.sin() * weights).sum() * scale, asked, materialize_grads=True)]


def compare(given, iterations, from_rest=False, taps=None):
    in_place = values_and_gradients(recomputed, given, iterations, from_rest, taps=taps)
    plain = values_and_gradients(unrolled, given, iterations, from_rest, taps=taps)
    assert len(in_place) == 5 + (not from_rest) + (taps is not None)
    for ours, expected in zip(in_place, plain, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    return plain


@pytest.mark.parametrize("from_rest", [True, False], ids=["from rest", "from a start"])
@pytest.mark.parametrize("iterations", [1, 2, 3, 12])
def test_in_place_equals_unrolled_in_values_and_gradients(iterations, from_rest):
    plain = compare(arguments(3, 6, 7), iterations, from_rest)
    if iterations > 1:  # otherwise they are 0: with one iteration from zero flow, tau and the slope do not matter
        assert all(x.abs().max() > 0 for x in plain)


@pytest.mark.parametrize("shape", [(1, 6, 7), (0, 6, 7), (4, 2, 7), (4, 6, 2), (4, 2, 2)], ids=str)
def test_in_place_equals_unrolled_for_any_number_of_pairs_and_size(shape):
    compare(arguments(*shape), 5)


@pytest.mark.parametrize("from_rest", [True, False], ids=["from rest", "from a start"])
@pytest.mark.parametrize("shape", [(3, 6, 7), (0, 6, 7), (4, 2, 7), (4, 6, 2), (4, 2, 2)], ids=str)
def test_taps_of_each_pair_equal_unrolled_in_values_and_gradients(shape, from_rest):
    plain = compare(arguments(*shape), 5, from_rest, random_taps(shape[0]))
    assert 0 in shape or all(x.abs().max() > 0 for x in plain)


@pytest.mark.parametrize("pixels", [1, 2 * 6 * 7, 3 * 6 * 7], ids="blocks of {} pixels".format)
def test_in_place_equals_unrolled_for_several_blocks(monkeypatch, pixels):
    monkeypatch.setattr(tvl1, "PIXELS_PER_THREAD", pixels)
    monkeypatch.setattr(tvl1, "FORWARD_BLOCK", 1)
    given = arguments(7, 6, 7)
    blocks = tvl1._blocks(given[0])
    sizes = [len(given[0][pairs]) for pairs in blocks]
    assert len(blocks) > 1
    assert sum(sizes) == 7
    assert pixels == 1 or len(set(sizes)) > 1  # blocks of different sizes, unless a block is one pair
    compare(given, 6, from_rest=False)
    compare(given, 6, from_rest=True)
    compare(given, 6, taps=random_taps(7))


def test_in_place_equals_unrolled_for_tensors_that_are_not_contiguous():
    offset, slope, gradient, tau, start = arguments(4, 6, 7)
    turned = gradient.movedim(1, -1).contiguous().movedim(-1, 1)
    given = [offset[..., ::2], slope[..., ::2], turned[..., :4], tau, start.mT.contiguous().mT[..., :4]]
    assert not any(x.is_contiguous() for x in given if x.ndim)
    compare(given, 6)
    compare(given, 6, from_rest=True)


def test_an_expanded_gradient_is_accepted():
    offset, slope, gradient, tau, start = arguments(4, 6, 7)

    def gradient_of_the_sum(solve):
        leaf = offset.detach().requires_grad_()
        solve(leaf, slope, gradient, tau, 6, start).sum().backward()
        return leaf.grad

    ours, expected = gradient_of_the_sum(recomputed), gradient_of_the_sum(unrolled)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    assert ours.abs().max() > 0


def test_inputs_are_not_changed():
    given = arguments(3, 6, 7)
    copies = [x.clone() for x in given]
    values_and_gradients(recomputed, given, 4)
    assert all(torch.equal(x, copy) for x, copy in zip(given, copies, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_flow_that_becomes_flat_has_finite_gradients(dtype):
    # The thresholding step moves the left pixel by 0.75 each time, and the dual adds 1/8. After the first iteration the
    # flow is (0, 1), after the second exactly (7/8, 7/8). In the third the square root has no derivative.
    left = torch.tensor([1.0, 0.0], dtype=dtype).expand(1, 2, 2)
    nothing = torch.zeros(2, 1, 2, 2, dtype=dtype)
    gradient = torch.stack((-0.75 * left, nothing[1]))
    start = torch.stack((1 - 1.75 * left, nothing[1]))
    offset, tau = 2 * left, torch.tensor(0.25, dtype=dtype)
    given = [offset, nothing, gradient, tau, start]
    assert torch.equal(unrolled(offset, nothing, gradient, tau, 2, start)[0], torch.full_like(left, 0.875))
    # A large factor, as from loss scaling in mixed precision.
    in_place = values_and_gradients(recomputed, given, 3, scale=2.0**16)
    for ours, expected in zip(in_place, values_and_gradients(unrolled, given, 3, scale=2.0**16), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("optional", [True, False], ids=["from a start with taps", "from rest"])
@pytest.mark.parametrize("gradients", [True, False], ids=["with gradients", "without"])
def test_the_operator_passes_torchs_checks(optional, gradients):
    *given, start, taps = [x.requires_grad_(gradients) for x in (*arguments(2, 5, 6), random_taps(2))]
    torch.library.opcheck(recomputed, (*given, 3, *((start, taps) if optional else (None, None))))


@pytest.mark.parametrize("start", [True, False], ids=["from a start", "from rest"])
def test_without_gradients_the_flow_is_the_same_bits(start):
    given = arguments(3, 9, 8, dtype=torch.float32)
    given = (*given[:4], 5, given[4] if start else None)
    with torch.inference_mode():
        assert torch.equal(tvl1.iterate(*given), recomputed(*given))


def test_without_gradients_torchs_compiler_is_not_imported():
    code = (
        "import sys, torch; from airstreams.models.flow import RepresentationFlow\n"
        "with torch.no_grad(): RepresentationFlow(3)(torch.rand(1, 1, 3, 8, 8))\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_the_divergence_is_the_negative_adjoint_of_forward_differences():
    generator = torch.Generator().manual_seed(0)
    scalar, dual_x, dual_y = (
        torch.randn(3, *size, generator=generator, dtype=torch.float64) for size in ((6, 7), (6, 6), (5, 7))
    )
    inner = (scalar.diff(dim=2) * dual_x).sum() + (scalar.diff(dim=1) * dual_y).sum()
    torch.testing.assert_close(inner, -(scalar * divergence(dual_x, dual_y)).sum(), rtol=0, atol=1e-12)


def test_initial_learnt_taps_are_the_fixed_differences():
    offset, slope, gradient, tau, start = arguments(2, 6, 7)
    fixed = torch.tensor([-1.0, 1.0], dtype=torch.float64)[:, None].repeat(2, 2, 1, 2)

    def flow(solve, taps=None):
        return solve(offset, slope, gradient, tau, 5, start, taps)

    for solve in (unrolled, recomputed):
        assert torch.equal(flow(solve, fixed), flow(solve))
        for kernel, direction in ((0, 0), (0, 1), (1, 0), (1, 1)):
            other = fixed.clone()
            other[kernel, direction, :, 1] = torch.tensor([-0.9, 1.1])
            assert torch.equal(flow(solve, other)[:, 0], flow(solve)[:, 0])  # only the second pair has other taps
            assert not torch.allclose(flow(solve, other)[:, 1], flow(solve)[:, 1])


def test_training_needs_less_than_a_quarter_of_the_memory_of_plain_autograd(monkeypatch, tmp_path):
    # A block has the same fraction of the pairs as with 8 clips of 15 pairs of 112x112 px.
    pairs, side, iterations = 48, 24, 10
    monkeypatch.setattr(tvl1, "PIXELS_PER_THREAD", 2**15 * (pairs * side**2) // (8 * 15 * 112**2))
    given = arguments(pairs, side, side, dtype=torch.float32)

    def peak_bytes(solve):
        """The peak memory of a forward and a backward pass, by torch's allocator."""
        with torch.profiler.profile(profile_memory=True) as profiler:
            values_and_gradients(solve, given, iterations, from_rest=True)
        trace = tmp_path / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"]
        allocated = np.cumsum([e["args"]["Bytes"] for e in sorted(events, key=lambda e: e["ts"])])
        return int(allocated.max())

    plane = pairs * side**2 * 4
    plain = peak_bytes(unrolled)
    in_place = peak_bytes(recomputed)
    assert plain > 10 * iterations * plane  # the measurement sees what autograd keeps
    assert in_place > 7 * plane  # at least the flow and the gradients
    assert in_place < plain / 4
