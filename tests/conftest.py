"""Shared systems and models; every random number comes from a seed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import product
from math import factorial
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: idle ones spin, and other tests share the cores

import numpy as np
import pytest
from scipy.integrate import quad_vec
from scipy.linalg import sqrtm
from scipy.special import lpmv, spherical_in

from kqeq_md.charges.equilibrate import ChargeSolver, Equilibrium
from kqeq_md.descriptor.power_spectrum import Descriptor
from kqeq_md.descriptor.radial import SoapParameters
from kqeq_md.machine.programs import environment
from kqeq_md.model import Model, SoapTerm, save_model
from kqeq_md.neighbours.half_list import find_pairs
from kqeq_md.potential import Potential
from kqeq_md.structure import Structure

EXAMPLES = Path(__file__).parents[1] / "examples"


def random_model(seed: int = 0, zeta: int = 2) -> Model:
    """A small Na/Cl model with random weights: physics must hold for any weights."""
    rng = np.random.default_rng(seed)
    soap = SoapParameters(cutoff=4.5, cutoff_width=1.0, n_max=3, l_max=2, sigma=0.5, radial_scale=3.0)
    points = np.abs(rng.normal(size=(2, 8, Descriptor.size_for(soap, 2))))
    points = (points / np.linalg.norm(points, axis=2, keepdims=True)).astype(np.float32).astype(np.float64)
    return Model(
        species=("Na", "Cl"),
        terms=(SoapTerm(soap, zeta, tuple(points), tuple(rng.normal(size=(2, 8, 2)))),),
        hardness=np.array([6.0, 8.0]),
        gaussian_width=np.array([1.1, 0.8]),
        electronegativity_offset=np.array([3.0, 8.0]),
        atom_energy=np.array([-1.0, -2.0]),
        repulsion_radius=np.array([1.2, 0.9]),
    )


def rock_salt(
    cells: int = 1, rattle: float = 0.15, seed: int = 1, strain: np.ndarray | None = None, **kwargs: object
) -> Structure:
    """Rattled NaCl, 8 atoms per cubic cell of 5.7 Angstrom, optionally strained to a triclinic box."""
    rng = np.random.default_rng(seed)
    base = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    sites = np.concatenate([base, base + np.array([0.5, 0, 0])])
    grid = np.stack(np.meshgrid(*[np.arange(cells)] * 3, indexing="ij"), axis=-1).reshape(-1, 1, 3)
    positions = 5.7 * (grid + sites).reshape(-1, 3)
    numbers = np.tile([11] * 4 + [17] * 4, cells**3)
    deform = np.eye(3) if strain is None else np.eye(3) + strain
    positions = positions @ deform + rattle * rng.normal(size=positions.shape)
    return Structure(numbers, positions, cell=5.7 * cells * deform, pbc=True, **kwargs)  # type: ignore[arg-type]


def cluster(n_pairs: int = 4, seed: int = 2, **kwargs: object) -> Structure:
    """An open rattled NaCl fragment of 2 n_pairs atoms."""
    solid = rock_salt(1 if n_pairs <= 4 else 2, rattle=0.2, seed=seed)
    na, cl = (np.flatnonzero(solid.numbers == z)[:n_pairs] for z in (11, 17))
    rows = np.concatenate([na, cl])
    return Structure(solid.numbers[rows], solid.positions[rows] - 3.0, **kwargs)  # type: ignore[arg-type]


def crowd(n: int, edge: float, seed: int = 6, apart: float = 1.4) -> np.ndarray:
    """Positions of `n` atoms at random in a cube, no two closer than `apart`, Angstrom, shape (n, 3)."""
    rng, placed = np.random.default_rng(seed), np.empty((0, 3))
    while len(placed) < n:
        place = edge * rng.random(3)
        if (np.linalg.norm(placed - place, axis=1) > apart).all():
            placed = np.vstack([placed, place])
    return placed


@cache
def strong_model(zeta: int = 2) -> Model:
    """`random_model` with every term made large: sparse points of real surroundings, weights of some eV, repulsion.

    With random sparse points the kernels barely vary over the atoms of a structure, and an error in their
    gradients would hide behind the Coulomb forces.
    """
    weak, rng = random_model(zeta=zeta), np.random.default_rng(11)
    soap = weak.terms[0].soap
    points: list[list[np.ndarray]] = [[], []]
    for structure in (rock_salt(rattle=0.5, seed=21), rock_salt(rattle=0.8, seed=22), cluster(seed=23)):
        species = (structure.numbers == 17).astype(np.int64)
        unit = spectra(soap, structure, species)
        for element in (0, 1):
            points[element].append(unit[species == element])
    rounded = tuple(np.concatenate(p).astype(np.float32).astype(np.float64) for p in points)
    term = SoapTerm(soap, zeta, rounded, tuple(2.0 * rng.normal(size=(len(p), 2)) for p in rounded))
    return replace(weak, terms=(term,), repulsion_radius=np.array([1.7, 1.5]))


def spectra(soap: SoapParameters, structure: Structure, species: np.ndarray, n_species: int = 2) -> np.ndarray:
    """Normalised power spectra of all atoms, shape (n, size)."""
    descriptor = Descriptor(soap, n_species)
    density = descriptor.density(np.arange(len(structure)), find_pairs(structure, soap.cutoff), species)
    return descriptor.spectrum(density)[0].T


CHARGES_OF_COLUMNS = {1: "none", 2: "qeq", 3: "split"}


def soap_term(n_species: int, zeta: float, columns: int, n_points: int = 12, **soap: Any) -> SoapTerm:
    """A kernel with weights of order 1 on sparse points of real surroundings, `n_points` for each element."""
    usual: dict[str, Any] = {"cutoff": 3.5, "cutoff_width": 1.0, "n_max": 3, "l_max": 2, "sigma": 0.5}
    parameters, rng = SoapParameters(**{**usual, **soap}), np.random.default_rng(5)
    structure, species = mixture(n_points * n_species, n_species, edge=9.0, seed=40)
    unit = spectra(parameters, structure, species, n_species)
    points = tuple(unit[species == element] for element in range(n_species))
    return SoapTerm(parameters, zeta, points, tuple(rng.normal(size=(len(p), columns)) for p in points))


def mixture(n: int, n_species: int, edge: float = 6.0, seed: int = 6) -> tuple[Structure, np.ndarray]:
    """An open `crowd` of the elements of `local_model` in turn, and their indices."""
    species = np.arange(n) % n_species
    return Structure(np.array([1, 8, 11, 17])[species], crowd(n, edge, seed)), species


def local_model(n_species: int, *terms: SoapTerm, **parameters: Any) -> Model:
    """Elements H, O, Na, Cl; without charges if the weights have one column or there are pair terms alone."""
    columns, rng = (terms[0].weights[0].shape[1] if terms else 1), np.random.default_rng(7)
    return Model(
        ("H", "O", "Na", "Cl")[:n_species], terms, charges=CHARGES_OF_COLUMNS[columns],
        hardness=np.full(n_species, 8.0), gaussian_width=np.full(n_species, 0.7),
        electronegativity_offset=rng.normal(size=n_species), atom_energy=rng.normal(size=n_species),
        reference_charge=rng.normal(size=n_species), **parameters,
    )  # fmt: skip


TRICLINIC = np.array([[0.0, 0.12, 0.05], [0.0, 0.02, -0.1], [0.0, 0.0, 0.06]])
IN_PLANE = np.array([[0.0, 0.12, 0.0], [0.0, 0.02, 0.0], [0.0, 0.0, 0.0]])

WATER = (8, 1, 1), 0.96 * np.array([[0.0, 0.0, 0.0], [0.79, 0.61, 0.0], [-0.79, 0.61, 0.0]])
SALT = (11, 17), np.array([[0.0, 0.0, 0.0], [2.5, 0.0, 0.0]])


def molecules(
    kind: tuple[Sequence[int], np.ndarray],
    spacing: float,
    repeats: int | Sequence[int],
    seed: int = 4,
    strain: np.ndarray | None = None,
    pbc: bool | Sequence[bool] = True,
    **kwargs: object,
) -> Structure:
    """Rattled molecules, turned at random, on a grid; atoms of each in sequence.

    Args:
        kind: atomic numbers and positions of a molecule, Angstrom.
        spacing: of the grid, Angstrom.
        repeats: molecules along each edge of the cell, one number or three.
    """
    rng = np.random.default_rng(seed)
    numbers, sites = kind
    grid = np.array(list(np.ndindex(*np.broadcast_to(repeats, 3))))
    placed = [spacing * place + sites @ random_rotation(int(rng.integers(2**31))) for place in grid]
    positions = np.concatenate(placed)
    positions += 0.05 * rng.normal(size=positions.shape)
    deform = np.eye(3) if strain is None else np.eye(3) + strain
    cell = spacing * np.diag(np.broadcast_to(repeats, 3)) @ deform
    if isinstance(pbc, Sequence):
        cell = cell * np.array(pbc)[:, None]  # the normal for the open axis of a slab
    return Structure([*numbers] * len(grid), positions @ deform, cell=cell, pbc=pbc, **kwargs)  # type: ignore[arg-type]


def water_box(repeats: int | Sequence[int] = 1, **kwargs: Any) -> Structure:
    """Water at about twice the volume of the liquid."""
    return molecules(WATER, 3.7, repeats, **kwargs)


def salt_box(repeats: int | Sequence[int] = 1, **kwargs: Any) -> Structure:
    """Dense vapour of NaCl; no molecule is bonded to its images."""
    return molecules(SALT, 6.2, repeats, **kwargs)


@cache
def water_model() -> Model:
    """An H/O model like `strong_model`: sparse points of real surroundings, weights of some eV."""
    soap = SoapParameters(cutoff=3.6, cutoff_width=1.0, n_max=3, l_max=2, sigma=0.4, radial_scale=2.5)
    rng = np.random.default_rng(12)
    box = water_box(2, seed=9)
    species = (box.numbers == 8).astype(np.int64)
    unit = spectra(soap, box, species)
    points = tuple(unit[species == element].astype(np.float32).astype(np.float64) for element in (0, 1))
    return Model(
        species=("H", "O"),
        terms=(SoapTerm(soap, 2, points, tuple(rng.normal(size=(len(p), 2)) for p in points)),),
        hardness=np.array([7.0, 9.0]), gaussian_width=np.array([0.5, 0.66]),
        electronegativity_offset=np.array([4.5, 8.5]), atom_energy=np.array([-1.0, -2.0]),
        repulsion_radius=np.array([0.4, 0.6]),
    )  # fmt: skip


def split_model(model: Model, reference: Sequence[float] = (0.0, 0.0), learned: float = 0.0) -> Model:
    """The model with bonds for split charges.

    Args:
        reference: q0 of its two elements, e.
        learned: size of the weights of learned reference charges, e; 0 for none.
    """
    rng = np.random.default_rng(13)
    weights = model.terms[0].weights
    if learned:
        weights = tuple(np.concatenate([w, learned * rng.normal(size=(len(w), 1))], axis=1) for w in weights)
    return replace(
        model.with_weights(weights), reference_charge=np.array(reference), charges="split", compliance_cutoff=4.2,
        compliance=np.array([[0.02, 0.08], [0.08, 0.03]]),
    )  # fmt: skip


def element_model(symbols: tuple[str, ...] = ("H", "O"), **parameters: object) -> Model:
    """Two elements with fixed electronegativities and no short range, so that the whole energy is E(q)."""
    n, soap = len(symbols), SoapParameters(cutoff=2.0, cutoff_width=0.5, n_max=1, l_max=0, sigma=0.5)
    size = Descriptor.size_for(soap, n)
    usual: dict[str, Any] = {
        "hardness": np.linspace(7.0, 9.0, n), "gaussian_width": np.linspace(0.5, 0.66, n),
        "electronegativity_offset": np.linspace(4.5, 8.5, n), "compliance_cutoff": 4.2,
        "compliance": np.array([[0.02, 0.08], [0.08, 0.03]]), "charges": "split",
        "atom_energy": np.zeros(n), "repulsion_radius": np.zeros(n),
    }  # fmt: skip
    points, weights = tuple(np.full((1, size), size**-0.5) for _ in symbols), tuple(np.zeros((1, 2)) for _ in symbols)
    return Model(symbols, (SoapTerm(soap, 2, points, weights),), **{**usual, **parameters})


def strained(structure: Structure, deform: np.ndarray) -> Structure:
    """Positions and cell multiplied by the matrix `deform` from the right; charge and field stay."""
    return moved(structure, structure.positions @ deform, structure.cell @ deform)


def moved(structure: Structure, positions: np.ndarray, cell: np.ndarray | None = None) -> Structure:
    """The same atoms, charge and field at other positions (and in another cell)."""
    return Structure(
        structure.numbers,
        positions,
        cell=structure.cell if cell is None else cell,
        pbc=structure.pbc,
        charge=structure.charge,
        field=structure.field,
    )


def five_point(function: Callable[[np.ndarray], float], x: np.ndarray, step: float) -> np.ndarray:
    """Gradient of a scalar function by five-point differences; error step^4 f^(5) / 30 + about 1e-16 |f| / step."""
    x = np.array(x, dtype=float)
    out = np.empty(x.shape)
    for index in np.ndindex(x.shape):
        line = []
        for k in (-2, -1, 1, 2):
            y = x.copy()
            y[index] += k * step
            line.append(function(y))
        out[index] = (line[0] - 8 * line[1] + 8 * line[2] - line[3]) / (12 * step)
    return out


def real_harmonics(l_max: int, r: np.ndarray) -> np.ndarray:
    """r^l times orthonormal real spherical harmonics of a vector by Legendre functions; index l^2 + l + m.

    Many vectors at a time stand side by side, r with shape (3, n).
    """
    x, y, z = r
    distance, phi = np.linalg.norm(r, axis=0), np.arctan2(y, x)
    out = []
    for degree, m in ((d, m) for d in range(l_max + 1) for m in range(-d, d + 1)):
        norm = np.sqrt((2 * degree + 1) / (4 * np.pi) * factorial(degree - abs(m)) / factorial(degree + abs(m)))
        angle = np.sqrt(2) * (np.cos(m * phi) if m > 0 else np.sin(-m * phi)) if m else np.ones_like(phi)
        out.append(distance**degree * norm * lpmv(abs(m), degree, z / distance) * angle)
    return np.array(out)


def radial_reference(parameters: SoapParameters, r: float) -> np.ndarray:
    """R_nl(r) / r^l by adaptive quadrature over the range of the basis; shape (l_max + 1, n_max)."""
    p, q_max = parameters, parameters.cutoff + 5.0 * parameters.sigma
    n, degree = np.arange(p.n_max), np.arange(p.l_max + 1)[:, None]
    width = p.cutoff * np.maximum(np.sqrt(n), 1.0) / p.n_max
    bound = max(r, 1e-5 * p.sigma)  # the limit r -> 0: the next order is 1e-10

    def primitive(q: float) -> np.ndarray:
        return q**n * np.exp(-0.5 * (q / width) ** 2)

    def integrand(q: float) -> np.ndarray:
        smeared = np.exp(-(q**2 + bound**2) / (2 * p.sigma**2)) * spherical_in(degree, q * bound / p.sigma**2)
        return 4 * np.pi * q**2 * primitive(q) * smeared / bound**degree

    norm = np.sqrt(quad_vec(lambda q: q**2 * primitive(q) ** 2, 0, q_max, epsrel=1e-13)[0])
    overlap = quad_vec(lambda q: q**2 * np.outer(primitive(q) / norm, primitive(q) / norm), 0, q_max, epsrel=1e-13)[0]
    projected = quad_vec(integrand, 0, q_max, epsrel=1e-13, epsabs=1e-14, points=[bound])[0] / norm
    return projected @ sqrtm(np.linalg.inv(overlap)).real


def random_rotation(seed: int) -> np.ndarray:
    """A random proper rotation matrix."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def shifts(cell: np.ndarray, reach: float) -> Iterator[np.ndarray]:
    """All lattice vectors up to the integer bounds that cover the distance `reach` (and one more each way)."""
    heights = 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    bounds = (np.ceil(reach / heights) + 1).astype(int)
    for integers in product(*(range(-b, b + 1) for b in bounds)):
        yield np.array(integers) @ cell


