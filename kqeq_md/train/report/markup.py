"""Small pieces of HTML: tables, figures, and JSON as tables."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
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


def json_tables(value: Mapping[str, Any] | Sequence[Mapping[str, Any]], caption: str = "") -> str:
    """Any JSON object as a table of names and values, any list of objects as one row each."""
    if not isinstance(value, Mapping):
        flat = [flattened(entry) for entry in value]
        names = list(dict.fromkeys(name for entry in flat for name in entry))
        rows = [[str(number), *(written(entry.get(name)) for name in names)] for number, entry in enumerate(flat, 1)]
        return table(["", *names], rows, caption)
    lists = {name: entry for name, entry in value.items() if _is_records(entry)}
    rest = flattened({name: entry for name, entry in value.items() if name not in lists})
    out = table(["", ""], [[name, written(entry)] for name, entry in rest.items()], caption, False) if rest else ""
    return out + "".join(json_tables(entry, name) for name, entry in lists.items())


def flattened(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one, names joined by points."""
    out: dict[str, Any] = {}
    for name, entry in value.items():
        if isinstance(entry, Mapping):
            out |= flattened(entry, f"{prefix}{name}.")
        else:
            out[f"{prefix}{name}"] = entry
    return out


def written(value: Any) -> str:
    """A number, text or short list as it stands in a table: six digits of what is no whole number."""
    if value is None:
        return "–"  # a dash in place of what is not there
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else str(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(written, value)) if len(value) <= LONGEST_LIST else f"{len(value)} entries"
    return str(value)


def _is_records(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) > 0 and all(isinstance(entry, Mapping) for entry in value)
