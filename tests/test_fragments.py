"""Which atoms belong together, what they hold, and what is said of those that leak."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from kqeq_md.charges.charge_model import ChargeModel
from kqeq_md.charges.fragments import connected_fragments, given_fragments
from kqeq_md.errors import ChargeError, FieldError, StructureError
from kqeq_md.model import Model
from kqeq_md.potential import Potential
from kqeq_md.structure import Structure

SLAB = (True, True, False)
CELLS = {
    "orthorhombic": np.diag([11.1, 7.4, 7.4]),
    "skewed": np.array([[11.1, 0, 0], [25.0, 7.4, 0], [-13.0, 17.0, 7.4]]),
    "left-handed": np.array([[0, 7.4, 0.5], [11.1, 0, -1.0], [1.0, 2.0, 7.4]]),
}


def scattered(structure: Structure, seed: int = 1, reach: int = 3) -> Structure:
    """Every atom as any of its images."""
    cells = np.random.default_rng(seed).integers(-reach, reach + 1, size=(len(structure), 3)) * np.array(structure.pbc)
    return replace(structure, positions=structure.positions + cells @ structure.cell)


def in_cell(structure: Structure, cell: np.ndarray, pbc: Any = True) -> Structure:
    """The same molecules in another cell."""
    return Structure(structure.numbers, structure.positions, cell=cell, pbc=pbc)


def same_partition(group: np.ndarray, wanted: Any) -> bool:
    return np.array_equal(group[:, None] == group, np.asarray(wanted)[:, None] == np.asarray(wanted))


# --- connectivity


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("pbc", [True, SLAB, (False, True, True)])
def test_molecules_across_boundaries(cell: str, pbc: Any, helpers: Any) -> None:
    """Waters wherever their atoms are written: one fragment each, in the order of first atoms, without windings."""
    vectors = CELLS[cell].copy()
    if pbc is not True:
        axis = pbc.index(False)
        vectors[axis] = 0.0
    box = in_cell(helpers.water_box((3, 2, 2), pbc=False), vectors, pbc)
    for seed in range(3):
        found = connected_fragments(scattered(box, seed))
        np.testing.assert_array_equal(found.group, np.arange(36) // 3)
        assert len(found) == 12
        assert not found.rest
        assert len(found.windings) == 0


def test_order_of_fragments_is_that_of_first_atoms(helpers: Any) -> None:
    box = helpers.water_box(2)
    order = np.random.default_rng(2).permutation(24)
    found = connected_fragments(replace(box, numbers=box.numbers[order], positions=box.positions[order]))
    assert same_partition(found.group, order // 3)
    firsts = np.unique(found.group, return_index=True)[1]
    assert (np.diff(firsts) > 0).all()


def test_ions_and_what_touches_nothing() -> None:
    """H3O+ and Cl- 4 A apart, and a lone argon: bonds reach 1.25 times the sum of covalent radii."""
    hydronium = [[0, 0, 0], [0.97, 0.1, 0], [-0.45, 0.87, 0], [-0.45, -0.87, 0.1]]
    structure = Structure([8, 1, 1, 1, 17, 18], [*hydronium, [0, 0, 4.0], [9, 9, 9]])
    np.testing.assert_array_equal(connected_fragments(structure).group, [0, 0, 0, 0, 1, 2])
    for stretch, together in ((1.2, True), (1.3, False)):
        r = stretch * (0.31 + 0.66)  # Cordero et al. (2008), doi:10.1039/b801115j
        assert (len(connected_fragments(Structure([8, 1], [[0, 0, 0], [0, 0, r]]))) == 1) == together


@pytest.mark.parametrize("cells", [1, 2, 3])
def test_crystal_is_one_fragment_without_end(cells: int, helpers: Any) -> None:
    """In the conventional cell every bond has an image of the same pair, in larger ones none has."""
    found = connected_fragments(helpers.rock_salt(cells, rattle=0.02))
    assert len(found) == 1
    assert np.linalg.matrix_rank(found.windings) == 3


def test_narrowest_cells_of_crystals() -> None:
    """Two atoms, or one that is bonded to its images alone."""
    fcc = np.ones((3, 3)) - np.eye(3)
    salt = connected_fragments(Structure([11, 17], [[0, 0, 0], [2.82, 0, 0]], cell=2.82 * fcc, pbc=True))
    metal = connected_fragments(Structure([11], [[0, 0, 0]], cell=2.2 * fcc, pbc=True))
    for found in (salt, metal):
        assert len(found) == 1
        assert np.linalg.matrix_rank(found.windings) == 3


def polyethylene(repeats: int = 1, **kwargs: Any) -> Structure:
    """A zigzag chain of CH2 along z, in a wide cell; two carbons for each repeat."""
    unit = [[0.43, 0, 0], [1.06, 0.89, 0], [1.06, -0.89, 0]]
    unit += [[-x, y, z + 1.265] for x, y, z in unit]
    positions = np.concatenate([np.array(unit) + [0, 0, 2.53 * k] for k in range(repeats)])
    numbers = [6, 1, 1] * (2 * repeats)
    return Structure(numbers, positions, cell=np.diag([9.0, 8.0, 2.53 * repeats]), pbc=True, **kwargs)


@pytest.mark.parametrize("repeats", [1, 2, 4])
def test_polymer_has_no_end_along_its_axis(repeats: int, helpers: Any) -> None:
    """A field across it is allowed, with the same energy for each repeat; one along it is refused."""
    model = helpers.element_model(("H", "C"))
    potential = Potential(model, 1e-9, 1e-12, charges="fragments")
    across = replace(polyethylene(repeats), field=[0.1, 0.05, 0.0])
    bare, got = potential.compute(polyethylene(repeats)), potential.compute(across)
    np.testing.assert_array_equal(np.unique(connected_fragments(across).windings[:, :2]), [0])
    one = Potential(model, 1e-9, 1e-12, charges="fragments")
    gain = one.compute(replace(polyethylene(1), field=across.field)).energy - one.compute(polyethylene(1)).energy
    assert gain < -1e-3  # eV
    assert got.energy - bare.energy == pytest.approx(repeats * gain, abs=1e-8)  # two Ewald sums
    assert got.dipole is None
    again = potential.compute(scattered(across))
    assert again.energy == pytest.approx(got.energy, abs=1e-9)
    np.testing.assert_allclose(again.forces, got.forces, atol=1e-9)
    with pytest.raises(FieldError, match="`field` must be zero along fragments without end, got") as caught:
        potential.compute(replace(across, field=[0.0, 0.0, 0.1]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("repeats", [1, 2])
def test_split_charges_resist_along_a_polymer_too(repeats: int, helpers: Any) -> None:
    """With q0 of each atom, a field along the chain has a meaning: E changes by -q0 F.T atom by atom."""
    model = helpers.element_model(("H", "C"), reference_charge=np.array([0.1, -0.2]))
    along = replace(polyethylene(repeats), field=np.array([0.02, 0.0, 0.1]))
    potential = Potential(model, 1e-9, 1e-12, fragments="connectivity")
    one, rng = potential.compute(along), np.random.default_rng(3)
    moved = rng.integers(-2, 3, size=(len(along), 3)) @ along.cell
    got = potential.compute(replace(along, positions=along.positions + moved))
    change = np.where(along.numbers == 6, -0.2, 0.1) @ moved
    assert abs(change @ along.field) > 0.01
    assert got.energy == pytest.approx(one.energy - change @ along.field, abs=1e-9)
    np.testing.assert_allclose(got.dipole, one.dipole + change, atol=1e-9)
    np.testing.assert_allclose(got.forces, one.forces, atol=1e-9)
    assert one.virial is None
    learned = Potential(helpers.split_model(model, (0.1, -0.2), 0.1), fragments="connectivity")
    with pytest.raises(FieldError, match="along fragments without end"):  # q0 is held by the fragment alone
        learned.compute(along)


@pytest.mark.parametrize("name", ["crystal", "primitive crystal", "crystal by lists"])
def test_no_field_through_a_crystal(name: str, strong: Model, helpers: Any) -> None:
    structure = helpers.rock_salt(1, rattle=0.02, field=(0, 0.1, 0))
    fragments: Any = "connectivity"
    if name == "primitive crystal":
        cell = 2.82 * (np.ones((3, 3)) - np.eye(3))
        structure = Structure([11, 17], [[0, 0, 0], [2.82, 0, 0]], cell=cell, pbc=True, field=(0, 0.1, 0))
    elif name == "crystal by lists":
        structure, fragments = helpers.rock_salt(2, rattle=0.02, field=(0, 0.1, 0)), [range(64)]
    potential = Potential(strong, charges="fragments", fragments=fragments)
    with pytest.raises(FieldError, match="`field` must be zero along fragments without end"):
        potential.compute(structure)
    assert potential.compute(replace(structure, field=np.zeros(3))).dipole is None


# --- given fragments


@pytest.mark.parametrize("numbers", [[7, 7, 7, 3, 3, 3], [0, 0, 0, 1, 1, 1], np.array([2, 2, 2, 1, 1, 1])])
def test_molecule_numbers(numbers: Any, water: Model, helpers: Any) -> None:
    """Whole numbers of any size; charges belong to them in ascending order."""
    structure = helpers.water_box((2, 1, 1), charge=1.0)
    charges = [0.75, 0.25] if numbers[0] < numbers[3] else [0.25, 0.75]
    got = Potential(water, charges="fragments", fragments=numbers, fragment_charges=charges).compute(structure)
    np.testing.assert_allclose(got.charges.reshape(2, 3).sum(axis=1), [0.75, 0.25], atol=1e-12)


def test_lists_with_a_rest(water: Model, helpers: Any) -> None:
    structure = helpers.water_box((2, 2, 1), charge=1.0)
    lists = [[3, 4, 5], (0, 1, 2)]
    got = Potential(water, charges="fragments", fragments=lists, fragment_charges=[0.5, -0.3]).compute(structure)
    np.testing.assert_allclose(got.charges[:6].reshape(2, 3).sum(axis=1), [-0.3, 0.5], atol=1e-12)
    assert got.charges[6:].sum() == pytest.approx(0.8, abs=1e-12)
    assert given_fragments(structure, lists).rest


def test_a_given_pair_is_joined_the_shortest_way(helpers: Any) -> None:
    """Na and Cl that meet through both faces of a narrow cell: no chain, where a pair is given."""
    crystal = helpers.rock_salt(1, rattle=0.1)
    found = given_fragments(crystal, [[0, 4]])
    whole = found.whole(scattered(crystal))
    both = [np.linalg.norm(crystal.positions[4] - crystal.positions[0] + s * crystal.cell[0]) for s in (-1, 0, 1)]
    assert np.linalg.norm(whole[4] - whole[0]) == pytest.approx(min(both), abs=1e-12)
    pair = Structure([11, 17], crystal.positions[[0, 4]], cell=crystal.cell, pbc=True)
    assert len(given_fragments(pair, [0, 0]).windings) == 0
    assert len(connected_fragments(pair).windings) > 0


def test_connectivity_is_the_default_and_equals_numbers(water: Model, helpers: Any) -> None:
    structure = scattered(helpers.water_box(2, field=(0.02, 0.03, -0.05)))
    results = [
        Potential(water, 1e-9, 1e-12, charges="fragments", **how).compute(structure)
        for how in ({}, {"fragments": "connectivity"}, {"fragments": np.arange(24) // 3})
    ]
    for other in results[1:]:
        assert other.energy == pytest.approx(results[0].energy, rel=1e-12)
        np.testing.assert_allclose(other.charges, results[0].charges, atol=1e-12)


def test_one_charged_fragment_needs_no_list(water: Model, helpers: Any) -> None:
    got = Potential(water, charges="fragments").compute(helpers.water_box(1, pbc=False, charge=-1.0))
    assert got.charges.sum() == pytest.approx(-1.0, abs=1e-14)


def test_bonds_may_stretch_and_break(water: Model, helpers: Any) -> None:
    """Fragments are those of the first structure, until other atoms come."""
    still = helpers.water_box((2, 1, 1), pbc=False)
    apart = still.positions.copy()
    apart[1] += 3.0 * (apart[1] - apart[0])
    potential = Potential(water, charges="fragments")
    potential.compute(still)
    broken = replace(still, positions=apart)
    got = potential.compute(broken)
    np.testing.assert_allclose(got.charges.reshape(2, 3).sum(axis=1), 0.0, atol=1e-14)
    assert abs(got.charges[1]) > 0.01
    lone = Potential(water, charges="fragments").compute(broken)  # it sees OH, H and water
    assert lone.charges[1] == 0.0
    potential.compute(helpers.water_box(1, pbc=False))
    assert potential.compute(broken).charges[1] == 0.0


def test_split_charges_take_their_reference_from_fragments(water: Model, helpers: Any) -> None:
    """q0 adds up in each fragment: with no compliance that is where the charges stay."""
    model = replace(helpers.split_model(water, (0.4, -0.7)), compliance=np.zeros((2, 2)))
    structure = helpers.water_box((2, 1, 1), charge=1.0)
    got = Potential(model, fragments="connectivity", fragment_charges=[1.0, 0.0]).compute(structure)
    shift = np.array([0.9, -0.1]) / 3
    wanted = np.array([-0.7, 0.4, 0.4, -0.7, 0.4, 0.4]) + np.repeat(shift, 3)
    np.testing.assert_allclose(got.charges, wanted, atol=1e-14)
    alone = Potential(model).compute(replace(structure, charge=0.0))
    np.testing.assert_allclose(alone.charges, [-0.7 - 0.1 / 3, 0.4 - 0.1 / 3, 0.4 - 0.1 / 3] * 2, atol=1e-14)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"charges": "sqe"}, "`charges` must be qeq, fragments, split, got 'sqe'"),
    ({"fragments": "connectivity"}, '`fragments` need charges="fragments" or charges="split", got charges="qeq"'),
    (
        {"charges": "fragments", "fragments": "molecules"},
        "`fragments` must be \"connectivity\", molecule numbers or lists, got 'molecules'",
    ),
    ({"fragment_charges": [0.0]}, r'`fragment_charges` need `fragments` \(for example "connectivity"\), got None'),
    ({"reference_charges": {"H": 1.0}}, '`reference_charges` need charges="split", got charges="qeq"'),
    (
        {"charges": "split", "reference_charges": {"Na": 1.0}},
        r"`reference_charges` must name elements of the model \(H, O\), got 'Na'",
    ),
    (
        {"charges": "split", "reference_charges": {"H": np.inf}},
        "`reference_charges` must be finite numbers, got inf for H",
    ),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=str)
def test_settings_that_do_not_go_together(settings: dict[str, Any], message: str, water: Model) -> None:
    with pytest.raises(ChargeError, match=message) as caught:
        Potential(water, **settings)
    assert "\n" not in str(caught.value)


UNFIT: list[tuple[dict[str, Any], float, str]] = [
    ({"fragments": 3}, 0.0, "`fragments` must be a list of lists of atoms or molecule numbers, got 3"),
    ({"fragments": [0, 0, 0]}, 0.0, "`fragments` must be a whole number for each of 6 atoms, got 3 of type int64"),
    ({"fragments": [0.5] * 6}, 0.0, "`fragments` must be a whole number for each of 6 atoms, got 6 of type float64"),
    ({"fragments": [[0, 1, 2], [3, 4, 6]]}, 0.0, "`fragments` must name atoms from 0 to 5, got 6 in fragment 1"),
    ({"fragments": [[0, 1, 2], [2, 4]]}, 0.0, "`fragments` must not overlap, got atom 2 in fragments 0 and 1"),
    ({"fragments": [[0, 1, 1]]}, 0.0, r"`fragments` must not name an atom twice, got \[0, 1, 1\] as fragment 0"),
    ({"fragments": [[0, 1], []]}, 0.0, r"`fragments` must be lists of atoms, got \[\] as fragment 1"),
    ({}, 1.0, "`fragment_charges` must say which of 2 fragments hold the total charge 1, got None"),
    (
        {"fragment_charges": [0.4, 0.4]},
        1.0,
        "`fragment_charges` must add up to the total charge 1, got 0.8",
    ),
    ({"fragment_charges": [1]}, 1.0, r"`fragment_charges` must be a finite number for each of 2 fragments, got \[1\]"),
    ({"fragment_charges": ["a", 1]}, 1.0, "`fragment_charges` must be a finite number for each of 2 fragments, got"),
    ({"fragment_charges": [np.nan, 1]}, 1.0, "`fragment_charges` must be a finite number for each of 2 fragments, got"),
]


@pytest.mark.parametrize(("settings", "charge", "message"), UNFIT, ids=str)
@pytest.mark.parametrize("charges", ["fragments", "split"])
def test_fragments_that_do_not_fit_the_structure(
    charges: str, settings: dict[str, Any], charge: float, message: str, water: Model, helpers: Any
) -> None:
    potential = Potential(water, charges=charges, **{"fragments": "connectivity", **settings})
    with pytest.raises(ChargeError, match=message) as caught:
        potential.compute(helpers.water_box((2, 1, 1), charge=charge))
    assert "\n" not in str(caught.value)


def test_overlapping_atoms_are_refused_as_ever(water: Model) -> None:
    with pytest.raises(StructureError, match="atoms 0 and 1 overlap"):
        Potential(water, charges="fragments").compute(Structure([1, 1], [[0, 0, 0], [0, 0, 0.1]]))


# --- whole fragments


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("pbc", [True, SLAB])
def test_whole_whatever_the_wrapping(cell: str, pbc: Any, helpers: Any) -> None:
    """Each molecule in one piece about its first atom, as it was built."""
    vectors = CELLS[cell].copy()
    if pbc == SLAB:
        vectors[2] = 0.0
    built = helpers.water_box((3, 2, 2), pbc=False)
    box = in_cell(built, vectors, pbc)
    shape = (built.positions.reshape(-1, 3, 3) - built.positions[::3, None]).reshape(-1, 3)
    for seed in range(3):
        images = scattered(box, seed)
        whole = connected_fragments(scattered(box, seed + 10)).whole(images)
        np.testing.assert_allclose(whole - np.repeat(images.positions[::3], 3, axis=0), shape, atol=1e-12)


def test_long_molecule_in_a_small_cell() -> None:
    """A helix of carbon that goes through the cell six times without meeting itself; each bond is followed."""
    k = np.arange(40)
    helix = np.stack([3.0 * np.cos(0.5 * k), 3.0 * np.sin(0.5 * k), 0.45 * k], axis=1)
    cell = np.array([[9.6, 0, 0], [2.0, 9.7, 0], [0.3, -1.0, 19.0]])
    structure = Structure([6] * 40, helix, cell=cell, pbc=True)
    found = connected_fragments(structure)
    assert (len(found), len(found.windings)) == (1, 0)
    np.testing.assert_allclose(found.whole(structure), helix, atol=1e-12)
    images = scattered(structure)
    whole = found.whole(images)
    np.testing.assert_allclose(whole - images.positions[0], helix - helix[0], atol=1e-11)


def test_fragments_of_one_molecule_are_whole_each_for_itself() -> None:
    """Pieces of a chain that are bonded to each other, written in different cells."""
    chain = np.stack([1.3 * np.arange(6), 0.5 * (-1.0) ** np.arange(6), np.zeros(6)], axis=1)
    structure = Structure([6] * 6, chain, cell=11.0 * np.eye(3), pbc=True)
    for pieces in ([[0, 1], [2, 3], [4, 5]], [[1, 0], [5, 4, 3], [2]], [[1, 2, 3, 4], [0], [5]]):
        found = given_fragments(structure, pieces)
        assert len(found.windings) == 0
        for seed in range(3):
            whole = found.whole(scattered(structure, seed))
            for piece in pieces:
                first = min(piece)
                np.testing.assert_allclose(whole[piece] - whole[first], chain[piece] - chain[first], atol=1e-12)


@pytest.mark.parametrize(
    "cell",
    [
        np.array([[3.1, 0, 0], [0.4, 3.3, 0], [-0.3, 0.5, 2.9]]),
        np.array([[3.0, 0, 0], [1.5, 2.6, 0], [0, 0, 3.0]]),  # hexagonal: rounding alone does not find nearest images
        np.array([[3.0, 0, 0], [31.4, 3.0, 0], [-60.0, 13.0, 3.0]]),
    ],
    ids=["tiny", "hexagonal", "tiny and skewed"],
)
def test_one_molecule_in_a_tiny_cell(cell: np.ndarray, helpers: Any) -> None:
    built = helpers.water_box(1, pbc=False)
    structure = in_cell(built, cell)
    for seed in range(4):
        found = connected_fragments(scattered(structure, seed, reach=1))
        assert (len(found), len(found.windings)) == (1, 0)
        whole = found.whole(scattered(structure, seed + 4, reach=1))
        np.testing.assert_allclose(whole - whole[0], built.positions - built.positions[0], atol=1e-12)


def test_a_piece_that_no_bond_ties_comes_along(water: Model, helpers: Any) -> None:
    """Given fragments of several molecules: pieces are at the nearest image of the first atom."""
    box = scattered(helpers.water_box((3, 1, 1)))
    found = given_fragments(box, np.zeros(9, dtype=int))
    whole = found.whole(box)
    assert np.linalg.norm(whole - whole[0], axis=1).max() < 11.1 / 2 + 3.7 + 1.0
    again = found.whole(scattered(box, 7))
    np.testing.assert_allclose(again - again[0], whole - whole[0], atol=1e-12)


# --- warnings of charge that leaks


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "separate fragment" in record.getMessage()]


def leaky(distance: float = 6.0, **kwargs: Any) -> Structure:
    """Two waters."""
    water = np.array([[0, 0, 0], [0.76, 0.59, 0], [-0.76, 0.59, 0]])
    return Structure([8, 1, 1] * 2, np.concatenate([water, water + [0, 0, distance]]), **kwargs)


def test_field_on_several_fragments_is_warned_of_once(caplog: pytest.LogCaptureFixture, helpers: Any) -> None:
    caplog.set_level(logging.WARNING, logger="kqeq_md")
    potential = Potential(helpers.element_model(charges="qeq"))
    potential.compute(leaky())
    assert warnings_of(caplog) == []
    for field in (0.001, 0.002):
        potential.compute(leaky(field=(0, 0, field)))
    (message,) = warnings_of(caplog)
    assert "\n" not in message
    for part in ("2 separate fragments", "field", "kqeq diagnose", 'charges="fragments"', 'charges="split"'):
        assert part in message


def test_charge_that_leaves_an_integer_is_warned_of_once(caplog: pytest.LogCaptureFixture, helpers: Any) -> None:
    caplog.set_level(logging.WARNING, logger="kqeq_md")
    potential = Potential(helpers.element_model(charges="qeq"))
    for _ in range(2):
        got = potential.compute(leaky(charge=1.0))  # half of it on each
    assert got.charges[:3].sum() == pytest.approx(0.5, abs=0.1)
    (message,) = warnings_of(caplog)
    assert "\n" not in message
    for part in ("fragment of 3 atoms", "+0.5", "nearest integer", "kqeq diagnose"):
        assert part in message


@pytest.mark.parametrize("off", [0.09, 0.11])
def test_a_tenth_of_a_charge_is_the_limit(off: float, caplog: pytest.LogCaptureFixture, helpers: Any) -> None:
    """By a field that moves as much from one water to the other; its own warning is said before."""
    caplog.set_level(logging.WARNING, logger="kqeq_md")
    model = helpers.element_model(charges="qeq")
    moved = Potential(model).compute(leaky(field=(0, 0, 0.01))).charges[:3].sum()
    caplog.clear()
    got = Potential(model).compute(leaky(field=(0, 0, 0.01 * off / moved)))
    assert abs(got.charges[:3].sum()) == pytest.approx(off, rel=1e-6)
    assert len(warnings_of(caplog)) == 1 + (off > 0.1)


@pytest.mark.parametrize("pbc", [False, SLAB])
def test_no_warning_where_nothing_leaks(pbc: Any, caplog: pytest.LogCaptureFixture, helpers: Any) -> None:
    """One fragment in a field; held charges; and the slab of a crystal, which is one fragment."""
    caplog.set_level(logging.WARNING, logger="kqeq_md")
    model = helpers.element_model(charges="qeq")
    Potential(model).compute(helpers.water_box(1, pbc=False, field=(0, 0, 0.1), charge=0.5))
    box = helpers.water_box((2, 2, 1), pbc=pbc, field=(0, 0, 0.3))
    for charges in ("fragments", "split"):
        Potential(model, charges=charges).compute(box)
    assert warnings_of(caplog) == []
    Potential(model).compute(box)
    assert len(warnings_of(caplog)) >= 1


def test_nothing_is_found_again_for_the_same_atoms(monkeypatch: pytest.MonkeyPatch, helpers: Any) -> None:
    """Bonds are searched for once in a run, both by the watch and by the charge model."""
    calls: list[int] = []

    def counted(structure: Structure) -> Any:
        calls.append(1)
        return connected_fragments(structure)

    for module in ("leaks", "charge_model"):
        monkeypatch.setattr(f"kqeq_md.charges.{module}.connected_fragments", counted)
    for settings in ({}, {"charges": "fragments"}):
        potential = Potential(helpers.element_model(charges="qeq"), **settings)
        for step in range(3):
            box = helpers.water_box(2)
            potential.compute(replace(box, positions=box.positions + 0.01 * step))
        assert len(calls) == 1
        calls.clear()


def test_charge_model_is_validated_at_once() -> None:
    with pytest.raises(ChargeError, match="`charges` must be"):
        ChargeModel("acks2")


# --- fragments that have no place in a periodic cell


def test_pieces_that_no_bond_joins_have_no_dipole_across_a_boundary(helpers: Any) -> None:
    """One fragment of two waters: E would jump where one passes half a cell. Fixed q0 stay with their atoms."""
    model = helpers.element_model()
    box = helpers.water_box((2, 1, 1), pbc=True, field=(0.1, 0.0, 0.0))
    still = replace(box, field=np.zeros(3))
    for together in ([0] * 6, [list(range(6))], []):
        potential = Potential(model, charges="fragments", fragments=together)
        with pytest.raises(FieldError, match="several pieces that no bond joins"):
            potential.compute(box)
        assert potential.compute(still).dipole is None
        open_box = Structure(box.numbers, box.positions, field=box.field)
        assert potential.compute(open_box).dipole is not None
    fixed = Potential(model, charges="split", fragments=[0] * 6, reference_charges={"O": -0.6, "H": 0.3})
    moved = box.positions.copy()
    moved[3] += box.cell[0]
    before, after = fixed.compute(box), fixed.compute(replace(box, positions=moved))
    np.testing.assert_allclose(after.forces, before.forces, atol=1e-10)
    assert after.energy - before.energy == pytest.approx(0.6 * 0.1 * box.cell[0, 0], abs=1e-9)  # -q0 F.T


def test_a_pair_half_a_cell_apart_is_refused_wherever_it_is_wrapped(helpers: Any) -> None:
    """Both images are as near: which one is meant cannot be told, so that no wrapping may decide."""
    model = helpers.element_model(("Na", "Cl"))
    for shift in product((-1.0, 0.0, 1.0), repeat=3):
        positions = np.array([[0.1, 0.2, 0.3], [2.95, 0.2, 0.3]])
        positions[1] += 5.7 * np.array(shift)
        pair = Structure([11, 17], positions, 5.7 * np.eye(3), True, field=(0.02, 0.03, 0.1))
        with pytest.raises(FieldError, match="closes over the boundary"):
            Potential(model, charges="fragments", fragments=[[0, 1]]).compute(pair)


def test_long_bonds_of_fragments_in_a_field_are_warned_of_once(helpers: Any, caplog: pytest.LogCaptureFixture) -> None:
    potential = Potential(helpers.element_model(("Na", "Cl")), charges="fragments", fragments=[[0, 1]])
    for d in (2.5, 5.5, 5.6):
        pair = Structure([11, 17], [[0, 0, 0], [0, 0, d]], 12.0 * np.eye(3), True, field=(0, 0, 0.1))
        potential.compute(pair)
    assert caplog.text.count("spans 0.46 of the cell") == 1
    assert caplog.text.count("of the cell") == 1


def test_polymers_have_no_stress_in_a_field_across_them(helpers: Any) -> None:
    """W_xz would hold F_x mu_z, and mu_z along the chain depends on where the chain is cut."""
    k = np.arange(8)
    chain = np.stack([0.43 * (-1.0) ** k, 0 * k, 1.265 * k], axis=1)
    cell = np.diag([12.0, 12.0, 8 * 1.265])
    model = helpers.element_model(("H", "C"))
    potential = Potential(model, charges="fragments")
    across = Structure([6] * 8, chain, cell, True, field=(0.1, 0, 0))
    assert potential.compute(across).virial is None
    assert potential.compute(replace(across, field=np.zeros(3))).virial is not None
