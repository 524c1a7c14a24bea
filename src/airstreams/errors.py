"""The two ways in which a call can go wrong, told apart because a person mends them differently."""


class InputError(ValueError):
    """The call or its input is wrong: one line that says what was given, what was expected and how to mend it."""


class VideoError(RuntimeError):
    """A video file cannot be read; the message is the reason, such as `truncated: 12 of 30 frames`."""


class Stopped(RuntimeError):  # noqa: N818 (it is no error)
    """A signal asked a training to stop; its state is saved."""


def in_a_line(said: object) -> str:
    """What somebody else's error says, without its line breaks and what else a terminal would obey."""
    words = " ".join(str(said).split())
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in words)


def named(error: Exception) -> str:
    """An error of unknown code: its class, and what it says."""
    return in_a_line(f"{type(error).__name__}: {error}")


def in_words(error: BaseException) -> str:
    """An error's message, or its class's name where it has none. Of CUDA's out of memory the first two sentences, and
    what to do less of.
    """
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which this file need not import
        told = ". ".join(str(error).split(". ")[:2])
        less = "--training.cuda_graph false, --training.accumulate 2, fewer --workers, annotate's --batch-size"
        return f"{told}; do less at once: {less}"
    return str(error) or type(error).__name__


def require(holds: bool, key: str, given: object, expected: str) -> None:
    """Raise InputError for a key's value unless it holds."""
    if not holds:
        raise InputError(f"{key}: got {given}, expected {expected}")
