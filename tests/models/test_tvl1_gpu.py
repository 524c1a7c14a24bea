"""The GPU kernels of TV-L1 compared with the unrolled iterations, on CUDA or in Triton's interpreter on a CPU.

Triton decides when it is imported whether it interprets, so without a card one test runs the others in a process of
their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from airstreams.models.tvl1 import _backward, recomputed, unrolled

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
CAN_RUN = INTERPRETED or DEVICE == "cuda"
if CAN_RUN:
    from airstreams.models import tvl1_gpu

by_kernels = pytest.mark.skipif(not CAN_RUN, reason="no CUDA card: test_kernels_pass_in_tritons_interpreter runs it")


def arguments(pairs, height, width, dtype=torch.float64):
    """offset, slope, gradient, tau, start and a gradient of the flow; the step is clamped at some pixels."""
    generator = torch.Generator().manual_seed(0)

    def normal(*leading):
        return torch.randn(*leading, pairs, height, width, generator=generator, dtype=dtype)

    given = [normal(), normal(2), 0.3 * normal(2), torch.tensor(0.2, dtype=dtype), normal(2), normal(2)]
    return [tensor.to(DEVICE) for tensor in given]


def random_taps(pairs, dtype=torch.float64):
    """Taps of each pair, near -1 and 1."""
    generator = torch.Generator().manual_seed(1)
    fixed = torch.tensor([-1.0, 1.0], dtype=dtype)[:, None]
    return (fixed + 0.3 * torch.randn(2, 2, 2, pairs, generator=generator, dtype=dtype)).to(DEVICE)


def by_autograd(offset, slope, gradient, tau, start, flow_grad, iterations, taps):
    """Flow and gradients through the unrolled iterations."""
    inputs = [tensor.detach().requires_grad_() for tensor in (offset, slope, gradient, tau)]
    if start is not None:
        start = start.detach().requires_grad_()
    taps = None if taps is None else taps.detach().requires_grad_()
    flow = unrolled(inputs[0], inputs[1], inputs[2], inputs[3], iterations, start, taps)
    inputs += [given for given in (start, taps) if given is not None]
    grads = torch.autograd.grad(flow, inputs, flow_grad, materialize_grads=True)
    return [flow.detach(), *grads]


def compare(given, iterations, from_rest, tolerance=1e-12, taps=None):
    offset, slope, gradient, tau, start, flow_grad = given
    start = None if from_rest else start
    expected = by_autograd(offset, slope, gradient, tau, start, flow_grad, iterations, taps)
    flow = tvl1_gpu.solve(offset, slope, gradient, tau, iterations, start, taps)
    *grads, start_grad, taps_grad = tvl1_gpu.solve_backward(
        flow_grad, offset, slope, gradient, tau, iterations, start, taps
    )
    grads += [] if start is None else [start_grad]
    grads += [] if taps is None else [taps_grad]
    for ours, theirs in zip([flow, *grads], expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@by_kernels
@pytest.mark.parametrize("from_rest", [True, False], ids=["from rest", "from a start"])
@pytest.mark.parametrize("iterations", [1, 2, 3, 9])
def test_kernels_equal_the_unrolled_iterations(iterations, from_rest):
    compare(arguments(3, 6, 7), iterations, from_rest)


@by_kernels
@pytest.mark.parametrize("shape", [(0, 6, 7), (1, 2, 2), (4, 2, 7), (4, 6, 2), (2, 31, 37)], ids=str)
def test_kernels_take_any_number_of_pairs_and_size(shape):
    compare(arguments(*shape), 4, from_rest=False)


@by_kernels
@pytest.mark.parametrize("shape", [(3, 6, 7), (0, 6, 7), (4, 2, 2), (2, 31, 37)], ids=str)
def test_kernels_take_taps_of_each_pair(shape):
    compare(arguments(*shape), 4, from_rest=False, taps=random_taps(shape[0]))
    compare(arguments(*shape), 4, from_rest=True, taps=random_taps(shape[0]))


@by_kernels
def test_kernels_take_several_blocks(monkeypatch):
    monkeypatch.setattr(tvl1_gpu, "_blocks", lambda offset: [slice(0, 2), slice(2, 3), slice(3, 5)])
    compare(arguments(5, 6, 7), 5, from_rest=False)
    compare(arguments(5, 6, 7), 5, from_rest=True)
    compare(arguments(5, 6, 7), 3, from_rest=True, taps=random_taps(5))


@by_kernels
def test_kernels_take_tensors_that_are_not_contiguous():
    offset, slope, gradient, tau, start, flow_grad = arguments(4, 6, 8)
    given = [offset[..., ::2], slope[..., ::2], gradient.mT.contiguous().mT[..., :4], tau, start[..., :4]]
    compare([*given, flow_grad[..., 4:]], 4, from_rest=False)


@by_kernels
def test_flat_flow_gives_finite_gradients():
    offset, slope, gradient, tau, start, flow_grad = arguments(2, 6, 7, torch.float32)
    flat = [torch.zeros_like(offset), torch.zeros_like(slope), torch.zeros_like(gradient), tau, torch.ones_like(start)]
    grads = tvl1_gpu.solve_backward(flow_grad, *flat[:4], 5, flat[4])
    assert all(grad.isfinite().all() for grad in grads)
    torch.testing.assert_close(tvl1_gpu.solve(*flat[:4], 5, flat[4]), flat[4], rtol=0, atol=0)


@by_kernels
def test_single_precision_is_close_to_double():
    compare(arguments(2, 17, 19, torch.float32), 6, from_rest=False, tolerance=1e-3)


@by_kernels
def test_nan_stays_nan():
    offset, slope, gradient, tau, *_ = arguments(1, 4, 5, torch.float32)
    offset[0, 1, 2] = torch.nan
    assert tvl1_gpu.solve(offset, slope, gradient, tau, 3)[:, 0, 1, 2].isnan().all()


@pytest.mark.skipif(DEVICE != "cuda", reason="no CUDA card")
def test_the_flow_layer_runs_the_kernels_on_cuda():
    offset, slope, gradient, tau, start, flow_grad = arguments(3, 16, 17, torch.float32)
    inputs = [tensor.requires_grad_() for tensor in (offset, slope, gradient, tau, start)]
    grads = torch.autograd.grad(recomputed(*inputs[:4], 5, inputs[4]), inputs, flow_grad)
    with torch.no_grad():
        *expected, _ = tvl1_gpu.solve_backward(flow_grad, *inputs[:4], 5, inputs[4])
        *again, _ = _backward(flow_grad, *inputs[:4], 5, inputs[4], None)
    for ours, theirs, twice in zip(grads, expected, again, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        torch.testing.assert_close(ours, twice, rtol=0, atol=0)  # the same bits every time


@pytest.mark.skipif(CAN_RUN, reason="the tests above ran themselves")
def test_kernels_pass_in_tritons_interpreter():
    pytest.importorskip("triton", reason="Triton is not installed (pip install triton): its kernels are not tested")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    root = Path(__file__).parents[2]
    run = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout
    assert "22 passed" in run.stdout
