"""Gaussian approximation potentials of QUIP as models: `soap`, `distance_2b` and energies per element.

    E = sum_i e0_i + sum_terms sum_i sum_m w_m (p_i . p_m)^zeta + sum_terms sum_(i != j) f_c(r_ij) sum_m w_m exp(...)

with w_m = delta^2 alpha_m f_c,m. QUIP's pair sum runs over ordered pairs. Its power spectrum has the same numbers as
ours in another order: channels a = (element in the order of `species_Z`, n), pairs b <= a one after the other, l
fastest; a last number is 0. Whatever would make another model is refused by its name.

References: Bartok, Kondor, Csanyi, Phys. Rev. B 87, 184115 (2013), doi:10.1103/PhysRevB.87.184115; Bartok and Csanyi,
Int. J. Quantum Chem. 115, 1051 (2015), doi:10.1002/qua.24927.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kqeq_md.descriptor.radial import SoapParameters
from kqeq_md.elements import SYMBOLS
from kqeq_md.errors import ConfigError, ModelError
from kqeq_md.gap_import.gap_file import GapFile, read_gap
from kqeq_md.gap_import.terms import Pair, Soap, check_options, pair_of, soap_of
from kqeq_md.model import Model, SoapTerm
from kqeq_md.pair_potential import PairTerm
from kqeq_md.structure import Floats


def import_gap(path: str | Path) -> Model:
    """The model of a QUIP GAP XML file; its sparse-point files lie beside it.

    Raises:
        ModelError: the file cannot be read, or holds what cannot be imported, by its name.
    """
    gap = read_gap(path)
    try:
        return to_model(gap)
    except (ModelError, ConfigError) as error:
        raise ModelError(f"GAP file {path}: {error}") from None


def to_model(gap: GapFile) -> Model:
    """The model of a GAP; its species in the order of their atomic numbers.

    Raises:
        ModelError: a term that cannot be imported, by its name.
    """
    soaps: list[Soap] = []
    pairs: list[Pair] = []
    for term in gap.terms:
        try:
            check_options(term)
            if term.kind == "soap":
                soaps.append(soap_of(term, gap.version))
            else:
                pairs.append(pair_of(term, gap.version))
        except (ModelError, ConfigError) as error:
            raise ModelError(f"gpCoordinates {term.label} ({term.kind}): {error}") from None
    of_soaps = {z for soap in soaps for z in (soap.centre, *soap.numbers)}
    numbers = sorted(of_soaps | {z for pair in pairs for z in pair.numbers})
    check_elements(gap, soaps, numbers)
    return Model(
        species=tuple(str(SYMBOLS[z]) for z in numbers),
        terms=soap_terms(soaps, numbers),
        charges="none",
        atom_energy=np.array([gap.energies[z] for z in numbers]),
        pair_terms=tuple(pair_term(pair, numbers) for pair in pairs),
        training={"imported": "QUIP GAP", "label": gap.label, "gap_version": gap.version},
    )


def check_elements(gap: GapFile, soaps: Sequence[Soap], numbers: Sequence[int]) -> None:
    """Refuse models that are blind for one of their elements.

    Raises:
        ModelError: an element without e0; a soap whose neighbours are not of all elements.
    """
    without = [z for z in numbers if z not in gap.energies]
    if without:
        raise ModelError(f"`e0` must be given for all elements, got none for {SYMBOLS[without[0]]}")
    for soap in soaps:
        blind = sorted(set(numbers) - set(soap.numbers))
        if blind:
            raise ModelError(
                f"`species_Z` of every soap must hold all elements of the model, got one of {SYMBOLS[soap.centre]} "
                f"without {SYMBOLS[blind[0]]}"
            )


def soap_terms(soaps: Sequence[Soap], numbers: Sequence[int]) -> tuple[SoapTerm, ...]:
    """One term for each set of parameters and zeta, with the sparse points of all its centres."""
    groups: dict[tuple[SoapParameters, float], list[Soap]] = {}
    for soap in soaps:
        groups.setdefault((soap.parameters, soap.zeta), []).append(soap)
    return tuple(_soap_term(*shared, group, numbers) for shared, group in groups.items())


def _soap_term(parameters: SoapParameters, zeta: float, group: Sequence[Soap], numbers: Sequence[int]) -> SoapTerm:
    no_points, no_weights = np.empty((0, group[0].points.shape[1])), np.empty((0, 1))
    points, weights = [], []
    for z in numbers:
        own = [soap for soap in group if soap.centre == z]
        points.append(np.concatenate([no_points, *(_reordered(soap, numbers) for soap in own)]))
        weights.append(np.concatenate([no_weights, *(soap.weights[:, None] for soap in own)]))
    return SoapTerm(soap=parameters, zeta=zeta, sparse_points=tuple(points), weights=tuple(weights))


def _reordered(soap: Soap, numbers: Sequence[int]) -> Floats:
    """Sparse points in our order: l slowest, then a <= b over channels (element in the order of `numbers`, n)."""
    n_max, n_l = soap.parameters.n_max, soap.parameters.l_max + 1
    channel = np.concatenate([soap.numbers.index(z) * n_max + np.arange(n_max) for z in numbers])
    a, b = np.triu_indices(len(channel))
    low, high = np.sort([channel[a], channel[b]], axis=0)
    pair = high * (high + 1) // 2 + low
    return soap.points[:, (pair * n_l + np.arange(n_l)[:, None]).ravel()]


def pair_term(pair: Pair, numbers: Sequence[int]) -> PairTerm:
    """A pair term by the indices of its elements."""
    first, second = (list(numbers).index(z) for z in pair.numbers)
    return PairTerm((first, second), pair.points, pair.weights, pair.length, pair.cutoff, pair.cutoff_width)
