"""The command `kqeq`: what it prints, its JSON, and one line for every mistake."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.io import read, write
from ase.units import Bohr

from kqeq_md.ase import KQEq, structure_from_atoms
from kqeq_md.cli import main
from kqeq_md.model import load_model, save_model
from kqeq_md.models import NACL, SHIPPED
from kqeq_md.potential import Potential
from kqeq_md.response import response

DATA = Path(__file__).parent.parent / "examples" / "train_nacl"
WATER = DATA.parent / "train_water"


@pytest.fixture(scope="module")
def few_frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every twelfth frame of the example's test set, as text, so that the labels keep their digits."""
    lines, start, kept, index = (DATA / "test.xyz").read_text().splitlines(), 0, [], 0
    while start < len(lines):
        end = start + int(lines[start]) + 2
        if index % 12 == 0:
            kept += lines[start:end]
        start, index = end, index + 1
    path = tmp_path_factory.mktemp("data") / "few.xyz"
    path.write_text("\n".join(kept) + "\n")
    return path


def test_eval_json_has_the_stable_keys(few_frames: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(NACL), str(few_frames), "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    images = read(few_frames, ":", format="extxyz")
    assert table["n_frames"] == len(images)
    groups = [table, *table["by_total_charge"].values(), *table["by_field"].values()]
    for group in groups:
        for quantity in ("energy_per_atom", "forces", "charges", "dipole"):
            assert 0 < group[quantity]["mae"] <= group[quantity]["rmse"]
    assert set(table["by_total_charge"]) == {f"{a.info['total_charge']:g}" for a in images}
    assert set(table["by_field"]) == {"with", "without"}


def test_eval_numbers_follow_their_definitions(few_frames: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """RMSE and MAE computed again from single-point calculations through ASE."""
    main(["eval", str(NACL), str(few_frames), "--json"])
    table = json.loads(capsys.readouterr().out)
    errors: dict[str, list[np.ndarray]] = {"energy_per_atom": [], "forces": [], "charges": [], "dipole": []}
    for atoms in read(few_frames, ":", format="extxyz"):
        info = atoms.info
        atoms.calc = KQEq(NACL, charge=info["total_charge"], field=info["electric_field"])
        errors["energy_per_atom"].append(np.array([atoms.get_potential_energy() - info["REF_energy"]]) / len(atoms))
        errors["forces"].append((atoms.get_forces() - atoms.arrays["REF_forces"]).ravel())
        errors["charges"].append(atoms.get_charges() - atoms.arrays["REF_charges"])
        errors["dipole"].append(atoms.get_dipole_moment() - info["REF_dipole"])
    for quantity, parts in errors.items():
        flat = np.concatenate(parts)
        assert table[quantity]["rmse"] == pytest.approx(np.sqrt(np.mean(flat**2)), rel=1e-9)
        assert table[quantity]["mae"] == pytest.approx(np.mean(np.abs(flat)), rel=1e-9)


def test_eval_prints_a_table(few_frames: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(NACL), str(few_frames)]) == 0
    text = capsys.readouterr().out
    for row in ("all", "Q = -1", "Q = 0", "Q = 1", "with field", "without field"):
        assert any(line.startswith(row) for line in text.splitlines())


@pytest.fixture(scope="module")
def split_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Split charges trained on a few frames of the water example, and 9 of its test frames, one with Born charges."""
    folder = tmp_path_factory.mktemp("split")
    for name, every in (("train", 8), ("test", 20)):
        images = read(WATER / f"{name}.xyz", "::" + str(every), format="extxyz")
        for atoms in images:
            atoms.arrays["molecule"] = np.zeros(len(atoms), dtype=int)
        if name == "test":
            images[0].arrays["REF_born_charges"] = np.zeros((len(images[0]), 9))
        write(folder / f"{name}.xyz", images, format="extxyz")
    text = (WATER / "water.toml").read_text().replace("sparse_points = 400", "sparse_points = 25")
    text = text.replace(', "bulk_train.xyz"]', "]").replace(', "bulk_test.xyz"]', "]")
    (folder / "water.toml").write_text(text)
    assert main(["train", str(folder / "water.toml"), "-o", str(folder / "water.kqeq")]) == 0
    return folder


def table_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["eval", *arguments, "--json"]) == 0
    table: dict[str, Any] = json.loads(capsys.readouterr().out)
    return table


def test_eval_of_split_charges(split_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Residual, polarizabilities and Born charges against what the core says of the same frames."""
    model, data = str(split_model / "water.kqeq"), str(split_model / "test.xyz")
    table = table_of([model, data, "--response"], capsys)
    potential, images = Potential(model), read(data, ":", format="extxyz")
    structures = [structure_from_atoms(a, a.info["total_charge"], a.info["electric_field"]) for a in images]
    residuals = [potential.compute(s, want=()).reference_residual for s in structures]
    assert table["reference_charge_residual"] == pytest.approx(np.sqrt(np.mean(np.square(residuals))), rel=1e-9)
    answers = [response(potential, s) for s in structures]
    labels = [np.reshape(atoms.info["REF_polarizability"], (3, 3)) for atoms in images]
    off = [answer.polarizability - label for answer, label in zip(answers, labels, strict=True)]
    assert table["polarizability"]["rmse"] == pytest.approx(np.sqrt(np.mean(np.square(off))), rel=1e-9)
    mean = np.mean([np.trace(a.polarizability) for a in answers]) / 3
    assert table["mean_polarizability"] == pytest.approx(mean, rel=1e-9)
    assert table["mean_polarizability_volume"] == pytest.approx(14.399645 * mean, rel=1e-6)
    assert table["born_charges"]["mae"] == pytest.approx(np.abs(answers[0].born_charges).mean(), rel=1e-9)
    assert table["by_total_charge"]["-1"].keys() >= {"polarizability", "charges"}


def test_eval_with_another_charge_model(split_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One fragment that holds everything is plain charge equilibration; of them no reference charges are told."""
    model, data = str(split_model / "water.kqeq"), str(split_model / "test.xyz")
    plain = table_of([model, data, "--charges", "qeq"], capsys)
    assert "reference_charge_residual" not in plain
    assert "mean_polarizability" not in plain
    whole = table_of([model, data, "--charges", "fragments", "--fragments", "molecule"], capsys)
    for quantity in ("energy_per_atom", "charges", "polarizability"):
        assert whole[quantity]["rmse"] == pytest.approx(plain[quantity]["rmse"], rel=1e-8)
    assert plain["charges"]["rmse"] > 2 * table_of([model, data], capsys)["charges"]["rmse"]


def test_eval_finds_fragments_in_each_frame(split_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same elements in the same order, but other atoms are bonded."""
    images = read(WATER / "test.xyz", ":", format="extxyz")
    first = next(atoms for atoms in images if atoms.get_chemical_symbols() == 2 * ["O", "H", "H"])
    first.positions[:3] += 8.0
    frames = [first, first[[0, 4, 2, 3, 1, 5]]]
    write(split_model / "mixed.xyz", frames, format="extxyz")
    model, data = str(split_model / "water.kqeq"), str(split_model / "mixed.xyz")
    table = table_of([model, data, "--charges", "fragments", "--fragments", "connectivity"], capsys)
    alone = []
    for atoms in frames:
        potential = Potential(model, charges="fragments")
        structure = structure_from_atoms(atoms, 0.0, atoms.info["electric_field"])
        alone.append(potential.compute(structure).charges - atoms.arrays["REF_charges"])
    assert table["charges"]["rmse"] == pytest.approx(np.sqrt(np.mean(np.square(alone))), rel=1e-9)


def test_info_names_what_the_model_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(NACL)]) == 0
    text = capsys.readouterr().out
    assert "Na, Cl" in text
    assert "sparse points, low rank" in text
    assert "low rank          forces change by" in text
    assert main(["info", str(NACL), "--json"]) == 0
    header = json.loads(capsys.readouterr().out)
    assert header["species"] == ["Na", "Cl"]
    assert header["units"]["energy"] == "eV"
    assert header["training"]["level_determined"] is True


