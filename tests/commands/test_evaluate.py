"""`airstreams evaluate`: printed metrics, and runs without a model."""

import json

from tests.calls import complaint, with_json


def test_metrics_of_every_head_and_of_the_segmentation_are_printed(call, run, synthetic):
    data = (synthetic / "videos", "--labels", synthetic / "labels")
    figures = with_json(call("evaluate", run, *data, "--json"))
    assert {"videos", "left_out", "top1", "top5", "mean_per_class", "map", "streams", "segmentation"} <= set(figures)
    assert figures["videos"] == 8
    assert figures["map"] is None
    assert figures["streams"]["semantic"]["top1"] is None
    assert figures["streams"]["merged"]["top1"] == figures["top1"]
    assert {"pixel_accuracy", "miou"} <= set(figures["segmentation"])
    assert (run / "evaluation" / "test" / "representations.png").stat().st_size > 10_000
    status, out, _ = call("evaluate", run, *data, "--split", "train")
    assert status == 0
    figures = json.loads((run / "evaluation" / "train" / "figures.json").read_text())
    assert figures["videos"] == 24
    for words in ("merged", "semantic", "pixel_accuracy", "24 videos", f"{figures['top1']:.1%}"):
        assert words in out


def test_a_run_without_a_model_is_refused(call, run, synthetic):
    weights = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").unlink()
    assert "--resume" not in complaint(call("evaluate", run, synthetic / "videos"), run, "model.safetensors")
    (run / "model.json").unlink()
    complaint(call("evaluate", run, synthetic / "videos"), run, "--resume")
    (run / "model.safetensors").write_bytes(weights)
    assert "--resume" not in complaint(call("evaluate", run, synthetic / "videos"), run, "model.json")
