"""Lenses: what the residual stream would say if the model ended there."""

from interp_toolkit.lenses.logit_lens import LensResult, logit_lens

__all__ = ["LensResult", "logit_lens"]
