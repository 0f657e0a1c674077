"""Thousands of small random systems: mesh and conjugate gradients against a dense direct sum, or a clear refusal.

With J the exact matrix, H its part for allowed charge transfers, b = chi - F.R, and q the charges that come out,
`accuracy` and `tolerance` promise

    rms |F - F_exact(q)| <= accuracy,   |P (J q + b)| <= tolerance scale + 3 Angstrom/e accuracy sqrt(n),

and that H with a negative eigenvalue is refused, H without small ones is not. The rest follows: an error g of the
gradient P (J q + b) makes one of H^-1 g of the charges, of dF/dq H^-1 g of forces and of g.H^-1 g / 2 of the energy.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from math import sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from scipy.linalg import null_space

from kqeq_md.charges.constraints import Constraint, fragment_charges, total_charge
from kqeq_md.descriptor.power_spectrum import Descriptor
from kqeq_md.descriptor.radial import SoapParameters
from kqeq_md.electrostatics.direct import DirectCoulomb
from kqeq_md.electrostatics.ewald import EwaldCoulomb
from kqeq_md.electrostatics.lattice import reduced_cell
from kqeq_md.errors import KqeqError
from kqeq_md.model import Model, SoapTerm
from kqeq_md.potential import Potential
from kqeq_md.structure import Result, Structure
from kqeq_md.units import COULOMB_CONSTANT

EXACT = 1e-12
"""eV/Angstrom, accuracy of the reference: four digits beyond what is asked for, and about the rounding of J."""

ROUNDING = 1e-14
"""Relative rounding of a product with J, as the solver has it."""

INDEFINITE = -1e-6
"""eV/e^2. Below it H has a direction without a minimum, whatever rounding says."""

SAFE = 0.1
"""eV/e^2. Above it the charges are well defined: ten times the softest transfer that the solver accepts."""

SPECIES, NUMBERS = ("H", "O", "Na", "Cl"), np.array([1, 8, 11, 17])

FINEST = 3e-11
"""eV/Angstrom. Rounding of a mesh for unit charges, measured for the largest charges; it goes with their square."""

LEVER = 3.0
"""Angstrom. A potential is off by a force's error times about this distance; 2.03 at most measured."""

SELF_LEVER = 6.0
"""Angstrom: the same for the energy of an atom with its own images, which adds up where forces cancel; measured 4."""

HARDNESSES = [5.0, 50.0, 1.0, 0.2, 0.05, 0.005, 0.0, -0.05, -1.0]
"""eV/e^2."""

SOAP = SoapParameters(cutoff=2.0, cutoff_width=0.5, n_max=1, l_max=0, sigma=0.5)

CELLS = {
    "cubic": np.diag([7.0, 7.0, 7.0]),
    "left-handed": np.array([[0, 6.0, 0.5], [7.0, 0, -1.0], [1.0, 2.0, 8.0]]),
    "flat": np.diag([13.0, 12.0, 1.7]),
    "needle": np.diag([2.1, 1.8, 60.0]),
    "very skewed": np.array([[5.0, 0, 0], [23.0, 6.0, 0], [-17.0, 31.0, 7.0]]),
    "tiny": np.array([[1.3, 0, 0], [0.2, 1.5, 0], [0, -0.3, 1.7]]),
    "vacuum": np.diag([36.0, 32.0, 40.0]),
}

BOUNDARIES = {
    "periodic": (True, True, True),
    "slab, x open": (False, True, True),
    "slab, y open": (True, False, True),
    "slab, z open": (True, True, False),
    "open": (False, False, False),
}

OPEN_PATHS = ("factorised", "iterated", "mesh")
"""By number of atoms small open structures are factorised; the other paths are made to take them, too."""


@dataclass(frozen=True, eq=False)
class System:
    """What goes in: a structure, the parameters of its elements, and what is asked for."""

    structure: Structure
    model: Model
    constraint: Constraint
    accuracy: float
    tolerance: float
    path: str
    followed: bool

    @property
    def species(self) -> np.ndarray:
        return np.searchsorted(NUMBERS, self.structure.numbers)

    def __repr__(self) -> str:
        """Everything needed to build it again."""
        s, m = self.structure, self.model
        return (
            f"{s.boundary} {self.path} pbc={s.pbc} cell={s.cell.tolist()} positions={s.positions.tolist()} "
            f"species={self.species.tolist()} charge={s.charge} field={s.field.tolist()} "
            f"width={m.gaussian_width.tolist()} hardness={m.hardness.tolist()} "
            f"electronegativity={m.electronegativity_offset.tolist()} "
            f"group={self.constraint.group.tolist()} sums={self.constraint.charges.tolist()} "
            f"accuracy={self.accuracy:g} tolerance={self.tolerance:g} followed={self.followed}"
        )


