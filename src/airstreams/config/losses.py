"""The weights of the losses."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from airstreams.config.streams import MERGED_AFTER, STREAMS, SUPERVISED, is_custom, stream_of
from airstreams.errors import require


@dataclass
class LossWeights:
    """The weights of the losses, lambda in equation 2. The defaults are those of section 4.2.3."""

    rgb: float = 1.0
    """The weight of the rgb tower's action loss."""
    flow: float = 0.0
    """The weight of the flow tower's action loss."""
    semantic: float = 0.0
    """The weight of the semantic tower's action loss."""
    merged: float = 1.0
    """The weight of the action loss of every merge."""
    interm: float | dict[str, float] = 1.0
    """The weights of the losses on the teachers' targets, by stream. A stream without an entry: 1. A number: semantic's
    weight."""
    custom: dict[str, float] = field(default_factory=dict)
    """The weights of the action losses of all other streams. A missing name: 0."""
    merged_after: dict[int, float] = field(default_factory=dict)
    """The weights of further merges, by number of blocks, such as {5: 0.5}. A merge without an entry: `merged`."""

    def __post_init__(self) -> None:
        values: dict[str, float] = {stream: getattr(self, stream) for stream in (*STREAMS, "merged")}
        if isinstance(self.interm, dict):
            values |= {f"interm.{name}": value for name, value in self.interm.items()}
        else:
            values["interm"] = self.interm
        values |= {f"custom.{name}": value for name, value in self.custom.items()}
        values |= {f"merged_after.{level}": value for level, value in self.merged_after.items()}
        for name, value in values.items():
            require(0 <= value < math.inf, f"loss_weights.{name}", value, "at least 0 and finite")

    @property
    def own_losses(self) -> dict[str, float]:
        """The weights of the losses on the teachers' targets that the config names, by stream."""
        return self.interm if isinstance(self.interm, dict) else {SUPERVISED[0]: self.interm}

    def of(self, loss: str) -> float:
        """The weight of a loss by its name. For a custom stream's action loss without a weight: 0."""
        if (stream := stream_of(loss)) is not None:
            return self.own_losses.get(stream, 1.0)
        if loss.startswith(MERGED_AFTER):
            return self.merged_after.get(int(loss.removeprefix(MERGED_AFTER)), self.merged)
        return self.custom.get(loss, 0.0) if is_custom(loss) else getattr(self, loss)

    def updated(self, weights: Mapping[str, float]) -> "LossWeights":
        """These weights, with new ones for some losses, by name."""
        own = {stream: weight for loss, weight in weights.items() if (stream := stream_of(loss)) is not None}
        levels = {loss: int(loss.removeprefix(MERGED_AFTER)) for loss in weights if loss.startswith(MERGED_AFTER)}
        heads = {loss: weight for loss, weight in weights.items() if stream_of(loss) is None and loss not in levels}
        interm: float | dict[str, float] = self.interm
        if own:
            interm = self.own_losses | own
            interm = interm[SUPERVISED[0]] if interm.keys() == {SUPERVISED[0]} else interm
        return replace(
            self,
            **{name: weight for name, weight in heads.items() if not is_custom(name)},
            interm=interm,
            custom=self.custom | {name: weight for name, weight in heads.items() if is_custom(name)},
            merged_after=self.merged_after | {level: weights[loss] for loss, level in levels.items()},
        )
