"""pair_style kqeq in real LAMMPS processes, against `Potential.compute` on the same frame."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kqeq_md.lammps_plugin import build
from kqeq_md.model import Model, save_model
from kqeq_md.potential import Potential
from kqeq_md.programs import environment, libpython, program
from kqeq_md.structure import Floats, Result, Structure

NKTV2P = 1.6021765e6
"""bar per eV/Angstrom^3 as LAMMPS' `units metal` has it (update.cpp), 8e-8 off CODATA."""

NO_PAIRS = {"pair_style": "pair_style zero 5", "pair_coeff": "pair_coeff * *"}
SYSTEMS = ("orthorhombic", "triclinic", "charged cluster in a field")
THERMO = ("pe", "pxx", "pyy", "pzz", "pxy", "pxz", "pyz", "lx", "ly", "lz", "xy", "xz", "yz", "etotal")

needs_libpython = pytest.mark.skipif(libpython() is None, reason="`lmp` needs a shared libpython")
LAMMPS = "lmp" if libpython() else "kqeq-lmp"


@dataclass(frozen=True)
class Frame:
    """One step that LAMMPS wrote: atoms in the order of their ids, thermo output by name."""

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
    """A folder with a model, in which LAMMPS runs."""

    folder: Path
    model: Path

    def data(self, structure: Structure) -> None:
        """Write atoms.data; the cell of a periodic structure must be lower triangular."""
        cell = structure.cell if structure.periodic else 60.0 * np.eye(3)
        low = 0.0 if structure.periodic else -30.0
        lines = ["atoms", "", f"{len(structure)} atoms", "2 atom types", ""]
        lines += [f"{low!r} {low + float(cell[a, a])!r} {'xyz'[a]}lo {'xyz'[a]}hi" for a in range(3)]
        if cell[np.tril_indices(3, -1)].any():
            lines.append(f"{cell[1, 0]:.17g} {cell[2, 0]:.17g} {cell[2, 1]:.17g} xy xz yz")
        lines += ["", "Masses", "", "1 22.99", "2 35.45", "", "Atoms # charge", ""]
        for i, (z, r) in enumerate(zip(structure.numbers, structure.positions, strict=True), start=1):
            lines.append(f"{i} {1 if z == 11 else 2} 0.5 {r[0]:.17g} {r[1]:.17g} {r[2]:.17g}")
        (self.folder / "atoms.data").write_text("\n".join(lines) + "\n")

    def script(self, end: str, **parts: str) -> str:
        """An input script; parts replace its lines by name."""
        lines = {
            "units": "units metal",
            "boundary": "boundary p p p",
            "atom_style": "atom_style charge",
            "read": "read_data atoms.data",
            "pair_style": "pair_style kqeq",
            "pair_coeff": f"pair_coeff * * {self.model} Na Cl",
        }
        assert set(parts) <= set(lines)
        return "\n".join([*(lines | parts).values(), end, ""])

    def lammps(
        self, script: str, name: str = LAMMPS, env: dict[str, str] | None = None, ranks: int = 1
    ) -> subprocess.CompletedProcess[str]:
        (self.folder / "in.lmp").write_text(script)
        command = [str(program(name)), "-in", "in.lmp"]
        if ranks > 1:
            command = [str(program("mpirun")), "-n", str(ranks), *command]
        return subprocess.run(
            command, cwd=self.folder, env=env or environment(), capture_output=True, text=True, timeout=300
        )

    def run(self, script: str, **kwargs: str) -> str:
        """The screen of a run that must succeed."""
        answer = self.lammps(script, **kwargs)  # type: ignore[arg-type]
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout

    def refused(self, script: str, message: str, **kwargs: int) -> None:
        """LAMMPS must end with one line that `message` matches, an exit code, and nothing from Python."""
        answer = self.lammps(script, **kwargs)  # type: ignore[arg-type]
        assert answer.returncode != 0
        errors = [line for line in (answer.stdout + answer.stderr).splitlines() if line.startswith("ERROR")]
        assert len(errors) == 1
        assert re.search(message, errors[0]), errors[0]
        assert "Traceback" not in answer.stdout + answer.stderr

    def frame(self, command: str = "run 0", **parts: str) -> Frame:
        """The last step of `command`."""
        words = ["kqeq-thermo", *(f"$({name}:%.17g)" for name in THERMO)]
        end = f"""
compute e all pe/atom
{command}
write_dump all custom last.dump id type q x y z fx fy fz c_e modify sort id format float %.17g
print '{" ".join(words)}'"""
        screen = self.run(self.script(end, **parts))
        values = next(line.split()[1:] for line in screen.splitlines() if line.startswith("kqeq-thermo"))
        thermo = dict(zip(THERMO, map(float, values), strict=True))
        rows = np.loadtxt(self.folder / "last.dump", skiprows=9)
        cell = np.array([[thermo["lx"], 0, 0], [thermo["xy"], thermo["ly"], 0]])
        cell = np.vstack([cell, [thermo["xz"], thermo["yz"], thermo["lz"]]])
        pbc = [style == "p" for style in parts.get("boundary", "boundary p p p").split()[1:]]
        numbers = np.where(rows[:, 1] == 1, 11, 17)
        structure = Structure(numbers, rows[:, 3:6], cell if any(pbc) else None, pbc)
        return Frame(structure, rows[:, 6:9], rows[:, 2], rows[:, 9], thermo)


