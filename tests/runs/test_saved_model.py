"""A loaded model equals the saved one, files are complete at any moment, and damage is an error of one line."""

import hashlib
import json
import random
import resource
import shutil
from dataclasses import asdict, replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from airstreams.config import ClipConfig, Config, EvaluationConfig, FlowConfig, LossWeights, ModelConfig, TrainingConfig
from airstreams.errors import InputError
from airstreams.models.airstreams import build
from airstreams.models.cost import count
from airstreams.runs import saved_model as saved_models
from airstreams.runs.saved_model import KeptEpoch, SavedModel, load, save

CLASSES = ("brush hair", "catch", "clap", "traîner")
CLIP = torch.rand(2, 3, 2, 64, 64, generator=torch.Generator().manual_seed(0))


def some_model(seed=0):
    torch.manual_seed(seed)
    config = Config(
        seed=7,
        training=TrainingConfig(lr=1e-5),  # flipping one bit of its e gives E, and the same number
        clip=ClipConfig(frames=2, rate=12.5, size=64),
        model=ModelConfig(width=0.02, segmenter_width=0.02, flow=FlowConfig(iterations=2)),
        loss_weights=LossWeights(flow=0.5, semantic=0.5),  # all heads
        evaluation=EvaluationConfig(views=5, crops=3),
    )
    model = build(config.model, len(CLASSES), 2)
    with torch.no_grad():
        model(CLIP, list(model.late))  # in training mode, so the batch statistics change
    return SavedModel(config, CLASSES, ("background", "person"), multi_label=True, frame_rate=25.0, model=model.eval())


def scores(saved):
    with torch.no_grad():
        return saved.model(CLIP, list(saved.model.late)).logits


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory):
    run = tmp_path_factory.mktemp("saved") / "run"
    save(some_model(), run)
    return run


@pytest.fixture
def run(undamaged, tmp_path):
    """A run with `some_model`, which a test may damage."""
    return shutil.copytree(undamaged, tmp_path / "run")


def test_the_folder_of_the_cache_is_not_saved(tmp_path):
    saved = some_model()
    saved.config = replace(saved.config, data=replace(saved.config.data, cache=str(tmp_path / "cache")))
    save(saved, tmp_path / "run")
    assert str(tmp_path) not in (tmp_path / "run" / "model.json").read_text()
    assert load(tmp_path / "run").config.data.cache is None
    assert saved.config.data.cache is not None


def complaint(run):
    with pytest.raises(InputError) as raised:
        load(run)
    message = str(raised.value)
    assert "\n" not in message
    assert str(run) in message
    return message


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values, indent=2) + "\n")


def flip(path, bit):
    """Flip a bit of a file. Flipping it again restores the file."""
    with path.open("r+b") as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def header_bytes(weights):
    with weights.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def test_a_loaded_model_gives_the_saved_ones_scores_bit_for_bit(run):
    saved, loaded = some_model(), load(run)
    for name, logits in scores(saved).items():
        assert torch.equal(scores(loaded)[name], logits)
    assert not loaded.model.training
    assert (loaded.config, loaded.classes) == (saved.config, saved.classes)
    assert (loaded.segment_classes, loaded.multi_label) == (saved.segment_classes, saved.multi_label)


def rewrite(run, weights, content):
    """Write other weights and another description into a run, with the right sums."""
    sums = {"sha256": saved_models._sum_of_weights(weights), "description": saved_models._sum_of_description(content)}
    save_file(weights, run / "model.safetensors", {"sums": json.dumps(sums)})
    (run / "model.json").write_text(saved_models._as_text(content))


def without_weight_for_flow():
    saved = some_model()
    return replace(saved, config=replace(saved.config, loss_weights=LossWeights(flow=0.0, semantic=0.5)))


def test_late_towers_of_heads_without_weight_are_left_out(tmp_path):
    saved = without_weight_for_flow()
    save(saved, tmp_path / "run")
    names = load_file(tmp_path / "run" / "model.safetensors").keys()
    assert names == {name for name in saved.model.state_dict() if not name.startswith("late.flow.")}
    loaded = load(tmp_path / "run")
    expected = scores(saved)
    assert scores(loaded).keys() == {"rgb", "semantic", "merged"}
    assert all(torch.equal(logits, expected[head]) for head, logits in scores(loaded).items())
    with pytest.raises(InputError, match="flow"):
        loaded.model(CLIP, ["flow"])
    counted = count(saved.config, len(CLASSES), 2).parameters
    assert sum(counted.values()) == sum(parameter.numel() for parameter in loaded.model.parameters())


