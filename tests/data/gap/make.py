"""Make the GAP models of this folder and QUIP's results for them.

Run it in this folder with a Python that has quippy-ase (0.10.3 made the files), whose `gap_fit` is beside it:

    python make.py

The data are random structures with the energies of a made-up pair potential: what the models predict means nothing,
only that two programs predict the same.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import write
from ase.neighborlist import neighbor_list
from quippy.potential import Potential

HERE = Path(__file__).parent

DOT = "covariance_type=dot_product sparse_method=cur_points"
SOAP = f"soap l_max=3 n_max=3 atom_sigma=0.5 zeta=2 cutoff=4.0 cutoff_transition_width=1.0 n_sparse=8 delta=0.8 {DOT}"
WIDE = f"soap l_max=2 n_max=2 atom_sigma=0.7 zeta=1 cutoff=5.0 cutoff_transition_width=1.5 n_sparse=6 delta=0.3 {DOT}"
SHARP = f"soap l_max=2 n_max=3 atom_sigma=0.35 zeta=4 cutoff=3.0 cutoff_transition_width=0.4 n_sparse=6 delta=0.3 {DOT}"
GAUSSIAN = "n_sparse=8 delta=2.0 covariance_type=ard_se sparse_method=uniform"
PAIR = f"cutoff=4.5 cutoff_transition_width=1.0 theta_uniform=0.9 {GAUSSIAN}"

MODELS = {
    # name: (formula, terms, sparse points in files of their own)
    "water_soap": ("OHHOHHOHHOHH", [f"{SOAP} radial_basis=GTO central_weight=0.6 add_species=T"], True),
    "nacl_soap_2b": (
        "NaClNaClNaClNaClNaClNaCl",
        [f"distance_2b {PAIR} add_species=T", f"{SOAP} radial_basis=EQUISPACED_GAUSS add_species=T f0=0.3"],
        True,
    ),
    "cho_two_soaps": ("CHHOCHHOHC", [f"{WIDE} add_species=T", f"{SHARP} radial_basis=GTO add_species=T"], False),
    "water_2b": (
        "OHHOHHOHHOHH",
        [
            f"distance_2b Z1=8 Z2=1 {PAIR} add_species=F",
            f"distance_Nb order=2 Z={{1 1}} {PAIR} add_species=F",
            f"distance_2b Z1=8 Z2=8 cutoff=3.5 cutoff_transition_width=0.6 theta_uniform=0.9 {GAUSSIAN} add_species=F",
            f"distance_2b Z1=1 Z2=8 cutoff=4.5 theta_uniform=0.5 {GAUSSIAN} add_species=F",
        ],
        False,
    ),
    "water_one_centre": ("OHHOHHOHHOHH", [f"{SOAP} add_species=F Z=8 n_species=2 species_Z={{8 1}}"], False),
}


def main() -> None:
    """Fit every model and let QUIP compute its structures."""
    for name, (formula, terms, separate) in MODELS.items():
        fit(name, formula, terms, separate)
        potential = Potential(param_filename=str(HERE / f"{name}.xml"))
        results = [computed(atoms, potential) for atoms in structures(formula)]
        (HERE / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")


def fit(name: str, formula: str, terms: list[str], separate: bool) -> None:
    """Run gap_fit, and name the potential and its files after the model instead of the time."""
    for old in HERE.glob(f"{name}.xml*"):
        old.unlink()
    with tempfile.TemporaryDirectory() as folder:
        frames = [labelled(crystal(formula, seed)) for seed in range(8)] + [labelled(cluster(formula, 20))]
        frames += [labelled(lone(symbol)) for symbol in sorted(set(Atoms(formula).symbols))]
        write(Path(folder, "train.xyz"), frames)
        gap = " : ".join(term.replace("{", "{{").replace("}", "}}") for term in terms)
        subprocess.run(
            [
                Path(sys.executable).parent / "gap_fit", "at_file=train.xyz", f"gap={{{gap}}}", "e0_method=isolated",
                "default_sigma={0.002 0.05 0.05 0.0}", f"gap_file={name}.xml", "do_copy_at_file=F", "rnd_seed=17",
                f"sparse_separate_file={'T' if separate else 'F'}",
            ],
            cwd=folder, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        text = Path(folder, f"{name}.xml").read_text()
        label = re.search(r'<Potential label="(GAP_\w+)"', text)[1]
        for path in Path(folder).glob(f"{name}.xml.sparseX*[0-9]"):
            (HERE / path.name.replace(label, "GAP_")).write_bytes(path.read_bytes())
        text = text.replace(f"sparseX.{label}", "sparseX.GAP_").replace(label, f"GAP_{name}")
        (HERE / f"{name}.xml").write_text(text)


def structures(formula: str) -> list[Atoms]:
    """Two triclinic cells, the smaller than the cutoff, a cluster, and one lone atom of each element."""
    small = crystal("".join(sorted(set(Atoms(formula).symbols))), 40)
    lone_atoms = [lone(symbol) for symbol in sorted(set(Atoms(formula).symbols))]
    return [crystal(formula, 30), small, cluster(formula, 31), *lone_atoms]


def computed(atoms: Atoms, potential: Potential) -> dict:
    """A structure with QUIP's energy (eV), forces (eV/Angstrom) and virial (eV, None without a cell)."""
    atoms = atoms.copy()
    atoms.calc = potential
    periodic = bool(atoms.pbc.all())
    return {
        "numbers": atoms.numbers.tolist(),
        "positions": atoms.positions.tolist(),
        "cell": atoms.cell.tolist() if periodic else None,
        "energy": atoms.get_potential_energy(),
        "forces": atoms.get_forces().tolist(),
        "virial": (-atoms.get_volume() * atoms.get_stress(voigt=False)).tolist() if periodic else None,
    }