@pytest.fixture
def here(tmp_path: Path, nacl_model: Path) -> Workplace:
    return Workplace(tmp_path, nacl_model)


def solid(strain: Floats | None = None, **kwargs: float) -> Structure:
    """Rattled rock salt, 64 atoms in a box of LAMMPS' orientation."""
    base = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    corners = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), axis=-1).reshape(-1, 1, 3)
    sites = 5.7 * (corners + np.concatenate([base, base + np.array([0.5, 0, 0])])).reshape(-1, 3)
    deform = np.eye(3) if strain is None else np.eye(3) + strain
    rattled = sites @ deform + 0.15 * np.random.default_rng(1).normal(size=sites.shape)
    return Structure(np.tile([11] * 4 + [17] * 4, 8), rattled, 11.4 * deform, True, **kwargs)


def cluster(charge: float = 0.0, field: tuple[float, ...] = (0.0, 0.0, 0.0)) -> Structure:
    """Twelve atoms cut out of `solid`, in open space."""
    whole = solid()
    rows = np.concatenate([np.flatnonzero(whole.numbers == z)[:6] for z in (11, 17)])
    return Structure(whole.numbers[rows], whole.positions[rows] - 5.0, charge=charge, field=field)


def system(name: str) -> tuple[Structure, dict[str, str]]:
    """A structure, and the lines of its input script."""
    if name == "orthorhombic":
        return solid(), {}
    if name == "triclinic":
        return solid(np.array([[0.02, 0, 0], [0.08, -0.03, 0], [-0.05, 0.06, 0.01]])), {}
    style = "pair_style kqeq field 0.0 0.05 0.1 charge 1"
    return cluster(1.0, (0.0, 0.05, 0.1)), {"boundary": "boundary f f f", "pair_style": style}


TIGHT = "pair_style kqeq tolerance 1e-12 threads 2"
"""For frames of a run, whose charges start from those of earlier steps."""


def compute(here: Workplace, structure: Structure, tolerance: float = 1e-5) -> Result:
    return Potential(here.model, tolerance=tolerance).compute(structure)


def assert_same(frame: Frame, expected: Result) -> None:
    """The frame is the core's own result: what differs is the last digit of positions and sums."""
    assert expected.energies is not None
    assert expected.forces is not None
    n = len(frame.charges)
    assert frame.thermo["pe"] == pytest.approx(expected.energy, abs=1e-8 * n)
    np.testing.assert_allclose(frame.energies, expected.energies, atol=1e-8)
    np.testing.assert_allclose(frame.forces, expected.forces, atol=1e-7)
    np.testing.assert_allclose(frame.charges, expected.charges, atol=1e-8)


