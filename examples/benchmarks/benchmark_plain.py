"""The shipped model as a potential of i-PI's own driver, with nothing of `kqeq-ipi`: what i-PI itself costs around an
evaluation of some milliseconds, for `benchmark_ipi.py`."""

from __future__ import annotations

from ase.io import read
from ipi.pes.dummy import Dummy_driver

from kqeq_md.ase import structure_from_atoms
from kqeq_md.models import NACL
from kqeq_md.potential import Potential
from kqeq_md.structure import Floats
from kqeq_md.units import BOHR, HARTREE

__DRIVER_NAME__ = "plain"
__DRIVER_CLASS__ = "Plain"


class Plain(Dummy_driver):
    """Open atoms of template.xyz in the working folder, on one thread."""

    def __init__(self, *arguments: object, **keywords: object) -> None:
        super().__init__(*arguments, **keywords)
        atoms = read("template.xyz")
        atoms.pbc = False
        self._potential, self._structure = Potential(NACL, threads=1), structure_from_atoms(atoms)
        self._potential.twin().compute(self._structure)  # compiles, before i-PI waits

    def compute_structure(self, cell: Floats, pos: Floats) -> tuple[float, Floats, Floats, str]:
        """Energy, forces, virial and no extras, in atomic units."""
        result = self._potential.compute(self._structure.moved(pos * BOHR))
        assert result.forces is not None
        assert result.virial is not None
        return result.energy / HARTREE, result.forces * (BOHR / HARTREE), result.virial / HARTREE, ""
