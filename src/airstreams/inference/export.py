"""A trained model as one file for programs that lack this package: clips in, probabilities out.

NAME.onnx is for onnxruntime and what else reads ONNX, NAME.pt2 for torch (`torch.export.load`). Both hold the weights
and, as JSON under `ABOUT`, what their use takes: class names, how a clip is sampled and cropped.
"""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from airstreams.errors import InputError, describe
from airstreams.files import replacing, require_writable
from airstreams.runs import saved_model as saved_models
from airstreams.runs.saved_model import SavedModel, preprocessing

ABOUT = "airstreams.json"
# Runtimes add up in other orders, by which answers differ by some 1e-6 of what those to different clips differ by. Red
# taken for blue is 0.04 of that in models that have learnt nothing or little.
TOLERANCE = 0.002
ROUNDING = 1e-7  # of a probability

Scores = Callable[[Tensor], Tensor]


class ClipScorer(nn.Module):
    """What is exported: uint8 RGB frames (B, T, S, S, 3) to the answer's probabilities (B, K), of any B."""

    def __init__(self, saved: SavedModel) -> None:
        super().__init__()
        self.model = saved.model
        self.model.late = nn.ModuleDict({self.model.answer: self.model.late[self.model.answer]})  # others only train
        self.multi_label = saved.multi_label
        self.requires_grad_(False)

    def forward(self, frames: Tensor) -> Tensor:
        """Score clips as `airstreams predict` scores each of a video's views."""
        logits_BK = self.model(frames.permute(0, 4, 1, 2, 3)).logits[self.model.answer].float()
        return logits_BK.sigmoid() if self.multi_label else logits_BK.softmax(dim=1)


def export(run: Path, out: Path) -> float | None:
    """Write a run's model to a file, once it has been read back and has given the model's answers.

    Args:
        run: the folder that training wrote.
        out: NAME.onnx or NAME.pt2; what is there is replaced.

    Returns:
        The largest difference of a probability from the model's, on made-up clips; None: onnxruntime is not installed,
        and nothing was compared.

    Raises:
        InputError: no run, another suffix, or a package is missing.
        RuntimeError: a stream that `torch.export` or ONNX cannot follow, or other answers than the model's.
    """
    writers = {".onnx": _write_onnx, ".pt2": _write_program}
    suffix = out.suffix.lower()
    if suffix not in writers or out.is_dir():
        raise InputError(f"--out {out}: expected a file NAME.onnx, or NAME.pt2 for torch.export; give one of them")
    if suffix == ".onnx":
        for package in ("onnx", "onnxscript"):  # which torch needs for it, and would miss in the end only
            if find_spec(package) is None:
                raise InputError(f"--out {out}: needs {package}; pip install onnx onnxscript, or give NAME.pt2")
    require_writable(out.parent)
    saved = saved_models.load(run)
    scorer = ClipScorer(saved).eval()
    clips = _made_up_clips(saved)
    expected_BK = scorer(clips)
    if not torch.equal(scorer(clips), expected_BK):
        raise RuntimeError(f"{run}: its model answers differently each time, so a file cannot be compared with it")
    with _without_torchs_remarks():
        program = _followed(saved, "torch.export", lambda: _program(scorer, clips[:2]))
        with replacing(out) as temporary:
            scores = writers[suffix](saved, program, temporary, json.dumps(_about(saved), indent=2))
            if scores is None:
                return None
            found_BK = scores(clips)
            difference = float((found_BK - expected_BK).abs().max())
            allowed = max(TOLERANCE * float((expected_BK.amax(0) - expected_BK.amin(0)).max()), ROUNDING)
            if not difference <= allowed:
                raise RuntimeError(
                    f"{out}: its probabilities differ by {difference:.2g} from the model's, expected at most "
                    f"{allowed:.2g}; nothing was written; try the other format"
                )
    return difference


def _made_up_clips(saved: SavedModel) -> Tensor:
    """Clips that no two halves of look alike, nor colours, nor frames: a bar that moves, in turn red to blue, on noise,
    grey and black.
    """
    clip = saved.config.clip
    generator = torch.Generator().manual_seed(0)
    shape = (5, clip.frames, clip.size, clip.size, 3)
    frames_BTHW3 = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    frames_BTHW3[1:4] = 128
    frames_BTHW3[4] = 0
    bar = clip.size // 8
    for number in range(3):
        for t in range(clip.frames):
            left = (t * bar) // 2 % (clip.size - bar)
            frames_BTHW3[number + 1, t, number * bar : clip.size // 2, left : left + bar, number] = 255
    return frames_BTHW3


def _program(scorer: ClipScorer, clips: Tensor) -> ExportedProgram:
    program = torch.export.export(scorer, (clips,), dynamic_shapes={"frames": {0: Dim.DYNAMIC}})
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)  # names folders of this machine
    return program


def _followed(saved: SavedModel, by: str, work: Callable[[], Any]) -> Any:
    """What the work gives. RuntimeError, which names the model's further streams, for whatever goes wrong in it."""
    try:
        return work()
    except Exception as error:
        streams = ", ".join(saved.config.model.representations)
        whose = f"the stream {streams}" if streams else "this model"
        raise RuntimeError(f"{by} cannot follow {whose} ({describe(error)[:200]}); try the other format") from error


def _about(saved: SavedModel) -> dict[str, Any]:
    """What a program has to know besides."""
    return {
        "classes": list(saved.classes),
        "multi_label": saved.multi_label,
        "training_frame_rate": saved.frame_rate,
        "torch": torch.__version__,
        "preprocessing": preprocessing(saved.config)
        | {
            "input": "frames: RGB, uint8, batch x frames x height x width x 3",
            "reduced_to": saved.config.decoded_side,
            "steps": [
                "reduce the video's frames to the shorter side reduced_to, by area, if they are larger",
                "views clips: their first frames are numpy.linspace(0, last, views) rounded down, where a clip from "
                "last still fits; of one view, half of last",
                "a clip's frames lie stride apart or, where rate is not null, nearest to 1/rate s apart; one that runs "
                "past the end repeats the last frame",
                "crops squares, as large as fit, evenly spaced along the longer side, end to end; of one, its centre",
                "resize each to height x width, bilinear with anti-aliasing, to uint8",
                "a video's answer is the mean of the probabilities over views and crops",
            ],
        },
    }


def _write_program(saved: SavedModel, program: ExportedProgram, path: Path, about: str) -> Scores:
    """Write the file; returns what its own program, read back, makes of clips."""
    written = io.BytesIO()  # in a file's own entries torch would repeat its name, which is a temporary one
    torch.export.save(program, written, extra_files={ABOUT: about})
    path.write_bytes(written.getvalue())
    with path.open("rb") as file:
        return torch.export.load(file).module()


def _write_onnx(saved: SavedModel, program: ExportedProgram, path: Path, about: str) -> Scores | None:
    """Write the file; returns what onnxruntime makes of clips by it, or None without onnxruntime."""

    def translate() -> Any:
        names = ["frames"], ["probabilities"]
        return torch.onnx.export(program, input_names=names[0], output_names=names[1], dynamo=True, verbose=False)

    translated = _followed(saved, "ONNX", translate)
    translated.model.metadata_props[ABOUT] = about
    translated.save(path, external_data=False)
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda clips: torch.from_numpy(session.run(None, {"frames": clips.numpy()})[0])


@contextmanager
def _without_torchs_remarks() -> Iterator[None]:
    """On its own insides and on torchvision's absence, which matter to nobody here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
