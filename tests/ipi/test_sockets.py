"""The socket of the real i-PI, in this process: all transports, in all ways in which i-PI uses them."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    Reply,
    collect,
    free_port,
    ipi_server,
    queue,
    rattled,
    through_ipi,
)

from kqeq_md.ipi_driver.client import main
from kqeq_md.ipi_driver.evaluation import Evaluation
from kqeq_md.potential import Potential
from kqeq_md.response import response
from kqeq_md.structure import Result, Structure
from kqeq_md.units import BOHR, HARTREE

# i-PI leaves the accepted socket, whose descriptor it has duplicated, to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

NO_FIELD = (0.0, 0.0, 0.0)
TRANSPORTS = ("unix", "inet", "shm")
# fused, batch_size, structures asked at once
WAYS = {"fused": (True, 1, 1), "separate": (False, 1, 1), "batch": (True, 3, 3), "padded batch": (True, 3, 2)}
# boundary, charge, field, extras
SYSTEMS = (
    ("open", 1.0, FIELD, None),
    ("triclinic", 0.0, NO_FIELD, None),
    ("open", -1.0, NO_FIELD, "dipole,charges,bec"),
    ("triclinic", 1.0, NO_FIELD, "none"),
    ("open", 0.0, FIELD, "charges"),
)
CASES = [
    (mode, way, *SYSTEMS[(i + 2 * j) % len(SYSTEMS)]) for i, mode in enumerate(TRANSPORTS) for j, way in enumerate(WAYS)
]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many structures each evaluation has."""
    counts: list[int] = []
    evaluate = Evaluation.__call__

    def counted(self: Evaluation, requests: Sequence[Any]) -> list[Any]:
        counts.append(len(requests))
        return evaluate(self, requests)

    monkeypatch.setattr(Evaluation, "__call__", counted)
    return counts


def systems(boundary: str, charge: float, field: tuple[float, ...], number: int) -> list[Structure]:
    """Structures that are neither the template nor each other; periodic ones have different cells."""
    periodic, out = boundary == "triclinic", []
    for k in range(number):
        cell = (1 + 0.02 * k) * TRICLINIC if periodic else AROUND_CLUSTER
        positions = rattled(cell if periodic else CUBIC, seed=11 + k)
        out.append(Structure([11] * 4 + [17] * 4, positions, cell=cell, pbc=periodic, charge=charge, field=field))
    return out


def address_of(mode: str, address: str) -> tuple[str, int, list[str]]:
    """Place, port, and what the command says of them."""
    if mode == "inet":
        port = free_port()
        return "localhost", port, ["-a", "localhost", "-p", str(port)]
    return address, 0, ["-u" if mode == "unix" else "--shm", "-a", address]


def assert_agrees(reply: Reply, structure: Structure, expected: Result) -> None:
    """Energy, forces and virial are those of the potential; forces add up to Q F."""
    energy, forces, virial, _ = reply
    forces = forces.reshape(-1, 3) * HARTREE / BOHR
    assert energy * HARTREE == pytest.approx(expected.energy, abs=ENERGY * len(structure), rel=0)
    np.testing.assert_allclose(forces, expected.forces, atol=FORCE, rtol=0)
    np.testing.assert_allclose(virial * HARTREE, expected.unsymmetrized_virial, atol=VIRIAL, rtol=0)
    # translation invariance, to the accuracy of the forces
    np.testing.assert_allclose(forces.sum(axis=0), structure.charge * structure.field, atol=FORCE)


def assert_extras(extras: dict[str, Any], names: set[str], expected: Result) -> None:
    """i-PI has read these names, with the values of the potential, and keeps the text under `raw`."""
    assert set(extras) == (names | {"raw"} if names else set())
    if "charges" in names:
        np.testing.assert_allclose(extras["charges"], expected.charges, atol=CHARGE, rtol=0)
    if "dipole" in names:
        # the charges' tolerance times the extent of the cluster, about 6 Angstrom
        np.testing.assert_allclose(np.array(extras["dipole"]) * BOHR, expected.dipole, atol=1e-7, rtol=0)


@pytest.mark.parametrize(("mode", "way", "boundary", "charge", "field", "extras"), CASES)
def test_ipi_gets_what_the_potential_computes(
    nacl_model: Path,
    template: Path,
    periodic_template: Path,
    address: str,
    batches: list[int],
    mode: str,
    way: str,
    boundary: str,
    charge: float,
    field: tuple[float, ...],
    extras: str | None,
) -> None:
    fused, batch_size, number = WAYS[way]
    place, port, where = address_of(mode, address)
    structures = systems(boundary, charge, field, number)
    command = ["-m", str(nacl_model), "-t", str(template if boundary == "open" else periodic_template), *where]
    command += ["--charge", str(charge), "--efield", " ".join(map(str, field)), "--wait", "100"]
    command += ["--extras", extras] if extras else []
    replies = through_ipi(command, place, port, mode, fused, *structures, batch_size=batch_size)
    assert batches[0] == batch_size  # i-PI fills a batch that is not full with copies of the last structure
    names = {"charges", "dipole"} if boundary == "open" else {"charges"}
    if extras:
        names = {"bec": {"charges", "dipole", "BEC"}, "none": set(), "charges": {"charges"}}[extras.split(",")[-1]]
    # with a history of its own for each place in the batch, as charges start from those of the step before
    potentials = [Potential(nacl_model) for _ in structures]
    for reply, structure, potential in zip(replies, 2 * structures, 2 * potentials, strict=True):
        expected = potential.compute(structure)
        assert_agrees(reply, structure, expected)
        assert_extras(reply[3], names, expected)
        if "BEC" in names:
            born_iab = response(potential, structure).born_charges
            # row 3i+b is a displacement, column a the dipole; both sides solve the same equations the same way
            bec_iba = np.reshape(reply[3]["BEC"], (-1, 3, 3))
            np.testing.assert_allclose(bec_iba, np.swapaxes(born_iab, 1, 2), atol=1e-7, rtol=0)


