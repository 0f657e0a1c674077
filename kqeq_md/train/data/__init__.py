"""From files to labelled frames: units, labels, weights, and what is suspicious about them."""

from kqeq_md.train.data.labels import Frame
from kqeq_md.train.data.reading import read_frames, read_set, species_of

__all__ = ["Frame", "read_frames", "read_set", "species_of"]
