"""Pictures of optical flow, label maps and confusion matrices, as PNG files.

Only matplotlib's objects are used, never pyplot: drawing opens no window, keeps no figure open and changes no style of
the calling program. So the code below sets all sizes and fonts itself.

Legend of shape suffixes: H, W pixels, K action classes, S segmentation classes.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from numpy.typing import ArrayLike, NDArray

from airstreams.data.label_maps import NO_LABEL, resized
from airstreams.errors import InputError, printable
from airstreams.files import replacing
from airstreams.teachers.inspect import LabelledFrame
from airstreams.viewing.colours import NO_LABEL_GREY, Bytes, flow_to_colour, full_colour_px, label_colours

NO_LABEL_COLOUR = (NO_LABEL_GREY / 255,) * 3
DPI = 120


@dataclass(frozen=True)
class RepresentationRow:
    """One frame and its representations; None or no panel for those that do not exist.

    Attributes:
        title: text to the left of the row.
        frame: uint8 (H, W, 3), RGB.
        flow: (H, W, 2), (x, y) in px per frame. All arrays but the frame may have another H and W.
        flow_before: (H, W, 2), the flow before training.
        panels: what streams with a teacher predict and what their teachers say, by title: class ids (H, W), 255 where
            there is no label, or colours (H, W, 3), uint8.
    """

    title: str
    frame: Bytes
    flow: NDArray[np.floating] | None = None
    flow_before: NDArray[np.floating] | None = None
    panels: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class SegmentedFrame:
    """One frame and its label maps: row title to class ids (H, W), 255 for *no label*."""

    title: str
    frame: Bytes
    maps: dict[str, NDArray[np.integer]]


def representations_picture(
    path: str | Path, rows: Sequence[RepresentationRow], classes: Mapping[str, Sequence[str]]
) -> None:
    """Write a PNG with one row per frame: the frame, its flow, and its panels.

    Flow from before training gets a column of its own, with the same scale in each row. Columns that would be empty are
    left out. The legends name only classes that occur.

    Args:
        path: of the PNG.
        rows: from top to bottom.
        classes: the S names of each panel with class ids, background first, by the panel's title.

    Raises:
        InputError: there are no rows, or a class id has no name.
    """
    if not rows:
        raise InputError("There are no rows to draw. Give at least one.")
    with_flow_before = any(row.flow_before is not None for row in rows)
    titles = {
        "frame": "frame",
        "flow_before": "flow before training",
        "flow": "flow after training" if with_flow_before else "optical flow",
    }
    columns = [name for name in titles if any(getattr(row, name) is not None for row in rows)]
    panels = list(dict.fromkeys(title for row in rows for title in row.panels))

    panel_width = 2.4
    panel_heights = [panel_width * row.frame.shape[0] / row.frame.shape[1] for row in rows]
    width = (len(columns) + len(panels)) * panel_width + 0.4
    wheel_width = 1.7 if {"flow_before", "flow"} & set(columns) else 0.0
    legends = _legends(rows, classes, width - wheel_width)
    legend_height = max(sum(legend.height for legend in legends.values()), 0.85 if wheel_width else 0) + 0.15
    figure = Figure(
        figsize=(width, sum(panel_heights) + 0.08 * len(rows) + 0.4 + legend_height),
        facecolor="white",
        layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0),
    )
    parts_21 = figure.subfigures(2, 1, squeeze=False, height_ratios=[sum(panel_heights) + 0.4, legend_height])
    pictures, footer = parts_21[:, 0]
    axes = pictures.subplots(len(rows), len(columns) + len(panels), squeeze=False, height_ratios=panel_heights)

    for row, height, row_axes in zip(rows, panel_heights, axes, strict=True):
        flows = [flow_HW2 for flow_HW2 in (row.flow_before, row.flow) if flow_HW2 is not None]
        max_px = max((full_colour_px(np.linalg.norm(flow_HW2, axis=2)) for flow_HW2 in flows), default=0.0)
        row_axes[0].set_ylabel(_in_two_lines(row.title, height), fontsize=9, parse_math=False)
        for name, ax in zip([*columns, *panels], row_axes, strict=True):
            _bare(ax)
            panel = getattr(row, name) if name in columns else row.panels.get(name)
            if panel is None:
                ax.axis("off")
            elif name == "frame" or (name in panels and panel.ndim == 3):
                ax.imshow(panel)
            elif name in panels:
                _show_labels(ax, panel, row.frame, legends[tuple(classes[name])].colours)
            else:
                _show_flow(ax, panel, max_px)
    for title, ax in zip([*(titles[name] for name in columns), *panels], axes[0], strict=True):
        ax.set_title(title, fontsize=11, parse_math=False)

    lines = footer.subfigures(max(1, len(legends)), 1, squeeze=False)[:, 0] if len(legends) > 1 else [footer]
    for legend, line in zip(legends.values(), lines, strict=False):
        legend.draw(line, "center right")
    if wheel_width:
        _show_wheel(footer)
    save_picture(figure, Path(path))


def _legends(
    rows: Sequence[RepresentationRow], classes: Mapping[str, Sequence[str]], width: float
) -> dict[tuple[str, ...], "_Legend"]:
    """One legend for each list of class names. InputError: a class id has no name."""
    maps: dict[tuple[str, ...], list[NDArray[Any]]] = {}
    for row in rows:
        for title, panel in row.panels.items():
            if panel.ndim == 2:
                maps.setdefault(tuple(classes[title]), []).append(panel)
    return {names: _Legend(found, names, width) for names, found in maps.items()}


def segmentations_picture(path: str | Path, frames: Sequence[SegmentedFrame], segment_classes: Sequence[str]) -> None:
    """Write a PNG with one column per frame: the frame, and below it its label maps over the grey frame.

    The legend names only classes that occur.

    Args:
        path: of the PNG.
        frames: all of one size and with the same row titles.
        segment_classes: the S names, background first.

    Raises:
        InputError: there are no frames, or a class id has no name.
    """
    if not frames:
        raise InputError("There are no frames to draw. Give at least one.")
    titles = ["frame", *frames[0].maps]
    panel_width = 1.6
    panel_height = panel_width * frames[0].frame.shape[0] / frames[0].frame.shape[1]
    width = len(frames) * panel_width + 0.4
    legend = _Legend(
        [label_map for segmented in frames for label_map in segmented.maps.values()], segment_classes, width
    )
    legend_height = legend.height + 0.15
    rows_height = len(titles) * panel_height + 0.3
    figure = Figure(
        figsize=(width, rows_height + legend_height),
        facecolor="white",
        layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0),
    )
    parts_21 = figure.subfigures(2, 1, squeeze=False, height_ratios=[rows_height, legend_height])
    pictures, footer = parts_21[:, 0]
    axes = pictures.subplots(len(titles), len(frames), squeeze=False)
    for column, segmented in enumerate(frames):
        top, *others = axes[:, column]
        top.imshow(segmented.frame)
        top.set_title(segmented.title, fontsize=9, parse_math=False)
        for ax, label_map in zip(others, segmented.maps.values(), strict=True):
            _show_labels(ax, label_map, segmented.frame, legend.colours)
    for title, row_axes in zip(titles, axes, strict=True):
        row_axes[0].set_ylabel(title, fontsize=9, parse_math=False)
        for ax in row_axes:
            _bare(ax)
    legend.draw(footer, "center")
    save_picture(figure, Path(path))


def contact_sheet(path: str | Path, frames: Sequence[LabelledFrame], segment_classes: Sequence[str]) -> None:
    """Write a PNG with each frame and, to its right, its label map over the grey frame; the legend is below.

    If no label map has a frame, the PNG shows only the label maps, in plain colours.

    Args:
        path: of the PNG.
        frames: from left to right, then from top to bottom.
        segment_classes: the S names, background first.

    Raises:
        InputError: there are no label maps, or a class id has no name.
    """
    if not frames:
        raise InputError("There are no label maps to draw. Give at least one.")

    def legend_of(width: float) -> _Legend:
        return _Legend([sample.label_map for sample in frames], segment_classes, width)

    def draw(ax: Axes, number: int, legend: _Legend | None) -> None:
        assert legend is not None
        _show_labels(ax, frames[number].label_map, frames[number].frame, legend.colours)

    _sheet(path, [(sample.title, sample.frame, sample.label_map) for sample in frames], draw, legend_of)


def colours_sheet(path: str | Path, samples: Sequence[tuple[str, Bytes | None, Bytes]]) -> None:
    """Write a PNG with each frame and, to its right, the colours of a teacher's values.

    Args:
        path: of the PNG.
        samples: a title, the frame if it is known, and the colours, both uint8 (H, W, 3).

    InputError: there are none.
    """
    _sheet(path, samples, lambda ax, number, _: ax.imshow(samples[number][2], interpolation="nearest"))


def _sheet(
    path: str | Path,
    samples: Sequence[tuple[str, Bytes | None, Bytes]],
    draw: Callable[[Axes, int, "_Legend | None"], object],
    legend_of: Callable[[float], "_Legend"] | None = None,
) -> None:
    """A PNG of samples: a title, the frame if it is known, and what `draw` draws to its right.

    samples: the third has the size of what is drawn.
    legend_of: makes the legend for a width in inches.
    """
    if not samples:
        raise InputError("There are no targets to draw. Give at least one.")
    with_frames = any(frame is not None for _, frame, _ in samples)
    per_line = min(len(samples), 3 if with_frames else 4)
    panel_width = 1.7 if with_frames else 2.4
    panels = 2 if with_frames else 1
    lines = -(-len(samples) // per_line)
    sizes = [(drawn if frame is None else frame).shape[:2] for _, frame, drawn in samples]
    panel_height = panel_width * max(height / width for height, width in sizes)

    gap, title_height = 0.15, 0.22
    cell_width, cell_height = panels * panel_width + gap, panel_height + title_height
    legend = None if legend_of is None else legend_of(per_line * cell_width)
    legend_height = 0.0 if legend is None else legend.height + 0.25
    width, height = per_line * cell_width + gap, lines * cell_height + legend_height
    figure = Figure(figsize=(width, height), facecolor="white")
    title_length = int(16 * panels * panel_width)
    for number, (title, frame, _) in enumerate(samples):
        line, column = divmod(number, per_line)
        left, bottom = gap + column * cell_width, height - (line + 1) * cell_height
        title = title if len(title) <= title_length else f"…{title[1 - title_length :]}"
        figure.text(left / width, (bottom + panel_height + 0.06) / height, title, fontsize=7, parse_math=False)
        for panel in range(panels):
            ax = figure.add_axes(
                ((left + panel * panel_width) / width, bottom / height, panel_width / width, panel_height / height)
            )
            _bare(ax)
            if panel == panels - 1:
                draw(ax, number, legend)
            elif frame is not None:
                ax.imshow(frame)
    if legend is not None:
        legend.draw(figure, "lower left")
    save_picture(figure, Path(path))


def shortened(name: str, most: int = 60) -> str:
    """A name in at most so many characters. A class's name of 10,000 would make a picture of gigabytes."""
    name = printable(name)
    return name if len(name) <= most else f"{name[: most - 3]}..."


