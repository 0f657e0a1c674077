"""Small training sets with known answers, and the files that they come in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.io import write

from kqeq_md.model import Model
from kqeq_md.potential import Potential
from kqeq_md.response import response
from kqeq_md.structure import Structure
from kqeq_md.train.config import Charges, Config, Data, Fit, Kernel, Keys, ShortRange
from kqeq_md.train.data import Frame

CONFIG = """
seed = 3
[data]
train = "train.xyz"
test = ["test.xyz"]
check_units = false
[descriptor]
cutoff = 4.5
n_max = 3
l_max = 2
radial_scale = 3.0
[kernel]
sparse_points = 10
[charges]
hardness = { Na = 6.0, Cl = 8.0 }
[fit]
rounds = 1
"""


def silent(items: Any, title: str) -> Any:
    """A progress that shows nothing."""
    return items


def labelled(structure: Structure, model: Model, place: str, polarizable: bool = False) -> Frame:
    """A frame with everything that a model says of it."""
    potential = Potential(model)
    result = potential.compute(structure)
    periodic = structure.boundary == "periodic"
    return Frame(
        structure, result.energy, result.forces, result.charges, None if periodic else result.dipole,
        polarizability=response(potential, structure).polarizability if polarizable else None,
        stress=-result.virial / structure.volume if periodic else None,
        place=place,
    )  # fmt: skip


def random_clusters(
    seed: int, count: int, model: Model, same_composition: bool, polarizable: bool = False
) -> list[Frame]:
    """Open Na/Cl clusters labelled by `model` itself, charges -1, 0, +1, half of them in a field."""
    rng, frames = np.random.default_rng(seed), []
    grid = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    for k in range(count):
        charge = k % 3 - 1
        chlorine = 4 if same_composition else 4 - charge  # then Q = 4 - n_Cl in every frame
        numbers = np.array([17] * chlorine + [11] * (8 - chlorine))
        positions = 2.7 * grid[rng.permutation(8)] + 0.2 * rng.normal(size=(8, 3))
        field = 0.1 * rng.normal(size=3) * (k % 2)
        structure = Structure(numbers, positions, charge=charge, field=field)
        frames.append(labelled(structure, model, f"clusters {seed}, frame {k}", polarizable))
    return frames


def random_cells(seed: int, count: int, model: Model) -> list[Frame]:
    """Neutral periodic Na4Cl4, strained and rattled, with stresses, labelled by `model` itself."""
    rng, frames = np.random.default_rng(seed), []
    grid = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    numbers = np.where(grid.sum(axis=1) % 2, 17, 11)
    for k in range(count):
        cell = 5.6 * np.eye(3) + 0.25 * rng.normal(size=(3, 3))
        positions = 0.5 * grid @ cell + 0.15 * rng.normal(size=(8, 3))
        structure = Structure(numbers, positions, cell=cell, pbc=True)
        frames.append(labelled(structure, model, f"cells {seed}, frame {k}"))
    return frames


def small_config(model: Model, **changes: Any) -> Config:
    """The hyperparameters of `model`, with every environment a sparse point: the fit can then be exact."""
    named = {name: dict(zip(model.species, getattr(model, name).tolist(), strict=True))
             for name in ("hardness", "gaussian_width", "repulsion_radius")}  # fmt: skip
    usual: dict[str, Any] = {
        "sigma_energy": 1e-5, "sigma_forces": 1e-4, "sigma_charges": 1e-5, "sigma_virial": 1e-4,
        "physical": [], "regularisation": "given", "held_out": 0.0,
    }  # fmt: skip
    charges = Charges(model.charges, named["hardness"], named["gaussian_width"])
    if model.charges == "split":
        pairs = {f"{a}-{b}": (i, j) for i, a in enumerate(model.species) for j, b in enumerate(model.species[: i + 1])}
        tables = {
            name: {pair: float(getattr(model, name)[ij]) for pair, ij in pairs.items()}
            for name in ("compliance", "compliance_cutoff")
        }
        fixed = dict(zip(model.species, model.reference_charge.tolist(), strict=True))
        charges = replace(charges, **tables, reference_charges="learned" if model.learned_reference else fixed)
    return Config(
        data=Data(["train.xyz"]),
        descriptor=model.terms[0].soap,
        kernel=Kernel(zeta=int(model.terms[0].zeta), sparse_points=40),
        charges=charges,
        short_range=ShortRange(named["repulsion_radius"]),
        fit=Fit(**{**usual, **changes}),
    )


def with_learned_reference(model: Model) -> Model:
    """`model` with split charges and a third column of weights."""
    rng = np.random.default_rng(5)
    weights = tuple(np.column_stack([w, 0.3 * rng.normal(size=len(w))]) for w in model.terms[0].weights)
    return replace(model.with_weights(weights), reference_charge=np.array([0.4, -0.5]), charges="split")


def replace_positions(structure: Structure, positions: np.ndarray) -> Structure:
    """The same atoms elsewhere."""
    return Structure(structure.numbers, positions, structure.cell, structure.pbc, structure.charge, structure.field)


def rms(model: Model, frames: Iterable[Frame], name: str) -> float:
    """Root mean square error of one label: "energy", "forces", "charges" or "stress"."""
    potential, errors = Potential(model), []
    for frame in frames:
        result = potential.compute(frame.structure)
        got = -result.virial / frame.structure.volume if name == "stress" else getattr(result, name)
        errors.append(np.ravel(got - getattr(frame, name)))
    return float(np.sqrt(np.mean(np.concatenate(errors) ** 2)))


def write_frames(path: Path, frames: list[Frame], **rename: str) -> None:
    """Extended XYZ with the names of `Keys` but for those in `rename`."""
    keys = {**{f: getattr(Keys(), f) for f in Keys.__dataclass_fields__}, **rename}
    images = []
    for frame in frames:
        atoms = Atoms(frame.structure.numbers, frame.structure.positions, cell=frame.structure.cell)
        atoms.pbc = frame.structure.pbc
        atoms.info[keys["energy"]] = frame.energy
        if frame.dipole is not None:
            atoms.info[keys["dipole"]] = frame.dipole
        if frame.stress is not None:
            atoms.info[keys["stress"]] = frame.stress
        atoms.info[keys["total_charge"]] = frame.structure.charge
        atoms.info[keys["field"]] = frame.structure.field
        atoms.arrays[keys["forces"]] = frame.forces
        atoms.arrays[keys["charges"]] = frame.charges
        images.append(atoms)
    write(path, images, format="extxyz")


class Sets:
    """What these test files share; they cannot import each other."""

    CONFIG = CONFIG
    silent = staticmethod(silent)
    labelled = staticmethod(labelled)
    random_clusters = staticmethod(random_clusters)
    random_cells = staticmethod(random_cells)
    small_config = staticmethod(small_config)
    with_learned_reference = staticmethod(with_learned_reference)
    replace_positions = staticmethod(replace_positions)
    rms = staticmethod(rms)
    write_frames = staticmethod(write_frames)


@pytest.fixture(scope="session")
def sets() -> type[Sets]:
    return Sets


@pytest.fixture
def project(tmp_path: Path, model: Model) -> Path:
    """A folder with a configuration and two files of clusters."""
    write_frames(tmp_path / "train.xyz", random_clusters(10, 12, model, True))
    write_frames(tmp_path / "test.xyz", random_clusters(11, 6, model, True))
    (tmp_path / "config.toml").write_text(CONFIG)
    return tmp_path
