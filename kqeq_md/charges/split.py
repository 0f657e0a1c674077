"""Split charges: charge flows over bonds, each of which resists it.

    q_i = q0_i - sum_j p_ij,   p_ij = -p_ji = sqrt(c_ij) x_ij
    E = chi.q + 1/2 q.J q + 1/2 sum_b x_b^2 - F.(sum_i q0_i r_i + sum_b p_b d_b)

with one bond b per pair of atoms and image within the cutoff, d_ij = R_j - R_i, and the compliance (e^2/eV)

    c(r) = c0 (1 - (r / r_c)^2)^3   for r < r_c,   c0 and r_c of the two elements,

so that sqrt(c) ends with a continuous derivative. No bond, no flow: molecules far apart exchange nothing, and each
bond knows its vector, so that wrapping doesn't matter. At the minimum, with phi = chi + J q,

    p_ij = c_ij (F.d_ij - (phi_j - phi_i)),   q = q0 + P - X phi,
    P_i = -sum_j c_ij F.d_ij,   (X v)_i = sum_j c_ij (v_i - v_j).

Inserted into phi this is one equation per atom, (1 + J X) phi = chi + J (q0 + P), symmetric in the scalar product
u.X v; conjugate gradients in it are those of the Hessian over bonds, sqrt(C) B^T J B sqrt(C) + 1, without any vector
over bonds. The eigenvalues of J grow like 1/k^2 for waves of charge and those of X like k^2: the number of iterations
does not depend on the size.

Charges and anything else that answers to a potential enter J alike: induced dipoles on atoms would be further
components of q, phi and J, with their polarizability as another block of X.

References: Nistor, Polihronov, Muser, Mosey, J. Chem. Phys. 125, 094108 (2006), doi:10.1063/1.2346671; Verstraelen,
Ayers, Van Speybroeck, Waroquier, J. Chem. Phys. 138, 074108 (2013), doi:10.1063/1.4791569, whose ACKS2 with the
response -X gives the same charges.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, solve

from kqeq_md.charges.cholesky import INDEFINITE
from kqeq_md.charges.conjugate_gradient import ITERATIONS, ROUNDING, check_curvature, correction_goal
from kqeq_md.electrostatics.coulomb import Coulomb
from kqeq_md.errors import ChargeError
from kqeq_md.machine.jit import compiled
from kqeq_md.neighbours.half_list import Pairs, scatter_gradient
from kqeq_md.neighbours.search import Ints
from kqeq_md.ranks.halo import Halo, dot, norm
from kqeq_md.structure import Floats

Operator = Callable[[Floats], Floats]


@dataclass(frozen=True, eq=False)
class Bonds:
    """Bonds of the owned atoms, in both directions, sorted by the first of their atoms.

    Attributes:
        first: the bonds of atom i are first[i]:first[i + 1], shape (n + 1,).
        neighbour: its second atom among owned atoms and ghosts, shape (n_bonds,).
        vectors: d = R_neighbour - R_i, Angstrom, shape (n_bonds, 3).
        compliance: c, e^2/eV, shape (n_bonds,).
        slope: dc/dr, e^2/(eV Angstrom), shape (n_bonds,).
        n_all: owned atoms and ghosts.
        halo: how potentials travel to ghosts.
    """

    first: Ints
    neighbour: Ints
    vectors: Floats
    compliance: Floats
    slope: Floats
    n_all: int
    halo: Halo

    def laplacian(self, potential: Floats) -> Floats:
        """X v, e, shape (n,)."""
        return conductance(self.first, self.neighbour, self.compliance, potential, self._everywhere(potential))

    def tension(self, potential: Floats, field: Floats) -> Floats:
        """What drives each flow, F.d_ij - (v_j - v_i), eV/e, shape (n_bonds,)."""
        out: Floats = self.vectors @ field - self._everywhere(potential)[self.neighbour]
        return out + np.repeat(potential, np.diff(self.first))

    def gathered(self, flows: Floats) -> Floats:
        """-sum_j p_ij, what the flows of all its bonds bring to each atom; shape (n,) from (n_bonds,)."""
        return -self.per_atom(flows)

    def per_atom(self, values: Floats) -> Floats:
        """Sums over the bonds of each atom, shape (n,) from (n_bonds,)."""
        n = len(self.first) - 1
        sums = np.bincount(np.repeat(np.arange(n), np.diff(self.first)), values, minlength=n)
        return sums.astype(np.float64, copy=False)

    def scatter(self, gradient: Floats) -> Floats:
        """dE/dR of the owned atoms, shape (n, 3), from dE/dd of the bonds, shape (n_bonds, 3)."""
        return self.halo.reverse(scatter_gradient(self.first, self.neighbour, gradient, self.n_all))

    def _everywhere(self, potential: Floats) -> Floats:
        out: Floats = np.asarray(self.halo.forward(potential), dtype=np.float64)
        return out


def find_bonds(pairs: Pairs, species_all: Ints, compliance: Floats, cutoff: Floats, halo: Halo) -> Bonds:
    """The bonds among all pairs.

    Args:
        pairs: neighbours within the largest `cutoff` at least.
        species_all: element index of owned atoms and ghosts, shape (n_all,).
        compliance: c0 of each two elements, e^2/eV, shape (n_species, n_species).
        cutoff: r_c of each two elements, Angstrom, shape (n_species, n_species).
        halo: how values travel to ghosts.
    """
    first, pair, values, slope = bonds_among(
        pairs.first, pairs.neighbour, pairs.vectors, species_all, compliance, cutoff
    )
    return Bonds(first, pairs.neighbour[pair], pairs.vectors[pair], values, slope, len(species_all), halo)


@compiled
def bonds_among(
    first: Ints, neighbour: Ints, vectors: Floats, species: Ints, compliance: Floats, cutoff: Floats
) -> tuple[Ints, Ints, Floats, Floats]:
    """Rows of the pairs that are bonds, by atom, with c(r) and dc/dr."""
    n = len(first) - 1
    start = np.zeros(n + 1, dtype=np.int64)
    pair = np.empty(len(neighbour), dtype=np.int64)
    value, slope = np.empty(len(neighbour)), np.empty(len(neighbour))
    found = 0
    for i in range(n):
        for k in range(first[i], first[i + 1]):
            r2 = vectors[k, 0] ** 2 + vectors[k, 1] ** 2 + vectors[k, 2] ** 2
            c0 = compliance[species[i], species[neighbour[k]]]
            cutoff2 = cutoff[species[i], species[neighbour[k]]] ** 2
            if r2 < cutoff2 and c0 > 0.0:
                rest = 1.0 - r2 / cutoff2
                pair[found] = k
                value[found] = c0 * rest**3
                slope[found] = -6.0 * c0 * rest**2 * np.sqrt(r2) / cutoff2
                found += 1
        start[i + 1] = found
    return start, pair[:found].copy(), value[:found].copy(), slope[:found].copy()


@compiled
def conductance(first: Ints, neighbour: Ints, compliance: Floats, potential: Floats, everywhere: Floats) -> Floats:
    """(X v)_i = sum_j c_ij (v_i - v_j)."""
    out = np.empty(len(first) - 1)
    for i in range(len(out)):
        total = 0.0
        for k in range(first[i], first[i + 1]):
            total += compliance[k] * (potential[i] - everywhere[neighbour[k]])
        out[i] = total
    return out


@dataclass(frozen=True, eq=False)
class SplitSolution:
    """Charges (e, shape (n,)), their potential J q (eV/e, shape (n,)), the potential v that drives the flows (eV/e,
    shape (n,)) and how many products with J it took beside the first one (0: solved by factorisation)."""

    charges: Floats
    induced: Floats
    driving: Floats
    iterations: int


def split_scale(bonds: Bonds, potential: Floats, field: Floats) -> float:
    """|sqrt(c_b) (F.d_b - (v_j - v_i))| over all bonds: what residuals are small against, eV^(1/2)."""
    return float(np.sqrt(0.5 * bonds.halo.sum(bonds.compliance @ bonds.tension(potential, field) ** 2)))


def split_size(bonds: Bonds, potential: Floats) -> float:
    """sqrt(sum_i c_i v_i^2), c_i the compliance of all bonds of an atom: what v alone may drive, eV^(1/2)."""
    return float(np.sqrt(bonds.halo.sum(bonds.per_atom(bonds.compliance) @ potential**2)))


def solve_split_dense(matrix: Floats, bonds: Bonds, electronegativity: Floats, unbound: Floats) -> SplitSolution:
    """The charges by factorisation of 1 + X J.

    Args:
        matrix: J, eV/e^2, shape (n, n).
        bonds: of n atoms that one process owns.
        electronegativity: chi, eV/e, shape (n,).
        unbound: q0 + P, e, shape (n,).

    Raises:
        ChargeError: 1 + X J is singular.
    """
    n = len(unbound)
    owners = np.asarray(bonds.halo.forward(np.arange(n)), dtype=np.int64)
    x = np.zeros((n, n))
    np.add.at(x, (np.repeat(np.arange(n), np.diff(bonds.first)), owners[bonds.neighbour]), -bonds.compliance)
    x[np.diag_indices(n)] -= x.sum(axis=1)
    try:
        charges = solve(np.eye(n) + x @ matrix, unbound - x @ electronegativity, check_finite=False)
    except LinAlgError:
        raise ChargeError(INDEFINITE) from None
    induced = matrix @ charges
    return SplitSolution(charges, induced, electronegativity + induced, 0)


def solve_split(
    coulomb: Coulomb,
    bonds: Bonds,
    electronegativity: Floats,
    unbound: Floats,
    guess: Floats,
    scale: float,
    tolerance: float,
) -> SplitSolution:
    """The charges by conjugate gradients, until sqrt(rho.X rho) is below `tolerance` times `scale`.

    rho = phi - v is what the potential of the charges differs from the one that drives the flows. Corrections are found
    with the rough product as in `refined_conjugate_gradient`: |J X u| <= |rho| in the same norm.

    Args:
        coulomb: the operator J.
        bonds: between its atoms.
        electronegativity: chi, eV/e, shape (n,).
        unbound: q0 + P, e, shape (n,).
        guess: of the driving potential, eV/e, shape (n,); one that is worse than none (zero) is not used.
        scale: of `split_scale`, eV^(1/2).
        tolerance: relative residual.

    Raises:
        ChargeError: a flow without positive curvature; no convergence within 500 iterations.
    """

    def state_of(driving: Floats) -> tuple[Floats, Floats, Floats, float]:
        charges = unbound - bonds.laplacian(driving)
        induced = coulomb.apply(charges)
        residual = electronegativity + induced - driving
        return charges, induced, residual, _norm(bonds, residual, bonds.laplacian(residual))

    driving, iterations, roughness = guess, 0, coulomb.roughness
    charges, induced, residual, size = state_of(driving)
    if norm(guess, bonds.halo) != 0.0 and size > scale:
        driving = np.zeros_like(guess)
        charges, induced, residual, size = state_of(driving)
    while True:
        rounding = ROUNDING * (
            _norm(bonds, induced, np.abs(unbound) + np.abs(charges)) + split_size(bonds, electronegativity)
        )
        target = max(tolerance * scale, rounding)
        if size <= target:
            return SplitSolution(charges, induced, driving, iterations)
        goal, last = correction_goal(roughness, size, target)
        product = coulomb.apply_roughly if roughness > 0.0 else coulomb.apply
        step, response, taken = split_conjugate_gradient(product, bonds, residual, goal)
        driving = driving + step
        iterations += taken
        if last:
            return SplitSolution(unbound - bonds.laplacian(driving), induced - response, driving, iterations)
        previous = size
        charges, induced, residual, size = state_of(driving)
        iterations += 1
        if not size <= 0.5 * previous:
            roughness = 0.0


def split_conjugate_gradient(
    product: Operator, bonds: Bonds, residual: Floats, goal: float
) -> tuple[Floats, Floats, int]:
    """u and J X u with (1 + J X) u = rho until the norm sqrt(r.X r) of what is left is below `goal`; and iterations.

    Raises:
        ChargeError: a flow without positive curvature; no convergence within 500 iterations.
    """
    solution, response = np.zeros_like(residual), np.zeros_like(residual)
    left, direction, flow, slope = residual, np.zeros_like(residual), np.zeros_like(residual), 1.0
    for iteration in range(ITERATIONS + 1):
        current = bonds.laplacian(left)
        previous, slope = slope, dot(left, current, bonds.halo)
        if slope <= goal**2:
            return solution, response, iteration
        direction = left + (slope / previous) * direction
        flow = current + (slope / previous) * flow
        answer = product(flow)
        curvature = dot(flow, direction + answer, bonds.halo)
        check_curvature(curvature, "flow")
        step = slope / curvature
        solution = solution + step * direction
        response = response + step * answer
        left = left - step * (direction + answer)
    raise ChargeError(
        f"charges must reach a residual of {goal:.3g} eV^(1/2) within {ITERATIONS} iterations, got "
        f"{np.sqrt(slope):.3g}: `compliance` is too large, or `hardness` close to the limit of stability"
    )


def _norm(bonds: Bonds, potential: Floats, charges: Floats) -> float:
    return float(np.sqrt(max(dot(potential, charges, bonds.halo), 0.0)))
