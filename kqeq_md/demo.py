"""`kqeq demo`: the shipped NaCl model in LAMMPS and in i-PI, with charges that answer their surroundings."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

from kqeq_md.errors import KqeqError
from kqeq_md.machine.json_text import json_text
from kqeq_md.machine.programs import environment, lammps_command, program
from kqeq_md.models import NACL
from kqeq_md.structure import Floats

FILES = ("nacl_melt/in.melt", "lammps/in.cluster_field", "ipi/input.xml", "ipi/init.xyz")
MELT = {"cells": "2", "nvt": "300", "nve": "500", "sample": "10"}
"""Variables of `in.melt`: 64 atoms and a few hundred steps instead of 512 atoms and 10 ps."""

FIELD = "0 0 0.05"
DRIVER = ["-m", NACL.name, "-t", "init.xyz", "-u", "-a", "nacl_cluster", "--efield", FIELD]
"""Arguments of `kqeq-ipi`."""

TIME_LIMIT = 600.0
"""Seconds after which a run that hangs is ended; a run takes less than a minute."""


def run_demo(folder: Path, say: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    """Run LAMMPS and i-PI in `folder` (inputs, model, logs and `demo.png` stay there); numbers, and what they show.

    `say` is told what runs while it runs.

    Raises:
        KqeqError: an extra is not installed, or a run fails; the message names its log.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise KqeqError("`kqeq demo` plots with matplotlib: pip install 'kqeq_md[all]'") from None
    lmp, ipi, driver = lammps_command(), program("i-pi"), program("kqeq-ipi")
    _copy_inputs(folder)
    start = time.monotonic()
    say(f"{lmp.name} {' '.join(_melt_arguments())}   (log: {folder / 'lammps.out'})")
    _run([str(lmp), *_melt_arguments()], folder, "lammps.out")
    say(f"i-pi input.xml and {driver.name} {shlex.join(DRIVER)}   (log: {folder / 'i-pi.out'})")
    _run_ipi(ipi, driver, folder)
    melt = read_thermo(folder / "log.lammps")
    cluster = np.loadtxt(folder / "cluster.out")
    _plot(folder, melt, cluster)
    return _summary(folder, melt, cluster, time.monotonic() - start)


def _melt_arguments() -> list[str]:
    return ["-in", "in.melt", *(word for name, value in MELT.items() for word in ("-var", name, value))]


