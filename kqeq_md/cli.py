"""The command `kqeq`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kqeq_md import __version__
from kqeq_md.errors import KqeqError
from kqeq_md.models import SHIPPED
from kqeq_md.threads import kernel_threads, start_with_one_blas_thread

if TYPE_CHECKING:
    from kqeq_md.model import Model
    from kqeq_md.structure import Structure


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; 0 on success, 1 where `check` fails, 2 for an error in the input (one line on stderr)."""
    start_with_one_blas_thread()  # the fit has threads of its own
    logging.basicConfig(format="kqeq: %(levelname)s: %(message)s", level=logging.WARNING)
    arguments = _parser().parse_args(argv)
    try:
        _set_threads(getattr(arguments, "threads", None))
        status = int(arguments.run(arguments))
        sys.stdout.flush()
        return status
    except KqeqError as error:
        sys.stderr.write(f"kqeq: error: {error}\n")
    except KeyboardInterrupt:
        sys.stderr.write("kqeq: interrupted\n")
        return 130
    except BrokenPipeError:  # as in `kqeq info MODEL | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        sys.stderr.write(f"kqeq: error: {error}\n")
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kqeq", description="Machine-learned charge equilibration for MD.")
    parser.add_argument("--version", action="version", version=f"kqeq_md {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train a model", description="Train a model from a TOML configuration.")
    train.add_argument("config", metavar="CONFIG.toml")
    train.add_argument("-o", "--output", metavar="MODEL.kqeq", required=True, type=Path)
    train.add_argument("--learning-curve", action="store_true", help="train on 1/8, 1/4 and 1/2 of the frames as well")
    train.add_argument("--no-report", action="store_true", help="do not write the folder MODEL.report")
    train.add_argument("--json", action="store_true", help="print the report as JSON, in eV, A, e")
    _add_threads(train)
    train.set_defaults(run=_train)

    tune = commands.add_parser(
        "tune",
        help="search for hyperparameters",
        description="Search for a descriptor (cutoff, sigma, radial_scale, n_max, l_max), zeta and priors from a TOML "
        "configuration on: reduced fits, measured on training frames that they do not see (whole compositions and "
        "stretches of trajectories) by the geometric mean of sqrt(1 + (rms error / sigma)^2) over energies, forces, "
        "charges and dipoles, sigma as in [fit]. Test files are never read. The trials depend on the seed alone; the "
        "clock ends the search. They are kept in BEST.trials.jsonl, and the same command goes on from there.",
    )
    tune.add_argument("config", metavar="CONFIG.toml", type=Path)
    tune.add_argument("-o", "--output", metavar="BEST.toml", required=True, type=Path, help="for `kqeq train`")
    tune.add_argument("--minutes", metavar="M", type=float, default=30.0, help="for new trials (default 30)")
    tune.add_argument("--trials", metavar="N", type=int, help="end after so many: the same N, the same result")
    tune.add_argument("--json", action="store_true", help="print all trials as JSON, in eV, A, e")
    _add_threads(tune)
    tune.set_defaults(run=_tune)

    evaluate = commands.add_parser(
        "eval", help="errors on labelled data", description="RMSE and MAE of a model on extended XYZ files."
    )
    evaluate.add_argument("model", metavar="MODEL.kqeq")
    evaluate.add_argument("data", metavar="DATA.xyz", nargs="+")
    evaluate.add_argument("--charges", metavar="qeq|fragments|split", help="by default as the model was trained")
    evaluate.add_argument(
        "--fragments", metavar="connectivity|ARRAY", help="charge stays in molecules, found in each frame or numbered"
    )
    evaluate.add_argument("--response", action="store_true", help="the mean polarizability too")
    evaluate.add_argument("--json", action="store_true", help="machine-readable, in eV, eV/A, e, e A")
    _add_threads(evaluate)
    evaluate.set_defaults(run=_eval)

    diagnose = commands.add_parser(
        "diagnose",
        help="overpolarization, leaking charge and instability, measured",
        description="Measure the diseases of charge equilibration with every charge model, on structures or on the "
        "model's reference fragment.",
    )
    diagnose.add_argument("model", metavar="MODEL.kqeq")
    diagnose.add_argument("structures", metavar="STRUCTURES", nargs="*", help="files that ASE reads, with all frames")
    diagnose.add_argument("--json", action="store_true", help="machine-readable, in eV, A, e")
    diagnose.add_argument("--plot", metavar="FOLDER", type=Path, help="write a PNG file for each measurement")
    diagnose.add_argument("--spacing", metavar="D", type=float, help="closest contact in chains, A (default 3)")
    diagnose.add_argument(
        "--fragment-charges", metavar='"Q1 Q2"', help="of the two pieces that are pulled apart, e (default neutral)"
    )
    _add_threads(diagnose)
    diagnose.set_defaults(run=_diagnose)

    info = commands.add_parser("info", help="what a model file holds", description="Print what a model file holds.")
    info.add_argument("model", metavar="MODEL.kqeq")
    info.add_argument("--json", action="store_true", help="the header as JSON")
    info.set_defaults(run=_info)

    models = commands.add_parser(
        "models",
        help="the shipped models and their files",
        description='Print the file of a shipped model, as in `cp "$(kqeq models nacl)" .`, or the list of them.',
    )
    models.add_argument("name", metavar="NAME", nargs="?", help=", ".join(SHIPPED))
    models.set_defaults(run=_models)

    select = commands.add_parser(
        "select",
        help="frames of trajectories that are worth labelling next",
        description="Pick the frames that the model knows least of: each one has the largest measure of extrapolation "
        "beside the training set and the frames picked before. `total_charge` (e) and `electric_field` (V/A) of a "
        "frame count where it has them.",
    )
    select.add_argument("model", metavar="MODEL.kqeq")
    select.add_argument("trajectories", metavar="TRAJECTORY", nargs="+", help="files that ASE reads, with all frames")
    select.add_argument("-n", "--number", metavar="N", type=int, required=True, help="at most so many frames")
    select.add_argument("-o", "--output", metavar="PICKED.xyz", type=Path, required=True, help="extended XYZ")
    select.add_argument("--charge", metavar="Q", type=float, default=0.0, help="of frames without `total_charge`, e")
    select.add_argument("--open", action="store_true", help="without cells: i-PI writes them around clusters too")
    select.add_argument("--json", action="store_true", help="machine-readable: what was picked, and why")
    _add_threads(select)
    select.set_defaults(run=_select)

    check = commands.add_parser(
        "check",
        help="does a model give its reference numbers here?",
        description="Evaluate the model's reference structure on this machine; exit status 1 if it deviates.",
    )
    check.add_argument("model", metavar="MODEL.kqeq")
    check.add_argument("--json", action="store_true")
    _add_threads(check)
    check.set_defaults(run=_check)

    gap = commands.add_parser(
        "import-gap",
        help="a QUIP GAP as a model",
        description="Write the model of a QUIP GAP XML file (soap, distance_2b and energies per element; its files of "
        "sparse points lie beside it): a short-range potential without charges for LAMMPS, i-PI and ASE.",
    )
    gap.add_argument("gap", metavar="GAP.xml", type=Path)
    gap.add_argument("-o", "--output", metavar="MODEL.kqeq", required=True, type=Path)
    gap.add_argument(
        "--low-rank", metavar="FILE", help="add a fast kernel of low rank, with forces within 1e-4 on its structures"
    )
    gap.set_defaults(run=_import_gap)

    ir = commands.add_parser(
        "ir",
        help="infrared spectrum of a trajectory's dipoles",
        description="The infrared absorption from dipoles along a trajectory: i-PI's extras `dipole` (e bohr), or rows "
        "`x y z` or `step x y z` (e A). Of beads, i-PI's files PREFIX_0, PREFIX_1, ..., the mean dipole counts; of "
        "other files, which are independent runs, the mean spectrum. Peaks stand out by 5 % of the highest.",
    )
    ir.add_argument("dipoles", metavar="DIPOLE_FILE", nargs="+", type=Path)
    ir.add_argument("--timestep", metavar="FS", type=float, help="of the dynamics; between rows that have no step")
    ir.add_argument("--temperature", metavar="K", type=float, help="(default: relative intensities)")
    ir.add_argument("--volume", metavar="A3", type=float, help="of the cell: absorption in cm^-1, else in km/mol")
    ir.add_argument("--resolution", metavar="CM1", type=float, help="width of a sharp line, cm^-1 (default 10)")
    ir.add_argument("--max", metavar="CM1", type=float, help="highest frequency (default: 4000, or what is resolved)")
    ir.add_argument("-o", "--output", metavar="PLOT.png|.pdf", type=Path, help="plot the spectrum")
    ir.add_argument("--data", metavar="FILE.dat", type=Path, help="write frequencies and intensities, two columns")
    ir.add_argument("--json", action="store_true", help="machine-readable, with the whole spectrum")
    ir.set_defaults(run=_ir)

    demo = commands.add_parser(
        "demo",
        help="a LAMMPS run and an i-PI run with the shipped model",
        description="Run the shipped NaCl model in LAMMPS and i-PI (under two minutes on two cores) and plot it.",
    )
    demo.add_argument("-o", "--output", metavar="FOLDER", default="kqeq_demo", type=Path)
    demo.set_defaults(run=_demo)
    return parser


