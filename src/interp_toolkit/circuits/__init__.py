"""Causal work: patching, paths, ablation and tracing, and what they say about where a behaviour comes from."""

from interp_toolkit.circuits.ablation import ablate, ablation_sweep, prepare_ablation
from interp_toolkit.circuits.effects import Effects
from interp_toolkit.circuits.knockout import Ablation
from interp_toolkit.circuits.knockout_nodes import Knockout
from interp_toolkit.circuits.metrics import METRICS, Metric, metric_of
from interp_toolkit.circuits.nodes import Node
from interp_toolkit.circuits.pairs import Pair, prepare_pair
from interp_toolkit.circuits.patching import activation_patch, patch_sweep
from interp_toolkit.circuits.paths import path_patch, path_sweep
from interp_toolkit.circuits.reference import Reference
from interp_toolkit.circuits.results import PatchResult
from interp_toolkit.circuits.selfrepair import SelfRepair, self_repair
from interp_toolkit.circuits.sweeps import Agreement, Sweep, prepare_sweep
from interp_toolkit.circuits.tracing import Trace, causal_trace, prepare_trace

__all__ = [
    "METRICS",
    "Ablation",
    "Agreement",
    "Effects",
    "Knockout",
    "Metric",
    "Node",
    "Pair",
    "PatchResult",
    "Reference",
    "SelfRepair",
    "Sweep",
    "Trace",
    "ablate",
    "ablation_sweep",
    "activation_patch",
    "causal_trace",
    "metric_of",
    "patch_sweep",
    "path_patch",
    "path_sweep",
    "prepare_ablation",
    "prepare_pair",
    "prepare_sweep",
    "prepare_trace",
    "self_repair",
]
