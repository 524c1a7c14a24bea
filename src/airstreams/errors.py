"""The two ways in which a call can go wrong, told apart because a person mends them differently."""


class InputError(ValueError):
    """The call or its input is wrong: one line that says what was given, what was expected and how to mend it."""


class VideoError(RuntimeError):
    """A video file cannot be read; the message is the reason, such as `truncated: 12 of 30 frames`."""


class Stopped(RuntimeError):  # noqa: N818 (it is no error)
    """A signal asked a training to stop; its state is saved."""


def require(holds: bool, key: str, given: object, expected: str) -> None:
    """Raise InputError for a key's value unless it holds."""
    if not holds:
        raise InputError(f"{key}: got {given}, expected {expected}")
