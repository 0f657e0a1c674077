"""Infrared absorption from the dipole along a trajectory.

With mu' the time derivative of the total dipole and S its spectral density, at positive angular frequency w

    S(w) = (1/2 pi) int dt exp(-i w t) <mu'(0).mu'(t)>,
    n(w) alpha(w) = pi / (3 c V epsilon_0 k_B T) S(w)

is the absorption coefficient times the refractive index: classical dynamics, whose intensities are those of quantum
mechanics for harmonic modes ("harmonic quantum correction"). Times V, and for a mole, it is the absorption of a
molecule or cluster; the integral over a line of wavenumber is then its double-harmonic intensity
A = N_A / (12 epsilon_0 c^2) |dmu/dQ|^2, Q the mass-weighted normal coordinate.

In ring-polymer dynamics mu is the mean over the beads, and the same formula holds with the Kubo-transformed
correlation that RPMD approximates; T is the physical temperature.

References: McQuarrie, Statistical Mechanics (1976), chapter 21; Ramirez, Lopez-Ciudad, Kumar, Marx,
J. Chem. Phys. 121, 3973 (2004), doi:10.1063/1.1774986; averaged periodograms: Welch, IEEE Trans. Audio Electroacoust.
15, 70 (1967), doi:10.1109/TAU.1967.1161901; windows: Harris, Proc. IEEE 66, 51 (1978), doi:10.1109/PROC.1978.10837.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, pi

import numpy as np
from scipy.fft import next_fast_len, rfft
from scipy.integrate import trapezoid
from scipy.signal import find_peaks

from kqeq_md.errors import KqeqError
from kqeq_md.structure import Floats
from kqeq_md.units import BOLTZMANN, COULOMB_CONSTANT, KM_PER_MOL, LIGHT_SPEED, WAVENUMBER

HANN_WIDTH = 1.4406
"""Full width at half maximum of a line seen through a Hann window, in units of 1/(length of the window)."""

RESOLUTION = 10.0
"""Full width at half maximum that a sharp line gets, cm^-1."""

PADDING = 8
"""Points per 1/(length of the window), so that a line has eleven within its width."""

PROMINENCE = 0.05
"""Least height of a peak above the valleys beside it, of the highest intensity."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Dipoles at equal intervals.

    Attributes:
        name: for messages.
        dipoles: e Angstrom, shape (n, 3); of several beads their mean.
        interval: time between frames, fs.
        beads: how many files they come from.
    """

    name: str
    dipoles: Floats
    interval: float
    beads: int = 1


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Absorption on a grid of wavenumbers.

    Attributes:
        frequencies: cm^-1, shape (n,), equally spaced from 0.
        intensities: shape (n,).
        unit: of the intensities: "cm^-1" (n alpha), "km/mol/cm^-1" or "relative".
        segments: how many windows were averaged; noise falls with the square root of their number.
    """

    frequencies: Floats
    intensities: Floats
    unit: str
    segments: int

    @property
    def area_unit(self) -> str:
        """Of integrals over the frequency."""
        return {"cm^-1": "cm^-2", "km/mol/cm^-1": "km/mol", "relative": "cm^-1"}[self.unit]

    @property
    def area(self) -> float:
        """Integral over all frequencies, in `area_unit`."""
        return float(trapezoid(self.intensities, self.frequencies))


@dataclass(frozen=True)
class Peak:
    """A maximum of a spectrum.

    Attributes:
        frequency: cm^-1.
        intensity: in the spectrum's unit.
        area: integral between the lowest points that part it from its neighbours, in the spectrum's `area_unit`.
    """

    frequency: float
    intensity: float
    area: float


def ir_spectrum(
    trajectories: Sequence[Trajectory],
    resolution: float = RESOLUTION,
    temperature: float | None = None,
    volume: float | None = None,
    maximum: float | None = None,
) -> Spectrum:
    """Mean absorption of independent trajectories of one system.

    Args:
        trajectories: with one interval.
        resolution: full width at half maximum of a sharp line, cm^-1.
        temperature: of the dynamics, K; None for relative intensities, the highest 1.
        volume: of the cell, Angstrom^3, for n alpha in cm^-1; None for the absorption of a mole of molecules or
            clusters, km/mol per cm^-1.
        maximum: highest frequency, cm^-1; None for all that the interval lets see.

    Raises:
        KqeqError: naming the argument, the rule and the value.
    """
    frequencies, density, segments = spectral_density(trajectories, resolution)
    if maximum is not None:
        check_positive("maximum", maximum, "cm^-1")
        if maximum > (highest := highest_frequency(trajectories)):
            raise KqeqError(
                f"`maximum` must not exceed {highest:.6g} cm^-1, above which lines fold back where frames lie "
                f"{trajectories[0].interval:g} fs apart, got {maximum:g}"
            )
        density = density[frequencies <= maximum]
        frequencies = frequencies[: len(density)]
    if temperature is None:
        if volume is not None:
            raise KqeqError(f"`volume` needs a `temperature`: without one intensities are relative, got {volume:g}")
        return Spectrum(frequencies, density / density.max(), "relative", segments)
    check_positive("temperature", temperature, "K")
    # of the whole system, Angstrom^2: pi / (3 c epsilon_0 k_B T), epsilon_0 = 1/(4 pi kC)
    cross_section = 4.0 * pi**2 * COULOMB_CONSTANT / (3.0 * LIGHT_SPEED * BOLTZMANN * temperature) * density
    if volume is None:
        return Spectrum(frequencies, cross_section * KM_PER_MOL, "km/mol/cm^-1", segments)
    check_positive("volume", volume, "Angstrom^3")
    return Spectrum(frequencies, cross_section / volume * WAVENUMBER, "cm^-1", segments)


