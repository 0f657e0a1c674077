"""What of the energies of a set is the number of atoms of each element, and their total charge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kqeq_md.elements import symbol_of
from kqeq_md.errors import ConfigError
from kqeq_md.model import Model
from kqeq_md.structure import Floats
from kqeq_md.train.data.config import Data
from kqeq_md.train.data.labels import Frame


def atom_energies(frames: Sequence[Frame], data: Data) -> dict[str, float] | None:
    """Energies of free atoms, eV, by element of the frames in the order of atomic numbers; None if they are fitted.

    "read" takes the lowest energy of neutral frames of one open atom without field.

    Args:
        frames: of the training set.
        data: with `atom_energies`.

    Raises:
        ConfigError: an element without energy.
    """
    if data.atom_energies == "fit":
        return None
    given = data.atom_energies if isinstance(data.atom_energies, Mapping) else _single_atoms(frames)
    numbers = np.unique(np.concatenate([frame.structure.numbers for frame in frames]))
    out = {}
    for symbol in (symbol_of(int(z)) for z in numbers):
        if symbol not in given:
            how = (
                "in the table"
                if isinstance(data.atom_energies, Mapping)
                else ("in a frame of one neutral atom, open and without field")
            )
            raise ConfigError(f"`data.atom_energies` must hold every element of the data, {symbol} is missing {how}")
        out[symbol] = float(given[symbol])
    return out


def _single_atoms(frames: Sequence[Frame]) -> dict[str, float]:
    out: dict[str, float] = {}
    for frame in frames:
        structure = frame.structure
        alone = len(structure) == 1 and structure.boundary == "open"
        if alone and frame.energy is not None and structure.charge == 0.0 and not structure.field.any():
            symbol = symbol_of(int(structure.numbers[0]))
            out[symbol] = min(frame.energy, out.get(symbol, np.inf))
    return out


def composition_design(frames: Sequence[Frame]) -> Floats:
    """Columns whose linear combinations are the energies that compositions and total charges explain.

    One column per composition and charge where frames share them, else atoms per element and one column per charge.
    """
    numbers = np.unique(np.concatenate([frame.structure.numbers for frame in frames]))
    counts = compositions(frames, numbers.tolist())
    charges = np.array([frame.structure.charge for frame in frames])
    _, group = np.unique(np.column_stack([counts, charges]), axis=0, return_inverse=True)
    group = group.ravel()
    if group.max() + 1 <= len(frames) / 2 and group.max() < 200:
        return np.eye(group.max() + 1)[group]
    levels = np.unique(charges)
    if len(levels) > 10:
        return np.column_stack([counts, charges])
    return np.column_stack([counts, *(charges == level for level in levels[1:])]).astype(np.float64)


def level_determined(frames: Sequence[Frame], model: Model) -> bool:
    """Whether the total charge of the frames with energies is more than a function of their composition."""
    labelled = [frame for frame in frames if frame.energy is not None]
    total_charge = np.array([frame.structure.charge for frame in labelled])
    composition = compositions(labelled, model.numbers)
    rest = total_charge - composition @ np.linalg.lstsq(composition, total_charge, rcond=None)[0]
    return bool(np.abs(rest).max(initial=0.0) > 1e-6)


def compositions(frames: Sequence[Frame], numbers: Sequence[int]) -> Floats:
    """How many atoms of each element the frames have, shape (n_frames, n_species)."""
    counts = [(frame.structure.numbers[:, None] == np.array(numbers)).sum(axis=0) for frame in frames]
    return np.array(counts, dtype=np.float64).reshape(len(frames), len(numbers))
