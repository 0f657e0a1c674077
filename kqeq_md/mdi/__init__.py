"""An engine of the MolSSI Driver Interface."""
