"""The published data sets, one file each: `NAME:ROOT[?key=value&...]` becomes a source.

A data set is a function that reads its official files, and the allowed values of each of its options, which are checked
here.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from airstreams.data.benchmarks.charades import read_charades
from airstreams.data.benchmarks.hmdb51 import read_hmdb51
from airstreams.data.benchmarks.jhmdb import read_jhmdb, read_jhmdb_fold
from airstreams.data.benchmarks.moments import read_moments
from airstreams.data.benchmarks.smarthome import read_smarthome
from airstreams.data.listing import Source
from airstreams.errors import InputError, did_you_mean


class Benchmark(NamedTuple):
    """How a published data set is read: `read(root, **options)`, and the values of each option, default first.

    read_fold: reads it for a cross-validation, `read_fold(root, folds, fold)`; None: it offers none.
    """

    read: Callable[..., Source]
    options: dict[str, tuple[str, ...]]
    read_fold: Callable[[Path, int, int], Source] | None = None


MOST_FOLDS = 100

BENCHMARKS = {
    "jhmdb": Benchmark(read_jhmdb, {"split": ("1", "2", "3")}, read_jhmdb_fold),
    "hmdb51": Benchmark(read_hmdb51, {"split": ("1", "2", "3")}),
    "moments": Benchmark(read_moments, {"release": ("auto", "339", "305")}),
    "charades": Benchmark(read_charades, {}),
    "smarthome": Benchmark(read_smarthome, {"protocol": ("cs", "cv1", "cv2")}),
}


def open_benchmark(data: str) -> Source:
    """Open NAME:ROOT[?key=value&...]. InputError: no such data set, option or folder; it lists those that exist."""
    name, _, rest = data.partition(":")
    if name not in BENCHMARKS:
        similar = did_you_mean(name, BENCHMARKS)
        raise InputError(
            f"{data} is neither a file nor a folder, and {name!r} is not a published data set.{similar} "
            f"Expected one of {', '.join(BENCHMARKS)} before the colon, as in jhmdb:data/jhmdb?split=1"
        )
    benchmark = BENCHMARKS[name]
    root, _, query = (rest, "", "") if Path(rest).exists() else rest.partition("?")
    known = "; ".join(f"{key}={'|'.join(values)}" for key, values in benchmark.options.items()) or "nothing"
    folds = _folds(query) if benchmark.read_fold is not None else None
    if benchmark.read_fold is not None:
        known += f", or folds=N&fold=K with N from 2 to {MOST_FOLDS} and K from 1 to N"
    options = {key: values[0] for key, values in benchmark.options.items()}
    for item in filter(None, query.split("&") if folds is None else ()):
        key, _, value = item.partition("=")
        if value not in benchmark.options.get(key, ()):
            raise InputError(f"{data}: {item!r} is not an option of {name}; expected {known}, joined by & after the ?")
        options[key] = value
    folder = Path(root).expanduser()
    if not root or not folder.is_dir():
        raise InputError(
            f"{data}: the folder {root!r} does not exist; expected {name}:ROOT with the data set's folder as ROOT"
        )
    # The protocol fixes the splits, so nobody looks for alike videos in them.
    if folds is not None and benchmark.read_fold is not None:
        source = benchmark.read_fold(folder, *folds)
    else:
        source = benchmark.read(folder, **options)
    return replace(source, own_groups=True, alike=())


def _folds(query: str) -> tuple[int, int] | None:
    """N and K of `folds=N&fold=K`; None: the options are others."""
    found = re.fullmatch(r"folds=(\d{1,3})&fold=(\d{1,3})", query)
    if found is None or not 2 <= int(found[1]) <= MOST_FOLDS or not 1 <= int(found[2]) <= int(found[1]):
        return None
    return int(found[1]), int(found[2])
