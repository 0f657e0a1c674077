"""Data sets as they come in: files, groups, units, conventions, and what is odd in them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import read, write
from hypothesis import given, settings
from hypothesis import strategies as st

from kqeq_md.errors import ConfigError
from kqeq_md.structure import Structure
from kqeq_md.train.config import Data, Keys, Units, read_config
from kqeq_md.train.data import Frame, read_frames, read_set
from kqeq_md.train.data.composition import atom_energies
from kqeq_md.train.data.duplicates import find_duplicates
from kqeq_md.train.data.findings import inspect_frames, warn_of
from kqeq_md.train.data.plausible import unit_hint
from kqeq_md.train.data.unit_system import factors
from kqeq_md.units import BOHR, HARTREE, KCAL_PER_MOL

EXAMPLES = Path(__file__).parents[2] / "examples"
SETS = [EXAMPLES / f"train_{name}" / f"{part}.xyz" for name in ("nacl", "water") for part in ("train", "test")]


def water(seed: int, count: int = 1, energy: float = -14.0) -> list[Atoms]:
    """Rattled water molecules with harmonic forces on both bonds (k d^2 = 46 eV)."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        r = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]]) + rng.normal(0.0, 0.05, (3, 3))
        forces, spring = np.zeros((3, 3)), 0.0
        for h in (1, 2):
            d = r[h] - r[0]
            stretch = np.linalg.norm(d) - 0.96
            pull = -50.0 * stretch * d / np.linalg.norm(d)
            forces[h] += pull
            forces[0] -= pull
            spring += 25.0 * stretch**2
        atoms = Atoms("OHH", r)
        atoms.info["REF_energy"] = energy + spring
        atoms.arrays["REF_forces"] = forces
        out.append(atoms)
    return out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bulk").mkdir()
    for name, seed in (("bulk/b.xyz", 1), ("bulk/a.xyz", 2), ("gas.xyz", 3)):
        write(tmp_path / name, water(seed, 8), format="extxyz")
    return tmp_path


def configured(folder: Path, text: str) -> Data:
    (folder / "config.toml").write_text(f"[data]\n{text}")
    return read_config(folder / "config.toml").data


# ---------------------------------------------------------------- files and groups


def test_globs_are_sorted_and_relative_to_the_configuration(folder: Path) -> None:
    data = configured(folder, 'train = ["gas.xyz", "bulk/*.xyz"]')
    assert data.train == [str(folder / name) for name in ("gas.xyz", "bulk/a.xyz", "bulk/b.xyz")]
    assert [frame.place for frame in read_set(data)][8] == f"{folder}/bulk/a.xyz, frame 0"


def test_names_with_brackets_are_names_where_the_file_exists(folder: Path) -> None:
    (folder / "gas.xyz").rename(folder / "gas[1].xyz")
    assert configured(folder, 'train = "gas[1].xyz"').train == [str(folder / "gas[1].xyz")]


GROUPS = """train = ["gas.xyz", "bulk/*.xyz"]
[[data.groups]]
files = "bulk/*.xyz"
weight = 2.5
[[data.groups]]
key = "config_type"
value = "7"
weight = 0.5
name = "sevens"
"""


def test_groups_by_file_and_by_key(folder: Path) -> None:
    frames = water(3, 8)
    frames[2].info["config_type"] = 7
    write(folder / "gas.xyz", frames, format="extxyz")
    read = read_set(configured(folder, GROUPS))
    assert [frame.weight for frame in read] == [1.0, 1.0, 0.5, *[1.0] * 5, *[2.5] * 16]
    assert [frame.group for frame in read[1:3]] == ["", "sevens"]
    assert read[-1].group == "bulk/*.xyz"


