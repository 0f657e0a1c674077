"""`kqeq tune`: the walk, what is held out, the score, the record, the text that it writes, and whole searches."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from ase.io import read, write

from kqeq_md.cli import main
from kqeq_md.errors import ConfigError, KqeqError
from kqeq_md.structure import Structure
from kqeq_md.train.config import Charges, Config, Data, Fit, Kernel, read_config
from kqeq_md.train.data import Frame, read_set
from kqeq_md.train.fit.start import blank_model
from kqeq_md.train.report import Prediction
from kqeq_md.train.tune import search as tune_module
from kqeq_md.train.tune import trial as tune_trial
from kqeq_md.train.tune.folds import FOLDS, choose_frames, folds_of, rest_of
from kqeq_md.train.tune.grid import grid_of, spread_points, start_of, with_values
from kqeq_md.train.tune.record import Trial, Trials
from kqeq_md.train.tune.search import Tuned, tune
from kqeq_md.train.tune.text import rewritten
from kqeq_md.train.tune.trial import Level, Problem, score, with_physical_of, without_levels
from kqeq_md.train.tune.walk import Walk

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_nacl" / "train.xyz"
CONFIG = """# A small one
[data]
train = ["few.xyz"]    # of the example
test = ["not_there.xyz"]

[descriptor]
cutoff = 4.0    # Angstrom
n_max = 3
l_max = 2

[kernel]
sparse_points = 12

[fit]
physical = []
rounds = 0
held_out = 0.0

[tune]
radial_scale = [2.0]
sigma = [0.4]
cutoff = []
n_max = []
l_max = []
zeta = []
hardness = []
"""
CONFIGURED = {"radial_scale": 0.0, "sigma": 0.5}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a configuration for searches that take a second."""
    small = [atoms for atoms in read(EXAMPLE, ":") if len(atoms) <= 16]
    write(tmp_path / "few.xyz", small[:24], format="extxyz")
    (tmp_path / "c.toml").write_text(CONFIG)
    monkeypatch.setattr(tune_module, "LEVELS", (Level(18, 6), Level(24, 12)))
    monkeypatch.setattr(tune_module, "SPREAD", 2)
    return tmp_path


def frame(numbers: list[int], place: int, **labels: object) -> Frame:
    """Atoms on a line."""
    positions = 2.5 * np.arange(3 * len(numbers)).reshape(-1, 3)
    given = {"energy": None, "forces": None, "charges": None, "dipole": None, **labels}
    return Frame(Structure(np.array(numbers), positions), place=f"frame {place}", **given)  # type: ignore[arg-type]


def bowl(point: dict[str, float]) -> float:
    return 1.0 + (point["a"] - 3.0) ** 2 + 4.0 * (point["b"] - point["a"]) ** 2


GRID = {"a": tuple(map(float, range(7))), "b": tuple(map(float, range(7)))}


def test_the_walk_ends_where_no_neighbour_is_better() -> None:
    walk = Walk(GRID, {"a": 0.0, "b": 0.0}, bowl)
    walk.run()
    here = bowl(walk.at)
    for name, step in (("a", 1), ("a", -1), ("b", 1), ("b", -1)):
        assert bowl({**walk.at, name: walk.at[name] + step}) > here
    easy = Walk(GRID, {"a": 6.0, "b": 0.0}, lambda p: 1.0 + (p["a"] - 1.0) ** 2 + (p["b"] - 5.0) ** 2)
    easy.run()
    assert easy.at == {"a": 1.0, "b": 5.0}


def test_the_walk_leaves_its_place_for_a_hundredth_but_not_for_less() -> None:
    for gain, expected in ((0.005, 0.0), (0.02, 6.0)):
        walk = Walk({"a": GRID["a"]}, {"a": 0.0}, lambda p, g=gain: (1.0 - g) ** p["a"])  # type: ignore[misc]
        walk.run()
        assert walk.at == {"a": expected}


def test_a_walk_that_is_stopped_stays_where_it_is() -> None:
    calls = []

    def cost(point: dict[str, float]) -> float:
        calls.append(point)
        if point["a"] == 3.0:
            raise KeyboardInterrupt
        return -point["a"]

    walk = Walk({"a": GRID["a"]}, {"a": 1.0}, lambda p: 10.0 + cost(p))
    with pytest.raises(KeyboardInterrupt):
        walk.run()
    assert walk.at == {"a": 2.0}


