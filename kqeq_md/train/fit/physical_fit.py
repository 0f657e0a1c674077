"""The few physical parameters: hardness, Gaussian widths, compliances.

First by what charges, dipoles and polarizabilities want: at given parameters x the best weights w that make charges are
one linear solution (`charge_fit`), and what is left is a function of x alone (variable projection),

    f(x) = min_w |A(x) w - y(x)|^2 + sum (w / prior)^2 + |alpha(x) - alpha_ref|^2 + sum (x / prior)^2,

whose gradient is that at fixed w, because f is stationary in w: df/dx = -2 r.dq/dx(w) - 2 r_alpha.dalpha/dx + ...
A quasi-Newton method (L-BFGS-B) keeps x within its bounds. Then by what energies and forces want too: rounds of the
joint fit, in which x moves as well (`joint`).

References: Golub and Pereyra, SIAM J. Numer. Anal. 10, 413 (1973), doi:10.1137/0710036; Byrd, Lu, Nocedal, Zhu, SIAM J.
Sci. Comput. 16, 1190 (1995), doi:10.1137/0916069.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from scipy.optimize import minimize

from kqeq_md.descriptor.power_spectrum import Descriptor
from kqeq_md.machine.threads import in_parallel, kernel_threads
from kqeq_md.structure import Floats
from kqeq_md.train.config import Fit
from kqeq_md.train.data import Frame
from kqeq_md.train.fit.charge_fit import Answering, answers, charge_rows, in_order_of, kernels_of
from kqeq_md.train.fit.design import Progress, split_into_batches
from kqeq_md.train.fit.joint import JointFit, has_polarizability
from kqeq_md.train.fit.linearised import charges_by_parameter, polarizability
from kqeq_md.train.fit.normal_equations import NormalEquations, penalty
from kqeq_md.train.fit.physical import bounds_of, derivatives
from kqeq_md.train.fit.rows import FrameRows
from kqeq_md.train.fit.unknowns import Unknowns

ITERATIONS = 25
"""Of L-BFGS-B at most."""

ROUNDS = 20
"""Of the joint fit at most."""

LARGEST_STEP = 0.3
"""Of x in one round: charges are far from linear in it."""

SETTLED = 1e-3
"""Rounds end when the sum of squares falls by less than this part."""


def fit_physical(
    unknowns: Unknowns,
    fit: Fit,
    prior: Floats,
    descriptor: Descriptor,
    frames: Sequence[Frame],
    progress: Progress,
) -> Floats:
    """The logarithms x of the fitted parameters, shape (n_parameters,).

    Args:
        unknowns: with few sparse points.
        fit: standard deviations and targets.
        prior: of all unknowns, shape (unknowns.size,).
        descriptor: power spectrum of the model.
        frames: some with labels that charges are fitted to.
        progress: shown over the steps.
    """
    kernels = kernels_of(unknowns, descriptor, frames)
    x = np.zeros(unknowns.size)
    alone = PhysicalFit(unknowns, fit, prior[: unknowns.charged], frames, kernels)
    x[unknowns.physical] = alone.best(progress)
    if all(frame.energy is None and frame.forces is None for frame in frames):
        return x[unknowns.physical]
    x[: unknowns.charged] = alone.weights(x[unknowns.physical])
    silent = JointFit(unknowns, fit, descriptor, split_into_batches(frames), frozenset(), lambda items, _: items)
    farthest = 0.0
    for _ in progress(range(ROUNDS), "physical parameters, rounds at most"):
        around = silent.around(x, "")
        step = silent.improve(around, prior, x, farthest=farthest)
        settled = step.square > (1.0 - SETTLED) * (around.square + penalty(x, prior))
        x = step.x
        if settled and farthest > 0.0:
            break
        if settled:  # physical parameters wait for the weights, which start far from what energies and forces want
            farthest = LARGEST_STEP
    return x[unknowns.physical]


class PhysicalFit:
    """f(x) and its gradient for some frames.

    Args:
        unknowns: with few sparse points.
        fit: standard deviations, targets and priors.
        prior: of the weights that make charges, shape (charged,).
        frames: with their labels.
        kernels: of each frame, shape (n, width).
    """

    def __init__(
        self, unknowns: Unknowns, fit: Fit, prior: Floats, frames: Sequence[Frame], kernels: Sequence[Floats]
    ) -> None:
        self._unknowns, self._fit, self._prior = unknowns, fit, prior
        self._given = list(zip(frames, kernels, strict=True))

    def best(self, progress: Progress) -> Floats:
        """x at the minimum, shape (n_parameters,)."""
        bounds = bounds_of(self._unknowns.start, self._unknowns.parameters)
        steps = iter(progress(range(ITERATIONS), "physical parameters, iterations at most"))

        def count(*_: object) -> None:
            next(steps, None)

        start = np.zeros(len(bounds))
        # its first step is the gradient itself, which without a scale ends in a corner of the bounds
        scale = LARGEST_STEP / max(float(np.linalg.norm(self.value(start)[1])), 1.0)

        def scaled(x: Floats) -> tuple[float, Floats]:
            value, gradient = self.value(x)
            return scale * value, scale * gradient

        found = minimize(
            scaled, start, jac=True, method="L-BFGS-B", bounds=bounds, callback=count,
            options={"maxiter": ITERATIONS, "ftol": 1e-6},
        )  # fmt: skip
        x: Floats = found.x
        return x

    def _whole(self, x: Floats) -> Floats:
        out = np.zeros(self._unknowns.size)
        out[self._unknowns.physical] = x
        return out

    def value(self, x: Floats) -> tuple[float, Floats]:
        """f(x) and df/dx, shape (n_parameters,)."""
        parts = answers(self._unknowns, self._given, self._whole(x))
        equations = self._equations(parts)
        w = equations.solve(self._prior)
        sigma = self._fit.prior_physical
        value = equations.error(w) + penalty(w, self._prior) + penalty(x, sigma)
        gradient = 2.0 * x / sigma**2
        for add_value, add_gradient in in_parallel(partial(self._explicit, w), parts, kernel_threads()):
            value += add_value
            gradient = gradient + add_gradient
        return value, gradient

    def weights(self, x: Floats) -> Floats:
        """w(x), shape (charged,)."""
        return self._equations(answers(self._unknowns, self._given, self._whole(x))).solve(self._prior)

    def _equations(self, parts: Sequence[Answering]) -> NormalEquations:
        out = NormalEquations(self._unknowns.charged)
        for part in parts:
            for _, rows, targets in charge_rows(self._fit, part):
                out.add(rows, targets)
        return out

    def _explicit(self, w: Floats, part: Answering) -> tuple[float, Floats]:
        """The polarizability's part of f, and df/dx of one frame at fixed w."""
        parameters, response, problem = self._unknowns.parameters, part.response, part.state.problem
        frame = in_order_of(part.state, part.frame)
        species = part.potential.species_index(problem.structure.numbers)
        charges = response.known + part.design() @ w
        tension = np.empty(0)
        if problem.bonds is not None:
            chi = part.kernel @ w[: part.kernel.shape[1]]
            tension = problem.bonds.tension(chi + response.matrix @ charges, problem.field)
        by_x = charges_by_parameter(response, derivatives(problem, species, parameters, charges, tension))
        rows, value, gradient = FrameRows(self._fit, frame), 0.0, np.zeros(len(parameters))
        for _, slopes, rest in rows.charges(by_x, charges):
            gradient -= 2.0 * rest @ slopes
        if has_polarizability(frame):
            alpha = polarizability(part.state, response, species, parameters)
            _, slopes, rest = rows.polarizability(alpha.by_parameter, alpha.value)
            value += float(rest @ rest)
            gradient -= 2.0 * rest @ slopes
        return value, gradient
