"""Examples, demo and README: what a newcomer copies works, and says what the files say."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.io import read, write

from kqeq_md.demo import read_thermo, run_demo
from kqeq_md.machine.programs import environment, lammps_command
from kqeq_md.model import load_model
from kqeq_md.models import NACL, SHIPPED

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
BENCHMARKS = EXAMPLES / "benchmarks"


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def lammps(script: str, folder: Path, **variables: object) -> list[dict[str, np.ndarray]]:
    shutil.copy(next(EXAMPLES.glob(f"*/{script}")), folder)
    shutil.copy(NACL, folder)
    settings = [word for name, value in variables.items() for word in ("-var", name, str(value))]
    run([str(lammps_command()), "-in", script, *settings], folder)
    return read_thermo(folder / "log.lammps")


def printed_drift(folder: Path) -> tuple[float, float]:
    """Slope and standard error, meV/atom/ps, as `in.melt` prints them."""
    number = r"([-+.\de]+)"
    found = re.search(rf"^energy drift: {number} \+- {number} meV/atom/ps", (folder / "log.lammps").read_text(), re.M)
    assert found is not None
    return float(found[1]), float(found[2])


def test_melt_conserves_energy_and_prints_its_drift(tmp_path: Path) -> None:
    nvt, nve = lammps("in.melt", tmp_path, cells=2, nvt=100, nve=200, sample=50)
    assert np.ptp(nvt["TotEng"]) > 1.0  # eV: the thermostat works, and the lattice melts
    assert np.ptp(nve["TotEng"]) < 0.01 * np.ptp(nve["PotEng"])
    slope, error = printed_drift(tmp_path)
    times, energies = nve["Time"], nve["TotEng"]
    (expected, offset), covariance = np.polyfit(times, energies, 1, cov="unscaled")
    rest = energies - expected * times - offset
    scale = 1000.0 / 64  # eV/ps -> meV/atom/ps
    assert slope == pytest.approx(expected * scale, rel=0.01, abs=1e-3)  # the log holds 8 digits of about -220 eV
    sigma = np.sqrt(covariance[0, 0] * (rest @ rest) / (len(times) - 2)) * scale
    assert error == pytest.approx(sigma, rel=0.05, abs=1e-3)


def test_cluster_in_a_field_polarizes_along_it(tmp_path: Path) -> None:
    means = []
    for field in (-0.05, 0.05):
        *_, dynamics = lammps("in.cluster_field", tmp_path, field=field, steps=100)
        means.append(dynamics["c_mu[3]"].mean())
    assert means[0] < 0 < means[1]
    assert means[1] - means[0] > 0.1  # e A


def test_ase_example_runs(tmp_path: Path) -> None:
    text = run([sys.executable, str(EXAMPLES / "ase_cluster.py")], tmp_path)
    dipoles = re.findall(r"dipole \[\s*\S+\s+\S+\s+(\S+)\]", text)
    assert abs(float(dipoles[0])) < 1e-6 < float(dipoles[1])


def test_ipi_example_runs(tmp_path: Path) -> None:
    """The README's commands, in a folder as `kqeq demo` leaves it, with fewer steps and a socket of its own."""
    for name in ("init.xyz", "run.sh"):
        shutil.copy(EXAMPLES / "ipi" / name, tmp_path)
    shutil.copy(NACL, tmp_path)
    address = f"test_{tmp_path.name}"
    text = (EXAMPLES / "ipi" / "input.xml").read_text()
    (tmp_path / "input.xml").write_text(text.replace("nacl_cluster", address).replace(">300<", ">20<"))
    script = (tmp_path / "run.sh").read_text().replace("nacl_cluster", address)
    run(["bash", "-euc", script], tmp_path)
    conserved = np.loadtxt(tmp_path / "cluster.out")[:, 2]
    assert len(conserved) == 21
    assert np.ptp(conserved) < 1e-3  # eV
    charges = np.loadtxt(tmp_path / "cluster.charges_0", comments="#")
    np.testing.assert_allclose(charges.sum(axis=1), 0.0, atol=1e-7)  # nine digits of each of eight charges


