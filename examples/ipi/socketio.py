"""ASE as the server: a charged NaCl cluster relaxed with the forces of `kqeq-ipi`, which ASE starts and stops.

    python socketio.py

The model may as well run on another machine: give `SocketIOCalculator` a port instead of `unixsocket`, start
`kqeq-ipi -a HOST -p PORT` there, and leave `launch_client` out.
"""

import os
import subprocess

from ase.build import bulk
from ase.calculators.socketio import SocketIOCalculator
from ase.io import write
from ase.optimize import BFGS

from kqeq_md.ase import KQEq
from kqeq_md.machine.programs import environment, program
from kqeq_md.models import NACL

CHARGE = 1
ADDRESS = f"nacl_{os.getpid()}"


def start_driver(atoms, properties=None, port=None, unixsocket=None):
    """What ASE calls when it waits: the template tells elements and boundary, ASE's protocol does not."""
    write("template.xyz", atoms)
    options = ["-m", NACL, "-t", "template.xyz", "-u", "-a", unixsocket, "--charge", CHARGE, "--extras", "none"]
    return subprocess.Popen([program("kqeq-ipi"), *map(str, options)], env=environment())


atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)  # 4 Na, 4 Cl
atoms.pbc = False
atoms.rattle(0.05, seed=1)

with SocketIOCalculator(unixsocket=ADDRESS, launch_client=start_driver) as calculator:
    atoms.calc = calculator
    BFGS(atoms, logfile=None).run(fmax=0.01)
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()

atoms.calc = KQEq(NACL, charge=CHARGE)  # ASE's hartree is that of 2014: 8e-9 of the energy are left
print(f"relaxed: {energy:.8f} eV, largest force {abs(forces).max():.4f} eV/A")
print(f"through the socket, less directly: {energy - atoms.get_potential_energy():.2e} eV")
print(f"the largest difference of forces: {abs(forces - atoms.get_forces()).max():.1e} eV/A")