def _copy_inputs(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KqeqError(f"`--output` must be a folder that can be written, got {folder}: {error.strerror}") from None
    for name in FILES:
        with as_file(files("kqeq_md.examples") / name) as source:
            shutil.copy(source, folder)
    shutil.copy(NACL, folder)


def _run(command: list[str], folder: Path, output: str) -> None:
    with open(folder / output, "w", encoding="utf-8") as stream:
        done = subprocess.run(
            command, cwd=folder, env=environment(), stdout=stream, stderr=subprocess.STDOUT, timeout=TIME_LIMIT
        )
    if done.returncode:
        raise KqeqError(f"{' '.join(command)} ended with exit code {done.returncode}: see {folder / output}")


def _run_ipi(ipi: Path, driver: Path, folder: Path) -> None:
    """The server in the background, the driver beside it; each ends when the other does."""
    with open(folder / "i-pi.out", "w", encoding="utf-8") as stream:
        server = subprocess.Popen(
            [str(ipi), "input.xml"], cwd=folder, env=environment(), stdout=stream, stderr=subprocess.STDOUT
        )
        try:
            _run([str(driver), *DRIVER, "--wait", "30"], folder, "kqeq-ipi.out")
            if server.wait(timeout=TIME_LIMIT):
                raise KqeqError(f"i-PI ended with exit code {server.returncode}: see {folder / 'i-pi.out'}")
        finally:
            server.kill()
            server.wait()


def read_thermo(path: Path) -> list[dict[str, Floats]]:
    """The tables of thermodynamic output of a LAMMPS log, one per run: columns by name."""
    tables = []
    for block in re.findall(r"^\s*(Step .*?)^Loop time", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        names, *lines = (line.split() for line in block.strip().splitlines())
        rows = [line for line in lines if len(line) == len(names) and re.fullmatch(r"-?\d+", line[0])]
        tables.append(dict(zip(names, np.array(rows, dtype=np.float64).T, strict=True)))
    return tables


def drift(path: Path) -> str:
    """The line with the energy drift that `in.melt` prints."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("energy drift:")]
    return lines[-1]


def _melt_charges(folder: Path) -> tuple[Floats, Floats]:
    """Charges of all sodium and all chlorine atoms in the frames of `melt.dump`, e."""
    rows = [
        line.split()
        for line in (folder / "melt.dump").read_text(encoding="utf-8").splitlines()
        if len(line.split()) == 6
    ]
    table = np.array([row for row in rows if row[0].isdigit()], dtype=np.float64)
    return table[table[:, 1] == 1, 5], table[table[:, 1] == 2, 5]


def _extras(folder: Path, name: str) -> Floats:
    """What i-PI wrote of one of the driver's extras, one row per frame."""
    return np.loadtxt(folder / f"cluster.{name}_0", comments="#", ndmin=2)


def _plot(folder: Path, melt: list[dict[str, Floats]], cluster: Floats) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    nvt, nve = melt
    atoms = 8 * int(MELT["cells"]) ** 3
    for table, name, start in ((nvt, "NVT", 0.0), (nve, "NVE", nvt["Time"][-1])):
        total = (table["TotEng"] - nve["TotEng"][0]) / atoms
        axes[0, 0].plot(start + table["Time"], total, label=f"{name}, total energy")
    axes[0, 0].set(xlabel="time / ps", ylabel="energy / eV per atom", title="LAMMPS: NaCl melt, 64 atoms")
    axes[0, 0].legend()
    sodium, chlorine = _melt_charges(folder)
    bins = np.linspace(-1.0, 1.0, 101)
    axes[0, 1].hist(sodium, bins=bins, label="Na")
    axes[0, 1].hist(chlorine, bins=bins, label="Cl")
    axes[0, 1].set(xlabel="charge / e", ylabel="atoms", title="LAMMPS: charges in the melt (NVE)")
    axes[0, 1].legend()
    change = 1000.0 * (cluster[:, 2:4] - cluster[0, 2:4])
    axes[1, 0].plot(cluster[:, 1], change[:, 1], label="potential energy")
    axes[1, 0].plot(cluster[:, 1], change[:, 0], label="conserved quantity")
    axes[1, 0].set(xlabel="time / ps", ylabel="change / meV", title=f"i-PI: Na4Cl4 in a field of {FIELD} V/Å")
    axes[1, 0].legend()
    charges = _extras(folder, "charges")
    times = np.linspace(0.0, cluster[-1, 1], len(charges))
    axes[1, 1].plot(times, charges)
    axes[1, 1].set(xlabel="time / ps", ylabel="charge / e", title="i-PI: charge of each atom")
    figure.savefig(folder / "demo.png", dpi=120)


def _summary(
    folder: Path, melt: list[dict[str, Floats]], cluster: Floats, seconds: float
) -> tuple[dict[str, Any], str]:
    sodium, chlorine = _melt_charges(folder)
    conserved = 1000.0 * np.ptp(cluster[:, 2])
    potential = 1000.0 * np.ptp(cluster[:, 3])
    results = {
        "folder": str(folder),
        "commands": [[lammps_command().name, *_melt_arguments()], ["i-pi", "input.xml"], ["kqeq-ipi", *DRIVER]],
        "melt_drift": drift(folder / "lammps.out"),
        "melt_charge_na": [float(sodium.mean()), float(sodium.std())],
        "melt_charge_cl": [float(chlorine.mean()), float(chlorine.std())],
        "cluster_conserved_range_meV": conserved,
        "cluster_potential_range_meV": potential,
        "seconds": seconds,
    }
    (folder / "demo.json").write_text(json_text(results) + "\n", encoding="utf-8")
    text = f"""\
The shipped NaCl model ran in two engines, charges equilibrated again at every step ({seconds:.0f} s):
  LAMMPS, 64-atom melt at about {melt[1]["Temp"].mean():.0f} K: {results["melt_drift"]};
    charges Na {sodium.mean():+.3f} +- {sodium.std():.3f} e, Cl {chlorine.mean():+.3f} +- {chlorine.std():.3f} e
    (the spread is what fixed charges miss)
  i-PI, Na4Cl4 in a static field of {FIELD} V/A: the potential energy moves by {potential:.0f} meV,
    the conserved quantity by {conserved:.2f} meV
Plot, logs, inputs and the model: {folder}/demo.png, lammps.out, i-pi.out, ...
Again, by hand:  cd {folder} && {lammps_command().name} {" ".join(_melt_arguments())}
"""
    return results, text
