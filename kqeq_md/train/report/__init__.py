"""What a trained model is worth: errors on labelled frames, and the report that `kqeq train` writes beside it."""

from kqeq_md.train.report.errors import error_table, evaluate, point_charge_floor
from kqeq_md.train.report.predictions import QUANTITIES, Prediction, predict, without_charges
from kqeq_md.train.report.text import format_table

__all__ = [
    "QUANTITIES",
    "Prediction",
    "error_table",
    "evaluate",
    "format_table",
    "point_charge_floor",
    "predict",
    "without_charges",
]
