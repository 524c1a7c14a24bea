"""Colours and pictures, checked by their pixels."""

import colorsys
import struct

import numpy as np
import pytest
from matplotlib.image import imread

from airstreams.errors import InputError
from airstreams.viewing import pictures
from airstreams.viewing.colours import flow_to_colour, label_colours
from airstreams.viewing.pictures import (
    LabelledFrame,
    RepresentationRow,
    confusion_plot,
    contact_sheet,
    representations_picture,
)


def colour_of(x, y, max_px=1.0):
    return flow_to_colour(np.array([[[x, y]]], dtype=np.float32), max_px)[0, 0].astype(int)


def hue_degrees(colour):
    return 360 * colorsys.rgb_to_hsv(*(colour / 255))[0]


def test_no_motion_is_white():
    assert (flow_to_colour(np.zeros((3, 4, 2))) == 255).all()
    assert flow_to_colour(np.zeros((3, 4, 2))).shape == (3, 4, 3)


def test_the_wheel_has_the_corners_of_the_paper():
    # 55 steps around, counted from motion to the right: red 0, yellow 15, green 21, cyan 25, blue 36, magenta 49.
    corners = {
        0: (255, 0, 0),
        15: (255, 255, 0),
        21: (0, 255, 0),
        25: (0, 255, 255),
        36: (0, 0, 255),
        49: (255, 0, 255),
    }
    for step, colour in corners.items():
        angle = 2 * np.pi * step / 55
        np.testing.assert_allclose(colour_of(np.cos(angle), np.sin(angle), 1.0001), colour, atol=1)
    # Colours change evenly between corners: this is a third of the way from red to yellow.
    angle = 2 * np.pi * 5 / 55
    np.testing.assert_allclose(colour_of(np.cos(angle), np.sin(angle), 1.0001), (255, 85, 0), atol=1)


def test_the_wheel_closes_without_a_jump():
    angles = np.linspace(0, 2 * np.pi, 720)
    flow = np.stack([np.cos(angles), np.sin(angles)], axis=-1)[None] * 0.9
    steps = np.abs(np.diff(flow_to_colour(flow, 1.0).astype(int), axis=1))
    assert steps.max() <= 40
    np.testing.assert_allclose(colour_of(0.9, 1e-7), colour_of(0.9, -1e-7), atol=1)


@pytest.mark.parametrize("angle", np.linspace(0, np.pi, 7)[:-1])
def test_opposite_directions_have_roughly_complementary_hues(angle):
    here = hue_degrees(colour_of(np.cos(angle), np.sin(angle), 1.01))
    there = hue_degrees(colour_of(-np.cos(angle), -np.sin(angle), 1.01))
    assert 180 - 60 < abs(here - there) < 180 + 60


@pytest.mark.parametrize("angle", [0.0, 1.1, 2.5, 4.4])
def test_saturation_grows_with_length_and_overlong_flow_is_darker(angle):
    colours = [colour_of(r * np.cos(angle), r * np.sin(angle)) / 255 for r in (0.0, 0.25, 0.5, 0.75, 0.99)]
    saturations = [colorsys.rgb_to_hsv(*colour)[1] for colour in colours]
    np.testing.assert_allclose(saturations, [0, 0.25, 0.5, 0.75, 0.99], atol=0.01)
    beyond = colour_of(3 * np.cos(angle), 3 * np.sin(angle)) / 255
    assert colorsys.rgb_to_hsv(*beyond)[2] == pytest.approx(0.75, abs=0.01)


def test_the_default_scale_ignores_a_few_outliers():
    flow = np.zeros((20, 20, 2))
    flow[..., 0] = 2.0
    flow[0, 0] = (0, 500)
    colours = flow_to_colour(flow)
    np.testing.assert_array_equal(colours[5, 5], (255, 0, 0))


def test_flow_of_a_wrong_shape_is_refused():
    with pytest.raises(InputError, match=r"\(2, 5, 6\)"):
        flow_to_colour(np.zeros((2, 5, 6)))


def test_palette_is_fixed_and_has_distinct_colours():
    palette = label_colours(255).astype(int)
    assert palette[0].max() < 60
    assert palette[1].argmax() == 2
    assert palette[1][2] - palette[1][:2].max() > 100
    assert len(np.unique(palette, axis=0)) == 255
    np.testing.assert_array_equal(label_colours(7), palette[:7])
    first = palette[:20]
    apart = np.linalg.norm(first[:, None] - first[None], axis=2)
    assert apart[~np.eye(20, dtype=bool)].min() > 40
    for classes in (0, 256):
        with pytest.raises(InputError, match=rf"\b{classes} segmentation classes"):
            label_colours(classes)