def test_files_of_version_0_1_keep_their_untrained_late_towers(tmp_path):
    saved = without_weight_for_flow()
    save(saved, tmp_path / "run")
    content = json.loads((tmp_path / "run" / "model.json").read_text())
    rewrite(tmp_path / "run", {name: one.contiguous() for name, one in saved.model.state_dict().items()}, content)
    expected = scores(saved)
    found = scores(load(tmp_path / "run"))
    assert found.keys() == {"rgb", "flow", "semantic", "merged"}
    assert all(torch.equal(logits, expected[head]) for head, logits in found.items())


def test_a_file_without_a_trained_head_is_refused(run):
    weights = {name: tensor for name, tensor in load_file(run / "model.safetensors").items() if "late.flow" not in name}
    rewrite(run, weights, json.loads((run / "model.json").read_text()))
    assert "late.flow" in complaint(run)


def test_a_model_without_a_frame_rate_is_of_an_earlier_version(run):
    content = json.loads((run / "model.json").read_text())
    assert content.pop("frame_rate") == 25.0
    rewrite(run, load_file(run / "model.safetensors"), content)
    assert load(run).frame_rate is None


def test_the_description_holds_the_preprocessing(run):
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
def test_a_folder_without_one_of_the_two_files_is_refused(run, name):
    (run / name).unlink()
    assert name in complaint(run)


def test_a_missing_folder_is_refused(tmp_path):
    assert "airstreams train" in complaint(tmp_path / "nowhere")


@pytest.mark.parametrize("kept", [0, 5, 1000, -100])
def test_truncated_weights_are_refused(run, kept):
    content = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(content[:kept])
    assert "model.safetensors" in complaint(run)


def test_one_flipped_bit_in_the_weights_is_refused(run):
    path = run / "model.safetensors"
    whole, header = path.read_bytes(), header_bytes(path)
    draw = random.Random(0)
    bits = [draw.randrange(8 * header) for _ in range(12)]
    bits += [draw.randrange(8 * header, 8 * len(whole)) for _ in range(12)]
    for bit in [*range(0, 64, 8), *bits, 8 * len(whole) - 1]:
        flip(path, bit)
        complaint(run)
        flip(path, bit)
    assert path.read_bytes() == whole
    load(run)


def test_one_flipped_bit_in_the_description_is_refused(run):
    path = run / "model.json"
    content = path.read_bytes()
    start = content.index(b'"versions"')
    end = content.index(b"}", start)
    exponent, escape = content.index(b"1e-05") + 1, content.index(b"\\u00ee") + 5
    bits = [8 * exponent + 5, 8 * escape + 5]  # e becomes E: the same number, the same character
    bits += random.Random(0).sample([*range(8 * start), *range(8 * end, 8 * len(content))], 400)
    for bit in bits:
        flip(path, bit)
        assert "model.json" in complaint(run), bit
        flip(path, bit)
    assert path.read_bytes() == content
    load(run)


def test_weights_swapped_within_the_file_are_refused(run):
    """The two tensors have the same shape."""
    path = run / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        sums = file.metadata()
    weights = load_file(path)
    one, other = "early.rgb.output_norm.weight", "early.rgb.output_norm.bias"
    assert weights[one].shape == weights[other].shape
    save_file(weights | {one: weights[other], other: weights[one]}, path, sums)
    assert "model.safetensors" in complaint(run)


def test_weights_without_sums_are_refused(run):
    path = run / "model.safetensors"
    save_file(load_file(path), path)
    assert "model.safetensors" in complaint(run)


def test_the_sum_of_the_weights_can_be_computed_from_the_bytes_of_the_file(run):
    """Without torch or safetensors."""
    path = run / "model.safetensors"
    content, start = path.read_bytes(), header_bytes(path)
    header = json.loads(content[8:start])
    sums = header.pop("__metadata__")
    types = {"F32": "torch.float32", "I64": "torch.int64"}
    summed = hashlib.sha256()
    for name, entry in sorted(header.items()):
        begin, end = entry["data_offsets"]
        summed.update(json.dumps([name, types[entry["dtype"]], entry["shape"]]).encode())
        summed.update(content[start + begin : start + end])
    assert json.loads(sums["sums"])["sha256"] == summed.hexdigest()


def test_one_flipped_bit_in_the_sums_is_refused(run):
    path = run / "model.safetensors"
    content = path.read_bytes()
    start, end = content.index(b"sha256"), content.index(b"description") + 80
    for bit in random.Random(0).sample(range(8 * start, 8 * end), 100):
        flip(path, bit)
        assert "model.safetensors" in complaint(run), bit
        flip(path, bit)


