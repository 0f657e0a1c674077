"""The whole diagnosis: what is measured on what, and what it means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from kqeq_md.charges.charge_model import CHARGE_MODELS
from kqeq_md.charges.constraints import SUM
from kqeq_md.diagnose import measurements as measure
from kqeq_md.diagnose.fragment import formula, reference_fragment
from kqeq_md.diagnose.samples import (
    SPACING,
    Pieces,
    Sample,
    Series,
    as_given,
    chains,
    clusters,
    cut,
    first_molecule,
    series_of,
    unlike_pair,
)
from kqeq_md.diagnose.verdicts import (
    Finding,
    judge_charge_left,
    judge_eigenvalue,
    judge_exponent,
    judge_molecules,
    judge_transfer,
)
from kqeq_md.errors import ChargeError, FieldError, KqeqError
from kqeq_md.machine.quiet import quietly
from kqeq_md.model import Model
from kqeq_md.potential import NO_SUCH_CHARGES
from kqeq_md.structure import Floats, Structure

Number = TypeVar("Number")

CURE = 'use charges="split", or charges="fragments" where atoms never change their molecules'
REMEDIES = {
    "polarizability_exponent": f"{CURE}; trust no result in a field, and no dielectric property, until then",
    "dissociation_charge": f"{CURE}; trust no ion or radical apart from its partner until then",
    "field_transfer": f"{CURE}; run single molecules, or without a field, until then",
    "lowest_eigenvalue": "raise `hardness` of the elements in the closest contact, lower `gaussian_width` or "
    "`compliance`, or keep atoms apart by more repulsion",
    "molecule_charges": f"compare them with charges of the reference method; if those are whole, {CURE}",
}
"""What to do where charges behave as they should not."""


@dataclass(frozen=True)
class Subject:
    """What is measured: a series for polarizabilities, two pieces, a fragment in two copies, structures."""

    series: Series
    pieces: Pieces | None
    fragment: Structure
    samples: tuple[Sample, ...]
    counted: str


@dataclass(frozen=True)
class Measurement:
    """One number for each charge model, and the curves behind them.

    Attributes:
        name: its key in JSON.
        title: what was done, in words.
        unit: of the numbers.
        findings: by charge model.
        abscissa, ordinate: what the curves show, with units.
        x: where they were measured.
        curves: by charge model; empty where it was refused, None where there is nothing to measure.
    """

    name: str
    title: str
    unit: str
    findings: Mapping[str, Finding]
    abscissa: str
    ordinate: str
    x: Sequence[float]
    curves: Mapping[str, Sequence[float | None]]


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was measured.

    Attributes:
        trained: the charge model that the model was trained for.
        measurements: exponent, dissociation, transfer, eigenvalue, molecules.
        spacing: closest contact of the copies in chains, Angstrom.
        contact: the closest one in all structures.
    """

    trained: str
    measurements: tuple[Measurement, ...]
    spacing: float
    contact: measure.Contact | None

    def advice(self, measured: Measurement) -> str:
        """What to do about one of the measurements."""
        if measured.findings[self.trained].sick:
            return REMEDIES[measured.name]
        sick = [name for name, finding in measured.findings.items() if finding.sick]
        return f'keep charges="{self.trained}", not {" or ".join(sick)}' if sick else "nothing"


def diagnose(
    model: Model,
    structures: Sequence[Structure] = (),
    spacing: float = SPACING,
    fragment_charges: Sequence[float] | None = None,
) -> Diagnosis:
    """Measure a model with each charge model, on structures or, without any, on its reference fragment.

    Args:
        model: trained with whichever charge model.
        structures: of growing size, or one.
        spacing: closest contact of the copies in a chain, Angstrom.
        fragment_charges: of the two pieces that are pulled apart, e; None for neutral ones.

    Raises:
        KqeqError: arguments out of range, unknown elements, a model without fragment where one is needed.
        ChargeError: a model without charges.
    """
    if not model.has_charges:
        raise ChargeError(NO_SUCH_CHARGES)
    if not 0.5 <= spacing <= 100.0:
        raise KqeqError(f"`spacing` must lie between 0.5 and 100 Angstrom, got {spacing:g}")
    with quietly():  # charge models that the model was not trained with, and leaks, are what is measured here
        subject = subject_of(model, structures, spacing, fragment_charges)
        contact = closest_contact(subject.samples)
        measurements = (
            _polarizability(model, subject.series),
            _dissociation(model, subject.pieces),
            _transfer(model, subject.fragment),
            _eigenvalue(model, subject.samples, subject.counted, contact),
            _molecules(model, subject.samples, subject.counted),
        )
    return Diagnosis(model.charges, measurements, spacing, contact)


