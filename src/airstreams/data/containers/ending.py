"""What the check of a container finds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Ending:
    """Where the sound part of a file ends, and how much is known about the pictures there.

    Attributes:
        end: number of bytes to read; None: the whole file.
        open_ended: the container does not state its length, so that pictures may be missing at the end. A picture
            counts only if none is missing before it.
        last_picture_whole: False: the last picture that is stored may be cut.
        joints: the positions in the file, in bytes, at which another recording begins.
    """

    end: int | None = None
    open_ended: bool = False
    last_picture_whole: bool = True
    joints: tuple[int, ...] = ()

    @property
    def stopped(self) -> bool:
        """Whether the file ends within an element, as a recording that was stopped."""
        return self.end is not None
