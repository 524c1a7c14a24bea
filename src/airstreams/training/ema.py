"""An exponential moving average of a model's weights, which mostly answers a little better than the last weights do."""

import copy

import torch
from torch import Tensor, nn

from airstreams.models.airstreams import AIRStreams


class WeightAverage:
    """A second model whose weights, and batch normalisation's statistics, follow those of the one that learns.

    The decay grows with the number of steps, from about none to the one given, so that the random weights of the
    beginning are soon forgotten.

    Args:
        model: the one that learns, on its device.
        decay: share of the average that a step leaves.
    """

    def __init__(self, model: AIRStreams, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay
        self._averages, self._latest = _averaged(self.model), _averaged(model)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the weights that step `step` (1, 2, ...) left in the model that learns."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._latest, 1 - decay)


def _averaged(model: nn.Module) -> list[Tensor]:
    once = dict.fromkeys(model.state_dict(keep_vars=True).values())  # tied weights have several names
    return [tensor for tensor in once if tensor.is_floating_point()]
