"""docs/deviations.md says what the code does."""

import re
from pathlib import Path

import pytest
import yaml

from airstreams.config import Config
from airstreams.recipe import load_config, recipe_path

PAGE = (Path(__file__).parents[1] / "docs" / "deviations.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `([a-z_.]+)` \| `(\S+)` \| `(\S+)` \|", PAGE, flags=re.M)


def value(config, key):
    for name in key.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize(("key", "paper", "ours"), ROWS, ids=[row[0] for row in ROWS])
def test_each_key_has_our_default_and_the_papers_value_in_the_recipe(key, paper, ours):
    recipe = load_config(recipe_path("hmdb51-paper"))
    assert (value(Config(), key), value(recipe, key)) == (yaml.safe_load(ours), yaml.safe_load(paper))


def test_the_papers_recipe_differs_from_ours_in_these_keys_alone():
    assert len(ROWS) == 6
    recipe, ours = load_config(recipe_path("hmdb51-paper")), load_config(recipe_path("hmdb51"))
    for key, _, _ in ROWS:
        *path, name = key.split(".")
        section = recipe
        for part in path:
            section = getattr(section, part)
        setattr(section, name, value(ours, key))
    assert recipe == ours
