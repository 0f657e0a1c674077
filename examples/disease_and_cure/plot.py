"""The old diseases of charge equilibration, and their cure, on one page.

    python plot.py        writes disease_and_cure.png (some ten seconds)

Nothing is trained: electronegativities and self-interactions are those of Rappe and Goddard, J. Phys. Chem. 95, 3358
(1991), doi:10.1021/j100161a070, and depend on the element alone. Curves differ by how charge may flow.
"""

from dataclasses import replace
from math import cos, pi, radians, sin, sqrt

import numpy as np

from kqeq_md import Structure
from kqeq_md.descriptor.power_spectrum import Descriptor
from kqeq_md.descriptor.radial import SoapParameters
from kqeq_md.diagnose.measurements import charge_left, exponent, field_transfer, net_charges, polarizability
from kqeq_md.diagnose.plots import STYLES
from kqeq_md.diagnose.samples import Sample, copies, cut, longest_axis
from kqeq_md.examples.picture import new_figure, save
from kqeq_md.machine.quiet import quietly
from kqeq_md.model import Model, SoapTerm
from kqeq_md.units import COULOMB_CONSTANT

ELEMENTS = {  # electronegativity / eV, self-interaction / eV, Gaussian width / A
    "H": (4.528, 13.890, 1.0),
    "C": (5.343, 10.126, 1.2),
    "O": (8.741, 13.364, 1.1),
    "Na": (2.843, 4.592, 2.0),
    "Cl": (8.564, 9.892, 1.2),
}
CARBONS = (2, 4, 8, 16, 32)
DISTANCES = np.geomspace(2.36, 50.0, 25)  # A
GAPS = (2.5, 5.0, 10.0, 20.0, 40.0)  # A
PAIRS = 8
CONTACT = 2.5  # A, closest contact of neighbours in the row


def generic_model() -> Model:
    """Fixed electronegativities, no learned part, no short range."""
    electronegativity, self_interaction, width = np.array(list(ELEMENTS.values())).T
    n, soap = len(ELEMENTS), SoapParameters(cutoff=3.0, n_max=1, l_max=0)
    return Model(
        species=tuple(ELEMENTS),
        terms=(SoapTerm(soap, 1, (np.empty((0, Descriptor.size_for(soap, n))),) * n, (np.empty((0, 2)),) * n),),
        hardness=self_interaction - COULOMB_CONSTANT / (sqrt(pi) * width),
        gaussian_width=width,
        electronegativity_offset=electronegativity,
    )


def alkane(carbons: int) -> Sample:
    """An all-trans alkane along x; each CH2 or CH3 is a fragment."""
    cc, ch, ccc, hch = 1.54, 1.09, radians(112.0), radians(107.0)
    numbers: list[int] = []
    positions: list[np.ndarray] = []
    group: list[int] = []
    for k in range(carbons):
        carbon = np.array([k * cc * sin(ccc / 2), (k % 2) * cc * cos(ccc / 2), 0.0])
        out = np.array([0.0, 1.0 if k % 2 else -1.0, 0.0])
        hydrogens = [ch * (cos(hch / 2) * out + side * sin(hch / 2) * np.array([0, 0, 1.0])) for side in (-1, 1)]
        for end, side in ((0, -1), (carbons - 1, 1)):
            if k == end:  # where the next carbon would be
                hydrogens.append(ch * np.array([side * sin(ccc / 2), -out[1] * cos(ccc / 2), 0.0]))
        numbers += [6] + [1] * len(hydrogens)
        positions += [carbon] + [carbon + h for h in hydrogens]
        group += [k] * (1 + len(hydrogens))
    return Sample(Structure(numbers, positions), np.array(group), carbons, longest_axis(np.array(positions)))


def water() -> Structure:
    """A water molecule with its dipole along x."""
    bond, angle = 0.9572, radians(104.52)
    h = bond * np.array([cos(angle / 2), sin(angle / 2), 0.0])
    return Structure([8, 1, 1], np.stack([np.zeros(3), h, h * [1, -1, 1]]))


