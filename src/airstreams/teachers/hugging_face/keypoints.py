"""Keypoints of people: ViTPose (Xu et al. 2022).

ViTPose takes one person at a time, in a box. A detector of transformers finds the boxes, such as RT-DETR or DETR: any
object detector with a class `person`. Without a detector the whole frame is the box of one person.
"""

from typing import Any

import numpy as np
import torch

from airstreams.errors import InputError
from airstreams.teachers.drawing import SCORE_THRESHOLD
from airstreams.teachers.hugging_face.loading import Checkpoint
from airstreams.teachers.target_spec import PEOPLE, TargetSpec

ARCHITECTURES = ("VitPoseForPoseEstimation",)
DETECTORS = ("ForObjectDetection",)
COCO_POINTS = (
    "nose", "left eye", "right eye", "left ear", "right ear", "left shoulder", "right shoulder", "left elbow",
    "right elbow", "left wrist", "right wrist", "left hip", "right hip", "left knee", "right knee", "left ankle",
    "right ankle",
)  # fmt: skip

Box = tuple[float, float, float, float]
"""Left, top, width and height in px."""


class Detector:
    """An object detector of transformers that finds people, the surest first, at most `PEOPLE`."""

    def __init__(self, model: Any, processor: Any, device: torch.device, threshold: float) -> None:
        self._model, self._processor, self._device, self._threshold = model, processor, device, threshold
        names = model.config.id2label
        self._person = next((number for number, name in names.items() if name.lower() == "person"), None)

    @property
    def knows_people(self) -> bool:
        """Whether it has a class `person`."""
        return self._person is not None

    @torch.inference_mode()
    def __call__(self, frames_THW3: np.ndarray) -> list[list[Box]]:
        """The boxes of the people in each frame."""
        inputs = self._processor(images=list(frames_THW3), return_tensors="pt", input_data_format="channels_last")
        outputs = self._model(**inputs.to(self._device))
        sizes = [frames_THW3.shape[1:3]] * len(frames_THW3)
        found = self._processor.post_process_object_detection(outputs, threshold=self._threshold, target_sizes=sizes)
        return [self._boxes(instances) for instances in found]

    def _boxes(self, instances: dict[str, torch.Tensor]) -> list[Box]:
        is_person = instances["labels"] == self._person
        scores, corners = instances["scores"][is_person].cpu(), instances["boxes"][is_person].cpu()
        surest = scores.argsort(descending=True, stable=True)[:PEOPLE]
        return [(x, y, max(x2 - x, 1.0), max(y2 - y, 1.0)) for x, y, x2, y2 in corners[surest].tolist()]


class KeypointTeacher:
    """ViTPose with its image processor, and perhaps a detector."""

    def __init__(self, model: Any, processor: Any, device: torch.device, detector: Detector | None) -> None:
        self._model, self._processor, self._device, self._detector = model, processor, device, detector
        names = model.config.id2label
        points = model.config.num_labels
        generic = all(name.startswith("LABEL_") for name in names.values())
        ordered = COCO_POINTS if generic and points == len(COCO_POINTS) else [names[i] for i in range(points)]
        self.target = TargetSpec("points", tuple(ordered))

    @torch.inference_mode()
    def __call__(self, frames_THW3: np.ndarray) -> np.ndarray:
        """Points, float32 (T, people, points, 3): x and y in 0..1, and the score, of uint8 frames (T, H, W, 3)."""
        height, width = frames_THW3.shape[1:3]
        boxes = [[(0.0, 0.0, width, height)]] * len(frames_THW3) if not self._detector else self._detector(frames_THW3)
        people = PEOPLE if self._detector else 1
        points_TMP3 = np.zeros((len(frames_THW3), people, len(self.target.names), 3), np.float32)
        with_people = [t for t, found in enumerate(boxes) if found]
        if not with_people:
            return points_TMP3
        kept = [[list(box) for box in boxes[t]] for t in with_people]
        images = [frames_THW3[t] for t in with_people]
        inputs = self._processor(images=images, boxes=kept, return_tensors="pt", input_data_format="channels_last")
        outputs = self._model(**inputs.to(self._device), **self._expert(len(inputs["pixel_values"])))
        for t, poses in zip(with_people, self._processor.post_process_pose_estimation(outputs, kept), strict=True):
            for person, pose in enumerate(poses):
                points_TMP3[t, person, :, :2] = pose["keypoints"].numpy() / (width, height)
                points_TMP3[t, person, :, 2] = pose["scores"].numpy().clip(0, 1)
        return points_TMP3

    def _expert(self, count: int) -> dict[str, torch.Tensor]:
        """ViTPose+ has one expert for each data set. The first one is COCO's."""
        if getattr(self._model.config.backbone_config, "num_experts", 1) == 1:
            return {}
        return {"dataset_index": torch.zeros(count, dtype=torch.int64, device=self._device)}


def load(
    checkpoint: Checkpoint, detector: Checkpoint | None, device: torch.device, score_threshold: float | None
) -> KeypointTeacher:
    """Load ViTPose as a teacher.

    Args:
        checkpoint: of ViTPose.
        detector: of the detector.
        device: for both.
        score_threshold: of the people that the detector finds.

    Raises:
        InputError: some weights are missing, or the detector finds no people.
    """
    network = checkpoint.network(checkpoint.architecture, "keypoints", device)
    finder = None
    if detector is not None:
        if not detector.architecture.endswith(DETECTORS) or not detector.has_class(detector.architecture):
            raise InputError(
                f"hf:{checkpoint.name}+{detector.name}: {detector.name} is a {detector.architecture}, not an object "
                "detector. Give one, such as PekingU/rtdetr_r50vd."
            )
        model = detector.network(detector.architecture, "object detection", device)
        threshold = SCORE_THRESHOLD if score_threshold is None else score_threshold
        finder = Detector(model, detector.processor(), device, threshold)
        if not finder.knows_people:
            raise InputError(
                f"hf:{checkpoint.name}+{detector.name}: the detector has no class person. Give one that has, such as "
                "PekingU/rtdetr_r50vd."
            )
    return KeypointTeacher(network, checkpoint.processor(), device, finder)
