"""GAP models of QUIP: the XML file, what its terms mean, and the model made of them."""

from kqeq_md.gap_import.to_model import import_gap

__all__ = ["import_gap"]
