"""Where the charge of (NaCl)16 sits, and what it costs, in the model and in GFN2-xTB."""

import re
from pathlib import Path

import matplotlib as mpl
import numpy as np

from kqeq_md.examples.lammps_dump import read_dump
from kqeq_md.examples.reference_data import NO_FIELD, gfn2
from kqeq_md.models import NACL
from kqeq_md.potential import Potential
from kqeq_md.units import HARTREE

mpl.use("Agg")
import matplotlib.pyplot as plt

CHARGES = (-1, 0, 1)
"""Total charges, e."""

COLOURS = np.array(["C0", "C1"])
"""Of Na and Cl."""

states = ("vertical", "relaxed")
frames = {(state, charge): read_dump(f"{state}_{charge}.dump") for state in states for charge in CHARGES}
model, reference = {}, {}
for (state, charge), frame in frames.items():
    text = Path(f"lammps_{charge}.out").read_text()
    model[state, charge] = float(re.findall(rf"^{state}: (\S+) eV", text, re.M)[0])
    numbers = np.where(frame["type"][0] == 1, 11, 17)
    x = np.stack([frame[axis][0] for axis in "xyz"], axis=1)
    reference[state, charge] = gfn2(numbers, x, charge, NO_FIELD).singlepoint().get("energy") * HARTREE

print("eV                                 model   GFN2-xTB")
for state in states:
    for name, charge in (("ionisation energy", 1), ("electron affinity", -1)):
        rows = [charge * (energies[state, charge] - energies["relaxed", 0]) for energies in (model, reference)]
        print(f"{state + ' ' + name:28s} {rows[0]:11.2f} {rows[1]:10.2f}")
threshold = Potential(NACL).largest_measure
for charge in CHARGES:
    far = max(frames[state, charge]["f_far"].max() for state in states)
    print(f"charge {charge:+d}: largest measure of extrapolation {far / threshold:.2f} of the threshold")

figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
neutral = frames["relaxed", 0]
x = np.stack([neutral[axis][0] for axis in "xyz"], axis=1)
neighbours = (np.linalg.norm(x[:, None] - x, axis=2) < 3.3).sum(axis=1) - 1
kind = (neutral["type"][0] == 2).astype(int)
for axis, charge in zip(axes, (-1, 1), strict=False):
    change = frames["vertical", charge]["q"][0] - neutral["q"][0]
    for element, name in enumerate(("Na", "Cl")):
        who = kind == element
        axis.scatter(neighbours[who] + 0.16 * element - 0.08, change[who], color=COLOURS[element], label=name, s=22)
        for count in np.unique(neighbours):
            mean = change[who & (neighbours == count)].mean()
            print(f"charge {charge:+d}, {name} with {count} neighbours: {mean:+.4f} e each")
    axis.set(
        xlabel="neighbours of the other sign",
        ylabel="change of the atom's charge / e",
        title=f"total charge {charge:+d} e",
    )
    axis.set_xticks(np.unique(neighbours))
    axis.legend()
for energies, name, style in ((model, "model", "o-"), (reference, "GFN2-xTB", "s--")):
    for state in states:
        values = [energies[state, charge] - energies["relaxed", 0] for charge in CHARGES]
        axes[2].plot(
            CHARGES,
            values,
            style,
            label=f"{name}, {state}",
            alpha=0.8,
            fillstyle="none" if state == "relaxed" else "full",
        )
axes[2].set(xlabel="total charge / e", ylabel="energy / eV", title="energy of the cluster", xticks=CHARGES)
axes[2].legend()
figure.savefig("charged_cluster.png", dpi=80)
