"""Training from files: configurations, data and models, and what the defaults reach on supplied sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kqeq_md.charges.fragments import connected_fragments
from kqeq_md.descriptor.radial import SoapParameters
from kqeq_md.errors import ConfigError
from kqeq_md.model import Model, load_model, save_model, usual_compliance
from kqeq_md.potential import Potential
from kqeq_md.response import response
from kqeq_md.train.config import Charges, Config, Data, Kernel, Keys, read_config
from kqeq_md.train.data import Frame, read_frames
from kqeq_md.train.fit.start import blank_model
from kqeq_md.train.report import point_charge_floor
from kqeq_md.train.run import train

WATER_EXAMPLE = Path(__file__).parents[2] / "examples" / "train_water"


def test_point_charge_floor_is_what_dipoles_leave(sets: Any, model: Model) -> None:
    frames = sets.random_clusters(2, 4, model, True)
    assert point_charge_floor(frames) == pytest.approx(0.0, abs=1e-12)  # the labels are point charges
    field = frames[1].structure.field
    bent = [replace(f, dipole=f.dipole + np.array([0.3, 0.0, 0.0])) for f in frames[1:2]]
    assert point_charge_floor(bent) == pytest.approx(abs(0.3 * field[0]) / 8)
    assert point_charge_floor([replace(f, dipole=None) for f in frames]) is None


def test_fixed_reference_charges_and_compliances_reach_the_model(sets: Any, project: Path) -> None:
    text = sets.CONFIG.replace(
        "[charges]",
        """[charges]