@dataclass(frozen=True)
class Subject:
    """A charge model at work on four molecules.

    Attributes:
        kind: "qeq", "fragments", "split" (q0 = 0), "split, fixed q0", "split, learned q0" or the last with fragments.
        material: "salt" (diatomic NaCl) or "water".
        boundary: "open", "slab", "orthorhombic" or "triclinic".
        field: "none", "tilted" (along no axis) or "normal" (of the slab).
        charge: Q, e; on the second molecule, where there are fragments.
    """

    kind: str
    material: str
    boundary: str
    field: str
    charge: float

    @property
    def structure(self) -> Structure:
        strain = {"triclinic": TRICLINIC, "slab": IN_PLANE}.get(self.boundary)
        pbc: Any = {"open": False, "slab": (True, True, False)}.get(self.boundary, True)
        field = {"none": (0, 0, 0), "normal": (0, 0, 0.08), "tilted": (0.03, -0.05, 0.08)}[self.field]
        box = water_box if self.material == "water" else salt_box
        repeats = (2, 1, 2) if self.boundary != "slab" else (2, 2, 1)
        return box(repeats, strain=strain, pbc=pbc, charge=self.charge, field=field)

    @cached_property
    def model(self) -> Model:
        """Molecules are neutral by their q0, where it is fixed."""
        plain = water_model() if self.material == "water" else strong_model()
        if not self.kind.startswith("split"):
            return plain
        reference = (0.4, -0.8) if self.material == "water" else (0.7, -0.7)
        return split_model(plain, (0.0, 0.0) if self.kind == "split" else reference, 0.1 * ("learned" in self.kind))

    @property
    def held(self) -> dict[str, Any]:
        """Arguments of the potential."""
        charges = {"charges": self.kind.split(",")[0]}
        if "fragments" not in self.kind:
            return charges
        numbers = np.repeat(np.arange(4), 3 if self.material == "water" else 2)
        return {**charges, "fragments": numbers, "fragment_charges": self.charge * (np.arange(4) == 1)}

    @property
    def reference_charge(self) -> np.ndarray:
        """q0 of each atom where it is fixed, the total charge spread evenly; e, shape (n,)."""
        species = (self.structure.numbers == self.structure.numbers.max()).astype(int)  # O, Cl stand second
        q0 = self.model.reference_charge[species]
        return q0 + (self.charge - q0.sum()) / len(q0)

    def potential(self, accuracy: float = 1e-9, tolerance: float = 1e-12) -> Potential:
        return Potential(self.model, accuracy, tolerance, **self.held)


