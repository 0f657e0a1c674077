"""`kqeq eval`."""

from __future__ import annotations

import argparse

from kqeq_md.cli.arguments import Commands, add_command, add_common
from kqeq_md.cli.output import answer, progress_of, read_model

NAME = "eval"


def add(commands: Commands) -> None:
    """Its part of the command line."""
    command = add_command(
        commands,
        NAME,
        "errors on labelled data",
        "Print RMSE and MAE of a model on extended XYZ files, by total charge and field.",
        ["kqeq eval nacl.kqeq test.xyz bulk_test.xyz", "kqeq eval water.kqeq test.xyz --response --json",
         "kqeq eval water.kqeq test.xyz --charges fragments --fragments connectivity"],
        _run,
    )  # fmt: skip
    command.add_argument("model", metavar="MODEL.kqeq", help="a trained model")
    command.add_argument("data", metavar="DATA.xyz", nargs="+", help="labels as in the model's training data")
    charges = command.add_argument_group("charges")
    charges.add_argument("--charges", metavar="qeq|fragments|split", help="by default as the model was trained")
    charges.add_argument(
        "--fragments", metavar="connectivity|ARRAY", help="charge stays in molecules, found in each frame or numbered"
    )
    charges.add_argument("--response", action="store_true", help="the mean polarizability too")
    add_common(command, json="the errors, in eV, eV/A, e, e A", threads=True)


def _run(arguments: argparse.Namespace) -> int:
    from kqeq_md.charges.charge_model import CONNECTIVITY
    from kqeq_md.machine.quiet import saying_once
    from kqeq_md.model import reading
    from kqeq_md.train.config import Data, build
    from kqeq_md.train.data import read_frames
    from kqeq_md.train.report import evaluate, format_table

    model = read_model(arguments.model)
    with reading("training"):
        data = build(Data, {"train": [], **model.training.get("config", {}).get("data", {})}, "training.config.data.")
    fragments = arguments.fragments
    numbers = None if fragments == CONNECTIVITY else fragments
    frames = read_frames(arguments.data, data.keys, numbers, not arguments.response, data.units, data.field_term)
    progress = progress_of(arguments)
    with saying_once():
        table = evaluate(model, frames, progress, arguments.charges, fragments is not None, arguments.response)
    answer(arguments, table, f"RMSE (MAE)\n{format_table(table)}")
    return 0
