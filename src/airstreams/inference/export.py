"""A trained model as one file for programs that lack this package: clips in, probabilities out.

NAME.onnx is for onnxruntime and what else reads ONNX, NAME.pt2 for torch (`torch.export.load`). Both hold the weights
and, as JSON under `ABOUT`, what their use takes: class names, how a clip is sampled and cropped.
"""

import io
import json
import logging
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from airstreams.errors import InputError, named
from airstreams.files import replacing, require_writable
from airstreams.models import saved as saved_models
from airstreams.models.saved import SavedModel, preprocessing

ABOUT = "airstreams.json"
TOLERANCE = 1e-4  # of a probability: runtimes add up in other orders

Scores = Callable[[Tensor], Tensor]


class ClipScorer(nn.Module):
    """What is exported: uint8 RGB frames (B, T, S, S, 3) to the answer's probabilities (B, K), of any B."""

    def __init__(self, saved: SavedModel) -> None:
        super().__init__()
        self.model = saved.model
        self.multi_label = saved.multi_label

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
        The largest difference of a probability from the model's, on random clips; None: onnxruntime is not installed,
        and nothing was compared.

    Raises:
        InputError: no run, another suffix, or a package is missing.
        RuntimeError: a further stream that `torch.export` cannot follow, or other answers than the model's.
    """
    writers = {".onnx": _write_onnx, ".pt2": _write_program}
    if out.suffix not in writers:
        raise InputError(f"--out {out}: expected NAME.onnx, or NAME.pt2 for torch.export; give one of them")
    if out.suffix == ".onnx":
        for package in ("onnx", "onnxscript"):  # which torch needs for it, and would miss in the end only
            if find_spec(package) is None:
                raise InputError(f"--out {out}: needs {package}; pip install onnx onnxscript, or give NAME.pt2")
    require_writable(out.parent)
    saved = saved_models.load(run)
    scorer = ClipScorer(saved).eval()
    try:
        program = torch.export.export(scorer, (_noise(saved, 2),), dynamic_shapes={"frames": {0: Dim.DYNAMIC}})
    except Exception as error:
        if not saved.config.model.representations:
            raise
        streams = ", ".join(saved.config.model.representations)
        raise RuntimeError(
            f"{run}: torch.export cannot follow the model with the stream {streams} ({named(error)[:200]}); write its "
            "forward in tensor operations alone"
        ) from error
    for node in program.graph_module.graph.nodes:
        node.meta.pop("stack_trace", None)  # names folders of this machine
    about = {
        "classes": list(saved.classes),
        "multi_label": saved.multi_label,
        "frame_rate": saved.frame_rate,
        "preprocessing": preprocessing(saved.config)
        | {"input": "frames: RGB, uint8, batch x frames x height x width x 3"},
    }
    clips = _noise(saved, 3)
    with torch.no_grad():
        expected_BK = scorer(clips)
    with replacing(out) as temporary:
        scores = writers[out.suffix](program, temporary, json.dumps(about, indent=2))
        if scores is None:
            return None
        difference = float((scores(clips) - expected_BK).abs().max())
        if not difference <= TOLERANCE:
            raise RuntimeError(
                f"{out}: its probabilities differ by {difference:.2g} from the model's, expected at most {TOLERANCE}; "
                "nothing was written; try the other format"
            )
    return difference


def _noise(saved: SavedModel, clips: int) -> Tensor:
    clip = saved.config.clip
    generator = torch.Generator().manual_seed(0)
    shape = (clips, clip.frames, clip.size, clip.size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def _write_program(program: ExportedProgram, path: Path, about: str) -> Scores:
    """Write the file; returns what its own program, read back, makes of clips."""
    written = io.BytesIO()  # in a file's own entries torch would repeat its name, which is a temporary one
    torch.export.save(program, written, extra_files={ABOUT: about})
    path.write_bytes(written.getvalue())
    read_back = torch.export.load(path).module()
    return lambda clips: read_back(clips).detach()


def _write_onnx(program: ExportedProgram, path: Path, about: str) -> Scores | None:
    """Write the file; returns what onnxruntime makes of clips by it, or None without onnxruntime."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # of torchvision's absence, which matters to nobody here
    translated = torch.onnx.export(
        program, input_names=["frames"], output_names=["probabilities"], dynamo=True, verbose=False
    )
    assert translated is not None
    translated.model.metadata_props[ABOUT] = about
    translated.save(path, external_data=False)
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda clips: torch.from_numpy(session.run(None, {"frames": clips.numpy()})[0])