def test_test_frames_get_groups_but_need_not_fill_them(folder: Path) -> None:
    frames = water(3, 8)
    frames[2].info["config_type"] = "7"
    write(folder / "gas.xyz", frames, format="extxyz")
    data = configured(folder, GROUPS.replace("[[data", 'test = "bulk/a.xyz"\n[[data', 1))
    assert {frame.group for frame in read_set(data, "test")} == {"bulk/*.xyz"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('train = "gone/*.xyz"', r"`data.train`: 'gone/\*.xyz' matches no file"),
        ('train = "gas.xyz"\ntest = "t*.xyz"', r"`data.test`: 't\*.xyz' matches no file"),
        ('train = ["gas.xyz", "*.xyz"]', "`data.train` must name a file once, .*gas.xyz is named twice"),
        (GROUPS, "no training frame is in the group sevens"),
        (GROUPS.replace('"7"', '""'), "must have a `value` with `key`"),
        (GROUPS.replace("2.5", "0.0"), r"`data.groups.weight` must lie between .* got 0.0 for bulk/\*.xyz"),
        (GROUPS.replace("2.5", "-1"), "`data.groups.weight` must lie between"),
        (GROUPS.replace('key = "config_type"', 'key = "a"\nfiles = "b"'), "`files` or `key`, one of the two"),
        (GROUPS.replace('key = "config_type"\nvalue = "7"', 'files = "a.xyz"'), "in one group .* at most, got bulk/"),
        ('train = "gas.xyz"\ngroups = 3', r"`data.groups` must be tables, \[\[data.groups\]\], got 3"),
        ('train = "gas.xyz"\ngroups = [3]', "`data.groups` must be a table, got 3"),
        ('train = "gas.xyz"\ncheck_units = "no"', "`data.check_units` must be true or false, got 'no'"),
        ('train = "gas.xyz"\nfield_term = 0', "`data.field_term` must be true or false, got 0"),
        ('train = "gas.xyz"\natom_energies = "guess"', '`data.atom_energies` must be "fit", "read" or a table'),
        ('train = "gas.xyz"\natom_energies = 3', '`data.atom_energies` must be "fit", "read" or a table'),
        ('train = "gas.xyz"\natom_energies = { Xx = 1 }', "`data.atom_energies` must be given per element, got 'Xx'"),
        (
            'train = "gas.xyz"\n[data.units]\nenergy = "ev"',
            "`data.units.energy` must be one of eV, hartree, .* got 'ev'",
        ),
        (
            'train = "gas.xyz"\n[data.units]\nlength = "pm"',
            "`data.units.length` must be one of Angstrom, bohr, nm, got",
        ),
        ('train = "gas.xyz"\n[data.units]\nforces = "eV"', "`data.units.forces` must be one of energy/length, eV/Ang"),
        ('train = "gas.xyz"\n[data.units]\ndipole = "D"', "`data.units.dipole` must be one of"),
        ('train = "gas.xyz"\n[data.units]\nfield = "V/m"', "`data.units.field` must be one of V/Angstrom, a.u."),
    ],
)
def test_bad_data_sections(folder: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        read_set(configured(folder, text))
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- units


def test_factors_of_atomic_units() -> None:
    """CODATA 2018, to the digits of its table: e a0 in debye, field, pressure, polarizability, the Faraday constant."""
    scale = factors(Units("hartree", "bohr", field="a.u."))
    assert scale.dipole / factors(Units(dipole="debye")).dipole == pytest.approx(2.541746473, rel=1e-9)
    assert scale.field == scale.forces == pytest.approx(51.42206747632, rel=1e-9)
    assert scale.stress * 160.2176634 == pytest.approx(29421.01569, rel=1e-9)  # GPa
    assert scale.polarizability == pytest.approx(1.64877727436e-41 / 1.602176634e-39, rel=1e-9)  # C^2 m^2/J
    assert factors(Units("kcal/mol")).forces == pytest.approx(4184.0 / 96485.33212, rel=1e-9)
    assert factors(Units("hartree", forces="eV/nm")).forces == 0.1


def all_labels() -> Atoms:
    rng = np.random.default_rng(0)
    atoms = Atoms("NaCl", [[0.0, 0.0, 0.0], [2.4, 0.1, 0.0]])
    atoms.info.update(REF_energy=-4.5, REF_dipole=rng.normal(size=3), electric_field=np.array([0.01, 0.0, 0.02]))
    atoms.info["REF_polarizability"] = rng.normal(size=9)
    atoms.info["total_charge"] = 1
    atoms.arrays.update(REF_forces=rng.normal(size=(2, 3)), REF_charges=rng.normal(size=2))
    atoms.arrays["REF_born_charges"] = rng.normal(size=(2, 9))
    return atoms


def test_one_structure_in_two_systems_of_units(tmp_path: Path) -> None:
    """Every label read in hartree, bohr and atomic units is that in eV and Angstrom (eight digits in files)."""
    ours, theirs = all_labels(), all_labels()
    theirs.positions /= BOHR
    for name, unit in (("REF_energy", HARTREE), ("REF_dipole", BOHR), ("electric_field", HARTREE / BOHR)):
        theirs.info[name] = theirs.info[name] / unit
    theirs.info["REF_polarizability"] = theirs.info["REF_polarizability"] * HARTREE / BOHR**2
    theirs.arrays["REF_forces"] = theirs.arrays["REF_forces"] / (HARTREE / BOHR)
    write(tmp_path / "ours.xyz", ours, format="extxyz")
    write(tmp_path / "theirs.xyz", theirs, format="extxyz")
    (one,) = read_frames([tmp_path / "ours.xyz"], Keys())
    (two,) = read_frames([tmp_path / "theirs.xyz"], Keys(), units=Units("hartree", "bohr", field="a.u."))
    assert one.energy == pytest.approx(two.energy, abs=1e-7)
    for get in (
        lambda f: f.structure.positions, lambda f: f.structure.field, lambda f: f.forces, lambda f: f.charges,
        lambda f: f.dipole, lambda f: f.polarizability, lambda f: f.born_charges,
    ):  # fmt: skip
        np.testing.assert_allclose(get(two), get(one), atol=1e-6)
    assert one.structure.charge == two.structure.charge == 1.0


def crystal(name: str, value: object) -> Atoms:
    atoms = Atoms("NaCl", [[0, 0, 0], [2.8, 0, 0]], cell=[5.6, 5.6, 5.6], pbc=True)
    atoms.info[name] = value
    atoms.info["REF_energy"] = -6.0
    return atoms


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REF_stress", np.array([[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]])),
        ("REF_stress", np.array([1.0, 6.0, 5.0, 6.0, 2.0, 4.0, 5.0, 4.0, 3.0])),
        ("REF_stress", np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])),
        ("REF_virial", -(5.6**3) * np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])),
        ("stress", np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])),
    ],
)
def test_stress_in_all_its_forms(tmp_path: Path, name: str, value: object) -> None:
    write(tmp_path / "a.xyz", crystal(name, value), format="extxyz")
    keys = Keys(stress="stress") if name == "stress" else Keys()
    (frame,) = read_frames([tmp_path / "a.xyz"], keys)
    np.testing.assert_allclose(frame.stress, [[1, 6, 5], [6, 2, 4], [5, 4, 3]], rtol=1e-7)  # digits of the file