def _add_threads(command: argparse.ArgumentParser) -> None:
    command.add_argument("--threads", metavar="N", type=int, help="how many work at once (default: KQEQ_NUM_THREADS, "
                         "or what the scheduler gives)")  # fmt: skip


def _set_threads(threads: int | None) -> None:
    """For everything that this process computes."""
    if threads is not None:
        os.environ["KQEQ_NUM_THREADS"] = str(kernel_threads(threads))


def _train(arguments: argparse.Namespace) -> int:
    from kqeq_md.model import save_model
    from kqeq_md.progress import progress
    from kqeq_md.train.config import read_config
    from kqeq_md.train.report.folder import HTML, content_of, report_folder, write_report
    from kqeq_md.train.run import train

    if arguments.learning_curve and arguments.no_report:
        raise KqeqError("`--learning-curve` goes into the report: leave out `--no-report`")
    config = read_config(arguments.config)
    _check_output(arguments.output, inputs=[arguments.config, *config.data.train, *config.data.test])
    folder = None if arguments.no_report else report_folder(arguments.output)
    checkpoint = arguments.output.with_name(f"{arguments.output.name}.checkpoint")
    _check_output(checkpoint, "the checkpoint")
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # batch systems end runs by it
    try:
        trained = train(config, progress, checkpoint, arguments.learning_curve)
        save_model(trained.model, arguments.output)
        if not arguments.json:
            print(trained.text)
            print(f"\nwrote {arguments.output}", flush=True)
        report = replace(trained.report, name=arguments.output.stem)
        if folder is not None:
            content = write_report(folder, report, progress)
        elif arguments.json:
            content, *_ = content_of(report, progress)
    except BaseException:
        if checkpoint.is_file():
            sys.stderr.write(f"kqeq: the same command goes on from {checkpoint}\n")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    checkpoint.unlink(missing_ok=True)
    if arguments.json:
        print(json.dumps(content, indent=1))
    elif folder is not None:
        print(f"wrote {folder / HTML}{'' if content['plots'] else ', without plots: matplotlib is not installed'}")
    return 0


