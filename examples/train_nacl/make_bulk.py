"""Reference data of the NaCl example, second part: what the inside of a melt looks like.

    python make_bulk.py      writes bulk_train.xyz and bulk_test.xyz beside this file; needs train.xyz of make_data.py

A model trained on the clusters runs periodic melts; neutral spheres out of them, those where dynamics went wrong
included, are labelled as open clusters. Labels of periodic cells are not used: see README.md.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # tblite: one thread per worker, and the same sums at every run
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import sampling
from ase import Atoms
from make_data import SEED, report, temperature

from kqeq_md.ase import KQEq
from kqeq_md.cli import main as kqeq
from kqeq_md.examples.reference_data import Floats, Forces, Frame, Ints, label, model_forces, with_wall, write

HERE = Path(__file__).resolve().parent
EDGE = 4  # ions along an edge of the cell: 64 in all
WRONG = 12.0  # eV/Angstrom: no melt below 2,000 K has such forces; dynamics that meets them ends there
STEPS = 200  # between two frames, 2 fs each
HEALING = 150  # steps of a sphere on its own

CONFIGURATION = """
[data]
train = ["{file}"]
[descriptor]
cutoff = 6.0
sigma = 0.5
radial_scale = 3.0
[kernel]
sparse_points = 150
[charges]
hardness = 10.0
"""


@dataclass(frozen=True)
class Melt:
    """One trajectory of a periodic melt and the spheres taken from it.

    Attributes:
        kelvin: temperature, K; the crystal melts at 1,500 K more.
        density: g/cm^3.
        n_frames: how many moments, 0.4 ps apart.
        pairs: NaCl units in a sphere.
        test: the frames go to the test set.
    """

    kelvin: float
    density: float
    n_frames: int
    pairs: int
    test: bool = False


def trained(file: Path, folder: Path) -> Path:
    """A model (.kqeq) in `folder`, trained on `file`, which is copied there."""
    shutil.copy(file, folder)
    (folder / "nacl.toml").write_text(CONFIGURATION.format(file=file.name))
    path = folder / "nacl.kqeq"
    if kqeq(["train", str(folder / "nacl.toml"), "-o", str(path)]) != 0:
        raise SystemExit(f"training on {file} failed")
    return path


def moments(
    forces: Forces, numbers: Ints, x: Floats, job: Melt, rng: np.random.Generator
) -> Iterator[tuple[Floats, Floats]]:
    """Positions and forces of the melt, `STEPS` apart, after as many at 1,500 K more; the last where it goes wrong."""
    for k in range(job.n_frames + 1):
        kelvin = job.kelvin if k else job.kelvin + 1500.0
        for _ in range(STEPS // 20):
            x = sampling.langevin(forces, numbers, x, kelvin, 20, 2.0, rng)
            f = forces(x)
            if np.abs(f).max() > WRONG:
                yield x, f
                return
        if k:
            yield x, f


def neutral_sphere(numbers: Ints, x: Floats, edge: float, centre: Floats, pairs: int) -> tuple[Ints, Floats]:
    """The `pairs` Na and as many Cl nearest to a point of a periodic cubic melt, about the origin: numbers, positions.

    Args:
        numbers, x: of the cell, shapes (n,) and (n, 3), Angstrom.
        edge: of the cell, Angstrom.
        centre: Angstrom, shape (3,).
    """
    near = x - centre
    near = near - edge * np.round(near / edge)
    images = np.indices((3, 3, 3)).reshape(3, -1).T - 1.0
    every = (near[None] + edge * images[:, None]).reshape(-1, 3)
    element = np.tile(numbers, len(images))
    order = np.argsort(np.linalg.norm(every, axis=1), kind="stable")
    chosen = np.concatenate([order[element[order] == z][:pairs] for z in (sampling.NA, sampling.CL)])
    return element[chosen], every[chosen]


def healed(numbers: Ints, x: Floats, job: Melt, model: Path, rng: np.random.Generator) -> Floats:
    """A sphere after 0.3 ps of open dynamics inside a wall at the density of the melt.

    Spheres as they are cut have no gap at their surface: their SCF takes minutes or fails.
    """
    forces = model_forces(Atoms(numbers=numbers, positions=x), KQEq(model, threads=1))
    walled = with_wall(forces, sampling.sphere_radius(numbers, job.density), sampling.STIFFNESS)
    return sampling.langevin(walled, numbers, x, job.kelvin, HEALING, 2.0, rng)


def frames_of(index: int, job: Melt, model: Path) -> list[Frame | str]:
    """Labelled spheres of a melt, one for each moment; about the largest force where dynamics goes wrong."""
    rng = np.random.default_rng([SEED, 7, index])
    spacing = (job_volume(job) / EDGE**3) ** (1 / 3)
    numbers, x = sampling.rock_salt(EDGE, spacing, 0.05, rng)
    edge = EDGE * spacing
    cell = Atoms(numbers=numbers, positions=x, cell=[edge] * 3, pbc=True)
    out: list[Frame | str] = []
    for k, (now, f) in enumerate(moments(model_forces(cell, KQEq(model, threads=1)), numbers, x, job, rng)):
        wrong = np.abs(f).max() > WRONG
        centre = now[np.argmax(np.abs(f).max(axis=1))] if wrong else rng.uniform(0.0, edge, size=3)
        chosen, sphere = neutral_sphere(numbers, now, edge, centre, job.pairs)
        if not wrong:
            sphere = healed(chosen, sphere, job, model, rng)
        name = f"{'hole' if wrong else 'bulk'}_{index}_{k}_na{job.pairs}cl{job.pairs}"
        out.append(label(name, job.test, chosen, sphere, 0, np.zeros(3)))
    return out


def job_volume(job: Melt) -> float:
    """Of the cell, Angstrom^3."""
    half = EDGE**3 // 2
    numbers = np.array([sampling.NA, sampling.CL] * half)
    return float(4.0 / 3.0 * np.pi * sampling.sphere_radius(numbers, job.density) ** 3)


def jobs() -> list[Melt]:
    """Melts at 1,000-1,800 K and 1.5-2.6 g/cm^3, spheres of 48 to 72 ions; every fifth is for the test set."""
    return [
        Melt(
            temperature(k, 1000.0, 1800.0),
            1.5 + 1.1 * ((k * 0.7548776662) % 1.0),
            4,
            24 + (7 * k) % 13,
            test=k % 5 == 3,
        )
        for k in range(9)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the files (default: beside the script)")
    parser.add_argument("--workers", type=int, default=2, help="processes that label side by side (default: 2)")
    arguments = parser.parse_args()
    start = time.perf_counter()
    # workers are started afresh: a fork would copy threads that compiled kernels already have
    with get_context("spawn").Pool(arguments.workers) as pool, TemporaryDirectory() as scratch:
        model = trained(HERE / "train.xyz", Path(scratch))
        tasks = [(index, job, model) for index, job in enumerate(jobs())]
        labelled = [frame for found in pool.starmap(frames_of, tasks, chunksize=1) for frame in found]
    frames = [f for f in labelled if isinstance(f, Frame)]
    failures = [f for f in labelled if isinstance(f, str)]
    write(arguments.out / "bulk_train.xyz", [f for f in frames if not f.test])
    write(arguments.out / "bulk_test.xyz", [f for f in frames if f.test])
    report(frames, failures)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
