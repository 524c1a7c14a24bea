"""`airstreams predict`: answers, windows, and files that cannot be read."""

import csv
import json

import pytest

from airstreams.runs import saved_model as saved_models
from tests.calls import complaint, with_json


def test_a_bad_file_is_left_out_and_the_others_are_scored(call, trained, videos):
    good, text = videos / "test" / "disc_up" / "000.mp4", videos / "notes.mp4"
    text.write_text("Not a film at all.\n" * 40)
    found = with_json(call("predict", trained, text, good, "--json"), status=1)
    assert [item["path"] for item in found["videos"]] == [str(good)]
    assert set(found["videos"][0]) == {"path", "top", "windows"}
    assert all(set(item) == {"label", "probability"} for item in found["videos"][0]["top"])
    assert sum(item["probability"] for item in found["videos"][0]["top"]) == pytest.approx(1, abs=1e-5)
    assert found["left_out"][0]["path"] == str(text)
    assert "not a video" in found["left_out"][0]["reason"]
    status, out, err = call("predict", trained, text, good)
    assert status == 1
    assert str(good) in out
    assert len(err.splitlines()) == 1
    assert "notes.mp4" in err
    assert "not a video" in err


def test_a_long_video_has_windows(call, run, synthetic):
    saved = saved_models.load(run)
    saved.config.evaluation.window = 0.1
    saved_models.save(saved, run)
    video = synthetic / "videos" / "test" / "disc_up" / "000.mp4"
    windows = with_json(call("predict", run, video, "--json"))["videos"][0]["windows"]
    assert [set(window) for window in windows] == [{"start", "end", "top"}] * 3
    assert windows[0]["start"] == 0
    assert windows[0]["end"] == windows[1]["start"]


def test_a_folder_without_a_run_and_a_missing_file_are_refused(call, trained, synthetic, tmp_path):
    video = synthetic / "videos" / "test" / "disc_up" / "000.mp4"
    complaint(call("predict", tmp_path, video), tmp_path, "model.json", "train")
    url = "https://example.com/a.mp4"
    complaint(call("predict", trained, url), url)
    complaint(call("predict", tmp_path / "absent", video), tmp_path / "absent")
    complaint(call("evaluate", tmp_path, synthetic / "videos"), tmp_path, "model.json")
    complaint(call("info", tmp_path), tmp_path, "model.json")


@pytest.fixture
def folder(videos):
    """Eight videos, and one that cannot be read."""
    (videos / "test" / "disc_up" / "bad.mp4").write_text("Not a film at all.\n" * 40)
    return videos / "test"


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_file_grows_and_is_never_repeated(call, trained, folder, tmp_path):
    out = tmp_path / "out.csv"
    assert call("predict", trained, folder, "--out", out, "--top", 2)[0] == 1
    rows = rows_of(out)
    assert len(rows) == len({row["path"] for row in rows}) == 9
    assert list(rows[0])[:6] == ["path", "start", "end", "left_out", "label_1", "probability_1"]
    assert [bool(row["left_out"]) for row in rows].count(True) == 1

    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:6]) + lines[6][:-4])  # as a kill leaves it
    _, _, err = call("predict", trained, folder, "--out", out, "--top", 2)
    assert "4 done before" in err  # and a fifth, which was left out: it is tried again
    assert {row["path"]: row["label_1"] for row in rows_of(out)} == {row["path"]: row["label_1"] for row in rows}
    assert len(rows_of(out)) == 9
    (folder / "disc_up" / "bad.mp4").unlink()
    status, _, err = call("predict", trained, folder, "--out", out, "--top", 2)
    assert status == 0
    assert "0 videos" in err
    assert len(rows_of(out)) == 8  # the bad one was tried again, and is gone


def test_json_lines_carry_what_json_prints(call, trained, folder, tmp_path):
    out = tmp_path / "out.jsonl"
    printed = with_json(call("predict", trained, folder, "--out", out, "--json"), status=1)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row for row in rows if "left_out" not in row] == printed["videos"]
    (bad,) = (row for row in rows if "left_out" in row)
    assert printed["left_out"] == [{"path": bad["path"], "reason": bad["left_out"]}]
    out.write_text(out.read_text()[:-10])
    again = with_json(call("predict", trained, folder, "--out", out, "--json"), status=1)
    assert [item["path"] for item in again["videos"]] == [rows[-1]["path"]]


def test_a_file_of_another_job_is_refused(call, trained, run, folder, tmp_path):
    out = tmp_path / "out.csv"
    video = folder / "disc_up" / "000.mp4"
    assert call("predict", trained, video, "--out", out)[0] == 0
    complaint(call("predict", trained, video, "--out", out, "--top", 2), out, "--top")
    complaint(call("predict", trained, video, "--out", out, "--window", 2), out, "--window")
    complaint(call("predict", trained, video, "--out", out, "--precision", "bfloat16"), out, "--precision")
    saved = saved_models.load(run)
    saved.config.evaluation.views = 1
    saved_models.save(saved, run)
    complaint(call("predict", run, video, "--out", out), out, "model")
    (tmp_path / "own.csv").write_text("mine\n")
    complaint(call("predict", trained, video, "--out", tmp_path / "own.csv"), "own.csv")
    assert (tmp_path / "own.csv").read_text() == "mine\n"
    complaint(call("predict", trained, video, "--out", tmp_path / "out.txt"), "--out", ".csv")
    complaint(call("predict", trained, video, "--timeline", tmp_path / "out.csv"), "--timeline", "--out")
    complaint(call("predict", trained, video, "--window", 0), "--window")


def test_a_timeline_has_a_row_for_each_window(call, trained, folder, tmp_path):
    out, timeline = tmp_path / "out.csv", tmp_path / "timeline.csv"
    options = ["--out", out, "--timeline", timeline, "--window", 0.1, "--top", 1]
    assert call("predict", trained, folder / "disc_up" / "000.mp4", folder / "disc_up" / "001.mp4", *options)[0] == 0
    rows = rows_of(timeline)
    assert list(rows[0]) == ["path", "start", "end", "label_1", "probability_1"]
    assert [row["start"] for row in rows] == ["0.0", "0.1", "0.2"] * 2
    kept = out.read_text().splitlines(keepends=True)[:2]
    out.write_text("".join(kept))  # a kill between the windows and the row of the second video
    assert call("predict", trained, folder / "disc_up" / "000.mp4", folder / "disc_up" / "001.mp4", *options)[0] == 0
    again = rows_of(timeline)
    # The passes hold other clips now, so the last digit of a probability may differ.
    assert [float(row.pop("probability_1")) for row in again] == pytest.approx(
        [float(row.pop("probability_1")) for row in rows], abs=1e-5
    )
    assert again == rows
