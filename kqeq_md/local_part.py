"""What an atom's surroundings within the cutoff decide."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from kqeq_md.descriptor.power_spectrum import Descriptor
from kqeq_md.kernel import SparseKernel, fewest_points, weighted_powers, weighted_powers_vjp
from kqeq_md.machine.threads import in_parallel
from kqeq_md.model import Model, SoapTerm
from kqeq_md.neighbours.half_list import Pairs
from kqeq_md.pair_potential import add_pair_terms, pair_tables
from kqeq_md.ranks.halo import SERIAL, Halo
from kqeq_md.short_range import add_repulsion
from kqeq_md.structure import Floats

Ints = NDArray[np.int64]

LARGEST_GROUP = 256
"""Atoms whose overlaps with all sparse points make one product of matrices: each fetches the points from memory."""

SMALLEST_GROUP = 16
"""Atoms. Fewer leave a vector unit half empty."""


@dataclass(frozen=True)
class Term:
    """One kernel on one power spectrum, ready to compute.

    Attributes:
        descriptor: the power spectrum with its tables.
        kernel: points and weights: sparse points, or others that give the same kernel or nearly so.
        zeta: exponent of the kernel.
    """

    descriptor: Descriptor
    kernel: SparseKernel
    zeta: float


class LocalKernels:
    """All that is made once of a model's kernels and pair terms.

    Args:
        model: the model.
        exact: the kernel of its sparse points also where it has one of low rank.
    """

    def __init__(self, model: Model, exact: bool = False) -> None:
        self.model = model
        self.terms = [
            Term(Descriptor(term.soap, len(model.species)), self._kernel(term, exact), float(term.zeta))
            for term in model.terms
        ]
        self.pair_tables = pair_tables(model.pair_terms, len(model.species)) if model.pair_terms else None

    @staticmethod
    def _kernel(term: SoapTerm, exact: bool) -> SparseKernel:
        if term.low_rank is not None and not exact:
            return term.low_rank
        kernel = term.sparse_kernel
        return fewest_points(kernel) if term.zeta == 2 and kernel.weights[0].shape[1] == 1 else kernel


@dataclass(frozen=True)
class Group:
    """Atoms of one element, side by side, and what the reverse pass needs of them.

    Attributes:
        element: index of the element.
        rows: the atoms, shape (n,).
        density: c in blocks, shapes (lm, a, lanes).
        overlap: o = u_m . u, shape (m, n).
    """

    element: int
    rows: Ints
    density: list[Floats]
    overlap: Floats


class LocalPart:
    """chi, E_short and the kernel's part of q0 of all centres, and their reverse pass.

    Args:
        kernels: of the model.
        species: element index of the centres, shape (n,).
        pairs: their neighbours.
        halo: how values travel between owners and ghosts.
        threads: how many work at once.

    Attributes:
        electronegativity: chi, eV/e, shape (n,); zeros for a model without charges, and so are reference charges.
        reference_charge: q0, e, shape (n,).
        energies: E_short of each centre, eV, shape (n,).
        pair_gradient: dE/d(pair vectors) of what needs no charges: repulsion, pair terms and, in a model without
            charges, the kernels; eV/Angstrom, shape (n_pairs, 3).
    """

    def __init__(
        self, kernels: LocalKernels, species: Ints, pairs: Pairs, halo: Halo = SERIAL, threads: int = 1
    ) -> None:
        model = kernels.model
        self.model, self.species, self.pairs, self.halo = model, species, pairs, halo
        self.species_all = np.asarray(halo.forward(species), dtype=np.int64)
        self._kernels, self._threads = kernels, threads
        self._groups: list[list[Group]] = []
        self.energies, self.pair_gradient = model.atom_energy[species], np.zeros_like(pairs.vectors)
        self._add_pair_terms()
        kernel = self._predict()
        self.energies += kernel[model.energy_column]
        self.electronegativity = model.electronegativity_offset[species]
        self.reference_charge = model.reference_charge[species]
        if model.has_charges:
            self.electronegativity = self.electronegativity + kernel[0]
        if model.learned_reference:
            self.reference_charge = self.reference_charge + kernel[2]

    def gradient(self, charges: Floats, reference: Floats | None = None, short_range: float = 1.0) -> Floats:
        """d/d(pair vectors) of sum_i q_i chi_i + E_short + sum_i a_i q0_i, all kernels in one reverse pass.

        Args:
            charges: q_i, e, shape (n,).
            reference: a_i, what the learned reference charges cost, eV/e, shape (n,); None for nothing.
            short_range: factor of E_short.

        Returns:
            eV/Angstrom, shape (n_pairs, 3).
        """
        model, out = self.model, short_range * self.pair_gradient
        if not model.has_charges:
            return out
        grad_y = np.zeros((model.columns, len(charges)))
        grad_y[0], grad_y[model.energy_column] = charges, short_range
        if model.learned_reference and reference is not None:
            grad_y[2] = reference
        for term, groups in zip(self._kernels.terms, self._groups, strict=True):
            in_parallel(partial(self._reverse, term, grad_y, out), groups, self._threads)
        return out

    def carried_home(self, grad_pairs: Floats) -> tuple[Floats, Floats]:
        """dE/dR of the centres, eV/Angstrom, shape (n, 3), and dE/d(strain) of all ranks, eV, shape (3, 3), from
        dE/d(pair vectors), shape (n_pairs, 3)."""
        grad_r = self.halo.reverse(self.pairs.scatter(grad_pairs, len(self.species_all)))
        return grad_r, self.halo.sum(self.pairs.vectors.T @ grad_pairs)

    def _predict(self) -> Floats:
        """y of all kernels, shape (columns, n); without charges the reverse pass follows group by group."""
        kernel = np.zeros((self.model.columns, len(self.species)))
        for term in self._kernels.terms:
            pieces = list(self._pieces(term))
            done = in_parallel(partial(self._forward, term), pieces, self._threads)
            for (_, rows), (y, _) in zip(pieces, done, strict=True):
                kernel[:, rows] += y
            self._groups.append([group for _, group in done if group is not None])
        return kernel

    def _pieces(self, term: Term) -> Iterator[tuple[int, Ints]]:
        """Groups of atoms with a kernel, several for each thread."""
        size = LARGEST_GROUP
        if self._threads > 1:
            size = min(size, max(SMALLEST_GROUP, len(self.species) // (4 * self._threads) // 8 * 8))
        return (piece for piece in same_element(self.species, size) if len(term.kernel.points[piece[0]]))

    def _forward(self, term: Term, piece: tuple[int, Ints]) -> tuple[Floats, Group | None]:
        """y of the atoms of one piece, shape (columns, n), and what the reverse pass needs if it is still to come."""
        element, rows = piece
        density = term.descriptor.density(rows, self.pairs, self.species_all)
        unit, length = term.descriptor.spectrum(density)
        overlap = term.kernel.points[element] @ unit
        y = weighted_powers(overlap, term.kernel.weights[element], term.zeta)
        group = Group(element, rows, density, overlap)
        if self.model.has_charges:
            return y, group
        self._carry_back(term, group, unit, length, np.ones((1, len(rows))), self.pair_gradient)
        return y, None

    def _reverse(self, term: Term, grad_y: Floats, out: Floats, group: Group) -> None:
        """Add what dE/dy of one group does to its pairs; the spectra are made again, which is cheaper than kept."""
        unit, length = term.descriptor.spectrum(group.density)
        self._carry_back(term, group, unit, length, np.ascontiguousarray(grad_y[:, group.rows]), out)

    def _carry_back(self, term: Term, group: Group, unit: Floats, length: Floats, grad_y: Floats, out: Floats) -> None:
        slopes = weighted_powers_vjp(group.overlap, term.kernel.weights[group.element], term.zeta, grad_y)
        term.descriptor.spectrum_vjp(
            group.rows, self.pairs, self.species_all, group.density, unit, length,
            term.kernel.points[group.element].T @ slopes, out,
        )  # fmt: skip

    def _add_pair_terms(self) -> None:
        """Repulsion and pair terms."""
        if self.model.repulsion_radius.any():
            numbers = np.array(self.model.numbers, dtype=np.float64)[self.species_all]
            radius = self.model.repulsion_radius[self.species_all]
            add_repulsion(self.pairs, numbers, radius, self.energies, self.pair_gradient)
        if (tables := self._kernels.pair_tables) is not None:
            add_pair_terms(self.pairs, self.species_all, tables, self.energies, self.pair_gradient)


def same_element(species: Ints, size: int) -> Iterator[tuple[int, Ints]]:
    """The atoms of each element in their order, at most `size` at a time: (element, rows)."""
    for element in range(int(species.max(initial=-1)) + 1):
        rows = np.flatnonzero(species == element)
        for start in range(0, len(rows), size):
            yield element, rows[start : start + size]
