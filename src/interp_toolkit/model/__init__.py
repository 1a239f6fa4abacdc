"""Models as runs see them: layouts, sites, edits, positions, and the run itself."""

from interp_toolkit.model.cells import Base, Cell, Swap
from interp_toolkit.model.chat import chat
from interp_toolkit.model.demo import load_model
from interp_toolkit.model.edits import Edit
from interp_toolkit.model.layout import Layout, layout_of
from interp_toolkit.model.plan import make_plan
from interp_toolkit.model.positions import From, Positions, Span, positions
from interp_toolkit.model.run import Run, editing, run
from interp_toolkit.model.sites import COMPONENTS, Component, Site
from interp_toolkit.model.tokens import Tokens, encode
from interp_toolkit.model.verify import Finding, Verification, verify

__all__ = [
    "COMPONENTS",
    "Base",
    "Cell",
    "Component",
    "Edit",
    "Finding",
    "From",
    "Layout",
    "Positions",
    "Run",
    "Site",
    "Span",
    "Swap",
    "Tokens",
    "Verification",
    "chat",
    "editing",
    "encode",
    "layout_of",
    "load_model",
    "make_plan",
    "positions",
    "run",
    "verify",
]
