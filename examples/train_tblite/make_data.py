"""Ammonia clusters in three charge states, labelled by GFN2-xTB: train.xyz and test.xyz.

    python make_data.py [trajectories of each kind]

Any calculator of ASE can stand in the place of tblite's: what training reads is what `labelled` writes.
"""

import sys

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.io import write
from ase.md.langevin import Langevin
from ase.optimize import FIRE
from scipy.spatial.transform import Rotation
from tblite.ase import TBLite

KINDS = {  # ions first; the rest are ammonia molecules
    "neutral": (None, 0, (1, 2, 3)),
    "ammonium": ("NH4", 1, (0, 1, 2)),
    "amide": ("NH2", -1, (0, 1, 2)),
}
NH4 = Atoms("NH4", 0.59 * np.array([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]))
SPACING = 3.3  # Angstrom, between molecules at the start
TEMPERATURES = (150.0, 300.0, 600.0)  # K
STEPS, STRIDE = 60, 15  # of 1 fs; four frames of each trajectory


def cluster(ion: str | None, n: int, rng: np.random.Generator) -> Atoms:
    """An ion and n ammonia molecules, turned at random, in a row with a bend."""
    parts = ([NH4 if ion == "NH4" else molecule(ion)] if ion else []) + [molecule("NH3")] * n
    atoms = Atoms()
    for k, part in enumerate(parts):
        x = Rotation.from_quat(rng.normal(size=4)).apply(part.positions - part.positions.mean(axis=0))
        atoms += Atoms(part.numbers, x + SPACING * np.array([k, k == 1, 0.0]))
    return atoms


def labelled(atoms: Atoms, charge: int, kind: str) -> Atoms:
    """A frame with its labels; units are eV, Angstrom, e."""
    frame = Atoms(atoms.numbers, atoms.positions)
    frame.info["REF_energy"] = atoms.get_potential_energy()
    frame.info["REF_dipole"] = atoms.get_dipole_moment()  # about the coordinate origin
    frame.info["total_charge"] = charge
    frame.info["config_type"] = kind  # errors are listed by it
    frame.arrays["REF_forces"] = atoms.get_forces()
    frame.arrays["REF_charges"] = atoms.get_charges()
    return frame


def trajectory(kind: str, n: int, temperature: float, rng: np.random.Generator) -> list[Atoms]:
    """Frames of a short Langevin run at the charge that they are labelled with."""
    ion, charge, _ = KINDS[kind]
    atoms = cluster(ion, n, rng)
    atoms.calc = TBLite(method="GFN2-xTB", charge=charge, verbosity=0)
    FIRE(atoms, logfile=None).run(fmax=0.5, steps=30)
    dynamics = Langevin(
        atoms, 1.0 * units.fs, temperature_K=temperature, friction=0.02 / units.fs, fixcm=False, rng=rng
    )
    frames = []
    for _ in range(STEPS // STRIDE):
        dynamics.run(STRIDE)
        frames.append(labelled(atoms, charge, kind))
    return frames


def main() -> None:
    per_kind = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    rng = np.random.default_rng(4)
    sets: dict[str, list[Atoms]] = {"train": [], "test": []}
    for kind, (_, _, sizes) in KINDS.items():
        for k in range(per_kind):
            frames = trajectory(kind, sizes[k % 3], TEMPERATURES[k // 3 % 3], rng)
            sets["test" if k % 5 == 4 else "train"] += frames  # test frames come from trajectories of their own
    for name, frames in sets.items():
        write(f"{name}.xyz", frames, format="extxyz")
        print(f"{name}.xyz: {len(frames)} frames, {sum(map(len, frames))} atoms")


if __name__ == "__main__":
    main()
