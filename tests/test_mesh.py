"""The Coulomb operator that simulations use: closed formulas, slower sums, finite differences, invariances."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from math import pi, sqrt
from typing import Any

import numpy as np
import pytest
from scipy.special import erf

from kqeq_md.charges.constraints import total_charge
from kqeq_md.charges.equilibrate import ChargeSolver, Problem
from kqeq_md.charges.preconditioner import RADIUS
from kqeq_md.electrostatics.coulomb import Coulomb, Electrostatics
from kqeq_md.electrostatics.direct import DirectCoulomb
from kqeq_md.electrostatics.ewald import EwaldCoulomb
from kqeq_md.electrostatics.free_space import FreeConvolution
from kqeq_md.electrostatics.mesh import ParticleMesh, PeriodicConvolution
from kqeq_md.electrostatics.mesh_coulomb import MeshCoulomb
from kqeq_md.electrostatics.pair_table import SHARE, pair_table, tabulated
from kqeq_md.electrostatics.plan import mesh_points
from kqeq_md.electrostatics.real_space import RealSpace
from kqeq_md.electrostatics.window import Window, best_window
from kqeq_md.errors import ChargeError, StructureError
from kqeq_md.neighbours.half_list import NeighbourList
from kqeq_md.structure import Structure
from kqeq_md.units import COULOMB_CONSTANT

CELLS = {
    "cubic": 8.0 * np.eye(3),
    "orthorhombic": np.diag([6.0, 9.0, 7.5]),
    "flat": np.diag([20.0, 18.0, 3.0]),
    "needle": np.diag([3.0, 3.2, 40.0]),
    "triclinic": np.array([[8.0, 0, 0], [7.0, 6.0, 0], [-6.0, 5.0, 7.0]]),
    "very skewed": np.array([[6.0, 0, 0], [15.0, 5.0, 0], [9.0, -12.0, 6.0]]),
    "left-handed": np.array([[0, 6.0, 0], [7.0, 0, 0], [0, 1.0, 8.0]]),
    "long": np.diag([3.0, 3.0, 200.0]),
}
LATERAL = {
    "square": np.diag([9.0, 9.0, 0]),
    "skewed": np.array([[7.0, 0, 0], [25.0, 8.0, 0], [0, 0, 0]]),
    "narrow": np.diag([4.0, 22.0, 0]),
    "tiny": np.array([[3.0, 0, 0], [1.5, 2.6, 0], [0, 0, 0]]),
}
WIDTHS = {"narrow": np.array([0.3]), "wide": np.array([2.0]), "mixed": np.array([0.3, 0.8, 2.0])}
SLAB = (True, True, False)


@dataclass(frozen=True, eq=False)
class System:
    """Gaussian charges of a few species."""

    structure: Structure
    species: np.ndarray
    charges: np.ndarray

    def widths(self, per_species: np.ndarray) -> np.ndarray:
        return per_species[self.species]


@dataclass(frozen=True)
class InOrder:
    """J, with its arguments and results in the order of the structure."""

    coulomb: Coulomb
    order: np.ndarray

    def apply(self, charges: np.ndarray) -> np.ndarray:
        return self._back(self.coulomb.apply(charges[self.order]))

    def field(self, charges: np.ndarray) -> np.ndarray:
        return self._back(self.coulomb.field(charges[self.order]))

    def gradient(self, charges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        grad_r, grad_strain = self.coulomb.gradient(charges[self.order])
        return self._back(grad_r), grad_strain

    def _back(self, values: np.ndarray) -> np.ndarray:
        out = np.empty_like(values)
        out[self.order] = values
        return out


def operator(electrostatics: Electrostatics, structure: Structure, species: np.ndarray) -> InOrder:
    neighbours = NeighbourList()
    neighbours.update(structure, max(electrostatics.cutoff(structure), 1.0))
    order = neighbours.order
    in_order = replace(structure, numbers=structure.numbers[order], positions=structure.positions[order])
    return InOrder(electrostatics.at(in_order, species[order], neighbours), order)


def coulomb(system: System, widths: np.ndarray, accuracy: float, **options: Any) -> InOrder:
    electrostatics = Electrostatics(widths, np.zeros(len(widths)), accuracy, **options)
    return operator(electrostatics, system.structure, system.species)


def random_system(
    cell: np.ndarray, n: int, seed: int, pbc: Any = True, n_species: int = 3, heights: tuple[int, float] | None = None
) -> System:
    """Random positions and species, charges of rms 1 e; `heights` (axis, thickness) spreads them along an open axis."""
    rng = np.random.default_rng(seed)
    positions, species, charges = rng.random((n, 3)) @ cell, rng.integers(0, n_species, n), rng.normal(size=n)
    if heights is not None:
        positions[:, heights[0]] += heights[1] * rng.random(n)
    lattice = None if pbc is False else cell
    structure = Structure(np.full(n, 11), positions, cell=lattice, pbc=pbc)
    return System(structure, species, charges / np.sqrt(np.mean(charges**2)))


def roomy(cell: np.ndarray, n: int) -> np.ndarray:
    """The cell, enlarged where its n atoms would have less than 10 Angstrom^3 each."""
    return cell * max(1.0, (10.0 * n / abs(np.linalg.det(cell))) ** (1 / 3))


def along(lateral: np.ndarray, axis: int) -> np.ndarray:
    """A cell with the plane of `lateral` turned so that its normal is the Cartesian and lattice vector `axis`."""
    return np.roll(np.roll(lateral, axis + 1, axis=0), axis + 1, axis=1)


def reference(system: System, widths: np.ndarray, accuracy: float) -> EwaldCoulomb:
    """The direct sum over waves and pairs, a thousand times as accurate."""
    structure, width = system.structure, system.widths(widths)
    hardness, open_axis = np.zeros(len(structure)), structure.open_axis
    return EwaldCoulomb(structure.positions, structure.cell, width, hardness, 1e-3 * accuracy, open_axis)


def pooled_errors(systems: list[System], widths: np.ndarray, accuracy: float) -> tuple[float, float]:
    """Rms errors of forces, eV/Angstrom, and of potentials, eV/e, over several systems."""
    electrostatics = Electrostatics(widths, np.zeros(len(widths)), accuracy)
    force, potential = [], []
    for system in systems:
        got, wanted = operator(electrostatics, system.structure, system.species), reference(system, widths, accuracy)
        q = system.charges
        force.append(((got.gradient(q)[0] - wanted.gradient(q)[0]) ** 2).sum(axis=1).mean())
        potential.append(((got.apply(q) - wanted.matrix() @ q) ** 2).mean())
    return float(np.sqrt(np.mean(force))), float(np.sqrt(np.mean(potential)))


def close(got: Any, wanted: Any, atol: float) -> None:
    """Within `atol`; the relative tolerance that NumPy adds unasked would be far above it."""
    np.testing.assert_allclose(got, wanted, rtol=0.0, atol=atol)


# --- accuracy is the knob


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("accuracy", [1e-3, 1e-5, 1e-7])
def test_accuracy_is_the_rms_force_error(name: str, widths: str, accuracy: float) -> None:
    s = WIDTHS[widths]
    for sizes in ([1, 2, 2, 4], [7, 7, 7, 7], [30, 30, 30]):
        systems = [random_system(roomy(CELLS[name], n), n, seed, n_species=len(s)) for seed, n in enumerate(sizes)]
        force, potential = pooled_errors(systems, s, accuracy)
        assert force < accuracy  # the promise
        assert potential < 2.0 * accuracy  # a force's error times about 1 Angstrom; 0.9 at most measured


@pytest.mark.parametrize("name", ["cubic", "flat", "needle", "very skewed", "long"])
@pytest.mark.parametrize(("widths", "accuracy"), [("narrow", 1e-5), ("mixed", 1e-3), ("mixed", 1e-9)])
def test_accuracy_for_hundreds_of_atoms(name: str, widths: str, accuracy: float) -> None:
    s = WIDTHS[widths]
    system = random_system(roomy(CELLS[name], 200), 200, seed=5, n_species=len(s))
    force, potential = pooled_errors([system], s, accuracy)
    assert force < accuracy  # the promise
    assert potential < 2.0 * accuracy  # as above


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("name", LATERAL)
@pytest.mark.parametrize(("widths", "accuracy"), [("narrow", 1e-3), ("mixed", 1e-5), ("wide", 1e-7)])
def test_accuracy_of_slabs(name: str, widths: str, accuracy: float, axis: int) -> None:
    """Charges that do not add up to zero, too; the reference has its own, longer vacuum."""
    s, cell, pbc = WIDTHS[widths], along(LATERAL[name], axis), np.arange(3) != axis
    cases = [(1, 0.0), (2, 6.0), (8, 0.0), (8, 12.0), (8, 30.0)]
    systems = [
        random_system(cell, n, seed, pbc, n_species=len(s), heights=(axis, thickness))
        for seed, (n, thickness) in enumerate(cases)
    ]
    force, potential = pooled_errors(systems, s, accuracy)
    assert force < accuracy  # the promise
    assert potential < 2.0 * accuracy  # as above


@pytest.mark.parametrize("boundary", ["periodic", "slab", "open"])
@pytest.mark.usefixtures("always_mesh")
def test_accuracy_for_larger_charges(boundary: str) -> None:
    """Errors grow like q^2: with 5 e they are 25 times as large, until the operator is asked whether it serves."""
    s, accuracy, system = WIDTHS["mixed"], 1e-4, system_for(boundary)
    q, electrostatics = 5.0 * system.charges, Electrostatics(s, np.zeros(3), accuracy)
    if boundary == "open":
        wanted, _ = DirectCoulomb(system.structure.positions, system.widths(s), np.zeros(len(q))).gradient(q)
    else:
        wanted, _ = reference(system, s, 1e-2 * accuracy).gradient(q)

    def error() -> float:
        got, _ = operator(electrostatics, system.structure, system.species).gradient(q)
        return float(np.sqrt(((got - wanted) ** 2).sum(axis=1).mean()))

    assert electrostatics.serves(system.charges / 1.001)
    assert error() > accuracy
    assert not electrostatics.serves(q)
    assert error() < accuracy  # the promise
    assert electrostatics.serves(q)
    assert electrostatics.serves(1.5 * q)  # up to 8 e


CLUSTERS = {
    "ball": (19.0, 20.0, 18.0),
    "needle": (8.0, 9.0, 95.0),
    "flat": (34.0, 34.0, 6.0),
    "line": (0.0, 0.0, 150.0),
}


@pytest.fixture
def always_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    """However cheap the direct sum is."""
    monkeypatch.setattr("kqeq_md.electrostatics.coulomb.PER_DIRECT_PAIR", 1e9)


@pytest.mark.usefixtures("always_mesh")
@pytest.mark.parametrize("shape", CLUSTERS)
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("accuracy", [1e-3, 1e-5, 1e-7])
def test_accuracy_of_clusters(shape: str, widths: str, accuracy: float) -> None:
    s = WIDTHS[widths]
    system = random_system(np.diag(CLUSTERS[shape]), 700, seed=2, pbc=False, n_species=len(s))
    got = coulomb(system, s, accuracy)
    assert isinstance(got.coulomb, MeshCoulomb)
    assert isinstance(got.coulomb.mesh.convolution, FreeConvolution)
    wanted, q = DirectCoulomb(system.structure.positions, system.widths(s), np.zeros(700)), system.charges
    force = got.gradient(q)[0] - wanted.gradient(q)[0]
    assert np.sqrt((force**2).sum(axis=1).mean()) < accuracy  # the promise
    assert np.sqrt(((got.apply(q) - wanted.apply(q)) ** 2).mean()) < 2.0 * accuracy  # as above


def test_two_clusters_far_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mesh over all the vacuum between them is right, but costs more than the direct sum."""
    s, system = WIDTHS["mixed"], random_system(13.0 * np.eye(3), 420, seed=3, pbc=False)
    positions, q = system.structure.positions + np.where(np.arange(420) < 210, 0.0, 58.0)[:, None], system.charges
    system = replace(system, structure=replace(system.structure, positions=positions))  # 100 Angstrom apart
    direct = coulomb(system, s, 1e-5)
    assert isinstance(direct.coulomb, DirectCoulomb)
    monkeypatch.setattr("kqeq_md.electrostatics.coulomb.PER_DIRECT_PAIR", 1e9)
    mesh = coulomb(system, s, 1e-5)
    assert isinstance(mesh.coulomb, MeshCoulomb)
    error = mesh.gradient(q)[0] - direct.gradient(q)[0]
    assert np.sqrt((error**2).sum(axis=1).mean()) < 1e-5  # the promise


