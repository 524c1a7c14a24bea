"""Published protocols: one for each data set, with the views of its recipe."""

from pathlib import Path

import pytest

from airstreams.config import EvaluationConfig
from airstreams.data.benchmarks import BENCHMARKS
from airstreams.data.listing import Source, Video
from airstreams.data.sources import open_source
from airstreams.evaluation.metrics import METRICS
from airstreams.evaluation.published import NAMES, PUBLISHED, deviations, published_for
from airstreams.recipe import load_config, recipe_path


def listed(name, videos, split="test"):
    """A source with this many videos."""
    return Source(name, ("a",), tuple(Video(Path(str(n)), str(n), ("a",), split=split) for n in range(videos)))


def test_every_published_data_set_has_a_protocol():
    assert set(PUBLISHED) == set(BENCHMARKS)
    assert tuple(NAMES) == METRICS
    assert all(set(published.metrics) <= set(METRICS) for published in PUBLISHED.values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_have_the_views_of_the_protocol(name):
    config = load_config(recipe_path(name))
    published = PUBLISHED[name]
    for option, videos in published.videos.items() or {"": 3}.items():
        source = listed(f"{name}:there{'?' * bool(option)}{option}", videos)
        assert deviations(published, source, "test", config.evaluation, left_out=0) == []


def test_the_protocol_follows_from_the_sources_name(tmp_path):
    assert published_for(Source("hmdb51:data/h?split=2", ("a",), ())) == ("hmdb51", PUBLISHED["hmdb51"])
    for name in ("hmdb51", "data/hmdb51", str(tmp_path), str(Path("c:/moments"))):
        assert published_for(Source(name, ("a",), ())) is None


def test_every_deviation_is_reported():
    some = listed("charades:there", 3, "train")
    found = deviations(PUBLISHED["charades"], some, "train", EvaluationConfig(views=4, crops=1), left_out=2)
    assert found == ["split train, not test", "4 views, not 10", "1 crop, not 3", "2 videos left out"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("charades:there", 1863),
        ("hmdb51:there", 1530),
        ("jhmdb:there?split=2", 270),
        ("moments:there?release=305", 30500),
        ("moments:there", None),  # a release of one class
        ("smarthome:there", None),
    ],
)
def test_a_shortened_list_is_reported(name, expected):
    published = PUBLISHED[name.partition(":")[0]]
    evaluation = EvaluationConfig(views=published.views, crops=published.crops)
    found = deviations(published, listed(name, 10), "test", evaluation, left_out=0)
    assert found == ([f"10 videos listed, not {expected}"] if expected else [])


def test_real_lists_have_the_published_length(test_data):
    for split in (1, 2, 3):
        source = open_source(f"jhmdb:{test_data}/jhmdb?split={split}")
        assert len(source.split("test")) == PUBLISHED["jhmdb"].videos[f"split={split}"]