def test_saving_a_model_again_gives_the_same_bytes(run, tmp_path):
    saved = load(run)
    for copy in "abc":  # several entries of a header would have a new order each time
        save(saved, tmp_path / copy)
    first, *others = [(tmp_path / copy / "model.safetensors").read_bytes() for copy in "abc"]
    assert others == [first, first]


def test_the_header_of_an_earlier_version_is_read(run):
    path = run / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        sums = json.loads(file.metadata()["sums"])
    save_file(load_file(path), path, sums)
    load(run)


def test_class_names_of_another_run_are_refused(run, tmp_path):
    other = replace(some_model(), classes=("climb", "dive", "draw sword", "dribble"))
    save(other, tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.json", run / "model.json")
    assert "model.json" in complaint(run)


def test_reordered_class_names_are_refused(run):
    change(run / "model.json", classes=CLASSES[::-1])
    assert "model.json" in complaint(run)


def test_versions_in_the_description_may_change(run):
    change(run / "model.json", versions={"airstreams": "0.0.1", "torch": "2.9.0", "python": "3.11.0"})
    load(run)


def test_a_crash_between_the_two_files_leaves_two_that_match(run):
    description = (run / "model.json").read_bytes()
    later = some_model(seed=1)
    save(later, run)
    (run / "model.json").write_bytes(description)  # as before the second rename
    assert torch.equal(scores(load(run))["merged"], scores(later)["merged"])


def test_the_kept_epoch_is_read_and_forgotten_after_a_crash_between_the_two_files(tmp_path):
    first = KeptEpoch(2, "best", "top1", 0.5, [0.2, 0.8], videos=9)
    save(replace(some_model(), kept=first), tmp_path)
    assert load(tmp_path).kept == first
    description = (tmp_path / "model.json").read_bytes()
    save(replace(some_model(seed=1), kept=replace(first, epoch=3)), tmp_path)
    assert load(tmp_path).kept == replace(first, epoch=3)
    (tmp_path / "model.json").write_bytes(description)  # as before the second rename
    assert load(tmp_path).kept is None


def test_a_kept_epoch_of_an_earlier_version_has_no_temperature(tmp_path, monkeypatch):
    kept = KeptEpoch(2, "best", "top1", 0.5, [0.2, 0.8], videos=9, temperature=1.5)
    monkeypatch.setattr(
        saved_models, "asdict", lambda item: {k: v for k, v in asdict(item).items() if k != "temperature"}
    )
    save(replace(some_model(), kept=kept), tmp_path)
    assert "temperature" not in json.loads((tmp_path / "model.json").read_text())["kept"]
    assert load(tmp_path).kept == replace(kept, temperature=None)
    with pytest.raises(InputError, match="--calibrated"):
        load(tmp_path, calibrated=True)


@pytest.mark.parametrize(
    "content", [b"", b'{"format": 3', b"[1]", b"{}", b"\xff\xfe\x00", b'{"format": 3}', b"[" * 10**5]
)
def test_a_damaged_description_is_refused(run, content):
    (run / "model.json").write_bytes(content)
    assert "model.json" in complaint(run)


def test_a_description_without_classes_is_refused(run, monkeypatch):
    sum_of = saved_models._sum_of_description

    def without_classes(description):
        description.pop("classes", None)
        return sum_of(description)

    monkeypatch.setattr(saved_models, "_sum_of_description", without_classes)
    save(some_model(), run)
    assert "'classes'" in complaint(run)


def test_a_newer_format_asks_for_an_update(run):
    change(run / "model.json", format=4, config={"what": "nobody knows yet"})
    message = complaint(run)
    assert "format 4" in message
    assert "Update airstreams" in message
    assert "damaged" not in message


def test_an_older_format_asks_to_train_again(run):
    change(run / "model.json", format=2)
    message = complaint(run)
    assert "format 2" in message
    assert "Train" in message
    assert "Update airstreams" not in message


def test_weights_that_do_not_fit_the_config_are_refused(tmp_path):
    """A later version may build another network from the same config."""
    saved = some_model()
    save(replace(saved, config=replace(saved.config, model=ModelConfig(width=0.25))), tmp_path / "run")
    assert "version of airstreams" in complaint(tmp_path / "run")


def test_a_config_that_is_invalid_now_is_refused(tmp_path):
    saved = some_model()
    saved.config.clip.frames = 0
    save(saved, tmp_path / "run")
    message = complaint(tmp_path / "run")
    assert "clip.frames" in message
    assert "version of airstreams" in message


def test_a_failed_save_leaves_the_old_model(run):
    before, files = scores(load(run)), sorted(path.name for path in run.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # as if the disk were full
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
