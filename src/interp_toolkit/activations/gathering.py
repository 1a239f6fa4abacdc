"""Picking rows out of many mapped files in one go.

Files lie anywhere in the memory of the process, but every row has an address. Measured in a unit that divides all
distances, addresses are indices into one array that spans from the first file to the last, and numpy gathers from it
as fast as from a single file. Nothing between the files is ever touched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class _Memory:
    """Memory that numpy is to look at as it is told."""

    def __init__(self, interface: dict[str, Any]) -> None:
        self.__array_interface__ = interface


def gather(
    arrays: Sequence[NDArray[Any]],
    used: NDArray[np.int64],
    starts: NDArray[np.int64],
    which: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> NDArray[Any]:
    """Rows out of several arrays; nothing checks here whether they are there.

    Args:
        arrays: of one type and one shape of rows; a row has no gaps.
        used: their numbers, ascending.
        starts: by number of an array its first row, and that of the next one.
        which: the number of the array of each row.
        rows: counted over the arrays of all numbers.

    Returns:
        A new array, in the order in which rows were asked for.
    """
    first = arrays[0]
    size, stride = first.dtype.itemsize * math.prod(first.shape[1:]), first.strides[0]
    addresses = np.asarray([array.__array_interface__["data"][0] for array in arrays], dtype=np.int64)
    base = int(addresses.min())
    distances = addresses - base
    unit = math.gcd(stride, *distances.tolist())
    span = int((distances + (starts[used + 1] - starts[used] - 1) * stride).max())
    offsets = np.zeros(len(starts), dtype=np.int64)
    offsets[used] = distances // unit - starts[used] * (stride // unit)
    everything = np.asarray(
        _Memory(
            {
                "version": 3,
                "data": (base, True),
                "typestr": f"|V{size}",  # a row is one thing, copied as such
                "shape": (span // unit + 1,),
                "strides": (unit,),
            }
        )
    )
    index = rows * (stride // unit) + offsets[which]
    # `take` is the faster one, but of rows with gaps or overlaps it makes a copy first: of all between the files, too
    found: NDArray[Any] = everything.take(index) if unit == size else everything[index]
    return found.view(first.dtype).reshape(len(rows), *first.shape[1:])


__all__ = ["gather"]
