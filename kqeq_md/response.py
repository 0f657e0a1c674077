"""How charges answer to a field: polarizability, Born effective charges, dielectric tensor.

With mu the dipole of `charges.field` and E = E_0 - F.mu,

    alpha_ab = dmu_a / dF_b,   Z_i,ab = dmu_a / dR_ib = d(force_ib) / dF_a,   eps_ab = delta_ab + 4 pi kC alpha_ab / V.

The answer of the charges to a unit field along each axis is one more minimisation, that of the same Hamiltonian without
electronegativities and sums; forces are differentiated along it: linear terms by one reverse pass through the
descriptor per axis, the quadratic q.J q by its bilinear form.

References: Born charges and Berry phase: Ghosez, Michenaud, Gonze, Phys. Rev. B 58, 6224 (1998),
doi:10.1103/PhysRevB.58.6224; finite fields: Souza, Iniguez, Vanderbilt, Phys. Rev. Lett. 89, 117602 (2002).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import pi

import numpy as np

from kqeq_md.charges.equilibrate import Equilibrium, Problem
from kqeq_md.charges.field import has_dipole
from kqeq_md.errors import FieldError
from kqeq_md.machine.threads import one_blas_thread
from kqeq_md.potential import Equilibrated, Potential, restored
from kqeq_md.ranks.domain import Domain
from kqeq_md.structure import Floats, Result, Structure
from kqeq_md.units import COULOMB_CONSTANT


@dataclass(frozen=True, eq=False)
class Response:
    """What a uniform field does, nuclei at rest (infinite frequency).

    Attributes:
        polarizability: alpha, e^2 Angstrom^2/eV (times kC = 14.4 eV Angstrom/e^2: Angstrom^3), shape (3, 3).
        born_charges: Z[i, a, b] = dmu_a / dR_ib, e, shape (n, 3, 3), not symmetric; they add up to Q delta_ab.
        charges: dq_i / dF_a, e/(V/Angstrom), shape (n, 3).
        dielectric: eps of a periodic cell, shape (3, 3); None for other boundaries.
    """

    polarizability: Floats
    born_charges: Floats
    charges: Floats
    dielectric: Floats | None


def response(potential: Potential, structure: Structure, domain: Domain | None = None) -> Response:
    """Polarizability and Born charges at the structure's own field; exact to the tolerance of the potential.

    Args:
        potential: of the model.
        structure: the atoms; on one of several ranks those that it owns.
        domain: what this rank knows of the others' atoms, as for `Potential.compute`.

    Raises:
        FieldError: a structure whose dipole is not defined along all axes.
        KqeqError: as `Potential.compute`.
    """
    with one_blas_thread:
        return _response(potential, potential.equilibrate(structure, domain))


def compute_with_response(potential: Potential, structure: Structure) -> tuple[Result, Response]:
    """`potential.compute(structure)` and its response, with charges equilibrated once; errors as in `response`."""
    with one_blas_thread, np.errstate(all="ignore"):  # what overflows is refused
        state = potential.equilibrate(structure)
        return potential.result(state), _response(potential, state)


def _response(potential: Potential, state: Equilibrated) -> Response:
    structure = state.structure
    if not has_dipole(structure, state.hold):
        raise FieldError(
            f"polarizability and Born charges need a dipole along all axes, got a {structure.boundary} structure "
            'through whose boundary charge flows freely. Ways out: open boundaries, charges="fragments" or '
            'charges="split" (with learned reference charges they need `fragments` too)'
        )
    answers = [potential.solve_response(_unit_field(state.problem, axis)) for axis in range(3)]
    born = [restored(_born_charges(state, axis, answer), state.order) for axis, answer in enumerate(answers)]
    polarizability = np.stack([answer.dipole for answer in answers], axis=1)
    dielectric = None
    if structure.boundary == "periodic":
        dielectric = np.eye(3) + 4.0 * pi * COULOMB_CONSTANT / structure.volume * polarizability
    charges = np.stack([restored(state.site.leave(answer.charges), state.order) for answer in answers], axis=1)
    return Response(polarizability, np.stack(born).transpose(1, 0, 2), charges, dielectric)


def _unit_field(problem: Problem, axis: int) -> Problem:
    """The same Hamiltonian with nothing but a field of 1 V/Angstrom."""
    nothing = np.zeros(len(problem.structure))
    return replace(
        problem,
        electronegativity=nothing,
        constraint=problem.constraint.homogeneous,
        reference=None if problem.reference is None else nothing,
        field=np.eye(3)[axis],
    )


def _born_charges(state: Equilibrated, axis: int, answer: Equilibrium) -> Floats:
    """d(force)/dF_axis, shape (n, 3), in the order of the problem: minus the derivative of each term of dE/dR."""
    problem, equilibrium, local = state.problem, state.equilibrium, state.local
    change = answer.charges
    reference = None
    if state.reference_gradient is not None:
        reference = state.site.leave(problem.constraint.project(answer.potential - problem.anchors[:, axis]))
    grad_r, _ = local.carried_home(local.gradient(state.site.leave(change), reference, short_range=0.0))
    grad_site = np.zeros((len(change), 3))
    if (bonds := problem.bonds) is not None:
        length = np.linalg.norm(bonds.vectors, axis=1)
        along = -0.5 * bonds.slope * equilibrium.tension * answer.tension / length
        grad_site += bonds.scatter(along[:, None] * bonds.vectors)
    field = problem.coulomb.field
    grad_site -= equilibrium.charges[:, None] * field(change) + change[:, None] * field(equilibrium.charges)
    grad_site -= np.outer(change, problem.field)
    grad_site[:, axis] -= equilibrium.charges
    return -(grad_r + state.site.leave(grad_site))
