"""Activations: caught in a run, looked at by name, saved and loaded; extracted over a corpus into a store."""

from interp_toolkit.activations.cache import ActivationCache
from interp_toolkit.activations.corpus import Corpus
from interp_toolkit.activations.extraction import extract, prepare_extraction
from interp_toolkit.activations.prepared import Extraction
from interp_toolkit.activations.reading import Activations
from interp_toolkit.activations.selection import Selection
from interp_toolkit.activations.store import ActivationStore

__all__ = [
    "ActivationCache",
    "ActivationStore",
    "Activations",
    "Corpus",
    "Extraction",
    "Selection",
    "extract",
    "prepare_extraction",
]
