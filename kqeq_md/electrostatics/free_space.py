"""The smooth part of the Coulomb sum for open boundaries: convolution with erf(alpha r) / r on a doubled mesh.

Charges in a box of n mesh points see each other across at most n points, so that a periodic mesh of 2 n points holds
them without images if the kernel is known at these distances. It comes from the truncated Coulomb kernel, exact up to
a distance R that covers the box,

    G_R(k) = kC 4 pi (1 - cos k R) / k^2 exp(-k^2 / 4 alpha^2),   G_R(0) = kC 2 pi R^2,

evaluated once on a mesh large enough that its images are further away than R, and cut to the doubled box. Kernel and
spectrum are even along each axis: cosine transforms of one octant serve.

References: Vico, Greengard, Ferrando, J. Comput. Phys. 323, 191 (2016), doi:10.1016/j.jcp.2016.07.028; Hockney and
Eastwood, Computer Simulation Using Particles (1988).
"""

from __future__ import annotations

from math import ceil, pi

import numpy as np
from scipy import fft

from kqeq_md.electrostatics.mesh_layout import MeshLayout, MeshPoints
from kqeq_md.electrostatics.window import Window, transform
from kqeq_md.structure import Floats
from kqeq_md.units import COULOMB_CONSTANT


class FreeConvolution:
    """Potential of charges on `points` mesh points of even spacing, without images.

    Args:
        points: mesh points that hold charges along x, y, z.
        spacing: Angstrom.
        splitting: alpha, 1/Angstrom.
        reach: distance behind which erfc(alpha r) is zero to the accuracy, Angstrom.
        window: what spreads the charges.
        threads: of the Fourier transforms.
        rows: waves along y that this process has, from the first to before the last of 2 n_y; None for all.
    """

    def __init__(
        self, points: MeshPoints, spacing: float, splitting: float, reach: float, window: Window, threads: int,
        rows: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        self.points, self.threads = points, threads
        kernel = _kernel(points, spacing, splitting, reach, window, threads)
        octant = fft.dctn(kernel, type=1, workers=threads) / (8.0 * np.prod(points))
        x, y = (np.minimum(np.arange(2 * n), 2 * n - np.arange(2 * n)) for n in points[:2])
        self._influence = octant[x][:, y if rows is None else y[slice(*rows)]]

    def apply(self, planes: Floats, layout: MeshLayout) -> Floats:
        """Transforms along one axis after the other leave out what is zero before and unused after."""
        nx, ny, nz = self.points
        spectrum = fft.rfft(planes, 2 * nz, axis=2, workers=self.threads)
        spectrum = fft.fft(spectrum, 2 * ny, axis=1, workers=self.threads)
        spectrum = fft.fft(layout.columns(spectrum), 2 * nx, axis=0, workers=self.threads)
        spectrum *= self._influence
        spectrum = fft.ifft(spectrum, axis=0, norm="forward", workers=self.threads, overwrite_x=True)[:nx]
        spectrum = layout.planes(spectrum, 2 * ny)
        spectrum = fft.ifft(spectrum, axis=1, norm="forward", workers=self.threads)[:, :ny]
        out: Floats = fft.irfft(spectrum, 2 * nz, axis=2, norm="forward", workers=self.threads)[:, :, :nz]
        return out


def _kernel(points: MeshPoints, spacing: float, splitting: float, reach: float, window: Window, threads: int) -> Floats:
    """Potential between mesh points 0 ... n apart along each axis, shape (n_x + 1, n_y + 1, n_z + 1)."""
    radius = spacing * float(np.linalg.norm(points)) + reach
    # half the points of a mesh whose images are out of reach: images are at least 2 half - n points apart
    half = [fft.next_fast_len(ceil(0.5 * (n + (radius + reach) / spacing))) for n in points]
    k = [pi / (spacing * m) * np.arange(m + 1) for m in half]
    sharpening = [1.0 / transform(window.support, window.shape, wave * spacing) ** 2 for wave in k]
    short = int(np.argmin(points))
    others = [axis for axis in range(3) if axis != short]
    lateral = k[others[0]][:, None] ** 2 + k[others[1]] ** 2
    lateral_sharpening = sharpening[others[0]][:, None] * sharpening[others[1]]
    cut = tuple(slice(points[axis] + 1) for axis in others)
    kernel = np.zeros([points[short] + 1, *(points[axis] + 1 for axis in others)])
    # one wave along the shortest axis at a time: the whole mesh of a long chain would not fit into memory
    for m, (wave, sharpened) in enumerate(zip(k[short], sharpening[short], strict=True)):
        k2 = lateral + wave**2
        plane = truncated_coulomb(k2, radius) * np.exp(-k2 / (4.0 * splitting**2)) * lateral_sharpening
        both = 1.0 if m in (0, half[short]) else 2.0
        plane = fft.dctn(plane, type=1, overwrite_x=True, workers=threads)[cut] * (both * sharpened)
        kernel += np.cos(pi / half[short] * m * np.arange(points[short] + 1))[:, None, None] * plane
    volume = float(np.prod([2.0 * m * spacing for m in half]))
    return np.ascontiguousarray(np.moveaxis(kernel, 0, short)) * (COULOMB_CONSTANT / volume)


def truncated_coulomb(k2: Floats, radius: float) -> Floats:
    """4 pi (1 - cos k R) / k^2, and 2 pi R^2 at k = 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(k2 > 0.0, 4.0 * pi * (1.0 - np.cos(np.sqrt(k2) * radius)) / k2, 2.0 * pi * radius**2)
