"""What `pair_style kqeq` computes: LAMMPS' atoms and box in, energy, forces, virial and charges out.

The C++ side (pair_kqeq.cpp) calls the three functions of a table that `attach` fills. `units metal` are the
core's own units, so nothing is converted here.
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
from ctypes import POINTER, c_char, c_char_p, c_double, c_int, c_void_p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kqeq_md.errors import KqeqError, StructureError
from kqeq_md.potential import NO_VIRIAL, Potential
from kqeq_md.structure import Structure

VOIGT = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
"""LAMMPS' order of the virial: xx yy zz xy xz yz."""


class Call(ctypes.Structure):
    """The struct KqeqCall of pair_kqeq.cpp, field by field."""

    _fields_ = (
        ("pair", c_void_p),
        ("model", c_char_p),
        ("elements", POINTER(c_char_p)),
        ("charge", c_double),
        ("field", c_double * 3),
        ("accuracy", c_double),
        ("tolerance", c_double),
        ("threads", c_double),
        ("cell", c_double * 9),
        ("x", POINTER(c_double)),
        ("f", POINTER(c_double)),
        ("q", POINTER(c_double)),
        ("eatom", POINTER(c_double)),
        ("type", POINTER(c_int)),
        ("order", POINTER(c_int)),
        ("n_types", c_int),
        ("n_atoms", c_int),
        ("periodic", c_int * 3),
        ("want_virial", c_int),
        ("has_charges", c_int),
        ("cutoff", c_double),
        ("energy", c_double),
        ("virial", c_double * 6),
        ("message", c_char * 1024),
        ("warning", c_char * 1024),
    )


_Function = ctypes.CFUNCTYPE(c_int, POINTER(Call))


class Table(ctypes.Structure):
    """The struct KqeqTable of pair_kqeq.cpp."""

    _fields_ = (("open", _Function), ("compute", _Function), ("close", _Function))


class PairStyle:
    """A potential and the atomic number of each LAMMPS type.

    Args:
        model: path of the model file.
        elements: element symbol of each type.
        knobs: `accuracy`, `tolerance` and `threads` of `Potential`; those that are left out are its defaults.

    Raises:
        KqeqError: an element that the model does not know, or types that are left out.
        ModelError: the file cannot be read.
    """

    def __init__(self, model: str, elements: list[str], **knobs: Any) -> None:
        self.potential = Potential(model, **knobs)
        self._warned_of_virial = False
        known = dict(zip(self.potential.model.species, self.potential.model.numbers, strict=True))
        for index, element in enumerate(elements, start=1):
            if element == "NULL":
                raise KqeqError(f"pair_coeff: NULL (type {index}) is not available in this version")
            if element not in known:
                raise KqeqError(f"pair_coeff: the model knows {', '.join(known)}, got {element} for type {index}")
        self.numbers = np.array([known[element] for element in elements])

    def compile(self, periodic: bool) -> None:
        """Evaluate two atoms, so that the kernels are compiled now and not inside the first time step."""
        reach = self.potential.model.cutoff
        pair = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.5 * reach]])
        # another one, for what a potential has seen, fragments among it, it keeps
        trial = Potential(self.potential.model, threads=self.potential.threads)
        with suppress(KqeqError):  # whether this pair makes sense to the model is no matter
            trial.compute(Structure([self.numbers[0]] * 2, pair, cell=2.0 * reach * np.eye(3), pbc=periodic))

    def compute(self, call: Call) -> None:
        """Evaluate the owned atoms; forces and energies per atom are added, charges are set."""
        n = call.n_atoms
        if n == 0:
            raise StructureError("no atoms are left: none was created, or all were lost (a time step too long?)")
        order = _array(call.order, n)
        structure = Structure(
            self.numbers[_array(call.type, n)[order] - 1],
            _array(call.x, n, 3)[order],
            cell=np.reshape(call.cell, (3, 3)) if any(call.periodic) else None,
            pbc=[bool(axis) for axis in call.periodic],
            charge=call.charge,
            field=list(call.field),
        )
        want = ["forces"]
        want += ["virial"] if call.want_virial and self.potential.has_virial(structure) else []
        want += ["energies"] if call.eatom else []
        try:
            result = self.potential.compute(structure, want=want)
        except StructureError as error:
            raise StructureError(f"{error}; atoms count from 0 in the order of their ids") from None
        call.energy = result.energy
        if self.potential.has_charges:
            _array(call.q, n)[order] = result.charges
        _array(call.f, n, 3)[order] += result.forces
        if result.energies is not None:
            _array(call.eatom, n)[order] += result.energies
        if result.virial is not None:
            call.virial = tuple(result.virial[a, b] for a, b in VOIGT)
        elif call.want_virial:
            call.virial = (np.nan,) * 6  # so that no barostat takes it for a number
            if not self._warned_of_virial:
                self._warned_of_virial = True
                logging.getLogger("kqeq_md").warning("%s: pressures are nan, and the box has to stay", NO_VIRIAL)


def _array(pointer: Any, *shape: int) -> NDArray[Any]:
    """LAMMPS' own memory as an array; it may move between calls, so views are never kept."""
    return np.ctypeslib.as_array(pointer, shape) if shape[0] else np.empty(shape)


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
    knobs = {name: getattr(call, name) for name in ("accuracy", "tolerance")}
    given: dict[str, Any] = {name: value for name, value in knobs.items() if not math.isnan(value)}
    if not math.isnan(call.threads):
        given["threads"] = int(call.threads) if call.threads.is_integer() else call.threads
    style = _styles[call.pair] = PairStyle(os.fsdecode(call.model), elements, **given)
    style.compile(periodic=any(call.periodic))
    call.cutoff = style.potential.model.cutoff
    call.has_charges = style.potential.has_charges


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
        except BaseException as error:
            traceback.print_exc()
            sys.stderr.flush()
            call.message = _text(f"{type(error).__name__}: {error}")
        call.warning = _text(_warnings.take())
        return failed

    return function


def _text(line: str) -> bytes:
    return line.encode()[:1023]  # the last byte of the C buffer ends the string


_table = Table(*(_Function(_guarded(action)) for action in (_open, _compute, _close)))
"""Lives as long as the process: LAMMPS keeps these addresses."""


def attach(table: int, size: int) -> None:
    """Fill the plugin's table of functions, at the address `table`; `size` is that of its struct KqeqCall."""
    if size != ctypes.sizeof(Call):
        raise RuntimeError(f"`size` of KqeqCall must be {ctypes.sizeof(Call)}, got {size}")
    logging.getLogger("kqeq_md").addHandler(_warnings)
    ctypes.memmove(table, ctypes.addressof(_table), ctypes.sizeof(_table))
