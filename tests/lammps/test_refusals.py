"""What is refused, each with one line that names the cause and the way out, and an exit code."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kqeq_md.model import Model
from kqeq_md.models import NACL
from kqeq_md.structure import Structure

PAIR_STYLE = {
    "unknown keyword": ("chrge 1", r"unknown .*`chrge`.*: charge Q, field Ex Ey Ez, charges qeq\|fragments\|split, fr"),
    "repeated keyword": ("charge 1 charge 0", r"`charge` is given twice"),
    "incomplete charge": ("charge", r"`charge` needs 1 value\(s\), charge Q, got 0"),
    "incomplete field": ("field 0 1", r"`field` needs 3 value\(s\), field Ex Ey Ez, got 2"),
    "no number": ("charge one", r"Expected floating point .* 'one'"),
    "other fragments": ("fragments bonds", r"`fragments` must be followed by `molecule`, got `bonds`"),
    "fragments without molecules": ("fragments molecule", r"needs atoms with molecule ids: use `atom_style full`"),
    "loose tolerance": ("tolerance 1e-3", r"`tolerance` must lie between .*0.0001"),
    "tolerance of zero": ("tolerance 0", r"`tolerance` must lie between .*, got 0.0"),
    "half a thread": ("threads 1.5", r"`threads` must be a positive integer, got 1.5"),
    "no thread": ("threads 0", r"`threads` must be a positive integer, got 0"),
    "other charges": ("charges free", r"`charges` must be qeq, fragments, split, got 'free'"),
    "field in a cell": ("field 0 0 1", r"`field` must be zero along.*Ways out"),
    "field without its variable": ("field 0 0 v_ez", r"variable `ez` of `field` does not exist"),
}
PARTS = {
    "unknown element": ({"pair_coeff": "pair_coeff * * {} Na Br"}, r"model knows Na, Cl, got Br for type 2"),
    "all types left out": ({"pair_coeff": "pair_coeff * * {} NULL NULL"}, r"element for at least one .*, got NULL for"),
    "some types left out": ({"pair_coeff": "pair_coeff * * {} Na NULL"}, r"[Aa]ll pair coeffs are not set"),
    "too few elements": ({"pair_coeff": "pair_coeff * * {} Na"}, r"one element \(or NULL\) per .*: 2 types, got 1"),
    "too many elements": ({"pair_coeff": "pair_coeff * * {} Na Cl Na"}, r"per atom type: 2 types, got 3"),
    "single types": ({"pair_coeff": "pair_coeff 1 2 {} Na Cl"}, r"must start with \* \*"),
    "no model": ({"pair_coeff": "pair_coeff * *"}, r"pair_coeff \* \* MODEL.kqeq ELEMENT ..., one element \(or NULL\)"),
    "no model file": ({"pair_coeff": "pair_coeff * * absent.kqeq Na Cl"}, r"absent.kqeq does not exist"),
    "not a model": ({"pair_coeff": "pair_coeff * * atoms.data Na Cl"}, r"atoms.data is not a .kqeq model"),
    "truncated model": ({"pair_coeff": "pair_coeff * * half.kqeq Na Cl"}, r"half.kqeq is not .*, or is truncated"),
    "no charges": ({"atom_style": "atom_style atomic", "read": "read_data bare.data"}, r"use `atom_style charge`"),
    "other units": ({"units": "units si"}, r"needs `units metal` or `units real`, got `units si`"),
    "newton off": ({"units": "units metal\nnewton off"}, r"needs `newton on`"),
    "wire": ({"boundary": "boundary p s s"}, r"`pbc` must .*wire"),
    "field along a slab": (
        {"boundary": "boundary p p s", "pair_style": "pair_style kqeq field 0.1 0 0"},
        r"`field` must be zero along periodic axes",
    ),
}


def prepare(here: Any, is_open: bool) -> None:
    """Files of the cases."""
    here.data(here.cluster() if is_open else here.solid())
    (here.folder / "half.kqeq").write_bytes(here.model.read_bytes()[:2000])
    data = (here.folder / "atoms.data").read_text()
    bare = re.sub(r"^(\d+ [12]) 0.5 ", r"\1 ", data, flags=re.MULTILINE).replace("# charge", "# atomic")
    (here.folder / "bare.data").write_text(bare)
    (here.folder / "qeq.data").write_text("1 3.0 12.0 1.0 0.0 0.0\n2 8.0 16.0 1.0 0.0 0.0\n")
    (here.folder / "qtpie.data").write_text("1 3.0 12.0 1.0\n2 8.0 16.0 1.0\n")
    (here.folder / "gauss.data").write_text("1 0.2\n2 0.3\n")
    (here.folder / "acks2.data").write_text("12.0\n1 3.0 12.0 1.0 2.0\n2 8.0 16.0 1.0 2.0\n")


ALSO_ON_TWO_RANKS = {
    "unknown keyword", "repeated keyword", "field in a cell", "field without its variable", "other charges",
    "unknown element", "no model file", "truncated model", "no charges", "other units", "newton off", "wire",
    "field along a slab",
}  # fmt: skip
"""Where other code finds the mistake, or it is found in another place of the script."""


def on_ranks(cases: dict[str, Any]) -> Any:
    """Each case on one rank, and those above on two."""
    twice = [case for case in cases if case in ALSO_ON_TWO_RANKS]
    return pytest.mark.parametrize(("case", "ranks"), [(case, 1) for case in cases] + [(case, 2) for case in twice])


@on_ranks(PAIR_STYLE)
def test_bad_keywords_are_refused_in_one_line(here: Any, case: str, ranks: int) -> None:
    words, message = PAIR_STYLE[case]
    here.data(here.solid())
    here.refused(here.script("run 0", pair_style=f"pair_style kqeq {words}"), message, ranks=ranks)


@on_ranks(PARTS)
def test_bad_input_is_refused_in_one_line(here: Any, case: str, ranks: int) -> None:
    parts, message = PARTS[case]
    prepare(here, "boundary" in parts)
    script = here.script("run 0", **{name: line.format(here.model) for name, line in parts.items()})
    here.refused(script, message, ranks=ranks)


NAN = "variable a atom 1e308*1e10-1e308*1e10"
COMMANDS = {
    "overlapping atoms": (
        "set atom 2 x 0 y 0 z 0\nset atom 1 x 0 y 0 z 0.1",
        r"atoms (0 and 1 overlap, 0.1 Angstrom apart.*count from 0 in the order of their ids|[12] and [12] overlap)",
    ),
    "positions that are not numbers": (
        f"{NAN}\nset atom 3 x v_a",
        r"[Nn]on-numeric|`positions` must be finite, got nan",
    ),
    "forces that are not numbers": (
        f"{NAN}\nfix 1 all nve\nfix 2 all addforce v_a 0 0\nneigh_modify delay 100",
        r"`positions` must be finite, got nan",
    ),
    "stress per atom": (
        "compute s all stress/atom NULL\ncompute r all reduce sum c_s[1]\nthermo_style custom c_r\n",
        r"stress per atom is not available",
    ),
    "excluded pairs": ("neigh_modify exclude type 1 1", r"`neigh_modify exclude` is not available"),
    "a group of ghosts": (
        "group sodium type 1\natom_modify first sodium\ncomm_modify group sodium",
        r"`comm_modify group` is not available",
    ),
    "fix efield": ("fix e all efield 0.0 0.0 0.1", r"`pair_style kqeq field Ex Ey Ez`.*remove `fix e ... efield`"),
    "fix qeq/point": ("fix c all qeq/point 1 5 1e-6 9 qeq.data", r"remove `fix c ... qeq/point`"),
    "fix acks2/reaxff": ("fix c all acks2/reaxff 1 0 5 1e-6 acks2.data", r"remove `fix c ... acks2/reaxff`"),
    "fix qtpie/reaxff": ("fix c all qtpie/reaxff 1 0 5 1e-6 qtpie.data gauss.data", r"remove `fix c ... qtpie/reaxff`"),
    "a dielectric constant": ("dielectric 2", r"knows no `dielectric` but 1"),
    "another pair_style alone": ("pair_style kqeq tolerance 1e-8", r"[Aa]ll pair coeffs are not set"),
    "Born charges of a crystal": (
        "fix b all pair 1 kqeq born_charges 1",
        r"Born charges need a dipole along all axes, got a periodic structure",
    ),
    "Born charges that nobody asked for": (
        "fix b all pair 1 kqeq born_charges 0",
        r"cannot extract property born_charges",
    ),
}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("case", COMMANDS)
def test_what_cannot_be_computed_ends_the_run(here: Any, case: str, ranks: int) -> None:
    prepare(here, False)
    commands, message = COMMANDS[case]
    here.refused(here.script(f"{commands}\nrun 3"), message, ranks=ranks)


HYBRID = {
    "kspace": (
        "hybrid/overlay kqeq coul/long 5.0",
        "pair_coeff * * coul/long\nkspace_style ewald 1e-4",
        "remove `kspace_style`",
    ),
    "hybrid": (
        "hybrid kqeq lj/cut 3.0",
        "pair_coeff 2 2 lj/cut 0.01 2.0",
        "use `hybrid/overlay` instead of `hybrid`",
    ),
    "fix efield": ("hybrid/overlay kqeq", "fix e all efield 0.0 0.0 0.1", "remove `fix e ... efield`"),
}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("case", HYBRID)
def test_what_would_count_charges_twice_is_refused_in_hybrid_styles(here: Any, case: str, ranks: int) -> None:
    here.data(here.solid())
    style, end, message = HYBRID[case]
    parts = {"pair_style": f"pair_style {style}", "pair_coeff": f"pair_coeff * * kqeq {here.coefficients}"}
    here.refused(here.script(f"{end}\nrun 0", **parts), message, ranks=ranks)


@pytest.mark.parametrize("ranks", [1, 2])
def test_charges_without_a_minimum_end_the_run(here: Any, model: Model, ranks: int) -> None:
    soft = here.save(replace(model, hardness=np.array([-9.0, -9.0])), "soft.kqeq")
    soft.data(soft.solid())
    soft.refused(soft.script("run 0"), r"`hardness` is too (negative|low)", ranks=ranks)


@pytest.mark.parametrize("ranks", [1, 2])
def test_atoms_that_extrapolate_are_warned_of_once(tmp_path: Path, here: Any, ranks: int) -> None:
    """Sodium metal, for the model of the salt, in one of two halves."""
    salt = replace(here, model=NACL)
    sites = 3.6 * np.array(list(np.ndindex(3, 3, 3)))
    salt.data(Structure([11] * 27, sites))
    screen = salt.run(salt.script("fix 1 all nve\nrun 101\nrun 1", boundary="boundary f f f"), ranks=ranks)
    (warning,) = [line for line in screen.splitlines() if "extrapolate" in line]
    named = r"threshold of \d+\.\d\d: \d+ \(\d+\.\d\d\), .*\(ids with their measures\)"
    assert re.search(r"WARNING: pair_style kqeq: \d+ atoms extrapolate, .*" + named, warning)


@pytest.mark.parametrize("ranks", [1, 2])
def test_atoms_that_extrapolate_end_the_run_or_are_let_be(here: Any, ranks: int) -> None:
    """`extrapolation stop` ends LAMMPS by its own error on all ranks together; `off` says nothing."""
    salt = replace(here, model=NACL)
    salt.data(Structure([11] * 27, 3.6 * np.array(list(np.ndindex(3, 3, 3)))))
    stop, off = (
        salt.script("run 1", boundary="boundary f f f", pair_style=f"pair_style kqeq extrapolation {action}")
        for action in ("stop", "off")
    )
    end = salt.lammps(stop, ranks=ranks)
    assert end.returncode != 0
    (line,) = {line for line in end.stdout.splitlines() if "ERROR" in line}
    assert re.search(r"ERROR: pair_style kqeq: \d+ atoms extrapolate, .*: \d+ \(\d+\.\d\d\), ", line)
    assert "extrapolate" not in salt.run(off, ranks=ranks)


def test_other_actions_are_refused(here: Any) -> None:
    here.data(here.solid())
    here.refused(
        here.script("run 0", pair_style="pair_style kqeq extrapolation raise"),
        r"`extrapolation` must be warn, stop, off, got 'raise'",
    )


def test_special_bonds_are_said_to_have_no_effect(wet: Any, helpers: Any) -> None:
    """Bonded atoms, which LAMMPS leaves out of neighbour lists, interact nevertheless."""
    box = helpers.water_box(2)
    wet.data(box, np.repeat(np.arange(8) + 1, 3).tolist())
    bonds = "create_bonds many all all 1 0.5 1.3"
    read = "read_data atoms.data extra/bond/types 1 extra/bond/per/atom 4 extra/special/per/atom 8\n"
    parts = {"atom_style": "atom_style full", "read": read}
    energies = []
    for factors, warnings in (("0 0 0", 1), ("1 1 1", 0)):
        commands = f"bond_style zero\nbond_coeff * \n{bonds}\nspecial_bonds lj/coul {factors}\nrun 0\nrun 0"
        screen = wet.run(wet.script(f"{commands}\n{wet.say('energy', 'pe')}", **parts), ranks=2)
        assert screen.count("special_bonds is not applied") == warnings
        energies.append(wet.said(screen, "energy")[0, 0])
    expected = wet.compute(box).energy
    assert energies == pytest.approx([expected, expected], rel=1e-8)


def test_other_styles_of_variables_are_refused(here: Any) -> None:
    here.data(here.cluster())
    parts = {"boundary": "boundary f f f", "pair_style": "variable e atom x\npair_style kqeq field v_e 0 0"}
    here.refused(here.script("run 0", **parts), r"variable `e` of `field` must be of equal style")


def test_a_general_triclinic_box_has_no_field(here: Any) -> None:
    box = "lattice custom 5.7 a1 1 0 0 a2 0 1 0 a3 0 0.1 1 triclinic/general basis 0 0 0\ncreate_box 2 NULL 0 2 0 2 0 2"
    read = f"{box}\ncreate_atoms 1 single 1 1 1\nmass * 20"
    here.refused(
        here.script("run 0", read=read, pair_style="pair_style kqeq field 0 0 0.1"), r"use a restricted triclinic box"
    )


def test_two_dimensions_are_refused(here: Any) -> None:
    box = "region box block 0 9 0 9 -0.5 0.5\ncreate_box 2 box\ncreate_atoms 1 single 1 1 0\nmass * 20.0"
    here.refused(here.script("run 0", units="units metal\ndimension 2", read=box), "needs `dimension 3`")


def test_an_empty_box_is_named(here: Any) -> None:
    create = "region box block 0 9 0 9 0 9\ncreate_box 2 box\nmass * 20.0"
    here.refused(here.script("run 0", read=create), "no atoms are left")


def test_molecules_without_a_number_are_refused(wet: Any, helpers: Any) -> None:
    box = helpers.water_box(2)
    wet.data(box, [1] * 12 + [0] * 3 + [2] * 9)
    parts = {"atom_style": "atom_style full", "pair_style": "pair_style kqeq charges fragments fragments molecule"}
    wet.refused(wet.script("run 0", **parts), r"molecule id for each atom of the model: 3 have the id 0")
    # charges that flow everywhere have no fragments
    parts["pair_style"] = "pair_style kqeq fragments molecule"
    wet.refused(wet.script("run 0", **parts), r'`fragments` need charges="fragments" or charges="split"')