@pytest.mark.usefixtures("always_mesh")
@pytest.mark.parametrize("shift", [(0.3, -0.4, 0.1), (1e5, -1e5, 3e4)])
def test_clusters_far_from_the_origin(shift: tuple[float, float, float]) -> None:
    accuracy, s = 1e-5, WIDTHS["mixed"]
    here = random_system(np.diag(CLUSTERS["ball"]), 700, seed=4, pbc=False)
    there = replace(here, structure=replace(here.structure, positions=here.structure.positions + shift))
    q, first, second = here.charges, coulomb(here, s, accuracy), coulomb(there, s, accuracy)
    error = first.gradient(q)[0] - second.gradient(q)[0]
    assert np.sqrt((error**2).sum(axis=1).mean()) < 2.0 * accuracy  # that of both
    # 700 forces, levers of 10 Angstrom: about the coordinate origin the errors would grow by 1e4
    assert np.abs(first.gradient(q)[1] - second.gradient(q)[1]).max() < 700 * 2.0 * accuracy * 10.0


def test_boundary_and_size_choose() -> None:
    def kind(n: int, edge: float, pbc: Any) -> type:
        return type(coulomb(random_system(edge * np.eye(3), n, 0, pbc), WIDTHS["mixed"], 1e-5).coulomb)

    assert kind(2, 9.0, False) is DirectCoulomb
    assert kind(400, 16.0, False) is DirectCoulomb
    assert kind(8000, 43.0, False) is MeshCoulomb
    assert kind(2, 9.0, True) is MeshCoulomb
    assert kind(2, 9.0, SLAB) is MeshCoulomb


