"""Errors that a user can cause, all one line long: the argument, the rule and the value."""


class KqeqError(ValueError):
    """Base of every error that this package raises on purpose; engines print it without a traceback."""


class StructureError(KqeqError):
    """A structure that cannot be computed: wrong shapes, NaN, overlapping atoms, unknown elements."""


class FieldError(KqeqError):
    """An applied field that has no meaning for the boundary of the structure."""


class ChargeError(KqeqError):
    """Charge equilibration without a solution: indefinite hardness matrix or residual above tolerance."""


class ModelError(KqeqError):
    """A model file that cannot be read: absent, truncated, foreign, newer, or inconsistent."""


class ConfigError(KqeqError):
    """A training configuration or data set that cannot be used."""


class ExtrapolationError(KqeqError):
    """Atoms too far from the training set, where the user wants to stop."""