def test_stress_has_the_sign_of_ase(tmp_path: Path) -> None:
    """Stretched copper pulls its cell together: positive, and dE/d(strain)/V (difference of second order, 1e-6)."""
    atoms = bulk("Cu", a=3.9)
    atoms.calc = EMT()
    atoms.info["REF_energy"] = atoms.get_potential_energy()
    atoms.info["REF_stress"] = atoms.get_stress(voigt=False)
    energies = []
    for strain in (1e-4, -1e-4):
        moved = atoms.copy()
        moved.set_cell(atoms.cell.array * [1.0 + strain, 1.0, 1.0], scale_atoms=True)
        moved.calc = EMT()
        energies.append(moved.get_potential_energy())
    copy = atoms.copy()
    write(tmp_path / "a.xyz", copy, format="extxyz")
    (frame,) = read_frames([tmp_path / "a.xyz"], Keys())
    assert frame.stress is not None
    assert frame.stress[0, 0] == pytest.approx((energies[0] - energies[1]) / 2e-4 / atoms.get_volume(), rel=1e-5)
    assert frame.stress[0, 0] > 0


# ---------------------------------------------------------------- plausibility of units


def converted(frames: Sequence[Frame], length: float, energy: float, forces: float) -> list[Frame]:
    """The numbers that a file in other units would hold."""
    out = []
    for frame in frames:
        s = frame.structure
        structure = Structure(s.numbers, s.positions / length, s.cell / length, s.pbc, s.charge, s.field)
        out.append(
            replace(
                frame,
                structure=structure,
                energy=None if frame.energy is None else frame.energy / energy,
                forces=None if frame.forces is None else frame.forces / forces,
            )
        )
    return out


