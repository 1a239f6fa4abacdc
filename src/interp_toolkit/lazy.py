"""Names of a package that come when they are first used, so that importing the package costs next to nothing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def exports(package: str, names: Mapping[str, Sequence[str]], packages: Sequence[str]) -> Callable[[str], Any]:
    """A `__getattr__` for a package.

    Args:
        package: its name.
        names: for each module below it the names that it has of there.
        packages: packages below it that are there without being imported.
    """
    home = {name: module for module, several in names.items() for name in several}

    def attribute(name: str) -> Any:
        if name in home:
            value = getattr(importlib.import_module(f"{package}.{home[name]}"), name)
            setattr(sys.modules[package], name, value)
            return value
        if name in packages:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return attribute


__all__ = ["exports"]
