"""The fit, from labelled frames to a model: points, charges, everything together, short range.

1. Sparse points and whitening (`sparse`), chosen once, from the frames that are not held out.
2. Physical parameters (`physical_fit`), with few points and some frames: what charges, dipoles and polarizabilities
   want, then what all labels together want.
3. Electronegativities and reference charges from charges and dipoles (`charge_fit`).
4. Everything together on all labels, in rounds, with charges that respond (`joint`). In the first one the priors are
   chosen by the error on the held-out frames (`regularisation`); in the last one, when the sum of squares has settled,
   these frames join the fit.
5. The short range once more, exactly, at the final charges (`short_fit`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from kqeq_md.descriptor.power_spectrum import Descriptor
from kqeq_md.errors import ConfigError
from kqeq_md.machine.quiet import quietly
from kqeq_md.machine.threads import one_blas_thread
from kqeq_md.model import Model
from kqeq_md.structure import Floats
from kqeq_md.train.checkpoint import Checkpoint
from kqeq_md.train.config import Config, Fit
from kqeq_md.train.data import Frame
from kqeq_md.train.data.composition import level_determined
from kqeq_md.train.fit.charge_fit import answers, charge_rows, kernels_of
from kqeq_md.train.fit.design import Basis, Progress, split_into_batches
from kqeq_md.train.fit.joint import JointFit, add_blocks
from kqeq_md.train.fit.normal_equations import NormalEquations
from kqeq_md.train.fit.physical import parameters_of, with_physical
from kqeq_md.train.fit.physical_fit import fit_physical
from kqeq_md.train.fit.regularisation import Regularisation, choose_factors
from kqeq_md.train.fit.short_fit import ShortFit
from kqeq_md.train.fit.start import basis_of, blank_model, choose_basis, held_out_places
from kqeq_md.train.fit.unknowns import SHORT, WIDE, prior_of, unknowns_of

log = logging.getLogger("kqeq_md")

MOST_FRAMES = 200
"""Physical parameters are few: so many frames, spread evenly, tell them as well as all."""

SETTLED = 3e-3
"""Rounds end when the sum of squares falls by less than this part."""

FEW_POINTS = 40
"""Sparse points per element with which physical parameters are found."""


@dataclass(frozen=True)
class Fitted:
    """What a fit gives.

    Attributes:
        model: of all frames.
        short_range_only: the same short range fitted without any charges.
        without_held_out: the model before the held-out frames joined, without stage 5; None if there are none.
        held_out: places of these frames.
        level_determined: whether the level of chi could be told.
        history: of each round: rms errors by quantity before it in units of sigma, the sum of squares after it, how
            much it was damped, and whether the held-out frames took part.
        regularisation: factors of the priors.
        physical: names of the fitted physical parameters with their values.
    """

    model: Model
    short_range_only: Model
    without_held_out: Model | None
    held_out: frozenset[str]
    level_determined: bool
    history: list[dict[str, Any]]
    regularisation: Regularisation
    physical: dict[str, float]


def fit(
    frames: Sequence[Frame],
    config: Config,
    progress: Progress,
    atom_energies: dict[str, float] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Fitted:
    """Train a model on labelled frames.

    Args:
        frames: with their labels; their places are distinct.
        config: the configuration.
        progress: wraps the loops.
        atom_energies: of free atoms by element, eV; None to fit them.
        checkpoint: what an earlier run of the same has reached, and where to keep what this one does.

    Raises:
        ConfigError: labels that the targets need are missing, hardness and widths that give no positive definite
            Hamiltonian, fields or fragments of a frame that do not go with the charge model.
    """
    with one_blas_thread, quietly():  # what the model does wrong, the finished one says
        return _Fit(frames, config, progress, atom_energies, checkpoint or Checkpoint()).run()


class _Fit:
    """The training set and what stays the same during the stages."""

    def __init__(
        self,
        frames: Sequence[Frame],
        config: Config,
        progress: Progress,
        atom_energies: dict[str, float] | None,
        checkpoint: Checkpoint,
    ) -> None:
        self.frames, self.config, self.progress, self.checkpoint = frames, config, progress, checkpoint
        self.held_out = held_out_places(frames, config.fit.held_out, config.seed)
        self.given_atoms = atom_energies is not None
        self.blank = blank_model(frames, config, atom_energies)
        self.descriptor = Descriptor(config.descriptor, len(self.blank.species))
        self.batches = split_into_batches(frames)
        if not any(has_targets(frame, config.fit) for frame in frames):
            named = ", ".join(f"`{getattr(config.data.keys, name)}`" for name in config.fit.targets)
            raise ConfigError(
                f"`fit.targets` are {config.fit.targets}, but no training frame has {named}: set the names in "
                '[data.keys], or `targets = ["dipole"]` in [fit] where there are no charges'
            )
        self.parameters = parameters_of(self.blank, config.fit.physical)
        basis = self._basis()
        self.start = self._physical_parameters(basis)
        self.unknowns = unknowns_of(self.start, basis, [])
        self.joint = JointFit(self.unknowns, config.fit, self.descriptor, self.batches, self.held_out, progress)

    def run(self) -> Fitted:
        """All stages."""
        state = self._rounds(self._charges())
        level = level_determined(self.frames, self.blank)
        charged = self.unknowns.model(self._without_short_range(state.x))
        short = ShortFit(self.unknowns, self.config.fit, self.descriptor, self.batches, self.progress)
        prior = self._prior(state.regularisation.factors)[self.unknowns.of(SHORT)]
        model, alone = short.models(charged, prior, WIDE if level else 0.0)
        without = self.unknowns.model(state.without) if self.held_out and self.rounds else None
        return Fitted(
            model, alone, without, self.held_out, level, state.history, state.regularisation,
            {p.name(model.species): p.value(model) for p in self.parameters},
        )  # fmt: skip

    @property
    def rounds(self) -> int:
        """Of the joint fit: charges and dipoles alone need none, as stage 3 is exact."""
        told = any(frame.energy is not None or frame.forces is not None for frame in self.frames)
        return self.config.fit.rounds if told else 0

    def _basis(self) -> Basis:
        kept = self.checkpoint.recall("points")
        if kept is None:
            fitted = [frame for frame in self.frames if frame.place not in self.held_out]
            basis = choose_basis(fitted, self.blank, self.config, self.progress)
            self.checkpoint.keep("points", **dict(zip(self.blank.species, basis.points, strict=True)))
            return basis
        return basis_of([kept[symbol] for symbol in self.blank.species], self.config.kernel.zeta)

    def _charges(self) -> Floats:
        """Stage 3: x without short range."""
        kept = self.checkpoint.recall("charges")
        if kept is not None:
            return kept["x"]
        x, unknowns = np.zeros(self.unknowns.size), self.unknowns
        equations = NormalEquations(unknowns.charged)
        for frames in self.progress(self.batches, "charges"):
            kernels = kernels_of(unknowns, self.descriptor, frames)
            known = [pair for pair in zip(frames, kernels, strict=True) if pair[0].place not in self.held_out]
            for part in answers(unknowns, known, x):
                add_blocks(equations, charge_rows(self.config.fit, part), np.zeros(unknowns.charged))
        x[: unknowns.charged] = equations.solve(self._prior((1.0,) * len(unknowns.columns))[: unknowns.charged])
        self.checkpoint.keep("charges", x=x)
        return x

    def _physical_parameters(self, basis: Basis) -> Model:
        """Stage 2: the hyperparameters with the fitted ones."""
        kept = self.checkpoint.recall("physical")
        if kept is not None:
            return with_physical(self.blank, self.parameters, kept["x"])
        labelled = [f for f in self.frames if f.place not in self.held_out and has_targets(f, self.config.fit)]
        x = np.zeros(0)
        if self.parameters:
            few = basis_of([points[:FEW_POINTS] for points in basis.points], basis.zeta)
            unknowns = unknowns_of(self.blank, few, self.parameters)
            prior = prior_of(unknowns, self.config.fit, (1.0,) * len(unknowns.columns), self.given_atoms)
            chosen = labelled[:: -(-len(labelled) // MOST_FRAMES)]
            x = fit_physical(unknowns, self.config.fit, prior, self.descriptor, chosen, self.progress)
        self.checkpoint.keep("physical", x=x)
        return with_physical(self.blank, self.parameters, x)

    def _rounds(self, x: Floats) -> _Rounds:
        """Stage 4."""
        state = _Rounds.begin(x, len(self.unknowns.columns)).recalled(self.checkpoint)
        rounds = self.rounds
        while len(state.history) < rounds and not state.ended:
            number = len(state.history) + 1
            around = self.joint.around(state.x, f"round {number} of {rounds} at most")
            if number == 1 and self.config.fit.regularisation == "held_out":
                state = replace(state, regularisation=self._choose(around.fitted, around.held_out, state.x))
            prior, last = self._prior(state.regularisation.factors), number == rounds or state.settled
            step = self.joint.improve(around, prior, state.x, everyone=last)
            without = self.joint.solve(around.fitted, prior, state.x, step.damping) if last else step.x
            record = {
                "round": number, "rms_before": around.rms, "square": step.square, "damping": step.damping,
                "all_frames": last,
            }  # fmt: skip
            state = replace(state, x=step.x, without=without, history=[*state.history, record])
            state.keep(self.checkpoint)
            log.info("round %d: sum of squares %.6g, damping %.3g", number, step.square, step.damping)
        return state

    def _choose(self, fitted: NormalEquations, held_out: NormalEquations, x: Floats) -> Regularisation:
        def solve(factors: tuple[float, ...]) -> Floats:
            return self.joint.solve(fitted, self._prior(factors), x)

        return choose_factors(fitted, held_out, solve, len(self.unknowns.columns))

    def _prior(self, factors: tuple[float, ...]) -> Floats:
        return prior_of(self.unknowns, self.config.fit, factors, self.given_atoms)

    def _without_short_range(self, x: Floats) -> Floats:
        out = x.copy()
        out[self.unknowns.of(SHORT)] = 0.0
        return out


@dataclass(frozen=True)
class _Rounds:
    """Where the rounds have come to.

    Attributes:
        x: the unknowns.
        without: those of the last round without the held-out frames.
        history, regularisation: as in `Fitted`.
    """

    x: Floats
    without: Floats
    history: list[dict[str, Any]]
    regularisation: Regularisation

    @property
    def settled(self) -> bool:
        """Whether the last round has hardly changed the sum of squares: the next one is that of all frames."""
        squares = [entry["square"] for entry in self.history[-2:]]
        return len(squares) == 2 and squares[0] - squares[1] < SETTLED * squares[1]

    @property
    def ended(self) -> bool:
        """Whether the held-out frames have joined."""
        return bool(self.history) and self.history[-1]["all_frames"]

    @staticmethod
    def begin(x: Floats, columns: int) -> _Rounds:
        """Before the first round."""
        return _Rounds(x, x, [], Regularisation((1.0,) * columns))

    def keep(self, checkpoint: Checkpoint) -> None:
        """Write it down."""
        record = {"history": self.history, "regularisation": asdict(self.regularisation)}
        checkpoint.keep("rounds", record=np.array(json.dumps(record)), x=self.x, without=self.without)

    def recalled(self, checkpoint: Checkpoint) -> _Rounds:
        """What was kept; itself if nothing was."""
        kept = checkpoint.recall("rounds")
        if kept is None:
            return self
        record = json.loads(str(kept["record"]))
        regularisation = record["regularisation"]
        regularisation["factors"] = tuple(regularisation["factors"])
        return _Rounds(kept["x"], kept["without"], record["history"], Regularisation(**regularisation))


def has_targets(frame: Frame, fit: Fit) -> bool:
    """Whether a frame has labels that charges are fitted to."""
    return any(getattr(frame, name) is not None for name in fit.targets)
