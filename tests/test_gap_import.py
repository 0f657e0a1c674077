"""Models of QUIP's gap_fit against QUIP's own results (tests/data/gap/make.py made both)."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kqeq_md.errors import ModelError
from kqeq_md.gap_import import import_gap
from kqeq_md.gap_import.gap_file import descriptor_options, read_gap
from kqeq_md.local_part import LocalKernels, LocalPart
from kqeq_md.model import Model, load_model, save_model
from kqeq_md.neighbours.half_list import find_pairs
from kqeq_md.structure import Floats, Structure

FOLDER = Path(__file__).parent / "data" / "gap"
MODELS = {
    # name: species, kernels with (basis, zeta, cutoff), sparse points of each species, pair terms
    "water_soap": ("H O", [("quip_gto", 2.0, 4.0)], [(8, 8)], 0),
    "water_2b": ("H O", [], [], 4),
    "water_one_centre": ("H O", [("quip_equispaced_gauss", 2.0, 4.0)], [(0, 8)], 0),
    "nacl_soap_2b": ("Na Cl", [("quip_equispaced_gauss", 2.0, 4.0)], [(8, 8)], 3),
    "cho_two_soaps": (
        "H C O",
        [("quip_equispaced_gauss", 1.0, 5.0), ("quip_gto", 4.0, 3.0)],
        [(6, 6, 6), (6, 6, 6)],
        0,
    ),
}

Edit = Callable[[str], str]


def energy_forces_virial(model: Model, structure: Structure) -> tuple[float, Floats, Floats]:
    species = np.array([model.numbers.index(z) for z in structure.numbers])
    pairs = find_pairs(structure, model.cutoff)
    local = LocalPart(LocalKernels(model, exact=True), species, pairs)
    gradient = local.gradient(np.zeros(len(species)))
    return float(local.energies.sum()), -pairs.scatter(gradient, len(species)), -pairs.vectors.T @ gradient


def structure_of(record: dict[str, Any]) -> Structure:
    if record["cell"] is None:
        return Structure(record["numbers"], record["positions"])
    return Structure(record["numbers"], record["positions"], record["cell"], (True, True, True))


def compare(model: Model, record: dict[str, Any]) -> None:
    energy, forces, virial = energy_forces_virial(model, structure_of(record))
    # what is asked of the import: the radial tables are good to 1e-11, measured 4e-13 eV/atom
    assert energy == pytest.approx(record["energy"], abs=1e-9 * len(forces))
    np.testing.assert_allclose(forces, record["forces"], atol=1e-7)  # slope of the tables 1e-8; measured 2e-9
    if record["virial"] is not None:
        np.testing.assert_allclose(virial, record["virial"], atol=1e-7)


@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_quip(name: str) -> None:
    """Two triclinic cells, one smaller than the cutoff, an open cluster, and lone atoms."""
    model = import_gap(FOLDER / f"{name}.xml")
    records = json.loads((FOLDER / f"{name}.json").read_text())
    assert max(np.abs(record["forces"]).max() for record in records) > 0.1  # there is something to agree on
    for record in records:
        compare(model, record)


@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_quip_live(name: str) -> None:
    """Structures that are not stored, where QUIP is installed."""
    ase = pytest.importorskip("ase")
    quippy = pytest.importorskip("quippy.potential")
    record = json.loads((FOLDER / f"{name}.json").read_text())[0]
    rng = np.random.default_rng(5)
    stretched = np.array(record["cell"]) @ (np.eye(3) + 0.05 * rng.uniform(-1, 1, (3, 3)))
    positions = np.array(record["positions"]) + 0.1 * rng.uniform(-1, 1, (len(record["numbers"]), 3))
    atoms = ase.Atoms(record["numbers"], positions, cell=stretched, pbc=True)
    atoms.calc = quippy.Potential(param_filename=str(FOLDER / f"{name}.xml"))
    quip = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    quip["virial"] = -atoms.get_volume() * atoms.get_stress(voigt=False)
    compare(
        import_gap(FOLDER / f"{name}.xml"),
        {"numbers": record["numbers"], "positions": positions, "cell": stretched, **quip},
    )


@pytest.mark.parametrize("name", MODELS)
def test_what_is_imported(name: str) -> None:
    species, kernels, points, pairs = MODELS[name]
    model = import_gap(FOLDER / f"{name}.xml")
    assert " ".join(model.species) == species
    assert [(term.soap.basis, term.zeta, term.soap.cutoff) for term in model.terms] == kernels
    assert [tuple(len(p) for p in term.sparse_points) for term in model.terms] == points
    assert len(model.pair_terms) == pairs
    assert model.charges == "none"
    assert model.atom_energy.tolist() == [-float(z) for z in model.numbers]  # the data say so
    assert {(term.soap.switching, term.soap.central_weight) for term in model.terms} <= {
        ("cosine", 1.0),
        ("cosine", 0.6),
    }
    assert model.training["imported"] == "QUIP GAP"
    assert model.training["label"] == f"GAP_{name}"


@pytest.mark.parametrize("name", ["nacl_soap_2b", "cho_two_soaps"])
def test_a_file_keeps_every_digit(name: str, tmp_path: Path) -> None:
    model = import_gap(FOLDER / f"{name}.xml")
    save_model(model, tmp_path / "model.kqeq")
    record = json.loads((FOLDER / f"{name}.json").read_text())[0]
    again = energy_forces_virial(load_model(tmp_path / "model.kqeq"), structure_of(record))
    assert again[0] == energy_forces_virial(model, structure_of(record))[0]


def test_equal_terms_of_one_centre_add_up(copy: Callable[..., Path]) -> None:
    """All weights halved in a first copy of each term, and the rest in a second copy of it: the same energies."""

    def twice(text: str) -> str:
        start, end = text.index("<gpCoordinates"), text.rindex("</gpCoordinates>") + len("</gpCoordinates>")
        block = re.sub(r'alpha="(.*?)"', lambda m: f'alpha="{0.5 * float(m[1])!r}"', text[start:end])
        return text[:start].replace('n_coordinate="2"', 'n_coordinate="4"') + block + block + text[end:]

    model = import_gap(copy("water_soap", twice))
    assert len(model.terms) == 1
    assert [len(points) for points in model.terms[0].sparse_points] == [16, 16]
    record = json.loads((FOLDER / "water_soap.json").read_text())[0]
    assert energy_forces_virial(model, structure_of(record))[0] == pytest.approx(record["energy"], abs=1e-9)


def test_sparse_cutoff_is_a_factor_of_the_weight() -> None:
    """Points of the pair terms carry QUIP's own cutoff function at their distance."""
    terms = [term for term in read_gap(FOLDER / "water_2b.xml").terms if term.label.endswith("1")]
    r = terms[0].points[:, 0]
    wanted = np.where(r < 3.5, 1.0, 0.5 * (1.0 + np.cos(np.pi * (r - 3.5))))
    alpha = [float(text) for text in re.findall(r'alpha="(.*?)"', (FOLDER / "water_2b.xml").read_text())][: len(r)]
    np.testing.assert_allclose(terms[0].weights, 4.0 * np.array(alpha) * wanted, rtol=1e-12)  # delta = 2 eV
    assert wanted.min() < 0.5