def test_training_example_runs(tmp_path: Path) -> None:
    """The README's commands on a part of the shipped data, with fewer sparse points."""
    shutil.copy(EXAMPLES / "train_nacl" / "run.sh", tmp_path)
    for name in ("train.xyz", "test.xyz", "bulk_train.xyz", "bulk_test.xyz"):
        write(tmp_path / name, read(EXAMPLES / "train_nacl" / name, "::7"), format="extxyz")
    config = (EXAMPLES / "train_nacl" / "nacl.toml").read_text()
    assert "sparse_points = 300" in config
    (tmp_path / "nacl.toml").write_text(config.replace("sparse_points = 300", "sparse_points = 20"))
    text = run(["bash", "-euc", (tmp_path / "run.sh").read_text()], tmp_path)
    rows = re.findall(r"^all +(\d+) +([\d.]+) ", text, re.M)
    (train_frames, train_energy), (test_frames, test_energy), (again, same) = rows
    assert int(train_frames) > int(test_frames) == int(again)
    assert test_energy == same  # what training printed is what `kqeq eval` finds in the file
    assert float(train_energy) < 60.0  # meV per atom; 300 sparse points reach 8


def test_demo_shows_what_it_says(tmp_path: Path) -> None:
    said: list[str] = []
    found, text = run_demo(tmp_path / "demo", say=said.append)
    assert len(said) == 2
    results = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert found == results
    assert "charges equilibrated again at every step" in text
    assert results["melt_charge_na"][0] == pytest.approx(-results["melt_charge_cl"][0], abs=1e-6)
    assert results["melt_charge_na"][1] > 0.01  # they differ from atom to atom
    assert results["cluster_conserved_range_meV"] < 0.05 * results["cluster_potential_range_meV"]
    assert (tmp_path / "demo" / "demo.png").stat().st_size > 20_000
    for name in ("in.melt", "in.cluster_field", "input.xml", "init.xyz", "nacl.kqeq"):
        assert (tmp_path / "demo" / name).is_file()


@pytest.mark.slow
def test_melt_of_512_atoms_drifts_less_than_1e_3(tmp_path: Path) -> None:
    """10 ps of NVE at 2 fs of the NaCl melt."""
    lammps("in.melt", tmp_path)
    slope, error = printed_drift(tmp_path)
    assert abs(slope) < 1e-3
    assert error < 1e-3


def test_hold_bulk_watches_the_limits(tmp_path: Path) -> None:
    """A tenth of a picosecond of the melt; a model that calls everything foreign fails."""
    from kqeq_md.examples.benchmarks.hold_bulk import main
    from kqeq_md.model import load_model, save_model

    assert main(["nacl", str(NACL), "--ps", "0.4", "--json"]) == 0
    model = load_model(NACL)
    record = {**model.training["extrapolation"], "threshold": 0.01}
    save_model(replace(model, training={**model.training, "extrapolation": record}), tmp_path / "timid.kqeq")
    assert main(["nacl", str(tmp_path / "timid.kqeq"), "--ps", "0.4"]) == 1


