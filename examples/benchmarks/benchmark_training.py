"""What training reaches on sets of others and of its own: errors on frames that it has never seen.

    python benchmark_training.py DATA                     every case (about an hour on one core)
    python benchmark_training.py DATA --cases nacl carbon some of them
    python benchmark_training.py DATA --json FILE.json    the figures as JSON too

DATA is a folder with the sets (extended XYZ, keys as in `kqeq_md.train.config.Keys`). Cases without their set say so:

nacl: gfn2_nacl_field/{train,test}.xyz, Na/Cl clusters, Q = -1, 0, +1, in fields, by GFN2-xTB.
water: gfn2_water_field/{train,test}.xyz, (H2O)n, H3O+, OH-, likewise; split charges, and charges that flow freely.
carbon: 4g_carbon_chain/4g_carbon_chain.xyz, C10H2 and C10H3+ of Ko, Finkler, Goedecker, Behler, Nat. Commun. 12, 398
    (2021), doi:10.1038/s41467-020-20427-2; mean of six splits into 90 % and 10 %.
molecules: molecules_dipole/{QMtrainRandom,ValQM9,ions_A}.xyz, PBE0 dipoles of QM9 molecules; dipoles alone.
nma: nma_field/nma_field_validation.xyz, N-methylacetamide in fields of Zhang and Jiang, Nat. Commun. 14, 6424 (2023),
    doi:10.1038/s41467-023-42148-y; trained on the first half.
gap: 1,000 water frames, 1,000 sparse points per element: time and memory of a fit, and of `gap_fit` on the same frames,
    points and descriptor without charges, one after the other (needs `pip install quippy-ase`).

"no charges" is the same short range alone, "no field" the same model trained on frames whose fields it is not told.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read, write

from kqeq_md.descriptor.radial import SoapParameters
from kqeq_md.errors import KqeqError
from kqeq_md.examples.benchmarks.benchmark_charges import rms
from kqeq_md.examples.benchmarks.benchmark_quip import gap_fit
from kqeq_md.machine.threads import start_with_one_blas_thread
from kqeq_md.model import Model
from kqeq_md.structure import Structure
from kqeq_md.train.config import Charges, Config, Data, Fit, Kernel, Keys
from kqeq_md.train.data import Frame, read_frames
from kqeq_md.train.fit import Fitted, fit
from kqeq_md.train.report import error_table, predict, without_charges

Figures = dict[str, float]
"""In meV per atom, meV/Angstrom, me, e Angstrom, ..."""

SHOWN = {
    "energy_per_atom": ("meV/atom", 1e3), "forces": ("meV/A", 1e3), "charges": ("me", 1e3), "dipole": ("me A", 1e3),
    "polarizability": ("% of the mean", 1.0),
}  # fmt: skip


def quiet(items: Any, _: str) -> Any:
    """No progress bar."""
    return items


@dataclass(frozen=True)
class Settings:
    """What differs from case to case."""

    soap: Mapping[str, Any]
    kernel: Mapping[str, Any]
    charges: Mapping[str, Any]
    fit: Mapping[str, Any]

    def train(self, frames: Sequence[Frame]) -> Fitted:
        """A model of these frames."""
        config = Config(
            Data([]),
            descriptor=SoapParameters(**self.soap),
            kernel=Kernel(**self.kernel),
            charges=Charges(**self.charges),
            fit=Fit(**self.fit),
        )
        return fit(frames, config, quiet)


GFN2 = {"physical": ["hardness", "compliance"], "sigma_energy": 0.001}
NACL = Settings(
    {"cutoff": 6.0, "cutoff_width": 1.0, "n_max": 6, "l_max": 4, "sigma": 0.5, "radial_scale": 3.0},
    {"sparse_points": 500},
    {"model": "split"},
    {**GFN2, "sigma_charges": 0.02},
)
WATER = Settings(
    {"cutoff": 5.0, "cutoff_width": 1.0, "n_max": 6, "l_max": 4, "sigma": 0.4, "radial_scale": 2.0},
    {"sparse_points": 500},
    {"model": "split"},
    {**GFN2, "sigma_charges": 0.003},
)
WATER_QEQ = replace(WATER, charges={"model": "qeq"}, fit={**GFN2, "sigma_charges": 0.005})
CARBON = Settings(
    {"cutoff": 6.0, "cutoff_width": 1.0, "n_max": 8, "l_max": 4, "sigma": 0.4},
    {"sparse_points": 300},
    {"model": "qeq", "hardness": 1.0},
    {
        "physical": [], "sigma_energy": 0.001, "sigma_charges": 0.003, "prior_electronegativity": 10.0,
        "prior_short_range": 3.0, "held_out": 0.0,
    },
)  # fmt: skip
MOLECULES = Settings(
    {"cutoff": 2.6, "cutoff_width": 1.0, "n_max": 7, "l_max": 3, "sigma": 0.3},
    {"sparse_points": 300},
    {"model": "split"},
    {
        "targets": ["dipole"], "sigma_dipole": 0.0015, "physical": [], "held_out": 0.0, "prior_electronegativity": 3.0,
        "prior_reference_charge": 0.5,
    },
)  # fmt: skip
IONS = replace(
    MOLECULES,
    charges={"model": "qeq"},
    fit={**MOLECULES.fit, "physical": ["hardness"], "prior_electronegativity": 5.0},
)
NMA = Settings(
    {"cutoff": 5.0, "cutoff_width": 1.0, "n_max": 6, "l_max": 4, "sigma": 0.4, "radial_scale": 2.0},
    {"sparse_points": 250},
    {"model": "split"},
    {
        "targets": ["dipole"], "sigma_dipole": 0.003,
        "physical": ["hardness", "gaussian_width", "compliance"],
    },
)  # fmt: skip


def errors(model: Model, frames: Sequence[Frame], measure: str = "rmse") -> Figures:
    """Errors on labelled frames."""
    table = error_table(frames, predict(model, frames, quiet))
    return {name: scale * table[name][measure] for name, (_, scale) in SHOWN.items() if name in table}


def without_field(frames: Sequence[Frame]) -> list[Frame]:
    """The same labels, for a model that is not told of fields."""

    def blind(frame: Frame) -> Frame:
        s = frame.structure
        return replace(frame, structure=Structure(s.numbers, s.positions, s.cell, s.pbc, s.charge))

    return [blind(frame) for frame in frames]


def clusters(data: Path, name: str, settings: Settings, with_blind: bool = True) -> dict[str, Any]:
    """A set with its test frames: the model, the same without charges, and (if `with_blind`) without the field."""
    train, test = (read_frames([data / name / f"{part}.xyz"], Keys()) for part in ("train", "test"))
    fitted = settings.train(train)
    out = {
        "test": errors(fitted.model, test),
        "train": errors(fitted.model, train),
        "test, no charges": errors(without_charges(fitted.short_range_only), test),
        "physical": fitted.physical,
        "prior factors": list(fitted.regularisation.factors),
    }
    if with_blind:
        blind = settings.train(without_field(train))
        out["test, no field"] = errors(blind.model, without_field(test))
    return out


SPLITS = 5
"""Of the random fifths."""


def nacl(data: Path) -> dict[str, Any]:
    """Na/Cl clusters: the test set, whose compositions training partly lacks, and random fifths of the training set."""
    frames = read_frames([data / "gfn2_nacl_field" / "train.xyz"], Keys())
    return {**clusters(data, "gfn2_nacl_field", NACL), "random fifths": mean_of_splits(NACL, frames, SPLITS, 0.8)}


def water(data: Path) -> dict[str, Any]:
    """Water clusters with both charge models."""
    return {
        "split": clusters(data, "gfn2_water_field", WATER),
        "qeq": clusters(data, "gfn2_water_field", WATER_QEQ, with_blind=False),
    }


def carbon(data: Path) -> dict[str, Any]:
    """Six random splits."""
    frames = read_frames([data / "4g_carbon_chain" / "4g_carbon_chain.xyz"], Keys())
    return mean_of_splits(CARBON, frames, 6, 0.9)


def mean_of_splits(settings: Settings, frames: Sequence[Frame], count: int, part: float) -> dict[str, Any]:
    """Mean errors of models trained on random parts, and the range of those of the frames that they have not seen."""
    found = []
    for seed in range(count):
        order = np.random.default_rng(seed).permutation(len(frames))
        size = round(part * len(frames))
        train, test = ([frames[k] for k in chosen] for chosen in (order[:size], order[size:]))
        fitted = settings.train(train)
        found.append((errors(fitted.model, test), errors(fitted.model, train)))
    tests, trains = zip(*found, strict=True)
    return {
        "test": {name: float(np.mean([one[name] for one in tests])) for name in tests[0]},
        "test, lowest": {name: float(np.min([one[name] for one in tests])) for name in tests[0]},
        "test, highest": {name: float(np.max([one[name] for one in tests])) for name in tests[0]},
        "train": {name: float(np.mean([one[name] for one in trains])) for name in trains[0]},
    }


def molecules(data: Path) -> dict[str, Any]:
    """Mean absolute errors of dipoles per component, e Angstrom, by number of training molecules; and of ions."""

    def without_fluorine(name: str) -> list[Frame]:
        frames = read_frames([data / "molecules_dipole" / f"{name}.xyz"], Keys())
        return [replace(frame, energy=None) for frame in frames if 9 not in frame.structure.numbers]

    train, test, ions = (without_fluorine(name) for name in ("QMtrainRandom", "ValQM9", "ions_A"))
    sizes = (50, 100, 200, 300)
    out = {f"test, {n} molecules": errors(MOLECULES.train(train[:n]).model, test, "mae") for n in sizes}
    both = IONS.train([*train[:300], *ions[::2]]).model
    out["test, 300 molecules and half of the ions"] = errors(both, test, "mae")
    out["other ions, 300 molecules and half of the ions"] = errors(both, ions[1::2], "mae")
    labels = [frame.dipole for frame in ions[1::2] if frame.dipole is not None]
    out["these ions, a dipole of zero"] = {"dipole": 1e3 * float(np.mean(np.abs(labels)))}
    return out


def nma(data: Path) -> dict[str, Any]:
    """Errors, and how the dipole answers to the field, in split charges and in charges that flow freely."""
    frames = read_frames(
        [data / "nma_field" / "nma_field_validation.xyz"], Keys(polarizability="REF_polarizability_e2A2_per_eV")
    )
    train, test = frames[: len(frames) // 2], frames[len(frames) // 2 :]
    return {name: nma_errors(replace(NMA, charges={"model": name}), train, test) for name in ("split", "qeq")}


def nma_errors(settings: Settings, train: Sequence[Frame], test: Sequence[Frame]) -> dict[str, Any]:
    """Of one charge model."""
    fitted = settings.train(train)
    predictions = predict(fitted.model, test, quiet)
    alpha = np.array([p.predicted["polarizability"] for p in predictions]).reshape(-1, 3, 3)
    label = np.array([p.labels["polarizability"] for p in predictions]).reshape(-1, 3, 3)
    trace = np.trace(alpha, axis1=1, axis2=2) / np.trace(label, axis1=1, axis2=2)
    axes = np.array([frame.structure.field for frame in test])
    axes = axes[np.linalg.norm(axes, axis=1) > 0]
    axis = axes[0] / np.linalg.norm(axes[0])
    return {
        "test": errors(fitted.model, test),
        "train": errors(fitted.model, train),
        "test, no charges": errors(without_charges(fitted.short_range_only), test),
        "mean polarizability, model over label": {"mean": float(trace.mean()), "rms": float(np.std(trace))},
        "dipole response along the field, model over label": float(
            np.mean((alpha @ axis) @ axis) / np.mean((label @ axis) @ axis)
        ),
        "rms error of the polarizability over its rms": float(
            np.sqrt(np.mean((alpha - label) ** 2) / np.mean(label**2))
        ),
        "physical": fitted.physical,
    }


GAP_POINTS = 1000
"""Per element."""

GAP = replace(
    WATER,
    soap={"cutoff": 5.0, "cutoff_width": 1.0, "n_max": 6, "l_max": 4, "sigma": 0.4},
    kernel={"sparse_points": GAP_POINTS},
    fit={"physical": [], "sigma_energy": 0.001, "sigma_charges": 0.003, "sigma_forces": 0.05},
)


def gap(data: Path) -> dict[str, Any]:
    """`kqeq train` and `gap_fit` on 1,000 water frames, each in a process of its own, one after the other."""
    folder = data / "gfn2_water_field"
    frames = [*read(folder / "train.xyz", ":"), *read(folder / "test.xyz", ":")]
    out: dict[str, Any] = {"frames": len(frames), "atoms": sum(map(len, frames))}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        write(scratch / "train.xyz", [plain(atoms) for atoms in frames], format="extxyz")
        out["kqeq"] = measured(
            [sys.executable, "-c", OURS.format(folder=str(folder), json=str(scratch / "ours.json"))], scratch
        )
        out["kqeq"] |= json.loads((scratch / "ours.json").read_text())
        out["gap_fit"] = measured([gap_fit(), *GAP_FIT], scratch)
        out["gap_fit"]["errors"] = gap_errors(scratch / "gap.xml", frames)
    out["time of gap_fit over ours"] = out["gap_fit"]["seconds"] / out["kqeq"]["seconds"]
    return out


OURS = """
import json
from pathlib import Path
from kqeq_md.examples.benchmarks.benchmark_training import gap_fitted
Path({json!r}).write_text(json.dumps(gap_fitted(Path({folder!r}))))
"""

GAP_FIT = [
    "at_file=train.xyz", "e0={H:0.0:O:0.0}", "e0_method=average", "default_sigma={0.001 0.05 0 0}",
    "energy_parameter_name=label_energy", "force_parameter_name=label_force", "gp_file=gap.xml", "do_copy_at_file=F",
    "sparse_jitter=1e-10",
    "gap={soap l_max=4 n_max=6 cutoff=5.0 cutoff_transition_width=1.0 atom_sigma=0.4 zeta=2 delta=1.0 "
    f"covariance_type=dot_product sparse_method=cur_points n_sparse={GAP_POINTS} add_species=T}}",
]  # fmt: skip


def plain(atoms: Atoms) -> Atoms:
    """A frame as `gap_fit` reads it, in a cell that no cutoff crosses."""
    out = Atoms(atoms.numbers, atoms.positions - atoms.positions.mean(axis=0) + 25.0, cell=[50.0] * 3, pbc=False)
    out.info["label_energy"] = atoms.info["REF_energy"]
    out.arrays["label_force"] = atoms.arrays["REF_forces"]
    return out


def gap_fitted(folder: Path) -> dict[str, Any]:
    """Training errors of the model, and of the same short range without charges."""
    start_with_one_blas_thread()
    frames = read_frames([folder / "train.xyz", folder / "test.xyz"], Keys())
    fitted = GAP.train(frames)
    return {
        "errors": errors(fitted.model, frames),
        "errors, no charges": errors(without_charges(fitted.short_range_only), frames),
    }


def measured(command: Sequence[str], folder: Path) -> dict[str, Any]:
    """Seconds and memory of a program that has to succeed.

    Raises:
        KqeqError: it fails.
    """
    start = perf_counter()
    done = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    text, _ = done.communicate()
    seconds = perf_counter() - start
    if done.returncode != 0:
        raise KqeqError(f"{Path(command[0]).name} failed: {text[-500:]}")
    return {"seconds": seconds, "memory of the largest so far, GB": children_memory()}


def children_memory() -> float:
    """Of the largest child process so far, GB."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6