def _tune(arguments: argparse.Namespace) -> int:
    from kqeq_md.files import write_whole
    from kqeq_md.train.config import read_config
    from kqeq_md.train.tune.search import INTERRUPTED, as_json, tune
    from kqeq_md.train.tune.table import as_table, one_line
    from kqeq_md.train.tune.text import read_text, tuned_text

    config, output = read_config(arguments.config), arguments.output
    _check_output(output)
    text = read_text(arguments.config, output, config)
    record = output.with_name(f"{output.stem}.trials.jsonl")
    _check_output(record, "the file of trials")
    tuned = tune(
        config,
        arguments.minutes,
        arguments.trials,
        record,
        lambda trial, number: print(one_line(trial, number), file=sys.stderr, flush=True),
    )
    write_whole(output, tuned_text(text, tuned, arguments.config.parent, output.parent).encode())
    print(json.dumps(as_json(tuned), indent=1) if arguments.json else f"{as_table(tuned)}\nwrote {output}", flush=True)
    if tuned.ended == INTERRUPTED:
        sys.stderr.write(f"kqeq: interrupted; the same command goes on from {record}\n")
        return 130
    return 0


def _check_output(path: Path, name: str = "--output", inputs: Sequence[str | Path] = ()) -> None:
    """Refuse before the work what could not be written after it, or would destroy what it comes from."""
    folder = path.resolve().parent
    if not folder.is_dir():
        raise KqeqError(f"`{name}` must lie in a folder that exists, got {path}")
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise KqeqError(f"`{name}` must be a file that can be written, got {path}")
    for file in inputs:
        if path.exists() and Path(file).exists() and path.samefile(file):
            raise KqeqError(f"`{name}` must not be a file that is read, got {path}")


