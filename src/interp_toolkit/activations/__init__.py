"""Activations: caught in a run, looked at by name, saved and loaded."""

from interp_toolkit.activations.cache import ActivationCache
from interp_toolkit.activations.reading import Activations

__all__ = ["ActivationCache", "Activations"]
