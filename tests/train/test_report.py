"""The report of a training: its numbers against their definitions, its files as a reader finds them."""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from kqeq_md.cli import main
from kqeq_md.errors import ConfigError
from kqeq_md.local_part import LocalKernels, LocalPart
from kqeq_md.model import Model
from kqeq_md.neighbours.half_list import find_pairs
from kqeq_md.potential import Potential
from kqeq_md.structure import Structure
from kqeq_md.train.config import Config, Data
from kqeq_md.train.data import Frame
from kqeq_md.train.report import diagnosis as diagnosis_module
from kqeq_md.train.report import error_table, format_table, predict, without_charges
from kqeq_md.train.report import folder as folder_module
from kqeq_md.train.report.configuration import UNITS, configuration_lists
from kqeq_md.train.report.content import ReportInput
from kqeq_md.train.report.diagnosis import diagnose_model, smallest_neutral
from kqeq_md.train.report.extrapolation import ENOUGH_ATOMS, limits_of_model
from kqeq_md.train.report.figures import save
from kqeq_md.train.report.folder import replaced, report_folder, write_report
from kqeq_md.train.report.learning_curve import learning_curve, nested_order
from kqeq_md.train.report.markup import typeset, written
from kqeq_md.train.report.panels import MOST_PANELS, Points, panels_by_charge, panels_by_group
from kqeq_md.train.report.parity import CELLS, FAINTEST, cells, parity_figure
from kqeq_md.train.report.rounds import rounds_of_fit

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_water"

CALIBRATION = {
    "threshold": 3.614, "quantiles": {"0.5": 1.25, "0.95": 1.79, "1": 3.56}, "n_atoms": 1370,
    "charges": {"Na": [0.41, 0.9]}, "charge_per_atom": [-0.25, 0.125],
    "expected_force_error": {"upper": [0.86, 3.56], "median": [0.0281, 0.111], "p95": [0.076, 0.29]},
}  # fmt: skip

HISTORY = [
    {"round": 1, "rms_before": {"forces": 18.217}, "square": 65562.7, "damping": 10.0},
    {"round": 2, "rms_before": {"forces": 0.97, "reference sum": 1.74}, "square": 55850.9, "damping": 0.0},
]


def silent(items, title):  # type: ignore[no-untyped-def]
    return items


def labelled(model: Model, structure: Structure, group: str = "") -> Frame:
    """A frame whose labels are what `model` says."""
    result = Potential(model).compute(structure)
    return Frame(structure, result.energy, result.forces, result.charges, result.dipole, group=group)


