"""What `kqeq select` says and writes of the frames that it has picked."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.io import write

from kqeq_md.machine.files import write_whole
from kqeq_md.select.selection import Pick, Selection


def write_picked(selection: Selection, path: str | Path) -> None:
    """Write extended XYZ with `total_charge`, `electric_field`, `extrapolation` (largest, and of each atom), `worth`
    and `source`; an empty file if there is nothing to label."""
    frames = []
    for pick in selection.picks:
        candidate = pick.candidate
        atoms = Atoms(
            candidate.atoms.numbers, candidate.atoms.positions, cell=candidate.atoms.cell, pbc=candidate.atoms.pbc
        )
        atoms.info = {
            "total_charge": candidate.structure.charge,
            "electric_field": candidate.structure.field,
            "extrapolation": float(candidate.measure.max()),
            "worth": pick.worth,
            "source": candidate.place,
        }
        atoms.arrays["extrapolation"] = candidate.measure
        frames.append(atoms)
    whole = io.StringIO()
    if frames:
        write(whole, frames, format="extxyz")
    write_whole(path, whole.getvalue().encode())


def as_json(selection: Selection) -> dict[str, Any]:
    """The selection without its atoms; `atom` is null where the total charge measures more than any atom."""
    return {
        "threshold": selection.threshold,
        "n_frames": selection.n_frames,
        "n_extrapolating": selection.n_extrapolating,
        "n_refused": selection.n_refused,
        "first_refused": selection.first_refused,
        "nothing_left": selection.ended,
        "picked": [_entry(pick) for pick in selection.picks],
    }


def _entry(pick: Pick) -> dict[str, Any]:
    candidate = pick.candidate
    return {
        "source": candidate.place,
        "worth": pick.worth,
        "extrapolation": float(candidate.measure.max()),
        "atom": int(candidate.measure.argmax()) if candidate.worst[0] > candidate.total else None,
        "total_charge": candidate.structure.charge,
    }


def as_text(selection: Selection) -> str:
    """One line for each pick, and why there are no more."""
    lines = [
        f"{selection.n_extrapolating} of {selection.n_frames} frames are beyond the threshold of "
        f"{selection.threshold:.2f}"
    ]
    if selection.n_refused:
        lines.append(
            f"{selection.n_refused} of {selection.n_frames} frames cannot be computed; the first one is "
            f"{selection.first_refused}"
        )
    lines += [
        f"{entry['source']}: measure {entry['extrapolation']:.2f} ({_reason(entry)}), worth {entry['worth']:.2f}"
        for entry in as_json(selection)["picked"]
    ]
    rest = ", of those that can be computed" if selection.n_refused else ""
    if not selection.picks:
        lines.append(f"no frame is worth labelling{rest}: nothing extrapolates")
    elif selection.ended:
        lines.append(f"with these labelled, nothing else extrapolates{rest}")
    else:
        lines.append("more frames extrapolate: -n picks them too")
    return "\n".join(lines)


def _reason(entry: Mapping[str, Any]) -> str:
    return f"total charge {entry['total_charge']:g} e" if entry["atom"] is None else f"atom {entry['atom']}"
