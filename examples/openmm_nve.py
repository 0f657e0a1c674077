"""A NaCl cluster in OpenMM at constant energy: without a field, then in one along z."""

import openmm
from ase.build import bulk
from openmm import app, unit

from kqeq_md.models import NACL
from kqeq_md.openmm import add_to

atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)  # 4 Na, 4 Cl

topology, system = app.Topology(), openmm.System()
chain = topology.addChain()
for symbol in atoms.symbols:
    element = app.Element.getBySymbol(symbol)
    topology.addAtom(symbol, element, topology.addResidue(symbol, chain))
    system.addParticle(element.mass)
force = add_to(system, topology, NACL)

simulation = app.Simulation(topology, system, openmm.VerletIntegrator(1 * unit.femtosecond))
simulation.context.setPositions(atoms.positions * unit.angstrom)
simulation.minimizeEnergy()
simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 1)

for field in (0.0, 0.05):
    simulation.context.setParameter("kqeq_field_z", field)  # V/Angstrom
    print(f"field {field} V/A, now and after each tenth of a picosecond:")
    for steps in (0, 100, 100):
        simulation.step(steps)
        state = simulation.context.getState(positions=True, parameters=True, energy=True)
        total = (state.getPotentialEnergy() + state.getKineticEnergy()).value_in_unit(unit.kilojoule_per_mole)
        dipole = force.computation.result(state).dipole
        print(f"  total energy {total:.3f} kJ/mol, dipole {dipole.round(3)} e A")
