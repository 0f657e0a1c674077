"""What LAMMPS users do beside a plain run: ensembles, boxes that change, restarts, loops, other atoms, other styles."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

from kqeq_md.ase import KQEq
from kqeq_md.models import NACL
from kqeq_md.structure import Structure

OPEN = "boundary f f f"
NO_PAIRS = {"pair_style": "pair_style zero 5", "pair_coeff": "pair_coeff * *"}


# --- ensembles and boxes


ENSEMBLES = {
    "nvt": "fix 1 all nvt temp 600 600 0.05",
    "npt iso": "fix 1 all npt temp 600 600 0.05 iso 0 0 0.2",
    "npt aniso": "fix 1 all npt temp 600 600 0.05 aniso 0 0 0.2",
    "npt tri": "fix 1 all npt temp 600 600 0.05 tri 0 0 0.2",
    "langevin": "fix 1 all nve\nfix 2 all langevin 600 600 0.05 7",
    "deform": "fix 1 all nve\nfix 2 all deform 1 xy vel 4.0 z erate 2.0 remap x",
}


def test_every_ensemble(here: Any) -> None:
    """One after the other in one process; frames are the core's, boxes change where they should."""
    here.data(here.triclinic())
    commands = ["velocity all create 600 7", "timestep 0.001", "compute e all pe/atom"]
    for name, fix in ENSEMBLES.items():
        word = name.replace(" ", "_")
        commands += [fix, "run 10", "unfix 1", "unfix 2" if "fix 2" in fix else "", "run 0", here.write_frame(word)]
    screen = here.run(here.script("\n".join(commands), pair_style=here.tight))
    volume = 0.0
    for name in ENSEMBLES:
        frame = here.read_frame(screen, name.replace(" ", "_"))
        here.assert_same(frame, here.compute(frame.structure, 1e-12))
        assert bool(abs(frame.structure.volume - volume) > 1e-3) is (name != "langevin")
        volume = frame.structure.volume


EDGES = ("lx", "ly", "lz", "xy", "xz", "yz")
EV_PER_A3 = 1.6021765e6
"""bar, as LAMMPS' `units metal` has it (update.cpp)."""


def lower_triangle(edges: np.ndarray) -> np.ndarray:
    lx, ly, lz, xy, xz, yz = edges
    return np.array([[lx, 0, 0], [xy, ly, 0], [xz, yz, lz]])


def test_pressure_is_the_derivative_of_the_energy(here: Any) -> None:
    """By five-point differences of the boxes that `change_box` makes: -dE/dV, and the shear stress of a tilt."""
    here.data(here.triclinic())
    h = 2e-4
    names = ["pe", *EDGES, "pxx", "pyy", "pzz", "pxy", "pxz", "pyz"]
    commands = ["run 0", here.say("box", *names)]
    for edge in EDGES:
        change = "{} delta 0" if edge[0] == "l" else "{} delta"
        change = "change_box all " + change.format(edge.removeprefix("l")) + " {} remap"
        for k in (-2, -1, 1, 2):
            commands += [change.format(k * h), "run 0", here.say("box", *names), change.format(-k * h)]
    screen = here.run(here.script("\n".join(commands), pair_style=f"{here.tight} accuracy 1e-8"))
    said = here.said(screen, "box")
    slope = said[1:, 0].reshape(6, 4) @ [1, -8, 8, -1] / (12 * h)
    cell, gradient = lower_triangle(said[0, 1:7]), lower_triangle(slope)
    # strained by e, the box is cell.(1 + e): dE/de_ab = sum_c cell_ca dE/dcell_cb, where all terms are of the triangle
    virial = -(cell.T @ gradient)
    measured = [virial[a, b] for a, b in ((0, 0), (1, 1), (2, 2), (1, 0), (2, 0), (2, 1))]
    pressure = said[0, 7:] * np.linalg.det(cell) / EV_PER_A3
    np.testing.assert_allclose(pressure, measured, rtol=0, atol=1e-6 * np.abs(pressure).max())


def test_box_relax_finds_rock_salt_as_ase_does(here: Any) -> None:
    """The shipped model; LAMMPS' own minimiser against ASE's, on the edge of the cubic cell."""
    sites = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]) / 2
    rock_salt = Structure([11] * 4 + [17] * 4, 5.8 * sites, 5.8 * np.eye(3), True)
    here.data(rock_salt)
    commands = "fix 1 all box/relax iso 0.0 vmax 0.002\nminimize 0 1e-9 200 1000"
    frame = here.frame(commands, pair_style=here.tight, pair_coeff=f"pair_coeff * * {NACL} Na Cl")
    atoms = Atoms(rock_salt.numbers, rock_salt.positions, cell=rock_salt.cell, pbc=True)
    atoms.calc = KQEq(NACL, tolerance=1e-12)
    BFGS(FrechetCellFilter(atoms, hydrostatic_strain=True), logfile=None).run(fmax=1e-5)
    assert 5.0 < atoms.cell[0, 0] < 5.75
    assert frame.thermo["lx"] == pytest.approx(atoms.cell[0, 0], abs=2e-4)
    # energies differ in second order of that
    assert frame.thermo["pe"] == pytest.approx(atoms.get_potential_energy(), abs=1e-5)


