"""The terms of a GAP file that can be imported, and the refusal of all others.

A descriptor string of QUIP is a name and words `key=value`. Three sorts are known: those that are read here, those that
`gap_fit` used and that no longer matter, and those that can be imported only with the value that changes nothing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from kqeq_md.descriptor.radial import SoapParameters
from kqeq_md.elements import SYMBOLS
from kqeq_md.errors import ModelError
from kqeq_md.gap_import.gap_file import GapTerm, integer, number
from kqeq_md.structure import Floats

log = logging.getLogger(__name__)

SOAP_VERSIONS = (1426512068, 1987654320)
"""`gap_version` of files whose `soap` is this one: before, the centre counted otherwise; later, GTO is the default."""

N_BODY_VERSION = 1596837814
"""`gap_version` from which on `distance_Nb` counts ordered pairs."""

ROUNDED_N_MAX = 12
"""Beyond it rounding in QUIP itself spoils its GTO basis (3e-9 of the power spectrum at 12, 2e-4 at 16)."""

BASES = {"EQUISPACED_GAUSS": "quip_equispaced_gauss", "GTO": "quip_gto"}

TRAINING_OPTIONS = {
    "n_sparse", "config_type_n_sparse", "delta", "energy_scale", "f0", "sparse_method", "covariance_type", "zeta",
    "soap_exponent", "theta_fac", "lengthscale_factor", "theta_uniform", "lengthscale_uniform", "theta_file",
    "lengthscale_file", "sparse_file", "mark_sparse_atoms", "add_species", "print_sparse_index",
    "unique_hash_tolerance", "unique_descriptor_tolerance",
}  # fmt: skip
"""Words of a descriptor string that `gap_fit` used; what they led to stands in the file."""

NEUTRAL_OPTIONS: dict[str, dict[str, str | int]] = {
    "soap": {
        "n_Z": 1, "cutoff_dexp": 0, "cutoff_scale": 1, "cutoff_rate": 1, "average": "F", "diagonal_radial": "F",
        "normalise": "T", "normalize": "T", "covariance_sigma0": 0, "central_reference_all_species": "F",
        "basis_error_exponent": 10, "nu_R": 2, "nu_S": 2, "Z_mix": "F", "R_mix": "F", "sym_mix": "F", "coupling": "T",
        "K": 0, "mix_shift": 0,
    },
    "distance_2b": {
        "only_intra": "F", "only_inter": "F", "n_exponents": 1, "exponents": 1, "tail_range": 1, "tail_exponent": 0,
    },
    "distance_Nb": {"compact_clusters": "T"},
}  # fmt: skip
"""The only values with which a term can be imported, those that QUIP takes where the word is absent."""

READ_OPTIONS = {
    "soap": {
        "cutoff", "cutoff_transition_width", "l_max", "n_max", "atom_sigma", "atom_gaussian_width", "central_weight",
        "n_species", "species_Z", "Z", "radial_basis",
    },
    "distance_2b": {"cutoff", "cutoff_transition_width", "Z1", "Z2"},
    "distance_Nb": {"cutoff", "cutoff_transition_width", "order", "Z"},
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Soap:
    """A `soap` term, its sparse points in QUIP's order.

    Attributes:
        centre: atomic number of the atoms that it is for.
        numbers: atomic numbers in the order of the channels.
        parameters: of the power spectrum.
        zeta: exponent of the kernel.
        points: shape (m, size).
        weights: eV, shape (m,).
    """

    centre: int
    numbers: tuple[int, ...]
    parameters: SoapParameters
    zeta: float
    points: Floats
    weights: Floats


@dataclass(frozen=True, eq=False)
class Pair:
    """A `distance_2b` term: atomic numbers of the two elements, and the term without them."""

    numbers: tuple[int, int]
    points: Floats
    weights: Floats
    length: float
    cutoff: float
    cutoff_width: float


def check_options(term: GapTerm) -> None:
    """Refuse kinds of terms and words of their descriptor strings that would make another model.

    Raises:
        ModelError: the first of them, by its name.
    """
    if term.kind not in READ_OPTIONS:
        raise ModelError(f"`{term.kind}` cannot be imported, only {', '.join(READ_OPTIONS)}")
    neutral = NEUTRAL_OPTIONS[term.kind]
    for name, text in term.options.items():
        if name in neutral:
            wanted = neutral[name]
            same = logical(text, name) == wanted if isinstance(wanted, str) else number(text, name) == wanted
            if not same:
                raise ModelError(f"`{name}` can be imported only if it is {wanted}, got {text!r}")
        elif name not in READ_OPTIONS[term.kind] and name not in TRAINING_OPTIONS:
            raise ModelError(f"`{name}` is not known, so that it cannot be imported")


def logical(text: str, name: str) -> str:
    """ "T" or "F" of one of QUIP's spellings.

    Raises:
        ModelError: it is none.
    """
    word = text.strip(".").lower()
    if word not in ("t", "true", "f", "false"):
        raise ModelError(f"`{name}` must be T or F, got {text!r}")
    return word[0].upper()


def option(term: GapTerm, name: str, usual: str | None = None) -> str:
    """A word of the descriptor string, or QUIP's usual value.

    Raises:
        ModelError: it is absent and there is no usual value.
    """
    value = term.options.get(name, usual)
    if value is None:
        raise ModelError(f"`{name}` is missing in the descriptor")
    return value


def soap_of(term: GapTerm, version: int) -> Soap:
    """A `soap` term of a file of this `gap_version`.

    Raises:
        ModelError, ConfigError: an old file, another kernel or basis, wrong dimensions, no centre.
    """
    if not SOAP_VERSIONS[0] <= version <= SOAP_VERSIONS[1]:
        raise ModelError(f"`gap_version` must lie between {SOAP_VERSIONS[0]} and {SOAP_VERSIONS[1]}, got {version}")
    if term.covariance != "dot_product":
        raise ModelError(f"`covariance_type` must be dot_product, got {term.covariance}")
    if term.zeta < 1.0:
        raise ModelError(f"`zeta` must be at least 1, got {term.zeta:g}")
    parameters = soap_parameters(term)
    numbers = atomic_numbers(option(term, "species_Z"), "species_Z")
    if len(numbers) != integer(option(term, "n_species", "1"), "n_species") or len(set(numbers)) != len(numbers):
        raise ModelError(f"`species_Z` must be `n_species` different elements, got {list(numbers)}")
    channels = len(numbers) * parameters.n_max
    size = (parameters.l_max + 1) * channels * (channels + 1) // 2
    if term.points.shape[1] != size + 1 or term.points[:, -1].any():
        raise ModelError(f"`dimensions` must be {size + 1}, the last of them 0, got {term.points.shape[1]}")
    centre = atomic_numbers(option(term, "Z", "0"), "Z")
    if len(centre) != 1:
        raise ModelError(f"`Z` must be one element, got {list(centre)}")
    return Soap(centre[0], numbers, parameters, term.zeta, term.points[:, :-1], term.weights)


def soap_parameters(term: GapTerm) -> SoapParameters:
    """Parameters of the power spectrum.

    Raises:
        ModelError, ConfigError: one is missing, no number, or out of bounds.
    """
    basis = option(term, "radial_basis", "EQUISPACED_GAUSS")
    if basis not in BASES:
        raise ModelError(f"`radial_basis` must be {' or '.join(BASES)}, got {basis!r}")
    widths = [name for name in ("atom_sigma", "atom_gaussian_width") if name in term.options]
    if len(widths) != 1:
        raise ModelError(f"`atom_sigma` must stand once in the descriptor, got {widths}")
    parameters = SoapParameters(
        cutoff=number(option(term, "cutoff"), "cutoff"),
        cutoff_width=number(option(term, "cutoff_transition_width", "0.5"), "cutoff_transition_width"),
        n_max=integer(option(term, "n_max"), "n_max"),
        l_max=integer(option(term, "l_max"), "l_max"),
        sigma=number(option(term, widths[0]), widths[0]),
        basis=BASES[basis],
        switching="cosine",
        central_weight=number(option(term, "central_weight", "1"), "central_weight"),
    )
    if basis == "GTO" and parameters.n_max > ROUNDED_N_MAX:
        log.warning(
            "%s: rounding in QUIP spoils its GTO basis at n_max = %d; the imported model, free of it, differs from the "
            "fourth digit on", term.label, parameters.n_max,
        )  # fmt: skip
    return parameters


def pair_of(term: GapTerm, version: int) -> Pair:
    """A `distance_2b` term, or a `distance_Nb` of order 2, which is the same.

    Raises:
        ModelError: another kernel, a mean, wildcards, wrong dimensions, another order.
    """
    if term.covariance != "ard_se":
        raise ModelError(f"`covariance_type` must be ard_se, got {term.covariance}")
    if term.mean != 0.0:
        raise ModelError(f"`f0` must be 0, got {term.mean:g}")
    if term.points.shape[1] != 1 or len(term.theta) != 1:
        raise ModelError(f"`dimensions` must be 1, got {term.points.shape[1]}, with one theta, got {len(term.theta)}")
    if term.kind == "distance_Nb":
        if integer(option(term, "order"), "order") != 2:
            raise ModelError(f"`order` must be 2, got {option(term, 'order')}")
        if version < N_BODY_VERSION:
            raise ModelError(f"`gap_version` must be at least {N_BODY_VERSION}, got {version}")
        numbers = atomic_numbers(option(term, "Z"), "Z")
    else:
        numbers = tuple(z for name in ("Z1", "Z2") for z in atomic_numbers(option(term, name, "0"), name))
    if len(numbers) != 2:
        raise ModelError(f"it must be for two elements, got {list(numbers)}")
    return Pair(
        numbers=(numbers[0], numbers[1]),
        points=term.points[:, 0],
        weights=2.0 * term.weights,  # both orders of a pair
        length=float(term.theta[0]),
        cutoff=number(option(term, "cutoff"), "cutoff"),
        cutoff_width=number(option(term, "cutoff_transition_width", "0.5"), "cutoff_transition_width"),
    )


def atomic_numbers(text: str, name: str) -> tuple[int, ...]:
    """Atomic numbers of a list; 0 would stand for any element.

    Raises:
        ModelError: no elements.
    """
    numbers = tuple(integer(word, name) for word in text.split())
    wrong = [z for z in numbers if not 0 < z < len(SYMBOLS)]
    if wrong:
        raise ModelError(f"`{name}` must be of elements, got {wrong[0]}")
    return numbers
