"""A batch's pass through the model, forward and backward, as one CUDA graph: recorded once, then started as a whole.

A pass of all three streams is thousands of small kernels, and a host takes longer to start them one by one than a large
card takes to compute them (docs/results/gpu-speed.md). A graph has the same kernels on the same numbers.
"""

import gc
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from airstreams.config import Config
from airstreams.errors import InputError, one_line

WARM_UP = 3  # passes of a kind before one is recorded: libraries choose their algorithms in them, and Triton compiles


def can_be_captured(config: Config, accelerator: Accelerator) -> bool:
    """Whether a training's passes are all alike to a graph, which repeats what a recorded one did.

    What a further stream does is not known: it may well do something else the next time. AMD's libraries make handles
    in the recording that they may not make there.
    """
    training = config.training
    return (
        training.cuda_graph
        and accelerator.device.type == "cuda"
        and torch.version.hip is None
        and accelerator.num_processes == 1
        and training.accumulate == 1
        and not config.model.representations
    )


@dataclass
class _Captured:
    """A graph and the tensors that it reads and writes, at the same places each time."""

    kind: tuple[object, ...]
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor | None]
    results: dict[str, Tensor]
    gradients: list[tuple[nn.Parameter, Tensor]]


class CapturedPass:
    """Starts passes: those of one kind, after the first `WARM_UP`, as a graph.

    One of another kind, as of fewer clips, runs as it is and has the graph forgotten, which keeps the memory of a whole
    pass; a new one is recorded later.

    Args:
        parameters: those that learn. They have no gradient when a pass begins.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._captured: _Captured | None = None
        self._passes: Counter[tuple[object, ...]] = Counter()  # of each kind, since there was a graph

    def __call__(
        self, one_pass: Callable[..., dict[str, Tensor]], inputs: Sequence[Tensor | None]
    ) -> dict[str, Tensor]:
        """What the pass makes of the inputs, detached, until the next call; its gradients are the parameters'.

        What else a pass reads, such as a number of the host's, stays as it was when it was recorded.

        InputError: it could not be recorded.
        """
        kind = tuple(None if tensor is None else (tensor.shape, tensor.dtype, tensor.stride()) for tensor in inputs)
        if self._captured is not None and self._captured.kind != kind:
            torch.cuda.synchronize()  # it may be at work
            self._captured = None
            self._passes.clear()
        if self._captured is None and self._passes[kind] < WARM_UP:
            self._passes[kind] += 1
            return one_pass(*inputs)
        recorded = self._captured or self._capture(kind, one_pass, inputs)
        self._captured = recorded
        for kept, given in zip(recorded.inputs, inputs, strict=True):
            if kept is not None and given is not None:
                kept.copy_(given)
        recorded.graph.replay()
        for parameter, gradient in recorded.gradients:
            parameter.grad = gradient
        return recorded.results

    def _capture(
        self, kind: tuple[object, ...], one_pass: Callable[..., dict[str, Tensor]], inputs: Sequence[Tensor | None]
    ) -> _Captured:
        """Note down a pass's kernels without running them."""
        assert all(parameter.grad is None for parameter in self._parameters)  # or each pass would add to it
        graph = torch.cuda.CUDAGraph()
        kept = [None if tensor is None else tensor.clone() for tensor in inputs]
        gc.collect()  # the end of an earlier training's graph would break the recording
        try:
            # By this mode the loader's thread may go on pinning memory, which would end the recording by the usual one.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                results = one_pass(*kept)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            cause = error.__context__ or error  # a recording's end complains of whatever broke it before
            if isinstance(cause, (InputError, torch.OutOfMemoryError)) or not isinstance(cause, Exception):
                raise cause from None  # the last is Ctrl-C
            raise InputError(
                f"training.cuda_graph: a step could not be recorded ({one_line(cause)[:200]}); give "
                "--training.cuda_graph false, or in a recipe `training: {cuda_graph: false}`"
            ) from error
        gradients = [(one, one.grad) for one in self._parameters if one.grad is not None]
        return _Captured(kind, graph, kept, results, gradients)