def _eval(arguments: argparse.Namespace) -> int:
    from kqeq_md.charges.charge_model import CONNECTIVITY
    from kqeq_md.model import load_model, reading
    from kqeq_md.progress import progress
    from kqeq_md.train.config import Data, build
    from kqeq_md.train.data import read_frames
    from kqeq_md.train.report import evaluate, format_table

    model = load_model(arguments.model)
    with reading("training"):
        data = build(Data, {"train": [], **model.training.get("config", {}).get("data", {})}, "training.config.data.")
    fragments = arguments.fragments
    numbers = None if fragments == CONNECTIVITY else fragments
    frames = read_frames(arguments.data, data.keys, numbers, not arguments.response, data.units, data.field_term)
    table = evaluate(model, frames, progress, arguments.charges, fragments is not None, arguments.response)
    print(json.dumps(table, indent=1) if arguments.json else f"RMSE (MAE)\n{format_table(table)}")
    return 0


def _diagnose(arguments: argparse.Namespace) -> int:
    from kqeq_md.diagnose.diagnosis import diagnose
    from kqeq_md.diagnose.plots import check_plots, plot_diagnosis
    from kqeq_md.diagnose.report import as_json, as_text
    from kqeq_md.diagnose.samples import SPACING
    from kqeq_md.model import load_model

    model = load_model(arguments.model)
    structures = [structure for file in arguments.structures for structure in _structures(file)]
    if arguments.plot is not None:
        check_plots(arguments.plot)
    spacing = SPACING if arguments.spacing is None else arguments.spacing
    found = diagnose(model, structures, spacing, _numbers("--fragment-charges", arguments.fragment_charges))
    print(json.dumps(as_json(found), indent=1) if arguments.json else as_text(found))
    if arguments.plot is not None:
        for path in plot_diagnosis(found, arguments.plot):
            logging.getLogger("kqeq_md").info("wrote %s", path)
    return 0


