"""A batch's pass through the model, forward and backward, as one CUDA graph: recorded once, then started as a whole.

A pass of all three streams is thousands of small kernels, and a host takes longer to start them one by one than a large
card takes to compute them (docs/results.md, On a GPU). A graph has the same kernels on the same numbers.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from airstreams.config import Config
from airstreams.errors import InputError, in_a_line

WARM_UP = 3  # passes of a kind before one is recorded: libraries choose their algorithms in them, and Triton compiles


def can_be_recorded(config: Config, accelerator: Accelerator) -> bool:
    """Whether a training's passes are all alike to a graph, which repeats what a recorded one did.

    What a further stream does is not known: it may well do something else the next time.
    """
    training = config.training
    return (
        training.cuda_graph
        and accelerator.device.type == "cuda"
        and accelerator.num_processes == 1
        and training.accumulate == 1
        and not training.compile
        and not config.model.representations
    )


class PassGraph:
    """Starts passes, and all but the first `WARM_UP` of one kind as a graph; others, as of fewer clips, as they are.

    Args:
        parameters: those that learn. They have no gradient when a pass begins.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._passes: Counter[tuple[object, ...]] = Counter()
        self._recorded: tuple[object, ...] | None = None  # its kind
        self._graph = torch.cuda.CUDAGraph()
        self._inputs: list[Tensor | None] = []
        self._results: dict[str, Tensor] = {}
        self._gradients: list[tuple[nn.Parameter, Tensor]] = []

    def __call__(
        self, one_pass: Callable[..., dict[str, Tensor]], inputs: Sequence[Tensor | None]
    ) -> dict[str, Tensor]:
        """What the pass makes of the inputs, detached, until the next call; its gradients are the parameters'.

        InputError: it could not be recorded.
        """
        kind = tuple(None if tensor is None else (tensor.shape, tensor.dtype, tensor.stride()) for tensor in inputs)
        if self._recorded is None and self._passes[kind] == WARM_UP:
            self._record(one_pass, inputs)
            self._recorded = kind
        if kind != self._recorded:
            self._passes[kind] += 1
            return one_pass(*inputs)
        for kept, given in zip(self._inputs, inputs, strict=True):
            if kept is not None and given is not None:
                kept.copy_(given)
        self._graph.replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        return self._results

    def _record(self, one_pass: Callable[..., dict[str, Tensor]], inputs: Sequence[Tensor | None]) -> None:
        """Note down a pass's kernels without running them."""
        self._inputs = [None if tensor is None else tensor.clone() for tensor in inputs]
        try:
            # By this mode the loader's thread may go on pinning memory, which would end the recording by the usual one.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._results = one_pass(*self._inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise InputError(
                f"training.cuda_graph: a step could not be recorded ({in_a_line(error)[:200]}); give "
                "--training.cuda_graph false"
            ) from error
        self._gradients = [(one, one.grad) for one in self._parameters if one.grad is not None]
