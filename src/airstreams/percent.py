"""Metrics in 0..1 as text."""

from collections.abc import Sequence


def percent(value: float | None) -> str:
    """Such as `30.8%`; `-` for None."""
    return "-" if value is None else f"{value:.1%}"


def with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    """Such as `30.8% (22.6% to 40.6%)`."""
    return percent(value) if interval is None else f"{value:.1%} ({interval[0]:.1%} to {interval[1]:.1%})"
