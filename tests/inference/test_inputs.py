"""What the words of a call of `predict` name."""

import io

import pytest

from airstreams.errors import InputError
from airstreams.inference.inputs import list_videos


@pytest.fixture
def clips(tmp_path, monkeypatch):
    for name in ("b/left, 1.mp4", "b/[x] ü.avi", "a/1.mp4", "a/deep/2.MKV", "a/notes.txt", "a/.hidden.mp4"):
        path = tmp_path / "clips" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*words, stdin=b""):
    return [video.name for video in list_videos(words, io.BytesIO(stdin)).videos]


def test_a_folder_gives_its_videos_in_a_stable_order(clips):
    listed = list_videos(["clips"], io.BytesIO())
    assert [video.name for video in listed.videos] == [
        "clips/a/1.mp4", "clips/a/deep/2.MKV", "clips/b/[x] ü.avi", "clips/b/left, 1.mp4"
    ]  # fmt: skip
    (note,) = listed.notes
    assert ".txt" in note


def test_a_pattern_gives_its_matches_and_a_name_with_brackets_is_a_name(clips):
    assert names("clips/*/*.mp4") == ["clips/a/1.mp4", "clips/b/left, 1.mp4"]
    assert names("clips/**/*.MKV") == ["clips/a/deep/2.MKV"]
    assert names("clips/b/[x] ü.avi") == ["clips/b/[x] ü.avi"]
    with pytest.raises(InputError, match=r"none\*"):
        names("none*.mp4")


@pytest.mark.parametrize("separator", [b"\n", b"\r\n", b"\0"])
def test_stdin_gives_paths(clips, separator):
    paths = [b"clips/a/1.mp4", "clips/b/[x] ü.avi".encode()]
    assert names("-", stdin=separator.join([*paths, b""])) == ["clips/a/1.mp4", "clips/b/[x] ü.avi"]
    with pytest.raises(InputError, match="stdin"):
        names("-")


def test_a_csv_file_gives_segments(clips):
    (clips / "clips" / "list.csv").write_text("path,start,end\na/1.mp4,0.5,2\na/1.mp4,,\nabsent.mp4,,\n")
    videos = list_videos(["clips/list.csv"], io.BytesIO()).videos
    assert [video.name for video in videos] == ["clips/a/1.mp4#t=0.5,2.0", "clips/a/1.mp4", "clips/absent.mp4"]
    assert (videos[0].start, videos[0].end) == (0.5, 2.0)


def test_paths_of_a_csv_file_are_relative_to_the_root(clips):
    (clips / "list.csv").write_text("path,label\na/1.mp4,x\n")
    with pytest.raises(InputError, match="--root DIR"):
        names("list.csv")
    listed = list_videos(["list.csv"], io.BytesIO(), root=clips / "clips")
    assert [video.path for video in listed.videos] == [clips / "clips" / "a" / "1.mp4"]
    for word, root in (("list.csv", clips / "absent"), ("clips/a/1.mp4", clips)):
        with pytest.raises(InputError, match="--root"):
            list_videos([word], io.BytesIO(), root)


def test_a_video_that_is_named_twice_is_listed_once(clips):
    listed = list_videos(["clips/a/1.mp4", "clips/a", "clips/a/1.mp4"], io.BytesIO())
    assert len(listed.videos) == 2
    assert any("2 paths" in note for note in listed.notes)


def test_missing_files_alone_are_refused(clips):
    assert names("absent.mp4", "clips/a/1.mp4") == ["absent.mp4", "clips/a/1.mp4"]
    with pytest.raises(InputError, match=r"absent\.mp4"):
        names("absent.mp4")
    (clips / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        names("empty")
