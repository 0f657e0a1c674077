"""Examples in LAMMPS, each by its one command in a short form, and the physics that its page names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kqeq_md.examples.lammps_dump import read_dump

NUMBER = r"([-+]?[\d.]+)"


def printed(text: str, before: str, count: int = 1) -> list[float]:
    """The numbers of the one line that begins like this."""
    (line,) = re.findall(rf"^{re.escape(before)}(.*)$", text, re.M)
    return [float(number) for number in re.findall(NUMBER, line)[:count]]


def test_nacl_melt(tmp_path: Path, run_example: Callable[..., str]) -> None:
    """Ions of unlike and like sign take turns, charges differ from ion to ion; 0.4 ps show the first shells."""
    text = run_example("nacl_melt", STEPS=200, RANKS=1)
    (unlike, height), (sodium, low), (chlorine, lower) = (
        printed(text, f"first peak of {pair}: ", 2) for pair in ("Na-Cl", "Na-Na", "Cl-Cl")
    )
    assert 2.4 < unlike < 2.8 < 3.4 < min(sodium, chlorine) < max(sodium, chlorine) < 4.4  # A
    assert height > max(low, lower) > 1.5
    neighbours, shell = printed(text, "coordination number: ", 2)
    assert 5.0 < neighbours < 7.0
    assert unlike < shell < 5.0
    (mean, spread), (other, less) = (printed(text, f"charge of {name}: ", 2) for name in ("Na", "Cl"))
    assert mean == -other  # four decimals of numbers that add up to zero
    assert spread > 1.5 * less > 0.0
    charges = read_dump(tmp_path / "nacl_melt" / "melt.dump")["q"]
    assert charges.shape == (5, 216)
    np.testing.assert_allclose(charges.sum(axis=1), 0.0, atol=216 * 1e-8)  # eight digits of each
    assert np.ptp(charges[:, 0]) > 0.01  # from step to step


def test_charged_cluster(tmp_path: Path, run_example: Callable[..., str]) -> None:
    """Charges add up to the state's, change linearly with it, most at the surface; energies are the page's."""
    text = run_example("charged_cluster")
    frames = {
        (state, charge): read_dump(tmp_path / "charged_cluster" / f"{state}_{charge}.dump")
        for state in ("vertical", "relaxed")
        for charge in (-1, 0, 1)
    }
    for (_, charge), frame in frames.items():
        assert frame["q"].shape == (1, 32)
        assert frame["q"].sum() == pytest.approx(charge, abs=32 * 1e-8)  # eight digits of each
    # Iterative solutions of the default tolerance; the ions are where they were
    neutral = frames["relaxed", 0]["q"]
    np.testing.assert_allclose(frames["vertical", 1]["q"] - neutral, neutral - frames["vertical", -1]["q"], atol=1e-3)
    for charge in (-1, 1):
        for name in ("Na", "Cl"):
            three, five = (printed(text, f"charge {charge:+d}, {name} with {n} neighbours: ")[0] for n in (3, 5))
            assert charge * three > 2 * charge * five > 0.0
    page = (  # model and GFN2-xTB, eV, as the page has them; minima are found to 0.005 eV/A of the force
        ("vertical ionisation energy", 10.83, 12.23),
        ("relaxed ionisation energy", 10.65, 12.18),
        ("vertical electron affinity", 7.54, 6.96),
        ("relaxed electron affinity", 7.73, 7.06),
    )
    for name, *energies in page:
        assert printed(text, name, 2) == pytest.approx(energies, abs=0.02)


def test_slab_in_field(run_example: Callable[..., str]) -> None:
    """The dielectric constant of slabs is the crystal's; the energy gained is F M / 2; ions lower the field further."""
    text = run_example("slab_in_field", LAYERS="6 8")
    slabs, crystal = (float(x) for x in re.findall(r"at rest: slabs ([\d.]+), periodic crystal ([\d.]+)", text)[0])
    assert slabs == pytest.approx(crystal, abs=0.003)  # the third digit after the point is the page's last
    assert [slabs, crystal] == pytest.approx([1.555, 1.557], abs=0.002)
    assert printed(text, "dielectric constant, ions relaxed: slabs ")[0] == pytest.approx(4.80, abs=0.05)
    at_rest, relaxed = printed(text, "field inside / outside: ions at rest ", 2)
    assert at_rest * slabs == pytest.approx(1.0, abs=2e-4)  # four decimals of each
    assert 0.0 < relaxed < at_rest
    for layers in (6, 8):
        (row,) = re.findall(
            rf"^{layers} layers, .*-F M/2 = {NUMBER}, {NUMBER} eV, energy {NUMBER}, {NUMBER} eV", text, re.M
        )
        half, half_relaxed, energy, energy_relaxed = (float(number) for number in row)
        assert energy == pytest.approx(half, abs=2e-6)  # charges are linear in the field: six decimals
        assert energy_relaxed == pytest.approx(half_relaxed, rel=2e-3)  # forces of 0.0005 eV/A remain
        assert half_relaxed < half < 0.0
