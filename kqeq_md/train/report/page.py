"""The report as one HTML page that needs nothing but itself: no scripts, no links, plots inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from kqeq_md.train.report.configuration import configuration_lists
from kqeq_md.train.report.diagnosis import DIAGNOSIS, LETTERS, Findings
from kqeq_md.train.report.extrapolation import limits_of_model
from kqeq_md.train.report.markup import bullets, figure, paragraph, section, table, typeset, warning, written
from kqeq_md.train.report.predictions import PER_ATOM, QUANTITIES
from kqeq_md.train.report.rounds import rounds_of_fit
from kqeq_md.train.report.style import STYLE
from kqeq_md.train.report.text import NAMES, cell, remarks, table_rows, thousandth

NO_PLOTS = "There are no plots: matplotlib is not installed (pip install 'kqeq_md[train]')."
PARITY = (
    "Each point is one label. Below each panel stands the difference Δ, model less reference; what lies further than "
    "six times the RMSE from zero is drawn at the edge and counted. Energies are shown without the model's constants "
    "of the elements, dipoles about the centre of the atoms."
)
NO_TEST_SET = (
    "There is no test set: these are errors on the frames that the model was trained on. On other frames they are "
    "larger."
)


def page(content: Mapping[str, Any], found: Findings, images: Mapping[str, bytes]) -> str:
    """The whole page.

    Args:
        content: of `report_content`.
        found: the diagnosis.
        images: PNG files by name; none without matplotlib.
    """
    parts = [
        _head(content),
        section("Errors", paragraph("RMSE, in brackets MAE."), *_errors(content)),
        section("Beside other models", *_comparison(content)),
        section("Predictions and labels", *_parity(images)),
        section("Errors by element", *_by_element(content)),
        section("Learning curve", *_learning_curve(content, images)),
        section("Diagnosis", *_diagnosis(found, images)),
        section("Extrapolation", *(limits_of_model(content["calibration"]) if "calibration" in content else [])),
        section("Data", *_data(content)),
        section("Model", *_model(content)),
        section("Training", *_training(content)),
    ]
    title = f"{content['name']}: training report"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{''.join(parts)}</body>\n</html>\n"
    )


def _head(content: Mapping[str, Any]) -> str:
    model, name = content["model"], "test" if "test" in content["errors"] else "train"
    errors = content["errors"][name]
    cards = "".join(
        f"<div><b>{1e3 * errors[quantity]['rmse']:.3g} <small>{typeset(thousandth(unit))}</small></b>"
        f"<span>{NAMES[quantity]}, RMSE of {name} set</span></div>"
        for quantity, unit in QUANTITIES.items()
        if quantity in errors
    )
    charges = f"charge model {model['charges']}" if model["charges"] != "none" else "no charges"
    frames = ", ".join(f"{data['frames']} {part} frames" for part, data in content["data"].items())
    lead = f"{', '.join(model['species'])}; {charges}; {frames}; kqeq_md {content['kqeq_md']}"
    return f'<h1>{escape(content["name"])}</h1>\n<p class="lead">{escape(lead)}</p>\n<div class="key">{cards}</div>\n'


def error_rows(rows: Sequence[tuple[str, Mapping[str, Any]]], caption: str, at_least: int = 1) -> str:
    """An error table: one line per group or model, one column per quantity that `at_least` so many of them have."""
    shown = [name for name in QUANTITIES if sum(name in entry for _, entry in rows) >= at_least]
    head = ["", "frames", *(f"{NAMES[name]} / {thousandth(QUANTITIES[name])}" for name in shown)]
    lines = [[name, str(group["n_frames"]), *(cell(group.get(quantity)) for quantity in shown)] for name, group in rows]
    return table(head, lines, caption)


def _errors(content: Mapping[str, Any]) -> list[str]:
    out = [] if "test" in content["errors"] else [warning(NO_TEST_SET)]
    for name, errors in reversed(content["errors"].items()):
        out.append(error_rows(table_rows(errors), f"{name} set"))
        out += [paragraph(f"{line[0].upper()}{line[1:]}.") for line in remarks(errors)]
    return out


def _comparison(content: Mapping[str, Any]) -> list[str]:
    out = []
    for name, tables in reversed(content["comparison"].items()):
        if len(tables) > 1:
            out.append(error_rows(list(tables.items()), f"{name} set", at_least=2))
        if (floor := content["point_charge_floor"][name]) is not None:
            out.append(
                paragraph(
                    f"Point charges leave {1e3 * floor:.1f} meV per atom in the energies of {name} frames in a field, "
                    "rms F·(μ − Σ qr)/N: what a model with exactly the reference's charges would miss there."
                )
            )
    return out


def _parity(images: Mapping[str, bytes]) -> list[str]:
    shown = {name: png for name, png in images.items() if name.startswith("parity_")}
    if not shown:
        return [paragraph(NO_PLOTS)] if not images else []
    return [paragraph(PARITY), *(figure(png, words_of(name)) for name, png in shown.items())]


def words_of(name: str) -> str:
    """ "parity plot of energy per atom, test" for parity_energy_per_atom_test.png."""
    inner = name.removeprefix("parity_").removesuffix(".png")
    quantity = next(key for key in QUANTITIES if inner.startswith(key))
    rest = inner.removeprefix(quantity).strip("_").replace("_groups", ", by group")
    return f"parity plot of {NAMES[quantity]}, {rest}"


def _by_element(content: Mapping[str, Any]) -> list[str]:
    out = []
    for name, errors in reversed(content["errors"].items()):
        shown = [quantity for quantity in PER_ATOM if quantity in errors]
        head = ["", "atoms", *(f"{NAMES[quantity]} / {thousandth(QUANTITIES[quantity])}" for quantity in shown)]
        rows = [
            [symbol, str(entry["n_atoms"]), *(cell(entry.get(quantity)) for quantity in shown)]
            for symbol, entry in errors["by_element"].items()
        ]
        if shown:
            out.append(table(head, rows, f"{name} set"))
    return out


def _learning_curve(content: Mapping[str, Any], images: Mapping[str, bytes]) -> list[str]:
    curve = content.get("learning_curve")
    if curve is None:
        return []
    measured = [point for point in curve["points"] if "errors" in point]
    names = list(dict.fromkeys(name for point in measured for name in point["errors"]))
    head = ["training frames", *(f"{NAMES[name]} / {thousandth(QUANTITIES[name])}" for name in names)]
    rows = [[str(point["n_frames"]), *(cell(point["errors"].get(name)) for name in names)] for point in measured]
    out = [
        paragraph(
            f"The same configuration, trained on nested random parts of the training set (seed {curve['seed']}), "
            f"measured on {curve['measured_on']}."
        ),
        table(head, rows) if rows else "",
        *(paragraph(f"{p['n_frames']} frames: {p['skipped']}") for p in curve["points"] if "skipped" in p),
    ]
    if "learning_curve.png" in images:
        out.append(figure(images["learning_curve.png"], "errors over the number of training frames"))
    return out


def _diagnosis(found: Findings, images: Mapping[str, bytes]) -> list[str]:
    if found.diagnosis is None:
        return [paragraph(f"Skipped: {found.skipped}.")]
    out = [paragraph(f"What kqeq diagnose measures, on {found.measured_on}.")]
    for letter, measured in zip(LETTERS, found.diagnosis.measurements, strict=False):
        rows = [[name, entry.number(measured.unit), entry.verdict] for name, entry in measured.findings.items()]
        out += [
            f"<h3>({letter}) {typeset(measured.title)}</h3>\n",
            table(["charge model", "", ""], rows, numbers=False),
            paragraph(f"What to do: {found.diagnosis.advice(measured)}."),
        ]
    if DIAGNOSIS in images:
        out.append(figure(images[DIAGNOSIS], "what was measured for the diagnosis, with each charge model"))
    return out


def _data(content: Mapping[str, Any]) -> list[str]:
    data = content["data"]
    labels = list(next(iter(data.values()))["labels"])
    shown = [name for name in labels if any(entry["labels"][name] for entry in data.values())]
    head = ["", "frames", "atoms", "in a field", *(f"with {name.replace('_', ' ')}" for name in shown)]
    rows = [
        [name, *(str(entry[key]) for key in ("frames", "atoms", "in_field")), *(str(entry["labels"][k]) for k in shown)]
        for name, entry in data.items()
    ]
    out = [table(head, rows)]
    for key, words in (("boundaries", "boundary"), ("total_charges", "total charge / e"), ("groups", "group")):
        names = list(dict.fromkeys(name for entry in data.values() for name in entry[key]))
        if key == "total_charges":
            names.sort(key=float)
        if len(names) > 1 or (names and key == "groups"):
            counts = [[name, *(str(entry[key].get(name, 0)) for entry in data.values())] for name in names]
            out.append(table([words, *(f"{name} frames" for name in data)], counts))
    out += _findings(content["findings"])
    if hashes := content["training"].get("data_sha256"):
        out.append(table(["file", "SHA-256"], list(hashes.items()), numbers=False))
    return out


def _findings(findings: Sequence[str]) -> list[str]:
    """How many there are, and what they say; letters of file names are no units."""
    if not findings:
        return [paragraph("The check of the data before the training has found nothing odd.")]
    kinds = f"{len(findings)} kind{'' if len(findings) == 1 else 's'}"
    return [
        "<h3>Findings</h3>\n",
        paragraph(
            f"The check of the data before the training has found {kinds} of oddity. Not all of it need be mistakes."
        ),
        bullets([line.replace("eV/A", "eV/Å") for line in findings]),
    ]


def _model(content: Mapping[str, Any]) -> list[str]:
    model, units = content["model"], content["units"]
    out = []
    for of in ("element", "pair"):
        shown = {name: v for name, v in model["parameters"].items() if ("-" in next(iter(v))) == (of == "pair")}
        if shown:
            head = [of, *(f"{name.replace('_', ' ')} / {units[name]}" for name in shown)]
            keys = list(next(iter(shown.values())))
            out.append(table(head, [[key, *(written(shown[name][key]) for name in shown)] for key in keys]))
    for kernel in model["kernels"]:
        low = kernel["low_rank"]
        rows = [[s, str(n), "–" if low is None else str(low[s])] for s, n in kernel["sparse_points"].items()]
        out.append(table(["kernel", "sparse points", "low rank"], rows))
    if (error := model["low_rank_force_error"]) is not None:
        out.append(paragraph(f"The kernel of low rank changes training forces by {error:.1e} of their rms."))
    return out


def _training(content: Mapping[str, Any]) -> list[str]:
    training, out = content["training"], []
    if training.get("level_determined") is False:
        out.append(paragraph("The level of the electronegativity, and so ionisation energies, are undetermined."))
    config = training.get("config")
    if "history" in content:
        held_out = config is not None and config.get("fit", {}).get("held_out", 0.0) > 0.0
        out += ["<h3>Rounds of the fit</h3>\n", *rounds_of_fit(content["history"], held_out)]
    if config is not None:
        out += ["<h3>Configuration</h3>\n", configuration_lists(config)]
    return out
