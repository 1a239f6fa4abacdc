"""Behaviours as data: aligned clean and corrupt prompts, made for the tokenizer at hand."""

from interp_toolkit.tasks.baseline import Baseline, Score
from interp_toolkit.tasks.catalogue import TASKS
from interp_toolkit.tasks.code import docstring
from interp_toolkit.tasks.facts import country_capital
from interp_toolkit.tasks.grammar import subject_verb_agreement
from interp_toolkit.tasks.names import gendered_pronoun, ioi
from interp_toolkit.tasks.numbers import greater_than
from interp_toolkit.tasks.pairs import from_pairs
from interp_toolkit.tasks.repeats import induction
from interp_toolkit.tasks.task import Task, TaskPair

__all__ = [
    "TASKS",
    "Baseline",
    "Score",
    "Task",
    "TaskPair",
    "country_capital",
    "docstring",
    "from_pairs",
    "gendered_pronoun",
    "greater_than",
    "induction",
    "ioi",
    "subject_verb_agreement",
]
