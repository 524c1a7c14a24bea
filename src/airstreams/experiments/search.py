"""A search for loss weights, and the database of its trials, which all workers on all machines share."""

import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from airstreams.config import Config
from airstreams.console import stderr, warn
from airstreams.data.listing import Source
from airstreams.errors import InputError, one_line
from airstreams.training.start import Start, read_start

HEARTBEAT = 20  # s
POLL_INTERVAL = 1.0  # s between two looks at the database
OPENING_ATTEMPTS = 10  # for the database
LOCK_WAIT, LOCK_WAITS = 60.0, 10  # s to wait for a locked SQLite database before a remark, and how often
RETRIES = 3  # of a trial whose worker died; after that, another trial takes its place

SamplerName = Literal["tournament", "tpe", "random"]


@dataclass(frozen=True)
class Search:
    """What a worker has to know.

    source: the data, with splits.
    config: the recipe.
    folder: of the study; the trainings and the results go there.
    url: of the database.
    trials: how many to evaluate in all.
    sampler: draws the weights.
    init: what each training starts from, as `read_start` takes it; None: random weights.
    trust: names of modules that may be imported for the custom streams of `init`.
    heartbeat: seconds between two signs of life of a trial. After four missing ones, its worker is taken to be dead.
    """

    source: Source
    config: Config
    folder: Path
    url: str
    trials: int
    sampler: SamplerName = "tournament"
    init: str | None = None
    trust: tuple[str, ...] = ()
    heartbeat: int = HEARTBEAT

    @property
    def name(self) -> str:
        """The study's name in the database."""
        return self.folder.resolve().name

    def read_init(self) -> Start | None:
        """What each training starts from. The command has fetched it. InputError: as `read_start`."""
        if self.init is None:
            return None
        return read_start(self.init, offline=True, trust=self.trust).for_streams(self.config.model.streams)


def open_storage(search: Search) -> RDBStorage:
    """The database of a search, with heartbeats. InputError: it cannot be used."""
    url = search.url
    if url.startswith("postgresql://"):  # pg8000 is the driver with a permissive licence
        url = url.replace("postgresql://", "postgresql+pg8000://", 1)
    # SQLite lets one process write at a time; the others must wait for it instead of failing.
    options = (
        {"connect_args": {"timeout": LOCK_WAIT}}
        if url.startswith("sqlite")
        else {"pool_pre_ping": True, "pool_size": 1}
    )
    retry = RetryHeartbeatStaleTrialCallback(max_retry=RETRIES, inherit_intermediate_values=True)
    open_once = partial(
        RDBStorage,
        url,
        options,
        heartbeat_interval=search.heartbeat,
        grace_period=4 * search.heartbeat,
        heartbeat_stale_trial_callback=retry,
    )
    try:
        storage = _open_with_retries(open_once)
        if storage.engine.dialect.name == "sqlite":
            _lock_from_begin(storage.engine)
        return storage
    except ImportError as error:
        raise InputError(
            f"--storage {search.url.split('://')[0]}: its driver is missing ({error}). "
            "Install it; for PostgreSQL: pip install pg8000."
        ) from error
    except (ArgumentError, SQLAlchemyError) as error:
        raise InputError(
            f"--storage: the database cannot be used ({one_line(error)[:200]}). "
            "Give the URL of a running database, such as postgresql://user:password@host/database."
        ) from error


def _open_with_retries(open_once: Callable[[], RDBStorage]) -> RDBStorage:
    """Call `open_once` again while other workers create the tables of the same empty database.

    Optuna creates the tables that it finds missing. If several workers start at once, all find them missing, one
    creates them, and the statements of the others fail.
    """
    for _ in range(OPENING_ATTEMPTS - 1):
        try:
            return open_once()
        except DBAPIError as error:
            if error.statement is None:  # no connection
                raise
            time.sleep(0.1)
    return open_once()


def _lock_from_begin(engine: Engine) -> None:
    """Let SQLite lock the database when a transaction begins, not when it first writes.

    Before Optuna takes a waiting trial, it asks the database to lock the trial's row. SQLite has no such lock: two
    workers could both read that the trial waits, and both take it.
    """
    event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
    event.listen(engine, "begin", _begin_at_once)
    engine.dispose()  # the connections that were made before


def _begin_at_once(connection: Connection) -> None:
    """Begin a transaction of SQLite with its lock. Another process, or a network disk, may hold the lock for long."""
    for waited in range(1, LOCK_WAITS):
        try:
            connection.connection.cursor().execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            warn(stderr, f"the study's database has been locked for {waited * LOCK_WAIT:g} s. Still waiting for it")
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def valid_trials(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """All trials except failed ones: those are repeated as other trials, or surplus. Diverged trials are valid."""
    return [trial for trial in trials if trial.state != TrialState.FAIL or "diverged" in trial.user_attrs]


def best_first(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The complete trials, the best first; of equal ones, the older first."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return sorted(complete, key=lambda trial: (-(trial.value or 0.0), trial.number))


def trial_folder(search: Search, study: Study, trial: Trial | FrozenTrial) -> Path:
    """The run folder of a trial's training."""
    folder = "trials" if study.study_name == search.name else study.study_name.removeprefix(f"{search.name}-")
    return search.folder / folder / f"{trial.number:04d}"
