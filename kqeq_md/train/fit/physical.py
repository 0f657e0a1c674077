"""The few physical parameters that are fitted, on a logarithmic scale: hardness, Gaussian width, compliance.

    theta_k = theta_k(start) exp(x_k),   x_k = 0 at the start, |x_k| <= LARGEST_CHANGE, theta_k within LIMITS

They stay positive, so that the Hamiltonian stays positive definite (`electrostatics.gaussians`). What a derivative by
x_k needs is what the parameter does to the potentials at given charges, and to the flows at given tensions:

    hardness of element e    (dJ q)_i = eta_e q_i for the atoms of e
    width of element e       dJ_ij = -kC (2 / sqrt(pi)) exp(-g^2 r^2) 2 g^3 (s_i^2 [i in e] + s_j^2 [j in e]) over all
                             images, dJ_ii = -kC / (sqrt(pi) s_i) for the atoms of e, and in a cell the background
                             (gaussians.background): dJ_ij += 4 pi kC / V (s_i^2 [i in e] + s_j^2 [j in e])
    compliance of a pair     dc_b = c_b for the bonds of the pair, dE = -1/2 sum_b c_b t_b^2 over each bond once

The slab term takes the background's part away again, so that slabs have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement

import numpy as np

from kqeq_md.charges.equilibrate import Problem, bond_gradient
from kqeq_md.errors import ConfigError
from kqeq_md.model import Model
from kqeq_md.neighbours.half_list import find_pairs
from kqeq_md.neighbours.search import Ints
from kqeq_md.structure import Floats
from kqeq_md.units import COULOMB_CONSTANT

LIMITS = {"hardness": (0.05, 100.0), "gaussian_width": (0.2, 1.5), "compliance": (1e-3, 1.0)}
"""eV/e^2, Angstrom, e^2/eV."""

LARGEST_CHANGE = float(np.log(30.0))

NOTHING_LEFT = 5.5
"""Beyond this g r, exp(-g^2 r^2) is below 1e-13."""


@dataclass(frozen=True)
class Parameter:
    """One of them: "hardness" or "gaussian_width" of an element, "compliance" of two."""

    kind: str
    elements: tuple[int, ...]

    def name(self, species: Sequence[str]) -> str:
        """As in "hardness O" or "compliance H-O"."""
        return f"{self.kind} {'-'.join(species[e] for e in self.elements)}"

    def value(self, model: Model) -> float:
        """In the units of LIMITS."""
        return float(getattr(model, self.kind)[self.elements])


def parameters_of(model: Model, kinds: Sequence[str]) -> list[Parameter]:
    """All parameters of these kinds that the charge model of `model` has.

    Raises:
        ConfigError: a start value outside of LIMITS.
    """
    out = []
    for kind in kinds:
        pairs = kind == "compliance"
        if pairs and model.charges != "split":
            continue
        groups = combinations_with_replacement(range(len(model.species)), 2 if pairs else 1)
        for elements in groups:
            parameter, (low, high) = Parameter(kind, elements), LIMITS[kind]
            if not low <= parameter.value(model) <= high:
                raise ConfigError(
                    f"`fit.physical` needs start values between {low:g} and {high:g}, got "
                    f"{parameter.value(model):g} for {parameter.name(model.species)}"
                )
            out.append(parameter)
    return out


def bounds_of(model: Model, parameters: Sequence[Parameter]) -> Floats:
    """Smallest and largest x_k around the values of `model`, shape (n_parameters, 2)."""
    out = np.empty((len(parameters), 2))
    for k, parameter in enumerate(parameters):
        logarithms = np.log(np.array(LIMITS[parameter.kind]) / parameter.value(model))
        out[k] = np.clip(logarithms, -LARGEST_CHANGE, LARGEST_CHANGE)
    return out


def with_physical(start: Model, parameters: Sequence[Parameter], x: Floats) -> Model:
    """`start` with its parameters multiplied by exp(x)."""
    changed = {kind: getattr(start, kind).copy() for kind in LIMITS}
    for parameter, factor in zip(parameters, np.exp(x), strict=True):
        values = changed[parameter.kind]
        values[parameter.elements] *= factor
        if len(set(parameter.elements)) == 2:
            values[parameter.elements[::-1]] = values[parameter.elements]
    return replace(start, **changed)


@dataclass(frozen=True)
class Derivatives:
    """What each parameter does at fixed charges and tensions. K parameters, n atoms.

    Attributes:
        potential: dJ q, eV/e, shape (n, K).
        flow: what the changed compliance brings to each atom, e, shape (n, K).
        energy: dE, eV, shape (K,).
        gradient: d(dE/dR), eV/Angstrom, shape (n, 3, K).
    """

    potential: Floats
    flow: Floats
    energy: Floats
    gradient: Floats


def derivatives(
    problem: Problem, species: Ints, parameters: Sequence[Parameter], charges: Floats, tension: Floats
) -> Derivatives:
    """Derivatives by x_k of a problem whose parameters are those of x.

    Args:
        problem: of a frame.
        species: element index in its order, shape (n,).
        parameters: to be derived by.
        charges: q, e, shape (n,).
        tension: of each bond, eV/e, shape (n_bonds,).
    """
    n, count = len(charges), len(parameters)
    out = Derivatives(np.zeros((n, count)), np.zeros((n, count)), np.zeros(count), np.zeros((n, 3, count)))
    width_pairs = None
    for k, parameter in enumerate(parameters):
        if parameter.kind == "hardness":
            chosen = species == parameter.elements[0]
            out.potential[:, k] = problem.coulomb.hardness * chosen * charges
            out.energy[k] = 0.5 * charges @ out.potential[:, k]
        elif parameter.kind == "gaussian_width":
            if width_pairs is None:
                width_pairs = _WidthPairs(problem)
            out.potential[:, k], out.gradient[:, :, k] = width_pairs.derivatives(
                species == parameter.elements[0], charges
            )
            out.energy[k] = 0.5 * charges @ out.potential[:, k]
        else:
            out.flow[:, k], out.energy[k], out.gradient[:, :, k] = _of_compliance(
                problem, species, parameter.elements, tension
            )
    return out


def _of_compliance(
    problem: Problem, species: Ints, elements: tuple[int, ...], tension: Floats
) -> tuple[Floats, float, Floats]:
    """Flow, energy and gradient of one pair of elements."""
    bonds = problem.bonds
    assert bonds is not None
    first = np.repeat(np.arange(len(species)), np.diff(bonds.first))
    pair = np.sort(np.stack([species[first], species[bonds.neighbour]]), axis=0)
    chosen = (pair[0] == elements[0]) & (pair[1] == elements[1])
    flows = np.where(chosen, bonds.compliance * tension, 0.0)
    gradient = np.where(chosen[:, None], bond_gradient(bonds, tension), 0.0)
    return bonds.gathered(flows), -0.25 * float(flows @ tension), bonds.scatter(gradient)


class _WidthPairs:
    """All pairs of a frame whose Gaussians overlap, images among them."""

    def __init__(self, problem: Problem) -> None:
        structure = problem.structure
        self._square = problem.coulomb.gaussian_width**2
        self._width, self._structure = problem.coulomb.gaussian_width, structure
        self._pairs = find_pairs(structure, NOTHING_LEFT * 2.0 * float(self._width.max()))
        self._i, self._j = self._pairs.centre, self._pairs.neighbour
        self._g = 1.0 / np.sqrt(2.0 * (self._square[self._i] + self._square[self._j]))
        r2 = np.einsum("pc,pc->p", self._pairs.vectors, self._pairs.vectors)
        self._overlap = -COULOMB_CONSTANT * 4.0 / np.sqrt(np.pi) * self._g**3 * np.exp(-(self._g**2) * r2)

    def derivatives(self, chosen: Floats, charges: Floats) -> tuple[Floats, Floats]:
        """dJ q, shape (n,), and d(dE/dR), shape (n, 3), by the logarithm of the width of the chosen atoms."""
        square, n = self._square * chosen, len(charges)
        change = self._overlap * (square[self._i] + square[self._j])
        potential = np.bincount(self._i, change * charges[self._j], minlength=n)
        potential -= COULOMB_CONSTANT / np.sqrt(np.pi) / self._width * chosen * charges
        if self._structure.boundary == "periodic":
            both = square * charges.sum() + square @ charges
            potential += 4.0 * np.pi * COULOMB_CONSTANT / self._structure.volume * both
        slope = -2.0 * self._g**2 * change * charges[self._i] * charges[self._j]
        gradient: Floats = self._pairs.scatter(0.5 * slope[:, None] * self._pairs.vectors, n)
        return potential.astype(np.float64, copy=False), gradient
