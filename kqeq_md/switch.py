"""The functions that end every short range smoothly."""

from __future__ import annotations

import numpy as np

from kqeq_md.structure import Floats


def switch(r: Floats, inner: Floats | float, outer: Floats | float) -> tuple[Floats, Floats]:
    """A quintic step from 1 (r <= inner) to 0 (r >= outer) with two continuous derivatives, and its derivative."""
    t = np.clip((r - inner) / (outer - inner), 0.0, 1.0)
    value = 1.0 - t**3 * (10.0 - 15.0 * t + 6.0 * t**2)
    return value, -30.0 * t**2 * (1.0 - t) ** 2 / (outer - inner)


def cosine_switch(r: Floats, inner: Floats | float, outer: Floats | float) -> tuple[Floats, Floats]:
    """Half a period of a cosine from 1 (r <= inner) to 0 (r >= outer), that of QUIP, and its derivative."""
    t = np.clip((r - inner) / (outer - inner), 0.0, 1.0)
    slope = -0.5 * np.pi * np.sin(np.pi * np.minimum(t, 1.0 - t)) / (outer - inner)  # 0 at both ends, without rounding
    return 0.5 * (1.0 + np.cos(np.pi * t)), slope
