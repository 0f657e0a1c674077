"""What a `.kqeq` file holds.

A zip archive of `header.json` and `.npy` arrays: no pickle, no compression and fixed time stamps, so that the same
model gives the same bytes. The header says format, version, units, species, hyperparameters, how the model was
trained, and one reference structure with its results, which `kqeq check` evaluates again on the user's machine.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kqeq_md.descriptor.power_spectrum import Descriptor
from kqeq_md.descriptor.radial import SoapParameters
from kqeq_md.elements import ATOMIC_NUMBERS
from kqeq_md.errors import KqeqError, ModelError
from kqeq_md.structure import Floats

FORMAT = "kqeq"
VERSION = 1
UNITS = {"energy": "eV", "length": "Angstrom", "charge": "e", "field": "V/Angstrom"}
PER_SPECIES = ("hardness", "gaussian_width", "electronegativity_offset", "atom_energy", "repulsion_radius")


@dataclass(frozen=True)
class Model:
    """A trained kQEq + short-range model. Arrays per species follow the order of `species`.

    Attributes:
        species: element symbols.
        soap: hyperparameters of the power spectrum.
        zeta: exponent of the kernel.
        sparse_points: unit power spectra per species, shapes (m, size).
        weights: per species, shape (m, 2): column 0 electronegativity (eV/e), column 1 short-range energy (eV).
        hardness: eta, eV/e^2.
        gaussian_width: s, standard deviation of the atomic charge, Angstrom.
        electronegativity_offset: added to the kernel's electronegativity, eV/e.
        atom_energy: added to the kernel's short-range energy, eV.
        repulsion_radius: r_i; two atoms repel (Ziegler-Biersack-Littmark) below r_i + r_j, Angstrom.
        training: how the model came about: data, seed, errors (JSON).
        reference: a structure and its results (JSON), empty until `reference.py` fills it.
    """

    species: tuple[str, ...]
    soap: SoapParameters
    zeta: int
    sparse_points: tuple[Floats, ...]
    weights: tuple[Floats, ...]
    hardness: Floats
    gaussian_width: Floats
    electronegativity_offset: Floats
    atom_energy: Floats
    repulsion_radius: Floats
    training: Mapping[str, Any] = field(default_factory=dict)
    reference: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.species)
        if n == 0 or len(set(self.species)) != n:
            raise ModelError(f"`species` must be distinct element symbols, got {list(self.species)}")
        unknown = [symbol for symbol in self.species if symbol not in ATOMIC_NUMBERS]
        if unknown:
            raise ModelError(f"`species` must be element symbols, got {unknown[0]!r}")
        if self.zeta < 1:
            raise ModelError(f"`zeta` must be at least 1, got {self.zeta}")
        for name in PER_SPECIES:
            values = getattr(self, name)
            if np.shape(values) != (n,) or not np.isfinite(values).all():
                raise ModelError(f"`{name}` must be {n} finite numbers, got {np.asarray(values).tolist()}")
        for name, least in (("gaussian_width", "positive"), ("repulsion_radius", "not negative")):
            for symbol, value in zip(self.species, getattr(self, name), strict=True):
                if value < 0 or (value == 0 and least == "positive"):
                    raise ModelError(f"`{name}` must be {least}, got {value} for {symbol}")
        self._validate_kernel()

    def _validate_kernel(self) -> None:
        size = Descriptor.size_for(self.soap, len(self.species))
        for name, columns in (("sparse_points", size), ("weights", 2)):
            arrays = getattr(self, name)
            if len(arrays) != len(self.species):
                raise ModelError(f"`{name}` must be one array per species, got {len(arrays)}")
            for symbol, array, partner in zip(self.species, arrays, self.sparse_points, strict=True):
                if array.shape != (len(partner), columns) or not np.isfinite(array).all():
                    raise ModelError(f"`{name}` of {symbol} must be finite, shape (m, {columns}), got {array.shape}")

    @property
    def cutoff(self) -> float:
        """Range of the local part, Angstrom."""
        return max(self.soap.cutoff, 2.0 * float(self.repulsion_radius.max()))

    @property
    def numbers(self) -> tuple[int, ...]:
        """Atomic numbers of the species."""
        return tuple(ATOMIC_NUMBERS[symbol] for symbol in self.species)


def model_header(model: Model) -> dict[str, Any]:
    """Everything of a model but its arrays, as JSON."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "units": UNITS,
        "species": list(model.species),
        "soap": asdict(model.soap),
        "zeta": model.zeta,
        **{name: getattr(model, name).tolist() for name in PER_SPECIES},
        "training": dict(model.training),
        "reference": dict(model.reference),
    }


