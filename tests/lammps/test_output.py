"""What LAMMPS' own commands read from the pair style: compute pair, fix pair, dumps and averages."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kqeq_md.model import load_model
from kqeq_md.models import NACL
from kqeq_md.potential import Potential
from kqeq_md.response import response
from kqeq_md.structure import Structure

PARTS = [f"c_p[{k}]" for k in range(1, 8)]
OPEN = "boundary f f f"
FIELD = (0.0, 0.05, 0.1)


def test_compute_pair_gives_the_parts(here: Any) -> None:
    """Of a charged cluster in a field, alone and beside a second pair style."""
    structure = here.cluster(1.0, FIELD)
    here.data(structure)
    style = "kqeq tolerance 1e-12 charge 1 field 0.0 0.05 0.1"
    names = ["pe", "c_p", "evdwl", "ecoul", *PARTS]
    commands = f"compute p all pair kqeq\nrun 0\n{here.say('parts', *names)}"
    alone = here.run(here.script(commands, boundary=OPEN, pair_style=f"pair_style {style}"))
    hybrid = {
        "boundary": OPEN,
        "pair_style": f"pair_style hybrid/overlay {style} zbl 2.0 3.0",
        "pair_coeff": f"pair_coeff * * kqeq {here.coefficients}\npair_coeff * * zbl 17 17",
    }
    beside = here.run(here.script(commands, **hybrid))
    expected = here.compute(structure, 1e-12)
    energies = [expected.short_range_energy, expected.charge_energy, expected.field_energy]
    for screen, is_alone in ((alone, True), (beside, False)):
        pe, pair, evdwl, ecoul, *parts = here.said(screen, "parts")[0]
        np.testing.assert_allclose(parts[:3], energies, atol=1e-9)
        np.testing.assert_allclose(parts[3:6], expected.dipole, atol=1e-9)
        assert parts[6] == expected.iterations
        assert sum(parts[:3]) == pytest.approx(pair, abs=1e-12)
        assert bool(abs(pe - pair) < 1e-12) is is_alone
        if is_alone:
            assert (evdwl, ecoul) == pytest.approx((energies[0], energies[1] + energies[2]), abs=1e-9)
    assert expected.field_energy == pytest.approx(-expected.dipole @ FIELD)
    assert min(np.abs(energies)) > 0.1


def test_averages_and_dumps(here: Any) -> None:
    """fix ave/time of the parts is their mean over the steps; iterations are those of a cell; q is written as it is."""
    here.data(here.solid())
    commands = f"""
compute p all pair kqeq
fix 1 all nve
velocity all create 300 1
fix 2 all ave/time 1 5 5 {" ".join(PARTS)} file parts.txt format ' %.15g'
dump 1 all custom 5 q.dump id q
dump_modify 1 sort id format float %.17g
thermo 1
thermo_style custom step pe {" ".join(PARTS)}
thermo_modify format float %.15g
run 5"""
    screen = here.run(here.script(commands, pair_style="pair_style kqeq"))
    table = [line.split() for line in screen.split("Step")[1].split("Loop time")[0].splitlines()[1:]]
    steps = np.array(table, dtype=float)
    means = np.loadtxt(here.folder / "parts.txt", ndmin=2)[-1, 1:]
    np.testing.assert_allclose(means, steps[1:, 2:].mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(steps[:, 2:5].sum(axis=1), steps[:, 1], rtol=1e-13)
    assert (steps[1:, 8] < steps[0, 8]).all()  # charges of the steps before are worth some iterations
    charges = np.loadtxt(here.folder / "q.dump", skiprows=9, max_rows=64)
    np.testing.assert_allclose(charges[:, 1], here.compute(here.solid()).charges, atol=1e-8)


def test_born_charges_per_atom(here: Any) -> None:
    """In the steps that fix pair asks for, d mu_a / d R_b in the column 3 a + b."""
    here.data(here.cluster())
    columns = " ".join(f"f_b[{k}]" for k in range(1, 10))
    commands = f"""
fix 1 all nve
velocity all create 300 1
fix b all pair 4 kqeq born_charges 1
dump 1 all custom 1 born.dump id xu yu zu {columns}
dump_modify 1 sort id format float %.17g
run 5"""
    style = f"{here.tight} field 0 0.05 0.1"
    here.run(here.script(commands, boundary=OPEN, pair_style=style))
    words = (here.folder / "born.dump").read_text().split("ITEM: TIMESTEP")[1:]
    frames = [np.array([line.split() for line in text.splitlines()[-12:]], dtype=float) for text in words]
    assert len(frames) == 6
    potential = Potential(here.model, tolerance=1e-12)
    for step in (0, 4):
        structure = replace(here.cluster(0.0, FIELD), positions=frames[step][:, 1:4])
        born = response(potential, structure).born_charges
        np.testing.assert_allclose(frames[step][:, 4:], born.reshape(12, 9), atol=1e-8)
        asymmetry = np.abs(born - born.transpose(0, 2, 1)).max()
        assert asymmetry > 1e-3  # so that the order of the columns is tested
    np.testing.assert_array_equal(frames[3][:, 4:], frames[0][:, 4:])


@pytest.mark.parametrize("ranks", [1, 2])
def test_extrapolation_per_atom(here: Any, ranks: int) -> None:
    """As the core has it of a calibrated model, whose measure asks for neighbours on other ranks."""
    record = {"threshold": 2.0, "charges": {"Na": [0.2, 0.3]}, "charge_per_atom": [0.0, 0.0]}
    salt = here.save(replace(load_model(NACL), training={"extrapolation": record}), "calibrated.kqeq")
    solid = salt.solid()
    salt.data(solid)
    commands = """