@pytest.mark.parametrize("name", SYSTEMS)
def test_run_0_agrees_with_the_core(here: Workplace, name: str) -> None:
    structure, parts = system(name)
    here.data(structure)
    frame = here.frame(**parts)
    expected = compute(here, structure)
    assert_same(frame, expected)
    assert frame.energies.sum() == pytest.approx(frame.thermo["pe"], abs=1e-10)
    # virial: eV for 64 atoms, forces agree to 1e-7 eV/Angstrom over 10 Angstrom
    np.testing.assert_allclose(frame.virial, expected.virial, atol=1e-6)


@pytest.mark.parametrize("field", [0.0, 0.1])
def test_slab_agrees_with_the_core(here: Workplace, field: float) -> None:
    """The open axis along z, x or y; the length of the box along it has no meaning."""
    whole = solid()
    here.data(replace(whole, positions=whole.positions % 11.4))  # LAMMPS loses atoms outside of open ends
    for axis in range(3):
        along = field * np.eye(3)[axis]
        style = f"{TIGHT} field {along[0]} {along[1]} {along[2]}"
        ends = ["f" if a == axis else "p" for a in range(3)]
        frame = here.frame(boundary=f"boundary {' '.join(ends)}", pair_style=style)
        structure = replace(frame.structure, field=along)
        expected = compute(here, structure, tolerance=1e-12)
        assert_same(frame, expected)
        np.testing.assert_allclose(frame.virial, expected.virial, atol=1e-6)  # as for the other boundaries


def test_dipole_of_the_charges_is_the_cores(here: Workplace) -> None:
    structure, parts = system("charged cluster in a field")
    here.data(structure)
    end = "compute d all dipole geometry\nrun 0\nprint 'dipole $(c_d[1]:%.15g) $(c_d[2]:%.15g) $(c_d[3]:%.15g)'"
    screen = here.run(here.script(end, **parts))
    values = next(line.split()[1:] for line in screen.splitlines() if line.startswith("dipole"))
    expected = compute(here, structure).dipole
    about_centre = expected - structure.charge * structure.positions.mean(axis=0)
    np.testing.assert_allclose([float(value) for value in values], about_centre, atol=1e-7)


@pytest.mark.parametrize("newton", ["on", "off"])
def test_dynamics_renews_charges_and_conserves_energy(here: Workplace, newton: str) -> None:
    here.data(solid())
    start = here.frame(units=f"units metal\nnewton {newton}", pair_style=TIGHT)
    run = """
velocity all create 600 7 dist gaussian
timestep 0.0005
atom_modify sort 5 2.0
fix 1 all nve
thermo_style custom step etotal press
thermo_modify format float %.12g
run 100
run 100"""
    end = here.frame(run, units=f"units metal\nnewton {newton}", pair_style=TIGHT)
    assert np.abs(end.charges - start.charges).max() > 1e-3
    assert_same(end, compute(here, end.structure, tolerance=1e-12))
    log = (here.folder / "log.lammps").read_text()
    energies = [float(x) for x in re.findall(r"^ +\d+ +(-[\d.]+) +-?[\d.]+ *$", log, re.MULTILINE)]
    assert len(energies) == 4
    # Verlet's total wavers by (omega dt)^2 / 8 of the kinetic energy, 5 eV: omega = 30 / ps, dt = 0.5 fs
    assert np.ptp(energies) < 2e-4


def test_box_changes_keep_energy_and_pressure_consistent(here: Workplace) -> None:
    here.data(system("triclinic")[0])
    npt = "fix 1 all npt temp 600 600 0.05 tri 0 0 0.2"
    run = f"velocity all create 600 7\ntimestep 0.001\n{npt}\nrun 20\nunfix 1\nvelocity all set 0 0 0\nrun 0"
    frame = here.frame(run, pair_style=TIGHT)
    assert abs(frame.thermo["lx"] - 11.4 * 1.02) > 1e-4
    expected = compute(here, frame.structure, tolerance=1e-12)
    assert_same(frame, expected)
    np.testing.assert_allclose(frame.virial, expected.virial, atol=1e-6)


