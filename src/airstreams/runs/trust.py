"""Consent to import modules: a model or a recipe may name one for a custom stream, and importing it runs its code.

Consent is given by `--trust-module`, by `trust=`, by the class's name in the call itself, or by training the run on
this machine. The last is remembered by the run's path, in a folder of the user's own: whatever a run brings along, a
stranger may have written.
"""

import json
import os
from collections.abc import Collection
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from airstreams.config import ModelConfig
from airstreams.errors import InputError
from airstreams.files import write_json


def custom_classes(model: ModelConfig) -> dict[str, str]:
    """The classes `MODULE:CLASS` of a model's custom streams, by stream: those that building the model imports."""
    return {stream: path for stream, path in model.representations.items() if stream in model.streams}


def require_trusted(model: ModelConfig, trust: Collection[str], named_by: str | os.PathLike[str]) -> None:
    """Raise InputError for a custom stream of a module that is not trusted. Nothing is imported.

    Args:
        model: the config.
        trust: names of modules. A package's name includes its modules.
        named_by: what names the module, for the message: a run or a recipe.
    """
    for stream, class_path in untrusted(model, trust).items():
        module = class_path.partition(":")[0]
        raise InputError(
            f"{named_by}: the stream {stream} is of the module {module}, and importing it runs its code. If you trust "
            f"its author, give --trust-module {module} (in Python: trust=[{module!r}])."
        )


def require_trusted_run(run: Path, model: ModelConfig, trust: Collection[str]) -> None:
    """`require_trusted` for a run, whose own modules are trusted if it was trained here."""
    _require_names(trust)
    require_trusted(model, {*trust, *_remembered(run)}, run)


def untrusted(model: ModelConfig, trust: Collection[str]) -> dict[str, str]:
    """The classes of a model's custom streams whose module is not trusted, by stream. InputError: trust is a text."""
    _require_names(trust)

    def is_trusted(module: str) -> bool:
        return any(module == name or module.startswith(f"{name}.") for name in trust)

    classes = custom_classes(model)
    return {stream: path for stream, path in classes.items() if not is_trusted(path.partition(":")[0])}


def _require_names(trust: Collection[str]) -> None:
    if isinstance(trust, str):
        raise InputError(f"trust: got {trust!r}, expected names in a list. Give [{trust!r}].")


def remember(run: Path, model: ModelConfig) -> None:
    """Remember that a run was trained here with its modules. Without a writable folder nothing is remembered."""
    modules = sorted({class_path.partition(":")[0] for class_path in custom_classes(model).values()})
    if modules:
        with suppress(OSError):
            write_json(_record_of(run), {"run": os.fspath(run.resolve()), "modules": modules})


def _remembered(run: Path) -> frozenset[str]:
    """The modules of a run that was trained here; empty for any other run."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        record = json.loads(_record_of(run).read_text(encoding="utf-8"))
        if record["run"] == os.fspath(run.resolve()):
            return frozenset(map(str, record["modules"]))
    return frozenset()


def _record_of(run: Path) -> Path:
    """The file about a run, in the folder where a system keeps what programs remember of a user."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    name = sha256(os.fsencode(run.resolve())).hexdigest()[:32]
    return Path(state) / "airstreams" / "trusted_runs" / f"{name}.json"