@st.composite
def systems(draw: st.DrawFn) -> System:
    """Cells, boundaries, widths, hardnesses, charges and what is asked for; coordinates come from a drawn seed."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    boundary = draw(st.sampled_from(list(BOUNDARIES)))
    pbc = BOUNDARIES[boundary]
    cell = CELLS[draw(st.sampled_from(list(CELLS)))] * draw(st.sampled_from([1.0, 0.8, 1.4]))
    cell = cell @ (np.eye(3) + 0.05 * rng.normal(size=(3, 3)))
    height = draw(st.sampled_from([4.0, 0.0, 25.0]))
    if boundary.startswith("slab"):
        cell = slab_cell(cell, pbc.index(False), height)
    wanted = draw(st.one_of(st.integers(1, 4), st.integers(5, 24)))
    positions = scattered(rng, cell, pbc, wanted, draw(st.sampled_from([1.5, 2.5, 0.8, 0.3])))
    n = len(positions)
    positions += rng.integers(-1, 2, size=(n, 3)) * np.array(pbc) @ cell  # atoms need not lie in the cell

    species = rng.integers(0, draw(st.integers(1, len(SPECIES))), n)
    kinds = int(species.max()) + 1
    model = element_parameters(
        draw(st.lists(st.floats(0.3, 2.0), min_size=kinds, max_size=kinds)),
        draw(st.lists(st.sampled_from(HARDNESSES), min_size=kinds, max_size=kinds)),
        draw(st.sampled_from([3.0, 0.0, 0.3, 20.0])) * rng.normal(size=kinds),
    )
    charge = draw(st.sampled_from([0.0, 1.0, -1.0, 0.3]))
    structure = Structure(
        NUMBERS[species], positions, None if boundary == "open" else cell, pbc, charge,
        applied_field(rng, draw(st.sampled_from([0.0, 0.1, 1.0])), cell, pbc),
    )  # fmt: skip
    return System(
        structure,
        model,
        sums(rng, n, charge, draw(st.sampled_from(["total", "total", "rest", "all"]))),
        draw(st.sampled_from([1e-5, 1e-3, 1e-4, 1e-6, 1e-7, 1e-8])),
        draw(st.sampled_from([1e-5, 1e-6, 1e-7, 1e-8, 1e-10])),
        draw(st.sampled_from(OPEN_PATHS)) if boundary == "open" else "mesh",
        draw(st.booleans()),
    )


def slab_cell(cell: np.ndarray, axis: int, height: float) -> np.ndarray:
    """The same periodic vectors with `height` along their normal, at least a little."""
    out, normal = cell.copy(), np.cross(cell[(axis + 1) % 3], cell[(axis + 2) % 3])
    out[axis] = max(height, 1e-3) * normal / np.linalg.norm(normal)
    return out


def scattered(
    rng: np.random.Generator, cell: np.ndarray, pbc: tuple[bool, bool, bool], wanted: int, distance: float
) -> np.ndarray:
    """Up to `wanted` positions in a cell, none closer to another one or its images than `distance`, (n, 3)."""
    lattice = reduced_cell(cell, pbc)
    steps = [(-1, 0, 1) if periodic else (0,) for periodic in pbc]
    images = np.array(list(product(*steps))) @ lattice
    found = [rng.random(3) @ cell]
    for _ in range(20 * wanted):
        if len(found) == wanted:
            break
        here = rng.random(3) @ cell
        apart = np.array(found) - here
        apart -= (np.round(apart @ np.linalg.inv(lattice)) * np.array(pbc)) @ lattice
        if np.linalg.norm(apart[:, None] + images, axis=2).min() > distance:
            found.append(here)
    return np.array(found)


def element_parameters(width: Any, hardness: Any, electronegativity: Any) -> Model:
    """Elements with fixed electronegativities: the local part has no say, so that all energy is electrostatic."""
    symbols = SPECIES[: len(width)]
    size = Descriptor.size_for(SOAP, len(symbols))
    points, weights = tuple(np.full((1, size), size**-0.5) for _ in symbols), tuple(np.zeros((1, 2)) for _ in symbols)
    return Model(
        symbols, (SoapTerm(SOAP, 2, points, weights),),
        hardness=np.array(hardness), gaussian_width=np.array(width),
        electronegativity_offset=np.array(electronegativity),
    )  # fmt: skip


def applied_field(rng: np.random.Generator, size: float, cell: np.ndarray, pbc: tuple[bool, ...]) -> np.ndarray:
    """A field where it has a meaning: any for open structures, along the normal of slabs, none for periodic ones."""
    if all(pbc):
        return np.zeros(3)
    direction = cell[pbc.index(False)] if any(pbc) else rng.normal(size=3)
    return size * direction / np.linalg.norm(direction)


def sums(rng: np.random.Generator, n: int, charge: float, kind: str) -> Constraint:
    """One total charge; two fragments and the rest; fragments of all atoms."""
    rows = rng.permutation(n)
    pieces = [piece for piece in np.array_split(rows, 3) if len(piece)]
    charges = rng.choice([0.0, 1.0, -1.0, 0.3], size=len(pieces))
    if kind == "total" or len(pieces) == 1:
        return total_charge(n, charge)
    if kind == "rest":
        return fragment_charges(n, charge, pieces[:-1], charges[:-1])
    return fragment_charges(n, charge, pieces, np.append(charges[:-1], charge - charges[:-1].sum()))


@contextmanager
def open_path(path: str) -> Iterator[None]:
    """Send small open structures another way than by factorisation."""
    with pytest.MonkeyPatch.context() as patch:
        if path != "factorised":
            patch.setattr("kqeq_md.charges.equilibrate.SMALL", 0)
        if path == "mesh":
            patch.setattr("kqeq_md.electrostatics.coulomb.SMALL", 0)
            patch.setattr("kqeq_md.electrostatics.coulomb.PER_DIRECT_PAIR", 1e9)
        yield


def computed(system: System) -> Result | KqeqError:
    """The production path, and what it refuses with; for half of the systems as the second step of a trajectory."""
    structure = system.structure
    held: dict[str, Any] = {}
    if len(system.constraint.charges) > 1:
        group, charges = system.constraint.group, system.constraint.charges
        held = {"charges": "fragments", "fragments": group, "fragment_charges": charges}
    potential = Potential(system.model, system.accuracy, system.tolerance, **held)
    with open_path(system.path):
        if system.followed:
            moved = structure.positions + 0.02 * np.sin(np.arange(structure.positions.size)).reshape(-1, 3)
            before = Structure(structure.numbers, moved, structure.cell, structure.pbc, structure.charge)
            with suppress(KqeqError):  # that step is no matter here
                potential.compute(before)
        try:
            return potential.compute(structure)
        except KqeqError as refusal:
            return refusal


# --- the reference


class Dense:
    """The exact matrix J, b, and the minimum under the constraint by Lagrange multipliers."""

    def __init__(self, system: System) -> None:
        structure, species = system.structure, system.species
        width, hardness = system.model.gaussian_width[species], system.model.hardness[species]
        self.structure = structure
        self.coulomb: DirectCoulomb | EwaldCoulomb
        if structure.boundary == "open":
            self.coulomb = DirectCoulomb(structure.positions, width, hardness)
        else:
            self.coulomb = EwaldCoulomb(
                structure.positions, structure.cell, width, hardness, EXACT, structure.open_axis
            )
        self.matrix = self.coulomb.matrix()
        self.linear = system.model.electronegativity_offset[species] - structure.positions @ structure.field
        n, group, charges = len(structure), system.constraint.group, system.constraint.charges
        self.sums = (group == np.arange(len(charges))[:, None]).astype(float)
        transfers = null_space(self.sums)
        self.eigenvalues = np.linalg.eigvalsh(transfers.T @ self.matrix @ transfers)
        self.bordered = np.block([[self.matrix, self.sums.T], [self.sums, np.zeros((len(charges),) * 2)]])
        self.transfers, self.n = transfers, n
        self.wanted = np.concatenate([-self.linear, charges])

    @property
    def softest(self) -> float:
        """The smallest eigenvalue of H, eV/e^2; infinite if nothing can flow."""
        return float(self.eigenvalues[0]) if len(self.eigenvalues) else np.inf

    def charges(self) -> np.ndarray:
        solution = np.linalg.solve(self.bordered, self.wanted)
        solution += np.linalg.solve(self.bordered, self.wanted - self.bordered @ solution)
        return solution[: self.n]

    def energy(self, charges: np.ndarray) -> float:
        return float(charges @ (self.linear + 0.5 * self.matrix @ charges))

    def forces(self, charges: np.ndarray) -> np.ndarray:
        return np.outer(charges, self.structure.field) - self.coulomb.gradient(charges)[0]

    def gradient(self, charges: np.ndarray) -> float:
        """|P (J q + b)|, eV/e."""
        return float(np.linalg.norm(self.transfers.T @ (self.matrix @ charges + self.linear)))

    def force_response(self, charges: np.ndarray) -> float:
        """Largest change of forces with the gradient P (J q + b), |dF/dq H^-1|, e/Angstrom; 0 if nothing flows.

        Forces are quadratic in charges, so that central differences of any step are exact.
        """
        if not len(self.eigenvalues):
            return 0.0
        slope = [0.5 * (self.forces(charges + t) - self.forces(charges - t)).ravel() for t in self.transfers.T]
        inverse = np.linalg.inv(self.transfers.T @ self.matrix @ self.transfers)
        return float(np.linalg.norm(np.array(slope).T @ inverse, ord=2))

    def scale(self) -> float:
        """What the tolerance is relative to: |P b| + |J_ii Q_g / n_g|, with J_ii of an isolated atom, eV/e."""
        even = self.sums.T @ (self.wanted[self.n :] / self.sums.sum(axis=1))
        own = self.coulomb.hardness + COULOMB_CONSTANT / (np.sqrt(np.pi) * self.coulomb.gaussian_width)
        return float(np.linalg.norm(self.transfers.T @ self.linear) + np.linalg.norm(own * even))

    def rounding(self, charges: np.ndarray) -> float:
        """Of a product with J, eV/e."""
        return ROUNDING * float(np.linalg.norm(np.abs(self.matrix) @ np.abs(charges)) + np.linalg.norm(self.linear))


@dataclass(frozen=True)
class Errors:
    """What is off by how much, and what is promised."""

    forces_at_charges: float
    gradient: float
    gradient_bound: float
    charges: float
    charges_bound: float
    forces: float
    forces_bound: float
    energy: float
    energy_bound: float


def errors(system: System, dense: Dense, result: Result) -> Errors:
    assert result.forces is not None
    n, q, exact = len(system.structure), result.charges, dense.charges()
    promised = system.accuracy + force_rounding(system, q)
    gradient = system.tolerance * dense.scale() + LEVER * promised * sqrt(n) + dense.rounding(q)
    charge = gradient / dense.softest + ROUNDING * (1.0 + float(np.linalg.norm(exact)))
    # forces are quadratic in charges: the second order is smaller by about the error of charges in units of e
    through_charges = dense.force_response(exact) * gradient / sqrt(n) * (1.0 + charge)
    return Errors(
        forces_at_charges=rms(result.forces - dense.forces(q)),
        gradient=dense.gradient(q), gradient_bound=gradient,
        charges=float(np.linalg.norm(q - exact)), charges_bound=charge,
        forces=rms(result.forces - dense.forces(exact)), forces_bound=promised + through_charges,
        energy=abs(result.energy - dense.energy(exact)),
        energy_bound=n * SELF_LEVER * promised * max(1.0, rms(q)) + 0.5 * gradient * charge,
    )  # fmt: skip


def force_rounding(system: System, charges: np.ndarray) -> float:
    """Of the mesh, and 1e-12 of the force between charges of the smallest width: that of tables; eV/Angstrom."""
    steepest = COULOMB_CONSTANT / float(system.model.gaussian_width[system.species].min()) ** 2
    return (FINEST + 1e-12 * steepest) * rms(charges) ** 2


def rms(values: np.ndarray) -> float:
    """Root of the mean square length of charges (n,) or vectors (n, 3)."""
    return float(np.sqrt((values**2).sum() / len(values)))


# --- the test


def check(system: System) -> str:
    """Assert what is promised for one system; returns "answered" or "refused"."""
    dense, result = Dense(system), computed(system)
    if isinstance(result, KqeqError):
        unreachable = system.accuracy < FINEST * rms(dense.charges()) ** 2
        assert dense.softest <= SAFE or unreachable, f"refused, but all eigenvalues > {dense.softest:.3g}: {result}"
        assert "`" in str(result)
        assert "\n" not in str(result)
        return "refused"
    assert dense.softest > INDEFINITE, f"accepted with a smallest eigenvalue of {dense.softest:.3g}"
    np.testing.assert_allclose(dense.sums @ result.charges, system.constraint.charges, rtol=0, atol=1e-12)  # rounding
    off = errors(system, dense, result)
    assert off.forces_at_charges <= system.accuracy + force_rounding(system, result.charges), off
    assert off.gradient <= off.gradient_bound, off
    if dense.softest > -INDEFINITE:  # else nothing can be said about charges
        assert off.charges <= off.charges_bound, off
        assert off.forces <= off.forces_bound, off
        assert off.energy <= off.energy_bound, off
    return "answered"


SEEDS = [pytest.param(0, 300), *(pytest.param(k, 1000, marks=pytest.mark.slow) for k in range(1, 11))]


@pytest.mark.parametrize(("first", "examples"), SEEDS)
def test_right_or_refused(first: int, examples: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="kqeq_md")  # each charged cell warns
    outcomes: Counter[str] = Counter()

    @seed(first)
    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example],
    )
    @given(systems())
    def one(system: System) -> None:
        outcomes[check(system)] += 1

    one()
    # so that neither everything nor nothing is refused: about 4 % are
    assert outcomes["answered"] > 0.8 * examples
    assert outcomes["refused"] > 0.003 * examples
