"""What roles are tested on: a behaviour's prompts, and the random tokens that fit a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from interp_toolkit.circuits.dataset import Pairs
from interp_toolkit.circuits.role_scores import Asked, Repeats, repeats
from interp_toolkit.errors import PositionError, TokenError
from interp_toolkit.model.tokens import special_ids, tokenizer_for
from interp_toolkit.model.wiring import Wiring
from interp_toolkit.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANSWER = ("name mover", "negative mover")
_SUBJECT = ("subject tracker", "recall")
_UNKNOWN = 33  # positions that a model takes of which nothing is said


def asked_of(pairs: Pairs | Task | None, subject: str | Sequence[int] | None) -> tuple[list[Asked], dict[str, str]]:
    """The prompts with their answers, and why roles cannot be tested on them.

    Raises:
        PositionError: for a subject that is not in the prompts.
    """
    if pairs is None:
        return [], dict.fromkeys((*_ANSWER, *_SUBJECT), "there are no prompts with answers (pairs=)")
    rows = _rows(pairs)
    places = _subjects(pairs, subject, rows)
    prompts = []
    for (clean, _, targets, foils), place in zip(rows, places, strict=True):
        moved = place is not None and place < len(clean) - 1 and clean[place] not in targets
        asked = Asked(ids=clean, targets=targets, foils=foils, subject=place if moved else None)
        prompts += [asked] if len(clean) > 1 else []
    skipped = {}
    if not any(prompt.targets for prompt in prompts):
        skipped = dict.fromkeys((*_ANSWER, *_SUBJECT), "the prompts have no answers")
    elif not any(prompt.answer_places for prompt in prompts):
        skipped = dict.fromkeys(_ANSWER, "no prompt holds its answer before its last token")
    if not any(prompt.subject is not None for prompt in prompts):
        skipped |= dict.fromkeys(_SUBJECT, "no prompt has a subject that is neither its answer nor its last token")
    return prompts, skipped


_Row = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def _rows(pairs: Pairs | Task) -> list[_Row]:
    """For each pair clean and corrupt tokens, targets and foils."""
    if isinstance(pairs, Task):
        return [(pair.clean_ids, pair.corrupt_ids, pair.targets, pair.foils) for pair in pairs.pairs]
    sides = zip(pairs.clean, pairs.corrupt, pairs.targets, pairs.foils, strict=True)
    return [(tuple(a.row()), tuple(b.row()), targets, foils) for a, b, targets, foils in sides]


def _subjects(pairs: Pairs | Task, subject: str | Sequence[int] | None, rows: Sequence[_Row]) -> list[int | None]:
    """For each pair the last position of its subject."""
    if subject is None and isinstance(pairs, Task) and "subject" in pairs.labels:
        subject = "subject"
    if isinstance(subject, str):
        if not isinstance(pairs, Task):
            raise PositionError(
                f"the subject {subject!r} is a label of a task's positions, but these pairs have no labels: give for "
                "each pair the position of the subject's last token"
            )
        return [max(places) for places in pairs.positions(subject)]
    if subject is None:
        found = []
        for clean, corrupt, *_ in rows:
            changed = [n for n, (a, b) in enumerate(zip(clean, corrupt, strict=True)) if a != b]
            found.append(changed[-1] if changed else None)
        return found
    if len(subject) != len(rows):
        raise PositionError(f"{len(subject)} positions of subjects were given for {len(rows)} pairs: give one for each")
    for place, (clean, *_) in zip(subject, rows, strict=True):
        if not 0 <= place < len(clean):
            raise PositionError(f"the subject at position {place} is outside of a prompt of {len(clean)} tokens")
    return list(subject)


def sequences_for(
    wiring: Wiring, tokenizer: PreTrainedTokenizerBase | None, prompts: Sequence[Asked], seed: int
) -> Repeats:
    """Random repeated tokens that fit the model: no special ones, and a start token where prompts have one.

    Raises:
        CircuitError: when the vocabulary is too small, or the model takes too few positions.
    """
    if tokenizer is None:
        try:
            tokenizer = tokenizer_for(wiring.model)
        except TokenError:  # then nothing is known of special tokens but what the model says itself
            tokenizer = None
    config = getattr(wiring.base, "config", None)
    special = {*special_ids(tokenizer), *(getattr(config, f"{name}_token_id", None) for name in ("bos", "eos", "pad"))}
    size = int(wiring.shapes["logits"][-1]) if "logits" in wiring.shapes else int(getattr(config, "vocab_size", 0))
    known = size if tokenizer is None else min(size, len(tokenizer))
    most = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    plain = [token for token in range(known) if token not in special]
    bos = getattr(tokenizer or config, "bos_token_id", None)
    start = [bos] if bos is not None and _begins(bos, tokenizer, prompts) else []
    return repeats(plain, start, _UNKNOWN if config is None else int(most or 1 << 20), seed)


def _begins(bos: int, tokenizer: PreTrainedTokenizerBase | None, prompts: Sequence[Asked]) -> bool:
    """Whether the prompts, or else what the tokenizer makes, begin with the start token."""
    if prompts:
        return all(prompt.ids[0] == bos for prompt in prompts)
    return tokenizer is not None and list(tokenizer("a")["input_ids"])[:1] == [bos]


__all__ = ["asked_of", "sequences_for"]
