"""The keywords of `pair_style kqeq`, the two unit systems and types that are left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kqeq_md.model import Model
from kqeq_md.potential import Potential
from kqeq_md.structure import Structure

OPEN = "boundary f f f"

KCAL = 23.060547830619026
"""kcal/mol per eV: CODATA 2018, and 4184 J/kcal."""


# --- the field


def test_a_variable_is_as_good_as_a_number(here: Any) -> None:
    """And changes with it, from run to run and from step to step."""
    here.data(here.cluster())
    commands = f"""
variable ez equal 0.1
compute e all pe/atom
run 0
{here.write_frame("first")}
variable ez equal 0.001*step-0.02
fix 1 all nve
run 30
{here.write_frame("second")}
run 0
{here.write_frame("third")}"""
    style = f"{here.tight} charge 1 field 0.0 0.05 v_ez"
    screen = here.run(here.script(commands, boundary=OPEN, pair_style=style))
    for name, ez in (("first", 0.1), ("second", 0.01), ("third", 0.01)):
        frame = here.read_frame(screen, name, "f f f")
        structure = replace(frame.structure, charge=1.0, field=(0.0, 0.05, ez))
        here.assert_same(frame, here.compute(structure, 1e-12))


def test_a_variable_may_refer_to_a_compute(here: Any) -> None:
    """Here the field is that of the dipole of the step before: it is up to date in each step."""
    here.data(here.cluster())
    commands = f"""
compute x all reduce max x
variable ez equal 0.01*c_x
fix 1 all nve
velocity all create 2000 1
compute e all pe/atom
run 10
{here.write_frame("last")}"""
    style = f"{here.tight} field 0.0 0.0 v_ez"
    frame = here.read_frame(here.run(here.script(commands, boundary=OPEN, pair_style=style)), "last", "f f f")
    field = (0.0, 0.0, 0.01 * frame.structure.positions[:, 0].max())
    here.assert_same(frame, here.compute(replace(frame.structure, field=field), 1e-12))


def test_a_changing_field_does_the_work_of_the_energy_balance(here: Any) -> None:
    """E_total(t) + int mu.dF = constant, by the trapezoidal rule over the steps."""
    here.data(here.cluster())
    commands = """
variable ez equal 0.15*(1-cos(0.01*PI*step))
variable energy equal etotal
compute p all pair kqeq
fix 1 all nve
fix 2 all ave/time 1 1 1 v_energy v_ez c_p[6] file work.txt format ' %.15g'
timestep 0.0002
run 100"""
    here.run(here.script(commands, boundary=OPEN, pair_style=f"{here.tight} field 0.0 0.1 v_ez"))
    energy, ez, mu = np.loadtxt(here.folder / "work.txt")[:, 1:].T
    work = -np.concatenate([[0.0], np.cumsum(0.5 * (mu[1:] + mu[:-1]) * np.diff(ez))])
    change = energy - energy[0]
    assert ez[-1] == pytest.approx(0.3)
    assert np.abs(change).max() > 0.2
    # Verlet's wavering and the trapezoidal rule, both of second order in the time step
    np.testing.assert_allclose(change, work, atol=1e-4 * np.abs(change).max())


# --- charges and fragments


def test_the_charge_model_is_chosen_by_name(here: Any, model: Model, helpers: Any) -> None:
    """A file for split charges, asked for the charges that flow everywhere and inside fragments."""
    split = here.save(helpers.split_model(model), "split.kqeq")
    split.data(split.cluster())
    for name in ("qeq", "fragments", "split"):
        frame = split.frame(boundary=OPEN, pair_style=f"{split.tight} charges {name} field 0 0 0.05")
        structure = replace(frame.structure, field=(0, 0, 0.05))
        split.assert_same(frame, split.compute(structure, 1e-12, charges=name))


def test_fragments_are_molecules(wet: Any, helpers: Any) -> None:
    """Ids as they are when a run starts: two molecules that exchange charge, and then do so no more."""
    box = helpers.water_box(2)
    together = np.repeat([3, 3, 1, 2, 4, 5, 6, 7], 3)
    apart = np.repeat([3, 8, 1, 2, 4, 5, 6, 7], 3)
    wet.data(box, together.tolist())
    commands = f"""
compute e all pe/atom
run 0
{wet.write_frame("together")}
set atom 4*6 mol 8
run 0
{wet.write_frame("apart")}"""
    style = f"{wet.tight} charges fragments fragments molecule"
    screen = wet.run(wet.script(commands, atom_style="atom_style full", pair_style=style))
    assert screen.count('charges="fragments" for a model that was trained with "qeq"') == 1
    for name, groups in (("together", together), ("apart", apart)):
        frame = wet.read_frame(screen, name)
        wet.assert_same(frame, wet.compute(frame.structure, 1e-12, charges="fragments", fragments=groups))
    assert abs(wet.read_frame(screen, "together").charges[:3].sum()) > 1e-3


def test_molecules_that_were_put_elsewhere_are_found_anew(wet: Any, helpers: Any) -> None:
    """By their bonds: an atom that was taken from one molecule to another, in two runs."""
    pair = helpers.water_box((2, 1, 1))
    wet.data(Structure(pair.numbers, pair.positions))
    there = pair.positions[3] + [0.7, 0.7, 0.7] - pair.positions[2]
    commands = f"""