def drift(times: np.ndarray, energies: np.ndarray, blocks: int = 10) -> tuple[float, float]:
    """Slope of energies against time and its standard error, from means of blocks, which hardly know of each other."""
    t, e = (np.array([part.mean() for part in np.array_split(values, blocks)]) for values in (times, energies))
    t, e = t - t.mean(), e - e.mean()
    slope = (t @ e) / (t @ t)
    rest = e - slope * t
    return float(slope), float(np.sqrt(rest @ rest / (blocks - 2) / (t @ t)))


class Helpers:
    """What test files share; they cannot import each other."""

    spectra = staticmethod(spectra)
    crowd = staticmethod(crowd)
    mixture = staticmethod(mixture)
    soap_term = staticmethod(soap_term)
    local_model = staticmethod(local_model)
    random_model = staticmethod(random_model)
    strong_model = staticmethod(strong_model)
    split_model = staticmethod(split_model)
    element_model = staticmethod(element_model)
    water_model = staticmethod(water_model)
    water_box = staticmethod(water_box)
    salt_box = staticmethod(salt_box)
    rock_salt = staticmethod(rock_salt)
    cluster = staticmethod(cluster)
    strained = staticmethod(strained)
    moved = staticmethod(moved)
    five_point = staticmethod(five_point)
    real_harmonics = staticmethod(real_harmonics)
    radial_reference = staticmethod(radial_reference)
    random_rotation = staticmethod(random_rotation)
    shifts = staticmethod(shifts)
    drift = staticmethod(drift)


