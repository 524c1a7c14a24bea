"""The log of a run: metrics.jsonl and TensorBoard."""

import json
import shutil

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from airstreams.errors import InputError
from airstreams.runs.metrics_log import Log, _validation_scalars, record_of
from tests.training.runs import entries, epochs


def test_the_log_has_losses_speed_and_waiting(trained):
    found = epochs(trained)
    assert [entry["epoch"] for entry in found] == [1, 2]
    assert [entry["step"] for entry in found] == [6, 12]
    for entry in found:
        losses = entry["train"]["losses"]
        assert set(losses) == {"rgb", "flow", "merged", "interm", "total"}  # semantic has weight 0
        weighted = losses["rgb"] + 0.3 * losses["flow"] + losses["merged"] + losses["interm"]
        assert losses["total"] == pytest.approx(weighted, rel=1e-4)
        assert entry["train"]["clips"] == 24
        assert entry["train"]["clips_per_second"] > 0
        assert 0 <= entry["train"]["waiting"] <= 1


def test_tensorboard_has_the_metrics_of_the_log(trained):
    """An epoch without a line of its own, because it has fewer than ten steps, shows its means."""
    board = EventAccumulator(str(trained / "tensorboard")).Reload()
    first, line, _ = entries(trained)
    said = {first["step"]: first["train"], line["step"]: line}
    for name in ("loss/merged", "gradient_norm/rgb.early", "speed/clips_per_second"):
        shown = {event.step: event.value for event in board.Scalars(name)}
        kind, _, part = name.partition("/")
        key = {"loss": "losses", "gradient_norm": "gradient_norms"}.get(kind)
        expected = {step: metrics[key][part] if key else metrics[part] for step, metrics in said.items()}
        assert shown == pytest.approx(expected, rel=1e-5)


def test_tensorboard_shows_each_loss_once(trained):
    tags = EventAccumulator(str(trained / "tensorboard")).Reload().Tags()["scalars"]
    assert {tag for tag in tags if "loss" in tag} == {f"loss/{name}" for name in epochs(trained)[0]["train"]["losses"]}
    assert {tag.partition("/")[0] for tag in tags} == {"loss", "gradient_norm", "speed", "optimizer"}


def test_validation_metrics_have_groups_of_their_own():
    streams = {"rgb": {"top1": 0.25, "map": None}, "merged": {"top1": 0.5, "map": None}}
    val = {"videos": 8, "top1": 0.5, "map": None, "log_loss": 1.5, "seconds": 2.0, "streams": streams}
    assert _validation_scalars(val) == {
        "validation/top1": 0.5,
        "validation/log_loss": 1.5,
        "validation_top1_by_stream/rgb": 0.25,
        "validation_top1_by_stream/merged": 0.5,
    }


@pytest.mark.parametrize("lost", [b"\0" * 40 + b"\n", b'{"epoch": 2, "st', b""], ids=["zeros", "cut", "empty"])
def test_lost_lines_of_the_log_are_skipped(trained, tmp_path, lost):
    run = shutil.copytree(trained, tmp_path / "run")
    whole = epochs(run)
    first, *_ = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(first + lost)
    assert record_of(run, 1).as_dict() == whole[0]
    with pytest.raises(InputError, match=r"epoch 2.*metrics\.jsonl"):
        record_of(run, 2)
    with Log(run, epoch=1, step=6, is_main_process=True) as log:
        log.write(whole[1])
    assert epochs(run) == whole


def test_a_resumed_log_drops_the_lines_after_its_state(tmp_path):
    lines = [
        {"epoch": 1, "step": 4},
        {"epoch": 1, "step": 6, "train": {}},
        {"epoch": 2, "step": 8},
        {"epoch": 2, "step": 10},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for epoch, step, kept in ((1, 8, 3), (1, 6, 2), (0, 6, 1)):
        with Log(tmp_path, epoch, step, is_main_process=True):
            pass
        assert entries(tmp_path) == lines[:kept]
