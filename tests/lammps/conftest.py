"""A folder in which real LAMMPS processes run, the systems that they run on, and the frames that they write."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kqeq_md.machine.programs import environment, libpython, program
from kqeq_md.model import Model, save_model
from kqeq_md.potential import Potential
from kqeq_md.structure import Floats, Result, Structure

NKTV2P = 1.6021765e6
"""bar per eV/Angstrom^3 as LAMMPS' `units metal` has it (update.cpp), 8e-8 off CODATA."""

THERMO = ("pe", "pxx", "pyy", "pzz", "pxy", "pxz", "pyz", "lx", "ly", "lz", "xy", "xz", "yz", "etotal")
ELEMENTS = {1: ("H", 1.008), 8: ("O", 15.999), 11: ("Na", 22.99), 17: ("Cl", 35.45)}
TIGHT = "pair_style kqeq tolerance 1e-12 threads 2"
"""For frames of a run, whose charges start from those of earlier steps."""


@dataclass(frozen=True)
class Frame:
    """One step that LAMMPS wrote: atoms in the order of their ids, at unwrapped positions, thermo output by name."""

    structure: Structure
    forces: Floats
    charges: Floats
    energies: Floats
    thermo: dict[str, float]

    @property
    def virial(self) -> Floats:
        """The static part of the pressure tensor times the volume, eV; only without velocities."""
        t = self.thermo
        rows = [["pxx", "pxy", "pxz"], ["pxy", "pyy", "pyz"], ["pxz", "pyz", "pzz"]]
        return np.array([[t[name] for name in row] for row in rows]) * t["lx"] * t["ly"] * t["lz"] / NKTV2P


