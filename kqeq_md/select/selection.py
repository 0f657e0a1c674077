"""`kqeq select`: the frames of trajectories that are worth labelling next.

A frame is worth as much as the largest measure of extrapolation of its atoms. Atoms like those of a frame that is
picked already are worth less, in proportion to how near they are:

    worth = max_i measure_i min(1, min_p |v_i - v_p| / d_i)

over the atoms p of the same element in all picked frames, with the vectors v and distances d of
`kqeq_md.extrapolation`. A total charge beyond those of training and of the picked frames makes a frame worth as much as
that measures. Each pick is the frame of the largest worth, until no frame's is beyond the threshold: many nearly
identical frames count once.

Reference: Gonzalez, Theor. Comput. Sci. 38, 293 (1985), doi:10.1016/0304-3975(85)90224-5.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms

from kqeq_md.ase import NO_FIELD, structure_from_atoms
from kqeq_md.charges.charge_model import CONNECTIVITY
from kqeq_md.errors import KqeqError
from kqeq_md.extrapolation import Extrapolation
from kqeq_md.frames import read_atoms
from kqeq_md.local_part import LocalKernels
from kqeq_md.machine.threads import one_blas_thread
from kqeq_md.model import Model
from kqeq_md.neighbours.half_list import find_pairs
from kqeq_md.neighbours.search import Ints
from kqeq_md.potential import Potential
from kqeq_md.structure import Floats, Structure

MOST = 2000
"""Candidates at most in memory: those with the largest measures."""

WORST = 8
"""Atoms of a candidate whose surroundings are kept: the others of a frame extrapolate less."""


@dataclass(frozen=True)
class Candidate:
    """A frame with atoms that extrapolate.

    Attributes:
        place: file and number of the frame.
        atoms: as read.
        structure: with total charge and field.
        measure: of all atoms, shape (n,).
        total: the same of its total charge.
        numbers, worst, apart, vectors: of its worst atoms: atomic numbers, measures (the total charge left aside),
            d_i, and v_i.
    """

    place: str
    atoms: Atoms
    structure: Structure
    measure: Floats
    total: float
    numbers: Ints
    worst: Floats
    apart: Floats
    vectors: Floats


@dataclass(frozen=True)
class Pick:
    """A frame, and what it was worth when it was picked."""

    candidate: Candidate
    worth: float


@dataclass(frozen=True)
class Selection:
    """What was picked, best first.

    Attributes:
        picks: frames.
        threshold: measure beyond which atoms extrapolate.
        n_frames: all that were read. n_extrapolating: those beyond the threshold. n_refused: that cannot be computed.
        first_refused: place and reason of the first of these, "" if there are none.
        ended: no other frame extrapolates once these are known.
    """

    picks: list[Pick]
    threshold: float
    n_frames: int
    n_extrapolating: int
    n_refused: int
    first_refused: str
    ended: bool


class Ruler:
    """What measures frames, and compares their atoms.

    Args:
        model: as trained so far.
    """

    def __init__(self, model: Model) -> None:
        self.potential = Potential(model)
        self._extrapolation = Extrapolation(LocalKernels(model))
        self._limits = self._extrapolation.limits

    def measure(self, structure: Structure) -> Floats:
        """Of extrapolation, the total charge left aside, shape (n,); errors as in `Potential.compute`."""
        potential = self.potential
        if potential.has_charges and potential.charge_model.name == "fragments":
            potential.use_fragments(CONNECTIVITY)
        result = potential.compute(structure, want=("forces",))
        species = potential.species_index(structure.numbers)
        return self._extrapolation.with_result(potential.extrapolation(structure), species, result)

    def total(self, structure: Structure) -> float:
        """The range of its total charge; 0 without calibration."""
        return 0.0 if self._limits is None else self._limits.beyond_total(structure.charge, len(structure))

    def learn(self, structure: Structure) -> None:
        """Take its total charge for one that occurred in training."""
        if self._limits is not None:
            self._limits = self._limits.with_total(structure.charge, len(structure))

    def compared(self, structure: Structure) -> tuple[Floats, Floats]:
        """d_i, shape (n,), and v_i, shape (n, size)."""
        species = self.potential.species_index(structure.numbers)
        pairs = find_pairs(structure, self.potential.model.cutoff)
        with one_blas_thread:
            apart = self._extrapolation.distance(species, pairs, species, self.potential.threads)
            return apart, self._extrapolation.surroundings(species, pairs)


def select(
    model: Model, files: Sequence[str | Path], number: int, charge: float = 0.0, is_open: bool = False
) -> Selection:
    """Pick at most `number` frames of trajectories, the same ones each time.

    Args:
        model: as trained so far.
        files: that ASE reads; `total_charge` (e) and `electric_field` (V/Angstrom) of a frame count.
        number: of frames.
        charge: total charge of frames that do not tell, e.
        is_open: frames have no cell, whatever their file says: i-PI writes one around clusters too.

    Raises:
        KqeqError: no positive number, a file that cannot be read, or no frame that can be computed.
    """
    if number < 1:
        raise KqeqError(f"`number` must be positive, got {number}")
    ruler = Ruler(model)
    best: list[tuple[float, int, Candidate]] = []
    n_frames = n_refused = n_extrapolating = 0
    first = ""
    for place, atoms in (frame for file in files for frame in read_atoms(file, "trajectory")):
        n_frames += 1
        if is_open:
            atoms.set_cell(None)
            atoms.pbc = False
        try:
            found = _candidate(ruler, place, atoms, charge)
        except KqeqError as error:
            first = first or f"{place}: {error}"
            n_refused += 1
            continue
        if found is not None:
            n_extrapolating += 1
            # of equal measures the earlier frame stays
            heapq.heappush(best, (float(found.measure.max()), -n_frames, found))
            if len(best) > MOST:
                heapq.heappop(best)
    if n_refused == n_frames:
        raise KqeqError(first)
    candidates = [candidate for *_, candidate in sorted(best, key=lambda entry: -entry[1])]
    picks, ended = _pick(ruler, candidates, number)
    return Selection(picks, ruler.potential.largest_measure, n_frames, n_extrapolating, n_refused, first, ended)


def _candidate(ruler: Ruler, place: str, atoms: Atoms, charge: float) -> Candidate | None:
    """The frame, if any of its atoms extrapolates.

    Raises:
        KqeqError: it cannot be computed.
    """
    if any(str(key).startswith("CELL") for key in atoms.info):
        raise KqeqError(
            "i-PI's own xyz hides cell and units: write <trajectory format='ase'> positions{ase} </trajectory>, got "
            "CELL in the comment"
        )
    total, field = atoms.info.get("total_charge", charge), atoms.info.get("electric_field", NO_FIELD)
    structure = structure_from_atoms(atoms, total, field)
    measure = ruler.measure(structure)
    worst = np.argsort(-measure, kind="stable")[:WORST]
    total = ruler.total(structure)
    if max(measure[worst[0]], total) <= ruler.potential.largest_measure:
        return None
    apart, vectors = ruler.compared(structure)
    return Candidate(
        place, atoms, structure, np.maximum(measure, total), total, structure.numbers[worst], measure[worst],
        apart[worst], vectors[worst],
    )  # fmt: skip


def _pick(ruler: Ruler, candidates: list[Candidate], number: int) -> tuple[list[Pick], bool]:
    """Picks, and whether nothing is left that extrapolates."""
    nearest = [np.full(len(candidate.worst), np.inf) for candidate in candidates]
    picks: list[Pick] = []
    while candidates:
        worth = [max(_worth(c, d), ruler.total(c.structure)) for c, d in zip(candidates, nearest, strict=True)]
        best = int(np.argmax(worth))
        if worth[best] <= ruler.potential.largest_measure:
            return picks, True
        if len(picks) == number:
            return picks, False
        picks.append(Pick(candidates[best], worth[best]))
        ruler.learn(candidates[best].structure)
        _, vectors = ruler.compared(candidates[best].structure)
        for candidate, distance in zip(candidates, nearest, strict=True):
            _shorten(distance, candidate, vectors, candidates[best].structure.numbers)
    return picks, True


def _worth(candidate: Candidate, nearest: Floats) -> float:
    return float((candidate.worst * np.minimum(1.0, nearest / np.maximum(candidate.apart, 1e-12))).max())


def _shorten(nearest: Floats, candidate: Candidate, vectors: Floats, numbers: Ints) -> None:
    """Take new atoms, vectors of shape (m, size), into the distances of a candidate's worst atoms."""
    for i, number in enumerate(candidate.numbers):
        same = vectors[numbers == number]
        if len(same):
            nearest[i] = min(nearest[i], np.linalg.norm(same - candidate.vectors[i], axis=1).min())