def test_the_grid_is_around_the_configuration() -> None:
    config = Config(Data(["a.xyz"]))
    grid = grid_of(config)
    assert set(grid) == {"radial_scale", "sigma", "cutoff", "n_max", "l_max", "zeta"}
    assert grid["radial_scale"][-1] == 0.0  # unscaled is next to the weakest scaling
    assert grid["cutoff"] == (3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 6.5)
    assert with_values(config, start_of(grid, config)) == config
    free = replace(config, fit=Fit(regularisation="given", physical=[]), tune={"hardness": [3.0, 4.0], "zeta": []})
    grid = grid_of(free)
    assert grid["hardness"] == (3.0, 4.0, 10.0)  # 10: the usual one of this charge model
    assert "prior_short_range" in grid
    assert "zeta" not in grid
    assert with_values(free, {"hardness": 4.0}).charges.hardness == 4.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tune]\ncutof = [4.0]", "unknown key `tune.cutof`; did you mean `cutoff`"),
        ("[tune]\ncutoff = 4.0", "`tune.cutoff` must be a list of values to try, got 4.0"),
        ("[tune]\ncutoff = [true]", "`tune.cutoff` must hold numbers, got True"),
        ("[tune]\nn_max = [4.5]", "`tune.n_max` must hold whole numbers, got 4.5"),
        ("[tune]\nsigma = [nan]", "`tune.sigma` must lie between 0.05 and 5, got nan"),
        ("tune = 3", "`tune` must be a table, got 3"),
    ],
)
def test_mistakes_in_the_table_are_named(text: str, message: str, tmp_path: Path) -> None:
    head, rest = (text, "") if text.startswith("tune") else ("", text)
    (tmp_path / "c.toml").write_text(f"{head}\n[data]\ntrain = ['a.xyz']\n{rest}\n")
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path / "c.toml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tune": {"hardness": [1.0]}}, "`tune.hardness` must be left out where `fit.physical` fits it"),
        ({"tune": {"prior_short_range": [1.0]}}, '`fit.regularisation` is "held_out"'),
        ({"tune": {"cutoff": [0.6]}}, "`cutoff_width` must not exceed the cutoff 0.6"),
        ({"tune": {k: [] for k in ("radial_scale", "sigma", "cutoff", "n_max", "l_max", "zeta")}}, "something to sea"),
        (
            {"tune": {"hardness": [1.0]}, "fit": Fit(physical=[]), "charges": Charges(hardness={"Na": 1.0})},
            "where `charges.hardness` is a table",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        grid_of(replace(Config(Data(["a.xyz"])), **changes))  # type: ignore[arg-type]


def test_compositions_are_held_out_whole() -> None:
    frames = [frame([11] * (1 + k % 7) + [17] * (1 + k % 5), k) for k in range(140)]
    folds = folds_of(frames, seed=0)
    assert sum(map(len, folds)) == len(frames)
    compositions = [{tuple(f.structure.numbers) for f in fold} for fold in folds]
    assert all(not compositions[a] & compositions[b] for a in range(FOLDS) for b in range(a))
    assert max(map(len, folds)) - min(map(len, folds)) <= 4  # the size of a group, 140 / 35
    assert {f.place for f in rest_of(frames, folds[0])} == {f.place for f in folds[1] + folds[2]}
    assert [f.place for f in folds_of(frames, 0)[1]] == [f.place for f in folds[1]]


def test_one_trajectory_is_cut_into_stretches() -> None:
    folds = folds_of([frame([11, 17], k) for k in range(60)], seed=0)
    indices = [[int(f.place.split()[1]) for f in fold] for fold in folds]
    assert sorted(index for fold in indices for index in fold) == list(range(60))
    for fold in indices:  # five stretches of four frames each
        assert sum(b - a == 1 for a, b in pairwise(fold)) >= 15


def test_elements_of_one_fold_alone_are_not_scored() -> None:
    frames = [frame([11, 17], k) for k in range(30)] + [frame([11, 17, 19], 30)]
    folds = folds_of(frames, seed=0)
    assert sum(map(len, folds)) == 30
    assert all(f.place != "frame 30" for fold in folds for f in fold)
    with pytest.raises(ConfigError, match="must hold at least 15 frames to tune with, got 14"):
        folds_of(frames[:14], seed=0)


def test_a_part_of_the_frames_has_every_element() -> None:
    frames = [frame([11, 17], k) for k in range(50)] + [frame([17, 19], 50)]
    for seed in range(5):
        part = choose_frames(frames, 10, seed)
        assert 19 in np.concatenate([f.structure.numbers for f in part])
        assert 10 <= len(part) <= 11
    assert [f.place for f in choose_frames(frames, 10, 3)] == [f.place for f in choose_frames(frames, 10, 3)]


def test_score_follows_its_formula() -> None:
    """Two frames, the second with weight 3, errors given by hand."""
    first = frame([11, 17], 0, energy=0.0, charges=np.zeros(2))
    second = replace(frame([11, 17], 1, energy=0.0), weight=3.0)
    held_out = [
        (first, Prediction({"energy_per_atom": np.array([0.01]), "charges": np.array([0.02, -0.02])},
                           {"energy_per_atom": np.zeros(1), "charges": np.zeros(2)})),
        (second, Prediction({"energy_per_atom": np.array([-0.03])}, {"energy_per_atom": np.zeros(1)})),
    ]  # fmt: skip
    settings = Fit(sigma_energy=0.005, sigma_charges=0.01)
    square = (0.01**2 + 3.0 * 0.03**2) / 4.0
    error, errors = score(held_out, settings)
    # two products of a few numbers: rounding
    assert error == pytest.approx(np.sqrt(np.sqrt((1.0 + square / 0.005**2) * (1.0 + 4.0))), rel=1e-12)
    assert errors == {"energy_per_atom": pytest.approx(np.sqrt(square)), "charges": pytest.approx(0.02)}
    without, _ = score(held_out, replace(settings, targets=["dipole"]))
    assert without == pytest.approx(np.sqrt(1.0 + square / 0.005**2), rel=1e-12)


def test_levels_of_compositions_do_not_count() -> None:
    """Errors per atom of a level of each composition, and a rest with no mean in either of them."""
    frames = [frame([11] * (1 + k % 2) + [17], k, energy=0.0) for k in range(8)]
    levels = np.array([0.3, -0.2] * 4)
    rest = 0.01 * np.array([1, 1, -1, -1, 2, 2, -2, -2])
    predictions = [Prediction({"energy_per_atom": np.array([level + part]), "charges": np.ones(1)},
                              {"energy_per_atom": np.zeros(1), "charges": np.zeros(1)})
                   for level, part in zip(levels, rest, strict=True)]  # fmt: skip
    found = without_levels(frames, predictions)
    # rounding of a small linear system
    np.testing.assert_allclose([p.error("energy_per_atom")[0] for p in found], rest, atol=1e-12)
    assert all(p.error("charges") == 1.0 for p in found)
    unlabelled = [Prediction({}, {})]
    assert without_levels(frames[:1], unlabelled) == unlabelled


def test_spread_points_take_every_value_alike() -> None:
    points = spread_points({"a": (1.0, 2.0, 3.0, 4.0), "b": (5.0, 6.0)}, 8, seed=0)
    assert sorted(p["a"] for p in points) == [1, 1, 2, 2, 3, 3, 4, 4]
    assert sorted(p["b"] for p in points) == [5, 5, 5, 5, 6, 6, 6, 6]
    assert points == spread_points({"a": (1.0, 2.0, 3.0, 4.0), "b": (5.0, 6.0)}, 8, seed=0)
    assert points != spread_points({"a": (1.0, 2.0, 3.0, 4.0), "b": (5.0, 6.0)}, 8, seed=1)


def test_physical_parameters_of_a_model_become_a_configuration() -> None:
    frames = [frame([11, 17, 17], k, energy=float(k)) for k in range(3)]
    config = Config(Data(["a.xyz"]), charges=Charges("split", hardness=7.0))
    model = blank_model(frames, config)
    bent = replace(
        model, hardness=model.hardness + 1.0, gaussian_width=1.1 * model.gaussian_width, compliance=model.compliance / 2
    )
    again = blank_model(frames, with_physical_of(config, bent))
    for name in ("hardness", "gaussian_width", "compliance"):
        np.testing.assert_array_equal(getattr(again, name), getattr(bent, name))


def test_larger_descriptors_cost_more(folder: Path) -> None:
    config = read_any(folder)
    problem = Problem(read_set(config.data), config, None, Level(18, 6))
    usual = problem.operations(config)
    for name, value in (("cutoff", 6.0), ("n_max", 4.0), ("l_max", 3.0)):
        assert problem.operations(with_values(config, {name: value})) > usual
    assert problem.operations(replace(config, kernel=Kernel(sparse_points=24))) > usual
    assert problem.operations(with_values(config, {"zeta": 3.0})) > 2.0 * usual  # has no kernel of low rank


def test_trials_come_back_from_their_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, point = tmp_path / "t.jsonl", {"sigma": 0.5}
    first = Trial(0, point, 10.0, 2.0, 1.5, {"forces": 0.1}, 3.0, 4.0)
    failed = Trial(1, point, 10.0, failure="no fit")
    known = Trials(path, "mark")
    known.keep(first)
    known.keep(failed)
    path.write_text(path.read_text() + '{"level": 0, "val')  # cut off while it was written
    again = Trials(path, "mark")
    assert (again.recall(0, point), again.recall(1, point)) == (first, failed)
    assert "2 whole trials" in caplog.text
    assert again.recall(0, {"sigma": 0.4}) is None
    assert all(json.loads(line) for line in path.read_text().splitlines())
    assert len(Trials(path, "another")) == 0
    assert "beginning anew" in caplog.text


def test_comments_stay_and_missing_keys_are_added(tmp_path: Path) -> None:
    settings = {("descriptor", "cutoff"): 5.5, ("descriptor", "sigma"): 0.4, ("charges", "hardness"): 3.0}
    text = rewritten(CONFIG, settings, tmp_path, tmp_path)
    assert "cutoff = 5.5    # Angstrom" in text
    assert "# of the example" in text
    (tmp_path / "c.toml").write_text(text)
    shutil.copy(EXAMPLE, tmp_path / "few.xyz")
    config = read_config(tmp_path / "c.toml")
    assert (config.descriptor.cutoff, config.descriptor.sigma, config.charges.hardness) == (5.5, 0.4, 3.0)
    assert (config.descriptor.n_max, config.tune["sigma"]) == (3, [0.4])


def test_data_files_are_named_from_the_new_folder(tmp_path: Path) -> None:
    (tmp_path / "a" / "data").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "data" / "x.xyz").write_text("")
    text = "[data]\ntrain = ['data/*.xyz']\n[[data.groups]]\nfiles = ['data/*.xyz']\nweight = 2\n"
    (tmp_path / "b" / "c.toml").write_text(rewritten(text, {}, tmp_path / "a", tmp_path / "b"))
    (found,) = read_config(tmp_path / "b" / "c.toml").data.train
    assert Path(found).resolve() == (tmp_path / "a" / "data" / "x.xyz").resolve()


