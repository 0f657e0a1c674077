"""A diagnosis as text and as JSON."""

from __future__ import annotations

import textwrap
from typing import Any

from kqeq_md.diagnose.diagnosis import Diagnosis
from kqeq_md.diagnose.measurements import Contact


def as_text(diagnosis: Diagnosis) -> str:
    """One block for each measurement."""
    blocks = []
    for letter, measured in zip("abcde", diagnosis.measurements, strict=True):
        lines = [textwrap.fill(f"({letter}) {measured.title}", 100, subsequent_indent="    ")]
        for name, finding in measured.findings.items():
            verdict = textwrap.wrap(finding.verdict, 70) or [""]
            lines.append(f"    {name:<11}{finding.number(measured.unit):<18}{verdict[0]}")
            lines += [f"{'':<33}{line}" for line in verdict[1:]]
        advice = f"What to do: {diagnosis.advice(measured)}."
        lines.append(textwrap.fill(advice, 100, initial_indent="    ", subsequent_indent="    "))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """`{value, verdict}` of each charge model under the name of each measurement, and what they were read from."""
    out: dict[str, Any] = {
        measured.name: {
            name: {"value": finding.value, "verdict": finding.verdict} for name, finding in measured.findings.items()
        }
        for measured in diagnosis.measurements
    }
    out["advice"] = {measured.name: diagnosis.advice(measured) for measured in diagnosis.measurements}
    out["curves"] = {
        measured.name: {"title": measured.title, "abscissa": measured.abscissa, "ordinate": measured.ordinate,
                        "x": list(measured.x), **{name: list(curve) for name, curve in measured.curves.items()}}
        for measured in diagnosis.measurements
    }  # fmt: skip
    out["spacing"] = diagnosis.spacing
    out["closest_contact"] = _contact(diagnosis.contact)
    return out


def _contact(contact: Contact | None) -> dict[str, Any] | None:
    if contact is None:
        return None
    return {"elements": list(contact.symbols), "distance": contact.distance, "ratio": contact.ratio}
