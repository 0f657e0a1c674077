"""The diseases, measured: chains, separated pieces, waters in a field, eigenvalues, and the command that tells them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from math import erf, sqrt
from pathlib import Path
from runpy import run_path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write

from kqeq_md.charges.charge_model import CHARGE_MODELS
from kqeq_md.charges.split import find_bonds
from kqeq_md.cli import main
from kqeq_md.diagnose import measurements as measure
from kqeq_md.diagnose.diagnosis import diagnose
from kqeq_md.diagnose.fragment import formula, formula_unit, reference_fragment
from kqeq_md.diagnose.samples import Pieces, chains, clusters, copies, cut, longest_axis, series_of, unlike_pair
from kqeq_md.diagnose.verdicts import judge_charge_left, judge_eigenvalue, judge_exponent, judge_transfer
from kqeq_md.errors import KqeqError, ModelError
from kqeq_md.model import Model, load_model, save_model
from kqeq_md.models import NACL
from kqeq_md.neighbours.half_list import find_pairs
from kqeq_md.potential import Potential
from kqeq_md.ranks.halo import SERIAL
from kqeq_md.response import response
from kqeq_md.structure import Structure
from kqeq_md.units import COULOMB_CONSTANT

STORY = run_path(str(Path(__file__).parents[1] / "examples" / "disease_and_cure" / "plot.py"))
CARBONS, alkane, generic_model, polarizabilities, sodium_chloride, water = (
    STORY[name] for name in ("CARBONS", "alkane", "generic_model", "polarizabilities", "sodium_chloride", "water")
)

INTEGER = 1e-6
"""e. What the charges of separated pieces may miss."""


@pytest.fixture(scope="module")
def generic() -> Model:
    return generic_model()


# ---------------------------------------------------------------- the diseases and the cure


def test_alkanes_overpolarize_with_free_charges_alone(generic: Model) -> None:
    """C2 to C32, all trans: qeq > 1.8, split 1.0 +- 0.1 at the long end."""
    slopes = {name: measure.exponent(CARBONS, polarizabilities(generic, name)) for name in ("qeq", "split")}
    assert slopes["qeq"] is not None
    assert slopes["split"] is not None
    assert slopes["qeq"] > 1.8
    assert slopes["split"] == pytest.approx(1.0, abs=0.1)
    assert judge_exponent(slopes["qeq"]).sick
    assert not judge_exponent(slopes["split"]).sick


def test_no_charge_moves_between_fragments_of_a_chain(generic: Model) -> None:
    sample = alkane(32)
    potential = measure.potential_for(generic, "fragments", sample.group)
    moved = response(potential, sample.structure).charges
    per_fragment = np.stack([np.bincount(sample.group, moved[:, a]) for a in range(3)])
    assert np.abs(moved).max() > 1e-3  # e/(V/A): inside the fragments it does
    assert np.abs(per_fragment).max() < 1e-13  # rounding of sums of four such charges


def test_alkanes_are_alkanes() -> None:
    for carbons in (1, 2, 5):
        structure = alkane(carbons).structure
        assert formula(structure.numbers) == f"C{carbons if carbons > 1 else ''}H{2 * carbons + 2}"
        distances = np.linalg.norm(structure.positions[:, None] - structure.positions[None], axis=2)
        hydrogen = structure.numbers == 1
        bonds = np.sort(distances[hydrogen][:, ~hydrogen], axis=1)[:, 0]
        np.testing.assert_allclose(bonds, 1.09, atol=1e-12)
        assert distances[np.ix_(hydrogen, hydrogen)][np.triu_indices(hydrogen.sum(), 1)].min() > 1.6  # 1.75 in methane


@pytest.mark.parametrize("charges", [(0.0, 0.0), (1.0, -1.0)])
@pytest.mark.parametrize("name", ["fragments", "split"])
def test_nacl_dissociates_to_the_charges_that_were_chosen(
    generic: Model, name: str, charges: tuple[float, float]
) -> None:
    pieces = cut(sodium_chloride())
    assert pieces is not None
    [left] = measure.charge_left(generic, name, replace(pieces, charges=charges), [50.0])
    assert left == pytest.approx(charges[0], abs=INTEGER)


def test_reference_charges_choose_the_ions(generic: Model) -> None:
    """Fixed q0 of a model decide where nobody else does, with and without fragments."""
    q0 = {"Na": 1.0, "Cl": -1.0}
    ionic = replace(generic, reference_charge=np.array([q0.get(symbol, 0.0) for symbol in generic.species]))
    far = Structure([11, 17], [[0, 0, 0], [0, 0, 50.0]])
    charges = Potential(generic, charges="split", reference_charges=q0).compute(far).charges
    np.testing.assert_allclose(charges, [1.0, -1.0], atol=INTEGER)
    found = diagnose(ionic, [sodium_chloride()])
    assert found.measurements[1].curves["split"][-1] == pytest.approx(1.0, abs=INTEGER)


def test_learned_reference_charges_belong_to_molecules(strong: Model) -> None:
    """What the kernel makes of q0 has no sums of its own: separate molecules have to have them all the same."""
    rng = np.random.default_rng(5)
    weights = tuple(np.concatenate([w, rng.normal(size=(len(w), 1))], axis=1) for w in strong.terms[0].weights)
    learned = replace(strong.with_weights(weights), charges="split")
    pair = sodium_chloride().positions
    apart = Structure([11, 17] * 2, np.concatenate([pair, 1.1 * pair + [0.0, 30.0, 0.0]]))
    by_name = {measured.name: measured for measured in diagnose(learned, [apart]).measurements}
    assert by_name["molecule_charges"].curves["split"] == pytest.approx([0.0, 0.0], abs=INTEGER)
    assert by_name["dissociation_charge"].findings["split"].value == pytest.approx(0.0, abs=INTEGER)
    assert by_name["field_transfer"].findings["split"].value == pytest.approx(0.0, abs=INTEGER)


def test_free_charges_stay_on_distant_sodium(generic: Model) -> None:
    """Two atoms: q = (chi_Cl - chi_Na) / (J_Na + J_Cl - 2 kC erf(g R) / R)."""
    pieces = cut(sodium_chloride())
    assert pieces is not None
    found = measure.charge_left(generic, "qeq", pieces, [2.36, 50.0])
    for distance, charge in zip([2.36, 50.0], found, strict=True):
        pair = COULOMB_CONSTANT * erf(distance / sqrt(2 * (2.0**2 + 1.2**2))) / distance
        assert charge == pytest.approx((8.564 - 2.843) / (4.592 + 9.892 - 2 * pair), abs=1e-9)  # tolerance 1e-8
    assert judge_charge_left(abs(found[-1])).sick


def test_waters_in_a_field_keep_their_charges(generic: Model) -> None:
    moved = {name: np.abs(measure.field_transfer(generic, name, water(), (10.0, 20.0, 40.0))) for name in CHARGE_MODELS}
    assert moved["fragments"].max() < INTEGER
    assert moved["split"].max() < INTEGER
    assert (np.diff(moved["qeq"]) > 0.05).all()
    assert judge_transfer(moved["qeq"].max()).sick


def test_transfer_between_two_conductors(generic: Model) -> None:
    """Two waters are capacitors far apart: q = F R / (2 / C - 2 kC / R), C^-1 = energy of one more electron, twice."""
    inverse = np.linalg.inv(measure.coulomb_matrix(generic, water(), np.array([2, 0, 0])))
    gap = 4000.0
    [moved] = measure.field_transfer(generic, "qeq", water(), [gap])
    distance = gap + np.ptp(water().positions[:, 1])  # their longest axis is that of the two hydrogens
    expected = 0.2 * distance / (2.0 / inverse.sum() - 2.0 * COULOMB_CONSTANT / distance)
    assert moved == pytest.approx(expected, rel=1e-5)  # higher multipoles: (1 A / 4000 A)^2 and less


# ---------------------------------------------------------------- the lowest eigenvalue


def test_eigenvalue_of_two_atoms(generic: Model) -> None:
    """One transfer (1, -1) / sqrt(2): (J_11 + J_22 - 2 J_12) / 2, and with a bond + 1 / (2 c)."""
    structure, group = sodium_chloride(), np.zeros(2, dtype=np.int64)
    pair = COULOMB_CONSTANT * erf(2.36 / sqrt(2 * (2.0**2 + 1.2**2))) / 2.36
    free = 0.5 * (4.592 + 9.892) - pair
    assert measure.lowest_eigenvalue(generic, "qeq", structure, group) == pytest.approx(free, rel=1e-12)
    assert measure.lowest_eigenvalue(generic, "fragments", structure, group) == pytest.approx(free, rel=1e-12)
    compliance = generic.compliance[3, 4] * (1 - (2.36 / generic.compliance_cutoff[3, 4]) ** 2) ** 3
    split = measure.lowest_eigenvalue(generic, "split", structure, group)
    assert split == pytest.approx(free + 0.5 / compliance, rel=1e-12)


@pytest.mark.parametrize("boundary", ["open", "periodic", "slab"])
@pytest.mark.parametrize("name", CHARGE_MODELS)
def test_eigenvalue_is_that_of_the_response(
    monkeypatch: pytest.MonkeyPatch, strong: Model, helpers: object, name: str, boundary: str
) -> None:
    """The matrix against Lanczos iterations on solutions of the charges."""
    solid = helpers.rock_salt(1, rattle=0.3)  # type: ignore[attr-defined]
    pbc = {"open": False, "periodic": True, "slab": (True, True, False)}[boundary]
    structure = Structure(solid.numbers, solid.positions, cell=None if boundary == "open" else solid.cell, pbc=pbc)
    group = np.arange(8) % 4
    dense = measure.lowest_eigenvalue(strong, name, structure, group)
    monkeypatch.setattr(measure, "DENSE", 4)
    iterated = measure.lowest_eigenvalue(strong, name, structure, group)
    assert dense == pytest.approx(iterated, rel=1e-3)  # of the Lanczos iterations
    assert dense is not None
    assert dense > strong.hardness.min()  # Gaussians alone have no negative eigenvalue


def test_split_eigenvalue_by_its_response_matrix(generic: Model) -> None:
    """One over the largest eigenvalue of X (1 + J X)^-1, which is not symmetric as it stands."""
    structure = alkane(3).structure
    species = np.where(structure.numbers == 6, 1, 0)
    j = measure.coulomb_matrix(generic, structure, species)
    cutoff = generic.compliance_cutoff
    bonds = find_bonds(find_pairs(structure, float(cutoff.max())), species, generic.compliance, cutoff, SERIAL)
    x = np.stack([bonds.laplacian(unit) for unit in np.eye(len(species))])
    largest = np.linalg.eigvals(x @ np.linalg.inv(np.eye(len(species)) + j @ x)).real.max()
    found = measure.lowest_eigenvalue(generic, "split", structure, np.zeros(len(species), dtype=np.int64))
    assert found == pytest.approx(1.0 / largest, rel=1e-9)


def test_catastrophe_is_seen_and_refused_elsewhere(generic: Model) -> None:
    """A hardness so negative that the energy has no minimum: the eigenvalue says so, the other measurements refuse."""
    soft = replace(generic, hardness=generic.hardness - 8.0)
    found = diagnose(soft, [alkane(4).structure])
    by_name = {measured.name: measured for measured in found.measurements}
    eigenvalue = by_name["lowest_eigenvalue"].findings["qeq"]
    assert eigenvalue.value is not None
    assert eigenvalue.value < 0.0
    assert "polarization catastrophe" in eigenvalue.verdict
    assert by_name["polarizability_exponent"].findings["qeq"].verdict.startswith("refused: ")
    assert found.advice(by_name["lowest_eigenvalue"]).startswith("raise `hardness`")
    assert judge_eigenvalue(0.05).sick


def test_exponent_of_rounding_is_none() -> None:
    assert measure.exponent([1, 2, 4], [0.0, 0.21, 2e-31]) is None
    assert measure.exponent([1, 2, 4], [0.1, 0.2, 0.4]) == pytest.approx(1.0, rel=1e-12)


def test_nothing_can_move_between_single_atoms(generic: Model) -> None:
    apart = Structure([11, 17], [[0, 0, 0], [0, 0, 9.0]])
    for name in ("fragments", "split"):
        assert measure.lowest_eigenvalue(generic, name, apart, np.arange(2)) is None
    assert "no charge can move" in judge_eigenvalue(None).verdict


# ---------------------------------------------------------------- samples


def test_fragment_of_the_shipped_model_is_one_ion_pair() -> None:
    """The stored one, a molecule of the training set; without it the closest pair of the reference structure."""
    model = load_model(NACL)
    assert formula(reference_fragment(model).numbers) == "NaCl"
    fragment = reference_fragment(replace(model, fragment={}))
    assert sorted(fragment.numbers) == [11, 17]
    reference = Structure(model.reference["numbers"], model.reference["positions"])
    d = reference.positions[reference.numbers == 11][:, None] - reference.positions[reference.numbers == 17][None]
    length = np.linalg.norm(fragment.positions[0] - fragment.positions[1])
    assert length == pytest.approx(np.linalg.norm(d, axis=2).min(), rel=1e-12)


def test_stored_fragment_comes_first(generic: Model) -> None:
    stored = replace(generic, fragment={"numbers": [8, 1, 1], "positions": water().positions.tolist()})
    assert formula(reference_fragment(stored).numbers) == "H2O"
    with pytest.raises(ModelError, match="holds no neutral fragment: give structures"):
        reference_fragment(generic)


def test_formula_unit_of_a_liquid_and_of_a_crystal(helpers: object) -> None:
    first, rng = water(), np.random.default_rng(3)
    positions = np.concatenate([first.positions + [4.0 * k, 0, 0] for k in range(4)])
    wrapped = (positions + rng.uniform(0, 16, 3)) % 16.0
    liquid = Structure([8, 1, 1] * 4, wrapped, cell=16.0 * np.eye(3), pbc=True)
    unit = formula_unit(liquid)
    assert formula(unit.numbers) == "H2O"
    lengths = np.linalg.norm(unit.positions[1:] - unit.positions[0], axis=1)
    np.testing.assert_allclose(lengths, 0.9572, atol=1e-9)
    assert formula(formula_unit(helpers.rock_salt(1)).numbers) == "NaCl"  # type: ignore[attr-defined]


def test_neighbours_in_a_chain_touch_at_the_spacing() -> None:
    for fragment in (water(), alkane(3).structure, sodium_chloride()):
        sample = copies(fragment, 3, 2.5)
        parts = [sample.structure.positions[sample.group == k] for k in range(3)]
        for left, right in ((0, 1), (1, 2)):
            d = np.linalg.norm(parts[left][:, None] - parts[right][None], axis=2)
            assert d.min() == pytest.approx(2.5, rel=1e-12)
        step = parts[1].mean(axis=0) - parts[0].mean(axis=0)
        np.testing.assert_allclose(np.cross(step, longest_axis(fragment.positions)), 0.0, atol=1e-9)
    assert [sample.size for sample in chains(water(), 3.0).samples] == [2, 4, 8, 16, 32]


def test_clusters_are_made_of_whole_neighbours() -> None:
    """Molecules that cross the boundary are whole, and come with their nearest neighbours through it."""
    grid = 4.0 * np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), axis=-1).reshape(-1, 1, 3)
    positions = (grid + water().positions - 0.3) % 12.0
    structure = Structure([8, 1, 1] * 27, positions.reshape(-1, 3), cell=12.0 * np.eye(3), pbc=True)
    series = clusters(structure)
    assert [sample.size for sample in series.samples] == [3, 6, 12, 24, 48]
    for sample in series.samples:
        oxygen = sample.structure.positions[::3]
        for k in (1, 2):
            lengths = np.linalg.norm(sample.structure.positions[k::3] - oxygen, axis=1)
            np.testing.assert_allclose(lengths, 0.9572, atol=1e-9)
    d = np.linalg.norm(oxygen[:, None] - oxygen[None], axis=2)
    assert np.sort(d[np.triu_indices(16, 1)])[:15] == pytest.approx(4.0)
    assert d.max() < 12.0


def test_clusters_reach_through_the_boundary() -> None:
    """The last of four molecules in a row is nearer to the one in the middle as its image before the first."""
    positions = np.concatenate([water().positions + [x, 10.0, 10.0] for x in (1.0, 4.5, 8.0, 18.4)])
    series = clusters(Structure([8, 1, 1] * 4, positions, cell=20.0 * np.eye(3), pbc=True))
    x = series.samples[-1].structure.positions[::3, 0]
    assert np.sort(x) - x.min() == pytest.approx([0.0, 2.6, 6.1, 9.6])


def test_molecules_are_cut_where_one_bond_holds_them() -> None:
    pieces = cut(alkane(3).structure)
    assert pieces is not None
    assert sorted(pieces.names) == ["C2H5", "CH3"]
    apart = pieces.at(20.0)
    first, second = (apart.positions[pieces.group == k] for k in (0, 1))
    assert np.linalg.norm(first[:, None] - second[None], axis=2).min() == pytest.approx(20.0, abs=1e-9)
    ring = Structure([6] * 3, 1.5 * np.array([[0, 0, 0], [1, 0, 0], [0.5, sqrt(0.75), 0]]))
    assert cut(ring) is None


def test_unlike_molecules_are_pulled_apart_as_they_are() -> None:
    positions = np.concatenate([water().positions + [0.2, 0, 0], [[6.7, 0.0, 0.0]]])
    pieces = unlike_pair(Structure([8, 1, 1, 11], positions, cell=10.0 * np.eye(3), pbc=True))
    assert isinstance(pieces, Pieces)
    assert pieces.names == ("H2O", "Na")
    assert pieces.contact == pytest.approx(3.5)  # through the boundary
    assert unlike_pair(water()) is None


def test_series_needs_two_sizes() -> None:
    assert series_of([water(), water()]) is None
    series = series_of([alkane(4).structure, alkane(2).structure])
    assert series is not None
    assert [sample.size for sample in series.samples] == [2, 4]


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, generic: Model) -> Callable[[str], str]:
    folder = tmp_path_factory.mktemp("diagnose")
    save_model(generic, folder / "generic.kqeq")
    write(folder / "alkanes.xyz", [Atoms(s.numbers, s.positions) for s in (alkane(n).structure for n in CARBONS)])
    write(folder / "nacl.xyz", Atoms("NaCl", sodium_chloride().positions))
    write(folder / "gold.xyz", Atoms("Au2", [[0, 0, 0], [2.5, 0, 0]]))
    (folder / "text.xyz").write_text("no structure\n")
    return lambda name: str(folder / name)


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[str, dict[str, float]]]:
    assert main(["diagnose", *arguments, "--json"]) == 0
    found: dict[str, dict[str, dict[str, float]]] = json.loads(capsys.readouterr().out)
    return found


def test_command_on_the_shipped_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    found = run_json(capsys, str(NACL), "--plot", str(tmp_path / "plots"))
    names = ("polarizability_exponent", "dissociation_charge", "field_transfer", "lowest_eigenvalue")
    for name in (*names, "molecule_charges"):
        assert set(found[name]) == set(CHARGE_MODELS)
        for finding in found[name].values():
            assert set(finding) == {"value", "verdict"}
            assert isinstance(finding["value"], float)
        assert (tmp_path / "plots" / f"{name}.png").stat().st_size > 5_000
    assert found["polarizability_exponent"]["qeq"]["value"] > 1.8
    assert found["curves"]["polarizability_exponent"]["x"] == [2, 4, 8, 16, 32]  # type: ignore[comparison-overlap]
    assert found["spacing"] == 3.0  # type: ignore[comparison-overlap]
    for name in ("fragments", "split"):
        assert found["dissociation_charge"][name]["value"] < INTEGER
        assert found["field_transfer"][name]["value"] < INTEGER
    assert caplog.records == []  # what it measures it does not warn of


def test_command_on_structures(files: Callable[[str], str], capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, files("generic.kqeq"), files("alkanes.xyz"))
    exponents = {name: finding["value"] for name, finding in found["polarizability_exponent"].items()}
    assert exponents["qeq"] > 1.8
    assert exponents["split"] == pytest.approx(1.0, abs=0.1)
    assert exponents["fragments"] == pytest.approx(exponents["qeq"], rel=1e-6)  # one molecule, one fragment


def test_fragment_charges_and_spacing_are_taken(
    files: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--fragment-charges", "+1 -1", "--spacing", "4"]
    found = run_json(capsys, files("generic.kqeq"), files("nacl.xyz"), *options)
    curves = found["curves"]["dissociation_charge"]
    assert curves["split"][-1] == pytest.approx(1.0, abs=INTEGER)  # type: ignore[index]
    assert found["spacing"] == 4.0  # type: ignore[comparison-overlap]


def test_text_says_what_to_do(files: Callable[[str], str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", files("generic.kqeq"), files("nacl.xyz")]) == 0
    text = capsys.readouterr().out
    blocks = text.split("\n\n")
    assert [block[:3] for block in blocks] == ["(a)", "(b)", "(c)", "(d)", "(e)"]
    for block in blocks:
        assert "What to do: " in block
        assert all(f"\n    {name} " in block for name in CHARGE_MODELS)
    assert "leaks" in blocks[1]
    assert 'use charges="split"' in blocks[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.xyz"], "structure file gone.xyz does not exist"),
        (["text.xyz"], "cannot be read"),
        (["gold.xyz"], "the model knows H, C, O, Na, Cl, got Au"),
        ([], "holds no neutral fragment: give structures to measure"),
        (["nacl.xyz", "--spacing", "0"], "`spacing` must lie between 0.5 and 100 Angstrom, got 0"),
        (["nacl.xyz", "--fragment-charges", "0.5 -0.5"], "`fragment_charges` must be a whole number for each of 2"),
        (["nacl.xyz", "--fragment-charges", "a b"], "`--fragment-charges` must be numbers, got 'a b'"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, files: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    there = [files(word) if word.endswith(".xyz") and word != "gone.xyz" else word for word in arguments]
    assert main(["diagnose", files("generic.kqeq"), *there]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_a_single_structure_is_checked_before_the_work(generic: Model) -> None:
    with pytest.raises(KqeqError, match="`spacing` must lie between"):
        diagnose(generic, [water()], spacing=-1.0)
