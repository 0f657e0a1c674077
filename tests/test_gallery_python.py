"""Examples in Python, each by its one command in a short form, and the physics that its page names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase.io import read


def test_disease_and_cure(run_example: Callable[..., str]) -> None:
    """The numbers in the legends of the picture."""
    text = run_example("disease_and_cure")
    rows = {line.split()[0]: [float(x) for x in re.findall(r"[-+]?\d\.\d+", line)] for line in text.splitlines()}
    assert set(rows) == {"qeq", "fragments", "split"}
    exponent, sodium, transfer, molecules = rows["qeq"]
    assert exponent > 1.8
    assert min(abs(sodium), transfer, molecules) > 0.1  # e
    assert rows["split"][0] == pytest.approx(1.0, abs=0.1)
    for name in ("fragments", "split"):
        assert rows[name][1:3] == [0.0, 0.0]


def test_train_tblite(tmp_path: Path, run_example: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels obey their sum rules, test frames are new, and the model explains most of the forces."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # threads of tblite that wait for a core beside other tests take minutes
    text = run_example("train_tblite", TRAJECTORIES=5)
    folder = tmp_path / "train_tblite"
    train, test = (read(folder / f"{name}.xyz", ":") for name in ("train", "test"))
    assert (len(train), len(test)) == (48, 12)
    for atoms in train + test:
        assert atoms.arrays["REF_charges"].sum() == pytest.approx(atoms.info["total_charge"], abs=1e-6)  # 8 decimals
        np.testing.assert_allclose(atoms.arrays["REF_forces"].sum(axis=0), 0.0, atol=1e-6)
    rows = re.findall(r"^all +(\d+) +([\d.]+) \([\d.]+\) +([\d.]+) ", text, re.M)
    assert [int(row[0]) for row in rows] == [48, 12, 12]
    assert rows[1] == rows[2]  # what training printed is what `kqeq eval` finds
    size = np.sqrt(np.mean(np.concatenate([atoms.arrays["REF_forces"].ravel() for atoms in test]) ** 2))
    assert float(rows[1][2]) < 0.3 * 1000.0 * size  # meV/A; all 96 frames leave a tenth
