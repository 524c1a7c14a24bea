"""The fused kernel of the flow layer on a CPU, compared with torch's operations."""

import pytest
import torch

from airstreams.config import Config
from airstreams.errors import InputError
from airstreams.models import tvl1_cpu
from airstreams.models.flow import RepresentationFlow
from airstreams.recipe import from_dict
from airstreams.training import setup

no_compiler = tvl1_cpu.library(torch.float64, learnt=False) is None
by_kernel = pytest.mark.skipif(no_compiler, reason="no C compiler here: airstreams runs torch's operations")


def frames(pairs, height, width, dtype=torch.float64):
    """Two frames that differ a little, so that the step is clamped at some pixels, and a flow to start from."""
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(pairs, height, width, generator=generator, dtype=dtype) * 255
    second = first + 6 * torch.randn(pairs, height, width, generator=generator, dtype=dtype)
    return first, second, torch.randn(2, pairs, height, width, generator=generator, dtype=dtype)


def values_and_gradients(kernel, given, iterations, learnt=False):
    """The flow from the first to the second frames, and the gradients of all inputs and parameters."""
    first, second, start = given
    layer = RepresentationFlow(iterations, kernel=kernel, learn_kernels=learnt).to(first.dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for taps in [parameter for name, parameter in layer.named_parameters() if "taps" in name]:
            taps.add_(0.3 * torch.randn(taps.shape, generator=generator))
    first, second = first.detach().requires_grad_(), second.detach().requires_grad_()
    start = None if start is None else start.detach().requires_grad_()
    flow = layer._iterate(first, second, start, layer._taps(1, 1, len(first), first.dtype))
    assert (type(flow.grad_fn).__name__ == "_SolveBackward") == (kernel == "fused")
    weights = torch.randn(flow.shape, generator=torch.Generator().manual_seed(9), dtype=flow.dtype)
    asked = [first, second, *([] if start is None else [start]), *layer.parameters()]
    return [flow.detach(), *torch.autograd.grad((flow.sin() * weights).sum(), asked, materialize_grads=True)]


def compare(given, iterations, tolerance=1e-10, learnt=False):
    ours, expected = (values_and_gradients(kernel, given, iterations, learnt) for kernel in ("fused", "torch"))
    for own, other in zip(ours, expected, strict=True):
        scale = max(other.abs().max().item(), 1.0) if other.numel() else 1.0
        torch.testing.assert_close(own, other, rtol=tolerance, atol=tolerance * scale)


@by_kernel
@pytest.mark.parametrize("from_rest", [True, False], ids=["from rest", "from a start"])
@pytest.mark.parametrize("iterations", [1, 2, 9])
def test_the_kernel_equals_torchs_operations(iterations, from_rest):
    first, second, start = frames(3, 17, 21)
    compare((first, second, None if from_rest else start), iterations)


@by_kernel
@pytest.mark.parametrize("shape", [(0, 6, 7), (1, 2, 2), (4, 2, 7), (4, 6, 2), (2, 3, 40)], ids=str)
def test_the_kernel_takes_any_number_of_pairs_and_size(shape):
    compare(frames(*shape), 4)


@by_kernel
@pytest.mark.parametrize("shape", [(3, 17, 21), (0, 6, 7), (4, 2, 7), (4, 6, 2)], ids=str)
def test_learnt_weights_equal_torchs_operations(shape):
    first, second, start = frames(*shape)
    compare((first, second, start), 5, learnt=True)
    compare((first, second, None), 5, learnt=True)


@by_kernel
def test_the_kernel_takes_tensors_that_are_not_contiguous():
    first, second, start = frames(3, 8, 18)
    compare((first[..., ::2], second.mT.contiguous().mT[..., :9], start[..., ::2]), 4)


@by_kernel
def test_gradients_equal_finite_differences():
    first, second, start = frames(2, 5, 4)
    constants = [torch.tensor(x, dtype=torch.float64) for x in (0.2, 0.9, 0.3)]
    inputs = [x.requires_grad_() for x in (first, second, *constants, start)]

    def solve(first, second, tau, lambda_, theta, start):
        return tvl1_cpu.solve(first, second, tau, lambda_, theta, 4, start)

    assert torch.autograd.gradcheck(solve, inputs, eps=1e-7, atol=1e-4)


@by_kernel
def test_single_precision_is_close():
    compare(frames(2, 33, 18, torch.float32), 9, tolerance=1e-3)


def both_layers(clip, **options):
    layers = [RepresentationFlow(5, kernel=kernel, **options) for kernel in ("fused", "torch")]
    fused, plain = (layer.to(torch.promote_types(clip.dtype, torch.float32))(clip) for layer in layers)
    assert not torch.equal(fused, plain)
    return fused, plain


@by_kernel
def test_the_layer_is_close_in_single_precision_under_autocast():
    clip = torch.rand(2, 3, 4, 36, 40, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        fused, plain = both_layers(clip)
    assert fused.dtype == torch.float32
    torch.testing.assert_close(fused, plain, rtol=0, atol=1e-4)


@by_kernel
def test_levels_and_warps_run_the_kernel_too():
    clip = torch.rand(1, 2, 3, 36, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(*both_layers(clip, levels=2, warps=2), rtol=0, atol=1e-9)


@by_kernel
def test_the_bits_are_the_same_for_any_number_of_threads():
    given = frames(37, 9, 12, torch.float32)
    threads, runs = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            runs.append(values_and_gradients("fused", given, 3))
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        assert all(torch.equal(*pair) for pair in zip(runs[0], other, strict=True))


@by_kernel
def test_flat_frames_give_zero_flow_and_finite_gradients():
    flat = torch.full((2, 6, 7), 100.0, dtype=torch.float64)
    values = values_and_gradients("fused", (flat, flat, None), 5)
    assert values[0].abs().max() == 0
    assert all(value.isfinite().all() for value in values)


@by_kernel
def test_nan_stays_nan():
    first, second, _ = frames(1, 6, 7)
    second[0, 3, 3] = torch.nan
    assert RepresentationFlow(3, kernel="fused")._iterate(first, second)[:, 0, 3, 2].isnan().all()


def test_without_a_compiler_the_layer_runs_torchs_operations(monkeypatch):
    monkeypatch.setattr(tvl1_cpu, "library", lambda dtype, learnt: None)
    clip = torch.rand(1, 1, 3, 9, 8)
    assert torch.equal(RepresentationFlow(3, kernel="fused")(clip), RepresentationFlow(3)(clip))


def test_without_a_compiler_training_names_the_key(monkeypatch):
    monkeypatch.setattr(tvl1_cpu, "library", lambda dtype, learnt: None)
    cpu, config = torch.device("cpu"), from_dict({"model": {"flow": {"kernel": "fused"}}})
    with pytest.raises(InputError, match=r"model\.flow\.kernel"):
        setup._require_kernel(config, cpu)
    setup._require_kernel(config, torch.device("cuda"))
    setup._require_kernel(Config(), cpu)


@pytest.mark.parametrize("compiler", ["", "false"], ids=["none", "a broken one"])
def test_a_compiler_that_fails_gives_no_library(monkeypatch, compiler):
    monkeypatch.setattr(tvl1_cpu.shutil, "which", lambda name: compiler or None)
    assert tvl1_cpu.library.__wrapped__(torch.float32, learnt=False) is None