def confusion_plot(path: str | Path, counts_KK: ArrayLike, classes: Sequence[str], note: str = "") -> None:
    """Write a PNG of a confusion matrix: a row per true class, a column per predicted class.

    The colour of a cell is its share of the row; a row without videos is grey. Cells show their counts for up to 30
    classes; rows and columns show their names for up to 400 classes.

    Args:
        path: of the PNG.
        counts_KK: how many videos of the true class (row) got the predicted class (column).
        classes: the K names.
        note: a second line of the title, for example the accuracy of baselines.

    Raises:
        InputError: the matrix is not K by K.
    """
    counts_KK = np.asarray(counts_KK)
    size = len(classes)
    if counts_KK.shape != (size, size) or size == 0:
        raise InputError(
            f"The confusion matrix has shape {counts_KK.shape}. Give ({size}, {size}), for {size} classes."
        )
    videos_K1 = counts_KK.sum(axis=1, keepdims=True)
    none_K = videos_K1[:, 0] == 0
    share_KK = np.where(none_K[:, None], np.nan, counts_KK / np.maximum(videos_K1, 1))
    videos = int(videos_K1.sum())

    names = [shortened(name) for name in classes] if size <= 400 else []  # more take minutes and gigabytes to draw
    cell = float(np.interp(size, [2, 6, 12, 30, 160], [0.95, 0.75, 0.55, 0.4, 0.14])) if names else 56 / size
    font = float(np.clip(cell * 72 * 0.75, 4, 10))
    figure = Figure(figsize=(size * cell + 1.2, size * cell + 1.2), facecolor="white")
    # The matrix has a fixed size; saving measures what is around it and crops to that.
    ax = figure.add_axes((0, 0, size * cell / (size * cell + 1.2), size * cell / (size * cell + 1.2)))
    ax.set_facecolor("0.8")  # a row without videos
    image = ax.imshow(share_KK, cmap="Blues", vmin=0, vmax=1)
    ax.set_xticks(range(len(names)), names, rotation=90 if size > 8 else 45, fontsize=font)
    if size <= 8:
        for tick in ax.get_xticklabels():
            tick.set(ha="right", rotation_mode="anchor")
    row_names = [f"{name} (no video)" if none else name for name, none in zip(names, none_K, strict=False)]
    ax.set_yticks(range(len(names)), row_names, fontsize=font)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if names:
        ax.set_xticks(np.arange(size + 1) - 0.5, minor=True)
        ax.set_yticks(np.arange(size + 1) - 0.5, minor=True)
        ax.grid(which="minor", color="0.9", linewidth=0.5)
    ax.tick_params(which="minor", length=0)
    title_font = float(np.interp(size, [2, 30, 160], [10, 13, 24]))
    ax.set_xlabel("predicted", fontsize=title_font)
    ax.set_ylabel("true", fontsize=title_font)
    correct = int(np.trace(counts_KK))
    accuracy = f"{correct} of {videos} correct ({correct / videos:.1%})" if videos else "no videos"
    title = ax.set_title(f"{accuracy}\n{shortened(note, 300)}" if note else accuracy, fontsize=title_font, loc="left")
    for text in (title, *ax.get_xticklabels(), *ax.get_yticklabels()):
        text.set_parse_math(False)  # a name may have dollar signs
    if size <= 30:
        _write_counts(ax, counts_KK, share_KK, font)
    bar_ax = ax.inset_axes((1 + 0.2 / (size * cell), 0, 0.15 / (size * cell), 1))
    bar = figure.colorbar(image, cax=bar_ax, ticks=[0, 0.5, 1], format="{x:.0%}")
    bar.set_label("share of the true class", fontsize=title_font * 0.9)
    bar.ax.tick_params(labelsize=title_font * 0.8)
    bar.outline.set_visible(False)
    save_picture(figure, Path(path), crop=True)


