"""The two parts of the energy, and potentials that share their kernels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kqeq_md.errors import ChargeError, KqeqError
from kqeq_md.machine.threads import in_parallel
from kqeq_md.model import Model
from kqeq_md.potential import PARTS, Potential
from kqeq_md.structure import Structure

FIELD = (0.01, -0.02, 0.05)


@pytest.mark.parametrize("kind", ["cluster", "solid", "split"])
def test_both_parts_add_up_to_the_whole(model: Model, kind: str, helpers: Any) -> None:
    structure, options = helpers.cluster(charge=1.0), {}
    if kind == "cluster":
        structure = replace(structure, field=np.array(FIELD))
    elif kind == "solid":
        structure = helpers.rock_salt()
    else:
        model, structure = helpers.split_model(model, learned=0.2), helpers.salt_box(2, field=FIELD)
        options = {"fragments": "connectivity"}
    whole, short, charge = (Potential(model, part=part, **options).compute(structure) for part in PARTS)
    # the same numbers, added in another order
    assert short.energy + charge.energy == pytest.approx(whole.energy, rel=1e-13)
    for name in ("energies", "forces", "virial"):
        total = getattr(short, name) + getattr(charge, name)
        np.testing.assert_allclose(total, getattr(whole, name), atol=1e-11 * np.abs(getattr(whole, name)).max())
    np.testing.assert_array_equal(charge.charges, whole.charges)
    np.testing.assert_array_equal(charge.dipole, whole.dipole)
    assert short.energy == pytest.approx(whole.short_range_energy, rel=1e-14)
    assert charge.short_range_energy == 0
    assert (short.dipole, not short.charges.any()) == (None, True)


@pytest.mark.parametrize("part", ["short", "charge"])
def test_forces_of_each_part_by_finite_differences(model: Model, part: str, helpers: Any) -> None:
    structure = replace(helpers.cluster(charge=1.0), field=np.array(FIELD))
    potential, step = Potential(model, part=part, tolerance=1e-12), 1e-4
    forces = potential.compute(structure).forces
    for atom, axis in ((0, 0), (3, 2), (5, 1)):
        energies = []
        for sign in (1, -1):
            positions = structure.positions.copy()
            positions[atom, axis] += sign * step
            energies.append(potential.compute(replace(structure, positions=positions)).energy)
        # the error of the difference is d3E/dx3 step^2/6, and rounding 1e-14 / step
        assert forces[atom, axis] == pytest.approx((energies[1] - energies[0]) / (2 * step), abs=1e-6)


def test_the_short_range_knows_no_field_and_no_total_charge(nacl_model: Path, helpers: Any) -> None:
    short = Potential(nacl_model, part="short")
    plain, charged = helpers.rock_salt(), replace(helpers.rock_salt(), charge=1.0, field=np.array(FIELD))
    assert short.compute(plain).energy == short.compute(charged).energy
    assert not short.has_charges


def test_parts_that_are_not_there(model: Model, helpers: Any) -> None:
    with pytest.raises(KqeqError, match="`part` must be all, short, charge, got 'long'"):
        Potential(model, part="long")
    with pytest.raises(ChargeError, match="the model has no charges"):
        Potential(helpers.local_model(2, helpers.soap_term(2, 2, 1)), part="charge")


def test_twins_share_kernels_and_no_history(nacl_model: Path, helpers: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Two trajectories in turn, each with its own potential: results are those of a fresh one, warnings come once."""
    first = Potential(nacl_model, tolerance=1e-10)
    twins = [first, first.twin()]
    rng = np.random.default_rng(5)
    start = helpers.rock_salt(3)
    trajectories = [replace(start, charge=1.0, positions=start.positions + 0.05 * rng.normal(size=(len(start), 3)))
                    for _ in twins]  # fmt: skip
    for _ in range(3):
        trajectories = [_moved(structure, rng) for structure in trajectories]
        results = in_parallel(lambda pair: pair[0].compute(pair[1]), list(zip(twins, trajectories, strict=True)))
        for result, structure in zip(results, trajectories, strict=True):
            fresh = Potential(nacl_model, tolerance=1e-10).compute(structure)
            np.testing.assert_allclose(result.forces, fresh.forces, atol=1e-9)  # of the tolerance
    said = [record for record in caplog.records if "uniform background" in record.message]
    assert len(said) == 1 + 6  # of the twins together, and of each fresh one


def _moved(structure: Structure, rng: np.random.Generator) -> Structure:
    return replace(structure, positions=structure.positions + 0.01 * rng.normal(size=(len(structure), 3)))
