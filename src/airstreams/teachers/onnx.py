"""An ONNX file as a teacher, run by onnxruntime.

A YAML file beside it may say what the network takes and gives: `onnx_description.py` lists its keys. Without one, the
network makes label maps. It has one input and one output, with any names:

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
from airstreams.teachers.drawing import SCORE_THRESHOLD, pixel_map
from airstreams.teachers.onnx_description import Description, description_of
from airstreams.teachers.target_spec import reduced

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
        (outputs,) = _run(self._session, self._prepare(frames_THW3))
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

    def _pixels(self, logits_Shw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        logits_1Shw = torch.from_numpy(logits_Shw)[None].float()
        logits_SHW = F.interpolate(logits_1Shw, size, mode="bilinear", align_corners=False)[0]
        probability_HW, likeliest_HW = logits_SHW.softmax(dim=0).max(dim=0)
        return pixel_map(likeliest_HW.numpy(), probability_HW.numpy(), self._score_threshold, self._unsure_from)


class DescribedTeacher:
    """An onnxruntime session as a teacher, with a description. InputError: the two do not fit."""

    def __init__(
        self,
        session: Any,
        description: Description,
        score_threshold: float | None = None,
        unsure_from: float | None = None,
    ) -> None:
        self.target = description.target
        self._session, self._input, self._output = session, description.input, description.output
        self._score_threshold, self._unsure_from = score_threshold, unsure_from
        outputs = [value.name for value in session.get_outputs()]
        name = description.output.name or (outputs[0] if len(outputs) == 1 else None)
        wanted = [name, *([description.output.foreground] if description.output.foreground else [])]
        if not set(wanted) <= set(outputs):
            raise InputError(
                f"The ONNX file has the outputs {', '.join(outputs)}, and its YAML file names "
                f"{', '.join(map(str, wanted))}. Correct output.name or output.foreground."
            )
        self._names = [str(name) for name in wanted]
        entry = session.get_inputs()[0]
        self._dimensions = 5 if self.target.kind == "clip" and len(entry.shape) == 5 else 4
        # RGB is the first dimension of 3 after the batch.
        places = [place for place, size in enumerate(entry.shape) if place and size == 3]
        if len(session.get_inputs()) != 1 or len(entry.shape) != self._dimensions or not places:
            raise InputError(
                f"The ONNX file takes {', '.join('x'.join(map(str, one.shape)) for one in session.get_inputs())}. "
                "Export it with one input of RGB frames, (N, 3, H, W) or (N, H, W, 3), or of clips with one more size."
            )
        self._rgb = places[0]

    def __call__(self, frames_THW3: np.ndarray) -> np.ndarray:
        """What `TargetSpec` says of the kind, of uint8 RGB frames (T, H, W, 3) or clips (B, N, H, W, 3)."""
        answers = [
            torch.from_numpy(answer).float() for answer in _run(self._session, self._prepare(frames_THW3), self._names)
        ]
        if self.target.kind == "clip":
            return answers[0].flatten(1).numpy()
        if self.target.kind == "points":
            return self._points(answers[0], frames_THW3.shape[1:3])
        activated = [self._activated(answer) for answer in answers]
        if self.target.kind == "classes":
            return self._classes(activated, frames_THW3.shape[1:3])
        maps = activated[0] if len(activated) == 1 else activated[0] * activated[1]
        return (reduced(maps) if self.target.kind == "maps" else maps).numpy()

    def _prepare(self, frames: np.ndarray) -> np.ndarray:
        clips = frames.shape[:-3]
        frames_N3HW = torch.from_numpy(frames.reshape(-1, *frames.shape[-3:])).permute(0, 3, 1, 2).float() / 255
        if self._input.size is not None and self._input.size != frames.shape[-3:-1]:
            frames_N3HW = F.interpolate(frames_N3HW, self._input.size, mode="bilinear", antialias=True)
        mean, deviation = (torch.tensor(v)[:, None, None] for v in (self._input.mean, self._input.deviation))
        scaled = (frames_N3HW - mean) / deviation
        if self._dimensions == 5:
            scaled = scaled.unflatten(0, clips)  # (B, N, 3, H, W)
            return np.ascontiguousarray(scaled.movedim(2, self._rgb).numpy())
        return np.ascontiguousarray(scaled.movedim(1, self._rgb).numpy())

    def _activated(self, answer: torch.Tensor) -> torch.Tensor:
        """An output as (N, C, h, w) after its activation."""
        first = answer.movedim(-1, 1) if self._output.channels == "last" else answer
        if self._output.activation == "sigmoid" or (self._output.activation == "softmax" and first.shape[1] == 1):
            return first.sigmoid()
        return first.softmax(dim=1) if self._output.activation == "softmax" else first

    def _classes(self, activated: list[torch.Tensor], size: tuple[int, ...]) -> np.ndarray:
        resized = [F.interpolate(answer, size, mode="bilinear", align_corners=False) for answer in activated]
        threshold = self._score_threshold
        if len(resized) == 2:
            likeliest_THW, probability_THW = 1 + resized[0].argmax(dim=1), resized[1][:, 0]
            threshold = SCORE_THRESHOLD if threshold is None else threshold
        else:
            scores = resized[0] if self._output.activation != "none" else resized[0].softmax(dim=1)
            probability_THW, likeliest_THW = scores.max(dim=1)
        return pixel_map(likeliest_THW.numpy(), probability_THW.numpy(), threshold, self._unsure_from)

    def _points(self, points: torch.Tensor, size: tuple[int, ...]) -> np.ndarray:
        """Points (N, P, 3) or (N, M, P, 3) as (N, M, P, 3)."""
        points_TMP3 = points[:, None] if points.ndim == 3 else points
        if self._output.points == "px":
            height, width = self._input.size or size
            points_TMP3 = points_TMP3 / torch.tensor([width, height, 1.0])
        return points_TMP3.numpy()


def load(
    file: Path, device: torch.device, score_threshold: float | None = None, unsure_from: float | None = None
) -> OnnxTeacher | DescribedTeacher:
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
    settings.log_severity_level = 3  # errors: its warnings are for the file's author, hundreds for some files
    description = description_of(file)
    try:
        session = onnxruntime.InferenceSession(file, settings, providers=_providers(onnxruntime, device))
    except Exception as error:  # onnxruntime's exception classes have no common base
        raise InputError(
            f"onnxruntime cannot read the teacher file {file} ({one_line(error)}). Export it again as ONNX."
        ) from error
    if description is not None:
        return DescribedTeacher(session, description, score_threshold, unsure_from)
    try:
        classes = tuple(json.loads(session.get_modelmeta().custom_metadata_map["classes"]))
    except (KeyError, ValueError, TypeError):
        raise InputError(
            f"The teacher file {file} does not name its classes. Add the metadata key classes, a JSON list with the "
            "background first: onnx.helper.set_model_props(model, {'classes': json.dumps(names)}). Or describe it in "
            f"{file.with_suffix('.yaml').name}."
        ) from None
    return OnnxTeacher(session, classes, score_threshold, unsure_from)


def _run(session: Any, frames: np.ndarray, names: list[str] | None = None) -> list[np.ndarray]:
    """The outputs for all frames, in batches of the size that the file fixes, if it fixes one."""
    entry = session.get_inputs()[0]
    count = len(frames)
    batch = entry.shape[0] if isinstance(entry.shape[0], int) else count
    parts = []
    for start in range(0, count, batch):
        # A last batch of fixed size is filled up with copies of the last frame.
        indices = np.minimum(np.arange(start, start + batch), count - 1)
        parts.append(session.run(names, {entry.name: frames[indices]}))
    return [np.concatenate(outputs)[:count] for outputs in zip(*parts, strict=True)]


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
