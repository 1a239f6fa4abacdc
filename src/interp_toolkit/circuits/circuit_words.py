"""Roles of nodes, and the words in which a circuit and what was measured on it are told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interp_toolkit.errors import CircuitError

UNLABELLED = "unlabelled"


@dataclass(frozen=True, kw_only=True)
class Role:
    """What a head or an MLP was measured to do.

    Args:
        layer: where it is.
        head: which head, or None for the MLP.
        name: `"name mover"`, `"induction"`, ...; `"unlabelled"` if no test gave enough.
        score: of the test.
        test: which test gave it, in words.
        others: further roles with their scores.

    Raises:
        CircuitError: for scores that are not finite.

    Example:
        >>> role = Role(layer=5, head=1, name="induction", score=0.92, test="attention on repeated random tokens")
        >>> role.node, str(role)
        ('L5H1', 'L5H1 (induction)')
    """

    layer: int
    head: int | None
    name: str
    score: float
    test: str
    others: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not all(math.isfinite(score) for score in (self.score, *(score for _, score in self.others))):
            raise CircuitError(f"a score of the role {self.name!r} of {self.node} is not a finite number")

    @property
    def node(self) -> str:
        """The node's name."""
        return f"L{self.layer}MLP" if self.head is None else f"L{self.layer}H{self.head}"

    def __str__(self) -> str:
        return f"{self.node} ({self.name})"

    def told(self) -> str:
        """The role with its score and its test, as a line of its own."""
        also = "".join(f", also {name} {score:.2f}" for name, score in self.others)
        return f"{self.node}: {self.name} {self.score:.2f}{also} ({self.test})"


def key_nodes(title: str, names: Sequence[str], roles: Sequence[Role], number: int) -> list[str]:
    """Lines that list nodes with their roles, and how each labelled one came to its role."""
    if not names:
        return []
    by_node = {role.node: role for role in roles}
    shown = [str(by_node.get(name, name)) for name in names[:number]]
    rest = f", and {len(names) - number} more" if len(names) > number else ""
    told = [by_node[name] for name in names[:number] if name in by_node and by_node[name].name != UNLABELLED]
    return [f"{title}: {', '.join(shown)}{rest}", *(f"  {role.told()}" for role in told)]


def words_of_notes(notes: Mapping[str, Any]) -> list[str]:
    """Lines for the notes that have a form of their own: faithfulness, prompts, selection, threshold, caveats."""
    lines = []
    if "faithfulness" in notes:
        lines.append(f"Faithfulness: {_measured(notes['faithfulness'])}")
    if "prompts" in notes:
        lines.append(f"Prompts: {_counted(notes['prompts'])}")
    lines += [f"{name.capitalize()}: {notes[name]}" for name in ("selection", "threshold") if name in notes]
    caveats = notes.get("caveats", ())
    lines += [f"Note: {text}" for text in ([caveats] if isinstance(caveats, str) else caveats)]
    return lines


def used_by(*notes: Mapping[str, Any]) -> dict[str, list[str]]:
    """The digests of all prompts that circuits with these notes were found on, each once.

    Example:
        >>> used_by({"prompt_digests": ["a", "b"]}, {"prompt_digests": ["b"]}, {})
        {'prompt_digests': ['a', 'b']}
    """
    found: dict[str, list[str]] = {}
    for name in ("prompt_digests", "corrupt_digests"):
        digests = dict.fromkeys(digest for known in notes for digest in known.get(name) or ())
        found |= {name: list(digests)} if digests else {}
    return found


def _measured(value: Any) -> str:
    """A number, or one with its interval."""
    if not isinstance(value, Mapping):
        return f"{value:.3f}" if isinstance(value, int | float) else str(value)
    found = value.get("value")
    text = f"{found:.3f}" if isinstance(found, int | float) else "not known"
    low, high = value.get("low"), value.get("high")
    if isinstance(low, int | float) and isinstance(high, int | float) and not math.isnan(low):
        text += f" ({value.get('level', 0.95):.0%} interval {low:.3f} to {high:.3f})"
    return text + (f" on {value['prompts']} prompts" if "prompts" in value else "")


def _counted(value: Any) -> str:
    """A number of prompts, or numbers by what they were used for."""
    return ", ".join(f"{n} for {use}" for use, n in value.items()) if isinstance(value, Mapping) else str(value)


__all__ = ["UNLABELLED", "Role", "key_nodes", "used_by", "words_of_notes"]
