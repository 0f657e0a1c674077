"""pair_style kqeq on several ranks of real `mpirun`, against one rank and against the core, frame by frame."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from kqeq_md.model import Model
from kqeq_md.potential import Potential
from kqeq_md.response import response
from kqeq_md.structure import Structure

OPEN = "boundary f f f"
TENSOR = ("pe", "press", "pxx", "pyy", "pzz", "pxy", "pxz", "pyz")
LOWER = np.array([[0.02, 0.0, 0.0], [0.08, -0.03, 0.0], [-0.05, 0.06, 0.01]])
"""Strain that leaves a cell lower triangular, as LAMMPS wants it."""


@dataclass(frozen=True)
class Case:
    """A system and how it moves.

    Attributes:
        structure: atoms.
        style: words of pair_style.
        boundary: of LAMMPS.
        motion: fix that moves the atoms.
        molecule: ids of the atoms.
        settings: of `Potential`.
    """

    structure: Structure
    style: str = ""
    boundary: str = "p p p"
    motion: str = "nve"
    molecule: list[int] | None = None
    settings: dict[str, Any] | None = None


FRAMES = 6
EVERY = 20
"""Steps between frames."""


def moved(here: Any, case: Case) -> None:
    """100 steps on two ranks, in which atoms change ranks; frames.dump holds every 20th."""
    here.data(case.structure, case.molecule)
    columns = "id type x y z ix iy iz"
    screen = here.run(
        here.script(
            f"""velocity all create 600 7 loop geom
timestep 0.001
neighbor 0.5 bin
fix 1 all {case.motion}
dump 1 all custom {EVERY} frames.dump {columns}
dump_modify 1 sort id format float %.17g
run {(FRAMES - 1) * EVERY}
{here.say("builds", "nbuild")}""",
            **lines(here, case, ""),
        ),
        ranks=2,
    )
    assert here.said(screen, "builds")[0][0] > 0


def lines(here: Any, case: Case, more: str) -> dict[str, str]:
    """Lines of the script; open ends get room for atoms that move."""
    room = [f"{axis} delta -30 30" for axis, end in zip("xyz", case.boundary.split(), strict=True) if end != "p"]
    opened = f"\nchange_box all boundary {case.boundary} {' '.join(room)}" if room else ""
    return {
        "read": f"read_data atoms.data{opened}",
        "atom_style": "atom_style charge" if case.molecule is None else "atom_style full",
        "pair_style": f"pair_style kqeq {case.style} {more}",
    }


def again(here: Any, case: Case, ranks: int, frames: int = FRAMES, before: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Thermo output, shape (frames, names), and charges, forces, energies per atom, shape (frames, n, 5), of the frames
    of `moved`, with charges solved to rounding."""
    here.data(case.structure, case.molecule)
    columns = "id q fx fy fz c_e"
    words = [f"$({name}:%.17g)" for name in TENSOR]
    screen = here.run(
        here.script(
            f"""{before}
compute e all pe/atom
thermo 1
thermo_style custom step {" ".join(TENSOR)}
thermo_modify format float %.17g
dump 1 all custom 1 again{ranks}.dump {columns}
dump_modify 1 sort id format float %.17g
rerun frames.dump last {(frames - 1) * EVERY} dump x y z ix iy iz box yes
print "{" ".join(words)}" """,
            **lines(here, case, "tolerance 1e-10"),
        ),
        ranks=ranks,
    )
    rows = [line.split() for line in screen.splitlines() if line.split() and line.split()[0].isdecimal()]
    thermo = np.array([[float(x) for x in row[1:]] for row in rows if len(row) == len(TENSOR) + 1])
    text = (here.folder / f"again{ranks}.dump").read_text().split("ITEM: ATOMS id q fx fy fz c_e\n")[1:]
    atoms = [np.array([line.split()[1:] for line in part.split("ITEM:")[0].splitlines()], dtype=float) for part in text]
    assert len(thermo) == len(atoms) == frames
    return thermo, np.array(atoms)


