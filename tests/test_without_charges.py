"""Models that are nothing but a short-range potential, which kernel is used, and what a file keeps of all terms."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kqeq_md.errors import ChargeError, KqeqError, ModelError
from kqeq_md.kernel import SparseKernel, low_rank
from kqeq_md.model import Model, load_model, save_model
from kqeq_md.pair_potential import PairTerm
from kqeq_md.potential import Potential
from kqeq_md.response import response
from kqeq_md.structure import Structure

PAIR_TERMS = (
    PairTerm((0, 0), np.array([0.9, 1.7, 2.6]), np.array([3.0, -4.0, 2.0]), 0.6, 4.0, 1.5),
    PairTerm((1, 0), np.array([1.2, 2.0]), np.array([2.0, -3.0]), 0.8, 4.4, 1.0),
)
CELL = np.array([[5.2, 0.0, 0.0], [0.9, 4.9, 0.0], [-0.4, 0.7, 5.5]])
"""Smaller than two cutoffs: atoms see images of themselves."""
BOUNDARIES = {"open": (False,) * 3, "slab": (True, True, False), "triclinic": (True,) * 3}
STEP = 2e-4
"""Angstrom, of finite differences: shorter than the spacing of tables, whose interpolant has jumps at the knots."""


def solid(helpers: Any, boundary: str = "triclinic", **more: Any) -> Structure:
    structure, _ = helpers.mixture(7, 2, 4.5)
    cell = CELL * np.array(BOUNDARIES[boundary])[:, None]  # the normal for the open axis of a slab
    return Structure(structure.numbers, structure.positions, cell=cell, pbc=BOUNDARIES[boundary], **more)


def models(helpers: Any) -> dict[str, Model]:
    near = helpers.soap_term(2, 2, 1)
    far = helpers.soap_term(2, 4, 1, 7, cutoff=4.5, cutoff_width=1.5, n_max=2, l_max=3)
    short = replace(near, low_rank=low_rank(SparseKernel(near.sparse_points, near.weights), 4))
    return {
        "kernel": helpers.local_model(2, near),
        "low rank": helpers.local_model(2, short),
        "all terms": helpers.local_model(
            2, short, far, pair_terms=PAIR_TERMS, repulsion_radius=np.array([0.8, 1.1])
        ),
        "pair terms": helpers.local_model(2, pair_terms=PAIR_TERMS),
    }  # fmt: skip


@pytest.fixture(params=["kernel", "low rank", "all terms", "pair terms"])
def uncharged(request: pytest.FixtureRequest, helpers: Any) -> Model:
    return models(helpers)[request.param]


# --- energies and derivatives


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_forces_and_virial(uncharged: Model, boundary: str, helpers: Any) -> None:
    structure, potential = solid(helpers, boundary), Potential(uncharged)
    result = potential.compute(structure)

    def at(positions: np.ndarray) -> float:
        return potential.compute(helpers.moved(structure, positions), want=()).energy

    def under(strain: np.ndarray) -> float:
        return potential.compute(helpers.strained(structure, np.eye(3) + strain), want=()).energy

    forces = -helpers.five_point(at, structure.positions, STEP)
    # at a knot the third derivative of a table jumps, by h f'''' = 0.3: (2e-4)^2 * 0.3 / 6; rounding 1e-14 / 2e-4
    np.testing.assert_allclose(result.forces, forces, rtol=0, atol=1e-8 * np.abs(forces).max())
    np.testing.assert_allclose(result.forces.sum(axis=0), 0.0, atol=1e-12)  # rounding
    if boundary != "slab":  # a strain takes the normal out of the axis along which it is written
        virial = -helpers.five_point(under, np.zeros((3, 3)), STEP / 5)
        np.testing.assert_allclose(result.virial, virial, rtol=0, atol=1e-8 * np.abs(virial).max())
    assert np.abs(forces).max() > 0.1  # eV/Angstrom


def test_energies_of_atoms(uncharged: Model, helpers: Any) -> None:
    result = Potential(uncharged).compute(solid(helpers))
    assert result.energies.sum() == pytest.approx(result.energy, rel=1e-14)  # rounding
    assert len(set(np.round(result.energies, 6))) == 7
    np.testing.assert_array_equal(result.charges, np.zeros(7))
    assert result.dipole is None
    np.testing.assert_array_equal(result.virial, result.virial.T)


def test_energies_of_atoms_keep_their_order(helpers: Any) -> None:
    """Large structures are sorted in space; energies and forces come back in the order of the structure."""
    structure, _ = helpers.mixture(600, 2, 22.0)
    backwards = Structure(structure.numbers[::-1], structure.positions[::-1])
    potential = Potential(models(helpers)["all terms"])
    one, two = potential.compute(structure), potential.compute(backwards)
    np.testing.assert_allclose(one.energies, two.energies[::-1], rtol=0, atol=1e-12)  # sums in another order
    np.testing.assert_allclose(one.forces, two.forces[::-1], rtol=0, atol=1e-11)


def test_an_atom_alone_has_its_own_energy(helpers: Any) -> None:
    result = Potential(models(helpers)["pair terms"]).compute(Structure([8], [[1.0, 2.0, 3.0]]))
    assert result.energy == models(helpers)["pair terms"].atom_energy[1]
    assert result.forces.tolist() == [[0.0, 0.0, 0.0]]


def test_only_what_is_wanted(uncharged: Model, helpers: Any) -> None:
    result = Potential(uncharged).compute(solid(helpers), want=("forces",))
    assert result.virial is result.energies is None
    assert result.forces.shape == (7, 3)


def test_charged_and_uncharged_share_the_short_range(helpers: Any) -> None:
    """A model with charges whose electronegativities are equal and hardness large keeps its atoms neutral."""
    columns = helpers.soap_term(2, 2.5, 2)
    energy_alone = replace(columns, weights=tuple(w[:, 1:] for w in columns.weights))
    muted = replace(columns, weights=tuple(w * [0.0, 1.0] for w in columns.weights))
    charged = replace(helpers.local_model(2, muted), electronegativity_offset=np.zeros(2))
    structure = solid(helpers)
    one, two = Potential(helpers.local_model(2, energy_alone)).compute(structure), Potential(charged).compute(structure)
    assert one.energy == pytest.approx(two.energy, rel=1e-13)  # the same sums
    np.testing.assert_allclose(one.forces, two.forces, rtol=0, atol=1e-12)
    np.testing.assert_allclose(one.virial, two.virial, rtol=0, atol=1e-11)


# --- what is refused


@pytest.mark.parametrize("change", [{"charge": 1.0}, {"field": (0.0, 0.0, 0.05)}], ids=["charge", "field"])
def test_charge_and_field_are_refused(uncharged: Model, change: dict[str, Any], helpers: Any) -> None:
    with pytest.raises(ChargeError, match="model has no charges.* total charge and field must be zero, got"):
        Potential(uncharged).compute(solid(helpers, **change))


@pytest.mark.parametrize(
    "knob", [{"charges": "qeq"}, {"fragments": "connectivity"}, {"fragment_charges": [0.0]}, {"reference_charges": {}}],
    ids=str,
)  # fmt: skip
def test_knobs_of_charges_are_refused(uncharged: Model, knob: dict[str, Any]) -> None:
    with pytest.raises(ChargeError, match="the model has no charges"):
        Potential(uncharged, **knob)


def test_no_charge_model_and_no_response(uncharged: Model, helpers: Any) -> None:
    potential = Potential(uncharged)
    assert not potential.has_charges
    for ask in (
        lambda: potential.charge_model,
        lambda: potential.equilibrate(solid(helpers)),
        lambda: potential.use_fragments("connectivity"),
        lambda: response(potential, solid(helpers)),
    ):
        with pytest.raises(ChargeError, match="the model has no charges"):
            ask()


def test_columns_must_fit(helpers: Any) -> None:
    one, two = helpers.soap_term(2, 2, 1), helpers.soap_term(2, 2, 2)
    with pytest.raises(ModelError, match="`weights` must have 2 or 3 columns, got 1"):
        replace(helpers.local_model(2, one), charges="qeq")
    with pytest.raises(ModelError, match="`weights` must have 1 columns, got 2"):
        replace(helpers.local_model(2, two), charges="none")
    with pytest.raises(ModelError, match=r"`weights` of H must be finite, shape \(m, 1\), got \(12, 2\)"):
        helpers.local_model(2, one, two)
    with pytest.raises(ModelError, match="`species` of a pair term must be indices of two elements, got"):
        helpers.local_model(1, pair_terms=PAIR_TERMS)
    with pytest.raises(ModelError, match="`terms` must hold at least one kernel, got none"):
        helpers.local_model(2)


# --- which kernel


def test_exact_or_low_rank(helpers: Any) -> None:
    made, structure = models(helpers), solid(helpers)
    exact = Potential(made["kernel"]).compute(structure)
    short = Potential(made["low rank"]).compute(structure)
    assert abs(short.energy - exact.energy) > 1e-4  # eV
    asked = Potential(made["low rank"], kernel="low_rank").compute(structure)
    np.testing.assert_array_equal(asked.forces, short.forces)
    again = Potential(made["low rank"], kernel="exact").compute(structure)
    np.testing.assert_array_equal(again.forces, exact.forces)
    np.testing.assert_array_equal(Potential(made["kernel"], kernel="exact").compute(structure).forces, exact.forces)
    of_all, given = (Potential(made["all terms"], kernel=kernel).compute(structure) for kernel in ("low_rank", None))
    np.testing.assert_array_equal(of_all.forces, given.forces)  # of the terms that have one


@pytest.mark.parametrize("kernel", ["lowrank", "", 2, True])
def test_wrong_kernels_are_refused(kernel: Any, helpers: Any) -> None:
    with pytest.raises(KqeqError, match="`kernel` must be low_rank or exact, got"):
        Potential(models(helpers)["kernel"], kernel=kernel)


@pytest.mark.parametrize("name", ["kernel", "pair terms"])
def test_low_rank_must_be_there(name: str, helpers: Any) -> None:
    with pytest.raises(KqeqError, match='`kernel` must be "exact": the model has no kernel of low rank'):
        Potential(models(helpers)[name], kernel="low_rank")


# --- files


def kept(model: Model, again: Model) -> None:
    """Every number of every term, bit by bit."""
    assert (again.species, again.charges) == (model.species, model.charges)
    assert [(t.soap, t.zeta) for t in again.terms] == [(t.soap, t.zeta) for t in model.terms]
    for new, old in zip(again.terms, model.terms, strict=True):
        groups = [(new.sparse_points, old.sparse_points), (new.weights, old.weights)]
        assert (new.low_rank is None) == (old.low_rank is None)
        if new.low_rank is not None and old.low_rank is not None:
            groups += [(new.low_rank.points, old.low_rank.points), (new.low_rank.weights, old.low_rank.weights)]
        for got, wanted in groups:
            for a, b in zip(got, wanted, strict=True):
                assert a.dtype == np.float64
                np.testing.assert_array_equal(a, b)
    for new_pair, old_pair in zip(again.pair_terms, model.pair_terms, strict=True):
        for name in ("species", "length", "cutoff", "cutoff_width"):
            assert getattr(new_pair, name) == getattr(old_pair, name)
        np.testing.assert_array_equal(new_pair.points, old_pair.points)
        np.testing.assert_array_equal(new_pair.weights, old_pair.weights)


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_files_keep_every_bit(columns: int, tmp_path: Path, helpers: Any) -> None:
    """Several terms, one of low rank, one with a real zeta and other functions, pair terms, sparse points in double."""
    near = helpers.soap_term(2, 2, columns)
    far = helpers.soap_term(
        2, 2.5, columns, 7, cutoff=4.5, basis="quip_gto", switching="cosine", central_weight=0.3, cutoff_width=1 / 3
    )
    short = replace(near, low_rank=low_rank(SparseKernel(near.sparse_points, near.weights), 4))
    model = helpers.local_model(2, short, far, pair_terms=PAIR_TERMS, repulsion_radius=np.array([0.8, 1.1]))
    save_model(model, tmp_path / "m.kqeq")
    again = load_model(tmp_path / "m.kqeq")
    kept(model, again)
    save_model(again, tmp_path / "n.kqeq")
    assert (tmp_path / "m.kqeq").read_bytes() == (tmp_path / "n.kqeq").read_bytes()
    first, second = Potential(model).compute(solid(helpers)), Potential(again).compute(solid(helpers))
    assert first.energy == second.energy
    np.testing.assert_array_equal(first.forces, second.forces)


def test_files_of_pair_terms_alone(tmp_path: Path, helpers: Any) -> None:
    model = models(helpers)["pair terms"]
    save_model(model, tmp_path / "m.kqeq")
    kept(model, load_model(tmp_path / "m.kqeq"))


def test_sparse_points_are_single_where_nothing_is_lost(tmp_path: Path, helpers: Any) -> None:
    term = helpers.soap_term(2, 2, 1)
    rounded = tuple(points.astype(np.float32).astype(np.float64) for points in term.sparse_points)
    points = {"double": term.sparse_points, "mixed": (rounded[0], term.sparse_points[1]), "single": rounded}
    for name, sparse_points in points.items():
        model = helpers.local_model(2, replace(term, sparse_points=sparse_points))
        save_model(model, tmp_path / f"{name}.kqeq")
        kept(model, load_model(tmp_path / f"{name}.kqeq"))
        with zipfile.ZipFile(tmp_path / f"{name}.kqeq") as archive:
            stored = {np.load(io.BytesIO(archive.read(f"sparse_points_{symbol}.npy"))).dtype for symbol in "HO"}
        assert stored == {np.dtype(np.float32 if name == "single" else np.float64)}
