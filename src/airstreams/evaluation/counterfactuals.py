"""Counterfactual videos: a clip with one thing taken away, to see whether the answer needs it.

`COUNTERFACTUALS` lists all of them. Each is a function of the clip and, where it says so, of a mask from label maps.
Nothing else knows a counterfactual by its name.

Legend of shape suffixes: V views, T frames, H, W pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from airstreams.data.label_maps import NO_LABEL
from airstreams.errors import VideoError

PERSON = "person"
GREY = 128
BORDER = 0.15  # of the height and of the width, painted on each side
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
BLUR = 1 / 14  # of the clip's side: the blur's standard deviation, 8 of 112 px
DILATION = 1 / 56  # of the clip's side: how far a mask grows, 2 of 112 px

Region = Literal["people", "objects"]


@dataclass(frozen=True)
class Counterfactual:
    """One way to change a clip.

    words: how the changed video is called, such as "without motion".
    change: gets the clips uint8 (V, T, H, W, 3) and the mask of `region`, bool (V, T, H, W), or None. It returns clips
        of the same shape and type, and leaves its arguments as they are.
    region: of which pixels the mask is: those of the class `PERSON`, or those of all classes but the background. None:
        it needs no label maps.
    of_background: whether it takes away the background alone.
    """

    words: str
    change: Callable[[Tensor, Tensor | None], Tensor]
    region: Region | None = None
    of_background: bool = False

    def missing(self, classes: Sequence[str] | None) -> str:
        """Why it cannot be made with label maps of these classes (None: there are none). Empty if it can."""
        if self.region is None:
            return ""
        if classes is None:
            return "there are no label maps. Give --labels LABELS"
        if self.region == "people" and PERSON not in classes:
            return f"the label maps have no class {PERSON!r}"
        return ""


def region_mask(maps_VTHW: Tensor, classes: Sequence[str], region: Region) -> Tensor:
    """The pixels of people or of all labelled objects, bool (V, T, H, W), a little enlarged.

    A frame without labels gets those of the nearest labelled frame of its clip.

    VideoError: a clip has no labelled frame.
    """
    masks = []
    for maps_THW in maps_VTHW:
        labelled = (maps_THW != NO_LABEL).flatten(1).any(dim=1).nonzero()[:, 0]
        if not len(labelled):
            raise VideoError("a clip has no frame with a label map")
        nearest_T = (torch.arange(len(maps_THW))[:, None] - labelled).abs().argmin(dim=1)
        maps_THW = maps_THW[labelled[nearest_T]]
        ids = [classes.index(PERSON)] if region == "people" else [*range(1, NO_LABEL)]
        mask_THW = torch.isin(maps_THW, torch.tensor(ids, dtype=maps_THW.dtype))
        reach = max(1, round(DILATION * maps_THW.shape[-1]))
        masks.append(F.max_pool2d(mask_THW[:, None].float(), 2 * reach + 1, stride=1, padding=reach)[:, 0] > 0)
    return torch.stack(masks)


def _frozen(clips_VTHW3: Tensor, mask: Tensor | None) -> Tensor:
    """Every frame is the middle one."""
    T = clips_VTHW3.shape[1]
    return clips_VTHW3[:, [T // 2]].expand_as(clips_VTHW3).contiguous()


def _reversed(clips_VTHW3: Tensor, mask: Tensor | None) -> Tensor:
    return clips_VTHW3.flip(1)


def _shuffled(clips_VTHW3: Tensor, mask: Tensor | None) -> Tensor:
    return clips_VTHW3[:, shuffled_order(clips_VTHW3.shape[1])]


def shuffled_order(frames: int) -> list[int]:
    """A permutation that is always the same. From three frames on it is neither the order of time nor its reverse."""
    rng = np.random.default_rng(0)
    in_time = [*range(frames)]
    order = in_time[::-1]
    while frames > 2 and order in (in_time, in_time[::-1]):
        order = rng.permutation(frames).tolist()
    return order


def _grey(clips_VTHW3: Tensor, mask: Tensor | None) -> Tensor:
    luma_VTHW = (clips_VTHW3.float() @ torch.tensor(LUMA)).round().clamp(0, 255).to(torch.uint8)
    return luma_VTHW[..., None].expand_as(clips_VTHW3).contiguous()


def _painted_over(clips_VTHW3: Tensor, mask_VTHW: Tensor | None) -> Tensor:
    """The region gets the mean colour of the rest of its frame; grey where there is no rest."""
    assert mask_VTHW is not None
    rest_VTHW1 = ~mask_VTHW[..., None]
    pixels_VT1 = rest_VTHW1.sum(dim=(2, 3))
    sums_VT3 = torch.where(rest_VTHW1, clips_VTHW3, 0).sum(dim=(2, 3))
    mean_VT3 = torch.where(pixels_VT1 > 0, sums_VT3 / pixels_VT1.clamp(min=1), GREY).round().to(torch.uint8)
    return torch.where(rest_VTHW1, clips_VTHW3, mean_VT3[:, :, None, None])


def _background_blurred(clips_VTHW3: Tensor, mask_VTHW: Tensor | None) -> Tensor:
    """The background is the blur of background pixels alone, so that no object bleeds into it."""
    assert mask_VTHW is not None
    views = []
    for clip_THW3, mask_THW in zip(clips_VTHW3, mask_VTHW, strict=True):
        weight_T1HW = (~mask_THW)[:, None].float()
        blurred_T3HW = _blur(clip_THW3.permute(0, 3, 1, 2) * weight_T1HW) / _blur(weight_T1HW).clamp(min=1e-6)
        blurred_THW3 = blurred_T3HW.permute(0, 2, 3, 1).round().clamp(0, 255).to(torch.uint8)
        views.append(torch.where(mask_THW[..., None], clip_THW3, blurred_THW3))
    return torch.stack(views)


def _blur(frames_TCHW: Tensor) -> Tensor:
    """A Gaussian blur. Outside of a frame everything is 0."""
    C, side = frames_TCHW.shape[1], frames_TCHW.shape[-1]
    sigma = BLUR * side
    reach = int(3 * sigma)
    weights = torch.exp(-((torch.arange(-reach, reach + 1) / sigma) ** 2) / 2)
    kernel_C11n = (weights / weights.sum()).expand(C, 1, 1, -1)
    along_rows = F.conv2d(frames_TCHW, kernel_C11n, padding=(0, reach), groups=C)
    return F.conv2d(along_rows, kernel_C11n.transpose(2, 3), padding=(reach, 0), groups=C)


def _background_grey(clips_VTHW3: Tensor, mask_VTHW: Tensor | None) -> Tensor:
    """The background is grey. Its mean colour, or another video's background, would tell something of a place."""
    assert mask_VTHW is not None
    return torch.where(mask_VTHW[..., None], clips_VTHW3, torch.tensor(GREY, dtype=torch.uint8))


def _border_grey(clips_VTHW3: Tensor, mask: Tensor | None) -> Tensor:
    H, W = clips_VTHW3.shape[2:4]
    top, left = round(BORDER * H), round(BORDER * W)
    inner = (slice(None), slice(None), slice(top, H - top), slice(left, W - left))
    changed = torch.full_like(clips_VTHW3, GREY)
    changed[inner] = clips_VTHW3[inner]
    return changed


COUNTERFACTUALS: Mapping[str, Counterfactual] = {
    "motion_frozen": Counterfactual("without motion", _frozen),
    "time_reversed": Counterfactual("with reversed time", _reversed),
    "time_shuffled": Counterfactual("with shuffled frames", _shuffled),
    "colour_removed": Counterfactual("without colour", _grey),
    "border_painted": Counterfactual("without the border", _border_grey),
    "people_painted": Counterfactual("without people", _painted_over, "people"),
    "objects_painted": Counterfactual("without labelled objects", _painted_over, "objects"),
    "background_blurred": Counterfactual("with a blurred background", _background_blurred, "objects", True),
    "background_replaced": Counterfactual("without the background", _background_grey, "objects", True),
}
