"""Infrared spectra from dipoles along a trajectory."""
