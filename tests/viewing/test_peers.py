"""The plot of accuracy against cost, checked by its pixels."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from airstreams.errors import InputError
from airstreams.viewing.peers import Peer, peers_plot


def centre(drawn_HW3, colour):
    """Mean row and column of a colour's pixels above the legend."""
    similar = (np.abs(drawn_HW3 - to_rgb(colour)) < 0.02).all(axis=2)
    return np.argwhere(similar[: int(0.8 * len(similar))]).mean(axis=0)


def test_better_is_higher_and_costlier_is_further_right(tmp_path):
    light = Peer("light", 0.4, (0.35, 0.45), parameters=9_000_000, multiply_adds=2_000_000_000)
    heavy = Peer("heavy", 0.5, (0.42, 0.58), parameters=3_000_000, multiply_adds=17_000_000_000)
    peers_plot(tmp_path / "peers.png", [light, heavy], "accuracy")
    drawn = imread(tmp_path / "peers.png")[..., :3]
    half = drawn.shape[1] // 2
    for panel, heavy_is_right in ((drawn[:, :half], True), (drawn[:, half:], False)):
        (light_row, light_column), (heavy_row, heavy_column) = centre(panel, "C0"), centre(panel, "C1")
        assert heavy_row < light_row
        assert (heavy_column > light_column) == heavy_is_right


def test_the_legend_fits_into_the_picture(tmp_path):
    names = ("as in the recipe, the paper after block 3", "after blocks 1, 3 and 5, each with a loss", "late fusion")
    peers = [Peer(name, 0.4, (0.3, 0.5), parameters=10**6, multiply_adds=10**9) for name in names * 2]
    peers_plot(tmp_path / "peers.png", peers, "accuracy")
    drawn = imread(tmp_path / "peers.png")[..., :3]
    for edge in (drawn[:, :3], drawn[:, -3:], drawn[:3], drawn[-3:]):
        assert (edge == 1).all()


def test_missing_models_are_refused(tmp_path):
    with pytest.raises(InputError, match="no models"):
        peers_plot(tmp_path / "peers.png", [], "accuracy")
