"""`kqeq check`."""

from __future__ import annotations

import argparse

from kqeq_md.cli.arguments import Commands, add_command, add_common
from kqeq_md.cli.output import report

NAME = "check"


def add(commands: Commands) -> None:
    """Its part of the command line."""
    command = add_command(
        commands,
        NAME,
        "does a model give its reference numbers here?",
        "Evaluate the model's reference structure on this machine, and compare with the numbers in the file.",
        ["kqeq check nacl.kqeq", "kqeq check nacl.kqeq --quiet && lmp -in in.cluster_field"],
        _run,
        "0  as trained\n  1  the numbers deviate by more than their tolerances\n  2  an error, as without a reference",
    )
    command.add_argument("model", metavar="MODEL.kqeq", help="a model")
    add_common(command, json="deviations and tolerances, in eV, A, e", threads=True)


def _run(arguments: argparse.Namespace) -> int:
    from kqeq_md.potential import Potential
    from kqeq_md.reference import TOLERANCES, deviations

    found = deviations(Potential(arguments.model))
    good = all(found[name] <= TOLERANCES[name] for name in TOLERANCES)
    lines = [f"{name:<18}deviation {value:.1e}, tolerance {TOLERANCES[name]:.0e}" for name, value in found.items()]
    lines.append(f"{arguments.model}: {'as trained' if good else 'DEVIATES from its reference'}")
    report(arguments, {"passed": good, "deviations": found, "tolerances": TOLERANCES}, "\n".join(lines))
    return 0 if good else 1