def test_minimize_clear_and_a_second_system(here: Workplace) -> None:
    here.data(cluster())
    open_ends = {"boundary": "boundary s s s"}
    first = here.script("minimize 0 1e-3 50 200\nclear", **open_ends)
    minimised = here.run(first + here.script("run 0", **open_ends))
    energies = [float(x) for x in re.findall(r"^ +\d+ +\S+ +(-[\d.]+) +0 +\S+", minimised, re.MULTILINE)]
    assert energies[1] < energies[0] - 0.01
    assert energies[2] == energies[0]


def test_charges_go_into_restart_files_and_coefficients_do_not(here: Workplace) -> None:
    here.data(solid())
    before = here.frame("run 0\nwrite_restart now.restart")
    restarted = {"atom_style": "", "boundary": "", "read": "read_restart now.restart"}
    charges = "variable s atom q*q\ncompute q all reduce sum v_s\nrun 0\nprint 'charges $(c_q:%.15g)'"
    screen = here.run(here.script(charges, **restarted, **NO_PAIRS))
    assert float(screen.split("charges ")[-1].split()[0]) == pytest.approx((before.charges**2).sum(), rel=1e-12)
    here.refused("units metal\nread_restart now.restart\npair_style kqeq\nrun 0", "pair coeffs are not set")


def test_a_second_pair_style_adds_up(here: Workplace) -> None:
    structure = solid()
    here.data(structure)
    style = "pair_style hybrid/overlay kqeq zbl 2.0 3.0"
    coeff = f"pair_coeff * * kqeq {here.model} Na Cl\npair_coeff 1 1 zbl 11 11\npair_coeff 1 2 zbl 11 17"
    coeff += "\npair_coeff 2 2 zbl 17 17\ncompute k all pair kqeq\ncompute z all pair zbl"
    screen = here.run(
        here.script("run 0\nprint 'parts $(c_k:%.15g) $(pe-c_z:%.15g)'", pair_style=style, pair_coeff=coeff)
    )
    parts = [float(x) for x in screen.split("parts ")[-1].split()[:2]]
    assert parts == pytest.approx([compute(here, structure).energy] * 2, abs=1e-8)


def test_charged_cell_is_warned_of_once(here: Workplace) -> None:
    here.data(solid())
    screen = here.run(here.script("fix 1 all nve\nrun 3", pair_style="pair_style kqeq charge 1"))
    assert screen.count("WARNING: pair_style kqeq: periodic cell with total charge 1 e") == 1


def test_overpolarization_is_warned_of_once(here: Workplace) -> None:
    """Two ion pairs in a field: of the field, and of the charge that leaked, once in two runs."""
    here.data(Structure([11, 11, 17, 17], [[0, 0, 0], [12, 0, 0], [2.4, 0, 0], [14.4, 0, 0]]))
    style = "pair_style kqeq field 0.2 0 0"
    screen = here.run(here.script("fix 1 all nve\nrun 2\nrun 2", boundary="boundary f f f", pair_style=style))
    for said in ("between the 2 separate fragments", "from the nearest integer"):
        assert screen.count(said) == 1


def test_split_charges_are_served_as_trained(here: Workplace, model: Model, helpers: Any) -> None:
    """The model file says which charges it has; with them a field along periodic axes has a meaning."""
    split = here.folder / "split.kqeq"
    save_model(helpers.split_model(model), split)
    here.data(solid())
    parts = {"pair_style": f"{TIGHT} field 0.02 0 0.05", "pair_coeff": f"pair_coeff * * {split} Na Cl"}
    frame = here.frame(**parts)
    expected = Potential(split, tolerance=1e-12).compute(replace(frame.structure, field=(0.02, 0, 0.05)))
    assert_same(frame, expected)
    np.testing.assert_allclose(frame.virial, expected.virial, atol=1e-6)
    start = here.frame("fix 1 all nve\ntimestep 0.001\nvelocity all create 300 1\nrun 0", **parts)
    end = here.frame("fix 1 all nve\ntimestep 0.001\nvelocity all create 300 1\nrun 40", **parts)
    assert end.thermo["etotal"] == pytest.approx(start.thermo["etotal"], abs=1e-5 * 64)


