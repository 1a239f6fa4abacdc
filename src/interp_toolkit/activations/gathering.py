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


def gather(arrays: Sequence[NDArray[Any]], which: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[Any]:
    """Rows out of several arrays.

    Args:
        arrays: of one type and one shape of rows; a row has no gaps.
        which: the array of each row.
        rows: the number of each row in its array.

    Returns:
        A new array, in the order in which rows were asked for.

    Raises:
        IndexError: for a row that its array does not have.
    """
    first = arrays[0]
    lengths = np.asarray([len(array) for array in arrays], dtype=np.int64)
    if ((rows < 0) | (rows >= lengths[which])).any():
        raise IndexError("there is no such row")
    starts = np.asarray([array.__array_interface__["data"][0] for array in arrays], dtype=np.int64)
    stride = first.strides[0]
    base = int(starts.min())
    unit = math.gcd(stride, *(int(start) - base for start in starts))
    span = int((starts + (lengths - 1) * stride).max()) - base
    everything = np.asarray(
        _Memory(
            {
                "version": 3,
                "data": (base, True),
                "typestr": first.dtype.str,
                "shape": (span // unit + 1, *first.shape[1:]),
                "strides": (unit, *first.strides[1:]),
            }
        )
    )
    found: NDArray[Any] = everything[((starts - base) // unit)[which] + rows * (stride // unit)]
    return found


__all__ = ["gather"]
