"""Words of the command line, of `<parameters>` and of a PES."""

from __future__ import annotations

from typing import Any

import pytest

from kqeq_md.errors import KqeqError
from kqeq_md.ipi_driver.settings import OPEN, PERIODIC, READERS, Settings, read_settings

HERE = "`<parameters>`"


@pytest.mark.parametrize(
    ("name", "value", "field", "wanted"),
    [
        ("charge", "1", "charge", 1.0),
        ("charge", " -0.5 ", "charge", -0.5),
        ("charge", 1, "charge", 1.0),  # i-PI's own reader of PES parameters makes numbers of words
        ("efield", "0 0 0.1", "efield", (0.0, 0.0, 0.1)),
        ("efield", (0, 0, 0.1), "efield", (0.0, 0.0, 0.1)),
        ("charges", "qeq", "charges", "qeq"),
        ("charges", "fragments", "charges", "fragments"),
        ("charges", "split", "charges", "split"),
        ("fragments", "connectivity", "fragments", "connectivity"),
        ("fragments", "mol_id", "fragments", "mol_id"),
        ("part", "all", "part", "all"),
        ("part", "short", "part", "short"),
        ("part", "charge", "part", "charge"),
        ("extrapolation", "stop", "extrapolation", "stop"),
        ("extras", "none", "extras", ()),
        ("extras", "dipole", "extras", ("dipole",)),
        ("extras", "bec charges", "extras", ("charges", "bec")),  # i-PI splits its parameters at commas
        ("extras", "charges,dipole", "extras", ("dipole", "charges")),
        ("pbc", "True", "pbc", PERIODIC),
        ("pbc", "no", "pbc", OPEN),
        ("pbc", False, "pbc", OPEN),
        ("slab", "x", "pbc", (False, True, True)),
        ("slab", "y", "pbc", (True, False, True)),
        ("slab", "z", "pbc", (True, True, False)),
    ],
)
def test_every_word_is_read(name: str, value: Any, field: str, wanted: Any) -> None:
    assert read_settings({name: value}, HERE) == Settings(**{field: wanted})


def test_every_setting_has_a_word() -> None:
    assert {field for field, _ in READERS.values()} == set(vars(Settings()))
    assert read_settings({}, HERE) == Settings()


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("charge", "much", "must be a finite number, got 'much'"),
        ("charge", "nan", "must be a finite number, got 'nan'"),
        ("charge", "-inf", "must be a finite number, got '-inf'"),
        ("charge", "", "must be a finite number, got ''"),
        ("charge", None, "must be a finite number, got 'None'"),
        ("efield", "0 0", "must be three numbers in V/Angstrom, got '0 0'"),
        ("efield", "0 0 0 0", "must be three numbers in V/Angstrom, got '0 0 0 0'"),
        ("efield", "0 0 inf", "must be three numbers in V/Angstrom, got '0 0 inf'"),
        ("efield", [0, 0], "must be three numbers in V/Angstrom, got '0 0'"),
        ("charges", "Qeq", "must be one of qeq, fragments, split, got 'Qeq'"),
        ("fragments", " ", "must not be empty, got ''"),
        ("part", "long", "must be one of all, short, charge, got 'long'"),
        ("extras", "", "must be `none` or of dipole, charges, bec, extrapolation, got ''"),
        ("extras", "none dipole", "must be `none` or of dipole, charges, bec, extrapolation, got 'none dipole'"),
        ("extras", "raw", "must be `none` or of dipole, charges, bec, extrapolation, got 'raw'"),
        ("pbc", "maybe", "must be true or false, got 'maybe'"),
        ("slab", "w", "must be x, y or z, the lattice vector along which the slab is open, got 'w'"),
    ],
)
def test_every_rule_is_named(name: str, value: Any, rule: str) -> None:
    with pytest.raises(KqeqError) as caught:
        read_settings({name: value}, HERE)
    assert str(caught.value) == f"`{name}` in {HERE} {rule}"


def test_unknown_words_are_refused() -> None:
    known = "charge, efield, charges, fragments, fragment_charges, part, extras, extrapolation, pbc, slab"
    with pytest.raises(KqeqError, match=f"{HERE} must be of {known}, got `colour`"):
        read_settings({"colour": "red"}, HERE)


@pytest.mark.parametrize("words", [{"a\nb\0": "1"}, {"charge": "1\n2"}, {"x" * 10**6: "1"}, {"part": "é" * 10**6}])
def test_foreign_text_makes_one_short_line(words: dict[str, str]) -> None:
    with pytest.raises(KqeqError) as caught:
        read_settings(words, HERE)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_two_words_for_one_setting_must_agree() -> None:
    assert read_settings({"slab": "x", "charge": "0"}, HERE).pbc == (False, True, True)
    with pytest.raises(KqeqError, match="`pbc` and `slab` in `<parameters>` must agree, got 'z' for `slab`"):
        read_settings({"pbc": "true", "slab": "z"}, HERE)


DIFFERENT: dict[str, tuple[Any, Any]] = {
    "charge": (0.0, 1.0),
    "efield": ((0.0, 0.0, 0.0), (0.0, 0.0, 0.1)),
    "charges": ("qeq", "split"),
    "fragments": ("connectivity", "mol_id"),
    "part": ("all", "short"),
    "extras": ((), ("dipole", "charges")),
    "extrapolation": ("warn", "stop"),
    "pbc": (PERIODIC, OPEN),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_settings_join_unless_they_contradict(name: str) -> None:
    """What only one side says counts, also where it says zero or nothing; both may say the same."""
    ours, theirs = (Settings(**{name: value}) for value in DIFFERENT[name])
    for one, other in ((ours, Settings()), (Settings(), ours), (ours, ours)):
        assert one.joined(other, "here", "there") == ours
    with pytest.raises(KqeqError, match=f"`{name}` must be the same here and there, got .* and .*"):
        ours.joined(theirs, "here", "there")
    with pytest.raises(KqeqError, match=f"`{name}` must be the same here and there"):
        theirs.joined(ours, "here", "there")


def test_the_conflict_shows_both_sides() -> None:
    one, other = Settings(efield=(0.0, 0.0, 0.1)), Settings(efield=(0.0, 0.0, 0.0))
    with pytest.raises(KqeqError, match="got 0.0 0.0 0.1 and 0.0 0.0 0.0"):
        one.joined(other, "here", "there")
    one, other = Settings(extras=()), Settings(extras=("bec",))
    with pytest.raises(KqeqError, match="got none and bec"):
        one.joined(other, "here", "there")
