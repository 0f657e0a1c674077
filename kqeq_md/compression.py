"""The rank of a model's kernels: as low as its forces on given structures allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from kqeq_md.kernel import eigen_kernel, largest
from kqeq_md.model import Model
from kqeq_md.potential import Potential
from kqeq_md.structure import Floats, Structure

LARGEST_FORCE_ERROR = 1e-4
"""Of the rms force: two orders below the errors of any model, and invisible in a trajectory."""

STEP = 8
"""Ranks that are tried are multiples of it."""


@dataclass(frozen=True)
class Compressed:
    """A model with kernels of low rank, and what that costs.

    Attributes:
        model: with the kernels of the sparse points alone where no lower rank would be good enough.
        force_error: rms of F(low rank) - F(exact) over the rms of F(exact); None without low rank.
    """

    model: Model
    force_error: float | None


def compress(model: Model, forces: Callable[[Potential], Floats]) -> Compressed:
    """The lowest rank per element (in the mean) whose force error stays below `LARGEST_FORCE_ERROR`, by bisection.

    Only kernels with zeta = 2 have a low rank (`kernel.py`).

    Args:
        model: the model.
        forces: those of a potential on the structures that count, eV/Angstrom.
    """
    squares = [term for term in model.terms if term.zeta == 2]
    most = max((sum(map(len, term.sparse_points)) for term in squares), default=0) / len(model.species)
    none = Compressed(replace(model, terms=tuple(replace(term, low_rank=None) for term in model.terms)), None)
    exact = forces(Potential(none.model)) if most > STEP else np.zeros(0)
    if not exact.any():
        return none

    eigen = [eigen_kernel(term.sparse_kernel) if term.zeta == 2 else None for term in model.terms]

    def tried(rank: int) -> Compressed:
        kernels = [None if kernel is None else largest(kernel, rank) for kernel in eigen]
        terms = (replace(term, low_rank=low) for term, low in zip(model.terms, kernels, strict=True))
        other = replace(model, terms=tuple(terms))
        error = forces(Potential(other)) - exact
        return Compressed(other, float(np.sqrt(np.mean(error**2) / np.mean(exact**2))))

    good, too_low, enough = none, 0, ceil(most / STEP)  # in steps; all sparse points are enough
    while enough - too_low > 1:
        middle = (too_low + enough) // 2
        candidate = tried(STEP * middle)
        assert candidate.force_error is not None
        if candidate.force_error < LARGEST_FORCE_ERROR:
            good, enough = candidate, middle
        else:
            too_low = middle
    return good


def forces_on(structures: Sequence[Structure]) -> Callable[[Potential], Floats]:
    """Forces of a potential on all atoms of these structures, eV/Angstrom, shape (n, 3)."""

    def forces(potential: Potential) -> Floats:
        found = [potential.compute(structure, want=("forces",)).forces for structure in structures]
        return np.concatenate([values for values in found if values is not None])

    return forces
