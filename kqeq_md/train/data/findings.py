"""What is odd in data sets, said before training: copies, leaks, outliers, forces and charges that do not add up."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kqeq_md.structure import Floats
from kqeq_md.train.data.composition import composition_design
from kqeq_md.train.data.duplicates import find_duplicates
from kqeq_md.train.data.labels import Frame

log = logging.getLogger("kqeq_md")

CHARGE_SUM_TOLERANCE = 0.01
"""e. Rounding in files and partitioning schemes stays below."""

LARGE_FORCE = 50.0
"""eV/Angstrom. Atoms that far up a wall are not met in molecular dynamics."""

OUTLYING = 20.0
"""Median absolute deviations from the median, of the largest force of frames and of energies at one composition. Both
have long tails: at 10 one in 70 sound frames of hot water clusters would be named."""

NET_FORCE_TOLERANCE, NET_FORCE_NOISE = 1e-2, 1e-3
"""eV/Angstrom, and rms forces per root of the number of atoms: noise of codes whose grids break translation."""

ENERGY_CONTRADICTION, FORCE_CONTRADICTION, CHARGE_CONTRADICTION = 1e-3, 0.1, 0.01
"""eV per atom, eV/Angstrom, e. Within 1e-3 Angstrom forces of stiff bonds (60 eV/Angstrom^2) change by 0.06."""

FEWEST = 20
"""Frames below which nothing is an outlier."""

SHOWN = 3
"""Frames that a line names."""


@dataclass(frozen=True)
class Finding:
    """One kind of oddity.

    Attributes:
        kind: "leak", "duplicate", "contradiction", "large forces", "net force", "charge sum" or "energy outlier".
        count: frames that have it.
        places: file and number of all of them, the worst first.
        message: one line for the reader.
    """

    kind: str
    count: int
    places: tuple[str, ...]
    message: str


def inspect_frames(frames: Sequence[Frame], test: Sequence[Frame] = ()) -> list[Finding]:
    """All that is odd in the training frames, and test frames that stand among them.

    Args:
        frames: to be trained on.
        test: to be tested on.
    """
    return [
        *_copies(frames, test),
        *_large_forces(frames),
        *_net_forces(frames),
        *charge_sums(frames),
        *_energy_outliers(frames),
    ]


def warn_of(findings: Sequence[Finding]) -> None:
    """One logged line per finding."""
    for finding in findings:
        log.warning("%s", finding.message)


def charge_sums(frames: Sequence[Frame]) -> Iterator[Finding]:
    """Charge labels that miss the total charge are often a misnamed key; a fit cannot follow them."""
    misses = [0.0 if f.charges is None else abs(float(f.charges.sum()) - f.structure.charge) for f in frames]
    yield from _finding(
        "charge sum",
        frames,
        {index: miss for index, miss in enumerate(misses) if miss > CHARGE_SUM_TOLERANCE},
        lambda n, most: f"charge labels miss the total charge in {n} of {len(frames)} frames, by up to {most:.3g} e",
        ": is the key of the total charge right?",
    )


def _finding(
    kind: str, frames: Sequence[Frame], worst: dict[int, float], say: Callable[[int, float], str], end: str = ""
) -> Iterator[Finding]:
    """The finding, if any frame has it.

    Args:
        kind: of the finding.
        frames: the set.
        worst: how bad each of its frames is, by index.
        say: the sentence, from the number of frames and the worst value.
        end: what follows the places.
    """
    if worst:
        order = sorted(worst, key=lambda index: (-worst[index], index))
        places = tuple(frames[index].place for index in order)
        named = "; ".join(places[:SHOWN]) + ("; ..." if len(places) > SHOWN else "")
        yield Finding(kind, len(worst), places, f"{say(len(worst), worst[order[0]])} ({named}){end}")


def _copies(frames: Sequence[Frame], test: Sequence[Frame]) -> Iterator[Finding]:
    both = [*frames, *test]
    pairs = find_duplicates([frame.structure for frame in both])
    n = len(frames)
    leaks = {later: 0.0 for earlier, later in pairs if earlier < n <= later}
    copies = {later: 0.0 for _, later in pairs if later < n}
    against = {later: miss for one, later in pairs if (miss := _contradiction(both[one], both[later])) > 1.0}
    yield from _finding(
        "leak",
        both,
        leaks,
        lambda count, _: (
            f"{count} of {len(test)} test frames stand in the training set too, so that test errors are too small"
        ),
    )
    yield from _finding(
        "duplicate", both, copies, lambda count, _: f"{count} of {n} training frames are copies of earlier ones"
    )
    yield from _finding(
        "contradiction",
        both,
        against,
        lambda count, _: f"{count} frames have other labels than an earlier copy of the same structure",
    )


def _contradiction(one: Frame, other: Frame) -> float:
    """Largest difference of labels of two copies, in units of what counts as one."""
    misses = [0.0]
    if one.energy is not None and other.energy is not None:
        misses.append(abs(one.energy - other.energy) / len(one.structure) / ENERGY_CONTRADICTION)
    if np.array_equal(one.structure.numbers, other.structure.numbers):  # atoms in one order
        if one.forces is not None and other.forces is not None:
            misses.append(float(np.abs(one.forces - other.forces).max()) / FORCE_CONTRADICTION)
        if one.charges is not None and other.charges is not None:
            misses.append(float(np.abs(one.charges - other.charges).max()) / CHARGE_CONTRADICTION)
    return max(misses)


def _large_forces(frames: Sequence[Frame]) -> Iterator[Finding]:
    largest = {i: float(np.linalg.norm(f.forces, axis=1).max()) for i, f in enumerate(frames) if f.forces is not None}
    limit = min(LARGE_FORCE, _upper_limit(np.array(list(largest.values()))))
    yield from _finding(
        "large forces",
        frames,
        {index: force for index, force in largest.items() if force > limit},
        lambda n, most: f"{n} of {len(frames)} frames have forces above {limit:.3g} eV/A, up to {most:.3g}",
    )


def _upper_limit(values: Floats) -> float:
    """Median + OUTLYING median absolute deviations; infinity for few values or values that are mostly equal."""
    if len(values) < FEWEST:
        return float("inf")
    median = float(np.median(values))
    deviation = float(np.median(np.abs(values - median)))
    return median + OUTLYING * deviation if deviation > 0.0 else float("inf")


def _net_forces(frames: Sequence[Frame]) -> Iterator[Finding]:
    """The sum of all forces is Q F; along periodic axes a field makes no such statement."""
    worst = {}
    for index, frame in enumerate(frames):
        structure = frame.structure
        if frame.forces is None or (structure.boundary != "open" and structure.field.any()):
            continue
        net = float(np.linalg.norm(frame.forces.sum(axis=0) - structure.charge * structure.field))
        noise = NET_FORCE_NOISE * float(np.sqrt(np.mean(frame.forces**2) * len(structure)))
        if net > NET_FORCE_TOLERANCE + noise:
            worst[index] = net
    yield from _finding(
        "net force",
        frames,
        worst,
        lambda n, most: f"forces do not add up to Q F in {n} of {len(frames)} frames, by up to {most:.3g} eV/A",
        ": are the total charge, the field and its sign right?",
    )


def _energy_outliers(frames: Sequence[Frame]) -> Iterator[Finding]:
    """Energies per atom far from what compositions and total charges explain."""
    rows = [index for index, frame in enumerate(frames) if frame.energy is not None]
    if len(rows) < FEWEST:
        return
    labelled = [frames[index] for index in rows]
    energies = np.array([frame.energy for frame in labelled])
    design = composition_design(labelled)
    rest = energies - design @ np.linalg.lstsq(design, energies, rcond=None)[0]
    rest = (rest - np.median(rest)) / np.array([len(frame.structure) for frame in labelled])
    size = np.abs(rest)
    limit = _upper_limit(size)
    yield from _finding(
        "energy outlier",
        frames,
        {rows[k]: float(size[k]) for k in np.flatnonzero(size > limit)},
        lambda n, most: (
            f"energies of {n} of {len(frames)} frames are far from those of their composition, by up to "
            f"{most:.3g} eV/atom"
        ),
    )
