"""Numbers of things as text."""


def count_of(number: int, noun: str) -> str:
    """Such as `1 clip`, `5 clips` and `2 classes`."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{ending}"
