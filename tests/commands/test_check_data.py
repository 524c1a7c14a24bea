"""`airstreams check-data`: counts, bad files, and data that cannot be opened."""

from tests.calls import complaint, with_json


def test_classes_and_splits_are_counted(call, synthetic):
    found = with_json(call("check-data", synthetic / "videos", "--json"))
    statistics = found.pop("statistics")
    assert statistics["resolutions"] == {"64x64": 32}
    assert statistics["remarks"] == {}
    for told in ("--data.flip", "--clip.frames"):  # disc_left and square_left; the videos have 8 frames
        assert sum(told in warning for warning in found["warnings"]) == 1
    del found["warnings"]
    assert found == {
        "videos": 32,
        "good": 32,
        "bad": [],
        "classes": {"disc_left": 8, "disc_up": 8, "square_left": 8, "square_up": 8},
        "splits": {"train": 24, "test": 8},
        "unlabelled": 0,
        "frame_rates": {"lowest": 30.0, "highest": 30.0},
        "groups": {"count": 32, "alike": [], "automatic_split": None},
    }


def test_videos_that_look_like_one_recording_are_warned_of_until_they_are_grouped(call, videos, tmp_path):
    data = tmp_path / "data"
    for label in ("disc up", "square_up"):
        (videos / "train" / label.replace(" ", "_")).rename(make(data) / label)
        for number, path in enumerate(sorted((data / label).glob("*.mp4"))):
            path.rename(path.with_name(f"Zoë, film {number // 2} [{number % 2}].mp4"))
    found = with_json(call("check-data", data, "--json"))
    sets = [set(alike["videos"]) for alike in found["groups"]["alike"]]
    assert {"disc up/Zoë, film 0 [0].mp4", "disc up/Zoë, film 0 [1].mp4"} in sets
    assert len(sets) == 6
    assert found["groups"]["count"] == 12
    assert sum("--group-by auto" in warning for warning in found["warnings"]) == 1
    for group_by in ("auto", r"(.*) \["):
        found = with_json(call("check-data", data, "--json", "--group-by", group_by))
        assert found["groups"]["count"] == 6
        assert sum(found["groups"]["automatic_split"].values()) == 12
        assert not any("--group-by" in warning for warning in found["warnings"])


def make(folder):
    folder.mkdir(exist_ok=True)
    return folder


def test_an_expression_that_is_wrong_or_matches_nothing_is_refused(call, videos):
    complaint(call("check-data", videos, "--group-by", "([^/"), "data.group_by", "([^/")
    complaint(call("check-data", videos, "--group-by", "no such text"), "--group-by no such text", "auto")


def test_bad_files_are_listed_with_their_reasons(call, videos):
    text, cut = videos / "train" / "disc_up" / "000.mp4", videos / "test" / "square_up" / "001.mp4"
    text.write_text("Not a film at all.\n" * 40)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    found = with_json(call("check-data", videos, "--json"), status=1)
    assert (found["videos"], found["good"]) == (32, 30)
    reasons = {item["path"]: item["reason"] for item in found["bad"]}
    assert set(reasons) == {str(text), str(cut)}
    assert "not a video" in reasons[str(text)]
    assert "truncated" in reasons[str(cut)]
    assert found["classes"] == {"disc_left": 8, "disc_up": 7, "square_left": 8, "square_up": 7}
    assert found["splits"] == {"train": 23, "test": 7}
    status, out, _ = call("check-data", videos)
    assert status == 1
    for path, reason in reasons.items():
        assert f"{path}: {reason}" in out


def test_missing_files_of_a_csv_are_listed_and_training_refuses_them(call, videos, tmp_path):
    names = sorted(path.relative_to(videos).as_posix() for path in (videos / "train").rglob("*.mp4"))
    for name in names[:3]:
        (videos / name).unlink()
    listed = videos / "list.csv"
    listed.write_text("path,label\n" + "".join(f"{name},{name.split('/')[1]}\n" for name in names))
    found = with_json(call("check-data", listed, "--json"), status=1)
    assert (found["videos"], found["good"]) == (24, 21)
    assert [(item["name"], item["reason"]) for item in found["bad"]] == [(name, "does not exist") for name in names[:3]]
    complaint(call("train", listed, "--out", tmp_path / "run"), "3 of 24 rows", "check-data")
    for name in names[3:15]:
        (videos / name).unlink()
    _, out, _ = call("check-data", listed)
    assert [line.startswith("bad: ") for line in out.splitlines()[-12:]] == [False, *[True] * 10, False]
    assert "5 more" in out.splitlines()[-1]


def test_square_brackets_in_names_are_printed(call, videos):
    (videos / "train" / "disc_up").rename(videos / "train" / "walk [slow]")
    (videos / "test" / "disc_up").rename(videos / "test" / "walk [slow]")
    assert "walk [slow]" in call("check-data", videos)[1]


def test_data_that_does_not_exist_is_refused(call, tmp_path):
    complaint(call("check-data", tmp_path / "absent"), tmp_path / "absent", "does not exist")
    complaint(call("check-data", "imagenet:" + str(tmp_path)), "imagenet", "jhmdb")


def test_an_empty_folder_is_refused(call, tmp_path):
    (tmp_path / "empty").mkdir()
    complaint(call("train", tmp_path / "empty", "--out", tmp_path / "run"), tmp_path / "empty", "no videos")
    complaint(call("check-data", tmp_path / "empty"), tmp_path / "empty", "no videos")


def test_the_root_of_a_csv_file_may_be_given(call, synthetic, tmp_path):
    listed = tmp_path / "list.csv"
    listed.write_text("path,label\ntrain/disc_up/000.mp4,up\ntrain/disc_left/000.mp4,left\n")
    assert with_json(call("check-data", listed, "--root", synthetic / "videos", "--json"))["good"] == 2
    complaint(call("check-data", synthetic / "videos", "--root", tmp_path), "--root")