def test_words_of_a_descriptor() -> None:
    kind, options = descriptor_options(" soap cutoff=5.0 species_Z={8 1 } x = 'a b' y=\"2\" ")
    assert kind == "soap"
    assert options == {"cutoff": "5.0", "species_Z": "8 1", "x": "a b", "y": "2"}


@pytest.fixture
def copy(tmp_path: Path) -> Callable[..., Path]:
    """A model in a folder of its own, its XML edited."""

    def edited(name: str, edit: Edit = str) -> Path:
        for path in FOLDER.glob(f"{name}.xml.*"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
        text = (FOLDER / f"{name}.xml").read_text()
        assert edit is str or edit(text) != text
        (tmp_path / f"{name}.xml").write_text(edit(text))
        return tmp_path / f"{name}.xml"

    return edited


def put(old: str, new: str, count: int = 1) -> Edit:
    return lambda text: text.replace(old, new, count)


def word(text: str) -> Edit:
    """Another word in the first descriptor string."""
    return put("cutoff=", f"{text} cutoff=")


def change(pattern: str, new: str) -> Edit:
    return lambda text: re.sub(pattern, new, text, count=1)


SOAP_REFUSED = {
    "angle_3b": (put("<descriptor>soap ", "<descriptor>angle_3b "), "GAP_water_soap1 (angle_3b): `angle_3b` cannot be"),
    "soap_turbo": (put("<descriptor>soap ", "<descriptor>soap_turbo "), "`soap_turbo` cannot be imported, only soap,"),
    "average": (word("average=T"), "`average` can be imported only if it is F, got 'T'"),
    "diagonal": (word("diagonal_radial=T"), "`diagonal_radial` can be imported only if it is F, got 'T'"),
    "normalise": (word("normalise=.false."), "`normalise` can be imported only if it is T, got '.false.'"),
    "nu_R": (word("nu_R=1"), "`nu_R` can be imported only if it is 2, got '1'"),
    "nu_S": (word("nu_S=0"), "`nu_S` can be imported only if it is 2, got '0'"),
    "R_mix": (word("R_mix=T"), "`R_mix` can be imported only if it is F, got 'T'"),
    "Z_mix": (word("Z_mix=T"), "`Z_mix` can be imported only if it is F, got 'T'"),
    "K": (word("K=4"), "`K` can be imported only if it is 0, got '4'"),
    "coupling": (word("coupling=F"), "`coupling` can be imported only if it is T, got 'F'"),
    "reference": (word("central_reference_all_species=T"), "`central_reference_all_species` can be imported only if"),
    "sigma0": (word("covariance_sigma0=0.1"), "`covariance_sigma0` can be imported only if it is 0, got '0.1'"),
    "dexp": (word("cutoff_dexp=2"), "`cutoff_dexp` can be imported only if it is 0, got '2'"),
    "scale": (word("cutoff_scale=2.0"), "`cutoff_scale` can be imported only if it is 1, got '2.0'"),
    "rate": (word("cutoff_rate=0.5"), "`cutoff_rate` can be imported only if it is 1, got '0.5'"),
    "error": (word("basis_error_exponent=8"), "`basis_error_exponent` can be imported only if it is 10, got '8'"),
    "n_Z": (word("n_Z=2"), "`n_Z` can be imported only if it is 1, got '2'"),
    "Z_map": (word("Z_map={8,1}"), "`Z_map` is not known, so that it cannot be imported"),
    "unknown": (word("colour=blue"), "`colour` is not known, so that it cannot be imported"),
    "no value": (word("average"), "`average` of the descriptor has no value"),
    "twice": (word("l_max=3"), "`l_max` stands twice in the descriptor"),
    "no logical": (word("average=maybe"), "`average` must be T or F, got 'maybe'"),
    "basis": (put("radial_basis=GTO", "radial_basis=POLY"), "`radial_basis` must be EQUISPACED_GAUSS or GTO, got 'POL"),
    "no width": (put("atom_sigma=0.5", ""), "`atom_sigma` must stand once in the descriptor, got []"),
    "two widths": (word("atom_gaussian_width=0.5"), "`atom_sigma` must stand once in the descriptor, got ['atom_sigma"),
    "sigma": (put("atom_sigma=0.5", "atom_sigma=50"), "`sigma` must lie between 0.05 and 5.0, got 50.0"),
    "n_max": (put("n_max=3", "n_max=30"), "`n_max` must lie between 1 and 16, got 30"),
    "no n_max": (put("n_max=3", ""), "`n_max` is missing in the descriptor"),
    "fraction": (put("l_max=3", "l_max=3.5"), "`l_max` must be a whole number, got '3.5'"),
    "size": (put("n_max=3", "n_max=2"), "`dimensions` must be 41, the last of them 0, got 85"),
    "any centre": (put(" Z=8 ", " Z=0 "), "`Z` must be of elements, got 0"),
    "no centre": (put(" Z=8 ", " "), "`Z` must be of elements, got 0"),
    "two centres": (put(" Z=8 ", " Z={8 1} "), "`Z` must be one element, got [8, 1]"),
    "species": (put("species_Z={8 1 }", "species_Z={8 8 }"), "`species_Z` must be `n_species` different elements, got"),
    "n_species": (put("n_species=2", "n_species=3"), "`species_Z` must be `n_species` different elements, got [8, 1]"),
    "no element": (put("species_Z={8 1 }", "species_Z={8 901 }"), "`species_Z` must be of elements, got 901"),
    "blind": (put("species_Z={8 1 }", "species_Z={8 7 }"), "`species_Z` of every soap must hold all elements of the m"),
    "kernel": (put('covariance_type="2"', 'covariance_type="1"'), "`covariance_type` must be dot_product, got ard_se"),
    "no kernel": (put('covariance_type="2"', 'covariance_type="9"'), "`covariance_type` must be dot_product, got 9"),
    "zeta": (change(r' zeta="2\.\d*"', ' zeta="0.5"'), "`zeta` must be at least 1, got 0.5"),
    "no zeta": (change(r' zeta="2\.\d*"', ""), "`zeta` must be at least 1, got 0"),
    "large zeta": (change(r' zeta="2\.\d*"', ' zeta="1e9"'), "`zeta` must lie between 1 and 100, got 1000000000.0"),
    "old": (change(r'gap_version="\d+"', 'gap_version="1400000000"'), "`gap_version` must lie between 1426512068 and"),
    "no version": (change(r'gap_version="\d+"', ""), "`gap_version` must lie between 1426512068 and 1987654320, got 0"),
    "version": (change(r'gap_version="\d+"', 'gap_version="now"'), "`gap_version` must be a whole number, got 'now'"),
    "core": (put('do_core="F"', 'do_core="T"'), "`do_core` (a core potential) cannot be imported, got 'T'"),
    "sum": (put('init_args="IP GAP', 'init_args="Sum init_args_pot1={IP GAP'), "`init_args` of the Potential must be"),
    "no e0": (change(r'<e0 Z="8" value=".*?"/>', ""), "`e0` must be given for all elements, got none for O"),
    "data": (change(r'<e0 Z="8" value=".*?"/>', "<core/>"), "GAP_data must hold `e0` of elements and nothing else, go"),
    "e0 twice": (put('<e0 Z="8"', '<e0 Z="8" value="5.0"/><e0 Z="8"'), "`e0` must stand once for each element"),
    "variance": (change('signal_variance=".*?"', 'signal_variance="1e200"'), "`signal_variance` times `alpha` must be"),
    "utf-7": (lambda text: '<?xml version="1.0" encoding="utf-7"?>' + text, "is not well-formed XML: multi-byte"),
    "klingon": (lambda text: '<?xml version="1.0" encoding="klingon"?>' + text, "is not well-formed XML: unknown enc"),
    "e0": (change(r'<e0 Z="8" value=".*?"/>', '<e0 Z="8" value="nan"/>'), "`value` must be a finite number, got 'nan'"),
    "attribute": (put('sparsified="T"', 'sparsified="T" power="3"'), "gpCoordinates GAP_water_soap1: `power` is not k"),
    "element": (put("<descriptor>", "<extra/><descriptor>"), "gpCoordinates GAP_water_soap1: `extra` is not known"),
    "not sparse": (put('sparsified="T"', 'sparsified="F"'), "`sparsified` must be T, got 'F'"),
    "not fitted": (put('fitted="T"', 'fitted="F"'), "`fitted` must be T, got 'F'"),
    "fewer terms": (put('n_coordinate="2"', 'n_coordinate="3"'), "`n_coordinate` must be the number of gpCoordinates,"),
    "no descriptor": (change("<descriptor>.*?</descriptor>", ""), "it must hold one `descriptor`, got 0"),
    "empty": (change("<descriptor>.*?</descriptor>", "<descriptor/>"), "`descriptor` must begin with its name, got ''"),
    "alpha": (change('alpha=".*?"', 'alpha="inf"'), "`alpha` must be a finite number, got 'inf'"),
    "no alpha": (change('alpha=".*?"', ""), "`alpha` must be a finite number, got ''"),
    "fewer points": (change('<sparseX i="8".*?/>', ""), "`sparseX` must be 8 elements with i = 1 ... 8, got 7"),
    "order": (put('<sparseX i="8"', '<sparseX i="7"'), "`sparseX` must be 8 elements with i = 1 ... 8, got 8"),
    "many points": (put('n_sparseX="8"', 'n_sparseX="1000000000000"'), "`sparseX` must be 1000000000000 elements with"),
    "wide points": (put('dimensions="85"', 'dimensions="84"'), "sparse points must be 8 x 84 finite numbers, at least"),
    "no file": (put("water_soap.xml.sparseX.GAP_1", "gone"), "`sparseX_filename`: gone does not exist"),
    "other folder": (put("water_soap.xml.sparseX.GAP_1", "../x"), "`sparseX_filename` must be a file in the same fold"),
    "device": (put("water_soap.xml.sparseX.GAP_1", "/dev/zero"), "`sparseX_filename` must be a file in the same folde"),
    "the folder": (put("water_soap.xml.sparseX.GAP_1", ".."), "`sparseX_filename`: .. does not exist"),
    "md5": (change('sparseX_md5sum="5', 'sparseX_md5sum="6'), "`sparseX_md5sum` does not fit water_soap.xml.sparseX.G"),
    "no XML": (put("</GAP_params>", "</GAP_param>"), "is not well-formed XML: mismatched tag"),
    "truncated": (lambda text: text[:5000], "is not well-formed XML: "),
    "nothing": (lambda text: "", "is not well-formed XML: no element found"),
    "other XML": (lambda text: "<html></html>", "it must hold one `GAP_params`, got 0"),
    "two": (lambda text: text.replace("</GAP_params>", "</GAP_params><GAP_params/>"), "it must hold one `GAP_params`,"),
    "entities": (
        lambda text: '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>' + text,
        "it has a document type, which GAP files do not have",
    ),
}  # fmt: skip

PAIR_REFUSED = {
    "any element": (put("Z1=8", "Z1=0"), "`Z1` must be of elements, got 0"),
    "no element": (put("Z2=1", ""), "`Z2` must be of elements, got 0"),
    "intra": (word("only_intra=T"), "`only_intra` can be imported only if it is F, got 'T'"),
    "inter": (word("only_inter=T"), "`only_inter` can be imported only if it is F, got 'T'"),
    "exponents": (word("exponents={-3 -6}"), "`exponents` must be a finite number, got '-3 -6'"),
    "n_exponents": (word("n_exponents=2"), "`n_exponents` can be imported only if it is 1, got '2'"),
    "tail": (word("tail_range=2.0"), "`tail_range` can be imported only if it is 1, got '2.0'"),
    "tail exponent": (word("tail_exponent=6"), "`tail_exponent` can be imported only if it is 0, got '6'"),
    "residue": (word("resid_name=res"), "`resid_name` is not known, so that it cannot be imported"),
    "clusters": (
        put("order=2", "order=2 compact_clusters=F"), "`compact_clusters` can be imported only if it is T, got 'F'",
    ),
    "three bodies": (put("order=2", "order=3"), "(distance_Nb): `order` must be 2, got 3"),
    "three elements": (put("Z={1 1}", "Z={1 1 8}"), "it must be for two elements, got [1, 1, 8]"),
    "old": (change(r'gap_version="\d+"', 'gap_version="1596837813"'), "`gap_version` must be at least 1596837814, got"),
    "kernel": (put('covariance_type="1"', 'covariance_type="4"'), "`covariance_type` must be ard_se, got pp"),
    "mean": (change('signal_mean=".*?"', 'signal_mean="0.3"'), "`f0` must be 0, got 0.3"),
    "theta": (change("<theta>.*?</theta>", "<theta>1.0 2.0</theta>"), "`dimensions` must be 1, got 1, with one theta,"),
    "no theta": (change("<theta>.*?</theta>", ""), "`dimensions` must be 1, got 1, with one theta, got 0"),
    "length": (change("<theta>.*?</theta>", "<theta>0.0</theta>"), "`length` of a pair term must lie between 0.01 and"),
    "words": (change("<theta>.*?</theta>", "<theta>x</theta>"), "`theta` must hold numbers only"),
    "width": (put("cutoff_transition_width=1.0", "cutoff_transition_width=9"), "`cutoff_width` of a pair term must no"),
    "point": (change('(<sparseX i="1".*?>).*?<', r"\1 one <"), "`sparseX` must hold numbers only"),
    "two numbers": (change('(<sparseX i="1".*?>).*?<', r"\1 1 2 <"), "sparse points must be 8 x 1 finite numbers, at"),
    "infinite": (change('(<sparseX i="1".*?>).*?<', r"\1 inf <"), "sparse points must be 8 x 1 finite numbers, at lea"),
}  # fmt: skip


@pytest.mark.parametrize(("edit", "message"), SOAP_REFUSED.values(), ids=SOAP_REFUSED.keys())
def test_refused_soap(edit: Edit, message: str, copy: Callable[..., Path]) -> None:
    check_refusal(copy("water_soap", edit), message)


@pytest.mark.parametrize(("edit", "message"), PAIR_REFUSED.values(), ids=PAIR_REFUSED.keys())
def test_refused_pair(edit: Edit, message: str, copy: Callable[..., Path]) -> None:
    check_refusal(copy("water_2b", edit), message)


def check_refusal(path: Path, message: str) -> None:
    with pytest.raises(ModelError) as refusal:
        import_gap(path)
    assert message in str(refusal.value)
    assert str(refusal.value).startswith(f"GAP file {path}")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"1.0 2.0", b"1.0 two 3.0", b"\x00\xff\x80" * 99])
