"""Small pieces of HTML: paragraphs, lists, tables, figures."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from html import escape
from typing import Any

from kqeq_md.train.report.text import as_printed

LONGEST_LIST = 12
"""Numbers of a list that are written out."""


def typeset(text: str) -> str:
    """`as_printed`, ready for HTML."""
    return escape(as_printed(text))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", numbers: bool = True) -> str:
    """A table whose first column names the rows; scrolls by itself where it is wider than the page."""
    top = "".join(f'<th scope="col">{typeset(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{typeset(cell)}</td>" for cell in row[1:])}</tr>\n'
        for row in rows
    )
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    kind = "numbers" if numbers else "words"
    return (
        f'<div class="wide"><table class="{kind}">{above}<thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody>'
        "</table></div>\n"
    )


def paragraph(text: str) -> str:
    """One paragraph."""
    return f"<p>{typeset(text)}</p>\n"


def warning(text: str) -> str:
    """A paragraph that must not be missed."""
    return f'<p class="warning"><strong>Warning:</strong> {typeset(text)}</p>\n'


def bullets(lines: Sequence[str]) -> str:
    """A list."""
    return "<ul>" + "".join(f"<li>{escape(line)}</li>\n" for line in lines) + "</ul>\n"


def section(title: str, *parts: str) -> str:
    """A heading and what stands under it; nothing if there is nothing."""
    body = "".join(parts)
    return f"<section><h2>{escape(title)}</h2>\n{body}</section>\n" if body else ""


def figure(png: bytes, words: str) -> str:
    """An image inside of the page; `words` stand for it where it cannot be seen."""
    width, height = (int.from_bytes(png[start : start + 4], "big") for start in (16, 20))  # of the header of a PNG
    data = base64.b64encode(png).decode("ascii")
    shape = ' class="tall"' if height > width else ""
    return (
        f'<figure><img{shape} alt="{escape(words)}" width="{width}" height="{height}" '
        f'src="data:image/png;base64,{data}"></figure>\n'
    )


def definitions(pairs: Sequence[tuple[str, str]]) -> str:
    """A list of names, each with its value, which is HTML already."""
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>\n" for name, value in pairs) + "</dl>\n"


def written(value: Any) -> str:
    """A number, text or short list as it stands in a table or list: six digits of what is no whole number."""
    if value is None:
        return "–"  # a dash in place of what is not there
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else str(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(written, value)) if len(value) <= LONGEST_LIST else f"{len(value)} entries"
    return str(value)
