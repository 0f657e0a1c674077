"""What commands print where: summaries, JSON, progress, colours; on terminals and in pipes."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import pty
import struct
import subprocess
import sysconfig
import termios
from pathlib import Path
from typing import Any

import pytest
from ase.io import read, write

from kqeq_md import __version__
from kqeq_md.cli import demo as demo_command
from kqeq_md.cli import main
from kqeq_md.gap_import import import_gap
from kqeq_md.machine.json_text import json_text
from kqeq_md.machine.quiet import saying_once
from kqeq_md.models import NACL, NACL_SPLIT, SHIPPED

KQEQ = f"{sysconfig.get_path('scripts')}/kqeq"
DATA = Path(__file__).parent.parent / "examples" / "train_nacl"
GAPS = Path(__file__).parent / "data" / "gap"
CONFIG = "[data]\ntrain = 'few.xyz'\n[descriptor]\ncutoff = 4.0\nn_max = 3\nl_max = 2\n[kernel]\nsparse_points = 8\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Some frames of the example, half of them in fields, and a configuration that takes a second."""
    write(tmp_path / "few.xyz", read(DATA / "test.xyz", "::6", format="extxyz"), format="extxyz")
    (tmp_path / "c.toml").write_text(f"{CONFIG}[fit]\nrounds = 0\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def on_terminal(command: list[str], **variables: str) -> tuple[str, str, int]:
    """stdout through a pipe, stderr as a terminal shows it, exit code."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    with subprocess.Popen(
        [KQEQ, *command], stdout=subprocess.PIPE, stderr=theirs, env={**environment, "TERM": "xterm", **variables}
    ) as run:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:  # the other end is closed
            pass
        os.close(ours)
        assert run.stdout is not None
        out = run.stdout.read().decode()
    return out, shown.decode(), run.returncode


# --- JSON


def test_json_has_no_nan() -> None:
    document = {
        "a": float("nan"),
        "b": [1.5, float("inf"), (None, -float("inf"))],
        "c": {"d": "NaN", "e": True, "f": 3},
    }
    assert json.loads(json_text(document)) == {
        "a": None, "b": [1.5, None, [None, None]], "c": {"d": "NaN", "e": True, "f": 3},
    }  # fmt: skip


def only_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    out = capsys.readouterr().out
    document: dict[str, Any] = json.loads(out, parse_constant=refuse)
    return document


def test_models_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    assert only_json(capsys) == {"models": {name: str(path) for name, path in SHIPPED.items()}}
    assert main(["models", "water", "--json"]) == 0
    assert only_json(capsys) == {"models": {"water": str(SHIPPED["water"])}}
    assert main(["models", "watr", "--json"]) == 2
    assert capsys.readouterr().err.endswith("got 'watr'; did you mean `water`?\n")


def test_import_gap_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = next(GAPS.glob("*.xml")), tmp_path / "gap.kqeq"
    assert main(["import-gap", str(source), "-o", str(target), "--json"]) == 0
    model = import_gap(source)
    assert only_json(capsys) == {
        "model": str(target), "species": list(model.species), "cutoff": model.cutoff, "low_rank_force_error": None,
    }  # fmt: skip
    assert main(["import-gap", str(source), "-o", str(target)]) == 0
    assert capsys.readouterr().out == f"wrote {target}\n"


def test_demo_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What the runs give is tested with the examples."""

    def short(folder: Path, say: Any) -> tuple[dict[str, Any], str]:
        say("lmp -in in.melt")
        return {"folder": str(folder)}, "it ran"

    monkeypatch.setattr("kqeq_md.demo.run_demo", short)
    for options, out in (([], "lmp -in in.melt\nit ran\n"), (["-q"], ""), (["--json"], '{\n "folder": "there"\n}\n')):
        assert main([demo_command.NAME, "-o", "there", *options]) == 0
        assert capsys.readouterr().out == out


def test_training_as_json_prints_nothing_else(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "c.toml", "-o", "m.kqeq", "--json", "-v"]) == 0
    assert only_json(capsys).keys() >= {"errors", "plots"}


# --- quiet and verbose


