"""From labelled frames to a model: `stages` says how, everything else here serves it."""

from kqeq_md.train.fit.stages import Fitted, fit

__all__ = ["Fitted", "fit"]
