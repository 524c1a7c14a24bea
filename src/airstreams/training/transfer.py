"""Starting from a saved model: a new one copies the parts that fit (in the paper, Moments in Time to Charades).

A part, as `AIRStreams.parts` names them, is copied whole or not at all, so each part's start can be told in a word. The
layers that depend on the classes are the exception. The price: a tower that differs in one block starts from random
weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from airstreams.errors import InputError
from airstreams.models.airstreams import AIRStreams
from airstreams.runs.saved_model import SavedModel

Weights = dict[str, Tensor]
FINER = "segmenter.finer_classifiers."
MERGE = "merge."


@dataclass(frozen=True)
class Transfer:
    """What was copied; `str` gives it as text for the console.

    parts: each part of the new model, and what happened to it, such as `taken` or `not taken: not in the saved model`.
    unused: the parts that only the saved model has.
    taken, total: parameters of the new model that were copied, and all of them.
    names: the new model's weights that were copied, batch statistics included.
    origin: what they were copied from, in words.
    """

    parts: dict[str, str]
    unused: tuple[str, ...]
    taken: int
    total: int
    names: frozenset[str] = frozenset()
    origin: str = "the saved model"

    def __str__(self) -> str:
        width = max(map(len, self.parts))
        lines = [f"taken from {self.origin}: {self.taken / 1e6:.2f} of {self.total / 1e6:.2f} million parameters"]
        lines += [f"  {name:{width}}  {outcome}" for name, outcome in self.parts.items()]
        if self.unused:
            lines.append(f"  not used from the saved model: {', '.join(self.unused)}")
        return "\n".join(lines)


def take_over(
    model: AIRStreams, classes: Sequence[str], segment_classes: Sequence[str], source: SavedModel
) -> Transfer:
    """Copy all parts that fit from a saved model into a new one. The others keep their own weights.

    Some layers are copied only if the classes are the same, in the same order: the heads' classifiers (action classes),
    and the segmenter's classifiers with the reduction after them (segmentation classes). The finer classifiers need
    the same stride, too. Gains are copied only if both models have them for the same streams.

    Args:
        model: freshly built; changed in place.
        classes, segment_classes: the new model's.
        source: the saved model.

    InputError: neither a tower nor the segmenter fits. The three parameters of the flow layer alone are no start.
    """
    parts, saved_parts = model.parts(), source.model.parts()
    outcomes: dict[str, str] = {}
    fitting: dict[str, Weights] = {}
    for name, part in parts.items():
        if name not in saved_parts:
            outcomes[name] = "not taken: not in the saved model"
            continue
        outcomes[name] = "taken"
        new, saved = part.state_dict(), saved_parts[name].state_dict()
        layers, changed = _layers_to_renew(name, classes, segment_classes, source)
        if name == "semantic.representation" and not changed and new.keys() != saved.keys():
            layers, changed = (FINER,), "finer classifiers (another stride)"
        if _of_merge(new) != _of_merge(saved):
            layers = (*(layers if changed else ()), MERGE)
            changed = f"{changed}{', ' if changed else ''}gains (other streams, or another model.merge)"
        if changed:
            outcomes[name] = f"taken without its {changed}"
            new, saved = _without(new, layers), _without(saved, layers)
        difference = _difference(new, saved)
        if difference:
            outcomes[name] = f"not taken: other shapes ({difference})"
        else:
            fitting[name] = saved
    if not any(weights for name, weights in fitting.items() if name != "flow.representation"):
        differing = [f"{name} {outcome}" for name, outcome in outcomes.items() if "shapes" in outcome]
        raise InputError(
            f"--init: no part of the saved model ({', '.join(saved_parts)}) fits the new one ({', '.join(parts)})"
            f"{'; ' + differing[0] if differing else ''}. Give a run with a stream in common, the same tower and the "
            "same widths."
        )
    for name, weights in fitting.items():
        parts[name].load_state_dict(weights, strict=False)
    names = {
        f"{weights_prefix(name)}.{key}"
        for name, kept in fitting.items()
        for key in parts[name].state_dict()
        if key in kept
    }
    return Transfer(
        outcomes,
        tuple(name for name in saved_parts if name not in parts),
        sum(parameter.numel() for name, parameter in model.named_parameters() if name in names),
        sum(parameter.numel() for parameter in model.parameters()),
        frozenset(names),
    )


def weights_prefix(part: str) -> str:
    """What the names of a part's weights in the model begin with: `early.rgb` for the part `rgb.early`."""
    owner, kind = part.split(".")
    return f"{'representations' if kind == 'representation' else kind}.{owner}"


def _layers_to_renew(
    part: str, classes: Sequence[str], segment_classes: Sequence[str], source: SavedModel
) -> tuple[tuple[str, ...], str]:
    """The layers of a part that depend on classes, and a text that says why they are not copied; empty if they are."""
    if part.endswith(".late"):
        return ("classifier.",), _renewal("classifier", source.classes, classes)
    if part == "semantic.representation":
        layers = ("segmenter.classifier.", FINER, "reduction.")
        return layers, _renewal("classifier and reduction", source.segment_classes, segment_classes)
    return (), ""


def _renewal(layers: str, saved: Sequence[str], new: Sequence[str]) -> str:
    if tuple(saved) == tuple(new):
        return ""
    return f"{layers} ({len(saved)} classes there, {len(new)} {'others ' if len(saved) == len(new) else ''}here)"


def _of_merge(weights: Weights) -> set[str]:
    return {key for key in weights if key.startswith(MERGE)}


def _without(weights: Weights, layers: tuple[str, ...]) -> Weights:
    return {key: weight for key, weight in weights.items() if not key.startswith(layers)}


def _difference(new: Weights, saved: Weights) -> str:
    """The first weight whose shape differs, in words; empty if all shapes agree."""
    for key in [*new, *saved]:
        shapes = ["x".join(map(str, weights[key].shape)) if key in weights else "absent" for weights in (saved, new)]
        if shapes[0] != shapes[1]:
            return f"{key}: {shapes[0]} there, {shapes[1]} here"
    return ""