@pytest.mark.parametrize("text", ["descriptor.cutoff = 4.0\n[data]\ntrain = 'a.xyz'\n",
                                  "descriptor = {cutoff = 4.0}\n[data]\ntrain = 'a.xyz'\n"])  # fmt: skip
def test_texts_without_lines_to_replace_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="on lines of their own"):
        rewritten(text, {("descriptor", "cutoff"): 5.0}, tmp_path, tmp_path)


def read_any(folder: Path) -> Config:
    return read_config(folder / "c.toml")


def values(tuned: Tuned) -> list[tuple[int, dict[str, float], float]]:
    return [(trial.level, trial.values, trial.cost) for trial in tuned.trials]


def test_a_search_is_the_same_every_time_and_goes_on_after_an_interruption(folder: Path) -> None:
    whole = tune(read_any(folder), minutes=60.0)
    assert whole.ended == "no neighbour is better"
    assert whole.trials[0].values == whole.start == CONFIGURED
    assert {trial.level for trial in whole.trials} == {0, 1}
    assert tune(read_any(folder), 60.0, most_trials=1).trials[0].cost == whole.trials[0].cost
    least = min((t for t in whole.trials if t.level == 1), key=lambda t: t.cost)
    assert whole.trial_of(whole.best).cost <= least.cost / 0.99  # type: ignore[union-attr]  # LEAST_GAIN of the walk

    def interrupt(_: Trial, number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    record = folder / "t.jsonl"
    part = tune(read_any(folder), 60.0, record=record, say=interrupt)
    assert (part.ended, len(part.trials)) == ("interrupted", 2)
    rest = tune(read_any(folder), 60.0, record=record)
    assert values(rest) == values(whole)
    assert rest.best == whole.best
    assert len(record.read_text().splitlines()) == 1 + len(whole.trials)  # none was made twice


def test_the_number_of_trials_and_the_clock_end_a_search(folder: Path) -> None:
    two = tune(read_any(folder), 60.0, most_trials=2, record=folder / "t.jsonl")
    assert (two.ended, len(two.trials)) == ("number of trials", 2)
    short = tune(read_any(folder), 1e-6, record=folder / "s.jsonl")
    assert (short.ended, len(short.trials), short.best) == ("time", 1, CONFIGURED)
    # known trials cost no time, and one new one is made
    assert len(tune(read_any(folder), 1e-6, record=folder / "t.jsonl").trials) == 3


def failing(monkeypatch: pytest.MonkeyPatch, bad: Callable[[Config], bool]) -> None:
    usual = tune_trial.fit

    def fit(frames, config, *rest):  # type: ignore[no-untyped-def]
        if bad(config):
            raise KqeqError("no positive definite Hamiltonian")
        return usual(frames, config, *rest)

    monkeypatch.setattr(tune_trial, "fit", fit)


def test_values_that_give_no_fit_are_passed_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, lambda config: config.descriptor.radial_scale == 2.0)
    tuned = tune(read_any(folder), 60.0, most_trials=3, record=folder / "t.jsonl")
    assert [trial.failure for trial in tuned.trials[:2]] == [None, "no positive definite Hamiltonian"]
    assert tuned.best["radial_scale"] == 0.0
    failing(monkeypatch, lambda config: True)
    with pytest.raises(KqeqError, match="no positive definite"):  # the configuration itself is wrong
        tune(read_any(folder), 60.0)


