"""A disk that gets full while a command writes: one line, what stood there before is still there, and nothing else."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.io import write

from kqeq_md.machine.programs import environment
from kqeq_md.model import Model, save_model
from kqeq_md.models import NACL
from kqeq_md.train.tune.record import Trial, Trials

PROGRAM = str(Path(sys.executable).with_name("kqeq"))
OLD = b"what stood there before"

COMMANDS = {
    "ir, table": (["ir", "mu.dat", "--timestep", "1", "--resolution", "200", "--data", "out.dat"], "out.dat"),
    "ir, plot": (["ir", "mu.dat", "--timestep", "1", "--resolution", "200", "-o", "out.png"], "out.png"),
    "select": (["select", str(NACL), "far.xyz", "-n", "2", "-o", "out.xyz"], "out.xyz"),
}


def limited(largest: int) -> Any:
    """No file may be larger than that many bytes; as on a full disk, writing fails half-way."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    np.savetxt(tmp_path / "mu.dat", np.cumsum(rng.normal(size=(600, 3)), axis=0))
    sites = 1.9 * np.array(list(np.ndindex(2, 2, 2)))
    frames = [Atoms("Na4Cl4", sites + 0.3 * rng.normal(size=(8, 3)), cell=30 * np.eye(3)) for _ in range(4)]
    write(tmp_path / "far.xyz", frames, format="extxyz")
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_an_old_file_outlives_a_full_disk(command: str, inputs: Path) -> None:
    arguments, output = COMMANDS[command]
    (inputs / output).write_bytes(OLD)
    before = set(os.listdir(inputs))
    answers = [
        subprocess.run(
            [PROGRAM, *arguments],
            cwd=inputs, env=environment(), capture_output=True, text=True, preexec_fn=preparation,
        )
        for preparation in (limited(200), None)
    ]  # fmt: skip
    full, free = answers
    assert full.returncode == 2, full.stderr
    assert full.stderr.splitlines()[-1] == "kqeq: error: [Errno 27] File too large"
    assert "Traceback" not in full.stderr
    assert free.returncode == 0, free.stderr
    assert set(os.listdir(inputs)) == before
    assert (inputs / output).read_bytes() != OLD


def in_child(work: Any, largest: int) -> int:
    """Exit code of a copy of this process that may not write more: 0 done, 1 an OSError, 2 anything else."""
    child = os.fork()
    if child == 0:
        code = 2
        try:
            limited(largest)()
            work()
            code = 0
        except OSError:
            code = 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("largest", [0, 1, 2000, 4096])
def test_an_old_model_outlives_a_full_disk(model: Model, largest: int, tmp_path: Path) -> None:
    path = tmp_path / "m.kqeq"
    path.write_bytes(OLD)
    assert in_child(lambda: save_model(model, path), largest) == 1
    assert path.read_bytes() == OLD
    assert os.listdir(tmp_path) == ["m.kqeq"]
    assert in_child(lambda: save_model(model, path), 10**6) == 0
    assert path.read_bytes() != OLD


def test_trials_outlive_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    for trial in (Trial(0, {"cutoff": 5.0}, 1.0, cost=0.5), Trial(0, {"cutoff": 6.0}, 1.0, cost=0.4)):
        Trials(path, "mark").keep(trial)
    whole = path.read_bytes()
    assert in_child(lambda: Trials(path, "mark"), len(whole) - 1) == 1  # which writes them again as it begins
    assert path.read_bytes() == whole
    assert len(Trials(path, "mark")) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk")
def test_a_disk_that_is_really_full(model: Model, tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(tmp_path)], check=False).returncode:
        pytest.skip("this root may not mount a disk")
    try:
        path = tmp_path / "m.kqeq"
        path.write_bytes(OLD)
        with pytest.raises(OSError, match="No space left on device"):
            save_model(model, path)
        assert path.read_bytes() == OLD
        assert os.listdir(tmp_path) == ["m.kqeq"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
