"""Whether a data set is in the units that it is declared in.

Three figures, which need no fit, were measured on eleven sets (NaCl clusters of GFN2 and DFT, water and its ions,
hydrocarbons, carbon chains, N-methylacetamide, QM9), on each as a whole and on 30 draws of ten frames:

A. the 10 % quantile of nearest distances over sums of covalent radii: 0.77 ... 0.99 (ten frames 0.73 ... 0.99); in bohr
   1.9 times that, 1.38 at least;
B. the stiffness of bonds k d^2: 5.8 ... 42 eV (4.3 ... 46); forces in hartree/bohr 0.08 ... 0.9;
C. the spread of energies at one composition over the one that forces and stiffness let expect: 0.47 ... 4.7
   (0.24 ... 13); energies in hartree make it 27 times smaller, forces in hartree/bohr 51 times larger. Rattled metals
   of an effective-medium theory have 0.35 ... 2.2.

All sets and draws pass as they are. Written in hartree and bohr, as a whole or positions alone, forces alone, or
energies and forces, all are refused; energies alone in hartree in whole sets, and most draws of ten frames.

Noise in place of forces (relaxed structures) is as significant as SIGNIFICANT in one draw of some hundreds. What cannot
be told is let through: energies without forces, relaxed structures, single atoms, noble gases.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from kqeq_md.errors import ConfigError
from kqeq_md.train.data.bonds import BONDED, Bonds, Stiffness, find_bonds, stiffness
from kqeq_md.train.data.composition import composition_design
from kqeq_md.train.data.labels import Frame
from kqeq_md.train.data.unit_system import FOLLOWS, FORCES, LENGTHS, Units, factors

SAMPLE = 200
"""Frames of each file that are looked at, evenly spread."""

FEWEST_ATOMS = 12
"""Fewer say nothing: a file may hold one dissociated molecule."""

USUAL_RATIO, RATIO = 0.9, (0.6, 1.35)
"""Nearest distance over the sum of covalent radii. F2 has 1.24, H2 1.19, metals up to 1.13."""

STIFFNESS = (1.7, 215.0)
"""eV. Soft metals have about 4 (2 k d^2 from their bulk modulus), N2 170."""

SIGNIFICANT, CORRELATED = 3.0, 0.25
"""Of the stiffness, to be judged at all."""

ENERGY_SPREAD = (0.19, 10.0)
"""Spread of energies over the expected one: below it energies, above it forces have the larger unit."""

COMMON_FORCES = ("eV/Angstrom", "hartree/bohr", "kcal/mol/Angstrom", "Ry/bohr", "kJ/mol/nm")


def check_units(frames: Sequence[Frame], units: Units) -> None:
    """Refuse a set whose distances, forces or energies fit other units, file by file and as a whole.

    Raises:
        ConfigError: naming the file, the figure and the unit that would make sense.
    """
    for doubt in unit_doubts(frames, units):
        raise ConfigError(f"{doubt}, or `check_units = false` in [data] if the units are right")


def unit_doubts(frames: Sequence[Frame], units: Units) -> Iterator[str]:
    """What speaks against the units, for each file and for the whole set."""
    files: dict[str, list[Frame]] = defaultdict(list)
    for frame in frames:
        files[frame.place.rsplit(", frame", 1)[0]].append(frame)
    sets = {**files, ", ".join(files): list(frames)} if len(files) > 1 else files
    for name, members in sets.items():
        if hint := unit_hint(_sample(members), units):
            yield f"{name}: {hint}"


def _sample(frames: Sequence[Frame]) -> list[Frame]:
    if len(frames) <= SAMPLE:
        return list(frames)
    return [frames[k] for k in np.unique(np.linspace(0, len(frames) - 1, SAMPLE).astype(int))]


def unit_hint(frames: Sequence[Frame], units: Units) -> str | None:
    """What does not fit the declared units and which would; None if all is plausible or cannot be told."""
    bonds = find_bonds(frames)
    near = bonds.nearest[np.isfinite(bonds.nearest)]
    if len(bonds.nearest) < FEWEST_ATOMS or len(near) < 0.5 * len(bonds.nearest):
        return None
    ratio = float(np.quantile(near, 0.1))
    length = _likely_length(ratio, units)
    scale = LENGTHS[length] / LENGTHS[units.length]
    stiff = stiffness(bonds, 1.0 / scale)
    keys, reasons = {}, []
    if length != units.length:
        keys["length"] = length
        reasons.append(
            f"nearest atoms are {ratio:.2f} sums of covalent radii apart ({RATIO[0]} to {RATIO[1]} is usual), so that "
            f"positions look like {length}"
        )
    if stiff is not None and stiff.correlation > CORRELATED and stiff.significance > SIGNIFICANT:
        reasons += _judge_forces(frames, bonds, stiff, scale, units, keys)
    if not keys:
        return None
    settings = ", ".join(f'{key} = "{unit}"' for key, unit in keys.items())
    return f"{'; '.join(reasons)}: set {settings} in [data.units]"


def _likely_length(ratio: float, units: Units) -> str:
    """The declared unit of length, or a better one where the nearest distances are far from covalent radii."""
    if RATIO[0] <= ratio <= RATIO[1]:
        return units.length
    misfits = {
        unit: abs(np.log(max(ratio, 1e-3) * factor / LENGTHS[units.length] / USUAL_RATIO))
        for unit, factor in LENGTHS.items()
    }  # overlapping atoms stand for distances far too short
    return min(misfits, key=misfits.__getitem__)


def _judge_forces(
    frames: Sequence[Frame], bonds: Bonds, stiff: Stiffness, scale: float, units: Units, keys: dict[str, str]
) -> list[str]:
    """Reasons to doubt forces and energies; the settings that would mend them go into `keys`.

    Args:
        frames: looked at.
        bonds: of the frames.
        stiff: from bonds in the declared units.
        scale: what positions should be multiplied with.
        units: declared.
        keys: settings so far, extended here.
    """
    value = scale * stiff.value
    spread = _energy_spread(frames, bonds, stiff)
    declared = factors(units).forces
    if STIFFNESS[0] <= value <= STIFFNESS[1]:
        if spread is not None and spread / scale < ENERGY_SPREAD[0] and units.energy != "hartree":
            keys["energy"] = "hartree"
            _keep_forces(units, keys)
            return [
                f"energies of one composition spread by {spread / scale:.2g} of what the forces let expect "
                f"({ENERGY_SPREAD[0]} to {ENERGY_SPREAD[1]} is usual), so that energies look like hartree"
            ]
        if "length" in keys:
            _keep_forces(units, keys)
        return []
    unit = next(
        (unit for unit in COMMON_FORCES if STIFFNESS[0] <= value * FORCES[unit] / declared <= STIFFNESS[1]), None
    )
    if unit is None:
        return []
    energy, length = unit.rsplit("/", 1)
    together = spread is not None and ENERGY_SPREAD[0] <= spread <= ENERGY_SPREAD[1] and energy != units.energy
    if together:
        keys["energy"] = energy
    follow = keys.get("length", units.length) == length and keys.get("energy", units.energy) == energy
    if not (follow and units.forces == FOLLOWS):
        keys["forces"] = unit
    return [
        f"bonds have a stiffness k d^2 of {value:.2g} eV ({STIFFNESS[0]:g} to {STIFFNESS[1]:g} is usual), so that "
        f"forces look like {unit}{f' and energies like {energy}' if together else ''}"
    ]


def _keep_forces(units: Units, keys: dict[str, str]) -> None:
    """Forces that are right follow energy and length unless their unit is named."""
    if units.forces == FOLLOWS:
        keys["forces"] = f"{units.energy}/{units.length}"


def _energy_spread(frames: Sequence[Frame], bonds: Bonds, stiff: Stiffness) -> float | None:
    """Standard deviation of energies about a fit of their compositions, over the one that forces let expect.

    That is sqrt(2/(3n)) sum_i |F_i d|^2 / (2 k d^2) for n atoms, mean over frames: in harmonic wells of one
    temperature the second factor is 3n/2 kT, and energies spread by sqrt(3n/2) kT. d is the mean bond length. Sets with
    isomers have more. None where fewer than five energies are left by the fit.
    """
    usable = [frame for frame in frames if frame.energy is not None and frame.forces is not None]
    usable = list({(frame.energy, len(frame.structure)): frame for frame in usable}.values())  # copies spread nothing
    if len(usable) < 6 or not len(bonds.length):
        return None
    energies = np.array([frame.energy for frame in usable])
    design = composition_design(usable)
    left = len(usable) - int(np.linalg.matrix_rank(design))
    if left < 5:
        return None
    rest = energies - design @ np.linalg.lstsq(design, energies, rcond=None)[0]
    bonded = bonds.ratio < BONDED * np.median(bonds.nearest[np.isfinite(bonds.nearest)])
    if not bonded.any():
        return None
    length = float(np.mean(bonds.length[bonded]))
    sizes = np.array([len(f.structure) for f in usable])
    squares = np.array([((f.forces - f.forces.mean(0)) ** 2).sum() for f in usable if f.forces is not None])
    expected = float(np.mean(squares * np.sqrt(2.0 / (3.0 * sizes)))) * length**2 / (2.0 * stiff.value)
    return float(np.sqrt(rest @ rest / left)) / expected if expected > 0.0 else None