def test_check_passes_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(NACL)]) == 0
    assert "as trained" in capsys.readouterr().out
    model = load_model(NACL)
    bent = {**model.reference, "energy": model.reference["energy"] + 1e-3}
    save_model(type(model)(**{**vars(model), "reference": bent}), tmp_path / "bent.kqeq")
    assert main(["check", str(tmp_path / "bent.kqeq"), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is False
    assert report["deviations"]["energy_per_atom"] == pytest.approx(1e-3 / len(model.reference["numbers"]), rel=1e-3)


@pytest.mark.parametrize(
    ("command", "record", "bad"),
    [
        ("info", "training", {"errors": {"train": 3}}),
        ("info", "training", {"errors": {"train": {"forces": {"rmse": "small"}, "n_frames": 1}}}),
        ("info", "training", {"imported": "a GAP"}),
        ("info", "training", {"low_rank_force_error": "none"}),
        ("info", "training", {"extrapolation": {"threshold": 2.0, "charges": {}, "charge_per_atom": [0.0, 0.0]}}),
        ("info", "training", {"low_rank_force_error": 10**400}),
        ("eval", "training", {"config": 7}),
        ("check", "reference", {"forces": [0.0, 1.0]}),
        ("check", "reference", {"energy": "low"}),
    ],
)
def test_records_that_others_have_changed(
    command: str, record: str, bad: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model(NACL)
    changed = bad if record == "training" else {**model.reference, **bad}
    save_model(replace(model, **{record: changed}), tmp_path / "m.kqeq")
    assert main([command, str(tmp_path / "m.kqeq"), *([str(DATA / "test.xyz")] if command == "eval" else [])]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"kqeq: error: `{record}` of the model cannot be understood: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"keys": {"energi": "E"}}, "unknown key `training.config.data.keys.energi`; did you mean `energy`?"),
        ({"units": {"length": []}}, "`training.config.data.units.length` must be a string, got []"),
        ({"field_term": "false"}, "`training.config.data.field_term` must be true or false, got 'false'"),
    ],
)
def test_eval_reads_data_as_the_model_was_trained(
    data: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(replace(load_model(NACL), training={"config": {"data": data}}), tmp_path / "m.kqeq")
    assert main(["eval", str(tmp_path / "m.kqeq"), str(DATA / "test.xyz")]) == 2
    assert capsys.readouterr().err == f"kqeq: error: {message}\n"


def test_eval_doubts_units(few_frames: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frames = read(few_frames, ":", format="extxyz")
    for atoms in frames:
        atoms.positions /= Bohr
    write(tmp_path / "bohr.xyz", frames, format="extxyz")
    assert main(["eval", str(NACL), str(few_frames)]) == 0
    assert "positions look like" not in caplog.text
    assert main(["eval", str(NACL), str(tmp_path / "bohr.xyz")]) == 0
    assert "positions look like bohr" in caplog.text


def test_train_command_writes_a_model_that_eval_reads(
    few_frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = (
        "[data]\ntrain = 'few.xyz'\n[descriptor]\ncutoff = 4.0\nn_max = 3\nl_max = 2\n[kernel]\nsparse_points = 8\n"
    )
    shutil.copy(few_frames, tmp_path / "few.xyz")
    (tmp_path / "c.toml").write_text(config + "[fit]\nrounds = 0\n")
    assert main(["train", str(tmp_path / "c.toml"), "-o", str(tmp_path / "m.kqeq")]) == 0
    assert "same short range without charges" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "m.kqeq")]) == 0
    assert main(["eval", str(tmp_path / "m.kqeq"), str(few_frames), "--json"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "gone.kqeq"], "model file gone.kqeq does not exist"),
        (["check", "text.kqeq"], "model file text.kqeq is not a .kqeq model, or is truncated"),
        (["eval", str(NACL), "gone.xyz"], "data file gone.xyz does not exist"),
        (["eval", str(NACL), "text.kqeq"], "is no extended XYZ"),
        (["eval", str(NACL), str(DATA / "test.xyz"), "--charges", "eem"], "`charges` must be qeq, fragments, split"),
        (["eval", str(NACL), str(DATA / "test.xyz"), "--fragments", "mol"], "frame 0: `fragments` must name an array"),
        (["eval", str(NACL), str(DATA / "test.xyz"), "--fragments", "connectivity"], "`fragments` need charges="),
        (["train", "gone.toml", "-o", "m.kqeq"], "configuration gone.toml does not exist"),
        (["train", "good.toml", "-o", "no/such/folder/m.kqeq"], "`--output` must lie in a folder that exists"),
        (["train", "good.toml", "-o", "."], "`--output` must be a file that can be written"),
        (["demo", "-o", "text.kqeq"], "`--output` must be a folder that can be written"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.kqeq").write_text("hello\n")
    Path("good.toml").write_text("[data]\ntrain = 'few.xyz'\n")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("kqeq: error: ")
    assert error.count("\n") == 1


def test_the_installed_command_runs() -> None:
    done = subprocess.run(
        [f"{sysconfig.get_path('scripts')}/kqeq", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("kqeq_md ")


def test_shipped_model_separates_charge_states() -> None:
    """GFN2 energies of one 32-atom composition at Q = -1, 0, +1 in the test and training sets: the level is right."""
    potential = Potential(NACL)
    errors = []
    for atoms in [*read(DATA / "train.xyz", ":", format="extxyz"), *read(DATA / "test.xyz", ":", format="extxyz")]:
        if len(atoms) == 32 and atoms.info["total_charge"] != 0:
            structure = structure_from_atoms(atoms, atoms.info["total_charge"], atoms.info["electric_field"])
            errors.append((potential.compute(structure).energy - atoms.info["REF_energy"]) / 32)
    assert len(errors) >= 4
    assert np.abs(errors).max() < 0.05  # eV per atom; a level wrong by 2 eV would cost 0.06


def test_eval_of_responses_needs_no_labels(
    nacl_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bare.xyz").write_text('2\nProperties=species:S:1:pos:R:3 pbc="F F F"\nNa 0 0 0\nCl 0 0 2.5\n')
    assert main(["eval", str(nacl_model), str(tmp_path / "bare.xyz"), "--response", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mean_polarizability"] > 0.0
    assert main(["eval", str(nacl_model), str(tmp_path / "bare.xyz")]) == 2
    assert "has a label named REF_energy" in capsys.readouterr().err


def test_a_reader_that_left_is_no_error(nacl_model: Path) -> None:
    """`kqeq info MODEL --json | head -1`: what nobody reads is not written."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    run = subprocess.run(
        [str(Path(sysconfig.get_path("scripts")) / "kqeq"), "info", str(nacl_model), "--json"],
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write_end)
    assert run.stderr == ""
    assert run.returncode == 141


def test_models_prints_the_file_of_a_shipped_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "water"]) == 0
    assert Path(capsys.readouterr().out.rstrip("\n")) == SHIPPED["water"]
    assert main(["models"]) == 0
    assert capsys.readouterr().out.split()[1::2] == [str(path) for path in SHIPPED.values()]
    assert all(path.is_file() for path in SHIPPED.values())
    assert main(["models", "argon"]) == 2
    assert "`NAME` must be one of nacl, nacl_split, water, water_qeq, got 'argon'" in capsys.readouterr().err
