"""Infrared spectra: closed forms, the definition summed directly, files, and a run of the real i-PI."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from scipy import constants
from scipy.integrate import trapezoid

import kqeq_md.units
from kqeq_md.cli import main
from kqeq_md.errors import KqeqError
from kqeq_md.machine.programs import environment, program
from kqeq_md.models import NACL
from kqeq_md.potential import Potential
from kqeq_md.response import response
from kqeq_md.spectrum.absorption import PADDING, Trajectory, ir_spectrum, peaks, spectral_density
from kqeq_md.spectrum.dipole_files import read_dipoles, read_trajectories
from kqeq_md.structure import Structure
from kqeq_md.units import BOHR

C = constants.c * 1e-13  # cm/fs
DOUBLE_HARMONIC = constants.N_A * constants.e**2 / (12 * constants.epsilon_0 * constants.c**2 * constants.u) * 1e-3
"""km/mol per e^2/u: A = N_A / (12 eps0 c^2) |dmu/dQ|^2; 974.9 in the tables of quantum chemistry."""


def vibration(wavenumber: float, strength: float, temperature: float, interval: float, n: int) -> np.ndarray:
    """Dipole Z Q(t) of a classical normal mode whose mean kinetic energy is k_B T / 2; e Angstrom, shape (n, 3).

    Args:
        wavenumber: cm^-1.
        strength: |dmu/dQ|^2, e^2/u.
    """
    omega = 2 * np.pi * C * wavenumber  # 1/fs
    amplitude = np.sqrt(2 * units.kB * temperature) / (omega / units.fs)  # of Q, sqrt(u) Angstrom: ase's time unit
    direction = np.array([0.48, -0.6, 0.64])
    return np.sqrt(strength) * amplitude * np.cos(omega * interval * np.arange(n) + 0.3)[:, None] * direction


def trajectory(dipoles: np.ndarray, interval: float = 1.0, name: str = "run") -> Trajectory:
    return Trajectory(name, dipoles, interval)


# ----------------------------------------------------------------------------------------------------- physics


@pytest.mark.parametrize(("wavenumber", "interval"), [(3700.0, 0.5), (3700.4, 4.0), (150.0, 4.0)])
def test_a_harmonic_mode_has_its_frequency_and_double_harmonic_intensity(wavenumber: float, interval: float) -> None:
    """At 4 fs, 3700 cm^-1 turn by 160 degrees between frames: differences alone would lose half of the intensity."""
    dipoles = vibration(wavenumber, 0.3, 250.0, interval, round(20000 / interval))
    spectrum = ir_spectrum([trajectory(dipoles, interval)], resolution=10.0, temperature=250.0)
    (peak,) = peaks(spectrum)
    # the parabola through a line of known shape, eleven points wide
    assert peak.frequency == pytest.approx(wavenumber, abs=0.01 * 10.0)
    # phases at the ends of 20 ps, and leakage beyond the highest frequency
    assert peak.area == pytest.approx(0.3 * DOUBLE_HARMONIC, rel=2e-3)
    # the height of a Hann window's line: its noise bandwidth is 1.5 / length, its width 1.44 / length
    assert peak.intensity == pytest.approx(peak.area * 1.4406 / (1.5 * 10.0), rel=2e-3)  # whole frames: 5e-4
    assert spectrum.unit == "km/mol/cm^-1"
    assert spectrum.area_unit == "km/mol"


def test_resolution_is_the_width_of_a_sharp_line() -> None:
    dipoles = vibration(1000.0, 1.0, 300.0, 2.0, 10000)
    spectrum = ir_spectrum([trajectory(dipoles, 2.0)], resolution=16.0)
    assert spectrum.unit == "relative"
    assert spectrum.intensities.max() == 1.0
    above = spectrum.frequencies[spectrum.intensities > 0.5]
    # a grid of eleven points within the width, and a window of whole frames
    assert np.ptp(above) == pytest.approx(16.0, abs=spectrum.frequencies[1] * 1.1)


def test_volume_gives_the_absorption_coefficient() -> None:
    """n alpha V N_A is the molar absorption: cm^-1 Angstrom^3 in km/mol per cm^-1, by SI."""
    run = trajectory(vibration(800.0, 0.2, 300.0, 2.0, 4000), 2.0)
    molar = ir_spectrum([run], temperature=300.0)
    bulk = ir_spectrum([run], temperature=300.0, volume=1234.0)
    factor = 1234.0e-30 * constants.N_A * 1e2 * 1e2 * 1e-3  # m^3, 1/m per cm^-1 twice, km
    np.testing.assert_allclose(bulk.intensities * factor, molar.intensities, rtol=1e-9)  # digits of the constants
    assert (bulk.unit, bulk.area_unit) == ("cm^-1", "cm^-2")


def test_constants() -> None:
    """Against CODATA of scipy; all are exact, of Boltzmann's ten digits are written."""
    assert pytest.approx(constants.k / constants.e, rel=1e-10) == kqeq_md.units.BOLTZMANN
    assert pytest.approx(constants.c * 1e-5, rel=1e-12) == kqeq_md.units.LIGHT_SPEED
    assert pytest.approx(constants.N_A * 1e-20 * 1e2 * 1e-3, rel=1e-12) == kqeq_md.units.KM_PER_MOL


