"""The published protocols: one for each data set, carried by its recipe, named by its source."""

from pathlib import Path

import pytest

from airstreams.config import EvaluationConfig
from airstreams.data.benchmarks import BENCHMARKS
from airstreams.data.listing import Source
from airstreams.evaluation.metrics import FIGURES
from airstreams.evaluation.published import NAMES, PUBLISHED, deviations, published_for
from airstreams.recipe import load_config, recipe_path


def test_every_published_data_set_has_a_protocol_of_known_figures():
    assert set(PUBLISHED) == set(BENCHMARKS)
    assert tuple(NAMES) == FIGURES
    assert all(set(published.figures) <= set(FIGURES) for published in PUBLISHED.values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_recipe_of_a_data_set_has_its_views(name):
    config = load_config(recipe_path(name))
    assert deviations(PUBLISHED[name], "test", config.evaluation, left_out=0) == []


def test_a_source_is_of_a_published_data_set_by_its_name(tmp_path):
    assert published_for(Source("hmdb51:data/h?split=2", ("a",), ())) == ("hmdb51", PUBLISHED["hmdb51"])
    for name in ("hmdb51", "data/hmdb51", str(tmp_path), str(Path("c:/moments"))):
        assert published_for(Source(name, ("a",), ())) is None


def test_every_deviation_from_a_protocol_is_named():
    said = deviations(PUBLISHED["charades"], "train", EvaluationConfig(views=4, crops=1), left_out=2)
    assert said == ["split train, not test", "4 views, not 10", "1 crops, not 3", "2 videos left out"]
