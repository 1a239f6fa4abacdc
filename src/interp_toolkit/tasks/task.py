"""Tasks: aligned pairs of prompts that show one behaviour, and what is known of each pair."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from interp_toolkit.errors import FileFormatError, PositionError, TokenError

if TYPE_CHECKING:
    from interp_toolkit.model import Layout
    from interp_toolkit.tasks.baseline import Baseline

MetricName = Literal["logit_diff", "prob_diff"]
"""`"logit_diff"`: mean logit of the targets minus that of the foils; `"prob_diff"`: so with summed probabilities."""

_FORMAT = "interp_toolkit.task/1"


@dataclass(frozen=True, kw_only=True)
class TaskPair:
    """A clean and a corrupt prompt of the same number of tokens, with the answers to the clean one.

    Attributes:
        clean: the prompt that shows the behaviour; None where it is token ids that no text stands for.
        corrupt: the matched prompt that does not.
        clean_ids: its tokens, start token included where the tokenizer adds one.
        corrupt_ids: the tokens of the corrupt prompt.
        targets: token ids of the right answers to the clean prompt; mostly one.
        foils: token ids that they are compared with.
        target_strings: the targets as people read them.
        foil_strings: the foils.
        template: what the prompt was made from.
        entities: what was filled in.
        corrupt_entities: what was filled into the corrupt prompt.
        positions: for each label the positions of its tokens, the same in both prompts.
    """

    clean: str | None
    corrupt: str | None
    clean_ids: tuple[int, ...]
    corrupt_ids: tuple[int, ...]
    targets: tuple[int, ...]
    foils: tuple[int, ...]
    target_strings: tuple[str, ...]
    foil_strings: tuple[str, ...]
    template: str
    entities: Mapping[str, str] = field(default_factory=dict)
    corrupt_entities: Mapping[str, str] = field(default_factory=dict)
    positions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many tokens each of the two prompts has."""
        return len(self.clean_ids)


