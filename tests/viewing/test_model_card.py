"""A run's model card: what it says, what it must not say, and that the user's own text stays."""

import io
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console

import airstreams
from airstreams.config import Config
from airstreams.percent import with_interval
from airstreams.recipe import closest_recipe, load_config, recipe_path
from airstreams.runs.folder import RunFolder
from airstreams.training.start import Start, StartRecord
from airstreams.viewing.model_card import YOUR_TEXT, write_model_card


def rows(card):
    """The cells of all tables, by their first."""
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in card.splitlines() if line[:1] == "|"]
    return {first: rest for first, *rest in cells}


def test_a_card_has_what_the_run_has_recorded(run, source):
    card = write_model_card(run, source).read_text()
    _, header, text = card.split("---\n", 2)
    assert yaml.safe_load(header)["pipeline_tag"] == "video-classification"
    assert rows(text)["name"] == [source.short_name]
    assert rows(text)["videos"] == ["24 train, 8 test"]
    assert rows(text)["4 classes (training videos)"] == [
        r"disc\_left (6), disc\_up (6), square\_left (6), square\_up (6)"
    ]
    assert rows(text)["epochs"] == ["2 of 2"]
    assert rows(text)["precision"] == ["float32"]
    assert {"parameters", "multiply-adds of a clip"} <= rows(text).keys()
    assert "Random." in text
    assert "Not evaluated yet" in text
    assert str(run.parent) not in card
    assert write_model_card(run).read_text() == card  # the run knows its data


def test_an_evaluation_adds_its_metrics_and_keeps_the_users_text(run, synthetic):
    card = write_model_card(run)
    assert rows(card.read_text())["name"] == ["not recorded"]  # as in a run of an earlier version
    card.write_text(card.read_text().partition(YOUR_TEXT)[0] + f"{YOUR_TEXT}\nMy licence: CC0.\n")
    metrics = airstreams.evaluate(run, synthetic / "videos").metrics
    text = card.read_text()
    assert text.endswith(f"{YOUR_TEXT}\nMy licence: CC0.\n")
    assert rows(text)["merged"][0] == with_interval(metrics.top1, metrics.intervals["top1"])
    assert "chance" in rows(text)
    assert "Not evaluated yet" not in text


def test_a_start_is_named_with_its_licence_and_without_folders(run):
    init = "/home/anna/my weights/rgb.pt,flow=/home/anna/flow.pt,segmenter=torchvision:resnet18"
    StartRecord(init, "by somebody (MIT)", ["a", "b"]).write(RunFolder(run))
    text = write_model_card(run).read_text()
    assert "`--init rgb.pt,flow=flow.pt,segmenter=torchvision:resnet18`: 2 tensors" in text
    assert "by somebody (MIT)" in text
    assert "anna" not in text


def test_a_start_from_runs_takes_over_their_sources(tmp_path):
    for name in ("a", "b"):
        StartRecord("i3d-kinetics400", f"{name} (MIT)", []).write(RunFolder(tmp_path / name))
    assert Start("a", run=tmp_path / "a").source == "a (MIT)"
    start = Start("x", run_of={"flow": tmp_path / "a", "semantic": tmp_path / "b", "rgb": tmp_path / "c"})
    assert start.source == "a (MIT); b (MIT)"


@pytest.mark.parametrize(("init", "shown"), [("/a/b,c/run", "run"), ("../run", "../run"), ("hf:me/run", "hf:me/run")])
def test_absolute_paths_lose_their_folders(init, shown):
    assert StartRecord(init, "", []).without_folders().init == shown


def test_names_are_no_markdown(run, source, tmp_path):
    odd = Path(shutil.move(run, tmp_path / "<b> [x](y) | *z* `q`"))
    write_model_card(odd, replace(source, name="/home/anna/a | <i>.csv"))
    text = (odd / "MODEL_CARD.md").read_text()
    assert r"# \<b\> \[x\](y) \| \*z\* \`q\`" in text
    assert r"| name | a \| \<i\>.csv |" in text


def test_a_damaged_file_costs_the_card_and_not_the_evaluation(run, synthetic):
    RunFolder(run).start.write_text("{")
    said = io.StringIO()
    airstreams.evaluate(run, synthetic / "videos", console=Console(file=said, width=300))
    assert RunFolder(run).evaluation("test").metrics.is_file()
    assert "warning: the model card" in said.getvalue()
    assert "start.json" in said.getvalue()


def test_a_config_is_described_by_the_closest_recipe():
    assert closest_recipe(Config(seed=7)) == ("the defaults", {})
    small = load_config(recipe_path("finetune-small"))
    small.training.epochs, small.training.device = 3, "cpu"
    assert closest_recipe(small) == ("the recipe finetune-small", {"training.epochs": 3})