def save_model(model: Model, path: str | Path) -> None:
    """Write a `.kqeq` file; the same model gives the same bytes."""
    header = model_header(model)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _write(archive, "header.json", json.dumps(header, indent=1, sort_keys=True).encode())
        for symbol, points, weights in zip(model.species, model.sparse_points, model.weights, strict=True):
            # float32: training rounds the sparse points before it fits, so nothing is lost
            _write(archive, f"sparse_points_{symbol}.npy", _npy(points.astype(np.float32)))
            _write(archive, f"weights_{symbol}.npy", _npy(weights))


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _write(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, content)


def load_model(path: str | Path) -> Model:
    """Read a `.kqeq` file.

    Raises:
        ModelError: the file is absent, truncated, not a model, newer than this version, or inconsistent.
    """
    if not isinstance(path, str | Path):
        raise ModelError(f"`model` must be a path or a Model, got {path!r}")
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
            if broken is not None:
                raise ModelError(f"model file {path} is damaged: {broken} has a wrong checksum")
            header = _header(archive, path)
            return _model(archive, header)
    except FileNotFoundError:
        raise ModelError(f"model file {path} does not exist") from None
    except OSError as error:
        raise ModelError(f"model file {path} cannot be read: {error.strerror or error}") from None
    except (zipfile.BadZipFile, EOFError):
        raise ModelError(f"model file {path} is not a .kqeq model, or is truncated") from None
    except ModelError as error:
        raise error if str(path) in str(error) else ModelError(f"model file {path}: {error}") from None
    except Exception as error:  # zipfile, json and numpy raise a dozen kinds on damaged content, some without a base
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ModelError(f"model file {path} is damaged: {reason}") from None


def _header(archive: zipfile.ZipFile, path: str | Path) -> dict[str, Any]:
    if "header.json" not in archive.namelist():
        raise ModelError(f"model file {path} is not a .kqeq model: it has no header.json")
    header = json.loads(archive.read("header.json"))
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ModelError(f"model file {path} is not a .kqeq model: its header does not say so")
    if not isinstance(header.get("version"), int) or header["version"] < 1:
        raise ModelError(f"model file {path} is damaged: version {header.get('version')!r}")
    if header["version"] > VERSION:
        raise ModelError(
            f"model file {path} has format version {header['version']}, this kqeq_md reads up to {VERSION}: update it"
        )
    if header.get("units") != UNITS:
        raise ModelError(f"model file {path} must hold the units {UNITS}, got {header.get('units')}")
    return header


def _model(archive: zipfile.ZipFile, header: Mapping[str, Any]) -> Model:
    def array(name: str) -> Floats:
        with archive.open(f"{name}.npy") as stream:
            return np.asarray(np.lib.format.read_array(stream, allow_pickle=False), dtype=np.float64)

    try:
        soap = SoapParameters(**header["soap"])
    except KqeqError as error:
        raise ModelError(str(error)) from None
    return Model(
        species=tuple(header["species"]),
        soap=soap,
        zeta=int(header["zeta"]),
        sparse_points=tuple(array(f"sparse_points_{symbol}") for symbol in header["species"]),
        weights=tuple(array(f"weights_{symbol}") for symbol in header["species"]),
        training=header["training"],
        reference=header["reference"],
        **{name: np.array(header[name], dtype=np.float64) for name in PER_SPECIES},
    )
