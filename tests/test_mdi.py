"""The MDI engine: real drivers of pymdi in a process of their own, and in that of the engine."""

from __future__ import annotations

import json
import logging
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import pytest

from kqeq_md.ase import KQEq
from kqeq_md.errors import KqeqError
from kqeq_md.machine.programs import program
from kqeq_md.mdi import link as mdi_link
from kqeq_md.mdi.engine import NODE, System, main
from kqeq_md.mdi.link import check_connection
from kqeq_md.model import Model, save_model
from kqeq_md.models import NACL
from kqeq_md.potential import Potential
from kqeq_md.structure import Structure
from kqeq_md.units import BOHR, HARTREE

pytest.importorskip("mdi")

# the same arithmetic on positions that went to bohr and back, one rounding each way; stiff bonds and the differences
# of large numbers multiply it by some thousands at most
AGREE = 1e-11
FIELD = (0.01, -0.02, 0.05)

# Does the steps [command, kind, values] or [command, kind, number of values]; answers or the error as one line of JSON.
STEPS = """
import json, sys
import mdi

def work(_, engine, steps):
    answers = {"answers": []}
    for command, kind, what in steps:
        try:
            mdi.MDI_Send_Command(command, engine)
            if command[0] == ">":
                mdi.MDI_Send(what, len(what), getattr(mdi, kind), engine)
            elif command[0] == "<":
                answers["answers"].append(mdi.MDI_Recv(what, getattr(mdi, kind), engine))
        except Exception as error:
            answers["failed"] = f"{command}: {error}"
            if "--go-on" not in sys.argv:
                break
    print(json.dumps(answers), flush=True)
    return 0
"""
TCP_DRIVER = (
    STEPS
    + """
mdi.MDI_Init(f"-role DRIVER -name test -method TCP -port {sys.argv[1]}")
print("listening", flush=True)
engine = mdi.MDI_Accept_Communicator()
work(None, engine, json.loads(sys.stdin.readline()))
"""
)
PLUGIN_DRIVER = (
    STEPS
    + """
from kqeq_md.mdi.plugin import plugin_folder
mdi.MDI_Init(f"-role DRIVER -name test -method LINK -plugin_path {plugin_folder()}")
steps = json.loads(sys.stdin.readline())
if sys.argv[2] == "open":
    engine = mdi.MDI_Open_plugin("kqeq", sys.argv[1], None)
    work(None, engine, steps)
    mdi.MDI_Close_plugin(engine)
else:
    mdi.MDI_Launch_plugin("kqeq", sys.argv[1], None, work, steps)
"""
)
Step = tuple[str, str, Any]
EXIT: Step = ("EXIT", "", None)


# ------------------------------------------------------------------------------------------- structures as commands


def ints(command: str, *values: int) -> Step:
    return command, "MDI_INT", [int(v) for v in values]


def reals(command: str, values: Any) -> Step:
    return command, "MDI_DOUBLE", np.ravel(values).tolist()


def told(atoms: ase.Atoms) -> list[Step]:
    """Everything of the atoms."""
    steps = [ints(">NATOMS", len(atoms)), ints(">ELEMENTS", *atoms.numbers)]
    if atoms.cell.rank == 3:
        steps.append(reals(">CELL", atoms.cell.array / BOHR))
    return [*steps, reals(">COORDS", atoms.positions / BOHR)]


def asked(n: int, stress: bool = False) -> list[Step]:
    """Energy, forces, charges (and stress)."""
    wanted = [("<ENERGY", 1), ("<FORCES", 3 * n), ("<CHARGES", n), *([("<STRESS", 9)] if stress else [])]
    return [(command, "MDI_DOUBLE", count) for command, count in wanted]


def atoms_of(structure: Structure) -> ase.Atoms:
    return ase.Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=structure.pbc)


