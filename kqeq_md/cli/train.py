"""`kqeq train`."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from dataclasses import replace
from pathlib import Path

from kqeq_md.cli.arguments import Commands, add_command, add_common
from kqeq_md.cli.output import check_output, note, progress_of, say
from kqeq_md.errors import KqeqError
from kqeq_md.machine.json_text import json_text

NAME = "train"

log = logging.getLogger("kqeq_md")


def add(commands: Commands) -> None:
    """Its part of the command line."""
    command = add_command(
        commands,
        NAME,
        "train a model",
        "Train a model from a TOML configuration, and write it with a report in the folder MODEL.report. Interrupted, "
        "the same command goes on from MODEL.kqeq.checkpoint.",
        ["kqeq train nacl.toml -o nacl.kqeq", "kqeq train nacl.toml -o nacl.kqeq --learning-curve -v",
         "kqeq train nacl.toml -o nacl.kqeq --json > report.json"],
        _run,
    )  # fmt: skip
    command.add_argument("config", metavar="CONFIG.toml", help="data, descriptor, kernel, charges and fit")
    files = command.add_argument_group("output")
    files.add_argument(
        "-o", "--output", metavar="MODEL.kqeq", required=True, type=Path, help="the model; a file there is replaced"
    )
    files.add_argument("--learning-curve", action="store_true", help="train on 1/8, 1/4 and 1/2 of the frames as well")
    files.add_argument("--no-report", action="store_true", help="do not write the folder MODEL.report")
    add_common(command, json="the report, in eV, A, e", threads=True)


def _run(arguments: argparse.Namespace) -> int:
    from kqeq_md.machine.quiet import saying_once
    from kqeq_md.model import save_model
    from kqeq_md.train.config import read_config
    from kqeq_md.train.report.folder import HTML, content_of, report_folder, write_report
    from kqeq_md.train.run import train

    if arguments.learning_curve and arguments.no_report:
        raise KqeqError("`--learning-curve` goes into the report: leave out `--no-report`")
    config, progress = read_config(arguments.config), progress_of(arguments)
    check_output(arguments.output, inputs=[arguments.config, *config.data.train, *config.data.test])
    folder = None if arguments.no_report else report_folder(arguments.output)
    checkpoint = arguments.output.with_name(f"{arguments.output.name}.checkpoint")
    check_output(checkpoint, "the checkpoint")
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # batch systems end runs by it
    try:
        with saying_once():
            trained = train(config, progress, checkpoint, arguments.learning_curve)
            save_model(trained.model, arguments.output)
            log.info("wrote %s", arguments.output)
            say(arguments, f"{trained.text}\n\nwrote {arguments.output}")
            report = replace(trained.report, name=arguments.output.stem)
            if folder is not None:
                content = write_report(folder, report, progress)
                log.info("wrote %s", folder)
            elif arguments.json:
                content, *_ = content_of(report, progress)
    except BaseException:
        if checkpoint.is_file():
            note(f"the same command goes on from {checkpoint}")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    checkpoint.unlink(missing_ok=True)
    if arguments.json:
        print(json_text(content))
    elif folder is not None:
        missing = "" if content["plots"] else ", without plots: matplotlib is not installed"
        say(arguments, f"wrote {folder / HTML}{missing}")
    return 0