@dataclass
class Workplace:
    """A folder with a model, in which LAMMPS runs.

    Attributes:
        folder: where input scripts and output lie.
        model: path of the model file.
        numbers: atomic number of each LAMMPS type.
    """

    folder: Path
    model: Path
    numbers: tuple[int, ...] = (11, 17)

    lmp = "lmp" if libpython() else "kqeq-lmp"
    tight = TIGHT

    # --- structures

    @staticmethod
    def solid(strain: Floats | None = None, **kwargs: Any) -> Structure:
        """Rattled rock salt, 64 atoms in a box of LAMMPS' orientation."""
        base = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
        corners = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), axis=-1).reshape(-1, 1, 3)
        sites = 5.7 * (corners + np.concatenate([base, base + np.array([0.5, 0, 0])])).reshape(-1, 3)
        deform = np.eye(3) if strain is None else np.eye(3) + strain
        rattled = sites @ deform + 0.15 * np.random.default_rng(1).normal(size=sites.shape)
        return Structure(np.tile([11] * 4 + [17] * 4, 8), rattled, 11.4 * deform, True, **kwargs)

    def triclinic(self) -> Structure:
        return self.solid(np.array([[0.02, 0, 0], [0.08, -0.03, 0], [-0.05, 0.06, 0.01]]))

    def cluster(self, charge: float = 0.0, field: tuple[float, ...] = (0.0, 0.0, 0.0)) -> Structure:
        """Twelve atoms cut out of `solid`, in open space."""
        whole = self.solid()
        rows = np.concatenate([np.flatnonzero(whole.numbers == z)[:6] for z in (11, 17)])
        return Structure(whole.numbers[rows], whole.positions[rows] - 5.0, charge=charge, field=field)

    @staticmethod
    def virial_of(result: Result) -> Floats:
        """What LAMMPS has of it, whose boxes stay triangular: the upper triangle before it is symmetrised, twice."""
        assert result.unsymmetrized_virial is not None
        upper = np.triu(result.unsymmetrized_virial)
        return upper + np.triu(upper, 1).T

    # --- input

    def data(self, structure: Structure, molecule: list[int] | None = None) -> None:
        """Write atoms.data for `atom_style charge`, or `full` with molecule ids; the cell must be lower triangular."""
        cell = structure.cell if structure.periodic else 60.0 * np.eye(3)
        low = 0.0 if structure.periodic else -30.0
        lines = ["atoms", "", f"{len(structure)} atoms", f"{len(self.numbers)} atom types", ""]
        lines += [f"{low!r} {low + float(cell[a, a])!r} {'xyz'[a]}lo {'xyz'[a]}hi" for a in range(3)]
        if cell[np.tril_indices(3, -1)].any():
            lines.append(f"{cell[1, 0]:.17g} {cell[2, 0]:.17g} {cell[2, 1]:.17g} xy xz yz")
        lines += ["", "Masses", "", *(f"{t} {ELEMENTS[z][1]}" for t, z in enumerate(self.numbers, start=1)), ""]
        lines += ["Atoms # charge" if molecule is None else "Atoms # full", ""]
        for i, (z, r) in enumerate(zip(structure.numbers, structure.positions, strict=True)):
            unit = "" if molecule is None else f"{molecule[i]} "
            lines.append(f"{i + 1} {unit}{self.numbers.index(z) + 1} 0.5 {r[0]:.17g} {r[1]:.17g} {r[2]:.17g}")
        (self.folder / "atoms.data").write_text("\n".join(lines) + "\n")

    @property
    def coefficients(self) -> str:
        """What follows the style in pair_coeff."""
        return " ".join([str(self.model), *(ELEMENTS[z][0] for z in self.numbers)])

    def script(self, end: str, **parts: str) -> str:
        """An input script; parts replace its lines by name."""
        lines = {
            "units": "units metal",
            "boundary": "boundary p p p",
            "atom_style": "atom_style charge",
            "read": "read_data atoms.data",
            "pair_style": "pair_style kqeq",
            "pair_coeff": f"pair_coeff * * {self.coefficients}",
        }
        assert set(parts) <= set(lines)
        return "\n".join([*(lines | parts).values(), end, ""])

    def save(self, model: Model, name: str) -> Workplace:
        """The same folder with another model."""
        path = self.folder / name
        save_model(model, path)
        return replace(self, model=path)

    # --- processes

    def lammps(
        self,
        script: str,
        name: str = lmp,
        env: dict[str, str] | None = None,
        ranks: int = 1,
        options: Sequence[str] = (),
    ) -> subprocess.CompletedProcess[str]:
        (self.folder / "in.lmp").write_text(script)
        command = [str(program(name)), "-in", "in.lmp", *options]
        if ranks > 1:
            command = [str(program("mpirun")), "-n", str(ranks), *command]
        return subprocess.run(
            command, cwd=self.folder, env=env or environment(), capture_output=True, text=True, timeout=300
        )

    def run(self, script: str, **kwargs: Any) -> str:
        """The screen of a run that must succeed."""
        answer = self.lammps(script, **kwargs)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout

    def refused(self, script: str, message: str, **kwargs: Any) -> None:
        """LAMMPS must end with one line that `message` matches (or several, of several ranks), an exit code, and
        nothing from Python."""
        answer = self.lammps(script, **kwargs)
        assert answer.returncode != 0
        errors = [line for line in (answer.stdout + answer.stderr).splitlines() if line.startswith("ERROR")]
        assert len(errors) == 1 or (errors and kwargs.get("ranks", 1) > 1), answer.stdout + answer.stderr
        assert all(re.search(message, error) for error in errors), errors
        assert "Traceback" not in answer.stdout + answer.stderr

    # --- output

    @staticmethod
    def say(word: str, *names: str) -> str:
        """A command that prints numbers, for `said`."""
        return f"print '{word} {' '.join(f'$({name}:%.17g)' for name in names)}'"

    @staticmethod
    def said(screen: str, word: str) -> Floats:
        """What `say` printed, each time, shape (n_times, n_names)."""
        lines = [line.split() for line in screen.splitlines() if line.startswith(f"{word} ")]
        return np.array([[float(x) for x in line[1:]] for line in lines])

    def write_frame(self, name: str) -> str:
        """Commands that write what `frame` reads; `compute e all pe/atom` must stand before the run."""
        columns = "id type q xu yu zu fx fy fz c_e modify sort id format float %.17g"
        return f"write_dump all custom {name}.dump {columns}\n{self.say(name, *THERMO)}"

    def read_frame(self, screen: str, name: str, boundary: str = "p p p") -> Frame:
        thermo = dict(zip(THERMO, self.said(screen, name)[0], strict=True))
        rows = np.loadtxt(self.folder / f"{name}.dump", skiprows=9, ndmin=2)
        cell = np.array([[thermo["lx"], 0, 0], [thermo["xy"], thermo["ly"], 0]])
        cell = np.vstack([cell, [thermo["xz"], thermo["yz"], thermo["lz"]]])
        pbc = [style == "p" for style in boundary.split()]
        numbers = np.array(self.numbers)[rows[:, 1].astype(int) - 1]
        structure = Structure(numbers, rows[:, 3:6], cell if any(pbc) else None, pbc)
        return Frame(structure, rows[:, 6:9], rows[:, 2], rows[:, 9], thermo)

    def frame(self, command: str = "run 0", **parts: str) -> Frame:
        """The last step of `command`."""
        screen = self.run(self.script(f"compute e all pe/atom\n{command}\n{self.write_frame('last')}", **parts))
        return self.read_frame(screen, "last", parts.get("boundary", "boundary p p p").removeprefix("boundary "))

    def compute(self, structure: Structure, tolerance: float = 1e-5, **kwargs: Any) -> Result:
        return Potential(self.model, tolerance=tolerance, **kwargs).compute(structure)

    @staticmethod
    def assert_same(frame: Frame, expected: Result) -> None:
        """The frame is the core's own result: what differs is the last digit of positions and sums."""
        assert expected.energies is not None
        assert expected.forces is not None
        n = len(frame.charges)
        assert frame.thermo["pe"] == pytest.approx(expected.energy, abs=1e-8 * n)
        np.testing.assert_allclose(frame.energies, expected.energies, atol=1e-8)
        np.testing.assert_allclose(frame.forces, expected.forces, atol=1e-7)
        np.testing.assert_allclose(frame.charges, expected.charges, atol=1e-8)


@pytest.fixture
def here(tmp_path: Path, nacl_model: Path) -> Workplace:
    """With a small Na/Cl model that was trained for charges that flow everywhere."""
    return Workplace(tmp_path, nacl_model)


@pytest.fixture
def ions(here: Workplace, model: Model, helpers: Any) -> Workplace:
    """Split charges on reference charges of +-1 e."""
    return here.save(helpers.split_model(model, (1.0, -1.0)), "ions.kqeq")


@pytest.fixture
def wet(tmp_path: Path, water: Model) -> Workplace:
    """With a small H/O model."""
    return Workplace(tmp_path, tmp_path, (1, 8)).save(water, "water.kqeq")
