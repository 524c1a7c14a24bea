"""Recipes, keys and options: what the parser takes, and how it complains."""

import re
from dataclasses import asdict

import pytest
import torch

from airstreams.cli import main
from airstreams.commands import COMMANDS
from airstreams.commands.parser import for_parser, make_parser
from airstreams.config import Config
from airstreams.errors import InputError
from airstreams.recipe import RECIPES
from airstreams.teachers.teacher import load_teacher
from tests.calls import complaint


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("training:", "training: got nothing, expected keys below it"),
        ("training: 5", "training: got 5, expected keys below it"),
        ("model: {flow: }", "model.flow: got nothing, expected keys below it"),
        ("training: {optimizer: }", "training.optimizer: got nothing, expected a value"),
        ("model: {flow: {iterations: }}", "model.flow.iterations: got nothing, expected a value"),
        ("training: {epochs: 2}\nclip: {size: 64}\ntraining: {lr: 0.1}", "training occurs twice"),
        ("training: {epochs: {{ n }}}", "not YAML"),
    ],
)
def test_empty_and_duplicate_keys_of_a_recipe_are_refused(call, tmp_path, lines, words):
    (tmp_path / "mine.yaml").write_text(lines + "\n")
    complaint(call("info", tmp_path / "mine.yaml"), tmp_path / "mine.yaml", words)
    complaint(call("train", "x", "--out", tmp_path / "run", "--config", tmp_path / "mine.yaml"), words)


def test_complaints_name_arguments_as_the_help_does(call):
    complaint(call("train"), "DATA", "--out", "`airstreams train --help`")
    complaint(call("labels"), "LABELS", "`airstreams labels --help`")
    words = ("--teacher", "t", "--out", "o", "--batch-size", "z")
    assert "--batch-size: got z, expected a whole number" in complaint(call("annotate", "x", *words))
    for key, given, expected in (
        ("training.epochs", "z", "a whole number"),
        ("training.optimizer", "gpu", "one of 'adamw', 'sgd'"),
        ("clip.rate", "z", "a number or null"),
        ("data.flip", "3", "true or false"),
    ):
        told = complaint(call("train", "x", "--out", "y", f"--{key}", given))
        assert f"--{key}: got {given}, expected {expected}" in told
    complaint(call(), "a verb", "`airstreams --help`")


def test_an_unknown_config_key_is_refused(call, synthetic, tmp_path):
    data = synthetic / "videos"
    complaint(call("train", data, "--out", tmp_path / "run", "--training.epoch", "3"), "training.epoch")
    (tmp_path / "mine.yaml").write_text("training: {epohcs: 3}\n")
    complaint(
        call("train", data, "--out", tmp_path / "run", "--config", tmp_path / "mine.yaml"),
        "training.epohcs",
        "expected epochs",
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("clip: {size: 7}", ("clip.size", "7", "at least 64")),
        ("training: {epochs: 0}", ("training.epochs", "0", "at least 1")),
        ("training: {epochs: many}", ("training.epochs", "many")),
        ("model: {streams: [rgb, sound]}", ("model.streams", "sound")),
        ("data: {crop_scale: [0.9, 0.1]}", ("data.crop_scale", "0.9")),
        ("loss_weights: {merged: 0}", ("loss_weights.merged", "over 0")),
        ("- not\n- keys", ("mine.yaml",)),
        ("training: [", ("mine.yaml",)),
    ],
)
def test_a_recipe_with_an_impossible_value_is_refused(call, synthetic, tmp_path, text, told):
    (tmp_path / "mine.yaml").write_text(text + "\n")
    data, recipe = synthetic / "videos", tmp_path / "mine.yaml"
    complaint(call("train", data, "--out", tmp_path / "run", "--config", recipe), *told)
    complaint(call("info", recipe), *told)
    assert not (tmp_path / "run").exists()


def test_an_impossible_value_on_the_command_line_is_refused(call, synthetic, tmp_path):
    call_with = ("train", synthetic / "videos", "--out", tmp_path / "run")
    complaint(call(*call_with, "--clip.size", "7"), "clip.size", "7")
    complaint(call(*call_with, "--training.epochs", "many"), "training.epochs", "many")
    complaint(call(*call_with, "--loss_weights.flow", "-1"), "loss_weights.flow", "-1")


def test_an_unknown_recipe_is_refused(call, synthetic, tmp_path):
    known = ("demo", "jhmdb", "jhmdb-small")
    complaint(call("train", synthetic, "--out", tmp_path / "run", "--config", "nosuch"), "nosuch", *known)
    complaint(call("train", synthetic, "--out", tmp_path / "run", "--config=nosuch"), "nosuch", *known)
    complaint(call("info", "nosuch"), "nosuch", *known)


def test_unknown_verbs_and_options_are_refused(call, tmp_path):
    complaint(call("tarin", tmp_path), "tarin", "train")
    complaint(call("check-data", tmp_path, "--jsno"), "--jsno")
    complaint(call("train", tmp_path), "out")
    complaint(call())


