"""Frames worth labelling: which ones, how many, and what is written of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms

from kqeq_md.cli import main
from kqeq_md.errors import KqeqError
from kqeq_md.model import Model, load_model, save_model
from kqeq_md.models import NACL
from kqeq_md.select import select
from kqeq_md.select import selection as module
from kqeq_md.select.report import as_json, as_text

TEST = Path(__file__).parents[1] / "examples" / "train_nacl" / "test.xyz"
METAL = Atoms("Na27", 3.6 * np.array(list(np.ndindex(3, 3, 3))))
CHLORINE = Atoms("Cl2", [[0, 0, 0], [0, 0, 2.0]])


@pytest.fixture
def home() -> Atoms:
    """A frame that the shipped model knows."""
    return ase.io.read(TEST, 0)


@pytest.fixture
def model() -> Model:
    return load_model(NACL)


def rattled(atoms: Atoms, seed: int) -> Atoms:
    out = atoms.copy()
    out.positions += 0.002 * np.random.default_rng(seed).normal(size=out.positions.shape)
    return out


def test_nothing_extrapolates(home: Atoms, model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "a.xyz", tmp_path / "picked.xyz"
    ase.io.write(path, [home, rattled(home, 1)])
    found = select(model, [path], 3)
    assert (found.picks, found.ended, found.n_frames, found.n_extrapolating) == ([], True, 2, 0)
    assert main(["select", str(NACL), str(path), "-n", "3", "-o", str(out)]) == 0
    assert "nothing extrapolates" in capsys.readouterr().out
    assert out.read_text() == ""


def test_near_copies_count_once(home: Atoms, model: Model, tmp_path: Path) -> None:
    """Ten vibrating copies of each of two foreign structures, in two files: two picks, and an early end."""
    first, second = tmp_path / "a.xyz", tmp_path / "b.xyz"
    ase.io.write(first, [home, *(rattled(METAL, seed) for seed in range(10))])
    ase.io.write(second, [rattled(CHLORINE, seed) for seed in range(10)])
    found = select(model, [first, second], 5)
    assert (found.n_frames, found.n_extrapolating, found.ended) == (21, 20, True)
    assert {len(pick.candidate.atoms) for pick in found.picks} == {2, 27}
    assert len(found.picks) == 2
    assert found.picks[0].worth >= found.picks[1].worth > found.threshold


def test_as_many_as_asked_for_and_the_same_again(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    ase.io.write(path, [METAL, CHLORINE])
    one = select(model, [path], 1)
    assert (len(one.picks), one.ended) == (1, False)
    assert [pick.candidate.place for pick in select(model, [path], 1).picks] == [one.picks[0].candidate.place]


def test_picked_frames_are_ready_to_label(model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    charged = METAL.copy()
    charged.info |= {"total_charge": 1.0, "electric_field": np.array([0.0, 0.0, 0.02])}
    path, out = tmp_path / "a.xyz", tmp_path / "picked.xyz"
    ase.io.write(path, charged)
    assert main(["select", str(NACL), str(path), "-n", "1", "-o", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (frame,) = ase.io.read(out, ":")
    assert frame.info["total_charge"] == 1.0
    np.testing.assert_array_equal(frame.info["electric_field"], [0.0, 0.0, 0.02])
    assert frame.info["extrapolation"] == pytest.approx(frame.arrays["extrapolation"].max(), abs=1e-7)  # digits
    np.testing.assert_allclose(frame.positions, METAL.positions, atol=1e-7)  # digits of extended XYZ
    (entry,) = report["picked"]
    assert entry["source"] == frame.info["source"] == f"{path}, frame 0"
    assert report["nothing_left"] is True


def test_clusters_in_a_cell_of_their_file(model: Model, tmp_path: Path) -> None:
    """As i-PI writes them: `is_open` measures them as clusters, and picks them without the cell."""
    boxed = METAL.copy()
    boxed.set_cell([12.0, 12.0, 12.0])  # images are near
    boxed.pbc = True
    for name, atoms in (("open", METAL), ("boxed", boxed)):
        ase.io.write(tmp_path / f"{name}.xyz", atoms)
    (plain,) = select(model, [tmp_path / "open.xyz"], 1).picks
    (freed,) = select(model, [tmp_path / "boxed.xyz"], 1, is_open=True).picks
    (periodic,) = select(model, [tmp_path / "boxed.xyz"], 1).picks
    np.testing.assert_array_equal(freed.candidate.vectors, plain.candidate.vectors)
    assert np.abs(periodic.candidate.vectors - plain.candidate.vectors).max() > 0.01
    assert not freed.candidate.atoms.pbc.any()


def test_a_new_total_charge_is_worth_one_frame(home: Atoms, model: Model, tmp_path: Path) -> None:
    """Surroundings are known; a calibrated model that has seen neutral frames alone wants one of each sign."""
    record = {"threshold": 3.0, "charges": {}, "charge_per_atom": [0.0, 0.0]}
    neutral = replace(model, training={"extrapolation": record})
    frames = []
    for index, charge in enumerate((0.0, 1.0, 1.0, -1.0)):
        frames.append(rattled(home, index))
        frames[-1].info = {"total_charge": charge}
    ase.io.write(tmp_path / "a.xyz", frames)
    found = select(neutral, [tmp_path / "a.xyz"], 4)
    assert sorted(pick.candidate.structure.charge for pick in found.picks) == [-1.0, 1.0]
    assert "(total charge -1 e)" in as_text(found)
    assert [entry["atom"] for entry in as_json(found)["picked"]] == [None, None]


def test_memory_keeps_the_farthest(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 2)
    scaled = []
    for scale in (1.0, 0.85, 0.9):
        scaled.append(METAL.copy())
        scaled[-1].positions *= scale
    ase.io.write(tmp_path / "a.xyz", scaled)
    free = {pick.candidate.place: pick.candidate.measure.max() for pick in select(model, [tmp_path / "a.xyz"], 1).picks}
    monkeypatch.setattr(module, "MOST", 100)
    (best,) = select(model, [tmp_path / "a.xyz"], 1).picks
    assert free == {best.candidate.place: best.candidate.measure.max()}


def test_frames_that_cannot_be_computed_are_left_out(model: Model, tmp_path: Path) -> None:
    foreign = Atoms("He", [[0, 0, 0]])
    ase.io.write(tmp_path / "a.xyz", [foreign, METAL])
    found = select(model, [tmp_path / "a.xyz"], 2)
    assert (found.n_refused, len(found.picks)) == (1, 1)
    assert f"1 of 2 frames cannot be computed; the first one is {tmp_path / 'a.xyz'}, frame 0: " in as_text(found)
    assert "nothing else extrapolates, of those that can be computed" in as_text(found)
    ase.io.write(tmp_path / "b.xyz", [foreign])
    with pytest.raises(KqeqError, match=r"b\.xyz, frame 0: "):
        select(model, [tmp_path / "b.xyz"], 2)


def test_refusals(model: Model, tmp_path: Path) -> None:
    with pytest.raises(KqeqError, match=r"trajectory .*absent\.xyz does not exist"):
        select(model, [tmp_path / "absent.xyz"], 1)
    with pytest.raises(KqeqError, match="`number` must be positive, got 0"):
        select(model, [TEST], 0)
    (tmp_path / "bad.xyz").write_text("nonsense\n")
    with pytest.raises(KqeqError, match=r"trajectory .*bad\.xyz cannot be read"):
        select(model, [tmp_path / "bad.xyz"], 1)


def test_frames_of_ipi_need_their_cell(model: Model, tmp_path: Path) -> None:
    comment = "# CELL(abcABC): 60 60 60 90 90 90 Step: 0 Bead: 0 positions{angstrom} cell{angstrom}"
    (tmp_path / "ipi.xyz").write_text(f"2\n{comment}\nCl 0 0 0\nCl 0 0 2\n")
    with pytest.raises(KqeqError, match="format='ase'"):
        select(model, [tmp_path / "ipi.xyz"], 1)


def test_dumps_of_lammps(model: Model, tmp_path: Path) -> None:
    """With element names, as `dump_modify element` writes them."""
    rows = "\n".join(f"{i + 1} Cl 5 5 {5 + 2.0 * i}" for i in range(2))
    box = "ITEM: BOX BOUNDS pp pp pp\n0 30\n0 30\n0 30\nITEM: ATOMS id element x y z\n"
    head = f"ITEM: TIMESTEP\n{{}}\nITEM: NUMBER OF ATOMS\n2\n{box}"
    (tmp_path / "run.lammpstrj").write_text("".join(f"{head.format(step)}{rows}\n" for step in range(3)))
    found = select(model, [tmp_path / "run.lammpstrj"], 2)
    assert (found.n_frames, len(found.picks)) == (3, 1)
    assert all(found.picks[0].candidate.atoms.pbc)


def test_info_names_the_threshold(model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(replace(model, training={}), tmp_path / "old.kqeq")
    assert main(["info", str(tmp_path / "old.kqeq")]) == 0
    assert "extrapolation     beyond a measure of 1.75 (not calibrated)" in capsys.readouterr().out
    errors = {"upper": [1.0, 2.0], "median": [0.05, 0.2], "p95": [0.1, 0.4]}
    record = {"threshold": 2.5, "charges": {}, "charge_per_atom": [0, 0], "n_atoms": 99, "expected_force_error": errors}
    save_model(replace(model, training={"extrapolation": record}), tmp_path / "m.kqeq")
    assert main(["info", str(tmp_path / "m.kqeq")]) == 0
    assert (
        "beyond a measure of 2.5 (99 held-out atoms; force errors of their nearest and farthest 50 %: median 0.05 and "
        "0.2 eV/A)" in capsys.readouterr().out
    )
