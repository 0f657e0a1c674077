"""Coulomb interaction of Gaussian charges for every boundary."""