model = "split"
reference_charges = { Na = 1.0, Cl = -1.0 }
compliance_cutoff = 4.0
compliance = { "Cl-Na" = 0.3 }""",
    )
    (project / "config.toml").write_text(text)
    model = train(read_config(project / "config.toml"), sets.silent).model
    assert (model.charges, model.learned_reference) == ("split", False)
    np.testing.assert_array_equal(model.reference_charge, [1.0, -1.0])
    np.testing.assert_array_equal(model.compliance_cutoff, np.full((2, 2), 4.0))
    usual, _ = usual_compliance(("Na", "Cl"))
    np.testing.assert_allclose(model.compliance, [[usual[0, 0], 0.3], [0.3, usual[1, 1]]])
    np.testing.assert_array_equal(load_and_save(model, project).compliance, model.compliance)


def load_and_save(model: Model, folder: Path) -> Model:
    save_model(model, folder / "again.kqeq")
    return load_model(folder / "again.kqeq")


def test_fragments_are_trained_by_connectivity(sets: Any, project: Path, model: Model) -> None:
    """Fragments of each frame for itself; a charged frame of two is refused by name."""
    frames = sets.random_clusters(10, 24, model, True)
    counts = [len(connected_fragments(frame.structure)) for frame in frames]
    usable = [frame for frame, n in zip(frames, counts, strict=True) if n == 1 or frame.structure.charge == 0]
    assert {1, 2} <= {n for frame, n in zip(frames, counts, strict=True) if frame in usable}
    sets.write_frames(project / "train.xyz", usable)
    text = sets.CONFIG.replace("[charges]", '[charges]\nmodel = "fragments"').replace('test = ["test.xyz"]', "")
    (project / "config.toml").write_text(text)
    model = train(read_config(project / "config.toml"), sets.silent).model
    assert model.charges == "fragments"
    for frame in usable:
        fragments = connected_fragments(frame.structure)
        charges = Potential(model).compute(frame.structure).charges
        expected = np.full(len(fragments), frame.structure.charge)
        np.testing.assert_allclose(np.bincount(fragments.group, charges), expected, atol=1e-10)
    refused = next(frame for frame, n in zip(frames, counts, strict=True) if n > 1 and frame.structure.charge != 0)
    sets.write_frames(project / "train.xyz", [*usable, refused])
    with pytest.raises(ConfigError, match=rf"train.xyz, frame {len(usable)}: `fragment_charges` must say which of"):
        train(read_config(project / "config.toml"), sets.silent)


POLARIZABILITIES = {
    # trace / 3, e^2 A^2/eV, of frames of examples/train_water/test.xyz (their REF_polarizability: GFN2-xTB, tblite 0.8,
    # differences of dipoles in fields of +-0.001 a.u., SCF accuracy 0.01)
    "train_water": {7: 0.02496, 21: 0.04804, 42: 0.10627, 77: 0.16543, 84: 0.08142, 105: 0.16915, 126: 0.13748},
    # the same of gfn2_hydrocarbon_field/test.xyz: ethane, propane, butane, ethene, butadiene
    "gfn2_hydrocarbon_field": {1: 0.11670, 17: 0.14377, 22: 0.21358, 41: 0.25934, 67: 0.13453, 81: 0.34049},
}


def mean_ratio(potential: Potential, frames: list[Frame], reference: dict[int, float]) -> float:
    pairs = [
        (np.trace(response(potential, frames[k].structure).polarizability) / 3, value) for k, value in reference.items()
    ]
    return float(np.sum([got for got, _ in pairs]) / np.sum([want for _, want in pairs]))


def test_polarizability_of_water_clusters_does_not_wait_for_training() -> None:
    """It hangs on hardness, width and compliance alone: the defaults, which the example has, give that of GFN2."""
    frames = read_frames([WATER_EXAMPLE / "test.xyz"], Keys())
    reference = POLARIZABILITIES["train_water"]
    for k, value in reference.items():
        assert np.trace(frames[k].polarizability) / 3 == pytest.approx(value, abs=1e-5)
    example = Potential(blank_model(frames, read_config(WATER_EXAMPLE / "water.toml")))
    assert mean_ratio(example, frames, reference) == pytest.approx(0.95, abs=0.1)


def test_polarizability_of_hydrocarbons_with_the_defaults(reference_data: Path) -> None:
    frames = read_frames([reference_data / "gfn2_hydrocarbon_field" / "test.xyz"], Keys())
    usual = Potential(blank_model(frames, Config(Data(["any"]), charges=Charges(model="split"))))
    assert 0.65 < mean_ratio(usual, frames, POLARIZABILITIES["gfn2_hydrocarbon_field"]) < 1.1


@pytest.mark.slow
def test_accuracy_on_the_supplied_water_set(sets: Any, reference_data: Path) -> None:
    """Targets: charges 3.5 me (plain charge equilibration has 9 to 13), polarizability within 20 % of GFN2's."""
    folder = reference_data / "gfn2_water_field"
    config = read_config(WATER_EXAMPLE / "water.toml")
    data = Data([str(folder / "train.xyz")], [str(WATER_EXAMPLE / "test.xyz")])
    model = train(replace(config, data=data), sets.silent).model
    errors = model.training["errors"]["test"]
    assert errors["charges"]["rmse"] < 3.5e-3
    assert errors["energy_per_atom"]["rmse"] < 5e-3
    assert errors["forces"]["rmse"] < 0.070
    assert errors["reference_charge_residual"] < 0.010
    frames = read_frames(data.test, Keys())
    reference = {k: float(np.trace(frame.polarizability)) / 3 for k, frame in enumerate(frames)}
    assert mean_ratio(Potential(model), frames, reference) == pytest.approx(1.0, abs=0.2)
    assert model.fragment["numbers"] == [8, 1, 1]


def test_training_from_files_is_reproducible(sets: Any, project: Path) -> None:
    first, second = (train(read_config(project / "config.toml"), sets.silent) for _ in range(2))
    for trained, name in ((first, "a.kqeq"), (second, "b.kqeq")):
        save_model(trained.model, project / name)
    assert (project / "a.kqeq").read_bytes() == (project / "b.kqeq").read_bytes()
    model = load_model(project / "a.kqeq")
    assert model.training["seed"] == 3
    assert set(model.training["errors"]) == {"train", "test"}
    assert "same short range without charges" in first.text
    assert "floor that point charges leave" in first.text
    assert "kernel of low rank" in first.text


def test_undetermined_level_is_said(sets: Any, project: Path, model: Model, caplog: pytest.LogCaptureFixture) -> None:
    sets.write_frames(project / "train.xyz", sets.random_clusters(10, 9, model, False))
    trained = train(read_config(project / "config.toml"), sets.silent)
    assert "ionisation energies are undetermined" in caplog.text
    assert trained.model.training["level_determined"] is False