def case_of(name: str, helpers: Any) -> Case:
    """Salt and water in all boundaries, in fields, with all ways of holding charges."""
    if name == "melt, barostat":
        structure = helpers.rock_salt(3, rattle=0.2)
        return Case(structure, motion="npt temp 600 600 0.05 iso 0 0 0.2")
    if name == "tilted, charged, barostat":
        structure = helpers.rock_salt(2, rattle=0.2, strain=LOWER)
        return Case(structure, style="charge 1", motion="npt temp 600 600 0.05 tri 0 0 0.2")
    if name == "slab in a field":
        return Case(helpers.rock_salt(2, rattle=0.2), style="field 0 0 0.1", boundary="p p f")
    if name == "cluster in a field":
        return Case(helpers.rock_salt(2, rattle=0.2), style="field 0.05 0 0.1 charge -1", boundary="f f f")
    strain = LOWER if "tilted" in name else None
    water = helpers.water_box((5, 6, 5), strain=strain)  # 450 atoms: in open boundaries too few for a direct sum
    molecule = np.repeat(np.arange(150) + 1, 3).tolist()
    held = {"charges": "fragments", "fragments": np.array(molecule)}
    if name == "open water, molecules":
        return Case(water, "charges fragments fragments molecule field 0 0.05 0.1", "f f f", "nve", molecule, held)
    if name == "tilted water, molecules":
        style = "charges fragments fragments molecule field 0.03 0.05 0.1"
        return Case(water, style, "p p p", "npt temp 300 300 0.05 tri 0 0 2.0", molecule, held)
    style = "charges split field 0.03 0.05 0.1"
    return Case(water, style, "p p p", settings={"charges": "split"})


SALT = ("melt, barostat", "tilted, charged, barostat", "slab in a field", "cluster in a field")
WATER = ("open water, molecules", "tilted water, molecules", "split water")


@pytest.mark.parametrize("name", SALT + WATER)
def test_ranks_agree_frame_by_frame(name: str, here: Any, wet: Any, water: Model, helpers: Any) -> None:
    case = case_of(name, helpers)
    place = wet if name in WATER else here
    if name == "split water":
        place = wet.save(helpers.split_model(water), "split.kqeq")
    if place.numbers == (11, 17):
        case = replace(case, structure=Structure(
            case.structure.numbers, case.structure.positions, case.structure.cell, True
        ))  # fmt: skip
    moved(place, case)
    thermo, atoms = again(place, case, 1)
    assert np.ptp(thermo[:, 0]) > 1e-3
    for ranks, frames in ((2, FRAMES), (4, 2)):
        got_thermo, got_atoms = again(place, case, ranks, frames)
        # pressures of all axes share a scale, and so do forces of all atoms
        for got, wanted, own in ((got_thermo, thermo[:frames], [0]), (got_atoms, atoms[:frames], [0, 4])):
            scale = np.full(wanted.shape[-1], np.abs(np.delete(wanted, own, axis=-1)).max())
            scale[own] = np.abs(wanted[..., own]).max(axis=tuple(range(wanted.ndim - 1)))
            np.testing.assert_allclose(got / scale, wanted / scale, rtol=0, atol=1e-7)


def test_any_decomposition(here: Any, helpers: Any) -> None:
    """Grids of ranks, uneven domains, ranks without atoms, tiles, and far ghosts: one energy, one set of forces."""
    solid = helpers.rock_salt(3, rattle=0.1)  # wider than ghosts reach, which tiles need
    corner = Structure(solid.numbers, solid.positions % 17.1, 60.0 * np.eye(3), True)
    ways = {
        "one after the other": ("processors 3 1 1", ""),
        "across": ("processors 1 1 3", "comm_modify cutoff 20.0"),
        "moved walls": ("", "balance 1.0 shift xyz 10 1.01"),
        "a cutoff that is too small": (
            "",
            "comm_modify cutoff 2.0",
        ),  # which LAMMPS makes as long as the pair style asks
        "tiles": ("comm_style tiled", "balance 1.0 rcb"),
    }
    found_words = here.say("found", "pe", "press", "c_f[1]", "c_f[3]")
    for structure in (solid, corner):
        here.data(structure)
        parts = [
            here.script(
                f"{after}\ncompute f all reduce sumsq fx fy fz\nrun 0\n{found_words}",
                units=f"clear\n{before}\nunits metal\nneighbor 0.5 bin", pair_style=here.tight,
            )
            for before, after in ways.values()
        ]  # fmt: skip
        found = here.said(here.run("\n".join(parts), ranks=3), "found")
        alone = here.said(here.run(parts[0].replace("processors 3 1 1", "")), "found")[0]
        assert len(found) == len(ways)
        np.testing.assert_allclose(found, np.tile(alone, (len(ways), 1)), rtol=1e-7)


