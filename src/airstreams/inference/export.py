"""Write a trained model to one file for programs without this package: clips in, probabilities out.

NAME.onnx is for onnxruntime and other readers of ONNX, NAME.pt2 for torch (`torch.export.load`). Both hold the weights.
Both also hold, as JSON under `ABOUT`, the class names and how a clip is sampled and cropped.
"""

import io
import json
import logging
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from airstreams.errors import InputError, describe
from airstreams.files import replacing, require_writable
from airstreams.models.airstreams import answer_of
from airstreams.runs import saved_model as saved_models
from airstreams.runs.saved_model import SavedModel, preprocessing

ABOUT = "airstreams.json"
# How far probabilities of the file may be from the model's, as a share of their spread over different clips. Runtimes
# add up in another order, which gives about 1e-6. Swapped colour channels give 0.04, even in a model that has learnt
# little.
TOLERANCE = 0.002
ROUNDING = 1e-7  # of a probability; the least that is allowed

Scores = Callable[[Tensor], Tensor]
Writer = Callable[[SavedModel, ExportedProgram, Path, str], Scores | None]


class ClipScorer(nn.Module):
    """The exported module: uint8 RGB frames (B, T, S, S, 3) to the answer's probabilities (B, K), for any B."""

    def __init__(self, saved: SavedModel) -> None:
        super().__init__()
        self.model = saved.model
        # The other heads only help training.
        self.heads = saved.config.answer_heads
        self.model.keep_heads(self.heads)
        self.multi_label = saved.multi_label
        self.temperature = saved.temperature
        self.requires_grad_(False)

    def forward(self, frames: Tensor) -> Tensor:
        """Score clips as `airstreams predict` scores the views of a video."""
        logits = self.model(frames.permute(0, 4, 1, 2, 3), self.heads).logits
        return answer_of(logits, self.multi_label, self.temperature)


def export(
    run: Path | str,
    out: Path | str,
    on_step: Callable[[str], None] = lambda step: None,
    trust: Collection[str] = (),
    calibrated: bool = False,
) -> float | None:
    """Write a run's model to a file. It is read back and must give the model's answers, else no file is left.

    Args:
        run: the folder that training wrote.
        out: NAME.onnx or NAME.pt2. An existing file is replaced.
        on_step: called before each step of the work with what it does.
        trust: names of modules that may be imported for custom streams.
        calibrated: divide the answer's logits by the temperature that training fitted.

    Returns:
        The largest difference of a probability from the model's, on generated clips. None: nothing was compared,
        because onnxruntime is not installed.

    Raises:
        InputError: no run, another suffix, a package is missing, or the run has no temperature.
        RuntimeError: `torch.export` or ONNX does not support a stream, or the answers differ from the model's.
    """
    run, out = Path(run), Path(out)
    write = _writer(out)
    require_writable(out.parent)
    on_step(f"reading {run}")
    saved = saved_models.load(run, trust=trust, calibrated=calibrated)
    scorer = ClipScorer(saved).eval()
    clips = _test_clips(saved)
    expected_BK = scorer(clips)
    if not torch.equal(scorer(clips), expected_BK):
        raise RuntimeError(f"{run}: its model is random, so a file cannot be compared with it. Remove the randomness.")
    with _quiet_torch():
        on_step("capturing the model as a graph")
        program = _supported(saved, "torch.export", lambda: _program(scorer, clips[:2]))
        with replacing(out) as temporary:
            on_step(f"writing {out}")
            scores = write(saved, program, temporary, json.dumps(_about(saved), indent=2))
            if scores is None:
                return None
            on_step("verifying the file's probabilities on generated clips")
            return _largest_difference(out, scores(clips), expected_BK)


def _writer(out: Path) -> Writer:
    """The function that writes a file of this suffix. InputError: another suffix, or a package is missing."""
    writers: dict[str, Writer] = {".onnx": _write_onnx, ".pt2": _write_program}
    suffix = out.suffix.lower()
    if suffix not in writers or out.is_dir():
        raise InputError(f"--out {out}: expected a file. Give NAME.onnx, or NAME.pt2 for torch.export.")
    if suffix == ".onnx":
        for package in ("onnx", "onnxscript"):  # torch would miss them only at the end
            if find_spec(package) is None:
                raise InputError(f"--out {out}: {package} is missing. pip install onnx onnxscript, or give NAME.pt2.")
    return writers[suffix]