def test_training_benchmark_measures_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its case of clusters with few frames and points: test, train, without charges, without field; other cases say
    which set they miss."""
    from kqeq_md.examples.benchmarks import benchmark_training

    folder = tmp_path / "gfn2_nacl_field"
    folder.mkdir()
    frames = [atoms for atoms in read(EXAMPLES / "train_nacl" / "train.xyz", ":") if len(atoms) <= 8]
    write(folder / "train.xyz", frames[::2][:40], format="extxyz")
    write(folder / "test.xyz", frames[1::2][:20], format="extxyz")
    usual = benchmark_training.NACL
    quick = {"rounds": 1, "physical": []}
    small = replace(
        usual, soap={**usual.soap, "n_max": 3, "l_max": 2}, kernel={"sparse_points": 15}, fit={**usual.fit, **quick}
    )
    monkeypatch.setattr(benchmark_training, "NACL", small)
    monkeypatch.setattr(benchmark_training, "SPLITS", 1)
    out = tmp_path / "out.json"
    assert benchmark_training.main([str(tmp_path), "--cases", "nacl", "carbon", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert set(found["nacl"]) > {"test", "train", "test, no charges", "test, no field", "physical", "random fifths"}
    assert found["nacl"]["random fifths"]["test, highest"] == found["nacl"]["random fifths"]["test"]  # of one split
    assert found["nacl"]["test"]["energy_per_atom"] < found["nacl"]["test, no charges"]["energy_per_atom"]
    assert "does not exist" in found["carbon"]["skipped"]
    assert "meV/atom" in capsys.readouterr().out


# ---------------------------------------------------------------- README


def test_readme_commands_are_the_ones_that_run() -> None:
    readme = (ROOT / "README.md").read_text()
    first, second = re.findall(r"<!-- command \d -->\n```sh\n(.*?)\n```", readme, re.S)
    assert first.endswith("kqeq demo")
    assert second.endswith("pytest -n 2 --dist worksteal")
    assert "<!-- command 2 -->" in (ROOT / ".ci" / "run").read_text()  # CI takes it from the README word for word


def test_training_configuration_is_the_shipped_models() -> None:
    """The model that ships says that it was trained with the configuration and data that ship."""
    import hashlib

    from kqeq_md.model import load_model
    from kqeq_md.train.config import read_config

    training = load_model(NACL).training
    config = read_config(EXAMPLES / "train_nacl" / "nacl.toml")
    assert training["config"]["descriptor"] == vars(config.descriptor)
    assert training["config"]["fit"] == vars(config.fit)
    for name, digest in training["data_sha256"].items():
        assert hashlib.sha256((EXAMPLES / "train_nacl" / name).read_bytes()).hexdigest() == digest, name


def test_benchmark_of_charges(tmp_path: Path) -> None:
    """The smallest of its sizes: real trajectories, real peers, the keys of its JSON; figures are the README's."""
    command = [
        sys.executable,
        str(BENCHMARKS / "benchmark_charges.py"),
        "--sizes",
        "500",
        "--threads",
        "1",
        "--json",
    ]
    found = json.loads(run([*command, "--folder", str(tmp_path)], tmp_path))
    assert {
        "ratio_reaxff_water", "ratio_reaxff_nacl", "ratio_shielded_water", "iterations_8k", "exponent",
        "split_ratio_water", "split_ratio_nacl", "split_iterations_2k", "split_iterations_8k", "split_iterations_32k",
    } <= set(found)  # fmt: skip
    for row in found["rows"]:
        assert 400 < row["atoms"] < 600
        assert 0 < row["iterations"] < 10
        assert all(seconds > 0 for seconds, _ in row["peers"].values())
    assert {(row["system"], row["model"]) for row in found["rows"]} == {
        (system, model) for system in ("water", "nacl") for model in ("qeq", "split")
    }


# ---------------------------------------------------------------- benchmark of GAP models


@pytest.mark.parametrize(("name", "atoms"), [("water", 192), ("nacl", 512)])
def test_systems_of_the_gap_benchmark(name: str, atoms: int) -> None:
    """Size and density are what the README says; the forces that are fitted are minus the slope of the energy."""
    from kqeq_md.examples.benchmarks.benchmark_quip import SYSTEMS, labelled

    timed = SYSTEMS[name].atoms
    assert len(timed) == atoms
    density = timed.get_masses().sum() * 1.660539 / timed.get_volume()  # amu / Angstrom^3 -> g/cm^3
    assert density == pytest.approx({"water": 1.0, "nacl": 2.164}[name], rel=1e-3)
    small = SYSTEMS[name].make(2, np.random.default_rng(1))
    forces = labelled(small.copy(), with_forces=True).arrays["label_force"]
    direction, step = np.random.default_rng(2).normal(size=forces.shape), 1e-4
    energies = []
    for sign in (1, -1):
        moved = small.copy()
        moved.positions += sign * step * direction
        energies.append(labelled(moved, with_forces=False).info["label_energy"])
    # step^2 / 6 of the third derivative, which is some ten times the force per Angstrom^2
    assert (energies[1] - energies[0]) / (2 * step) == pytest.approx(np.sum(forces * direction), rel=1e-6)