def test_key_names_are_configurable(sets: Any, project: Path, model: Model) -> None:
    names = {"energy": "energy", "forces": "forces", "charges": "mulliken", "total_charge": "Q", "field": "efield"}
    sets.write_frames(project / "train.xyz", sets.random_clusters(10, 6, model, True), **names)
    frames = read_frames([project / "train.xyz"], Keys(**names))
    expected = sets.random_clusters(10, 6, model, True)
    for got, want in zip(frames, expected, strict=True):
        assert got.energy == pytest.approx(want.energy, abs=1e-6)  # digits of the file
        np.testing.assert_allclose(got.forces, want.forces, atol=1e-7)
        np.testing.assert_allclose(got.charges, want.charges, atol=1e-7)
        assert got.structure.charge == want.structure.charge
        np.testing.assert_allclose(got.structure.field, want.structure.field, atol=1e-9)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("cutoff", "cutof", r"unknown key `descriptor.cutof`; did you mean `cutoff`\?"),
        ("seed", "seeed", r"unknown key `seeed`; did you mean `seed`\?"),
        ("[kernel]", "[kernell]", r"unknown key `kernell`; did you mean `kernel`\?"),
        ("n_max = 3", "n_max = 3.5", "`descriptor.n_max` must be a whole number, got 3.5"),
        ("n_max = 3", 'n_max = "3"', "`descriptor.n_max` must be a whole number, got '3'"),
        ("cutoff = 4.5", "cutoff = -1", "`cutoff` must lie between 0.5 and 30.0, got -1"),
        ("cutoff = 4.5", "cutoff = 1e6", "`cutoff` must lie between 0.5 and 30.0, got 1000000"),
        ("l_max = 2", "l_max = 1000", "`l_max` must lie between 0 and 20, got 1000"),
        ("radial_scale = 3.0", "radial_scale = nan", "`descriptor.radial_scale` must be a number, got nan"),
        ("rounds = 1", "rounds = -1", "`fit.rounds` must lie between 0 and 100, got -1"),
        ("rounds = 1", "sigma_energy = 0", "`fit.sigma_energy` must lie between 1e-09 and 1e\\+09, got 0"),
        ("rounds = 1", "sigma_energy = inf", "`fit.sigma_energy` must be a number, got inf"),
        ("rounds = 1", f"sigma_energy = 1{400 * '0'}", "`fit.sigma_energy` must be a number, got 1000"),
        ("seed = 3", "seed = -1", "`seed` must lie between 0 and"),
        ("rounds = 1", 'targets = "spin"', r"`fit.targets` must be"),
        ("{ Na = 6.0, Cl = 8.0 }", "{ Na = 6.0 }", "`charges.hardness` must name every element of the data, Cl is"),
        ("{ Na = 6.0, Cl = 8.0 }", "{ Xx = 6.0 }", "`charges.hardness` must be given per element, got 'Xx'"),
        ("{ Na = 6.0, Cl = 8.0 }", "-30.0", "`fit.physical` needs start values between 0.05 and 100, got -30 for hard"),
        (
            "{ Na = 6.0, Cl = 8.0 }\n[fit]",
            "-30.0\n[fit]\nphysical = []",
            "frame 0: the hardness matrix is not positive",
        ),
        ("rounds = 1", 'physical = ["zeta"]', "`fit.physical` must be of hardness, gaussian_width, compliance, got"),
        ("rounds = 1", 'regularisation = "evidence"', '`fit.regularisation` must be "held_out" or "given", got'),
        ("rounds = 1", "held_out = 0.6", "`fit.held_out` must lie between 0 and 0.5, got 0.6"),
        ("[charges]", '[charges]\nmodel = "acks2"', "`charges.model` must be qeq, fragments, split, got 'acks2'"),
        ("[charges]", '[charges]\nreference_charges = "guessed"', 'reference_charges` must be "learned", a num'),
        ("[charges]", "[charges]\nreference_charges = { Na = 1.0 }", "reference_charges` must name every element"),
        ("[charges]", "[charges]\ncompliance = { Na = 1.0 }", "compliance` must be given per pair of elements"),
        ("[charges]", '[charges]\ncompliance = { "Na-Xx" = 1.0 }', "compliance` must be given per pair of elements"),
        ("[charges]", '[charges]\ncompliance = { "Na-Cl" = 1, "Cl-Na" = 2 }', "compliance` must name a pair once"),
        ("[charges]", "[charges]\ncompliance = -1", "`charges.compliance` must lie between 0 and"),
        ("[charges]", "[charges]\ncompliance_cutoff = 0", "`charges.compliance_cutoff` must lie between 0.1 and 20"),
        ("rounds = 1", "prior_reference_charge = 0", "`fit.prior_reference_charge` must lie between"),
        ('train = "train.xyz"', 'train = "gone.xyz"', "gone.xyz does not exist"),
        ('train = "train.xyz"', "train = 3", r"`data.train` must be a list of strings, got 3"),
        ('train = "train.xyz"', "", r"`data.train` is needed"),
        ("seed = 3", "seed = ", "cannot be read"),
    ],
)
def test_bad_configurations(sets: Any, project: Path, old: str, new: str, message: str) -> None:
    (project / "config.toml").write_text(sets.CONFIG.replace(old, new))
    with pytest.raises(ValueError, match=message) as error:
        train(read_config(project / "config.toml"), sets.silent)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("REF_", "DFT_", r"no frame of .* has a label named REF_energy"),
        ("total_charge=-1.0", "total_charge=nan", r"train.xyz, frame 0: `total_charge` must be finite"),
        ("total_charge=-1.0", 'total_charge="minus"', r"train.xyz, frame 0: `total_charge` must be numbers"),
        ("8\n", "9\n", "is no extended XYZ"),
    ],
)
def test_bad_data(sets: Any, project: Path, old: str, new: str, message: str) -> None:
    text = (project / "train.xyz").read_text()
    assert old in text
    (project / "train.xyz").write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        train(read_config(project / "config.toml"), sets.silent)