# --- closed formulas

ROCK_SALT = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 1], [0, 1, 0]]) / 2
CRYSTALS = {  # sites, charges, nearest distance, constant: OEIS A085469 and A181152
    "rock salt": (ROCK_SALT, [1.0] * 4 + [-1.0] * 4, 0.5, 1.74756459463318219),
    "caesium chloride": (np.array([[0, 0, 0], [0.5, 0.5, 0.5]]), [1.0, -1.0], sqrt(3) / 2, 1.76267477307098839),
}


def crystal(sites: np.ndarray, charges: Any, repeats: tuple[int, int, int], edge: float) -> System:
    """Cubic cells of `edge` (Angstrom), repeated."""
    grid = np.array(list(product(*(range(m) for m in repeats))))
    positions = edge * (grid[:, None] + sites).reshape(-1, 3)
    n = len(positions)
    structure = Structure(np.full(n, 11), positions, cell=edge * np.diag(repeats), pbc=True)
    return System(structure, np.zeros(n, dtype=np.int64), np.tile(charges, len(grid)))


@pytest.mark.parametrize("repeats", [(4, 4, 4), (2, 3, 5), (1, 1, 1)])
@pytest.mark.parametrize("name", CRYSTALS)
def test_madelung_constants(name: str, repeats: tuple[int, int, int]) -> None:
    """-M kC / d per ion pair, and the same potential at every ion."""
    sites, charges, nearest, constant = CRYSTALS[name]
    edge, width = 5.6, 0.2  # neighbours overlap by erfc(2.8 / 0.4) = 4e-23
    system = crystal(sites, charges, repeats, edge)
    potential = coulomb(system, np.array([width]), 1e-11).apply(system.charges) * system.charges
    madelung = (COULOMB_CONSTANT / (sqrt(pi) * width) - potential) * nearest * edge / COULOMB_CONSTANT
    np.testing.assert_allclose(madelung, constant, rtol=1e-10)  # what ten digits of the constant mean


