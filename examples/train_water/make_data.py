"""Reference data of the water example: GFN2-xTB energies, forces, charges and dipoles of clusters and liquid.

    python make_data.py            writes train.xyz, test.xyz, bulk_train.xyz and bulk_test.xyz beside this file

Small clusters come from GFN2 dynamics, droplets and spheres of liquid from dynamics by models trained on the way.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # tblite: one thread per worker, and the same sums at every run
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import sampling
from bulk import Droplet, Liquid, droplet_frames, liquid_frames, trained
from sampling import CHARGE, HYDRONIUM, HYDROXIDE, STIFFNESS, WATER
from tblite.exceptions import TBLiteRuntimeError

from kqeq_md.examples.reference_data import NO_FIELD, Frame, gfn2_forces, label, with_wall, write

SEED = 20240811
HERE = Path(__file__).resolve().parent
IONS = (HYDRONIUM, HYDROXIDE)


@dataclass(frozen=True)
class Cluster:
    """A small cluster with its own GFN2 trajectory, 0.15 ps from a random start.

    Attributes:
        kind: water, hydronium or hydroxide: what carries the charge.
        n_water: waters, beside the ion.
        kelvin: temperature, K.
        field: length of the field, V/Angstrom.
        fraction: of the shortest distance between molecules, to which the two are pushed; 1 leaves them.
        test: the frame goes to test.xyz, with its polarizability.
    """

    kind: str
    n_water: int
    kelvin: float
    field: float
    fraction: float = 1.0
    test: bool = False


def spread(k: int, low: float, high: float, ratio: float = 0.6180339887) -> float:
    """Values spread evenly over [low, high] whatever their number (golden-ratio sequence)."""
    return low + (high - low) * ((k * ratio) % 1.0)


def cluster_jobs() -> Iterator[Cluster]:
    """(H2O)n, H3O+(H2O)n, OH-(H2O)n with n = 1-6, every other one in a field; contacts; every third is a test frame."""
    k = 0
    for kind, count in ((WATER, 40), (HYDRONIUM, 20), (HYDROXIDE, 20)):
        for n_water in range(1, 7):
            for i in range(count):
                k += 1
                field = spread(k, 0.0, 0.3, 0.7548776662) * (i % 2)
                yield Cluster(kind, n_water, spread(k, 150.0, 700.0), field, test=i % 10 in (2, 5, 7))
    for n_water in (2, 3, 4, 6):
        for i in range(10):
            k += 1
            yield Cluster(WATER, n_water, spread(k, 200.0, 600.0), 0.0, 0.6 + 0.035 * i, test=i in (2, 7))


def cluster_frame(index: int, job: Cluster) -> Frame | str:
    """The labelled end of a cluster's trajectory."""
    rng = np.random.default_rng([SEED, index])
    numbers = sampling.numbers_of(job.kind, job.n_water)
    radius = sampling.sphere_radius(len(numbers) // 3, spread(index, 0.5, 1.0, 0.5698402910))
    x = sampling.random_cluster(job.kind, job.n_water, radius, rng)
    direction = rng.normal(size=3)
    field = np.round(job.field * direction / np.linalg.norm(direction), 6)
    forces = with_wall(gfn2_forces(numbers, CHARGE[job.kind], field), radius, STIFFNESS)
    try:
        *_, (x, _) = islice(sampling.langevin(forces, numbers, x, job.kelvin, rng), 100)
    except TBLiteRuntimeError:
        return "SCF not converged in sampling"
    if job.fraction < 1.0:
        x = sampling.push_molecules(x, job.fraction)
    name = f"{'cluster' if job.fraction == 1.0 else 'contact'}_{index}_{job.kind}_{job.n_water}"
    return label(name, job.test, numbers, x, CHARGE[job.kind], field, response=job.test)


def distorted_frame(index: int) -> Frame | str:
    """A single water with stretched and bent bonds; every fifth is a test frame."""
    x = sampling.distorted_molecule(np.random.default_rng([SEED, 1, index]))
    test = index % 5 == 2
    return label(f"molecule_{index}", test, sampling.numbers_of(WATER, 1), x, 0, NO_FIELD, response=test)


def liquid_jobs(first: int, count: int, n_frames: int, sizes: tuple[int, int], test_every: int = 0) -> list[Liquid]:
    """Boxes at 250-600 K and 0.85-1.2 g/cm^3; every so-manieth trajectory is for the test set."""
    return [
        Liquid(
            spread(k, 250.0, 600.0),
            spread(k, 0.85, 1.2, 0.7548776662),
            n_frames,
            sizes,
            test_every > 0 and k % test_every == 0,
        )
        for k in range(first, first + count)
    ]


def droplet_jobs() -> list[Droplet]:
    """Droplets of 8 to 20 molecules, with and without an ion, half of them in fields up to 0.1 V/Angstrom."""
    return [
        Droplet(
            (WATER, *IONS)[k % 3],
            8 + (5 * k) % 13,
            spread(k, 250.0, 600.0),
            spread(k, 0.7, 1.1, 0.5698402910),
            spread(k, 0.0, 0.1, 0.7548776662) * (k % 2),
            k % 5 == 4,
        )
        for k in range(45)
    ]


def write_sets(folder: Path, prefix: str, frames: list[Frame]) -> None:
    """Training and test frames into two files."""
    for test, name in ((False, "train"), (True, "test")):
        write(folder / f"{prefix}{name}.xyz", [f for f in frames if f.test == test])


def report(title: str, frames: list[Frame]) -> None:
    """Prints what a set holds: counts and ranges."""
    for test in (False, True):
        part = [f for f in frames if f.test == test]
        if not part:
            continue
        per_atom = [f.energy / len(f.numbers) for f in part]
        forces = np.concatenate([f.forces for f in part])
        print(f"{title} {'test' if test else 'train'}: {len(part)} frames, {sum(len(f.numbers) for f in part)} atoms")
        print(f"  kinds   {dict(Counter(f.name.split('_')[0] for f in part))}")
        print(f"  charges {dict(sorted(Counter(f.charge for f in part).items()))}")
        print(f"  in a field {sum(bool(np.any(f.field)) for f in part)}")
        print(f"  energy/atom {min(per_atom):.3f} .. {max(per_atom):.3f} eV")
        print(f"  forces rms {np.sqrt((forces**2).mean()):.3f}, largest {np.abs(forces).max():.2f} eV/A")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the files (default: beside the script)")
    parser.add_argument("--workers", type=int, default=2, help="processes that label side by side (default: 2)")
    arguments = parser.parse_args()
    start = time.perf_counter()
    failures: list[str] = []

    def kept(labelled: list[Frame | str], what: str) -> list[Frame]:
        frames = [f for f in labelled if isinstance(f, Frame)]
        failures.extend(f for f in labelled if isinstance(f, str))
        report(what, frames)
        print(f"  after {time.perf_counter() - start:.0f} s; discarded so far: {dict(Counter(failures)) or 'none'}")
        return frames

    # workers are started afresh: a fork would copy threads that compiled kernels already have
    with get_context("spawn").Pool(arguments.workers) as pool, TemporaryDirectory() as scratch:

        def ran(function: partial, jobs: list, first: int) -> list[Frame | str]:  # type: ignore[type-arg]
            found = pool.starmap(function, [(job, first + k) for k, job in enumerate(jobs)], chunksize=1)
            return [frame for frames in found for frame in frames]

        small = pool.map(distorted_frame, range(30), chunksize=1)
        small += pool.starmap(cluster_frame, list(enumerate(cluster_jobs())), chunksize=1)
        clusters = kept(small, "clusters")
        write_sets(arguments.out, "", clusters)
        learnt = [f for f in clusters if not f.test]

        model = trained(learnt, Path(scratch), "clusters")
        first_jobs = liquid_jobs(0, 6, 4, (16, 32))
        bulk = kept(ran(partial(liquid_frames, model=model, seed=SEED), first_jobs, 1000), "first liquid")

        model = trained(learnt + bulk, Path(scratch), "liquid")
        second_jobs = liquid_jobs(6, 10, 5, (24, 48), 5)
        bulk += kept(ran(partial(liquid_frames, model=model, seed=SEED), second_jobs, 2000), "second liquid")
        bulk += kept(ran(partial(droplet_frames, model=model, seed=SEED), droplet_jobs(), 3000), "droplets")
        write_sets(arguments.out, "bulk_", bulk)


if __name__ == "__main__":
    main()
