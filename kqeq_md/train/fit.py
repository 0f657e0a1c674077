"""The fit of electronegativity, learned reference charges and short range: linear least squares in three stages.

1. Electronegativity and reference charges from charges and dipoles, in closed form. Charges are linear in both
   (`frozen.Response`); what the field and the total charge do to them is known and goes to the right side.
2. Rounds: at frozen charges, energies and forces are linear in electronegativity, reference charges and short range
   together. All are fitted to all labels, then the charges follow.
3. Short range and the level of chi from what the equilibrated charges leave of energies and forces. The level
   (chi + c leaves charges alone and moves E by c Q) shows only where the total charge does not follow from the
   composition of the frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kqeq_md.descriptor.power_spectrum import Descriptor
from kqeq_md.errors import ConfigError, KqeqError
from kqeq_md.kernel import sparse_kernel
from kqeq_md.model import Model, SoapTerm, usual_compliance
from kqeq_md.neighbours import find_pairs
from kqeq_md.potential import Equilibrated, Potential
from kqeq_md.short_range import add_repulsion
from kqeq_md.structure import Floats
from kqeq_md.train.config import HARDNESS, WIDE_ENOUGH, Config, PerElement, per_element, per_pair, usual_radii
from kqeq_md.train.data import Frame, species_of
from kqeq_md.train.design import Basis, Batch, Progress, force_design, make_batch
from kqeq_md.train.frozen import ACCURACY, Response, charge_response, freeze
from kqeq_md.train.least_squares import LeastSquares
from kqeq_md.train.molecules import prepared, smallest_fragment
from kqeq_md.train.sparse import farthest_points, whitening

WIDE = 1e3
"""Prior of per-element constants (eV, eV/e): wide enough to leave them free, finite so that a fit always exists."""

CONSTANTS = ("electronegativity_offset", "atom_energy", "reference_charge")
"""Of each column of the weights, what a model adds to its kernel per element."""


@dataclass(frozen=True)
class Fitted:
    """A trained model, the same short range fitted without any charges, and whether the level of chi could be told."""

    model: Model
    short_range_only: Model
    level_determined: bool


def fit(frames: Sequence[Frame], config: Config, progress: Progress) -> Fitted:
    """Train a model on labelled frames.

    Raises:
        ConfigError: labels that the targets need are missing, hardness and widths that give no positive definite
            Hamiltonian, fields or fragments of a frame that do not go with the charge model.
    """
    blank = blank_model(frames, config)
    descriptor = Descriptor(config.descriptor, len(blank.species))
    batch = make_batch(frames, descriptor, blank.cutoff, blank.numbers)
    basis = choose_basis(batch, config)
    columns = 3 if config.charges.learns_reference else 2
    weights = tuple(np.zeros((len(p), columns)) for p in basis.points)
    term = replace(blank.terms[0], sparse_points=basis.points, weights=weights)
    blank = replace(blank, terms=(term,))
    return _Fit(frames, config, blank, descriptor, batch, basis, progress).run()


def blank_model(frames: Sequence[Frame], config: Config) -> Model:
    """The hyperparameters as a model whose kernels are zero."""
    species, charges = species_of(frames), config.charges
    zeros, radii = np.zeros(len(species)), usual_radii(species)
    compliance, cutoff = usual_compliance(species)
    widths = np.maximum(radii, WIDE_ENOUGH if charges.model == "split" else 0.0)

    def each(value: PerElement | None, usual: Floats, name: str) -> Floats:
        return np.array(per_element(value, species, usual, name))

    no_points, no_weights = np.empty((0, Descriptor.size_for(config.descriptor, len(species)))), np.empty((0, 2))
    blank = SoapTerm(config.descriptor, config.kernel.zeta, (no_points,) * len(species), (no_weights,) * len(species))
    fixed = charges.reference_charges
    return Model(
        species=species,
        terms=(blank,),
        hardness=each(charges.hardness, zeros + HARDNESS[charges.model], "charges.hardness"),
        gaussian_width=each(charges.gaussian_width, widths, "charges.gaussian_width"),
        electronegativity_offset=zeros,
        atom_energy=zeros,
        repulsion_radius=each(config.short_range.repulsion_radius, radii, "short_range.repulsion_radius"),
        reference_charge=zeros if isinstance(fixed, str) else each(fixed, zeros, "charges.reference_charges"),
        charges=charges.model,
        compliance=per_pair(charges.compliance, species, compliance),
        compliance_cutoff=per_pair(charges.compliance_cutoff, species, cutoff),
        fragment=smallest_fragment(frames),
    )


def choose_basis(batch: Batch, config: Config) -> Basis:
    """Sparse points of every species by farthest-point sampling, and their whitening."""
    generator = np.random.default_rng(config.seed)
    points = tuple(
        farthest_points(batch.spectra(element), config.kernel.sparse_points, generator)
        for element in range(int(batch.species.max()) + 1)
    )
    whiten = tuple(whitening(sparse_kernel(p, p, config.kernel.zeta)) for p in points)
    return Basis(points, whiten, config.kernel.zeta)


class _Fit:
    """The training set and what stays the same during the stages.

    Unknowns are (v, constants per species) of each y = K U v + constant: chi, then the reference charges if they are
    learned, together `learned`, then the short range.
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
        self.design = np.concatenate([basis.kernel(batch), np.eye(len(blank.species))[batch.species]], axis=1)
        self.frame_design = batch.per_frame(self.design)
        self.responses = self._responses()
        self.short_forces = self._force_designs([np.ones(len(batch.species))])[0]

    def run(self) -> Fitted:
        """The three stages."""
        learned = self.from_charges()
        for _ in range(self.config.fit.rounds):
            learned = self.refine(learned)
        charged = self._with_charges(learned)
        potential, known = Potential(charged, ACCURACY), []
        for frame in self.frames:
            result = prepared(potential, frame).compute(frame.structure, want=("forces",))
            known.append((result.energy, _given(result.forces)))
        level_known = self.level_determined()
        model = self.short_range(charged, known, level_known)
        alone = self.short_range(self.blank, [self._repulsion(f) for f in range(len(self.frames))], level=False)
        return Fitted(model, alone, level_known)

    def from_charges(self) -> Floats:
        """Stage 1: what is learned from charges and dipoles."""
        system = LeastSquares(self._charge_prior())
        if not self._add_charge_rows(system, pad=0):
            raise ConfigError(f"`fit.targets` are {self.config.fit.targets}, but no training frame has such labels")
        return system.solve()

    def refine(self, learned: Floats) -> Floats:
        """Stage 2, one round: what is learned from all labels, at the charges of the last one."""
        system = LeastSquares(np.concatenate([self._charge_prior(), self._prior(self.config.fit.prior_short_range)]))
        self._add_charge_rows(system, pad=self.design.shape[1])
        frozen = [freeze(state) for state in self._equilibrate(Potential(self._with_charges(learned), ACCURACY))]
        weights = [np.concatenate([frame.charges for frame in frozen])]
        if self.blank.learned_reference:
            weights.append(np.concatenate([_given(frame.reference_gradient) for frame in frozen]))
        energies = [self.batch.per_frame(a[:, None] * self.design) for a in weights]
        self._add_energy_and_force_rows(
            system,
            [*energies, self.frame_design],
            [*self._force_designs(weights), self.short_forces],
            [(frame.energy, frame.forces) for frame in frozen],
        )
        return system.solve()[: len(learned)]

    def short_range(self, model: Model, known: Sequence[tuple[float, Floats]], level: bool) -> Model:
        """Stage 3: `model` with the short range, and the level of chi if it can be told, on top of known energies."""
        energies, forces = [self.frame_design], [self.short_forces]
        prior = self._prior(self.config.fit.prior_short_range)
        if level:
            energies.append(np.array([[frame.structure.charge] for frame in self.frames]))
            forces.append(np.zeros((len(self.short_forces), 1)))
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
            design = np.pad(response.design(self.design[self._atoms(f)]), ((0, 0), (0, pad)))
            if frame.charges is not None and "charges" in fit.targets:
                system.add(design / fit.sigma_charges, (frame.charges - response.known) / fit.sigma_charges)
                used += 1
            if frame.dipole is not None and "dipole" in fit.targets:
                positions, sigma = frame.structure.positions.T, fit.sigma_dipole * len(frame.structure)
                system.add(positions @ design / sigma, (frame.dipole - positions @ response.known) / sigma)
                used += 1
            if self.blank.learned_reference:
                self._add_sum_row(system, f, pad)
        return used

    def _add_sum_row(self, system: LeastSquares, f: int, pad: int) -> None:
        """Reference charges that add up to the total charge by themselves: nothing is left to be spread."""
        row = np.concatenate([np.zeros(self.design.shape[1]), self.frame_design[f], np.zeros(pad)])
        sigma = self.config.fit.sigma_charges
        system.add(row[None] / sigma, np.array([self.frames[f].structure.charge]) / sigma)

    def _add_energy_and_force_rows(
        self,
        system: LeastSquares,
        energies: Sequence[Floats],
        forces: Sequence[Floats],
        known: Sequence[tuple[float, Floats]],
    ) -> None:
        """Rows of energies (n_frames, ...) and forces (3 n, ...), by blocks of columns, on top of known ones."""
        fit = self.config.fit
        for f, frame in enumerate(self.frames):
            energy, force = known[f]
            if frame.energy is not None:
                sigma = fit.sigma_energy * len(frame.structure)
                row = np.concatenate([block[f] for block in energies])
                system.add(row[None] / sigma, np.array([frame.energy - energy]) / sigma)
            if frame.forces is not None:
                atoms = self._atoms(f)
                rows = np.concatenate([block[3 * atoms.start : 3 * atoms.stop] for block in forces], axis=1)
                system.add(rows / fit.sigma_forces, (frame.forces - force).ravel() / fit.sigma_forces)

    def _atoms(self, f: int) -> slice:
        return slice(int(self.batch.start[f]), int(self.batch.start[f + 1]))

    def _responses(self) -> list[Response]:
        potential, out = Potential(self.blank, ACCURACY), []
        for frame in self.frames:
            try:
                out.append(charge_response(prepared(potential, frame), frame.structure))
            except KqeqError as error:
                raise ConfigError(f"{frame.place}: {error}") from None
        return out

    def _equilibrate(self, potential: Potential) -> Iterator[Equilibrated]:
        return (prepared(potential, frame).equilibrate(frame.structure) for frame in self.frames)

    def _repulsion(self, f: int) -> tuple[float, Floats]:
        """Energy (eV) and forces (eV/Angstrom) of what repels without any charges."""
        structure, atoms = self.frames[f].structure, self._atoms(f)
        pairs = find_pairs(structure, self.blank.cutoff)
        radius = self.blank.repulsion_radius[self.batch.species[atoms]]
        energies, gradient = np.zeros(len(structure)), np.zeros_like(pairs.vectors)
        add_repulsion(pairs, structure.numbers.astype(np.float64), radius, energies, gradient)
        return float(energies.sum()), -pairs.scatter(gradient, len(structure))

    def _force_designs(self, centre_weights: Sequence[Floats]) -> list[Floats]:
        """Those of `force_design` with zeros beside them: a constant exerts no force."""
        designs = force_design(self.batch, self.descriptor, self.basis, centre_weights, self.progress)
        return [np.pad(design, ((0, 0), (0, len(self.blank.species)))) for design in designs]

    def _charge_prior(self) -> Floats:
        fit = self.config.fit
        priors = [self._prior(fit.prior_electronegativity)]
        if self.blank.learned_reference:
            priors.append(self._prior(fit.prior_reference_charge))
        return np.concatenate(priors)

    def _prior(self, sigma: float) -> Floats:
        return np.concatenate([np.full(self.basis.size, sigma), np.full(len(self.blank.species), WIDE)])

    def _with_charges(self, learned: Floats) -> Model:
        """A model without short range that has learned electronegativities and reference charges."""
        columns = self.design.shape[1]
        model = self._with_column(self.blank, learned[:columns], column=0)
        return self._with_column(model, learned[columns:], column=2) if self.blank.learned_reference else model

    def _with_column(self, model: Model, solution: Floats, column: int) -> Model:
        """`model` with one column of its kernel weights and its constants set."""
        weights = [w.copy() for w in model.terms[0].weights]
        for w, learned in zip(weights, self.basis.weights(solution[: self.basis.size]), strict=True):
            w[:, column] = learned
        constants = {CONSTANTS[column]: solution[self.basis.size :]}
        return replace(model.with_weights(weights), **constants)  # type: ignore[arg-type]


def _given(values: Floats | None) -> Floats:
    assert values is not None
    return values
