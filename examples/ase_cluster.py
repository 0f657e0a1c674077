"""A charged NaCl cluster in ASE: relax it, then look at its charges and its dipole in a field."""

from ase.build import bulk
from ase.optimize import BFGS

from kqeq_md.ase import KQEq
from kqeq_md.models import NACL

atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)  # 4 Na, 4 Cl
atoms.pbc = False

atoms.calc = KQEq(NACL, charge=1)
BFGS(atoms, logfile=None).run(fmax=0.01)
print("charges of the relaxed cation / e:", atoms.get_charges().round(3))

for field in (0.0, 0.05):
    atoms.calc = KQEq(NACL, charge=0, field=[0.0, 0.0, field])
    print(f"field {field} V/A: energy {atoms.get_potential_energy():.4f} eV, dipole {atoms.get_dipole_moment()} e A")
