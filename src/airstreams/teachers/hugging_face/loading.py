"""What all models of transformers share: reading the config, the processor and the weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from airstreams.errors import InputError


def require_transformers(model: str) -> None:
    """InputError: transformers cannot be imported."""
    try:
        from transformers import AutoImageProcessor  # noqa: F401 (a broken installation fails here)
    except ImportError as error:
        raise InputError(
            f"The teacher hf:{model} needs transformers, which cannot be imported ({_short_reason(error)}). "
            "Run pip install transformers pillow, and remove a torchvision that is built for another torch."
        ) from error


@dataclass(frozen=True)
class Checkpoint:
    """A model on the hub or in a folder.

    name: as the user gave it.
    config: its config, an object of transformers.
    """

    name: str
    config: Any

    @classmethod
    def of(cls, name: str) -> "Checkpoint":
        """Read the config of a model. InputError: it cannot be read."""
        from transformers import AutoConfig

        try:
            return cls(name, AutoConfig.from_pretrained(name, trust_remote_code=False))
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            raise unreadable(name, error) from error

    @property
    def architecture(self) -> str:
        """The class of transformers that the weights are for."""
        return str((self.config.architectures or ["model without an architecture"])[0])

    def has_class(self, name: str) -> bool:
        """Whether transformers has this class."""
        import transformers

        return hasattr(transformers, name)

    def processor(self) -> Any:
        """Its image processor, on PIL and numpy."""
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(self.name, backend="pil", trust_remote_code=False)

    def network(self, class_name: str, task: str, device: torch.device) -> Any:
        """Its weights in a class of transformers, ready for inference. InputError: some are missing.

        task: what the model must be trained for, for the message.
        """
        import transformers

        network, loading_info = getattr(transformers, class_name).from_pretrained(
            self.name,
            output_loading_info=True,
            trust_remote_code=False,
            dtype=torch.float32,  # some checkpoints are float16
        )
        untrained = sorted(set(loading_info["missing_keys"]) & {name for name, _ in network.named_parameters()})
        if untrained:
            raise InputError(
                f"hf:{self.name} lacks {len(untrained)} of its weights, such as {untrained[0]}. Give a checkpoint that "
                f"was trained for {task}."
            )
        return network.to(device).eval()

    def preprocessing(self) -> dict[str, Any]:
        """The JSON of its processor's config, also of one for videos; empty if it has none."""
        from transformers.utils import cached_file

        for file in ("preprocessor_config.json", "video_preprocessor_config.json"):
            path = cached_file(self.name, file, _raise_exceptions_for_missing_entries=False)
            if path is not None:
                content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
                return content
        return {}


def unreadable(model: str, error: BaseException) -> InputError:
    """The error that a model cannot be loaded."""
    return InputError(
        f"hf:{model} cannot be loaded ({_short_reason(error)}). Give the name of a model on the Hugging Face hub, "
        "or, without network, a folder with config.json, preprocessor_config.json and weights."
    )


def _short_reason(error: BaseException) -> str:
    # The first line of transformers' message is the reason, the rest is advice. Its root cause adds what went wrong.
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    lines = dict.fromkeys(str(cause).strip().split("\n")[0] for cause in (error, root))
    return "; ".join(lines)
