"""Everything that is learned, fitted together to all labels: Gauss-Newton with charges that respond.

    min_x sum (label - model(x))^2 / sigma^2 + sum (x / prior)^2

At fixed physical parameters charges are linear in the weights, energies and forces nearly so: a few linear solutions
around the present model (`linearised`, `rows`) end at the minimum. The derivatives are exact but for virials, which
follow the short range alone. Where a solution does not keep what it promises, unknowns that make charges are held back
(Levenberg and Marquardt): electronegativities and reference charges that leave the charges alone together still change
the energy of the flows between them. As always in Gauss-Newton with linear unknowns among others, the step of the
physical parameters is that of variable projection.

References: Marquardt, J. Soc. Ind. Appl. Math. 11, 431 (1963), doi:10.1137/0111030; Ruhe and Wedin, SIAM Rev. 22, 318
(1980), doi:10.1137/1022057.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kqeq_md.descriptor.power_spectrum import Descriptor
from kqeq_md.errors import ConfigError, KqeqError
from kqeq_md.machine.threads import in_parallel, kernel_threads
from kqeq_md.potential import Potential
from kqeq_md.structure import Floats
from kqeq_md.train.config import Fit
from kqeq_md.train.data import Frame
from kqeq_md.train.fit.charge_response import ACCURACY, TIGHT, charge_response
from kqeq_md.train.fit.design import Batch, Progress, force_design, make_batch
from kqeq_md.train.fit.linearised import Linearised, learned_reference, linearise, polarizability
from kqeq_md.train.fit.molecules import for_each
from kqeq_md.train.fit.normal_equations import NormalEquations, penalty
from kqeq_md.train.fit.physical import bounds_of
from kqeq_md.train.fit.rows import Block, JointRows, present_blocks
from kqeq_md.train.fit.unknowns import Unknowns

DAMPING = (0.0, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8)
"""How strongly unknowns that make charges are held where they are, in units of 1 / prior^2: tried in turn."""

PROMISED = 1.2
"""A step is taken at once if the sum of squares ends below so many times what the linear problem has promised."""

NOTHING = 1e-6
"""Part of the sum of squares that is not worth a damped step, if a full one promises no more."""


@dataclass(frozen=True)
class Around:
    """The linearised problem around x.

    Attributes:
        fitted, held_out: equations of the frames that are fitted, and of those that are not, for the new x.
        square, held_out_square: sum (label - model(x))^2 / sigma^2 of the fitted frames, and of the others.
        rms: of the label errors in units of sigma, by quantity, of the fitted frames.
    """

    fitted: NormalEquations
    held_out: NormalEquations
    square: float
    held_out_square: float
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
        held_out_square = 0.0
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
                for name, _, rest in chosen:
                    if is_held_out:
                        held_out_square += float(rest @ rest)
                    else:
                        squares.setdefault(name, []).extend((rest**2).tolist())
        rms = {name: float(np.sqrt(np.mean(values))) for name, values in squares.items()}
        return Around(fitted, held_out, float(sum(map(sum, squares.values()))), held_out_square, rms)

    def improve(self, around: Around, prior: Floats, x: Floats, everyone: bool = False, farthest: float = 0.0) -> Step:
        """The step that lowers the sum of squares most, of those with more and more damping; none if none does.

        Args:
            around: the problem around x.
            prior: of all unknowns.
            x: the present ones.
            everyone: whether the held-out frames count too.
            farthest: that physical parameters may move; half of that with each further damping.
        """
        equations, start = around.fitted, around.square + penalty(x, prior)
        if everyone:
            equations, start = equations + around.held_out, start + around.held_out_square
        best, found = Step(x, start, 0.0), False
        for number, damping in enumerate(DAMPING):
            candidate = self.solve(equations, prior, x, damping, farthest / 2.0**number)
            promised = equations.error(candidate) + penalty(candidate, prior)
            square = self.square(candidate, prior, everyone)
            if square < best.square:
                best, found = Step(candidate, square, damping), True
            elif found or promised > (1.0 - NOTHING) * start:
                break
            if found and square < PROMISED * promised:
                break
        return best

    def solve(
        self, equations: NormalEquations, prior: Floats, x: Floats, damping: float = 0.0, farthest: float = 0.0
    ) -> Floats:
        """The minimum of the linearised problem around x plus damping sum ((x_new - x) / prior)^2 over what makes
        charges, with physical parameters within their bounds and no farther than `farthest` from x."""
        precision, centre, charged = prior**-2.0, np.zeros_like(x), self.unknowns.charged
        precision[:charged] *= 1.0 + damping
        centre[:charged] = damping / (1.0 + damping) * x[:charged]
        now = x[self.unknowns.physical]
        low, high = bounds_of(self.unknowns.start, self.unknowns.parameters).T
        bounds = (np.maximum(low, now - farthest), np.minimum(high, now + farthest))
        return equations.solve(precision**-0.5, centre, bounds)

    def square(self, x: Floats, prior: Floats, everyone: bool) -> float:
        """What is minimised, at x: for the fitted frames, or for all."""
        potential = Potential(self.unknowns.model(x), ACCURACY, TIGHT, threads=1)
        frames = [frame for batch in self.batches for frame in batch if everyone or frame.place not in self.held_out]
        return float(np.sum(for_each(potential, frames, self._square))) + penalty(x, prior)

    def _square(self, potential: Potential, frame: Frame) -> float:
        try:
            state = potential.equilibrate(frame.structure)
            result, alpha = potential.result(state), None
            if self.unknowns.parameters and has_polarizability(frame):
                response = charge_response(state.problem, state.hold)
                alpha = polarizability(state, response, np.zeros(0, dtype=np.int64), []).value
        except KqeqError:  # too far: no minimum, or no finite number
            return float("inf")
        blocks = present_blocks(self.fit, frame, result, learned_reference(state), alpha)
        return float(sum(rest @ rest for _, _, rest in blocks))

    def _blocks(self, potential: Potential, batch: Batch, x: Floats) -> list[list[Block]]:
        """Rows of each frame of a batch."""
        kernel = with_constants(self.unknowns, batch)
        now = for_each(potential, batch.frames, self._linearised)
        weights = [np.concatenate([one.charges for one in now])]
        if self.unknowns.start.learned_reference:
            weights.append(np.concatenate([given(one.reference_gradient) for one in now]))
        weights.append(np.ones(len(batch.species)))
        designs = force_design(batch, self.descriptor, self.unknowns.basis, weights)
        rows = JointRows(self.unknowns, self.fit, batch, kernel, designs)
        return in_parallel(lambda f: rows.of(f, now[f]), range(len(batch.frames)), kernel_threads())

    def _linearised(self, potential: Potential, frame: Frame) -> Linearised:
        try:
            state = potential.equilibrate(frame.structure)
            return linearise(potential, state, self.unknowns.parameters, has_polarizability(frame))
        except KqeqError as error:
            raise ConfigError(f"{frame.place}: {error}") from None


@dataclass(frozen=True)
class Step:
    """New unknowns, the sum of squares there, and the damping that led to them."""

    x: Floats
    square: float
    damping: float


def add_blocks(equations: NormalEquations, blocks: Sequence[Block], x: Floats) -> None:
    """Add rows around x as equations for the new x."""
    if blocks:
        rows = np.concatenate([rows for _, rows, _ in blocks])
        equations.add(rows, np.concatenate([rest for _, _, rest in blocks]) + rows @ x)


def has_polarizability(frame: Frame) -> bool:
    """Whether a frame has a polarizability that physical parameters can be fitted to."""
    return frame.polarizability is not None and frame.structure.boundary == "open"


def with_constants(unknowns: Unknowns, batch: Batch) -> Floats:
    """K U and a column for the constant of each element, shape (n, unknowns.width)."""
    return np.concatenate([unknowns.basis.kernel(batch), np.eye(len(unknowns.start.species))[batch.species]], axis=1)


def given(values: Floats | None) -> Floats:
    """What is not None."""
    assert values is not None
    return values