def _write_counts(ax: Axes, counts_KK: np.ndarray, share_KK: np.ndarray, font: float) -> None:
    """Write each count over 0 into its cell, in white on a dark cell."""
    for true, predicted in np.argwhere(counts_KK > 0):
        dark = share_KK[true, predicted] > 0.55
        text = str(counts_KK[true, predicted])
        ax.text(predicted, true, text, ha="center", va="center", fontsize=font, color="white" if dark else "0.15")


def _in_two_lines(title: str, height: float) -> str:
    """A title at 9 points that fits beside a panel of this height in inches; the rest of a longer one is left out."""
    return "\n".join(textwrap.wrap(title, max(8, int(height * 12)), max_lines=2, placeholder=" …"))


def _bare(ax: Axes) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)


def _show_flow(ax: Axes, flow_HW2: NDArray[np.floating], max_px: float) -> None:
    ax.imshow(flow_to_colour(flow_HW2, max_px))
    ax.text(
        0.03,
        0.03,
        f"full colour: {max_px:.2g} px",
        transform=ax.transAxes,
        fontsize=7,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.5},
    )


class _Legend:
    """The legend of the classes that occur in label maps, 255 included.

    maps: class ids.
    width: of the picture, in inches.
    InputError: a class id has no name.
    """

    def __init__(self, maps: Sequence[NDArray[np.integer]], segment_classes: Sequence[str], width: float) -> None:
        occurring = sorted({int(label) for label_map in maps for label in np.unique(label_map)})
        unnamed = [label for label in occurring if label != NO_LABEL and not 0 <= label < len(segment_classes)]
        if unnamed:
            raise InputError(
                f"A label map has class id {unnamed[0]}, but only {len(segment_classes)} segmentation classes have a "
                "name. Give label maps and class names of the same teacher."
            )
        self.colours = label_colours(len(segment_classes)) if maps else np.zeros((0, 3), np.uint8)
        self.patches = [
            Patch(facecolor=NO_LABEL_COLOUR, hatch="////", edgecolor="0.45", label="no label")
            if label == NO_LABEL
            else Patch(facecolor=self.colours[label] / 255, label=shortened(segment_classes[label]))
            for label in occurring
        ]
        self.names_per_line = max(1, int(width / 1.45))
        self.height = 0.19 * -(-len(occurring) // self.names_per_line)

    def draw(self, figure: FigureBase, location: Literal["center", "center right", "lower left"]) -> None:
        if self.patches:
            columns = min(len(self.patches), self.names_per_line)
            legend = figure.legend(handles=self.patches, loc=location, ncols=columns, fontsize=9, frameon=False)
            for text in legend.get_texts():
                text.set_parse_math(False)  # a name may have dollar signs


def _show_labels(ax: Axes, labels_HW: NDArray[np.integer], frame_HW3: Bytes | None, colours: Bytes) -> None:
    """Draw the classes in their colours over the grey frame. Background is dark; pixels without label are hatched."""
    if frame_HW3 is not None:
        labels_HW = resized(labels_HW, (frame_HW3.shape[0], frame_HW3.shape[1]))
    unlabelled_HW = labels_HW == NO_LABEL
    picture_HW3 = colours[np.where(unlabelled_HW, 0, labels_HW)] / 255
    if frame_HW3 is not None:
        grey_HW1 = frame_HW3.mean(axis=2, keepdims=True) / 255
        weight_HW1 = np.where(labels_HW == 0, 0.55, 0.7)[..., None]
        picture_HW3 = weight_HW1 * picture_HW3 + (1 - weight_HW1) * grey_HW1
    picture_HW3[unlabelled_HW] = NO_LABEL_COLOUR
    ax.imshow(picture_HW3)
    if unlabelled_HW.any():
        hatched = ax.contourf(unlabelled_HW, levels=[0.5, 1.5], colors="none", hatches=["////"])
        hatched.set(edgecolor="0.45", linewidth=0)


def _show_wheel(footer: SubFigure) -> None:
    """Draw the colour wheel: each colour lies, seen from the centre, in the direction of motion that it means."""
    across = np.linspace(-1.02, 1.02, 255)
    flow_HW2 = np.stack(np.meshgrid(across, across), axis=-1)
    wheel_HW3 = flow_to_colour(flow_HW2, max_px=1)
    wheel_HW3[np.hypot(flow_HW2[..., 0], flow_HW2[..., 1]) > 1] = 255
    ax = footer.add_axes((0.02, 0.05, 0.2, 0.9), anchor="W")
    ax.imshow(wheel_HW3)
    _bare(ax)
    ax.text(1.1, 0.5, "motion\ntowards", transform=ax.transAxes, fontsize=8, va="center")


def save_picture(figure: Figure, path: Path, crop: bool = False) -> None:
    """Write a PNG. With `crop` its size fits what is drawn."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, bbox_inches="tight" if crop else None)
