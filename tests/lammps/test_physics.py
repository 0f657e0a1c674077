"""What dynamics has to keep, in real LAMMPS processes on one and on two ranks: conserved energies, the work of a field
that changes, pressures that are derivatives of the energy, and the promised accuracy at the default settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from scipy.optimize import minimize_scalar

from kqeq_md.ase import KQEq, structure_from_atoms
from kqeq_md.model import Model
from kqeq_md.models import NACL
from kqeq_md.potential import Potential
from kqeq_md.structure import Floats, Structure

SHIPPED = f"pair_coeff * * {NACL} Na Cl"
BAR = 1.6021765e6
"""bar per eV/Angstrom^3 as LAMMPS' `units metal` has it (update.cpp)."""

BOX = "lx ly lz xy xz yz"
VIRIAL = "c_v[1] c_v[2] c_v[3] c_v[4] c_v[5] c_v[6]"
"""Of `compute v all pressure NULL virial`: xx yy zz xy xz yz, bar."""


def thermo(names: str, every: int = 1) -> str:
    return f"thermo {every}\nthermo_style custom step {names}\nthermo_modify format float %.17g"


def table(screen: str) -> Floats:
    """Thermo output of the last run, shape (n_times, 1 + n_names), the number of the step first."""
    header, _, rest = screen[screen.rindex("   Step") :].partition("\n")
    rows = [line.split() for line in rest.split("Loop time")[0].splitlines()]
    width = len(header.split())
    return np.array([row for row in rows if len(row) == width and row[0].isdecimal()], dtype=float)


def opened(axes: str) -> str:
    """Lines that read the atoms and open the ends at `axes`, with room for atoms that move."""
    if not axes:
        return "read_data atoms.data"
    boundary = " ".join("f" if axis in axes else "p" for axis in "xyz")
    room = " ".join(f"{axis} delta -30 30" for axis in axes)
    return f"read_data atoms.data\nchange_box all boundary {boundary} {room}"


# --- a field that changes


@dataclass(frozen=True)
class Driven:
    """A system in a field that changes for 0.02 ps.

    Attributes:
        style: the field, as pair_style takes it.
        axes: open ones.
        steps: of the run; bonds of hydrogen need short ones.
        before: commands.
    """

    style: str
    axes: str = ""
    steps: int = 50
    before: str = ""


DRIVEN = {
    "charged cluster": Driven("charge 1 field v_ex 0.05 v_ez", axes="xyz"),
    "slab": Driven("field 0 0 v_ez", axes="z"),
    "periodic split water": Driven("field v_ex 0.05 v_ez", steps=250, before="minimize 0 0.1 40 200\n"),
}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", DRIVEN)
def test_work_of_a_field_that_changes(name: str, ranks: int, here: Any, wet: Any, water: Model, helpers: Any) -> None:
    """dE/dt = -mu.dF/dt: E_total(t) + integral mu.dF is constant to 1e-4 of the change of E_total.

    The sum over steps is the integral by trapezoids; what it misses, and what the total energy of Verlet's steps wavers
    by, goes with the square of the time step (measured: 5e-7 to 4e-5 of the change).
    """
    case, place = DRIVEN[name], here
    structure = here.cluster() if name == "charged cluster" else here.solid()
    if name == "periodic split water":
        place = wet.save(helpers.split_model(water, (0.4, -0.8)), "split.kqeq")
        structure = helpers.water_box((3, 2, 2))
    place.data(structure)
    variables = "variable ex equal 0.2*sin(50*PI*time)\nvariable ez equal 0.3*(1-cos(50*PI*time))"
    run = f"""{case.before}reset_timestep 0
compute k all pair kqeq
velocity all create 50 7 loop geom
fix 1 all nve
timestep {0.02 / case.steps}
{thermo("etotal c_k[4] c_k[5] c_k[6] v_ex v_ez")}
run {case.steps}"""
    parts = {"read": opened(case.axes), "pair_style": f"{variables}\n{place.tight} {case.style}"}
    rows = table(place.run(place.script(run, **parts), ranks=ranks))
    energy, dipole, change = rows[:, 1], rows[:, 2:5], np.ptp(rows[:, 1])
    steps = np.diff(rows[:, 5:7], axis=0) * ["v_ex" in case.style, 1.0]
    middle = 0.5 * (dipole[1:] + dipole[:-1])
    work = -np.cumsum(middle[:, 0] * steps[:, 0] + middle[:, 2] * steps[:, 1])
    assert change > 0.1
    np.testing.assert_allclose(energy[1:] - energy[0], work, rtol=0, atol=1e-4 * change)


# --- pressures and minima on two ranks


