"""The scripts and styles of pages: ES modules that are joined to one script, and numbers packed into text.

A module imports from its neighbours on one line, `import { a, b } from "./common.js";`, and exports functions,
constants and classes where they are declared. So each is a module that any tool understands, and joining them takes
no tool.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
import zlib
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

_IMPORT = re.compile(r'^import \{ ([^}]+) \} from "\./([\w-]+\.js)";$', re.MULTILINE)
_EXPORT = re.compile(r"^export ((?:async )?function|const|class) (\w+)", re.MULTILINE)
_UNSAFE = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


@functools.cache
def asset(name: str) -> str:
    """A file of `assets/` as text."""
    return (resources.files("interp_toolkit.visualization") / "assets" / name).read_text(encoding="utf-8")


@functools.cache
def bundle(*modules: str) -> str:
    """One script of these modules and those that they import, which brings the page's views to life.

    Args:
        modules: file names in `assets/`, such as `"heatmap.js"`; each exports a function `mount`. None give `""`.
    """
    if not modules:
        return ""
    names: list[str] = []
    for module in ("common.js", *modules):
        _require(module, names)
    parts = ["const modules = {};", *(_wrapped(name) for name in names)]
    views = ", ".join(f"{json.dumps(name)}: modules[{json.dumps(name)}].mount" for name in sorted(set(modules)))
    return "\n".join([*parts, f'modules["common.js"].start({{ {views} }});\n'])


def digest(script: str) -> str:
    """The SHA-256 of a script, as a content security policy names it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def packed(values: NDArray[Any], *, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> dict[str, Any]:
    """An array as text that `unpack` of `common.js` reads: zlib, then base64.

    Args:
        values: of a type that JavaScript has: uint8, uint16, int8, int16, int32 or float32.
        strategy: zlib's; for measured numbers, in which few sequences repeat, `zlib.Z_RLE` is ten times as fast and
            needs less room.

    Raises:
        TypeError: for another type.
    """
    if values.dtype.name not in ("uint8", "uint16", "int8", "int16", "int32", "float32"):
        raise TypeError(
            f"an array of {values.dtype} cannot be packed; turn it into float32 or an integer of up to 32 bits"
        )
    ordered = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    press = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)
    data = base64.b64encode(press.compress(ordered.tobytes()) + press.flush()).decode()
    return {"dtype": values.dtype.name, "shape": list(values.shape), "data": data}


def to_json(data: object) -> str:
    """Plain data as JSON that can stand inside a script element: nothing in it is markup.

    Raises:
        ValueError: for numbers that JSON lacks (NaN, infinity); send those as None or packed.
    """
    return json.dumps(data, allow_nan=False, separators=(",", ":")).translate(_UNSAFE)


def _require(name: str, done: list[str]) -> None:
    """Put a module behind those that it imports."""
    if name not in done:
        for _, other in _IMPORT.findall(asset(name)):
            _require(other, done)
        done.append(name)


def _wrapped(name: str) -> str:
    """A module as a function that is called once and returns what the module exports."""
    source = asset(name)
    exported = ", ".join(found for _, found in _EXPORT.findall(source))
    body = _EXPORT.sub(r"\1 \2", _IMPORT.sub(r'const { \1 } = modules["\2"];', source))
    return f"modules[{json.dumps(name)}] = (() => {{\n{body}\nreturn {{ {exported} }};\n}})();"


__all__ = ["asset", "bundle", "digest", "packed", "to_json"]
