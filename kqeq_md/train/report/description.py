"""What `kqeq info` says of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kqeq_md.extrapolation import largest_measure
from kqeq_md.model import VERSION, Model, SoapTerm, reading
from kqeq_md.train.report.predictions import QUANTITIES


def describe(model: Model) -> list[str]:
    """Lines of text.

    Raises:
        ModelError: what it says of its training cannot be understood.
    """
    with reading("training"):
        return [*_parts(model), *_history(model)]


def _parts(model: Model) -> Iterator[str]:
    kind = "kQEq model" if model.has_charges else "short-range potential without charges"
    yield f"{kind}, format {VERSION}"
    yield f"species           {', '.join(model.species)}"
    if "imported" in model.training:
        yield f"imported from      {model.training['imported']} {model.training['label']}"
        for symbol, energy in zip(model.species, model.atom_energy, strict=True):
            yield f"{symbol:<18}e0 {energy:.10g} eV"
    for number, term in enumerate(model.terms, 1):
        if len(model.terms) > 1:
            yield f"term {number}"
        yield from _term(model.species, term)
    for pair in model.pair_terms:
        elements = "-".join(model.species[index] for index in pair.species)
        yield f"{elements:<18}pair term of {len(pair.points)} points, cutoff {pair.cutoff:g} A"
    if model.has_charges:
        for symbol, hardness, width in zip(model.species, model.hardness, model.gaussian_width, strict=True):
            yield f"{symbol:<18}hardness {hardness:g} eV/e^2, Gaussian width {width:.3f} A"


def _term(species: Sequence[str], term: SoapTerm) -> Iterator[str]:
    for name, value in vars(term.soap).items():
        if term.soap.radial_scale or not name.startswith("radial_"):
            yield f"{name:<18}{value if isinstance(value, str) else format(value, 'g')}"
    yield f"zeta              {term.zeta:g}"
    for element, symbol in enumerate(species):
        low = f", low rank {len(term.low_rank.points[element])}" if term.low_rank is not None else ""
        yield f"{symbol:<18}{len(term.sparse_points[element])} sparse points{low}"


def _history(model: Model) -> Iterator[str]:
    if (error := model.training.get("low_rank_force_error")) is not None:
        yield f"low rank          forces change by {error:.1e} of their rms"
    learned = ", learned reference charges" if model.learned_reference else ""
    yield f"{'charges':<18}{model.charges}{learned}"
    for name, table in model.training.get("errors", {}).items():
        errors = ", ".join(
            f"{key} {entry['rmse']:.4g} {QUANTITIES[key]}" for key, entry in table.items() if key in QUANTITIES
        )
        yield f"{name:<18}{table['n_frames']} frames, RMSE {errors}"
    yield f"{'extrapolation':<18}{_threshold(model)}"
    if model.training.get("level_determined") is False:
        yield "ionisation energies are undetermined (total charge followed from composition in all training frames)"


def _threshold(model: Model) -> str:
    text = f"beyond a measure of {largest_measure(model):.3g}"
    if (record := model.training.get("extrapolation")) is None:
        return f"{text} (not calibrated)"
    errors = record["expected_force_error"]
    return (
        f"{text} ({record['n_atoms']} held-out atoms; force errors of their nearest and farthest "
        f"{100 / len(errors['median']):.0f} %: median {errors['median'][0]:.2g} and {errors['median'][-1]:.2g} eV/A)"
    )