@pytest.mark.parametrize("repeats", [(1, 1, 1), (5, 5, 5), (2, 1, 7)])
def test_wigner_lattice(repeats: tuple[int, int, int]) -> None:
    """A charged cubic lattice with a uniform background: -2.837297479480619 / a, the background's extent included.

    Constant: Leslie and Gillan, J. Phys. C 18, 973 (1985), doi:10.1088/0022-3719/18/5/005, to more digits.
    """
    edge, s = 4.0, 0.3
    system = crystal(np.zeros((1, 3)), [1.0], repeats, edge)
    wanted = 1 / (sqrt(pi) * s) - 2.837297479480619 / edge + 4 * pi * s**2 / edge**3
    got = coulomb(system, np.array([s]), 1e-11).apply(system.charges) / COULOMB_CONSTANT
    np.testing.assert_allclose(got, wanted, rtol=1e-10)  # erfc(4 / 0.6) = 4e-21: as the accuracy, and ten digits


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("charge", [0.0, 3.0])
def test_slab_of_single_layers(axis: int, charge: float) -> None:
    """One narrow charge in each layer of a square lattice, layers so far apart that no Gaussians overlap.

    Layers at a distance z and the lateral offset rho interact by the waves in the plane, without any Ewald sum,

        (2 pi kC / A) [sum_(G != 0) exp(-G |z|) cos(G.rho) / G - |z|],

    and a square lattice of charges with itself by 4 zeta(1/2) beta(1/2) kC / a = -3.900264920001956 kC / a.

    Reference: Bonsall and Maradudin, Phys. Rev. B 15, 1959 (1977), doi:10.1103/PhysRevB.15.1959.
    """
    a, n, s = 5.0, 6, 0.3
    rng = np.random.default_rng(axis)
    r, q = a * rng.random((n, 3)), rng.normal(size=n)
    q += (charge - q.sum()) / n
    r[:, 2] = rng.permutation(np.cumsum(rng.uniform(4.0, 5.0, n)))  # erfc(4 / 0.6) = 4e-21
    waves = 2 * pi / a * np.array([k for k in product(range(-12, 13), repeat=2) if any(k)])  # exp(-60) at 4 Angstrom
    lengths = np.linalg.norm(waves, axis=1)
    d = r[:, None] - r
    z, phase = d[..., 2], d[..., :2] @ waves.T
    decay = np.exp(-lengths * np.abs(z)[..., None])
    matrix = 2 * pi * COULOMB_CONSTANT / a**2 * ((decay * np.cos(phase) / lengths).sum(axis=2) - np.abs(z))
    matrix[np.diag_indices(n)] = COULOMB_CONSTANT * (1 / (sqrt(pi) * s) - 3.900264920001956 / a)
    across = -(decay * np.sin(phase)) @ (waves / lengths[:, None])
    upward = -np.sign(z) * ((decay * np.cos(phase)).sum(axis=2) + 1.0)
    slope = 2 * pi * COULOMB_CONSTANT / a**2 * np.concatenate([across, upward[..., None]], axis=2)
    slope[np.diag_indices(n)] = 0.0
    grad_r = np.einsum("i,j,ijc->ic", q, q, slope)

    turned = np.roll(r, axis + 1, axis=1)
    structure = Structure(np.full(n, 11), turned, cell=along(np.diag([a, a, 0]), axis), pbc=np.arange(3) != axis)
    got = coulomb(System(structure, np.zeros(n, dtype=np.int64), q), np.array([s]), 1e-9)
    close(got.apply(q), matrix @ q, atol=1e-7)  # the promise for default vacuum; accuracy 1e-9, 1e-8 eV/e^2 of images
    close(got.gradient(q)[0], np.roll(grad_r, axis + 1, axis=1), atol=1e-8)  # six times the accuracy and 1e-9 / e^2


# --- derivatives