def sodium_chloride() -> Structure:
    """The molecule NaCl."""
    return Structure([11, 17], [[0.0, 0.0, 0.0], [2.36, 0.0, 0.0]])


def polarizabilities(model: Model, charges: str) -> list[float]:
    """Of alkanes along the chain, A^3."""
    return [COULOMB_CONSTANT * polarizability(model, charges, alkane(carbons)) for carbons in CARBONS]


def row_of_molecules() -> Sample:
    """Water and methane in turns, each a fragment."""
    first, second = water(), alkane(1).structure
    shift = first.positions[:, 0].max() - second.positions[:, 0].min() + CONTACT
    positions = np.concatenate([first.positions, second.positions + [shift, 0.0, 0.0]])
    pair = Structure(np.concatenate([first.numbers, second.numbers]), positions)
    row = copies(pair, PAIRS, CONTACT)
    return replace(row, group=np.repeat(np.arange(2 * PAIRS), [len(first), len(second)] * PAIRS))


def draw(model: Model, axes: np.ndarray) -> None:
    """The four panels."""
    pieces, row = cut(sodium_chloride()), row_of_molecules()
    assert pieces is not None
    for charges, style in STYLES.items():
        drawn = {**style, "fillstyle": "none", "markersize": 5}
        alpha = polarizabilities(model, charges)
        slope = exponent(CARBONS, alpha)
        axes[0, 0].plot(CARBONS, alpha, label=f"{charges}: length$^{{{slope:.2f}}}$ at the end", **drawn)
        left = charge_left(model, charges, pieces, DISTANCES.tolist())
        axes[0, 1].plot(DISTANCES, left, label=f"{charges}: {abs(left[-1]):.2f} e at 50 A", **drawn)
        moved = np.abs(field_transfer(model, charges, water(), GAPS))
        axes[1, 0].plot(GAPS, moved, label=f"{charges}: {moved[-1]:.2f} e at 40 A", **drawn)
        net = net_charges(model, charges, row.structure, row.group)
        axes[1, 1].plot(range(1, 2 * PAIRS + 1), net, label=f"{charges}: up to {np.abs(net).max():.2f} e", **drawn)
        print(f"{charges:<10} exponent {slope:.2f}, Na {left[-1]:+.3f} e, transfer {moved[-1]:.3f} e, "
              f"molecules up to {np.abs(net).max():.3f} e")  # fmt: skip


def label(axes: np.ndarray) -> None:
    """Titles and units."""
    axes[0, 0].set(
        title="Alkanes (fragments: CH$_2$, CH$_3$): polarizability", xlabel="carbon atoms",
        ylabel="polarizability / A$^3$", xscale="log", yscale="log", xticks=CARBONS, xticklabels=CARBONS,
    )  # fmt: skip
    axes[0, 0].minorticks_off()
    ticks = (2.5, 5, 10, 20, 50)
    axes[0, 1].set(
        title="NaCl pulled apart: charge left on sodium", xlabel="distance / A", ylabel="charge of Na / e",
        xscale="log", xticks=ticks, xticklabels=ticks,
    )  # fmt: skip
    axes[0, 1].minorticks_off()
    axes[1, 0].set(
        title="Two waters in 0.2 V/A: charge moved between them", xlabel="gap / A", ylabel="charge moved / e",
        xscale="log", xticks=GAPS, xticklabels=GAPS,
    )  # fmt: skip
    axes[1, 0].minorticks_off()
    axes[1, 1].set(
        title="Water, methane, water, ... in a row: net charges", xlabel="molecule", ylabel="net charge / e",
        xticks=range(2, 2 * PAIRS + 1, 2), ylim=(-0.25, 0.35),
    )  # fmt: skip
    for panel in axes.flat:
        panel.legend(framealpha=1.0, fontsize="small")
        panel.grid(alpha=0.3)


def main() -> None:
    figure = new_figure(9.5, 7.0)
    axes = figure.subplots(2, 2)
    with quietly():
        draw(generic_model(), axes)
    label(axes)
    figure.suptitle("Where charge flows everywhere (qeq), inside fragments, or over bonds (split)")
    save(figure, "disease_and_cure.png")


if __name__ == "__main__":
    main()
