"""The fit of electronegativity and short range: linear least squares in three stages.

1. Electronegativity from charges and dipoles, in closed form. Charges are linear in chi (`frozen.Response`); what the
   field and the total charge do to them is known and goes to the right side.
2. Rounds: at frozen charges, energies and forces are linear in electronegativity and short range together. Both are
   fitted to all labels, then the charges follow the new electronegativity.
3. Short range and the level of chi from what the equilibrated charges leave of energies and forces. The level
   (chi + c leaves charges alone and moves E by c Q) shows only where the total charge does not follow from the
   composition of the frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kqeq_md.descriptor.power_spectrum import Descriptor
from kqeq_md.errors import ConfigError
from kqeq_md.kernel import sparse_kernel
from kqeq_md.model import Model
from kqeq_md.potential import Potential
from kqeq_md.structure import Floats
from kqeq_md.train.config import Config, per_element
from kqeq_md.train.data import Frame, species_of
from kqeq_md.train.design import Basis, Batch, Progress, force_design, make_batch
from kqeq_md.train.frozen import ACCURACY, Response, charge_response, frozen_energy_forces
from kqeq_md.train.least_squares import LeastSquares
from kqeq_md.train.sparse import farthest_points, whitening

WIDE = 1e3
"""Prior of per-element constants (eV, eV/e): wide enough to leave them free, finite so that a fit always exists."""


@dataclass(frozen=True)
class Fitted:
    """A trained model, the same short range fitted without any charges, and whether the level of chi could be told."""

    model: Model
    short_range_only: Model
    level_determined: bool


def fit(frames: Sequence[Frame], config: Config, progress: Progress) -> Fitted:
    """Train a model on labelled frames.

    Raises:
        ConfigError: labels that the targets need are missing.
        ChargeError: hardness and widths that give no positive definite Hamiltonian.
    """
    blank = blank_model(frames, config)
    descriptor = Descriptor(blank.soap, len(blank.species))
    batch = make_batch(frames, descriptor, blank.cutoff, blank.numbers)
    basis = choose_basis(batch, config)
    blank = replace(blank, sparse_points=basis.points, weights=tuple(np.zeros((len(p), 2)) for p in basis.points))
    return _Fit(frames, config, blank, descriptor, batch, basis, progress).run()


def blank_model(frames: Sequence[Frame], config: Config) -> Model:
    """The hyperparameters as a model whose kernels are zero."""
    species = species_of(frames)
    zeros = np.zeros(len(species))
    width, radius = config.charges.gaussian_width, config.short_range.repulsion_radius
    return Model(
        species=species,
        soap=config.descriptor,
        zeta=config.kernel.zeta,
        sparse_points=(np.zeros((1, Descriptor.size_for(config.descriptor, len(species)))),) * len(species),
        weights=(np.zeros((1, 2)),) * len(species),
        hardness=np.array(per_element(config.charges.hardness, species, 0.0, "charges.hardness")),
        gaussian_width=np.array(per_element(width, species, 0.7, "charges.gaussian_width")),
        electronegativity_offset=zeros,
        atom_energy=zeros,
        repulsion_radius=np.array(per_element(radius, species, 0.7, "short_range.repulsion_radius")),
    )


def choose_basis(batch: Batch, config: Config) -> Basis:
    """Sparse points of every species by farthest-point sampling, and their whitening."""
    generator = np.random.default_rng(config.seed)
    points = tuple(
        farthest_points(batch.unit[batch.species == element], config.kernel.sparse_points, generator)
        for element in range(int(batch.species.max()) + 1)
    )
    whiten = tuple(whitening(sparse_kernel(p, p, config.kernel.zeta)) for p in points)
    return Basis(points, whiten, config.kernel.zeta)


class _Fit:
    """The training set and what stays the same during the stages.

    Unknowns are (v, constants per species) for chi and the same again for the short range: y = K U v + constant.
    """

    def __init__(
        self,
        frames: Sequence[Frame],
        config: Config,
        blank: Model,
        descriptor: Descriptor,
        batch: Batch,
        basis: Basis,
        progress: Progress,
    ) -> None:
        self.frames, self.config, self.blank, self.progress = frames, config, blank, progress
        self.descriptor, self.batch, self.basis = descriptor, batch, basis
        n_species = len(blank.species)
        self.design = np.concatenate([basis.kernel(batch), np.eye(n_species)[batch.species]], axis=1)
        self.frame_design = batch.per_frame(self.design)
        self.constants = np.zeros((3 * len(batch.species), n_species))  # a constant exerts no force
        self.responses = [self._response(f) for f in range(len(frames))]
        self.short_forces = self._force_design(np.ones(len(batch.species)))

    def run(self) -> Fitted:
        """The three stages."""
        chi = self.electronegativity_from_charges()
        for _ in range(self.config.fit.rounds):
            chi = self.refine(chi)
        charged = self._with_column(self.blank, chi, column=0)
        potential = Potential(charged, accuracy=ACCURACY)
        equilibrated = [potential.compute(frame.structure, want=("forces",)) for frame in self.frames]
        level_known = self.level_determined()
        model = self.short_range(charged, [(r.energy, _forces(r.forces)) for r in equilibrated], level_known)
        uncharged = [self._frozen(f, np.zeros(len(frame.structure))) for f, frame in enumerate(self.frames)]
        return Fitted(model, self.short_range(self.blank, uncharged, level=False), level_known)

    def electronegativity_from_charges(self) -> Floats:
        """Stage 1: (v, constants) of chi."""
        system = LeastSquares(self._prior(self.config.fit.prior_electronegativity))
        if not self._add_charge_rows(system, pad=0):
            raise ConfigError(f"`fit.targets` are {self.config.fit.targets}, but no training frame has such labels")
        return system.solve()

    def refine(self, chi: Floats) -> Floats:
        """Stage 2, one round: (v, constants) of chi from all labels, at the charges of the old ones."""
        fit, batch = self.config.fit, self.batch
        charges = np.concatenate([r.charges(self.design[self._atoms(f)] @ chi) for f, r in enumerate(self.responses)])
        columns = self.design.shape[1]
        system = LeastSquares(
            np.concatenate([self._prior(fit.prior_electronegativity), self._prior(fit.prior_short_range)])
        )
        self._add_charge_rows(system, pad=columns)
        energies = np.concatenate([batch.per_frame(charges[:, None] * self.design), self.frame_design], axis=1)
        forces = np.concatenate([self._force_design(charges), self.short_forces], axis=1)
        frozen = [self._frozen(f, charges[self._atoms(f)]) for f in range(len(self.frames))]
        self._add_energy_and_force_rows(system, energies, forces, frozen)
        return system.solve()[:columns]

    def short_range(self, model: Model, known: Sequence[tuple[float, Floats]], level: bool) -> Model:
        """Stage 3: `model` with the short range, and the level of chi if it can be told, on top of known energies."""
        total_charge = np.array([[frame.structure.charge] for frame in self.frames])
        energies, forces = self.frame_design, self.short_forces
        prior = self._prior(self.config.fit.prior_short_range)
        if level:
            energies = np.concatenate([energies, total_charge], axis=1)
            forces = np.concatenate([forces, np.zeros((len(forces), 1))], axis=1)
            prior = np.append(prior, WIDE)
        system = LeastSquares(prior)
        self._add_energy_and_force_rows(system, energies, forces, known)
        solution = system.solve()
        model = self._with_column(model, solution[: self.design.shape[1]], column=1)
        shift = solution[-1] if level else 0.0
        return replace(model, electronegativity_offset=model.electronegativity_offset + shift)

    def level_determined(self) -> bool:
        """Whether the total charge of the frames with energies is more than a function of their composition."""
        rows = [f for f, frame in enumerate(self.frames) if frame.energy is not None]
        total_charge = np.array([self.frames[f].structure.charge for f in rows])
        composition = self.frame_design[rows, self.basis.size :]  # the columns of constants count atoms
        rest = total_charge - composition @ np.linalg.lstsq(composition, total_charge, rcond=None)[0]
        return bool(np.abs(rest).max(initial=0.0) > 1e-6)

    def _add_charge_rows(self, system: LeastSquares, pad: int) -> int:
        """Rows of charge and dipole labels, with `pad` columns of zeros behind; returns how many labels there were."""
        fit, used = self.config.fit, 0
        for f, (frame, response) in enumerate(zip(self.frames, self.responses, strict=True)):
            design = np.pad(-response.inverse @ self.design[self._atoms(f)], ((0, 0), (0, pad)))
            if frame.charges is not None and "charges" in fit.targets:
                system.add(design / fit.sigma_charges, (frame.charges - response.known) / fit.sigma_charges)
                used += 1
            if frame.dipole is not None and "dipole" in fit.targets:
                positions, sigma = frame.structure.positions.T, fit.sigma_dipole * len(frame.structure)
                system.add(positions @ design / sigma, (frame.dipole - positions @ response.known) / sigma)
                used += 1
        return used

    def _add_energy_and_force_rows(
        self, system: LeastSquares, energies: Floats, forces: Floats, known: Sequence[tuple[float, Floats]]
    ) -> None:
        """Rows of energies (n_frames, columns) and forces (3 n, columns) on top of known energies and forces."""
        fit = self.config.fit
        for f, frame in enumerate(self.frames):
            energy, force = known[f]
            if frame.energy is not None:
                sigma = fit.sigma_energy * len(frame.structure)
                system.add(energies[f][None] / sigma, np.array([frame.energy - energy]) / sigma)
            if frame.forces is not None:
                atoms = self._atoms(f)
                rows = forces[3 * atoms.start : 3 * atoms.stop]
                system.add(rows / fit.sigma_forces, (frame.forces - force).ravel() / fit.sigma_forces)

    def _atoms(self, f: int) -> slice:
        return slice(int(self.batch.start[f]), int(self.batch.start[f + 1]))

    def _species(self, f: int) -> NDArray[np.int64]:
        return self.batch.species[self._atoms(f)]

    def _response(self, f: int) -> Response:
        return charge_response(self.frames[f].structure, self.blank, self._species(f))

    def _frozen(self, f: int, charges: Floats) -> tuple[float, Floats]:
        return frozen_energy_forces(self.frames[f].structure, self.blank, self._species(f), charges)

    def _force_design(self, centre_weights: Floats) -> Floats:
        learned = force_design(self.batch, self.descriptor, self.basis, centre_weights, self.progress)
        return np.concatenate([learned, self.constants], axis=1)

    def _prior(self, sigma: float) -> Floats:
        return np.concatenate([np.full(self.basis.size, sigma), np.full(len(self.blank.species), WIDE)])

    def _with_column(self, model: Model, solution: Floats, column: int) -> Model:
        """`model` with one column of its kernel weights and its constants set: 0 electronegativity, 1 short range."""
        weights = [w.copy() for w in model.weights]
        for w, learned in zip(weights, self.basis.weights(solution[: self.basis.size]), strict=True):
            w[:, column] = learned
        name = ("electronegativity_offset", "atom_energy")[column]
        constants = {name: solution[self.basis.size :]}
        return replace(model, weights=tuple(weights), **constants)  # type: ignore[arg-type]


def _forces(forces: Floats | None) -> Floats:
    assert forces is not None
    return forces
