"""Where and when a model looks: Grad-CAM (Selvaraju et al. 2017), extended from pictures to space and time.

A map is the sum of the channels of a feature map, each weighted by the mean of the class logit's gradient over all
places and frames. Negative values become 0: only what speaks for the class is shown.

Legend of shape suffixes: B clips, C channels, T frames, H, W pixels, K classes; t, h, w the places of a feature map.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from airstreams.models.airstreams import AIRStreams, answer_logits
from airstreams.models.tower import EarlyTower, LateTower


@dataclass(frozen=True)
class GradCam:
    """The maps of a batch of clips. Their values are at least 0, in logits: see `unit_range`.

    streams: of each tower's last features before the merge, float32 (B, t, h, w) by stream.
    heads: of the last features before the pooling, float32 (B, t, h, w) by head, of the answer's heads.
    logits_BK: the answer's logits.
    """

    streams: dict[str, Tensor]
    heads: dict[str, Tensor]
    logits_BK: Tensor


def grad_cam(model: AIRStreams, clip_B3THW: Tensor, class_B: Sequence[int]) -> GradCam:
    """Where and when a model looks for a class of each clip. The model stays as it was.

    Gradients need float32, and the layers as they were trained: give no `folded_model`.

    Args:
        model: the model.
        clip_B3THW: as the model takes it.
        class_B: the index of the class, for each clip.
    """
    maps = dict[tuple[str, str], Tensor]()
    with _for_gradients(model), _kept(model, maps), torch.inference_mode(False), torch.enable_grad():
        logits_BK = answer_logits(model(clip_B3THW.clone(), model.answer_heads).logits)
        of_classes = logits_BK.gather(1, torch.tensor(class_B, device=logits_BK.device)[:, None])
        gradients = torch.autograd.grad(of_classes.sum(), [*maps.values()])
    found: dict[str, dict[str, Tensor]] = {"early": {}, "late": {}}
    for ((part, name), map_BCthw), gradient_BCthw in zip(maps.items(), gradients, strict=True):
        # The sum, not the mean: after a mean over all places, the mean of the map is then the logit without its bias.
        weight_BC111 = gradient_BCthw.sum(dim=(2, 3, 4), keepdim=True)
        found[part][name] = (weight_BC111 * map_BCthw).sum(dim=1).relu().detach()
    return GradCam(found["early"], found["late"], logits_BK.detach())


def unit_range(map_Bthw: Tensor) -> Tensor:
    """Each clip's map divided by its maximum, so in 0..1. A map of zeros stays one."""
    return map_Bthw / map_Bthw.amax(dim=(1, 2, 3), keepdim=True).clamp(min=torch.finfo(map_Bthw.dtype).tiny)


def enlarged(map_Bthw: Tensor, size: Sequence[int]) -> Tensor:
    """The maps in the size (T, H, W) of the clip, linear in between."""
    return F.interpolate(map_Bthw[:, None], size=tuple(size), mode="trilinear", align_corners=False)[:, 0]


@contextmanager
def _for_gradients(model: AIRStreams) -> Iterator[None]:
    """Evaluation mode, without gradients of the parameters; restores both."""
    training = [(module, module.training) for module in model.modules()]
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode
        for parameter in learning:
            parameter.requires_grad_(True)


@contextmanager
def _kept(model: AIRStreams, maps: dict[tuple[str, str], Tensor]) -> Iterator[None]:
    """While the model runs, its last features of each tower go into `maps`, by part and name, and get gradients."""

    def keep(part: str, name: str) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def hook(module: nn.Module, given: object, features_BCthw: Tensor) -> Tensor:
            if not features_BCthw.requires_grad:
                features_BCthw = features_BCthw.detach().requires_grad_()
            maps[part, name] = features_BCthw
            return features_BCthw.clone()  # the next layer may work in place

        return hook

    last = {("early", stream): cast(EarlyTower, tower).output_norm for stream, tower in model.early.items()}
    for head in model.answer_heads:
        tower = cast(LateTower, model.late[head])
        if module := [*tower.blocks] or [tower.merge] * (tower.merge is not None):
            last["late", head] = module[-1]
    handles = [module.register_forward_hook(keep(*key)) for key, module in last.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
