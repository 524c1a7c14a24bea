"""The tables of heads, segmentation and cost, as rows of text: the console and the HTML report show the same ones.

A table is a list of rows, and its first row is the header.
"""

from collections.abc import Iterable, Mapping

from rich.table import Table

from airstreams.config import Config
from airstreams.evaluation.metrics import SegmentationMetrics
from airstreams.evaluation.published import NAMES
from airstreams.evaluation.results import HeadMetrics
from airstreams.models.cost import Cost
from airstreams.percent import percent, with_interval

Rows = list[tuple[str, ...]]


def heads_table(heads: Mapping[str, HeadMetrics]) -> Rows:
    """Every metric of every head, with its 95 % interval.

    heads: the metrics of each head by its name.
    """
    rows = [
        (name, *(with_interval(metrics[key], metrics.intervals[key]) for key in NAMES))
        for name, metrics in heads.items()
    ]
    return [("head", *NAMES.values()), *rows]


def untrained_note(heads: Iterable[str], config: Config) -> str:
    """Why the table has no metrics for some of these heads. Empty if all are trained."""
    untrained = [head for head in heads if head not in config.trained_heads()]
    if not untrained:
        return ""
    return (
        f"No metrics for {', '.join(untrained)}: not trained, because the loss weight is 0. The features still go into "
        "the merged head."
    )


def segmentation_table(segmentation: SegmentationMetrics) -> Rows:
    """The segmenter's metrics, beside the highest that its grid allows and beside the teacher's own."""
    ceiling = segmentation.ceiling
    rows: Rows = [
        ("pixel_accuracy", percent(segmentation.pixel_accuracy), percent(ceiling.pixel_accuracy), percent(None)),
        ("miou", percent(segmentation.miou), percent(ceiling.miou), percent(None)),
    ]
    if segmentation.person_iou is not None:
        values = (segmentation.person_iou, ceiling.person_iou, segmentation.teacher_person_iou)
        rows.append(("person_iou", *map(percent, values)))
    return [("segmentation", "this model", "limit of its grid", "teacher"), *rows]


def cost_table(cost: Cost, frames: int) -> Rows:
    """Parameters and multiply-adds of each part, then the sums for a clip and for one of its frames.

    cost: of one clip.
    frames: of that clip.
    """
    inference, training = sum(cost.inference.values()), sum(cost.training.values())
    parameters = sum(cost.parameters.values())
    rows = [
        _cost_row(name, cost.parameters[name], cost.inference[name], cost.training[name]) for name in cost.parameters
    ]
    return [
        ("part", "parameters, M", "inference, G multiply-adds", "training, G multiply-adds"),
        *rows,
        _cost_row("per clip", parameters, inference, training),
        _cost_row("per frame", None, inference / frames, training / frames),
        _cost_row("per clip, operations", None, 2 * inference, 2 * training),
        _cost_row("per frame, operations", None, 2 * inference / frames, 2 * training / frames),
    ]


def _cost_row(name: str, parameters: int | None, inference: float, training: float) -> tuple[str, ...]:
    millions = "" if parameters is None else f"{parameters / 1e6:.2f}"
    return name, millions, f"{inference / 1e9:.3f}", f"{training / 1e9:.3f}"


def for_console(rows: Rows, totals: int = 0) -> Table:
    """The rows as a table of rich, which `Console.print` shows, with a line above the last `totals` rows."""
    header, *body = rows
    table = Table(*header)
    for number, row in enumerate(body):
        if number == len(body) - totals:
            table.add_section()
        table.add_row(*row)
    return table
