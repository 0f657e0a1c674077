"""The model inside i-PI's own process, and behind i-PI's own driver."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ipi_support import (
    AROUND_CLUSTER,
    CHARGE,
    ENERGY,
    FIELD,
    POSITIONS,
    TRICLINIC,
    nan_in,
    numbers_in,
    queue,
    rattled,
    write_input,
)

from kqeq_md.errors import KqeqError
from kqeq_md.ipi_driver import pes
from kqeq_md.ipi_driver.client import main
from kqeq_md.ipi_driver.evaluation import Evaluation
from kqeq_md.machine.programs import program
from kqeq_md.potential import Potential
from kqeq_md.structure import Result, Structure
from kqeq_md.units import BOHR, HARTREE

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def path() -> str:
    """What the command prints, to stdout alone, as in <pes_path> and "$(kqeq-ipi --pes-path)"."""
    command = [str(program("kqeq-ipi")), "--pes-path"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


@pytest.fixture
def loaded(path: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class, as i-PI loads it from the path."""
    from ipi.pes import load_pes

    monkeypatch.delitem(sys.modules, Path(path).stem, raising=False)
    out = load_pes("custom", path)
    monkeypatch.delitem(sys.modules, Path(path).stem)  # i-PI leaves it there, under the name of the file
    return out


def structure_of(positions: np.ndarray, cell: np.ndarray, periodic: bool, **kwargs: Any) -> Structure:
    return Structure([11] * 4 + [17] * 4, positions, cell=cell, pbc=periodic, **kwargs)


def atomic(structure: Structure) -> tuple[np.ndarray, np.ndarray]:
    """h and positions as i-PI gives them."""
    return structure.cell.T / BOHR, structure.positions / BOHR


def assert_agrees(result: tuple[float, np.ndarray, np.ndarray, str], expected: Result) -> None:
    energy, forces, virial, extras = result
    # the same calculation but for the rounding of the units
    assert energy * HARTREE == pytest.approx(expected.energy, rel=1e-12)
    np.testing.assert_allclose(forces * HARTREE / BOHR, expected.forces, atol=1e-11, rtol=0)
    np.testing.assert_allclose(virial * HARTREE, expected.unsymmetrized_virial, atol=1e-10, rtol=0)
    np.testing.assert_allclose(json.loads(extras)["charges"], expected.charges, atol=1e-11, rtol=0)


def test_the_path_is_printed_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--pes-path"])
    out, error = capsys.readouterr()
    assert out == f"{pes.__file__}\n"
    assert error == ""


def test_ipi_knows_the_file_by_its_names(path: str) -> None:
    from ipi.pes import scan_pes_file

    assert scan_pes_file(path) == ("KQEqPES", "kqeq")


@pytest.mark.parametrize("periodic", [False, True])
def test_one_structure(loaded: Any, nacl_model: Path, template: Path, periodic_template: Path, periodic: bool) -> None:
    cell = TRICLINIC if periodic else AROUND_CLUSTER
    settings: dict[str, Any] = {} if periodic else {"charge": 1, "efield": "0.01 -0.02 0.05"}
    structure = structure_of(
        rattled(TRICLINIC) if periodic else POSITIONS,
        cell,
        periodic,
        **({} if periodic else {"charge": 1.0, "field": FIELD}),
    )
    # i-PI always passes its own verbosity
    driver = loaded(str(nacl_model), str(periodic_template if periodic else template), verbosity=True, **settings)
    result = driver(*atomic(structure))
    assert isinstance(result, tuple)
    expected = Potential(nacl_model).compute(structure)
    assert_agrees(result, expected)
    assert ("dipole" in json.loads(result[3])) != periodic