fix e all pair 1 kqeq extrapolation 1
dump 1 all custom 1 e.dump id f_e
dump_modify 1 sort id format float %.17g
run 0"""
    salt.run(salt.script(commands, pair_style="pair_style kqeq tolerance 1e-12 extrapolation off"), ranks=ranks)
    got = np.loadtxt(salt.folder / "e.dump", skiprows=9, max_rows=64)[:, 1]
    potential = Potential(salt.model, tolerance=1e-12)
    wanted = potential.extrapolation(solid, result=potential.compute(solid))
    np.testing.assert_allclose(got, wanted, rtol=1e-6)  # sums in another order, under roots
    assert np.ptp(got) > 0.1


def test_dipoles_follow_the_image_flags(ions: Any) -> None:
    """Ions that leave a periodic cell on one side: the dipole and the energy in the field do not jump."""
    solid = ions.solid()
    ions.data(solid)
    commands = f"""
compute p all pair kqeq
velocity all create 4000 1 mom yes
velocity all set NULL NULL 30.0 sum yes
fix 1 all nve
timestep 0.0005
variable energy equal etotal
fix 2 all ave/time 1 1 1 c_p[6] v_energy file mu.txt format ' %.15g'
run 60
compute e all pe/atom
run 0
{ions.write_frame("last")}"""
    screen = ions.run(ions.script(commands, pair_style=f"{ions.tight} field 0 0 0.02"))
    dipole, energy = np.loadtxt(ions.folder / "mu.txt")[:, 1:].T
    # wrapped into the cell, an ion would change the dipole by 11.4 e Angstrom, and the energy by 0.23 eV
    assert np.abs(np.diff(dipole)).max() < 1.0
    assert np.ptp(energy) < 0.05
    frame = ions.read_frame(screen, "last")
    moved = frame.structure.positions[:, 2] // 11.4 - solid.positions[:, 2] // 11.4
    assert 0 < moved.sum() < 64
    ions.assert_same(frame, ions.compute(replace(frame.structure, field=(0, 0, 0.02)), 1e-12))


def test_dipoles_that_are_not_defined_are_those_of_the_atoms_as_written(here: Any) -> None:
    """Charges that flow everywhere in a cell: sum of q_i and the unwrapped positions, as of `compute dipole`."""
    here.data(here.solid())
    commands = f"""
compute p all pair kqeq
compute e all pe/atom
run 0
{here.say("dipole", *PARTS[3:6])}
{here.write_frame("last")}"""
    screen = here.run(here.script(commands, pair_style=here.tight))
    frame = here.read_frame(screen, "last")
    assert Potential(here.model).compute(frame.structure).dipole is None
    np.testing.assert_allclose(here.said(screen, "dipole")[0], frame.charges @ frame.structure.positions, atol=1e-9)
    assert not np.allclose(frame.structure.positions, here.solid().positions % 11.4)  # some were wrapped


def test_a_slab_keeps_its_heights(here: Any) -> None:
    """Image flags along the open axis mean nothing; those along the periodic axes count."""
    pair = Structure([11, 17], [[5.0, 5.0, 4.0], [5.0, 5.0, 6.5]], 11.4 * np.eye(3), (True, True, False))
    here.data(replace(pair, pbc=(True, True, True)))
    dump = "ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n2\nITEM: BOX BOUNDS pp pp ff\n0 11.4\n0 11.4\n0 11.4\n"
    dump += "ITEM: ATOMS id x y z ix iy iz\n1 5 5 4 0 0 0\n2 5 5 6.5 1 -1 3\n"
    (here.folder / "flags.dump").write_text(dump)
    read = "rerun flags.dump dump x y z ix iy iz"
    commands = f"compute p all pair kqeq\n{read}\n{here.say('dipole', *PARTS[3:6], 'c_p[3]')}"
    style = f"{here.tight} field 0 0 0.1"
    screen = here.run(here.script(commands, boundary="boundary p p f", pair_style=style))
    expected = here.compute(replace(pair, field=(0, 0, 0.1)), 1e-12)
    q = expected.charges[1]
    np.testing.assert_allclose(here.said(screen, "dipole")[0], [11.4 * q, -11.4 * q, 2.5 * q, -0.25 * q], atol=1e-9)