@pytest.mark.usefixtures("always_mesh")
@pytest.mark.parametrize("charge", [0.0, 1.0])
@pytest.mark.parametrize("boundary", ["triclinic", "slab", "turned slab", "cluster"])
def test_gradient_by_differences(boundary: str, charge: float, helpers: Any) -> None:
    """The operator's own energy; all nine components of the strain."""
    s = WIDTHS["mixed"]
    if boundary == "triclinic":
        system = random_system(CELLS["triclinic"], 6, seed=6)
    elif boundary == "cluster":
        system = random_system(np.diag([19.0, 20.0, 18.0]), 700, seed=6, pbc=False)
    else:
        system = random_system(LATERAL["skewed"], 6, seed=6, pbc=SLAB, heights=(2, 5.0))
    n, q = len(system.charges), system.charges + charge / len(system.charges) - system.charges.mean()
    if boundary == "turned slab":
        system = replace(system, structure=helpers.strained(system.structure, helpers.random_rotation(3)))
    electrostatics = Electrostatics(s, np.ones(3), 1e-9)

    def energy(structure: Structure) -> float:
        return float(0.5 * q @ operator(electrostatics, structure, system.species).apply(q))

    grad_r, grad_strain = operator(electrostatics, system.structure, system.species).gradient(q)
    chosen = np.arange(min(n, 6))

    def moved(x: np.ndarray) -> float:
        positions = system.structure.positions.copy()
        positions[chosen] = x
        return energy(helpers.moved(system.structure, positions))

    by_position = helpers.five_point(moved, system.structure.positions[chosen], 5e-3)
    # 5e-3^4 f^(5) / 30 with f^(5) of 14 * 0.3^-6 at most; pairs at the cutoff: the accuracy's 1e-9 / 5e-3 at worst
    scale = np.abs(grad_r).max()
    close(grad_r[chosen], by_position, atol=1e-7 * max(scale, 1.0))
    if boundary == "cluster":
        return  # the virial follows from the forces there
    cell = system.structure.cell.copy()
    cell[~np.array(system.structure.pbc)] = 0.0  # the open vector stays perpendicular

    def strained(deform: np.ndarray) -> float:
        return energy(helpers.moved(system.structure, system.structure.positions @ deform, cell @ deform))

    by_strain = helpers.five_point(strained, np.eye(3), 1e-3)
    # strains move atoms by at most 10 Angstrom * 1e-3, of the order of the steps above; meshes and vacuum may change
    close(grad_strain, by_strain.T, atol=1e-7 * np.abs(grad_strain).max())


@pytest.mark.usefixtures("always_mesh")
@pytest.mark.parametrize("boundary", ["open", "slab", "periodic"])
def test_field_is_the_gradient_for_any_charges(boundary: str) -> None:
    system = system_for(boundary)
    got, q = coulomb(system, WIDTHS["mixed"], 1e-5), system.charges
    grad_r, _ = got.gradient(q)
    close(-q[:, None] * got.field(q), grad_r, atol=1e-12 * np.abs(grad_r).max())  # rounding


@pytest.mark.usefixtures("always_mesh")
def test_virial_of_a_cluster() -> None:
    system = system_for("open")
    got, width = coulomb(system, WIDTHS["mixed"], 1e-9), system.widths(WIDTHS["mixed"])
    wanted = DirectCoulomb(system.structure.positions, width, np.zeros(len(width)))
    # 700 forces with errors of 1e-9 and levers of 10 Angstrom, all in the same direction at worst
    close(got.gradient(system.charges)[1], wanted.gradient(system.charges)[1], atol=7e-6)


# --- symmetries


def system_for(boundary: str) -> System:
    """So many atoms that the neighbour list sorts them."""
    if boundary == "open":
        return random_system(np.diag([19.0, 20.0, 18.0]), 700, seed=7, pbc=False)
    if boundary == "slab":
        return random_system(np.diag([20.0, 18.0, 0.0]), 600, seed=7, pbc=SLAB, heights=(2, 17.0))
    return random_system(roomy(CELLS["triclinic"], 600), 600, seed=7)


@pytest.mark.usefixtures("always_mesh")
@pytest.mark.parametrize("accuracy", [1e-3, 1e-7])
@pytest.mark.parametrize("boundary", ["open", "slab", "periodic"])
def test_symmetric_and_linear(boundary: str, accuracy: float) -> None:
    """However rough the accuracy."""
    system = system_for(boundary)
    got, rng = coulomb(system, WIDTHS["mixed"], accuracy), np.random.default_rng(1)
    assert isinstance(got.coulomb, MeshCoulomb)
    x, y = rng.normal(size=(2, len(system.charges)))
    jx, jy = got.apply(x), got.apply(y)
    scale = np.linalg.norm(x) * np.linalg.norm(jy)
    assert abs(x @ jy - y @ jx) < 1e-13 * scale  # rounding of some hundred terms
    close(got.apply(0.3 * x - 2.0 * y), 0.3 * jx - 2.0 * jy, atol=1e-12 * np.abs(jy).max())  # rounding


@pytest.mark.parametrize("name", ["needle", "very skewed"])
def test_symmetric_in_small_cells(name: str) -> None:
    """Meshes of few points, where waves are their own opposites."""
    got = coulomb(random_system(CELLS[name], 6, seed=8), WIDTHS["mixed"], 1e-3)
    matrix = np.array([got.apply(row) for row in np.eye(6)])
    close(matrix, matrix.T, atol=1e-13 * np.abs(matrix).max())  # rounding


@pytest.mark.parametrize("boundary", ["slab", "periodic"])
def test_translation_and_wrapping(boundary: str) -> None:
    accuracy, system = 1e-5, system_for(boundary)
    structure, q, rng = system.structure, system.charges, np.random.default_rng(9)
    first = coulomb(system, WIDTHS["mixed"], accuracy)

    def error(positions: np.ndarray) -> float:
        other = coulomb(replace(system, structure=replace(structure, positions=positions)), WIDTHS["mixed"], accuracy)
        return float(np.sqrt(((other.gradient(q)[0] - first.gradient(q)[0]) ** 2).sum(axis=1).mean()))

    assert error(structure.positions + np.array([0.37, -11.1, 5.2])) < 2.0 * accuracy  # that of both
    cells = rng.integers(-3, 4, (len(q), 3)) * np.array(structure.pbc)
    # coordinates of 100 Angstrom round to 1e-14, times 1e3 eV/Angstrom^2; the order of the sums
    assert error(structure.positions + cells @ structure.cell) < 1e-10