MIXTURES = [
    ((BOHR, HARTREE, HARTREE / BOHR), 'length = "bohr", energy = "hartree" in'),
    ((1.0, HARTREE, HARTREE / BOHR), 'energy = "hartree", forces = "hartree/bohr" in'),
    ((1.0, 1.0, HARTREE / BOHR), 'set forces = "hartree/bohr" in'),
    ((BOHR, 1.0, 1.0), 'set length = "bohr", forces = "eV/Angstrom" in'),
    ((1.0, HARTREE, 1.0), 'set energy = "hartree", forces = "eV/Angstrom" in'),
    ((10.0, 1.0, 1.0), 'set length = "nm"'),
]


def sampled(path: Path, ten: int | None) -> list[Frame]:
    """Up to 120 frames evenly spread, or ten at random."""
    frames = read_frames([path], Keys())
    if ten is None:
        return frames[:: max(1, len(frames) // 120)]
    return [frames[k] for k in np.random.default_rng(ten).choice(len(frames), 10, replace=False)]


@pytest.mark.parametrize("path", SETS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_examples_pass_and_all_mixtures_of_units_are_refused(path: Path) -> None:
    frames = sampled(path, None)
    assert unit_hint(frames, Units()) is None
    for mixture, hint in MIXTURES:
        assert hint in str(unit_hint(converted(frames, *mixture), Units())), mixture


@pytest.mark.parametrize("path", SETS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_ten_frames_are_enough(path: Path) -> None:
    for draw in range(4):
        frames = sampled(path, draw)
        assert unit_hint(frames, Units()) is None
        for mixture, _ in MIXTURES:
            if mixture[0] == mixture[2] == 1.0:  # energies alone spread too differently in so few frames
                continue
            assert unit_hint(converted(frames, *mixture), Units()) is not None, (draw, mixture)


def test_reference_sets_pass_and_mixtures_are_refused(reference_data: Path) -> None:
    for path in sorted(reference_data.glob("*/*.xyz")):
        frames = read_frames([path], Keys(), labelled=False)[::7]
        assert unit_hint(frames, Units()) is None, path
        assert 'length = "bohr"' in str(unit_hint(converted(frames, *MIXTURES[0][0]), Units())), path
        if frames[0].forces is not None:
            for mixture, hint in MIXTURES[:5]:
                assert hint in str(unit_hint(converted(frames, *mixture), Units())), (path, mixture)


@pytest.mark.parametrize("symbol", ["Al", "Ni", "Cu", "Pd", "Ag", "Pt", "Au"])
def test_metals_in_cells_are_judged_too(symbol: str) -> None:
    """Forces of an effective-medium theory: nothing of the limits was chosen on them."""
    frames = []
    for seed in range(6):
        atoms = bulk(symbol, cubic=True) * (2, 2, 2)
        atoms.rattle(0.1, seed=seed)
        atoms.calc = EMT()
        structure = Structure(atoms.numbers, atoms.positions, atoms.cell.array, True)
        frames.append(Frame(structure, atoms.get_potential_energy(), atoms.get_forces(), None, None))
    assert unit_hint(frames, Units()) is None
    for mixture, hint in MIXTURES[:5]:
        assert hint in str(unit_hint(converted(frames, *mixture), Units())), mixture


def test_declared_units_are_judged_as_well() -> None:
    """eV and Angstrom under the names hartree and bohr: numbers become 27 and 0.5 times what they are."""
    for path in SETS[::2]:
        frames = converted(sampled(path, None), 1.0 / BOHR, 1.0 / HARTREE, BOHR / HARTREE)
        hint = unit_hint(frames, Units("hartree", "bohr"))
        assert 'set length = "Angstrom", energy = "eV" in' in str(hint)


def test_what_says_nothing_is_let_through() -> None:
    relaxed = [Frame(Structure(a.numbers, a.positions), -14.0, np.zeros((3, 3)), None, None) for a in water(0, 30)]
    assert unit_hint(relaxed, Units()) is None
    atoms = [Frame(Structure([11], [[0.0, 0.0, 0.0]]), -1.0, np.zeros((1, 3)), None, None) for _ in range(30)]
    assert unit_hint(atoms, Units()) is None
    argon = [replace(f, structure=Structure([18, 18, 18], 4.0 * f.structure.positions)) for f in relaxed]
    assert unit_hint(argon, Units()) is None


@pytest.mark.parametrize(("unit", "factor"), [("bohr", BOHR), ("nm", 10.0)])
def test_refusal_names_the_file_and_the_way_out(folder: Path, unit: str, factor: float) -> None:
    frames = water(5, 8)
    for atoms in frames:
        atoms.positions /= factor
    write(folder / "bulk" / "b.xyz", frames, format="extxyz")
    text = 'train = ["gas.xyz", "bulk/*.xyz"]'
    with pytest.raises(ConfigError, match=f'b.xyz: nearest atoms are .* length = "{unit}".*`check_units = false`'):
        read_set(configured(folder, text))
    if unit == "bohr":
        assert len(read_set(configured(folder, f"{text}\ncheck_units = false"))) == 24
    declared = f'train = "bulk/b.xyz"\n[data.units]\nlength = "{unit}"\nforces = "eV/Angstrom"'
    r = np.array([frame.structure.positions for frame in read_set(configured(folder, declared))])
    np.testing.assert_allclose(r, [atoms.positions for atoms in water(5, 8)], atol=1e-6)  # digits of the file


def test_kcal_per_mol_is_recognised_where_it_is_far_off() -> None:
    """Forces of stiff bonds only: 23 times 46 eV is beyond what any bond has."""
    frames = [
        Frame(Structure(a.numbers, a.positions), None, a.arrays["REF_forces"] / KCAL_PER_MOL, None, None)
        for a in water(0, 30)
    ]
    assert 'forces = "kcal/mol/Angstrom"' in str(unit_hint(frames, Units()))


# ---------------------------------------------------------------- conventions of energies


def in_field(dipole: bool, pbc: bool = False) -> Atoms:
    atoms = water(0)[0]
    atoms.info["electric_field"] = np.array([0.1, 0.0, -0.2])
    if dipole:
        atoms.info["REF_dipole"] = np.array([0.3, 0.4, 0.5])
    if pbc:
        atoms.set_cell([9.0, 9.0, 9.0])
        atoms.pbc = True
    return atoms


def test_energies_without_the_field_term_get_it(tmp_path: Path) -> None:
    """E = E0 - mu.F = E0 - (0.03 - 0.1); forces stay."""
    write(tmp_path / "a.xyz", [in_field(True), water(0)[0]], format="extxyz")
    given = read_frames([tmp_path / "a.xyz"], Keys())
    added = read_frames([tmp_path / "a.xyz"], Keys(), field_term=False)
    assert added[0].energy == pytest.approx(given[0].energy + 0.07, abs=1e-12)
    assert added[1].energy == given[1].energy
    np.testing.assert_array_equal(added[0].forces, given[0].forces)


@pytest.mark.parametrize("atoms", [in_field(False), in_field(True, pbc=True)])
def test_the_field_term_needs_a_dipole(tmp_path: Path, atoms: Atoms) -> None:
    write(tmp_path / "a.xyz", [water(1)[0], atoms], format="extxyz")
    with pytest.raises(ConfigError, match="a.xyz, frame 1: `data.field_term` = false needs a dipole label"):
        read_set(Data([str(tmp_path / "a.xyz")], field_term=False))


def single(symbol: str, energy: float | None, charge: float = 0.0, field: float = 0.0) -> Frame:
    structure = Structure(Atoms(symbol).numbers, [[0.0, 0.0, 0.0]], charge=charge, field=[field, 0.0, 0.0])
    return Frame(structure, energy, None, None, None)


def test_atom_energies_are_fitted_given_or_read() -> None:
    molecule = Frame(Structure([8, 1], [[0, 0, 0], [0.97, 0, 0]]), -30.0, None, None, None)
    frames = [molecule, single("O", -9.0), single("O", -10.0), single("O", -99.0, charge=-1.0), single("H", -3.0)]
    assert atom_energies(frames, Data(["any"])) is None
    assert atom_energies(frames, Data(["any"], atom_energies="read")) == {"H": -3.0, "O": -10.0}
    table = {"O": -1.0, "H": -2.0, "Na": 0.0}
    assert atom_energies(frames, Data(["any"], atom_energies=table)) == {"H": -2.0, "O": -1.0}
    with pytest.raises(
        ConfigError, match="must hold every element of the data, H is missing in a frame of one neutral"
    ):
        atom_energies([*frames[:4], single("H", -3.0, field=0.1)], Data(["any"], atom_energies="read"))
    with pytest.raises(ConfigError, match="must hold every element of the data, H is missing in the table"):
        atom_energies(frames, Data(["any"], atom_energies={"O": 0.0}))


# ---------------------------------------------------------------- findings


def frames_of(atoms: Sequence[Atoms], name: str = "a.xyz") -> list[Frame]:
    return [
        Frame(
            Structure(a.numbers, a.positions, a.cell.array, tuple(a.pbc)),
            a.info["REF_energy"],
            a.arrays["REF_forces"],
            None,
            None,
            place=f"{name}, frame {k}",
        )
        for k, a in enumerate(atoms)
    ]


def moved(frame: Frame, shift: Sequence[float], noise: float = 0.0) -> Frame:
    s = frame.structure
    rattle = noise * np.random.default_rng(0).uniform(-1.0, 1.0, s.positions.shape)
    return replace(frame, structure=s.moved(s.positions + shift + rattle))


def test_clean_sets_have_no_findings() -> None:
    assert inspect_frames(frames_of(water(0, 40)), frames_of(water(1, 10), "t.xyz")) == []


def test_copies_leaks_and_contradictions_are_told_apart() -> None:
    train, test = frames_of(water(0, 30)), frames_of(water(1, 5), "t.xyz")
    train[7] = moved(train[2], [5.0, -3.0, 1.0], noise=3e-4)
    train[7] = replace(train[7], energy=train[2].energy, forces=train[2].forces, place="a.xyz, frame 7")
    train[9] = replace(train[3], energy=train[3].energy + 0.1, place="a.xyz, frame 9")
    test[4] = replace(moved(train[0], [0.0, 1.0, 0.0]), place="t.xyz, frame 4")
    found = {finding.kind: finding for finding in inspect_frames(train, test)}
    assert set(found) == {"leak", "duplicate", "contradiction"}
    assert found["leak"].places == ("t.xyz, frame 4",)
    assert found["leak"].message == (
        "1 of 5 test frames stand in the training set too, so that test errors are too small (t.xyz, frame 4)"
    )
    assert set(found["duplicate"].places) == {"a.xyz, frame 7", "a.xyz, frame 9"}
    assert found["contradiction"].places == ("a.xyz, frame 9",)


def in_other_order(s: Structure) -> Structure:
    return Structure([1, 8, 1], s.positions[[2, 0, 1]])


def in_a_field(s: Structure) -> Structure:
    return Structure(s.numbers, s.positions, field=[0.0, 0.0, 0.1])


def charged(s: Structure) -> Structure:
    return Structure(s.numbers, s.positions, charge=1.0)


def displaced(s: Structure) -> Structure:
    return s.moved(s.positions + [[0.0, 0.0, 0.0], [0.004, 0.0, 0.0], [0.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("change", "same"), [(in_other_order, True), (in_a_field, False), (charged, False), (displaced, False)]
)
def test_what_makes_a_copy(change: Callable[[Structure], Structure], same: bool) -> None:
    first = frames_of(water(0))[0].structure
    assert find_duplicates([first, change(first)]) == ([(0, 1)] if same else [])


def test_copies_in_cells_are_found_across_their_faces() -> None:
    rng = np.random.default_rng(0)
    cell = np.array([[8.0, 0.0, 0.0], [2.0, 7.0, 0.0], [0.0, 1.0, 9.0]])
    fractions = rng.uniform(size=(10, 3))
    numbers = [11, 17] * 5
    first = Structure(numbers, fractions @ cell, cell, True)
    wrapped = Structure(numbers, ((fractions + [0.4, 0.7, 0.2]) % 1.0) @ cell, cell, True)
    other = Structure(numbers, (fractions + rng.normal(0.0, 0.002, (10, 3))) @ cell, cell, True)
    assert find_duplicates([first, other, wrapped]) == [(0, 2)]


def test_thousands_of_copies_take_no_longer_than_others() -> None:
    structure = frames_of(water(0))[0].structure
    pairs = find_duplicates([structure] * 5000)  # all pairs would be 12 million
    assert pairs == [(0, k) for k in range(1, 5000)]


def test_outliers_and_sums() -> None:
    frames = frames_of(water(0, 40))
    assert frames[0].forces is not None
    frames[3] = replace(frames[3], energy=frames[3].energy + 30.0)
    frames[4] = replace(frames[4], forces=frames[4].forces + np.array([[60.0, 0, 0], [-60.0, 0, 0], [0, 0, 0]]))
    frames[5] = replace(frames[5], forces=frames[5].forces + [0.1, 0.0, 0.0])
    frames[6] = replace(frames[6], charges=np.array([-0.6, 0.3, 0.4]))
    found = {finding.kind: finding for finding in inspect_frames(frames)}
    assert {kind: finding.places for kind, finding in found.items()} == {
        "energy outlier": ("a.xyz, frame 3",),
        "large forces": ("a.xyz, frame 4",),
        "net force": ("a.xyz, frame 5",),
        "charge sum": ("a.xyz, frame 6",),
    }
    assert "by up to 0.3 eV/A (a.xyz, frame 5): are the total charge" in found["net force"].message


def test_net_force_is_charge_times_field() -> None:
    """A cation in a field is pulled along; the opposite sign of the field is noticed."""
    frame = frames_of(water(0))[0]
    s = frame.structure
    assert frame.forces is not None
    pulled = replace(
        frame,
        structure=Structure(s.numbers, s.positions, charge=1.0, field=[0.0, 0.0, 0.3]),
        forces=frame.forces + [0.0, 0.0, 0.1],
    )
    assert inspect_frames([pulled]) == []
    wrong = replace(pulled, structure=Structure(s.numbers, s.positions, charge=1.0, field=[0.0, 0.0, -0.3]))
    assert [finding.kind for finding in inspect_frames([wrong])] == ["net force"]


def test_findings_are_logged_one_line_each(caplog: pytest.LogCaptureFixture) -> None:
    frames = frames_of(water(0, 6)) * 2
    with caplog.at_level(logging.WARNING, logger="kqeq_md"):
        warn_of(inspect_frames(frames))
    (record,) = caplog.records
    assert record.message.startswith("6 of 12 training frames are copies of earlier ones (a.xyz, frame 0; a.xyz")
    assert record.message.endswith("; ...)")


# ---------------------------------------------------------------- broken files


GOOD = """3
Properties=species:S:1:pos:R:3:REF_forces:R:3:REF_charges:R:1 REF_energy=-14.0 total_charge=0 electric_field="0 0 0.1"
O 0.0 0.0 0.0 0.1 0.2 0.3 -0.6
H 0.9 0.0 0.0 0.0 0.0 0.0 0.3
H 0.0 0.9 0.0 -0.1 -0.2 -0.3 0.3
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("total_charge=0", "total_charge=plus", "frame 1: `total_charge` must be numbers, got 'plus'"),
        ("total_charge=0", "total_charge=T", "frame 1: `total_charge` must be numbers, got True"),
        ("total_charge=0", 'total_charge="1 2"', r"frame 1: `total_charge` must have shape \(\), got \(2,\)"),
        ("total_charge=0", "total_charge=1e400", "frame 1: `total_charge` must be finite, got inf"),
        ("total_charge=0", f"total_charge=1{30 * '0'}", "frame 1: `total_charge` must"),
        ('"0 0 0.1"', '"0 0"', r"frame 1: `electric_field` must have shape \(3,\), got \(2,\)"),
        ('"0 0 0.1"', '"0 0 x"', "frame 1: `electric_field` must be numbers, got '0 0 x'"),
        ("-14.0", "nan", "frame 1: `REF_energy` must be finite, got nan"),
        ("-14.0", "-1e300", r"frame 1: `REF_energy` must lie within 1e\+12, got 1e\+300"),
        ("-14.0", "***", "frame 1: `REF_energy` must be numbers"),
        ("0.1 0.2 0.3", "0.1 nan 0.3", "frame 1: `REF_forces` must be finite"),
        ("0.1 0.2 0.3", "0.1 0.3", "is no extended XYZ after 1 frames"),
        ("0.1 0.2 0.3", "0.1 ** 0.3", "is no extended XYZ after 1 frames"),
        ("REF_forces:R:3:REF_charges:R:1", "REF_forces:R:2:rest:R:2", r"`REF_forces` must have shape \(3, 3\), got"),
        ("H 0.9 0.0", "H inf 0.0", "frame 1: `positions` must be finite"),
        ("H 0.9 0.0", "H 1e200 0.0", "frame 1"),
        ("H 0.9 0.0", "H 0.001 0.0", "frame 1: `positions`: atoms 0 and 1 overlap"),
        ("H 0.9 0.0", "X 0.9 0.0", "frame 1: species must be elements, got X for atom 1"),
        ("H 0.9 0.0", "Qq 0.9 0.0", "is no extended XYZ after"),
        ("3\n", "4\n", "is no extended XYZ"),
        ("3\n", "-3\n", "is no extended XYZ"),
        ("3\n", "three\n", "is no extended XYZ"),
        ("total_charge=0", 'Lattice="9 0 0 0 9 0 0 0 9" REF_stress="1 2 3"', r"`REF_stress` must have shape"),
        ("total_charge=0", 'Lattice="9 0 0 0 9 0 0 0 9" REF_stress="1 2 0 0 1 0 0 0 1"', "must be symmetric, got"),
        ("total_charge=0", 'Lattice="9 0 0 0 9 0 0 0"', "frame 1|after 1 frames"),
        ("total_charge=0", 'Lattice="9 0 0 9 0 0 0 0 9"', "frame 1: `cell` must have a volume"),
    ],
)
def test_broken_frames_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    (tmp_path / "a.xyz").write_text(GOOD + GOOD.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message) as error:
        read_set(Data([str(tmp_path / "a.xyz")]))
    assert "\n" not in str(error.value)
    assert "a.xyz" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"0\n\n", b"\x00\xff\xfe", b"[1, 2]", b"3\n", b"1\n\nH 0 0\n"])
def test_files_that_are_no_data(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.xyz").write_bytes(content)
    with pytest.raises(ConfigError, match="a.xyz"):
        read_set(Data([str(tmp_path / "a.xyz")]))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    place=st.integers(0, len(GOOD) - 1),
    length=st.integers(0, 12),
    junk=st.text(alphabet='0123456789.-+eE"=:{}[] \n\tTFXnaif', max_size=8),
)
def test_any_damage_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, place: int, length: int, junk: str
) -> None:
    """Whatever stands in a file: frames, or one ConfigError of one line that names the file."""
    path = tmp_path_factory.mktemp("damage") / "a.xyz"
    path.write_text(GOOD[:place] + junk + GOOD[place + length :])
    text = refusal(path)
    assert "\n" not in text
    assert not text or "a.xyz" in text


def refusal(path: Path) -> str:
    """What a file is refused with; "" if it is read. Anything but ConfigError goes through."""
    try:
        inspect_frames(read_set(Data([str(path)])))
    except ConfigError as error:
        return str(error)
    return ""


def test_mixed_boundaries_and_missing_labels(tmp_path: Path) -> None:
    bare = water(1)[0]
    del bare.info["REF_energy"]
    del bare.arrays["REF_forces"]
    write(tmp_path / "a.xyz", [water(0)[0], crystal("REF_stress", np.zeros(6)), bare], format="extxyz")
    first, second, third = read_set(Data([str(tmp_path / "a.xyz")]))
    assert [f.structure.boundary for f in (first, second, third)] == ["open", "periodic", "open"]
    assert (first.stress, second.forces, third.energy) == (None, None, None)
    assert second.stress is not None
    assert len(read(tmp_path / "a.xyz", index=":")) == 3
