"""Structure, charges and energy of the melt: `melt.dump` and `log.lammps` become a picture and a few lines."""

from pathlib import Path

import matplotlib as mpl
import numpy as np

from kqeq_md.demo import drift, read_thermo
from kqeq_md.examples.lammps_dump import read_dump

mpl.use("Agg")
import matplotlib.pyplot as plt

WIDTH = 0.05
"""Of the bins of distances, Angstrom."""

frames = read_dump("melt.dump")
positions, charges = np.stack([frames[axis] for axis in "xyz"], axis=2), frames["q"]
sodium, box = frames["type"][0] == 1, frames["box"][0]
n, edges = int(sodium.sum()), np.arange(0.0, box[0] / 2, WIDTH)
middle, volume = (edges[1:] + edges[:-1]) / 2, np.diff(4 * np.pi / 3 * edges**3)
pairs = {"Na-Cl": (sodium, ~sodium), "Na-Na": (sodium, sodium), "Cl-Cl": (~sodium, ~sodium)}

neighbours = {name: np.zeros(len(middle)) for name in pairs}  # of one ion in each shell, mean over ions and frames
for place in positions:
    apart = place[:, None] - place
    distance = np.linalg.norm(apart - box * np.round(apart / box), axis=2)
    np.fill_diagonal(distance, np.inf)
    for name, (first, second) in pairs.items():
        neighbours[name] += np.histogram(distance[np.ix_(first, second)], edges)[0] / (n * len(positions))
g = {name: count / (volume * n / box.prod()) for name, count in neighbours.items()}

for name, values in g.items():
    print(f"first peak of {name}: {middle[values.argmax()]:.2f} A, height {values.max():.2f}")
outside = (middle > 3.0) & (middle < 5.0)
shell = middle[outside][g["Na-Cl"][outside].argmin()]
print(f"coordination number: {neighbours['Na-Cl'][middle <= shell].sum():.2f} Cl within {shell:.2f} A of Na")
for name, who in (("Na", sodium), ("Cl", ~sodium)):
    print(f"charge of {name}: {charges[:, who].mean():+.4f} e, standard deviation {charges[:, who].std():.4f} e")
nvt, nve = read_thermo(Path("log.lammps"))
print(f"temperature of NVE: {nve['Temp'].mean():.0f} K")
print(drift(Path("log.lammps")))

figure, axes = plt.subplots(2, 2, figsize=(9, 6.4), layout="constrained")
for name, values in g.items():
    axes[0, 0].plot(middle, values, label=name)
axes[0, 0].set(xlabel="distance / Å", ylabel="g(r)", title="radial distribution functions")
axes[0, 0].legend()
for name, count in neighbours.items():
    axes[0, 1].plot(middle, np.cumsum(count), label=name)
axes[0, 1].set(xlabel="radius / Å", ylabel="ions within the radius", title="neighbours of an ion", ylim=(0, 20))
axes[0, 1].legend()
bins = np.linspace(0.4, 1.0, 61)
axes[1, 0].hist(charges[:, sodium].ravel(), bins, density=True, alpha=0.7, label="Na")
axes[1, 0].hist(-charges[:, ~sodium].ravel(), bins, density=True, alpha=0.7, label="Cl, sign turned")
axes[1, 0].set(xlabel="|charge| / e", ylabel="probability density / e⁻¹", title="charges")
axes[1, 0].legend()
for name, label in (("PotEng", "potential energy"), ("TotEng", "total energy")):
    axes[1, 1].plot(nve["Time"], 1000 * (nve[name] - nve[name].mean()) / len(sodium), label=label)
axes[1, 1].set(xlabel="time / ps", ylabel="change / meV per ion", title="NVE: the total energy stays")
axes[1, 1].legend()
figure.savefig("nacl_melt.png", dpi=72)