# Viénot, Brettel and Mollon, "Digital video colourmaps for checking the legibility of displays by dichromats", Color
# Research & Application 1999: from linear RGB to the cones, and the missing cone from the other two.
CONES = np.array([[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]])
MISSING_CONE = {
    "protanopia": [[0, 2.02344, -2.52581], [0, 1, 0], [0, 0, 1]],
    "deuteranopia": [[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]],
}


def cielab(rgb, blindness=None):
    """sRGB in 0..255 to CIELAB (D65), as someone with this blindness sees it: a difference of 2.3 is just visible."""
    encoded = np.asarray(rgb) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    if blindness is not None:
        linear = np.clip(linear @ (np.linalg.inv(CONES) @ MISSING_CONE[blindness] @ CONES).T, 0, 1)
    xyz = linear @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T
    ratio = xyz / [0.9505, 1, 1.089]
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


@pytest.mark.parametrize("blindness", [None, "protanopia", "deuteranopia"])
def test_colours_differ_for_colour_blind_people(blindness):
    def smallest(colours):
        lab = cielab(colours, blindness)
        return np.linalg.norm(lab[:, None] - lab[None], axis=2)[~np.eye(len(lab), dtype=bool)].min()

    palette, no_label = label_colours(81).astype(float), [[0.78 * 255] * 3]
    for count, least in ((8, 25), (12, 19), (24, 10), (81, 5)):
        assert smallest(np.concatenate([palette[:count], no_label])) > least, count
    over_grey = 0.7 * palette[:12] + 0.3 * 128  # as they lie over a frame
    assert smallest(over_grey) > 12


def size_of(path):
    """Width and height of a PNG, without decoding it."""
    header = path.read_bytes()[:24]
    return struct.unpack(">II", header[16:])


def has_colour(picture_HW4, colour, tolerance=8):
    return (np.abs(picture_HW4[..., :3] * 255 - colour).max(axis=2) < tolerance).sum()


def row(**given):
    frame = np.full((30, 40, 3), 128, np.uint8)
    return RepresentationRow("walk", frame, **given)


@pytest.fixture
def flow():
    return np.tile(np.array([3.0, 0.0]), (30, 40, 1))


@pytest.fixture
def labels():
    labels = np.zeros((15, 20), np.uint8)
    labels[3:12, 5:15] = 2
    return labels


def test_empty_columns_are_left_out(tmp_path, flow, labels):
    widths = []
    for given in (
        {},
        {"flow": flow},
        {"flow": flow, "panels": {"semantic": labels}},
        {"flow": flow, "panels": {"semantic": labels, "teacher": labels}},
        {"flow": flow, "panels": {"semantic": labels, "teacher": labels}, "flow_before": flow},
    ):
        # A second row without representations leaves gaps and keeps the columns.
        names = dict.fromkeys(("semantic", "teacher"), ("background", "person", "ball"))
        representations_picture(tmp_path / "new" / "a.png", [row(**given), row()], names)
        picture = imread(tmp_path / "new" / "a.png")
        # The grey frame is in both rows of the first column.
        assert has_colour(picture, 128, tolerance=2) > 40_000
        widths.append(picture.shape[1])
    steps = np.diff(widths)
    assert steps.min() > 200
    assert np.ptp(steps) <= 2
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_each_row_adds_to_the_height(tmp_path, flow):
    heights = []
    for count in (1, 2, 3):
        representations_picture(tmp_path / "a.png", [row(flow=flow)] * count, {})
        heights.append(imread(tmp_path / "a.png").shape[0])
    assert np.diff(heights).min() > 150
    assert np.ptp(np.diff(heights)) <= 2


def test_representations_have_the_colours_of_flow_and_classes(tmp_path, flow, labels):
    names = dict.fromkeys(("semantic", "teacher"), ("background", "person", "ball"))
    path = tmp_path / "a.png"
    representations_picture(path, [row(flow=flow, panels={"semantic": labels})], names)
    picture = imread(path)
    panel = 280 * 210
    # The flow's panel is all red. The ball covers 30 % of its panel, mixed with the grey frame.
    assert has_colour(picture, (255, 0, 0)) > 0.8 * panel
    ball = 0.7 * label_colours(3)[2] + 0.3 * 128
    assert 0.25 * panel < has_colour(picture, ball) < 0.35 * panel
    # The legend has the ball in its plain colour, and no person.
    assert has_colour(picture, label_colours(3)[2], 3) > 100
    assert has_colour(picture, label_colours(3)[1], 3) < 10
    grey = 0.78 * 255
    assert has_colour(picture, grey, 2) < 1000

    teacher = labels.copy()
    teacher[:8] = 255
    representations_picture(path, [row(panels={"teacher": teacher})], names)
    assert has_colour(imread(path), grey, 2) > 0.25 * panel


