"""Pairs of atoms within a cutoff: the search for them, and the list that is kept from step to step."""
