"""What a `.kqeq` file holds.

An archive (`archive.py`) of `header.json`, `.npy` arrays and checksums: no pickle, and the same model gives the same
bytes. The header says format, version, units, species, hyperparameters, how the model was trained, and one reference
structure with its results, which `kqeq check` evaluates again on the user's machine.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kqeq_md.archive import SUMS, pack, unpack
from kqeq_md.charges.charge_model import CHARGE_MODELS
from kqeq_md.descriptor.power_spectrum import Descriptor
from kqeq_md.descriptor.radial import SoapParameters
from kqeq_md.elements import ATOMIC_NUMBERS, COVALENT_RADII
from kqeq_md.errors import ConfigError, KqeqError, ModelError
from kqeq_md.kernel import SparseKernel
from kqeq_md.machine.files import write_whole
from kqeq_md.pair_potential import PairTerm
from kqeq_md.structure import Floats, Structure

FORMAT = "kqeq"
VERSION = 4
SINCE_SUMS = 4
"""The first version whose files have checksums."""
UNITS = {"energy": "eV", "length": "Angstrom", "charge": "e", "field": "V/Angstrom"}
PER_SPECIES = (
    "hardness", "gaussian_width", "electronegativity_offset", "atom_energy", "repulsion_radius", "reference_charge",
)  # fmt: skip

PAIR_NUMBERS = ("species", "length", "cutoff", "cutoff_width")
PER_PAIR = ("compliance", "compliance_cutoff")
RECORDS = ("training", "reference", "fragment")

NO_CHARGES = "none"
"""`Model.charges` of a model that is nothing but a short-range potential."""

LARGEST_ZETA = 100.0

LARGEST_COMPLIANCE = 1e6
"""e^2/eV. Beyond it a bond is a wire, and rounding all that is left of its resistance."""


SHORTEST_BOND, LONGEST_BOND = 0.1, 20.0
"""Angstrom, of the cutoffs of split charges: bonds are between neighbours."""


def usual_compliance(species: Sequence[str]) -> tuple[Floats, Floats]:
    """c0 (0.11 e^2/eV) and cutoff (the sum of covalent radii and 1.4 Angstrom) of split charges for each two elements.

    Bonds conduct, contacts of molecules hardly. With hardness 5 eV/e^2 and widths of 0.6 Angstrom polarizabilities are
    0.94 of GFN2-xTB's for water clusters and 0.75 for hydrocarbons, a part of which are dipoles of atoms.

    Returns:
        two tables of shape (n, n).
    """
    radius = np.array([COVALENT_RADII[ATOMIC_NUMBERS[symbol]] for symbol in species])
    contact: Floats = radius[:, None] + radius[None, :]
    return np.full_like(contact, 0.11), contact + 1.4


@dataclass(frozen=True)
class SoapTerm:
    """A sparse kernel on the power spectrum of all elements.

    Attributes:
        soap: hyperparameters of the power spectrum.
        zeta: exponent of the kernel.
        sparse_points: unit power spectra per species, shapes (m, size); m may be 0.
        weights: per species, shape (m, 2) or (m, 3): column 0 electronegativity (eV/e), column 1 short-range energy
            (eV), column 2 the learned part of the reference charge of split charges (e); shape (m, 1), the energy
            alone, in a model without charges.
        low_rank: the kernel of low rank that stands for it (`kernel.py`), None if there is none.
    """

    soap: SoapParameters
    zeta: float
    sparse_points: tuple[Floats, ...]
    weights: tuple[Floats, ...]
    low_rank: SparseKernel | None = None

    @property
    def sparse_kernel(self) -> SparseKernel:
        """The exact kernel."""
        return SparseKernel(self.sparse_points, self.weights)


@dataclass(frozen=True)
class Model:
    """A trained kQEq + short-range model. Arrays per species follow the order of `species`; zeros if they are None.

    Attributes:
        species: element symbols.
        terms: kernels, which add up; electronegativity and short range share each of them.
        hardness: eta, eV/e^2.
        gaussian_width: s, standard deviation of the atomic charge, Angstrom.
        electronegativity_offset: added to the kernel's electronegativity, eV/e.
        atom_energy: added to the kernel's short-range energy, eV.
        repulsion_radius: r_i; two atoms repel (Ziegler-Biersack-Littmark) below r_i + r_j, Angstrom.
        reference_charge: q0 of split charges, added to the kernel's, e.
        charges: the charge model that it was trained for: "qeq", "fragments" or "split"; "none" for a potential
            without charges.
        compliance: c0 of split charges for each two elements, e^2/eV, shape (n, n); `usual_compliance` if None.
        compliance_cutoff: r_c of split charges for each two elements, Angstrom, shape (n, n), or one number for all;
            `usual_compliance` if None.
        pair_terms: energies of pairs of elements, which add up.
        training: how the model came about: data, seed, errors (JSON).
        reference: a structure and its results (JSON), empty until `reference.py` fills it.
        fragment: a small neutral structure of the training set for `kqeq diagnose` (JSON), empty if there was none.
    """

    species: tuple[str, ...]
    terms: tuple[SoapTerm, ...]
    hardness: Floats = None  # type: ignore[assignment]
    gaussian_width: Floats = None  # type: ignore[assignment]
    electronegativity_offset: Floats = None  # type: ignore[assignment]
    atom_energy: Floats = None  # type: ignore[assignment]
    repulsion_radius: Floats = None  # type: ignore[assignment]
    reference_charge: Floats = None  # type: ignore[assignment]
    charges: str = "qeq"
    compliance: Floats = None  # type: ignore[assignment]
    compliance_cutoff: Floats = None  # type: ignore[assignment]
    pair_terms: tuple[PairTerm, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    reference: Mapping[str, Any] = field(default_factory=dict)
    fragment: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.species)
        if n == 0 or len(set(self.species)) != n:
            raise ModelError(f"`species` must be distinct element symbols, got {list(self.species)}")
        unknown = [symbol for symbol in self.species if symbol not in ATOMIC_NUMBERS]
        if unknown:
            raise ModelError(f"`species` must be element symbols, got {unknown[0]!r}")
        if self.charges not in (*CHARGE_MODELS, NO_CHARGES):
            raise ModelError(f"`charges` must be {', '.join(CHARGE_MODELS)} or {NO_CHARGES}, got {self.charges!r}")
        for name in RECORDS:
            if not isinstance(getattr(self, name), Mapping):
                raise ModelError(f"`{name}` must be a table, got {getattr(self, name)!r:.100}")
        self._validate_species()
        self._validate_split()
        self._validate_terms()
        self._validate_fragment()

    def _validate_species(self) -> None:
        n = len(self.species)
        for name in PER_SPECIES:
            if getattr(self, name) is None:
                object.__setattr__(self, name, np.zeros(n))
            values = getattr(self, name)
            if np.shape(values) != (n,) or not np.isfinite(values).all():
                raise ModelError(f"`{name}` must be {n} finite numbers, got {np.asarray(values).tolist()}")
        for name, positive in (("gaussian_width", self.has_charges), ("repulsion_radius", False)):
            for symbol, value in zip(self.species, getattr(self, name), strict=True):
                if value < 0 or (value == 0 and positive):
                    rule = "positive" if positive else "not negative"
                    raise ModelError(f"`{name}` must be {rule}, got {value} for {symbol}")

    def _validate_fragment(self) -> None:
        if not self.fragment:
            return
        try:
            Structure(self.fragment["numbers"], self.fragment["positions"])
        except (KqeqError, KeyError, TypeError, IndexError) as error:
            raise ModelError(f"`fragment` must hold `numbers` and `positions` of a structure: {error}") from None

    def _validate_split(self) -> None:
        n = len(self.species)
        for name, usual in zip(PER_PAIR, usual_compliance(self.species), strict=True):
            given = getattr(self, name)
            table = usual if given is None else np.full((n, n), given) if np.ndim(given) == 0 else given
            object.__setattr__(self, name, table)
        for name, low, high in zip(PER_PAIR, (0.0, SHORTEST_BOND), (LARGEST_COMPLIANCE, LONGEST_BOND), strict=True):
            table = np.asarray(getattr(self, name))
            good = table.shape == (n, n) and ((table >= low) & (table <= high)).all() and np.array_equal(table, table.T)
            if not good:
                raise ModelError(
                    f"`{name}` must be a symmetric table of {n} x {n} numbers from {low:g} to {high:g}, "
                    f"got {table.tolist()}"
                )

    def _validate_terms(self) -> None:
        if not self.terms and (self.has_charges or not self.pair_terms):
            raise ModelError("`terms` must hold at least one kernel, got none")
        allowed = (2, 3) if self.has_charges else (1,)
        if self.terms and self.columns not in allowed:
            raise ModelError(f"`weights` must have {' or '.join(map(str, allowed))} columns, got {self.columns}")
        for term in self.terms:
            if not 1.0 <= term.zeta <= LARGEST_ZETA:
                raise ModelError(f"`zeta` must lie between 1 and {LARGEST_ZETA:g}, got {term.zeta}")
            self._validate_kernel("sparse_points", "weights", term.soap, term.sparse_points, term.weights)
            if (low := term.low_rank) is not None:
                if term.zeta != 2:
                    raise ModelError(f"`zeta` must be 2 for a kernel of low rank, got {term.zeta}")
                self._validate_kernel("low_rank_points", "low_rank_weights", term.soap, low.points, low.weights)
        for pair in self.pair_terms:
            if len(pair.species) != 2 or not all(0 <= index < len(self.species) for index in pair.species):
                raise ModelError(f"`species` of a pair term must be indices of two elements, got {pair.species}")

    def _validate_kernel(
        self, name_of_points: str, name_of_weights: str, soap: SoapParameters,
        points: tuple[Floats, ...], weights: tuple[Floats, ...],
    ) -> None:  # fmt: skip
        size = Descriptor.size_for(soap, len(self.species))
        for name, arrays, columns in ((name_of_points, points, size), (name_of_weights, weights, self.columns)):
            if len(arrays) != len(self.species):
                raise ModelError(f"`{name}` must be one array per species, got {len(arrays)}")
            for symbol, array, partner in zip(self.species, arrays, points, strict=True):
                if array.shape != (len(partner), columns) or not np.isfinite(array).all():
                    raise ModelError(f"`{name}` of {symbol} must be finite, shape (m, {columns}), got {array.shape}")

    @property
    def cutoff(self) -> float:
        """Range of the descriptors, the repulsion and the pair terms, Angstrom."""
        ranges = [*(term.soap.cutoff for term in self.terms), *(pair.cutoff for pair in self.pair_terms)]
        return max(2.0 * float(self.repulsion_radius.max()), *ranges)

    @property
    def has_charges(self) -> bool:
        """False for a model that is nothing but a short-range potential."""
        return self.charges != NO_CHARGES

    @property
    def columns(self) -> int:
        """How many columns the weights have."""
        return int(self.terms[0].weights[0].shape[-1]) if self.terms and self.terms[0].weights else 1

    @property
    def energy_column(self) -> int:
        """The column of the short-range energy."""
        return 1 if self.has_charges else 0

    @property
    def learned_reference(self) -> bool:
        """True if the kernel has its part in the reference charges of split charges."""
        return self.columns == 3

    def with_weights(self, weights: Sequence[Floats]) -> Model:
        """The same model with other weights of its only term, per species, and no kernel of low rank."""
        (term,) = self.terms
        return replace(self, terms=(replace(term, weights=tuple(weights), low_rank=None),))

    @property
    def numbers(self) -> tuple[int, ...]:
        """Atomic numbers of the species."""
        return tuple(ATOMIC_NUMBERS[symbol] for symbol in self.species)


@contextmanager
def reading(record: str) -> Iterator[None]:
    """While what a file says in one of its RECORDS is read.

    Raises:
        ModelError: something else stands there than this package writes.
    """
    try:
        yield
    except KqeqError:
        raise
    except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ModelError(f"`{record}` of the model cannot be understood: {reason}") from None


def model_header(model: Model) -> dict[str, Any]:
    """Everything of a model but its arrays, as JSON."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "units": UNITS,
        "species": list(model.species),
        "terms": [
            {"soap": asdict(term.soap), "zeta": term.zeta, "low_rank": term.low_rank is not None}
            for term in model.terms
        ],
        "pair_terms": [{name: getattr(pair, name) for name in PAIR_NUMBERS} for pair in model.pair_terms],
        **{name: getattr(model, name).tolist() for name in (*PER_SPECIES, *PER_PAIR)},
        "charges": model.charges,
        **{name: dict(getattr(model, name)) for name in RECORDS},
    }