@pytest.mark.parametrize("verb", [*COMMANDS])
def test_every_verb_has_help_with_an_example(capsys, verb):
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    assert stopped.value.code == 0
    assert f"Example: airstreams {verb} " in " ".join(capsys.readouterr().out.split())


def test_help_describes_every_config_key(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")  # what is said of a key fits on a line
    with pytest.raises(SystemExit):
        main(["train", "--help-all"])
    lines = re.sub(r"\n {8,}", "  ", capsys.readouterr().out).splitlines()
    said = {found[1]: found[2] for line in lines if (found := re.match(r"  --(\w+\.[\w.]+),? .*?  +(\S.*)", line))}
    sections = {name: values for name, values in asdict(Config()).items() if isinstance(values, dict)}
    keys = {f"{section}.{key}" for section, values in sections.items() for key in values}
    assert keys <= said.keys()
    assert not [key for key in keys if said[key].startswith("(type:")]


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["trian", "x"], "train"),
        (["train", "x", "--out", "y", "--epochs", "3"], "--training.epochs"),
        (["train", "x", "--out", "y", "--training.epoch", "3"], "--training.epochs"),
        (["train", "x", "--out", "y", "--batch-size=3"], "--training.batch_size"),
        (["evolve", "x", "--out", "y", "--epochs", "3"], "--evolution.epochs"),
        (["train", "x", "--uot", "y"], "--out"),
        (["evaluate", "x", "y", "--splitt", "test"], "--split"),
        (["predict", "x", "y", "--devcie", "cpu"], "--device"),
        (["train", "x", "--out", "y", "--config", "demmo"], "demo"),
        (["train", "x", "--out", "y", "--model.streams", "rgb,flwo"], "flow"),
        (["train", "jhmbd:x", "--out", "y"], "jhmdb"),
        (["reproduce", "tabel1", "--out", "y"], "table1"),
    ],
)
def test_a_misspelt_name_is_answered_by_the_one_that_is_meant(call, words, meant):
    said = complaint(call(*words))
    assert re.search(rf"Did you mean .*{re.escape(meant)}\?", said)


def test_a_misspelt_teacher_is_answered_by_its_name():
    with pytest.raises(InputError, match=r"Did you mean maskrcnn\?"):
        load_teacher("maskrnn", {}, torch.device("cpu"))


def test_a_key_of_another_section_is_named(call, tmp_path):
    for text in ("epochs: 3", "model: {epochs: 3}"):
        (tmp_path / "mine.yaml").write_text(text)
        complaint(call("info", tmp_path / "mine.yaml"), "epochs below training")


@pytest.mark.parametrize("as_words", [lambda key, value: [key, value], lambda key, value: [f"{key}={value}"]])
def test_a_list_needs_no_brackets(as_words):
    lists = {
        "model.streams": ("rgb,flow", ["rgb", "flow"]),
        "model.merge_levels": ("2,3", [2, 3]),
        "model.stop_gradient": ("flow", ["flow"]),
        "data.crop_scale": ("0.8,1", [0.8, 1.0]),
        "data.segment_classes": ("dining table, no,1", ["dining table", "no", "1"]),
        "training.freeze": ("[rgb.early,rgb.late]", ["rgb.early", "rgb.late"]),
    }
    words = ["train", "x", "--out", "y"]
    for key, (given, _) in lists.items():
        words += as_words(f"--{key}", given)
    parsed = make_parser(words).parse_args(for_parser(words)).train
    assert {key: parsed[key] for key in lists} == {key: expected for key, (_, expected) in lists.items()}


def test_help_fits_two_screens_and_lists_every_recipe(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for verb in COMMANDS:
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 80
        assert len(lines) <= 100
        assert not [line for line in lines if "class '" in line or "default: null" in line]
        if COMMANDS[verb].takes_config:
            rows = {line.split()[0]: line for line in lines if line.startswith("  ") and line.strip()}
            for path in RECIPES.glob("*.yaml"):
                assert len(rows[path.stem].split()) > 3  # its summary stands on the same line


def test_options_and_recipes_of_version_0_1_are_read_with_warnings(call, tmp_path):
    (tmp_path / "old.yaml").write_text("training: {ema: 0.9}\nloss_weights: {further: {rgb2: 0.4}}\n")
    words = ("--config", tmp_path / "old.yaml", "--model.streams", "[rgb,rgb2]", "--compact-classes")
    status, out, err = call("train", tmp_path / "absent", "--out", tmp_path / "run", *words)
    assert (status, out) == (2, "")
    *warnings, complaint_line = err.splitlines()
    assert len(warnings) == 3
    for old in ("--compact-classes", "training.ema", "loss_weights.further"):
        assert sum(line.startswith(f"warning: {old} ") for line in warnings) == 1
    assert str(tmp_path / "absent") in complaint_line