def test_sum_rule() -> None:
    """The integral over all frequencies is that of <mu'^2>, whatever the spectrum: pi / (3 c V eps0 kT) <mu'^2> / 2."""
    interval, temperature, volume = 0.5, 320.0, 500.0
    rng = np.random.default_rng(3)
    time = interval * np.arange(40000)
    omegas, phases = 2 * np.pi * C * rng.uniform(50, 4000, 40), rng.uniform(0, 2 * np.pi, (40, 3))
    sizes = rng.normal(size=(40, 3)) / omegas[:, None]
    arguments = omegas[:, None, None] * time + phases[:, :, None]
    dipoles = (sizes[:, :, None] * np.cos(arguments)).sum(axis=0).T
    velocity = -(sizes[:, :, None] * omegas[:, None, None] * np.sin(arguments)).sum(axis=0).T  # e Angstrom/fs
    spectrum = ir_spectrum([trajectory(dipoles, interval)], 20.0, temperature, volume)
    si = np.pi / (3 * constants.c * volume * 1e-30 * constants.epsilon_0 * constants.k * temperature)
    mean = np.mean((velocity**2).sum(axis=1)) * (constants.e * 1e5) ** 2  # C^2 m^2/s^2
    # cm^-1 from 1/m twice; windows weigh the ends of the trajectory less
    assert spectrum.area == pytest.approx(si * mean / 2 / (2 * np.pi * constants.c) * 1e-4, rel=0.01)


def test_two_lines_keep_their_ratio() -> None:
    dipoles = vibration(1600.0, 0.06, 300.0, 1.0, 20000) + vibration(3650.0, 0.02, 300.0, 1.0, 20000)
    low, high = peaks(ir_spectrum([trajectory(dipoles)], 10.0, 300.0, maximum=4000.0))
    assert (low.frequency, high.frequency) == (pytest.approx(1600.0, abs=0.1), pytest.approx(3650.0, abs=0.1))
    assert low.area / high.area == pytest.approx(3.0, rel=2e-3)  # as for a single mode


def test_spectral_density_is_that_of_its_definition() -> None:
    """One window, so that nothing is averaged: the correlation function summed directly, O(N^2), and its transform."""
    dt, n = 1.7, 100
    dipoles = np.cumsum(np.random.default_rng(5).normal(size=(n + 1, 3)), axis=0)
    frequencies, density, segments = spectral_density([trajectory(dipoles, dt)], 1.4406 / (C * n * dt))
    rate = (np.diff(dipoles, axis=0) - np.diff(dipoles, axis=0).mean(axis=0)) / dt
    seen = rate * np.sin(np.pi * np.arange(n) / n)[:, None] ** 2
    correlation = np.array([sum(seen[i] @ seen[i + m] for i in range(n - m)) for m in range(n)])
    omega = 2 * np.pi * C * frequencies
    cosines = np.cos(np.outer(omega * dt, np.arange(n))) * np.where(np.arange(n) == 0, 1.0, 2.0)
    x = np.maximum(omega * dt / 2, 1e-12)
    wanted = dt / (2 * np.pi) * cosines @ correlation / (3 / 8 * n) * (x / np.sin(x)) ** 2  # mean sin^4 = 3/8
    assert segments == 1
    np.testing.assert_allclose(density, wanted, atol=1e-10 * wanted.max())  # roundings of 10^4 terms


