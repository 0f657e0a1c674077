"""The site: `sphinx-build -W docs docs/_build`. It needs no network, neither to be made nor to be read."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from pygments.lexers.shell import BashLexer
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata
from sphinx.writers.html5 import HTML5Translator

ROOT = Path(__file__).resolve().parent.parent

sys.path.insert(0, str(ROOT / "docs" / "_extensions"))

project = "kqeq_md"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "commands", "configuration", "docstrings"]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "kqeq_md"
html_math_renderer = "mathml"
html_copy_source = False
html_show_copyright = False
default_role = "code"
autodoc_type_aliases = {"ArrayLike": "ArrayLike", "Floats": "Floats", "Ints": "Ints"}
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True


def gallery() -> str:
    """A section for each folder of examples with a README: its text, one heading lower, and its picture."""
    rows, sections = ["| | |", "|---|---|"], []
    for readme in sorted((ROOT / "examples").glob("*/README.md")):
        folder, text = readme.parent, relinked(readme.read_text(), readme.parent, ROOT / "docs")
        title, body = text.removeprefix("# ").split("\n", 1)
        picture = folder / f"{folder.name}.png"
        shown = f"![{title}](../examples/{folder.name}/{picture.name})" if picture.exists() else ""
        if shown and f"/{picture.name})" not in body:
            body = f"\n{shown}\n{body}"
        rows.append(f"| [{folder.name}](#example-{folder.name}) | {title} |")
        lower = re.sub(r"^(##+ )", r"#\1", body, flags=re.M)
        sections.append(f"(example-{folder.name})=\n## {title}\n{lower}")
    return "\n".join(rows) + "\n\n" + "\n\n".join(sections)


def relinked(text: str, folder: Path, page: Path) -> str:
    """Links of a page in `folder` as they have to be on the site, where it is shown by a page in the folder `page`.

    What is no page of the site: folders of examples and their READMEs lead to the gallery, README.md to the front page,
    other files are downloads, other folders are no links.
    """

    def target(match: re.Match[str]) -> str:
        mark, name, path, anchor = match.groups()
        if re.match(r"\w+:|<", path) or not path:
            return match[0]
        file = (folder / path).resolve()
        if file in (ROOT / "README.md", ROOT):
            return f"{mark}[{name}]({os.path.relpath(ROOT / 'docs' / 'index.md', page)})"
        if file == ROOT / "lammps_plugin" / "pair_kqeq.md":
            return f"[{name}](#{anchor or 'pair-style'})"
        example = file.parent if file.name == "README.md" else file
        if example.parent == ROOT / "examples" and (example / "README.md").exists():
            return f"[{name}](#{anchor or f'example-{example.name}'})"
        if file == ROOT / "examples":
            return f"[{name}](#gallery)"
        if file.is_dir():
            return name
        return f"{mark}[{name}]({os.path.relpath(file, page)}{'#' + anchor if anchor else ''})"

    return re.sub(r"(!?)\[([^\]\n]*(?:\n[^\]\n]+)?)\]\(([^)#\s]*)(?:#([^)\s]*))?\)", target, text)


def read_page(app: Sphinx, name: str, source: list[str]) -> None:
    folder = (ROOT / "docs" / name).parent
    source[0] = relinked(source[0], folder, folder)
    if name == "gallery":
        source[0] += "\n" + gallery()


def read_included(app: Sphinx, path: Path, parent: str, source: list[str]) -> None:
    file = (ROOT / "docs" / path).resolve()
    source[0] = relinked(source[0], file.parent, ROOT / "docs" / "engines")


def show_math(translator: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    """Equations as MathML, which browsers show by themselves."""
    display = ' display="block">' if isinstance(node, nodes.math_block) else ">"
    translator.body.append(tex2mathml(node.astext()).replace(">", display, 1))
    raise nodes.SkipNode


def setup(app: Sphinx) -> ExtensionMetadata:
    app.add_html_math_renderer("mathml", (show_math, None), (show_math, None))
    app.add_lexer("lammps", BashLexer)  # comments, strings and ${variables} look alike
    app.connect("source-read", read_page)
    app.connect("include-read", read_included)
    return {"parallel_read_safe": True}
