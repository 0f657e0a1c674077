"""Sparse points and whitening."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kqeq_md.model import Model
from kqeq_md.train.fit import sparse as sparse
from kqeq_md.train.fit.sparse import farthest_points, room_for_spectra, whitening
from kqeq_md.train.fit.start import blank_model, choose_basis


def test_farthest_points_reach_the_corners_first() -> None:
    corners = np.eye(5)
    crowd = corners[0] + 1e-3 * np.random.default_rng(0).normal(size=(50, 5))
    unit = np.concatenate([crowd, corners])
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    points = farthest_points(unit, 5, np.random.default_rng(1))
    assert (points @ corners.T > 0.99).sum() == 5
    assert len(farthest_points(corners, 50, np.random.default_rng(0))) == 5  # ends when all stand for themselves


@pytest.mark.parametrize("seed", range(4))
def test_atoms_alone_have_one_point_together(seed: int) -> None:
    """Their power spectrum is zero: its distance to itself is that of any other to itself."""
    spectra = np.concatenate([np.zeros((3, 4)), np.eye(4), np.zeros((2, 4))])
    points = farthest_points(spectra, 9, np.random.default_rng(seed))
    assert len(points) == 5
    assert (np.linalg.norm(points, axis=1) == 0.0).sum() == 1


def test_whitened_kernel_is_the_identity() -> None:
    points = np.random.default_rng(0).normal(size=(6, 20))
    kernel = (points @ points.T) ** 2
    u = whitening(kernel)
    np.testing.assert_allclose(u.T @ kernel @ u, np.eye(6), atol=1e-9)  # rounding times condition number


def test_whitening_drops_what_a_point_twice_adds() -> None:
    points = np.random.default_rng(0).normal(size=(6, 20))
    points[5] = points[0]
    assert whitening((points @ points.T) ** 2).shape == (6, 5)


def test_spectra_on_disk_give_the_same_points(sets: Any, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    frames, config = sets.random_clusters(5, 9, model, True), sets.small_config(model)
    blank = blank_model(frames, config)
    in_memory = choose_basis(frames, blank, config, sets.silent)
    monkeypatch.setattr(sparse, "IN_MEMORY", 0)
    assert isinstance(room_for_spectra(3, 4), np.memmap)
    on_disk = choose_basis(frames, blank, config, sets.silent)
    for a, b in zip(in_memory.points, on_disk.points, strict=True):
        np.testing.assert_array_equal(a, b)
