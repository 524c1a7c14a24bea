"""A search for loss weights, and its trials in a storage that workers, on one machine or many, share."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import Engine, event
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from airstreams.config import Config
from airstreams.data.listing import Source
from airstreams.errors import InputError, one_line

HEARTBEAT = 20  # s
LOOK_EVERY = 1.0  # s from one look into the storage to the next
OPENINGS = 10  # tries, of a storage
RETRIES = 3  # of a trial whose worker died; after that another one is drawn in its place

SamplerName = Literal["tournament", "tpe", "random"]


@dataclass(frozen=True)
class Search:
    """What a worker has to know.

    source: the data, with splits.
    config: the recipe.
    folder: STUDY, for trainings and results.
    url: of the storage.
    trials: that are evaluated in all.
    sampler: of weights.
    heartbeat: s from one sign of life of a trial to the next; four of them missed, it is taken to be dead.
    """

    source: Source
    config: Config
    folder: Path
    url: str
    trials: int
    sampler: SamplerName = "tournament"
    heartbeat: int = HEARTBEAT

    @property
    def name(self) -> str:
        """Of the study in its storage."""
        return self.folder.resolve().name


def open_storage(search: Search) -> RDBStorage:
    """The storage of a search, with heartbeats. InputError: it cannot be reached."""
    url = search.url
    if url.startswith("postgresql://"):  # the driver whose licence is permissive
        url = url.replace("postgresql://", "postgresql+pg8000://", 1)
    # SQLite lets one process write at a time; the others are to wait, not to fail.
    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True, "pool_size": 1}
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
        storage = _opened(open_once)
        if storage.engine.dialect.name == "sqlite":
            _lock_while_reading(storage.engine)
        return storage
    except ImportError as error:
        raise InputError(
            f"--storage {search.url.split('://')[0]}: no driver for it ({error}); pip install pg8000"
        ) from error
    except (ArgumentError, SQLAlchemyError) as error:
        reason = one_line(error)[:200]
        raise InputError(
            f"--storage: the database cannot be used ({reason}); expected a URL such as "
            "postgresql://user:password@host/database of a database that runs"
        ) from error


def _opened(open_once: Callable[[], RDBStorage]) -> RDBStorage:
    """What `open_once` gives, tried again while others that begin with the same empty database are in its way.

    Optuna makes the tables that it finds missing. Of several workers that start at once each finds them missing, one
    makes them, and the others' statements fail.
    """
    for _ in range(OPENINGS - 1):
        try:
            return open_once()
        except DBAPIError as error:
            if error.statement is None:  # there is no connection
                raise
            time.sleep(0.1)
    return open_once()


def _lock_while_reading(engine: Engine) -> None:
    """Let SQLite lock the database when a transaction begins, not when it first writes.

    Optuna asks databases to lock the row of a waiting trial that it is about to take. SQLite has no such lock, so two
    workers could read that the trial waits and both take it.
    """
    event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    engine.dispose()  # of the connections that were made before


def counted(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """All trials but those that died and are done again as another one, and surplus ones."""
    return [trial for trial in trials if trial.state != TrialState.FAIL or "diverged" in trial.user_attrs]


def best_first(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The completed trials, the best first; of equal ones the older."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return sorted(complete, key=lambda trial: (-(trial.value or 0.0), trial.number))


def run_of(search: Search, study: Study, trial: Trial | FrozenTrial) -> Path:
    """The folder of a trial's training."""
    folder = "trials" if study.study_name == search.name else study.study_name.removeprefix(f"{search.name}-")
    return search.folder / folder / f"{trial.number:04d}"
