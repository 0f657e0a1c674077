"""Forces of OpenMM: a model is added to a `System`, every `Context` of which runs it on any platform.

    from kqeq_md.openmm import add_to
    add_to(system, topology, "nacl.kqeq")
    simulation = Simulation(topology, system, integrator)

OpenMM calls back into Python at each step (`openmm.PythonForce`, OpenMM 8.5 or newer), with positions and box vectors
in nm, and takes kJ/mol and kJ/mol/nm. On GPU platforms positions come in the precision of the platform, and with them
the forces; Reference and CPU keep double precision. OpenMM has no stress; `Computation.result` has the virial.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import numpy as np
import openmm
from numpy.typing import ArrayLike, NDArray
from openmm import unit

from kqeq_md.elements import ATOMIC_NUMBERS
from kqeq_md.errors import FieldError, KqeqError, StructureError
from kqeq_md.limits import Watch
from kqeq_md.model import Model, load_model, save_model
from kqeq_md.potential import Potential
from kqeq_md.structure import Floats, Result, Structure
from kqeq_md.units import KJ_PER_MOL, NANOMETER

NO_FIELD = (0.0, 0.0, 0.0)

FIELD = ("kqeq_field_x", "kqeq_field_y", "kqeq_field_z")
"""Global parameters of the `Context`: components of the static field, V/Angstrom."""

RESIDUES = "residues"

BAROSTAT = "MonteCarloPressure"
"""Part of the name of a global parameter that each of OpenMM's barostats has."""


def add_to(
    system: openmm.System,
    topology: openmm.app.Topology,
    model: str | Path | Model,
    *,
    charge: float = 0.0,
    field: ArrayLike = NO_FIELD,
    pbc: bool | Sequence[bool] | None = None,
    atoms: Sequence[int] | NDArray[np.int64] | None = None,
    force_group: int = 0,
    accuracy: float = 1e-5,
    tolerance: float = 1e-5,
    charges: str | None = None,
    fragments: str | ArrayLike | Sequence[ArrayLike] | None = None,
    fragment_charges: ArrayLike | None = None,
    reference_charges: Mapping[str, float] | None = None,
    threads: int | None = None,
    kernel: str | None = None,
    extrapolation: str = "warn",
) -> openmm.PythonForce:
    """Add the energy and forces of a model to a system.

    Args:
        system: what the force is added to; other forces in it stay, and add up.
        topology: elements of the particles, whether there is a box, and residues.
        model: path of a `.kqeq` file, or a `Model`.
        charge: total charge Q, e.
        field: static field F at first, V/Angstrom, three numbers; the energy is E_0 - F.mu. It stands in the global
            parameters `kqeq_field_x`, `_y` and `_z`, which `context.setParameter` changes during a run.
        pbc: periodic along the box vectors: one boolean or, for slabs, three. None for all where the topology has a
            box or other forces are periodic, and for none elsewhere.
        atoms: indices of the particles that the model knows of; None for all. It leaves the others alone.
        force_group: of OpenMM, 0 to 31.
        charges, fragment_charges, reference_charges, threads, kernel, accuracy, tolerance: as in `Potential`.
        fragments: as in `Potential`, or "residues" for those of the topology. Numbers and lists are about `atoms`.
        extrapolation: what is done about atoms that extrapolate (`kqeq_md.extrapolation`), looked at in every 100th
            evaluation: "warn" (once), "stop" (`OpenMMException` from the Context) or "off". Its numbers of atoms count
            those that the model knows of, from 0.

    Particles without mass are atoms that OpenMM keeps in place. The force holds the model and goes with the system
    through `XmlSerializer`, by pickle: read only files that you trust. Contexts of one system share the history of
    charges, which speeds up a single trajectory; their results differ by no more than the tolerance. For several
    trajectories at once give each its own copy of the system.

    Barostats need a box along all axes, and no field for which `Result.virial` is undefined; anything else is refused
    at the first evaluation. OpenMM's GPU platforms may wrap particles into the box: put a slab into the middle of its
    box, and expect the energy of charged fragments (or atoms with reference charges) in a field along a periodic axis
    to jump by -q F.T as one is wrapped by T, at the same forces. Reference and CPU leave particles where they are.

    Returns:
        The force. Its attribute `computation` answers for charges and dipole: `Computation.result`.

    Raises:
        KqeqError: a topology that does not fit the system or the model, or a setting that `Potential` refuses. What a
            configuration forbids (overlaps, a field along a periodic axis) comes up as `OpenMMException` from the
            Context, with the same message.
    """
    model = model if isinstance(model, Model) else load_model(model)
    chosen = _chosen(system, topology, atoms)
    if isinstance(fragments, str) and fragments == RESIDUES:
        fragments = [atom.residue.index for atom in chosen]
    if pbc is None:
        pbc = topology.getPeriodicBoxVectors() is not None or system.usesPeriodicBoundaryConditions()
    # a structure of nothing checks the boundary, the charge and the field
    anything = Structure([1], [[0.0, 0.0, 0.0]], np.eye(3), pbc, charge, field)
    if any(anything.pbc):
        _check_box(system, topology)
    computation = Computation(
        model,
        _numbers(system, chosen, model),
        anything.pbc,
        anything.charge,
        None if atoms is None else np.array([atom.index for atom in chosen]),
        accuracy=accuracy,
        tolerance=tolerance,
        charges=charges,
        fragments=fragments,
        fragment_charges=fragment_charges,
        reference_charges=reference_charges,
        threads=threads,
        kernel=kernel,
        extrapolation=extrapolation,
    )
    force = openmm.PythonForce(computation, dict(zip(FIELD, anything.field.tolist(), strict=True)))
    force.computation = computation
    force.setName("kQEq")
    force.setForceGroup(force_group)
    force.setUsesPeriodicBoundaryConditions(any(anything.pbc))
    system.addForce(force)
    return force


