"""A saved model is the model that was saved, whole at every moment; anything else is an error of one line."""

import json
import resource

import pytest
import torch

from airstreams.config import ClipConfig, Config, EvaluationConfig, ModelConfig
from airstreams.errors import InputError
from airstreams.models.airstreams import build
from airstreams.models.saved import SavedModel, load, save

CLASSES = ("brush hair", "catch", "clap")
CLIP = torch.rand(2, 3, 2, 64, 64, generator=torch.Generator().manual_seed(0))


def some_model(seed=0):
    torch.manual_seed(seed)
    config = Config(
        seed=7,
        clip=ClipConfig(frames=2, rate=12.5, size=64),
        model=ModelConfig(width=0.125, segmenter_width=0.125, flow_iterations=2),
        evaluation=EvaluationConfig(views=5, crops=3),
    )
    model = build(config.model, len(CLASSES), 2)
    with torch.no_grad():
        model(CLIP, list(model.late))  # training mode: the norms' statistics leave their start
    return SavedModel(config, CLASSES, ("background", "person"), multi_label=True, model=model.eval())


def scores(saved):
    with torch.no_grad():
        return saved.model(CLIP, list(saved.model.late)).logits


@pytest.fixture
def run(tmp_path):
    save(some_model(), tmp_path / "run")
    return tmp_path / "run"


def complaint(run):
    with pytest.raises(InputError) as raised:
        load(run)
    message = str(raised.value)
    assert "\n" not in message
    assert str(run) in message
    return message


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_loaded_model_gives_the_saved_ones_scores_bit_for_bit(run):
    saved, loaded = some_model(), load(run)
    for name, logits in scores(saved).items():
        assert torch.equal(scores(loaded)[name], logits)
    assert not loaded.model.training
    assert (loaded.config, loaded.classes) == (saved.config, saved.classes)
    assert (loaded.segment_classes, loaded.multi_label) == (saved.segment_classes, saved.multi_label)


def test_the_description_says_all_that_a_stranger_must_show_the_model(run):
    description = json.loads((run / "model.json").read_text())
    assert description["classes"] == list(CLASSES)
    shown = description["preprocessing"]
    assert (shown["frames"], shown["rate"], shown["height"], shown["width"]) == (2, 12.5, 64, 64)
    assert (shown["views"], shown["crops"]) == (5, 3)
    assert {"airstreams", "torch", "python"} <= description["versions"].keys()


def test_neither_file_is_a_pickle(run):
    content = (run / "model.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    stored = sum(end - start for start, end in (entry["data_offsets"] for entry in header.values() if "shape" in entry))
    assert len(content) == 8 + int.from_bytes(content[:8], "little") + stored
    json.loads((run / "model.json").read_text())


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_folder_without_a_models_files_is_no_run(run, name):
    (run / name).unlink()
    assert f"no {name}" in complaint(run)


def test_no_folder_at_all_is_no_run(tmp_path):
    assert "expected" in complaint(tmp_path / "nowhere")


@pytest.mark.parametrize("kept", [0, 5, 1000, -100])
def test_truncated_weights_are_refused(run, kept):
    content = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(content[:kept])
    assert "model.safetensors: damaged" in complaint(run)


@pytest.mark.parametrize("content", [b"", b'{"format": 1', b"[1]", b"{}", b"\xff\xfe\x00", b'{"format": 1}'])
def test_a_damaged_description_is_refused(run, content):
    (run / "model.json").write_bytes(content)
    assert "model.json" in complaint(run)


def test_a_newer_format_asks_for_a_newer_airstreams(run):
    change(run / "model.json", format=2, config={"what": "nobody knows yet"})
    message = complaint(run)
    assert "format 2" in message
    assert "update airstreams" in message
    assert "damaged" not in message


def test_weights_that_do_not_fit_the_description_are_refused(run):
    change(run / "model.json", classes=[*CLASSES, "climb stairs"])
    assert "of another model" in complaint(run)


def test_an_impossible_config_in_the_description_is_refused(run):
    config = json.loads((run / "model.json").read_text())["config"]
    change(run / "model.json", config=config | {"clip": config["clip"] | {"frames": 0}})
    assert "clip.frames" in complaint(run)


def test_a_save_that_fails_halfway_leaves_the_old_model(run):
    before, files = scores(load(run)), sorted(path.name for path in run.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # as if the disk were full
    try:
        with pytest.raises(Exception, match=r"(?i)file too large|os error"):
            save(some_model(seed=1), run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in run.iterdir()) == files
    after = scores(load(run))
    assert all(torch.equal(after[name], before[name]) for name in before)
    save(some_model(seed=1), run)
    assert not torch.equal(scores(load(run))["merged"], before["merged"])