def test_balance_and_tiles_during_a_run(here: Any, helpers: Any) -> None:
    """Atoms change ranks in large numbers; energy is conserved all the same."""
    here.data(helpers.rock_salt(3, rattle=0.1))
    run = """velocity all create 600 7 loop geom
timestep 0.0005
fix 1 all nve
fix 2 all balance 10 1.0 rcb
thermo 20
thermo_style custom step etotal
thermo_modify format float %.12g
run 60"""
    screen = here.run(here.script(run, units="comm_style tiled\nunits metal\nneighbor 0.5 bin"), ranks=2)
    energies = [float(x) for x in re.findall(r"^ +\d+ +(-\d[\d.]+) *$", screen, re.MULTILINE)]
    assert len(energies) == 4
    assert np.ptp(energies) < 1e-3  # Verlet's total wavers by (omega dt)^2 / 8 of the kinetic energy, 17 eV


def test_partitions_are_runs_of_their_own(here: Any) -> None:
    here.data(here.solid())
    script = here.script(
        "displace_atoms all move 0 0 ${shift} units box\nset atom 1 charge 0\nrun 0\n"
        "fix p all print 1 'x' screen no\nprint \"energy $(pe:%.17g)\" file energy.${shift}",
        units="variable shift world 0.0 1.3\nunits metal",
    )
    (here.folder / "in.lmp").write_text(script)
    answer = here.lammps(script, ranks=2, options=["-partition", "2x1", "-plog", "none", "-pscreen", "none"])
    assert answer.returncode == 0, answer.stdout + answer.stderr
    energies = [float((here.folder / f"energy.{shift}").read_text().split()[1]) for shift in ("0.0", "1.3")]
    # a crystal that is moved has its energy, to the accuracy of the mesh
    assert energies == pytest.approx([here.compute(here.solid()).energy] * 2, abs=1e-4)


def test_types_that_are_left_out_have_no_part_on_ranks_either(here: Any) -> None:
    """An inert third type among the ions: halo and forces are those of the others."""
    solid = here.solid()
    here.data(solid)
    read = (
        "read_data atoms.data extra/atom/types 1\nmass 3 40.0\ncreate_atoms 3 random 20 5 NULL overlap 1.0 maxtry 500"
    )
    coefficients = f"pair_coeff * * kqeq {here.coefficients} NULL\npair_coeff 1*3 3 lj/cut 0.01 1.0"
    script = here.script(
        f"set type 3 charge 0.25\nrun 0\ncompute p all property/atom q\ncompute q all reduce sum c_p\n"
        f"compute k all pair kqeq\nrun 0\n{here.say('parts', 'c_k', 'c_q', 'c_k[1]', 'c_k[7]')}",
        read=read, pair_style="pair_style hybrid/overlay kqeq tolerance 1e-10 lj/cut 3.0", pair_coeff=coefficients,
    )  # fmt: skip
    alone, both = (here.said(here.run(script, ranks=ranks), "parts")[0] for ranks in (1, 2))
    assert alone[0] == pytest.approx(here.compute(solid, tolerance=1e-10).energy, abs=1e-7)
    np.testing.assert_allclose(both[:3], alone[:3], rtol=1e-8)
    assert alone[1] == pytest.approx(5.0, abs=1e-6)


