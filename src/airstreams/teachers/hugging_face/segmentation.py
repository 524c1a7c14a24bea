"""Any instance, panoptic or semantic segmentation model of Hugging Face transformers as a teacher.

The checkpoint's `architectures` says which class of transformers loads it. The Auto classes are not used: they would
also load a classifier's checkpoint, with a segmentation head of random weights.

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
import logging
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from airstreams.data.label_maps import NO_LABEL
from airstreams.errors import InputError
from airstreams.teachers.drawing import BACKGROUND_NAMES, SCORE_THRESHOLD, label_map, pixel_map

ARCHITECTURES = ("ForUniversalSegmentation", "ForInstanceSegmentation", "ForSemanticSegmentation", "ForSegmentation")
"""The names of transformers' segmentation models end with one of these."""


class HuggingFaceTeacher:
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
        self._model = model.to(device).eval()
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
    model: str, device: torch.device, score_threshold: float | None = None, unsure_from: float | None = None
) -> HuggingFaceTeacher:
    """Load a model from the Hugging Face hub, or from a folder that `save_pretrained` wrote, as a teacher.

    Without `score_threshold`, instances and segments are drawn from a score of 0.5 on, and of a semantic model all
    pixels.
    InputError: transformers is missing, or the model cannot be loaded or does not segment images.
    """
    try:
        import transformers
        from transformers import AutoConfig, AutoImageProcessor
    except ImportError as error:
        raise InputError(
            f"The teacher hf:{model} needs transformers, which cannot be imported ({_short_reason(error)}). "
            "Run pip install transformers pillow, and remove a torchvision that is built for another torch."
        ) from error
    # When the hub cannot be reached it would log each of five attempts; the error below says it once.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        architecture = (config.architectures or ["model without an architecture"])[0]
        if not architecture.endswith(ARCHITECTURES) or not hasattr(transformers, architecture):
            raise InputError(
                f"hf:{model} is a {architecture}, not an image segmentation model. Give another one, such as "
                "facebook/mask2former-swin-tiny-coco-instance."
            )
        if config.num_labels >= NO_LABEL:
            raise InputError(
                f"hf:{model} has {config.num_labels} classes, and label maps hold {NO_LABEL - 1} beside the "
                "background. Give a model with fewer classes."
            )
        processor = AutoImageProcessor.from_pretrained(model, backend="pil", trust_remote_code=False)
        network, loading_info = getattr(transformers, architecture).from_pretrained(
            model,
            output_loading_info=True,
            trust_remote_code=False,
            dtype=torch.float32,  # some checkpoints are float16
        )
    except InputError:
        raise
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise InputError(
            f"hf:{model} cannot be loaded ({_short_reason(error)}). Give the name of a model on the Hugging Face hub, "
            "or, without network, a folder with config.json, preprocessor_config.json and weights."
        ) from error
    untrained = sorted(set(loading_info["missing_keys"]) & {name for name, _ in network.named_parameters()})
    if untrained:
        raise InputError(
            f"hf:{model} lacks {len(untrained)} of its weights, such as {untrained[0]}. Give a checkpoint that was "
            "trained for segmentation."
        )
    _check_it_needs_only_the_image(model, network, processor)
    return HuggingFaceTeacher(network, processor, device, score_threshold, unsure_from)


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


def _short_reason(error: BaseException) -> str:
    # The first line of transformers' message is the reason, the rest is advice. Its root cause adds what went wrong.
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    lines = dict.fromkeys(str(cause).strip().split("\n")[0] for cause in (error, root))
    return "; ".join(lines)
