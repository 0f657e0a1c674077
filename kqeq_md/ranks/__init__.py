"""Atoms that several processes share: how values cross the seams, what one rank knows, its pairs."""
