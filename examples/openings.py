"""How probable it is that an answer begins in one of several ways, behind prompts with a common beginning.

Each opening counts as a whole: its tokens are given one after the other, and their probabilities multiplied. What all
prompts share, such as a dialogue in front of each request, is run once and kept as a cache.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from interp_toolkit import Edit, editing
from interp_toolkit.errors import EditError
from interp_toolkit.model import chat as as_tokens

ROWS = 20  # prompts that are run at once

Parts = Mapping[str, Mapping[str, Sequence[str]]]  # requests by part (such as "test") and kind
Path = tuple[int, ...]  # tokens that an answer begins with


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Requests, and what stands in front of each.

    Attributes:
        words: where requests are, as in "refusal behind a dialogue".
        requests: by part and kind.
        turns: what was said before: requests with their answers.
        nouns: what the two kinds are called.
    """

    words: str
    requests: Parts
    turns: tuple[tuple[str, str], ...] = ()
    nouns: tuple[str, str] = ("harmful requests", "harmless requests")

    def prompt(self, request: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """A request behind the turns, in the model's chat format."""
        said = [*(text for turn in self.turns for text in turn), request]
        turns = [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(said)]
        return as_tokens(turns, tokenizer=tokenizer).row()


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts from where they part, padded on the left, behind a cache of what they share, which is written to."""

    ids: Int[Tensor, "row pos"]
    mask: Int[Tensor, "row all"]
    cache: Cache


@dataclass(frozen=True, eq=False)
class Chat:
    """A model in a setting, with what its prompts share already run and kept in a cache: made by `begin`.

    Attributes:
        edits: hold in the beginning and in all that follows.
        start: how many tokens are the same at the beginning of all prompts; behind them is the request.
        ends: how many are the same at the end: those of the chat format.
    """

    setting: Setting
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    openings: Sequence[str]
    edits: Sequence[Edit]
    start: int
    ends: int
    cache: Cache

    @classmethod
    def begin(
        cls,
        setting: Setting,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        openings: Sequence[str],
        edits: Sequence[Edit] = (),
    ) -> Chat:
        """Run what all prompts of a setting share, under edits if there are any."""
        lists = [texts for kinds in setting.requests.values() for texts in kinds.values()]
        rows = [setting.prompt(text, tokenizer) for texts in lists for text in texts]
        ends = max(1, alike([row[::-1] for row in rows]))
        start = min(alike(rows), min(map(len, rows)) - ends)
        with torch.no_grad(), editing(model, edits):
            out = model(torch.tensor([rows[0][:start]], device=model.device), use_cache=True, logits_to_keep=1)
        return cls(setting, model, tokenizer, openings, edits, start, ends, out.past_key_values)

    def again(self, setting: Setting | None = None, edits: Sequence[Edit] = ()) -> Chat:
        """The same model in another setting, or under other edits."""
        return Chat.begin(setting or self.setting, self.model, self.tokenizer, self.openings, edits)

    def batches(self, part: str, kind: str) -> Iterator[Batch]:
        """The prompts, some at a time."""
        prompts = [self.setting.prompt(text, self.tokenizer) for text in self.setting.requests[part][kind]]
        rows = [torch.tensor(prompt[self.start :], device=self.model.device) for prompt in prompts]
        for some in (rows[n : n + ROWS] for n in range(0, len(rows), ROWS)):
            ids = pad_sequence(some, batch_first=True, padding_side="left")
            real = pad_sequence([torch.ones_like(row) for row in some], batch_first=True, padding_side="left")
            cache = copy.deepcopy(self.cache)
            cache.batch_repeat_interleave(len(some))
            yield Batch(ids, torch.cat([real.new_ones(len(some), self.start), real], dim=1), cache)

    def with_own(self, edits: Sequence[Edit]) -> list[Edit]:
        """The chat's own edits and others, which may not reach in front of the requests: that ran without them."""
        others = [edit for edit in edits if edit not in self.edits]
        for edit in others:
            if edit.positions.select(torch.arange(self.start)[None], torch.tensor([self.start + self.ends])).any():
                raise EditError(f"{edit} reaches in front of token {self.start}: begin a chat with it instead")
        return [*self.edits, *others]


def alike(rows: Sequence[Sequence[int]]) -> int:
    """How many numbers at the beginning are the same in all rows."""
    return next((n for n, column in enumerate(zip(*rows, strict=False)) if len(set(column)) > 1), min(map(len, rows)))


def score(chat: Chat, part: str, kind: str, edits: Sequence[Edit] = ()) -> Float[Tensor, " request"]:
    """The log-odds of all openings together against everything else, in nats; edits are from the request on."""
    told = [chat.tokenizer(text, add_special_tokens=False).input_ids for text in chat.openings]
    ways = {tuple(ids) for ids in told}
    ways -= {way for way in ways if any(way[:n] in ways for n in range(len(way)))}  # so that none is counted twice
    paths = {way[:-1] for way in ways} - {()}
    paths -= {path[:n] for path in paths for n in range(len(path))}  # others pass by these
    batches = chat.batches(part, kind)
    return torch.cat([log_odds(follow(chat, batch, sorted(paths), edits), sorted(ways)) for batch in batches])


def follow(chat: Chat, batch: Batch, paths: Sequence[Path], edits: Sequence[Edit]) -> dict[Path, Tensor]:
    """The log-probabilities of what comes behind each prompt, `[row, vocab]`, and behind each beginning of a path."""
    with editing(chat.model, chat.with_own(edits)):
        after: dict[Path, Tensor] = {(): forward(chat, batch, (), 1)[:, -1]}
        for path in paths:
            told = forward(chat, batch, path, len(path))
            after |= {path[: n + 1]: told[:, n] for n in range(len(path))}
            batch.cache.crop(-len(path))
    return after


@torch.no_grad()
def forward(chat: Chat, batch: Batch, path: Path, keep: int) -> Float[Tensor, "row pos vocab"]:
    """Log-probabilities behind the last tokens: of the prompts, or of a path when the prompts are in the cache."""
    ids = batch.ids.new_tensor([path] * len(batch.ids)) if path else batch.ids
    mask = torch.cat([batch.mask, batch.mask.new_ones(len(ids), len(path))], dim=1)
    places = (mask.cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]  # as they are without padding
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": places, "past_key_values": batch.cache}
    logits: Tensor = chat.model(**given, logits_to_keep=keep).logits
    return logits.float().log_softmax(-1).cpu()


def log_odds(after: Mapping[Path, Tensor], ways: Sequence[Path]) -> Float[Tensor, " row"]:
    """Of all openings together, in nats; each has the product of its tokens' probabilities."""
    whole = [torch.stack([after[way[:n]][:, way[n]] for n in range(len(way))]).double().sum(0) for way in ways]
    total = torch.stack(whole).logsumexp(0).clamp(max=-1e-9)  # closer to zero, there are no odds in float64
    return total - torch.log(-torch.expm1(total))


def read(chat: Chat, part: str, kind: str, sites: Sequence[str], keep: Sequence[int]) -> dict[str, Tensor]:
    """Activations of each request at positions counted from the end of its prompt, `[request, position, ...]`."""
    seen = []
    for batch in chat.batches(part, kind):
        with editing(chat.model, chat.edits, read=sites, keep=keep, device="cpu") as watched:
            forward(chat, batch, (), 1)
        seen.append(watched)
    return {site: torch.cat([watched[site].float() for watched in seen]) for site in sites}
