"""Interrupted runs, and what must not change a model: interruptions, threads, other files' checkpoints."""

from __future__ import annotations

import io
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kqeq_md.model import Model, save_model
from kqeq_md.train.checkpoint import Checkpoint
from kqeq_md.train.config import read_config
from kqeq_md.train.fit import physical_fit as physical_fit
from kqeq_md.train.run import train

PROGRAM = Path(sys.executable).with_name("kqeq")

SMALL = """
seed = 3
[data]
train = "train.xyz"
check_units = false
[descriptor]
cutoff = 4.5
n_max = 2
l_max = 1
radial_scale = 3.0
[kernel]
sparse_points = 6
[charges]
model = "split"
[fit]
physical = ["hardness", "compliance"]
rounds = 2
held_out = 0.1
"""


def write_sets(folder: Path, sets: Any, model: Model) -> Path:
    """Clusters and cells, enough of them to hold some out."""
    maker = sets.with_learned_reference(model)
    frames = [*sets.random_clusters(10, 15, maker, True), *sets.random_cells(3, 5, maker)]
    sets.write_frames(folder / "train.xyz", frames)
    (folder / "config.toml").write_text(SMALL)
    return folder


@pytest.fixture(autouse=True, scope="module")
def few_steps() -> Iterator[None]:
    """Of physical parameters: how many there are does not matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(physical_fit, "ITERATIONS", 2)
        patch.setattr(physical_fit, "ROUNDS", 2)
        yield


@pytest.fixture
def mixed(tmp_path: Path, sets: Any, model: Model) -> Path:
    """A folder with data and configuration."""
    return write_sets(tmp_path, sets, model)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, sets: Any, model: Model, few_steps: None) -> bytes:
    """The model of another folder with the same in it."""
    return trained(write_sets(tmp_path_factory.mktemp("whole"), sets, model), sets.silent)


def trained(folder: Path, progress: Callable[[Any, str], Any], checkpoint: Path | None = None) -> bytes:
    """The file of a model trained in `folder`."""
    model = train(read_config(folder / "config.toml"), progress, checkpoint).model
    save_model(model, folder / "model.kqeq")
    if checkpoint is not None:
        checkpoint.unlink()
    return (folder / "model.kqeq").read_bytes()


class Stopped(Exception):
    """What an interruption raises here."""


@pytest.mark.slow
@pytest.mark.parametrize("item", [0, 1])
def test_a_run_interrupted_anywhere_gives_the_same_file(
    item: int, mixed: Path, sets: Any, uninterrupted: bytes
) -> None:
    """At every loop in turn, before its first item or after it."""
    checkpoint, number, loops = mixed / "model.kqeq.checkpoint", 0, list[str]()

    def stop(items: Any, title: str) -> Iterator[Any]:
        loops.append(title)
        for index, entry in enumerate(items):
            if len(loops) > number and index == item:
                raise Stopped
            yield entry

    while True:
        loops.clear()
        try:
            assert trained(mixed, stop, checkpoint) == uninterrupted
            break
        except Stopped:
            assert trained(mixed, sets.silent, checkpoint) == uninterrupted
            number += 1
    assert number >= 6


def stopped_after(stage: str, folder: Path, sets: Any) -> Path:
    """The checkpoint of a run that was stopped right after a stage was written."""
    checkpoint, keep = folder / "model.kqeq.checkpoint", Checkpoint.keep

    def then_stop(self: Checkpoint, name: str, **arrays: np.ndarray) -> None:
        keep(self, name, **arrays)
        if name == stage:
            raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "keep", then_stop)
        with pytest.raises(Stopped):
            trained(folder, sets.silent, checkpoint)
    assert checkpoint.is_file()
    assert not list(folder.glob("*.part"))
    return checkpoint


@pytest.mark.parametrize("stage", ["points", "physical", "charges", "rounds"])
def test_each_stage_is_gone_on_from(
    stage: str, mixed: Path, sets: Any, uninterrupted: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = stopped_after(stage, mixed, sets)
    assert trained(mixed, sets.silent, checkpoint) == uninterrupted
    assert f"going on from {checkpoint} (" in caplog.text


@pytest.mark.parametrize("changed", ["configuration", "data"])
def test_a_checkpoint_of_another_run_is_not_used(
    changed: str, mixed: Path, sets: Any, uninterrupted: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = stopped_after("points", mixed, sets)
    if changed == "configuration":
        (mixed / "config.toml").write_text(SMALL.replace("seed = 3", "seed = 4"))
    else:
        text = (mixed / "train.xyz").read_text()
        (mixed / "train.xyz").write_text(text[: text.rindex("\n8\n") + 1])  # without the last frame
    found = trained(mixed, sets.silent, checkpoint)
    assert f"{checkpoint} is of another configuration, other data or another version: beginning anew" in caplog.text
    assert found != uninterrupted
    assert found == trained(mixed, sets.silent)


def test_damaged_checkpoints_are_not_used(
    mixed: Path, sets: Any, uninterrupted: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = stopped_after("points", mixed, sets)
    whole, array = checkpoint.read_bytes(), io.BytesIO()
    np.save(array, np.zeros(3))
    changed = [whole[:k] + bytes([whole[k] ^ 0xFF]) + whole[k + 1 :] for k in range(0, len(whole), len(whole) // 40)]
    for damaged in (b"", b"no zip file", whole[:100], whole[: len(whole) // 2], array.getvalue(), *changed):
        caplog.clear()
        checkpoint.write_bytes(damaged)
        assert Checkpoint(checkpoint, "mark").recall("points") is None
        assert "beginning anew" in caplog.text
    assert trained(mixed, sets.silent, checkpoint) == uninterrupted


def test_stages_are_kept_together(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, arrays = tmp_path / "run.checkpoint", {"x": np.arange(3.0), "y": np.ones((2, 2))}
    first = Checkpoint(path, "mark")
    first.keep("points", **arrays)
    first.keep("charges", x=np.zeros(2))
    assert first.recall("rounds") is None
    second = Checkpoint(path, "mark")
    assert f"going on from {path} (points, charges); remove it to begin anew" in caplog.text
    points, charges = second.recall("points"), second.recall("charges")
    assert points is not None
    assert charges is not None
    assert points.keys() == arrays.keys()
    for name, value in arrays.items():
        np.testing.assert_array_equal(points[name], value)
    np.testing.assert_array_equal(charges["x"], np.zeros(2))


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kept = Checkpoint()
    kept.keep("points", x=np.zeros(2))
    assert kept.recall("points") is not None
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- the command


QUICK = SMALL.replace('"hardness", "compliance"', "")
"""The command cannot be told to take few steps in physical parameters."""


def kqeq_train(folder: Path, output: str, **variables: str) -> subprocess.Popen[str]:
    command = [PROGRAM, "train", "config.toml", "-o", output, "--no-report"]
    return subprocess.Popen(
        command, cwd=folder, env={**os.environ, **variables}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells ignore it for jobs in the background
    )  # fmt: skip


def test_the_same_file_with_one_thread_and_two(mixed: Path) -> None:
    (mixed / "config.toml").write_text(QUICK)
    for threads in ("1", "2"):
        run = kqeq_train(mixed, f"{threads}.kqeq", KQEQ_NUM_THREADS=threads)
        _, said = run.communicate(timeout=300)
        assert run.returncode == 0, said
    assert (mixed / "1.kqeq").read_bytes() == (mixed / "2.kqeq").read_bytes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_goes_on(number: signal.Signals, code: int, mixed: Path) -> None:
    """Ctrl-C, or the end of a batch job, after the first stage: the checkpoint stays, the command says so, and the same
    command finishes."""
    (mixed / "config.toml").write_text(QUICK.replace("rounds = 2", "rounds = 5"))
    checkpoint, whole = mixed / "model.kqeq.checkpoint", kqeq_train(mixed, "whole.kqeq")
    whole.communicate(timeout=300)
    run = kqeq_train(mixed, "model.kqeq")
    deadline = time.monotonic() + 120.0
    while not checkpoint.exists() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    run.send_signal(number)
    said, complained = run.communicate(timeout=120)
    assert run.returncode == code, said + complained
    assert "kqeq: the same command goes on from model.kqeq.checkpoint" in complained
    assert "Traceback" not in complained
    assert checkpoint.exists()
    assert not (mixed / "model.kqeq").exists()
    again = kqeq_train(mixed, "model.kqeq")
    _, complained = again.communicate(timeout=300)
    assert again.returncode == 0, complained
    assert "going on from model.kqeq.checkpoint" in complained
    assert not checkpoint.exists()
    assert (mixed / "model.kqeq").read_bytes() == (mixed / "whole.kqeq").read_bytes()


def test_a_model_that_cannot_be_written_costs_nothing(mixed: Path) -> None:
    """Files may not be larger than the checkpoint: the old model stays, and so does the checkpoint."""
    (mixed / "config.toml").write_text(QUICK)
    (mixed / "model.kqeq").write_bytes(b"old")
    whole = kqeq_train(mixed, "whole.kqeq")
    whole.communicate(timeout=300)
    largest = (mixed / "whole.kqeq").stat().st_size - 1000
    command = [PROGRAM, "train", "config.toml", "-o", "model.kqeq", "--no-report"]
    run = subprocess.run(
        command, cwd=mixed, capture_output=True, text=True, timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest)),
    )  # fmt: skip
    assert run.returncode == 2, run.stderr
    assert "kqeq: error: [Errno 27] File too large" in run.stderr
    assert (mixed / "model.kqeq").read_bytes() == b"old"
    assert not list(mixed.glob("*.part"))
    _, complained = kqeq_train(mixed, "model.kqeq").communicate(timeout=300)
    assert "going on from model.kqeq.checkpoint" in complained
    assert (mixed / "model.kqeq").read_bytes() == (mixed / "whole.kqeq").read_bytes()
    assert not (mixed / "model.kqeq.checkpoint").exists()
