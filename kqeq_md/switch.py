"""The function that ends every short range smoothly."""

from __future__ import annotations

import numpy as np

from kqeq_md.structure import Floats


def switch(r: Floats, inner: Floats | float, outer: Floats | float) -> tuple[Floats, Floats]:
    """A quintic step from 1 (r <= inner) to 0 (r >= outer) with two continuous derivatives, and its derivative."""
    t = np.clip((r - inner) / (outer - inner), 0.0, 1.0)
    value = 1.0 - t**3 * (10.0 - 15.0 * t + 6.0 * t**2)
    return value, -30.0 * t**2 * (1.0 - t) ** 2 / (outer - inner)
