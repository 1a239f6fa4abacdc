"""Models as runs see them: layouts, sites, edits, positions, and the run itself."""

from interp_toolkit.model.demo import load_model
from interp_toolkit.model.edits import Edit
from interp_toolkit.model.layout import Layout, layout_of
from interp_toolkit.model.positions import From, Positions, Span, positions
from interp_toolkit.model.run import Run, editing, run
from interp_toolkit.model.sites import COMPONENTS, Component, Site
from interp_toolkit.model.tokens import Tokens, encode
from interp_toolkit.model.verify import Finding, Verification, verify

__all__ = [
    "COMPONENTS",
    "Component",
    "Edit",
    "Finding",
    "From",
    "Layout",
    "Positions",
    "Run",
    "Site",
    "Span",
    "Tokens",
    "Verification",
    "editing",
    "encode",
    "layout_of",
    "load_model",
    "positions",
    "run",
    "verify",
]
