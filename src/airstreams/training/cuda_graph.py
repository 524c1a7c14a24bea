"""A batch's pass through the model, forward and backward, as one CUDA graph: captured once, then replayed as a whole.

A pass of all three streams is thousands of small kernels. The host takes longer to start them one by one than a large
card takes to compute them (docs/results/gpu-speed.md). A graph has the same kernels on the same numbers.
"""

import gc
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from airstreams.config import Config
from airstreams.errors import InputError, one_line
from airstreams.training.losses import PassInputs

WARM_UP = 3  # passes before a capture, in which libraries choose their algorithms and Triton compiles


def can_be_captured(config: Config, accelerator: Accelerator) -> bool:
    """Whether every pass of a training launches the same kernels, as replaying a graph requires.

    A custom stream may do something else at each call. AMD's libraries create handles during a capture, which they may
    not.
    """
    training = config.training
    return (
        training.cuda_graph
        and accelerator.device.type == "cuda"
        and torch.version.hip is None
        and accelerator.num_processes == 1
        and training.accumulate == 1
        and not training.checkpointing
        and not config.model.representations
    )


@dataclass
class _Captured:
    """A graph with the tensors that it reads and writes. They stay at the same addresses."""

    kind: tuple[object, ...]
    graph: torch.cuda.CUDAGraph
    inputs: PassInputs
    results: dict[str, Tensor]
    gradients: list[tuple[nn.Parameter, Tensor]]


class CapturedPass:
    """Runs passes: the first `WARM_UP` of a kind directly, later ones as a graph.

    The kind of a pass is the shapes, types and strides of its inputs. A pass of another kind, such as one with fewer
    clips, runs directly and frees the graph, which holds the memory of a whole pass. A new graph is captured later.

    Args:
        parameters: the trainable parameters. They have no gradient when a pass begins.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._captured: _Captured | None = None
        self._passes: Counter[tuple[object, ...]] = Counter()  # passes of each kind since the last graph

    def __call__(self, one_pass: Callable[[PassInputs], dict[str, Tensor]], inputs: PassInputs) -> dict[str, Tensor]:
        """Run a pass; returns its results, detached and valid until the next call. The parameters get its gradients.

        Whatever else the pass reads, such as a number on the host, keeps the value that it had at the capture.

        InputError: the pass cannot be captured.
        """
        given = inputs.tensors()
        kind = tuple((name, tensor.shape, tensor.dtype, tensor.stride()) for name, tensor in given.items())
        if self._captured is not None and self._captured.kind != kind:
            torch.cuda.synchronize()  # the graph may still be running
            self._captured = None
            self._passes.clear()
        if self._captured is None and self._passes[kind] < WARM_UP:
            self._passes[kind] += 1
            return one_pass(inputs)
        captured = self._captured or self._capture(kind, one_pass, inputs)
        self._captured = captured
        for name, kept in captured.inputs.tensors().items():
            kept.copy_(given[name])
        captured.graph.replay()
        for parameter, gradient in captured.gradients:
            parameter.grad = gradient
        return captured.results

    def _capture(
        self, kind: tuple[object, ...], one_pass: Callable[[PassInputs], dict[str, Tensor]], inputs: PassInputs
    ) -> _Captured:
        """Capture the kernels of a pass without running them."""
        assert all(parameter.grad is None for parameter in self._parameters)  # or each pass would add to the gradient
        graph = torch.cuda.CUDAGraph()
        kept = inputs.map(Tensor.clone)
        gc.collect()  # freeing another training's graph during the capture would break it
        try:
            # In this mode the loader's thread may go on pinning memory. The usual mode would end the capture.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                results = one_pass(kept)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            cause = error.__context__ or error  # the end of a capture hides the error that broke it
            if isinstance(cause, (InputError, torch.OutOfMemoryError)) or not isinstance(cause, Exception):
                raise cause from None  # the last kind is Ctrl-C
            raise InputError(
                f"training.cuda_graph: a step cannot be captured ({one_line(cause)[:200]}). Set "
                "--training.cuda_graph false, or in a recipe `training: {cuda_graph: false}`."
            ) from error
        gradients = [(one, one.grad) for one in self._parameters if one.grad is not None]
        return _Captured(kind, graph, kept, results, gradients)
