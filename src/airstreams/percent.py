"""Figures in 0..1 as people read them."""

from collections.abc import Sequence


def percent(value: float | None) -> str:
    """Such as 30.8%; a dash for what does not apply."""
    return "-" if value is None else f"{value:.1%}"


def with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    """Such as 30.8% (22.6% to 40.6%)."""
    return percent(value) if interval is None else f"{value:.1%} ({interval[0]:.1%} to {interval[1]:.1%})"
