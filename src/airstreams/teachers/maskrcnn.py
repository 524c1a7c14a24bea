"""The paper's kind of teacher: Mask R-CNN trained on MS-COCO, as torchvision's `maskrcnn_resnet50_fpn_v2`.

torchvision is imported only when this teacher is loaded, so that nobody else needs it. On CUDA GPUs with bfloat16 the
network runs in bfloat16 unless told otherwise. That is faster, but scores differ from float32's in the third digit, so
an instance near the threshold may be drawn with one and not with the other.
"""

import pickle
from pathlib import Path

import numpy as np
import torch

from airstreams.data.label_maps import COCO_CLASSES
from airstreams.errors import InputError, one_line
from airstreams.machine import Precision, autocast
from airstreams.models.backbones.torchvision_video import torchvision_models
from airstreams.teachers.drawing import SCORE_THRESHOLD, label_map

MASK_THRESHOLD = 0.5
"""The probability from which a pixel belongs to an instance's mask."""


class MaskRCNN:
    """A torchvision Mask R-CNN with COCO's categories as a teacher.

    model: takes a list of float (3, H, W) in 0..1 and returns for each a dict with scores, labels and masks.
    categories: the names of the model's label ids. Names that are not COCO classes, such as "N/A", are never drawn.
    """

    classes = COCO_CLASSES

    def __init__(
        self,
        model: torch.nn.Module,
        categories: list[str],
        device: torch.device,
        score_threshold: float = SCORE_THRESHOLD,
        unsure_from: float | None = None,
        precision: Precision = "float32",
    ) -> None:
        self._model = model.to(device).eval()
        self._device = device
        self._precision = precision
        self._ids = np.array([COCO_CLASSES.index(name) if name in COCO_CLASSES else 0 for name in categories])
        self._score_threshold = score_threshold
        self._unsure_from = unsure_from

    @torch.inference_mode()
    def __call__(self, frames_THW3: np.ndarray) -> np.ndarray:
        """Class ids, uint8 (T, H, W), of uint8 RGB frames (T, H, W, 3), all in one batch."""
        frames_T3HW = torch.from_numpy(frames_THW3).to(self._device).permute(0, 3, 1, 2).float() / 255
        with autocast(self._device, self._precision):
            found = self._model(list(frames_T3HW))
        return np.stack([self._draw(instances) for instances in found])

    def _draw(self, instances: dict[str, torch.Tensor]) -> np.ndarray:
        classes_N = self._ids[instances["labels"].cpu().numpy()]
        masks_NHW = (instances["masks"][:, 0] >= MASK_THRESHOLD).cpu().numpy()
        scores_N = instances["scores"].float().cpu().numpy()
        is_coco_N = classes_N > 0
        return label_map(
            masks_NHW[is_coco_N], scores_N[is_coco_N], classes_N[is_coco_N], self._score_threshold, self._unsure_from
        )


def load(
    device: torch.device,
    score_threshold: float = SCORE_THRESHOLD,
    unsure_from: float | None = None,
    precision: Precision = "float32",
) -> MaskRCNN:
    """Load the teacher with its COCO weights, which torchvision downloads once (about 180 MB).

    InputError: torchvision is missing or does not fit this torch, or the weights cannot be loaded.
    """
    detection = torchvision_models("The teacher maskrcnn").detection
    weights = detection.MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1
    lowest = score_threshold if unsure_from is None else unsure_from
    try:
        # The model drops instances that will not be drawn before it computes their masks.
        model = detection.maskrcnn_resnet50_fpn_v2(weights=weights, box_score_thresh=lowest)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
        raise InputError(
            f"The weights of maskrcnn cannot be loaded ({one_line(error)}). Download {weights.url} to {file}."
        ) from error
    return MaskRCNN(model, weights.meta["categories"], device, score_threshold, unsure_from, precision)