def test_damaged_sparse_points(content: bytes, copy: Callable[..., Path]) -> None:
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    path = copy("water_soap", change('sparseX_md5sum=".*?"', f'sparseX_md5sum="{digest}"'))
    (path.parent / "water_soap.xml.sparseX.GAP_1").write_bytes(content)
    with pytest.raises(ModelError, match=r"must hold numbers only|sparse points must be 8 x 85 finite numbers"):
        import_gap(path)


def test_absent(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"GAP file .* cannot be read: No such file or directory"):
        import_gap(tmp_path / "gap.xml")
    with pytest.raises(ModelError, match=r"GAP file .* cannot be read: Is a directory"):
        import_gap(tmp_path)


HARMLESS = {
    "usual values": word("n_Z=1 average=F normalise=T nu_R=2 nu_S=2 cutoff_scale=1.0 cutoff_dexp=0 R_mix=.false. K=0"),
    "of the fit": word("config_type_n_sparse={a:4:b:4} theta_fac=0.5 sparse_file=none unique_hash_tolerance=1e-9"),
    "no md5": change(r' sparseX_md5sum="\w+"', ""),
    "mean of a soap": change('signal_mean=".*?"', 'signal_mean="0.5"'),  # QUIP does not add it: measured
    "other name": put("atom_sigma=", "atom_gaussian_width="),
}