def compare(answers: list[Any], atoms: ase.Atoms, calculator: KQEq, stress: bool = False) -> None:
    """Answers to `asked` against the ASE calculator, in eV, Angstrom and e."""
    atoms = atoms.copy()
    atoms.calc = calculator
    energy, forces, charges = answers[:3]
    scale = max(1.0, abs(atoms.get_potential_energy()))
    assert energy * HARTREE == pytest.approx(atoms.get_potential_energy(), abs=AGREE * scale, rel=0)
    forces = np.reshape(forces, (-1, 3)) * (HARTREE / BOHR)
    np.testing.assert_allclose(forces, atoms.get_forces(), atol=AGREE * scale, rtol=0)
    np.testing.assert_allclose(charges, atoms.get_charges(), atol=AGREE * scale, rtol=0)
    assert np.ptp(charges) > 0.01
    if stress:
        # positive under compression: the other sign
        got = -np.reshape(answers[3], (3, 3)) * (HARTREE / BOHR**3)
        np.testing.assert_allclose(got, atoms.get_stress(voigt=False), atol=AGREE * scale, rtol=0)


# ----------------------------------------------------------------------------------------------- engine and driver


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def connection(port: int) -> str:
    # begins with -method, which is no -m for a model
    return f"-method TCP -role ENGINE -name kqeq -hostname localhost -port {port}"


@pytest.fixture
def run(launch: Callable[..., subprocess.Popen[str]]) -> Callable[..., subprocess.Popen[str]]:
    """Starts processes that are spoken to, elsewhere than in the sources."""
    return partial(launch, stdin=subprocess.PIPE)


@pytest.fixture
def driver(run: Callable[..., subprocess.Popen[str]]) -> Callable[[Sequence[Step]], tuple[subprocess.Popen[str], str]]:
    """Starts a driver that does the steps, and returns it with the options of its engine as soon as it listens."""

    def start(steps: Sequence[Step]) -> tuple[subprocess.Popen[str], str]:
        port = free_port()
        process = run(sys.executable, "-c", TCP_DRIVER, str(port))
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        process.stdin.write(json.dumps(steps) + "\n")
        process.stdin.flush()
        return process, connection(port)

    return start


Through = Callable[..., list[Any]]


@pytest.fixture
def through(driver: Callable[[Sequence[Step]], tuple[subprocess.Popen[str], str]]) -> Through:
    """Answers to the steps, and to EXIT, by the engine with these options."""

    def ask(steps: Sequence[Step], *options: str, code: int = 0) -> list[Any]:
        process, where = driver([*steps, EXIT])
        assert main(["-mdi", where, *options]) == code
        report = json.loads(process.communicate(timeout=20)[0])
        assert ("failed" in report) == bool(code)
        answers: list[Any] = report["answers"]
        return answers

    return ask


# ------------------------------------------------------------------------------------------------- what is answered


def test_open_cluster_with_charge_and_field(nacl_model: Path, helpers: Any, through: Through) -> None:
    atoms = atoms_of(helpers.cluster())
    atoms.cell = None
    options = ("-m", str(nacl_model), "--charge", "1", "--efield", " ".join(map(str, FIELD)), "--threads", "1")
    answers = through([*told(atoms), *asked(len(atoms)), ("<TOTCHARGE", "MDI_DOUBLE", 1)], *options)
    compare(answers, atoms, KQEq(nacl_model, charge=1.0, field=FIELD))
    assert answers[-1] == 1.0
    forces = np.reshape(answers[1], (-1, 3)) * (HARTREE / BOHR)
    np.testing.assert_allclose(forces.sum(axis=0), FIELD, atol=1e-8)  # F Q, to the tolerance of the charges


def test_periodic_structures_in_a_row(nacl_model: Path, helpers: Any, through: Through) -> None:
    """Cells and atoms change; a triclinic cell need not be a triangle. One calculator goes the same way beside it."""
    strain = np.array([[0.0, 0.12, 0.05], [-0.08, 0.02, -0.1], [0.07, 0.03, 0.06]])
    row = [atoms_of(helpers.rock_salt()), atoms_of(helpers.rock_salt(strain=strain, seed=5))]
    turned = row[1].copy()
    turn = helpers.random_rotation(3)
    turned.set_cell(turned.cell.array @ turn)
    turned.positions = turned.positions @ turn
    row += [turned, atoms_of(helpers.rock_salt(2, seed=7)), row[0]]
    steps = [step for atoms in row for step in [*told(atoms), *asked(len(atoms), stress=True)]]
    answers = through(steps, "-m", str(nacl_model))
    calculator = KQEq(nacl_model)
    for k, atoms in enumerate(row):
        compare(answers[4 * k : 4 * k + 4], atoms, calculator, stress=True)
    assert answers[4] == pytest.approx(answers[8], rel=AGREE)  # turned as a whole


