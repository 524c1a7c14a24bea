"""torchvision's Mask R-CNN with random weights, and a stand-in model with known detections.

torchvision's wheel on PyPI is built for CUDA and does not load beside a CPU-only torch. Its Python code does, once its
operators are declared and the two that Mask R-CNN needs are written. These tests do both.
"""

import importlib
import sys
from typing import Any

import numpy as np
import pytest
import torch

from airstreams.data.label_maps import COCO_CLASSES
from airstreams.errors import InputError
from airstreams.teachers import maskrcnn
from airstreams.teachers.teacher import load_teacher

CPU = torch.device("cpu")

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
    *(f"{name}(Tensor input) -> Tensor" for name in ("_roi_align_backward", "ps_roi_align", "_ps_roi_align_backward")),
    *(f"{name}(Tensor input) -> Tensor" for name in ("roi_pool", "_roi_pool_backward", "ps_roi_pool")),
    *(f"{name}(Tensor input) -> Tensor" for name in ("_ps_roi_pool_backward", "qroi_align", "deform_conv2d")),
    "_deform_conv2d_backward(Tensor input) -> Tensor",
)
_shim = torch.library.Library("torchvision", "FRAGMENT")


def plain_nms(boxes, scores, iou_threshold):
    corners = torch.minimum(boxes[:, None, 2:], boxes[:, 2:]) - torch.maximum(boxes[:, None, :2], boxes[:, :2])
    overlap = corners.clamp(min=0).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    conflicts = overlap / (area[:, None] + area - overlap) > iou_threshold
    kept: list[int] = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        if not conflicts[i, kept].any():
            kept.append(i)
    return torch.tensor(kept, dtype=torch.int64)


@pytest.fixture(scope="module")
def detection():
    """`torchvision.models.detection`, with operators in Python where its own do not load."""
    try:
        import torchvision
    except ModuleNotFoundError as error:
        pytest.skip(f"torchvision is not installed: {error}")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            pytest.skip(f"torchvision does not load: {error}")
        for operator in OPERATORS:
            _shim.define(operator)
        import torchvision

        roi_align: Any = importlib.import_module("torchvision.ops.roi_align")
        _shim.impl("nms", plain_nms, "CPU")
        _shim.impl("roi_align", roi_align._roi_align.__wrapped__, "CPU")
        torchvision.extension._has_ops = roi_align._has_ops = lambda: True
    return importlib.import_module("torchvision.models.detection")


@pytest.fixture(scope="module")
def random_model(detection):
    """The paper's network, with random weights and settings that find something in small frames."""
    torch.manual_seed(0)
    return detection.maskrcnn_resnet50_fpn_v2(
        weights=None, weights_backbone=None, min_size=64, max_size=96, box_score_thresh=0.0,
        rpn_pre_nms_top_n_test=20, rpn_post_nms_top_n_test=6, box_detections_per_img=6,
    )  # fmt: skip


def frames_of(count, height=48, width=64):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def test_torchvisions_categories_include_the_coco_classes(detection):
    categories = detection.MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1.meta["categories"]
    assert set(COCO_CLASSES[1:]) <= set(categories)
    assert set(categories) - set(COCO_CLASSES) == {"__background__", "N/A"}


def test_label_maps_agree_with_the_networks_detections(detection, random_model):
    categories = detection.MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1.meta["categories"]
    frames_THW3 = frames_of(2)
    with torch.inference_mode():
        outputs = random_model.eval()([torch.from_numpy(frame / 255).permute(2, 0, 1).float() for frame in frames_THW3])
    found = [{key: value.numpy() for key, value in instances.items()} for instances in outputs]
    scores = np.sort(np.concatenate([instances["scores"] for instances in found]))
    assert len(scores) > 4
    threshold = float(scores[len(scores) // 2 - 1 : len(scores) // 2 + 1].mean())  # half of the instances are drawn
    labels_THW = maskrcnn.MaskRCNN(random_model, categories, CPU, threshold)(frames_THW3)
    expected = np.zeros_like(labels_THW)
    for t, instances in enumerate(found):
        for y, x in np.ndindex(expected.shape[1:]):
            here = [
                (float(score), categories[label])
                for score, label, mask in zip(instances["scores"], instances["labels"], instances["masks"], strict=True)
                if score >= threshold and mask[0, y, x] >= 0.5 and categories[label] != "N/A"
            ]
            expected[t, y, x] = COCO_CLASSES.index(max(here)[1]) if here else 0
    assert (labels_THW > 0).any()
    np.testing.assert_array_equal(labels_THW, expected)


class FixedDetections(torch.nn.Module):
    """Detects label 1 on the left, label 2 on the right, and label 0 everywhere with the highest score."""

    def forward(self, images):
        masks = torch.zeros(3, 1, *images[0].shape[1:])
        half = images[0].shape[2] // 2
        masks[0, :, :, :half], masks[1, :, :, half:], masks[2] = 0.5, 0.9, 1.0
        return [{"labels": torch.tensor([1, 2, 0]), "scores": torch.tensor([0.9, 0.4, 1.0]), "masks": masks}] * len(
            images
        )


def test_categories_outside_coco_hide_nothing():
    teacher = maskrcnn.MaskRCNN(FixedDetections(), ["N/A", "dog", "person"], CPU, score_threshold=0.3)
    dog, person = COCO_CLASSES.index("dog"), COCO_CLASSES.index("person")
    np.testing.assert_array_equal(teacher(frames_of(1, 1, 4)), [[[dog, dog, person, person]]])


def test_unsure_instances_become_no_label():
    teacher = maskrcnn.MaskRCNN(FixedDetections(), ["N/A", "dog", "person"], CPU, score_threshold=0.5, unsure_from=0.3)
    dog = COCO_CLASSES.index("dog")
    np.testing.assert_array_equal(teacher(frames_of(1, 1, 4)), [[[dog, dog, 255, 255]]])


def test_weights_that_cannot_be_loaded_are_named(detection, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = detection.MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1.url
    file = tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[-1]
    file.parent.mkdir(parents=True)
    file.write_bytes(b"cut off")  # like a failed download, but without network
    with pytest.raises(InputError) as raised:
        load_teacher("maskrcnn", {}, CPU)
    assert url in str(raised.value)
    assert str(file) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_torchvision_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.delitem(sys.modules, "torchvision.models", raising=False)
    with pytest.raises(InputError, match=r"pip install torchvision torch==") as raised:
        load_teacher("maskrcnn", {}, CPU)
    assert "\n" not in str(raised.value)
