"""Electronegativities and reference charges from charges and dipoles alone, and the physical parameters with them.

At given physical parameters charges are linear in the weights w of electronegativity and reference charge
(`charge_response`), so that the best weights are one linear solution. What is left is a function of the few physical
parameters x alone (variable projection),

    f(x) = min_w |A(x) w - y(x)|^2 + sum (w / prior)^2 + |alpha(x) - alpha_ref|^2 + sum (x / prior)^2,

whose gradient is that at fixed w, because f is stationary in w: df/dx = -2 r.dq/dx(w) - 2 r_alpha.dalpha/dx + ...
A quasi-Newton method (L-BFGS-B) keeps x within its bounds.

References: Golub and Pereyra, SIAM J. Numer. Anal. 10, 413 (1973), doi:10.1137/0710036; Byrd, Lu, Nocedal, Zhu, SIAM J.
Sci. Comput. 16, 1190 (1995), doi:10.1137/0916069.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy.optimize import minimize

from kqeq_md.errors import ConfigError, KqeqError
from kqeq_md.potential import Equilibrated, Potential
from kqeq_md.structure import Floats
from kqeq_md.threads import in_parallel, kernel_threads
from kqeq_md.train.charge_response import ACCURACY, ChargeResponse, charge_response
from kqeq_md.train.config import Fit
from kqeq_md.train.data import Frame
from kqeq_md.train.design import Progress
from kqeq_md.train.linearised import charges_by_parameter, polarizability
from kqeq_md.train.molecules import prepared
from kqeq_md.train.normal_equations import NormalEquations
from kqeq_md.train.physical import bounds_of, derivatives
from kqeq_md.train.rows import FrameRows
from kqeq_md.train.unknowns import Unknowns

TIGHT = 1e-10
"""Tolerance of charge equilibration in training: what is derived stays exact beside what is solved."""

ITERATIONS = 25


@dataclass(frozen=True)
class Answering:
    """A frame at given physical parameters.

    Attributes:
        frame: with its labels.
        kernel: K U and constants of its atoms, in the order of the problem, shape (n, width).
        potential, state: of the model without kernels.
        response: of the charges.
    """

    frame: Frame
    kernel: Floats
    potential: Potential
    state: Equilibrated
    response: ChargeResponse

    def design(self) -> Floats:
        """dq/dw, shape (n, charged)."""
        n = len(self.kernel)
        by_inputs = self.response.by_inputs
        return np.concatenate([by_inputs[:, k : k + n] @ self.kernel for k in range(0, by_inputs.shape[1], n)], axis=1)


def answering(potential: Potential, frame: Frame, kernel: Floats) -> Answering:
    """A frame at the physical parameters of `potential`.

    Args:
        potential: of a model without kernels; left as it is.
        frame: with its labels.
        kernel: in the order of the frame, shape (n, width).

    Raises:
        ConfigError: naming the frame, whose charges have no minimum, or whose field has no meaning.
    """
    try:
        own = prepared(potential.twin(), frame)
        state = own.equilibrate(frame.structure)
        response = charge_response(state.problem, state.hold)
    except KqeqError as error:
        raise ConfigError(f"{frame.place}: {error}") from None
    return Answering(frame, kernel[state.order], own, state, response)


def in_order_of(state: Equilibrated, frame: Frame) -> Frame:
    """The frame with its atoms in the order of the problem."""
    charges = None if frame.charges is None else frame.charges[state.order]
    structure = state.problem.structure
    return replace(frame, structure=structure, charges=charges)


def charge_rows(unknowns: Unknowns, fit: Fit, given: Answering) -> list[tuple[str, Floats, Floats]]:
    """Rows of charges, dipole and sum of reference charges in the weights that make charges, from weights of zero."""
    frame, design = in_order_of(given.state, given.frame), given.design()
    rows = FrameRows(fit, frame)
    out = rows.charges(design, given.response.known)
    if given.response.reference is not None:
        row = np.concatenate([np.zeros(unknowns.width), given.kernel.sum(axis=0)])
        out.append(rows.reference_sum(row, 0.0))
    return out


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

        found = minimize(
            self.value, np.zeros(len(bounds)), jac=True, method="L-BFGS-B", bounds=bounds, callback=count,
            options={"maxiter": ITERATIONS, "ftol": 1e-4},
        )  # fmt: skip
        x: Floats = found.x
        return x

    def value(self, x: Floats) -> tuple[float, Floats]:
        """f(x) and df/dx, shape (n_parameters,)."""
        parts = answers(self._unknowns, self._given, x)
        equations = NormalEquations(self._unknowns.charged)
        for part in parts:
            for _, rows, targets in charge_rows(self._unknowns, self._fit, part):
                equations.add(rows, targets)
        w = equations.solve(self._prior)
        sigma = self._fit.prior_physical
        value = equations.error(w) + float(((w / self._prior) ** 2).sum()) + float(((x / sigma) ** 2).sum())
        gradient = 2.0 * x / sigma**2
        for add_value, add_gradient in in_parallel(partial(self._explicit, w), parts, kernel_threads()):
            value += add_value
            gradient = gradient + add_gradient
        return value, gradient

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


def has_polarizability(frame: Frame) -> bool:
    """Whether a frame has a polarizability that physical parameters can be fitted to."""
    return frame.polarizability is not None and frame.structure.boundary == "open"


def answers(unknowns: Unknowns, given: Sequence[tuple[Frame, Floats]], x: Floats) -> list[Answering]:
    """Frames with their kernels at physical parameters x."""
    whole = np.zeros(unknowns.size)
    whole[unknowns.physical] = x
    potential = Potential(unknowns.model(whole), ACCURACY, TIGHT, threads=1, kernel="exact")
    return in_parallel(lambda pair: answering(potential, *pair), given, kernel_threads())
