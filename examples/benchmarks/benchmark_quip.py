"""What `benchmark_gap.py` compares with: GAP models that QUIP's `gap_fit` makes on the spot, and QUIP itself.

The models are fitted to water and rock salt under a smooth pair potential: nobody's data, and as good as any for a
comparison of two programs that compute the same thing. Needs `pip install kqeq_md[bench]`, which brings QUIP
(quippy-ase).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.io import write
from scipy.spatial.transform import Rotation

from kqeq_md.ase import structure_from_atoms
from kqeq_md.errors import KqeqError
from kqeq_md.machine.programs import environment
from kqeq_md.neighbours.half_list import find_pairs
from kqeq_md.structure import Floats
from kqeq_md.switch import cosine_switch

SEED = 20240607
MOLECULE_VOLUME = 29.915  # Angstrom^3: water at 1.00 g/cm^3
WATER_MOLECULE = np.array([[0.0, 0.0, 0.0], [0.7569, 0.5859, 0.0], [-0.7569, 0.5859, 0.0]])  # O, H, H; Angstrom
NACL_LATTICE = 5.64  # Angstrom
DISORDER = 0.1
"""Standard deviation of molecules and ions about their sites, Angstrom."""

CUTOFF = 5.0
SPARSE_POINTS = 500
"""Of each of the two elements."""
FRAMES = 20
"""To fit, besides a small one with forces, which take `gap_fit` a hundred times longer than energies."""
SMALL = 2
"""Edge of the small one."""

INSTALL = "QUIP is not installed: pip install 'kqeq_md[bench]' (or quippy-ase alone)"


def water(edge: int, rng: np.random.Generator) -> Atoms:
    """edge^3 molecules of random orientation about the sites of a simple cubic lattice, at 1 g/cm^3."""
    spacing = MOLECULE_VOLUME ** (1.0 / 3.0)
    sites = spacing * np.array(list(np.ndindex(edge, edge, edge))) + rng.normal(scale=DISORDER, size=(edge**3, 3))
    turned = [Rotation.from_quat(rng.normal(size=4)).apply(WATER_MOLECULE) for _ in sites]
    positions = np.concatenate([site + molecule for site, molecule in zip(sites, turned, strict=True)])
    return Atoms("OHH" * len(sites), positions, cell=[edge * spacing] * 3, pbc=True)


def rock_salt(edge: int, rng: np.random.Generator) -> Atoms:
    """edge^3 cubic cells of NaCl, out of order."""
    atoms = bulk("NaCl", "rocksalt", a=NACL_LATTICE, cubic=True) * (edge, edge, edge)
    atoms.positions += rng.normal(scale=DISORDER, size=atoms.positions.shape)
    return atoms


@dataclass(frozen=True)
class System:
    """One of the two systems.

    Attributes:
        make: edge^3 units, from the edge and a generator.
        training_edge, edge: of the frames to fit, and of the structure that is timed.
    """

    make: Callable[[int, np.random.Generator], Atoms]
    training_edge: int
    edge: int

    @property
    def atoms(self) -> Atoms:
        """The structure that is timed."""
        return self.make(self.edge, np.random.default_rng(SEED))

    def frames(self) -> list[Atoms]:
        """What is fitted."""
        rng = np.random.default_rng(SEED + 1)
        small = labelled(self.make(SMALL, rng), with_forces=True)
        return [small] + [labelled(self.make(self.training_edge, rng), with_forces=False) for _ in range(FRAMES)]


SYSTEMS = {"water": System(water, 3, 4), "nacl": System(rock_salt, 2, 4)}


def labelled(atoms: Atoms, with_forces: bool) -> Atoms:
    """Energy (eV) and forces of pairs under u(r) = 40 eV sqrt(Z_i Z_j) exp(-2 r / Angstrom) s(r), s(5 Angstrom) = 0."""
    pairs = find_pairs(structure_from_atoms(atoms), CUTOFF)
    r = np.linalg.norm(pairs.vectors, axis=1)
    s, ds = cosine_switch(r, 0.0, CUTOFF)
    decay = 40.0 * np.sqrt(atoms.numbers[pairs.centre] * atoms.numbers[pairs.neighbour]) * np.exp(-2.0 * r)
    atoms.info["label_energy"] = 0.5 * float((decay * s).sum())
    if with_forces:
        slope = 0.5 * decay * (ds - 2.0 * s)
        atoms.arrays["label_force"] = -pairs.scatter(pairs.vectors * (slope / r)[:, None], len(atoms))
    return atoms


def gap_fit() -> str:
    """The program: beside this Python, or in PATH.

    Raises:
        KqeqError: it is not installed.
    """
    beside = Path(sysconfig.get_path("scripts")) / "gap_fit"
    found = str(beside) if beside.is_file() else shutil.which("gap_fit")
    if found is None:
        raise KqeqError(INSTALL)
    return found


def fit_gap(frames: list[Atoms], l_max: int, basis: str, path: Path) -> None:
    """Fit a GAP with one SOAP of 8 radial functions per element to labelled frames, and write its XML file.

    Raises:
        KqeqError: `gap_fit` is not installed, fails, or takes fewer sparse points than it was told to.
    """
    data = path.with_suffix(".xyz")
    for k, frame in enumerate(frames):  # one by one: not all have the same columns
        write(data, frame, format="extxyz", append=k > 0)
    soap = (
        f"soap n_max=8 l_max={l_max} cutoff={CUTOFF} cutoff_transition_width=1.0 atom_sigma=0.5 radial_basis={basis} "
        f"covariance_type=dot_product zeta=2 delta=0.2 n_sparse={SPARSE_POINTS} sparse_method=random add_species=T"
    )
    command = [
        gap_fit(), f"at_file={data}", f"gap={{{soap}}}", "e0_method=average", "default_sigma={0.001 0.02 0.0 0.0}",
        "energy_parameter_name=label_energy", "force_parameter_name=label_force", f"rnd_seed={SEED}",
        f"gp_file={path}",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=path.parent, env=environment(), capture_output=True, text=True)
    if done.returncode != 0 or not path.is_file():
        raise KqeqError(f"gap_fit failed: {(done.stderr or done.stdout)[-500:]}")
    taken = re.findall(r'n_sparseX="(\d+)"', path.read_text())
    if taken != [str(SPARSE_POINTS)] * 2:
        raise KqeqError(f"gap_fit must take {SPARSE_POINTS} sparse points of each element, got {' and '.join(taken)}")


@dataclass(frozen=True)
class Answer:
    """Energy (eV), forces (eV/Angstrom, shape (n, 3)) and virial (eV, shape (3, 3)), None without a periodic cell."""

    energy: float
    forces: Floats
    virial: Floats | None


class Quip:
    """QUIP on one structure whose atoms move, as an ASE user has it.

    Args:
        xml: a GAP.
        atoms: the structure.

    Raises:
        KqeqError: QUIP is not installed.
    """

    def __init__(self, xml: Path, atoms: Atoms) -> None:
        try:
            potential: Any = import_module("quippy.potential").Potential
        except ImportError:
            raise KqeqError(INSTALL) from None
        self._atoms = atoms.copy()
        self._potential = potential("", param_filename=str(xml))
        self._wanted = ["energy", "forces"] + (["stress"] if atoms.pbc.all() else [])

    def __call__(self, positions: Floats) -> Answer:
        """Everything at these positions, Angstrom, shape (n, 3)."""
        self._atoms.positions = positions
        self._potential.calculate(self._atoms, properties=self._wanted)
        found, virial = self._potential.results, None
        if "stress" in self._wanted:
            virial = -self._atoms.get_volume() * found["stress"][[[0, 5, 4], [5, 1, 3], [4, 3, 2]]]
        return Answer(float(found["energy"]), np.array(found["forces"]), virial)
