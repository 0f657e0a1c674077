"""The reference fragment of a model: a small neutral molecule or formula unit that it was trained on."""

from __future__ import annotations

from math import gcd

import numpy as np

from kqeq_md.charges.fragments import bonds, connected_fragments
from kqeq_md.elements import symbol_of
from kqeq_md.errors import ModelError
from kqeq_md.model import Model
from kqeq_md.neighbours.search import Ints
from kqeq_md.structure import Floats, Structure

NONE = "the model holds no neutral fragment: give structures to measure"


def reference_fragment(model: Model) -> Structure:
    """The fragment stored with the model, or else one cut from its reference structure; open.

    Raises:
        ModelError: there is neither.
    """
    if model.fragment:
        return Structure(model.fragment["numbers"], model.fragment["positions"])
    if not model.reference or model.reference["charge"] != 0:
        raise ModelError(f"{NONE} (no `fragment`, and no neutral `reference`)")
    return formula_unit(Structure(*(model.reference[key] for key in ("numbers", "positions", "cell", "pbc"))))


def formula_unit(structure: Structure) -> Structure:
    """The smallest connected piece of a neutral structure that is neutral by its composition; open.

    In a liquid of one kind of molecule it is the first molecule. Elsewhere, as in a salt, it has the reduced
    composition of the whole and grows from the shortest bond by the shortest bonds: of a cluster of NaCl, the closest
    pair.

    Raises:
        ModelError: no connected piece has that composition.
    """
    fragments = connected_fragments(structure)
    kinds = {tuple(np.sort(structure.numbers[fragments.group == g])) for g in range(len(fragments))}
    if len(fragments) > 1 and len(kinds) == 1 and (fragments.group == 0).sum() > 1:
        atoms = np.flatnonzero(fragments.group == 0)
        return Structure(structure.numbers[atoms], fragments.whole(structure)[atoms])
    elements, counts = np.unique(structure.numbers, return_counts=True)
    units = gcd(*counts.tolist())
    if len(elements) == 1:  # one atom could not be polarized
        units = max(units // 2, 1)
    wanted = {int(z): int(count) // units for z, count in zip(elements, counts, strict=True)}
    centre, neighbour, vectors = bonds(structure)
    for k in np.argsort(np.linalg.norm(vectors, axis=1), kind="stable"):
        found = _grown(structure, int(centre[k]), wanted, centre, neighbour, vectors)
        if found is not None:
            return found
    raise ModelError(f"{NONE} (no connected {formula(structure.numbers)} unit in `reference`)")


def _grown(
    structure: Structure, start: int, wanted: dict[int, int], centre: Ints, neighbour: Ints, vectors: Floats
) -> Structure | None:
    """Atoms by the shortest bonds from `start` on, until the composition is there; None where none is left to take."""
    left, placed = dict(wanted), {start: np.zeros(3)}
    left[int(structure.numbers[start])] -= 1
    order = np.argsort(np.linalg.norm(vectors, axis=1), kind="stable")
    while any(left.values()):
        for k in order:
            i, j = int(centre[k]), int(neighbour[k])
            if i in placed and j not in placed and left[int(structure.numbers[j])] > 0:
                placed[j] = placed[i] + vectors[k]
                left[int(structure.numbers[j])] -= 1
                break
        else:
            return None
    return Structure(structure.numbers[list(placed)], np.stack(list(placed.values())))


def formula(numbers: Ints) -> str:
    """ "H2O" for [8, 1, 1]: by atomic number, carbon first."""
    elements, counts = np.unique(numbers, return_counts=True)
    order = sorted(range(len(elements)), key=lambda k: (elements[k] != 6, elements[k]))
    return "".join(f"{symbol_of(int(elements[k]))}{counts[k] if counts[k] > 1 else ''}" for k in order)