def save_model(model: Model, path: str | Path) -> None:
    """Write a `.kqeq` file, whole or not at all; the same model gives the same bytes."""
    members = {"header.json": json.dumps(model_header(model), indent=1, sort_keys=True).encode()}
    for index, term in enumerate(model.terms):
        for name, arrays in _arrays_of(term).items():
            for symbol, array in zip(model.species, arrays, strict=True):
                members[_file_of(name, symbol, index)] = _npy(array)
    for index, pair in enumerate(model.pair_terms):
        for name in ("points", "weights"):
            members[f"pair_{name}_{index}.npy"] = _npy(getattr(pair, name))
    write_whole(path, pack(members))


def _arrays_of(term: SoapTerm) -> dict[str, tuple[NDArray[np.floating], ...]]:
    """The arrays of a term by their names in the file; sparse points in single precision where nothing is lost."""
    single = tuple(p.astype(np.float32) for p in term.sparse_points)
    lossless = all(np.array_equal(a, b) for a, b in zip(single, term.sparse_points, strict=True))
    points = single if lossless else term.sparse_points
    arrays: dict[str, tuple[NDArray[np.floating], ...]] = {"sparse_points": points, "weights": term.weights}
    if term.low_rank is not None:
        arrays |= {"low_rank_points": term.low_rank.points, "low_rank_weights": term.low_rank.weights}
    return arrays


