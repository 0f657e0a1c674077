"""Predictions for the frames of test.xyz beside their labels: writes train_tblite.png."""

import numpy as np
from ase.io import read

from kqeq_md.ase import KQEq
from kqeq_md.examples.picture import new_figure, save
from kqeq_md.model import load_model

STYLES = {
    -1: ("tab:blue", "NH$_2^-$(NH$_3$)$_n$"),
    0: ("tab:gray", "(NH$_3$)$_n$"),
    1: ("tab:red", "NH$_4^+$(NH$_3$)$_n$"),
}

model = load_model("ammonia.kqeq")
free = dict(zip(model.species, model.atom_energy, strict=True))
figure = new_figure(10.0, 3.8)
panels = figure.subplots(1, 3)
titles = ("energy less that of the elements / eV per atom", "forces / eV/Å", "charges / e")
for charge, (colour, name) in STYLES.items():
    points: list[list[np.ndarray]] = [[], [], []]
    for atoms in (frame for frame in read("test.xyz", ":") if frame.info["total_charge"] == charge):
        atoms.calc = KQEq(model, charge=charge)
        n, elements = len(atoms), sum(free[symbol] for symbol in atoms.symbols)
        energies = np.array([atoms.info["REF_energy"], atoms.get_potential_energy()])
        points[0].append((energies[:, None] - elements) / n)
        points[1].append(np.array([atoms.arrays["REF_forces"].ravel(), atoms.get_forces().ravel()]))
        points[2].append(np.array([atoms.arrays["REF_charges"], atoms.get_charges()]))
    for axes, title, parts in zip(panels, titles, points, strict=True):
        axes.plot(*np.concatenate(parts, axis=1), ".", color=colour, label=name, markersize=4)
        axes.set(title=title, xlabel="GFN2-xTB", ylabel="model")
for axes in panels:
    middle = np.mean(axes.get_xlim())
    axes.axline((middle, middle), slope=1.0, color="black", linewidth=0.6)
    axes.grid(alpha=0.3)
    axes.title.set_size("medium")
panels[0].legend(fontsize="small")
figure.suptitle("Frames of test trajectories, which training has not seen")
save(figure, "train_tblite.png")