# --- scripts


def test_minimize_clear_and_a_second_system(here: Any) -> None:
    here.data(here.cluster())
    open_ends = {"boundary": "boundary s s s"}
    first = here.script("minimize 0 1e-3 50 200\nclear", **open_ends)
    minimised = here.run(first + here.script("run 0", **open_ends))
    energies = [float(x) for x in re.findall(r"^ +\d+ +\S+ +(-[\d.]+) +0 +\S+", minimised, re.MULTILINE)]
    assert energies[1] < energies[0] - 0.01
    assert energies[2] == energies[0]


def test_loops_and_rerun(here: Any) -> None:
    """Frames of a run of many pieces, read again: the energies, forces and pressures that they had."""
    here.data(here.solid())
    loop = """
variable b equal pe
compute v all pressure NULL virial
variable c equal c_v
velocity all create 600 7
fix 1 all nve
fix 2 all ave/time 5 1 5 v_b v_c file run.txt format ' %.15g'
dump 1 all custom 5 run.dump id type x y z fx fy fz
dump_modify 1 sort id format float %.17g
label again
variable i loop 3
run 5
next i
jump SELF again
undump 1
unfix 2
reset_timestep 0
fix 2 all ave/time 5 1 5 v_b v_c file rerun.txt format ' %.15g'
dump 2 all custom 5 rerun.dump id type x y z fx fy fz
dump_modify 2 sort id format float %.17g
rerun run.dump dump x y z"""
    here.run(here.script(loop, pair_style="pair_style kqeq tolerance 1e-10"))
    before, after = (np.loadtxt(here.folder / name) for name in ("run.txt", "rerun.txt"))
    assert before[:, 0].tolist() == [0, 5, 10, 15]
    np.testing.assert_allclose(after, before, rtol=1e-9)
    forces = []
    for name in ("run.dump", "rerun.dump"):
        lines = (here.folder / name).read_text().split("ITEM: ATOMS")[1:]
        forces.append(np.array([[row.split() for row in text.splitlines()[1:65]] for text in lines[-3:]], dtype=float))
    np.testing.assert_allclose(forces[1][:, :, 5:], forces[0][:, :, 5:], rtol=0, atol=1e-8)


def test_restart_files_hold_charges_and_no_coefficients(here: Any) -> None:
    here.data(here.solid())
    before = here.frame("run 0\nwrite_restart now.restart\nwrite_data now.data")
    restarted = {"atom_style": "", "boundary": "", "read": "read_restart now.restart"}
    charges = f"variable s atom q*q\ncompute q all reduce sum v_s\nrun 0\n{here.say('charges', 'c_q')}"
    screen = here.run(here.script(charges, **restarted, **NO_PAIRS))
    assert here.said(screen, "charges")[0, 0] == pytest.approx((before.charges**2).sum(), rel=1e-12)
    again = here.run(here.script(f"run 0\n{here.say('pe', 'pe')}", **restarted))
    written = here.run(here.script(f"run 0\n{here.say('pe', 'pe')}", read="read_data now.data"))
    for screen in (again, written):
        assert here.said(screen, "pe")[0, 0] == pytest.approx(before.thermo["pe"], abs=1e-8)
    start = "units metal\nread_restart now.restart\n"
    here.refused(f"{start}run 0", "Must re-specify non-restarted pair style")
    here.refused(f"{start}pair_style kqeq\nrun 0", "pair coeffs are not set")


# --- other styles beside it


def test_a_second_pair_style_adds_up(here: Any) -> None:
    """Of all pairs, and of one pair of types alone."""
    structure = here.solid()
    here.data(structure)
    zbl = "\n".join(
        f"pair_coeff {a} {b} zbl {z} {y}" for a, b, z, y in ((1, 1, 11, 11), (1, 2, 11, 17), (2, 2, 17, 17))
    )
    styles = (("zbl 2.0 3.0", zbl), ("lj/cut 4.0", "pair_coeff 2 2 lj/cut 0.01 3.4"))
    expected = here.compute(structure)
    for style, other in styles:
        name = style.split()[0]
        parts = {
            "pair_style": f"pair_style hybrid/overlay kqeq {style}",
            "pair_coeff": f"pair_coeff * * kqeq {here.coefficients}\n{other}",
        }
        end = f"compute k all pair kqeq\ncompute o all pair {name}\nrun 0\n{here.say('parts', 'c_k', 'c_o', 'pe')}"
        kqeq, second, total = here.said(here.run(here.script(end, **parts)), "parts")[0]
        assert kqeq == pytest.approx(expected.energy, abs=1e-8)
        assert total == pytest.approx(kqeq + second, abs=1e-10)
        assert abs(second) > 1e-3


