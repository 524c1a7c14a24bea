"""`airstreams predict`: answers, windows, and files that cannot be read."""

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
