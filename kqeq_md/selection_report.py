"""What `kqeq select` says and writes of the frames that it has picked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ase import Atoms
from ase.io import write

from kqeq_md.select import Selection


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
    if frames:
        write(path, frames, format="extxyz")
    else:
        Path(path).write_text("", encoding="utf-8")


def as_json(selection: Selection) -> dict[str, Any]:
    """The selection without its atoms."""
    return {
        "threshold": selection.threshold,
        "n_frames": selection.n_frames,
        "n_extrapolating": selection.n_extrapolating,
        "n_refused": selection.n_refused,
        "nothing_left": selection.ended,
        "picked": [
            {
                "source": pick.candidate.place,
                "worth": pick.worth,
                "extrapolation": float(pick.candidate.measure.max()),
                "atom": int(pick.candidate.measure.argmax()),
            }
            for pick in selection.picks
        ],
    }


def as_text(selection: Selection) -> str:
    """One line for each pick, and why there are no more."""
    lines = [
        f"{selection.n_extrapolating} of {selection.n_frames} frames have atoms beyond the threshold of "
        f"{selection.threshold:.2f}"
    ]
    lines += [
        f"{entry['source']}: measure {entry['extrapolation']:.2f} (atom {entry['atom']}), worth {entry['worth']:.2f}"
        for entry in as_json(selection)["picked"]
    ]
    if not selection.picks:
        lines.append("nothing extrapolates: no frame is worth labelling")
    elif selection.ended:
        lines.append("with these labelled, nothing else extrapolates")
    return "\n".join(lines)
