"""Runs on the Hugging Face hub."""

from pathlib import Path

from airstreams.errors import InputError, describe
from airstreams.runs.folder import RunFolder

NOT_NEEDED = ["state/*", "tensorboard/*", "evaluation/*"]
"""What a run holds that nobody needs who starts from it."""


def download_run(repo: str, offline: bool) -> Path:
    """The folder of a run that a repository of the hub holds. huggingface_hub keeps it in its own cache.

    Raises:
        InputError: huggingface_hub is missing, the repository cannot be fetched, is not in the cache with `offline`, or
            holds no run.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise InputError(
            f"--init hf:{repo} needs huggingface_hub ({describe(error)}). Run pip install huggingface_hub."
        ) from error
    try:
        folder = Path(snapshot_download(repo, local_files_only=offline, ignore_patterns=NOT_NEEDED))
    except Exception as error:  # of its HTTP library, of the hub, and OSError
        fix = "Leave out --offline once" if offline else "Check the name, the network and, for a private one, HF_TOKEN"
        what = "is not in the cache" if offline else "cannot be fetched"
        reason = describe(error)[:160].strip(" .")
        raise InputError(f"--init hf:{repo} {what} ({reason}). {fix}.") from error
    if not (RunFolder(folder).description.is_file() and RunFolder(folder).weights.is_file()):
        raise InputError(
            f"--init hf:{repo}: the repository holds no run (no model.json or model.safetensors). Give one that holds "
            "the folder that `airstreams train --out` wrote."
        )
    return folder
