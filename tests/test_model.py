"""Model files: the same bytes, the same numbers, and one line for every way of being broken."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kqeq_md.archive import SUMS, pack
from kqeq_md.descriptor.radial import SoapParameters
from kqeq_md.errors import KqeqError, ModelError
from kqeq_md.model import Model, load_model, save_model, usual_compliance
from kqeq_md.models import NACL
from kqeq_md.potential import Potential
from kqeq_md.structure import Structure


def refused(path: Path, match: str) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def refusal(path: Path) -> str:
    """The message of the refusal, empty where the file loads."""
    try:
        load_model(path)
    except ModelError as error:
        return str(error)
    return ""


def entries(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, content: dict[str, bytes]) -> Path:
    """An archive whose checksums are those of its content."""
    path.write_bytes(pack({name: data for name, data in content.items() if name != SUMS}))
    return path


def write_plain(path: Path, content: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """An archive without checksums but those in the content."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


# --- what is written


def test_same_bytes(model: Model, tmp_path: Path) -> None:
    for name in ("a.kqeq", "b.kqeq"):
        save_model(model, tmp_path / name)
    assert (tmp_path / "a.kqeq").read_bytes() == (tmp_path / "b.kqeq").read_bytes()
    save_model(load_model(tmp_path / "a.kqeq"), tmp_path / "c.kqeq")
    assert (tmp_path / "a.kqeq").read_bytes() == (tmp_path / "c.kqeq").read_bytes()


