"""A run with two custom streams that learn from teachers: label maps, and targets of a kind and a store of its own."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from safetensors.torch import load_file

from airstreams.cli import main
from airstreams.config import LossWeights, ModelConfig
from airstreams.data.content import with_contents
from airstreams.data.dataset import VideoViews, Views
from airstreams.data.label_maps import LabelStore
from airstreams.data.listing import TargetFolder
from airstreams.data.sources import open_source
from airstreams.data.video import read_frames
from airstreams.errors import InputError
from airstreams.evaluation.evaluate import evaluate
from airstreams.experiments.reproduce import plan, run_job
from airstreams.experiments.tables import TABLES, streams_table
from airstreams.models.airstreams import build
from airstreams.representations.teaching import follow_targets, open_targets, recorded_identities
from airstreams.runs import saved_model as saved_models
from airstreams.runs.folder import RunFolder
from airstreams.towers import Block, Layer
from airstreams.training.loop import train
from airstreams.training.start import read_start
from airstreams.viewing import representations
from tests.training.runs import SHAPES, epochs

QUIET = Console(quiet=True)
SMALL_TOWER = [Block(16, [Layer("conv2d", stride=4)]), *(Block(16, [Layer("conv2d")]) for _ in range(3))]

TINTS = '''
import numpy as np
import torch
from pathlib import Path
from torch import nn
from airstreams.data.targets import TargetKind
from airstreams.representations import Representation, Supervised

class Store:
    """The mean colour of each frame, KEY.npy."""
    identity, knows_contents = "tints", False
    def __init__(self, root): self.root = Path(root)
    def read_contents(self): return {}
    def has(self, key): return (self.root / f"{key}.npy").is_file()
    def labelled_frames(self, key): return np.arange(len(np.load(self.root / f"{key}.npy")) if self.has(key) else 0)
    def read(self, key, indices): return np.load(self.root / f"{key}.npy")[indices] if self.has(key) else None

class Tints(TargetKind):
    def open(self, folder): return Store(folder)
    def of_clip(self, store, rows, crop, clip): return torch.from_numpy(rows)
    def blank(self, clip): return torch.full((clip.frames, 3), torch.nan)
    def count(self, target): return (~target.isnan()).sum()

class Tint(Supervised):
    channels, target = 3, Tints()
    def __init__(self):
        super().__init__()
        self.network = nn.Linear(3, 3)
    def forward(self, clip):
        prediction = self.network(clip.mean(dim=(3, 4)).transpose(1, 2))
        shown = self.for_tower(prediction).transpose(1, 2)[..., None, None]
        return Representation(clip * shown, prediction)
    def loss(self, prediction, target):
        return (prediction - target).abs().nansum(), self.target.count(target)
    def picture(self, values): return values[:, None, None].expand(-1, 8, 8, -1)
'''
MODULES = ["shape_streams", "tint_streams"]


@pytest.fixture(scope="module")
def source(synthetic, tmp_path_factory):
    """The synthetic videos, with targets for both streams. Some have no mean colours."""
    tints = tmp_path_factory.mktemp("tints")
    found = open_source(str(synthetic / "videos"), targets={"shapes": synthetic / "labels", "tint": tints})
    for video in found.videos:
        if "disc_left" not in video.name or video.split == "test":
            path = tints / f"{video.label_map}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, read_frames(video.path, range(8)).mean(axis=(1, 2), dtype=np.float32) / 255)
    return found


@pytest.fixture(scope="module")
def config(tiny):
    model = ModelConfig(
        ["shapes", "tint"],
        {"shapes": "shape_streams:Shapes", "tint": "tint_streams:Tint"},
        tower=SMALL_TOWER,
        stop_gradient=["tint"],
        dropout=0.0,
    )
    weights = LossWeights(interm={"shapes": 1.0, "tint": 0.5}, custom={"shapes": 0.5})
    return replace(tiny, model=model, loss_weights=weights, training=replace(tiny.training, epochs=1, batch_size=8))


@pytest.fixture(scope="module", autouse=True)
def streams(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modules")
    for name, text in zip(MODULES, (SHAPES, TINTS), strict=True):
        (folder / f"{name}.py").write_text(text)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def taught(source, config, tmp_path_factory):
    """A run of both streams. Not to be written to."""
    run = tmp_path_factory.mktemp("runs") / "taught"
    train(source, config, run, False, QUIET)
    return run


def test_the_cache_of_frames_changes_no_bit(taught, source, config, tmp_path):
    cached = replace(config, data=replace(config.data, cache=str(tmp_path / "cache")))
    train(source, cached, tmp_path / "run", False, QUIET)
    assert len(list((tmp_path / "cache" / "labels").iterdir())) == 24  # the label maps alone: Tints has its own store
    expected, found = (load_file(RunFolder(run).weights) for run in (taught, tmp_path / "run"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    losses = epochs(taught)[-1]["train"]["losses"]
    assert losses.keys() == {"shapes", "merged", "interm.shapes", "interm.tint", "total"}


def test_evaluation_scores_each_stream_against_its_teacher(taught, source, synthetic, tmp_path, call):
    run = shutil.copytree(taught, tmp_path / "run")
    videos, labels, tints = (
        str(path) for path in (synthetic / "videos", synthetic / "labels", source.targets["tint"].path)
    )
    words = ["--targets", f"shapes={labels}", "--targets", f"tint={tints}"]
    status, out, err = call("evaluate", run, videos, *words, *(f"--trust-module={name}" for name in MODULES), "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["segmentation"] is None
    saved = saved_models.load(run, trust=MODULES)
    wrong, logits_of, maps_of, correct = [], [], [], []
    targets = open_targets(source, saved.config)
    for views in map(VideoViews(source.split("test"), saved.config, targets).__getitem__, range(8)):
        assert isinstance(views, Views)
        with torch.inference_mode():
            output = saved.model(views.clips.permute(0, 4, 1, 2, 3))
        tints_VT3, logits_V6Thw = (output.representations[stream].prediction for stream in ("tint", "shapes"))
        wrong.append((tints_VT3 - views.targets["tint"]).abs())
        logits_N6hw = logits_V6Thw.transpose(1, 2).flatten(0, 1)
        logits_of.append(F.interpolate(logits_N6hw, (16, 16), mode="bilinear"))
        maps_of.append(views.targets["shapes"].flatten(0, 1))
        ids_NHW = F.interpolate(logits_N6hw, (64, 64), mode="bilinear").argmax(dim=1)
        correct.append(ids_NHW == views.label_maps["shapes"].flatten(0, 1))
    assert found["targets"]["tint"] == {"loss": pytest.approx(torch.cat(wrong).mean().item(), rel=1e-4)}
    shapes = found["targets"]["shapes"]
    assert shapes["loss"] == pytest.approx(
        F.cross_entropy(torch.cat(logits_of), torch.cat(maps_of).long(), ignore_index=255).item(), rel=1e-4
    )
    assert shapes["pixel_accuracy"] == pytest.approx(torch.cat(correct).float().mean().item(), abs=1e-4)
    assert 0 < shapes["miou"] <= shapes["pixel_accuracy"]

    assert (run / "evaluation" / "test" / "representations.png").is_file()
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert f"tint {found['targets']['tint']['loss']:.3g}" in page
    assert f"{shapes['pixel_accuracy']:.1%}" in page
    with pytest.raises(InputError, match="--targets nothing"):
        evaluate(run, replace(source, targets={"nothing": source.targets["tint"]}), "test", QUIET, trust=MODULES)


def test_pictures_show_predictions_beside_targets(taught, source, tmp_path, monkeypatch):
    saved, drawn = saved_models.load(taught, trust=MODULES), []
    monkeypatch.setattr(representations, "representations_picture", lambda *arguments: drawn.append(arguments))
    targets = open_targets(source, saved.config)
    representations.streams_picture(tmp_path / "a.png", saved, source.split("test"), targets, QUIET)
    ((_, rows, names),) = drawn
    titles = ["shapes", "shapes, teacher", "tint", "tint, teacher"]
    assert [list(row.panels) for row in rows] == [titles] * 4
    assert names == dict.fromkeys(titles[:2], targets["shapes"].classes)
    for row in rows:
        tint = row.panels["tint, teacher"]
        assert tint.shape == (8, 8, 3)
        np.testing.assert_allclose(
            tint[0, 0], row.frame.mean(axis=(0, 1)), atol=20
        )  # of the video's frame, not the crop
        assert row.panels["shapes, teacher"].shape == row.panels["shapes"].shape == (64, 64)


def test_a_run_starts_from_it_and_its_graph_is_exported(taught, source, config, tmp_path):
    model = build(config.model, len(source.classes), 2)
    transfer = read_start(str(taught), trust=MODULES).apply(model, config.model, source.classes, ("a", "b"))
    expected = load_file(RunFolder(taught).weights)
    for stream in ("shapes", "tint"):
        assert transfer.parts[f"{stream}.representation"] == "taken"
        weights = model.representations[stream].state_dict(prefix=f"representations.{stream}.")
        assert all(torch.equal(weight, expected[name]) for name, weight in weights.items())
    path = tmp_path / "taught.pt2"
    words = [f"--trust-module={name}" for name in MODULES]
    assert main(["export", str(taught), "--out", str(path), *words]) == 0
    clips_BTHW3 = torch.randint(0, 256, (2, 4, 64, 64, 3), generator=torch.Generator().manual_seed(0)).byte()
    with torch.inference_mode():
        saved = saved_models.load(taught, trust=MODULES)
        answer = saved.model.eval()(clips_BTHW3.permute(0, 4, 1, 2, 3)).logits["merged"].softmax(dim=1)
        torch.testing.assert_close(torch.export.load(path).module()(clips_BTHW3), answer, atol=1e-4, rtol=1e-4)


def test_the_table_of_streams_has_a_row_for_each(source, config, tmp_path):
    table = streams_table(config)
    assert list(table.rows) == ["shapes", "shapes + tint", "control: shapes + tint, untaught"]
    assert table.pairs == (("streams shapes+tint", "streams shapes+tint (untaught)"),)
    jobs = plan(table, config, [source], 1, tmp_path)
    assert [job.config.loss_weights.of("interm.tint") for job in jobs] == [0.5, 0.5, 0.0]
    assert [list(job.source.targets) for job in jobs] == [["shapes"], ["shapes", "tint"], ["shapes", "tint"]]
    run_job(jobs[2])
    assert jobs[2].done
    assert epochs(jobs[2].folder)[-1]["train"]["losses"].keys() == {"shapes", "merged", "total"}
    both = replace(config, model=replace(config.model, streams=["rgb", "shapes", "tint"]))
    assert list(streams_table(both).rows)[1:4] == ["rgb + shapes", "rgb + tint", "rgb + shapes + tint"]
    with pytest.raises(InputError, match=r"interm\.tint"):
        plan(table, config, [replace(source, targets={"shapes": source.targets["shapes"]})], 1, tmp_path / "without")
    with pytest.raises(InputError, match=r"model\.representations"):
        plan(TABLES["table1"], config, [source], 1, tmp_path / "paper")


def test_each_store_follows_renamed_videos_by_itself(source, config, synthetic, tmp_path):
    """The label maps know the contents of their videos, the mean colours only their names."""
    labels = shutil.copytree(synthetic / "labels", tmp_path / "labels")
    some = with_contents(replace(source, videos=source.split("test")), QUIET).videos
    store = open_targets(source, config)["shapes"].store
    assert isinstance(store, LabelStore)
    replace(store, root=labels).write_contents({str(video.label_map): str(video.content) for video in some})
    (tmp_path / "tints").mkdir()
    renamed = tuple(replace(video, name=f"new/{n}.mp4", label_map=f"new/{n}") for n, video in enumerate(some))
    folders = {"tint": TargetFolder(tmp_path / "tints")}
    given = replace(source, videos=renamed, targets=folders, label_store=replace(store, root=labels))
    for _ in range(2):  # a second time changes nothing
        given = follow_targets(given, config, QUIET, ["semantic", "tint"])
        targets = open_targets(given, config, ["semantic", "tint"])
        assert [targets["semantic"].key_of(video) for video in given.videos] == [video.label_map for video in some]
        assert [targets["tint"].key_of(video) for video in given.videos] == [video.label_map for video in renamed]


def test_teachers_that_older_versions_recorded_are_those_of_semantic():
    assert recorded_identities({"teacher": "a", "labels": "b"}) == {"labels": "b", "targets": {"semantic": "a"}}
    assert recorded_identities({"teacher": "a", "targets": {"x": "b"}})["targets"] == {"semantic": "a", "x": "b"}
    assert recorded_identities({"teacher": None}) == {"targets": {}}
    assert recorded_identities({"labels": "b"}) == {"labels": "b"}