def test_only_what_changes_is_sent(nacl_model: Path, helpers: Any, through: Through) -> None:
    atoms = atoms_of(helpers.rock_salt())
    moved, squeezed = atoms.copy(), atoms.copy()
    moved.rattle(0.05, seed=3)
    squeezed.set_cell(0.99 * atoms.cell.array)
    n = len(atoms)
    steps = [
        *told(atoms), *asked(n), reals(">COORDS", moved.positions / BOHR), *asked(n),
        ints(">NATOMS", n), reals(">COORDS", atoms.positions / BOHR),
        reals(">CELL", squeezed.cell.array / BOHR), *asked(n),
        reals(">TOTCHARGE", -1.0), *asked(n), ints(">ELEMENTS", *atoms.numbers[::-1]), *asked(n),
    ]  # fmt: skip
    answers = through(steps, "-m", str(nacl_model))
    calculator = KQEq(nacl_model)
    swapped = squeezed.copy()
    swapped.numbers = atoms.numbers[::-1]
    for k, (other, charge) in enumerate([(atoms, 0), (moved, 0), (squeezed, 0), (squeezed, -1), (swapped, -1)]):
        calculator.charge = charge
        compare(answers[3 * k : 3 * k + 3], other, calculator)


def test_slab_in_a_field(nacl_model: Path, helpers: Any, through: Through) -> None:
    """The open cell vector is the second one."""
    solid = atoms_of(helpers.rock_salt())
    solid.set_cell(np.diag([5.7, 20.0, 5.8]))
    atoms = solid.copy()
    atoms.pbc = (True, False, True)
    steps = [*told(solid), *asked(len(atoms), stress=True), ("<DIMENSIONS", "MDI_INT", 3)]
    answers = through(steps, "-m", str(nacl_model), "--slab", "y", "--efield", "0 0.05 0")
    compare(answers, atoms, KQEq(nacl_model, field=(0.0, 0.05, 0.0)), stress=True)
    assert answers[-1] == [2, 1, 2]


def test_split_charges_in_a_field_along_a_periodic_axis(
    model: Model, helpers: Any, tmp_path: Path, through: Through
) -> None:
    path = tmp_path / "split.kqeq"
    save_model(helpers.split_model(model), path)
    atoms = atoms_of(helpers.rock_salt())
    answers = through([*told(atoms), *asked(len(atoms), stress=True)], "-m", str(path), "--efield", "0 0 0.05")
    compare(answers, atoms, KQEq(path, field=(0.0, 0.0, 0.05)), stress=True)


def test_another_charge_model(nacl_model: Path, helpers: Any, through: Through) -> None:
    atoms = atoms_of(helpers.salt_box(2))
    answers = through([*told(atoms), *asked(len(atoms))], "-m", str(nacl_model), "--charges", "fragments")
    compare(answers, atoms, KQEq(nacl_model, charges="fragments"))
    assert sum(answers[2][:2]) == pytest.approx(0.0, abs=1e-12)  # the first molecule; rounding


