"""A study's database that another process locks for long: the search waits with a remark, then says what to do."""

import sqlite3
import threading
from contextlib import closing

import optuna
import pytest

from airstreams.experiments import search as searches
from airstreams.experiments.search import Search, open_storage


@pytest.fixture
def database(tmp_path, monkeypatch):
    monkeypatch.setattr(searches, "LOCK_WAIT", 0.2)
    monkeypatch.setattr(searches, "LOCK_WAITS", 4)
    return tmp_path / "study.db"


def storage_of(database):
    return open_storage(Search(None, None, database.parent, f"sqlite:///{database}", 1))  # type: ignore[arg-type]


def test_a_lock_is_waited_for_with_a_remark(database, capsys):
    storage = storage_of(database)
    with closing(sqlite3.connect(database, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")
        threading.Timer(0.5, lambda: other.execute("COMMIT")).start()
        optuna.create_study(storage=storage, study_name="mine")
    assert "locked" in capsys.readouterr().err


def test_a_lock_that_stays_is_an_error(database):
    storage = storage_of(database)
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(optuna.exceptions.StorageInternalError) as raised:
            optuna.create_study(storage=storage, study_name="mine")
    assert "locked" in str(raised.value.__cause__)
