"""Field, dipole and energy balance of `pulse.out`, atomic units in eV, Angstrom, e: writes ir_pulse.png."""

import numpy as np

from kqeq_md.examples.picture import new_figure, save
from kqeq_md.units import BOHR, HARTREE

table = np.loadtxt("pulse.out")
time, conserved = table[:, 1], 1000.0 * HARTREE * (table[:, 2] - table[0, 2])  # fs, meV
field, dipole = table[:, 6:9] * HARTREE / BOHR, table[:, 9:12] * BOHR  # V/Angstrom, e Angstrom
work = 1000.0 * np.append(0.0, np.cumsum(np.sum((field[1:] + field[:-1]) / 2 * np.diff(dipole, axis=0), axis=1)))
imbalance = np.ptp(conserved - work)
print(f"energy gained {conserved[-1]:.2f} meV, work of the field {work[-1]:.2f} meV, "
      f"largest less smallest difference {imbalance:.4f} meV")  # fmt: skip

figure = new_figure(7.0, 6.5)
of_field, of_dipole, of_energy = figure.subplots(3, 1, sharex=True)
of_field.plot(time, field[:, 2], color="tab:red")
of_field.set(ylabel="field along z / V/Å", title="A far-infrared pulse on Na$_4$Cl$_4$")
of_dipole.plot(time, dipole[:, 2], color="tab:blue")
of_dipole.set(ylabel="dipole along z / e Å")
of_energy.plot(time, conserved, label="energy gained")
of_energy.plot(time, work, "--", label="work of the field, $\\int$ E·dμ")
of_energy.plot(time, 1000.0 * (conserved - work), ":", label="1000 × their difference")
of_energy.set(xlabel="time / fs", ylabel="energy / meV")
of_energy.legend()
for axes in (of_field, of_dipole, of_energy):
    axes.grid(alpha=0.3)
save(figure, "ir_pulse.png")
