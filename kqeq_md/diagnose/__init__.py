"""The diseases of charge equilibration, measured for a model and its user's structures."""
