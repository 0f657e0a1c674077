"""What `pair_style kqeq` computes: LAMMPS' atoms and box in, energy, forces, virial and charges out.

The C++ side (pair_kqeq.cpp) calls the three functions of a table that `attach` fills. `units metal` are the core's own
units; for `units real` energies, forces and virials are multiplied by LAMMPS' own number, and nothing else differs.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from ctypes import POINTER, c_char, c_char_p, c_double, c_int, c_int64, c_void_p
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kqeq_md.errors import ExtrapolationError, KqeqError, StructureError
from kqeq_md.lammps_plugin.halo import LammpsHalo, in_order
from kqeq_md.limits import Watch
from kqeq_md.potential import NO_VIRIAL, Potential
from kqeq_md.ranks.domain import Domain
from kqeq_md.ranks.halo import SERIAL, Halo
from kqeq_md.response import response
from kqeq_md.structure import Floats, Result, Structure

log = logging.getLogger("kqeq_md")

VOIGT = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
"""LAMMPS' order of the virial: xx yy zz xy xz yz."""

JUMP = 1.0
"""Angstrom. No time step moves an atom that far."""


Exchange = ctypes.CFUNCTYPE(None, c_void_p, POINTER(c_double), c_int)
All = ctypes.CFUNCTYPE(None, c_void_p, POINTER(c_double), POINTER(c_double), POINTER(c_int))
Gather = ctypes.CFUNCTYPE(None, c_void_p, POINTER(c_double), c_int, POINTER(c_double))


class Call(ctypes.Structure):
    """The struct KqeqCall of pair_kqeq.cpp, field by field."""

    _fields_ = (
        ("pair", c_void_p),
        ("model", c_char_p),
        ("elements", POINTER(c_char_p)),
        ("charges", c_char_p),
        ("action", c_char_p),
        ("charge", c_double),
        ("field", c_double * 3),
        ("accuracy", c_double),
        ("tolerance", c_double),
        ("threads", c_double),
        ("energy_unit", c_double),
        ("cell", c_double * 9),
        ("x", POINTER(c_double)),
        ("unwrapped", POINTER(c_double)),
        ("type", POINTER(c_int)),
        ("rows", POINTER(c_int)),
        ("ids", POINTER(c_int64)),
        ("molecule", POINTER(c_int64)),
        ("f", POINTER(c_double)),
        ("q", POINTER(c_double)),
        ("eatom", POINTER(c_double)),
        ("born", POINTER(c_double)),
        ("measure", POINTER(c_double)),
        ("n_types", c_int),
        ("n_atoms", c_int),
        ("n_all", c_int),
        ("n_local", c_int),
        ("n_lammps", c_int),
        ("periodic", c_int * 3),
        ("rank", c_int),
        ("ranks", c_int),
        ("renewed", c_int),
        ("by_molecule", c_int),
        ("starts_run", c_int),
        ("other_atoms", c_int),
        ("want_virial", c_int),
        ("has_charges", c_int),
        ("all_failed", c_int),
        ("cutoff", c_double),
        ("reach", c_double),
        ("parts", c_double * 7),
        ("virial", c_double * 6),
        ("message", c_char * 1024),
        ("warning", c_char * 1024),
        ("forward", Exchange),
        ("reverse", Exchange),
        ("add", Exchange),
        ("gather", Gather),
        ("exchange", All),
    )


_Function = ctypes.CFUNCTYPE(c_int, POINTER(Call))


class Table(ctypes.Structure):
    """The struct KqeqTable of pair_kqeq.cpp."""

    _fields_ = tuple((name, _Function) for name in ("open", "reach", "compute", "close"))