def test_the_command_writes_a_configuration_that_trains(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "out").mkdir()
    best = folder / "out" / "best.toml"
    command = ["tune", str(folder / "c.toml"), "-o", str(best), "--trials", "3"]
    assert main(command) == 0
    out, error = capsys.readouterr()
    assert "3 trials, ended by: number of trials" in out
    assert "us/atom" in out
    assert error.count("trial ") == 3
    text = best.read_text()
    assert "# A small one" in text
    (folder / "out" / "best.toml").write_text(text.replace("not_there.xyz", "few.xyz"))
    assert main(["train", str(best), "-o", str(folder / "m.kqeq"), "--no-report"]) == 0
    best.unlink()
    capsys.readouterr()
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert best.read_text() == text
    assert report["n_trials"] == len(report["trials"]) == 3
    assert set(report["best"]) == {"radial_scale", "sigma"}


def test_an_interrupted_command_writes_the_best_so_far(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    count = [0]

    def interrupted(config: Config) -> bool:
        count[0] += config.descriptor.radial_scale == 2.0
        if count[0] == 2:  # inside the second trial
            raise KeyboardInterrupt
        return False

    failing(monkeypatch, interrupted)
    assert main(["tune", str(folder / "c.toml"), "-o", str(folder / "best.toml")]) == 130
    assert "the same command goes on from" in capsys.readouterr().err
    assert "1 trials" in (folder / "best.toml").read_text()
    assert (folder / "best.trials.jsonl").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "best.toml", "--minutes", "0"], "`minutes` must be positive, got 0"),
        (["-o", "best.toml", "--minutes", "nan"], "`minutes` must be positive, got nan"),
        (["-o", "best.toml", "--trials", "0"], "`trials` must be at least 1, got 0"),
        (["-o", "c.toml"], "`--output` must not be a file that is read, got c.toml"),
        (["-o", "no/best.toml"], "`--output` must lie in a folder that exists"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    assert main(["tune", "c.toml", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("best.toml").exists()