def _numbers(name: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise KqeqError(f"`{name}` must be numbers, got {text!r}") from None


def _structures(file: str) -> list[Structure]:
    """All frames of a file, with `total_charge` (e) and `electric_field` (V/A) where they have them."""
    from ase.io import read

    from kqeq_md.ase import NO_FIELD, structure_from_atoms

    if not Path(file).is_file():  # before ASE takes "-" for standard input and "@" for a slice
        raise KqeqError(f"structure file {file} does not exist")
    try:
        frames = read(Path(file), index=":")
    except Exception as error:  # ASE's readers raise whatever their parsers meet
        raise KqeqError(f"structure file {file} cannot be read: {type(error).__name__}: {error}") from None
    if not frames:
        raise KqeqError(f"structure file {file} holds no structures")
    found = []
    for index, atoms in enumerate(frames):
        charge, field = atoms.info.get("total_charge", 0.0), atoms.info.get("electric_field", NO_FIELD)
        try:
            found.append(structure_from_atoms(atoms, charge, field))
        except KqeqError as error:
            raise KqeqError(f"{file}, frame {index}: {error}") from None
    return found


def _select(arguments: argparse.Namespace) -> int:
    from kqeq_md.model import load_model
    from kqeq_md.select import select
    from kqeq_md.selection_report import as_json, as_text, write_picked

    _check_output(arguments.output, inputs=[arguments.model, *arguments.trajectories])
    model = load_model(arguments.model)
    selection = select(model, arguments.trajectories, arguments.number, arguments.charge, arguments.open)
    write_picked(selection, arguments.output)
    print(json.dumps(as_json(selection), indent=1) if arguments.json else as_text(selection))
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from kqeq_md.model import load_model, model_header
    from kqeq_md.train.report.description import describe

    model = load_model(arguments.model)
    if arguments.json:
        print(json.dumps(model_header(model), indent=1))
    else:
        print(f"{arguments.model}: " + "\n".join(describe(model)))
    return 0


def _models(arguments: argparse.Namespace) -> int:
    if arguments.name is None:
        print("\n".join(f"{name:<12}{path}" for name, path in SHIPPED.items()))
    elif arguments.name in SHIPPED:
        print(SHIPPED[arguments.name])
    else:
        raise KqeqError(f"`NAME` must be one of {', '.join(SHIPPED)}, got {arguments.name!r}")
    return 0


def _import_gap(arguments: argparse.Namespace) -> int:
    from kqeq_md.gap_import import import_gap
    from kqeq_md.model import save_model

    _check_output(arguments.output)
    if arguments.output.exists() and arguments.output.samefile(arguments.gap):
        raise KqeqError(f"`--output` must not be the GAP file itself, got {arguments.output}")
    model = import_gap(arguments.gap)
    if arguments.low_rank is not None:
        model = _with_low_rank(model, _structures(arguments.low_rank))
    save_model(model, arguments.output)
    print(f"wrote {arguments.output}")
    return 0


def _with_low_rank(model: Model, structures: list[Structure]) -> Model:
    from kqeq_md.compression import LARGEST_FORCE_ERROR, STEP, compress, forces_on

    if all(term.zeta != 2 for term in model.terms):
        raise KqeqError(f"`--low-rank` needs a kernel with zeta = 2, got zeta {[term.zeta for term in model.terms]}")
    compressed = compress(model, forces_on(structures))
    if compressed.force_error is None:
        raise KqeqError(
            f"`--low-rank` found no lower rank that changes forces on these structures by less than "
            f"{LARGEST_FORCE_ERROR:g} of them: it needs more than {STEP} sparse points per element, and structures in "
            "which atoms feel forces"
        )
    print(f"low rank: forces change by {compressed.force_error:.1e} of their rms")
    training = {**compressed.model.training, "low_rank_force_error": compressed.force_error}
    return replace(compressed.model, training=training)


def _check(arguments: argparse.Namespace) -> int:
    from kqeq_md.potential import Potential
    from kqeq_md.reference import TOLERANCES, deviations

    found = deviations(Potential(arguments.model))
    good = all(found[name] <= TOLERANCES[name] for name in TOLERANCES)
    if arguments.json:
        print(json.dumps({"passed": good, "deviations": found, "tolerances": TOLERANCES}, indent=1))
    else:
        for name, value in found.items():
            print(f"{name:<18}deviation {value:.1e}, tolerance {TOLERANCES[name]:.0e}")
        print(f"{arguments.model}: {'as trained' if good else 'DEVIATES from its reference'}")
    return 0 if good else 1


def _ir(arguments: argparse.Namespace) -> int:
    from kqeq_md.spectrum.absorption import RESOLUTION, highest_frequency, ir_spectrum, peaks
    from kqeq_md.spectrum.dipole_files import read_trajectories
    from kqeq_md.spectrum.plot import check_plot, plot_spectrum
    from kqeq_md.spectrum.report import as_json, as_text, write_table

    if arguments.timestep is None:
        raise KqeqError("`--timestep` (fs) must be given: files of dipoles hold steps, not times")
    if arguments.output is not None:
        check_plot(arguments.output)
        _check_output(arguments.output)
    if arguments.data is not None:
        _check_output(arguments.data, "--data")
    trajectories = read_trajectories(arguments.dipoles, arguments.timestep)
    resolution = RESOLUTION if arguments.resolution is None else arguments.resolution
    maximum = min(4000.0, highest_frequency(trajectories)) if arguments.max is None else arguments.max
    spectrum = ir_spectrum(trajectories, resolution, arguments.temperature, arguments.volume, maximum)
    found = peaks(spectrum)
    if arguments.json:
        print(json.dumps(as_json(spectrum, found, resolution, trajectories), indent=1))
    else:
        print(as_text(spectrum, found, resolution, trajectories))
    if arguments.data is not None:
        write_table(spectrum, arguments.data)
    if arguments.output is not None:
        plot_spectrum(spectrum, found, maximum, arguments.output)
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from kqeq_md.demo import run_demo

    print(run_demo(arguments.output, say=print))
    return 0
