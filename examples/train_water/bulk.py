"""Liquid water for the reference data: dynamics by a model that is trained on what is there so far.

Clusters alone do not show a model the inside of a liquid. A model trained on them runs a periodic box; spheres of
whole molecules out of it, those where it went wrong included, become the next frames, with open boundaries: labels of
periodic cells are not used (README.md says why).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from ase import Atoms
from sampling import (
    CHARGE,
    STIFFNESS,
    WATER,
    langevin,
    lattice_box,
    nearest_molecules,
    numbers_of,
    random_cluster,
    sphere_radius,
)

from kqeq_md.ase import KQEq
from kqeq_md.cli import main as kqeq
from kqeq_md.examples.reference_data import (
    NO_FIELD,
    Floats,
    Forces,
    Frame,
    Ints,
    label,
    model_forces,
    with_wall,
    write,
)

N_EDGE = 4
"""Molecules along an edge of the cell: 64 in all."""

WRONG = 12.0
"""eV/Angstrom: no liquid has such forces (largest in clusters at 600 K: 8). Dynamics that meets them ends there."""

CONFIGURATION = """
[data]
train = [{files}]
[descriptor]
cutoff = 5.0
sigma = 0.4
radial_scale = 2.0
[kernel]
sparse_points = 200
[charges]
model = "split"
[fit]
sigma_charges = 0.003
"""


@dataclass(frozen=True)
class Liquid:
    """One trajectory of a periodic box and the spheres taken from it.

    Attributes:
        kelvin: temperature, K.
        density: g/cm^3.
        n_frames: how many moments, 0.3 ps apart.
        sizes: molecules in a sphere, the smallest and the largest.
        test: the frames go to the test set.
    """

    kelvin: float
    density: float
    n_frames: int
    sizes: tuple[int, int]
    test: bool = False


@dataclass(frozen=True)
class Droplet:
    """A cluster with its own open trajectory by the model, 0.6 ps, in a sphere of the given density."""

    kind: str
    n_water: int
    kelvin: float
    density: float
    field: float
    test: bool = False


def trained(frames: list[Frame], folder: Path, name: str) -> Path:
    """A model (.kqeq) trained on `frames`; its files are left in `folder`."""
    write(folder / f"{name}.xyz", frames)
    (folder / f"{name}.toml").write_text(CONFIGURATION.format(files=f'"{name}.xyz"'))
    path = folder / f"{name}.kqeq"
    if kqeq(["train", str(folder / f"{name}.toml"), "-o", str(path)]) != 0:
        raise SystemExit(f"training on {folder / name}.xyz failed")
    return path


def moments(
    forces: Forces, numbers: Ints, x: Floats, kelvin: float, n_frames: int, rng: np.random.Generator
) -> Iterator[tuple[Floats, Floats]]:
    """Positions and forces, 200 steps apart after 100 steps at 100 K and 100 more; the last where it goes wrong."""
    *_, (calm, _) = islice(langevin(forces, numbers, x, 100.0, rng, 0.5), 100)
    for step, (now, f) in enumerate(islice(langevin(forces, numbers, calm, kelvin, rng), 100 + 200 * n_frames), 1):
        wrong = np.abs(f).max() > WRONG
        if wrong or (step > 100 and (step - 100) % 200 == 0):
            yield now, f
        if wrong:
            return


def liquid_frames(job: Liquid, index: int, model: Path, seed: int) -> list[Frame | str]:
    """Labelled spheres of a liquid, one for each moment; about the largest force where dynamics goes wrong."""
    rng = np.random.default_rng([seed, index])
    x, edge = lattice_box(N_EDGE, job.density, rng)
    numbers = numbers_of(WATER, len(x) // 3)
    atoms = Atoms(numbers=numbers, positions=x, cell=[edge] * 3, pbc=True)
    forces = model_forces(atoms, KQEq(model, threads=1))
    out: list[Frame | str] = []
    for k, (now, f) in enumerate(moments(forces, numbers, x, job.kelvin, job.n_frames, rng)):
        wrong = np.abs(f).max() > WRONG
        centre = now[np.argmax(np.abs(f).max(axis=1))] if wrong else rng.uniform(0.0, edge, size=3)
        n = int(rng.integers(job.sizes[0], job.sizes[1] + 1))
        sphere = nearest_molecules(now, edge, centre, n)
        name = f"{'hole' if wrong else 'liquid'}_{index}_{k}_{n}"
        out.append(label(name, job.test, numbers_of(WATER, n), sphere, 0, NO_FIELD))
    return out


def droplet_frames(job: Droplet, index: int, model: Path, seed: int) -> list[Frame | str]:
    """The labelled end of an open trajectory; an ion's charge, and a field in a random direction."""
    rng = np.random.default_rng([seed, index])
    numbers = numbers_of(job.kind, job.n_water)
    radius = sphere_radius(len(numbers) // 3, job.density)
    x = random_cluster(job.kind, job.n_water, radius, rng)
    direction = rng.normal(size=3)
    field = np.round(job.field * direction / np.linalg.norm(direction), 6)
    calculator = KQEq(model, charge=CHARGE[job.kind], field=field, threads=1)
    forces = with_wall(model_forces(Atoms(numbers=numbers, positions=x), calculator), radius, STIFFNESS)
    *_, (now, _) = moments(forces, numbers, x, job.kelvin, 1, rng)
    name = f"droplet_{index}_{job.kind}_{job.n_water}"
    return [label(name, job.test, numbers, now, CHARGE[job.kind], field)]