def crystal(formula: str, seed: int) -> Atoms:
    """Random atoms at least 1 Angstrom apart in a triclinic cell of 12 cubic Angstrom for each."""
    rng, symbols = np.random.default_rng(seed), Atoms(formula).symbols
    length = (12.0 * len(symbols)) ** (1 / 3)
    atoms = Atoms(cell=length * (np.eye(3) + 0.15 * rng.uniform(-1, 1, (3, 3))), pbc=True)
    while len(atoms) < len(symbols):
        trial = atoms + Atoms([symbols[len(atoms)]], positions=[rng.random(3) @ atoms.cell[:]])
        if len(neighbor_list("i", trial, 1.0)) == 0:
            atoms = trial
    return atoms


def cluster(formula: str, seed: int) -> Atoms:
    """Random atoms at least 1 Angstrom apart in an open cube of 4 Angstrom."""
    rng, symbols = np.random.default_rng(seed), Atoms(formula).symbols
    atoms = Atoms()
    while len(atoms) < len(symbols):
        trial = atoms + Atoms([symbols[len(atoms)]], positions=[4.0 * rng.random(3)])
        if len(neighbor_list("i", trial, 1.0)) == 0:
            atoms = trial
    return atoms


def lone(symbol: str) -> Atoms:
    """One atom that sees no image of itself."""
    return Atoms([symbol], cell=[20.0] * 3, pbc=True)


def labelled(atoms: Atoms) -> Atoms:
    """With energy, force and virial of a Morse potential that a cosine cuts off."""
    i, j, d, vectors = neighbor_list("ijdD", atoms, 5.0)
    length = 1.0 + 0.02 * (atoms.numbers[i] + atoms.numbers[j])
    one, two = np.exp(length - d), np.exp(2 * (length - d))
    morse, slope = two - 2 * one, 2 * one - 2 * two
    cut, fall = 0.5 + 0.5 * np.cos(np.pi * d / 5), -0.1 * np.pi * np.sin(np.pi * d / 5)
    pull = (0.1 * (slope * cut + morse * fall) / d)[:, None] * vectors
    forces = np.zeros((len(atoms), 3))
    np.add.at(forces, i, pull)
    atoms.info["energy"] = 0.05 * float(np.sum(morse * cut)) - float(atoms.numbers.sum())
    atoms.arrays["force"] = forces
    if atoms.pbc.all() and len(atoms) > 1:
        atoms.info["virial"] = -0.5 * (vectors.T @ pull).ravel()
    return atoms


if __name__ == "__main__":
    main()
