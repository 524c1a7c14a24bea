"""An ONNX file as a teacher, run by onnxruntime.

Such a file has one input and one output, under any names:

- input: RGB frames (N, 3, H, W), uint8 0..255 or float32 0..1. What else the network wants (mean and deviation, BGR) is
  part of the graph. Frames are resized to an H and W that the file fixes, and go in groups of an N that it fixes.
- output: class ids (N, H, W) of any integer type; or logits (N, S, h, w), floating, at any resolution: they are
  resized to the frame, and each pixel gets its likeliest class, with the softmax as its score.
- class names: the metadata key `classes`, a JSON list, background first:
  `model = onnx.load(FILE); onnx.helper.set_model_props(model, {"classes": json.dumps(names)}); onnx.save(model, FILE)`

Ids have no score, so thresholds change nothing for a file that puts out ids.
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

_EXPECTED = "one input (N, 3, H, W) uint8 or float, one output: ids (N, H, W) integer or logits (N, S, h, w) float"


class OnnxTeacher:
    """An onnxruntime session with the names of its classes. InputError: its input or output is of another kind."""

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
            raise InputError(f"the ONNX file has {given}; expected {_EXPECTED}; export it so")
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
            # The last group of a fixed size is filled up by repeating its last frame.
            places = np.minimum(np.arange(start, start + batch), frames - 1)
            outputs.append(self._session.run(None, {self._input.name: frames_T3HW[places]})[0])
        return np.concatenate(outputs)[:frames]

    def _pixels(self, logits_Shw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        logits_1Shw = torch.from_numpy(logits_Shw)[None].float()
        logits_SHW = F.interpolate(logits_1Shw, size, mode="bilinear", align_corners=False)[0]
        probability_HW, likeliest_HW = logits_SHW.softmax(dim=0).max(dim=0)
        return pixel_map(likeliest_HW.numpy(), probability_HW.numpy(), self._score_threshold, self._unsure_from)


def load(
    file: Path, device: torch.device, score_threshold: float | None = None, unsure_from: float | None = None
) -> OnnxTeacher:
    """The teacher in an ONNX file, as this module's docstring asks for it.

    A GPU is used where this onnxruntime can; else a warning says that the CPU is.
    InputError: onnxruntime is missing, the file cannot be read, or is not as asked for.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f"the teacher onnx:{file} needs onnxruntime; pip install onnxruntime") from error
    if not file.is_file():
        raise InputError(f"teacher file {file} does not exist; expected an ONNX file; correct the path")
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(file, settings, providers=_providers(onnxruntime, device))
    except Exception as error:  # each way to be broken has an exception class of its own, without a common base
        raise InputError(
            f"teacher file {file} cannot be read by onnxruntime ({one_line(error)}); expected an ONNX "
            "file; export it again"
        ) from error
    try:
        classes = tuple(json.loads(session.get_modelmeta().custom_metadata_map["classes"]))
    except (KeyError, ValueError, TypeError):
        raise InputError(
            f"teacher file {file} does not name its classes; expected the metadata key classes, a JSON list with the "
            "background first; add it by onnx.helper.set_model_props(model, {'classes': json.dumps(names)})"
        ) from None
    return OnnxTeacher(session, classes, score_threshold, unsure_from)


def _is_segmenter(entry: Any, result: Any) -> bool:
    # A result whose shape the file does not tell has no dimensions, or named ones.
    takes_frames = entry.type in ("tensor(uint8)", "tensor(float)") and len(entry.shape) == 4 and entry.shape[1] == 3
    kinds = {3: ("tensor(int", "tensor(uint"), 4: ("tensor(float", "tensor(double")}
    return takes_frames and result.type.startswith(kinds.get(len(result.shape), ()))


def _providers(onnxruntime: Any, device: torch.device) -> list[Any]:
    if device.type != "cuda":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        return [("CUDAExecutionProvider", {"device_id": device.index or 0}), "CPUExecutionProvider"]
    warnings.warn("this onnxruntime has no CUDA: the teacher runs on the CPU; install onnxruntime-gpu", stacklevel=2)
    return ["CPUExecutionProvider"]


def _ids(ids_Nhw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if ids_Nhw.min() < 0 or ids_Nhw.max() > NO_LABEL:
        raise RuntimeError(
            f"the ONNX file put out class ids from {ids_Nhw.min()} to {ids_Nhw.max()}; expected 0 to {NO_LABEL}"
        )
    ids_Nhw = ids_Nhw.astype(np.uint8)
    if ids_Nhw.shape[1:] == size:
        return ids_Nhw
    return F.interpolate(torch.from_numpy(ids_Nhw)[:, None], size, mode="nearest")[:, 0].numpy()
