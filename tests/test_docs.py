"""The pages: the site is built without a warning, what a reader copies from them runs, and what they quote is true."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from ase.io import read, write

from kqeq_md.machine.programs import environment, lammps_command
from kqeq_md.models import SHIPPED
from kqeq_md.train.config import read_config

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (
        ROOT / "README.md",
        ROOT / "lammps_plugin" / "pair_kqeq.md",
        *(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts),
        *EXAMPLES.rglob("README.md"),
    )
)

BLOCK = re.compile(r"(?:^<!-- ([^\n]*) -->\n)?^```(\w+)\n(.*?)^```$", re.M | re.S)
"""A mark above a block, its language, its text."""


def blocks(page: str) -> list[tuple[str, str, str]]:
    return BLOCK.findall((ROOT / page).read_text())


# ---------------------------------------------------------------- the site


def test_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", str(tmp_path / "doctrees")]
    folders = [str(ROOT / "docs"), str(tmp_path / "site")]
    done = subprocess.run([*command, *folders], cwd=tmp_path, capture_output=True, text=True)  # not ROOT: its kqeq_md
    assert done.returncode == 0, done.stderr[-3000:]
    concepts = (tmp_path / "site" / "concepts.html").read_text()
    assert concepts.count("<math ") > 20  # equations need no network
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?:', concepts)
    gallery = (tmp_path / "site" / "gallery.html").read_text()
    for readme in EXAMPLES.glob("*/README.md"):
        assert f'id="example-{readme.parent.name.replace("_", "-")}"' in gallery
        if (readme.parent / f"{readme.parent.name}.png").exists():
            assert f"_images/{readme.parent.name}.png" in gallery


def headings(page: Path) -> set[str]:
    """Anchors of a page as git hosts make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    words = (re.sub(r"[^\w\- ]", "", title.lower()).strip() for title in re.findall(r"^#+ (.*)$", text, re.M))
    return {word.replace(" ", "-") for word in words} | set(re.findall(r"^\((\S+)\)=$", text, re.M))


@pytest.mark.parametrize("page", PAGES)
def test_links_exist(page: str) -> None:
    """Files and headings inside the repository."""
    path = ROOT / page
    included = re.findall(r"^```\{include\} (\S+)", path.read_text(), re.M)
    here = headings(path).union(*(headings(path.parent / name) for name in included))
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", path.read_text()):
        file = path.parent / target
        assert file.exists(), target
        if anchor:
            assert anchor in (headings(file) if target else here), f"{target}#{anchor}"


# ---------------------------------------------------------------- what pages show


@pytest.mark.parametrize("page", PAGES)
def test_pages_show_the_files_as_they_are(page: str) -> None:
    for mark, _, text in blocks(page):
        if mark.startswith("file "):
            assert text == (ROOT / mark.removeprefix("file ")).read_text(), mark


