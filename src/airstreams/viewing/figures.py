"""Pictures of what the network sees and of where it errs: optical flow, label maps, and the confusion of classes.

Figures are made through matplotlib's objects and not through pyplot, so that drawing one leaves no trace in the program
that asked for it: no window, no open figure, no changed style. The price is that sizes and fonts are spelled out below.

Shapes: H, W pixels, K action classes, S segmentation classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from numpy.typing import ArrayLike, NDArray

from airstreams.data.labels import NO_LABEL, resized
from airstreams.errors import InputError
from airstreams.evaluation.label_report import LabelledFrame
from airstreams.files import replacing

Bytes = NDArray[np.uint8]

NO_LABEL_COLOUR = (0.78, 0.78, 0.78)

# Baker et al., "A Database and Evaluation Methodology for Optical Flow", IJCV 2011: how many steps the wheel takes from
# each colour to the next. More of them lie where the eye tells hues apart well.
WHEEL_STEPS = {"red": 15, "yellow": 6, "green": 4, "cyan": 11, "blue": 13, "magenta": 6}
WHEEL_CORNERS = {
    "red": (255, 0, 0),
    "yellow": (255, 255, 0),
    "green": (0, 255, 0),
    "cyan": (0, 255, 255),
    "blue": (0, 0, 255),
    "magenta": (255, 0, 255),
}


@dataclass(frozen=True)
class RepresentationRow:
    """One frame and what was made of it; None for what there is not.

    Attributes:
        title: stands to the left of the row.
        frame: uint8 (H, W, 3), RGB.
        flow: (H, W, 2), (x, y) in px a frame. This and those below may be smaller or larger than the frame.
        segmentation: (H, W), the predicted class ids.
        teacher: (H, W), the teacher's class ids, 255 where it gave no label.
        flow_before: (H, W, 2), what the flow layer gave before it was trained.
    """

    title: str
    frame: Bytes
    flow: NDArray[np.floating] | None = None
    segmentation: NDArray[np.integer] | None = None
    teacher: NDArray[np.integer] | None = None
    flow_before: NDArray[np.floating] | None = None


def flow_to_colour(flow_HW2: ArrayLike, max_px: float | None = None) -> Bytes:
    """Flow in the colours of Baker et al.: the hue is the direction, white is rest, and full colour is `max_px`.

    Motion to the right is red, down is yellow, left is blue-green and up is violet. Above `max_px` colours are darker.

    Args:
        flow_HW2: (x, y) in px, x to the right and y down.
        max_px: the length with full colour; by default the 99th percentile of the lengths.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        InputError: where the last axis does not hold x and y.
    """
    flow_HW2 = np.asarray(flow_HW2, dtype=np.float64)
    if flow_HW2.ndim != 3 or flow_HW2.shape[2] != 2:
        raise InputError(f"flow has shape {flow_HW2.shape}: expected (height, width, 2) with x and y last")
    x_HW, y_HW = flow_HW2[..., 0], flow_HW2[..., 1]
    length_HW = np.hypot(x_HW, y_HW)
    if max_px is None:
        max_px = _full_colour_px(length_HW)

    wheel = _colour_wheel()
    place_HW = np.mod(np.arctan2(y_HW, x_HW) / (2 * np.pi), 1) * len(wheel)
    before_HW = place_HW.astype(int) % len(wheel)
    share_HW1 = (place_HW - np.floor(place_HW))[..., None]
    hue_HW3 = (1 - share_HW1) * wheel[before_HW] + share_HW1 * wheel[(before_HW + 1) % len(wheel)]

    strength_HW1 = length_HW[..., None] / max_px
    colour_HW3 = np.where(strength_HW1 <= 1, 255 - strength_HW1 * (255 - hue_HW3), 0.75 * hue_HW3)
    return np.rint(colour_HW3).astype(np.uint8)


def label_colours(classes: int) -> Bytes:
    """A fixed palette: class 0, the background, is almost black, and class 1 is a strong blue.

    A class has the same colour in a palette of any size. Each further colour is the one, of a coarse grid of strong
    colours, that is farthest for the eye from all before it.

    Args:
        classes: S, from 1 to 255.

    Returns:
        uint8 (S, 3), RGB.

    Raises:
        InputError: for more classes than label maps can hold (255 means no label), or none.
    """
    if not 1 <= classes <= NO_LABEL:
        raise InputError(f"{classes} segmentation classes: expected 1 to {NO_LABEL}")
    levels = np.linspace(0, 255, 10).round()
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lightness = _oklab(candidates)[:, 0]
    # Near-black would be taken for background and near-white or grey for a pixel without a label.
    strong = (lightness > 0.4) & (lightness < 0.93) & (np.ptp(candidates, axis=1) > 60)
    candidates = candidates[strong]
    chosen = [np.array([38, 38, 42]), np.array([30, 100, 255])]
    seen = _oklab(candidates)
    distance = np.min([np.linalg.norm(seen - _oklab(colour), axis=1) for colour in chosen], axis=0)
    while len(chosen) < classes:
        farthest = int(np.argmax(distance))
        chosen.append(candidates[farthest])
        distance = np.minimum(distance, np.linalg.norm(seen - seen[farthest], axis=1))
    return np.array(chosen[:classes]).astype(np.uint8)


def representations_figure(path: str | Path, rows: Sequence[RepresentationRow], segment_classes: Sequence[str]) -> None:
    """Writes a PNG with, in each row, the frame, its flow, the predicted segmentation and the teacher's label map.

    Where there is flow from before training it stands before the flow, which is then headed as that after training; the
    two of a row share one scale, so that they compare. A column that no row has anything for is left out. The legend
    names the classes that are seen.

    Args:
        segment_classes: the S names, the background first.

    Raises:
        InputError: without rows, or for a class id that has no name.
    """
    if not rows:
        raise InputError("no rows to draw: expected at least one frame")
    columns = ["frame"]
    compares = any(row.flow_before is not None for row in rows)
    flow_column = "flow after training" if compares else "optical flow"
    columns += ["flow before training"] if compares else []
    columns += [flow_column] if any(row.flow is not None for row in rows) else []
    columns += ["segmentation"] if any(row.segmentation is not None for row in rows) else []
    columns += ["teacher"] if any(row.teacher is not None for row in rows) else []
    maps = [m for row in rows for m in (row.segmentation, row.teacher) if m is not None]
    seen = _seen(maps, segment_classes)
    colours = label_colours(len(segment_classes)) if maps else np.zeros((0, 3), np.uint8)

    panel_width = 2.4
    panel_heights = [panel_width * row.frame.shape[0] / row.frame.shape[1] for row in rows]
    width = len(columns) * panel_width + 0.4
    wheel_width = 1.7 if compares or flow_column in columns else 0.0
    names_a_line = max(1, int((width - wheel_width) / 1.45))
    legend_height = max(0.19 * -(-len(seen) // names_a_line), 0.85 if wheel_width else 0) + 0.15
    figure = Figure(
        figsize=(width, sum(panel_heights) + 0.08 * len(rows) + 0.4 + legend_height),
        facecolor="white",
        layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0),
    )
    parts_21 = figure.subfigures(2, 1, squeeze=False, height_ratios=[sum(panel_heights) + 0.4, legend_height])
    pictures, footer = parts_21[:, 0]
    axes = pictures.subplots(len(rows), len(columns), squeeze=False, height_ratios=panel_heights)

    for row, row_axes in zip(rows, axes, strict=True):
        flows = [flow_HW2 for flow_HW2 in (row.flow_before, row.flow) if flow_HW2 is not None]
        max_px = max((_full_colour_px(np.linalg.norm(flow_HW2, axis=2)) for flow_HW2 in flows), default=0.0)
        for column, ax in zip(columns, row_axes, strict=True):
            _bare(ax)
            if column == "frame":
                ax.imshow(row.frame)
                ax.set_ylabel(row.title, fontsize=9)
            elif column == "flow before training" and row.flow_before is not None:
                _show_flow(ax, row.flow_before, max_px)
            elif column == flow_column and row.flow is not None:
                _show_flow(ax, row.flow, max_px)
            elif column == "segmentation" and row.segmentation is not None:
                _show_labels(ax, row.segmentation, row.frame, colours)
            elif column == "teacher" and row.teacher is not None:
                _show_labels(ax, row.teacher, row.frame, colours)
            else:
                ax.axis("off")
    for column, ax in zip(columns, axes[0], strict=True):
        ax.set_title(column, fontsize=11)

    if seen:
        footer.legend(
            handles=_patches(seen, colours, segment_classes),
            loc="center right",
            ncols=min(len(seen), names_a_line),
            fontsize=9,
            frameon=False,
        )
    if wheel_width:
        _show_wheel(footer)
    save_figure(figure, Path(path))


def contact_sheet(path: str | Path, frames: Sequence[LabelledFrame], segment_classes: Sequence[str]) -> None:
    """Writes a PNG with each frame and, beside it, its label map over the grey frame; below, the classes that are seen.

    Without any frame the label maps stand alone, in their plain colours.

    Args:
        segment_classes: the S names, the background first.

    Raises:
        InputError: without label maps, or for a class id that has no name.
    """
    if not frames:
        raise InputError("no label maps to draw: expected at least one")
    seen = _seen([shown.label_map for shown in frames], segment_classes)
    colours = label_colours(len(segment_classes))
    with_frames = any(shown.frame is not None for shown in frames)
    a_line = min(len(frames), 3 if with_frames else 4)
    panel_width = 1.7 if with_frames else 2.4
    panels = 2 if with_frames else 1
    lines = -(-len(frames) // a_line)
    sizes = [(shown.label_map if shown.frame is None else shown.frame).shape[:2] for shown in frames]
    panel_height = panel_width * max(height / width for height, width in sizes)

    gap, title_height = 0.15, 0.22
    cell_width, cell_height = panels * panel_width + gap, panel_height + title_height
    names_a_line = max(1, int((a_line * cell_width) / 1.45))
    legend_height = 0.19 * -(-len(seen) // names_a_line) + 0.25
    width, height = a_line * cell_width + gap, lines * cell_height + legend_height
    figure = Figure(figsize=(width, height), facecolor="white")
    letters = int(16 * panels * panel_width)
    for place, shown in enumerate(frames):
        line, column = divmod(place, a_line)
        left, bottom = gap + column * cell_width, height - (line + 1) * cell_height
        title = shown.title if len(shown.title) <= letters else f"…{shown.title[1 - letters :]}"
        figure.text(left / width, (bottom + panel_height + 0.06) / height, title, fontsize=7, parse_math=False)
        for panel in range(panels):
            ax = figure.add_axes(
                ((left + panel * panel_width) / width, bottom / height, panel_width / width, panel_height / height)
            )
            _bare(ax)
            if panel == panels - 1:
                _show_labels(ax, shown.label_map, shown.frame, colours)
            elif shown.frame is not None:
                ax.imshow(shown.frame)
    figure.legend(
        handles=_patches(seen, colours, segment_classes),
        loc="lower left",
        ncols=min(len(seen), names_a_line),
        fontsize=9,
        frameon=False,
    )
    save_figure(figure, Path(path))


def confusion_figure(path: str | Path, counts_KK: ArrayLike, classes: Sequence[str]) -> None:
    """Writes a PNG of a confusion matrix: a row for each true class, a column for each predicted one.

    Colours are shares of the row; up to 30 classes the counts stand in the cells.

    Args:
        counts_KK: how many videos of the true class (row) were taken for the predicted one (column).
        classes: the K names.

    Raises:
        InputError: where the matrix is not K by K.
    """
    counts_KK = np.asarray(counts_KK)
    size = len(classes)
    if counts_KK.shape != (size, size) or size == 0:
        raise InputError(f"confusion matrix of shape {counts_KK.shape} for {size} classes: expected ({size}, {size})")
    videos_K1 = counts_KK.sum(axis=1, keepdims=True)
    share_KK = counts_KK / np.maximum(videos_K1, 1)
    videos = int(videos_K1.sum())

    cell = np.interp(size, [2, 6, 12, 30, 160], [0.95, 0.75, 0.55, 0.4, 0.14])
    font = float(np.clip(cell * 72 * 0.75, 4, 10))
    figure = Figure(figsize=(size * cell + 1.2, size * cell + 1.2), facecolor="white")
    # The matrix keeps its size; what stands around it is measured when the picture is saved.
    ax = figure.add_axes((0, 0, size * cell / (size * cell + 1.2), size * cell / (size * cell + 1.2)))
    image = ax.imshow(share_KK, cmap="Blues", vmin=0, vmax=1)
    ax.set_xticks(range(size), classes, rotation=90 if size > 8 else 45, fontsize=font)
    if size <= 8:
        for tick in ax.get_xticklabels():
            tick.set(ha="right", rotation_mode="anchor")
    ax.set_yticks(range(size), classes, fontsize=font)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="0.9", linewidth=0.5)
    ax.tick_params(which="minor", length=0)
    title_font = float(np.interp(size, [2, 30, 160], [10, 13, 24]))
    ax.set_xlabel("predicted", fontsize=title_font)
    ax.set_ylabel("true", fontsize=title_font)
    right = int(np.trace(counts_KK))
    accuracy = f"{right} of {videos} right ({right / videos:.1%})" if videos else "no videos"
    ax.set_title(accuracy, fontsize=title_font, loc="left")
    if size <= 30:
        for true, predicted in np.argwhere(counts_KK > 0):
            ax.text(
                predicted,
                true,
                str(counts_KK[true, predicted]),
                ha="center",
                va="center",
                fontsize=font,
                color="white" if share_KK[true, predicted] > 0.55 else "0.15",
            )
    bar_ax = ax.inset_axes((1 + 0.2 / (size * cell), 0, 0.15 / (size * cell), 1))
    bar = figure.colorbar(image, cax=bar_ax, ticks=[0, 0.5, 1], format="{x:.0%}")
    bar.set_label("share of the true class", fontsize=title_font * 0.9)
    bar.ax.tick_params(labelsize=title_font * 0.8)
    bar.outline.set_visible(False)
    save_figure(figure, Path(path), crop=True)


def _full_colour_px(length_HW: NDArray[np.floating]) -> float:
    return max(float(np.percentile(length_HW, 99)), 1e-6)


def _colour_wheel() -> NDArray[np.float64]:
    """The 55 colours (55, 3) in 0..255, from red through yellow, green, cyan, blue and magenta back towards red."""
    corners = [np.array(corner, dtype=float) for corner in WHEEL_CORNERS.values()]
    colours = []
    for place, steps in enumerate(WHEEL_STEPS.values()):
        share = np.arange(steps)[:, None] / steps
        colours.append((1 - share) * corners[place] + share * corners[(place + 1) % len(corners)])
    return np.concatenate(colours)


def _oklab(rgb: NDArray[np.number]) -> NDArray[np.float64]:
    """sRGB in 0..255, on the last axis, to Oklab (Ottosson 2020), where equal distances look about equally far."""
    encoded = rgb / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    cones = linear @ np.array(
        [
            [0.4122214708, 0.2119034982, 0.0883024619],
            [0.5363325363, 0.6806995451, 0.2817188376],
            [0.0514459929, 0.1073969566, 0.6299787005],
        ]
    )
    return np.cbrt(cones) @ np.array(
        [
            [0.2104542553, 1.9779984951, 0.0259040371],
            [0.7936177850, -2.4285922050, 0.7827717662],
            [-0.0040720468, 0.4505937099, -0.8086757660],
        ]
    )


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


def _seen(maps: Sequence[NDArray[np.integer]], segment_classes: Sequence[str]) -> list[int]:
    """The ids in the label maps, 255 included. InputError: one has no name."""
    seen = sorted({int(label) for label_map in maps for label in np.unique(label_map)})
    unnamed = [label for label in seen if label != NO_LABEL and not 0 <= label < len(segment_classes)]
    if unnamed:
        raise InputError(
            f"class id {unnamed[0]} in a label map, but {len(segment_classes)} segmentation classes are named"
        )
    return seen


def _patches(seen: Sequence[int], colours: Bytes, segment_classes: Sequence[str]) -> list[Patch]:
    """The legend's."""
    return [
        Patch(facecolor=NO_LABEL_COLOUR, hatch="////", edgecolor="0.45", label="no label")
        if label == NO_LABEL
        else Patch(facecolor=colours[label] / 255, label=segment_classes[label])
        for label in seen
    ]


def _show_labels(ax: Axes, labels_HW: NDArray[np.integer], frame_HW3: Bytes | None, colours: Bytes) -> None:
    """The classes in their colours over a grey frame; the background darkens it, and what has no label is hatched."""
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
    """The key to the flow's colours: from the middle, each colour lies in the direction that it stands for."""
    across = np.linspace(-1.02, 1.02, 255)
    flow_HW2 = np.stack(np.meshgrid(across, across), axis=-1)
    wheel_HW3 = flow_to_colour(flow_HW2, max_px=1)
    wheel_HW3[np.hypot(flow_HW2[..., 0], flow_HW2[..., 1]) > 1] = 255
    ax = footer.add_axes((0.02, 0.05, 0.2, 0.9), anchor="W")
    ax.imshow(wheel_HW3)
    _bare(ax)
    ax.text(1.1, 0.5, "motion\ntowards", transform=ax.transAxes, fontsize=8, va="center")


def save_figure(figure: Figure, path: Path, crop: bool = False) -> None:
    """Writes a PNG; with `crop` it is as large as what is drawn and no larger."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight" if crop else None)
