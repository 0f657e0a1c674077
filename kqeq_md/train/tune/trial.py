"""One trial of a search: a reduced fit for each fold, and its error on the frames of the fold.

    error = exp(mean_k ln sqrt(1 + mean_i ((prediction_ki - label_ki) / sigma_k)^2))

over the quantities k that the fit has targets for. A tenth less counts alike in energies, forces and charges; errors
below the sigma that the configuration asks for count little. Of energies counts what composition and total charge do
not explain: the level of a new composition is one number, off by many sigma after a reduced fit of any descriptor.
Weights of groups count as in the fit. Test frames have no part in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from time import perf_counter

import numpy as np

from kqeq_md.errors import ConfigError
from kqeq_md.machine.quiet import quietly
from kqeq_md.model import Model
from kqeq_md.neighbours.half_list import find_pairs
from kqeq_md.potential import Potential
from kqeq_md.structure import Floats
from kqeq_md.train.config import Config, Fit
from kqeq_md.train.data import Frame, species_of
from kqeq_md.train.data.composition import composition_design
from kqeq_md.train.fit import fit
from kqeq_md.train.fit.molecules import prepared
from kqeq_md.train.report.predictions import Prediction, predict
from kqeq_md.train.tune.folds import choose_frames, folds_of, rest_of

ENERGY = "energy_per_atom"

LOW_RANK = 0.3
"""Part of the sparse points that the kernel of low rank needs, which only zeta = 2 has: 0.25 to 0.32 for water."""

TIMED_FRAMES, TIMED_CALLS = 3, 4
"""On how many of the largest frames a model is timed, and how often on each."""


@dataclass(frozen=True)
class Level:
    """How large the problem of a trial is: so many frames, so many sparse points per element."""

    frames: int
    sparse_points: int


@dataclass(frozen=True)
class Outcome:
    """What a trial has found.

    Attributes:
        error: see the module; 1 is the least.
        errors: rms of each quantity, in eV per atom, eV/Angstrom, e, e Angstrom, eV/Angstrom^3.
        microseconds: that one evaluation of the trial's model with forces takes per atom, on one thread.
    """

    error: float
    errors: dict[str, float]
    microseconds: float


class Problem:
    """Everything that the trials of one level have in common.

    Args:
        frames: of the training set.
        config: as the user has it.
        free_atoms: energies of free atoms, eV; None if they are fitted.
        level: how large.
        like: a smaller problem, whose physical parameters serve this one too.
    """

    def __init__(
        self,
        frames: Sequence[Frame],
        config: Config,
        free_atoms: dict[str, float] | None,
        level: Level,
        like: Problem | None = None,
    ) -> None:
        self.level, self._config, self._free_atoms, self._like = level, config, free_atoms, like
        # responses cost more than all the rest, and the score does without them
        self.frames = [
            replace(frame, polarizability=None, born_charges=None)
            for frame in choose_frames(frames, level.frames, config.seed)
        ]
        self.folds = folds_of(self.frames, config.seed)

    def run(self, config: Config, physical: Model | None) -> Outcome:
        """One trial.

        Args:
            config: with the values to try.
            physical: a model with the physical parameters to use; None for those of `config`.

        Raises:
            KqeqError: a fit that fails.
        """
        small = self._reduced(config, physical)
        held_out: list[tuple[Frame, Prediction]] = []
        for fold in self.folds:
            model = fit(rest_of(self.frames, fold), small, _quiet, self._free_atoms).model
            with quietly():  # of models that nobody keeps
                held_out += zip(fold, without_levels(fold, predict(model, fold, _quiet)), strict=True)
        with quietly():
            return Outcome(*score(held_out, config.fit), microseconds_per_atom(model, self.folds[-1]))

    def operations(self, config: Config) -> float:
        """Multiplications per atom that the descriptor and the kernel of the full model need, without charges.

        An estimate that a clock has no part in: density of the neighbours, power spectrum, kernel.
        """
        soap, elements = config.descriptor, len(self._species)
        radial, angular = elements * soap.n_max, (soap.l_max + 1) ** 2
        neighbours = self._neighbours(soap.cutoff)
        size = radial * (radial + 1) / 2 * (soap.l_max + 1)
        power_spectrum = radial * (radial + 1) / 2 * angular
        points = config.kernel.sparse_points * (LOW_RANK if config.kernel.zeta == 2 else 1.0)
        return neighbours * soap.n_max * angular + power_spectrum + points * size

    @cached_property
    def _species(self) -> tuple[str, ...]:
        return species_of(self.frames)

    def _neighbours(self, cutoff: float) -> float:
        """Of an atom, mean over all atoms."""
        pairs = sum(len(find_pairs(frame.structure, cutoff).neighbour) for frame in self.frames)
        return pairs / sum(len(frame.structure) for frame in self.frames)

    def _reduced(self, config: Config, physical: Model | None) -> Config:
        """Fewer points, one round, no physical parameters to fit."""
        points = min(self.level.sparse_points, config.kernel.sparse_points)
        small = replace(
            config,
            kernel=replace(config.kernel, sparse_points=points),
            fit=replace(config.fit, rounds=min(1, config.fit.rounds), physical=[]),
        )
        return small if physical is None else with_physical_of(small, physical)

    @cached_property
    def physical(self) -> Model | None:
        """A model with the physical parameters that the configured values lead to; None where none is fitted.

        All trials have them: to fit them takes longer than a trial, and they depend little on the descriptor.
        """
        if self._like is not None:
            return self._like.physical
        if not self._config.fit.physical:
            return None
        points = min(self.level.sparse_points, self._config.kernel.sparse_points)
        small = replace(
            self._config,
            kernel=replace(self._config.kernel, sparse_points=points),
            fit=replace(self._config.fit, rounds=0),
        )
        return fit(self.frames, small, _quiet, self._free_atoms).model


def with_physical_of(config: Config, model: Model) -> Config:
    """The configuration with the physical parameters of a model."""
    species = model.species
    pairs = [(i, j) for i in range(len(species)) for j in range(i, len(species))]
    charges = replace(
        config.charges,
        hardness=dict(zip(species, model.hardness.tolist(), strict=True)),
        gaussian_width=dict(zip(species, model.gaussian_width.tolist(), strict=True)),
        compliance={f"{species[i]}-{species[j]}": float(model.compliance[i, j]) for i, j in pairs},
    )
    return replace(config, charges=charges)


def without_levels(frames: Sequence[Frame], predictions: Sequence[Prediction]) -> list[Prediction]:
    """Predictions whose energies have no errors that composition and total charge of the frames explain.

    By least squares over the frames, sum ((prediction - label - level) / n)^2, with the levels of `composition_design`.
    """
    known = [k for k, prediction in enumerate(predictions) if ENERGY in prediction.labels]
    out = list(predictions)
    if known:
        per_atom = np.array([predictions[k].error(ENERGY)[0] for k in known])
        sizes = np.array([[len(frames[k].structure)] for k in known])
        design = composition_design([frames[k] for k in known]) / sizes
        levels = design @ np.linalg.lstsq(design, per_atom, rcond=None)[0]
        for k, level in zip(known, levels, strict=True):
            predicted = {**predictions[k].predicted, ENERGY: predictions[k].predicted[ENERGY] - level}
            out[k] = replace(predictions[k], predicted=predicted)
    return out


def score(held_out: Sequence[tuple[Frame, Prediction]], settings: Fit) -> tuple[float, dict[str, float]]:
    """The error in units of sigma, and the rms error of each quantity.

    Raises:
        ConfigError: no held-out frame has a label that is scored.
    """
    sums: dict[str, Floats] = {}
    for frame, prediction in held_out:
        for quantity, sigma in _sigmas(frame, settings).items():
            if quantity in prediction.labels:
                square = float(np.mean(prediction.error(quantity) ** 2))
                count = frame.weight * len(prediction.labels[quantity])
                part = np.array([count * square / sigma**2, count * square, count])
                sums[quantity] = sums.get(quantity, np.zeros(3)) + part
    if not sums:
        raise ConfigError("`data.train` must hold labels to tune with, got none")
    error = float(np.exp(np.mean([0.5 * np.log1p(scaled / count) for scaled, _, count in sums.values()])))
    return error, {quantity: float(np.sqrt(square / count)) for quantity, (_, square, count) in sums.items()}


def microseconds_per_atom(model: Model, frames: Sequence[Frame]) -> float:
    """Time of energy and forces per atom on one thread, in the largest of the frames."""
    potential = Potential(model, threads=1)
    largest = sorted(frames, key=lambda frame: -len(frame.structure))[:TIMED_FRAMES]
    seconds = sum(_least_time(prepared(potential, frame), frame) for frame in largest)
    return 1e6 * seconds / sum(len(frame.structure) for frame in largest)


def _least_time(potential: Potential, frame: Frame) -> float:
    """Of several calls, s: the first ones compile."""
    times = []
    for _ in range(TIMED_CALLS):
        begin = perf_counter()
        potential.compute(frame.structure)
        times.append(perf_counter() - begin)
    return min(times)


def _sigmas(frame: Frame, settings: Fit) -> dict[str, float]:
    n, volume = len(frame.structure), frame.structure.volume if frame.structure.periodic else 1.0
    targets = {"charges": settings.sigma_charges, "dipole": settings.sigma_dipole * n}
    return {
        ENERGY: settings.sigma_energy,
        "forces": settings.sigma_forces,
        **{name: sigma for name, sigma in targets.items() if name in settings.targets},
        "stress": settings.sigma_virial * n / volume,
    }


def _quiet(items: Sequence[Frame], _: str) -> Sequence[Frame]:
    return items
