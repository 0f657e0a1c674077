"""The joint fit: its linear problem against the sum of squares that it is to lower, its steps, and where they end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kqeq_md.descriptor.power_spectrum import Descriptor
from kqeq_md.model import Model
from kqeq_md.potential import Potential
from kqeq_md.train.config import Fit
from kqeq_md.train.data import Frame
from kqeq_md.train.fit.design import split_into_batches
from kqeq_md.train.fit.joint import JointFit
from kqeq_md.train.fit.physical import LIMITS, bounds_of, parameters_of
from kqeq_md.train.fit.start import basis_of, blank_model, choose_basis
from kqeq_md.train.fit.unknowns import prior_of, unknowns_of

FIT = Fit(
    targets=["charges", "dipole"], sigma_energy=0.01, sigma_forces=0.05, sigma_charges=0.02, sigma_dipole=0.02,
    sigma_virial=0.01, sigma_reference=0.1, sigma_polarizability=0.01,
)  # fmt: skip
KINDS = ["hardness", "gaussian_width", "compliance"]


def joint_fit(
    sets: Any, maker: Model, frames: list[Frame], fit: Fit = FIT, kinds: list[str] | None = None, points: int = 4,
    held_out: frozenset[str] = frozenset(),
) -> tuple[JointFit, np.ndarray]:  # fmt: skip
    """The problem with few sparse points, and its priors."""
    config = replace(sets.small_config(maker), fit=fit)
    blank = blank_model(frames, config, {"Na": -1.0, "Cl": -2.0})
    basis = choose_basis(frames, blank, config, sets.silent)
    few = basis_of([p[:points] for p in basis.points], basis.zeta)
    unknowns = unknowns_of(blank, few, parameters_of(blank, kinds or []))
    descriptor = Descriptor(config.descriptor, 2)
    joint = JointFit(unknowns, fit, descriptor, split_into_batches(frames, 20), held_out, sets.silent)
    return joint, prior_of(unknowns, fit, (1.0,) * len(unknowns.columns), given_atoms=False)


def settled(joint: JointFit, prior: np.ndarray, rounds: int = 8) -> np.ndarray:
    """The minimum."""
    x = np.zeros(joint.unknowns.size)
    for _ in range(rounds):
        x = joint.improve(joint.around(x, ""), prior, x).x
    return x


def maker_of(name: str, sets: Any, model: Model) -> Model:
    return sets.with_learned_reference(model) if name == "split" else model


def foreign(frames: list[Frame], scale: float = 0.1, seed: int = 0) -> list[Frame]:
    """Labels that no model meets: some noise on all of them."""
    rng = np.random.default_rng(seed)

    def noisy(value: Any) -> Any:
        return value if value is None else value + scale * rng.normal(size=np.shape(value))

    names = ("energy", "forces", "charges", "dipole")
    return [replace(frame, **{name: noisy(getattr(frame, name)) for name in names}) for frame in frames]


@pytest.mark.parametrize("name", ["qeq", "split"])
def test_the_linear_problem_meets_the_sum_of_squares(name: str, sets: Any, model: Model) -> None:
    """What the sums say at x is what the model's own energies, forces, charges, stresses and polarizabilities say."""
    maker = maker_of(name, sets, model)
    frames = [*sets.random_clusters(6, 3, maker, True, polarizable=True), *sets.random_cells(3, 2, maker)]
    frames[1] = replace(frames[1], weight=3.0)
    joint, _ = joint_fit(sets, maker, foreign(frames), kinds=KINDS)
    x = 0.3 * np.random.default_rng(3).normal(size=joint.unknowns.size)
    around = joint.around(x, "")
    nothing = np.full(joint.unknowns.size, np.inf)
    expected = joint.square(x, nothing, everyone=True)
    assert around.square == pytest.approx(expected, rel=1e-9)  # TIGHT charges, squared errors of order 1
    assert around.fitted.error(x) == pytest.approx(expected, rel=1e-6)  # a difference of large sums
    assert around.held_out.rows == 0
    quantities = {"charges", "dipole", "energy", "forces", "virial", "polarizability"}
    assert set(around.rms) == quantities | ({"reference sum", "reference charges"} if name == "split" else set())


@pytest.mark.parametrize("name", ["qeq", "split"])
def test_the_linear_problem_has_the_gradient_of_the_sum_of_squares(name: str, sets: Any, model: Model) -> None:
    """d(sum)/dx against five-point differences of the model's own sum, along random directions and each parameter.

    Open frames: virials follow the short range alone.
    """
    maker = maker_of(name, sets, model)
    frames = foreign(sets.random_clusters(6, 3, maker, True, polarizable=True))
    joint, _ = joint_fit(sets, maker, frames, kinds=KINDS)
    x = 0.3 * np.random.default_rng(3).normal(size=joint.unknowns.size)
    fitted = joint.around(x, "").fitted
    h, rng = 1e-3, np.random.default_rng(0)
    scale = np.ones(joint.unknowns.size)
    for direction in (*rng.normal(size=(3, len(x))), *np.eye(len(x))[joint.unknowns.physical]):
        # a quadratic function: its slope at x is exact by central differences
        slope = (fitted.error(x + h * direction) - fitted.error(x - h * direction)) / (2.0 * h)
        slope += 2.0 * direction @ (x / scale**2)
        values = [joint.square(x + k * h * direction, scale, everyone=True) for k in (-2, -1, 1, 2)]
        expected = (values[0] - 8.0 * values[1] + 8.0 * values[2] - values[3]) / (12.0 * h)
        # h^4 times a fifth derivative, and TIGHT over h; the sums are of some thousands
        assert slope == pytest.approx(expected, abs=1e-6 * values[0] + 1e-6 * abs(expected))