def subject_of(
    model: Model, structures: Sequence[Structure], spacing: float, fragment_charges: Sequence[float] | None
) -> Subject:
    """Choose what is measured: see `diagnose`."""
    if not structures:
        fragment = reference_fragment(model)
        series = chains(fragment, spacing)
        return Subject(series, _charged(model, cut(fragment), fragment_charges), fragment, series.samples, series.unit)
    first = structures[0]
    given = as_given(structures)
    molecule = first_molecule(first)
    if molecule is None:
        has_one = bool(model.fragment or model.reference)
        molecule = reference_fragment(model) if has_one else Structure(first.numbers, first.positions)
    several = int(given[0].group.max()) > 0
    series = series_of(structures) or (clusters(first) if several else chains(molecule, spacing))
    pieces = unlike_pair(first) or cut(molecule)
    return Subject(series, _charged(model, pieces, fragment_charges), molecule, given, "structure")


def _charged(model: Model, pieces: Pieces | None, charges: Sequence[float] | None) -> Pieces | None:
    """Pieces with the charges that are wanted, else those of fixed reference charges if they fit, else their own."""
    if charges is not None and (len(charges) != 2 or not np.isfinite(charges).all() or from_integer(charges) > SUM):
        raise KqeqError(f"`fragment_charges` must be a whole number for each of 2 pieces, got {list(charges)}")
    if pieces is None:
        return None
    if charges is None:
        of_element = dict(zip(model.numbers, model.reference_charge, strict=True))
        q0 = [0.0 if model.learned_reference else of_element.get(int(z), 0.0) for z in pieces.structure.numbers]
        charges = np.bincount(pieces.group, q0).tolist()
        if from_integer(charges) > SUM or abs(sum(charges) - sum(pieces.charges)) > SUM:
            return pieces
    return replace(pieces, charges=(float(charges[0]), float(charges[1])))


def _each(
    numbers: Callable[[str], list[Number]], judge: Callable[[list[Number]], Finding]
) -> tuple[dict[str, Finding], dict[str, list[Number]]]:
    """Findings and curves of all charge models; one that refuses says why instead."""
    findings: dict[str, Finding] = {}
    curves: dict[str, list[Number]] = {}
    for name in CHARGE_MODELS:
        try:
            curves[name] = numbers(name)
            findings[name] = judge(curves[name])
        except (ChargeError, FieldError) as error:
            curves[name], findings[name] = [], Finding(None, f"refused: {error}")
    return findings, curves


def _polarizability(model: Model, series: Series) -> Measurement:
    sizes = [sample.size for sample in series.samples]
    findings, curves = _each(
        lambda charges: [measure.polarizability(model, charges, sample) for sample in series.samples],
        lambda curve: judge_exponent(measure.exponent(sizes, curve)),
    )
    title = f"Polarizability of {series.title}: exponent between the last two sizes"
    if series.samples[0].axis is None:
        title += " (even a compact metal has 1)"
        per_atom = {name: np.divide(curve, sizes) for name, curve in curves.items() if any(curve[:1])}
        if per_atom:
            ratios = ", ".join(f"{name} x {values[-1] / values[0]:.2f}" for name, values in per_atom.items())
            title += f"; per atom, against one molecule alone: {ratios}"
    return Measurement(
        "polarizability_exponent", title, "", findings, series.unit, "polarizability / (e^2 A^2/eV)", sizes, curves
    )


