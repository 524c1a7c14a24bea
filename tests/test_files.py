"""Atomic writes and locks: a file under its final name is complete, whatever happens while it is written."""

import csv
import os
import sys

import pytest

from airstreams.errors import InputError
from airstreams.files import (
    exclusive_lock,
    is_file,
    is_folder,
    is_temporary,
    read_rows,
    replacing,
    temporary_name,
    write_rows,
)


def names(folder):
    return [path.name for path in folder.iterdir()]


def write(path, writer):
    with replacing(path) as temporary:
        writer(temporary)


def test_a_file_appears_once_it_is_complete(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with replacing(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.suffix == ".txt"
    assert path.read_text() == "whole"
    assert names(path.parent) == ["file.txt"]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    def fail_halfway(temporary):
        temporary.write_text("half")
        raise RuntimeError("halfway")

    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="halfway"):
        write(path, fail_halfway)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


@pytest.mark.skipif(sys.platform != "linux", reason="no file here that accepts writes and refuses fsync")
def test_a_failed_fsync_keeps_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="Invalid argument"):
        write(path, lambda temporary: temporary.symlink_to(os.devnull))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_temporary_names_differ_in_one_process(tmp_path):
    made = {temporary_name(tmp_path / "file.txt") for _ in range(50)}
    assert len(made) == 50
    assert all(map(is_temporary, made))


def test_the_longest_name_can_be_written(tmp_path):
    path = tmp_path / ("ü" * 125 + "x.txt")  # 255 bytes
    write(path, lambda temporary: temporary.write_text(temporary.suffix))
    assert path.read_text() == ".txt"
    assert names(tmp_path) == [path.name]


def test_a_lock_excludes_other_processes_until_its_holder_ends(held, tmp_path):
    def enter():
        with exclusive_lock(tmp_path / "run", "working"):
            pass

    with held(tmp_path / "run") as first:
        with pytest.raises(InputError, match=r"run: another process is working there"):
            enter()
        first.kill()
        first.wait()
        enter()
    with held(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()  # it stayed empty
    (tmp_path / "mine").mkdir()
    with exclusive_lock(tmp_path / "mine", "working"):
        pass
    assert names(tmp_path / "mine") == []


CELLS = ["=1+1", "+49", "-x.mp4", "@SUM(A1)", "'=1", "''-1", "'quoted'", "a=b", "", "jump"]


def test_texts_that_a_spreadsheet_takes_for_formulas_are_escaped_and_read_back(tmp_path):
    path = tmp_path / "cells.csv"
    write_rows(path, ["name", "=label"], [[cell, -1.5] for cell in CELLS])
    with path.open(newline="") as file:
        written = list(csv.reader(file))
    assert written[0] == ["name", "'=label"]
    assert [row[0] for row in written[1:]] == ["'=1+1", "'+49", "'-x.mp4", "'@SUM(A1)", "''=1", "'''-1", *CELLS[6:]]
    assert {row[1] for row in written[1:]} == {"-1.5"}  # a number is none
    rows = read_rows(path, required=("name", "=label"))
    assert [row["name"] for _, row in rows] == CELLS


def test_a_name_that_no_file_can_have_is_no_file(tmp_path):
    for name in ("a" * 5000, "a\0b"):
        assert not is_file(tmp_path / name)
        assert not is_folder(tmp_path / name)
