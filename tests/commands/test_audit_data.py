"""The verb audit-data: its list, its page, its JSON and its messages."""

import csv
import json
import shutil

import numpy as np
import pytest

from airstreams.data.dataset import VideoViews
from airstreams.data.sources import open_source
from airstreams.evaluation import data_audit
from airstreams.inference import features
from airstreams.inference.features import Embedder


@pytest.fixture
def planted(monkeypatch, synthetic, tiny):
    """Features that tell the true class of the rendered videos; and how many videos they were asked for."""
    source = open_source(str(synthetic / "videos"))
    views = VideoViews(source.videos, tiny)
    label_of = {views.read(video).clips.numpy().tobytes(): video.labels[0] for video in source.videos}
    rng, asked = np.random.default_rng(0), []

    def embed(clips_VTHW3):
        asked.append(1)
        place = source.classes.index(label_of[clips_VTHW3.numpy().tobytes()])
        return np.eye(4)[place] + 0.05 * rng.normal(size=4)

    monkeypatch.setattr(features, "load_embedder", lambda *given: Embedder(tiny, embed, "planted", None))
    return asked


@pytest.fixture
def listed(videos, tmp_path):
    """A list of the videos with one wrong label, and a copy of a video in another class."""
    copy = videos / "train/disc_up/one, [two] ü.mp4"
    shutil.copy(videos / "train/square_left/001.mp4", copy)
    rows = [(path.relative_to(videos), path.parent.name, path.parts[-3]) for path in sorted(videos.rglob("*.mp4"))]
    wrong = "train/disc_left/002.mp4"
    path = tmp_path / "list.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(("path", "label", "split"))
        lines.writerows((name, "square_up" if str(name) == wrong else label, split) for name, label, split in rows)
    return f"{path}?root={videos}", wrong, copy.relative_to(videos)


def test_a_wrong_label_and_a_copy_are_found(planted, listed, call, tmp_path):
    pytest.importorskip("cleanlab")
    data, wrong, copy = listed
    out = tmp_path / "found"
    status, printed, _ = call("audit-data", data, "--run", "planted", "--out", out, "--json")
    assert status == 0
    content = json.loads(printed)
    assert (content["videos"], content["left_out"], len(planted)) == (33, [], 33)
    found = {(row["problem"], row["path"].partition("videos/")[2]): row for row in content["problems"]}
    row = found["label", wrong]
    assert (row["label"], row["suggested_label"], row["other_path"]) == ("square_up", "disc_left", None)
    assert 0.5 < row["score"] <= 1
    duplicates = {path: row["other_path"] for (kind, path), row in found.items() if kind == "duplicate_class"}
    assert any(str(copy) in (path, other.partition("videos/")[2]) for path, other in duplicates.items())
    with (out / "problems.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [row["path"] for row in content["problems"]]
    assert list(rows[0]) == ["path", "problem", "label", "suggested_label", "score", "other_path"]
    page = (out / "index.html").read_text(encoding="utf-8")
    assert wrong in page
    assert page.count("data:image/jpeg;base64,") >= len(rows)
    assert not [word for word in ("http:", "https:", str(tmp_path)) if word in page]
    status, printed, _ = call("audit-data", data, "--run", "planted", "--out", out)
    assert (status, len(planted)) == (0, 33)  # features are kept
    assert "index.html" in printed


def test_a_run_that_was_trained_on_the_videos_is_named(run, synthetic, call, tmp_path):
    pytest.importorskip("cleanlab")
    status, printed, err = call("audit-data", synthetic / "videos", "--run", run, "--out", tmp_path / "out", "--json")
    assert status == 0
    assert "24 of these 32 videos" in err
    assert json.loads(printed)["videos"] == 32


def test_unreadable_videos_are_left_out(planted, videos, call, tmp_path):
    pytest.importorskip("cleanlab")
    (videos / "train/disc_up/000.mp4").write_bytes(b"no video")
    status, printed, _ = call("audit-data", videos, "--run", "planted", "--out", tmp_path / "out", "--json")
    assert status == 1
    assert [row["path"] for row in json.loads(printed)["left_out"]] == [str(videos / "train/disc_up/000.mp4")]


def test_without_cleanlab_one_line_says_what_to_install(monkeypatch, call, tmp_path):
    monkeypatch.setattr(data_audit, "find_spec", lambda name: None)
    status, _, err = call("audit-data", tmp_path, "--run", "i3d-kinetics400", "--out", tmp_path / "out")
    assert (status, err.count("\n"), "airstreams[audit]" in err) == (2, 1, True)
    assert not (tmp_path / "out").exists()


def test_an_unknown_run_is_refused(synthetic, call, tmp_path):
    pytest.importorskip("cleanlab")
    status, _, err = call("audit-data", synthetic / "videos", "--run", tmp_path / "none", "--out", tmp_path / "out")
    assert (status, "none" in err) == (2, True)