def test_gap_benchmark_of_a_given_model(tmp_path: Path) -> None:
    """The table for a model and structures of the user's, and QUIP's figures in it."""
    pytest.importorskip("quippy")
    from ase import Atoms
    from ase.io import write

    gap = ROOT / "tests" / "data" / "gap"
    records = json.loads((gap / "water_soap.json").read_text())
    record = next(record for record in records if record["virial"] is not None)
    write(tmp_path / "water.xyz", Atoms(record["numbers"], record["positions"], cell=record["cell"], pbc=True))
    command = [sys.executable, str(BENCHMARKS / "benchmark_gap.py"), "--xml", str(gap / "water_soap.xml")]
    found = json.loads(run([*command, "--structure", "water.xyz", "--quick", "--json"], tmp_path))
    assert found["speedup_exact_given"] > 1.0
    assert 0.0 < found["max_energy_difference"] < 1e-9  # two programs that round differently agree to the tables' error
    assert 0.0 < found["max_force_difference"] < 1e-6
    assert 0.0 < found["max_virial_difference"] < 1e-6
    (row,) = found["rows"]
    assert row["atoms"] == len(record["numbers"])
    assert all(time > 0 for time in row["microseconds"].values())


@pytest.mark.slow
def test_gap_benchmark_makes_its_models(tmp_path: Path) -> None:
    """`gap_fit` on the spot, 500 sparse points of each element, both kernels beside QUIP."""
    pytest.importorskip("quippy")
    found = json.loads(run([sys.executable, str(BENCHMARKS / "benchmark_gap.py"), "--quick", "--json"], tmp_path))
    assert found["max_force_difference"] < 1e-6
    assert {row["name"]: row["sparse_points"] for row in found["rows"]} == {"water_84": 1000, "nacl_84": 1000}
    for row in found["rows"]:
        assert row["rank"] < row["sparse_points"]
        assert row["fit_error"] < 1e-4
    for name in ("water", "nacl"):
        assert 1.0 < found[f"speedup_exact_{name}"] < found[f"speedup_lowrank_{name}"]


def test_gap_benchmark_names_what_is_missing(tmp_path: Path) -> None:
    script = "from kqeq_md.examples.benchmarks import benchmark_gap as b; b.find_spec = lambda name: None; b.main()"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "QUIP is not installed: pip install 'kqeq_md[bench]' (or quippy-ase alone)\n"


def test_benchmark_of_the_whole_step(tmp_path: Path) -> None:
    """Every part of the step is found in the profile, and together they are the step."""
    command = [sys.executable, str(BENCHMARKS / "benchmark_step.py"), "--sizes", "1000", "--json"]
    found = json.loads(run(command, tmp_path))
    assert set(found["microseconds"]) == {"1000"}
    assert all(time > 0 for time in found["microseconds"]["1000"].values())
    shares = found["profile"]
    assert sum(shares.values()) == pytest.approx(1.0)
    assert all(share > 0.01 for name, share in shares.items() if name != "rest")
    assert -1e-9 < shares["rest"] < 0.2


# ---------------------------------------------------------------- benchmark of LAMMPS


def test_ranks_of_the_lammps_benchmark_obey_and_fail_together(tmp_path: Path) -> None:
    """Two ranks share the atoms; a wrong command on one or on all ends both with LAMMPS' own message."""
    from contextlib import closing

    from kqeq_md.errors import KqeqError
    from kqeq_md.examples.benchmarks.benchmark_ranks import SECTIONS, Ranks

    gas = """
atom_style charge
lattice sc 3.0
region box block 0 6 0 6 0 6
create_box 1 box
create_atoms 1 box
mass 1 40.0
pair_style lj/cut 6.0
pair_coeff 1 1 0.01 2.5
run 0 post no
"""
    with closing(Ranks(2, tmp_path)) as ranks:
        ranks("open", "gas", gas)
        assert sorted(ranks("atoms", "gas"))[0][0] == 108  # 6^3 atoms on two ranks
        seconds = ranks.first("run", "gas", 20)
        # each is printed with five digits
        assert sum(seconds[name] for name in SECTIONS) == pytest.approx(seconds["Loop"], rel=1e-3)
        assert ranks.first("forces", "gas").shape == (216, 3)
        with pytest.raises(KqeqError, match="a rank has failed in `command`: .*Unknown command: no_such_command"):
            ranks("command", "gas", "no_such_command")


