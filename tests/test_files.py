"""A file under its final name is whole, whatever happens while it is written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import airstreams
from airstreams.errors import InputError
from airstreams.files import alone_in, is_temporary, replacing, temporary_name


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


HOLD = """
import sys
from pathlib import Path
from airstreams.files import alone_in
with alone_in(Path(sys.argv[1]), "working"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="this system has no such locks")
def test_one_process_works_in_a_folder_and_when_it_is_killed_another_may(tmp_path):
    def hold():
        environment = {**os.environ, "PYTHONPATH": str(Path(airstreams.__file__).parents[1])}
        command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    with hold() as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        with (
            pytest.raises(InputError, match=r"run: another process is working there; wait"),
            alone_in(tmp_path / "run", "working"),
        ):
            pass
        first.kill()
    with hold() as second:
        assert second.stdout is not None
        assert second.stdout.readline() == b"held\n"
    assert not (tmp_path / "run").exists()  # nothing came into it