def test_ions_in_a_field_run_in_a_fixed_box(here: Workplace, model: Model, helpers: Any) -> None:
    """Reference charges of +-1 in a field along periodic axes: no pressure is defined, and nothing else suffers."""
    ions = here.folder / "ions.kqeq"
    save_model(helpers.split_model(model, (1.0, -1.0)), ions)
    here.data(solid())
    parts = {"pair_style": f"{TIGHT} field 0 0 0.05", "pair_coeff": f"pair_coeff * * {ions} Na Cl"}
    screen = here.run(here.script("fix 1 all nve\nthermo_style custom step etotal press\nrun 3\nrun 3", **parts))
    assert screen.count("`virial` is not defined for charged fragments") == 1
    assert "nan" in screen
    frame = here.frame(**parts)
    expected = Potential(ions, tolerance=1e-12).compute(replace(frame.structure, field=(0, 0, 0.05)))
    assert expected.virial is None
    assert_same(frame, expected)


def test_fragments_are_those_of_the_run(here: Workplace, model: Model) -> None:
    """Two atoms of one element: bonds are those of the structure, not of what the kernels were compiled with."""
    molecular = here.folder / "molecular.kqeq"
    save_model(replace(model, charges="fragments"), molecular)
    pair = Structure([11, 11], [[0, 0, 0], [0, 0, 2.9]], field=(0, 0.05, 0.1))
    here.data(pair)
    style = f"{TIGHT} field 0 0.05 0.1"
    coefficients = f"pair_coeff * * {molecular} Na Cl"
    frame = here.frame(boundary="boundary f f f", pair_style=style, pair_coeff=coefficients)
    assert abs(frame.charges[0]) > 1e-3  # charge flows inside the molecule
    assert_same(frame, Potential(molecular).compute(pair))