def test_traffic_of_the_lammps_benchmark() -> None:
    """Calls are told apart by what they carry; the bytes are those of a count by hand for one and for many ranks."""
    from kqeq_md.examples.benchmarks.benchmark_ranks import Traffic, counted, exchanged
    from kqeq_md.lammps_plugin.halo import LammpsHalo

    def nothing(*_: object) -> None:
        """Of the C++ side."""

    halo = LammpsHalo(np.arange(5), 3, 5, 0, 2, nothing, nothing, nothing, nothing, nothing)
    before = LammpsHalo.forward
    with counted(LammpsHalo) as calls:
        halo.forward(np.zeros(3))
        halo.forward(np.zeros(3))
        halo.reverse(np.zeros((5, 3)))
        halo.sum(np.zeros((4, 4, 4)))
        halo.exchange([np.zeros((2, 3)), np.zeros(4)], [(6,), (1, 4)])
    assert {kind: len(seconds) for kind, seconds in calls.items()} == {
        ("forward", 1): 2, ("reverse", 3): 1, ("sum", 64): 1, ("exchange", 10): 1,
    }  # fmt: skip
    assert LammpsHalo.forward is before
    rows = [Traffic("forward", 1, 2.0, 0.0), Traffic("reverse", 3, 1.0, 0.0), Traffic("sum", 1000, 1.0, 0.0)]
    assert exchanged(rows, 10, 1) == (8.0 * 10 * (2 + 3), 18.0)
    assert exchanged(rows, 10, 4) == (400.0 + 2 * 0.75 * 8000.0, 18.0 + 4.0)
    assert exchanged([Traffic("exchange", 10, 2.0, 0.0)], 0, 5) == (2 * 0.8 * 80.0, 8.0)


def test_benchmark_of_lammps(tmp_path: Path) -> None:
    """Its smallest box with the shipped model: water that stays water, real ranks, the keys of its JSON."""
    shutil.copy(SHIPPED["water"], tmp_path / "water.kqeq")
    command = [
        sys.executable,
        str(BENCHMARKS / "benchmark_lammps.py"),
        "--quick",
        "--size",
        "500",
        "--json",
    ]
    found = json.loads(run([*command, "--folder", str(tmp_path)], tmp_path))
    assert found["atoms"] == {"one": 501, "two": 501, "reaxff": 501}
    assert -0.5 < found["overhead_1000_atoms"] < 1.0  # a busy machine, but no factor
    assert 0.0 < found["max_force_difference_ranks"] < 1e-7  # what any number of ranks promises
    assert min(found["speedup_2_ranks"], found["ratio_reaxff_step"]) > 0.0
    for sections in found["sections"].values():
        assert sum(sections.values()) == pytest.approx(1.0, abs=0.2)  # medians of each, on a busy machine
    with np.load(tmp_path / "box.npz") as box:
        oxygen, hydrogen = (box["positions"][box["numbers"] == number] for number in (8, 1))
        apart = hydrogen[None] - oxygen[:, None]
        apart -= np.diag(box["cell"]) * np.round(apart / np.diag(box["cell"]))
        assert (np.count_nonzero(np.linalg.norm(apart, axis=2) < 1.25, axis=1) == 2).all()  # molecules


def test_model_of_the_lammps_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kqeq_md.examples.benchmarks import benchmark_lammps

    monkeypatch.setattr(benchmark_lammps, "__file__", str(BENCHMARKS / "benchmark_lammps.py"))  # its data lie there
    benchmark_lammps.make_model(tmp_path / "water.kqeq", 100)
    model = load_model(tmp_path / "water.kqeq")
    assert (model.species, model.charges) == (load_model(SHIPPED["water"]).species, "split")


# ---------------------------------------------------------------- benchmark of i-PI


def test_steps_of_the_ipi_benchmark() -> None:
    """Steps of two calls, told apart by when they begin, whoever made them; a stop in between leaves a step out."""
    from kqeq_md.examples.benchmarks.benchmark_ipi import middle, steps_in_turns

    starts = np.array([0.0, 1.0, 10.0, 11.0, 20.0, 21.0, 40.0, 41.0, 50.0])
    lengths = np.array([0.5, 2.0, 0.5, 3.0, 0.5, 2.0, 0.5, 2.0, 0.5])
    cpu = 100.0 * np.arange(9.0)
    calls = np.stack([starts, starts + lengths, cpu, cpu + 30.0], axis=1)
    turns = steps_in_turns(calls[[0, 2, 4, 6, 8, 1, 3, 5, 7]], 2, [(-1.0, 25.0), (30.0, 31.0), (35.0, 60.0)])
    assert [list(steps.whole) for steps in turns] == [[10.0, 10.0], [10.0]]
    assert [list(steps.evaluation) for steps in turns] == [[2.5, 3.5], [2.5]]
    assert middle(turns, lambda steps: steps.evaluation) == 2.75  # of 3 and 2.5
    (alone,) = steps_in_turns(calls[:4], 1, [(-1.0, 60.0)])
    assert list(alone.driver) == [70.0, 70.0, 70.0]


