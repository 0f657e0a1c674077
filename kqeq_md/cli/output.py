"""What subcommands check before, and print after, their work."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kqeq_md.errors import KqeqError
from kqeq_md.machine.json_text import json_text

if TYPE_CHECKING:
    from kqeq_md.model import Model
    from kqeq_md.train.fit.design import Progress

log = logging.getLogger("kqeq_md")


def check_output(path: Path, name: str = "--output", inputs: Sequence[str | Path] = ()) -> None:
    """Refuse before the work what could not be written after it, or would destroy what it comes from."""
    folder = path.resolve().parent
    if not folder.is_dir():
        raise KqeqError(f"`{name}` must lie in a folder that exists, got {path}")
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise KqeqError(f"`{name}` must be a file that can be written, got {path}")
    for file in inputs:
        if path.exists() and Path(file).exists() and path.samefile(file):
            raise KqeqError(f"`{name}` must not be a file that is read, got {path}")


def read_model(path: str) -> Model:
    """The model of a file; errors as in `load_model`."""
    from kqeq_md.model import load_model

    model = load_model(path)
    log.info("read %s: %s, %s", path, ", ".join(model.species), model.charges if model.has_charges else "no charges")
    return model


def say(arguments: argparse.Namespace, text: str) -> None:
    """A summary of what was done: not with `--quiet`, and not with `--json`, where stdout holds the document alone."""
    if not (arguments.quiet or arguments.json):
        print(text, flush=True)


def answer(arguments: argparse.Namespace, document: Mapping[str, Any], text: str) -> None:
    """What was asked for, as JSON or as text."""
    print(json_text(document) if arguments.json else text)


def report(arguments: argparse.Namespace, document: Mapping[str, Any], text: str) -> None:
    """A summary of what was done, as JSON or, unless `--quiet`, as text."""
    if arguments.json or not arguments.quiet:
        answer(arguments, document, text)


def progress_of(arguments: argparse.Namespace) -> Progress:
    """What shows how far the work is."""
    from kqeq_md.machine.progress import progress

    return _silent if arguments.quiet else progress


def _silent(items: Sequence[Any], title: str) -> Iterable[Any]:
    return items


def note(text: str) -> None:
    """A line on stderr that is no log record."""
    sys.stderr.write(f"kqeq: {text}\n")
