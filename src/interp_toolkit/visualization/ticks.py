"""Round numbers for axes, and labels that keep clear of each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

MANY = 11
"""No axis has more labels, if it can choose."""


def nice_ticks(low: int | float, high: int | float, count: int = 7) -> list[float]:
    """About so many round numbers that enclose a range: steps of 1, 2 or 5 times a power of ten.

    Example:
        >>> nice_ticks(0.13, 0.87)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if high <= low:
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    rough = (high - low) / (count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [round(n * step, decimals) + 0.0 for n in range(first, last + 1)]


def log_ticks(low: int | float, high: int | float) -> list[float]:
    """Round numbers within a range of a logarithmic axis: 1, 2 and 5 times powers of ten, or the powers alone.

    Example:
        >>> log_ticks(0.1, 1.0)
        [0.1, 0.2, 0.5, 1.0]
    """
    powers = range(math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9) + 1)
    for factors in ((1, 2, 5), (1,)):
        found = [float(f"{factor}e{power}") for power in powers for factor in factors]
        inside = [t for t in found if low * 0.9999 <= t <= high * 1.0001]
        if 2 <= len(inside) <= MANY:
            return inside
    step = max(1, math.ceil(len(powers) / MANY))
    found = [float(f"1e{power}") for power in powers[::step]]
    return [t for t in found if low <= t <= high] or [float(low), float(high)]


def spread(heights: Sequence[int | float], apart: int | float, top: int | float, bottom: int | float) -> list[float]:
    """Sorted heights moved as little as needed to be so far apart, between top and bottom while there is room.

    Example:
        >>> spread([10.0, 12.0, 90.0], 10, 0, 100)
        [6.0, 16.0, 90.0]
    """
    groups: list[list[float]] = []  # each of a sum of wanted heights of its first label, a number, and a place
    for height in heights:
        groups.append([float(height), 1.0, float(height)])
        while len(groups) > 1 and groups[-2][2] + groups[-2][1] * apart > groups[-1][2]:
            wanted, number, _ = groups.pop()
            before = groups[-1]
            before[0] += wanted - number * before[1] * apart
            before[1] += number
            before[2] = before[0] / before[1]
    found: list[float] = [group[2] + n * apart for group in groups for n in range(int(group[1]))]
    for n in reversed(range(len(found))):
        found[n] = min(found[n], float(bottom - (len(found) - 1 - n) * apart))
    for n in range(len(found)):
        found[n] = max(found[n], float(top + n * apart))
    return found


__all__ = ["MANY", "log_ticks", "nice_ticks", "spread"]
