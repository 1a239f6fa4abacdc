"""Causal work: patching, and what it says about where a behaviour comes from."""

from interp_toolkit.circuits.effects import Effects
from interp_toolkit.circuits.metrics import METRICS, Metric, metric_of
from interp_toolkit.circuits.pairs import Pair, prepare_pair
from interp_toolkit.circuits.patching import activation_patch, patch_sweep
from interp_toolkit.circuits.results import PatchResult
from interp_toolkit.circuits.sweeps import Agreement, Sweep, prepare_sweep
from interp_toolkit.circuits.tracing import Trace, causal_trace, prepare_trace

__all__ = [
    "METRICS",
    "Agreement",
    "Effects",
    "Metric",
    "Pair",
    "PatchResult",
    "Sweep",
    "Trace",
    "activation_patch",
    "causal_trace",
    "metric_of",
    "patch_sweep",
    "prepare_pair",
    "prepare_sweep",
    "prepare_trace",
]
