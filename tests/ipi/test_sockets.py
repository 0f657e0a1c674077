"""The socket of the real i-PI."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ipi_support import (
    AROUND_CLUSTER,
    CHARGE,
    CUBIC,
    ENERGY,
    FIELD,
    FORCE,
    TRICLINIC,
    VIRIAL,
    free_port,
    rattled,
    through_ipi,
)

from kqeq_md.potential import Potential
from kqeq_md.structure import Structure
from kqeq_md.units import BOHR, HARTREE


# i-PI leaves the accepted socket, whose descriptor it has duplicated, to the garbage collector
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("mode", "fused", "boundary", "charge", "field"),
    [
        ("unix", True, "open", 1.0, FIELD),
        ("unix", False, "open", -1.0, (0.0, 0.0, 0.0)),
        ("inet", True, "open", 0.0, FIELD),
        ("inet", False, "triclinic", 0.0, (0.0, 0.0, 0.0)),
        ("unix", True, "triclinic", 1.0, (0.0, 0.0, 0.0)),
    ],
)
def test_ipi_gets_what_the_potential_computes(
    nacl_model: Path,
    template: Path,
    periodic_template: Path,
    address: str,
    mode: str,
    fused: bool,
    boundary: str,
    charge: float,
    field: tuple[float, float, float],
) -> None:
    periodic = boundary == "triclinic"
    port, place = (free_port(), "localhost") if mode == "inet" else (0, address)
    cell = TRICLINIC if periodic else AROUND_CLUSTER
    positions = rattled(TRICLINIC if periodic else CUBIC, seed=11)  # not the template's
    structure = Structure([11] * 4 + [17] * 4, positions, cell=cell, pbc=periodic, charge=charge, field=field)
    command = ["-m", str(nacl_model), "-t", str(periodic_template if periodic else template)]
    command += ["-u", "-a", place] if mode == "unix" else ["-a", place, "-p", str(port)]
    command += ["--charge", str(charge), "--efield", " ".join(map(str, field)), "--wait", "100"]
    for energy, forces, virial, extras in through_ipi(command, place, port, mode, fused, structure):
        expected = Potential(nacl_model).compute(structure)
        forces = forces.reshape(-1, 3) * HARTREE / BOHR
        assert energy * HARTREE == pytest.approx(expected.energy, abs=ENERGY * len(structure), rel=0)
        np.testing.assert_allclose(forces, expected.forces, atol=FORCE, rtol=0)
        np.testing.assert_allclose(virial * HARTREE, expected.virial, atol=VIRIAL, rtol=0)
        np.testing.assert_allclose(extras["charges"], expected.charges, atol=CHARGE, rtol=0)
        # translation invariance, to the accuracy of the forces
        np.testing.assert_allclose(forces.sum(axis=0), charge * np.array(field), atol=FORCE)
        if periodic:
            assert "dipole" not in extras
        else:
            np.testing.assert_allclose(np.array(extras["dipole"]) * BOHR, expected.dipole, atol=1e-7, rtol=0)
