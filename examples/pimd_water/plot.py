"""Distances and kinetic energies of quantum and classical nuclei: prints the figures, writes pimd_water.png."""

from pathlib import Path

import numpy as np
from ase.units import kB

from kqeq_md.examples.picture import new_figure, save

KT = kB * 300.0  # eV
EQUILIBRATION = 0.15  # of each run
SHARED, OUTER = 2, (3, 4, 5, 6)  # hydrogens; atoms 0 and 1 are the oxygens
STYLES = {"quantum": "tab:blue", "classical": "tab:red"}


def positions(run: str) -> np.ndarray:
    """Of all beads, Angstrom, shape (frames, 7, 3)."""
    frames = []
    for path in sorted(Path().glob(f"{run}.pos_*.xyz")):
        words = map(str.split, path.read_text().splitlines())
        bead = np.array([row[1:] for row in words if row[0] in ("O", "H")], dtype=float).reshape(-1, 7, 3)
        frames.append(bead[int(EQUILIBRATION * len(bead)) :])
    return np.concatenate(frames)


figure = new_figure(10.0, 3.6)
of_bond, of_proton, of_energy = figure.subplots(1, 3)
for run, colour in STYLES.items():
    x = positions(run)
    from_oxygen = np.linalg.norm(x[:, :, None] - x[:, None, :2], axis=-1)  # (frame, atom, oxygen)
    bonds = from_oxygen[:, OUTER].min(axis=-1)
    place = from_oxygen[:, SHARED, 0] - from_oxygen[:, SHARED, 1]
    of_bond.hist(bonds.ravel(), bins=60, range=(0.7, 1.4), density=True, histtype="step", color=colour, label=run)
    of_proton.hist(place, bins=50, range=(-1.2, 1.2), density=True, histtype="step", color=colour, label=run)

    table = np.loadtxt(f"{run}.out")
    time, of_h, of_o = table[:, 1], table[:, 7] / 5, table[:, 6] / 2  # ps; eV per atom
    start = int(EQUILIBRATION * len(time))
    mean_h, mean_o = of_h[start:].mean(), of_o[start:].mean()
    so_far = np.cumsum(of_h[start:]) / np.arange(1, len(of_h) - start + 1)
    of_energy.plot(time[start:] / time[-1], 1000 * so_far, color=colour, label=f"H, {run}")
    so_far = np.cumsum(of_o[start:]) / np.arange(1, len(of_h) - start + 1)
    of_energy.plot(time[start:] / time[-1], 1000 * so_far, "--", color=colour, label=f"O, {run}")
    print(
        f"{run:9} O-H {bonds.mean():.3f} +- {bonds.std():.3f} A, shared proton off the middle {place.std():.3f} A, "
        f"kinetic energy H {1000 * mean_h:.1f}, O {1000 * mean_o:.1f} meV"
    )

of_energy.axhline(1500 * KT, color="black", linewidth=0.8, linestyle=":", label="3/2 kT")
of_bond.set(xlabel="O-H distance of the outer atoms / Å", ylabel="density / Å$^{-1}$")
of_proton.set(xlabel="shared proton, r(O$_1$H) − r(O$_2$H) / Å", ylabel="density / Å$^{-1}$")
of_energy.set(xlabel="part of the run", ylabel="mean kinetic energy / meV", ylim=(0, None))
of_bond.legend(loc="upper right")
of_energy.legend(loc="lower right", ncols=2, fontsize="small")
for axes in (of_bond, of_proton, of_energy):
    axes.grid(alpha=0.3)
figure.suptitle("H$_5$O$_2^+$ at 300 K: ring polymers of 16 beads beside classical nuclei")
save(figure, "pimd_water.png")
