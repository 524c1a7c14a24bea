"""Video action recognition from RGB alone: an open implementation of the paper AIRStreams.

```python
import airstreams

airstreams.train("videos/", "runs/mine", config="demo")
recogniser = airstreams.load("runs/mine")
print(recogniser.predict("video.mp4").probabilities)
```
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from airstreams.version import __version__ as __version__

if TYPE_CHECKING:
    from airstreams.api import evaluate, load, open_source, train
    from airstreams.config import Config
    from airstreams.errors import InputError, VideoError

__all__ = ["Config", "InputError", "VideoError", "evaluate", "load", "open_source", "train"]

# Imported when they are first asked for: torch takes seconds to import, and the command line's help needs none of it.
_MODULES = {
    "Config": "airstreams.config",
    "InputError": "airstreams.errors",
    "VideoError": "airstreams.errors",
    "evaluate": "airstreams.api",
    "load": "airstreams.api",
    "open_source": "airstreams.api",
    "train": "airstreams.api",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
