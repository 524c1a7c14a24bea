"""Starting from a saved model: what it shares with a new one is taken over (Moments in Time to Charades in the paper).

Parts, as `AIRStreams.parts` names them, are taken whole or not at all, so that a person can say of each what it
started from. Only the layers that speak of classes are renewed on their own. The price: a tower that differs in one
block starts from random weights altogether.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from airstreams.errors import InputError
from airstreams.models.airstreams import AIRStreams
from airstreams.runs.saved_model import SavedModel

Weights = dict[str, Tensor]
FINER = "segmenter.finer_classifiers."


@dataclass(frozen=True)
class Transfer:
    """What became of each part; `str` tells it to a person.

    parts: part of the new model to what was done, such as `taken` or `not taken: not in the saved model`.
    unused: parts that only the saved model has.
    taken, total: parameters of the new model that now are the saved model's, and all of them.
    """

    parts: dict[str, str]
    unused: tuple[str, ...]
    taken: int
    total: int

    def __str__(self) -> str:
        width = max(map(len, self.parts))
        lines = [f"taken over: {self.taken / 1e6:.2f} of {self.total / 1e6:.2f} million parameters"]
        lines += [f"  {name:{width}}  {done}" for name, done in self.parts.items()]
        if self.unused:
            lines.append(f"  of the saved model not used: {', '.join(self.unused)}")
        return "\n".join(lines)


def take_over(
    model: AIRStreams, classes: Sequence[str], segment_classes: Sequence[str], source: SavedModel
) -> Transfer:
    """Copy all parts that fit from a saved model into a new one, which keeps its own weights elsewhere.

    The heads' classifiers stay as they are unless the action classes are the same in the same order; so do the
    segmenter's classifiers and the reduction after them unless the segmentation classes are, and the finer classifiers
    unless it has the same stride.

    Args:
        model: freshly built; changed in place.
        classes, segment_classes: those that it is to learn.
        source: the saved model.

    InputError: neither a tower nor the segmenter fits (the flow's three parameters are no start worth having).
    """
    parts, saved_parts = model.parts(), source.model.parts()
    done: dict[str, str] = {}
    fitting: dict[str, Weights] = {}
    for name, part in parts.items():
        if name not in saved_parts:
            done[name] = "not taken: not in the saved model"
            continue
        done[name] = "taken"
        here, there = part.state_dict(), saved_parts[name].state_dict()
        renewed, changed = _of_classes(name, classes, segment_classes, source)
        if name == "semantic.representation" and not changed and here.keys() != there.keys():
            renewed, changed = (FINER,), "finer classifiers (another stride)"
        if changed:
            done[name] = f"taken but for its {changed}"
            here, there = _without(here, renewed), _without(there, renewed)
        difference = _difference(here, there)
        if difference:
            done[name] = f"not taken: other shapes ({difference})"
        else:
            fitting[name] = there
    if not any(weights for name, weights in fitting.items() if name != "flow.representation"):
        differing = [f"{name} {what}" for name, what in done.items() if "shapes" in what]
        raise InputError(
            f"the saved model has {', '.join(saved_parts)}, the new one {', '.join(parts)}, and none fits"
            f"{' (' + differing[0] + ')' if differing else ''}; "
            "give a run that shares a stream and has the same tower and widths"
        )
    for name, weights in fitting.items():
        parts[name].load_state_dict(weights, strict=False)
    return Transfer(
        done,
        tuple(name for name in saved_parts if name not in parts),
        sum(
            own.numel() for name, kept in fitting.items() for key, own in parts[name].named_parameters() if key in kept
        ),
        sum(parameter.numel() for parameter in model.parameters()),
    )


def _of_classes(
    part: str, classes: Sequence[str], segment_classes: Sequence[str], source: SavedModel
) -> tuple[tuple[str, ...], str]:
    """The layers of a part that speak of classes, and how a person reads their renewal: empty if none is needed."""
    if part.endswith(".late"):
        return ("classifier.",), _renewal("classifier", source.classes, classes)
    if part == "semantic.representation":
        layers = ("segmenter.classifier.", FINER, "reduction.")
        return layers, _renewal("classifier and reduction", source.segment_classes, segment_classes)
    return (), ""


def _renewal(layers: str, there: Sequence[str], here: Sequence[str]) -> str:
    if tuple(there) == tuple(here):
        return ""
    return f"{layers} ({len(there)} classes there, {len(here)} {'others ' if len(there) == len(here) else ''}here)"


def _without(weights: Weights, layers: tuple[str, ...]) -> Weights:
    return {key: weight for key, weight in weights.items() if not key.startswith(layers)}


def _difference(here: Weights, there: Weights) -> str:
    """The first weight that is not of one shape here and there; empty: all are."""
    for key in [*here, *there]:
        shapes = ["x".join(map(str, weights[key].shape)) if key in weights else "absent" for weights in (there, here)]
        if shapes[0] != shapes[1]:
            return f"{key}: {shapes[0]} there, {shapes[1]} here"
    return ""