@dataclass(frozen=True, kw_only=True)
class Task:
    """Aligned pairs of prompts that show one behaviour, made for one tokenizer.

    Attributes:
        name: of the behaviour.
        split: `"train"`, `"validation"`, `"test"`, or `"all"` for pairs of a user's own.
        seed: what the random choice began with.
        corruption: how the corrupt prompts differ.
        metric: the number that says how a prompt is answered.
        tokenizer: name or path of the tokenizer.
        pairs: the pairs.
        dropped: how many pairs were left out because the model got them wrong; see `filtered`.

    Example:
        >>> from interp_toolkit import load_model, tasks
        >>> task = tasks.ioi(load_model("demo")[1], n=20)
        >>> len(task), task.labels
        (20, ('IO', 'S1', 'place', 'S2', 'object', 'S1+1', 'end', 'changed'))
        >>> pair = task.pairs[0]
        >>> pair.entities["IO"] == pair.target_strings[0].strip()
        True
        >>> Task.from_dict(task.to_dict()) == task
        True
    """

    name: str
    split: str
    seed: int
    corruption: str
    metric: MetricName
    tokenizer: str
    pairs: tuple[TaskPair, ...] = field(repr=False)
    dropped: int = 0

    def __post_init__(self) -> None:
        """A task without pairs asks nothing.

        Raises:
            TokenError: when there are no pairs.
        """
        if not self.pairs:
            raise TokenError(f"a task needs at least one pair, but {self.name!r} has none")

    def __len__(self) -> int:
        """How many pairs there are."""
        return len(self.pairs)

    @property
    def clean(self) -> list[str] | list[list[int]]:
        """The clean prompts, as functions that run a model take them: texts, or token ids where text won't do."""
        texts = [pair.clean for pair in self.pairs if pair.clean is not None]
        return texts if self._as_text else [list(pair.clean_ids) for pair in self.pairs]

    @property
    def corrupt(self) -> list[str] | list[list[int]]:
        """The corrupt prompts, in the order of the clean ones."""
        texts = [pair.corrupt for pair in self.pairs if pair.corrupt is not None]
        return texts if self._as_text else [list(pair.corrupt_ids) for pair in self.pairs]

    @property
    def _as_text(self) -> bool:
        return all(pair.clean is not None and pair.corrupt is not None for pair in self.pairs)

    @property
    def targets(self) -> list[tuple[int, ...]]:
        """For each pair the token ids that answer the clean prompt."""
        return [pair.targets for pair in self.pairs]

    @property
    def foils(self) -> list[tuple[int, ...]]:
        """For each pair the token ids that the targets are compared with."""
        return [pair.foils for pair in self.pairs]

    @property
    def answers(self) -> list[tuple[int, int]]:
        """For each pair one target and one foil, as token ids.

        Raises:
            TokenError: when there are several; `targets` and `foils` have them all.
        """
        for pair in self.pairs:
            if len(pair.targets) != 1 or len(pair.foils) != 1:
                raise TokenError(
                    f"{self.name!r} compares several tokens, {pair.target_strings} with {pair.foil_strings}: use "
                    "targets and foils instead of answers"
                )
        return [(pair.targets[0], pair.foils[0]) for pair in self.pairs]

    @property
    def lengths(self) -> tuple[int, ...]:
        """The numbers of tokens that prompts have, from the smallest; just one with `same_length=True`."""
        return tuple(sorted({len(pair) for pair in self.pairs}))

    @property
    def templates(self) -> tuple[str, ...]:
        """The templates in use, the most frequent first."""
        return tuple(template for template, _ in Counter(pair.template for pair in self.pairs).most_common())

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of positions that all pairs have."""
        first, *others = self.pairs
        return tuple(label for label in first.positions if all(label in pair.positions for pair in others))

    def positions(self, label: str) -> list[list[int]]:
        """Where a label stands in each prompt, in the form that edits and readings take positions.

        Raises:
            PositionError: for a label that some pair does not have.
        """
        if label not in self.labels:
            raise PositionError(f"{self.name!r} has no label {label!r} in every pair; it has {', '.join(self.labels)}")
        return [list(pair.positions[label]) for pair in self.pairs]

    def select(self, indices: Sequence[int]) -> Task:
        """The same task with some of its pairs."""
        return replace(self, pairs=tuple(self.pairs[i] for i in indices))

    def by_template(self) -> dict[str, Task]:
        """The task cut into one for each template: there, a label stands at one position wherever lengths agree."""
        return {
            template: self.select([n for n, pair in enumerate(self.pairs) if pair.template == template])
            for template in self.templates
        }

    def baseline(self, model: nn.Module, *, batch_size: int = 32, layout: Layout | None = None) -> Baseline:
        """How well a model does the behaviour; see `Baseline`.

        Args:
            model: any causal language model with the tokenizer that the task was made for.
            batch_size: how many prompts are run together.
            layout: for a model class of your own.

        Warns:
            InterpWarning: when the model does not do the behaviour.
        """
        from interp_toolkit.tasks.baseline import measure

        return measure(self, model, batch_size=batch_size, layout=layout)

    def filtered(self, model: nn.Module, *, batch_size: int = 32, layout: Layout | None = None) -> Task:
        """Only the pairs whose clean prompt the model gets right: it prefers the target to the foil.

        What is then found holds for prompts like these, not for the behaviour at large: `dropped` counts the others.

        Args:
            model: the model.
            batch_size: how many prompts are run together.
            layout: for a model class of your own.

        Raises:
            RunError: when no pair is left.
        """
        from interp_toolkit.tasks.baseline import right_ones

        kept = right_ones(self, model, batch_size=batch_size, layout=layout)
        return replace(self.select(kept), dropped=self.dropped + len(self) - len(kept))

    def summary(self) -> str:
        """The task in words, with its first pair."""
        lengths = self.lengths
        tokens = f"{lengths[0]} tokens each" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]} tokens"
        dropped = f"; {self.dropped} were dropped because the model got them wrong" if self.dropped else ""
        made = "" if self.split == "all" else f", {self.split} split, seed {self.seed}"
        first, several = self.pairs[0], len(self.templates) > 1
        return (
            f"{self.name}{made}: {len(self)} pairs of {tokens} from {len(self.templates)} "
            f"template{'s' if several else ''}, corruption {self.corruption!r}{dropped}.\n"
            f"clean:   {first.clean if first.clean is not None else list(first.clean_ids)!r}\n"
            f"corrupt: {first.corrupt if first.corrupt is not None else list(first.corrupt_ids)!r}\n"
            f"answer:  {_some(first.target_strings)} rather than {_some(first.foil_strings)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {"format": _FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Task:
        """Make a task of what `to_dict` gave.

        Raises:
            FileFormatError: when it is something else.
        """
        try:
            if facts["format"] != _FORMAT:
                raise FileFormatError(f"a task has the format {_FORMAT!r}, not {facts['format']!r}")
            pairs = tuple(_pair(pair) for pair in facts["pairs"])
            return cls(**{k: v for k, v in facts.items() if k not in ("format", "pairs")}, pairs=pairs)
        except (KeyError, TypeError, AttributeError) as error:
            raise FileFormatError(f"this cannot be read as a task: {error!r}") from error

    def save(self, path: str | Path) -> Path:
        """Write the task as JSON."""
        target = Path(path)
        target.write_text(json.dumps(self.to_dict(), ensure_ascii=False), encoding="utf-8")
        return target

    @classmethod
    def load(cls, path: str | Path) -> Task:
        """Read what `save` wrote.

        Raises:
            FileFormatError: when it is something else.
        """
        try:
            facts = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise FileFormatError(f"{path} cannot be read as a saved task: {error}") from error
        if not isinstance(facts, dict):
            raise FileFormatError(f"{path} is not a saved task")
        return cls.from_dict(facts)


def _some(strings: Sequence[str]) -> str:
    shown = ", ".join(map(repr, strings[:3]))
    return shown if len(strings) <= 3 else f"{shown}, ... ({len(strings)} tokens)"


def _pair(facts: Mapping[str, Any]) -> TaskPair:
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()}
    return TaskPair(**{**plain, "positions": {label: tuple(places) for label, places in plain["positions"].items()}})


__all__ = ["MetricName", "Task", "TaskPair"]
