"""The tables about published weights: what their runs change, their data, and how they are shown."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from safetensors.torch import save_file

from airstreams.config import LossWeights, ModelConfig
from airstreams.data.splits import with_fewer_training_videos
from airstreams.errors import InputError
from airstreams.experiments import reproduce
from airstreams.experiments.reproduce import plan, run_job, without_missing_towers
from airstreams.experiments.tables import CLIPS, TABLES, TORCHVISION, Cell, Table, run_config, run_of
from airstreams.models.airstreams import build
from airstreams.recipe import load_config, recipe_path, save_config
from airstreams.runs import saved_model as saved_models
from airstreams.training.start import read_start
from airstreams.viewing.paper_figures import draw_table
from tests.experiments.made_up import QUIET, made_up, markdown_and_results


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights of I3D for RGB, under the names of the safetensors file."""
    torch.manual_seed(0)
    model = build(ModelConfig(streams=["rgb"], backbone="i3d"), classes=5, segment_classes=3)
    parts = [*model.early["rgb"].state_dict().items(), *model.late["rgb"].state_dict().items()]
    layers = {name.split(".", 2)[2] if name.startswith("blocks") else name: tensor for name, tensor in parts}
    file = tmp_path_factory.mktemp("weights") / "i3d.safetensors"
    save_file(
        {
            name.replace("running_", "").replace("classifier.", "Logits.Conv3d_0c_1x1.conv."): tensor.contiguous()
            for name, tensor in layers.items()
            if not name.endswith(("bn.weight", "num_batches_tracked"))
        },
        file,
    )
    return file


@pytest.fixture
def full_width(recipe):
    """The recipe with the channels that published weights have."""
    return replace(recipe, model=replace(recipe.model, width=1.0))


def test_the_runs_keep_the_recipes_loss_weights(recipe):
    tuned = replace(recipe, loss_weights=LossWeights(flow=0.7, semantic=0.4))
    found = {name: run_config(name, tuned, None) for name in TABLES["kinetics"].runs}
    assert found["tuned all (pretrained)"].loss_weights == tuned.loss_weights
    control = found["tuned rgb x3 (pretrained)"]
    assert [control.active_loss_weights()[head] for head in ("rgb2", "rgb3")] == [0.7, 0.4]
    frozen = found["frozen rgb (pretrained)"].training
    assert (frozen.lr_taken, frozen.hold_epochs, frozen.taken_norms) == (0, 0, "fixed")
    assert {"+".join(config.model.streams) for config in found.values()} == {
        *("rgb", "rgb+flow", "rgb+semantic", "rgb+flow+semantic", "rgb+rgb2+rgb3")
    }


def test_a_recipe_may_name_a_tower_for_a_stream_that_a_run_lacks(recipe):
    mixed = replace(recipe, model=replace(recipe.model, backbones={"flow": "r2plus1d18"}))
    assert run_config("tuned rgb", mixed, None).model.backbones == {}
    assert run_config("tuned rgb+flow", mixed, None).model.backbones == {"flow": "r2plus1d18"}


def test_the_default_recipe_fits_every_run():
    for name in ("kinetics", "few-videos", "backbones"):
        recipe = load_config(recipe_path(TABLES[name].recipe or ""))
        for run in TABLES[name].runs:
            run_config(run, recipe, None)


def test_every_run_from_published_weights_has_their_tower(few, full_width, weights, tmp_path):
    start = read_start(f"{weights}")
    jobs = plan(TABLES["kinetics"], full_width, [few], 1, tmp_path, init=start)
    assert {job.config.model.backbone for job in jobs} == {"i3d"}
    assert {job.init for job in jobs} == {str(weights)}
    assert all(start.digest()[:8] in job.folder.name for job in jobs)
    assert len({job.folder for job in jobs}) == 6
    jobs = plan(TABLES["few-videos"], full_width, [few], 1, tmp_path, init=start)
    assert {job.config.model.backbone for job in jobs} == {"i3d"}  # those from random weights too
    assert [job.init for job in jobs] == [None, str(weights)] * len(CLIPS)
    with pytest.raises(InputError, match="--init"):
        plan(TABLES["backbones"], full_width, [few], 1, tmp_path, init=start)


def test_weights_of_streams_that_a_run_lacks_are_left_out(weights):
    start = read_start(f"{weights},flow={weights}")
    assert start.for_streams(["rgb"]).by_stream == {}
    assert start.for_streams(["rgb", "flow"]) == start
    with pytest.raises(InputError, match="--init"):
        read_start(f"flow={weights}").for_streams(["rgb"])


