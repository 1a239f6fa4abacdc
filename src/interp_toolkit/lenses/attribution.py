"""Direct logit attribution: a logit as the sum of what each part of the model writes.

The residual stream in front of the final norm is a sum: of the embedding, of what every head and MLP adds, and of
biases. With the norm's scale frozen at the position's own, norm and unembedding are linear, so the logit is that sum
too (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"). What a part does through later layers is
not in its share: it is the *direct* effect alone.

What is frozen: the scale of the final norm, and of a norm between a sublayer and the residual stream. Attention
patterns are as they are in the run. A soft cap behind the unembedding is left out: the logit before it is what is
attributed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp_toolkit.errors import CircuitError, LensError, TokenError, UnavailableSiteError
from interp_toolkit.lenses.asking import Answers, Asked, asked
from interp_toolkit.lenses.attributed import LogitAttribution, Part
from interp_toolkit.model.direct import Direct
from interp_toolkit.model.embedding import split_embedding
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.positions import PositionsLike
from interp_toolkit.model.pullback import Pulled, to_heads, to_neurons
from interp_toolkit.model.run import Run, run
from interp_toolkit.model.sites import Site
from interp_toolkit.model.tokens import Inputs, token_string
from interp_toolkit.provenance import provenance_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

By = Literal["sublayer", "head", "neuron", "source token"]
"""How finely a logit is parted."""

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
_ROUGH = 5e-2  # in half precision the residual stream itself is rounded that much


def direct_logit_attribution(
    model: nn.Module,
    prompt: Inputs,
    answers: Answers = None,
    *,
    by: By = "head",
    positions: PositionsLike = "last",
    strongest: int = 50,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layout: Layout | None = None,
) -> LogitAttribution:
    """Part a logit, or the difference of two, among the embedding, heads, MLPs, neurons, source tokens and biases.

    Args:
        model: a causal language model, as it is.
        prompt: one prompt: text or token ids.
        answers: a target, or (target, foil) for logit(target) − logit(foil); without them the token that the model
            finds most probable at the last of the positions.
        by: `"sublayer"`: attention and MLP of each layer. `"head"`: attention by head. `"neuron"`: the strongest
            neurons on their own. `"source token"`: what the strongest pairs of a head and a token that it attends to
            move. Everything else is always there too, so that each way sums to the logit.
        positions: where the logit is read.
        strongest: how many neurons, or pairs of head and token, become parts of their own; the others are parts
            together. All of them are in `detail`.
        tokenizer: for text, when the model does not say where it comes from.
        layout: for a model class of your own.

    Raises:
        LensError: when the logit is no such sum in this model, with the reason.
        UnavailableSiteError: when a part cannot be read, with the reason.
        RunError, TokenError, PositionError: for what the prompt, the answers or the model lack.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> found = direct_logit_attribution(model, [1, 2, 3], (5, 6))
        >>> found.names[:4], bool((found.values.sum(-1) - found.logit).abs().max() < 1e-5)
        (('embedding', 'position embedding', 'L0H0', 'L0H1'), True)
    """
    if by not in get_args(By):
        raise LensError(f"by is one of {', '.join(map(repr, get_args(By)))}, not {by!r}")
    if strongest < 1:
        raise LensError(f"at least one part is shown on its own, but strongest is {strongest}")
    question = asked(model, prompt, answers, positions=positions, tokenizer=tokenizer, layout=layout)
    parting = _Parting(question, by, strongest)
    with torch.no_grad():
        parting.part()
    return parting.result()


@dataclass(eq=False)
class _Parts:
    """Parts as they are found, with their values at each position."""

    parts: list[Part] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def add(self, value: Float[Tensor, " pos"], part: Part) -> None:
        self.parts.append(part)
        self.values.append(value)


class _Parting:
    """One logit on its way into parts."""

    def __init__(self, question: Asked, by: By, strongest: int) -> None:
        self.asked, self.by, self.strongest = question, by, strongest
        self.wiring, self.layers = question.wiring, range(question.wiring.layout.num_layers)
        first = next(p for p in self.wiring.base.parameters() if p.is_floating_point())
        self.dtype = torch.promote_types(first.dtype, torch.float32)
        self.tolerance = _TOLERANCE.get(first.dtype, _ROUGH)
        self.direct = self._direct()
        self.read = self._run()
        self.found, self.detail = _Parts(), dict[int, Tensor]()
        self.notes: list[str] = []

    def _direct(self) -> Direct:
        try:
            return Direct(self.wiring, self.asked.tokens, dtype=self.dtype)
        except CircuitError as error:
            raise LensError(str(error)) from error

    # --- what is read ------------------------------------------------------------------------------------------

    def _run(self) -> Run:
        layers = self.layers
        sites = [Site("embed"), self.direct.end]
        names = ["attn_out", "mlp_out"]
        names += ["z"] if self.by in ("head", "source token") else []
        names += ["pattern", "v"] if self.by == "source token" else []
        sites += [Site(name, layer) for name in names for layer in layers]
        for site in sites:
            self._check(site)
        if self.by == "neuron":
            known = [layer for layer in layers if Site("mlp_post", layer) not in self.wiring.refused]
            if not known:
                self._check(Site("mlp_post", 0))
            sites += [Site("mlp_post", layer) for layer in known]
        # Values are needed at all positions, other things at those asked for.
        keep = None if self.by == "source token" else list(self.asked.where)
        layout = self.wiring.layout
        return run(
            self.wiring.model, self.asked.tokens, read=sites, logits=list(self.asked.where), keep=keep, layout=layout
        )

    def _check(self, site: Site) -> None:
        try:
            self.wiring.check(site)
        except UnavailableSiteError as error:
            finer = site.component in ("z", "pattern", "v", "mlp_post")
            hint = "; by='sublayer' needs less" if finer else "; its logits cannot be parted"
            raise UnavailableSiteError(f"{error}{hint}") from error

    def _at(self, name: str, layer: int | None = None) -> Tensor:
        """A reading at the positions, in the precision of the work; pattern: `[pos, head, source]`."""
        x = self.read[Site(name, layer)][0]
        if name == "pattern":
            x = x.transpose(0, 1)
        if len(x) != len(self.asked.where) or self.by == "source token":
            x = x[list(self.asked.where)]
        return x.to(self.direct.gain.device, self.dtype)

    # --- the sum -----------------------------------------------------------------------------------------------

    def part(self) -> None:
        """Find all parts."""
        ids = self._ids()
        rows = self.direct.rows(ids)
        row = rows[0] - rows[1] if len(ids) > 1 else rows[0]
        end = self._end()
        self.slopes = self.direct.slopes(end, row.expand(len(end), 1, -1))[:, 0]
        given = self.direct.constant(ids)
        constant = given[0] - given[1] if len(ids) > 1 else given[0]
        embed = self._at("embed")
        for name, vector in split_embedding(self.wiring, self.asked.tokens, self.asked.where, embed).items():
            self.found.add(self._effect(vector), Part(kind=name, name=name))
        for layer in self.layers:
            self._attention(layer)
            self._mlp(layer)
        self.found.add(constant.expand(len(end)), Part(kind="bias", name="final bias"))
        self._separate_strongest()
        logits = self._logits(end)[:, ids]
        self.logit = logits[:, 0] - logits[:, 1] if len(ids) > 1 else logits[:, 0]
        self._check_sum()

    def _ids(self) -> Tensor:
        """The answers, or the best token at the last position."""
        given = self._given()
        size = given.shape[-1]
        if any(i >= size for i in self.asked.ids):
            raise TokenError(f"token id {max(self.asked.ids)} is outside of the vocabulary of {size:,} tokens")
        ids = self.asked.ids or (int(given[-1].argmax()),)
        self.answers = tuple(token_string(self.asked.tokenizer, i) for i in ids)
        return torch.tensor(ids, device=given.device)

    def _given(self) -> Float[Tensor, "pos vocab"]:
        """The model's logits."""
        return self.read.logits[0].to(self.dtype)

    def _end(self) -> Float[Tensor, "pos d_model"]:
        """The stream in front of the final norm, in the model's own precision."""
        end: Tensor = self.read[self.direct.end][0]
        return end[list(self.asked.where)] if self.by == "source token" else end

    def _logits(self, end: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos vocab"]:
        """The model's own logits; before a soft cap where there is one."""
        model_says = self._given()
        if not self.direct.capped:
            return model_says
        before = self.direct.logits(end)
        if not _rises_with(model_says, before):
            raise LensError(
                f"what stands between the unembedding and the logits of this {self.wiring.layout.model_type} model is "
                "neither a factor nor a soft cap, so its logits are not the sum of parts"
            )
        self.notes.append("the model caps its logits softly; this is the logit before the cap")
        return before

    def _effect(self, vector: Float[Tensor, "pos d_model"]) -> Float[Tensor, " pos"]:
        return (vector * self.slopes).sum(-1)

    def _attention(self, layer: int) -> None:
        whole = self._effect(self._at("attn_out", layer))
        if self.by not in ("head", "source token"):
            self.found.add(whole, Part(kind="attention", name=f"L{layer}attention", layer=layer))
            return
        z = self.read[Site("z", layer)][0]
        z = z[list(self.asked.where)] if self.by == "source token" else z
        pulled = to_heads(self.wiring, layer, z, self.slopes)
        heads = (z.to(self.dtype) * pulled.slopes).sum(-1)
        self._check_part(Site("z", layer), heads.sum(-1) + pulled.bias, whole, heads)
        if self.by == "source token":
            self.detail[layer] = self._by_source(layer, pulled, heads)
        for head in range(heads.shape[1]):
            self.found.add(heads[:, head], Part(kind="head", name=f"L{layer}H{head}", layer=layer, index=head))
        if bool(pulled.bias.any()):
            self.found.add(pulled.bias, Part(kind="bias", name=f"L{layer}attention bias", layer=layer))

    def _by_source(
        self, layer: int, pulled: Pulled, heads: Float[Tensor, "pos head"]
    ) -> Float[Tensor, "pos head source"]:
        """What each head moves from each token."""
        pattern = self._at("pattern", layer)
        values = self.read[Site("v", layer)][0].to(pattern)
        values = values.repeat_interleave(heads.shape[1] // values.shape[1], dim=1)
        moved = pattern * torch.einsum("phd,shd->phs", pulled.slopes, values)
        self._check_part(Site("pattern", layer), moved.sum(-1).sum(-1), heads.sum(-1), moved.flatten(1))
        return moved

    def _mlp(self, layer: int) -> None:
        whole = self._effect(self._at("mlp_out", layer))
        site = Site("mlp_post", layer)
        if self.by != "neuron" or site not in self.read:
            self.found.add(whole, Part(kind="mlp", name=f"L{layer}MLP", layer=layer))
            if self.by == "neuron":
                self.notes.append(f"the MLP of layer {layer} stays whole: {self.wiring.refused[site]}")
            return
        post = self.read[site][0]
        pulled = to_neurons(self.wiring, layer, post, self.slopes)
        self.detail[layer] = post.to(self.dtype) * pulled.slopes
        neurons = self.detail[layer].sum(-1)
        self._check_part(site, neurons + pulled.bias, whole, self.detail[layer])
        self.found.add(neurons, Part(kind="neurons", name=f"L{layer}MLP", layer=layer))
        if bool(pulled.bias.any()):
            self.found.add(pulled.bias, Part(kind="bias", name=f"L{layer}MLP bias", layer=layer))

    # --- the strongest -------------------------------------------------------------------------------------------

    def _separate_strongest(self) -> None:
        """Make the strongest neurons, or pairs of head and token, parts of their own, behind what they come from."""
        if not self.detail:
            return
        sizes = {layer: x.abs().amax(0).flatten() for layer, x in self.detail.items()}
        every = torch.cat(list(sizes.values()))
        least = every.topk(min(self.strongest, len(every))).values[-1]
        parts = _Parts()
        for part, value in zip(self.found.parts, self.found.values, strict=True):
            own = part.kind in ("head", "neurons") and part.layer in self.detail
            if part.layer is None or not own:
                parts.add(value, part)
                continue
            detail = self.detail[part.layer] if part.kind == "neurons" else self.detail[part.layer][:, part.index]
            chosen = (detail.abs().amax(0) >= least).nonzero()[:, 0].tolist()
            for n in chosen:
                parts.add(detail[:, n], self._single(part, n))
            others = "other neurons" if part.kind == "neurons" else "other tokens"
            rest = replace(part, name=f"{part.name}, {others}") if chosen else part
            parts.add(value - detail[:, chosen].sum(-1), rest)
        self.found = parts

    def _single(self, part: Part, number: int) -> Part:
        if part.kind == "neurons":
            return Part(kind="neuron", name=f"L{part.layer}N{number}", layer=part.layer, index=number)
        name = f"{part.name} from {number} {self.asked.tokens.strings()[number]!r}"
        return replace(part, kind="source token", name=name, source=number)

    # --- proof ---------------------------------------------------------------------------------------------------

    def _check_part(self, site: Site, found: Tensor, wanted: Tensor, terms: Float[Tensor, "pos term"]) -> None:
        """Refuse what does not sum to what it is part of."""
        off, size = (found - wanted).abs(), terms.abs().sum(-1) + wanted.abs()
        if bool((off > self.tolerance * size.clamp_min(1e-3)).any()):
            raise LensError(
                f"the parts at {site} of this {self.wiring.layout.model_type} model sum to {float(found[-1]):.6g} at "
                f"the last position, not to {float(wanted[-1]):.6g}: something that is not known stands behind them. "
                "by='sublayer' does not need them"
            )

    def _check_sum(self) -> None:
        values = torch.stack(self.found.values, dim=-1)
        off, size = (values.sum(-1) - self.logit).abs(), values.abs().sum(-1) + self.logit.abs()
        if bool((off > self.tolerance * size).any()):
            raise LensError(
                f"the parts of this {self.wiring.layout.model_type} model sum to {float(values[-1].sum()):.6g} at the "
                f"last position, but its logit is {float(self.logit[-1]):.6g}: something that is not known adds to the "
                "residual stream or stands behind it"
            )

    def result(self) -> LogitAttribution:
        """Everything together."""
        return LogitAttribution(
            by=self.by,
            parts=tuple(self.found.parts),
            values=torch.stack(self.found.values, dim=-1).cpu(),
            logit=self.logit.cpu(),
            answers=self.answers,
            positions=self.asked.where,
            tokens=self.asked.shown,
            prompt=tuple(self.asked.tokens.strings()),
            capped=self.direct.capped,
            notes=tuple(self.notes),
            detail={layer: x.cpu() for layer, x in self.detail.items()},
            num_layers=len(self.layers),
            provenance=provenance_of(self.wiring.model, self.wiring.layout),
        )


def _rises_with(logits: Float[Tensor, "pos vocab"], before: Float[Tensor, "pos vocab"]) -> bool:
    """Whether the larger number is the larger logit, up to rounding."""
    ranks = [x.argsort(-1).argsort(-1).double() for x in (logits, before)]
    centred = [r - r.mean(-1, keepdim=True) for r in ranks]
    alike = (centred[0] * centred[1]).sum(-1) / (centred[0].norm(dim=-1) * centred[1].norm(dim=-1)).clamp_min(1e-30)
    return bool((alike > 0.99).all())


__all__ = ["By", "direct_logit_attribution"]