def test_held_out_frames_have_sums_of_their_own(sets: Any, model: Model) -> None:
    frames = foreign(sets.random_clusters(6, 6, model, True))
    out = frozenset(frame.place for frame in frames[::3])
    joint, _ = joint_fit(sets, model, frames, held_out=out)
    x = 0.3 * np.random.default_rng(3).normal(size=joint.unknowns.size)
    around, nothing = joint.around(x, ""), np.full(joint.unknowns.size, np.inf)
    assert around.fitted.rows == 2 * around.held_out.rows == 4 * (1 + 24 + 8 + 3)
    assert around.fitted.error(x) == pytest.approx(joint.square(x, nothing, everyone=False), rel=1e-6)
    both = (around.fitted + around.held_out).error(x)
    assert both == pytest.approx(joint.square(x, nothing, everyone=True), rel=1e-6)


@pytest.mark.parametrize("name", ["qeq", "split"])
def test_a_round_around_the_solution_stays_there(name: str, sets: Any, model: Model) -> None:
    maker = maker_of(name, sets, model)
    joint, prior = joint_fit(sets, maker, foreign(sets.random_clusters(6, 6, maker, True), 0.02))
    x = settled(joint, prior)
    step = joint.improve(joint.around(x, ""), prior, x)
    assert step.square == pytest.approx(joint.square(x, prior, everyone=False), rel=1e-6)
    now, then = (Potential(joint.unknowns.model(at)) for at in (x, step.x))
    structure = joint.batches[0][0].structure
    a, b = now.compute(structure), then.compute(structure)
    np.testing.assert_allclose(a.forces, b.forces, atol=1e-3 * np.abs(a.forces).max())  # the square is flat there
    np.testing.assert_allclose(a.charges, b.charges, atol=1e-4)


@pytest.mark.parametrize("name", ["qeq", "split"])
def test_no_round_climbs(name: str, sets: Any, model: Model) -> None:
    """From far away, too: where the whole step overshoots, damped ones are taken, or none."""
    maker = maker_of(name, sets, model)
    joint, prior = joint_fit(sets, maker, foreign(sets.random_clusters(6, 6, maker, True)), kinds=KINDS)
    x = 3.0 * np.random.default_rng(1).normal(size=joint.unknowns.size)
    x[joint.unknowns.physical] = 0.0
    squares = [joint.square(x, prior, everyone=False)]
    for _ in range(4):
        step = joint.improve(joint.around(x, ""), prior, x, farthest=0.3)
        assert step.square == pytest.approx(joint.square(step.x, prior, everyone=False), rel=1e-12)
        squares.append(step.square)
        x = step.x
    assert squares == sorted(squares, reverse=True)
    assert squares[-1] < 0.5 * squares[0]


def test_damping_holds_what_makes_charges(sets: Any, model: Model) -> None:
    """The minimum of the linear problem with its two kinds of springs, written out; the short range is free."""
    joint, prior = joint_fit(sets, model, foreign(sets.random_clusters(6, 3, model, True)))
    x = 0.3 * np.random.default_rng(3).normal(size=joint.unknowns.size)
    fitted, charged = joint.around(x, "").fitted, joint.unknowns.charged
    np.testing.assert_array_equal(joint.solve(fitted, prior, x), fitted.solve(prior))

    def objective(at: np.ndarray, damping: float) -> float:
        held = ((at - x) / prior)[:charged]
        return fitted.error(at) + float(((at / prior) ** 2).sum()) + damping * float((held**2).sum())

    rng, away = np.random.default_rng(0), []
    for damping in (0.0, 1.0, 1e4):
        found = joint.solve(fitted, prior, x, damping)
        least = objective(found, damping)
        for _ in range(5):
            assert objective(found + 1e-2 * prior * rng.normal(size=len(x)), damping) > least
        away.append(float(np.abs((found - x)[:charged]).max()))
    assert away[0] > away[1] > away[2]


def test_physical_parameters_stay_within_bounds_and_near(sets: Any, model: Model) -> None:
    joint, prior = joint_fit(sets, model, foreign(sets.random_clusters(6, 3, model, True)), kinds=KINDS)
    unknowns = joint.unknowns
    x = np.zeros(unknowns.size)
    fitted = joint.around(x, "").fitted
    low, high = bounds_of(unknowns.start, unknowns.parameters).T
    far = joint.solve(fitted, prior, x, farthest=np.inf)[unknowns.physical]
    assert (far >= low).all()
    assert (far <= high).all()
    near = joint.solve(fitted, prior, x, farthest=0.01)[unknowns.physical]
    assert (np.abs(near) <= 0.01).all()
    assert (np.abs(near) == 0.01).any()  # some parameter wants to go further
    np.testing.assert_allclose(joint.solve(fitted, prior, x)[unknowns.physical], 0.0, atol=0.0)
    at_the_edge = np.zeros(unknowns.size)
    at_the_edge[unknowns.physical] = high
    for parameter in unknowns.parameters:
        value = parameter.value(unknowns.model(at_the_edge))
        assert value <= LIMITS[parameter.kind][1] * (1.0 + 1e-12)
