"""A direction between two kinds of requests: found and chosen as by Arditi et al. 2024, and what comes with it.

Which heads and MLPs write it, what happens when only some of them are kept from it, and what plain text loses.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from interp_toolkit import Edit, From, run
from interp_toolkit.model import encode, layout_of
from interp_toolkit.probes import bootstrap_auroc
from interp_toolkit.statistics import Estimate, bootstrap_mean, kl_divergence
from interp_toolkit.steering import FirstToken, SteeringVector, first_token, given_vector, steering_edits
from openings import Chat, Setting, follow, read, score

KINDS = ("harmful", "harmless")
MAX_KL = 0.1  # nats by which ablation may move the first token behind harmless requests, as in the paper
DEPTH = 0.8  # directions are looked for below this share of the layers, as in the paper
SPARSE = 8  # at other positions than the last, only one in so many of these layers is tried
SIZES = (4, 16)  # numbers of heads and MLPs that the direction is taken from, besides all of them

Odds = Mapping[str, Float[Tensor, "request *draw"]]  # scores in nats by kind; draws are random directions


def scores(chat: Chat, part: str) -> Odds:
    """Of both kinds, with the model as it is."""
    return {kind: score(chat, part, kind) for kind in KINDS}


def next_token(chat: Chat, part: str, kind: str, edits: Sequence[Edit] = ()) -> Float[Tensor, "request vocab"]:
    """The log-probabilities of the first token of each answer."""
    return torch.cat([follow(chat, batch, [], edits)[()] for batch in chat.batches(part, kind)])


def gap(odds: Odds) -> Estimate:
    """By how much a refusal is more probable behind harmful requests; there are as many of both, in no order."""
    return bootstrap_mean(odds["harmful"].sigmoid() - odds["harmless"].sigmoid())


def auroc(odds: Odds) -> Estimate:
    """How often a harmful request has a higher score than a harmless one."""
    positive = torch.tensor([kind == "harmful" for kind in KINDS for _ in odds[kind]])
    return bootstrap_auroc(torch.cat([odds[kind] for kind in KINDS]), positive)


@dataclass(frozen=True, kw_only=True, eq=False)
class Refused:
    """Scores of requests in a setting, the gap between the kinds, and how well the score tells them apart."""

    setting: Setting
    odds: Odds
    gap: Estimate
    auroc: Estimate


def refused(chat: Chat, part: str) -> Refused:
    """What the model does as it is."""
    odds = scores(chat, part)
    return Refused(setting=chat.setting, odds=odds, gap=gap(odds), auroc=auroc(odds))


# --- find and choose --------------------------------------------------------------------------------------------------


def differences(chat: Chat) -> Float[Tensor, "layer position d_model"]:
    """Mean of harmful minus mean of harmless train requests at the tokens of the chat format behind the request."""
    sites = [f"resid_post.{layer}" for layer in range(layout_of(chat.model).num_layers)]
    harmful, harmless = (read(chat, "train", kind, sites, range(-chat.ends, 0)) for kind in KINDS)
    return torch.stack([harmful[site].mean(0) - harmless[site].mean(0) for site in sites])


def ablation(chat: Chat, vector: SteeringVector, first: int | None = None) -> list[Edit]:
    """Take a direction from all that writes to the residual stream, at every token from the request on."""
    where = From(chat.start if first is None else first)
    return steering_edits(chat.model, vector, operation="ablate", layers="writers", positions=where)


def addition(chat: Chat, vector: SteeringVector) -> list[Edit]:
    """Add the difference of means, as long as it is, at its layer, at every token from the request on."""
    return steering_edits(chat.model, vector, 1.0, scale="raw", positions=From(chat.start))


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """A direction and what it does to validation requests; NaN where that was not tried.

    Attributes:
        position: of the token, from the end of the prompt.
        vector: with the layer behind which it was found.
        induce: score of harmless requests with it added.
        bypass: score of harmful requests with it ablated.
        kl: how far ablation moves the first token behind harmless requests.
    """

    position: int
    vector: SteeringVector
    induce: float
    bypass: float = math.nan
    kl: float = math.nan

    @property
    def layer(self) -> int:
        """The layer behind which it was found."""
        return self.vector.layers[0]

    @property
    def induces(self) -> bool:
        """Whether it makes refusal likelier than not."""
        return self.induce > 0

    @property
    def spares(self) -> bool:
        """Whether ablation leaves harmless requests as they are; not, where that was not tried."""
        return self.kl <= MAX_KL


def candidates(chat: Chat, found: Float[Tensor, "layer position d_model"], every: int) -> list[Candidate]:
    """The last token at every so many layers, the others at fewer of them, and only where they induce refusal."""
    tried = []
    for position in range(-chat.ends, 0):
        for layer in range(0, max(1, int(DEPTH * len(found))), every if position == -1 else SPARSE * every):
            vector = given_vector(chat.model, found[layer, position], layers=layer)
            induce = float(score(chat, "validation", "harmless", addition(chat, vector)).mean())
            one = Candidate(position=position, vector=vector, induce=induce)
            if position == -1 or one.induces:
                bypass = float(score(chat, "validation", "harmful", ablation(chat, vector)).mean())
                one = replace(one, bypass=bypass)
            tried.append(one)
    return tried


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """The best of the candidates, those with a bypass score in its order, all, and scores as the model is."""

    best: Candidate
    order: Sequence[Candidate]
    tried: Sequence[Candidate]
    plain: Odds


def select(chat: Chat, tried: Sequence[Candidate]) -> Selection:
    """The lowest bypass score with an induce score above 0 and a small KL, which is measured in this order."""
    plain = next_token(chat, "validation", "harmless")
    order = sorted((one for one in tried if not math.isnan(one.bypass)), key=lambda one: one.bypass)
    inducing = [n for n, one in enumerate(order) if one.induces]
    for n in inducing:
        changed = next_token(chat, "validation", "harmless", ablation(chat, order[n].vector))
        order[n] = replace(order[n], kl=float(kl_divergence(plain, changed).mean()))
        if order[n].spares:
            break
    best = next((one for one in order if one.induces and one.spares), order[inducing[0] if inducing else 0])
    return Selection(best=best, order=order, tried=tried, plain=scores(chat, "validation"))


def steered(
    chat: Chat, make: Callable[[Chat, SteeringVector], list[Edit]], vectors: Sequence[SteeringVector]
) -> tuple[Odds, Odds]:
    """Scores of test requests with the first vector, and with each of the others."""
    found = {}
    for kind in KINDS:
        found[kind] = torch.stack([score(chat, "test", kind, make(chat, one)) for one in vectors], dim=1)
    return {kind: x[:, 0] for kind, x in found.items()}, {kind: x[:, 1:] for kind, x in found.items()}


# --- what writes it -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Written:
    """What is written along a direction at its position, up to its layer: harmful minus harmless requests.

    Attributes:
        parts: by the embedding, each head, each layer's bias and each MLP.
        total: what there is in the residual stream.
    """

    parts: Mapping[str, Float[Tensor, " request"]]
    total: Float[Tensor, " request"]

    @property
    def missed(self) -> float:
        """By how much the parts' sum misses the total, at most."""
        return float((torch.stack(list(self.parts.values())).sum(0) - self.total).abs().max())


