"""What a search for loss weights left behind, for those who only read it: Optuna is not needed for that."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airstreams.errors import InputError

RESULTS = "results.json"


def read_results(folder: Path) -> dict[str, Any]:
    """A study's results as `airstreams evolve` wrote them, with one trial at least. InputError: not there."""
    path = folder / RESULTS
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        trials = len(found["top"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: no study: no {RESULTS}; give the --out of `airstreams evolve`") from error
    if not trials:
        raise InputError(
            f"{folder}: the study has no finished trial yet; go on with it by the same `airstreams evolve`"
        )
    return found


def weights_from(folder: Path, top: int, wanted: Sequence[str]) -> dict[str, float]:
    """The loss weights `wanted` of a study's best trial, or the mean of its `top` best. InputError: not there."""
    found = read_results(folder)["top"]
    if not 1 <= top <= len(found):
        raise InputError(f"--top {top}: expected 1 to {len(found)}, the best trials that {folder / RESULTS} has")
    missing = [name for name in wanted if name not in found[0]["weights"]]
    if missing:
        raise InputError(
            f"--weights-from {folder}: it has no weight of {', '.join(missing)}; expected a study of the same streams; "
            "give it streams as there (model.streams)"
        )
    return {name: sum(trial["weights"][name] for trial in found[:top]) / top for name in wanted}
