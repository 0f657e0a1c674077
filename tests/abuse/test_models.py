"""Spoiled model files: one line of refusal or the same answer, never a crash and never somebody's code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kqeq_md.machine.programs import environment

SCRIPT = Path(__file__).with_name("load_mutated.py")


def spoil(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """What `load_mutated.py` found, in a process of its own: a crash is seen as such."""
    run = subprocess.run(
        [sys.executable, str(SCRIPT), str(count), str(seed)],
        cwd=folder, env={**environment(), "KQEQ_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    lines = run.stdout.splitlines()
    assert run.returncode == 0, (lines[-1:], run.stderr[-2000:])
    assert run.stderr == ""
    assert not [line for line in lines if "FAULT" in line and not line.startswith("{")]
    assert os.listdir(folder) == ["spoiled.kqeq"]  # nothing was unpacked, unpickled or run
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def check(found: dict[str, Any], count: int) -> None:
    total = Counter[str]()
    for kind, outcomes in found["counts"].items():
        total.update(outcomes)
        assert "other answer" not in outcomes or kind.endswith(", signed")
    assert total.total() == count
    assert total["refused"] > 0.6 * count  # 8,734 of 10,000
    assert found["seconds"] < 5.0
    assert found["megabytes"] < 1000.0


def test_three_hundred_spoiled_models(tmp_path: Path) -> None:
    check(spoil(300, 0, tmp_path), 300)


@pytest.mark.slow
def test_ten_thousand_spoiled_models(tmp_path: Path) -> None:
    check(spoil(10_000, 1, tmp_path), 10_000)
