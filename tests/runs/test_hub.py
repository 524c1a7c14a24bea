"""Runs on the Hugging Face hub, from a cache laid out as huggingface_hub does it. There is no network."""

import json
import os
import secrets
import shutil
import sys
from pathlib import Path

import pytest

import airstreams
from airstreams.errors import InputError
from airstreams.runs.folder import RunFolder
from airstreams.runs.hub import local_run
from airstreams.training.start import StartRecord, read_start
from tests.calls import complaint, with_json


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


PUSHED = {"README.md", "metrics.jsonl", "model.json", "model.safetensors", "start.json", "evaluation/test/figures.json"}


@pytest.fixture
def hub(cache, monkeypatch):
    """A hub with a token, whose uploads land in the cache. Only the two calls of the network are replaced."""
    from huggingface_hub import HfApi

    def upload_folder(api, *, repo_id, folder_path, commit_message):
        add(cache, Path(folder_path))

    def create_repo(api, repo, **options):
        created.append(options)
        return f"page/{repo}"

    created: list[dict[str, bool]] = []
    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    return created


def test_a_pushed_run_can_be_loaded_and_started_from(call, hub, cache, run, synthetic):
    StartRecord("/home/anna/rgb.pt,flow=/home/anna/flow.pt", "by me (MIT)", ["early.rgb.x"]).write(RunFolder(run))
    record = {"seconds": 1.0, "left_out": ["anna.mp4: cut"]}
    (run / "metrics.jsonl").write_text(json.dumps({"epoch": 1, "step": 1, "train": record}) + "\n")
    airstreams.evaluate(run, synthetic / "videos")
    pushed = with_json(call("export", run, "--hub", "hf:me/run", "--json"))
    assert pushed == {"repository": "hf:me/run", "page": "page/me/run"}
    assert hub == [{"private": True, "exist_ok": True}]
    folder = local_run("hf:me/run", offline=True)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == PUSHED
    for name in PUSHED - {"model.safetensors"}:
        text = (folder / name).read_text()
        assert "anna" not in text
        assert str(run.parent) not in text
        assert "000.mp4" not in text
    card = (folder / "README.md").read_text()
    assert "airstreams predict hf:me/run" in card
    assert "by me (MIT)" in card
    assert read_start("hf:me/run", offline=True).source == "by me (MIT)"
    video = next((synthetic / "videos" / "test").rglob("*.mp4"))
    answers = [airstreams.load(address).predict(video).probabilities for address in ("hf:me/run", run)]
    assert answers[0] == answers[1]
    assert with_json(call("predict", "hf:me/run", video, "--json"))["videos"][0]["top"]


@pytest.mark.parametrize("address", ["me/run", "hf:run", "hf:me/run/x", "hf:"])
def test_another_address_than_a_repository_is_refused(call, trained, address):
    complaint(call("export", trained, "--hub", address), address, "hf:OWNER/NAME")


def test_a_push_that_cannot_work_is_refused_in_one_line(call, hub, trained, monkeypatch, tmp_path):
    complaint(call("export", trained), "--out", "--hub")
    complaint(call("export", trained, "--hub", "hf:me/run", "--out", tmp_path / "a.pt2"), "--out", "--hub")
    complaint(call("export", trained, "--hub", "hf:me/run", "--offline"), "--offline")
    complaint(call("export", tmp_path, "--hub", "hf:me/run"), tmp_path, "model.json")
    assert hub == []
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
    complaint(call("export", trained, "--hub", "hf:me/run"), "hf:me/run", "HF_TOKEN")


def test_a_hub_that_cannot_be_reached_is_named_in_one_line(call, cache, trained, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    complaint(call("export", trained, "--hub", "hf:me/run"), "hf:me/run", "network")


def test_a_run_is_really_pushed(call, trained):
    if "HF_TOKEN" not in os.environ:
        pytest.skip("HF_TOKEN is not set")
    hub = pytest.importorskip("huggingface_hub").HfApi()
    repo = f"{hub.whoami()['name']}/airstreams-test-{secrets.token_hex(4)}"
    try:
        with_json(call("export", trained, "--hub", f"hf:{repo}", "--json"))
        assert airstreams.load(f"hf:{repo}").classes == airstreams.load(trained).classes
    finally:
        hub.delete_repo(repo, missing_ok=True)
