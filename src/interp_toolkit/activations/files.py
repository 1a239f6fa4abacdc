"""One reading of tensors on disk: their types, and the safetensors files that hold them.

Saved activations, sweeps and references are written by `save_tensors`. A store writes its shards with `header_of`:
the header of a safetensors file follows from the names, types and shapes in it, so a reader that knows these needs no
word of what the file says about itself. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from interp_toolkit.activations.disk import open_regular
from interp_toolkit.errors import CorruptStoreError, FileFormatError, StoreError
from interp_toolkit.provenance import Provenance

_TYPES = {
    "float32": (torch.float32, "F32", np.float32),
    "bfloat16": (torch.bfloat16, "BF16", np.uint16),
    "float16": (torch.float16, "F16", np.float16),
    "int32": (torch.int32, "I32", np.int32),
    "int64": (torch.int64, "I64", np.int64),
    "uint8": (torch.uint8, "U8", np.uint8),
}
"""For each type its name in torch, in safetensors, and what numpy reads it as (it has no bfloat16)."""

FLOATS = ("float32", "bfloat16", "float16")
"""The types in which activations are stored."""

_ALIGNMENT = 4096
"""Data begins with a page, so that a row lies in as few pages as it can."""


def torch_type(name: str) -> torch.dtype:
    """The type of that name in torch."""
    return _TYPES[name][0]


def numpy_type(name: str) -> np.dtype[Any]:
    """What numpy reads the type of that name as: bfloat16 as 16-bit integers."""
    return np.dtype(_TYPES[name][2])


def float_name(dtype: torch.dtype | str) -> str:
    """The name of a type in which activations can be stored.

    Raises:
        StoreError: for any other.
    """
    name = str(dtype).removeprefix("torch.")
    name = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}.get(name, name)
    if name not in FLOATS:
        raise StoreError(f"activations are stored as {', '.join(FLOATS)}, not as {dtype}")
    return name


# --- arrays in files ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Array:
    """Name, type and shape of an array in a file."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        return math.prod(self.shape) * numpy_type(self.dtype).itemsize


def header_of(arrays: Sequence[Array]) -> bytes:
    """The head of a safetensors file that holds these arrays one after the other, filled up so that data is aligned."""
    fields: dict[str, Any] = {}
    begin = 0
    for array in arrays:
        end = begin + array.nbytes
        fields[array.name] = {
            "dtype": _TYPES[array.dtype][1],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def size_of(arrays: Sequence[Array]) -> int:
    """Bytes of the file that holds these arrays."""
    return len(header_of(arrays)) + sum(array.nbytes for array in arrays)


def map_arrays(path: Path, arrays: Sequence[Array]) -> dict[str, NDArray[Any]]:
    """Map a file into memory: nothing is read before it is used. What one writes into the arrays stays in memory.

    Raises:
        CorruptStoreError: when the file is not exactly as long as these arrays take, or has another head.
    """
    header = header_of(arrays)
    expected = len(header) + sum(array.nbytes for array in arrays)
    descriptor = open_regular(path)
    try:
        found = os.fstat(descriptor).st_size
        if found != expected:
            raise CorruptStoreError(f"{path} is damaged: it has {found:,} bytes, but {expected:,} were written")
        mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:  # cut off since its size was taken
        raise CorruptStoreError(f"{path} cannot be read: {error}") from error
    finally:
        os.close(descriptor)
    if mapped[: len(header)] != header:
        raise CorruptStoreError(f"{path} is damaged: its head is not the one that was written")
    views, offset = {}, len(header)
    for array in arrays:
        count = math.prod(array.shape)
        flat = np.frombuffer(mapped, dtype=numpy_type(array.dtype), count=count, offset=offset)
        views[array.name] = flat.reshape(array.shape)
        offset += array.nbytes
    return views


def as_tensor(array: NDArray[Any], dtype: str) -> Tensor:
    """The same memory as a tensor."""
    if array.dtype == np.uint16:
        array = array.view(np.int16)  # torch can do little with unsigned ones
    return torch.from_numpy(array).view(torch_type(dtype))


def as_array(x: Tensor) -> NDArray[Any]:
    """The same memory for numpy, which knows no bfloat16."""
    return x.view(torch.int16).numpy() if x.dtype == torch.bfloat16 else x.numpy()


# --- saved results ------------------------------------------------------------------------------------------------


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], *, kind: str, about: Mapping[str, Any], provenance: Provenance
) -> Path:
    """Write tensors with what is to be known about them.

    Args:
        path: the file.
        tensors: by name.
        kind: what the file is, with the version of its form, such as `"interp_toolkit.effects/1"`.
        about: more facts, as JSON has them.
        provenance: what made them.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target} cannot be written: there is no folder {target.parent}")
    metadata = {"format": kind, "about": json.dumps(about), "provenance": provenance.to_json()}
    save_file({name: x.contiguous() for name, x in tensors.items()}, target, metadata=metadata)
    return target


def load_tensors(
    path: str | Path, *, kind: str, what: str, device: torch.device | str = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Any], Provenance]:
    """Read what `save_tensors` wrote.

    Args:
        path: the file.
        kind: what it has to be.
        what: the same in words, for the message.
        device: where the tensors go.

    Raises:
        FileFormatError: when it is something else, or damaged.
    """
    try:
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError) as error:
        raise FileFormatError(f"{path} cannot be read as {what}: {error}") from error
    if metadata.get("format") != kind:
        raise FileFormatError(f"{path} holds {metadata.get('format', 'something else')!r}, not {kind!r}")
    try:
        return tensors, dict(json.loads(metadata["about"])), Provenance.from_json(metadata["provenance"])
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise FileFormatError(f"{path} is damaged: {type(error).__name__} {error}") from error


__all__ = [
    "FLOATS",
    "Array",
    "as_array",
    "as_tensor",
    "float_name",
    "header_of",
    "load_tensors",
    "map_arrays",
    "numpy_type",
    "save_tensors",
    "size_of",
    "torch_type",
]
