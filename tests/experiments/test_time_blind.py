"""The table on moving noise: its videos and its models."""

from dataclasses import replace

import pytest
from rich.console import Console

from airstreams.data.sources import open_source
from airstreams.experiments import time_blind
from airstreams.experiments.tables import TABLES, run_config
from airstreams.recipe import load_config, recipe_path

TABLE = TABLES["time-blind"]


@pytest.mark.parametrize("name", time_blind.RENDERED)
def test_rendered_videos_are_the_planned_ones(tmp_path, monkeypatch, name) -> None:
    few = replace(time_blind.RENDERED[name], per_class={"train": 2, "test": 1})
    few = replace(few, classes=dict(list(few.classes.items())[:2]))
    monkeypatch.setitem(time_blind.RENDERED, name, few)
    planned = time_blind.planned(tmp_path, name)
    assert not any(tmp_path.iterdir())
    rendered = time_blind.rendered(tmp_path, name, Console(quiet=True))
    found = open_source(rendered.name)
    assert found.classes == planned.classes
    assert {(video.name, video.labels, video.split, video.path) for video in found.videos} == {
        (video.name, video.labels, video.split, video.path) for video in planned.videos
    }


def test_tables_on_moving_noise_score_their_own_runs_on_other_videos() -> None:
    for table in TABLES.values():
        assert set(table.others) <= set(table.runs)
        if table.others:
            assert table.renders is not None
            assert time_blind.RENDERED[table.renders].others


def test_each_model_has_the_tower_that_its_row_names() -> None:
    recipe = load_config(recipe_path("time-blind"))
    towers = {name: run_config(name, recipe, None).model for name in TABLE.runs}
    assert TABLE.chooses_towers
    assert [model.backbone_of("rgb") for model in towers.values()] == [
        "airstreams", "airstreams", "airstreams", "airstreams", "r2plus1d18", "i3d", "i3d"
    ]  # fmt: skip
    assert towers["blind rgb x3"].streams == ["rgb", "rgb2", "rgb3"]
    assert (towers["blind rgb+flow warped"].flow.levels, towers["blind rgb+flow"].flow.levels) == (3, 1)
    assert {config.training.epochs for config in (run_config(name, recipe, None) for name in TABLE.runs)} == {
        recipe.training.epochs
    }
