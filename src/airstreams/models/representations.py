"""The old home of `Representation`, for custom streams that were written for version 0.1."""

import warnings

from airstreams.representations import Representation

__all__ = ["Representation"]

warnings.warn(
    "airstreams.models.representations has moved: import Representation from airstreams.representations",
    DeprecationWarning,
    stacklevel=2,
)
