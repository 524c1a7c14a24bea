"""Video action recognition from RGB alone: an open implementation of the paper AIRStreams.

import airstreams

recogniser = airstreams.load("runs/mine")
print(recogniser.predict("video.mp4").probabilities)
"""

from pathlib import Path
from typing import TYPE_CHECKING

from airstreams.version import __version__ as __version__

if TYPE_CHECKING:
    from airstreams.inference.recogniser import Recogniser


def load(run: Path | str, device: str | None = None) -> "Recogniser":
    """The recogniser that a training left in the folder `run`.

    Args:
        run: that folder.
        device: `cpu`, `cuda`, `cuda:1`, ...; None: CUDA where there is a card.

    Raises:
        InputError: `run` holds no model, or this machine has no such device.
    """
    from airstreams.inference.recogniser import (
        Recogniser,  # torch takes seconds to import; the command line's help needs none of it
    )

    return Recogniser(run, device)