class PairStyle:
    """A potential and the atomic number of each LAMMPS type.

    Args:
        model: path of the model file.
        elements: element symbol of each type, or "NULL": not of the model.
        extrapolation: what is done about atoms that extrapolate, "warn", "stop" or "off".
        knobs: `accuracy` (eV/Angstrom), `tolerance`, `threads`, `charges` and `fragments` of `Potential`; those that
            are left out are its defaults.

    Raises:
        KqeqError: an element that the model does not know, or knobs that do not go together.
        ModelError: the file cannot be read.
    """

    def __init__(self, model: str, elements: list[str], extrapolation: str = "warn", **knobs: Any) -> None:
        self.potential = Potential(model, **knobs)
        self._watch = Watch(extrapolation, self.potential.largest_measure)
        self._warned_of_virial = False
        self._before: tuple[NDArray[np.int64], Floats] | None = None
        known = dict(zip(self.potential.model.species, self.potential.model.numbers, strict=True))
        for index, element in enumerate(elements, start=1):
            if element not in ("NULL", *known):
                raise KqeqError(f"pair_coeff: the model knows {', '.join(known)}, got {element} for type {index}")
        self.numbers = np.array([known.get(element, 0) for element in elements])

    def compile(self, periodic: bool) -> None:
        """Evaluate two atoms, so that the kernels are compiled now and not inside the first time step."""
        reach = self.potential.model.cutoff
        pair = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.5 * reach]])
        # another one, for what a potential has seen, fragments among it, it keeps
        trial = Potential(self.potential.model, threads=self.potential.threads)
        with suppress(KqeqError):  # whether this pair makes sense to the model is no matter
            trial.compute(Structure([self.numbers.max()] * 2, pair, cell=2.0 * reach * np.eye(3), pbc=periodic))

    def compute(self, call: Call) -> None:
        """Evaluate the owned atoms; forces and energies per atom are added, charges and Born charges are set."""
        rows = _array(call.rows, call.n_atoms)
        # one rank has images of unwrapped atoms in the place of ghosts
        structure = _structure(call, self.numbers, call.unwrapped if call.ranks == 1 else call.x)
        domain = _domain(call)
        self._find_fragments(call)
        want = ["forces", "dipole"] + ["energies"] * bool(call.eatom)
        try:
            result = self.potential.compute(structure, None if call.want_virial else want, domain)
        except StructureError as error:
            if domain is not None:
                raise
            raise StructureError(f"{error}; atoms count from 0 in the order of their ids") from None
        unit = call.energy_unit
        call.parts = (*(unit * part for part in _energies(result)), *_dipole(call, result), result.iterations)
        if self.potential.has_charges:
            _array(call.q, call.n_local)[rows] = result.charges
        _array(call.f, call.n_local, 3)[rows] += unit * result.forces
        if call.eatom:
            _array(call.eatom, call.n_local)[rows] += unit * result.energies
        if call.want_virial:
            call.virial = self._virial(result, unit)
        self._look_at_extrapolation(call, structure, domain, result)
        if call.born:
            born = response(self.potential, structure, domain).born_charges
            _array(call.born, call.n_local, 9)[rows] = born.reshape(-1, 9)

    def _look_at_extrapolation(self, call: Call, structure: Structure, domain: Domain | None, result: Result) -> None:
        """Give the measure to LAMMPS where it wants it, and warn or stop; every rank comes to the same decision.

        Raises:
            ExtrapolationError: on all ranks together.
        """
        due, wanted = self._watch.due(), bool(call.measure)
        if not (due or wanted):
            return
        # ghosts are those that the step has just had
        measure = self.potential.extrapolation(structure, domain and replace(domain, renewed=False), result)
        if wanted:
            _array(call.measure, call.n_local)[_array(call.rows, call.n_atoms)] = measure
        if due:
            found = _halo(call).gather(np.stack([measure, _ids(call)], axis=1))
            self._watch.look(found[:, 0], found[:, 1].astype(np.int64), "ids with their measures")

    def reach(self, call: Call) -> float:
        """How far LAMMPS' ghosts have to reach, Angstrom; one rank needs none."""
        if call.ranks == 1:
            return self.potential.cutoff
        return self.potential.reach(_structure(call, self.numbers, call.unwrapped), _halo(call))

    def _find_fragments(self, call: Call) -> None:
        """Take molecule ids, or find molecules anew, where a run starts or atoms are others than in the step before.

        Raises:
            KqeqError: atoms of no molecule.
        """
        if call.by_molecule and (call.starts_run or call.other_atoms):
            molecule = in_order(_halo(call), _ids(call), _array(call.molecule, call.n_atoms))
            if (molecule == 0).any():
                raise KqeqError(
                    f"`fragments molecule` needs a molecule id for each atom of the model: {(molecule == 0).sum()} "
                    "have the id 0, which stands for no molecule (`set ... mol ID` gives them one)"
                )
            self.potential.use_fragments(molecule.astype(np.int64))
        if self._holds_molecules(call):
            if call.other_atoms or (call.starts_run and self._were_moved(call)):
                self.potential.use_fragments("connectivity")
            self._before = _ids(call).copy(), _array(call.unwrapped, call.n_atoms, 3).copy()

    def _were_moved(self, call: Call) -> bool:
        """Whether atoms stand where a command put them after the last step of the run before."""
        if self._before is None:
            return False
        ids, before = self._before
        halo = _halo(call)
        then, now = in_order(halo, ids, before), in_order(halo, _ids(call), _array(call.unwrapped, call.n_atoms, 3))
        return bool(np.abs(now - then).max() > JUMP)

    def _holds_molecules(self, call: Call) -> bool:
        """Whether fragments were found by their bonds."""
        return self.potential.has_charges and self.potential.charge_model.name == "fragments" and not call.by_molecule

    def _virial(self, result: Result, unit: float) -> tuple[float, ...]:
        """In LAMMPS' order and unit; nan where it is not defined, so that no barostat takes it for a number."""
        if result.unsymmetrized_virial is not None:
            return tuple(unit * result.unsymmetrized_virial[a, b] for a, b in VOIGT)
        if not self._warned_of_virial:
            self._warned_of_virial = True
            log.warning("%s: pressures are nan, and the box has to stay", NO_VIRIAL)
        return (np.nan,) * 6


def _energies(result: Result) -> tuple[float, float, float]:
    return result.short_range_energy, result.charge_energy, result.field_energy


