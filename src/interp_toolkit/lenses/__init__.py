"""Lenses: what the residual stream would say if the model ended there, who wrote it, and what it says elsewhere."""

from interp_toolkit.lenses.attributed import LogitAttribution, Part
from interp_toolkit.lenses.attribution import direct_logit_attribution
from interp_toolkit.lenses.logit_lens import LensResult, logit_lens
from interp_toolkit.lenses.patched import Patchscope, PatchscopeSweep
from interp_toolkit.lenses.patchscopes import REPEAT, patchscope, patchscope_sweep
from interp_toolkit.lenses.tuned_lens import TunedLens
from interp_toolkit.lenses.tuning import Training

__all__ = [
    "REPEAT",
    "LensResult",
    "LogitAttribution",
    "Part",
    "Patchscope",
    "PatchscopeSweep",
    "Training",
    "TunedLens",
    "direct_logit_attribution",
    "logit_lens",
    "patchscope",
    "patchscope_sweep",
]
