"""Reference data of the NaCl example: GFN2-xTB energies, forces, charges and dipoles of open clusters.

    python make_data.py                    writes train.xyz and test.xyz beside this file (about 15 minutes)
    python make_data.py --extra picked.xyz labels given configurations instead, into extra.xyz

GFN2-xTB: C. Bannwarth, S. Ehlert, S. Grimme, J. Chem. Theory Comput. 15, 1652 (2019),
https://doi.org/10.1021/acs.jctc.8b01176, evaluated by tblite. Needs `pip install kqeq_md[train]`.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # tblite: one thread per worker, and the same sums at every run

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import sampling
from ase.io import read
from sampling import BOND, CL, NA
from tblite.exceptions import TBLiteRuntimeError

from kqeq_md.examples.reference_data import Floats, Frame, Ints, free_atom, gfn2_forces, label, with_wall, write

SEED = 20240607
SMALLEST_OPEN_SHELL = 20  # atoms
SCALES = (0.88, 0.95)  # of Fumi-Tosi lengths
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Job:
    """One configuration to sample, and how.

    Attributes:
        kind: hot, ladder, melt, solid, contact or dimer; part of the frame's name.
        n_na, n_cl: numbers of atoms.
        charges: total charges (e) to label the configuration with; GFN2 dynamics uses one of them.
        kelvin: temperature of the sampling, K.
        density: of the sphere that confines it, g/cm^3 (for `dimer`: unused).
        field: largest field, V/Angstrom; 0 for none.
        steps: steps of GFN2 dynamics, 2 fs each, after the classical ones.
        value: Angstrom: the distance of a dimer or the lattice spacing of a solid; for a contact the fraction of
            the usual distance.
        pair: the elements of a contact.
        test: the frame goes to test.xyz.
    """

    kind: str
    n_na: int
    n_cl: int
    charges: tuple[int, ...] = (0,)
    kelvin: float = 1500.0
    density: float = 1.0
    field: float = 0.0
    steps: int = 0
    value: float = 0.0
    pair: tuple[int, int] = (NA, CL)
    test: bool = False

    @property
    def numbers(self) -> Ints:
        return np.array([NA] * self.n_na + [CL] * self.n_cl)


def gfn2_dynamics(job: Job, x: Floats, charge: int, field: Floats, rng: np.random.Generator) -> Floats:
    """`x` after `job.steps` steps of GFN2 Langevin dynamics at the frame's own charge and field.

    Raises:
        TBLiteRuntimeError: the SCF does not converge.
    """
    radius = sampling.sphere_radius(job.numbers, job.density)
    walled = with_wall(gfn2_forces(job.numbers, charge, field), radius, sampling.STIFFNESS)
    return sampling.langevin(walled, job.numbers, x, job.kelvin, job.steps, 2.0, rng)


def sample(job: Job, charge: int, field: Floats, rng: np.random.Generator) -> tuple[Ints, Floats]:
    """Atomic numbers and positions (Angstrom) of one job."""
    if job.kind == "dimer":
        return job.numbers, np.array([[0.0, 0.0, 0.0], [0.0, 0.0, job.value]])
    if job.kind == "solid":
        return sampling.rock_salt(4, job.value, rng.uniform(0.05, 0.25), rng)
    x = sampling.hot_cluster(job.numbers, job.kelvin, job.density, rng.uniform(*SCALES), rng)
    if job.steps:
        x = gfn2_dynamics(job, x, charge, field, rng)
    if job.kind == "contact":
        x = sampling.push_together(job.numbers, x, job.pair, job.value)
    return job.numbers, x


def random_field(largest: float, rng: np.random.Generator) -> Floats:
    """A field in a random direction, its length uniform up to `largest` (V/Angstrom), 6 decimals."""
    direction = rng.normal(size=3)
    length = rng.uniform(0.0, largest)
    return np.array(length * direction / np.linalg.norm(direction)).round(6)


def describable(job: Job, charge: int) -> bool:
    """Whether charge equilibration can describe the job at this charge: Na+ and Cl- alone, or many atoms.

    A small cluster with an electron more or less than its ions has a gap of several eV between E(-1), E(0) and E(+1),
    where charge equilibration has the hardness of a metal particle. Per atom, the misfit fades with size.
    """
    return charge == job.n_na - job.n_cl or job.n_na + job.n_cl >= SMALLEST_OPEN_SHELL


def frames_of(task: tuple[int, Job]) -> list[Frame | str]:
    """The frames of one job: its configuration labelled at each of its charges that is describable."""
    index, job = task
    rng = np.random.default_rng([SEED, index])
    field = random_field(job.field, rng)
    charge = int(rng.choice(job.charges))
    try:
        numbers, x = sample(job, charge, field, rng)
    except TBLiteRuntimeError:
        return ["SCF not converged in sampling"] * len(job.charges)
    name = f"{job.kind}_{index}_na{job.n_na}cl{job.n_cl}"
    return [label(name, job.test, numbers, x, q, field) for q in job.charges if describable(job, q)]


def temperature(k: int, low: float, high: float) -> float:
    """Temperatures spread evenly over [low, high] K whatever the number of jobs (golden-ratio sequence)."""
    return low + (high - low) * ((k * 0.6180339887) % 1.0)


def small_jobs() -> Iterator[Job]:
    """Clusters of 2 to 16 atoms: hot ones, and some sampled at any of three charges (`ladder`)."""
    k = 0
    stoichiometric = [(n, n) for n in range(1, 9)]
    unequal = [(2, 1), (1, 2), (3, 2), (2, 3), (4, 3), (3, 4), (5, 4), (4, 5), (7, 6), (6, 7)]
    for n_na, n_cl in stoichiometric + unequal:
        steps = 60 if n_na + n_cl <= 8 else 30
        largest = 0.3 if n_na + n_cl <= 4 else 0.15
        ladders, hot = (6, 10) if n_na == n_cl else (4, 0)
        for i in range(ladders + hot):
            k += 1
            kind, charges = ("ladder", (-1, 0, 1)) if i < ladders else ("hot", (0,))
            test = i == n_na % 2 if kind == "ladder" else i - ladders < 2  # with and without field
            yield Job(kind, n_na, n_cl, charges, temperature(k, 300, 2500), 1.0, largest * (k % 2), steps, test=test)
        if n_na != n_cl:  # the closed shell, whose charge follows from the composition
            for i in range(3):
                k += 1
                closed = (n_na - n_cl,)
                kelvin = temperature(k, 300, 2500)
                yield Job("hot", n_na, n_cl, closed, kelvin, 1.0, largest * (k % 2), steps, test=i == 0)


def dimer_jobs() -> Iterator[Job]:
    """Pairs of atoms from contact to as far apart as the SCF carries; every sixth is a test frame."""
    scans = [
        ((1, 1), (-1, 0, 1), np.arange(1.7, 4.21, 0.25)),
        ((2, 0), (0, 1), np.arange(2.2, 5.1, 0.4)),
        ((0, 2), (-1, 0), np.arange(1.8, 4.3, 0.3)),
    ]
    for (n_na, n_cl), charges, lengths in scans:
        for k, length in enumerate(lengths):
            yield Job("dimer", n_na, n_cl, charges, value=float(length), test=k % 6 == 3)


def contact_jobs() -> Iterator[Job]:
    """Hot clusters with one pair pushed to 70-85 % of its usual distance."""
    for i, pair in enumerate(BOND):
        for k in range(14):
            n = 16 if k >= 12 else 4 + k % 5
            kelvin = temperature(14 * i + k, 600, 2000)
            fraction = 0.70 + 0.15 * (k % 6) / 5
            steps = 20 if n < 16 else 0
            yield Job("contact", n, n, (0,), kelvin, 1.2, 0.0, steps, fraction, pair, test=k in (2, 7))


def large_jobs() -> Iterator[Job]:
    """Melts of 32 to 100 atoms at several densities and temperatures, some charged, some in fields; solids."""
    k = 0
    for n_atoms, count, steps in ((32, 16, 10), (48, 14, 6), (64, 24, 4), (100, 12, 0)):
        for i in range(count):
            k += 1
            density = 1.45 + 1.15 * ((k * 0.7548776662) % 1.0)
            charges = ((1,) if i % 2 else (-1,)) if i % 8 in (5, 6) and n_atoms < 100 else (0,)
            field = 0.05 if i % 4 == 3 else 0.0
            kelvin = temperature(k, 1000, 2500)
            half = n_atoms // 2
            yield Job("melt", half, half, charges, kelvin, density, field, steps, test=i % 7 == 1)
    for i, spacing in enumerate(np.linspace(2.45, 2.85, 12)):
        yield Job("solid", 32, 32, value=float(spacing), test=i in (3, 7))


def dense_contact_jobs() -> Iterator[Job]:
    """Melts of 32 atoms with one pair pushed to 40-90 % of its usual distance: the walls of every hole in hot MD."""
    for i, pair in enumerate(BOND):
        least = 0.60 if pair == (NA, CL) else 0.40
        for k in range(60):
            fraction = least + (0.90 - least) * k / 59
            kelvin = temperature(60 * i + k, 1000, 2500)
            density = 1.5 + 0.7 * ((k * 0.7548776662) % 1.0)
            yield Job("contact", 16, 16, (0,), kelvin, density, 0.0, 0, fraction, pair, test=k % 7 == 3)


def interior_density(frame: Frame) -> float:
    """Density (g/cm^3) inside 5 Angstrom of the centre of a frame."""
    inside = frame.numbers[np.linalg.norm(frame.positions, axis=1) < 5.0]
    return float((5.0 / sampling.sphere_radius(inside, 1.0)) ** -3) if len(inside) else 0.0


def report(frames: list[Frame], failures: list[str]) -> None:
    """Prints what the data holds: counts, ranges, shortest distances, densities, failures."""
    print(f"free atoms (eV): Na {free_atom(NA):.6f}, Cl {free_atom(CL):.6f}")
    for test in (False, True):
        part = [f for f in frames if f.test == test]
        per_atom = [f.energy / len(f.numbers) for f in part]
        forces = np.concatenate([f.forces for f in part])
        print(f"{'test' if test else 'train'}: {len(part)} frames, {sum(len(f.numbers) for f in part)} atoms")
        print(f"  kinds   {dict(Counter(f.name.split('_')[0] for f in part))}")
        print(f"  charges {dict(sorted(Counter(f.charge for f in part).items()))}")
        print(f"  atoms   {dict(sorted(Counter(len(f.numbers) for f in part).items()))}")
        print(f"  in a field {sum(bool(np.any(f.field)) for f in part)}")
        print(f"  energy/atom {min(per_atom):.3f} .. {max(per_atom):.3f} eV")
        print(f"  forces rms {np.sqrt((forces**2).mean()):.3f}, largest {np.abs(forces).max():.2f} eV/A")
        for pair in BOND:
            least = min(sampling.shortest(f.numbers, f.positions, pair)[0] for f in part)
            print(f"  shortest {pair}: {least:.3f} A")
    dense = sorted(interior_density(f) for f in frames if "melt" in f.name)
    if dense:
        quantiles = ", ".join(f"{np.quantile(dense, q):.2f}" for q in (0, 0.1, 0.5, 0.9, 1))
        print(f"density inside 5 A of melts, quantiles 0, 10, 50, 90, 100 %: {quantiles} g/cm^3")
    print(f"discarded: {dict(Counter(failures)) or 'none'}")


def made_frames() -> list[Frame | str]:
    """All frames of the plan, two worker processes, in the order of the plan."""
    jobs = [*small_jobs(), *dimer_jobs(), *contact_jobs(), *large_jobs(), *dense_contact_jobs()]
    tasks = list(enumerate(jobs))
    with Pool(2) as pool:
        # the long jobs come last in the plan: handed out first, both workers end together
        done = pool.map(frames_of, tasks[::-1], chunksize=1)
    return [frame for frames in done[::-1] for frame in frames]


def extra_frames(path: Path) -> list[Frame | str]:
    """The configurations of `path` with new labels, their total_charge and electric_field kept."""
    out: list[Frame | str] = []
    if not path.is_file():
        raise SystemExit(f"--extra: must be an existing file, got {path}")
    for k, found in enumerate(read(path, index=":")):
        unknown = set(found.symbols) - {"Na", "Cl"}
        if unknown:
            raise SystemExit(f"--extra: elements must be Na or Cl, got {', '.join(sorted(unknown))} in frame {k}")
        if found.pbc.any():
            raise SystemExit(f"--extra: frames must have open boundaries, got pbc={found.pbc} in frame {k}")
        field = np.array(found.info.get("electric_field", np.zeros(3)), dtype=float)
        charge = int(found.info.get("total_charge", 0))
        name = str(found.info.get("name", f"{path.stem}{k}"))
        out.append(label(name, False, found.numbers, found.positions, charge, field))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--extra", type=Path, help="label these configurations (extended XYZ) into extra.xyz")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the files (default: beside the script)")
    arguments = parser.parse_args()
    labelled = extra_frames(arguments.extra) if arguments.extra else made_frames()
    frames = [f for f in labelled if isinstance(f, Frame)]
    failures = [f for f in labelled if isinstance(f, str)]
    if arguments.extra:
        write(arguments.out / "extra.xyz", frames)
        print(f"{len(frames)} frames labelled, discarded: {dict(Counter(failures)) or 'none'}")
        return
    write(arguments.out / "train.xyz", [f for f in frames if not f.test])
    write(arguments.out / "test.xyz", [f for f in frames if f.test])
    report(frames, failures)


if __name__ == "__main__":
    main()
