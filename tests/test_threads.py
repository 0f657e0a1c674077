"""How many threads there are, how they share work, and what BLAS does meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from kqeq_md.ase import KQEq
from kqeq_md.cli import main
from kqeq_md.errors import ConfigError, StructureError
from kqeq_md.ipi_driver.client import build_parser
from kqeq_md.lammps_plugin.pair import PairStyle
from kqeq_md.machine import threads as module
from kqeq_md.machine.programs import environment, program
from kqeq_md.machine.threads import (
    CORES,
    RANKS,
    THREADS,
    cgroup_quota,
    in_parallel,
    kernel_threads,
    one_blas_thread,
    usable_cores,
    worthwhile,
)
from kqeq_md.models import NACL
from kqeq_md.potential import Potential
from kqeq_md.process import OneProcess
from kqeq_md.structure import Result, Structure

NO_SOURCES = os.sep
"""A folder for `python -c`, which looks for packages there first."""

PATIENCE = 30.0
"""Seconds after which a thread that waits for another one gives up."""


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No scheduler, no MPI, no user, on sixteen cores."""
    for name in (*THREADS, *CORES, *RANKS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "usable_cores", lambda: 16)
    return monkeypatch


@pytest.fixture
def three_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "usable_cores", lambda: 3)


# --- how many

