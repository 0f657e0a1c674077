"""Thresholds and expected errors from held-out frames; on the supplied sets, what the measure finds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kqeq_md.errors import ConfigError, KqeqError
from kqeq_md.extrapolation import LARGEST_MEASURE, Limits
from kqeq_md.model import Model, load_model, save_model
from kqeq_md.models import NACL
from kqeq_md.potential import Potential
from kqeq_md.structure import Structure
from kqeq_md.train.calibration import BINS, FEWEST, MARGIN, calibrate, expected_errors
from kqeq_md.train.config import Config, Data, Kernel, Keys, read_config
from kqeq_md.train.data import Frame, read_frames
from kqeq_md.train.fit import fit

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_nacl"


def quiet(items: Any, _: str) -> Any:
    return items


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return read_frames([EXAMPLE / "test.xyz"], Keys())


@pytest.fixture(scope="module")
def record(frames: list[Frame]) -> dict[str, Any]:
    """Of the shipped model, whose test frames are held out."""
    return calibrate(load_model(NACL), frames[::3], frames[1::3])


def flagged(model: Model, frames: list[Frame]) -> dict[float, list[bool]]:
    """By total charge, whether any atom of a frame extrapolates."""
    potential, out = Potential(model, threads=1), dict[float, list[bool]]()
    for frame in frames:
        measure = potential.extrapolation(frame.structure, result=potential.compute(frame.structure))
        out.setdefault(frame.structure.charge, []).append(bool((measure > potential.largest_measure).any()))
    return out


def test_the_record_is_json_and_says_what_was_seen(record: dict[str, Any], frames: list[Frame]) -> None:
    assert json.loads(json.dumps(record)) == record
    assert record["n_atoms"] == sum(len(frame.structure) for frame in frames[::3])
    used = [frame for index, frame in enumerate(frames) if index % 3 < 2]
    each = [frame.structure.charge / len(frame.structure) for frame in used]
    assert record["charge_per_atom"] == [min(each), max(each)]
    low, high = record["charges"]["Cl"]
    assert -1.0 < low < high < 0.0
    quantiles = list(record["quantiles"].values())
    assert quantiles == sorted(quantiles)
    assert record["threshold"] == pytest.approx(MARGIN * record["quantiles"]["0.999"], rel=1e-12)  # rounding


def test_a_model_file_carries_it(record: dict[str, Any], frames: list[Frame], tmp_path: Path) -> None:
    model = replace(load_model(NACL), training={})
    assert Potential(model).largest_measure == LARGEST_MEASURE
    path = tmp_path / "calibrated.kqeq"
    save_model(replace(model, training={**model.training, "extrapolation": record}), path)
    potential = Potential(path)
    assert potential.largest_measure == record["threshold"]
    structure = frames[0].structure
    assert potential.extrapolation(structure, result=potential.compute(structure)).max() < record["threshold"]


def test_errors_never_fall_with_the_measure() -> None:
    rng = np.random.default_rng(4)
    measure = rng.uniform(0.0, 3.0, 1000)
    table = expected_errors(measure, measure * np.abs(rng.normal(size=1000)))
    assert len(table["upper"]) == BINS
    assert table["upper"][-1] == measure.max()
    for name in ("upper", "median", "p95"):
        assert table[name] == sorted(table[name])
    # of |normal| the median is 0.67: bins of a twelfth, with 83 atoms each, scatter by a tenth
    assert table["median"][-1] == pytest.approx(0.67 * 2.9, rel=0.3)


@pytest.mark.parametrize("n", [1, FEWEST, 5 * FEWEST])
def test_few_atoms_make_few_bins(n: int) -> None:
    table = expected_errors(np.arange(float(n)), np.ones(n))
    assert len(table["upper"]) == max(1, n // FEWEST)
    assert table["median"] == [1.0] * len(table["upper"])


def test_frames_without_forces_are_refused(frames: list[Frame]) -> None:
    bare = [replace(frame, forces=None) for frame in frames[:2]]
    with pytest.raises(ConfigError, match="`held_out` must hold frames with forces, got 2 without any"):
        calibrate(load_model(NACL), bare, frames[:1])


def test_errors_name_the_frame(frames: list[Frame]) -> None:
    foreign = replace(frames[0], structure=Structure([1, 1], [[0, 0, 0], [0, 0, 0.8]]), forces=np.zeros((2, 3)))
    with pytest.raises(KqeqError, match=r"test\.xyz, frame 0: "):
        calibrate(load_model(NACL), [foreign], frames[:1])


def test_ranges_begin_at_their_edges() -> None:
    """0 within, the threshold half a half width beyond, twice the threshold at most."""
    record = {"threshold": 2.0, "charges": {"Na": [0.6, 0.8]}, "charge_per_atom": [-0.1, 0.3]}
    limits = Limits.read(record, ["Na", "Cl"])
    got = limits.beyond(np.array([0, 0, 0, 0, 0, 1]), np.array([0.6, 0.7, 0.8, 0.85, 0.55, 5.0]))
    np.testing.assert_allclose(got, [0.0, 0.0, 0.0, 2.0, 2.0, 0.0], atol=1e-12)  # rounding; nothing is known of Cl
    assert limits.beyond_total(3.0, 10) == 0.0
    assert limits.beyond_total(4.5, 10) == pytest.approx(2.0, rel=1e-12)
    assert limits.beyond_total(-1.5, 10) == pytest.approx(2.0, rel=1e-12)
    assert limits.beyond_total(99.0, 10) == 4.0
    assert limits.with_total(7.0, 10).beyond_total(7.0, 10) == 0.0


def test_any_charge_is_far_from_neutral_frames() -> None:
    limits = Limits.read({"threshold": 2.0, "charges": {}, "charge_per_atom": [0.0, 0.0]}, ["Na"])
    assert limits.beyond_total(0.0, 10_000) == 0.0
    assert limits.beyond_total(1.0, 10_000) > limits.threshold


def test_a_model_of_neutral_frames_flags_charged_ones() -> None:
    """Small, so that it is quick: 60 training frames of the example, 40 sparse points."""
    config = replace(read_config(EXAMPLE / "nacl.toml"), kernel=Kernel(sparse_points=40))
    known = read_frames([EXAMPLE / "train.xyz"], Keys())
    small = [frame for frame in known if len(frame.structure) <= 16]
    neutral = [frame for frame in small if frame.structure.charge == 0.0][:80]
    held, used = neutral[::4], [frame for index, frame in enumerate(neutral) if index % 4]
    model = fit(used, config, quiet).model
    model = replace(model, training={"extrapolation": calibrate(model, held, used)})
    found = flagged(model, [frame for frame in small if frame.structure.charge][:20] + held)
    assert np.mean(found.pop(0.0)) <= 0.1
    for frames_of_a_charge in found.values():
        assert np.mean(frames_of_a_charge) > 0.9


# --- the supplied sets

SOAP = {
    "gfn2_nacl_field": {"cutoff": 6.0, "sigma": 0.5, "radial_scale": 3.0},
    "gfn2_water_field": {"cutoff": 4.5, "sigma": 0.4, "radial_scale": 2.0},
}


def supplied(name: str, data: Path) -> tuple[list[Frame], list[Frame], Config]:
    folder = data / name
    config = Config(Data([]), kernel=Kernel(sparse_points=300))
    config = replace(config, descriptor=replace(config.descriptor, n_max=6, l_max=4, cutoff_width=1.0, **SOAP[name]))
    return read_frames([folder / "train.xyz"], Keys()), read_frames([folder / "test.xyz"], Keys()), config


def calibrated(frames: list[Frame], config: Config) -> Model:
    """Fitted to four fifths, chosen at random, and calibrated on the rest."""
    order = np.random.default_rng(0).permutation(len(frames))
    held, used = ([frames[i] for i in rows] for rows in np.split(order, [len(order) // 5]))
    model = fit(used, config, quiet).model
    return replace(model, training={"extrapolation": calibrate(model, held, used)})


@pytest.mark.slow
@pytest.mark.parametrize("name", SOAP)
def test_charged_clusters_are_flagged_by_a_neutral_model(name: str, reference_data: Path) -> None:
    train, test, config = supplied(name, reference_data)
    model = calibrated([frame for frame in train if frame.structure.charge == 0.0], config)
    found = flagged(model, test)
    assert np.mean(found.pop(0.0)) < 0.15
    assert all(np.mean(frames) > 0.95 for frames in found.values())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "ratio"), [("gfn2_water_field", 3.0), ("gfn2_nacl_field", 1.5)])
def test_the_most_strongly_flagged_atoms_have_the_larger_errors(name: str, ratio: float, reference_data: Path) -> None:
    """rms force error of the 5 % with the largest measure, over the median error of all atoms.

    In NaCl the worst errors do not depend on the surroundings (`kqeq_md.extrapolation`).
    """
    train, test, config = supplied(name, reference_data)
    potential = Potential(calibrated(train, config), threads=1)
    measures, errors = [], []
    for frame in test:
        result = potential.compute(frame.structure)
        measures.append(potential.extrapolation(frame.structure, result=result))
        errors.append(np.linalg.norm(result.forces - frame.forces, axis=1))
    measure, error = np.concatenate(measures), np.concatenate(errors)
    worst = np.argsort(-measure)[: len(error) // 20]
    assert np.sqrt(np.mean(error[worst] ** 2)) > ratio * np.median(error)
