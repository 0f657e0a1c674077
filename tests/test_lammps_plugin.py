"""The plugin's two ends: the table of functions that C++ calls, and `kqeq-lmp`, which must do what `lmp` does."""

from __future__ import annotations

import ctypes
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kqeq_md.errors import StructureError
from kqeq_md.lammps_plugin import build, pair
from kqeq_md.machine.programs import environment, libpython, program


def call_guarded(error: BaseException) -> tuple[int, str]:
    """What C++ gets when an action of the pair style raises."""

    def action(_: pair.Call) -> None:
        raise error

    call = pair.Call()
    return pair._guarded(action)(ctypes.pointer(call)), call.message.decode()


def test_errors_of_users_come_without_a_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    assert call_guarded(StructureError("too close")) == (1, "too close")
    assert capfd.readouterr().err == ""


def test_unexpected_errors_come_with_a_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    assert call_guarded(ZeroDivisionError("oops")) == (1, "ZeroDivisionError: oops")
    assert "Traceback" in capfd.readouterr().err


def test_table_refuses_another_layout() -> None:
    with pytest.raises(RuntimeError, match="`size` of KqeqCall must be"):
        pair.attach(0, 1)


def test_start_of_lmp_stays_light(tmp_path: Path) -> None:
    """`lmp` imports the launcher at each start: no numpy, numba or ase on the way."""
    heavy = "sorted({'numpy', 'numba', 'ase'} & set(sys.modules))"
    check = f"import sys, kqeq_md.lammps_plugin.launcher; sys.exit({heavy} or 0)"
    assert subprocess.run([sys.executable, "-c", check], cwd=tmp_path).returncode == 0


# --- kqeq-lmp

needs_lmp = pytest.mark.skipif(libpython() is None, reason="`lmp` needs a shared libpython")

MELT = """units lj
lattice fcc 0.8442
region box block 0 3 0 3 0 3
create_box 1 box
create_atoms 1 box
mass 1 1
velocity all create 1.44 87287
pair_style lj/cut 2.5
pair_coeff 1 1 1 1 2.5
fix 1 all nve
run 10
"""
SCRIPTS = {
    "in.melt": MELT,
    "in.bad": "units metal\nnonsense\nprint 'not reached'\n",
    "in.quit": f"{MELT}quit 3\n",
    "in.one": f"{MELT}read_data absent.data add append\n",
    "in.variables": "print '${a} ${b}'\nnext a\nprint ${a}\n",
    "in.worlds": "variable u universe 1 2\nprint 'world ${u}'\n",
    "in.world": "variable u universe 1 2\nif '${u} == 2' then nonsense\nprint 'world ${u}'\n",
    "-in": "print 'a script whose name is an option'\n",
}
"""`in.one` fails on one rank alone: the first, which opens the file."""

COMMAND_LINES = {
    "-i in.melt -log a.log -screen a.screen": 0,
    "-l none -sc none -nocite -nonbuf -skiprun -in in.melt": 0,
    "-in in.melt -suffix opt -package omp 1 -echo both -cite none": 0,
    "-var b -in -v a one two -in in.variables": 0,
    "-in -in": 0,
    "-mpicolor 1 -in in.quit": 3,
    "-mdi x -in in.melt": 1,
    "-help": 0,
    "-restart2data absent.restart absent.data": 1,
    "-in in.melt -nonsense": 1,
    "-in in.bad": 1,
    "-in absent": 1,
    "-in": 1,
    "in.melt": 1,
}
"""And the exit codes of `lmp`."""

COMMAND_LINES_OF_TWO = {
    "-in in.melt -reorder nth 2": 0,
    "-in in.worlds -partition 2x1 -plog world -pscreen none": 0,
    "-in in.bad": 1,
    "-in in.quit": 3,
}
ABORTED = ("-p 1 1 -in in.world", "-in in.one")
"""One of two ranks fails, and ends the other; how far that one came is chance."""

STANDARD_INPUT = {
    "": (MELT, 0),
    "-in none -log none": (f"{MELT}quit 4\n", 4),
    "-e screen": (SCRIPTS["in.bad"], 1),
}


class Said:
    """What a program has left: exit code, output, and files."""

    def __init__(self, answer: subprocess.CompletedProcess[str], folder: Path) -> None:
        self.code = answer.returncode
        files = {path.name: path.read_text() for path in folder.iterdir()}
        texts = {"": answer.stdout, "errors": answer.stderr, **files}
        self.texts = {name: list(said(text)) for name, text in texts.items()}


TIMES = r"[Tt]ime|CPU|Performance|^(Pair|Neigh|Comm|Output|Modify|Other) |PID|RUNNING|timesteps/s"


