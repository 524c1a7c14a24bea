"""Gradient checkpointing (Chen et al. 2016): less memory in training, for a second forward pass."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def through(blocks: Iterable[nn.Module], x: Tensor, checkpointing: bool) -> Tensor:
    """The output of blocks in sequence.

    checkpointing: keep only the input of each block for the gradients. What lies between is computed again when they
        are. The gradients are the same, bit for bit.
    """
    for block in blocks:
        x = _checkpointed(block, x) if checkpointing else block(x)
    return x


def _checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _with_copied_buffers(block)

    out: Tensor = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
    return out


@contextmanager
def _with_copied_buffers(module: nn.Module) -> Iterator[None]:
    """Copies stand for all buffers: the second forward pass must not update batch statistics again."""
    buffers = [(part, name, own) for part in module.modules() for name, own in part.named_buffers(recurse=False)]
    for part, name, own in buffers:
        setattr(part, name, own.clone())
    try:
        yield
    finally:
        for part, name, own in buffers:
            setattr(part, name, own)
