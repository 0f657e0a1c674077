"""A configuration with other values: the user's own text, with its comments, in which a few lines differ."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from kqeq_md.errors import ConfigError
from kqeq_md.train.config import Config
from kqeq_md.train.tune.grid import grid_of, value_of
from kqeq_md.train.tune.search import Tuned
from kqeq_md.train.tune_config import SEARCHED

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Settings = Mapping[tuple[str, str], float]
"""New values by table and key."""


def read_text(path: Path, output: Path, config: Config) -> str:
    """The text of a configuration, of which it is sure that its values can be replaced.

    Args:
        path: of the configuration.
        output: where the new one goes.
        config: the configuration.

    Raises:
        ConfigError: see `rewritten`.
    """
    text = path.read_text(encoding="utf-8")
    other = {(SEARCHED[name].table, name): value_of(config, name) + 1 for name in grid_of(config)}
    rewritten(text, other, path.parent, output.parent)
    return text


def tuned_text(text: str, tuned: Tuned, folder: Path, new_folder: Path) -> str:
    """The configuration with the chosen values, and a comment that says where they come from."""
    changed = {
        (SEARCHED[name].table, name): int(value) if SEARCHED[name].whole else value
        for name, value in tuned.best.items()
        if value != tuned.start[name]
    }
    chosen = ", ".join(f"{name} = {value:g}" for (_, name), value in changed.items()) or "the values as they were"
    head = f"# kqeq tune, {len(tuned.trials)} trials (ended by: {tuned.ended}) chose {chosen}\n"
    return head + rewritten(text, changed, folder, new_folder)


def rewritten(text: str, settings: Settings, folder: Path, new_folder: Path) -> str:
    """The text of a configuration with other values, and with data files named relative to another folder.

    Args:
        text: TOML.
        settings: new values.
        folder: that data files are relative to.
        new_folder: that they shall be relative to.

    Raises:
        ConfigError: the text is written in a way (inline or dotted tables, numbers over several lines) in which lines
            cannot be replaced one by one.
    """
    wanted = _expected(tomllib.loads(text), settings, _moved(text, folder, new_folder))
    for old, new in _moved(text, folder, new_folder).items():
        for quote in "\"'":
            text = text.replace(f"{quote}{old}{quote}", f"{quote}{new}{quote}")
    for (table, key), value in settings.items():
        text = _with_value(text, table, key, value)
    try:
        same = tomllib.loads(text) == wanted
    except tomllib.TOMLDecodeError:
        same = False
    if not same:
        names = ", ".join(f"[{name}]" for name in dict.fromkeys(table for table, _ in settings))
        raise ConfigError(f"the configuration must have its tables ({names}) on lines of their own, one key per line")
    return text


def _with_value(text: str, table: str, key: str, value: float) -> str:
    """One value replaced; the key, and the table, are added where they are absent."""
    lines = text.splitlines()
    headers = [index for index, line in enumerate(lines) if line.lstrip().startswith("[")]
    begin = next((i for i in headers if re.match(rf"\s*\[\s*{table}\s*\]", lines[i])), None)
    if begin is None:
        return "\n".join([*lines, "", f"[{table}]", f"{key} = {value!r}", ""])
    end = next((i for i in headers if i > begin), len(lines))
    for index in range(begin + 1, end):
        if found := re.match(rf"(\s*{key}\s*=\s*)([^#]*?)(\s*(#.*)?)$", lines[index]):
            lines[index] = f"{found[1]}{value!r}{found[3]}"
            break
    else:
        lines.insert(begin + 1, f"{key} = {value!r}")
    return "\n".join(lines) + "\n"


def _moved(text: str, folder: Path, new_folder: Path) -> dict[str, str]:
    """New names of data files."""
    if folder.resolve() == new_folder.resolve():
        return {}
    data = tomllib.loads(text)["data"]
    names = [name for key in ("train", "test") for name in _as_list(data.get(key, []))]
    return {
        name: Path(os.path.relpath(folder.resolve() / name, new_folder.resolve())).as_posix()
        for name in names
        if not Path(name).is_absolute()
    }


def _expected(table: dict[str, Any], settings: Settings, moved: Mapping[str, str]) -> dict[str, Any]:
    out = deepcopy(table)
    for (name, key), value in settings.items():
        out.setdefault(name, {})[key] = value
    for entry in [out["data"], *out["data"].get("groups", [])]:
        for key in {"train", "test", "files"} & set(entry):
            names = [moved.get(name, name) for name in _as_list(entry[key])]
            entry[key] = names if isinstance(entry[key], list) else names[0]
    return out


def _as_list(names: list[str] | str) -> list[str]:
    return [names] if isinstance(names, str) else names