@pytest.fixture(scope="module")
def frames(model: Model, helpers) -> list[Frame]:  # type: ignore[no-untyped-def]
    """Six exact frames: Q = -1, 0, +1, each without and in a field, in two groups."""
    fields = ([0.0, 0.0, 0.0], [0.0, 0.0, 0.1])
    return [
        labelled(model, helpers.cluster(4, seed, charge=seed % 3 - 1, field=fields[seed % 2]), "ab"[seed // 4])
        for seed in range(6)
    ]


def without_labels(structure: Structure, group: str = "") -> Frame:
    return Frame(structure, None, None, None, None, group=group)


# ---------------------------------------------------------------- numbers


def test_tables_hold_the_errors_that_were_put_in(model: Model, frames: list[Frame]) -> None:
    """Energies of frames in a field are off by 2 meV per atom, forces on sodium by 0.1 eV/A, charges of Q = +1."""
    spoilt = []
    for frame in frames:
        assert frame.energy is not None
        assert frame.forces is not None
        assert frame.charges is not None
        off = 0.002 * len(frame.structure) * frame.structure.field.any()
        forces = frame.forces + 0.1 * (frame.structure.numbers == 11)[:, None]
        charges = frame.charges + 0.01 * (frame.structure.charge == 1)
        spoilt.append(replace(frame, energy=frame.energy + off, forces=forces, charges=charges))
    table = error_table(spoilt, predict(model, spoilt, silent))
    exact = 1e-9  # two runs of one solver from one start
    assert table["by_field"]["with"]["energy_per_atom"]["rmse"] == pytest.approx(0.002, abs=exact)
    assert table["by_field"]["without"]["energy_per_atom"]["rmse"] == pytest.approx(0.0, abs=exact)
    assert table["energy_per_atom"]["rmse"] == pytest.approx(0.002 * np.sqrt(0.5), abs=exact)
    assert table["energy_per_atom"]["mae"] == pytest.approx(0.001, abs=exact)
    assert table["by_element"]["Na"]["forces"] == pytest.approx({"rmse": 0.1, "mae": 0.1}, abs=exact)
    assert table["by_element"]["Cl"]["forces"]["mae"] == pytest.approx(0.0, abs=exact)
    assert table["by_element"]["Na"]["n_atoms"] == 24
    assert table["by_total_charge"]["1"]["charges"]["mae"] == pytest.approx(0.01, abs=exact)
    assert table["by_total_charge"]["-1"]["charges"]["mae"] == pytest.approx(0.0, abs=exact)
    assert {name: group["n_frames"] for name, group in table["by_group"].items()} == {"a": 4, "b": 2}
    assert "group a" in format_table(table)


def test_groups_are_told_apart_only_where_there_are_several(model: Model, frames: list[Frame]) -> None:
    same = [replace(frame, group="") for frame in frames[:2]]
    assert "by_group" not in error_table(same, predict(model, same, silent))


def test_stress_is_the_derivative_of_the_energy(model: Model, helpers) -> None:  # type: ignore[no-untyped-def]
    """sigma_ab = dE/d(strain_ab) / V, by differences of a sheared and stretched cell."""
    cell = helpers.rock_salt(strain=np.array([[0.02, 0.0, 0.0], [0.03, 0.0, 0.0], [0.0, 0.01, 0.0]]))
    potential, step = Potential(model, tolerance=1e-10), 1e-4
    stress = np.zeros((3, 3))
    for a in range(3):
        for b in range(3):
            change = np.zeros((3, 3))
            change[a, b] += 0.5 * step
            change[b, a] += 0.5 * step
            up, down = (potential.compute(helpers.strained(cell, np.eye(3) + s * change)).energy for s in (1, -1))
            stress[a, b] = (up - down) / (2.0 * step * cell.volume)
    frame = replace(without_labels(cell), stress=stress)
    (prediction,) = predict(model, [frame], silent)
    # second differences leave step^2 of the energy's third derivative, the solver its usual tolerance of 1e-5
    np.testing.assert_allclose(prediction.error("stress"), 0.0, atol=1e-4 * np.abs(stress).max())
    table = error_table([frame], [prediction])
    assert "stress / m(eV/A^3)" in format_table(table)


def test_without_charges_only_the_short_range_is_left(model: Model, frames: list[Frame]) -> None:
    """Neither total charge nor field is seen; the energy is that of the local part alone."""
    frame = next(f for f in frames if f.structure.charge and f.structure.field.any())
    alone = without_charges(model)
    (prediction,) = predict(alone, [frame], silent)
    assert set(prediction.labels) == {"energy_per_atom", "forces"}
    kernels = LocalKernels(model)
    species = Potential(model).species_index(frame.structure.numbers)
    expected = LocalPart(kernels, species, find_pairs(frame.structure, model.cutoff)).energies.sum()
    # two ways to add up the same numbers
    assert prediction.predicted["energy_per_atom"][0] == pytest.approx(expected / len(frame.structure), rel=1e-12)


def test_a_model_can_be_blind_to_the_field(model: Model, frames: list[Frame]) -> None:
    frame = next(f for f in frames if f.structure.field.any())
    s = frame.structure
    dark = Potential(model).compute(Structure(s.numbers, s.positions, charge=s.charge))
    (prediction,) = predict(model, [frame], silent, in_field=False)
    np.testing.assert_allclose(prediction.predicted["charges"], dark.charges, atol=1e-12)  # the same computation
    assert np.abs(prediction.error("charges")).max() > 1e-3


# ---------------------------------------------------------------- panels and plots


def test_every_label_is_in_one_panel(model: Model, frames: list[Frame]) -> None:
    predictions = predict(model, frames, silent)
    by_charge = panels_by_charge(model, "forces", frames, predictions)
    assert [panel.title for panel in by_charge] == ["Q = \N{MINUS SIGN}1 e", "Q = 0", "Q = +1 e"]
    assert sum(len(panel.label) for panel in by_charge) == sum(3 * len(frame.structure) for frame in frames)
    assert [bool(panel.in_field.any() and not panel.in_field.all()) for panel in by_charge] == [True] * 3
    many = [replace(frame, group=str(k)) for k in range(20) for frame in frames[: 1 + (k == 7)]]
    panels = panels_by_group(model, "energy_per_atom", many, predict(model, many, silent))
    assert len(panels) == MOST_PANELS
    assert sum(len(panel.label) for panel in panels) == len(many)
    assert {"7", "all others"} <= {panel.title for panel in panels}
    assert panels_by_group(model, "forces", frames[:3], predictions[:3]) == []


@pytest.mark.parametrize("quantity", ["energy_per_atom", "dipole"])
def test_what_a_plot_leaves_out_moves_no_error(quantity: str, model: Model, frames: list[Frame]) -> None:
    """The same cluster elsewhere has the same points, whatever its charge."""
    moved = [labelled(model, f.structure.moved(f.structure.positions + 50.0)) for f in frames]
    here, there = (panels_by_charge(model, quantity, x, predict(model, x, silent)) for x in (frames, moved))
    for first, second in zip(here, there, strict=True):
        # rounding of 50 A times the field, and of the solver
        np.testing.assert_allclose(first.error, second.error, atol=1e-8)
        if quantity == "dipole":
            np.testing.assert_allclose(first.label, second.label, atol=1e-6)


def test_points_on_one_spot_are_drawn_once() -> None:
    x = np.array([0.1] * 50 + [0.9])
    across, up, opacity = cells(x, 2.0 * x, (0.0, 1.0), (0.0, 2.0))
    np.testing.assert_allclose(across, [0.1, 0.9], atol=0.5 / CELLS)  # the middle of a cell
    np.testing.assert_allclose(up, [0.2, 1.8], atol=1.0 / CELLS)
    assert opacity[0] == pytest.approx(1.0)
    assert opacity[1] == pytest.approx(FAINTEST)


def test_many_points_make_a_small_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    label = rng.normal(size=400_000)
    points = Points("Q = 0", label, label + 0.05 * rng.normal(size=len(label)), rng.random(len(label)) < 0.3)
    for name in ("a.png", "b.png"):
        save(parity_figure("forces", [points], "test set"), tmp_path / name)
    assert (tmp_path / "a.png").stat().st_size < 300_000  # bytes; some 50,000 pixels are covered
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_one_label_can_be_plotted(tmp_path: Path) -> None:
    """No range to scale the axes by, and no error."""
    points = Points("Q = 0", np.array([1.0]), np.array([1.0]), np.array([True]))
    save(parity_figure("energy_per_atom", [points], "test set"), tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 0


# ---------------------------------------------------------------- learning curve


def test_learning_curve_trains_on_nested_parts(model: Model, frames: list[Frame]) -> None:
    seen: list[Sequence[Frame]] = []

    def fit(part: Sequence[Frame]) -> Model:
        seen.append(part)
        if len(part) == 4:
            raise ConfigError("`frames` are too few")
        return model

    train = [replace(frame, group=str(k)) for k in range(6) for frame in frames[:5]][: 32 - 2]
    curve = learning_curve(train, frames, fit, silent, seed=1, whole=model)
    assert [point["n_frames"] for point in curve["points"]] == [3, 7, 15, 30]
    assert [len(part) for part in seen] == [3, 7, 15]  # all of them are trained on already
    for small, large in pairwise(seen):
        assert all(a is b for a, b in zip(small, large, strict=False))
    assert curve["measured_on"] == "the test set"
    assert curve["points"][-1]["errors"]["forces"]["rmse"] < 1e-9  # the model that made the labels
    again = learning_curve(train, frames, lambda part: model, silent, seed=1)
    assert again["points"][-1] == curve["points"][-1]
    refused = learning_curve(train[:8], frames, fit, silent)["points"]
    assert [point.get("skipped") for point in refused] == [None, None, "`frames` are too few", None]


def test_without_test_set_a_tenth_is_held_out(model: Model, frames: list[Frame]) -> None:
    seen: list[Frame] = []

    def fit(part: Sequence[Frame]) -> Model:
        seen.extend(part)
        return model

    train = [replace(frame) for _ in range(4) for frame in frames[:5]]
    curve = learning_curve(train, [], fit, silent, whole=model)
    assert curve["n_measured"] == 2
    assert len({id(frame) for frame in seen}) == 18
    with pytest.raises(ConfigError, match="`frames` of a learning curve must be at least 2, got 1"):
        learning_curve(train[:1], [], fit, silent)


def test_rare_elements_come_first(helpers) -> None:  # type: ignore[no-untyped-def]
    common = [without_labels(Structure([11, 11], [[0, 0, 0], [0, 0, 3.0]])) for _ in range(30)]
    rare = without_labels(Structure([11, 17], [[0, 0, 0], [0, 0, 3.0]]))
    order = nested_order([*common, rare], np.random.default_rng(0))
    assert rare in order[:2]
    assert len(order) == 31


# ---------------------------------------------------------------- the folder


class Page(HTMLParser):
    """Tags, attributes and text of a page; every element is closed in its order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.feed(text)
        self.text = "\n".join(self.pieces)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.pieces.append(data.strip())


@pytest.fixture(scope="module")
def given(model: Model, frames: list[Frame]) -> ReportInput:
    """A whole report's input, with a name that HTML has to escape."""

    def harder(part: Sequence[Frame]) -> Model:
        return replace(model, hardness=model.hardness + 1.0 / len(part))

    record = {
        "config": {"descriptor": {"cutoff": 4.5}, "data": {"train": ["<train>.xyz"]}},
        "data_sha256": {"<train>.xyz": 64 * "0"}, "seed": 3, "level_determined": False, "low_rank_force_error": 7e-5,
    }  # fmt: skip
    return ReportInput(
        model=replace(model, training=record, fragment={"numbers": [11, 17], "positions": [[0, 0, 0], [0, 0, 2.4]]}),
        name="salt & <b>",
        sets={"train": frames, "test": frames[:3]},
        others={"short range": without_charges(model), "no field term": model},
        blind_to_field=["no field term"],
        findings=["frame 3 is a copy of frame 1"],
        calibration=CALIBRATION,
        history=HISTORY,
        learning_curve=learning_curve(frames, frames[:2], harder, silent),
    )


@pytest.fixture(scope="module")
def report(given: ReportInput, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports") / "salt.report"
    write_report(folder, given, silent)
    return folder


def test_the_page_needs_nothing_but_itself(report: Path) -> None:
    source = (report / "report.html").read_text(encoding="utf-8")
    page = Page(source)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?:|url\(|@import", source)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    embedded = {base64.b64decode(str(image["src"]).removeprefix("data:image/png;base64,")) for image in images}
    assert embedded == {path.read_bytes() for path in report.glob("*.png")}
    assert all(image["alt"] for image in images)


def test_the_page_says_everything(report: Path) -> None:
    page = Page((report / "report.html").read_text(encoding="utf-8"))
    for words in (
        "salt & <b>", "Q = -1", "with field", "group a", "short range", "no field term", "Point charges leave",
        "frame 3 is a copy of frame 1", "threshold of 3.61", "65562.7", "hardness", "7.0e-05",
        "[descriptor]", "<train>.xyz", "Polarizability of chains of NaCl", "training frames", "undetermined",
        "meV/Å",
    ):  # fmt: skip
        assert words in page.text, words


def test_json_has_the_stable_keys(report: Path, given: ReportInput) -> None:
    content = json.loads((report / "report.json").read_text(encoding="utf-8"))
    assert set(content) == {
        "name", "kqeq_md", "units", "model", "training", "data", "errors", "comparison", "point_charge_floor",
        "diagnosis", "findings", "calibration", "history", "learning_curve", "plots",
    }  # fmt: skip
    assert list(content["comparison"]["test"]) == ["this model", "short range", "no field term"]
    assert content["comparison"]["test"]["no field term"]["charges"]["rmse"] > 1e-4
    assert content["errors"]["test"]["charges"]["rmse"] < 1e-9
    assert content["data"]["train"]["labels"] == {
        "energy": 6, "forces": 6, "charges": 6, "dipole": 6, "polarizability": 0, "born_charges": 0, "stress": 0,
    }  # fmt: skip
    assert content["diagnosis"]["measured_on"] == "the model's reference fragment NaCl"
    assert set(content["plots"]) == {path.name for path in report.glob("*.png")}
    assert content["plots"].count("parity_forces_test.png") == 1


def test_the_same_input_gives_the_same_bytes(report: Path, given: ReportInput, tmp_path: Path) -> None:
    write_report(tmp_path / "again.report", given, silent)
    names = sorted(path.name for path in report.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again.report").iterdir())
    for name in names:
        assert (report / name).read_bytes() == (tmp_path / "again.report" / name).read_bytes(), name


def test_without_matplotlib_the_report_says_so(
    given: ReportInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    content = write_report(tmp_path / "m.report", given, silent)
    assert content["plots"] == []
    assert "matplotlib is not installed" in (tmp_path / "m.report" / "report.html").read_text(encoding="utf-8")
    assert list((tmp_path / "m.report").glob("*.png")) == []


def test_an_interrupted_report_leaves_the_old_one(
    given: ReportInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "m.report"
    folder.mkdir()
    (folder / "report.json").write_text("old")

    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(folder_module, "page", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_report(folder, given, silent)
    assert [path.name for path in tmp_path.iterdir()] == ["m.report"]
    assert (folder / "report.json").read_text() == "old"


def test_a_new_report_takes_the_place_of_the_old(tmp_path: Path) -> None:
    folder = tmp_path / "m.report"
    for text in ("first", "second"):
        with replaced(folder) as new:
            (new / f"{text}.txt").write_text(text)
    assert [path.name for path in folder.iterdir()] == ["second.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["m.report"]


def test_no_folder_of_another_kind_is_replaced(tmp_path: Path) -> None:
    assert report_folder(tmp_path / "new.kqeq") == tmp_path / "new.report"
    (tmp_path / "m.report").mkdir()
    assert report_folder(tmp_path / "m.kqeq") == tmp_path / "m.report"
    (tmp_path / "m.report" / "thesis.tex").write_text("years")
    with pytest.raises(ConfigError, match="must be new, empty or an earlier report"):
        report_folder(tmp_path / "m.kqeq")
    with pytest.raises(ConfigError, match="must not have the name of its report's folder"):
        report_folder(tmp_path / "x.report")


def test_values_and_units_as_they_are_printed() -> None:
    assert [written(value) for value in (1.23456789, None, True, [1, 2])] == ["1.23457", "–", "yes", "1, 2"]
    assert typeset("3 A, m(eV/A^3), e A, A < B") == "3 Å, m(eV/Å³), e Å, A &lt; B"


def cells_of(html: str) -> list[str]:
    """Text of a table's body."""
    body = html[html.index("<tbody>") : html.index("</table>")]
    return Page(body).pieces


def test_limits_say_what_they_rest_on() -> None:
    parts = limits_of_model(CALIBRATION)
    text = Page("".join(parts)).text
    for words in (
        "threshold of 3.61",
        "1370 atoms",
        "95 % up to 1.79",
        "about 685 atoms",
        "-0.25 and 0.125 e per atom",
    ):
        assert words in text, words
    assert "median force error / eV/Å" in text
    assert cells_of("".join(parts)) == ["0.86", "0.028", "0.076", "3.56", "0.111", "0.290"]
    assert "Warning" not in text


def test_limits_that_rest_on_few_atoms_warn() -> None:
    for n_atoms, warned in ((ENOUGH_ATOMS - 1, True), (ENOUGH_ATOMS, False)):
        text = Page("".join(limits_of_model({**CALIBRATION, "n_atoms": n_atoms}))).text
        assert (f"{n_atoms} atoms, fewer than {ENOUGH_ATOMS}" in text) is warned


def test_rounds_are_one_row_each() -> None:
    html = "".join(rounds_of_fit(HISTORY, held_out=True))
    assert cells_of(html) == ["1", "18.22", "–", "10", "65562.7", "2", "0.97", "1.74", "0", "55850.9"]
    text = Page(html).text
    assert "0 is a full step" in text
    assert "rms of reference sum before / σ" in text
    assert "The last round fits the held-out frames too" in text
    assert "held-out" not in "".join(rounds_of_fit(HISTORY, held_out=False))


def test_configuration_has_the_tables_of_its_file() -> None:
    config = {
        "data": {"train": ["A.xyz", "b/A"], "test": [], "keys": {"forces": "F"}, "groups": [{"weight": 2.0}]},
        "seed": 3, "kernel": {"zeta": 2}, "fit": {"sigma_forces": 0.05}, "tune": {},
        "charges": {"hardness": {"H": 5.0, "O": 6}, "compliance": None},
    }  # fmt: skip
    html = configuration_lists(config)
    assert Page(html).pieces == [
        "seed", "3",
        "[data]", "train", "A.xyz, b/A", "test", "none", "[data.keys]", "forces", "F", "[[data.groups]]", "weight", "2",
        "[kernel]", "zeta", "2", "[fit]", "sigma_forces", "0.05 eV/Å",
        "[charges]", "hardness", "H 5, O 6 eV/e²", "compliance", "by default",
    ]  # fmt: skip


def test_every_unit_of_the_configuration_is_of_a_key() -> None:
    known = asdict(Config(Data(["train.xyz"])))
    for name, units in UNITS.items():
        assert set(units) <= set(known[name]), name


def test_without_test_set_the_page_says_so(given: ReportInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # plots take most of the time
    alone = replace(given, sets={"train": given.sets["train"]}, findings=[], learning_curve=None)
    for name, report_input, said in (("with", given, False), ("without", alone, True)):
        write_report(tmp_path / name, report_input, silent)
        text = Page((tmp_path / name / "report.html").read_text(encoding="utf-8")).text
        assert ("There is no test set: these are errors on the frames" in text) is said
        assert ("has found nothing odd" in text) is said
        assert ("has found 1 kind of oddity" in text) is not said


# ---------------------------------------------------------------- the diagnosis


def test_a_diagnosis_is_skipped_with_a_reason(  # type: ignore[no-untyped-def]
    model: Model, helpers, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert diagnose_model(without_charges(model), []).skipped == "the model has no charges"
    ion = without_labels(helpers.cluster(2, charge=1.0))
    assert "no neutral frame without field" in diagnose_model(model, [ion]).skipped
    monkeypatch.setattr(diagnosis_module, "MOST_ATOMS", 7)
    large = without_labels(helpers.cluster(4))
    assert "Na4Cl4 has 8 atoms, more than 7" in diagnose_model(model, [ion, large]).skipped
    assert diagnose_model(model, [large]).content == {"skipped": diagnose_model(model, [large]).skipped}


def test_without_fragment_the_smallest_neutral_frames_are_diagnosed(model: Model, helpers) -> None:  # type: ignore[no-untyped-def]
    sizes = [4, 2, 3, 2, 1]
    frames = [without_labels(helpers.cluster(n)) for n in sizes]
    assert [len(structure) for structure in smallest_neutral(frames)] == [2, 4, 6]
    found = diagnose_model(model, frames)
    assert found.diagnosis is not None
    assert found.measured_on == "the smallest neutral frames without field: NaCl, Na2Cl2, Na3Cl3"


# ---------------------------------------------------------------- the command


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    """A small training on some frames of the water example."""
    lines = (EXAMPLE / "test.xyz").read_text(encoding="utf-8").splitlines()
    starts = [0]
    while starts[-1] < len(lines):
        starts.append(starts[-1] + int(lines[starts[-1]]) + 2)
    chosen = list(pairwise(starts))[::15]
    for name, part in (("train", chosen[::2]), ("test", chosen[1::2])):
        text = "\n".join(line for start, end in part for line in lines[start:end])
        (tmp_path / f"{name}.xyz").write_text(text + "\n", encoding="utf-8")
    (tmp_path / "c.toml").write_text(
        "[data]\ntrain = 'train.xyz'\ntest = 'test.xyz'\n[descriptor]\ncutoff = 3.5\nn_max = 3\nl_max = 2\n"
        "[kernel]\nsparse_points = 6\n[charges]\nmodel = 'split'\n[fit]\nrounds = 0\n"
    )
    return tmp_path / "c.toml"


def test_training_writes_its_report(configuration: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = configuration.with_name("m.kqeq")
    assert main(["train", str(configuration), "-o", str(model), "--learning-curve"]) == 0
    printed = capsys.readouterr().out
    assert "same short range without charges" in printed
    assert printed.endswith(f"wrote {model}\nwrote {model.with_suffix('.report') / 'report.html'}\n")
    content = json.loads((model.with_suffix(".report") / "report.json").read_text(encoding="utf-8"))
    assert content["name"] == "m"
    assert content["learning_curve"]["measured_on"] == "the test set"
    assert "learning_curve.png" in content["plots"]


def test_training_prints_json(configuration: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", str(configuration), "-o", str(configuration.with_name("m.kqeq")), "--json"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    report = configuration.with_name("m.report")
    assert printed == (report / "report.json").read_text(encoding="utf-8")
    command[3] = str(configuration.with_name("n.kqeq"))
    assert main([*command, "--no-report"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert alone["errors"] == json.loads(printed)["errors"]
    assert not configuration.with_name("n.report").exists()


def test_no_report_no_learning_curve(configuration: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", str(configuration), "-o", str(configuration.with_name("m.kqeq"))]
    assert main([*command, "--no-report", "--learning-curve"]) == 2
    assert "`--learning-curve` goes into the report" in capsys.readouterr().err
    configuration.with_name("m.report").mkdir()
    configuration.with_name("m.report").joinpath("thesis.tex").write_text("years")
    assert main(command) == 2
    assert "must be new, empty or an earlier report" in capsys.readouterr().err
    assert not configuration.with_name("m.kqeq").exists()
