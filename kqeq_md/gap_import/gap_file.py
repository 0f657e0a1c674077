"""The content of a QUIP GAP XML file, checked but not yet interpreted.

A file of `gap_fit` holds energies per element and terms (`gpCoordinates`): a descriptor string, a kernel, sparse points
and their weights; the points stand in the XML or in files beside it. Files come from strangers: no document types or
entities, no paths out of the folder, and whatever is not understood is refused by its name.
"""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from xml.etree.ElementTree import Element, ParseError, TreeBuilder, XMLParser

import numpy as np

from kqeq_md.errors import ModelError
from kqeq_md.structure import Floats

TERM_ATTRIBUTES = {
    "label", "dimensions", "signal_variance", "signal_mean", "sparsified", "n_permutations", "covariance_type", "zeta",
    "n_sparseX", "sparseX_filename", "sparseX_md5sum",
}  # fmt: skip
TERM_ELEMENTS = {"theta", "descriptor", "permutation", "sparseX"}

COVARIANCES = {1: "ard_se", 2: "dot_product", 3: "bond_real_space", 4: "pp"}


@dataclass(frozen=True, eq=False)
class GapTerm:
    """One `gpCoordinates`.

    Attributes:
        label: its name in the file.
        kind: first word of the descriptor string, such as "soap".
        options: the other words, key and value.
        covariance: name of the kernel.
        zeta: exponent of a dot product, 0 where there is none.
        theta: lengths of Gaussians, shape (dimensions,), empty where there are none.
        mean: `signal_mean`, eV.
        points: sparse points, shape (m, dimensions).
        weights: delta^2 alpha_m f_c,m, eV, shape (m,).
    """

    label: str
    kind: str
    options: Mapping[str, str]
    covariance: str
    zeta: float
    theta: Floats
    mean: float
    points: Floats
    weights: Floats


@dataclass(frozen=True, eq=False)
class GapFile:
    """What a GAP XML file says.

    Attributes:
        label: name of the potential.
        version: `gap_version`, the time of the QUIP that wrote it; 0 where there is none.
        energies: e0 by atomic number, eV.
        terms: in the order of the file.
    """

    label: str
    version: int
    energies: Mapping[int, float]
    terms: tuple[GapTerm, ...]


class _Tree(TreeBuilder):
    """Elements of a document without a document type, and so without entities."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> NoReturn:
        raise ModelError("it has a document type, which GAP files do not have")


def read_gap(path: str | Path) -> GapFile:
    """Read a GAP XML file and its sparse-point files.

    Raises:
        ModelError: the file is absent, no XML, no fitted GAP, damaged, or holds what is not known here.
    """
    try:
        root = _parse(Path(path))
        parameters = _only(root, "GAP_params")
        _check_potential(root)
        sparse = _only(parameters, "gpSparse")
        elements = sparse.findall("gpCoordinates")
        if _integer(sparse, "n_coordinate") != len(elements) or not elements:
            raise ModelError(f"`n_coordinate` must be the number of gpCoordinates, {len(elements)}, and not zero")
        _refuse_false(sparse, "fitted")
        return GapFile(
            label=parameters.get("label", ""),
            version=_integer(parameters, "gap_version") if "gap_version" in parameters.attrib else 0,
            energies=_energies(_only(parameters, "GAP_data")),
            terms=tuple(_term(element, Path(path).parent) for element in elements),
        )
    except ModelError as error:
        raise ModelError(f"GAP file {path}: {error}") from None
    except (ParseError, ValueError, LookupError) as error:  # the last two: encodings that are none
        raise ModelError(f"GAP file {path} is not well-formed XML: {error}") from None
    except OSError as error:
        raise ModelError(f"GAP file {path} cannot be read: {error.strerror or error}") from None


def _parse(path: Path) -> Element:
    parser = XMLParser(target=_Tree())
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            parser.feed(block)
    root: Element = parser.close()
    return root


def _check_potential(root: Element) -> None:
    """Refuse sums of potentials, of which the GAP would only be a part."""
    arguments = _only(root, "Potential").get("init_args", "")
    if re.fullmatch(r"IP GAP( label=\S+)?", arguments.strip()) is None:
        raise ModelError(f"`init_args` of the Potential must be `IP GAP label=...` and nothing else, got {arguments!r}")


def _energies(data: Element) -> dict[int, float]:
    if data.get("do_core", "F") != "F":
        raise ModelError(f"`do_core` (a core potential) cannot be imported, got {data.get('do_core')!r}")
    unknown = [child.tag for child in data if child.tag != "e0"]
    if unknown or not len(data):
        raise ModelError(f"GAP_data must hold `e0` of elements and nothing else, got {unknown[:1] or 'nothing'}")
    energies = {_integer(child, "Z"): _number(child, "value") for child in data}
    if len(energies) != len(data):
        raise ModelError("`e0` must stand once for each element")
    return energies


def _term(element: Element, folder: Path) -> GapTerm:
    label = element.get("label", "")
    try:
        return _checked_term(element, folder, label)
    except ModelError as error:
        raise ModelError(f"gpCoordinates {label}: {error}") from None


def _checked_term(element: Element, folder: Path, label: str) -> GapTerm:
    kind, options = descriptor_options(_only(element, "descriptor").text or "")
    unknown = sorted((set(element.attrib) - TERM_ATTRIBUTES) | ({child.tag for child in element} - TERM_ELEMENTS))
    if unknown:
        raise ModelError(f"`{unknown[0]}` is not known")
    _refuse_false(element, "sparsified")
    covariance = _integer(element, "covariance_type")
    points = _points(element, folder)
    sparse = element.findall("sparseX")
    factors = [_number(point, "alpha") * _number(point, "sparseCutoff") for point in sparse]
    theta = element.findtext("theta", "")
    with np.errstate(over="ignore"):
        weights = np.float64(_number(element, "signal_variance")) ** 2 * np.array(factors)
    if not np.isfinite(weights).all():
        raise ModelError("`signal_variance` times `alpha` must be finite")
    return GapTerm(
        label=label,
        kind=kind,
        options=options,
        covariance=COVARIANCES.get(covariance, str(covariance)),
        zeta=_number(element, "zeta") if "zeta" in element.attrib else 0.0,
        theta=_floats(theta, "theta"),
        mean=_number(element, "signal_mean"),
        points=points,
        weights=weights,
    )


def descriptor_options(text: str) -> tuple[str, dict[str, str]]:
    """The first word of a descriptor string and its `key=value` pairs, braces and quotes taken off.

    Raises:
        ModelError: no word, a word without a value, or a key twice.
    """
    words = re.findall(r"""([^\s=]+)(?:\s*=\s*(?:\{([^}]*)\}|"([^"]*)"|'([^']*)'|(\S+)))?""", text)
    if not words or any(words[0][1:]):
        raise ModelError(f"`descriptor` must begin with its name, got {text.strip()[:40]!r}")
    options: dict[str, str] = {}
    for key, *values in words[1:]:
        if not any(values):
            raise ModelError(f"`{key}` of the descriptor has no value")
        if key in options:
            raise ModelError(f"`{key}` stands twice in the descriptor")
        options[key] = "".join(values).strip()
    return words[0][0], options