@pytest.mark.parametrize("edit", HARMLESS.values(), ids=HARMLESS.keys())
def test_harmless(edit: Edit, copy: Callable[..., Path]) -> None:
    path = copy("water_soap", edit)
    plain, model = import_gap(FOLDER / "water_soap.xml"), import_gap(path)
    assert model.terms[0].soap == plain.terms[0].soap
    for now, before in zip(model.terms[0].weights, plain.terms[0].weights, strict=True):
        assert np.array_equal(now, before)


def test_any_zeta(copy: Callable[..., Path]) -> None:
    path = copy("water_soap", lambda text: re.sub(r' zeta="2\.\d*"', ' zeta="2.5"', text))
    assert [term.zeta for term in import_gap(path).terms] == [2.5]


def test_large_gto_bases_are_warned_of(copy: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    def larger(text: str) -> str:
        """n_max 13 and l_max 0 for a water model of 1 point: 26 channels, 351 numbers and the zero."""
        text = re.sub(
            r'(<sparseX i="1") (alpha=".*?" sparseCutoff=".*?")/>', r"\1 \2>" + "0.05 " * 351 + "0</sparseX>", text
        )
        text = re.sub(r'<sparseX i="[2-8]".*?/>', "", text).replace('n_sparseX="8"', 'n_sparseX="1"')
        text = re.sub(r' sparseX_filename=".*?" sparseX_md5sum=".*?"', "", text)
        return (
            text.replace("n_max=3", "n_max=13")
            .replace("l_max=3", "l_max=0")
            .replace('dimensions="85"', 'dimensions="352"')
        )

    with caplog.at_level(logging.WARNING):
        import_gap(copy("water_soap", larger))
    assert "GAP_water_soap1: rounding in QUIP spoils its GTO basis at n_max = 13" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        import_gap(FOLDER / "water_soap.xml")
    assert caplog.text == ""
