"""`kqeq select`: which frames of trajectories are worth labelling next."""

from kqeq_md.select.selection import Pick, Selection, select

__all__ = ["Pick", "Selection", "select"]
