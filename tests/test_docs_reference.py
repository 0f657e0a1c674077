"""The reference pages of the site say what the code does: commands, their JSON, configuration, model file."""

from __future__ import annotations

import ast
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import ase.io
import numpy as np
import pytest

import kqeq_md
from kqeq_md.cli import main
from kqeq_md.gap_import import import_gap
from kqeq_md.machine.threads import CORES, RANKS, THREADS
from kqeq_md.model import load_model, model_header
from kqeq_md.models import SHIPPED
from kqeq_md.structure import Structure
from kqeq_md.train.config import Config, Data, read_config
from kqeq_md.train.data import read_set
from kqeq_md.train.report import evaluate
from kqeq_md.train.report.content import ReportInput
from kqeq_md.train.report.folder import write_report
from kqeq_md.train.tune.record import Trial
from kqeq_md.train.tune.search import Tuned, as_json

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
TEST = ROOT / "examples" / "train_nacl" / "test.xyz"


@pytest.fixture(scope="module")
def extensions() -> Iterator[tuple[Any, Any, Any]]:
    """The modules of docs/_extensions."""
    sys.path.insert(0, str(DOCS / "_extensions"))
    import commands
    import configuration
    import docstrings

    yield commands, configuration, docstrings
    sys.path.remove(str(DOCS / "_extensions"))


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def part(text: str, heading: str) -> str:
    """What stands below a heading."""
    return re.split(r"^#+ ", text.split(f"\n{heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def first_cells(text: str) -> set[str]:
    """Words in backticks in the first column of the tables."""
    rows = [re.split(r"(?<!\\)\|", line)[1] for line in text.splitlines() if line.startswith("| `")]
    return {word for cell in rows for word in re.findall(r"`([^`]+)`", cell)}


# ---------------------------------------------------------------- commands


def test_every_command_and_option_is_on_the_page(extensions: tuple[Any, Any, Any]) -> None:
    commands, text = extensions[0], page("commands.md")
    known = dict(commands.parsers())
    assert set(commands.MARK.findall(text)) == set(known)
    assert {"kqeq train", "kqeq-ipi", "kqeq-mdi"} <= set(known)
    for name, parser in known.items():
        assert f"\n## {name}\n" in text
        table = first_cells(commands.options(name))
        for action in parser._actions:
            if action.dest != "help":
                shown = action.option_strings or [action.metavar]
                assert {word.split()[0] for word in table} >= set(shown), name
    assert "required" in commands.options("kqeq-ipi")


def test_every_variable_is_on_the_page() -> None:
    """Variables that the sources read or set by name."""
    found = {*THREADS, *CORES, *RANKS, "NUMBA_CACHE_DIR", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"}
    for path in Path(kqeq_md.__file__).parent.rglob("*"):
        if path.suffix in (".py", ".cpp", ".h") and "examples" not in path.parts:
            found |= set(re.findall(r"(?:environ(?:\.get)?[\[(]|getenv\()\"(\w+)\"", path.read_text(encoding="utf-8")))
    assert {"XDG_CACHE_HOME", "CXX", "KQEQ_PYTHON"} <= found
    told = first_cells(part(page("commands.md"), "## Environment variables"))
    assert told == {*found, "KQEQ_TEST_DATA"}


def told_keys(command: str) -> set[str]:
    text = part(page("commands.md"), f"## {command}")
    return first_cells(text[text.index("| key |") :])


def found_keys(content: dict[str, Any]) -> set[str]:
    """Keys, and `key[].name` of lists of tables."""
    out = set()
    for key, value in content.items():
        tables = [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
        out |= {f"{key}[].{name}" for item in tables for name in item} if key in LISTED and tables else {key}
    return out


LISTED = ("trials", "picked", "peaks", "trajectories")


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_keys_of_eval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An open frame with all its labels, as the command reads it; a periodic one in another group."""
    atoms, path = ase.io.read(TEST, 0), tmp_path / "labelled.xyz"
    atoms.info["REF_polarizability"] = np.eye(3)
    atoms.arrays["REF_born_charges"] = np.zeros((len(atoms), 9))
    ase.io.write(path, atoms)
    found = printed(["eval", str(SHIPPED["nacl_split"]), str(path), "--response"], capsys)
    (frame,) = read_set(Data([str(path)]))
    periodic = Structure(frame.structure.numbers, frame.structure.positions, 20.0 * np.eye(3), True)
    solid = replace(frame, structure=periodic, polarizability=None, born_charges=None, stress=np.eye(3), group="solid")
    found |= evaluate(load_model(SHIPPED["nacl"]), [frame, solid], lambda items, _: items)
    assert found_keys(found) == told_keys("kqeq eval")


def test_keys_of_check_select_and_diagnose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(SHIPPED["nacl"])
    assert found_keys(printed(["check", model], capsys)) == told_keys("kqeq check")
    assert found_keys(printed(["diagnose", model], capsys)) == told_keys("kqeq diagnose")
    crowd = ase.Atoms("Na27", 3.6 * np.array(list(np.ndindex(3, 3, 3))))  # no training frame is a metal
    ase.io.write(tmp_path / "metal.xyz", crowd)
    select = ["select", model, str(tmp_path / "metal.xyz"), "-n", "1", "-o", str(tmp_path / "picked.xyz")]
    assert found_keys(printed(select, capsys)) == told_keys("kqeq select")


def test_keys_of_ir(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    t = np.arange(12_000) * 0.5  # fs
    np.savetxt(tmp_path / "dipole.txt", np.cos(0.3 * t)[:, None] * [1.0, 0.0, 0.0])
    found = found_keys(printed(["ir", str(tmp_path / "dipole.txt"), "--timestep", "0.5"], capsys))
    assert found == told_keys("kqeq ir")


def test_keys_of_tune() -> None:
    content = as_json(Tuned({}, {}, [Trial(0, {}, 1.0)], "time"))
    assert found_keys(content) == told_keys("kqeq tune")


def test_keys_of_train(tmp_path: Path) -> None:
    model = load_model(SHIPPED["nacl"])
    given = ReportInput(
        model,
        "model",
        {"test": read_set(Data([str(TEST)]))[:2]},
        calibration=model.training["extrapolation"],
        history=model.training["history"],
        learning_curve={"seed": 0, "measured_on": "the test set", "n_measured": 2, "points": []},
    )
    content = write_report(tmp_path / "report", given, lambda items, _: items)
    assert set(content) == told_keys("kqeq train")


# ---------------------------------------------------------------- configuration


def settings() -> Iterator[tuple[str, type]]:
    """Tables of the configuration with the classes that read them."""
    todo: list[tuple[str, Any]] = [("", Config)]
    while todo:
        name, kind = todo.pop()
        yield name, kind
        for key, hint in get_type_hints(kind).items():
            inner = next((x for x in (hint, *get_args(hint)) if is_dataclass(x)), None)
            if inner is not None:
                todo.append((f"{name}.{key}".lstrip("."), inner))


def test_every_table_of_the_configuration_is_on_the_page(extensions: tuple[Any, Any, Any]) -> None:
    configuration, text = extensions[1], page("configuration.md")
    expected = {f"{kind.__module__}.{kind.__qualname__}" for _, kind in settings()} | {"[tune]"}
    assert set(configuration.MARK.findall(text)) == expected
    for name, kind in settings():
        assert not name or re.search(rf"^##+ {name}$", text, re.MULTILINE)
        table = configuration.keys(f"{kind.__module__}.{kind.__qualname__}")
        assert first_cells(table) >= {entry.name for entry in fields(kind)}  # a key without a meaning is an error
    assert "| `sigma_forces` | float | `0.05` | of components of forces, eV/Angstrom. |" in configuration.keys(
        "kqeq_md.train.config.Fit"
    )


def test_complete_configuration_is_read_and_has_every_key(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", page("configuration.md"), re.DOTALL)
    (tmp_path / "all.toml").write_text(example)
    (tmp_path / "bulk").mkdir()
    (tmp_path / "bulk" / "a.xyz").touch()
    config = read_config(tmp_path / "all.toml")
    assert config.charges.model == "split"
    assert config.tune == {"cutoff": [5.0, 6.0], "zeta": []}
    tables = re.split(r"^\[+([\w.]+)\]+$", example, flags=re.MULTILINE)
    given: dict[str, set[str]] = {"": set(re.findall(r"^(\w+) =", tables[0], re.MULTILINE))}
    for name, lines in zip(tables[1::2], tables[2::2], strict=True):
        given.setdefault(name, set()).update(re.findall(r"^(\w+) =", lines, re.MULTILINE))
    for name, kind in settings():
        inner = {key.rpartition(".")[2] for key in (*given, "tune") if key.rpartition(".")[0] == name}
        assert given.get(name, set()) | inner >= {entry.name for entry in fields(kind)}, name


# ---------------------------------------------------------------- model file


def records(name: str) -> tuple[dict[str, Any], list[str]]:
    with zipfile.ZipFile(SHIPPED[name]) as archive:
        return json.loads(archive.read("header.json")), archive.namelist()


@pytest.mark.parametrize("name", SHIPPED)
def test_every_record_of_a_model_is_on_the_page(name: str) -> None:
    text, (header, files) = page("model_file.md"), records(name)
    named = set(re.findall(r"`(\w+(?:\.npy)?)`", text))
    assert first_cells(part(text, "## Header")) == set(header)
    assert first_cells(part(text, "### training")) == set(header["training"])
    assert first_cells(part(text, "### reference")) == set(header["reference"])
    (term,) = header["terms"]
    for table in (header["units"], term, term["soap"], header["fragment"], header["training"]["extrapolation"]):
        assert named >= set(table)
    known = {f.replace("_El", f"_{symbol}") for f in named for symbol in header["species"] if f.endswith(".npy")}
    assert set(files) <= known | {"header.json", "SHA256SUMS"}


def test_arrays_of_imported_models_are_on_the_page() -> None:
    model = import_gap(Path(__file__).parent / "data" / "gap" / "water_2b.xml")
    text = page("model_file.md")
    assert set(re.findall(r"`(\w+)`", text)) >= set(model.training) | set(model_header(model)["pair_terms"][0])
    assert {"pair_points_I.npy", "pair_weights_I.npy"} <= first_cells(part(text, "## Arrays"))


def test_snippet_needs_numpy_alone() -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", page("model_file.md"), re.DOTALL)
    tree = ast.parse(snippet)
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert names == {"io", "json", "zipfile", "numpy"}


# ---------------------------------------------------------------- developers

FILES = re.compile(r"`((?:kqeq_md|ipi_driver|lammps_plugin|tests|docs|examples)/[\w/.-]+\.\w+)`")


@pytest.mark.parametrize("name", ["architecture", "extending", "release"])
def test_files_that_developers_are_sent_to_exist(name: str) -> None:
    named = [path for path in FILES.findall(page(f"developer/{name}.md")) if "NAME" not in path]
    assert [path for path in named if not (ROOT / path).exists()] == []


def sources(words: set[str], attributes: set[str]) -> set[str]:
    """Files of the package in which one of these texts, names or attributes stands."""
    found = set()
    for folder in ("kqeq_md", "ipi_driver", "lammps_plugin"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if (
                    (isinstance(node, ast.Constant) and node.value in words)
                    or (isinstance(node, ast.Name) and node.id in words)
                    or (isinstance(node, ast.Attribute) and node.attr in attributes)
                ):
                    found.add(str(path.relative_to(ROOT)))
    return found


def test_every_place_of_a_charge_model_is_on_the_page() -> None:
    text = page("developer/extending.md").split("\n## A charge model\n")[1]
    found = sources({"qeq", "split", "CHARGE_MODELS"}, {"bonds", "learned_reference", "learns_reference"})
    assert {"kqeq_md/charges/equilibrate.py", "kqeq_md/potential.py"} <= found
    assert found - set(FILES.findall(text)) == set()


def test_every_place_of_the_descriptor_is_on_the_page() -> None:
    text = page("developer/extending.md").split("\n## A descriptor\n")[1].split("\n## A charge model\n")[0]
    found = sources({"SoapParameters", "Descriptor", "SoapTerm"}, {"descriptor", "spectrum"})
    assert {"kqeq_md/local_part.py", "kqeq_md/model.py"} <= found
    assert found - set(FILES.findall(text)) == set()


# ---------------------------------------------------------------- docstrings


def test_docstrings_keep_their_equations(extensions: tuple[Any, Any, Any]) -> None:
    lines = ["The norm |x|.", "", "    |x| = sqrt(x . x)", "", "Args:", "    x: e.", "", "        more."]
    assert extensions[2].as_rst("function", lines) == [
        r"The norm \|x\|.", "", ".. code-block:: text", "", "    |x| = sqrt(x . x)", "", *lines[4:]
    ]  # fmt: skip
    assert extensions[2].as_rst("data", ["Of a vector: bonds."]) == [": Of a vector: bonds."]