def _file_of(name: str, symbol: str, index: int) -> str:
    """Where an array of one species and one term stands in the archive: the first term's have no number."""
    return f"{name}_{symbol}_{index}.npy" if index else f"{name}_{symbol}.npy"


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def load_model(path: str | Path) -> Model:
    """Read a `.kqeq` file.

    Raises:
        ModelError: the file is absent, truncated, not a model, newer than this version, or inconsistent.
    """
    if not isinstance(path, str | Path):
        raise ModelError(f"`model` must be a path or a Model, got {path!r}")
    try:
        members = unpack(path)
        return _model(members, _header(members, path))
    except FileNotFoundError:
        raise ModelError(f"model file {path} does not exist") from None
    except OSError as error:
        raise ModelError(f"model file {path} cannot be read: {error.strerror or error}") from None
    except (zipfile.BadZipFile, EOFError):
        raise ModelError(f"model file {path} is not a .kqeq model, or is truncated or damaged") from None
    except ModelError as error:
        raise error if str(path) in str(error) else ModelError(f"model file {path}: {error}") from None
    except Exception as error:  # zipfile, json and numpy raise a dozen kinds on damaged content, some without a base
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ModelError(f"model file {path} is damaged: {reason}") from None


def _header(members: Mapping[str, bytes], path: str | Path) -> dict[str, Any]:
    if "header.json" not in members:
        raise ModelError(f"model file {path} is not a .kqeq model: it has no header.json")
    header = json.loads(members["header.json"])
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ModelError(f"model file {path} is not a .kqeq model: its header does not say so")
    if not isinstance(header.get("version"), int) or header["version"] < 1:
        raise ModelError(f"model file {path} is damaged: version {header.get('version')!r}")
    if header["version"] > VERSION:
        raise ModelError(
            f"model file {path} has format version {header['version']}, this kqeq_md reads up to {VERSION}: update it"
        )
    if header["version"] >= SINCE_SUMS and SUMS not in members:
        raise ModelError(f"model file {path} is damaged: it has no {SUMS}")
    if header.get("units") != UNITS:
        raise ModelError(f"model file {path} must hold the units {UNITS}, got {header.get('units')}")
    return _migrated(header)


