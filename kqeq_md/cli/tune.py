"""`kqeq tune`."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kqeq_md.cli.arguments import Commands, add_command, add_common
from kqeq_md.cli.output import check_output, note, report

if TYPE_CHECKING:
    from kqeq_md.train.tune.record import Trial

NAME = "tune"

log = logging.getLogger("kqeq_md")


def add(commands: Commands) -> None:
    """Its part of the command line."""
    command = add_command(
        commands,
        NAME,
        "search for hyperparameters",
        "Search for a descriptor (cutoff, sigma, radial_scale, n_max, l_max), zeta and priors from a TOML "
        "configuration on.\n\nReduced fits are measured on training frames that they do not see (whole compositions "
        "and stretches of trajectories) by the geometric mean of sqrt(1 + (rms error / sigma)^2) over energies, "
        "forces, charges and dipoles, sigma as in [fit]. Test files are never read. The trials depend on the seed "
        "alone; the clock ends the search. They are kept in BEST.trials.jsonl; the same command goes on from there.",
        ["kqeq tune nacl.toml -o best.toml", "kqeq tune nacl.toml -o best.toml --minutes 120",
         "kqeq tune nacl.toml -o best.toml --trials 20 --json > trials.json"],
        _run,
    )  # fmt: skip
    command.add_argument("config", metavar="CONFIG.toml", type=Path, help="where the search starts")
    search = command.add_argument_group("search")
    search.add_argument("-o", "--output", metavar="BEST.toml", required=True, type=Path, help="for `kqeq train`")
    search.add_argument("--minutes", metavar="M", type=float, default=30.0, help="for new trials (default 30)")
    search.add_argument("--trials", metavar="N", type=int, help="end after so many: the same N, the same result")
    add_common(command, json="all trials, in eV, A, e", threads=True)


def _run(arguments: argparse.Namespace) -> int:
    from kqeq_md.machine.files import write_whole
    from kqeq_md.machine.quiet import saying_once
    from kqeq_md.train.config import read_config
    from kqeq_md.train.tune.search import INTERRUPTED, as_json, tune
    from kqeq_md.train.tune.table import as_table, one_line
    from kqeq_md.train.tune.text import read_text, tuned_text

    def tell(trial: Trial, number: int) -> None:
        if not arguments.quiet:
            print(one_line(trial, number), file=sys.stderr, flush=True)

    config, output = read_config(arguments.config), arguments.output
    check_output(output, inputs=[arguments.config, *config.data.train, *config.data.test])
    text = read_text(arguments.config, output, config)
    record = output.with_name(f"{output.stem}.trials.jsonl")
    check_output(record, "the file of trials")
    with saying_once():
        tuned = tune(config, arguments.minutes, arguments.trials, record, tell)
    write_whole(output, tuned_text(text, tuned, arguments.config.parent, output.parent).encode())
    log.info("wrote %s", output)
    report(arguments, as_json(tuned), f"{as_table(tuned)}\nwrote {output}")
    sys.stdout.flush()
    if tuned.ended == INTERRUPTED:
        note(f"interrupted; the same command goes on from {record}")
        return 130
    return 0
