"""Everything that is learned, fitted together to all labels: Gauss-Newton with charges that respond.

    min_x sum (label - model(x))^2 / sigma^2 + sum ((x - centre) / prior)^2

Charges are linear in the weights, energies and forces nearly so: a few linear solutions around the present model
(`linearised`, `rows`) end at the minimum. The derivatives are exact but for virials, which follow the short range
alone. A round that makes things worse is taken back half of the way. As always in Gauss-Newton with linear unknowns
among others, the step of the physical parameters is that of variable projection.

Reference: Ruhe and Wedin, SIAM Rev. 22, 318 (1980), doi:10.1137/1022057.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kqeq_md.descriptor.power_spectrum import Descriptor
from kqeq_md.errors import ConfigError, KqeqError
from kqeq_md.potential import Potential
from kqeq_md.structure import Floats
from kqeq_md.threads import in_parallel, kernel_threads
from kqeq_md.train.charge_fit import TIGHT, has_polarizability
from kqeq_md.train.charge_response import ACCURACY
from kqeq_md.train.config import Fit
from kqeq_md.train.data import Frame
from kqeq_md.train.design import Batch, Progress, force_design, make_batch
from kqeq_md.train.linearised import Linearised, linearise
from kqeq_md.train.molecules import prepared
from kqeq_md.train.normal_equations import NormalEquations
from kqeq_md.train.physical import bounds_of
from kqeq_md.train.rows import Block, JointRows
from kqeq_md.train.unknowns import REFERENCE, Unknowns

LARGEST_STEP = float(np.log(2.0))
"""Of the logarithm of a physical parameter in one round."""

FIXED = 1e-6
"""Prior of a parameter that stays where it is."""


@dataclass(frozen=True)
class Around:
    """The linearised problem around x.

    Attributes:
        fitted, held_out: equations of the frames that are fitted, and of those that are not, for the new x.
        square: sum (label - model(x))^2 / sigma^2 of the fitted frames.
        rms: of the label errors in units of sigma, by quantity, of the fitted frames.
    """

    fitted: NormalEquations
    held_out: NormalEquations
    square: float
    rms: dict[str, float]


@dataclass(frozen=True)
class JointFit:
    """The problem: what stays the same from round to round.

    Attributes:
        unknowns: the columns.
        fit: standard deviations and targets.
        descriptor: power spectrum of the model.
        batches: frames that are handled together.
        held_out: places of the frames that have no part in the fit.
        progress: shown over the batches.
    """

    unknowns: Unknowns
    fit: Fit
    descriptor: Descriptor
    batches: Sequence[Sequence[Frame]]
    held_out: frozenset[str]
    progress: Progress

    def around(self, x: Floats, title: str) -> Around:
        """One pass over all frames.

        Raises:
            ConfigError: naming a frame whose charges have no minimum.
        """
        fitted, held_out = NormalEquations(self.unknowns.size), NormalEquations(self.unknowns.size)
        squares: dict[str, list[float]] = {}
        potential = Potential(self.unknowns.model(x), ACCURACY, TIGHT, threads=1)
        for frames in self.progress(self.batches, title):
            batch = make_batch(frames, self.descriptor, potential.model.cutoff, potential.model.numbers)
            blocks = self._blocks(potential, batch, x)
            for equations, is_held_out in ((fitted, False), (held_out, True)):
                chosen = [
                    block
                    for frame, own in zip(frames, blocks, strict=True)
                    for block in own
                    if (frame.place in self.held_out) is is_held_out
                ]
                add_blocks(equations, chosen, x)
                for name, _, rest in chosen if not is_held_out else ():
                    squares.setdefault(name, []).extend((rest**2).tolist())
        rms = {name: float(np.sqrt(np.mean(values))) for name, values in squares.items()}
        return Around(fitted, held_out, float(sum(map(sum, squares.values()))), rms)

    def step(self, equations: NormalEquations, prior: Floats, x: Floats) -> Floats:
        """The minimum of the linearised problem around x, with physical parameters within their bounds and not farther
        than LARGEST_STEP."""
        physical = self.unknowns.physical
        low, high = bounds_of(self.unknowns.start, self.unknowns.parameters).T
        low, high = np.maximum(low, x[physical] - LARGEST_STEP), np.minimum(high, x[physical] + LARGEST_STEP)
        out = equations.solve(prior)
        beyond = (out[physical] < low) | (out[physical] > high)
        if not beyond.any():
            return out
        prior, centre = prior.copy(), np.zeros_like(out)
        centre[physical] = np.where(beyond, np.clip(out[physical], low, high), 0.0)
        prior[physical] = np.where(beyond, FIXED, prior[physical])
        out = equations.solve(prior, centre)
        out[physical] = np.clip(out[physical], low, high)
        return out

    def _blocks(self, potential: Potential, batch: Batch, x: Floats) -> list[list[Block]]:
        """Rows of each frame of a batch."""
        kernel = with_constants(self.unknowns, batch)
        threads = kernel_threads()
        now = in_parallel(lambda frame: self._linearised(potential, frame), batch.frames, threads)
        weights = [np.concatenate([one.charges for one in now])]
        reference = None
        if self.unknowns.start.learned_reference:
            weights.append(np.concatenate([given(one.reference_gradient) for one in now]))
            fixed = potential.model.reference_charge  # the kernel's constants are in the model's
            reference = (
                kernel[:, : self.unknowns.basis.size] @ x[self.unknowns.of(REFERENCE)][: self.unknowns.basis.size]
            )
            reference = reference + fixed[batch.species]
        weights.append(np.ones(len(batch.species)))
        designs = force_design(batch, self.descriptor, self.unknowns.basis, weights)
        rows = JointRows(self.unknowns, self.fit, batch, kernel, designs)

        def of(f: int) -> list[Block]:
            own = None if reference is None else reference[batch.atoms(f)]
            return rows.of(f, batch.frames[f], now[f], own)

        return in_parallel(of, range(len(batch.frames)), threads)

    def _linearised(self, potential: Potential, frame: Frame) -> Linearised:
        own = prepared(potential.twin(), frame)
        try:
            state = own.equilibrate(frame.structure)
            return linearise(own, state, self.unknowns.parameters, has_polarizability(frame))
        except KqeqError as error:
            raise ConfigError(f"{frame.place}: {error}") from None


def add_blocks(equations: NormalEquations, blocks: Sequence[Block], x: Floats) -> None:
    """Add rows around x as equations for the new x."""
    if blocks:
        rows = np.concatenate([rows for _, rows, _ in blocks])
        equations.add(rows, np.concatenate([rest for _, _, rest in blocks]) + rows @ x)


def with_constants(unknowns: Unknowns, batch: Batch) -> Floats:
    """K U and a column for the constant of each element, shape (n, unknowns.width)."""
    return np.concatenate([unknowns.basis.kernel(batch), np.eye(len(unknowns.start.species))[batch.species]], axis=1)


def given(values: Floats | None) -> Floats:
    """What is not None."""
    assert values is not None
    return values
