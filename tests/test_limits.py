"""What is done about atoms that extrapolate: when they are looked at, warned of, and when a run ends."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms

from kqeq_md.ase import KQEq
from kqeq_md.errors import ExtrapolationError, KqeqError
from kqeq_md.limits import LOOKS, Watch
from kqeq_md.model import Model, load_model
from kqeq_md.models import NACL
from kqeq_md.potential import Potential
from kqeq_md.structure import Structure

METAL = Atoms("Na27", 3.6 * np.array(list(np.ndindex(3, 3, 3))))
"""For the model of the salt."""

MEASURE = np.array([0.5, 2.5, 1.0, 3.25])


def test_looks_at_the_first_and_at_every_hundredth_step() -> None:
    watch = Watch("stop", 1.0)
    assert [step for step in range(2 * LOOKS + 1) if watch.due()] == [0, LOOKS, 2 * LOOKS]


def test_looks_at_other_structures() -> None:
    """Atoms that are further away than any step takes them, or of another number; not those that vibrate."""
    watch, base = Watch("warn", 1.0), np.zeros((3, 3))
    seen = [watch.due(base + shift) for shift in (0.0, 0.9, 0.0, 1.1, 1.1)]
    assert seen == [True, False, False, True, False]
    assert watch.due(np.zeros((4, 3)))


def test_warns_once_and_names_the_worst_first(caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch("warn", 2.0)
    for _ in range(2):
        watch.look(MEASURE, names=[10, 20, 30, 40], where="ids")
    (text,) = caplog.messages
    assert text.startswith(
        "2 atoms extrapolate, with measures beyond the model's threshold of 2.00: 40 (3.25), 20 (2.50)"
    )
    assert not watch.due()


def test_stop_names_atoms() -> None:
    with pytest.raises(ExtrapolationError, match=r"^1 atom extrapolates.* 3\.00: 3 \(3\.25\) \(counted from 0\)"):
        Watch("stop", 3.0).look(MEASURE)
    with pytest.raises(ExtrapolationError, match=r" and 12 more \("):
        Watch("stop", 3.0).look(np.full(20, 4.0))
    Watch("stop", 3.25).look(MEASURE)  # at the threshold, not beyond


def test_off_never_looks(caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch("off", 1.0)
    assert not any(watch.due() for _ in range(LOOKS + 1))
    watch.look(MEASURE)
    assert caplog.messages == []


def test_other_words_are_refused() -> None:
    with pytest.raises(KqeqError, match="`extrapolation` must be warn, stop, off, got 'raise'"):
        Watch("raise", 1.0)


# --- ASE


@pytest.mark.parametrize("action", ["warn", "off"])
def test_ase_goes_on(action: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="kqeq_md"):
        calculator = KQEq(NACL, extrapolation=action)
        for shift in (0.0, 0.01):
            METAL.copy().set_positions(METAL.positions + shift)
            calculator.calculate(METAL, ["energy"])
    assert sum("extrapolate" in text for text in caplog.messages) == (action == "warn")


def test_ase_stops() -> None:
    with pytest.raises(ExtrapolationError, match="atoms extrapolate"):
        KQEq(NACL, extrapolation="stop").get_potential_energy(METAL)


def test_ase_gives_the_measure_of_each_atom() -> None:
    """The same as the core's, which takes forces and charges into account."""
    model = calibrated(load_model(NACL))
    atoms = Atoms("Na4Cl4", Structure([11] * 8, SITES).positions)
    calculator = KQEq(model, extrapolation="off")
    structure, potential = Structure(atoms.numbers, atoms.positions), Potential(model)
    wanted = potential.extrapolation(structure, result=potential.compute(structure))
    np.testing.assert_array_equal(calculator.get_property("extrapolation", atoms), wanted)
    assert (wanted >= potential.extrapolation(structure)).all()


SITES = 2.6 * np.array(
    [[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=float
)


def calibrated(model: Model, threshold: float = 2.0) -> Model:
    record = {"threshold": threshold, "charges": {"Na": [0.5, 0.9], "Cl": [-0.9, -0.5]}, "charge_per_atom": [0.0, 0.0]}
    return replace(model, training={**model.training, "extrapolation": record})