def spectral_density(trajectories: Sequence[Trajectory], resolution: float) -> tuple[Floats, Floats, int]:
    """S of the module's text by averaged periodograms (Welch): cm^-1, e^2 Angstrom^2/fs, and the number of windows.

    The derivative is the difference of successive frames, and S that of the differences times (x / sin x)^2,
    x = w dt/2, which undoes exactly what they do to each frequency. Differencing before the window, not multiplying by
    w^2 after it, keeps what leaks from the large slow motions of mu small at high frequencies; central differences
    would see nothing at the highest. The mean derivative is taken off (a charged cluster that drifts). Hann windows
    overlap by half; leakage falls with the sixth power of the distance from a line. Lines above 1/(2 dt) fold back:
    nothing here can know.

    Raises:
        KqeqError: intervals that differ, a trajectory too short for the resolution, dipoles that do not move.
    """
    check_positive("resolution", resolution, "cm^-1")
    interval = _common_interval(trajectories)
    length = round(HANN_WIDTH * WAVENUMBER / (LIGHT_SPEED * resolution * interval))
    if length < 4:
        raise KqeqError(
            f"`resolution` must be below {length_to_resolution(4, interval):.4g} cm^-1 for frames every "
            f"{interval:g} fs, got {resolution:g}"
        )
    window = np.sin(pi * np.arange(length) / length) ** 2
    size = 2 * next_fast_len(PADDING * length // 2)  # even: the highest frequency is 1/(2 dt)
    total, segments = np.zeros(size // 2 + 1), 0
    for trajectory in trajectories:
        change = np.diff(trajectory.dipoles, axis=0) / interval
        if len(change) < length:
            raise KqeqError(
                f"`resolution` of {resolution:g} cm^-1 needs {length + 1} frames ({length * interval / 1000:.4g} ps), "
                f"got {len(change) + 1} in {trajectory.name}"
                + (f": they allow {1.001 * length_to_resolution(len(change), interval):.4g}" if len(change) > 3 else "")
            )
        change -= change.mean(axis=0)
        for start in _starts(len(change), length):
            amplitudes = rfft(change[start : start + length] * window[:, None], size, axis=0)
            total += (amplitudes.real**2 + amplitudes.imag**2).sum(axis=1)
            segments += 1
    if not total.any():
        raise KqeqError("dipoles must change along a trajectory, got the same in all frames")
    frequencies = np.arange(len(total)) / (size * interval)  # 1/fs
    density = total * interval / (2.0 * pi * segments * (window @ window))
    return frequencies / LIGHT_SPEED * WAVENUMBER, density / np.sinc(frequencies * interval) ** 2, segments


def highest_frequency(trajectories: Sequence[Trajectory]) -> float:
    """What the interval lets see (half the sampling frequency), cm^-1; lines above it fold back below it."""
    return WAVENUMBER / (2.0 * LIGHT_SPEED * _common_interval(trajectories))


def length_to_resolution(length: int, interval: float) -> float:
    """Resolution (cm^-1) of windows of that many intervals (fs)."""
    return HANN_WIDTH * WAVENUMBER / (LIGHT_SPEED * length * interval)


def peaks(spectrum: Spectrum) -> list[Peak]:
    """The maxima that stand out by `PROMINENCE`; their areas add up to that of the spectrum."""
    x, y = spectrum.frequencies, spectrum.intensities
    tops, _ = find_peaks(y, prominence=PROMINENCE * y.max())
    valleys = [low + int(np.argmin(y[low:high])) for low, high in pairwise(tops)]
    out = []
    for top, (low, high) in zip(tops, pairwise([0, *valleys, len(y) - 1]), strict=False):  # one range without peaks
        left, middle, right = y[top - 1 : top + 2]
        shift = 0.5 * (left - right) / (left - 2.0 * middle + right)  # of the parabola through three points
        area = trapezoid(y[low : high + 1], x[low : high + 1])
        out.append(Peak(float(x[top] + shift * x[1]), float(middle - 0.25 * (left - right) * shift), float(area)))
    return out


def _common_interval(trajectories: Sequence[Trajectory]) -> float:
    if not trajectories:
        raise KqeqError("`trajectories` must be one or more, got none")
    first = trajectories[0]
    for other in trajectories[1:]:
        if other.interval != first.interval:
            raise KqeqError(
                f"trajectories must have frames at one interval, got {first.interval:g} fs in {first.name}, "
                f"{other.interval:g} in {other.name}"
            )
    return first.interval


def _starts(n: int, length: int) -> list[int]:
    """Of windows that overlap by half or more and leave no frame out."""
    count = ceil((n - length) / (length / 2)) + 1
    return [round(start) for start in np.linspace(0, n - length, count)]


def check_positive(name: str, value: float, unit: str) -> None:
    """Refuse what is not above zero.

    Raises:
        KqeqError: naming the argument, the rule and the value.
    """
    if not 0.0 < value < float("inf"):
        raise KqeqError(f"`{name}` must be a positive number of {unit}, got {value:g}")