def _points(element: Element, folder: Path) -> Floats:
    """Sparse points, shape (n_sparseX, dimensions), from the element itself or from the file that it names."""
    m, dimensions = _integer(element, "n_sparseX"), _integer(element, "dimensions")
    sparse = element.findall("sparseX")
    if len(sparse) != m or [_integer(point, "i") for point in sparse] != list(range(1, m + 1)):
        raise ModelError(f"`sparseX` must be {m} elements with i = 1 ... {m}, got {len(sparse)}")
    if "sparseX_filename" in element.attrib:
        flat = _points_of_file(folder, element.attrib["sparseX_filename"], element.get("sparseX_md5sum"))
    else:
        flat = np.concatenate([_floats(" ".join(point.itertext()), "sparseX") for point in sparse] or [np.empty(0)])
    if flat.size != m * dimensions or flat.size == 0 or not np.isfinite(flat).all():
        raise ModelError(f"sparse points must be {m} x {dimensions} finite numbers, at least one, got {flat.size}")
    return flat.reshape(m, dimensions)


def _points_of_file(folder: Path, name: str, md5sum: str | None) -> Floats:
    if not name or Path(name).name != name:
        raise ModelError(f"`sparseX_filename` must be a file in the same folder, got {name!r}")
    path = folder / name
    if not path.is_file():
        raise ModelError(f"`sparseX_filename`: {name} does not exist")
    if md5sum is not None and hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() != md5sum:
        raise ModelError(f"`sparseX_md5sum` does not fit {name}: it has been changed, or belongs to another model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # numpy only warns of what is no number
        try:
            return np.fromfile(path, sep=" ")
        except (ValueError, DeprecationWarning):
            raise ModelError(f"`sparseX_filename`: {name} must hold numbers only") from None


def _only(element: Element, tag: str) -> Element:
    found = element.findall(tag)
    if len(found) != 1:
        raise ModelError(f"it must hold one `{tag}`, got {len(found)}")
    return found[0]


def _refuse_false(element: Element, name: str) -> None:
    if element.get(name) != "T":
        raise ModelError(f"`{name}` must be T, got {element.get(name)!r}")


def _floats(text: str, name: str) -> Floats:
    try:
        return np.array(text.split(), dtype=np.float64)
    except ValueError:
        raise ModelError(f"`{name}` must hold numbers only") from None


def _number(element: Element, name: str) -> float:
    return number(element.get(name, ""), name)


def _integer(element: Element, name: str) -> int:
    return integer(element.get(name, ""), name)


def number(text: str, name: str) -> float:
    """A finite number.

    Raises:
        ModelError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ModelError(f"`{name}` must be a finite number, got {text!r}")
    return value


def integer(text: str, name: str) -> int:
    """A whole number.

    Raises:
        ModelError: it is none.
    """
    if re.fullmatch(r"\s*[+-]?\d{1,18}\s*", text, re.ASCII) is None:
        raise ModelError(f"`{name}` must be a whole number, got {text!r}")
    return int(text)