def test_everything_else_on_two_ranks(here: Any, wet: Any, helpers: Any) -> None:
    """Born charges, atoms per molecule found by bonds, a field that changes, atoms deleted between runs."""
    water = helpers.water_box((4, 2, 2))
    wet.data(water, np.repeat(np.arange(16) + 1, 3).tolist())
    script = wet.script(
        f"""fix b all pair 1 kqeq born_charges 1
compute b all reduce sumsq f_b[1] f_b[2] f_b[9]
compute k all pair kqeq
fix 1 all nve
thermo 5
timestep 0.0002
run 5
group gone molecule 3 7
delete_atoms group gone
run 5
{wet.say("parts", "c_k", "c_k[3]", "c_k[4]", "c_b[1]", "c_b[2]", "c_b[3]")}""",
        atom_style="atom_style full",
        pair_style="variable e equal 0.1*sin(step)\npair_style kqeq charges fragments field 0 v_e 0.05 tolerance 1e-10",
    )
    alone, both = (wet.said(wet.run(script, ranks=ranks), "parts")[0] for ranks in (1, 2))
    np.testing.assert_allclose(both, alone, rtol=1e-6)


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_rank_without_atoms_takes_part(ranks: int, wet: Any, helpers: Any) -> None:
    """Molecule ids and Born charges, which all ranks work out together: molecules in one corner of a large open box."""
    water = helpers.water_box((2, 1, 1), pbc=False, field=(0.02, 0.0, 0.05))
    corner = replace(water, positions=water.positions - 20.0)
    groups = np.repeat([1, 2], 3)
    wet.data(corner, groups.tolist())
    columns = " ".join(f"f_b[{k}]" for k in range(1, 10))
    commands = f"""fix b all pair 1 kqeq born_charges 1
compute e all pe/atom
run 0
{wet.write_frame("last")}
write_dump all custom born.dump id {columns} modify sort id format float %.17g"""
    parts = {"boundary": OPEN, "pair_style": "pair_style kqeq charges fragments fragments molecule field 0.02 0 0.05"}
    screen = wet.run(wet.script(commands, atom_style="atom_style full", **parts), ranks=ranks)
    potential = Potential(wet.model, charges="fragments", fragments=groups)
    wet.assert_same(wet.read_frame(screen, "last", "f f f"), potential.compute(corner))
    born = np.loadtxt(wet.folder / "born.dump", skiprows=9)[:, 1:]
    np.testing.assert_allclose(born, response(potential, corner).born_charges.reshape(-1, 9), atol=1e-8)


@pytest.mark.parametrize("ranks", [1, 2])
def test_molecules_that_take_the_place_of_others_in_one_step(ranks: int, wet: Any, helpers: Any) -> None:
    """A dimer that leaves in the step in which another comes: as many atoms as before, but in other places."""
    pair, gap = helpers.water_box((2, 1, 1), pbc=False), np.array([0.0, 0.0, 8.0])
    positions = np.concatenate([pair.positions, pair.positions[:3] + gap])
    wet.data(Structure(np.tile([8, 1, 1], 3), positions), [1] * 6 + [2] * 3)
    rows = range(1, 7)
    coords = "\n".join(f"{k} {x} {y} {z}" for k, (x, y, z) in zip(rows, pair.positions, strict=True))
    types = "\n".join(f"{k} {wet.numbers.index(z) + 1}" for k, z in zip(rows, pair.numbers, strict=True))
    (wet.folder / "dimer.txt").write_text(f"dimer\n\n6 atoms\n\nCoords\n\n{coords}\n\nTypes\n\n{types}\n")
    commands = """molecule dimer dimer.txt
region old sphere 0 0 0 6
region new sphere 0 0 -15 1
fix out all evaporate 1 6 old 7 molecule yes
fix in all deposit 1 0 1 7 region new mol dimer
run 1
write_dump all custom q.dump id mol q modify sort id format float %.17g"""
    style = f"{wet.tight} charges fragments fragments molecule"
    wet.run(wet.script(commands, boundary=OPEN, atom_style="atom_style full", pair_style=style), ranks=ranks)
    _, molecule, charge = np.loadtxt(wet.folder / "q.dump", skiprows=9).T
    np.testing.assert_array_equal(molecule, [2] * 3 + [3] * 6)
    assert abs(charge[:3].sum()) < 1e-10
    assert abs(charge[3:6].sum()) > 1e-5  # which flowed inside the dimer


def test_what_fails_on_one_rank_ends_all(here: Any) -> None:
    """Two atoms that fly into each other on the last rank, while the others go on to wait for it."""
    here.data(here.solid())
    run = """group two id 1 2
set atom 1 x 1.0 y 1.0 z 1.0
set atom 2 x 1.0 y 1.0 z 1.12
fix 1 all nve
run 10"""
    here.refused(here.script(run), r"on proc \d: pair_style kqeq: .*overlap, 0.12 Angstrom apart", ranks=3)