def test_empty_file_and_test_element(sets: Any, project: Path) -> None:
    text = (project / "test.xyz").read_text()
    (project / "test.xyz").write_text(text.replace("Cl ", "Br "))
    with pytest.raises(ConfigError, match="`data.test` holds Br, an element that `data.train` lacks"):
        train(read_config(project / "config.toml"), sets.silent)
    (project / "train.xyz").write_text("")
    with pytest.raises(ConfigError, match=r"train.xyz"):
        train(read_config(project / "config.toml"), sets.silent)


@pytest.mark.slow
def test_accuracy_on_the_supplied_nacl_set(sets: Any, reference_data: Path) -> None:
    """Targets: energy 8 meV/atom, forces 70 meV/A, charges 20 me over all charge states together."""
    folder = reference_data / "gfn2_nacl_field"
    config = Config(
        data=Data([str(folder / "train.xyz")], [str(folder / "test.xyz")]),
        descriptor=SoapParameters(cutoff=6.0, radial_scale=3.0),
        kernel=Kernel(sparse_points=300),
    )
    errors = train(config, sets.silent).model.training["errors"]["test"]
    assert errors["energy_per_atom"]["rmse"] < 0.008
    assert errors["forces"]["rmse"] < 0.070
    assert errors["charges"]["rmse"] < 0.020


def test_periodic_frames_in_a_field_are_named(sets: Any, project: Path) -> None:
    text = (project / "train.xyz").read_text()
    (project / "train.xyz").write_text(text.replace('pbc="F F F"', 'Lattice="9 0 0 0 9 0 0 0 9" pbc="T T T"'))
    with pytest.raises(ConfigError, match=r"train.xyz, frame 1: `field` must be zero along periodic axes"):
        train(read_config(project / "config.toml"), sets.silent)


def test_overlapping_atoms_are_named(sets: Any, tmp_path: Path, model: Model) -> None:
    frames = sets.random_clusters(12, 3, model, True)
    positions = frames[2].structure.positions.copy()
    positions[5] = positions[1] + [0.0, 0.0, 0.01]
    frames[2] = replace(frames[2], structure=sets.replace_positions(frames[2].structure, positions))
    sets.write_frames(tmp_path / "close.xyz", frames)
    with pytest.raises(ConfigError, match=r"close.xyz, frame 2: `positions`: atoms \d and \d overlap"):
        read_frames([tmp_path / "close.xyz"], Keys())


def test_charges_that_miss_the_total_charge_are_warned_of(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = (project / "train.xyz").read_text()
    (project / "train.xyz").write_text(text.replace("total_charge=", "charge="))
    read_frames([project / "train.xyz"], Keys())
    assert "charge labels miss the total charge in 8 of 12 frames, by up to 1 e" in caplog.text


def test_slices_and_standard_input_are_no_files(project: Path) -> None:
    for name in ("-", "train.xyz@0:3"):
        with pytest.raises(ConfigError, match="does not exist"):
            read_frames([name], Keys())
