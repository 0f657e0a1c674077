"""The command line of `kqeq` itself: help, examples, suggestions, completion."""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from kqeq_md.cli import main, parser
from kqeq_md.cli.completion import SHELLS
from kqeq_md.cli.program import GROUPS

KQEQ = f"{sysconfig.get_path('scripts')}/kqeq"
NAMES = [module.NAME for modules in GROUPS.values() for module in modules]


def leaving(arguments: list[str]) -> int | str | None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    return left.value.code


def help_of(*words: str) -> str:
    return subprocess.run([KQEQ, *words], capture_output=True, text=True, check=True).stdout


def test_help_lists_all_commands_by_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    assert leaving(["--help"]) == 0
    text = capsys.readouterr().out
    assert [text.index(f"{title}:") for title in GROUPS] == sorted(text.index(f"{title}:") for title in GROUPS)
    listed = [line.split()[0] for line in text.splitlines() if line.startswith("  ")]
    assert [word for word in listed if word in NAMES] == NAMES
    codes = [line.split()[0] for line in text.partition("exit codes:")[2].splitlines() if line.strip()]
    assert codes == ["0", "1", "2", "130", "141", "143"]


def test_without_arguments_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """As cargo does, on stdout and without an error; `kqeq help` is the same."""
    assert main([]) == 0
    bare = capsys.readouterr()
    assert (bare.out.startswith("usage: kqeq "), bare.err) == (True, "")
    assert main(["help"]) == 0
    assert capsys.readouterr().out == bare.out


@pytest.mark.parametrize("name", NAMES)
def test_help_of_each_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", name]) == 0
    text = capsys.readouterr().out
    assert leaving([name, "--help"]) == 0
    assert capsys.readouterr().out == text
    for word in ("common options:", "--json", "--quiet", "--verbose", "examples:"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 120


def examples() -> Iterator[str]:
    program = parser()
    (commands,) = (action for action in program._actions if isinstance(action, argparse._SubParsersAction))
    for name in NAMES:
        _, _, text = (commands.choices[name].epilog or "").partition("examples:\n")
        yield from (line.strip() for line in text.partition("\n\n")[0].splitlines())


@pytest.mark.parametrize("line", list(examples()))
def test_examples_are_understood(line: str) -> None:
    words = shlex.split(line)
    for mark in (">", "&&"):
        words = words[: words.index(mark)] if mark in words else words
    assert words[0] == "kqeq"
    assert callable(parser().parse_args(words[1:]).run)


def test_every_command_has_examples() -> None:
    lines = list(examples())
    assert {line.split()[1] for line in lines} == set(NAMES)
    assert all(2 <= sum(line.split()[1] == name for line in lines) <= 4 for name in NAMES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "kqeq: error: unknown command `trian`; did you mean `train`?"),
        (["xyzzy"], "kqeq: error: unknown command `xyzzy`"),
        (["--verison"], "kqeq: error: unknown option `--verison`; did you mean `--version`?"),
        (["train", "--outptu", "m"], "kqeq train: error: unknown option `--outptu`; did you mean `--output`?"),
        (["eval", "m", "d", "--resonse=3"], "kqeq eval: error: unknown option `--resonse`; did you mean `--response`?"),
        (["select", "m", "-x"], "kqeq select: error: unknown option `-x`"),
        (["info"], "kqeq info: error: the following arguments are required: MODEL.kqeq"),
        (["-q", "info", "-v", "-q", "m"], "kqeq info: error: argument -q/--quiet: not allowed with argument -v/"),
        (["tune", "c", "-o", "b", "--minutes", "x"], "kqeq tune: error: argument --minutes: invalid float value: 'x'"),
    ],
)  # fmt: skip
def test_mistakes_name_what_was_meant(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert leaving(arguments) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert error.startswith(message)
    assert ("did you mean" in error) == ("did you mean" in message)


def test_help_of_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "slect"]) == 2
    assert capsys.readouterr().err == "kqeq: error: unknown command `slect`; did you mean `select`?\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["select", "m", "t", "-n5", "-o", "p", "--charge", "-1"],
        ["select", "m", "t", "--num=5", "--output", "p", "--charge", "-.5"],
        ["diagnose", "m", "--fragment-charges", "-1 1", "-vv"],
        ["info", "-qh"],
        ["info", "--", "--file"],
    ],
)
def test_what_argparse_understands_is_not_refused(arguments: list[str]) -> None:
    """Joined values, abbreviations, negative numbers, joined flags, and names after two dashes."""
    if "-qh" in arguments:
        assert leaving(arguments) == 0
    else:
        parser().parse_args(arguments)


