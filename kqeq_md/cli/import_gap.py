"""`kqeq import-gap`."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kqeq_md.cli.arguments import Commands, add_command, add_common
from kqeq_md.cli.output import check_output, report
from kqeq_md.errors import KqeqError

if TYPE_CHECKING:
    from kqeq_md.model import Model
    from kqeq_md.structure import Structure

NAME = "import-gap"

log = logging.getLogger("kqeq_md")


def add(commands: Commands) -> None:
    """Its part of the command line."""
    command = add_command(
        commands,
        NAME,
        "a QUIP GAP as a model",
        "Write the model of a QUIP GAP XML file: a short-range potential without charges for LAMMPS, i-PI and ASE.\n\n"
        "soap, distance_2b and energies per element are read; the files of sparse points lie beside it.",
        ["kqeq import-gap GAP.xml -o gap.kqeq", "kqeq import-gap GAP.xml -o gap.kqeq --low-rank structures.xyz"],
        _run,
    )
    command.add_argument("gap", metavar="GAP.xml", type=Path, help="as gap_fit writes it")
    files = command.add_argument_group("output")
    files.add_argument("-o", "--output", metavar="MODEL.kqeq", required=True, type=Path, help="the model")
    files.add_argument(
        "--low-rank", metavar="FILE", help="add a fast kernel of low rank, with forces within 1e-4 on its structures"
    )
    add_common(command, json="file, elements and what the low rank changes")


def _run(arguments: argparse.Namespace) -> int:
    from kqeq_md.frames import read_structures
    from kqeq_md.gap_import import import_gap
    from kqeq_md.model import save_model

    inputs = [arguments.gap] if arguments.low_rank is None else [arguments.gap, arguments.low_rank]
    check_output(arguments.output, inputs=inputs)
    model = import_gap(arguments.gap)
    if arguments.low_rank is not None:
        model = _with_low_rank(model, read_structures(arguments.low_rank))
    save_model(model, arguments.output)
    log.info("wrote %s", arguments.output)
    change = model.training.get("low_rank_force_error")
    lines = [] if change is None else [f"low rank: forces change by {change:.1e} of their rms"]
    document = {"model": str(arguments.output), "species": list(model.species), "cutoff": model.cutoff,
                "low_rank_force_error": change}  # fmt: skip
    report(arguments, document, "\n".join([*lines, f"wrote {arguments.output}"]))
    return 0


def _with_low_rank(model: Model, structures: list[Structure]) -> Model:
    from kqeq_md.compression import LARGEST_FORCE_ERROR, STEP, compress, forces_on

    if all(term.zeta != 2 for term in model.terms):
        raise KqeqError(f"`--low-rank` needs a kernel with zeta = 2, got zeta {[term.zeta for term in model.terms]}")
    compressed = compress(model, forces_on(structures))
    if compressed.force_error is None:
        raise KqeqError(
            f"`--low-rank` found no lower rank that changes forces on these structures by less than "
            f"{LARGEST_FORCE_ERROR:g} of them: it needs more than {STEP} sparse points per element, and structures in "
            "which atoms feel forces"
        )
    training = {**compressed.model.training, "low_rank_force_error": compressed.force_error}
    return replace(compressed.model, training=training)