class Computation:
    """The function that OpenMM calls; it can be pickled, with the model as a `.kqeq` file.

    Args:
        model: the model.
        numbers: atomic numbers, shape (n,).
        pbc: periodic along each box vector.
        charge: total charge Q, e.
        atoms: which particles these are, shape (n,); None for all of the system.
        extrapolation: what is done about atoms that extrapolate, "warn", "stop" or "off".
        options: of `Potential`.

    Raises:
        KqeqError: options that `Potential` refuses.
    """

    def __init__(
        self,
        model: Model,
        numbers: NDArray[np.int64],
        pbc: tuple[bool, bool, bool],
        charge: float,
        atoms: NDArray[np.int64] | None,
        extrapolation: str = "warn",
        **options: Any,
    ) -> None:
        self.potential = Potential(model, **options)
        self._watch = Watch(extrapolation, self.potential.largest_measure)
        self._numbers, self._pbc, self._charge, self._atoms, self._options = numbers, pbc, charge, atoms, options
        self._lock = Lock()  # OpenMM lets go of the interpreter while it runs: contexts may be in several threads

    def __call__(self, state: openmm.State) -> tuple[float, Floats]:
        """Energy, kJ/mol, and forces on all particles, kJ/mol/nm, shape (n_particles, 3)."""
        result = self.result(state, ("forces",))
        assert result.forces is not None
        structure = self._structure(state, state.getParameters())
        with self._lock:
            if self._watch.due(structure.positions):
                self._watch.look(self.potential.extrapolation(structure, result=result))
        forces = result.forces * (NANOMETER / KJ_PER_MOL)
        if self._atoms is not None:
            mine, forces = forces, np.zeros((len(state.getPositions(asNumpy=True)), 3))
            forces[self._atoms] = mine
        return result.energy / KJ_PER_MOL, np.ascontiguousarray(forces)

    def result(self, state: openmm.State, want: Collection[str] | None = None) -> Result:
        """Charges, dipole and all else that `Potential.compute` gives, in its units (eV, Angstrom, e).

        Args:
            state: `context.getState(positions=True, parameters=True)`.
            want: as in `Potential.compute`.

        Raises:
            KqeqError: as `Potential.compute`, or a barostat where there must not be one.
        """
        parameters = state.getParameters()
        structure = self._structure(state, parameters)
        if any(BAROSTAT in name for name in parameters):
            self._check_barostat(structure)
        with self._lock:
            return self.potential.compute(structure, want)

    def _structure(self, state: openmm.State, parameters: Mapping[str, float]) -> Structure:
        positions = _angstrom(state.getPositions(asNumpy=True))
        return Structure(
            self._numbers,
            positions if self._atoms is None else positions[self._atoms],
            _angstrom(state.getPeriodicBoxVectors(asNumpy=True)) if any(self._pbc) else None,
            self._pbc,
            self._charge,
            [parameters[name] for name in FIELD],
        )

    def _check_barostat(self, structure: Structure) -> None:
        """Refuse energies that are no function of the box."""
        if not structure.periodic:
            raise StructureError(
                f"`pbc` must be True for all axes with a barostat, which scales the whole box, got {structure.pbc}"
            )
        if structure.field.any() and not self.potential.has_virial(structure):
            raise FieldError(
                "`field` must be zero along periodic axes with a barostat where fragments are charged or without end, "
                "or atoms have reference charges: the energy depends on which of their images are scaled, got "
                f"{structure.field.tolist()} V/Angstrom"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        state = self._numbers, self._pbc, self._charge, self._atoms, self._watch.action, self._options
        return _restored, (_packed(self.potential.model), *state)


def _restored(packed: bytes, *state: Any) -> Computation:
    """The computation that pickle has taken apart."""
    *arguments, options = state
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.kqeq"
        path.write_bytes(packed)
        return Computation(load_model(path), *arguments, **options)


def _packed(model: Model) -> bytes:
    """The `.kqeq` file of a model."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.kqeq"
        save_model(model, path)
        return path.read_bytes()


def _angstrom(lengths: Any) -> Floats:
    """A quantity of OpenMM in Angstrom."""
    return np.asarray(lengths.value_in_unit(unit.nanometer)) * NANOMETER


def _chosen(
    system: openmm.System, topology: openmm.app.Topology, atoms: Sequence[int] | NDArray[np.int64] | None
) -> list[Any]:
    """Atoms of the topology that the model knows of.

    Raises:
        StructureError: a topology of another system, or `atoms` that are no such indices.
    """
    everyone, n = list(topology.atoms()), system.getNumParticles()
    if len(everyone) != n:
        raise StructureError(f"`topology` must have the {n} particles of the system, got {len(everyone)} atoms")
    if atoms is None:
        return everyone
    indices = np.asarray(atoms)
    if indices.ndim != 1 or len(indices) == 0 or not np.issubdtype(indices.dtype, np.integer):
        raise StructureError(f"`atoms` must be a list of indices, got {atoms!r}")
    if indices.min() < 0 or indices.max() >= n or len(np.unique(indices)) < len(indices):
        raise StructureError(f"`atoms` must be different indices from 0 to {n - 1}, got {indices.tolist()}")
    return [everyone[index] for index in indices]


def _numbers(system: openmm.System, chosen: Sequence[Any], model: Model) -> NDArray[np.int64]:
    """Atomic numbers, shape (n,).

    Raises:
        StructureError: virtual sites, or elements that the model does not know.
    """
    for atom in chosen:
        where = f"(atom {atom.index}, {atom.name} of residue {atom.residue.name})"
        if system.isVirtualSite(atom.index):
            raise StructureError(f"`atoms` must leave out virtual sites, got one {where}")
        symbol = "no element" if atom.element is None else atom.element.symbol
        if symbol not in model.species:
            raise StructureError(
                f"`topology` must hold elements of the model ({', '.join(model.species)}), got {symbol} {where}"
            )
    return np.array([ATOMIC_NUMBERS[atom.element.symbol] for atom in chosen], dtype=np.int64)


def _check_box(system: openmm.System, topology: openmm.app.Topology) -> None:
    """Refuse a system that was never told of its box: OpenMM would give it another one.

    Raises:
        KqeqError: the box is that of an empty system, and not that of the topology.
    """
    wanted = topology.getPeriodicBoxVectors()
    if wanted is None:
        return
    box, unset = (_box(some.getDefaultPeriodicBoxVectors()) for some in (system, openmm.System()))
    if np.array_equal(box, unset) and not np.allclose(box, _box(wanted)):
        raise KqeqError(
            "`system` must have the box of the topology (system.setDefaultPeriodicBoxVectors(*"
            f"topology.getPeriodicBoxVectors()) sets it), got {box.tolist()} Angstrom, which OpenMM takes where none "
            "is set"
        )


def _box(vectors: Any) -> Floats:
    """Three vectors with units as rows, Angstrom, shape (3, 3)."""
    return np.array([vector.value_in_unit(unit.angstrom) for vector in vectors])