def test_supercell() -> None:
    accuracy, s, repeats = 1e-6, WIDTHS["mixed"], (2, 1, 3)
    system = random_system(CELLS["triclinic"], 20, seed=10)
    offsets = np.array(list(product(*(range(m) for m in repeats)))) @ system.structure.cell
    positions = np.concatenate([system.structure.positions + offset for offset in offsets])
    structure = Structure(np.full(120, 11), positions, cell=np.diag(repeats) @ system.structure.cell, pbc=True)
    many = System(structure, np.tile(system.species, 6), np.tile(system.charges, 6))
    small = coulomb(system, s, accuracy).gradient(system.charges)
    large = coulomb(many, s, accuracy).gradient(many.charges)
    # that of both, and sqrt(6) more where images repeat what the estimate takes for random
    assert np.sqrt(((large[0] - np.tile(small[0], (6, 1))) ** 2).sum(axis=1).mean()) < 4.0 * accuracy
    close(large[1] / 6, small[1], atol=20 * accuracy * 8.0)  # twenty forces, levers of a cell


@pytest.mark.usefixtures("always_mesh")
@pytest.mark.parametrize("boundary", ["open", "slab", "periodic"])
def test_threads_change_rounding_alone(boundary: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kqeq_md.machine.threads.ATOMS_EACH", 1)
    system = system_for(boundary)
    one, *others = (coulomb(system, WIDTHS["mixed"], 1e-5, threads=threads) for threads in (1, 2, 3))
    q = system.charges
    for other in others:
        close(other.apply(q), one.apply(q), atol=1e-10)  # sums of 600 terms of 1e2 eV in another order
        for got, wanted in zip(other.gradient(q), one.gradient(q), strict=True):
            close(got, wanted, atol=1e-12 * 600 * np.abs(wanted).max())  # as above


@pytest.mark.usefixtures("always_mesh")
@pytest.mark.parametrize("boundary", ["open", "slab", "periodic"])
def test_order_changes_rounding_alone(boundary: str) -> None:
    system = system_for(boundary)
    structure, q = system.structure, system.charges
    mixed = np.random.default_rng(2).permutation(len(q))
    other = System(replace(structure, positions=structure.positions[mixed]), system.species[mixed], q[mixed])
    first, second = (coulomb(s, WIDTHS["mixed"], 1e-5) for s in (system, other))
    close(second.apply(q[mixed]), first.apply(q)[mixed], atol=1e-10)  # sums of 600 terms of 1e2 eV in another order
    close(second.gradient(q[mixed])[0], first.gradient(q)[0][mixed], atol=1e-10)


@pytest.mark.usefixtures("always_mesh")
def test_what_was_computed_before_does_not_matter() -> None:
    """One `Electrostatics` for larger, smaller, open and strained structures in turn, as in a simulation."""
    s = WIDTHS["mixed"]
    systems = [system_for("periodic"), random_system(CELLS["flat"], 30, 1), system_for("open"), system_for("slab")]
    kept = Electrostatics(s, np.zeros(3), 1e-5)
    for system in systems * 2:
        got = operator(kept, system.structure, system.species).gradient(system.charges)
        wanted = coulomb(system, s, 1e-5).gradient(system.charges)
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(a, b)


# --- vacuum of slabs, absurd cells


def test_vacuum_that_is_given() -> None:
    system = random_system(LATERAL["square"], 8, seed=1, pbc=SLAB, heights=(2, 6.0))
    short, tall = (coulomb(system, WIDTHS["mixed"], 1e-5, vacuum=v) for v in (None, 150.0))
    assert isinstance(tall.coulomb, MeshCoulomb)
    assert tall.coulomb.cell is not None
    assert tall.coulomb.cell[2, 2] >= 155.0
    error = short.gradient(system.charges)[0] - tall.gradient(system.charges)[0]
    assert np.sqrt((error**2).sum(axis=1).mean()) < 2e-5  # that of both
    with pytest.raises(ChargeError, match=r"`vacuum` must be at least [\d.]+ Angstrom, got 5$"):
        coulomb(system, WIDTHS["mixed"], 1e-5, vacuum=5.0)


@pytest.mark.parametrize("pbc", [True, SLAB])
def test_absurd_cells_are_refused(pbc: Any) -> None:
    cell = np.diag([3.0, 1e7, 3.0]) if pbc is True else np.diag([1e7, 3.0, 0.0])
    structure = Structure([11, 17], np.diag([0.0, 0.0, 2.0])[1:], cell=cell, pbc=pbc)
    with pytest.raises(StructureError, match="`cell` must not be so large or flat.* for 2 atoms .*, 1e-05 eV/Angstrom"):
        Electrostatics(np.ones(2), np.ones(2), 1e-5).cutoff(structure)


# --- the parts


@pytest.fixture(scope="module")
def window() -> Window:
    """For x = 3.7: truncation at 1e-6."""
    found = best_window(8, 3.7)
    assert found is not None
    return found


def mesh_in(
    cell: np.ndarray, window: Window, alpha: float
) -> tuple[ParticleMesh, Callable[[np.ndarray], ParticleMesh]]:
    """A mesh that spans `cell`, and a function that moves its charges."""
    points = mesh_points(np.linalg.norm(cell, axis=1), window, alpha, open_ends=False)
    mesh = ParticleMesh(window, points, PeriodicConvolution(cell, alpha, window, points, 1), 1)
    inverse = np.linalg.inv(cell)

    def at(positions: np.ndarray) -> ParticleMesh:
        fractional = positions @ inverse
        mesh.set(fractional - np.floor(fractional), inverse)
        return mesh

    return mesh, at


def test_smooth_part_is_the_sum_over_waves(window: Window, helpers: Any) -> None:
    """Aliases and waves that are cut off are below exp(-3.7^2) = 1e-6 of the potential."""
    cell, alpha = roomy(CELLS["triclinic"], 40), 0.4
    system = random_system(cell, 40, seed=11)
    r, q = system.structure.positions, system.charges
    waves = np.array([k for k in helpers.shifts(2 * pi * np.linalg.inv(cell).T, 12.0 * alpha) if k.any()])
    k2, phase = (waves**2).sum(axis=1), r @ waves.T
    influence = 4 * pi * COULOMB_CONSTANT / abs(np.linalg.det(cell)) * np.exp(-k2 / (4 * alpha**2)) / k2
    density = q @ np.exp(-1j * phase)
    potential = (np.exp(1j * phase) @ (influence * density)).real
    field = ((-1j * np.exp(1j * phase) * (influence * density)) @ waves).real
    _, at = mesh_in(cell, window, alpha)
    mesh = at(r)
    close(mesh.apply(q), potential, atol=1e-5 * np.abs(potential).max())  # ten times the 1e-6
    close(mesh.field(mesh.potential(q)), field, atol=1e-5 * np.abs(field).max())


def test_field_of_the_mesh_is_the_slope_of_its_energy(window: Window, helpers: Any) -> None:
    """To rounding, not to the accuracy: charges and potentials are spread and read by the same window."""
    cell, rng, q = CELLS["very skewed"], np.random.default_rng(12), np.random.default_rng(13).normal(size=5)
    mesh, at = mesh_in(cell, window, 0.4)
    # well between mesh points: where the window's support ends its slope has a kink
    r = (rng.integers(0, mesh.points, (5, 3)) + rng.uniform(0.2, 0.8, (5, 3))) / mesh.points @ cell
    slope = helpers.five_point(lambda x: 0.5 * q @ at(x).apply(q), r, 2e-3)
    at(r)
    field = mesh.field(mesh.potential(q))
    # 2e-3^4 f^(5) / 30 with waves of up to 2 alpha x = 3 / Angstrom; rounding of 1e1 eV by the step
    close(-q[:, None] * field, slope, atol=1e-10 * np.abs(slope).max())


def test_coarse_mesh_in_a_skewed_cell(window: Window, helpers: Any) -> None:
    """Its shortest waves are their own opposites: energy, symmetry and strain agree on them nevertheless."""
    cell, points, rng = CELLS["triclinic"], (8, 9, 8), np.random.default_rng(18)
    fractional, q = rng.random((6, 3)), rng.normal(size=6)

    def mesh(deform: np.ndarray) -> ParticleMesh:
        convolution = PeriodicConvolution(cell @ deform, 1.0, window, points, 1)
        out = ParticleMesh(window, points, convolution, 1)
        out.set(fractional, np.linalg.inv(cell @ deform))
        return out

    straight = mesh(np.eye(3))
    matrix = np.array([straight.apply(unit) for unit in np.eye(6)])
    close(matrix, matrix.T, atol=1e-13 * np.abs(matrix).max())  # rounding
    assert isinstance(straight.convolution, PeriodicConvolution)
    _, strain = straight.convolution.potential_and_strain(straight.spread(q), straight.layout)
    wanted = helpers.five_point(lambda deform: 0.5 * q @ mesh(deform).apply(q), np.eye(3), 1e-3)
    # 1e-12 f^(5) / 30 with (k r)^5 of 1e4 at most; rounding of 1e1 eV by the step
    close(strain, wanted.T, atol=1e-9 * np.abs(wanted).max())


def test_mesh_holds_the_charge(window: Window) -> None:
    """The weights of an atom have the same sum wherever it is, up to the aliases; all charge is inside."""
    _, at = mesh_in(CELLS["cubic"], window, 0.4)
    rng = np.random.default_rng(13)
    totals = [at(r[None]).spread(np.ones(1)).sum() for r in 8.0 * rng.random((50, 3))]
    assert np.ptp(totals) < 1e-5 * np.mean(totals)  # of k = 0 into the first waves of the mesh, as above


@pytest.mark.parametrize("points", [(20, 24, 18), (12, 60, 12), (40, 11, 40)])
def test_free_convolution_has_no_images(points: tuple[int, int, int], window: Window) -> None:
    """erf(alpha r) / r for charges all over the box, up to its corners."""
    alpha, reach = 0.4, 3.7 / 0.4
    spacing = window.coarseness / alpha
    room = spacing * (np.array(points) - window.support - 1)
    rng = np.random.default_rng(14)
    r, q = room * rng.random((30, 3)), rng.normal(size=30)
    r[:8] = room * np.array(list(product((0, 1), repeat=3)))
    convolution = FreeConvolution(points, spacing, alpha, reach, window, 1)
    mesh, cell = ParticleMesh(window, points, convolution, 1), np.diag(spacing * np.array(points))
    inverse: np.ndarray = np.linalg.inv(cell)
    mesh.set(r @ inverse, inverse)
    distance = np.linalg.norm(r[:, None] - r, axis=2) + np.eye(30)
    matrix = np.where(np.eye(30) > 0, 2 * alpha / sqrt(pi), erf(alpha * distance) / distance)
    potential = COULOMB_CONSTANT * matrix @ q
    close(mesh.apply(q), potential, atol=1e-5 * np.abs(potential).max())  # as for the sum over waves


def test_pairs_of_a_small_cell(helpers: Any) -> None:
    """Every image within the cutoff, an atom's own included."""
    cell, s, alpha, cutoff = np.array([[3.0, 0, 0], [1.0, 3.5, 0], [0.5, -1.0, 4.0]]), WIDTHS["mixed"], 0.25, 7.0
    system = random_system(cell, 3, seed=15)
    r, q, width = system.structure.positions, system.charges, system.widths(s)
    neighbours = NeighbourList()
    neighbours.update(system.structure, cutoff)
    pairs = RealSpace()
    pairs.set(neighbours, system.species, pair_table(s, alpha, cutoff, 1e-9), 1)
    g, matrix = 1 / np.sqrt(2 * (width[:, None] ** 2 + width**2)), np.zeros((3, 3))
    for shift in helpers.shifts(cell, cutoff + 10.0):
        distance = np.linalg.norm(r[:, None] - r + shift, axis=2)
        distance[distance < 1e-9] = np.inf
        term = (erf(g * distance) - erf(alpha * distance)) / distance
        matrix += np.where(distance < cutoff, COULOMB_CONSTANT * term, 0.0)
    close(pairs.apply(q), matrix @ q, atol=1e-9)  # the accuracy; tables are finer


@pytest.mark.parametrize("accuracy", [1e-3, 1e-6, 1e-9])
def test_pair_tables(accuracy: float) -> None:
    s, alpha, cutoff = WIDTHS["mixed"], 0.25, 12.0
    table, rng = pair_table(s, alpha, cutoff, accuracy), np.random.default_rng(16)
    r = np.concatenate([rng.uniform(0.2, cutoff, 300), [cutoff * (1 - 1e-15), 0.2]])
    for a, b in product(range(3), repeat=2):
        g = 1 / sqrt(2 * (s[a] ** 2 + s[b] ** 2))
        got = np.array([tabulated(table.values[a, b], x / table.spacing) for x in r])
        wanted = COULOMB_CONSTANT * (erf(g * r) - erf(alpha * r)) / r
        gauss = 2 / sqrt(pi) * (g * np.exp(-((g * r) ** 2)) - alpha * np.exp(-((alpha * r) ** 2)))
        slope = (COULOMB_CONSTANT * gauss - wanted) / r
        # the promise; values err by the slope's error over half a spacing; rounding of 1e1 eV
        close(got[:, 1] / table.spacing, slope, atol=SHARE * accuracy + 1e-12 / table.spacing)
        close(got[:, 0], wanted, atol=0.5 * table.spacing * SHARE * accuracy + 1e-13)


def test_slope_of_a_table_is_its_derivative(helpers: Any) -> None:
    table = pair_table(WIDTHS["mixed"], 0.25, 12.0, 1e-3)
    for u in np.arange(1, 11.0 / table.spacing) + 0.5:
        wanted = helpers.five_point(lambda x: tabulated(table.values[0, 2], float(x[0]))[0], np.array([u]), 0.2)
        # exact for cubics but for rounding: 1e1 eV * 1e-16 / 0.2
        assert tabulated(table.values[0, 2], u)[1] == pytest.approx(wanted[0], abs=1e-13)


# --- memory


def test_memory_of_the_charges() -> None:
    """4,000 atoms at the density of water: everything from the neighbour list to the solution, at its highest."""
    n, s = 4000, np.array([0.66, 0.5])
    electrostatics, solver = Electrostatics(s, np.array([8.5, 4.5]), 1e-5), ChargeSolver(1e-5)

    def solve(n: int, kept: list[Any]) -> None:
        rng = np.random.default_rng(17)
        edge, side = (n / 0.1) ** (1 / 3), round(n ** (1 / 3))
        grid = np.array(list(product(range(side + 1), repeat=3)))[:n] / (side + 1)  # no two atoms overlap
        positions, species = edge * grid + 0.2 * rng.normal(size=(n, 3)), np.arange(n) % 2
        structure = Structure(np.full(n, 8), positions, cell=edge * np.eye(3), pbc=True)
        neighbours = NeighbourList()
        neighbours.update(structure, max(electrostatics.cutoff(structure), RADIUS))
        order = neighbours.order
        structure = replace(structure, positions=structure.positions[order])
        operator = electrostatics.at(structure, species[order], neighbours)
        chi = np.array([8.5, 4.5])[species[order]]
        total, none = total_charge(n, 0.0), np.zeros(3)
        problem = Problem(structure, operator, neighbours, chi, total, none, structure.positions)
        kept += [neighbours, operator, solver.solve(problem)]

    solve(600, [])  # compiles
    kept: list[Any] = []
    tracemalloc.start()
    try:
        solve(n, kept)
        held, highest = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 6000 * n  # bytes: the promise; 5,440 measured
    assert highest < 10000 * n  # 1 GB for 100,000 atoms