@pytest.fixture(scope="session")
def helpers() -> type[Helpers]:
    return Helpers


@pytest.fixture(scope="session")
def model() -> Model:
    return random_model()


@pytest.fixture(scope="session")
def strong() -> Model:
    return strong_model()


@pytest.fixture
def subject(request: pytest.FixtureRequest) -> Subject:
    """Of a tuple that the test is parametrized with."""
    return Subject(*request.param)


@pytest.fixture(scope="session")
def water() -> Model:
    return water_model()


@pytest.fixture(scope="session")
def nacl_model(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Path:
    """Path of a small Na/Cl model file."""
    path = tmp_path_factory.mktemp("model") / "nacl.kqeq"
    save_model(model, path)
    return path


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """Folder of reference data made elsewhere, which never enters the repository."""
    folder = os.environ.get("KQEQ_TEST_DATA")
    if not folder:
        pytest.skip("KQEQ_TEST_DATA is not set: it names the folder with reference data made elsewhere")
    return Path(folder)


@pytest.fixture
def iterations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What each solution takes, in the order of the calls."""
    counts: list[int] = []
    solve = ChargeSolver.solve

    def counted(*args: Any) -> Equilibrium:
        out = solve(*args)
        counts.append(out.iterations)
        return out

    monkeypatch.setattr(ChargeSolver, "solve", counted)
    return counts


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts processes in `tmp_path`, or in a folder below it; whatever still runs at the end of the test is killed."""
    running: list[subprocess.Popen[str]] = []

    def run(*command: str, folder: str = ".", stdin: int | None = None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            list(command),
            cwd=tmp_path / folder,
            env=environment(),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def run_example(tmp_path: Path) -> Callable[..., str]:
    """Runs the one command of an example, with these environment variables, in a copy of its folder in `tmp_path`.

    Returns what it prints. The copy is without the picture, which has to be drawn again, and small enough for a page.
    """

    def run(name: str, **variables: object) -> str:
        folder = tmp_path / name
        shutil.copytree(EXAMPLES / name, folder, ignore=shutil.ignore_patterns("*.png"))
        settings = {key: str(value) for key, value in variables.items()}
        command = ["bash", "-eu", "run.sh"]
        done = subprocess.run(
            command, cwd=folder, env=environment() | settings, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert 10_000 < (folder / f"{name}.png").stat().st_size < 80_000
        return done.stdout

    return run