def molecules(place: Any, structure: Structure) -> dict[str, str]:
    """Lines for water whose molecules hold their charges."""
    place.data(structure, np.repeat(np.arange(len(structure) // 3) + 1, 3).tolist())
    style = f"{place.tight} charges fragments fragments molecule"
    return {"atom_style": "atom_style full", "pair_style": style}


@pytest.mark.parametrize("name", ["tilted salt", "molecules in a field"])
def test_pressure_on_two_ranks_is_the_derivative_of_the_energy(name: str, here: Any, wet: Any, helpers: Any) -> None:
    """3 V P = -dE/d(ln l) by five-point differences of boxes that `change_box` makes."""
    if name == "tilted salt":
        place, parts = here, {"pair_style": here.tight}
        here.data(here.triclinic())
    else:
        place, parts = wet, molecules(wet, helpers.water_box((4, 2, 2)))
        parts["pair_style"] += " field 0.03 0.05 0.1"
    parts["pair_style"] += " accuracy 1e-8"
    names = ["pe", "c_v", "vol"]
    commands = [f"compute v all pressure NULL virial\n{thermo('pe c_v')}\nrun 0", place.say("at", *names)]
    for axis in ("x", "y", "z", "xy", "xz", "yz"):
        commands.append(f"variable {axis} equal $({axis if len(axis) == 2 else 'l' + axis}:%.17g)")
    tilts = " xy final {0} xz final {1} yz final {2}" if name == "tilted salt" else ""
    h = 2e-4
    for k in (-2, -1, 1, 2):
        x, y, z, *t = (f"$(v_{axis}*{1 + k * h!r}:%.17g)" for axis in ("x", "y", "z", "xy", "xz", "yz"))
        ends = f"x final 0 {x} y final 0 {y} z final 0 {z}{tilts.format(*t)}"
        commands += [f"change_box all {ends} remap units box\nrun 0", place.say("at", *names)]
    said = place.said(place.run(place.script("\n".join(commands), **parts), ranks=2), "at")
    energies, pressure, volume = said[1:, 0], said[0, 1], said[0, 2]
    measured = -(energies @ [1, -8, 8, -1]) / (12 * h) / (3 * volume) * BAR
    assert abs(pressure) > 100
    # energies of some hundred eV have 1e-13 of rounding, divided by h
    assert pressure == pytest.approx(measured, rel=1e-6)


def test_box_relax_on_two_ranks_finds_rock_salt_as_ase_does(here: Any) -> None:
    """Each edge of the box for itself, from one that is stretched; ASE's energies on the edge of the cubic cell."""
    sites = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]) / 2
    atoms = Atoms([11] * 4 + [17] * 4, scaled_positions=sites, cell=np.eye(3), pbc=True)
    atoms.calc = KQEq(NACL, tolerance=1e-12)

    def energy(edge: float) -> float:
        atoms.set_cell(edge * np.eye(3), scale_atoms=True)
        return atoms.get_potential_energy()

    found = minimize_scalar(energy, bracket=(4.9, 5.2, 5.5), options={"xtol": 1e-6})
    cell = np.diag([5.3, 5.2, 5.25])
    here.data(Structure(atoms.numbers, sites @ cell, cell, True))
    commands = "fix 1 all box/relax aniso 0.0 vmax 0.002\nminimize 0 1e-9 300 2000"
    end = f"{commands}\n{here.say('end', 'lx', 'ly', 'lz', 'pe')}"
    *edges, lowest = here.said(here.run(here.script(end, pair_style=here.tight, pair_coeff=SHIPPED), ranks=2), "end")[0]
    assert edges == pytest.approx([found.x] * 3, abs=2e-4)
    # energies differ in second order of that
    assert lowest == pytest.approx(found.fun, abs=1e-5)


# --- frames of a run


@dataclass(frozen=True)
class Case:
    """A system that moves.

    Attributes:
        parts: lines of the script.
        axes: open ones.
        motion: the fix that moves the atoms.
        settings: of ASE's calculator.
    """

    parts: dict[str, str]
    axes: str = ""
    motion: str = "nve"
    settings: dict[str, Any] | None = None


@dataclass(frozen=True)
class Moved:
    """A frame.

    Attributes:
        atoms: at unwrapped positions.
        energy: eV.
        forces: eV/Angstrom, shape (n, 3).
        charges: e, shape (n,).
        virial: its part of the pressure tensor, eV/Angstrom^3, shape (3, 3).
    """

    atoms: Atoms
    energy: float
    forces: Floats
    charges: Floats
    virial: Floats


def frames_of(place: Any, case: Case, steps: int, ranks: int, temperature: float = 600.0) -> list[Moved]:
    """Every 20th step of a run, as it writes them with every digit; the atoms are those of atoms.data."""
    run = f"""compute v all pressure NULL virial
velocity all create {temperature} 7 loop geom
timestep 0.0005
fix 1 all {case.motion}
dump 1 all custom 20 frames.dump id type xu yu zu q fx fy fz
dump_modify 1 sort id format float %.17g
{thermo(f"pe {BOX} {VIRIAL}", 20)}
run {steps}"""
    rows = table(place.run(place.script(run, read=opened(case.axes), **case.parts), ranks=ranks))
    blocks = (place.folder / "frames.dump").read_text().split("ITEM: ATOMS")[1:]
    lines = [block.split("ITEM:")[0].splitlines()[1:] for block in blocks]
    return [
        moved(place, case, row, np.array([line.split() for line in text], dtype=float))
        for row, text in zip(rows, lines, strict=True)
    ]


def moved(place: Any, case: Case, row: Floats, columns: Floats) -> Moved:
    """Of a row of thermo output and the lines of a dump."""
    numbers = np.array(place.numbers)[columns[:, 1].astype(int) - 1]
    lx, ly, lz, xy, xz, yz = row[2:8]
    cell = np.array([[lx, 0, 0], [xy, ly, 0], [xz, yz, lz]])
    pbc = [axis not in case.axes for axis in "xyz"]
    atoms = Atoms(numbers, columns[:, 2:5], cell=cell if any(pbc) else None, pbc=pbc)
    virial = row[8:14][[[0, 3, 4], [3, 1, 5], [4, 5, 2]]]
    return Moved(atoms, row[1], columns[:, 6:9], columns[:, 5], virial / BAR)


FRAMES = ("slab in a field", "open molecules in a field", "tilted molecules in a field", "tilted, charged, barostat")


def ase_case(name: str, here: Any, wet: Any, helpers: Any) -> tuple[Any, Case]:
    """Where it runs, and what."""
    if name == "slab in a field":
        here.data(here.solid())
        return here, Case({"pair_style": f"{here.tight} field 0 0 0.1"}, "z", settings={"field": [0, 0, 0.1]})
    if name == "tilted, charged, barostat":
        here.data(here.triclinic())
        style = {"pair_style": f"{here.tight} charge 1"}
        return here, Case(style, motion="npt temp 600 600 0.05 tri 0 0 0.2", settings={"charge": 1.0})
    strain = np.array([[0.02, 0, 0], [0.08, -0.03, 0], [-0.05, 0.06, 0.01]])  # lower triangular, as LAMMPS has cells
    parts = molecules(wet, helpers.water_box((4, 2, 2), strain=strain if "tilted" in name else None))
    parts["pair_style"] += " field 0.03 0.05 0.1"
    settings = {"charges": "fragments", "fragments": np.repeat(np.arange(16), 3), "field": [0.03, 0.05, 0.1]}
    if name == "open molecules in a field":
        return wet, Case(parts, "xyz", settings=settings)
    return wet, Case(parts, motion="npt temp 300 300 0.05 tri 0 0 2.0", settings=settings)


@pytest.mark.parametrize("name", FRAMES)
def test_frames_of_two_ranks_are_those_of_ase(name: str, here: Any, wet: Any, helpers: Any) -> None:
    place, case = ase_case(name, here, wet, helpers)
    frames = frames_of(place, case, 60, 2)
    assert len(frames) == 4
    assert np.ptp([frame.energy for frame in frames]) > 1e-2
    calculator = KQEq(place.model, tolerance=1e-12, **(case.settings or {}))
    for frame in frames:
        frame.atoms.calc = calculator
        assert frame.energy == pytest.approx(frame.atoms.get_potential_energy(), abs=1e-8 * len(frame.atoms))
        # as on one rank: the last digit of positions and sums
        np.testing.assert_allclose(frame.forces, frame.atoms.get_forces(), rtol=0, atol=1e-7)
        np.testing.assert_allclose(frame.charges, frame.atoms.get_charges(), rtol=0, atol=1e-8)
        if any(frame.atoms.pbc):
            structure = structure_from_atoms(frame.atoms, calculator.charge, calculator.field)
            virial = place.virial_of(calculator.potential.compute(structure))
            np.testing.assert_allclose(frame.atoms.get_volume() * frame.virial, virial, rtol=0, atol=1e-6)


def test_default_settings_keep_the_promised_force_error(here: Any, helpers: Any) -> None:
    """Of the shipped model along a trajectory, where charges start from those of the steps before: on one and on two
    ranks, and between them.

    `accuracy` promises an rms error of 1e-5 eV/Angstrom, beside which what `tolerance` leaves is small (4e-7). The
    reference has both at their tightest. In 0.05 ps chaos adds nothing to what is between the ranks.
    """
    here.data(helpers.rock_salt(2, rattle=0.2))
    reference = Potential(NACL, accuracy=1e-9, tolerance=1e-12)
    case = Case({"pair_coeff": SHIPPED})
    pairs = zip(*(frames_of(here, case, 100, ranks, temperature=1400.0) for ranks in (1, 2)), strict=True)
    for one, two in pairs:
        assert rms(one.forces - two.forces) < 1e-5
        for frame in (one, two):
            exact = reference.compute(structure_from_atoms(frame.atoms))
            assert rms(frame.forces - exact.forces) < 1e-5


def rms(values: Floats) -> float:
    return float(np.sqrt((values**2).mean()))


# --- conserved energies


HEAT = "velocity all create 2800 4711 mom yes loop geom"
"""Half of it goes into potential energy as the lattice melts: 1,400 K."""

BAROSTAT = "fix 1 all npt temp 1400 1400 0.1 iso 0 0 1.0 pchain 0"
"""Without the thermostat of the barostat, with which LAMMPS' own econserve drifts in `iso` for any pair style (born,
too) and any time step."""


def test_npt_conserves_its_extended_energy(here: Any, helpers: Any) -> None:
    """On two ranks, the shipped model: what thermostat and barostat take from a hot lattice, they have."""
    here.data(helpers.rock_salt(2, rattle=0.0))
    run = f"{HEAT}\ntimestep 0.001\n{BAROSTAT}\n{thermo('econserve etotal vol')}\nrun 100"
    conserved, total, volume = table(here.run(here.script(run, pair_coeff=SHIPPED), ranks=2))[:, 1:].T
    assert np.ptp(volume) > 5.0
    assert np.ptp(total) > 0.5
    # Verlet's wavering, (omega dt)^2 / 8 of the kinetic energy: measured 4e-4
    assert np.ptp(conserved) < 2e-3 * np.ptp(total)


def test_nve_on_two_ranks_conserves_energy_as_on_one(here: Any, helpers: Any) -> None:
    """0.5 ps of the shipped model from a hot lattice, at the default tolerance."""
    here.data(helpers.rock_salt(2, rattle=0.0))
    run = f"{HEAT}\ntimestep 0.002\nfix 1 all nve\n{thermo('etotal pe', 5)}\nrun 250"
    one, two = (table(here.run(here.script(run, pair_coeff=SHIPPED), ranks=ranks))[:, 1:] for ranks in (1, 2))
    for total, potential in (one.T, two.T):
        assert np.ptp(total) < 2e-3 * np.ptp(potential)  # Verlet's wavering
    np.testing.assert_allclose(two[:, 0], one[:, 0], rtol=0, atol=64 * 1e-6)


def long_run(place: Any, motion: str, name: str, pieces: int) -> Floats:
    """Time, ps, and an energy, meV per atom, each 20 fs of a melt on two ranks, shape (2, n_times).

    A piece has 1,000 steps of 2 fs and goes on from the restart file of the one before; the first two equilibrate.
    """
    start = {"pair_coeff": SHIPPED}
    begin, rows = HEAT, []
    for piece in range(2 + pieces):
        fix = "fix 1 all nvt temp 1400 1400 0.1" if piece < 2 else motion
        run = f"timestep 0.002\n{fix}\n{thermo(f'{name} atoms', 10)}\nrun 1000\nwrite_restart melt.restart"
        rows.append(table(place.run(place.script(f"{begin}\n{run}", **start), ranks=2))[:-1])
        start |= {"boundary": "", "atom_style": "", "read": "read_restart melt.restart"}
        begin = ""
    steps, energy, atoms = np.concatenate(rows[2:]).T
    return np.stack([0.002 * steps, 1000.0 * energy / atoms])


LONG = {"nve": ("fix 2 all nve", "etotal", 4, 5), "npt": (BAROSTAT.replace("fix 1", "fix 2"), "econserve", 3, 5)}
"""The fix, what it conserves, cells along each edge, and pieces of 2 ps."""


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_long_runs_of_the_melt_do_not_drift(name: str, here: Any, helpers: Any) -> None:
    """10 ps of 512 atoms in NVE, of 216 in NPT: below 1e-3 meV per atom and ps, or what they tell from 0."""
    motion, conserved, cells, pieces = LONG[name]
    here.data(helpers.rock_salt(cells, rattle=0.0))
    times, energies = long_run(here, motion, conserved, pieces)
    slope, error = helpers.drift(times, energies)
    assert error < 5e-3
    assert abs(slope) < 1e-3 + 3.0 * error
