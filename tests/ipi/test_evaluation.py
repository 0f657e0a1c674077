"""From structures to answers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import ase
import numpy as np
import pytest

from kqeq_md.errors import KqeqError
from kqeq_md.ipi_driver import protocol
from kqeq_md.ipi_driver.evaluation import Evaluation
from kqeq_md.ipi_driver.settings import Settings, read_settings
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


def test_charges_of_fragments(model: Model, helpers: Any) -> None:
    """An ion among molecules: the first fragment holds the total charge."""
    box = helpers.salt_box(2)
    atoms = ase.Atoms(box.numbers, box.positions, cell=box.cell, pbc=True)
    atoms.set_array("molecule", np.repeat(np.arange(8), 2))
    settings = {"charge": "1", "charges": "fragments", "fragments": "molecule", "fragment_charges": "1 0 0 0 0 0 0 0"}
    (answer,) = Evaluation(model, atoms, read_settings(settings, "here"))([protocol.Request(box.cell, box.positions)])
    sums = np.array(json.loads(answer.extras)["charges"]).reshape(8, 2).sum(axis=1)
    np.testing.assert_allclose(sums, [1, 0, 0, 0, 0, 0, 0, 0], atol=1e-11)  # twelve decimals
    with pytest.raises(KqeqError, match="`fragment_charges` must say which of 8 fragments hold the total charge 1"):
        Evaluation(model, atoms, replace(read_settings(settings, "here"), fragment_charges=None))
    with pytest.raises(KqeqError, match="`fragment_charges` in here must be one number or more, got ''"):
        read_settings({"fragment_charges": " "}, "here")


def test_a_shearing_cell_in_a_field_gets_its_own_virial(model: Model, helpers: Any) -> None:
    """Upper triangle: differences of the energies that i-PI gets when its triangular cell strains."""
    structure = helpers.salt_box(2, field=(0.1, 0.2, 0.3))
    atoms = ase.Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=True)
    evaluate = Evaluation(model, atoms, Settings(efield=(0.1, 0.2, 0.3), charges="fragments"))
    (answer,) = evaluate([protocol.Request(structure.cell, structure.positions)])
    step = 1e-3
    for a, b in ((0, 1), (0, 2), (1, 2)):
        energies = []
        for strain in (-step, step):
            deform = np.eye(3)
            deform[a, b] = strain
            request = protocol.Request(structure.cell @ deform.T, structure.positions @ deform.T)
            energies.append(evaluate([request])[0].energy)
        # the error of the difference goes with the square of the step, and that of the Coulomb sum is 1e-5 eV/Angstrom
        assert answer.virial[a, b] == pytest.approx((energies[0] - energies[1]) / (2 * step), abs=1e-4)
        assert abs(answer.virial[a, b] - answer.virial[b, a]) > 1e-3


@pytest.mark.parametrize("vacuum", [0.0, 30.0])
def test_open_boundaries_in_the_cell_of_a_crystal_are_warned_of(
    vacuum: float, model: Model, helpers: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A crystal whose template has lost its cell; no cluster in a large one, and not where open was asked for."""
    solid = helpers.rock_salt()
    atoms = ase.Atoms(solid.numbers, solid.positions)
    request = protocol.Request(solid.cell + vacuum * np.eye(3), solid.positions)
    for settings, warned in ((Settings(), vacuum == 0.0), (Settings(pbc=(False, False, False)), False)):
        caplog.clear()
        evaluate = Evaluation(model, atoms, settings)
        for _ in range(2):
            evaluate([request])
        said = [record for record in caplog.records if "in i-PI's cell atoms come within" in record.message]
        assert len(said) == warned


@pytest.mark.parametrize("pbc", [(True, True, True), (True, True, False)])
def test_a_boundary_that_was_asked_for_takes_its_cell_from_ipi(
    pbc: tuple[bool, bool, bool], model: Model, helpers: Any
) -> None:
    """A template in i-PI's own format has no cell for ASE."""
    solid = helpers.rock_salt()
    evaluate = Evaluation(model, ase.Atoms(solid.numbers, solid.positions), Settings(pbc=pbc))
    (answer,) = evaluate([protocol.Request(solid.cell, solid.positions)])
    wanted = Potential(model).compute(replace(solid, pbc=pbc))
    assert answer.energy * HARTREE == pytest.approx(wanted.energy, rel=1e-12)
    np.testing.assert_allclose(answer.forces * HARTREE / BOHR, wanted.forces, atol=1e-10)
