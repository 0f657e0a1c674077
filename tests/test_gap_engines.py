"""An imported potential, which has no charges, in every engine: against QUIP's own numbers (data/gap/make.py)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.io import write

from kqeq_md.ase import KQEq
from kqeq_md.cli import main
from kqeq_md.errors import ChargeError
from kqeq_md.ipi_driver.evaluation import Evaluation
from kqeq_md.ipi_driver.protocol import Request
from kqeq_md.ipi_driver.settings import Settings
from kqeq_md.machine.programs import environment, program
from kqeq_md.model import load_model
from kqeq_md.potential import Potential
from kqeq_md.response import response
from kqeq_md.structure import Structure
from kqeq_md.units import HARTREE

FOLDER = Path(__file__).parent / "data" / "gap"
ENERGY, FORCE = 1e-9, 1e-7  # eV/atom and eV/A, as in test_gap_import.py


@pytest.fixture(scope="module")
def gap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model file that the command makes."""
    path = tmp_path_factory.mktemp("gap") / "gap.kqeq"
    assert main(["import-gap", str(FOLDER / "nacl_soap_2b.xml"), "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    """Structures with QUIP's energy, forces and virial."""
    found: list[dict[str, Any]] = json.loads((FOLDER / "nacl_soap_2b.json").read_text())
    return found


@pytest.fixture(scope="module")
def crystal(records: list[dict[str, Any]]) -> dict[str, Any]:
    return next(record for record in records if record["cell"] is not None)


@pytest.fixture(scope="module")
def cluster(records: list[dict[str, Any]]) -> dict[str, Any]:
    return max((record for record in records if record["cell"] is None), key=lambda record: len(record["numbers"]))


def structure_of(record: dict[str, Any], **kwargs: Any) -> Structure:
    periodic = record["cell"] is not None
    return Structure(record["numbers"], record["positions"], cell=record["cell"], pbc=periodic, **kwargs)


def test_potential(gap: Path, records: list[dict[str, Any]]) -> None:
    potential = Potential(gap)
    for record in records:
        result = potential.compute(structure_of(record))
        assert result.energy == pytest.approx(record["energy"], abs=ENERGY * len(record["numbers"]), rel=0)
        assert result.energies is not None
        assert result.energies.sum() == pytest.approx(result.energy, abs=1e-10)
        np.testing.assert_allclose(result.forces, record["forces"], atol=FORCE)
        if record["cell"] is not None:
            np.testing.assert_allclose(result.virial, record["virial"], atol=1e-6)
        assert not result.charges.any()
        assert result.dipole is None


@pytest.mark.parametrize("threads", [1, 2])
def test_another_order_of_atoms(gap: Path, crystal: dict[str, Any], threads: int) -> None:
    order = np.random.default_rng(3).permutation(len(crystal["numbers"]))
    shuffled = Structure(
        np.array(crystal["numbers"])[order], np.array(crystal["positions"])[order], cell=crystal["cell"], pbc=True
    )
    forces = Potential(gap, threads=threads).compute(shuffled).forces
    np.testing.assert_allclose(forces, np.array(crystal["forces"])[order], atol=FORCE)


def test_no_charge_and_no_field(gap: Path, cluster: dict[str, Any]) -> None:
    potential = Potential(gap)
    for change in ({"charge": 1.0}, {"field": (0.0, 0.0, 0.1)}):
        with pytest.raises(ChargeError, match="the model has no charges.*total charge and field must be zero, got"):
            potential.compute(structure_of(cluster, **change))
    for knob in ({"charges": "qeq"}, {"fragments": "connectivity"}, {"reference_charges": {"Na": 1.0}}):
        with pytest.raises(ChargeError, match="the model has no charges"):
            Potential(gap, **knob)
    with pytest.raises(ChargeError, match="the model has no charges"):
        response(potential, structure_of(cluster))


def test_ase(gap: Path, crystal: dict[str, Any]) -> None:
    atoms = Atoms(crystal["numbers"], crystal["positions"], cell=crystal["cell"], pbc=True, calculator=KQEq(gap))
    assert atoms.get_potential_energy() == pytest.approx(crystal["energy"], abs=ENERGY * len(atoms), rel=0)
    np.testing.assert_allclose(atoms.get_forces(), crystal["forces"], atol=FORCE)
    virial = np.array(crystal["virial"])[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    np.testing.assert_allclose(-atoms.get_stress() * atoms.get_volume(), virial, atol=1e-6)
    for ask in (atoms.get_charges, atoms.get_dipole_moment):
        with pytest.raises(PropertyNotImplementedError, match="the model has no charges"):
            ask()


def test_lammps_refuses_charge_and_field(gap: Path, tmp_path: Path) -> None:
    for keyword in ("charge 1", "field 0 0 0.1"):
        (tmp_path / "in.lmp").write_text(
            "units metal\nboundary f f f\natom_style atomic\nregion box block 0 9 0 9 0 9\ncreate_box 2 box\n"
            f"create_atoms 1 single 1 1 1\nmass * 20\npair_style kqeq {keyword}\npair_coeff * * {gap} Na Cl\nrun 0\n"
        )
        command = [str(program("kqeq-lmp")), "-in", "in.lmp"]
        run = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300)
        assert run.returncode != 0
        assert "has no charges: remove the keywords `charge` and `field`" in run.stdout + run.stderr


@pytest.mark.parametrize("atom_style", ["atomic", "charge"])
def test_lammps(gap: Path, cluster: dict[str, Any], atom_style: str, tmp_path: Path) -> None:
    """Energy and forces, a note, and charges of the atoms left as they are."""
    lines = ["atoms", "", f"{len(cluster['numbers'])} atoms", "2 atom types", ""]
    lines += [f"-30 30 {axis}lo {axis}hi" for axis in "xyz"] + ["", "Masses", "", "1 22.99", "2 35.45"]
    lines += ["", f"Atoms # {atom_style}", ""]
    charge = " 0.25" if atom_style == "charge" else ""
    for i, (z, r) in enumerate(zip(cluster["numbers"], cluster["positions"], strict=True), start=1):
        lines.append(f"{i} {1 if z == 11 else 2}{charge} {r[0]:.17g} {r[1]:.17g} {r[2]:.17g}")
    (tmp_path / "atoms.data").write_text("\n".join(lines) + "\n")
    (tmp_path / "in.lmp").write_text(
        f"units metal\nboundary f f f\natom_style {atom_style}\nread_data atoms.data\n"
        f"pair_style kqeq\npair_coeff * * {gap} Na Cl\nthermo_modify format float %.15g\n"
        f"dump 1 all custom 1 forces.dump id fx fy fz{' q' if charge else ''}\n"
        'dump_modify 1 sort id format float %.15g\nrun 0\nprint "energy $(pe:%.15g)"\n'
    )
    command = [str(program("kqeq-lmp")), "-in", "in.lmp"]
    run = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "has no charges: short range only" in run.stdout
    energy = float(run.stdout.split("\nenergy ")[1].split()[0])
    assert energy == pytest.approx(cluster["energy"], abs=ENERGY * len(cluster["numbers"]), rel=0)
    table = np.loadtxt(tmp_path / "forces.dump", skiprows=9)
    np.testing.assert_allclose(table[:, 1:4], cluster["forces"], atol=FORCE)
    if charge:
        assert (table[:, 4] == 0.25).all()


def test_ipi(gap: Path, crystal: dict[str, Any]) -> None:
    """The bytes that go to i-PI; the sockets are those of every other model."""
    atoms = Atoms(crystal["numbers"], crystal["positions"], cell=crystal["cell"], pbc=True)
    request = Request(cell=atoms.cell.array, positions=atoms.positions)
    (answer,) = Evaluation(load_model(gap), atoms, Settings())([request])
    assert answer.energy * HARTREE == pytest.approx(crystal["energy"], abs=ENERGY * len(atoms), rel=0)
    np.testing.assert_allclose(answer.virial * HARTREE, crystal["virial"], atol=1e-6)
    assert answer.extras == ""


def test_eval_and_diagnose(gap: Path, crystal: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    """Energies and forces are compared, charges are not; there is nothing to diagnose or to check."""
    n = len(crystal["numbers"])
    atoms = Atoms(crystal["numbers"], crystal["positions"], cell=crystal["cell"], pbc=True)
    atoms.info["REF_energy"] = crystal["energy"] + 0.001 * n
    atoms.arrays |= {"REF_forces": np.array(crystal["forces"]), "REF_charges": np.ones(n)}
    write(tmp_path / "labelled.xyz", atoms, format="extxyz")
    assert main(["eval", str(gap), str(tmp_path / "labelled.xyz"), "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["energy_per_atom"]["rmse"] == pytest.approx(0.001, rel=1e-5)
    assert table["forces"]["rmse"] < 1e-7
    assert "charges" not in table
    for command, message in (("diagnose", "the model has no charges"), ("check", "no reference structure")):
        assert main([command, str(gap)]) == 2
        assert message in capsys.readouterr().err


def test_the_gap_itself_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gap.xml").write_text("<GAP/>")
    assert main(["import-gap", str(tmp_path / "gap.xml"), "-o", str(tmp_path / "gap.xml")]) == 2
    assert "`--output` must not be a file that is read" in capsys.readouterr().err
    assert (tmp_path / "gap.xml").read_text() == "<GAP/>"


def test_low_rank_and_info(gap: Path, crystal: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    """Too few sparse points for a lower rank: refused; the table of the model names its terms."""
    atoms = Atoms(crystal["numbers"], crystal["positions"], cell=crystal["cell"], pbc=True)
    write(tmp_path / "crystal.xyz", atoms)
    source, target = str(FOLDER / "nacl_soap_2b.xml"), str(tmp_path / "low.kqeq")
    assert main(["import-gap", source, "-o", target, "--low-rank", str(tmp_path / "crystal.xyz")]) == 2
    assert "it needs more than 8 sparse points per element" in capsys.readouterr().err
    assert not Path(target).exists()
    assert main(["info", str(gap)]) == 0
    told = capsys.readouterr().out
    assert "radial_scale" not in told
    for words in (
        "short-range potential without charges",
        "imported from      QUIP GAP",
        " e0 ",
        "quip_equispaced_gauss",
        "Na-Cl",
        "pair term of",
    ):
        assert words in told


def test_what_cannot_be_imported_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.xml").write_text("<GAP>")
    assert main(["import-gap", str(tmp_path / "bad.xml"), "-o", str(tmp_path / "m.kqeq")]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[0].startswith("kqeq: error: GAP file")


IPI = """\
<simulation verbosity='low' floatformat='%23.15e'>
  <output prefix='run'> <properties filename='out'> [ potential ] </properties> </output>
  <total_steps> 1 </total_steps>
  <ffsocket name='gap' mode='unix' pbc='false'> <address> {address} </address> </ffsocket>
  <system>
    <initialize nbeads='1'> <file mode='ase'> start.xyz </file> </initialize>
    <forces> <force forcefield='gap'/> </forces>
    <motion mode='dynamics'> <dynamics mode='nve'> <timestep units='femtosecond'> 0.5 </timestep> </dynamics> </motion>
  </system>
</simulation>
"""


def test_a_run_of_ipi(gap: Path, cluster: dict[str, Any], tmp_path: Path) -> None:
    address = f"kqeq_gap_{os.getpid()}"
    (tmp_path / "input.xml").write_text(IPI.format(address=address))
    write(tmp_path / "start.xyz", Atoms(cluster["numbers"], cluster["positions"], cell=[60.0] * 3))
    write(tmp_path / "template.xyz", Atoms(cluster["numbers"], cluster["positions"]))
    options: dict[str, Any] = {"cwd": tmp_path, "env": environment(), "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([str(program("i-pi")), "input.xml"], stdout=subprocess.DEVNULL, **options) as ipi:
        driver = [str(program("kqeq-ipi")), "-m", str(gap), "-t", "template.xyz", "-u", "-a", address]
        try:
            run = subprocess.run(driver, timeout=60, **options)
            ipi.communicate(timeout=20)
        finally:
            ipi.kill()
    assert run.returncode == 0
    assert "the model has no charges" in run.stderr
    energy = np.loadtxt(tmp_path / "run.out").ravel()[0] * HARTREE
    # i-PI's bohr differs in the eighth digit, and the file of positions has eight
    assert energy == pytest.approx(cluster["energy"], abs=1e-5)
