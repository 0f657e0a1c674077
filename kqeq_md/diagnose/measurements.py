"""Four measurements of how charge flows, each for one charge model: numbers, no judgement.

    polarizability     u.alpha u along the axis u of a chain; its exponent is dlog(alpha) / dlog(size)
    charge left        sum of q_i over one of two pieces, pulled apart
    field transfer     sum over one of two copies of q_i(F) - q_i(0), F along the line that joins them
    lowest eigenvalue  min dq.H dq / dq.dq over allowed charge transfers dq

where H is the Hessian of the energy in the charges: J, and for split charges J + X^+ with the pseudoinverse of the bond
Laplacian X (`charges.split`). Its inverse on allowed transfers is the response -dq/dchi, so that the lowest eigenvalue
is one over the largest of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import eigh
from scipy.sparse.linalg import LinearOperator, eigsh

from kqeq_md.charges.split import find_bonds
from kqeq_md.diagnose.samples import Pieces, Sample, copies
from kqeq_md.electrostatics.direct import DirectCoulomb
from kqeq_md.electrostatics.ewald import EwaldCoulomb
from kqeq_md.elements import COVALENT_RADII, symbol_of
from kqeq_md.model import Model
from kqeq_md.neighbours.half_list import find_pairs
from kqeq_md.neighbours.search import Ints
from kqeq_md.potential import Potential
from kqeq_md.ranks.halo import SERIAL
from kqeq_md.response import response
from kqeq_md.structure import Floats, Structure

TOLERANCE = 1e-8
"""Of the charges: what is left of them by rounding has to be told from what leaks."""

DISTANCES = (1.0, 1.2, 1.5, 2.0, 3.0)
"""Times the contact, where curves of dissociation bend; then `FAR`."""

FAR = (7.5, 10.0, 15.0, 20.0, 30.0, 50.0)
"""Angstrom. The last one is where pieces count as separated."""

GAPS = (10.0, 20.0, 40.0)
"""Angstrom between the two copies in a field."""

FIELD = 0.2
"""V/Angstrom, on those copies: that of an ion some Angstrom away, or of a strong electrode."""

DENSE = 2000
"""Atoms up to which eigenvalues are those of a matrix (seconds); beyond, the softest transfer is iterated for."""

RIGID = 1e-9
"""Part of the largest polarizability of a series below which one is rounding."""

BLOCKED = 1e-12
"""Part of the largest eigenvalue of X below which bonds count as none."""


def potential_for(
    model: Model, charges: str, group: Ints | None, fragment_charges: Sequence[float] | None = None
) -> Potential:
    """A potential with the charge model; fragments as molecule numbers, shape (n,), where it has them."""
    if charges == "qeq":
        return Potential(model, tolerance=TOLERANCE, charges="qeq")
    given = {"fragments": group, "fragment_charges": fragment_charges if group is not None else None}
    return Potential(model, tolerance=TOLERANCE, charges=charges, **given)  # type: ignore[arg-type]


def polarizability(model: Model, charges: str, sample: Sample) -> float:
    """Along the axis of the sample, or its mean over all directions; e^2 Angstrom^2/eV.

    Raises:
        KqeqError: charges without a minimum, unknown elements.
    """
    potential = potential_for(model, charges, sample.group if charges == "fragments" else None)
    tensor = response(potential, sample.structure).polarizability
    if sample.axis is None:
        return float(np.trace(tensor)) / 3.0
    return float(sample.axis @ tensor @ sample.axis)


def exponent(sizes: Sequence[int], polarizabilities: Sequence[float]) -> float | None:
    """Slope of log(alpha) against log(size) between the last two sizes; None where nothing is polarized."""
    if len(sizes) < 2 or min(polarizabilities[-2:]) <= RIGID * max(polarizabilities):
        return None
    return float(np.log(polarizabilities[-1] / polarizabilities[-2]) / np.log(sizes[-1] / sizes[-2]))


def pulling_distances(pieces: Pieces) -> list[float]:
    """From the contact to 50 Angstrom."""
    near = [factor * pieces.contact for factor in DISTANCES]
    return [*(distance for distance in near if distance < FAR[0]), *FAR]


def charge_left(model: Model, charges: str, pieces: Pieces, distances: Sequence[float]) -> list[float]:
    """Charge of the first piece at each distance, e.

    Raises:
        KqeqError: charges without a minimum, unknown elements.
    """
    potential = potential_for(model, charges, pieces.group, pieces.charges)
    results = [potential.compute(pieces.at(distance), want=()) for distance in distances]
    return [float(result.charges[pieces.group == 0].sum()) for result in results]


def field_transfer(model: Model, charges: str, fragment: Structure, gaps: Sequence[float]) -> list[float]:
    """Charge that a field of 0.2 V/Angstrom moves from one copy to the other, e, for each gap between them, Angstrom.

    Raises:
        KqeqError: charges without a minimum, unknown elements.
    """
    moved = []
    for gap in gaps:
        pair = copies(fragment, 2, gap)
        assert pair.axis is not None
        potential = potential_for(model, charges, pair.group if charges == "fragments" else None)
        without = potential.compute(pair.structure, want=()).charges
        within = potential.compute(replace(pair.structure, field=FIELD * pair.axis), want=()).charges
        moved.append(float((within - without)[pair.group == 1].sum()))
    return moved


def net_charges(model: Model, charges: str, structure: Structure, group: Ints) -> Floats:
    """Charge of each fragment, e, shape (n_fragments,), from the fragment of each atom, shape (n,).

    Learned reference charges belong to fragments, so that split charges have fragments there too.

    Raises:
        KqeqError: a field that the charge model does not allow, charges without a minimum, unknown elements, charged
            structures of several fragments.
    """
    held = charges == "fragments" or (charges == "split" and model.learned_reference)
    result = potential_for(model, charges, group if held else None).compute(structure, want=())
    out: Floats = np.bincount(group, result.charges).astype(np.float64, copy=False)
    return out


@dataclass(frozen=True)
class Contact:
    """The two atoms that are closest for their size: distance, Angstrom, and over the sum of covalent radii."""

    atoms: tuple[int, int]
    symbols: tuple[str, str]
    distance: float
    ratio: float

    @property
    def words(self) -> str:
        """ "O-H 0.96 A, 0.99 of the sum of covalent radii"."""
        return f"{'-'.join(self.symbols)} {self.distance:.2f} A, {self.ratio:.2f} of the sum of covalent radii"


def closest_contact(structure: Structure) -> Contact | None:
    """None where all atoms are far apart.

    Raises:
        StructureError: two atoms closer than 0.2 Angstrom.
    """
    radius = COVALENT_RADII[structure.numbers]
    pairs = find_pairs(structure, 4.0 * float(radius.max()))
    if len(pairs.neighbour) == 0:
        return None
    length = np.linalg.norm(pairs.vectors, axis=1)
    ratio = length / (radius[pairs.centre] + radius[pairs.neighbour])
    k = int(np.argmin(ratio))
    i, j = int(pairs.centre[k]), int(pairs.neighbour[k])
    symbols = symbol_of(int(structure.numbers[i])), symbol_of(int(structure.numbers[j]))
    return Contact((i, j), symbols, float(length[k]), float(ratio[k]))


def lowest_eigenvalue(model: Model, charges: str, structure: Structure, group: Ints) -> float | None:
    """Of the Hessian in the space of allowed charge transfers, eV/e^2; None where none is allowed.

    Args:
        model: hardness, widths, compliance.
        charges: the charge model.
        structure: any boundary.
        group: fragment of each atom, shape (n,).

    Raises:
        KqeqError: unknown elements; in large structures, charges without a minimum.
    """
    structure = replace(structure, charge=0.0, field=np.zeros(3))
    potential = potential_for(model, charges, group if charges == "fragments" else None)
    species = potential.species_index(structure.numbers)
    hold = potential.charge_model.at(structure, species)
    if charges != "split" and len(hold.constraint.charges) == len(structure):
        return None
    if len(structure) > DENSE:
        return softest_response(potential, structure)
    matrix = coulomb_matrix(model, structure, species)
    if charges == "split":
        pairs = find_pairs(structure, float(model.compliance_cutoff.max()))
        bonds = find_bonds(pairs, species, model.compliance, model.compliance_cutoff, SERIAL)
        return lowest_of_split(matrix, np.stack([bonds.laplacian(unit) for unit in np.eye(len(species))]))
    return lowest_of_groups(matrix, hold.constraint.group)


def coulomb_matrix(model: Model, structure: Structure, species: Ints) -> Floats:
    """J, eV/e^2, shape (n, n)."""
    width, hardness = model.gaussian_width[species], model.hardness[species]
    if structure.boundary == "open":
        return DirectCoulomb(structure.positions, width, hardness).matrix()
    return EwaldCoulomb(
        structure.positions, structure.cell, width, hardness, 1e-5, open_axis=structure.open_axis
    ).matrix()


def lowest_of_groups(matrix: Floats, group: Ints) -> float:
    """Lowest eigenvalue of P J P on transfers inside groups, eV/e^2.

    Args:
        matrix: J, eV/e^2, shape (n, n).
        group: of each atom, shape (n,), at least one of them with two atoms.
    """
    indicator = np.eye(int(group.max()) + 1)[group]
    means = indicator / indicator.sum(axis=0) @ indicator.T
    projector = np.eye(len(group)) - means
    above = float(np.linalg.norm(matrix))  # the forbidden directions go above all others
    return _lowest(projector @ matrix @ projector + 2.0 * above * means)


def lowest_of_split(matrix: Floats, laplacian: Floats) -> float | None:
    """Lowest eigenvalue of J + X^+ on the range of X, eV/e^2; None without bonds.

    Args:
        matrix: J, eV/e^2, shape (n, n).
        laplacian: X, e^2/eV, shape (n, n).
    """
    conductance, modes = eigh(laplacian)
    open_modes = conductance > BLOCKED * max(conductance[-1], 0.0)
    if not open_modes.any():
        return None
    v = modes[:, open_modes]
    return _lowest(v.T @ matrix @ v + np.diag(1.0 / conductance[open_modes]))


def _lowest(symmetric: Floats) -> float:
    return float(eigh(symmetric, eigvals_only=True, subset_by_index=[0, 0])[0])


def softest_response(potential: Potential, structure: Structure) -> float | None:
    """One over the largest eigenvalue of -dq/dchi by Lanczos iterations, eV/e^2; None where nothing responds.

    Raises:
        KqeqError: charges without a minimum.
    """
    state = potential.equilibrate(structure)
    n, nothing = len(structure), np.zeros(len(structure))
    bare = replace(
        state.problem, constraint=state.problem.constraint.homogeneous,
        reference=None if state.problem.reference is None else nothing,
    )  # fmt: skip

    def respond(x: Floats) -> Floats:
        return potential.solve_response(replace(bare, electronegativity=-x.ravel())).charges

    start = np.random.default_rng(0).normal(size=n)
    if not respond(start).any():
        return None
    operator = LinearOperator((n, n), matvec=respond, dtype=np.float64)
    largest = eigsh(operator, k=1, which="LA", v0=start, tol=1e-3, return_eigenvectors=False)
    return float(1.0 / largest[0])
