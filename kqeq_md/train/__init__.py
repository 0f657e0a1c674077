"""Training: from labelled structures to a `.kqeq` model."""