COUNTS = {
    "nothing said": ({}, 16),
    "own variable": ({"KQEQ_NUM_THREADS": "3", "OMP_NUM_THREADS": "2", "SLURM_CPUS_PER_TASK": "5"}, 3),
    "OpenMP before Slurm": ({"OMP_NUM_THREADS": "2", "SLURM_CPUS_PER_TASK": "5"}, 2),
    "nested OpenMP": ({"OMP_NUM_THREADS": "4,2"}, 4),
    "Slurm": ({"SLURM_CPUS_PER_TASK": "5", "SLURM_STEP_TASKS_PER_NODE": "4"}, 5),
    "more than cores": ({"KQEQ_NUM_THREADS": "99"}, 16),
    "Open MPI": ({"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, 4),
    "MPICH": ({"MPI_LOCALNRANKS": "5"}, 3),
    "Cray": ({"PALS_LOCAL_SIZE": "8", "PMI_LOCAL_SIZE": "8"}, 2),
    "srun, nodes of two kinds": ({"SLURM_STEP_TASKS_PER_NODE": "2(x3),8"}, 2),
    "mpirun inside a step of one task": ({"SLURM_STEP_TASKS_PER_NODE": "1", "MPI_LOCALNRANKS": "4"}, 4),
    "more ranks than cores": ({"MPI_LOCALNRANKS": "64"}, 1),
    "own variable in a rank": ({"KQEQ_NUM_THREADS": "6", "MPI_LOCALNRANKS": "16"}, 6),
    "Grid Engine": ({"NSLOTS": "4"}, 4),
    "PBS with ranks": ({"NCPUS": "8", "MPI_LOCALNRANKS": "4"}, 2),
    "LSF": ({"LSB_DJOB_NUMPROC": "2"}, 2),
    "part of a node": ({"SLURM_CPUS_ON_NODE": "12", "SLURM_STEP_TASKS_PER_NODE": "3"}, 4),
}


@pytest.mark.parametrize("case", COUNTS)
def test_who_says_how_many(variables: pytest.MonkeyPatch, case: str) -> None:
    said, expected = COUNTS[case]
    for name, value in said.items():
        variables.setenv(name, value)
    assert kernel_threads() == expected
    assert kernel_threads(7) == 7  # the argument comes first


@pytest.mark.parametrize("name", [*THREADS, *CORES, *RANKS])
@pytest.mark.parametrize("value", ["0", "-2", "two", "²", "1.5", "4,", "3(x2),x"])
def test_wrong_variables_are_named(variables: pytest.MonkeyPatch, name: str, value: str) -> None:
    variables.setenv(name, value)
    with pytest.raises(ConfigError, match=f"`{name}` must be a positive integer, got '"):
        kernel_threads()
    assert kernel_threads(2) == 2  # what is not asked for is not read


@pytest.mark.parametrize("name", [*THREADS, *CORES, *RANKS])
def test_an_empty_variable_is_none(variables: pytest.MonkeyPatch, name: str) -> None:
    without = kernel_threads()
    variables.setenv(name, "")
    assert kernel_threads() == without


@pytest.mark.parametrize("value", [0, -1, 1.5, 2.0, True, "2", np.nan])
def test_wrong_arguments_are_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="`threads` must be a positive integer, got"):
        Potential(NACL, threads=value)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinity is Linux'")
def test_a_mask_of_one_core_gives_one_thread() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    code += "from kqeq_md.machine.threads import *; print(kernel_threads(), kernel_threads(4))"
    clean = {name: value for name, value in os.environ.items() if name not in (*THREADS, *CORES, *RANKS)}
    run = subprocess.run([sys.executable, "-c", code], env=clean, cwd=NO_SOURCES, capture_output=True, text=True,
                         check=True)  # fmt: skip
    assert run.stdout.split() == ["1", "1"]


def test_ranks_of_mpirun_share_the_cores() -> None:
    """As many ranks as cores, started for real: one thread each."""
    # in one piece: ranks write into the same pipe, and one's end of line came after the other's number
    code = "import sys; from kqeq_md.machine.threads import *; sys.stdout.write(f'{kernel_threads()} ')"
    clean = {name: value for name, value in environment().items() if name not in (*THREADS, *CORES, *RANKS)}
    ranks = max(2, usable_cores())
    command = [program("mpirun"), "-np", str(ranks), sys.executable, "-c", code]
    run = subprocess.run(command, env=clean, cwd=NO_SOURCES, capture_output=True, text=True, check=True, timeout=120)
    assert run.stdout.split() == ["1"] * ranks


GROUPS = {
    "version 2": ("0::/job/step", {"job/step/cpu.max": "150000 100000"}, 1.5),
    "no limit": ("0::/job/step", {"job/step/cpu.max": "max 100000", "job/cpu.max": "max 100000"}, np.inf),
    "limit of the parent": ("0::/job/step", {"job/step/cpu.max": "max 100000", "job/cpu.max": "400000 100000"}, 4.0),
    "tightest of both": ("0::/job/step", {"job/step/cpu.max": "200000 100000", "job/cpu.max": "400000 100000"}, 2.0),
    "container that is the top": ("0::/../elsewhere", {"cpu.max": "50000 100000"}, 0.5),
    "version 1": (
        "3:cpuset:/a\n2:cpu,cpuacct:/a\n",
        {"cpu/a/cpu.cfs_quota_us": "300000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
        3.0,
    ),
    "version 1 without limit": (
        "2:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, np.inf,
    ),
    "version 1 in a container": (
        "2:cpu:/docker/1f", {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, 2.5,
    ),
    "nothing mounted": ("0::/job\n2:cpu:/", {}, np.inf),
    "spoilt": ("0::/job", {"job/cpu.max": "much"}, np.inf),
}  # fmt: skip


@pytest.mark.parametrize("case", GROUPS)
def test_quota_of_control_groups(tmp_path: Path, case: str) -> None:
    lines, files, expected = GROUPS[case]
    (tmp_path / "groups").write_text(lines)
    for name, text in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert cgroup_quota(tmp_path / "groups", tmp_path / "root") == expected


def test_quota_bounds_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    monkeypatch.setattr(module, "cgroup_quota", lambda: 0.5)
    assert usable_cores() == 1
    assert cgroup_quota(Path("/nonexistent")) == np.inf  # no Linux


def test_few_atoms_wake_no_threads() -> None:
    assert [worthwhile(4, n) for n in (0, 8, 1999, 2000, 3500, 1_000_000)] == [1, 1, 1, 2, 3, 4]


# --- work


@pytest.mark.parametrize("threads", [1, 2, 3, 50, None])
def test_results_come_in_the_order_of_pieces(threads: int | None) -> None:
    assert in_parallel(lambda piece: piece**2, range(20), threads) == [piece**2 for piece in range(20)]
    assert in_parallel(lambda piece: piece, [], threads) == []


def test_a_long_piece_holds_nobody_up() -> None:
    """The first piece ends when all others are done: the other thread has to take every one of them."""
    done = threading.Semaphore(0)

    def work(piece: int) -> str:
        if piece == 0:
            assert all(done.acquire(timeout=PATIENCE) for _ in range(9))
        else:
            done.release()
        return threading.current_thread().name

    first, *others = in_parallel(work, range(10), 2)
    assert len(set(others)) == 1
    assert first not in others


def test_the_first_failure_in_the_order_of_pieces_is_raised() -> None:
    """Piece 3 fails late, piece 5 at once; those behind are left out."""
    failed = threading.Event()
    done = []

    def work(piece: int) -> None:
        if piece == 3:
            assert failed.wait(PATIENCE)
            raise StructureError("third")
        if piece == 5:
            failed.set()
            raise ZeroDivisionError("fifth")
        done.append(piece)

    with pytest.raises(StructureError, match="third"):
        in_parallel(work, range(1000), 2)
    assert sorted(done) == [0, 1, 2, 4]
    assert in_parallel(lambda piece: piece, range(4), 2) == [0, 1, 2, 3]  # the pool is as before


def test_work_inside_work_is_done_in_turn() -> None:
    def inner(_: int) -> int:
        return threading.get_ident()

    def outer(_: int) -> bool:
        return set(in_parallel(inner, range(4), 4)) == {threading.get_ident()}

    assert all(in_parallel(outer, range(8), 4))
    with suppress(StructureError):
        in_parallel(_fail, range(4), 2)
    barrier = threading.Barrier(2, timeout=PATIENCE)  # passed by two threads alone: afterwards there are two again
    in_parallel(lambda _: barrier.wait(), range(2), 2)


def _fail(_: int) -> None:
    raise StructureError("always")


def at_once(number: int, function: Callable[[int], Any]) -> list[Any]:
    """What a function returns in threads of the user, which start together."""
    barrier, results = threading.Barrier(number, timeout=PATIENCE), [None] * number

    def run(index: int) -> None:
        barrier.wait()
        results[index] = function(index)

    users = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for user in users:
        user.start()
    for user in users:
        user.join(PATIENCE)
        assert not user.is_alive()
    return results


def test_more_callers_than_threads() -> None:
    """All of them want more threads than the pool has; nobody waits for ever, nobody gets the results of another."""
    found = at_once(6, lambda user: [in_parallel(lambda piece: (user, piece), range(40), 8) for _ in range(20)])
    assert found == [[[(user, piece) for piece in range(40)]] * 20 for user in range(6)]


def test_floating_point_errors_are_treated_alike_in_all_threads() -> None:
    """Overflow is a warning, and so an error of this test, unless numpy is told otherwise where the call stands."""
    barrier = threading.Barrier(2, timeout=PATIENCE)

    def overflow(_: int) -> float:
        barrier.wait()
        return float(np.exp(np.array([1e4]))[0])

    with np.errstate(all="ignore"):
        assert in_parallel(overflow, range(2), 2) == [np.inf, np.inf]
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        in_parallel(overflow, range(2), 2)


# --- BLAS


@pytest.fixture
def two_blas_threads() -> Iterator[Callable[[], set[int]]]:
    """The user has set two; gives the function that asks."""
    libraries = ThreadpoolController().select(user_api="blas")
    with libraries.limit(limits=2):
        if {library["num_threads"] for library in libraries.info()} != {2}:
            pytest.skip("this BLAS has one thread, or keeps its number to itself")
        yield lambda: {library["num_threads"] for library in libraries.info()}


@pytest.mark.parametrize("threads", [1, 2])
def test_blas_has_one_thread_inside(
    two_blas_threads: Callable[[], set[int]], monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """Asked from the middle of a computation, by whichever thread is there; afterwards the user has his two again."""
    seen = []
    update = OneProcess.update

    def look(self: OneProcess, *arguments: Any) -> None:
        seen.extend(in_parallel(lambda _: two_blas_threads(), range(4), threads))
        update(self, *arguments)

    monkeypatch.setattr(OneProcess, "update", look)
    potential = Potential(NACL, threads=threads)
    potential.compute(Structure([11, 17], [[0, 0, 0], [2.5, 0, 0]]))
    assert seen
    assert set.union(*seen) == {1}
    assert two_blas_threads() == {2}
    with pytest.raises(StructureError):
        potential.compute(Structure([11, 17], [[0, 0, 0], [0.1, 0, 0]]))
    assert two_blas_threads() == {2}


def test_the_last_one_out_gives_blas_its_threads_back(two_blas_threads: Callable[[], set[int]]) -> None:
    first_is_in, second_is_in = threading.Event(), threading.Event()

    def user(index: int) -> set[int]:
        if index == 0:
            with one_blas_thread:
                first_is_in.set()
                assert second_is_in.wait(PATIENCE)
            return set()
        assert first_is_in.wait(PATIENCE)
        with one_blas_thread:
            second_is_in.set()
            other.join(PATIENCE)
            return two_blas_threads()

    other = threading.Thread(target=user, args=(0,))
    other.start()
    assert user(1) == {1}
    assert two_blas_threads() == {2}


# --- results


def ions(boundary: str, seed: int = 0) -> Structure:
    """216 ions near the sites of rock salt."""
    sites = np.stack(np.meshgrid(*[np.arange(6)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    positions = 2.82 * sites + 0.1 * np.random.default_rng(seed).normal(size=sites.shape)
    numbers = np.where(sites.sum(axis=1) % 2, 17, 11)
    pbc = {"open": False, "slab": (True, True, False), "periodic": True}[boundary]
    return Structure(numbers, positions, cell=6 * 2.82 * np.eye(3), pbc=pbc)


def assert_close(got: Result, wanted: Result) -> None:
    """To rounding: sums of thousands of terms up to 1e3 eV in another order, in as many iterations."""
    assert got.energy == pytest.approx(wanted.energy, abs=1e-9)
    for name in ("forces", "charges", "energies"):
        np.testing.assert_allclose(getattr(got, name), getattr(wanted, name), rtol=0, atol=1e-10, err_msg=name)


@pytest.mark.usefixtures("three_cores")
@pytest.mark.parametrize("boundary", ["open", "slab", "periodic"])
def test_threads_change_rounding_alone(boundary: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ATOMS_EACH", 1)
    structure = ions(boundary)
    one, *others = (Potential(NACL, threads=threads).compute(structure) for threads in (1, 2, 3))
    for other in others:
        assert_close(other, one)
    again = Potential(NACL, threads=3).compute(structure)
    np.testing.assert_array_equal(again.forces, others[-1].forces)  # which thread took what makes no difference
    assert again.energy == others[-1].energy


@pytest.mark.usefixtures("three_cores")
def test_potentials_in_threads_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ATOMS_EACH", 1)
    structures = [ions("periodic", seed) for seed in range(4)]
    wanted = [Potential(NACL, threads=2).compute(structure) for structure in structures]
    found = at_once(4, lambda user: Potential(NACL, threads=2).compute(structures[user]))
    for got, expected in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(got.forces, expected.forces)


FORKED = """
import multiprocessing, numpy as np
from kqeq_md.models import NACL
from kqeq_md.potential import Potential
from kqeq_md.process import OneProcess
from kqeq_md.structure import Structure

def energy(x):
    structure = Structure([11, 17], [[0.0, 0, 0], [2.4 + x, 0, 0]], cell=9.0 * np.eye(3), pbc=True)
    return Potential(NACL).compute(structure, want=()).energy

if __name__ == "__main__":
    here = energy(0.0)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(energy, [0.0, 0.0]) == [here, here]
"""


def test_threads_after_a_fork() -> None:
    """The threads of the parent are dead in the child: it starts its own."""
    environment = {**os.environ, "KQEQ_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", FORKED], env=environment, cwd=NO_SOURCES, check=True, timeout=120)


# --- the knob


@pytest.mark.usefixtures("three_cores")
def test_every_entry_has_the_knob(variables: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    variables.setenv("KQEQ_NUM_THREADS", "3")
    assert Potential(NACL).threads == 3
    assert Potential(NACL, threads=2).threads == 2
    assert KQEq(NACL, threads=2).potential.threads == 2
    assert PairStyle(str(NACL), ["Na"], threads=2).potential.threads == 2
    assert build_parser().parse_args(["-m", "m", "-t", "t", "--threads", "2"]).threads == 2
    assert main(["check", str(NACL), "--threads", "2"]) == 0
    assert os.environ["KQEQ_NUM_THREADS"] == "2"
    assert main(["check", str(NACL), "--threads", "0"]) == 2
    assert "`threads` must be a positive integer, got 0" in capsys.readouterr().err
