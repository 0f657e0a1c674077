"""Docstrings as they are written here: indented paragraphs are equations, and bars stand for themselves."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx


def as_rst(kind: str, lines: list[str]) -> list[str]:
    """A docstring in reStructuredText with sections, which napoleon takes from here."""
    out: list[str] = []
    equation = False
    for k, line in enumerate(lines):
        indented = line.startswith("    ")
        if indented and not equation and k > 0 and not lines[k - 1].strip() and not in_section(lines[:k]):
            equation = True
            out += [".. code-block:: text", ""]
        equation = equation and (indented or not line.strip())
        out.append(line if equation else plain(line))
    if kind in ("data", "attribute") and out:
        out[0] = f": {out[0]}"  # or what stands before the first colon would be taken for a type
    return out


def in_section(before: list[str]) -> bool:
    """Whether these lines end in a section, such as "Args:", whose paragraphs are indented too."""
    last = next((line for line in reversed(before) if line.strip() and not line.startswith(" ")), "")
    return re.fullmatch(r"[A-Z]\w+:", last) is not None


def plain(line: str) -> str:
    r"""Text: |x| is no substitution, and "e. Charges" no enumeration."""
    return re.sub(r"^(\w\. )", r"\\\1", re.sub(r"(?<!`)\|(?!`)", r"\\|", line))


def process(_: Sphinx, kind: str, name: str, of: Any, options: Any, lines: list[str]) -> None:
    lines[:] = as_rst(kind, lines)


def shorten(_: Sphinx, kind: str, name: str, of: Any, options: Any, *texts: str | None) -> tuple[str | None, ...]:
    """Signature and returned type with the names of `autodoc_type_aliases` as the source has them."""
    return tuple(text and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", text) for text in texts)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", process, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", shorten)
    return {"parallel_read_safe": True}
