"""`kqeq ir`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from kqeq_md.cli.arguments import Commands, add_command, add_common
from kqeq_md.cli.output import answer, check_output
from kqeq_md.errors import KqeqError

NAME = "ir"

log = logging.getLogger("kqeq_md")


def add(commands: Commands) -> None:
    """Its part of the command line."""
    command = add_command(
        commands,
        NAME,
        "infrared spectrum of a trajectory's dipoles",
        "Print the peaks of the infrared absorption from dipoles along a trajectory.\n\nDipoles are i-PI's extras "
        "`dipole` (e bohr), or rows `x y z` or `step x y z` (e A). Of beads, i-PI's files PREFIX_0, PREFIX_1, ..., "
        "the mean dipole counts; of other files, which are independent runs, the mean spectrum. Peaks stand out by "
        "5 % of the highest.",
        ["kqeq ir water.dipole_0 --timestep 0.5", "kqeq ir run1.dat run2.dat --timestep 0.5 -o ir.png",
         "kqeq ir dipole.dat --timestep 1 --temperature 300 --volume 1871 --data ir.dat"],
        _run,
    )  # fmt: skip
    command.add_argument("dipoles", metavar="DIPOLE_FILE", nargs="+", type=Path, help="dipoles of one or more runs")
    run = command.add_argument_group("the run")
    run.add_argument("--timestep", metavar="FS", type=float, help="of the dynamics; between rows that have no step")
    run.add_argument("--temperature", metavar="K", type=float, help="(default: relative intensities)")
    run.add_argument("--volume", metavar="A3", type=float, help="of the cell: absorption in cm^-1, else in km/mol")
    spectrum = command.add_argument_group("spectrum")
    spectrum.add_argument("--resolution", metavar="CM1", type=float, help="width of a sharp line, cm^-1 (default 10)")
    spectrum.add_argument(
        "--max", metavar="CM1", type=float, help="highest frequency (default: 4000, or what is resolved)"
    )
    spectrum.add_argument("-o", "--output", metavar="PLOT.png|.pdf", type=Path, help="plot the spectrum")
    spectrum.add_argument(
        "--data", metavar="FILE.dat", type=Path, help="write frequencies and intensities, two columns"
    )
    add_common(command, json="peaks and the whole spectrum")


def _run(arguments: argparse.Namespace) -> int:
    from kqeq_md.spectrum.absorption import RESOLUTION, highest_frequency, ir_spectrum, peaks
    from kqeq_md.spectrum.dipole_files import read_trajectories
    from kqeq_md.spectrum.plot import check_plot, plot_spectrum
    from kqeq_md.spectrum.report import as_json, as_text, write_table

    if arguments.timestep is None:
        raise KqeqError("`--timestep` (fs) must be given: files of dipoles hold steps, not times")
    if arguments.output is not None:
        check_plot(arguments.output)
        check_output(arguments.output, inputs=arguments.dipoles)
    if arguments.data is not None:
        check_output(arguments.data, "--data", arguments.dipoles)
    trajectories = read_trajectories(arguments.dipoles, arguments.timestep)
    resolution = RESOLUTION if arguments.resolution is None else arguments.resolution
    maximum = min(4000.0, highest_frequency(trajectories)) if arguments.max is None else arguments.max
    spectrum = ir_spectrum(trajectories, resolution, arguments.temperature, arguments.volume, maximum)
    found = peaks(spectrum)
    shown = (spectrum, found, resolution, trajectories)
    answer(arguments, as_json(*shown), as_text(*shown))
    if arguments.data is not None:
        write_table(spectrum, arguments.data)
        log.info("wrote %s", arguments.data)
    if arguments.output is not None:
        plot_spectrum(spectrum, found, maximum, arguments.output)
        log.info("wrote %s", arguments.output)
    return 0
