"""Trials and their outcome as text."""

from __future__ import annotations

from kqeq_md.train.report import QUANTITIES
from kqeq_md.train.tune.record import Trial
from kqeq_md.train.tune.search import Tuned


def one_line(trial: Trial, number: int) -> str:
    """A trial as it was made."""
    values = " ".join(f"{name}={value:g}" for name, value in trial.values.items())
    found = f"failed: {trial.failure}" if trial.error is None else f"error {trial.error:.4f}"
    return f"trial {number} ({('small', 'larger')[trial.level]}, {trial.seconds:.0f} s): {found}  {values}"


def as_table(tuned: Tuned) -> str:
    """The trials by what the search compares, the larger problem first, and what was chosen."""
    names = list(tuned.start)
    quantities = [q for q in QUANTITIES if any(q in (trial.errors or {}) for trial in tuned.trials)]
    head = ["problem", "error", *(f"{q} m{QUANTITIES[q]}" for q in quantities), "us/atom", *names]
    ranked = sorted(tuned.trials, key=lambda trial: (-trial.level, trial.cost))
    rows = [head, *(_row(trial, quantities, names, tuned) for trial in ranked)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    changed = [f"{name} {tuned.start[name]:g} -> {tuned.best[name]:g}" for name in names if _differs(tuned, name)]
    return "\n".join([
        "error: mean of the errors below in units of their sigma (1 is the least); these: rms on held-out frames, of",
        "energies without levels of compositions; us/atom: of the trial's model",
        *lines,
        f"{len(tuned.trials)} trials, ended by: {tuned.ended}",
        f"chosen: {', '.join(changed) if changed else 'the values as they were'}",
    ])  # fmt: skip


def _row(trial: Trial, quantities: list[str], names: list[str], tuned: Tuned) -> list[str]:
    mark = {True: "*", False: ""}[trial is tuned.trial_of(tuned.best)]
    errors, values = trial.errors or {}, [f"{trial.values[name]:g}" for name in names]
    cells = [f"{1e3 * errors[q]:.1f}" if q in errors else "-" for q in quantities]
    error = "failed" if trial.error is None else f"{mark}{trial.error:.4f}"
    time = "-" if trial.microseconds is None else f"{trial.microseconds:.0f}"
    return [("small", "larger")[trial.level], error, *cells, time, *values]


def _differs(tuned: Tuned, name: str) -> bool:
    return tuned.best[name] != tuned.start[name]
