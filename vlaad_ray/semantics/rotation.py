"""Orientations, as LIBERO writes them."""

from __future__ import annotations

import numpy as np


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """[4] w, x, y, z -> [3] rad, as robosuite's quat2axisangle: up to 2 pi, so no jump while the hand points down."""
    w, xyz = quaternion[0], quaternion[1:]
    sine = np.linalg.norm(xyz)
    if sine < 1e-9:
        return np.zeros(3)
    return xyz / sine * 2 * np.arctan2(sine, w)