REFUSED = {
    "unknown keyword": ({"pair_style": "pair_style kqeq chrge 1"}, r"unknown .*`chrge`.*: charge Q, field Ex"),
    "repeated keyword": ({"pair_style": "pair_style kqeq charge 1 charge 0"}, r"`charge` is given twice"),
    "incomplete charge": ({"pair_style": "pair_style kqeq charge"}, r"`charge` needs 1 number\(s\), got 0"),
    "incomplete field": ({"pair_style": "pair_style kqeq field 0 1"}, r"`field` needs 3 number\(s\), got 2"),
    "no number": ({"pair_style": "pair_style kqeq charge one"}, r"Expected floating point .* 'one'"),
    "unknown element": ({"pair_coeff": "pair_coeff * * {} Na Br"}, r"model knows Na, Cl, got Br for type 2"),
    "type left out": ({"pair_coeff": "pair_coeff * * {} Na NULL"}, r"NULL \(type 2\) is not available in this"),
    "too few elements": ({"pair_coeff": "pair_coeff * * {} Na"}, r"one element per atom type: 2 types, got 1"),
    "too many elements": ({"pair_coeff": "pair_coeff * * {} Na Cl Na"}, r"per atom type: 2 types, got 3"),
    "single types": ({"pair_coeff": "pair_coeff 1 2 {} Na Cl"}, r"must start with \* \*"),
    "no model": ({"pair_coeff": "pair_coeff * *"}, r"pair_coeff \* \* MODEL.kqeq ELEMENT ..., one element per"),
    "no model file": ({"pair_coeff": "pair_coeff * * absent.kqeq Na Cl"}, r"absent.kqeq does not exist"),
    "not a model": ({"pair_coeff": "pair_coeff * * atoms.data Na Cl"}, r"atoms.data is not a .kqeq model"),
    "truncated model": ({"pair_coeff": "pair_coeff * * half.kqeq Na Cl"}, r"half.kqeq is not .*, or is truncated"),
    "no charges": ({"atom_style": "atom_style atomic", "read": "read_data bare.data"}, r"use `atom_style charge`"),
    "other units": ({"units": "units real"}, r"`units metal`; `units real` is not available in this version"),
    "wire": ({"boundary": "boundary p s s"}, r"`pbc` must .*wire"),
    "loose tolerance": ({"pair_style": "pair_style kqeq tolerance 1e-3"}, r"`tolerance` must lie between .*0.0001"),
    "tolerance of zero": ({"pair_style": "pair_style kqeq tolerance 0"}, r"`tolerance` must lie between .*, got 0.0"),
    "half a thread": ({"pair_style": "pair_style kqeq threads 1.5"}, r"`threads` must be a positive integer, got 1.5"),
    "no thread": ({"pair_style": "pair_style kqeq threads 0"}, r"`threads` must be a positive integer, got 0"),
    "field along a slab": (
        {"boundary": "boundary p p s", "pair_style": "pair_style kqeq field 0.1 0 0"},
        r"`field` must be zero along periodic axes",
    ),
    "field in a cell": ({"pair_style": "pair_style kqeq field 0 0 1"}, r"`field` must be zero along.*Ways out"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_in_one_line(here: Workplace, case: str) -> None:
    here.data(cluster() if "boundary" in REFUSED[case][0] else solid())
    (here.folder / "half.kqeq").write_bytes(here.model.read_bytes()[:2000])
    data = (here.folder / "atoms.data").read_text()
    bare = re.sub(r"^(\d+ [12]) 0.5 ", r"\1 ", data, flags=re.MULTILINE).replace("# charge", "# atomic")
    (here.folder / "bare.data").write_text(bare)
    parts, message = REFUSED[case]
    here.refused(here.script("run 0", **{name: line.format(here.model) for name, line in parts.items()}), message)


NAN = "variable a atom 1e308*1e10-1e308*1e10"
REFUSED_LATER = {
    "overlapping atoms": (
        "set atom 2 x 0 y 0 z 0\nset atom 1 x 0 y 0 z 0.1",
        r"atoms 0 and 1 overlap, 0.1 Angstrom apart.*count from 0 in the order of their ids",
    ),
    "positions that are not numbers": (f"{NAN}\nset atom 3 x v_a", r"[Nn]on-numeric"),
    "forces that are not numbers": (
        f"{NAN}\nfix 1 all nve\nfix 2 all addforce v_a 0 0\nneigh_modify delay 100",
        r"`positions` must be finite, got nan",
    ),
    "stress per atom": (
        "compute s all stress/atom NULL\ncompute r all reduce sum c_s[1]\nthermo_style custom c_r\n",
        r"stress per atom is not available",
    ),
    "excluded pairs": ("neigh_modify exclude type 1 1", r"`neigh_modify exclude` is not available"),
}


@pytest.mark.parametrize("case", REFUSED_LATER)
def test_what_cannot_be_computed_ends_the_run(here: Workplace, case: str) -> None:
    here.data(solid())
    commands, message = REFUSED_LATER[case]
    here.refused(here.script(f"{commands}\nrun 3"), message)


def test_more_than_one_rank_is_refused_on_all(here: Workplace) -> None:
    here.data(solid())
    here.refused(here.script("run 0"), r"runs on one MPI rank in this version, got 2 ranks", ranks=2)


@needs_libpython
def test_kqeq_lmp_does_what_lmp_does(here: Workplace) -> None:
    here.data(solid())
    script = here.script("velocity all create 300 1\nfix 1 all nve\nthermo 1\nrun 5")
    steps = []
    for name in ("lmp", "kqeq-lmp"):
        log = here.run(script, name=name).split("Per MPI rank")[1]
        steps.append(log[log.index("Step") : log.index("Loop time")])
    assert steps[0] == steps[1]
    failed = [here.lammps("units metal\nnonsense\n", name=name) for name in ("lmp", "kqeq-lmp")]
    assert failed[0].stdout == failed[1].stdout
    assert [answer.returncode for answer in failed] == [1, 1]


def test_kqeq_lmp_reads_standard_input(here: Workplace) -> None:
    here.data(solid())
    answer = subprocess.run(
        [program("kqeq-lmp")],
        cwd=here.folder,
        env=environment(),
        input=here.script("run 0\nprint done"),
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0
    assert answer.stdout.count("\ndone\n") == 1


def test_python_without_a_shared_library_is_sent_to_kqeq_lmp(here: Workplace) -> None:
    """A static Python says so in sysconfig; here sitecustomize says it."""
    here.data(solid())
    lie = "import sysconfig\nsysconfig.get_config_vars()['INSTSONAME'] = 'libpython3.11.a'\n"
    (here.folder / "sitecustomize.py").write_text(lie)
    env = environment() | {"PYTHONPATH": str(here.folder)}
    answer = here.lammps(here.script("run 0"), name="lmp", env=env)
    assert answer.returncode == 1
    assert "ERROR: pair_style kqeq: this Python has no shared libpython: run the same" in answer.stdout
    assert "kqeq-lmp" in answer.stdout
    assert here.lammps(here.script("run 0"), name="kqeq-lmp", env=env).returncode == 0


def test_missing_compiler_warns_and_spares_other_scripts(here: Workplace) -> None:
    here.data(solid())
    env = environment() | {"XDG_CACHE_HOME": str(here.folder), "CXX": "/no/such/compiler"}
    answer = here.lammps(here.script("run 0", **NO_PAIRS), env=env)
    assert answer.returncode == 0
    warning = "pair_style kqeq is not available: no C++ compiler: `/no/such/compiler` does not run; install"
    assert warning in answer.stderr
    answer = here.lammps(here.script("run 0"), env=env)
    assert answer.returncode != 0
    assert "Unrecognized pair style 'kqeq'" in answer.stdout
    # what was compiled before still serves
    assert here.lammps(here.script("run 0"), env=environment() | {"CXX": "/no/such/compiler"}).returncode == 0


def test_plugin_of_another_lammps_is_not_loaded(
    here: Workplace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here.data(solid())
    with monkeypatch.context() as patch:
        patch.setattr(build, "_identity", lambda _: "stable_1Jan2030 abc")
        patch.setenv("XDG_CACHE_HOME", str(tmp_path))
        foreign = build.built_plugin().parent
    answer = here.lammps(here.script("run 0"), env=environment() | {"LAMMPS_PLUGIN_PATH": str(foreign)})
    assert answer.returncode == 0
    assert 'its plugin was built for LAMMPS "stable_1Jan2030 abc", this is "' in answer.stderr


@pytest.mark.parametrize(
    ("pair_style", "end", "message"),
    [
        (
            "hybrid/overlay kqeq coul/long 5.0",
            "pair_coeff * * coul/long\nkspace_style ewald 1e-4\nrun 0",
            "kspace_style",
        ),
        ("hybrid kqeq lj/cut 3.0", "pair_coeff 2 2 lj/cut 0.01 2.0\nrun 0", "use `hybrid/overlay` instead of `hybrid`"),
        ("hybrid/overlay kqeq", "fix e all efield 0.0 0.0 0.1\nrun 0", "remove `fix efield`"),
    ],
)
def test_what_would_count_charges_twice_is_refused(here: Workplace, pair_style: str, end: str, message: str) -> None:
    here.data(solid())
    parts = {"pair_style": f"pair_style {pair_style}", "pair_coeff": f"pair_coeff * * kqeq {here.model} Na Cl"}
    here.refused(here.script(end, **parts), message)


def test_an_empty_box_is_named(here: Workplace) -> None:
    create = "region box block 0 9 0 9 0 9\ncreate_box 2 box\nmass * 20.0"
    here.refused(here.script("run 0", read=create), "no atoms are left")
