"""Causal work: patching, and what it says about where a behaviour comes from."""

from interp_toolkit.circuits.pairs import Pair, prepare_pair
from interp_toolkit.circuits.patching import activation_patch, layer_effects
from interp_toolkit.circuits.results import PatchResult

__all__ = ["Pair", "PatchResult", "activation_patch", "layer_effects", "prepare_pair"]