def said(text: str) -> Iterator[str]:
    """Lines without times, the name of the program and the numbers of processes."""
    for line in text.splitlines():
        if not re.search(TIMES, line):
            yield re.sub(r"/\S*/(kqeq-)?lmp\b", "PROGRAM", line)


def start(name: str, line: str, folder: Path, ranks: int = 1, script: str = "") -> Said:
    """A program in a folder of its own, with all of `SCRIPTS`."""
    folder.mkdir()
    for file, text in SCRIPTS.items():
        (folder / file).write_text(text)
    command = [str(program(name)), *line.split()]
    if ranks > 1:
        command = [str(program("mpirun")), "-n", str(ranks), *command]
    answer = subprocess.run(
        command, cwd=folder, env=environment(), input=script, capture_output=True, text=True, timeout=60
    )
    return Said(answer, folder)


def assert_alike(line: str, code: int, folder: Path, ranks: int = 1, script: str = "") -> None:
    lmp, kqeq_lmp = (start(name, line, folder / name, ranks, script) for name in ("lmp", "kqeq-lmp"))
    assert lmp.code == kqeq_lmp.code == code
    assert lmp.texts == kqeq_lmp.texts


@needs_lmp
@pytest.mark.parametrize("line", COMMAND_LINES)
def test_kqeq_lmp_takes_the_options_of_lmp(line: str, tmp_path: Path) -> None:
    assert_alike(line, COMMAND_LINES[line], tmp_path)


@needs_lmp
@pytest.mark.parametrize("line", COMMAND_LINES_OF_TWO)
def test_kqeq_lmp_on_two_ranks(line: str, tmp_path: Path) -> None:
    assert_alike(line, COMMAND_LINES_OF_TWO[line], tmp_path, ranks=2)


@needs_lmp
@pytest.mark.parametrize("line", ABORTED)
def test_kqeq_lmp_ends_all_ranks(line: str, tmp_path: Path) -> None:
    lmp, kqeq_lmp = (start(name, line, tmp_path / name, ranks=2) for name in ("lmp", "kqeq-lmp"))
    assert lmp.code == kqeq_lmp.code == 1
    errors = [{text for file in out.texts.values() for text in file if "ERROR" in text} for out in (lmp, kqeq_lmp)]
    assert errors[0] == errors[1]
    assert len(errors[0]) == 1


@needs_lmp
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("line", STANDARD_INPUT)
def test_kqeq_lmp_reads_standard_input_as_lmp_does(line: str, ranks: int, tmp_path: Path) -> None:
    script, code = STANDARD_INPUT[line]
    assert_alike(line, code, tmp_path, ranks, script)


@needs_lmp
def test_options_have_their_effect(tmp_path: Path) -> None:
    """What `lmp` and `kqeq-lmp` have in common, above, is not that they overlook the options."""
    out = start("kqeq-lmp", "-var b -in -v a one two -in in.variables -log a.log", tmp_path / "variables").texts
    assert [line for line in out["a.log"] if line.startswith(("one", "two"))] == ["one -in", "two"]
    assert "log.lammps" not in out
    out = start("kqeq-lmp", "-in in.worlds -p 2x1 -pl world -ps none", tmp_path / "worlds", ranks=2).texts
    assert [out[f"world.{w}"].count(f"world {w + 1}") for w in (0, 1)] == [1, 1]


def test_kqeq_lmp_without_a_plugin_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("CXX", "/no/such/compiler")
    out = start("kqeq-lmp", "-in in.melt", tmp_path / "run")
    assert out.code == 1
    assert len(out.texts["errors"]) == 1
    assert out.texts["errors"][0].startswith("kqeq-lmp: no C++ compiler: `/no/such/compiler` does not run; install g++")


def test_kqeq_lmp_with_the_plugin_of_another_lammps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its key is that of this LAMMPS: only the revision tells, and it tells before LAMMPS' classes are touched."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(build, "_identity", lambda _: "stable_1Jan2030 abc")
        build.built_plugin()
    out = start("kqeq-lmp", "-in in.melt", tmp_path / "run")
    assert out.code == 1
    (error,) = out.texts["errors"]
    assert re.search(r'^kqeq-lmp: .*plugin.so was built for LAMMPS "stable_1Jan2030 abc", this is ".*": remove', error)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGPIPE])
def test_signals_end_kqeq_lmp_as_they_end_lmp(number: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [program("kqeq-lmp"), "-log", "none"],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()  # LAMMPS is there, and waits for commands
    process.send_signal(number)
    assert process.wait(20) == -number
    process.stdin.close()
    process.stdout.close()