def _migrated(header: dict[str, Any]) -> dict[str, Any]:
    """A header of any earlier version as one of this version."""
    if header["version"] == 1:  # before split charges
        species = header["species"]
        added = {
            **{name: table.tolist() for name, table in zip(PER_PAIR, usual_compliance(species), strict=True)},
            "reference_charge": [0.0] * len(species),
            "charges": "qeq",
            "fragment": {},
        }
        header = {**header, **added, "version": 2}
    if header["version"] == 2:  # one kernel without low rank, no pair terms
        soap = {"basis": "gto", "switching": "quintic", "central_weight": 1.0, **header["soap"]}
        term = {"soap": soap, "zeta": header["zeta"], "low_rank": False}
        header = {**header, "terms": [term], "pair_terms": [], "version": 3}
    if header["version"] == 3:  # without checksums
        header = {**header, "version": 4}
    return header


def _read_npy(file: str, content: bytes) -> Floats:
    """An array as `_npy` writes it; what its head says is held against the bytes before memory is taken for it."""
    stream = io.BytesIO(content)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ModelError(f"{file} has another version of the npy format")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype not in (np.float32, np.float64):
        raise ModelError(f"{file} must hold real numbers, got {dtype}")
    if prod(shape) * dtype.itemsize != len(content) - stream.tell():
        raise ModelError(f"{file} must hold as many bytes as its shape {shape} needs")
    stream.seek(0)
    return np.ascontiguousarray(np.lib.format.read_array(stream, allow_pickle=False), dtype=np.float64)


