"""Batch normalisation over the clips of all processes."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def synchronise_norms(model: nn.Module, device: torch.device) -> None:
    """Replace batch normalisation by one that takes mean and variance over the clips of all processes.

    On CUDA these are torch's own layers, each of which waits for the device. They do not run on a CPU, so there
    `SynchronisedNorm` takes their place.
    """
    for name, child in model.named_children():
        if not isinstance(child, nn.BatchNorm2d | nn.BatchNorm3d):
            synchronise_norms(child, device)
        elif device.type == "cuda":
            setattr(model, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
        else:
            setattr(model, name, SynchronisedNorm(child))


class SynchronisedNorm(nn.Module):
    """Batch normalisation over all dimensions but the second (channels), and over all processes.

    It holds the parameters and statistics of the layer that it replaces, under the same names.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: nn.BatchNorm2d | nn.BatchNorm3d) -> None:
        super().__init__()
        assert norm.momentum is not None
        self.eps, self.momentum = norm.eps, norm.momentum
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            self.register_buffer(name, buffer)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, ...) to the same."""
        shape = (-1, *[1] * (features.ndim - 2))
        if self.training:
            others = [dim for dim in range(features.ndim) if dim != 1]
            count = _SumOverProcesses.apply(features.new_tensor(features.numel() / features.shape[1]))
            mean_C = _SumOverProcesses.apply(features.sum(dim=others)) / count
            features = features - mean_C.view(shape)
            variance_C = _SumOverProcesses.apply(features.square().sum(dim=others)) / count
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean_C, self.momentum)
                self.running_var.lerp_(variance_C * (count / (count - 1)), self.momentum)
        else:
            features = features - self.running_mean.view(shape)
            variance_C = self.running_var
        return features * (self.weight * (variance_C + self.eps).rsqrt()).view(shape) + self.bias.view(shape)


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient
