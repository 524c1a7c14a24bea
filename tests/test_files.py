"""A file under its final name is whole, whatever happens while it is written."""

import os
import sys

import pytest

from airstreams.files import replacing


def names(folder):
    return [path.name for path in folder.iterdir()]


def write(path, writer):
    with replacing(path) as temporary:
        writer(temporary)


def test_the_file_appears_with_its_content_once_it_is_whole(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with replacing(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.suffix == ".txt"
    assert path.read_text() == "whole"
    assert names(path.parent) == ["file.txt"]


def test_a_writing_that_fails_leaves_the_old_file_alone(tmp_path):
    def fail_halfway(temporary):
        temporary.write_text("half")
        raise RuntimeError("halfway")

    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="halfway"):
        write(path, fail_halfway)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


@pytest.mark.skipif(sys.platform != "linux", reason="no file at hand that takes writes and refuses fsync")
def test_what_cannot_be_brought_to_disk_does_not_get_the_final_name(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="Invalid argument"):
        write(path, lambda temporary: temporary.symlink_to(os.devnull))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]
