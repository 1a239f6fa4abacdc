"""Causal work: patching, and what it says about where a behaviour comes from."""

from interp_toolkit.circuits.patching import Pair, PatchResult, activation_patch, layer_effects, prepare_pair

__all__ = ["Pair", "PatchResult", "activation_patch", "layer_effects", "prepare_pair"]
