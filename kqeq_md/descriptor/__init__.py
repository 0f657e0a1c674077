"""The SOAP power spectrum: radial functions, solid harmonics, and their contraction."""
