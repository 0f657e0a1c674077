"""From structures to answers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import ase
import numpy as np
import pytest

from kqeq_md.ipi_driver import protocol
from kqeq_md.ipi_driver.evaluation import Evaluation
from kqeq_md.ipi_driver.settings import Settings
from kqeq_md.model import Model
from kqeq_md.potential import Potential
from kqeq_md.units import BOHR, HARTREE


def test_ions_in_a_field_along_a_periodic_axis_send_no_virial(model: Model, helpers: Any) -> None:
    """Reference charges of +-1: energy, forces and dipole have a meaning, the virial has none and is sent as nan."""
    ions = helpers.split_model(model, (1.0, -1.0))
    solid = helpers.rock_salt()
    atoms = ase.Atoms(solid.numbers, solid.positions, cell=solid.cell, pbc=True)
    request = protocol.Request(cell=solid.cell, positions=solid.positions)
    (answer,) = Evaluation(ions, atoms, Settings(efield=(0.0, 0.0, 0.05)))([request])
    wanted = Potential(ions).compute(replace(solid, field=(0.0, 0.0, 0.05)))
    np.testing.assert_allclose(answer.forces * HARTREE / BOHR, wanted.forces, atol=1e-10)
    np.testing.assert_allclose(np.array(json.loads(answer.extras)["dipole"]) * BOHR, wanted.dipole, atol=1e-10)
    assert wanted.virial is None
    assert np.isnan(answer.virial).all()
    (still,) = Evaluation(ions, atoms, Settings())([request])
    assert np.isfinite(still.virial).all()


def test_copies_at_the_end_of_a_batch_are_computed_once(
    model: Model, helpers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """i-PI fills incomplete batches; the answers are those of each structure all the same."""
    solid = helpers.rock_salt()
    atoms = ase.Atoms(solid.numbers, solid.positions, cell=solid.cell, pbc=True)
    evaluate = Evaluation(model, atoms, Settings(), threads=2)
    rng = np.random.default_rng(4)
    requests = [protocol.Request(solid.cell, solid.positions + 0.05 * rng.normal(size=(8, 3))) for _ in range(3)]
    counted: list[int] = []
    right = Potential.compute
    monkeypatch.setattr(Potential, "compute", lambda *args: counted.append(1) or right(*args))
    answers = evaluate([*requests, requests[-1], requests[-1]])
    assert len(counted) == 3
    for answer, request in zip(answers, [*requests, requests[-1], requests[-1]], strict=True):
        wanted = right(Potential(model), replace(solid, positions=request.positions))
        np.testing.assert_allclose(answer.forces * HARTREE / BOHR, wanted.forces, atol=1e-12)  # rounding