def test_shake_holds_bonds_of_the_model(wet: Any) -> None:
    """Constraints act on what pair_style kqeq computes; special_bonds is not applied, which is said once."""
    hoh = np.array([[0.0, 0.0, 0.0], [0.7572, 0.5858, 0.0], [-0.7572, 0.5858, 0.0]])
    grid = np.array(list(np.ndindex(2, 2, 2))) * 3.7
    positions = (grid[:, None] + hoh).reshape(-1, 3)
    wet.data(Structure([8, 1, 1] * 8, positions, 7.4 * np.eye(3), True), np.repeat(np.arange(8) + 1, 3).tolist())
    data = (wet.folder / "atoms.data").read_text()
    data = data.replace("2 atom types", "2 atom types\n16 bonds\n8 angles\n1 bond types\n1 angle types")
    bonds = [f"{k + 1} 1 {3 * (k // 2) + 1} {3 * (k // 2) + 2 + k % 2}" for k in range(16)]
    angles = [f"{k + 1} 1 {3 * k + 2} {3 * k + 1} {3 * k + 3}" for k in range(8)]
    (wet.folder / "atoms.data").write_text("\n".join([data, "Bonds", "", *bonds, "", "Angles", "", *angles, ""]))
    extra = "extra/bond/per/atom 2 extra/angle/per/atom 1 extra/special/per/atom 2"
    parts = {"atom_style": "atom_style full", "read": f"read_data atoms.data {extra}"}
    commands = f"""
bond_style harmonic
angle_style harmonic
bond_coeff 1 0.0 0.9574
angle_coeff 1 0.0 104.52
fix 2 all shake 1e-8 50 0 b 1 a 1
fix 1 all nve
compute e all pe/atom
timestep 0.0005
velocity all create 300 1
run 5
{wet.say("before", "etotal")}
run 20
{wet.say("after", "etotal")}
{wet.write_frame("last")}"""
    screen = wet.run(wet.script(commands, pair_style=wet.tight, **parts))
    frame = wet.read_frame(screen, "last")
    r = frame.structure.positions.reshape(8, 3, 3)
    lengths = np.linalg.norm(r[:, 1:] - r[:, :1], axis=2)
    np.testing.assert_allclose(lengths, 0.9574, atol=1e-6)
    expected = wet.compute(frame.structure, 1e-12)
    assert frame.thermo["pe"] == pytest.approx(expected.energy, abs=1e-8)
    np.testing.assert_allclose(frame.charges, expected.charges, atol=1e-8)
    before, after = wet.said(screen, "before")[0, 0], wet.said(screen, "after")[0, 0]
    assert after == pytest.approx(before, abs=2e-4)
    said = "special_bonds is not applied: all pairs of atoms interact; write `special_bonds lj/coul 1 1 1`"
    assert screen.count(said) == 1
    zero = "bond_style zero\nbond_coeff 1\nangle_style zero\nangle_coeff 1"
    assert "special_bonds is" not in wet.run(wet.script(f"{zero}\nspecial_bonds lj/coul 1 1 1\nrun 0", **parts))


# --- atoms that come and go


def test_atoms_are_deleted_and_created_between_runs(here: Any) -> None:
    here.data(here.cluster())
    cluster = here.cluster()
    x, y, z = cluster.positions[11]
    commands = f"""
compute e all pe/atom
run 0
{here.write_frame("all")}
group last id 12
delete_atoms group last
run 0
{here.write_frame("fewer")}
create_atoms 2 single {x:.17g} {y:.17g} {z:.17g} units box
run 0
{here.write_frame("again")}"""
    screen = here.run(here.script(commands, boundary=OPEN, pair_style=here.tight))
    frames = [here.read_frame(screen, name, "f f f") for name in ("all", "fewer", "again")]
    assert [len(frame.structure) for frame in frames] == [12, 11, 12]
    for frame in frames:
        here.assert_same(frame, here.compute(frame.structure, 1e-12))
    assert frames[2].thermo["pe"] == pytest.approx(frames[0].thermo["pe"], abs=1e-10)
    assert "number of atoms changed" not in screen


def test_atoms_that_leave_open_boundaries(here: Any) -> None:
    """LAMMPS' own error; or, where the script wants it so, a warning that the total charge stays."""
    here.data(here.cluster())
    leave = """
group one id 1
displace_atoms one move 25 0 0
velocity one set 2000 0 0
fix 1 all nve
thermo 10
neigh_modify delay 0 every 1 check yes
compute q all property/atom q
compute s all reduce sum c_q
"""
    here.refused(here.script(f"{leave}run 20", boundary=OPEN), "Lost atoms: original 12 current 11")
    run = f"thermo_style custom step c_s\nthermo_modify lost ignore\nrun 20\n{here.say('charge', 'c_s')}"
    screen = here.run(here.script(f"{leave}{run}", boundary=OPEN, pair_style="pair_style kqeq charge 1"))
    said = "the number of atoms changed from 12 to 11 during the run: the total charge stays as it was"
    assert screen.count(said) == 1
    assert here.said(screen, "charge")[0, 0] == pytest.approx(1.0, abs=1e-10)