def test_shipped_model_and_its_pressure(helpers: Any, through: Through) -> None:
    """A third of the trace of `<STRESS` is -dE/dV."""
    atoms = atoms_of(helpers.rock_salt())
    steps = [*told(atoms), *asked(len(atoms), stress=True)]
    volumes = []
    for scale in (0.9995, 1.0005):
        other = atoms.copy()
        other.set_cell(scale * atoms.cell.array, scale_atoms=True)
        volumes.append(other.cell.volume / BOHR**3)
        steps += [*told(other), ("<PE", "MDI_DOUBLE", 1)]
    answers = through(steps, "-m", str(NACL))
    compare(answers, atoms, KQEq(NACL), stress=True)
    pressure = (answers[-2] - answers[-1]) / (volumes[1] - volumes[0])
    # curvature over a strain of 5e-4: third derivatives of some tens of the first, 5e-4^2 / 6
    assert np.trace(np.reshape(answers[3], (3, 3))) / 3 == pytest.approx(pressure, rel=1e-4)


def test_template_and_questions(nacl_model: Path, helpers: Any, tmp_path: Path, through: Through) -> None:
    atoms = atoms_of(helpers.rock_salt(strain=np.triu(np.full((3, 3), 0.03))))
    path = tmp_path / "start.extxyz"
    ase.io.write(path, atoms)
    n = len(atoms)
    steps: list[Step] = [
        ("<NATOMS", "MDI_INT", 1), ("<ELEMENTS", "MDI_INT", n), ("<COORDS", "MDI_DOUBLE", 3 * n),
        ("<CELL", "MDI_DOUBLE", 9), ("<CELL_DISPL", "MDI_DOUBLE", 3), ("<DIMENSIONS", "MDI_INT", 3),
        ("<NAME", "MDI_CHAR", 256), ("<@", "MDI_CHAR", 256), ("<NNODES", "MDI_INT", 1),
        reals(">CELL_DISPL", [1.0, 2.0, 3.0]), ("<CELL_DISPL", "MDI_DOUBLE", 3), (NODE, "", None), *asked(n),
    ]  # fmt: skip
    answers = through(steps, "-m", str(nacl_model), "-t", str(path))
    read = ase.io.read(path)
    assert answers[0] == n
    assert answers[1] == list(atoms.numbers)
    # two roundings
    np.testing.assert_allclose(np.reshape(answers[2], (n, 3)) * BOHR, read.positions, rtol=4e-16, atol=1e-15)
    np.testing.assert_allclose(np.reshape(answers[3], (3, 3)) * BOHR, read.cell.array, rtol=4e-16)
    assert answers[4:9] == [[0.0, 0.0, 0.0], [2, 2, 2], "kqeq", NODE, 1]
    assert answers[9] == pytest.approx([1.0, 2.0, 3.0], rel=4e-16)
    compare(answers[10:], read, KQEq(nacl_model))


@pytest.mark.parametrize(("option", "dimensions"), [("--no-pbc", [1, 1, 1]), ("--pbc", [2, 2, 2])])
def test_boundary_options_come_first(
    nacl_model: Path, helpers: Any, tmp_path: Path, through: Through, option: str, dimensions: list[int]
) -> None:
    atoms = atoms_of(helpers.rock_salt())
    atoms.pbc = option == "--no-pbc"  # the other
    ase.io.write(tmp_path / "start.extxyz", atoms)
    steps: list[Step] = [("<DIMENSIONS", "MDI_INT", 3), *told(atoms), *asked(len(atoms))]
    answers = through(steps, "-m", str(nacl_model), "-t", str(tmp_path / "start.extxyz"), option)
    assert answers[0] == dimensions
    atoms.pbc = option == "--pbc"
    compare(answers[1:], atoms, KQEq(nacl_model))
    assert through(steps[1:], "-m", str(nacl_model), option)[0] == answers[1]  # without a template


def test_a_structure_is_computed_once(
    nacl_model: Path, helpers: Any, through: Through, monkeypatch: pytest.MonkeyPatch
) -> None:
    atoms, calls, compute = atoms_of(helpers.rock_salt()), [], Potential.compute

    def counted(self: Potential, structure: Structure, *more: Any) -> Any:
        calls.append(structure)
        return compute(self, structure, *more)

    monkeypatch.setattr(Potential, "compute", counted)
    asking: list[Step] = [*asked(len(atoms), stress=True), ("<PE", "MDI_DOUBLE", 1), ("<ENERGY", "MDI_DOUBLE", 1)]
    steps = [*told(atoms), *asking, reals(">COORDS", atoms.positions[::-1] / BOHR), *asking]
    answers = through(steps, "-m", str(nacl_model))
    assert len(calls) == 2
    assert answers[0] == answers[4] == answers[5]
    assert answers[0] != answers[6]


