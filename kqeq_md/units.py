"""Physical constants and the factors that convert at the edges (CODATA 2018).

Inside the package: energy eV, length Angstrom, charge e, field V/Angstrom.
"""

COULOMB_CONSTANT = 14.399645478425668
"""e^2 / (4 pi epsilon_0) in eV Angstrom / e^2."""

HARTREE = 27.211386245988
"""eV per hartree."""

BOHR = 0.529177210903
"""Angstrom per bohr."""

EV_PER_A3_IN_BAR = 1.602176634e6
"""bar per eV/Angstrom^3 (the pressure unit of LAMMPS `units metal`)."""

BOLTZMANN = 8.617333262e-5
"""eV per K."""

LIGHT_SPEED = 2997.92458
"""Angstrom/fs."""

WAVENUMBER = 1e8
"""cm^-1 per 1/Angstrom."""

KM_PER_MOL = 602.214076
"""km/mol per Angstrom^2 cm^-1: the integrated absorption of a mole of molecules from that of one."""

KJ_PER_MOL = 1e3 / (1.602176634e-19 * 6.02214076e23)
"""eV per kJ/mol (the energy unit of OpenMM)."""

NANOMETER = 10.0
"""Angstrom per nm."""

KCAL_PER_MOL = 4.184 * KJ_PER_MOL
"""eV per kcal/mol (thermochemical calorie)."""

DEBYE = 1e-21 / LIGHT_SPEED / 1.602176634e-19 * 1e5
"""e Angstrom per debye (1e-21 C m^2/s over the speed of light)."""
