"""Spectra as text, JSON and tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kqeq_md.machine.files import write_whole
from kqeq_md.spectrum.absorption import Peak, Spectrum, Trajectory, highest_frequency


def as_text(spectrum: Spectrum, found: Sequence[Peak], resolution: float, trajectories: Sequence[Trajectory]) -> str:
    """Where the spectrum comes from, and its peaks."""
    lines = []
    for run in trajectories:
        beads = f", mean of {run.beads} beads" if run.beads > 1 else ""
        lines.append(f"{run.name}: {len(run.dipoles)} frames every {run.interval:g} fs{beads}")
    lines.append(
        f"resolution {resolution:g} cm^-1, windows: {spectrum.segments}; "
        f"lines above {highest_frequency(trajectories):.0f} cm^-1 would fold back"
    )
    lines.append(f"{'peak / cm^-1':>14}{'height / ' + spectrum.unit:>24}{'area / ' + spectrum.area_unit:>16}")
    lines += [f"{peak.frequency:14.1f}{peak.intensity:24.4g}{peak.area:16.4g}" for peak in found]
    return "\n".join([*lines, f"{'all':>14}{'':24}{spectrum.area:16.4g}"])


def as_json(
    spectrum: Spectrum, found: Sequence[Peak], resolution: float, trajectories: Sequence[Trajectory]
) -> dict[str, Any]:
    """The spectrum and its peaks, with units."""
    return {
        "frequencies": spectrum.frequencies.tolist(),
        "intensities": spectrum.intensities.tolist(),
        "units": {"frequencies": "cm^-1", "intensities": spectrum.unit, "area": spectrum.area_unit},
        "resolution": resolution,
        "area": spectrum.area,
        "peaks": [vars(peak) for peak in found],
        "segments": spectrum.segments,
        "trajectories": [
            {"name": run.name, "frames": len(run.dipoles), "interval_fs": run.interval, "beads": run.beads}
            for run in trajectories
        ],
    }


def write_table(spectrum: Spectrum, path: Path) -> None:
    """Two columns: frequencies and intensities."""
    rows = zip(spectrum.frequencies, spectrum.intensities, strict=True)
    lines = [f"# frequency / cm^-1   intensity / {spectrum.unit}", *(f"{x:.6f} {y:.8e}" for x, y in rows)]
    write_whole(path, ("\n".join(lines) + "\n").encode())