@pytest.mark.parametrize("transport", ["unix", "ffdirect"])
def test_runs_of_the_ipi_benchmark_take_turns(transport: str, tmp_path: Path) -> None:
    """The clock sees every step of a real i-PI in its own turn and nothing in the others'."""
    import tempfile

    from kqeq_md.examples.benchmarks.benchmark_ipi import Setting, race

    settings = {
        "stock": Setting(None, True, transport, (2, 2, 2)),
        "model": Setting("dipole,charges", False, transport, (2, 2, 2)),
    }
    with tempfile.TemporaryDirectory() as folder:  # short, for the sockets
        found = race(settings, 2, 0.4, Path(folder))
        assert list(Path(folder).iterdir()) == []
    for turns in found.values():
        for steps in turns:
            assert steps.whole.sum() <= 0.4 + 0.4  # the sleep, and what a busy machine adds to it
            assert (steps.whole > steps.evaluation).all()
            assert (steps.driver > 0.0).all()
    # the harmonic potential of eight atoms is some products of arrays
    assert np.median(found["stock"][0].evaluation) < np.median(found["model"][0].evaluation)


def test_ipi_benchmark_tells_what_has_failed(tmp_path: Path) -> None:
    from kqeq_md.errors import KqeqError
    from kqeq_md.examples.benchmarks.benchmark_ipi import Setting, race

    with pytest.raises(KqeqError, match="a driver has ended: kqeq-ipi: error: .*extras: must be"):
        race({"wrong": Setting("quadrupole", ions=(2, 2, 2))}, 1, 0.1, tmp_path)


@pytest.mark.slow
def test_benchmark_of_ipi(tmp_path: Path) -> None:
    """Real runs, the keys of its JSON, and figures of the right kind; what they are is the README's matter."""
    found = json.loads(run([sys.executable, str(BENCHMARKS / "benchmark_ipi.py"), "--quick", "--json"], tmp_path))
    assert set(found["targets"]) < set(found)
    assert found["batch_ratio_32"] > 1.0
    assert 0.1 < found["speedup_2_clients"] < 4.0  # a busy machine, but no factor of beads
    row = found["microseconds"]["unix"]
    assert found["overhead_us_200_atoms"] == row["overhead"] < row["evaluation"] * 10
    assert min(row["stock step"], row["driver's processor"]) > 0.0


def test_soak_finds_a_drift_and_its_error() -> None:
    """A slope in noise whose neighbours know of each other, as the energy of velocity Verlet does."""
    from kqeq_md.examples.benchmarks.soak_melt import drift, growth

    rng = np.random.default_rng(1)
    time = np.arange(0.0, 200.0, 0.02)
    found = []
    for _ in range(40):
        noise = np.convolve(rng.normal(size=len(time) + 50), np.ones(51) / 51, mode="valid")
        found.append(drift(time, 3.0 + 0.01 * time + noise))
    slopes, errors = np.array(found).T
    assert slopes.mean() == pytest.approx(0.01, abs=4 * slopes.std() / np.sqrt(len(slopes)))
    assert errors.mean() == pytest.approx(
        slopes.std(), rel=0.4
    )  # 40 slopes tell their spread to 11 %, each error to 25 %
    assert growth(np.array([50.0, 90.0, *[100.0] * 17, 101.0])) == pytest.approx(1.0)


@pytest.mark.slow
def test_soak_goes_on_from_its_restart_file(tmp_path: Path) -> None:
    from kqeq_md.examples.benchmarks.soak_melt import samples, summary

    first = samples(tmp_path, 500, 5)
    both = samples(tmp_path, 1000, 5)
    assert [row.step for row in both] == [*range(0, 1001, 5)]
    again = next(row for row in both if row.step == 500)
    assert again.process != first[-1].process
    assert again.energy == pytest.approx(first[-1].energy, abs=1e-6)  # eV: solved to 1e-7 from other starts
    assert summary(both)["processes"] == 2
