"""What an atom's surroundings within the cutoff decide."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kqeq_md.descriptor.power_spectrum import Descriptor
from kqeq_md.halo import SERIAL, Halo
from kqeq_md.kernel import normalise, normalise_vjp, predict, predict_vjp
from kqeq_md.model import Model
from kqeq_md.neighbours import Pairs
from kqeq_md.short_range import repulsion
from kqeq_md.structure import Floats


class LocalPart:
    """chi, E_short and the kernel's part of q0 of all centres, and their reverse pass."""

    def __init__(
        self,
        model: Model,
        descriptor: Descriptor,
        species: NDArray[np.int64],
        pairs: Pairs,
        halo: Halo = SERIAL,
    ) -> None:
        self.model, self.descriptor = model, descriptor
        self.species, self.pairs = species, pairs
        self.species_all = np.asarray(halo.forward(species), dtype=np.int64)
        p, self.coefficients = self.descriptor.power_spectrum(pairs, self.species_all)
        self.unit, self.length = normalise(p)
        kernel = predict(self.unit, species, model.sparse_points, model.weights, model.zeta)
        numbers_all = np.array(model.numbers, dtype=np.float64)[self.species_all]
        repelled, self.repulsion_gradient = repulsion(pairs, numbers_all, model.repulsion_radius[self.species_all])
        self.electronegativity = kernel[:, 0] + model.electronegativity_offset[species]
        self.energies = kernel[:, 1] + model.atom_energy[species] + repelled
        self.reference_charge = model.reference_charge[species]
        if model.learned_reference:
            self.reference_charge = self.reference_charge + kernel[:, 2]

    def gradient(self, charges: Floats, reference: Floats | None = None, short_range: float = 1.0) -> Floats:
        """d/d(pair vectors) of sum_i q_i chi_i + E_short + sum_i a_i q0_i, all kernels in one reverse pass.

        Args:
            charges: q_i, e, shape (n,).
            reference: a_i, what the learned reference charges cost, eV/e, shape (n,); None for nothing.
            short_range: factor of E_short.

        Returns:
            eV/Angstrom, shape (n_pairs, 3).
        """
        model = self.model
        grad_y = np.zeros((len(charges), model.weights[0].shape[1]))
        grad_y[:, 0], grad_y[:, 1] = charges, short_range
        if model.learned_reference and reference is not None:
            grad_y[:, 2] = reference
        grad_unit = predict_vjp(self.unit, self.species, model.sparse_points, model.weights, model.zeta, grad_y)
        grad_p = normalise_vjp(self.unit, self.length, grad_unit)
        learned = self.descriptor.power_spectrum_vjp(self.pairs, self.species_all, self.coefficients, grad_p)
        return learned + short_range * self.repulsion_gradient