@cache
def messages() -> list[tuple[list[str], re.Pattern[str]]]:
    """All texts of the package: what is constant in each, and what it looks like with its values, whatever they are."""
    found = []
    for folder in ("kqeq_md", "ipi_driver", "lammps_plugin"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [str(part.value) if isinstance(part, ast.Constant) else "" for part in node.values]
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    parts = re.split(r"%[-+]?[\d.]*[sdfgr]()", node.value)
                else:
                    continue
                known = [part for part in parts if part]
                if sum(map(len, known)) > 15:
                    found.append((known, re.compile("".join(re.escape(part) if part else ".+" for part in parts))))
    return found


def said_by_the_package(line: str) -> bool:
    """Whether a text of the package, or two joined by a colon, can become this line."""
    patterns = [pattern for known, pattern in messages() if all(part in line for part in known)]
    ends = [found.end() for pattern in patterns if (found := pattern.match(line))]
    rest = line[max(ends, default=0) :].removeprefix(": ")
    return bool(ends) and (not rest or any(pattern.fullmatch(rest) for pattern in patterns))


@pytest.mark.parametrize("page", PAGES)
def test_messages_are_the_packages(page: str) -> None:
    """Blocks marked `message`: they stand in the code, but for the values."""
    for mark, _, text in blocks(page):
        assert mark != "message" or said_by_the_package(text.rstrip("\n")), text


@pytest.mark.parametrize("page", [page for page in PAGES if "```toml\n" in (ROOT / page).read_text()])
def test_configurations_are_read(page: str, tmp_path: Path) -> None:
    (tmp_path / "bulk").mkdir()
    names = re.findall(r'"([\w/]+\.xyz)"', (ROOT / page).read_text())
    for name in (*names, "bulk/melt.xyz"):
        (tmp_path / name).touch()
    for number, (_, language, text) in enumerate(blocks(page)):
        if language == "toml":
            config = tmp_path / f"{number}.toml"
            config.write_text(text if "[data]" in text else f'{text}\n[data]\ntrain = "any.xyz"\n')
            (tmp_path / "any.xyz").touch()
            read_config(config)


# ---------------------------------------------------------------- what pages run

MOLECULES = {
    "Na Cl": "create_atoms 1 single 0 0 0\ncreate_atoms 2 single 0 0 2.4",
    "Na Cl NULL": "create_atoms 1 single 0 0 0\ncreate_atoms 2 single 0 0 2.4\ncreate_atoms 3 single 0 5 0",
    "O H": "create_atoms 1 single 0 0 0\ncreate_atoms 2 single 0 0.76 0.59\ncreate_atoms 2 single 0 -0.76 0.59",
}
"""A molecule for a fragment of a LAMMPS script, by the elements of its `pair_coeff`."""

STYLE = "pair_style kqeq\npair_coeff * * nacl.kqeq Na Cl\n"

RUNNER = """
import json, subprocess, sys

names = {"__name__": "__main__"}
with open("blocks.json") as file:
    blocks = json.load(file)
for kind, place, text in blocks:
    print("====", place, flush=True)
    if kind == "python":
        exec(compile(text, place, "exec"), names)
    else:
        subprocess.run(["bash", "-euo", "pipefail", "-c", text], check=True)
"""
"""Python in one namespace and commands of a page, in their order."""


def lammps_of(text: str, whole: bool) -> str:
    """A script, or each paragraph of a fragment of one with atoms and a pair style."""
    if whole:
        return text
    scripts = []
    for part in text.strip().split("\n\n"):
        settings = part if "pair_style" in part else STYLE + part
        elements = re.search(r"\.kqeq((?: \w+)+)", settings)
        assert elements is not None, part
        names = elements[1].strip()
        masses = "\n".join(f"mass {number + 1} 20.0" for number in range(len(names.split())))
        scripts.append(
            "clear\nunits metal\natom_style full\nboundary f f f\nregion box block -20 20 -20 20 -20 20\n"
            f"create_box {len(names.split())} box\n{MOLECULES[names]}\nset group all mol 1\n{masses}\n"
            f"{settings}\nrun 4\n"
        )
    return "".join(scripts)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what pages name: models, what `kqeq demo` leaves, labelled frames, a trajectory, a GAP."""
    folder = tmp_path_factory.mktemp("bench")
    for name, path in SHIPPED.items():
        shutil.copy(path, folder / f"{name}.kqeq")
    for path in (*(EXAMPLES / "lammps").glob("in.*"), EXAMPLES / "ipi" / "input.xml", EXAMPLES / "ipi" / "init.xyz"):
        shutil.copy(path, folder)
    frames = [atoms for atoms in read(EXAMPLES / "train_nacl" / "train.xyz", ":") if len(atoms) <= 8]
    write(folder / "my.xyz", frames[:30], format="extxyz")
    write(folder / "test.xyz", frames[30:40], format="extxyz")
    write(folder / "trajectory.xyz", frames[40:60], format="extxyz")
    for path in (ROOT / "tests" / "data" / "gap").glob("nacl_soap_2b.xml*"):
        shutil.copy(path, folder)
    (folder / "nacl_soap_2b.xml").rename(folder / "GAP.xml")
    (folder / "my.toml").write_text('[data]\ntrain = "my.xyz"\n')
    return folder


def runs(page: str) -> list[tuple[str, str, str]]:
    """What is run of a page: its language, what to call it, its text. Files have tests of their own."""
    found = []
    for number, (mark, language, text) in enumerate(blocks(page)):
        place = f"{page}, block {number}"
        if mark.startswith(("file ", "not run: ", "command ")) or re.search(r"^\s*pip install", text, re.M):
            continue
        if language in ("python", "sh"):
            found.append((language, place, text))
        elif language == "lammps":
            found.append(("lammps", place, lammps_of(text, mark != "fragment")))
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if runs(page)])
def test_blocks_of_the_page_run(page: str, bench: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(bench, folder)
    todo = []
    for number, (language, place, text) in enumerate(runs(page)):
        if language == "lammps":
            (folder / f"in.{number}").write_text(text)
            todo.append(("sh", place, f"{lammps_command()} -in in.{number} -log {number}.log"))
        else:
            todo.append((language, place, text))
    (folder / "blocks.json").write_text(json.dumps(todo))
    settings = {**environment(), "MPLBACKEND": "Agg", "PYTHONWARNINGS": "error"}
    settings["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{settings['PATH']}"
    done = subprocess.run(
        [sys.executable, "-c", RUNNER], cwd=folder, env=settings, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
