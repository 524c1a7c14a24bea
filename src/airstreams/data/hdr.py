"""From HDR to usual video: pictures in PQ or HLG as a screen of the usual brightness shows them.

The formulas are those of the standards: PQ and HLG of ITU-R BT.2100 (tables 4 and 5), tone mapping of ITU-R BT.2390
(section 5.4), BT.2020's colours in those of BT.709, and the gamma of BT.1886. FFmpeg has such filters (zscale,
libplacebo), but PyAV's wheels lack them, and other builds would give other pixels. This gives the same in every build.

A screen of 1000 cd/m2 is assumed for the source. White paper in HDR (203 cd/m2, ITU-R BT.2408) is the usual white, and
what is darker than half of that keeps its brightness. Brighter parts are compressed.
"""

from functools import cache

import numpy as np

PQ, HLG = 16, 18  # FFmpeg's numbers of the transfer functions SMPTE ST 2084 and ARIB STD-B67

_SOURCE_PEAK, _WHITE = 1000.0, 203.0  # cd/m2
_HLG_GAMMA = 1.2  # of a screen of 1000 cd/m2
_BRIGHTNESS_2020 = np.array([0.2627, 0.6780, 0.0593], np.float32)
_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)  # ITU-R BT.2087


def to_usual_video(picture_HW3: np.ndarray, transfer: int) -> np.ndarray:
    """Map a picture to BT.709.

    Args:
        picture_HW3: uint16, RGB in BT.2020, as stored by the transfer function.
        transfer: `PQ` or `HLG`.

    Returns:
        uint8 (H, W, 3), RGB.
    """
    light = _light(transfer)[picture_HW3]  # 1: white paper
    if transfer == HLG:  # so far the camera's light; a screen makes bright parts brighter
        scene = light @ _BRIGHTNESS_2020
        light *= _SOURCE_PEAK / _WHITE * np.maximum(scene, 1e-6)[..., None] ** (_HLG_GAMMA - 1)
    brightest = light.max(axis=2, keepdims=True)
    light *= _tone_mapped(brightest) / np.maximum(brightest, 1e-6)
    light = (light @ _TO_BT709.T).clip(0, 1)
    return _stored()[(light * (len(_stored()) - 1) + 0.5).astype(np.uint16)]


@cache
def _light(transfer: int) -> np.ndarray:
    """float32 (65536,): the light of each stored value; in PQ 1 is white paper, in HLG the brightest."""
    stored = np.arange(65536) / 65535
    if transfer == PQ:
        return (_light_of_pq(stored) / _WHITE).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(stored <= 0.5, stored**2 / 3, (np.exp((stored - c) / a) + b) / 12).astype(np.float32)


_M1, _M2, _C1, _C2, _C3 = 2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32


def _light_of_pq(stored: np.ndarray) -> np.ndarray:
    """cd/m2."""
    root = stored ** (1 / _M2)
    return 10000 * (np.maximum(root - _C1, 0) / (_C2 - _C3 * root)) ** (1 / _M1)


def _pq_of_light(light: np.ndarray) -> np.ndarray:
    power = (light / 10000) ** _M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2


@cache
def _curve() -> tuple[np.ndarray, np.ndarray]:
    """The tone mapping: light before and after, 1 is white paper; both begin with 0 and ascend."""
    peak, white = _pq_of_light(np.array([_SOURCE_PEAK, _WHITE]))
    before = np.linspace(0, 1, 1024)
    most = white / peak
    knee = 1.5 * most - 0.5
    t = (before - knee).clip(0) / (1 - knee)
    bend = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    after = np.where(before < knee, before, bend)
    return _light_of_pq(before * peak) / _WHITE, _light_of_pq(after * peak) / _WHITE


def _tone_mapped(light: np.ndarray) -> np.ndarray:
    return np.interp(light, *_curve()).astype(np.float32)  # brighter than the source's peak: white


@cache
def _stored() -> np.ndarray:
    """uint8: the stored value of light from 0 to 1 in equal steps."""
    return np.round(255 * np.linspace(0, 1, 65536) ** (1 / 2.4)).astype(np.uint8)
