"""How errors read, and that they survive the way between two processes."""

import pickle
from pathlib import Path

import pytest

from airstreams.errors import VideoError, message_of, one_line


def test_a_video_error_names_its_file_and_keeps_its_reason():
    path = Path("videos/a.mp4")
    for error in (VideoError("empty file", path), VideoError("empty file", str(path))):
        assert (str(error), error.reason, error.path) == (f"{path}: empty file", "empty file", path)
    alone = VideoError("empty file")
    assert (str(alone), alone.reason, alone.path) == ("empty file", "empty file", None)


def test_a_video_error_survives_pickling():
    for error in (VideoError("empty file"), VideoError("empty file", "a.mp4")):
        copy = pickle.loads(pickle.dumps(error))
        assert (str(copy), copy.reason, copy.path) == (str(error), error.reason, error.path)


def test_text_of_other_programs_stays_on_one_line():
    assert one_line("two\nlines \x1b[31mred") == "two lines \\x1b[31mred"


TORCH_SAYS = (
    "The operator 'aten::_fft_r2c' is not currently implemented for the MPS device. If you want this op to be "
    "considered for addition please comment on https://github.com/pytorch/pytorch/issues/141287 and mention use-case, "
    "that resulted in missing op as well as commit hash. As a temporary fix, you can set the environment variable "
    "`PYTORCH_ENABLE_MPS_FALLBACK=1` to use the CPU as a fallback for this op."
)
FLOAT64 = (
    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. Please use float32 "
    "instead."
)


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (NotImplementedError(TORCH_SAYS), "aten::_fft_r2c"),
        (RuntimeError(f"The teacher t failed: NotImplementedError: {TORCH_SAYS}"), "aten::_fft_r2c"),
        (TypeError(FLOAT64), "float64"),
        (RuntimeError("Conv3D is not supported on MPS"), "Conv3D"),
    ],
)
def test_what_torch_cannot_do_on_an_apple_gpu_is_named_with_the_way_out(error, named):
    message = message_of(error)
    assert named in message
    assert "--device cpu" in message
    assert "github.com" not in message
    assert message_of(RuntimeError(message)) == message  # a worker's error passes through here twice