def test_white_noise() -> None:
    """Of the dipole: S(w) = w^2 sigma^2 dt / 2 pi per component, in bands within five standard errors."""
    dt, sigma = 0.8, 0.2
    dipoles = np.random.default_rng(7).normal(scale=sigma, size=(200000, 3))
    frequencies, density, segments = spectral_density([trajectory(dipoles, dt)], 40.0)
    omega = 2 * np.pi * C * frequencies
    ratio = density[1:] / (3 * omega[1:] ** 2 * sigma**2 * dt / (2 * np.pi))
    bands = np.array_split(ratio[len(ratio) // 20 :], 20)  # the lowest band is what leaks into it
    # windows that overlap by half are correlated by 1/6, so that the variance is (1 + 2/36) / segments (Welch);
    # three components; of the points, which are padded, one of 1.5 widths is independent
    error = np.sqrt((1 + 2 / 36) / (3 * segments * len(bands[0]) / (1.5 * PADDING)))
    for band in bands:
        assert abs(band.mean() - 1.0) < 5 * error
    assert error < 0.02


def test_drift_of_a_charged_cluster_is_taken_off() -> None:
    still = vibration(700.0, 0.1, 300.0, 2.0, 4000)
    drifting = still + 0.003 * 2.0 * np.arange(4000)[:, None] * np.array([1.0, -2.0, 0.5])
    one, other = (ir_spectrum([trajectory(d, 2.0)], 10.0, 300.0) for d in (still, drifting))
    # what is left is rounding: the drift reaches 55 e Angstrom, a change is 0.01
    np.testing.assert_allclose(other.intensities, one.intensities, atol=1e-9 * one.intensities.max())


def test_spectra_of_independent_runs_are_averaged() -> None:
    """Two lines of two runs: each has half of its intensity; the order of the runs does not matter."""
    first = trajectory(vibration(600.0, 0.1, 300.0, 2.0, 5000), 2.0)
    second = trajectory(vibration(900.0, 0.1, 300.0, 2.0, 5000), 2.0)
    areas = [peak.area for peak in peaks(ir_spectrum([first, second], 10.0, 300.0))]
    assert areas == pytest.approx([0.05 * DOUBLE_HARMONIC] * 2, rel=2e-3)


def test_areas_of_peaks_add_up() -> None:
    rng = np.random.default_rng(2)
    spectrum = ir_spectrum([trajectory(rng.normal(size=(3000, 3)).cumsum(axis=0))], 50.0, 300.0)
    found = peaks(spectrum)
    assert len(found) > 3
    assert sum(peak.area for peak in found) == pytest.approx(spectrum.area, rel=1e-12)
    assert spectrum.area == pytest.approx(trapezoid(spectrum.intensities, spectrum.frequencies), rel=1e-14)


# ------------------------------------------------------------------------------------------------------- files


def ipi_text(steps: Iterator[int] | range | list[int], dipoles: np.ndarray) -> str:
    """As i-PI 3.3 writes extras."""
    frames = zip(steps, dipoles, strict=True)
    return "".join(f" #EXTRAS(dipole)# Step:  {s:10d} \n" + " ".join(f"{x:16.8e}" for x in d) + "\n" for s, d in frames)


@pytest.fixture
def dipoles() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(12, 3)).cumsum(axis=0)


def test_stride_and_unit_of_ipi(tmp_path: Path, dipoles: np.ndarray) -> None:
    path = tmp_path / "run.dipole_0"
    path.write_text(ipi_text(range(40, 88, 4), dipoles))
    (run,) = read_trajectories([path], 0.25)
    assert run.interval == 1.0
    assert run.beads == 1
    np.testing.assert_allclose(run.dipoles, dipoles * BOHR, rtol=1e-7)  # eight digits after the point


def test_plain_text_with_and_without_steps(tmp_path: Path, dipoles: np.ndarray) -> None:
    bare, steps = tmp_path / "bare", tmp_path / "steps"
    np.savetxt(bare, dipoles)
    np.savetxt(steps, np.column_stack([10 * np.arange(12), dipoles]), header="TimeStep c_mu[1] c_mu[2] c_mu[3]")
    one, other = read_trajectories([bare, steps], 0.5)
    assert (one.interval, other.interval) == (0.5, 5.0)
    np.testing.assert_array_equal(one.dipoles, dipoles)  # np.savetxt writes all digits
    np.testing.assert_array_equal(other.dipoles, dipoles)


def test_beads_of_one_run_are_averaged(tmp_path: Path, dipoles: np.ndarray) -> None:
    """And another run, in another folder, is another trajectory."""
    (tmp_path / "b").mkdir()
    paths = [tmp_path / "run.dipole_0", tmp_path / "run.dipole_1", tmp_path / "b" / "run.dipole_0"]
    for path, factor in zip(paths, (1.0, 3.0, 5.0), strict=True):
        path.write_text(ipi_text(range(12), factor * dipoles))
    paths[1].write_text(paths[1].read_text() + " #EXTRAS(dipole)# Step:  12 \n")  # the run goes on
    first, second = read_trajectories(paths, 1.0)
    assert (first.beads, second.beads) == (2, 1)
    np.testing.assert_allclose(first.dipoles, 2 * dipoles * BOHR, rtol=1e-6)  # as printed
    np.testing.assert_allclose(second.dipoles, 5 * dipoles * BOHR, rtol=1e-6)


def test_a_restart_repeats_steps(tmp_path: Path, dipoles: np.ndarray) -> None:
    """Killed in the middle of step 10, gone on from the checkpoint of step 6."""
    path = tmp_path / "dipole"
    path.write_text(ipi_text([0, 2, 4, 6, 8], 9 + dipoles[:5]) + ipi_text([6, 8, 10], dipoles[5:8]))
    file = read_dipoles(path)
    assert file.steps.tolist() == [0, 2, 4, 6, 8, 10]
    np.testing.assert_allclose(file.dipoles, np.concatenate([9 + dipoles[:3], dipoles[5:8]]) * BOHR, rtol=1e-6)


def test_a_last_line_that_was_cut_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "dipole"
    path.write_text("1 2 3\n4 5 6\n7 8 9\n10 11 1")  # it was 12
    assert read_dipoles(path).dipoles.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


HEADER = " #EXTRAS(dipole)# Step:  0 \n"
BAD_FILES = {
    "line 1 must be #EXTRAS(dipole)# Step: N, got '#EXTRAS(charges)# Step: 0'": "#EXTRAS(charges)# Step: 0\n1 2 3\n",
    "line 1 must be #EXTRAS(dipole)# Step: N, got '#EXTRAS(raw)#": "#EXTRAS(raw)# Step: 0\n{'dipole': [1, 2, 3]}\n",
    "line 2 must be 3 numbers, got '#EXTRAS(dipole)# Step:  0'": 2 * HEADER,
    "line 2 must be 3 numbers, got '1 2'": HEADER + "1 2\n",
    "line 2: dipoles must be finite, got '1 nan 3'": HEADER + "1 nan 3\n",
    "line 1: dipoles must be finite, got '1 inf 3'": "1 inf 3\n",
    "line 2: i-PI's #EXTRAS must start on the first line": "1 2 3\n#EXTRAS(dipole)# Step: 0\n",
    "line 1 must be 3 or 4 numbers, got 'hello'": "hello\n",
    "line 2 must be 4 numbers, got '1 2 3'": "0 1 2 3\n1 2 3\n",
    "line 2: the first of four columns must be the step, got 0.5": "0 1 2 3\n0.5 1 2 3\n",
    "line 3: steps start again at 0: a file must hold one run": "0 1 2 3\n1 1 2 3\n0 1 2 3\n",
    "must hold frames at equal distances, got 2 steps between the first two and 3 from step 4 to 7": (
        "0 1 2 3\n2 1 2 4\n4 1 2 3\n7 1 2 4\n"
    ),
    "must hold dipoles of at least two frames, got 0": "# nothing\n",
    "must hold dipoles of at least two frames, got 1": "1 2 3\n",
}


@pytest.mark.parametrize("message", BAD_FILES)
def test_files_that_are_refused(message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "dipole"
    path.write_text(BAD_FILES[message])
    error = refusal([str(path), "--timestep", "1"], capsys)
    assert str(path) in error
    assert message in error


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which the command refuses."""
    assert main(["ir", *arguments]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("kqeq: error: ")
    assert error.count("\n") == 1
    return error


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """2 ps of a vibration, 4 fs apart."""
    path = tmp_path / "mu.dat"
    np.savetxt(path, vibration(900.0, 0.1, 300.0, 4.0, 501))
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "`--timestep` (fs) must be given"),
        (["--timestep", "0"], "`timestep` must be a positive number of fs, got 0"),
        (["--timestep", "4"], "`resolution` of 10 cm^-1 needs 1202 frames (4.804 ps), got 501 in"),
        (["--timestep", "4"], ": they allow 24.05"),
        (["--timestep", "4", "--resolution", "nan"], "`resolution` must be a positive number of cm^-1, got nan"),
        (["--timestep", "4", "--resolution", "5000"], "`resolution` must be below 3003 cm^-1"),
        (["--timestep", "4", "--resolution", "30", "--max", "4200"], "`maximum` must not exceed 4169.55 cm^-1"),
        (["--timestep", "4", "--resolution", "30", "--max", "-1"], "`maximum` must be a positive number of cm^-1"),
        (["--timestep", "4", "--resolution", "30", "--temperature", "0"], "`temperature` must be a positive number"),
        (["--timestep", "4", "--resolution", "30", "--volume", "9"], "`volume` needs a `temperature`"),
        (
            ["--timestep", "4", "--resolution", "30", "--temperature", "9", "--volume", "-9"],
            "`volume` must be a positive number of Angstrom^3, got -9",
        ),
        (["--timestep", "4", "-o", "spectrum.svg"], "`--output` must end in .png or .pdf, got spectrum.svg"),
        (["--timestep", "4", "-o", "no/such/a.png"], "`--output` must lie in a folder that exists"),
        (["--timestep", "4", "--data", "no/such/a.dat"], "`--data` must lie in a folder that exists"),
    ],
)
def test_arguments_that_are_refused(
    plain: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal([str(plain), *arguments], capsys)


def test_sets_of_files_that_are_refused(tmp_path: Path, plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(4)
    for name, stride in (("r.dipole_0", 2), ("r.dipole_1", 3), ("r.dipole_2", 2), ("s.dipole_00", 2)):
        (tmp_path / name).write_text(ipi_text(range(0, 50 * stride, stride), rng.normal(size=(50, 3))))
    zero, one, two, many = (str(tmp_path / name) for name in ("r.dipole_0", "r.dipole_1", "r.dipole_2", "s.dipole_00"))
    common = ["--timestep", "1", "--resolution", "500"]
    assert "must be given all" in refusal([zero, two, *common], capsys)
    assert "must be given all" in refusal([two, *common], capsys)
    assert "dipole_00 and on, got 00" in refusal([many, *common], capsys)  # two digits: ten beads or more
    assert "must be written at the same steps" in refusal([zero, one, *common], capsys)
    assert "must have frames at one interval, got 2 fs in" in refusal([zero, str(plain), *common], capsys)
    assert "must be given once each" in refusal([zero, zero, *common], capsys)
    assert "No such file" in refusal(["gone", *common], capsys)


def test_dipoles_that_do_not_move_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savetxt(tmp_path / "mu", np.ones((50, 3)))
    arguments = [str(tmp_path / "mu"), "--timestep", "1", "--resolution", "2000"]
    assert "dipoles must change along a trajectory" in refusal(arguments, capsys)


def test_a_jump_is_warned_of(tmp_path: Path, plain: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An ion that was wrapped into the cell; a vibration alone is not warned of."""
    read_trajectories([plain], 4.0)
    assert caplog.records == []
    dipoles = np.loadtxt(plain)
    dipoles[200:] += [0.0, 12.0, 0.0]
    np.savetxt(tmp_path / "jump", dipoles)
    read_trajectories([tmp_path / "jump"], 4.0)
    (record,) = caplog.records
    assert "the dipole jumps by 12 e A from step 199 to 200" in record.getMessage()


# ----------------------------------------------------------------------------------------------------- command


def test_what_the_command_prints_and_writes(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, plot, pdf = tmp_path / "ir.dat", tmp_path / "ir.png", tmp_path / "ir.pdf"
    common = ["ir", str(plain), "--timestep", "4", "--resolution", "30", "--temperature", "300", "--max", "2000"]
    assert main([*common, "--data", str(data), "-o", str(plot)]) == 0
    text = capsys.readouterr().out
    assert "501 frames every 4 fs" in text
    assert "area / km/mol" in text
    assert float(text.splitlines()[-2].split()[0]) == pytest.approx(900.0, abs=0.3)  # 0.01 of the resolution
    assert main([*common, "--json", "-o", str(pdf)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["units"] == {"frequencies": "cm^-1", "intensities": "km/mol/cm^-1", "area": "km/mol"}
    (peak,) = found["peaks"]
    assert peak["area"] == pytest.approx(0.1 * DOUBLE_HARMONIC, rel=0.01)  # 2 ps are short
    assert peak["area"] == pytest.approx(found["area"], rel=1e-12)
    assert found["trajectories"] == [{"name": str(plain), "frames": 501, "interval_fs": 4.0, "beads": 1}]
    table = np.loadtxt(data)
    np.testing.assert_allclose(table[:, 0], found["frequencies"], atol=1e-6)  # as printed
    np.testing.assert_allclose(table[:, 1], found["intensities"], rtol=1e-8)
    assert 1990 < table[-1, 0] <= 2000
    assert plot.read_bytes().startswith(b"\x89PNG")
    first = pdf.read_bytes()
    assert main([*common, "--json", "-o", str(pdf)]) == 0
    assert pdf.read_bytes() == first  # the same input gives the same file


def test_a_plot_needs_matplotlib(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    error = refusal([str(plain), "--timestep", "4", "-o", str(tmp_path / "ir.png")], capsys)
    assert "`--output` needs matplotlib: pip install" in error


def test_by_default_up_to_4000(tmp_path: Path, plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Or what frames 8 fs apart let see, 2085 cm^-1."""
    for timestep, highest in (("4", 4000.0), ("8", 2084.8)):
        assert main(["ir", str(plain), "--timestep", timestep, "--resolution", "30", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["frequencies"][-1] == pytest.approx(highest, abs=found["frequencies"][1])
        assert found["units"]["intensities"] == "relative"


# ---------------------------------------------------------------------------------------------- with real i-PI

INPUT = """\
<simulation verbosity='low'>
  <output prefix='run'>
    <properties filename='out' stride='2'> [ step, kinetic_md{{electronvolt}} ] </properties>
    <trajectory filename='dipole' stride='2' extra_type='dipole'> extras </trajectory>
  </output>
  <total_steps> 900 </total_steps>
  <ffsocket name='kqeq' mode='unix' pbc='false'> <address> {address} </address> </ffsocket>
  <system>
    <initialize nbeads='2'>
      <file mode='xyz'> start.xyz </file>
    </initialize>
    <forces> <force forcefield='kqeq'/> </forces>
    <ensemble> <temperature units='kelvin'> 10 </temperature> </ensemble>
    <motion mode='dynamics'>
      <dynamics mode='nve'> <timestep units='femtosecond'> 2 </timestep> </dynamics>
    </motion>
  </system>
</simulation>
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts programs in `tmp_path`; whatever still runs at the end of the test is killed."""
    running: list[subprocess.Popen[str]] = []

    def run(name: str, *arguments: str) -> subprocess.Popen[str]:
        command = [str(program(name)), *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        running.append(subprocess.Popen(command, cwd=tmp_path, env=environment(), text=True, **pipes))
        return running[-1]

    yield run
    for process in running:
        process.kill()
        process.communicate()


def bond_force(potential: Potential, length: float) -> float:
    """Of NaCl along the bond, eV/Angstrom."""
    return float(potential.compute(Structure([11, 17], [[0, 0, 0], [0, 0, length]])).forces[1, 2])


def equilibrium(potential: Potential, step: float = 1e-3) -> tuple[float, float]:
    """Bond length (Angstrom) and force constant (eV/Angstrom^2) by Newton's method on central differences."""
    length = 2.4
    for _ in range(8):
        constant = -(bond_force(potential, length + step) - bond_force(potential, length - step)) / (2 * step)
        length += bond_force(potential, length) / abs(constant)
    return length, constant


def test_a_diatomic_in_ipi(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """NaCl vibrates at its harmonic frequency, with the intensity that Born charges give it.

    It starts stretched and at rest, so that there is nothing but the vibration, with two beads in one place, which
    stay together. The temperature is that of its mean kinetic energy, k_B T / 2 in one mode.
    """
    potential = Potential(NACL)
    length, constant = equilibrium(potential)
    masses = np.array(Atoms("NaCl").get_masses())
    reduced = masses.prod() / masses.sum()
    wavenumber = np.sqrt(constant / reduced) * units.fs / (2 * np.pi * C)
    born = response(potential, Structure([11, 17], [[0, 0, 0], [0, 0, length]])).born_charges
    intensity = DOUBLE_HARMONIC * born[1, 2, 2] ** 2 / reduced

    stretched = Atoms("NaCl", [[0, 0, 0], [0, 0, length + 0.01]])
    stretched.write(tmp_path / "template.xyz")
    cell = "# CELL(abcABC): 60 60 60 90 90 90 positions{angstrom} cell{angstrom}"
    lines = [f"{s} {x!r} {y!r} {z!r}" for s, (x, y, z) in zip(("Na", "Cl"), stretched.positions.tolist(), strict=True)]
    (tmp_path / "start.xyz").write_text("\n".join(["2", cell, *lines]) + "\n")
    address = f"kqeq_ir_{tmp_path.parent.name}_{tmp_path.name}"
    (tmp_path / "input.xml").write_text(INPUT.format(address=address))
    ipi = start("i-pi", "input.xml")
    driver = start("kqeq-ipi", "-m", str(NACL), "-t", "template.xyz", "-u", "-a", address)
    assert driver.communicate(timeout=100)[1] == ""
    ipi.communicate(timeout=20)
    assert (driver.returncode, ipi.returncode) == (0, 0)

    kinetic = np.loadtxt(tmp_path / "run.out")[:, 1].mean()  # the mean over beads
    files = [str(tmp_path / f"run.dipole_{bead}") for bead in (0, 1)]
    command = ["ir", *files, "--timestep", "2", "--temperature", str(2 * kinetic / units.kB), "--resolution", "30"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(run["frames"], run["interval_fs"], run["beads"]) for run in found["trajectories"]] == [(451, 4.0, 2)]
    (peak,) = found["peaks"]
    # 0.01 A of anharmonicity and 0.01 of the resolution; Verlet alone shifts by (w dt)^2 / 24 = 0.2 cm^-1
    assert peak["frequency"] == pytest.approx(wavenumber, abs=0.5)
    # 17 periods, not whole: 0.3 %; Verlet's velocities are small by (w dt)^2 / 3 = 0.5 % in the kinetic energy
    assert peak["area"] == pytest.approx(intensity, rel=0.01)


def test_properties_of_ipi_are_no_dipoles(tmp_path: Path) -> None:
    """Four columns of them would pass for steps and dipoles."""
    path = tmp_path / "run.out"
    path.write_text("# column   1     --> step : The current simulation time step.\n 0 1.0 2.0 3.0\n 1 1.5 2.0 3.0\n")
    with pytest.raises(KqeqError, match="run.out holds i-PI's properties, not dipoles"):
        read_dipoles(path)