def _largest_difference(out: Path, found_BK: Tensor, expected_BK: Tensor) -> float:
    """How far the file's probabilities are from the model's. RuntimeError: too far."""
    difference = float((found_BK - expected_BK).abs().max())
    spread = float((expected_BK.amax(0) - expected_BK.amin(0)).max())
    allowed = max(TOLERANCE * spread, ROUNDING)
    if not difference <= allowed:
        raise RuntimeError(
            f"{out}: its probabilities differ from the model's by {difference:.2g}; {allowed:.2g} is allowed. No file "
            "was written. Try the other format."
        )
    return difference


def _test_clips(saved: SavedModel) -> Tensor:
    """Generated clips (5, T, S, S, 3), uint8: noise, a moving bar on grey in red, green or blue, and black.

    Mirrored, reversed or with swapped channels they look different, so an error of that kind in a file is noticed.
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
                node.meta.pop("stack_trace", None)  # it names folders of this machine
    return program


def _supported(saved: SavedModel, exporter: str, work: Callable[[], Any]) -> Any:
    """The result of `work`. RuntimeError, which names the model's custom streams, for any error in it."""
    try:
        return work()
    except Exception as error:
        streams = ", ".join(saved.config.model.representations)
        what = f"the stream {streams}" if streams else "this model"
        raise RuntimeError(
            f"{exporter} does not support {what} ({describe(error)[:200]}). Try the other format."
        ) from error


def _about(saved: SavedModel) -> dict[str, Any]:
    """What a program needs to know beside the model."""
    return {
        "classes": list(saved.classes),
        "multi_label": saved.multi_label,
        "training_frame_rate": saved.frame_rate,
        "temperature": saved.temperature,
        "torch": torch.__version__,
        "preprocessing": preprocessing(saved.config)
        | {
            "input": "frames: RGB, uint8, batch x frames x height x width x 3",
            "reduced_to": saved.config.decoded_side,
            "steps": [
                "where deinterlace is auto, deinterlace interlaced video, one frame of each frame, by FFmpeg's "
                "bwdif=mode=send_frame:deint=interlaced",
                "reduce frames whose shorter side is larger than reduced_to to that side, by area",
                "take views clips. Their first frames are numpy.linspace(0, last, views) rounded down, where last is "
                "the latest first frame at which a clip fits; for one view, last / 2",
                "the frames of a clip are stride apart or, where rate is not null, the ones nearest to 1 / rate s "
                "apart; a clip that runs past the end repeats the last frame",
                "take crops squares, as large as fit, evenly spaced along the longer side from end to end; for one "
                "crop, the centre",
                "resize each square to height x width, bilinear with anti-aliasing, to uint8",
                "the answer for a video is the mean of the probabilities over views and crops",
            ],
        },
    }


def _write_program(saved: SavedModel, program: ExportedProgram, path: Path, about: str) -> Scores:
    """Write a .pt2 file; returns the scores of its program, read back."""
    written = io.BytesIO()  # torch repeats a file's name in its entries, and here the name is a temporary one
    torch.export.save(program, written, extra_files={ABOUT: about})
    path.write_bytes(written.getvalue())
    with path.open("rb") as file:
        return torch.export.load(file).module()


def _write_onnx(saved: SavedModel, program: ExportedProgram, path: Path, about: str) -> Scores | None:
    """Write an ONNX file; returns its scores by onnxruntime, or None without onnxruntime."""

    def translate() -> Any:
        names = ["frames"], ["probabilities"]
        return torch.onnx.export(program, input_names=names[0], output_names=names[1], dynamo=True, verbose=False)

    translated = _supported(saved, "ONNX", translate)
    translated.model.metadata_props[ABOUT] = about
    translated.save(path, external_data=False)
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda clips: torch.from_numpy(session.run(None, {"frames": clips.numpy()})[0])


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """Without torch's log lines and warnings, which are about its internals and a missing torchvision."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