compute e all pe/atom
run 0
group one id 3
displace_atoms one move {there[0]} {there[1]} {there[2]}
run 0
{wet.write_frame("last")}"""
    screen = wet.run(wet.script(commands, boundary=OPEN, pair_style=f"{wet.tight} charges fragments"))
    frame = wet.read_frame(screen, "last", "f f f")
    expected = Potential(wet.model, tolerance=1e-12, charges="fragments").compute(frame.structure)
    wet.assert_same(frame, expected)
    assert abs(frame.charges[:2].sum()) < 1e-10


# --- units


def test_units_real(here: Any) -> None:
    """Energies, forces and pressures in kcal/mol; accuracy too, charges and field not."""
    here.data(here.triclinic())
    rough = 1e-3
    commands = f"""
compute e all pe/atom
compute p all pair kqeq
run 0
{here.write_frame("rest")}
{here.say("parts", "pe", "c_p[1]", "c_p[2]", "c_p[3]", "vol", "press")}
velocity all create 300 1
timestep 0.5
fix 1 all nve
{here.say("before", "etotal")}
run 0
{here.say("before", "etotal")}
run 40
{here.say("after", "etotal")}"""
    style = f"pair_style kqeq tolerance 1e-12 accuracy {KCAL * rough}"
    screen = here.run(here.script(commands, units="units real", pair_style=style))
    frame = here.read_frame(screen, "rest")
    expected = here.compute(frame.structure, 1e-12, accuracy=rough)
    exact = dict(rtol=1e-7, atol=1e-6)  # LAMMPS' 23.060549 is 5e-8 off CODATA
    np.testing.assert_allclose(frame.forces, KCAL * expected.forces, **exact)
    np.testing.assert_allclose(frame.energies, KCAL * expected.energies, **exact)
    np.testing.assert_allclose(frame.charges, expected.charges, atol=1e-9)
    energy, *parts, volume, pressure = here.said(screen, "parts")[0]
    assert energy == pytest.approx(KCAL * expected.energy, rel=1e-7)
    assert sum(parts) == pytest.approx(energy, rel=1e-12)
    # atm per kcal/mol/Angstrom^3 as LAMMPS has it (update.cpp)
    assert pressure == pytest.approx(68568.415 * KCAL * np.trace(expected.virial) / (3 * volume), rel=1e-6)
    # another accuracy gives other forces, so that the one above was understood
    assert np.abs(here.compute(frame.structure, 1e-12, accuracy=KCAL * rough).forces - expected.forces).max() > 1e-4
    (before,), (after,) = here.said(screen, "before")[-1], here.said(screen, "after")[0]
    assert after == pytest.approx(before, abs=KCAL * 2e-4)  # as in metal units: test_agreement


# --- types that are left out


def test_types_of_another_style_are_left_out(here: Any) -> None:
    """Argon beside the salt, held by lj/cut alone: it keeps its charge, and the model sees nothing of it."""
    salt = here.cluster()
    here.data(salt)
    commands = f"""
create_atoms 3 single 1.0 2.0 3.5 units box
set type 3 charge 0.25
compute e all pe/atom
compute k all pair kqeq
compute l all pair lj/cut
run 0
{here.write_frame("last")}
{here.say("parts", "pe", "c_k", "c_l")}
velocity all create 300 1
fix 1 all nve
run 20
{here.say("argon", "q[13]")}"""
    data = (here.folder / "atoms.data").read_text()
    data = data.replace("2 atom types", "3 atom types").replace("2 35.45\n", "2 35.45\n3 39.95\n")
    (here.folder / "atoms.data").write_text(data)
    pairs = [f"pair_coeff {i} 3 lj/cut 0.01 3.4" for i in (1, 2, 3)]
    parts = {
        "boundary": OPEN,
        "atom_style": "atom_style charge\natom_modify map array",
        "pair_style": "pair_style hybrid/overlay kqeq tolerance 1e-12 lj/cut 9.0",
        "pair_coeff": "\n".join([f"pair_coeff * * kqeq {here.coefficients} NULL", *pairs]),
    }
    screen = here.run(here.script(commands, **parts))
    expected = here.compute(salt, 1e-12)
    energy, kqeq, lj = here.said(screen, "parts")[0]
    assert kqeq == pytest.approx(expected.energy, abs=1e-8)
    assert energy == pytest.approx(kqeq + lj, abs=1e-12)
    rows = np.loadtxt(here.folder / "last.dump", skiprows=9)
    np.testing.assert_allclose(rows[:12, 2], expected.charges, atol=1e-8)
    d = np.array([1.0, 2.0, 3.5]) - salt.positions
    r = np.linalg.norm(d, axis=1)[:, None]
    r[r > 9.0] = np.inf
    push = 0.04 * (12 * (3.4 / r) ** 12 - 6 * (3.4 / r) ** 6) * d / r**2
    np.testing.assert_allclose(rows[12, 6:9], push.sum(axis=0), atol=1e-10)
    np.testing.assert_allclose(rows[:12, 6:9], expected.forces - push, atol=1e-7)
    assert here.said(screen, "argon")[0] == 0.25
