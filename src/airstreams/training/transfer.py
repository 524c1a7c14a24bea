"""Starting from a saved model: a new one copies the parts that fit (in the paper, Moments in Time to Charades).

A part, as `AIRStreams.parts` names them, is copied whole or not at all, so each part's start can be told in a word. The
layers that depend on the classes are the exception. The price: a tower that differs in one block starts from random
weights.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from airstreams.config import ModelConfig
from airstreams.errors import InputError
from airstreams.models.airstreams import AIRStreams
from airstreams.representations.flow import Flow
from airstreams.representations.semantic import Semantic
from airstreams.runs.saved_model import SavedModel

Weights = dict[str, Tensor]
FINER = "segmenter.finer_classifiers."
OPTIONAL = {
    "merge.": "gains or weights in the merge (other streams, or another model.merge)",
    "adaptors.": "adaptors (another backbone in the merge)",
}
"""Layers between a tower and others, which a part can do without: what their names begin with, and why they differ."""


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
    the same stride, too. Gains and adaptors are copied only if both models have the same ones.

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
        outcomes[name], weights = _fitting(name, part, classes, segment_classes, source)
        if weights is not None:
            fitting[name] = weights
    if not any(weights for name, weights in fitting.items() if not isinstance(parts[name], Flow)):
        differing = [f"{name} {outcome}" for name, outcome in outcomes.items() if "shapes" in outcome]
        raise InputError(
            f"--init: no part of the saved model ({', '.join(saved_parts)}) fits the new one ({', '.join(parts)})"
            f"{'; ' + differing[0] if differing else ''}. Give a run with a stream in common, the same tower and the "
            "same widths."
        )
    names = _load(model, fitting)
    unused = tuple(name for name in saved_parts if name not in parts)
    return Transfer(outcomes, unused, *_counts(model, names), names)


def take_stream(
    model: AIRStreams,
    config: ModelConfig,
    stream: str,
    run: str,
    classes: Sequence[str],
    segment_classes: Sequence[str],
    source: SavedModel,
    before: Transfer,
) -> Transfer:
    """Copy one stream of a saved model: its representation, its early tower and, if that was trained, its late tower.

    Args:
        model: changed in place.
        config: its config.
        stream: its name in both models.
        run: the saved model's name in messages.
        classes, segment_classes: the new model's.
        source: the saved model.
        before: what was copied so far.

    InputError: one of the two models lacks the stream, or the towers or representations differ.
    """
    parts = {name: part for name, part in model.parts().items() if name.split(".")[0] == stream}
    if not parts or stream not in source.config.model.streams:
        streams, which = (source.config.model.streams, "run") if parts else ([*model.early], "model")
        raise InputError(
            f"--init {stream}={run}: the {which} has no stream {stream}. Choose from {', '.join(streams)}."
        )
    there, here = (one.backbone_of(stream) or "your own" for one in (source.config.model, config))
    if there != here:
        raise InputError(
            f"--init {stream}={run}: the tower of {stream} is {there} there and {here} here. Set its backbone in "
            f"model.backbones, or leave out {stream}=."
        )
    outcomes: dict[str, str] = {}
    fitting: dict[str, Weights] = {}
    for name, part in parts.items():
        outcome, weights = _fitting(name, part, classes, segment_classes, source)
        if weights is not None:
            fitting[name] = weights
            outcomes[name] = f"{outcome.replace('taken', f'taken from {run}', 1)}"
        elif not name.endswith(".late"):
            raise InputError(
                f"--init {stream}={run}: {name} is {outcome}. Give the new model the run's merge levels, widths and "
                f"options of {stream}, or leave out {stream}=."
            )
    names = before.names | _load(model, fitting)
    origin = ", ".join(filter(None, (before.origin, f"{run} ({stream})")))
    return Transfer(before.parts | outcomes, (), *_counts(model, names), names, origin)


def _fitting(
    name: str, part: nn.Module, classes: Sequence[str], segment_classes: Sequence[str], source: SavedModel
) -> tuple[str, Weights | None]:
    """What happens to a part, in words, and the weights to copy into it; None: it is not taken."""
    saved_part = source.model.parts().get(name)
    if saved_part is None:
        return "not taken: not in the saved model", None
    new, saved = part.state_dict(), saved_part.state_dict()
    layers, changed = _layers_to_renew(name, part, classes, segment_classes, source)
    if isinstance(part, Semantic) and not changed and new.keys() != saved.keys():
        layers, changed = (FINER,), "finer classifiers (another stride)"
    renewed = {changed: layers} if changed else {}
    for prefix, why in OPTIONAL.items():
        if {key for key in new if key.startswith(prefix)} != {key for key in saved if key.startswith(prefix)}:
            renewed[why] = (prefix,)
    for prefixes in renewed.values():
        new, saved = _without(new, prefixes), _without(saved, prefixes)
    if difference := _difference(new, saved):
        return f"not taken: other shapes ({difference})", None
    return f"taken without its {', '.join(renewed)}" if renewed else "taken", saved


def _load(model: AIRStreams, fitting: Mapping[str, Weights]) -> frozenset[str]:
    """Copy weights into parts; returns their names in the model."""
    parts = model.parts()
    for name, weights in fitting.items():
        parts[name].load_state_dict(weights, strict=False)
    return frozenset(
        f"{weights_prefix(name)}.{key}"
        for name, kept in fitting.items()
        for key in parts[name].state_dict()
        if key in kept
    )


def _counts(model: AIRStreams, names: Collection[str]) -> tuple[int, int]:
    """How many parameters have one of these names, and how many there are."""
    parameters = dict(model.named_parameters())
    taken = sum(parameter.numel() for name, parameter in parameters.items() if name in names)
    return taken, sum(parameter.numel() for parameter in parameters.values())


def weights_prefix(part: str) -> str:
    """What the names of a part's weights in the model begin with: `early.rgb` for the part `rgb.early`."""
    owner, kind = part.split(".")
    return f"{'representations' if kind == 'representation' else kind}.{owner}"


def _layers_to_renew(
    name: str, part: nn.Module, classes: Sequence[str], segment_classes: Sequence[str], source: SavedModel
) -> tuple[tuple[str, ...], str]:
    """The layers of a part that depend on classes, and a text that says why they are not copied; empty if they are."""
    if name.endswith(".late"):
        return ("classifier.",), _renewal("classifier", source.classes, classes)
    if isinstance(part, Semantic):
        layers = ("segmenter.classifier.", FINER, "reduction.")
        return layers, _renewal("classifier and reduction", source.segment_classes, segment_classes)
    return (), ""


def _renewal(layers: str, saved: Sequence[str], new: Sequence[str]) -> str:
    if tuple(saved) == tuple(new):
        return ""
    return f"{layers} ({len(saved)} classes there, {len(new)} {'others ' if len(saved) == len(new) else ''}here)"


def _without(weights: Weights, layers: tuple[str, ...]) -> Weights:
    return {key: weight for key, weight in weights.items() if not key.startswith(layers)}


def _difference(new: Weights, saved: Weights) -> str:
    """The first weight whose shape differs, in words; empty if all shapes agree."""
    for key in [*new, *saved]:
        shapes = ["x".join(map(str, weights[key].shape)) if key in weights else "absent" for weights in (saved, new)]
        if shapes[0] != shapes[1]:
            return f"{key}: {shapes[0]} there, {shapes[1]} here"
    return ""
