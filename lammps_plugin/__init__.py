"""`pair_style kqeq` for LAMMPS: a C++ plugin compiled on first use, which calls this package in-process."""
