"""Messages, beside what i-PI writes."""

from __future__ import annotations

import io
import itertools
import json

import numpy as np
import pytest
from ipi_support import TRICLINIC, header, init, posdata, rattled, receive_reply

from kqeq_md.errors import KqeqError
from kqeq_md.ipi_driver import protocol
from kqeq_md.structure import Result
from kqeq_md.units import BOHR, HARTREE

EXTRAS = ("dipole", "charges")


def result(**changes: object) -> Result:
    values = {
        "energy": -HARTREE,
        "charges": np.array([0.5, -0.5]),
        "forces": np.full((2, 3), 2 * HARTREE / BOHR),
        "unsymmetrized_virial": 3 * HARTREE * np.eye(3),
        "dipole": np.array([0.0, 0.0, BOHR]),
    }
    return Result(**{**values, **changes})  # type: ignore[arg-type]


def test_lattice_vectors_are_the_columns_of_h() -> None:
    positions = rattled(TRICLINIC)
    body = io.BytesIO(posdata(positions, TRICLINIC)[12:])
    (request,) = protocol.Stream(8).receive(body.read)
    # one division and one product by bohr: two roundings
    np.testing.assert_allclose(request.cell, TRICLINIC, rtol=1e-15)
    np.testing.assert_allclose(request.positions, positions, rtol=4e-16)
    assert body.read() == b""


def test_init_text_of_ipi() -> None:
    text = " charge : 1 , efield : 0 0 0.01 , , batch_size:2"
    body = io.BytesIO(init(text)[12:])
    assert protocol.decode_init(body.read) == {"charge": "1", "efield": "0 0 0.01", "batch_size": "2"}


@pytest.mark.parametrize("text", ["", " ", "\0", "nothing"])
def test_init_without_parameters(text: str) -> None:
    assert protocol.decode_init(io.BytesIO(init(text)[12:]).read) == {}


def test_reply_is_in_atomic_units() -> None:
    stream = io.BytesIO(protocol.Stream(2).reply([protocol.answer_from(result(), EXTRAS)]))
    energy, forces, virial, extras = receive_reply(stream.read)
    assert stream.read() == b""
    assert energy == -1.0
    np.testing.assert_allclose(forces, 2.0, rtol=4e-16)  # roundings
    np.testing.assert_allclose(virial, 3 * np.eye(3), rtol=4e-16)
    assert extras == {"charges": [0.5, -0.5], "dipole": [0.0, 0.0, 1.0]}


def test_extras_are_those_that_are_asked_for() -> None:
    assert json.loads(protocol.answer_from(result(dipole=None), ["charges"]).extras) == {"charges": [0.5, -0.5]}
    assert protocol.answer_from(result()).extras == ""


def test_rows_of_bec_are_displacements() -> None:
    """Row 3i+b, column a: dmu_a / dR_ib."""
    born = np.arange(18.0).reshape(2, 3, 3)
    bec = json.loads(protocol.answer_from(result(), ["bec"], born).extras)["BEC"]
    assert np.shape(bec) == (6, 3)
    for atom, b, a in itertools.product(range(2), range(3), range(3)):
        assert bec[3 * atom + b][a] == born[atom, a, b]


def test_batches_come_and_go_by_kind() -> None:
    """One number of atoms, all cells, all positions; energies, one number, forces, virials, extras."""
    structures = [rattled(seed=seed) for seed in range(3)]
    cells = [(10 + k) * np.eye(3) for k in range(3)]
    body = np.int32(8).tobytes() + b"".join(np.stack([cell, np.linalg.inv(cell)]).tobytes() for cell in cells)
    body += b"".join(positions.tobytes() for positions in structures)
    wire = protocol.Stream(8)
    wire.batch_size = 3
    stream = io.BytesIO(body)
    for request, cell, positions in zip(wire.receive(stream.read), cells, structures, strict=True):
        np.testing.assert_array_equal(request.cell, cell * BOHR)
        np.testing.assert_array_equal(request.positions, positions * BOHR)
    assert stream.read() == b""

    answers = [
        protocol.Answer(float(k), np.full((8, 3), 1.0 * k), np.full((3, 3), 10.0 + k), "x" * k) for k in range(3)
    ]
    raw = wire.reply(answers)
    numbers = np.frombuffer(raw[12:36])
    assert (raw[:12], list(numbers), np.frombuffer(raw[36:40], np.int32)) == (header("FORCEREADY"), [0, 1, 2], 8)
    forces, virials = np.frombuffer(raw[40:616]).reshape(3, 8, 3), np.frombuffer(raw[616:832]).reshape(3, 3, 3)
    np.testing.assert_array_equal(forces[:, 0, 0], [0, 1, 2])
    np.testing.assert_array_equal(virials[:, 0, 0], [10, 11, 12])
    assert raw[832:] == b"".join(np.int32(k).tobytes() + b"x" * k for k in range(3))


@pytest.mark.parametrize("text", ["0", "-1", "two", "1e9", "65537", ""])
def test_absurd_batches_are_refused(text: str) -> None:
    with pytest.raises(KqeqError, match="`batch_size` must lie between 1 and 65536, got"):
        protocol.decode_batch_size(text)
