"""Electronegativities and reference charges from charges and dipoles alone.

At given physical parameters charges are linear in the weights of electronegativity and reference charge
(`charge_response`), so that the best weights are one linear solution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kqeq_md.descriptor.power_spectrum import Descriptor
from kqeq_md.errors import ConfigError, KqeqError
from kqeq_md.machine.threads import in_parallel, kernel_threads
from kqeq_md.potential import Equilibrated, Potential
from kqeq_md.structure import Floats
from kqeq_md.train.config import Fit
from kqeq_md.train.data import Frame
from kqeq_md.train.fit.charge_response import ACCURACY, TIGHT, ChargeResponse, charge_response
from kqeq_md.train.fit.design import make_batch, split_into_batches
from kqeq_md.train.fit.joint import with_constants
from kqeq_md.train.fit.molecules import prepared
from kqeq_md.train.fit.physical import with_physical
from kqeq_md.train.fit.rows import FrameRows
from kqeq_md.train.fit.unknowns import Unknowns


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


def charge_rows(fit: Fit, given: Answering) -> list[tuple[str, Floats, Floats]]:
    """Rows of charges, dipole and sum of reference charges in the weights that make charges, from weights of zero."""
    frame, design = in_order_of(given.state, given.frame), given.design()
    rows = FrameRows(fit, frame)
    out = rows.charges(design, given.response.known)
    if given.response.reference is not None:
        by_weights = np.concatenate([np.zeros_like(given.kernel), given.kernel], axis=1)
        out += rows.reference(by_weights, np.zeros(len(given.kernel)))
    return out


def answers(unknowns: Unknowns, known: Sequence[tuple[Frame, Floats]], x: Floats) -> list[Answering]:
    """Frames with their kernels at the physical parameters of x, shape (unknowns.size,)."""
    start = with_physical(unknowns.without_points, unknowns.parameters, x[unknowns.physical])
    potential = Potential(start, ACCURACY, TIGHT, threads=1)
    return in_parallel(lambda pair: answering(potential, *pair), known, kernel_threads())


def kernels_of(unknowns: Unknowns, descriptor: Descriptor, frames: Sequence[Frame]) -> list[Floats]:
    """K U and constants of each frame, shapes (n, unknowns.width)."""
    out = []
    for part in split_into_batches(frames):
        batch = make_batch(part, descriptor, unknowns.start.cutoff, unknowns.start.numbers)
        kernel = with_constants(unknowns, batch)
        out += [kernel[batch.atoms(f)] for f in range(len(part))]
    return out