def test_flow_before_and_after_training_share_a_scale(tmp_path, flow):
    def pixels(colour):
        picture = imread(tmp_path / "a.png")
        return np.argwhere(np.abs(picture[..., :3] * 255 - colour).max(axis=2) < 3)

    panel = 280 * 210
    half_red = (255, 127.5, 127.5)
    for before, after in ((1.0, 0.5), (0.5, 1.0)):
        # The second row moves ten times as far and has a scale of its own.
        rows = [row(flow_before=scale * before * flow, flow=scale * after * flow) for scale in (1, 10)]
        representations_picture(tmp_path / "a.png", rows, {})
        full, half = pixels((255, 0, 0)), pixels(half_red)
        assert len(full) > 2 * 0.8 * panel
        assert len(half) > 2 * 0.8 * panel
        # Medians, because the wheel has some red too.
        assert (np.median(full[:, 1]) < np.median(half[:, 1])) == (before > after)

    # Flow from before training alone also gets its column and the wheel.
    representations_picture(tmp_path / "a.png", [row(flow_before=flow)], {})
    assert len(pixels((255, 0, 0))) > 0.8 * panel
    picture = imread(tmp_path / "a.png")
    assert (picture[..., 2] - picture[..., 0] > 0.8).sum() > 100


def test_missing_rows_and_unnamed_classes_are_refused(tmp_path, labels):
    with pytest.raises(InputError, match="no rows"):
        representations_picture(tmp_path / "a.png", [], {})
    with pytest.raises(InputError, match=r"class id 2\b"):
        representations_picture(
            tmp_path / "a.png", [row(panels={"semantic": labels})], {"semantic": ["background", "person"]}
        )
    assert not list(tmp_path.iterdir())


def test_the_contact_sheet_has_frames_beside_label_maps(tmp_path, labels):
    names = ["background", "person", "ball"]
    path = tmp_path / "new" / "sheet.png"
    frame = np.full((30, 40, 3), (250, 120, 10), np.uint8)
    grey = (250 + 120 + 10) / 3
    panel = (1.7 * 120) * (1.7 * 0.75 * 120)
    ball = 0.7 * label_colours(3)[2] + 0.3 * grey
    for count in (1, 3, 7, 12):
        contact_sheet(path, [LabelledFrame(f"clap/{i}", labels, frame) for i in range(count)], names)
        picture = imread(path)
        assert has_colour(picture, frame[0, 0], 3) == pytest.approx(count * panel, rel=0.03)
        assert has_colour(picture, ball, 3) == pytest.approx(0.3 * count * panel, rel=0.03)
    # Each label map is to the right of its frame.
    of_frame = np.abs(picture[..., :3] * 255 - frame[0, 0]).max(axis=2) < 3
    of_ball = np.abs(picture[..., :3] * 255 - ball).max(axis=2) < 3
    line = int(np.nonzero(of_ball.any(axis=1))[0][20])
    panels = [("frame" if of_frame[line, x] else "map") for x in np.nonzero(of_frame[line] | of_ball[line])[0]]
    assert [a for a, b in zip(panels, [*panels[1:], ""], strict=True) if a != b] == ["frame", "map"] * 3
    # The legend has the ball, and no person.
    assert has_colour(picture, label_colours(3)[2], 3) > 100
    assert has_colour(picture, label_colours(3)[1], 3) < 10
    assert [item.name for item in path.parent.iterdir()] == ["sheet.png"]


def test_the_contact_sheet_without_frames_has_plain_colours(tmp_path, labels):
    names = ["background", "person", "ball"]
    partly = labels.copy()
    partly[:, :5] = 255
    panel = (2.4 * 120) * (2.4 * 0.75 * 120)
    contact_sheet(tmp_path / "a.png", [LabelledFrame("a", labels), LabelledFrame("b", partly)], names)
    picture = imread(tmp_path / "a.png")
    assert has_colour(picture, label_colours(3)[2], 3) == pytest.approx(2 * 0.3 * panel, rel=0.05)
    assert has_colour(picture, label_colours(3)[0], 3) == pytest.approx((0.7 + 0.7 - 0.25) * panel, rel=0.05)
    assert has_colour(picture, 0.78 * 255, 2) > 0.1 * panel  # less than a quarter, because of the hatching
    # A frame that could not be read leaves a gap.
    frame = np.full((30, 40, 3), (250, 120, 10), np.uint8)
    contact_sheet(tmp_path / "a.png", [LabelledFrame("a", labels, frame), LabelledFrame("b", labels)], names)
    picture = imread(tmp_path / "a.png")
    assert has_colour(picture, (250, 120, 10), 3) == pytest.approx((1.7 * 120) ** 2 * 0.75, rel=0.03)
    assert has_colour(picture, label_colours(3)[2], 3) > 0.25 * (1.7 * 120) ** 2 * 0.75


