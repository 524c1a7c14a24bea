"""Instance, panoptic and semantic segmentation models.

Some architectures do instance, panoptic and semantic segmentation, and a checkpoint does not say which it was trained
for. So the post-processing is chosen by what the library offers for the architecture, in this order:

1. instance masks that may overlap (Mask2Former, MaskFormer, RF-DETR), which suit all three tasks;
2. panoptic segments (DETR, EoMT), where an unsure segment may have taken pixels from a sure one beside it;
3. each pixel's most probable class (SegFormer, DPT, UperNet, ...).

Frames are prepared by the processors on PIL and numpy even where torchvision's are available, so that every machine
makes the same label maps. The price: this runs on the CPU, about 10 ms for a frame of 640x480.

Models that need more than the image (OneFormer's task, a text prompt) are refused. So are EoMT's semantic checkpoints,
which predict in windows.
"""

import inspect
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from airstreams.data.label_maps import NO_LABEL
from airstreams.errors import InputError
from airstreams.teachers.drawing import BACKGROUND_NAMES, SCORE_THRESHOLD, label_map, pixel_map
from airstreams.teachers.hugging_face.loading import Checkpoint

ARCHITECTURES = ("ForUniversalSegmentation", "ForInstanceSegmentation", "ForSemanticSegmentation", "ForSegmentation")
"""The names of transformers' segmentation models end with one of these."""


class SegmentationTeacher:
    """A segmentation model of transformers with its image processor."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        device: torch.device,
        score_threshold: float | None = None,
        unsure_from: float | None = None,
    ) -> None:
        names = tuple(model.config.id2label[i] for i in range(model.config.num_labels))
        has_background = names[0].lower() in BACKGROUND_NAMES
        self.classes = names if has_background else ("background", *names)
        self._first_id = 0 if has_background else 1
        self._model = model
        self._processor = processor
        self._device = device
        self._score_threshold = score_threshold
        self._unsure_from = unsure_from

    @torch.inference_mode()
    def __call__(self, frames_THW3: np.ndarray) -> np.ndarray:
        """Class ids, uint8 (T, H, W), of uint8 RGB frames (T, H, W, 3), all in one batch."""
        # With a crop the label map of the middle would be stretched over the whole frame.
        uncropped = {"do_center_crop": False} if hasattr(self._processor, "do_center_crop") else {}
        inputs = self._processor(
            images=list(frames_THW3), return_tensors="pt", input_data_format="channels_last", **uncropped
        )
        outputs = self._model(**inputs.to(self._device))
        size = frames_THW3.shape[1:3]
        if not _has_segments(self._processor):
            return np.stack([self._pixels(logits_Shw, size) for logits_Shw in outputs.logits])
        return np.stack([self._segments(found, size) for found in self._post_process(outputs, size, len(frames_THW3))])

    def _pixels(self, logits_Shw: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
        logits_SHW = F.interpolate(logits_Shw[None].float(), size, mode="bilinear", align_corners=False)[0]
        probability_HW, likeliest_HW = logits_SHW.softmax(dim=0).max(dim=0)
        ids_HW = likeliest_HW.cpu().numpy() + self._first_id
        return pixel_map(ids_HW, probability_HW.cpu().numpy(), self._score_threshold, self._unsure_from)

    def _post_process(self, outputs: Any, size: tuple[int, int], frames: int) -> list[dict[str, Any]]:
        threshold = SCORE_THRESHOLD if self._score_threshold is None else self._score_threshold
        lowest = threshold if self._unsure_from is None else self._unsure_from
        target_sizes = [size] * frames
        with self._device:  # transformers creates some tensors on the default device
            if _has_overlapping_masks(self._processor):
                return self._processor.post_process_instance_segmentation(
                    outputs, threshold=lowest, target_sizes=target_sizes, return_binary_maps=True
                )
            return self._processor.post_process_panoptic_segmentation(
                outputs, threshold=lowest, target_sizes=target_sizes
            )

    def _segments(self, found: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
        segments = found["segments_info"]
        if not segments:
            return np.zeros(size, np.uint8)
        masks = found["segmentation"].cpu().numpy()
        ids_N = np.array([segment["id"] for segment in segments])
        masks_NHW = masks > 0 if masks.ndim == 3 else masks == ids_N[:, None, None]
        scores_N = np.array([segment["score"] for segment in segments])
        classes_N = np.array([segment["label_id"] + self._first_id for segment in segments])
        threshold = SCORE_THRESHOLD if self._score_threshold is None else self._score_threshold
        return label_map(masks_NHW, scores_N, classes_N, threshold, self._unsure_from)


def load(
    checkpoint: Checkpoint,
    device: torch.device,
    score_threshold: float | None = None,
    unsure_from: float | None = None,
) -> SegmentationTeacher:
    """Load a segmentation model as a teacher.

    Without `score_threshold`, instances and segments are drawn from a score of 0.5 on, and of a semantic model all
    pixels.
    InputError: some of its weights are missing, it has too many classes, or it needs more than the image.
    """
    name, classes = checkpoint.name, checkpoint.config.num_labels
    if classes >= NO_LABEL:
        raise InputError(
            f"hf:{name} has {classes} classes, and label maps hold {NO_LABEL - 1} beside the background. Give a model "
            "with fewer classes."
        )
    processor = checkpoint.processor()
    network = checkpoint.network(checkpoint.architecture, "segmentation", device)
    _check_it_needs_only_the_image(name, network, processor)
    return SegmentationTeacher(network, processor, device, score_threshold, unsure_from)


def _check_it_needs_only_the_image(model: str, network: torch.nn.Module, processor: Any) -> None:
    parameters = inspect.signature(network.forward).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    more = [name for name in needed if name != "pixel_values"]
    if more:
        raise InputError(
            f"hf:{model} needs {', '.join(more)} beside the image. Give a model that needs only the image, such as "
            "Mask2Former."
        )
    if getattr(processor, "do_split_image", False):
        raise InputError(
            f"hf:{model} predicts in windows. Give a panoptic or instance checkpoint, which sees the whole image."
        )


def _has_overlapping_masks(processor: Any) -> bool:
    post_process = getattr(processor, "post_process_instance_segmentation", None)
    return post_process is not None and "return_binary_maps" in inspect.signature(post_process).parameters


def _has_segments(processor: Any) -> bool:
    return _has_overlapping_masks(processor) or hasattr(processor, "post_process_panoptic_segmentation")
