"""A file under its final name is whole, whatever happens while it is written."""

import os
import sys

import pytest

from airstreams.errors import InputError
from airstreams.files import exclusive_lock, is_temporary, replacing, temporary_name


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


def test_processes_of_one_number_in_two_containers_write_under_different_names(tmp_path):
    made = {temporary_name(tmp_path / "file.txt") for _ in range(50)}
    assert len(made) == 50
    assert all(map(is_temporary, made))


def test_the_longest_name_can_be_written(tmp_path):
    path = tmp_path / ("ü" * 125 + "x.txt")  # 255 bytes
    write(path, lambda temporary: temporary.write_text(temporary.suffix))
    assert path.read_text() == ".txt"
    assert names(tmp_path) == [path.name]


def test_one_process_works_in_a_folder_and_when_it_is_killed_another_may(held, tmp_path):
    def enter():
        with exclusive_lock(tmp_path / "run", "working"):
            pass

    with held(tmp_path / "run") as first:
        with pytest.raises(InputError, match=r"run: another process is working there; wait"):
            enter()
        first.kill()
        first.wait()
        enter()
    with held(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()  # nothing came into it
    (tmp_path / "mine").mkdir()
    with exclusive_lock(tmp_path / "mine", "working"):
        pass
    assert names(tmp_path / "mine") == []