def test_lists_give_lists(loaded: Any, nacl_model: Path, periodic_template: Path) -> None:
    """Cells of different size at once; each place of the list has a history of its own."""
    structures = [
        structure_of(rattled((1 + 0.03 * k) * TRICLINIC, k), (1 + 0.03 * k) * TRICLINIC, True) for k in (0, 1, 2)
    ]
    driver = loaded(str(nacl_model), str(periodic_template), threads=2)
    potentials = [Potential(nacl_model) for _ in structures]
    for _ in range(2):
        cells, positions = zip(*map(atomic, structures), strict=True)
        results = driver(list(cells), list(positions))
        assert isinstance(results, list)
        for result, structure, potential in zip(results, structures, potentials, strict=True):
            assert_agrees(result, potential.compute(structure))
    assert driver([], []) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"colour": "red"}, "the parameters of the PES must be of charge, .*, got `colour`"),
        ({"efield": "0 0"}, "`efield` in the parameters of the PES must be three numbers"),
        ({"threads": "many"}, "`threads` must be a positive integer, got 'many'"),
        ({"threads": 0}, "`threads` must be a positive integer, got 0"),
        ({"part": "short", "extras": "charges"}, "`extras` must be defined, got `charges`"),
        ({"template": "absent.xyz"}, "`--template` must be a file that ASE can read, got absent.xyz"),
        ({"model": "absent.kqeq"}, "absent.kqeq"),
        ({"template": ""}, "`template` must be the path of a file among the parameters of the PES, got none"),
    ],
)
def test_parameters_that_are_refused(nacl_model: Path, template: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(KqeqError, match=message):
        pes.KQEqPES(**{"model": str(nacl_model), "template": str(template), **settings})


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (POSITIONS[:7], "number of atoms must be 8, as in the template, got 7"),
        (nan_in(POSITIONS), "`positions` must be finite"),
        (0 * POSITIONS, "overlap"),
    ],
)
def test_structures_that_are_refused(
    nacl_model: Path, template: Path, positions: np.ndarray, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    driver = pes.KQEqPES(str(nacl_model), str(template))
    with pytest.raises(KqeqError, match=message):
        driver(AROUND_CLUSTER / BOHR, positions / BOHR)
    assert len(caplog.records) == 1
    with pytest.raises(KqeqError, match=message):
        driver([AROUND_CLUSTER / BOHR] * 2, [POSITIONS / BOHR, positions / BOHR])
    assert_agrees(
        driver(AROUND_CLUSTER / BOHR, POSITIONS / BOHR),
        Potential(nacl_model).compute(structure_of(POSITIONS, AROUND_CLUSTER, False)),
    )


FFDIRECT = """\
<ffdirect name='kqeq' pbc='false' threaded='{threaded}'>
    <pes> custom </pes> <pes_path> {path} </pes_path> <batch_size> {batch_size} </batch_size>
    <parameters> {{model: {model}, template: {template}, charge: 1, efield: 0 0 0.05}} </parameters>
  </ffdirect>"""


def write_direct(folder: Path, beads: int, overlapping: bool = False, **direct: object) -> None:
    """The files of `write_input` with another force field; atoms 0 and 1 at the same place if asked for."""
    folder.mkdir()
    write_input(folder, "unix", "nobody", 0, steps=2)
    text = (folder / "input.xml").read_text()
    before, _, rest = text.partition("<ffsocket")
    _, _, after = rest.partition("</ffsocket>")
    text = (before + FFDIRECT.format(**direct) + after).replace("nbeads='1'", f"nbeads='{beads}'")
    (folder / "input.xml").write_text(text)
    if overlapping:
        count, cell, first, _, *others = (folder / "start.xyz").read_text().splitlines()
        (folder / "start.xyz").write_text("\n".join([count, cell, first, first, *others]) + "\n")


def assert_starts_as_expected(folder: Path, expected: Result) -> None:
    out = numbers_in(folder / "run.out")
    assert len(out) == 3
    assert out[0, 1] * HARTREE == pytest.approx(expected.energy, abs=8 * ENERGY, rel=0)
    charges = next(path for path in sorted(folder.glob("run.charges_*")))
    np.testing.assert_allclose(numbers_in(charges)[0], expected.charges, atol=CHARGE, rtol=0)


def test_ffdirect(path: str, nacl_model: Path, template: Path, tmp_path: Path, start: Start) -> None:
    """One by one in i-PI's main thread, and three beads at once in its polling thread."""
    direct = {"path": path, "model": nacl_model, "template": template}
    write_direct(tmp_path / "one", 1, threaded=False, batch_size=1, **direct)
    write_direct(tmp_path / "three", 3, threaded=True, batch_size=3, **direct)
    runs = [start("i-pi", "input.xml", folder=name) for name in ("one", "three")]
    structure = structure_of(POSITIONS, AROUND_CLUSTER, False, charge=1.0, field=(0.0, 0.0, 0.05))
    expected = Potential(nacl_model).compute(structure)
    for run, name in zip(runs, ("one", "three"), strict=True):
        output, _ = run.communicate(timeout=100)
        assert run.returncode == 0, output
        assert_starts_as_expected(tmp_path / name, expected)


def test_an_error_ends_ipi_with_a_message_and_restart(
    path: str, nacl_model: Path, template: Path, tmp_path: Path, start: Start
) -> None:
    """An exception in i-PI's threads would leave it waiting for ever."""
    direct = {"path": path, "model": nacl_model, "template": template}
    write_direct(tmp_path / "main", 1, overlapping=True, threaded=False, batch_size=1, **direct)
    write_direct(tmp_path / "polling", 2, overlapping=True, threaded=True, batch_size=2, **direct)
    runs = [start("i-pi", "input.xml", folder=name) for name in ("main", "polling")]
    for run, name in zip(runs, ("main", "polling"), strict=True):
        output, error = run.communicate(timeout=100)
        assert "error: `positions`: atoms 0 and 1 overlap, 0 Angstrom apart" in error
        assert "message: 'kqeq_md: `positions`: atoms 0 and 1 overlap, 0 Angstrom apart" in output
        assert "<simulation" in (tmp_path / name / "RESTART").read_text()


# i-PI ends its thread by SystemExit
@pytest.mark.filterwarnings(
    "ignore:currentThread:DeprecationWarning", "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)
def test_errors_that_nobody_has_thought_of_end_ipi_too(
    path: str, nacl_model: Path, template: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In i-PI's polling thread, whose end i-PI itself does not notice."""
    from ipi.engine.forcefields import FFDirect
    from ipi.utils.softexit import softexit

    def stumble(*_: object) -> None:
        raise ZeroDivisionError("a mistake")

    pars = {"model": str(nacl_model), "template": str(template)}
    forcefield = FFDirect(name="kqeq", pars=pars, threaded=True, pes="custom", pes_path=path)
    monkeypatch.delitem(sys.modules, Path(path).stem)
    monkeypatch.setattr(Evaluation, "__call__", stumble)
    try:
        forcefield.start()
        request = queue(forcefield, structure_of(POSITIONS, AROUND_CLUSTER, False))
        forcefield._thread.join(20)
        assert not forcefield._thread.is_alive()
        assert softexit.triggered
        assert request["status"] == "Exit"
    finally:
        forcefield.stop()
        softexit.reset()
    (record,) = caplog.records
    assert record.message == "error: a mistake"
    assert record.exc_info


def test_ipis_own_driver(
    path: str, nacl_model: Path, template: Path, tmp_path: Path, address: str, start: Start, launch: Start
) -> None:
    write_input(tmp_path, "unix", address, 0, steps=2)
    ipi = start("i-pi", "input.xml")
    deadline = 200
    while not Path(f"/tmp/ipi_{address}").exists():  # it does not wait for its server
        assert (deadline := deadline - 1), "i-PI has no socket after 20 s"
        with pytest.raises(subprocess.TimeoutExpired):
            ipi.wait(0.1)
    script = str(Path(sysconfig.get_path("scripts")) / "i-pi-py_driver")
    parameters = f"model={nacl_model},template={template},charge=1,efield=0 0 0.05"
    driver = launch(sys.executable, script, "-m", "custom", "-P", path, "-o", parameters, "-u", "-a", address)
    output, error = driver.communicate(timeout=100)
    assert (driver.returncode, error) == (0, ""), output
    ipi.communicate(timeout=30)
    assert ipi.returncode == 0
    structure = structure_of(POSITIONS, AROUND_CLUSTER, False, charge=1.0, field=(0.0, 0.0, 0.05))
    assert_starts_as_expected(tmp_path, Potential(nacl_model).compute(structure))
