"""Runs on the Hugging Face hub, from a cache laid out as huggingface_hub does it. There is no network."""

import shutil
import sys

import pytest

from airstreams.errors import InputError
from airstreams.training.start import read_start


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of huggingface_hub, whose hub cannot be reached."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    return tmp_path


def add(cache, run, commit="a" * 40):
    repo = cache / "models--me--run"
    shutil.copytree(run, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    return repo / "snapshots" / commit


def test_a_run_of_the_hub_is_a_start(cache, trained):
    folder = add(cache, trained)
    start = read_start("hf:me/run", offline=True)
    assert start.run is not None
    assert start.run.samefile(folder)
    assert start.backbone is None


def test_a_repository_without_a_run_is_rejected(cache, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "README.md").write_text("no run")
    add(cache, other)
    with pytest.raises(InputError, match=r"hf:me/run.*model\.json"):
        read_start("hf:me/run", offline=True)


@pytest.mark.parametrize(("repo", "offline"), [("me/absent", True), ("me/absent", False), ("no repo at all", True)])
def test_what_cannot_be_fetched_is_named_in_one_line(cache, repo, offline):
    with pytest.raises(InputError, match=f"hf:{repo}") as raised:
        read_start(f"hf:{repo}", offline)
    assert "\n" not in str(raised.value)
    assert ("--offline" in str(raised.value)) == offline


def test_a_missing_huggingface_hub_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="pip install huggingface_hub"):
        read_start("hf:me/run")