@pytest.mark.parametrize("words", [["-vv", "info", "m"], ["info", "m", "-vv"], ["info", "-v", "m", "-v"]])
def test_common_options_stand_before_or_after_the_command(words: list[str]) -> None:
    arguments = parser().parse_args(words)
    assert (arguments.verbose, arguments.quiet) == (2, False)


def test_help_starts_without_numpy() -> None:
    heavy = "[m for m in ('numpy', 'numba', 'scipy', 'ase', 'tqdm', 'shtab') if m in sys.modules]"
    code = f"import sys; from kqeq_md.cli import main; main([]); sys.stderr.write(str({heavy}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr == "[]"


# --- completion


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("m.kqeq", "c.toml", "d.xyz", "g.xml"):
        (tmp_path / name).touch()
    return tmp_path


COMPLETED = [
    ("kqeq tr", {"train"}),
    ("kqeq -v tu", {"tune"}),
    ("kqeq eval --re", {"--response"}),
    ("kqeq eval --charges s", {"split"}),
    ("kqeq models na", {"nacl", "nacl_split"}),
    ("kqeq help che", {"check"}),
    ("kqeq train ", {"c.toml"}),
    ("kqeq eval m.kqeq ", {"d.xyz"}),
    ("kqeq import-gap ", {"g.xml"}),
]

BASH = """
eval "$(kqeq --print-completion bash)"
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
function_of() { shift; while [ "$1" != -F ]; do shift; done; echo "$2"; }
"$(function_of $(complete -p kqeq))" kqeq "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(("line", "words"), COMPLETED)
def test_bash_completes(line: str, words: set[str], folder: Path) -> None:
    environment = {"PATH": f"{Path(KQEQ).parent}:/usr/bin:/bin"}
    command = ["bash", "--norc", "-c", BASH, "bash", *line.split(" ")]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=folder)
    assert set(run.stdout.split()) == words


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
@pytest.mark.parametrize(("line", "words"), COMPLETED)
def test_fish_completes(line: str, words: set[str], folder: Path) -> None:
    script = folder / "script"
    script.write_text(help_of("--print-completion", "fish"))
    command = ["fish", "--no-config", "-c", f"source script; rm script; complete -C {shlex.quote(line)}"]
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={"HOME": str(folder), "PATH": "/usr/bin:/bin"},
    )
    assert {found.split("\t")[0] for found in run.stdout.splitlines()} - {".local/", ".config/"} == words


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_reads_the_script(folder: Path) -> None:
    """It completes on a terminal alone; here the function is defined without a complaint."""
    script = 'autoload -U compinit; compinit -u -D; eval "$(cat)"; print -r -- ${_comps[kqeq]}'
    run = subprocess.run(["zsh", "-f", "-c", script], input=help_of("--print-completion", "zsh"), capture_output=True,
                         text=True, check=True, cwd=folder)  # fmt: skip
    assert (run.stdout, run.stderr) == ("_shtab_kqeq\n", "")


def test_completion_of_other_shells_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert leaving(["--print-completion", "csh"]) == 2
    error = capsys.readouterr().err
    assert all(f"'{shell}'" in error for shell in SHELLS)
