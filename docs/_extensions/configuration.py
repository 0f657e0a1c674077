"""`<!-- keys of kqeq_md.train.config.Fit -->` in a page becomes the table of a dataclass's fields, from its docstring.

`<!-- keys of [tune] -->` becomes the table of what `kqeq tune` can search.
"""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from typing import Any

from sphinx.application import Sphinx

from kqeq_md.train.tune_config import SEARCHED

MARK = re.compile(r"<!-- keys of (.+) -->")
TYPES = {
    "PerElement": "float | table of floats",
    "str | PerElement": "str | float | table of floats",
    "list[Group]": "tables",
}
"""Shorter than the types of the fields."""


def keys(path: str) -> str:
    """Key, type, default and meaning of each field, as Markdown.

    Raises:
        KeyError: a field that the docstring does not tell of.
    """
    module, _, name = path.rpartition(".")
    kind = getattr(import_module(module), name)
    told, rows = attributes(inspect.getdoc(kind) or ""), ["| key | type | default | meaning |", "|---|---|---|---|"]
    for entry in fields(kind):
        value: Any = entry.default if entry.default_factory is MISSING else entry.default_factory()
        hint = str(entry.type).removesuffix(" | None").replace("dict[str, float]", "table of floats")
        shown = "required" if value is MISSING else "" if value is None else f"`{json.dumps(value, default=repr)}`"
        if is_dataclass(value) or value == {} or str(entry.type) == "Data":
            hint, shown = "table", ""
        hint = TYPES.get(hint, hint).replace("|", r"\|")
        rows.append(f"| `{entry.name}` | {hint} | {shown} | {told[entry.name]} |")
    return "\n".join(rows)


def attributes(docstring: str) -> dict[str, str]:
    """The meaning of each attribute: `name: meaning` below "Attributes:", where further lines are indented more."""
    section = docstring.partition("Attributes:\n")[2].partition("\n\n")[0]
    entries = (entry.partition(": ") for entry in re.split(r"\n {4}(?=\w)", f"\n{section}")[1:])
    return {name: " ".join(text.split()) for name, _, text in entries}


def searched() -> str:
    """What can be searched, with its bounds."""
    rows = ["| key | table | type | smallest | largest |", "|---|---|---|---|---|"]
    for name, entry in SEARCHED.items():
        kind = "list[int]" if entry.whole else "list[float]"
        rows.append(f"| `{name}` | [{entry.table}] | {kind} | {entry.low:g} | {entry.high:g} |")
    return "\n".join(rows)


def expand(_: Sphinx, __: str, source: list[str]) -> None:
    source[0] = MARK.sub(lambda match: searched() if match[1] == "[tune]" else keys(match[1]), source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", expand)
    return {"parallel_read_safe": True}
