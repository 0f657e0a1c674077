"""How far the Hamiltonian is from losing its minimum.

Gaussian charges repel themselves: without hardness J has no negative eigenvalue for charge transfer, so that the
smallest hardness is a bound for the smallest eigenvalue. Only where it says too little the eigenvalue is computed (at
every step for negative hardness, else with every new neighbour list), by inverse iteration: the response to a random
potential turns towards the softest charge transfer. On the way conjugate gradients meet negative curvature if there is
any, since a random vector has a part in every direction.
"""

from __future__ import annotations

from collections.abc import Callable

from kqeq_md.errors import ChargeError
from kqeq_md.ranks.halo import SERIAL, Halo, dot, norm
from kqeq_md.structure import Floats

SAFE = 0.1
"""eV/e^2. With every hardness above it J is stiff enough, whatever the positions."""

SOFTEST = 0.01
"""eV/e^2. Errors of J are amplified by its inverse: below it no accuracy could be promised."""


def check_stability(respond: Callable[[Floats], Floats], x: Floats, halo: Halo = SERIAL) -> None:
    """Refuse a Hamiltonian whose smallest eigenvalue for allowed charge transfers is not above SOFTEST.

    Args:
        respond: H^-1 x, e, shape (n,), for a potential difference x, eV/e, shape (n,).
        x: a random allowed charge transfer, shape (n,).
        halo: how sums go over all ranks.

    Raises:
        ChargeError: the Hamiltonian is indefinite, or nearly so.
    """
    for _ in range(3):
        x = x / norm(x, halo)
        transfer = respond(x)
        eigenvalue = dot(x, transfer, halo) / dot(transfer, transfer, halo)
        x = transfer
    if eigenvalue < SOFTEST:
        raise ChargeError(
            f"the softest charge transfer must cost at least {SOFTEST:g} eV/e^2, got {eigenvalue:.3g}: `hardness` is "
            "too low, or atoms with large `gaussian_width` are too close"
        )
