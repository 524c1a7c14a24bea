"""A few cases of `make fuzz`, the same every time."""

import sys

import pytest

from airstreams.errors import InputError
from benchmarks.fuzz import Originals, run_case


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    return Originals.make(tmp_path_factory.mktemp("fuzz") / "originals")


@pytest.mark.skipif(sys.platform == "win32", reason="no alarms")
@pytest.mark.parametrize("kind", ["videos", "csv_files", "label_stores", "models", "recipes", "calls"])
def test_changed_inputs_are_accepted_or_refused_in_one_line(kind, originals, tmp_path):
    found = [run_case(kind, originals.kinds[kind], number, 0, tmp_path / "case") for number in range(8)]
    assert [finding for finding in found if finding] == []


def test_a_traceback_and_a_message_of_two_lines_are_findings(tmp_path):
    def fails(rng, folder):
        raise KeyError("a")

    def speaks_twice(rng, folder):
        raise InputError("one line\nand another")

    def is_refused(rng, folder):
        raise InputError("one line")

    for case, finds in ((fails, True), (speaks_twice, True), (is_refused, False)):
        assert (run_case("calls", case, 0, 0, tmp_path / "case") is not None) == finds