def test_parameters_of_the_ffsocket_are_settings(nacl_model: Path, template: Path, address: str) -> None:
    pars = {"charge": -1, "efield": "0 0 0.05", "extras": "dipole", "part": "charge"}
    (structure,) = systems("open", -1.0, (0.0, 0.0, 0.05), 1)
    command = ["-m", str(nacl_model), "-t", str(template), "-u", "-a", address, "--wait", "100", "--charge", "-1"]
    for reply in through_ipi(command, address, 0, "unix", True, structure, pars=pars):
        expected = Potential(nacl_model, part="charge").compute(structure)
        assert_agrees(reply, structure, expected)
        assert_extras(reply[3], {"dipole"}, expected)


@pytest.mark.parametrize("mode", TRANSPORTS)
def test_parts_sent_through_ipi_are_the_whole(nacl_model: Path, template: Path, address: str, mode: str) -> None:
    (structure,) = systems("open", 0.0, FIELD, 1)
    parts = {}
    for part in ("all", "short", "charge"):
        place, port, where = address_of(mode, address)
        command = ["-m", str(nacl_model), "-t", str(template), *where, "--wait", "100", "--part", part]
        command += ["--efield", " ".join(map(str, FIELD))]
        ((*numbers, extras),) = through_ipi(command, place, port, mode, True, structure, steps=1)
        parts[part] = np.concatenate([np.ravel(number) for number in numbers])
        assert ("charges" in extras) == (part != "short")
    # sums of some tens of terms of order 1 hartree, by another order
    np.testing.assert_allclose(parts["short"] + parts["charge"], parts["all"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("fused", [True, False])
def test_parameters_in_conflict_leave_ipi_with_the_request(
    nacl_model: Path, template: Path, address: str, fused: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The driver refuses and leaves; i-PI sees the end of the stream, and another driver gets the same request."""
    command = ["-m", str(nacl_model), "-t", str(template), "-u", "-a", address, "--wait", "100"]
    (structure,) = systems("open", 1.0, NO_FIELD, 1)
    given_up, results = threading.Event(), []
    with ipi_server(address, 0, "unix", fused, pars={"charge": 1}) as forcefield:
        request = queue(forcefield, structure)
        assert main([*command, "--charge", "0"]) == 2
        (record,) = caplog.records
        rule = "`charge` must be the same on the command line and in <parameters>, got 0.0 and 1.0"
        assert record.message == f"error: {rule}"
        deadline = time.monotonic() + 20
        while forcefield.socket.clients or request["status"] != "Queued":
            assert time.monotonic() < deadline, "i-PI has not noticed that the driver has left"
            time.sleep(0.02)
        assert forcefield._thread.is_alive()

        def ask() -> None:
            results.extend(collect(forcefield, [request], given_up))
            forcefield.stop()

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            assert main(command) == 0
        finally:
            given_up.set()
            asking.join()
    (reply,) = results
    assert_agrees(reply, structure, Potential(nacl_model).compute(structure))


def drop_clients(forcefield: Any) -> None:
    """Close i-PI's connections without EXIT, as when it is killed."""
    forcefield._doloop[0] = False
    forcefield._thread.join()
    clients, forcefield.socket.clients = forcefield.socket.clients, []
    forcefield.stop()  # the listener first, or the driver would find it a last time
    for client in clients:
        socket.socket.shutdown(client, socket.SHUT_RDWR)
        client.close()


@pytest.mark.parametrize("mode", TRANSPORTS)
def test_reconnect_serves_one_server_after_the_other(
    nacl_model: Path, template: Path, address: str, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The second server has other parameters and batches: nothing of the first is left."""
    caplog.set_level(logging.INFO, logger="kqeq_md")  # what -v sets, taken back at the end
    place, port, where = address_of(mode, address)
    one, *two = systems("open", 0.0, NO_FIELD, 3)
    two = [replace(structure, charge=1.0) for structure in two]
    given_up, replies = threading.Event(), []

    def talk() -> None:
        with ipi_server(place, port, mode) as first:
            replies.extend(collect(first, [queue(first, one)], given_up))
            drop_clients(first)
        with ipi_server(place, port, mode, batch_size=2, pars={"charge": 1}) as second:
            replies.extend(collect(second, [queue(second, structure) for structure in two], given_up))

    talking = threading.Thread(target=talk)
    talking.start()
    try:
        assert main(["-m", str(nacl_model), "-t", str(template), *where, "--wait", "100", "--reconnect", "-v"]) == 0
    finally:
        given_up.set()
        talking.join()
    potential = Potential(nacl_model)
    for reply, structure in zip(replies, [one, *two], strict=True):
        assert_agrees(reply, structure, potential.compute(structure))
    messages = [record.message for record in caplog.records]
    assert messages.count("the server closed the connection without EXIT") == 1
    assert messages.count("trying to connect again (--reconnect)") == 1
    assert messages[-2] == "i-PI said EXIT"


def test_what_ipi_keeps_of_the_extras_is_one_json_object(nacl_model: Path, template: Path, address: str) -> None:
    (structure,) = systems("open", 0.0, NO_FIELD, 1)
    command = ["-m", str(nacl_model), "-t", str(template), "-u", "-a", address, "--wait", "100"]
    ((*_, extras),) = through_ipi(command, address, 0, "unix", True, structure, steps=1)
    raw = extras.pop("raw")
    assert json.loads(raw) == extras