def _dipole(call: Call, result: Result) -> Floats:
    """mu, e Angstrom, shape (3,); where it depends on images, that of the atoms as LAMMPS' image flags unwrap them."""
    if result.dipole is not None:
        return result.dipole
    return _halo(call).sum(result.charges @ _array(call.unwrapped, call.n_atoms, 3))


def _structure(call: Call, numbers: NDArray[np.int64], positions: Any) -> Structure:
    """The owned atoms, from the atomic numbers of LAMMPS' types."""
    n = call.n_atoms
    return Structure(
        numbers[_array(call.type, n) - 1],
        _array(positions, n, 3),
        cell=np.reshape(call.cell, (3, 3)) if any(call.periodic) else None,
        pbc=[bool(axis) for axis in call.periodic],
        charge=call.charge,
        field=list(call.field),
        part=call.ranks > 1,
    )


def _ids(call: Call) -> NDArray[np.int64]:
    """Of the model's own atoms."""
    return np.asarray(_array(call.ids, call.n_atoms), dtype=np.int64)


def _domain(call: Call) -> Domain | None:
    """What this rank knows of the others' atoms; None on one rank, which has images instead of ghosts."""
    if call.ranks == 1:
        return None
    ids = np.array(_array(call.ids, call.n_all), dtype=np.int64)
    places = _array(call.x, call.n_all, 3)[call.n_atoms :].copy()
    unwrapped = _array(call.unwrapped, call.n_atoms, 3).copy()
    return Domain(ids, places, unwrapped, call.reach, bool(call.renewed), _halo(call))


def _halo(call: Call) -> Halo:
    if call.ranks == 1:
        return SERIAL
    rows = np.array(_array(call.rows, call.n_all), dtype=np.int64)
    functions = (call.forward, call.reverse, call.add, call.gather, call.exchange)
    bound: list[Any] = [partial(function, call.pair) for function in functions]
    return LammpsHalo(rows, call.n_atoms, call.n_lammps, call.rank, call.ranks, *bound)


def _array(pointer: Any, *shape: int) -> NDArray[Any]:
    """LAMMPS' own memory as an array; it may move between calls, so views are never kept."""
    if shape[0] == 0:  # a rank without atoms has null pointers
        return np.empty(shape, dtype=pointer._type_)
    return np.ctypeslib.as_array(pointer, shape)


class _Warnings(logging.Handler):
    """Collects what the core warns of, so that LAMMPS can print it to screen and log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def take(self) -> str:
        text = "; ".join(self.lines)
        self.lines.clear()
        return text


_styles: dict[int, PairStyle] = {}
_warnings = _Warnings()


def _open(call: Call) -> None:
    elements = [os.fsdecode(call.elements[i]) for i in range(call.n_types)]
    style = _styles[call.pair] = PairStyle(os.fsdecode(call.model), elements, **_knobs(call))
    style.compile(periodic=any(call.periodic))
    call.has_charges = style.potential.has_charges


def _knobs(call: Call) -> dict[str, Any]:
    """Arguments of `PairStyle` that the script gives."""
    given: dict[str, Any] = {}
    if not math.isnan(call.accuracy):
        given["accuracy"] = call.accuracy / call.energy_unit
    if not math.isnan(call.tolerance):
        given["tolerance"] = call.tolerance
    if not math.isnan(call.threads):
        given["threads"] = int(call.threads) if call.threads.is_integer() else call.threads
    if call.charges:
        given["charges"] = os.fsdecode(call.charges)
    if call.by_molecule:
        given["fragments"] = "connectivity"  # until the first step, when the ids are known
    if call.action:
        given["extrapolation"] = os.fsdecode(call.action)
    return given


def _reach(call: Call) -> None:
    call.cutoff = _styles[call.pair].reach(call)


def _compute(call: Call) -> None:
    _styles[call.pair].compute(call)


def _close(call: Call) -> None:
    _styles.pop(call.pair, None)


def _guarded(action: Callable[[Call], None]) -> Callable[[Any], int]:
    """`action` for C++: 0, or 1 with one line in `message`; ctypes would swallow an exception and go on."""

    def function(pointer: Any) -> int:
        call = pointer.contents
        failed = 1
        try:
            action(call)
            failed = 0
        except KqeqError as error:
            call.message = _text(str(error))
            call.all_failed = isinstance(error, ExtrapolationError)
        except BaseException as error:
            traceback.print_exc()
            sys.stderr.flush()
            call.message = _text(f"{type(error).__name__}: {error}")
        call.warning = _text(_warnings.take())
        return failed

    return function


def _text(line: str) -> bytes:
    return line.encode()[:1023]  # the last byte of the C buffer ends the string


_table = Table(*(_Function(_guarded(action)) for action in (_open, _reach, _compute, _close)))
"""Lives as long as the process: LAMMPS keeps these addresses."""


def attach(table: int, size: int) -> None:
    """Fill the plugin's table of functions, at the address `table`; `size` is that of its struct KqeqCall."""
    if size != ctypes.sizeof(Call):
        raise RuntimeError(f"`size` of KqeqCall must be {ctypes.sizeof(Call)}, got {size}")
    log.addHandler(_warnings)
    ctypes.memmove(table, ctypes.addressof(_table), ctypes.sizeof(_table))
