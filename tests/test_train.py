"""Training: each stage against an independent formula, and the whole on small sets with known answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write

from kqeq_md.charges.cholesky import solve_dense
from kqeq_md.charges.constraints import total_charge
from kqeq_md.charges.field import field_potential
from kqeq_md.errors import ConfigError
from kqeq_md.model import Model, load_model, save_model
from kqeq_md.potential import Potential
from kqeq_md.structure import Structure
from kqeq_md.train.config import Charges, Config, Data, Fit, Kernel, Keys, ShortRange, read_config
from kqeq_md.train.data import Frame, read_frames
from kqeq_md.train.design import force_design, make_batch
from kqeq_md.train.fit import choose_basis, fit
from kqeq_md.train.frozen import charge_response, frozen_energy_forces, operator_for
from kqeq_md.train.least_squares import LeastSquares
from kqeq_md.train.report import evaluate, evaluate_local_part, point_charge_floor
from kqeq_md.train.run import train
from kqeq_md.train.sparse import farthest_points, whitening


def silent(items, title):  # type: ignore[no-untyped-def]
    return items


def random_clusters(seed: int, count: int, model: Model, same_composition: bool) -> list[Frame]:
    """Open Na/Cl clusters labelled by `model` itself, charges -1, 0, +1, half of them in a field."""
    rng = np.random.default_rng(seed)
    potential, frames = Potential(model), []
    grid = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    for k in range(count):
        charge = k % 3 - 1
        chlorine = 4 if same_composition else 4 - charge  # then Q = 4 - n_Cl in every frame
        numbers = np.array([17] * chlorine + [11] * (8 - chlorine))
        positions = 2.7 * grid[rng.permutation(8)] + 0.2 * rng.normal(size=(8, 3))
        field = 0.1 * rng.normal(size=3) * (k % 2)
        structure = Structure(numbers, positions, charge=charge, field=field)
        result = potential.compute(structure)
        frames.append(Frame(structure, result.energy, result.forces, result.charges, result.dipole))
    return frames


def small_config(model: Model, **changes: object) -> Config:
    """The hyperparameters of `model`, with every environment a sparse point: the fit can then be exact."""
    named = {name: dict(zip(model.species, getattr(model, name).tolist(), strict=True))
             for name in ("hardness", "gaussian_width", "repulsion_radius")}  # fmt: skip
    return Config(
        data=Data(["train.xyz"]),
        descriptor=model.soap,
        kernel=Kernel(zeta=model.zeta, sparse_points=40),
        charges=Charges(named["hardness"], named["gaussian_width"]),
        short_range=ShortRange(named["repulsion_radius"]),
        fit=Fit(**{"sigma_energy": 1e-5, "sigma_forces": 1e-4, "sigma_charges": 1e-5, **changes}),  # type: ignore[arg-type]
    )


def test_least_squares_equals_the_normal_equations() -> None:
    rng = np.random.default_rng(0)
    a, y, prior = rng.normal(size=(90, 7)), rng.normal(size=90), rng.uniform(0.5, 2.0, size=7)
    system = LeastSquares(prior)
    for block in np.array_split(np.arange(90), 9):
        system.add(a[block], y[block])
    expected = np.linalg.solve(a.T @ a + np.diag(prior**-2), a.T @ y)
    np.testing.assert_allclose(system.solve(), expected, rtol=1e-10)  # rounding of a well conditioned system


def test_farthest_points_reach_the_corners_first() -> None:
    corners = np.eye(5)
    crowd = corners[0] + 1e-3 * np.random.default_rng(0).normal(size=(50, 5))
    unit = np.concatenate([crowd, corners])
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    points = farthest_points(unit, 5, np.random.default_rng(1))
    assert (points @ corners.T > 0.99).sum() == 5
    assert len(farthest_points(corners, 50, np.random.default_rng(0))) == 5  # ends when all stand for themselves


def test_whitened_kernel_is_the_identity() -> None:
    points = np.random.default_rng(0).normal(size=(6, 20))
    kernel = (points @ points.T) ** 2
    u = whitening(kernel)
    np.testing.assert_allclose(u.T @ kernel @ u, np.eye(6), atol=1e-9)  # rounding times condition number


def test_response_equals_the_solver(model: Model) -> None:
    """q = known - G chi against the constrained minimum that the potential finds, with charge and field."""
    frame = random_clusters(3, 2, model, True)[1]
    species = Potential(model).species_index(frame.structure.numbers)
    response = charge_response(frame.structure, model, species)
    chi = np.random.default_rng(0).normal(size=8)
    operator = operator_for(frame.structure, model, species)
    linear = chi + field_potential(frame.structure)
    expected = solve_dense(operator.matrix(), linear, total_charge(8, frame.structure.charge))
    np.testing.assert_allclose(response.charges(chi), expected, atol=1e-10)  # two ways to invert one matrix


def test_frozen_energy_is_the_energy_without_kernels(model: Model) -> None:
    """At the equilibrium charges of a model without kernels, frozen and equilibrated energies and forces agree."""
    bare = replace(model, weights=tuple(0 * w for w in model.weights), electronegativity_offset=np.zeros(2),
                   atom_energy=np.zeros(2))  # fmt: skip
    structure = random_clusters(4, 2, model, True)[1].structure
    species = Potential(bare).species_index(structure.numbers)
    result = Potential(bare).compute(structure)
    energy, forces = frozen_energy_forces(structure, bare, species, result.charges)
    assert energy == pytest.approx(result.energy, abs=1e-10)
    np.testing.assert_allclose(forces, result.forces, atol=1e-10)


def test_force_design_is_the_derivative_of_the_kernel(model: Model) -> None:
    """Columns of the force design against five-point differences of sum_i a_i (K U)_i."""
    frames = random_clusters(5, 2, model, True)
    config = small_config(model)
    descriptor = Potential(model).descriptor
    batch = make_batch(frames, descriptor, model.cutoff, model.numbers)
    basis = choose_basis(batch, config)
    weights = np.random.default_rng(0).normal(size=16)
    design = force_design(batch, descriptor, basis, weights, silent)

    def value(shift: float) -> np.ndarray:
        moved = frames[1].structure.positions.copy()
        moved[2, 1] += shift
        other = replace(frames[1], structure=replace_positions(frames[1].structure, moved))
        return weights @ basis.kernel(make_batch([frames[0], other], descriptor, model.cutoff, model.numbers))

    h = 1e-3
    slope = (value(-2 * h) - 8 * value(-h) + 8 * value(h) - value(2 * h)) / (12 * h)
    # h^4 times fifth derivatives, scaled by the whitening
    np.testing.assert_allclose(design[3 * (8 + 2) + 1], -slope, atol=1e-7 * np.abs(design).max())


def replace_positions(structure: Structure, positions: np.ndarray) -> Structure:
    return Structure(structure.numbers, positions, structure.cell, structure.pbc, structure.charge, structure.field)


def test_fit_finds_a_model_that_made_the_data(model: Model) -> None:
    """Labels of a kQEq model are reproduced on frames that the fit has not seen, ionisation energies included."""
    frames = random_clusters(6, 60, model, same_composition=True)
    fitted = fit(frames[:48], small_config(model), silent)
    assert fitted.level_determined
    errors = evaluate(fitted.model, frames[48:], silent)
    assert errors["charges"]["rmse"] < 2e-3  # against charges of about 0.3 e
    assert errors["energy_per_atom"]["rmse"] < 5e-3
    chance = evaluate_local_part(fitted.short_range_only, frames[48:])
    assert errors["energy_per_atom"]["rmse"] < 0.1 * chance["energy_per_atom"]["rmse"]


def test_level_follows_ionisation_energies(model: Model) -> None:
    """Lifting chi by c moves E by c Q: with equal compositions at three charges the fit sees the new level."""
    lifted = replace(model, electronegativity_offset=model.electronegativity_offset + 2.0)
    levels = []
    for maker in (model, lifted):
        frames = random_clusters(7, 30, maker, same_composition=True)
        levels.append(fit(frames, small_config(model), silent).model.electronegativity_offset)
    np.testing.assert_allclose(levels[1] - levels[0], 2.0, atol=1e-3)  # far below the labels' 1e-5 eV per atom / Q


def test_level_is_reported_undetermined(model: Model) -> None:
    frames = random_clusters(8, 12, model, same_composition=False)
    assert not fit(frames, small_config(model, rounds=0), silent).level_determined


def test_dipoles_alone_teach_charges(model: Model) -> None:
    """In 8-atom clusters dipoles tell less than charges, but far more than nothing."""
    frames = [replace(f, charges=None) for f in random_clusters(9, 60, model, True)]
    config = small_config(model, targets=["dipole"], sigma_dipole=1e-5, rounds=0)
    fitted = fit(frames[:48], config, silent)
    errors = evaluate(fitted.model, frames[48:], silent)
    blank = evaluate(replace(fitted.model, weights=tuple(0 * w for w in fitted.model.weights)), frames[48:], silent)
    assert errors["dipole"]["rmse"] < 0.3 * blank["dipole"]["rmse"]


def test_missing_targets_are_named(model: Model) -> None:
    frames = [replace(f, charges=None) for f in random_clusters(1, 3, model, True)]
    with pytest.raises(ConfigError, match=r"`fit.targets` are \['charges'\]"):
        fit(frames, small_config(model), silent)


def test_frames_without_energies_or_forces_are_used_for_what_they_have(model: Model) -> None:
    frames = random_clusters(1, 9, model, True)
    mixed = [
        replace(frames[0], energy=None),
        replace(frames[1], forces=None),
        replace(frames[2], dipole=None),
        *frames[3:],
    ]
    assert np.isfinite(fit(mixed, small_config(model, rounds=1), silent).model.weights[0]).all()


def test_point_charge_floor_is_what_dipoles_leave(model: Model) -> None:
    frames = random_clusters(2, 4, model, True)
    assert point_charge_floor(frames) == pytest.approx(0.0, abs=1e-12)  # the labels are point charges
    field = frames[1].structure.field
    bent = [replace(f, dipole=f.dipole + np.array([0.3, 0.0, 0.0])) for f in frames[1:2]]
    assert point_charge_floor(bent) == pytest.approx(abs(0.3 * field[0]) / 8)
    assert point_charge_floor([replace(f, dipole=None) for f in frames]) is None


# ---------------------------------------------------------------- files


def write_frames(path: Path, frames: list[Frame], **rename: str) -> None:
    keys = {**{f: getattr(Keys(), f) for f in Keys.__dataclass_fields__}, **rename}
    images = []
    for frame in frames:
        atoms = Atoms(frame.structure.numbers, frame.structure.positions)
        atoms.info[keys["energy"]] = frame.energy
        atoms.info[keys["dipole"]] = frame.dipole
        atoms.info[keys["total_charge"]] = frame.structure.charge
        atoms.info[keys["field"]] = frame.structure.field
        atoms.arrays[keys["forces"]] = frame.forces
        atoms.arrays[keys["charges"]] = frame.charges
        images.append(atoms)
    write(path, images, format="extxyz")


CONFIG = """
seed = 3
[data]
train = "train.xyz"
test = ["test.xyz"]
[descriptor]
cutoff = 4.5
n_max = 3
l_max = 2
radial_scale = 3.0
[kernel]
sparse_points = 10
[charges]
hardness = { Na = 6.0, Cl = 8.0 }
[fit]
rounds = 1
"""


@pytest.fixture
def project(tmp_path: Path, model: Model) -> Path:
    write_frames(tmp_path / "train.xyz", random_clusters(10, 12, model, True))
    write_frames(tmp_path / "test.xyz", random_clusters(11, 6, model, True))
    (tmp_path / "config.toml").write_text(CONFIG)
    return tmp_path


def test_training_from_files_is_reproducible(project: Path) -> None:
    first, second = (train(read_config(project / "config.toml"), silent) for _ in range(2))
    for trained, name in ((first, "a.kqeq"), (second, "b.kqeq")):
        save_model(trained.model, project / name)
    assert (project / "a.kqeq").read_bytes() == (project / "b.kqeq").read_bytes()
    model = load_model(project / "a.kqeq")
    assert model.training["seed"] == 3
    assert set(model.training["errors"]) == {"train", "test"}
    assert "same short range without charges" in first.text
    assert "floor that point charges leave" in first.text


def test_undetermined_level_is_said(project: Path, model: Model, caplog: pytest.LogCaptureFixture) -> None:
    write_frames(project / "train.xyz", random_clusters(10, 9, model, False))
    trained = train(read_config(project / "config.toml"), silent)
    assert "ionisation energies are undetermined" in caplog.text
    assert trained.model.training["level_determined"] is False


def test_key_names_are_configurable(project: Path, model: Model) -> None:
    names = {"energy": "energy", "forces": "forces", "charges": "mulliken", "total_charge": "Q", "field": "efield"}
    write_frames(project / "train.xyz", random_clusters(10, 6, model, True), **names)
    frames = read_frames([project / "train.xyz"], Keys(**names))
    expected = random_clusters(10, 6, model, True)
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
        ("{ Na = 6.0, Cl = 8.0 }", "-30.0", "no positive definite Hamiltonian"),
        ('train = "train.xyz"', 'train = "gone.xyz"', "gone.xyz does not exist"),
        ('train = "train.xyz"', "train = 3", r"`data.train` must be a list of strings, got 3"),
        ('train = "train.xyz"', "", r"`data.train` is needed"),
        ("seed = 3", "seed = ", "cannot be read"),
    ],
)
def test_bad_configurations(project: Path, old: str, new: str, message: str) -> None:
    (project / "config.toml").write_text(CONFIG.replace(old, new))
    with pytest.raises(ValueError, match=message) as error:
        train(read_config(project / "config.toml"), silent)
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
def test_bad_data(project: Path, old: str, new: str, message: str) -> None:
    text = (project / "train.xyz").read_text()
    assert old in text
    (project / "train.xyz").write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        train(read_config(project / "config.toml"), silent)


def test_empty_file_and_test_element(project: Path) -> None:
    text = (project / "test.xyz").read_text()
    (project / "test.xyz").write_text(text.replace("Cl ", "Br "))
    with pytest.raises(ConfigError, match="`data.test` holds Br, an element that `data.train` lacks"):
        train(read_config(project / "config.toml"), silent)
    (project / "train.xyz").write_text("")
    with pytest.raises(ConfigError, match=r"train.xyz"):
        train(read_config(project / "config.toml"), silent)


@pytest.mark.slow
def test_accuracy_on_the_supplied_nacl_set(reference_data: Path) -> None:
    """Targets: energy 8 meV/atom, forces 70 meV/A, charges 20 me over all charge states together."""
    folder = reference_data / "gfn2_nacl_field"
    from kqeq_md.descriptor.radial import SoapParameters

    config = Config(
        data=Data([str(folder / "train.xyz")], [str(folder / "test.xyz")]),
        descriptor=SoapParameters(cutoff=6.0, radial_scale=3.0),
        kernel=Kernel(sparse_points=300),
    )
    errors = train(config, silent).model.training["errors"]["test"]
    assert errors["energy_per_atom"]["rmse"] < 0.008
    assert errors["forces"]["rmse"] < 0.070
    assert errors["charges"]["rmse"] < 0.020


def test_periodic_frames_in_a_field_are_named(project: Path) -> None:
    text = (project / "train.xyz").read_text()
    (project / "train.xyz").write_text(text.replace('pbc="F F F"', 'Lattice="9 0 0 0 9 0 0 0 9" pbc="T T T"'))
    with pytest.raises(ConfigError, match=r"train.xyz, frame 1: `field` must be zero along periodic axes"):
        read_frames([project / "train.xyz"], Keys())


def test_overlapping_atoms_are_named(tmp_path: Path, model: Model) -> None:
    frames = random_clusters(12, 3, model, True)
    positions = frames[2].structure.positions.copy()
    positions[5] = positions[1] + [0.0, 0.0, 0.01]
    frames[2] = replace(frames[2], structure=replace_positions(frames[2].structure, positions))
    write_frames(tmp_path / "close.xyz", frames)
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
