import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from airstreams.errors import InputError
from airstreams.viewing.peers import Peer, peers_plot


def place(drawn_HW3, colour):
    """Mean row and column of a colour's pixels above the legend."""
    alike = (np.abs(drawn_HW3 - to_rgb(colour)) < 0.02).all(axis=2)
    return np.argwhere(alike[: int(0.8 * len(alike))]).mean(axis=0)


def test_the_better_one_stands_higher_and_the_dearer_one_further_right(tmp_path):
    cheap = Peer("cheap", 0.4, (0.35, 0.45), parameters=9_000_000, multiply_adds=2_000_000_000)
    dear = Peer("dear", 0.5, (0.42, 0.58), parameters=3_000_000, multiply_adds=17_000_000_000)
    peers_plot(tmp_path / "peers.png", [cheap, dear], "accuracy")
    drawn = imread(tmp_path / "peers.png")[..., :3]
    half = drawn.shape[1] // 2
    for panel, dear_is_right in ((drawn[:, :half], True), (drawn[:, half:], False)):
        (row_of_cheap, column_of_cheap), (row_of_dear, column_of_dear) = place(panel, "C0"), place(panel, "C1")
        assert row_of_dear < row_of_cheap
        assert (column_of_dear > column_of_cheap) == dear_is_right


def test_the_legend_lies_within_the_picture(tmp_path):
    names = ("as in the recipe, the paper after block 3", "after blocks 1, 3 and 5, each with a loss", "late fusion")
    peers = [Peer(name, 0.4, (0.3, 0.5), parameters=10**6, multiply_adds=10**9) for name in names * 2]
    peers_plot(tmp_path / "peers.png", peers, "accuracy")
    drawn = imread(tmp_path / "peers.png")[..., :3]
    for edge in (drawn[:, :3], drawn[:, -3:], drawn[:3], drawn[-3:]):
        assert (edge == 1).all()


def test_nothing_to_draw_is_refused(tmp_path):
    with pytest.raises(InputError, match="no models"):
        peers_plot(tmp_path / "peers.png", [], "accuracy")
