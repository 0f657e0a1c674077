"""Designs of forces and virials against differences of the kernel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kqeq_md.descriptor.power_spectrum import Descriptor
from kqeq_md.model import Model
from kqeq_md.train.fit.design import VOIGT, force_design, make_batch, split_into_batches
from kqeq_md.train.fit.start import blank_model, choose_basis


def test_force_design_is_the_derivative_of_the_kernel(sets: Any, model: Model) -> None:
    """Columns of the force design against five-point differences of sum_i a_i (K U)_i."""
    frames = sets.random_clusters(5, 2, model, True)
    config = sets.small_config(model)
    descriptor = Descriptor(model.terms[0].soap, 2)
    batch = make_batch(frames, descriptor, model.cutoff, model.numbers)
    basis = choose_basis(frames, blank_model(frames, config), config, sets.silent)
    weights = np.random.default_rng(0).normal(size=16)
    _, design = force_design(batch, descriptor, basis, [np.ones(16), weights])
    assert design.virials == {}

    def value(shift: float) -> np.ndarray:
        moved = frames[1].structure.positions.copy()
        moved[2, 1] += shift
        other = replace(frames[1], structure=sets.replace_positions(frames[1].structure, moved))
        return weights @ basis.kernel(make_batch([frames[0], other], descriptor, model.cutoff, model.numbers))

    h = 1e-3
    slope = (value(-2 * h) - 8 * value(-h) + 8 * value(h) - value(2 * h)) / (12 * h)
    # h^4 times fifth derivatives, scaled by the whitening
    np.testing.assert_allclose(design.forces[3 * (8 + 2) + 1], -slope, atol=1e-7 * np.abs(design.forces).max())


def test_virial_design_is_the_derivative_by_strain(sets: Any, model: Model, helpers: Any) -> None:
    """-d/d(strain) of sum_i a_i (K U)_i of a cell between frames without stress, whose numbers leave gaps."""
    clusters, cell = sets.random_clusters(5, 2, model, True), sets.random_cells(3, 1, model)[0]
    frames = [clusters[0], cell, clusters[1]]
    descriptor, config = Descriptor(model.terms[0].soap, 2), sets.small_config(model)
    batch = make_batch(frames, descriptor, model.cutoff, model.numbers)
    basis = choose_basis(frames, blank_model(frames, config), config, sets.silent)
    weights = np.random.default_rng(0).normal(size=24)
    _, design = force_design(batch, descriptor, basis, [np.ones(24), weights])
    assert list(design.virials) == [1]

    def value(strain: np.ndarray) -> np.ndarray:
        other = replace(cell, structure=helpers.strained(cell.structure, np.eye(3) + strain))
        return weights[8:16] @ basis.kernel(make_batch([other], descriptor, model.cutoff, model.numbers))

    h = 1e-4
    for row, (a, b) in enumerate(zip(*VOIGT, strict=True)):
        unit = np.zeros((3, 3))
        unit[a, b] += 0.5
        unit[b, a] += 0.5
        slope = (value(-2 * h * unit) - 8 * value(-h * unit) + 8 * value(h * unit) - value(2 * h * unit)) / (12 * h)
        # rounding of the kernel in whitened columns (1e-14 times 1e4) over h
        np.testing.assert_allclose(design.virials[1][row], -slope, atol=1e-6 * np.abs(design.virials[1]).max())


@pytest.mark.parametrize("size", [1, 8, 20, 1000])
def test_batches_hold_all_frames_in_their_order(size: int, sets: Any, model: Model) -> None:
    frames = sets.random_clusters(5, 7, model, True)
    batches = split_into_batches(frames, size)
    assert [frame.place for batch in batches for frame in batch] == [frame.place for frame in frames]
    assert all(len(batch) == 1 or 8 * len(batch) <= size for batch in batches)
    assert len(batches) == -(-7 // max(1, size // 8))