def test_time_stamps_are_fixed(nacl_model: Path) -> None:
    with zipfile.ZipFile(nacl_model) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_round_trip(model: Model, nacl_model: Path, helpers: Any) -> None:
    structure = helpers.cluster(charge=1.0, field=(0.0, 0.02, -0.01))
    first, second = Potential(model).compute(structure), Potential(nacl_model).compute(structure)
    assert first.energy == second.energy
    for name in ("charges", "energies", "forces", "virial", "dipole"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_metadata_survives(model: Model, tmp_path: Path) -> None:
    labelled = replace(model, training={"seed": 3, "errors": {"forces": 0.07}}, reference={"energy": -1.5})
    save_model(labelled, tmp_path / "m.kqeq")
    again = load_model(str(tmp_path / "m.kqeq"))
    assert (again.training, again.reference) == (labelled.training, labelled.reference)
    assert again.species == model.species
    assert (again.terms[0].zeta, again.terms[0].soap) == (model.terms[0].zeta, model.terms[0].soap)


FRAGMENT = {"numbers": [11, 17], "positions": [[0.0, 0.0, 0.0], [0.0, 0.0, 2.4]]}


def test_split_charges_survive(model: Model, tmp_path: Path, helpers: Any) -> None:
    """Three columns of weights, compliance, reference charges, the charge model, the reference fragment."""
    split = replace(helpers.split_model(model, (0.7, -0.6), 0.1), fragment=FRAGMENT)
    save_model(split, tmp_path / "m.kqeq")
    again = load_model(tmp_path / "m.kqeq")
    assert (again.charges, again.fragment) == ("split", FRAGMENT)
    assert again.learned_reference
    np.testing.assert_array_equal(again.compliance, split.compliance)
    np.testing.assert_array_equal(again.compliance_cutoff, np.full((2, 2), 4.2))
    structure = helpers.rock_salt(charge=1.0)
    first, second = Potential(split).compute(structure), Potential(tmp_path / "m.kqeq").compute(structure)
    assert first.energy == second.energy
    for name in ("charges", "forces", "reference_residual"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    save_model(again, tmp_path / "n.kqeq")
    assert (tmp_path / "m.kqeq").read_bytes() == (tmp_path / "n.kqeq").read_bytes()


SOAP_OF_VERSION_2 = (
    "cutoff", "cutoff_width", "n_max", "l_max", "sigma", "radial_scale", "radial_exponent",
)  # fmt: skip
SINCE_VERSION_2 = ("reference_charge", "charges", "compliance", "compliance_cutoff", "fragment")


def test_files_of_version_1_give_the_same_numbers(model: Model, nacl_model: Path, tmp_path: Path, helpers: Any) -> None:
    """Before split charges: nothing of them in the header."""
    content = entries(nacl_model)
    header = json.loads(content["header.json"])
    (term,) = header.pop("terms")
    old = {name: value for name, value in header.items() if name not in (*SINCE_VERSION_2, "pair_terms")}
    old |= {"version": 1, "soap": {name: term["soap"][name] for name in SOAP_OF_VERSION_2}, "zeta": term["zeta"]}
    del content[SUMS]
    path = write_plain(tmp_path / "old.kqeq", content | {"header.json": json.dumps(old).encode()})
    loaded = load_model(path)
    assert loaded.charges == "qeq"
    assert not loaded.reference_charge.any()
    structure = helpers.cluster(charge=1.0, field=(0.0, 0.02, -0.01))
    first, second = Potential(model).compute(structure), Potential(path).compute(structure)
    assert first.energy == second.energy
    np.testing.assert_array_equal(first.forces, second.forces)
    split = Potential(path, charges="split").compute(structure)  # with the compliances of its elements
    np.testing.assert_array_equal(split.charges, Potential(model, charges="split").compute(structure).charges)
    save_model(loaded, tmp_path / "new.kqeq")
    assert (tmp_path / "new.kqeq").read_bytes() == nacl_model.read_bytes()


def test_usual_compliance() -> None:
    """0.11 e^2/eV, up to r_a + r_b + 1.4 Angstrom with the radii of Cordero et al. (2008), H 0.31, O 0.66."""
    compliance, cutoff = usual_compliance(("H", "O"))
    np.testing.assert_array_equal(compliance, np.full((2, 2), 0.11))
    np.testing.assert_allclose(cutoff, np.array([[0.62, 0.97], [0.97, 1.32]]) + 1.4, rtol=1e-12)


# --- files that are no models


def test_absent(tmp_path: Path) -> None:
    refused(tmp_path / "no.kqeq", "does not exist")


def test_directory(tmp_path: Path) -> None:
    refused(tmp_path, "cannot be read")


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip archive\n" * 100], ids=["empty", "two bytes", "text"])
def test_not_an_archive(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.kqeq"
    path.write_bytes(content)
    refused(path, "not a .kqeq model")


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.6, 0.9, 0.99, 0.9999])
def test_truncated(nacl_model: Path, fraction: float, tmp_path: Path) -> None:
    content, path = nacl_model.read_bytes(), tmp_path / "m.kqeq"
    path.write_bytes(content[: int(fraction * len(content))])
    refused(path, "not a .kqeq model, or is truncated")


def test_flipped_bytes(nacl_model: Path, tmp_path: Path) -> None:
    """Anywhere: the file is refused in one line, or (time stamps, attributes) loads as the same model."""
    content, path = nacl_model.read_bytes(), tmp_path / "m.kqeq"
    wanted = entries(nacl_model)
    headers = [at + k for at in range(len(content)) for k in range(50) if content[at : at + 2] == b"PK"]
    random = np.random.default_rng(0).integers(len(content), size=200)
    refusals = 0
    for position in {*headers, *random.tolist()} & set(range(len(content))):
        for flip in (0x01, 0xFF):
            damaged = bytearray(content)
            damaged[position] ^= flip
            path.write_bytes(damaged)
            message = refusal(path)
            assert "\n" not in message
            refusals += bool(message)
            assert message or {name: entries(path)[name] for name in wanted} == wanted
    assert refusals > 200


def test_any_change_is_seen(nacl_model: Path, tmp_path: Path) -> None:
    """A legal number for another, an array too many, a file from which the checksums were taken."""
    content, path = entries(nacl_model), tmp_path / "m.kqeq"
    assert load_model(write_plain(path, content)).hardness.tolist() == [6.0, 8.0]
    edited = content["header.json"].replace(b"6.0", b"6.5", 1)
    other = content["weights_Na.npy"][:-1] + bytes([content["weights_Na.npy"][-1] ^ 1])
    for change in ({"header.json": edited}, {"weights_Na.npy": other}, {"more.npy": b""}, {SUMS: b""}):
        refused(write_plain(path, content | change), "it is damaged or was edited: the checksums in SHA256SUMS")
    del content[SUMS]
    refused(write_plain(path, content), "it has no SHA256SUMS")


def test_checksums_are_those_of_sha256sum(nacl_model: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(nacl_model) as archive:
        archive.extractall(tmp_path)
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", SUMS], cwd=tmp_path, check=True)


def test_archives_that_are_not_ours(nacl_model: Path, tmp_path: Path) -> None:
    content, path = entries(nacl_model), tmp_path / "m.kqeq"
    refused(write_plain(path, content, zipfile.ZIP_DEFLATED), "the members of the archive are compressed")
    write_plain(path, content)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("header.json", b"{}")
    refused(path, "a member of the archive stands twice")


def test_foreign_archive(tmp_path: Path) -> None:
    refused(write(tmp_path / "m.kqeq", {"word/document.xml": b"<w/>"}), "it has no header.json")


# --- headers that cannot be used


def in_term(**change: Any) -> dict[str, Any]:
    """The header entry of the one term of the model, changed."""
    usual = {"zeta": 2, "low_rank": False}
    soap = asdict(SoapParameters(n_max=3, l_max=2)) | change.pop("soap", {})
    return {"terms": [{**usual, "soap": soap, **change}]}


HEADERS: dict[str, tuple[dict[str, Any], str]] = {
    "other format": ({"format": "mace"}, "is not a .kqeq model: its header does not say so"),
    "newer version": ({"version": 5}, "has format version 5, this kqeq_md reads up to 4: update it"),
    "version zero": ({"version": 0}, "version 0"),
    "version word": ({"version": "new"}, "version 'new'"),
    "other units": ({"units": {"energy": "hartree"}}, "must hold the units"),
    "same element twice": ({"species": ["Na", "Na"]}, "`species` must be distinct"),
    "third element without arrays": ({"species": ["Na", "Cl", "K"]}, "damaged"),
    "zeta": (in_term(zeta=0), "`zeta` must lie between 1 and 100, got 0"),
    "zeta without end": (in_term(zeta=float("inf")), "`zeta` must lie between 1 and 100, got inf"),
    "no terms": ({"terms": []}, "`terms` must hold at least one kernel, got none"),
    "low rank without arrays": (in_term(low_rank=True), "low_rank_points_Na"),
    "pair term without arrays": (
        {"pair_terms": [{"species": [0, 1], "length": 1.0, "cutoff": 4.0, "cutoff_width": 1.0}]},
        "pair_points_0",
    ),
    "NaN hardness": ({"hardness": [float("nan"), 8.0]}, "`hardness` must be 2 finite numbers"),
    "one hardness": ({"hardness": [8.0]}, "`hardness` must be 2 finite numbers"),
    "words as hardness": ({"hardness": ["hard", "soft"]}, "damaged"),
    "width": ({"gaussian_width": [1.0, -0.3]}, "`gaussian_width` must be positive, got -0.3 for Cl"),
    "zero width": ({"gaussian_width": [0.0, 1.0]}, "`gaussian_width` must be positive, got 0.0 for Na"),
    "repulsion": ({"repulsion_radius": [-1.0, 1.0]}, "`repulsion_radius` must be not negative, got -1.0 for Na"),
    "no charge model": ({"charges": "acks2"}, "`charges` must be qeq, fragments, split or none, got 'acks2'"),
    "list of charge models": ({"charges": ["qeq"]}, "`charges` must be qeq, fragments, split or none, got|damaged"),
    "negative compliance": ({"compliance": [[-0.1, 0.1], [0.1, 0.1]]}, "`compliance` must be a symmetric table of 2"),
    "skew compliance": ({"compliance": [[0.1, 0.2], [0.1, 0.1]]}, "`compliance` must be a symmetric table of 2 x 2"),
    "compliance of one": ({"compliance": [[0.1]]}, "`compliance` must be a symmetric table of 2 x 2"),
    "flat compliance": ({"compliance": [0.1, 0.1, 0.1]}, "`compliance` must be a symmetric table of 2 x 2"),
    "huge compliance": ({"compliance": [[1e7, 0.1], [0.1, 0.1]]}, "numbers from 0 to 1e[+]06"),
    "NaN compliance": ({"compliance": [[float("nan"), 0.1], [0.1, 0.1]]}, "`compliance` must be a symmetric table"),
    "words as compliance": ({"compliance": [["a", "b"], ["b", "a"]]}, "damaged"),
    "bonds of no length": ({"compliance_cutoff": 0.0}, r"`compliance_cutoff` must .* 2 numbers from 0[.]1 to 20, got"),
    "long bonds": ({"compliance_cutoff": [[2.0, 21.0], [21.0, 2.0]]}, "numbers from 0.1 to 20, got .*21.0"),
    "skew bonds": ({"compliance_cutoff": [[2.0, 3.0], [2.0, 2.0]]}, "`compliance_cutoff` must be a symmetric table"),
    "NaN bonds": ({"compliance_cutoff": float("nan")}, "`compliance_cutoff` must .* from 0.1 to 20, got .*nan"),
    "word as bonds": ({"compliance_cutoff": "far"}, "damaged"),
    "fragment without positions": ({"fragment": {"numbers": [11]}}, "`fragment` must hold `numbers` and `positions`"),
    "fragment of nothing": ({"fragment": [1]}, "`fragment` must be a table, got "),
    "fragment of one place": (
        {"fragment": {"numbers": [11, 17], "positions": [[0, 0, 0]]}},
        "`fragment` must hold .*`positions` must have shape",
    ),
    "NaN reference charge": ({"reference_charge": [float("nan"), 0.0]}, "`reference_charge` must be 2 finite numbers"),
    "no charges, but columns of them": ({"charges": "none"}, "`weights` must have 1 columns, got 2"),
    "soap value": (in_term(soap={"cutoff": -1.0}), "`cutoff` must lie between 0.5 and 30.0, got -1.0"),
    "soap name": (in_term(soap={"cutof": 5.0}), "damaged"),
    "more functions than the arrays": (
        in_term(soap={"n_max": 5, "l_max": 2}),
        "`sparse_points` of Na must be finite, shape",
    ),
}


@pytest.mark.parametrize(("change", "match"), HEADERS.values(), ids=HEADERS.keys())
def test_header(nacl_model: Path, change: dict[str, Any], match: str, tmp_path: Path) -> None:
    content = entries(nacl_model)
    header = json.loads(content["header.json"]) | change
    refused(write(tmp_path / "m.kqeq", content | {"header.json": json.dumps(header).encode()}), match)


@pytest.mark.parametrize(
    "name", ["species", "terms", "pair_terms", "hardness", "training", "units", "charges", "compliance", "fragment"]
)
def test_missing_entry(nacl_model: Path, name: str, tmp_path: Path) -> None:
    content = entries(nacl_model)
    header = json.loads(content["header.json"])
    del header[name]
    refused(write(tmp_path / "m.kqeq", content | {"header.json": json.dumps(header).encode()}), name)


@pytest.mark.parametrize(
    "header", [b"{", b"\xff\xfe", b"[1, 2]", b"null", b"[" * 100_000], ids=lambda header: str(header[:6])
)
def test_header_is_not_an_object(nacl_model: Path, header: bytes, tmp_path: Path) -> None:
    refused(write(tmp_path / "m.kqeq", entries(nacl_model) | {"header.json": header}), "damaged|not a .kqeq model")


@pytest.mark.parametrize(
    ("species", "match"),
    [(("Na", "Xx"), "must be element symbols, got 'Xx'"), (("Na", "Na"), "must be distinct"), ((), "must be distinct")],
)
def test_species(model: Model, species: tuple[str, ...], match: str) -> None:
    with pytest.raises(ModelError, match=f"`species` {match}"):
        replace(model, species=species)


# --- arrays that cannot be used


class Opens:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (open, (str(self.path), "w"))


def test_pickles_are_never_read(nacl_model: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    pickled = npy(np.array([Opens(trap)], dtype=object))
    for data, match in ((pickled, "must hold real numbers, got object"), (pickle.dumps(Opens(trap)), "damaged")):
        refused(write(tmp_path / "m.kqeq", entries(nacl_model) | {"weights_Na.npy": data}), match)
    assert not trap.exists()


ARRAYS: dict[str, tuple[str, Any, str]] = {
    "NaN weights": ("weights_Cl", np.full((8, 2), np.nan), "`weights` of Cl must be finite"),
    "infinite points": ("sparse_points_Na", "infinite", "`sparse_points` of Na must be finite"),
    "one column": ("weights_Na", np.zeros((8, 1)), "`weights` must have 2 or 3 columns, got 1"),
    "other columns": ("weights_Cl", np.zeros((8, 3)), r"`weights` of Cl must be finite, shape \(m, 2\), got \(8, 3\)"),
    "fewer weights": ("weights_Na", np.zeros((7, 2)), r"got \(7, 2\)"),
    "flat": ("weights_Cl", np.zeros(16), r"`weights` of Cl must be finite, shape \(m, 2\), got \(16,\)"),
    "flat, the first": ("weights_Na", np.zeros(16), "`weights` must have 2 or 3 columns, got 16"),
    "scalar points": ("sparse_points_Na", np.float64(1.0), "m.kqeq"),
    "words": ("weights_Na", np.array([["a", "b"]] * 8), "weights_Na.npy must hold real numbers, got <U1"),
    "complex": ("weights_Na", np.zeros((8, 2), dtype=complex), "weights_Na.npy must hold real numbers, got complex128"),
    "whole numbers": ("weights_Na", np.zeros((8, 2), dtype=int), "weights_Na.npy must hold real numbers, got int64"),
}


@pytest.mark.parametrize(("name", "array", "match"), ARRAYS.values(), ids=ARRAYS.keys())
def test_arrays(nacl_model: Path, name: str, array: Any, match: str, tmp_path: Path) -> None:
    content = entries(nacl_model)
    if isinstance(array, str):
        array = np.full(np.load(io.BytesIO(content[f"{name}.npy"])).shape, np.inf)
    refused(write(tmp_path / "m.kqeq", content | {f"{name}.npy": npy(array)}), match)


def test_array_that_claims_to_be_huge(nacl_model: Path, tmp_path: Path) -> None:
    content = entries(nacl_model)
    huge = content["weights_Na.npy"].replace(b"(8, 2), }" + 13 * b" ", b"(88888888888888, 2), }", 1)
    assert huge != content["weights_Na.npy"]
    path = write(tmp_path / "m.kqeq", content | {"weights_Na.npy": huge})
    refused(path, "weights_Na.npy must hold as many bytes as its shape .88888888888888, 2. needs")


def test_truncated_array(nacl_model: Path, tmp_path: Path) -> None:
    content = entries(nacl_model)
    path = write(tmp_path / "m.kqeq", content | {"weights_Na.npy": content["weights_Na.npy"][:-9]})
    refused(path, "weights_Na.npy must hold as many bytes as its shape")


def test_missing_array(nacl_model: Path, tmp_path: Path) -> None:
    content = entries(nacl_model)
    del content["weights_Cl.npy"]
    refused(write(tmp_path / "m.kqeq", content), "weights_Cl")


# --- Potential

KNOBS: list[tuple[dict[str, Any], str]] = [
    ({"accuracy": 0.0}, "`accuracy` must lie between 1e-11 and 0.1, got 0.0"),
    ({"accuracy": float("nan")}, "`accuracy` must lie between 1e-11 and 0.1, got nan"),
    ({"tolerance": 1.0}, "`tolerance` must lie between 1e-14 and 0.0001, got 1.0"),
    ({"tolerance": -1e-8}, "`tolerance` must lie between 1e-14 and 0.0001, got -1e-08"),
]


@pytest.mark.parametrize(("knob", "match"), KNOBS, ids=str)
def test_knobs(model: Model, knob: dict[str, Any], match: str) -> None:
    with pytest.raises(KqeqError, match=match):
        Potential(model, **knob)


def test_cutoff_covers_the_repulsion(model: Model) -> None:
    assert model.cutoff == model.terms[0].soap.cutoff == 4.5
    assert replace(model, repulsion_radius=np.array([2.6, 1.0])).cutoff == 5.2


def test_the_shipped_model_has_a_low_rank() -> None:
    """Chosen on its training set, with the error in its header; both kernels agree as well on a crystal."""
    model = load_model(NACL)
    (term,) = model.terms
    assert term.low_rank is not None
    assert 0.0 < model.training["low_rank_force_error"] < 1e-4
    assert sum(map(len, term.low_rank.points)) < 0.5 * sum(map(len, term.sparse_points))
    rng = np.random.default_rng(8)
    sites = np.array(list(np.ndindex(4, 4, 4)))
    numbers = np.where(sites.sum(axis=1) % 2, 17, 11)
    solid = Structure(numbers, 2.8 * sites + 0.1 * rng.normal(size=sites.shape), cell=11.2 * np.eye(3), pbc=True)
    low, exact = (Potential(model, kernel=kernel).compute(solid).forces for kernel in ("low_rank", "exact"))
    assert 0.0 < np.linalg.norm(low - exact) < 1e-3 * np.linalg.norm(exact)  # ten times that of the training set
