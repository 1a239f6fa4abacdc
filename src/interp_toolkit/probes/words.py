"""Words and the tokens that carry them: for probes that read a label for each word."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from interp_toolkit.errors import ProbeError, TokenError
from interp_toolkit.probes.data import Label

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
"""Where something begins and ends in a text, counted in characters; the end is the first character behind it."""

Which = Literal["last", "first", "all"]
"""The last, the first or all tokens of a word."""

_ALONE = ((0x3005, 0x3007), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF))
_ALONE_TOO = ((0xFF66, 0xFF9F), (0x1AFF0, 0x1B16F), (0x20000, 0x3FFFF))
_INNER = frozenset("'\u2019-\u2010\u2011\u00b7\u05f3\u05f4")
_INNER_OF_NUMBERS = frozenset(".,")
_BLANKS = " \t\r\n\u2581"
"""Blanks as tokens are decoded to; some tokenizers leave them their sign for it."""

_JOINER = "\u200d"
_FLAG_LETTERS = (0x1F1E6, 0x1F1FF)
_SKIN_TONES = (0x1F3FB, 0x1F3FF)


@dataclass(frozen=True, kw_only=True)
class WordAlignment:
    """The words of a text and their tokens.

    Attributes:
        text: the text.
        words: its words.
        spans: where they stand in the text.
        tokens: for each word the positions of its tokens; none where it was lost.
        missing: the words, by number, without tokens: cut off by truncation, wholly or in part.
        merged: the positions of tokens that belong to more than one word.
        length: how many tokens there are, special ones too; positions count from 0, without padding.
    """

    text: str
    words: tuple[str, ...]
    spans: tuple[Span, ...]
    tokens: tuple[tuple[int, ...], ...]
    missing: tuple[int, ...]
    merged: tuple[int, ...]
    length: int


def word_spans(text: str) -> list[Span]:
    """Where the words of a text stand.

    Words are runs of letters, marks and digits, with apostrophes and hyphens between them (don't, well-known) and
    points and commas between digits (3.14). Every other character that is no blank is a word of its own, with the
    marks, joiners, skin tones and flag letters that belong to it: 👩‍🔬 is one. Each Chinese character and each kana is
    a word. Where scripts put no blanks between words otherwise (Thai), a run of them is one word: cut it beforehand,
    and use `align`.

    Example:
        >>> [text[start:end] for text in ["Don't panic!"] for start, end in word_spans(text)]
        ["Don't", 'panic', '!']
    """
    spans: list[Span] = []
    begin = None
    for place in range(len(text)):
        if _apart(text, place):
            begin = None
        elif begin is None or not _joined(text, begin, place):
            begin = place
            spans.append((place, place + 1))
        else:
            spans[-1] = (begin, place + 1)
    return spans


def align(words: Sequence[str], text: str) -> list[Span]:
    """Where given words stand in a text, one after the other.

    Words may be cut more finely than `word_spans` cuts ("do", "n't"), and there may be text between them; but where a
    word follows such text, it must begin where one does, and it must end where one does or where the next word begins.
    So "a" is not found within "cat".

    Raises:
        ProbeError: when a word is not found; the message says which, and where the search stood.

    Example:
        >>> align(["I", "do", "n't", "."], "I don't.")
        [(0, 1), (2, 4), (4, 7), (7, 8)]
    """
    spans: list[Span] = []
    reached = 0
    for number, word in enumerate(words):
        if not word.strip():
            raise ProbeError(f"word {number} is empty")
        following = words[number + 1] if number + 1 < len(words) else None
        start = text.find(word, reached)
        while start >= 0 and not _fits(text, start, start + len(word), reached, following):
            start = text.find(word, start + 1)
        if start < 0:
            raise ProbeError(_not_found(number, word, text, reached))
        reached = start + len(word)
        spans.append((start, reached))
    return spans


def tokens_of_words(
    spans: Sequence[Span], offsets: Sequence[Span], *, which: Which = "last"
) -> tuple[tuple[int, ...], ...]:
    """The positions of the tokens of each word.

    A token belongs to the words whose characters it covers: several tokens may share a character, and a token may
    cover the end of a word and the beginning of the next. Tokens that cover nothing, such as special ones, belong to
    none. A word that reaches beyond what all tokens cover was cut off: it gets none.

    Args:
        spans: of the words.
        offsets: for each token, the characters that it covers, as fast tokenizers tell.
        which: of its tokens a word gets; `"all"` for a mean over them.

    Example:
        >>> tokens_of_words([(0, 2), (3, 7)], [(0, 0), (0, 2), (2, 5), (5, 7)], which="all")
        ((1,), (2, 3))
    """
    return tuple(_pick(tokens, which) for tokens in _covering(spans, offsets, whole=spans))


def align_words(
    tokens: PreTrainedTokenizerBase | Sequence[Span],
    text: str,
    *,
    words: Sequence[str] | None = None,
    max_length: int | None = None,
) -> WordAlignment:
    """The words of a text with their tokens.

    Args:
        tokens: a fast tokenizer, which adds its special tokens; or the offsets of the text's tokens.
        text: the text.
        words: its words, as `align` takes them; by default as `word_spans` cuts them.
        max_length: where the tokenizer truncates.

    Raises:
        TokenError: when the tokenizer tells no offsets.
        ProbeError: when a word is not in the text, offsets are not of this text, or it has no words.

    Example:
        >>> aligned = align_words([(0, 0), (0, 3), (3, 8)], "the lake")
        >>> aligned.words, aligned.tokens
        (('the', 'lake'), ((1,), (2,)))
    """
    spans = word_spans(text) if words is None else align(words, text)
    if not spans:
        raise ProbeError(f"there are no words in {text!r}")
    # A normalizer that composes characters covers no marks at the end of a word; that alone is no truncation.
    whole: list[Span] | None = [(start, start + len(_without_marks(text[start:end]))) for start, end in spans]
    if isinstance(tokens, Sequence):
        offsets = [(int(start), int(end)) for start, end in tokens]
        if max_length is not None:
            raise ProbeError("max_length is for a tokenizer: of offsets, give the ones that are left")
    else:
        offsets, truncated = _offsets(tokens, text, max_length)
        whole = whole if truncated else None
    if wrong := [span for span in offsets if not 0 <= span[0] <= span[1] <= len(text)]:
        raise ProbeError(f"offsets {wrong[0]} are not within a text of {len(text)} characters")
    found = _covering(spans, offsets, whole=whole)
    uses = Counter(position for tokens_of_one in found for position in tokens_of_one)
    return WordAlignment(
        text=text,
        words=tuple(text[start:end] for start, end in spans),
        spans=tuple(spans),
        tokens=found,
        missing=tuple(number for number, tokens_of_one in enumerate(found) if not tokens_of_one),
        merged=tuple(sorted(position for position, number in uses.items() if number > 1)),
        length=len(offsets),
    )


def label_tokens(
    alignment: WordAlignment, labels: Sequence[Label | None], *, which: Which = "last"
) -> tuple[tuple[int, ...], tuple[Label, ...]]:
    """Positions of tokens and the labels of their words, for training.

    Words without tokens and words whose label is None are left out, and so is a token that words with different labels
    share. Each position comes once.

    Args:
        alignment: of the text.
        labels: one for each word, also for missing ones.
        which: of the tokens of a word get its label.

    Raises:
        ProbeError: when there are more or fewer labels than words.

    Example:
        >>> label_tokens(align_words([(0, 3), (3, 6), (6, 8)], "the lake"), ["DET", "NOUN"])
        ((0, 2), ('DET', 'NOUN'))
    """
    if len(labels) != len(alignment.words):
        raise ProbeError(
            f"each word needs a label, but there are {len(alignment.words)} words and {len(labels)} labels"
        )
    seen: dict[int, set[Label]] = {}
    for tokens, label in zip(alignment.tokens, labels, strict=True):
        if label is None:
            continue
        for position in _pick(tokens, which):
            seen.setdefault(position, set()).add(label)
    clear = {position: next(iter(found)) for position, found in sorted(seen.items()) if len(found) == 1}
    return tuple(clear), tuple(clear.values())


# --- where words begin and end ------------------------------------------------------------------------------------


def _within(character: str, *ranges: Span) -> bool:
    return any(first <= ord(character) <= last for first, last in ranges)


def _attached(character: str) -> bool:
    """Whether it belongs to the character before: a mark, a joiner, another invisible sign, a skin tone."""
    return unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf") or _within(character, _SKIN_TONES)


def _in_run(character: str) -> bool:
    """Whether it makes words with its neighbours of the kind."""
    return unicodedata.category(character)[0] in "LN" and not _within(character, *_ALONE, *_ALONE_TOO)


def _apart(text: str, place: int) -> bool:
    """Whether no word holds it: a blank, a control character, an invisible sign behind such."""
    while place > 0 and unicodedata.category(text[place]) == "Cf":
        place -= 1
    return text[place].isspace() or unicodedata.category(text[place]) in ("Cc", "Cf", "Zs", "Zl", "Zp")


def _joined(text: str, begin: int, place: int) -> bool:
    """Whether a character belongs to the word that began earlier and reaches up to it."""
    character, before = text[place], text[place - 1]
    if _attached(character):
        return True
    base = _base(text, begin, place - 1)
    if _within(character, _FLAG_LETTERS) and _within(text[begin], _FLAG_LETTERS):
        return place - begin == 1
    if before == _JOINER and not _in_run(text[begin]):
        return not _in_run(character)  # one picture of several
    if _in_run(character):
        if _in_run(base):
            return True
        return place - 1 > begin and _is_inner(text, place - 1)
    return _is_inner(text, place) and _in_run(text[begin])


def _base(text: str, begin: int, place: int) -> str:
    """The last character of a word, marks aside."""
    while place > begin and _attached(text[place]):
        place -= 1
    return text[place]


def _is_inner(text: str, place: int) -> bool:
    """Whether an apostrophe, hyphen or point stands between parts of a word."""
    if not 0 < place < len(text) - 1:
        return False
    before, after = _base(text, 0, place - 1), text[place + 1]
    if text[place] in _INNER_OF_NUMBERS:
        return before.isdigit() and after.isdigit()
    return text[place] in _INNER and _in_run(before) and _in_run(after)


def _fits(text: str, start: int, end: int, reached: int, following: str | None) -> bool:
    """Whether a word can stand there: its ends are ends of words, or those of its neighbours."""
    return (start == reached or not _cuts(text, start)) and (
        not _cuts(text, end) or (following is not None and text.startswith(following, end))
    )


def _cuts(text: str, place: int) -> bool:
    """Whether a place is between two characters of a run or before a mark."""
    if not 0 < place < len(text) or _apart(text, place) or _apart(text, place - 1):
        return False
    return _attached(text[place]) or (_in_run(text[place]) and _in_run(_base(text, 0, place - 1)))


def _not_found(number: int, word: str, text: str, reached: int) -> str:
    rest = text[reached : reached + 40] + ("..." if len(text) > reached + 40 else "")
    said = f"word {number}, {word!r}, is not a word of the text from character {reached} on: {rest!r}"
    if text.find(word, reached) >= 0:
        return f"{said}; there it is only a part of another word, which has to be given whole or in all its parts"
    if unicodedata.normalize("NFC", word) in unicodedata.normalize("NFC", text[reached:]):
        return f"{said}; there it is written with other Unicode characters: normalise both in the same way"
    if 0 <= text.find(word) < reached:
        return f"{said}; it stands earlier: give words in the order of the text"
    return said


# --- where tokens are ---------------------------------------------------------------------------------------------


def _without_marks(word: str) -> str:
    kept = len(word)
    while kept > 1 and _attached(word[kept - 1]):
        kept -= 1
    return word[:kept]


def _offsets(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int | None) -> tuple[list[Span], bool]:
    """What tokens cover, and whether there would be more of them without truncation."""
    if not tokenizer.is_fast:
        raise TokenError("this tokenizer does not tell which characters its tokens cover: use a fast one")
    cut = tokenizer(text, return_offsets_mapping=True, truncation=max_length is not None, max_length=max_length)
    whole = tokenizer(text, verbose=False)["input_ids"] if max_length is not None else cut["input_ids"]
    spans = [(int(start), int(end)) for start, end in cut["offset_mapping"]]
    # A token for a blank that the tokenizer put before the text claims the first character.
    blank = {token for token in set(cut["input_ids"]) if not str(tokenizer.decode([token])).strip(_BLANKS)}
    return [
        (start, start) if token in blank else (start, end)
        for token, (start, end) in zip(cut["input_ids"], spans, strict=True)
    ], len(cut["input_ids"]) < len(whole)


def _covering(
    spans: Sequence[Span], offsets: Sequence[Span], *, whole: Sequence[Span] | None
) -> tuple[tuple[int, ...], ...]:
    """For each word its tokens; none for words of which not all is covered that must be."""
    covers: dict[int, list[int]] = {}
    for position, (start, end) in enumerate(offsets):
        for place in range(start, end):
            covers.setdefault(place, []).append(position)
    first, last = min(covers, default=0), max(covers, default=-1)
    found = []
    for number, (start, end) in enumerate(spans):
        cut = whole is not None and not (first <= whole[number][0] and whole[number][1] <= last + 1)
        tokens = {position for place in range(start, end) for position in covers.get(place, ())}
        found.append(() if cut else tuple(sorted(tokens)))
    return tuple(found)


def _pick(tokens: tuple[int, ...], which: Which) -> tuple[int, ...]:
    return tokens if which == "all" else tokens[-1:] if which == "last" else tokens[:1]


__all__ = ["Span", "Which", "WordAlignment", "align", "align_words", "label_tokens", "tokens_of_words", "word_spans"]