def written(chat: Chat, part: str, chosen: Candidate) -> Written:
    """Each part's output in the residual stream, along the direction."""
    unit, layers, last = chosen.vector.units[0], range(chosen.layer + 1), f"resid_post.{chosen.layer}"
    sites = ["embed", *(f"{name}.{layer}" for layer in layers for name in ("head_out", "attn_out", "mlp_out")), last]
    harmful, harmless = (read(chat, part, kind, sites, [chosen.position]) for kind in KINDS)
    along = {site: ((harmful[site] - harmless[site])[:, 0] @ unit).double() for site in sites}
    parts = {"embed": along["embed"]}
    for layer in layers:
        heads = along[f"head_out.{layer}"]
        parts |= {f"head_out.{layer}.{head}": heads[:, head] for head in range(heads.shape[1])}
        parts[f"bias.{layer}"] = along[f"attn_out.{layer}"] - heads.sum(1)
        parts[f"mlp_out.{layer}"] = along[f"mlp_out.{layer}"]
    return Written(parts=parts, total=along[last])


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """Scores of harmful test requests, the direction taken from some parts only.

    Attributes:
        number: of parts.
        strongest: taken from those that write most of it.
        drawn: taken from as many random ones; no draws where these are all.
    """

    number: int
    strongest: Float[Tensor, " request"]
    drawn: Float[Tensor, "request draw"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Writers:
    """Which heads and MLPs write a direction.

    Attributes:
        order: their sites, those that write most on train requests first.
        test: what they write on test requests.
        cuts: what happens when only some of them are kept from it.
    """

    order: Sequence[str]
    test: Written
    cuts: Sequence[Cut]


def find_writers(chat: Chat, chosen: Candidate, draws: int, seed: int) -> Writers:
    """What writes the direction, and scores with it taken from the strongest writers only, or from random ones."""

    def without(sites: Sequence[str]) -> Tensor:
        where = From(chat.start)
        edits = [Edit.project_out(site, chosen.vector.direction, positions=where) for site in sites]
        return score(chat, "test", "harmful", edits)

    train = {site: abs(float(values.mean())) for site, values in written(chat, "train", chosen).parts.items()}
    order = sorted((site for site in train if site.startswith(("head_out", "mlp_out"))), key=lambda site: -train[site])
    lot, cuts = random.Random(seed), []
    for number in sorted({min(size, len(order)) for size in (*SIZES, len(order))}):
        drawn = [without(lot.sample(order, number)) for _ in range(draws if number < len(order) else 0)]
        strongest = without(order[:number])
        both = torch.stack([strongest, *drawn], dim=1)
        cuts.append(Cut(number=number, strongest=strongest, drawn=both[:, 1:]))
    return Writers(order=order, test=written(chat, "test", chosen), cuts=cuts)


# --- side effects ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class SideEffects:
    """Nats a token of neutral texts, and what the first token has to do with it.

    Attributes:
        plain: with the model as it is.
        behind: with the direction ablated behind the first token.
        random: with random ones ablated there.
        everywhere: with the direction ablated from the first token too.
        first: what ablation does at the first token alone.
    """

    plain: Float[Tensor, " text"]
    behind: Float[Tensor, " text"]
    random: Float[Tensor, "text draw"]
    everywhere: Float[Tensor, " text"]
    first: FirstToken


def surprise(chat: Chat, texts: Sequence[str], edits: Sequence[Edit] = ()) -> Float[Tensor, " text"]:
    """Nats a token of each text without a chat format, from its second token on."""
    found = []
    for text in texts:
        tokens = encode(text, tokenizer=chat.tokenizer)
        told = run(chat.model, tokens, edits=edits, logits="all").logits[0, :-1].float().log_softmax(-1).cpu()
        found.append(-told.gather(1, torch.tensor(tokens.row())[1:, None]).double().mean())
    return torch.stack(found)


def side_effects(
    chat: Chat, vector: SteeringVector, others: Sequence[SteeringVector], texts: Sequence[str]
) -> SideEffects:
    """What ablation does to plain text, with and without the first token."""
    behind, *drawn = (surprise(chat, texts, ablation(chat, one, first=1)) for one in (vector, *others))
    return SideEffects(
        plain=surprise(chat, texts),
        behind=behind,
        random=torch.stack(drawn, dim=1),
        everywhere=surprise(chat, texts, ablation(chat, vector, first=0)),
        first=first_token(chat.model, vector, texts, tokenizer=chat.tokenizer),
    )