def gap_errors(xml: Path, frames: Sequence[Atoms]) -> Figures:
    """Of QUIP's own evaluation."""
    quip = import_module("quippy.potential").Potential("", param_filename=str(xml))
    energies, forces = [], []
    for atoms in frames:
        shown = plain(atoms)
        shown.calc = quip
        energies.append((shown.get_potential_energy() - atoms.info["REF_energy"]) / len(atoms))
        forces.append((shown.get_forces() - atoms.arrays["REF_forces"]).ravel())
    return {"energy_per_atom": 1e3 * rms(np.array(energies)), "forces": 1e3 * rms(np.concatenate(forces))}


CASES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "nacl": nacl, "water": water, "carbon": carbon, "molecules": molecules, "nma": nma,
    "gap": gap,
}  # fmt: skip


def show(found: Mapping[str, Any], indent: str = "  ") -> list[str]:
    """Lines of nested figures."""
    lines = []
    for name, value in found.items():
        if isinstance(value, Mapping) and value and set(value) <= set(SHOWN):
            figures = ", ".join(f"{key} {number:.2f} {SHOWN[key][0]}" for key, number in value.items())
            lines.append(f"{indent}{name}: {figures}")
        elif isinstance(value, Mapping):
            lines += [f"{indent}{name}", *show(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name}: {value:.4g}" if isinstance(value, float) else f"{indent}{name}: {value}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases."""
    parser = argparse.ArgumentParser(description="Errors of training on known sets.")
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    start_with_one_blas_thread()
    out = {}
    for name in arguments.cases:
        start = perf_counter()
        try:
            out[name] = {**CASES[name](arguments.data), "seconds": round(perf_counter() - start, 1)}
        except KqeqError as error:
            out[name] = {"skipped": str(error)}
        print("\n".join([name, *show(out[name])]), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(out, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