def _model(members: Mapping[str, bytes], header: Mapping[str, Any]) -> Model:
    def array(file: str) -> Floats:
        return _read_npy(file, members[file])

    def arrays(name: str, index: int) -> tuple[Floats, ...]:
        return tuple(array(_file_of(name, symbol, index)) for symbol in header["species"])

    def term(index: int, record: Mapping[str, Any]) -> SoapTerm:
        low = None
        if record["low_rank"]:
            low = SparseKernel(arrays("low_rank_points", index), arrays("low_rank_weights", index))
        missing = {entry.name for entry in fields(SoapParameters)} - set(record["soap"])
        if missing:
            raise ModelError(f"`soap` must hold all hyperparameters, got none for {min(missing)}")
        soap = SoapParameters(**record["soap"])
        return SoapTerm(soap, record["zeta"], arrays("sparse_points", index), arrays("weights", index), low)

    def pair_term(index: int, record: Mapping[str, Any]) -> PairTerm:
        numbers = {name: record[name] for name in PAIR_NUMBERS} | {"species": tuple(record["species"])}
        return PairTerm(points=array(f"pair_points_{index}.npy"), weights=array(f"pair_weights_{index}.npy"), **numbers)

    plain: dict[str, Any] = {name: header[name] for name in ("charges", *RECORDS)}
    plain |= {name: np.array(header[name], dtype=np.float64) for name in (*PER_SPECIES, *PER_PAIR)}
    try:
        return Model(
            species=tuple(header["species"]),
            terms=tuple(term(index, record) for index, record in enumerate(header["terms"])),
            pair_terms=tuple(pair_term(index, record) for index, record in enumerate(header["pair_terms"])),
            **plain,
        )
    except ConfigError as error:  # of the hyperparameters
        raise ModelError(str(error)) from None