def test_a_long_title_stays_over_its_frame(tmp_path, labels):
    def dark_columns(title):
        contact_sheet(tmp_path / "a.png", [LabelledFrame(title, labels), LabelledFrame("", labels)], ["", "", ""])
        above = imread(tmp_path / "a.png")[: int(0.2 * 120), :, :3]
        return np.nonzero((above < 0.5).any(axis=(0, 2)))[0]

    assert dark_columns("a").max() < 40
    assert 100 < dark_columns("clap/" + "_$word$" * 40 + ", frame 7").max() < (0.15 + 2.4 + 0.15) * 120


def test_the_contact_sheet_refuses_missing_maps_and_unnamed_classes(tmp_path, labels):
    with pytest.raises(InputError, match="no label maps"):
        contact_sheet(tmp_path / "a.png", [], ["background"])
    with pytest.raises(InputError, match=r"class id 2\b"):
        contact_sheet(tmp_path / "a.png", [LabelledFrame("a", labels)], ["background", "person"])
    assert not list(tmp_path.iterdir())


def test_confusion_rows_are_shares_of_the_true_class(tmp_path):
    path = tmp_path / "confusion.png"
    # The first class is always right, the second is always predicted as the first, the third has no videos.
    confusion_plot(path, [[50, 0, 0], [2, 0, 0], [0, 0, 0]], ["run", "walk", "sit"])
    picture = imread(path)
    full = (8, 48, 107)
    # Two full cells, although their counts differ, and the end of the colour bar.
    one_cell = (0.89 * 120) ** 2
    assert 1.6 * one_cell < has_colour(picture, full, 3) < 2.3 * one_cell
    assert 2.5 * one_cell < has_colour(picture, (204, 204, 204), 3) < 3.3 * one_cell  # the row without videos


def test_confusion_grows_with_the_number_of_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "DPI", 30)  # a quarter of the size, which is faster
    sizes = []
    for classes in (2, 30, 160):
        path = tmp_path / f"{classes}.png"
        confusion_plot(path, np.eye(classes, dtype=int), [f"class {k}" for k in range(classes)])
        sizes.append(min(size_of(path)))
    assert sizes == sorted(sizes)
    assert sizes[0] > 250 / 4
    # At full size the name of each class has at least 14 pixels.
    assert 14 * 160 / 4 < sizes[2] < 4000 / 4


def test_confusion_of_very_many_classes_has_a_limited_size(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "DPI", 30)
    confusion_plot(tmp_path / "large.png", np.eye(1000), [str(number) for number in range(1000)])
    assert 200 < max(size_of(tmp_path / "large.png")) < 8000 / 4


def test_confusion_shows_counts_for_few_classes_only(tmp_path):
    def below_the_title(counts):
        confusion_plot(tmp_path / "a.png", counts, [""] * len(counts))
        picture = imread(tmp_path / "a.png")
        dark_rows = np.nonzero((np.abs(picture[..., :3] * 255 - (8, 48, 107)).max(axis=2) < 3).sum(axis=1) > 10)[0]
        return picture[dark_rows[0] :]

    # Equal shares of different counts differ only in the numbers in the cells.
    many, few = (below_the_title(np.diag([count] * 30)) for count in (88, 1))
    assert (many != few).any(axis=2).sum() > 30
    many, few = (below_the_title(np.diag([count] * 31)) for count in (88, 1))
    np.testing.assert_array_equal(many, few)


def test_names_may_have_dollar_signs(tmp_path, labels):
    names = ["5$ x^{$", "b", "5$ x^{$"]
    confusion_plot(tmp_path / "confusion.png", np.eye(3), names, note="always '5$ x^{$'")
    contact_sheet(tmp_path / "sheet.png", [LabelledFrame("5$ x^{$", labels)], names)
    frame, flow = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64, 2), np.float32)
    representations_picture(tmp_path / "streams.png", [RepresentationRow(title="5$ x^{$", frame=frame, flow=flow)], {})
    assert len(list(tmp_path.iterdir())) == 3


def test_a_long_title_stays_beside_its_frame(tmp_path):
    rows = [RepresentationRow(title="right_" + "x" * 90, frame=np.zeros((64, 64, 3), np.uint8), flow=None)] * 2
    representations_picture(tmp_path / "streams.png", rows, {})
    dark = imread(tmp_path / "streams.png")[..., :3].max(axis=2) < 0.3
    frames = dark.sum(axis=1) > 200
    first_column = np.nonzero(dark.sum(axis=0) > 300)[0][0]
    titles = dark[:, : first_column - 2].any(axis=1)
    assert titles.sum() > 200
    assert not (titles & ~frames).any()


def test_confusion_of_a_wrong_shape_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"\(2, 3\)"):
        confusion_plot(tmp_path / "a.png", np.zeros((2, 3), int), ["a", "b"])
    assert not list(tmp_path.iterdir())
