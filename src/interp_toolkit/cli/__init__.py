"""The command line."""

from interp_toolkit.cli.main import build_parser, main

__all__ = ["build_parser", "main"]
