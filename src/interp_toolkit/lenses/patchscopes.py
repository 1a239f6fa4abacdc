"""Patchscope: put an activation of one prompt into another, and let the model say in words what is in it.

A vector is read in a source prompt and set in a target prompt, at any layer of either, and the model goes on from there
by itself (Ghandeharioun et al. 2024, "Patchscopes: A Unifying Framework for Inspecting Hidden Representations of
Language Models"). With a target prompt that repeats what it is shown, such as `REPEAT`, it says what the vector stands
for; with one that describes it, it describes it.

The vector is set when the target prompt is read, at one position of it; what is generated behind is the model's own,
token by token the most probable one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp_toolkit.errors import LensError, SiteError, UnsupportedModelError
from interp_toolkit.lenses.asking import Asked, asked
from interp_toolkit.lenses.patched import Patchscope, PatchscopeSweep
from interp_toolkit.model.edits import Edit
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.positions import PositionsLike, Span
from interp_toolkit.model.run import editing, run
from interp_toolkit.model.sites import Site
from interp_toolkit.model.tokens import Inputs, Tokens, answer_token, token_string
from interp_toolkit.provenance import provenance_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPEAT = "cat -> cat\n1135 -> 1135\nhello -> hello\n? ->"
"""A target prompt behind which the model repeats what stands at its `?` (Ghandeharioun et al. 2024, section 4)."""

VectorMap = Callable[[Float[Tensor, "rows d_model"]], Float[Tensor, "rows d_model"]]
"""What is done to a vector on its way."""

_TOP = 5
_AT_ONCE = 1 << 14  # tokens of target prompts in one batch


def patchscope(
    model: nn.Module,
    source_prompt: Inputs,
    source: Site | str,
    target_prompt: Inputs = REPEAT,
    target: Site | str | None = None,
    *,
    source_position: PositionsLike = "last",
    target_position: PositionsLike = None,
    max_new_tokens: int = 10,
    mapping: VectorMap | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layout: Layout | None = None,
) -> Patchscope:
    """Say in words what an activation holds.

    Args:
        model: a causal language model, as it is.
        source_prompt: where the activation is read: one prompt.
        source: its site, such as `"resid_post.6"`; any site with the residual stream's width.
        target_prompt: where it is set: one prompt; `REPEAT` if it is not given.
        target: the site there; the same as `source` if it is not given. The layers may differ.
        source_position: one position of the source prompt.
        target_position: one position of the target prompt; if not given, the `?` of `REPEAT`, or the last of another.
        max_new_tokens: how much is generated at most.
        mapping: what to do with the vector on its way, for instance an affine map from layer to layer.
        tokenizer: for text, when the model does not say where it comes from.
        layout: for a model class of your own.

    Returns:
        What the model generates with the patch and without it, and the most probable next tokens of both.

    Raises:
        SiteError: for sites that do not exist, or hold no single vector of the residual stream's width.
        LensError: for several positions, a mapping that gives something else, and numbers that cannot be.
        RunError, TokenError, PositionError: for what the prompts lack.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> len(patchscope(model, [1, 2, 3], "resid_post.0", [4, 5], max_new_tokens=3).generated)
        3
    """
    where = Site.parse(source)
    scope = _Scope(
        asked(model, source_prompt, positions=source_position, tokenizer=tokenizer, layout=layout),
        asked(
            model,
            target_prompt,
            positions=_target(target_prompt) if target_position is None else target_position,
            tokenizer=tokenizer,
            layout=layout,
        ),
        mapping,
    )
    from_site, to_site = scope.stream_site(where), scope.stream_site(where if target is None else Site.parse(target))
    vector = scope.vectors([from_site])
    patched = scope.generate([(to_site, vector[0])], max_new_tokens)
    plain = scope.generate([], max_new_tokens)
    return Patchscope(
        source=str(from_site),
        target=str(to_site),
        source_token=scope.source.shown[0],
        source_position=scope.source.where[0],
        target_token=scope.target.shown[0],
        target_position=scope.target.where[0],
        source_tokens=tuple(scope.source.tokens.strings()),
        target_tokens=tuple(scope.target.tokens.strings()),
        generated=scope.strings(patched.ids[0]),
        text=scope.text(patched.ids[0]),
        plain_text=scope.text(plain.ids[0]),
        top=scope.top(patched.shares[0]),
        plain_top=scope.top(plain.shares[0]),
        provenance=provenance_of(model, scope.source.wiring.layout),
    )


def patchscope_sweep(
    model: nn.Module,
    source_prompt: Inputs,
    target_prompt: Inputs = REPEAT,
    *,
    answer: str | int | None = None,
    source_layers: Sequence[int] | None = None,
    target_layers: Sequence[int] | None = None,
    component: str = "resid_post",
    source_position: PositionsLike = "last",
    target_position: PositionsLike = None,
    max_new_tokens: int = 5,
    mapping: VectorMap | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layout: Layout | None = None,
) -> PatchscopeSweep:
    """Patchscopes from every layer to every layer, as rows of a few batches.

    Args:
        model: a causal language model, as it is.
        source_prompt: where activations are read: one prompt.
        target_prompt: where they are set: one prompt.
        answer: a token that continues the target prompt, whose probability is followed; without one that of each
            cell's own best token is.
        source_layers: from which layers; all if not given.
        target_layers: to which layers; all if not given.
        component: of both sites, such as `"resid_post"`.
        source_position: one position of the source prompt.
        target_position: one position of the target prompt; if not given, the `?` of `REPEAT`, or the last of another.
        max_new_tokens: how much is generated in each cell.
        mapping: see `patchscope`.
        tokenizer: for text, when the model does not say where it comes from.
        layout: for a model class of your own.

    Raises:
        SiteError, LensError, RunError, TokenError, PositionError: see `patchscope`.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> patchscope_sweep(model, [1, 2, 3], [4, 5], answer=3).probability.shape
        torch.Size([2, 2])
    """
    scope = _Scope(
        asked(model, source_prompt, positions=source_position, tokenizer=tokenizer, layout=layout),
        asked(
            model,
            target_prompt,
            positions=_target(target_prompt) if target_position is None else target_position,
            tokenizer=tokenizer,
            layout=layout,
        ),
        mapping,
    )
    number = scope.source.wiring.layout.num_layers
    chosen = [list(range(number)) if layers is None else list(layers) for layers in (source_layers, target_layers)]
    if not all(chosen):
        raise LensError("a sweep goes from at least one layer to at least one layer, but a list of layers is empty")
    sites = [[scope.stream_site(Site(component, layer)) for layer in layers] for layers in chosen]
    vectors = scope.vectors(sites[0])
    found = scope.generate([(site, vector) for vector in vectors for site in sites[1]], max_new_tokens)
    grid = (len(sites[0]), len(sites[1]))
    token = None if answer is None else scope.answer(answer)
    best = found.shares.max(-1)
    values = best.values if token is None else found.shares[:, token]
    return PatchscopeSweep(
        component=component,
        source_layers=tuple(int(site.layer or 0) for site in sites[0]),
        target_layers=tuple(int(site.layer or 0) for site in sites[1]),
        answer=None if token is None else token_string(scope.target.tokenizer, token),
        plain_probability=float(scope.generate([], 1).shares[0].max() if token is None else scope.plain(token)),
        probability=values.view(grid),
        first=_rows([token_string(scope.target.tokenizer, int(i)) for i in best.indices], grid),
        texts=_rows([scope.text(ids) for ids in found.ids], grid),
        source_token=scope.source.shown[0],
        target_token=scope.target.shown[0],
        provenance=provenance_of(model, scope.source.wiring.layout),
    )


def _target(prompt: Inputs) -> PositionsLike:
    """Where a vector goes if nothing else is said."""
    return Span("?") if isinstance(prompt, str) and prompt == REPEAT else "last"


@dataclass(frozen=True, eq=False)
class _Said:
    """What a model generated, and its distribution over the first token of it."""

    ids: list[list[int]]
    shares: Float[Tensor, "row vocab"]


@dataclass(eq=False)
class _Scope:
    """A source prompt, a target prompt, and the way from one to the other."""

    source: Asked
    target: Asked
    mapping: VectorMap | None
    _plain: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for what, question in (("source", self.source), ("target", self.target)):
            if len(question.where) != 1:
                raise LensError(
                    f"a patchscope takes one vector from one position to another, but the {what} position means "
                    f"{len(question.where)} positions: {list(question.where)}"
                )

    def stream_site(self, site: Site) -> Site:
        """A site that holds one vector of the residual stream's width at each position."""
        found = self.source.wiring.check(site)
        if found.axes != ("batch", "pos", "d_model"):
            raise SiteError(
                f"{found} has the axes {', '.join(found.axes)}; a patchscope takes a vector of the residual stream's "
                "width, as at resid_pre, resid_post, attn_out or mlp_out"
            )
        if found.component == "final_norm":
            raise SiteError("final_norm is behind the residual stream: read resid_post of the last layer instead")
        return found

    def vectors(self, sites: list[Site]) -> Float[Tensor, "site d_model"]:
        """The source prompt's vectors, on their way."""
        wiring = self.source.wiring
        found = run(wiring.model, self.source.tokens, read=sites, keep=list(self.source.where), layout=wiring.layout)
        vectors = torch.stack([found[site][0, 0] for site in sites])
        if self.mapping is None:
            return vectors
        mapped: object = self.mapping(vectors.clone())
        if not isinstance(mapped, Tensor) or mapped.shape != vectors.shape:
            shape = tuple(mapped.shape) if isinstance(mapped, Tensor) else type(mapped).__name__
            raise LensError(f"the mapping was given vectors of shape {tuple(vectors.shape)} and gave {shape}")
        return mapped.detach().to(vectors)

    def generate(self, patches: list[tuple[Site, Tensor]], number: int) -> _Said:
        """What the target prompt becomes with each of these patches; without any once as it is."""
        if number < 1:
            raise LensError(f"at least one token is generated, not {number}")
        length = self.target.tokens.ids.shape[1] + number
        rows = max(1, _AT_ONCE // length)
        parts = [self._some(patches[n : n + rows], number) for n in range(0, max(1, len(patches)), rows)]
        return _Said([ids for part in parts for ids in part.ids], torch.cat([part.shares for part in parts]))

    @torch.no_grad()
    def _some(self, patches: list[tuple[Site, Tensor]], number: int) -> _Said:
        wiring, rows = self.target.wiring, max(1, len(patches))
        device = next(wiring.base.parameters()).device
        ids = self.target.tokens.ids.expand(rows, -1).to(device)
        tokens = Tokens(ids=ids.cpu(), mask=torch.ones_like(ids).cpu())
        if not callable(getattr(wiring.model, "generate", None)):
            raise UnsupportedModelError(
                f"{type(wiring.model).__name__} has no `generate`, so it cannot say anything; use logit_lens"
            )
        with editing(wiring.model, self._edits(patches), tokens=tokens, layout=wiring.layout):
            made: Any = wiring.model.generate(  # type: ignore[operator]
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=number,
                do_sample=False,
                num_beams=1,
                pad_token_id=self._padding(),
                return_dict_in_generate=True,
                output_logits=True,
            )
        new = made.sequences[:, ids.shape[1] :].tolist()
        shares = made.logits[0].float().softmax(-1).cpu()
        return _Said([self._until_end(row) for row in new], shares)

    def _edits(self, patches: list[tuple[Site, Tensor]]) -> list[Edit]:
        """One edit for each site, at one position of its own rows."""
        values = torch.stack([vector for _, vector in patches])[:, None] if patches else None
        by_site: dict[Site, list[int]] = {}
        for row, (site, _) in enumerate(patches):
            by_site.setdefault(site, []).append(row)
        place = list(self.target.where)
        return [
            Edit.set(site, values, positions=place, rows=rows) for site, rows in by_site.items() if values is not None
        ]

    def _padding(self) -> int:
        ends = self._ends()
        return ends[0] if ends else 0

    def _ends(self) -> list[int]:
        """The tokens at which generation stops."""
        settings = getattr(self.target.wiring.model, "generation_config", None)
        found = getattr(settings, "eos_token_id", None)
        return [] if found is None else [found] if isinstance(found, int) else list(found)

    def _until_end(self, row: list[int]) -> list[int]:
        """Generated tokens up to the first that ends the text: behind it is padding."""
        ends = self._ends()
        last = next((n for n, token in enumerate(row) if token in ends), len(row))
        return row[: last + 1]

    def answer(self, answer: str | int) -> int:
        """The token of an answer."""
        texts = self.target.tokens.texts
        token = answer_token(texts[0] if texts else "", answer, self.target.tokenizer)
        size = len(self._plain_shares())
        if token >= size:
            raise LensError(f"token id {token} is outside of the vocabulary of {size:,} tokens")
        return token

    def plain(self, token: int) -> float:
        """The probability of a token without a patch."""
        return float(self._plain_shares()[token])

    def _plain_shares(self) -> Float[Tensor, " vocab"]:
        if self._plain is None:
            self._plain = self.generate([], 1).shares[0]
        return self._plain

    def strings(self, ids: list[int]) -> tuple[str, ...]:
        """Tokens as people read them."""
        return tuple(token_string(self.target.tokenizer, i) for i in ids)

    def text(self, ids: list[int]) -> str:
        """What was generated, as text; without a tokenizer the ids."""
        if self.target.tokenizer is None:
            return " ".join(map(str, ids))
        return str(self.target.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def top(self, shares: Float[Tensor, " vocab"]) -> tuple[tuple[str, float], ...]:
        """The most probable tokens."""
        best = shares.topk(min(_TOP, len(shares)))
        return tuple(
            (token_string(self.target.tokenizer, int(i)), float(p))
            for i, p in zip(best.indices, best.values, strict=True)
        )


def _rows(cells: list[str], grid: tuple[int, int]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(cells[n * grid[1] : (n + 1) * grid[1]]) for n in range(grid[0]))


__all__ = ["REPEAT", "patchscope", "patchscope_sweep"]
