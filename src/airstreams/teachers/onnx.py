"""An ONNX file as a teacher, run by onnxruntime.

Such a file has one input and one output, with any names:

- input: RGB frames (N, 3, H, W), uint8 0..255 or float32 0..1. Other preprocessing (mean and deviation, BGR) must be
  part of the graph. Where the file fixes H and W, frames are resized; where it fixes N, frames go in batches of N.
- output: class ids (N, H, W) of any integer type; or logits (N, S, h, w) of any float type and resolution. Logits are
  resized to the frame, and each pixel gets its most probable class, with the softmax as its score.
- class names: the metadata key `classes`, a JSON list, background first:
  `model = onnx.load(FILE); onnx.helper.set_model_props(model, {"classes": json.dumps(names)}); onnx.save(model, FILE)`

Class ids have no score, so thresholds have no effect on a file that outputs ids.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from airstreams.data.label_maps import NO_LABEL
from airstreams.errors import InputError, one_line
from airstreams.teachers.drawing import pixel_map

_EXPECTED = "one input (N, 3, H, W) uint8 or float, and one output: ids (N, H, W) integer or logits (N, S, h, w) float"


class OnnxTeacher:
    """An onnxruntime session as a teacher. InputError: its input or output does not fit."""

    def __init__(
        self,
        session: Any,
        classes: tuple[str, ...],
        score_threshold: float | None = None,
        unsure_from: float | None = None,
    ) -> None:
        inputs, outputs = session.get_inputs(), session.get_outputs()
        given = " and ".join(f"{'x'.join(map(str, value.shape))} {value.type}" for value in [*inputs, *outputs])
        if len(inputs) != 1 or len(outputs) != 1 or not _is_segmenter(inputs[0], outputs[0]):
            raise InputError(f"The ONNX file has {given}. Export it with {_EXPECTED}.")
        self.classes = classes
        self._session = session
        self._input = inputs[0]
        self._score_threshold = score_threshold
        self._unsure_from = unsure_from

    def __call__(self, frames_THW3: np.ndarray) -> np.ndarray:
        """Class ids, uint8 (T, H, W), of uint8 RGB frames (T, H, W, 3)."""
        size = frames_THW3.shape[1:3]
        outputs = self._run(self._prepare(frames_THW3))
        if outputs.ndim == 3:
            return _ids(outputs, size)
        return np.stack([self._pixels(logits_Shw, size) for logits_Shw in outputs])

    def _prepare(self, frames_THW3: np.ndarray) -> np.ndarray:
        _, _, height, width = self._input.shape
        size = tuple(
            fixed if isinstance(fixed, int) else given
            for fixed, given in zip((height, width), frames_THW3.shape[1:3], strict=True)
        )
        frames_T3HW = torch.from_numpy(frames_THW3).permute(0, 3, 1, 2)
        if size != frames_THW3.shape[1:3]:
            frames_T3HW = F.interpolate(frames_T3HW, size, mode="bilinear", antialias=True)
        if self._input.type == "tensor(float)":
            frames_T3HW = frames_T3HW.float() / 255
        return frames_T3HW.numpy()

    def _run(self, frames_T3HW: np.ndarray) -> np.ndarray:
        frames = len(frames_T3HW)
        batch = self._input.shape[0] if isinstance(self._input.shape[0], int) else frames
        outputs = []
        for start in range(0, frames, batch):
            # A last batch of fixed size is filled up with copies of the last frame.
            indices = np.minimum(np.arange(start, start + batch), frames - 1)
            outputs.append(self._session.run(None, {self._input.name: frames_T3HW[indices]})[0])
        return np.concatenate(outputs)[:frames]

    def _pixels(self, logits_Shw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        logits_1Shw = torch.from_numpy(logits_Shw)[None].float()
        logits_SHW = F.interpolate(logits_1Shw, size, mode="bilinear", align_corners=False)[0]
        probability_HW, likeliest_HW = logits_SHW.softmax(dim=0).max(dim=0)
        return pixel_map(likeliest_HW.numpy(), probability_HW.numpy(), self._score_threshold, self._unsure_from)


def load(
    file: Path, device: torch.device, score_threshold: float | None = None, unsure_from: float | None = None
) -> OnnxTeacher:
    """Load the teacher in an ONNX file (see the module's docstring).

    If this onnxruntime cannot use the GPU, a warning says so and the CPU is used.
    InputError: onnxruntime is missing, or the file cannot be read or does not fit.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f"The teacher onnx:{file} needs onnxruntime. Run pip install onnxruntime.") from error
    if not file.is_file():
        raise InputError(f"The teacher file {file} does not exist. Give the path of an ONNX file.")
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(file, settings, providers=_providers(onnxruntime, device))
    except Exception as error:  # onnxruntime's exception classes have no common base
        raise InputError(
            f"onnxruntime cannot read the teacher file {file} ({one_line(error)}). Export it again as ONNX."
        ) from error
    try:
        classes = tuple(json.loads(session.get_modelmeta().custom_metadata_map["classes"]))
    except (KeyError, ValueError, TypeError):
        raise InputError(
            f"The teacher file {file} does not name its classes. Add the metadata key classes, a JSON list with the "
            "background first: onnx.helper.set_model_props(model, {'classes': json.dumps(names)})."
        ) from None
    return OnnxTeacher(session, classes, score_threshold, unsure_from)


def _is_segmenter(entry: Any, result: Any) -> bool:
    # Where the file does not give a shape, it has no dimensions, or only named ones.
    takes_frames = entry.type in ("tensor(uint8)", "tensor(float)") and len(entry.shape) == 4 and entry.shape[1] == 3
    kinds = {3: ("tensor(int", "tensor(uint"), 4: ("tensor(float", "tensor(double")}
    return takes_frames and result.type.startswith(kinds.get(len(result.shape), ()))


def _providers(onnxruntime: Any, device: torch.device) -> list[Any]:
    if device.type != "cuda":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        return [("CUDAExecutionProvider", {"device_id": device.index or 0}), "CPUExecutionProvider"]
    warnings.warn(
        "This onnxruntime has no CUDA, so the teacher runs on the CPU. Install onnxruntime-gpu.", stacklevel=2
    )
    return ["CPUExecutionProvider"]


def _ids(ids_Nhw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if ids_Nhw.min() < 0 or ids_Nhw.max() > NO_LABEL:
        raise RuntimeError(
            f"The ONNX file gave class ids from {ids_Nhw.min()} to {ids_Nhw.max()}. "
            f"Export it with ids from 0 to {NO_LABEL}."
        )
    ids_Nhw = ids_Nhw.astype(np.uint8)
    if ids_Nhw.shape[1:] == size:
        return ids_Nhw
    return F.interpolate(torch.from_numpy(ids_Nhw)[:, None], size, mode="nearest")[:, 0].numpy()