def test_commands_are_registered(nacl_model: Path, through: Through) -> None:
    """As LAMMPS' fix mdi/qm looks for them."""
    names = (
        "<NATOMS >NATOMS <ELEMENTS >ELEMENTS <CELL >CELL <CELL_DISPL >CELL_DISPL <COORDS >COORDS <ENERGY <PE <FORCES "
    )
    names += "<STRESS <CHARGES <TOTCHARGE >TOTCHARGE <DIMENSIONS <@ @DEFAULT EXIT"
    wanted = set(names.split())
    # the library's list: node and commands, 256 characters and a separator each
    steps: list[Step] = [("<NCOMMANDS", "MDI_INT", 1), ("<COMMANDS", "MDI_CHAR", 257 * (1 + len(wanted)))]
    count, listed = through(steps, "-m", str(nacl_model))
    assert count == len(wanted)
    assert set(re.split("[ ,;]+", listed.strip(" ,;"))) == wanted | {NODE}


# ---------------------------------------------------------------------------------------------------- what is refused


PAIR = ase.Atoms("NaCl", [[0, 0, 0], [0, 0, 2.6]])
ASK: Step = ("<ENERGY", "MDI_DOUBLE", 1)
REFUSED = {
    r"`positions` must be finite, got nan at index \[1, 2\]": [*told(PAIR), reals(">COORDS", [0] * 5 + [np.nan]), ASK],
    "atoms 0 and 1 overlap": [*told(PAIR), reals(">COORDS", np.zeros(6)), ASK],
    "`>COORDS` must bring 6 real numbers": [*told(PAIR), reals(">COORDS", np.zeros(9)), ASK],
    "`>ELEMENTS` must bring 2 integers": [*told(PAIR), reals(">ELEMENTS", np.zeros(2)), ASK],
    "`numbers`: the model knows Na, Cl, got K": [*told(ase.Atoms("KCl", PAIR.positions)), ASK],
    "`cell` must have a volume": [*told(PAIR), reals(">CELL", np.ones(9)), ASK],
    "`charge` must be finite": [*told(PAIR), reals(">TOTCHARGE", [np.inf]), ASK],
    "`>NATOMS` must lie between 1 and 16777216, got 0": [ints(">NATOMS", 0), ASK],
    "`>NATOMS` must lie between 1 and 16777216, got 2000000000": [ints(">NATOMS", 2_000_000_000), ASK],
    "`>COORDS` must follow `>NATOMS`": [reals(">COORDS", np.zeros(6)), ASK],
    "`>ELEMENTS` must come before results of 2 atoms": [ints(">NATOMS", 2), reals(">COORDS", np.zeros(6)), ASK],
    "`>COORDS` must come before results of 3 atoms": [
        *told(PAIR), ASK, ints(">NATOMS", 3), ints(">ELEMENTS", 11, 11, 17), ASK,
    ],
    "`<COORDS` has no answer before the driver has sent `>COORDS`": [("<COORDS", "MDI_DOUBLE", 6)],
    "`<STRESS` needs a periodic cell with a volume": [*told(PAIR), ("<STRESS", "MDI_DOUBLE", 9)],
    "command of the driver must be one of <@, .*, got '<MASSES'": [("<MASSES", "MDI_DOUBLE", 2)],
    "command of the driver must be one of <@, .*, got '@INIT_MD'": [("@INIT_MD", "", None), ASK],
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_an_error_is_one_line_and_the_driver_goes_on(
    nacl_model: Path, through: Through, caplog: pytest.LogCaptureFixture, message: str
) -> None:
    through(REFUSED[message], "-m", str(nacl_model), code=2)
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "\n" not in record.message
    with pytest.raises(ValueError, match=message):
        raise ValueError(record.message)


def test_options_that_do_not_fit_the_boundary(
    nacl_model: Path, helpers: Any, through: Through, caplog: pytest.LogCaptureFixture
) -> None:
    solid = atoms_of(helpers.rock_salt())
    through([*told(solid), ASK], "-m", str(nacl_model), "--efield", "0 0 0.05", code=2)
    through([*told(PAIR), ASK], "-m", str(nacl_model), "--pbc", code=2)
    assert "field" in caplog.messages[0]
    assert caplog.messages[1] == "error: `>CELL` must come before results of 2 atoms are asked for"


def test_a_model_without_charges(
    helpers: Any, tmp_path: Path, through: Through, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "none.kqeq"
    save_model(helpers.local_model(2, helpers.soap_term(2, 2, 1)), path)
    water = ase.Atoms("OH", [[0, 0, 0], [0, 0, 1.0]])
    steps = [*told(water), ASK, ("<FORCES", "MDI_DOUBLE", 6)]
    energy, _ = through(steps, "-m", str(path))
    water.calc = KQEq(path)
    assert energy * HARTREE == pytest.approx(water.get_potential_energy(), rel=AGREE)
    through([*steps, ("<CHARGES", "MDI_DOUBLE", 2)], "-m", str(path), code=2)
    assert "`<CHARGES` is not defined: the model has no charges" in caplog.messages[-1]


# ------------------------------------------------------------------------------------------------------ the command


def test_the_command_leaves_at_exit(
    nacl_model: Path, helpers: Any, driver: Any, run: Callable[..., subprocess.Popen[str]]
) -> None:
    atoms = atoms_of(helpers.rock_salt())
    process, where = driver([*told(atoms), *asked(len(atoms), stress=True), EXIT])
    engine = run(str(program("kqeq-mdi")), "-m", str(nacl_model), "-mdi", where, "-v")
    _, error = engine.communicate(timeout=60)
    assert engine.returncode == 0
    assert error.splitlines() == [
        f"kqeq-mdi: connected to the driver at localhost:{where.split()[-1]}", "kqeq-mdi: the driver said EXIT",
    ]  # fmt: skip
    compare(json.loads(process.communicate(timeout=20)[0])["answers"], atoms, KQEq(nacl_model), stress=True)


def test_the_command_refuses_a_structure(
    nacl_model: Path, driver: Any, run: Callable[..., subprocess.Popen[str]]
) -> None:
    process, where = driver([*told(PAIR), ASK, reals(">COORDS", np.full(6, np.nan)), ASK, EXIT])
    engine = run(str(program("kqeq-mdi")), "-m", str(nacl_model), "-mdi", where)
    assert engine.communicate(timeout=60)[1] == (
        "kqeq-mdi: error: `positions` must be finite, got nan at index [0, 0]\n"
    )
    assert engine.returncode == 2
    report = json.loads(process.communicate(timeout=20)[0])
    assert len(report["answers"]) == 1
    assert report["failed"] == "<ENERGY: MDI Error: MDI_Recv failed"


def test_a_killed_driver_ends_the_engine(nacl_model: Path, run: Callable[..., subprocess.Popen[str]]) -> None:
    port = free_port()
    process = run(sys.executable, "-c", TCP_DRIVER, str(port))
    engine = run(str(program("kqeq-mdi")), "-m", str(nacl_model), "-mdi", connection(port), "-v")
    assert engine.stderr is not None
    assert "connected" in engine.stderr.readline()
    process.kill()
    error = engine.communicate(timeout=20)[1]
    assert engine.returncode == 0
    assert "kqeq-mdi: the driver closed the connection without EXIT" in error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_engine(
    nacl_model: Path, run: Callable[..., subprocess.Popen[str]], number: signal.Signals
) -> None:
    port = free_port()
    run(sys.executable, "-c", TCP_DRIVER, str(port))
    engine = run(str(program("kqeq-mdi")), "-m", str(nacl_model), "-mdi", connection(port), "-v")
    assert engine.stderr is not None
    assert "connected" in engine.stderr.readline()
    engine.send_signal(number)
    assert engine.communicate(timeout=20)[1] == ""
    assert engine.returncode == -number


def test_a_late_driver_is_waited_for(
    nacl_model: Path, run: Callable[..., subprocess.Popen[str]], caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(mdi_link, "_NOTICE_AFTER", 0.1)
    port, started = free_port(), []

    def later() -> None:
        process = run(sys.executable, "-c", TCP_DRIVER, str(port))
        assert process.stdin is not None
        process.stdin.write(json.dumps([EXIT]) + "\n")
        process.stdin.flush()
        started.append(process)

    timer = threading.Timer(0.5, later)
    timer.start()
    assert main(["-m", str(nacl_model), "-mdi", connection(port)]) == 0
    timer.join()
    assert started[0].communicate(timeout=20)[0].endswith('{"answers": []}\n')
    assert caplog.messages == [f"waiting for a driver at localhost:{port}"]


def test_messages_do_not_wait_for_each_other(driver: Any) -> None:
    """The library's own socket is found, and sends at once."""
    process, where = driver([EXIT])
    with closing(mdi_link.connect(where)) as link:
        assert link.socket is not None
        assert link.socket.getpeername()[1] == int(where.split()[-1])
        assert link.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert link.command() == "EXIT"
    process.communicate(timeout=20)


GOOD = "-role ENGINE -name kqeq -method TCP -hostname localhost -port 8021"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must give -role, -name, -method, -hostname, -port, each with a value, got ''"),
        (GOOD + " -out", "each with a value"),
        (GOOD + " -out file", "each with a value"),
        (GOOD + " -port 8022", "each with a value"),
        (GOOD.replace("ENGINE", "DRIVER"), "-role must be ENGINE, got DRIVER"),
        (GOOD.replace("TCP", "MPI"), "-method must be TCP, got MPI"),
        (GOOD.replace("8021", "0"), "-port must lie between 1 and 65535, got 0"),
    ],
)
def test_options_of_the_library(text: str, message: str) -> None:
    with pytest.raises(mdi_link.MdiError, match=message):
        check_connection(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-mdi", "-role DRIVER"], "`-mdi` must give"),
        (["-mdi", GOOD.replace("localhost", "a.host.invalid")], "cannot connect to a driver at a.host.invalid:8021"),
        (["-mdi", GOOD, "-t", "absent.xyz"], "`--template` must be a file that ASE can read, got absent.xyz"),
    ],
)
def test_errors_before_there_is_a_driver(
    nacl_model: Path, options: list[str], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["-m", str(nacl_model), *options]) == 2
    (record,) = caplog.records
    assert message in record.message
    assert "\n" not in record.message


