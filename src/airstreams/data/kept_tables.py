"""The tables of files whose frames are found by counting, kept on disk: to make one takes as long as decoding the file.

The training opens all files before it begins, so its loader's processes know the tables. A training that goes on opens
none, and each of its processes would count each file again. So a run keeps the tables, in one file without a pickle.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from airstreams.data.containers import Ending
from airstreams.data.frame_table import Encoding, FrameTable, Version, VideoInfo
from airstreams.data.pictures import Orientation
from airstreams.files import replacing

_ARRAYS = ("times", "pts", "keyframes")


def write_tables(path: Path, tables: Mapping[Version, FrameTable]) -> None:
    """Write the tables of these versions of files. Without any, no file is written."""
    if not tables:
        return
    arrays: dict[str, list[np.ndarray]] = {name: [] for name in _ARRAYS}
    rows = []
    for version, table in tables.items():
        no_pts = np.empty(0, np.int64)
        of_table = {
            "times": table.info.times,
            "pts": no_pts if table.pts is None else table.pts,
            "keyframes": table.keyframes,
        }
        for name, array in of_table.items():
            arrays[name].append(array)
        info = {name: value for name, value in vars(table.info).items() if name not in ("times", "encoding")}
        stored = {"stored_width": table.stored_width, "stored_height": table.stored_height}
        parts = {name: asdict(part) for name, part in _parts_of(table).items()}
        sizes = {name: len(array) for name, array in of_table.items()}
        rows.append({"version": version, "info": info, **stored, **parts, "sizes": sizes})
    with replacing(path) as temporary:
        joined: dict[str, Any] = {name: np.concatenate(of_files) for name, of_files in arrays.items()}
        np.savez_compressed(temporary, rows=np.frombuffer(json.dumps(rows).encode(), np.uint8), **joined)


def read_tables(path: Path) -> dict[Version, FrameTable]:
    """Read what `write_tables` wrote. Empty: there is no such file, or it is damaged."""
    # numpy and zipfile report damage in many ways.
    with suppress(Exception), np.load(path) as content:
        arrays = {name: content[name] for name in _ARRAYS}
        at = dict.fromkeys(_ARRAYS, 0)
        tables = {}
        for row in json.loads(content["rows"].tobytes()):
            own = {}
            for name, length in row["sizes"].items():
                own[name] = arrays[name][at[name] : at[name] + length]
                at[name] += length
            file, mtime_ns, size = row["version"]
            tables[file, mtime_ns, size] = _table_of(row, own)
        return tables
    return {}


def _parts_of(table: FrameTable) -> dict[str, Any]:
    return {"encoding": table.info.encoding, "orientation": table.orientation, "ending": table.ending}


def _table_of(row: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> FrameTable:
    times, keyframes = arrays["times"], arrays["keyframes"]
    times.flags.writeable = False
    joints = tuple(row["info"].pop("joints"))
    info = VideoInfo(**row["info"], times=times, encoding=Encoding(**row["encoding"]), joints=joints)
    ending = Ending(**row["ending"] | {"joints": tuple(row["ending"]["joints"])})
    pts = arrays["pts"] if len(arrays["pts"]) else None
    orientation = Orientation(**row["orientation"])
    return FrameTable(info, row["stored_width"], row["stored_height"], orientation, pts, keyframes, ending)