def test_quiet_keeps_warnings_and_results(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Warnings: of a field on several fragments, once, though fit, tables and report have potentials of their own."""
    assert main(["train", "c.toml", "-o", "m.kqeq", "-q"]) == 0
    out, error = capsys.readouterr()
    assert out == ""
    assert all(line.startswith("kqeq: warning: ") for line in error.splitlines())
    assert len(set(error.splitlines())) == len(error.splitlines())
    assert error.count("in a field: charge flows") <= 1
    assert main(["check", "m.kqeq", "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["-q", "info", "m.kqeq"]) == 0
    assert capsys.readouterr().out.startswith("m.kqeq: ")


def test_warnings_come_once(caplog: pytest.LogCaptureFixture) -> None:
    """Each potential warns for itself; findings, whose text is an argument, are different warnings."""
    log = logging.getLogger("kqeq_md")
    with saying_once():
        for number in (2, 3):
            log.warning("%d fragments", number)
            log.warning("%s", f"finding {number}")
    log.warning("%d fragments", 4)
    assert caplog.messages == ["2 fragments", "finding 2", "finding 3", "4 fragments"]


def test_verbose_tells_what_happens(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "c.toml", "-o", "m.kqeq", "-v"]) == 0
    lines = capsys.readouterr().err.splitlines()
    told = [line.removeprefix("kqeq: info: ") for line in lines if line.startswith("kqeq: info: ")]
    frames = len(read("few.xyz", ":"))
    assert told[0].endswith(f"few.xyz: {frames} frames")
    assert [line for line in told if line.startswith("wrote")] == ["wrote m.kqeq", "wrote m.report"]
    assert any(line.startswith("fitted in ") for line in told)
    assert told[-1].startswith("done in ")
    assert main(["info", "m.kqeq", "-vv"]) == 0
    assert f"kqeq: debug: kqeq_md {__version__}, Python " in capsys.readouterr().err
    assert main(["info", "m.kqeq"]) == 0
    assert capsys.readouterr().err == ""


# --- terminals and pipes


def test_progress_and_colours_on_terminals_alone(folder: Path) -> None:
    command = ["eval", str(NACL), "few.xyz", "--charges", "split", "--json"]
    out, shown, code = on_terminal(command)
    assert code == 0
    assert "n_frames" in json.loads(out)
    assert "%|" in shown
    warning = "\033[1;33mwarning:\033[0m"
    assert warning in shown
    assert shown.count('charges="split" for a model that was trained with "qeq"') == 1
    _, shown, _ = on_terminal(command, NO_COLOR="1")
    assert "%|" in shown
    assert "kqeq: warning: " in shown
    assert "\033[1" not in shown
    _, shown, _ = on_terminal(command, TERM="dumb")
    assert "\033" not in shown
    assert "%|" not in shown
    _, shown, _ = on_terminal([*command, "-q"])
    assert warning in shown
    assert "%|" not in shown
    piped = subprocess.run([KQEQ, *command], capture_output=True, text=True, check=True)
    assert piped.stdout == out
    assert piped.stderr.startswith("kqeq: warning: ")
    assert piped.stderr.count("\n") == 1
    assert "\r" not in piped.stderr


def test_errors_are_red_on_terminals(folder: Path) -> None:
    out, shown, code = on_terminal(["info", "gone.kqeq", "--json"])
    message = "model file gone.kqeq does not exist"
    assert (out, shown, code) == ("", f"kqeq: \033[1;31merror:\033[0m {message}\r\n", 2)
    _, shown, code = on_terminal(["infos"])
    assert shown.startswith("kqeq: \033[1;31merror:\033[0m unknown command `infos`")
    assert code == 2
    piped = subprocess.run([KQEQ, "info", "gone.kqeq"], capture_output=True, text=True)
    assert (piped.stdout, piped.stderr, piped.returncode) == ("", f"kqeq: error: {message}\n", 2)


def test_a_closed_pipe_ends_without_a_word() -> None:
    """Of `kqeq info MODEL --json | true`, which has 64 kB in the pipe at most."""
    command = f"'{KQEQ}' models --json >&-; '{KQEQ}' info '{NACL_SPLIT}' --json | true; exit ${{PIPESTATUS[0]}}"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["select", str(NACL), "few.xyz", "-n", "1", "-o", "few.xyz"], "few.xyz"),
        (["tune", "c.toml", "-o", "few.xyz"], "few.xyz"),
        (["train", "c.toml", "-o", "few.xyz"], "few.xyz"),
        (["ir", "dipoles.dat", "--timestep", "1", "--data", "dipoles.dat"], "dipoles.dat"),
    ],
)
def test_no_command_writes_over_what_it_reads(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("dipoles.dat").write_text("0 0 0\n")
    before = Path(message).read_bytes()
    assert main(arguments) == 2
    assert f"must not be a file that is read, got {message}\n" in capsys.readouterr().err
    assert Path(message).read_bytes() == before