def _dissociation(model: Model, pieces: Pieces | None) -> Measurement:
    texts = "dissociation_charge", "e", "distance / A"
    if pieces is None:
        nothing = {name: judge_charge_left(None) for name in CHARGE_MODELS}
        return Measurement(texts[0], "Pulled apart: no bond to cut", texts[1], nothing, texts[2], "charge / e", [], {})
    distances = measure.pulling_distances(pieces)
    findings, curves = _each(
        lambda charges: measure.charge_left(model, charges, pieces, distances),
        lambda curve: judge_charge_left(from_integer(curve[-1:])),
    )
    first, second = pieces.names
    title = (
        f"{first} and {second} pulled apart to {distances[-1]:g} A: charge of {first} from the nearest integer "
        f"({', '.join(f'{name} {curve[-1]:+.3f}' for name, curve in curves.items() if len(curve) > 0)})"
    )
    return Measurement(texts[0], title, texts[1], findings, texts[2], f"charge of {first} / e", distances, curves)


def _transfer(model: Model, fragment: Structure) -> Measurement:
    gaps = measure.GAPS
    findings, curves = _each(
        lambda charges: measure.field_transfer(model, charges, fragment, gaps),
        lambda curve: judge_transfer(float(np.abs(curve).max())),
    )
    name = formula(fragment.numbers)
    title = f"Two {name} {', '.join(f'{gap:g}' for gap in gaps)} A apart in {measure.FIELD} V/A: most charge moved"
    return Measurement("field_transfer", title, "e", findings, "gap / A", "charge moved / e", gaps, curves)


def _eigenvalue(model: Model, samples: Sequence[Sample], counted: str, contact: measure.Contact | None) -> Measurement:
    sizes = [sample.size for sample in samples]
    findings, curves = _each(
        lambda charges: [measure.lowest_eigenvalue(model, charges, s.structure, s.group) for s in samples],
        lambda curve: judge_eigenvalue(min((value for value in curve if value is not None), default=None)),
    )
    near = "no atoms in contact" if contact is None else f"closest contact {contact.words}"
    title = f"Lowest eigenvalue of the Hamiltonian, the cost of the softest charge transfer; {near}"
    return Measurement("lowest_eigenvalue", title, "eV/e^2", findings, counted, "eigenvalue / (eV/e^2)", sizes, curves)


def closest_contact(samples: Sequence[Sample]) -> measure.Contact | None:
    """The closest contact in all structures, by the sum of covalent radii."""
    found = [contact for sample in samples if (contact := measure.closest_contact(sample.structure)) is not None]
    return min(found, key=lambda contact: contact.ratio, default=None)


def _molecules(model: Model, samples: Sequence[Sample], counted: str) -> Measurement:
    """Charges of the molecules in the structure where they are furthest from integers under any charge model."""
    charges_of: dict[str, list[Floats]] = {}

    def net(charges: str) -> list[Floats]:
        charges_of[charges] = [measure.net_charges(model, charges, s.structure, s.group) for s in samples]
        return charges_of[charges]

    findings, _ = _each(net, lambda all_nets: judge_molecules(max(from_integer(charges) for charges in all_nets)))
    worst = [max((from_integer(nets[k]) for nets in charges_of.values()), default=0.0) for k in range(len(samples))]
    shown = int(np.argmax(worst)) if charges_of else 0
    curves = {name: charges_of[name][shown].tolist() if name in charges_of else [] for name in CHARGE_MODELS}
    n_molecules = int(samples[shown].group.max()) + 1
    where = f"{counted} {samples[shown].size}" if counted == "structure" else f"{samples[shown].size} {counted}"
    title = f"Net charge of each molecule, most from an integer in {where}"
    return Measurement(
        "molecule_charges", title, "e", findings, "molecule", "net charge / e", list(range(1, n_molecules + 1)), curves
    )


def from_integer(charges: ArrayLike) -> float:
    """Largest distance from the nearest integer."""
    return float(np.abs(np.subtract(charges, np.rint(charges))).max())
