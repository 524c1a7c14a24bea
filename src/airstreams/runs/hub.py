"""Runs on the Hugging Face hub: `hf:OWNER/NAME` stands for the run in a repository."""

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from shutil import copyfile
from types import ModuleType

from airstreams.errors import InputError, describe
from airstreams.runs.folder import RunFolder
from airstreams.runs.metrics_log import entries

HUB = "hf:"
"""What the name of a run on the hub begins with."""

NOT_NEEDED = ["state/*", "tensorboard/*", "evaluation/*"]
"""What a run holds that nobody needs who starts from it."""

CARD = "README.md"
"""The name that the hub shows a model card under."""


def local_run(run: Path | str, offline: bool = False) -> Path:
    """The folder of a run: the given one, or for `hf:REPO` that of the hub's cache. InputError: as `download_run`."""
    name = str(run)
    return download_run(name.removeprefix(HUB), offline) if name.startswith(HUB) else Path(run)


def download_run(repo: str, offline: bool) -> Path:
    """The folder of a run that a repository of the hub holds. huggingface_hub keeps it in its own cache.

    Raises:
        InputError: huggingface_hub is missing, the repository cannot be fetched, is not in the cache with `offline`, or
            holds no run.
    """
    snapshot_download = _huggingface_hub(repo).snapshot_download
    try:
        folder = Path(snapshot_download(repo, local_files_only=offline, ignore_patterns=NOT_NEEDED))
    except Exception as error:  # of its HTTP library, of the hub, and OSError
        fix = "Leave out --offline once" if offline else "Check the name, the network and, for a private one, HF_TOKEN"
        what = "is not in the cache" if offline else "cannot be fetched"
        raise InputError(f"hf:{repo} {what} ({_reason(error)}). {fix}.") from error
    if not (RunFolder(folder).description.is_file() and RunFolder(folder).weights.is_file()):
        raise InputError(
            f"hf:{repo}: the repository holds no run (no model.json or model.safetensors). Give one that `airstreams "
            "export RUN --hub` wrote."
        )
    return folder


def upload_run(run: Path, repo: str, texts: Mapping[str, str]) -> str:
    """Push a run to a repository of the hub, which is made as a private one if there is none.

    The model goes there, with the log of the training and the metrics of evaluations. Everything that names videos, and
    the states, stay here.

    Args:
        run: the run's folder, with a model in it.
        repo: OWNER/NAME.
        texts: more files of the repository, by their names.

    Returns:
        The address of the repository's page.

    Raises:
        InputError: huggingface_hub or a token is missing, or the hub refuses the push or cannot be reached.
    """
    hub = _huggingface_hub(repo)
    if hub.get_token() is None:
        raise InputError(f"--hub hf:{repo}: there is no token for the hub. Set HF_TOKEN, or run `hf auth login`.")
    with tempfile.TemporaryDirectory() as staged:
        for path in _files_to_push(RunFolder(run)):
            target = Path(staged) / path.relative_to(run)
            target.parent.mkdir(parents=True, exist_ok=True)
            copyfile(path, target)
        log = {RunFolder(run).metrics.name: _log_without_videos(RunFolder(run))}
        for name, text in (log | dict(texts)).items():
            (Path(staged) / name).write_text(text, encoding="utf-8")
        try:
            api = hub.HfApi()
            page = api.create_repo(repo, private=True, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=staged, commit_message="Upload a run of airstreams")
        except Exception as error:  # of its HTTP library, of the hub, and OSError
            raise InputError(
                f"--hub hf:{repo}: the push failed ({_reason(error)}). Check the name, the network, and that the token "
                "may write."
            ) from error
    return str(page)


def repo_of(address: str) -> str:
    """OWNER/NAME of `hf:OWNER/NAME`. InputError: it is something else."""
    if not re.fullmatch(r"hf:[\w.-]+/[\w.-]+", address):
        raise InputError(f"--hub {address}: expected hf:OWNER/NAME. Give the name of a repository on the hub.")
    return address.removeprefix(HUB)


def _files_to_push(folder: RunFolder) -> list[Path]:
    metrics = [evaluation.metrics for evaluation in folder.evaluations()]
    return [folder.weights, folder.description, *metrics]


def _log_without_videos(folder: RunFolder) -> str:
    """The log of a training without the names of the videos that could not be read."""
    lines = []
    for entry in entries(folder.metrics):
        if "train" in entry:
            entry["train"].pop("left_out", None)
        lines.append(json.dumps(entry) + "\n")
    return "".join(lines)


def _huggingface_hub(repo: str) -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(
            f"hf:{repo} needs huggingface_hub ({describe(error)}). Run pip install huggingface_hub."
        ) from error
    return huggingface_hub


def _reason(error: Exception) -> str:
    return describe(error)[:160].strip(" .")