def test_only_the_classifier_of_the_frozen_run_learns(few, full_width, weights, tmp_path):
    table = Table("Frozen", {"frozen": (Cell("frozen rgb (pretrained)"),)})
    fewer = with_fewer_training_videos(few, 1, (1,), seed=0)
    (job,) = plan(table, full_width, [fewer], 1, tmp_path, init=read_start(str(weights)))
    run_job(job)
    assert job.done
    saved = saved_models.load(job.folder).model
    torch.manual_seed(job.config.seed)
    fresh = build(job.config.model, len(few.classes), job.segment_classes)
    read_start(str(weights)).apply(fresh, job.config.model, few.classes, ())
    before, after = fresh.state_dict(), saved.state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert {name.rpartition("classifier.")[2] for name in changed} == {"weight", "bias"}


def test_rows_that_need_torchvision_are_named_where_it_is_missing(monkeypatch, capsys):
    def absent(purpose):
        raise InputError(f"{purpose} needs torchvision.")

    monkeypatch.setattr(reproduce, "torchvision_models", absent)
    left = without_missing_towers(TABLES["backbones"], QUIET)
    assert left.runs == ["tower i3d"]
    for name in ("(2+1)D ResNet-18", "3D ResNet-18", "mixed ResNet-18", "S3D"):
        assert name in left.note
    assert without_missing_towers(TABLES["kinetics"], QUIET) is TABLES["kinetics"]
    monkeypatch.undo()
    towers = {run_of(run).changes.get("model.backbone") for run in TABLES["backbones"].runs}
    assert towers == {"i3d", *TORCHVISION}


def test_a_table_of_our_own_has_no_published_column(tmp_path):
    rng = np.random.default_rng(0)
    jobs = made_up(tmp_path, {run: [rng.random(40) < 0.5] * 2 for run in TABLES["kinetics"].runs})
    markdown, results = markdown_and_results("kinetics", replace(TABLES["kinetics"], costs=False), jobs)
    assert "| | top-1 | minus RGB, points |" in markdown.replace("|  |", "| |")
    assert "paper" not in markdown
    assert results.pairs[1].minus == "tuned rgb x3 (pretrained)"


def test_few_videos_have_a_curve_for_each_start(tmp_path):
    table, right = TABLES["few-videos"], np.arange(40)
    scores = {run: [right < 4 * number, right < 4 * number + 2] for number, run in enumerate(table.runs, 1)}
    markdown, results = markdown_and_results("few-videos", table, made_up(tmp_path, scores))
    assert "|  | random weights | published weights |" in markdown
    assert "| 5 training videos per class | 12.5% (" in markdown
    assert [pair.difference.mean for pair in results.pairs] == pytest.approx([0.1] * len(CLIPS))
    draw_table(results, table, tmp_path / "curve.png")
    assert imread(tmp_path / "curve.png").shape[1] > 600


def test_table_5_has_the_cost_of_the_papers_baseline(recipe, tmp_path):
    """A smaller network stands for the ResNet-50, whose cost takes seconds to count."""
    row, run = "Two-stream (2+1)D ResNet50", "two-stream r2plus1d50"
    assert TABLES["table5"].costs_of == {row: run}
    baseline = run_config(run, recipe, None).model
    assert (baseline.streams, baseline.backbone, baseline.width) == (["rgb", "flow"], "r2plus1d50", 1)
    assert baseline.merge_levels == [baseline.block_count()]
    rows = dict(list(TABLES["table5"].rows.items())[-3:])
    (job,) = made_up(tmp_path, {"all (pretrained)": [[True, False]]})
    job = replace(job, config=replace(recipe, seed=job.config.seed))
    table = replace(TABLES["table5"], rows=rows, costs_of={row: "rgb"})
    markdown, results = markdown_and_results("table5", table, [job])
    (line,) = (line for line in markdown.splitlines() if line.startswith(f"| {row} |"))
    assert results.costs is not None
    cost = results.costs["rgb"]
    assert line.endswith(f"| - | 46.50 % | {cost.parameters / 1e6:.2f} | {cost.multiply_adds / 1e9:.2f} |")
    assert cost.parameters < results.costs["all (pretrained)"].parameters
    assert "| AssembleNet (Moments pretraining) | - | 53.00 % | - | - |" in markdown
    assert results.runs.keys() == {"all (pretrained)"}


def test_the_command_plans_from_published_weights(few_videos, full_width, weights, tmp_path, call):
    save_config(full_width, tmp_path / "recipe.yaml")
    words = ["--data", few_videos / "videos", "--out", tmp_path / "out", "--seeds", "1", "--dry-run", "--json"]
    words += ["--config", tmp_path / "recipe.yaml"]
    status, printed, _ = call("reproduce", "few-videos", *words, "--init", weights)
    assert status == 0
    runs = json.loads(printed)["runs"]
    assert len(runs) == 8
    assert all(run["multiply_adds"] > 0 and not run["done"] for run in runs)
    status, _, errors = call("reproduce", "kinetics", *words, "--init", "nowhere")
    assert status == 2
    assert "--init nowhere" in errors