def test_a_template_is_evaluated_first(nacl_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ase.io.write(tmp_path / "k.xyz", ase.Atoms("KCl", PAIR.positions))
    assert main(["-m", str(nacl_model), "-mdi", GOOD, "-t", str(tmp_path / "k.xyz")]) == 2
    assert "got K" in caplog.text
    assert main(["-m", "absent.kqeq", "-mdi", GOOD]) == 2
    assert "absent.kqeq" in caplog.messages[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--efield", "0 0"], "--efield: must be three numbers in V/Angstrom, got '0 0'"),
        (["--threads", "0"], "--threads: must be a positive integer, got '0'"),
        (["--charge", "much"], "--charge: must be a finite number, got 'much'"),
        (["--slab", "w"], "--slab: must be x, y or z, the lattice vector along which the slab is open, got 'w'"),
        (["--slab", "z", "--pbc"], "not allowed with argument --slab"),
        (["--charges", "none"], "--charges: must be one of qeq, fragments, split, got 'none'"),
        ([], "the following arguments are required: -mdi/--mdi"),
    ],
)
def test_command_line_errors_are_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["-m", "some.kqeq", *(["-mdi", GOOD] if options else []), *options])
    error = capsys.readouterr().err
    assert error.startswith("kqeq-mdi: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_without_pymdi(nacl_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "mdi", None)  # as Python marks what cannot be imported
    assert main(["-m", str(nacl_model), "-mdi", GOOD]) == 2
    assert "pymdi is not installed: install it with" in caplog.text


# -------------------------------------------------------------------------------------- in the process of the driver


def in_process(run: Any, steps: list[Step], options: str, mode: str, *more: str) -> tuple[dict[str, Any], str, int]:
    """Report, standard error and exit code of a driver that opens or launches the plugin."""
    words = f'-mdi "-role ENGINE -name kqeq -method LINK" {options}'
    process = run(sys.executable, "-c", PLUGIN_DRIVER, words, mode, *more)
    out, error = process.communicate(json.dumps(steps) + "\n", timeout=120)
    return json.loads(out), error, process.returncode


@pytest.mark.parametrize("mode", ["open", "launch"])
def test_plugin(nacl_model: Path, helpers: Any, run: Callable[..., subprocess.Popen[str]], mode: str) -> None:
    cluster, solid = atoms_of(helpers.cluster()), atoms_of(helpers.rock_salt())
    cluster.cell = None
    steps: list[Step] = [("<NAME", "MDI_CHAR", 256)]
    for atoms, charge in ((cluster, 1.0), (solid, 0.0)):
        steps += [*told(atoms), reals(">TOTCHARGE", charge), *asked(len(atoms))]
    steps.append(("<STRESS", "MDI_DOUBLE", 9))
    report, error, code = in_process(run, [*steps, EXIT], f"-m {nacl_model}", mode)
    assert (code, error) == (0, "")
    name, *answers = report["answers"]
    assert name == "kqeq"
    calculator = KQEq(nacl_model, charge=1.0)
    compare(answers[:3], cluster, calculator)
    calculator.charge = 0.0
    compare(answers[3:], solid, calculator, stress=True)


def test_a_driver_can_go_on_after_an_error_of_the_plugin(
    nacl_model: Path, run: Callable[..., subprocess.Popen[str]]
) -> None:
    far = reals(">COORDS", PAIR.positions / BOHR)
    steps = [*told(PAIR), ASK, reals(">COORDS", np.zeros(6)), ASK, far, ASK, EXIT]
    report, error, code = in_process(run, steps, f"-m {nacl_model}", "open", "--go-on")
    assert code == 0
    assert report["failed"] == "<ENERGY: MDI Error: MDI_Send_Command failed"
    assert len(report["answers"]) == 2
    assert report["answers"][0] == pytest.approx(report["answers"][1], rel=AGREE)
    assert "kqeq-mdi: error: `positions`: atoms 0 and 1 overlap" in error


@pytest.mark.parametrize("mode", ["open", "launch"])
def test_bad_options_of_the_plugin(run: Callable[..., subprocess.Popen[str]], mode: str) -> None:
    report, error, code = in_process(run, [ASK, EXIT], "-m absent.kqeq", mode)
    assert report["answers"] == []
    assert report["failed"] == "<ENERGY: MDI Error: MDI_Send_Command failed"
    assert "kqeq-mdi: error: " in error
    assert "absent.kqeq" in error
    assert code == (mode == "launch")  # MDI_Launch_plugin raises as well


def test_a_plugin_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    from kqeq_md.mdi import plugin as mdi_plugin

    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(mdi_link.MdiError, match=r"no plugin without a C\+\+ compiler .*no-such-compiler"):
        mdi_plugin.plugin_folder()


@pytest.mark.parametrize("action", ["warn", "stop"])
def test_atoms_that_extrapolate(action: str, caplog: pytest.LogCaptureFixture) -> None:
    """Chlorine at 2 Angstrom, for the model of the salt."""
    chlorine = ase.Atoms("Cl2", [[0.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    system = System(Potential(NACL), start=chlorine, extrapolation=action)
    if action == "stop":
        with pytest.raises(KqeqError, match="2 atoms extrapolate"):
            system.result  # noqa: B018  (a property that computes)
    else:
        assert np.isfinite(system.result.energy)
        assert "2 atoms extrapolate" in caplog.text
