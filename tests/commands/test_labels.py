"""`airstreams labels`: counts, contact sheets, and the score against masks."""

import json
import os
import shutil

import pytest

from airstreams.data import label_maps as labels
from tests.calls import complaint, with_json


@pytest.fixture
def label_maps(synthetic, tmp_path):
    """A copy of the label maps that may be damaged."""
    return shutil.copytree(synthetic / "labels", tmp_path / "labels")


def test_label_maps_are_counted_and_a_contact_sheet_is_drawn(call, synthetic, label_maps, tmp_path):
    found = with_json(call("labels", label_maps, "--json"))
    assert (found["videos"], found["frames"], found["truth"], found["bad"]) == (32, 32 * 8, None, [])
    assert found["teacher"] == json.loads((label_maps / "labels.json").read_text())["teacher"]
    shares = [row["pixels"] for row in found["classes"].values()] + [found["pixels_without_label"]]
    assert sum(shares) == pytest.approx(1)
    assert 0 < found["raw_share"] < 1
    sheet = label_maps / "contact_sheet.png"
    assert found["picture"] == str(sheet)
    alone = sheet.read_bytes()
    assert with_json(call("labels", label_maps, "--json")) == found  # its own picture disturbs nothing
    assert sheet.read_bytes() == alone
    other = tmp_path / "new" / "sheet.png"
    status, out, err = call("labels", label_maps, "--data", synthetic / "videos", "--picture", other)
    assert status == 0, err
    assert "32 videos, 256 frames labelled" in " ".join(out.split())
    assert str(other) in out
    assert sheet.read_bytes() == alone
    assert other.read_bytes() != alone  # it has the frames as well


def test_broken_label_maps_and_videos_are_listed(call, videos, label_maps):
    broken = next(label_maps.rglob("*.npz"))
    broken.write_bytes(b"no archive")
    found = with_json(call("labels", label_maps, "--json"), status=1)
    assert found["videos"] == 31
    assert [item["path"] for item in found["bad"]] == [str(broken)]
    status, out, _ = call("labels", label_maps)
    assert status == 1
    assert [line for line in out.splitlines() if line.startswith("bad: ") and str(broken) in line]
    for path in videos.rglob("*.mp4"):
        path.write_bytes(b"")
    found = with_json(call("labels", label_maps, "--data", videos, "--json"), status=1)
    assert found["videos"] == 31
    assert len(found["bad"]) == 1 + 12  # the videos to show
    assert (label_maps / "contact_sheet.png").is_file()


def test_people_are_scored_against_masks(call, synthetic, label_maps, test_data, tmp_path):
    complaint(call("labels", label_maps, "--truth", synthetic / "videos"), "masks")
    assert not (label_maps / "contact_sheet.png").exists()
    delivered = test_data / "jhmdb" / "teacher" / "wave"
    shutil.copytree(delivered, tmp_path / "wave" / "wave")
    labels.create(tmp_path / "wave", "delivered", labels.COCO_CLASSES, {})
    data = f"jhmdb:{test_data / 'jhmdb'}?split=1"
    found = with_json(call("labels", tmp_path / "wave", "--truth", data, "--json"))
    count = len(list(delivered.glob("*.npz")))
    assert (found["truth"]["videos"], found["truth"]["videos_with_masks"]) == (count, 928)
    assert found["truth"]["frames"] == found["frames"]
    assert 0.3 < found["truth"]["person_iou"] < 0.95


def test_a_folder_without_label_maps_or_write_access_is_refused(call, videos, label_maps, tmp_path):
    complaint(call("labels", tmp_path), tmp_path, "labels.json")
    complaint(call("labels", label_maps, "--data", tmp_path / "absent"), tmp_path / "absent")
    label_maps.chmod(0o500)
    if os.access(label_maps, os.W_OK):
        label_maps.chmod(0o700)
        pytest.skip("this user may write everywhere")
    complaint(call("labels", label_maps), label_maps, "--picture")
    status, _, err = call("labels", label_maps, "--picture", tmp_path / "sheet.png")
    label_maps.chmod(0o700)
    assert status == 0, err
