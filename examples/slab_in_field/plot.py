"""Dielectric constants of NaCl from the dipoles of slabs of different thickness, and from the periodic crystal."""

import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
from ase.build import bulk

from kqeq_md import Potential
from kqeq_md.ase import structure_from_atoms
from kqeq_md.examples.lammps_dump import read_dump
from kqeq_md.models import NACL_SPLIT
from kqeq_md.response import response
from kqeq_md.units import COULOMB_CONSTANT

mpl.use("Agg")
import matplotlib.pyplot as plt

NUMBER = r"-?[\d.]+(?:e-?\d+)?"


def centres(path: str) -> np.ndarray:
    """Heights of the layers, Angstrom: means over their ions."""
    z = np.sort(read_dump(path)["z"][0])
    steps = np.flatnonzero(np.diff(z) > 1.0) + 1
    return np.array([layer.mean() for layer in np.split(z, steps)])


rows, energies, thickness = {}, {}, {}
for path in Path().glob("lammps_*.out"):
    line = next(row for row in path.read_text().splitlines() if row.startswith("layers "))
    layers, field, area, *values = (float(number) for number in re.findall(NUMBER, line))
    rows[int(layers)], energies[int(layers)] = np.array(values[:3]), np.array(values[3:])
    heights = centres(f"slab_{int(layers)}.dump")
    thickness[int(layers)] = heights[-1] - heights[0]
sizes = sorted(rows)
dipoles = np.array([rows[size][1:] - rows[size][0] for size in sizes])
spans = np.array([thickness[size] for size in sizes])

# M = A d P, and what is at the surface is the same for all slabs: P is the slope against the thickness
polarization = np.diff(dipoles[-2:], axis=0)[0] / (area * np.diff(spans[-2:])[0])
share = 4 * np.pi * COULOMB_CONSTANT * polarization / field
slab = 1 / (1 - share)

spacing = np.diff(spans[-2:])[0]
crystal = bulk("NaCl", "rocksalt", a=np.sqrt(area) / 2, cubic=True)
crystal.set_cell([np.sqrt(area) / 2, np.sqrt(area) / 2, spacing], scale_atoms=True)
crystal = crystal.repeat((2, 2, 2))
potential = Potential(NACL_SPLIT, reference_charges={"Na": 1.0, "Cl": -1.0})  # they do not matter for the response
whole = response(potential, structure_from_atoms(crystal)).dielectric[2, 2]

threshold = Potential(NACL_SPLIT).largest_measure
for size, dipole in zip(sizes, dipoles, strict=True):
    far = max(read_dump(f"{name}_{size}.dump")["f_far"].max() for name in ("slab", "relaxed")) / threshold
    start, middle, end = energies[size]
    print(f"{size} layers, {thickness[size]:.3f} A: dipole {dipole[0]:.5f} e A, relaxed {dipole[1]:.5f};", end=" ")
    print(f"-F M/2 = {-field * dipole[0] / 2:.6f}, {-field * dipole[1] / 2:.6f} eV,", end=" ")
    print(f"energy {middle - start:.6f}, {end - start:.6f} eV; extrapolation {far:.2f} of the threshold")
print(f"field inside / outside: ions at rest {1 - share[0]:.4f}, relaxed {1 - share[1]:.4f}")
print(f"dielectric constant, ions at rest: slabs {slab[0]:.4f}, periodic crystal {whole:.4f}")
print(f"dielectric constant, ions relaxed: slabs {slab[1]:.3f}")

figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
line = np.array([0.0, spans[-1] * 1.1])
for column, name in enumerate(("ions at rest", "ions relaxed")):
    density = dipoles[:, column] / area * 1000
    axes[0].plot(spans, density, "o", color=f"C{column}", label=name)
    slope = 1000 * polarization[column]
    axes[0].plot(line, density[-1] + slope * (line - spans[-1]), color=f"C{column}", linewidth=1)
axes[0].set(
    xlabel="first to last layer / Å", ylabel="dipole per area / 10⁻³ e/Å", title="the slope is the polarization"
)
axes[0].legend()
last = sizes[-1]
ions = read_dump(f"slab_{last}.dump")
moved = read_dump(f"relaxed_{last}.dump")["z"][0] - ions["z"][0]
moved -= np.average(moved, weights=np.where(ions["type"][0] == 1, 22.98977, 35.453))
for kind, name in ((1, "Na"), (2, "Cl")):
    who = ions["type"][0] == kind
    axes[1].plot(ions["z"][0][who], 1000 * moved[who], "o", markersize=4, label=name)
axes[1].set(xlabel="height z / Å", ylabel="displacement / 10⁻³ Å", title=f"{last} layers in {field} V/Å")
axes[1].legend()
figure.savefig("slab_in_field.png", dpi=80)
