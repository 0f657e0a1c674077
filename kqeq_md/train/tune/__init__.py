"""`kqeq tune`: hyperparameters by the error on training frames that trials hold out; `search` is the way in."""
