"""Molecules of the frames: found anew in each of them, and the one that a model carries for its diagnosis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from kqeq_md.charges.charge_model import CONNECTIVITY
from kqeq_md.charges.fragments import connected_fragments
from kqeq_md.charges.leaks import LEAK
from kqeq_md.machine.threads import in_parallel, kernel_threads
from kqeq_md.potential import Potential
from kqeq_md.structure import Floats
from kqeq_md.train.data import Frame

Found = TypeVar("Found")


def prepared(potential: Potential, frame: Frame) -> Potential:
    """The potential, with the frame's fragments where its charges stay in fragments."""
    if potential.charge_model.name == "fragments":
        take_fragments(potential, frame)
    return potential


def take_fragments(potential: Potential, frame: Frame) -> None:
    """Let `potential` use the frame's molecule numbers, or find its fragments: it keeps those of the frame before."""
    potential.use_fragments(CONNECTIVITY if frame.fragments is None else frame.fragments)


def for_each(
    potential: Potential, frames: Sequence[Frame], function: Callable[[Potential, Frame], Found]
) -> list[Found]:
    """What `function` says of each frame, in their order.

    Every frame has a twin of the potential, which has one thread, to itself: what comes out does not depend on how many
    frames are computed at once.
    """

    def of(frame: Frame) -> Found:
        own = potential.twin()
        return function(prepared(own, frame) if own.has_charges else own, frame)

    return in_parallel(of, frames, kernel_threads())


def all_forces(potential: Potential, frames: Sequence[Frame]) -> Floats:
    """Forces on all atoms of all frames, eV/Angstrom, shape (n, 3)."""

    def forces(own: Potential, frame: Frame) -> Floats:
        found = own.compute(frame.structure, want=("forces",)).forces
        assert found is not None
        return found

    return np.concatenate(for_each(potential, frames, forces))


def smallest_fragment(frames: Sequence[Frame]) -> dict[str, Any]:
    """The smallest neutral molecule, as JSON: a frame of one fragment, else part of a frame; nothing if there is none.

    Inside a frame a molecule is neutral when its charge labels add up to less than LEAK.
    """
    candidates = [
        (len(atoms) < len(frame.structure), len(atoms), index, frame.structure, atoms)
        for index, frame in enumerate(frames)
        for atoms in _neutral_molecules(frame)
    ]
    if not candidates:
        return {}
    *_, structure, atoms = min(candidates, key=lambda candidate: candidate[:3])
    whole = connected_fragments(structure).whole(structure)[atoms]
    return {"numbers": structure.numbers[atoms].tolist(), "positions": (whole - whole.mean(axis=0)).tolist()}


def _neutral_molecules(frame: Frame) -> Iterator[np.ndarray[Any, np.dtype[np.int64]]]:
    """Atoms of each neutral fragment of at least two atoms that does not close over a boundary."""
    fragments = connected_fragments(frame.structure)
    if len(fragments.windings) > 0:
        return
    if len(fragments) == 1:
        sums = np.array([frame.structure.charge])
    elif frame.charges is not None:
        sums = np.bincount(fragments.group, frame.charges)
    else:
        return
    for index in np.flatnonzero(np.abs(sums) < LEAK):
        atoms = np.flatnonzero(fragments.group == index)
        if len(atoms) > 1:
            yield atoms
