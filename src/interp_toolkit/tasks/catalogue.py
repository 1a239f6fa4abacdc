"""All behaviours by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from interp_toolkit.tasks.code import docstring
from interp_toolkit.tasks.facts import country_capital
from interp_toolkit.tasks.grammar import subject_verb_agreement
from interp_toolkit.tasks.names import gendered_pronoun, ioi
from interp_toolkit.tasks.numbers import greater_than
from interp_toolkit.tasks.repeats import induction
from interp_toolkit.tasks.request import Corruption
from interp_toolkit.tasks.task import Task
from interp_toolkit.tasks.words import Split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class MakeTask(Protocol):
    """What every behaviour takes."""

    def __call__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        n: int = 100,
        seed: int = 0,
        split: Split = "train",
        corruption: Corruption = "swap",
        same_length: bool = True,
    ) -> Task:
        """Make a task for a tokenizer."""
        ...


TASKS: Mapping[str, MakeTask] = MappingProxyType(
    {
        "country_capital": country_capital,
        "docstring": docstring,
        "gendered_pronoun": gendered_pronoun,
        "greater_than": greater_than,
        "induction": induction,
        "ioi": ioi,
        "subject_verb_agreement": subject_verb_agreement,
    }
)
"""The behaviours by name: `TASKS["ioi"](tokenizer, n=200)`."""

__all__ = ["TASKS", "MakeTask"]
