"""Activation patching: put an activation of one run into another and see what the answer makes of it.

Sign convention, here and everywhere: a positive effect is **towards the clean answer**, in both directions.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp_toolkit.errors import AlignmentError, FileFormatError, InterpWarning, PositionError, TokenError
from interp_toolkit.model.edits import Edit
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.positions import PerRow, PositionsLike, Span, positions
from interp_toolkit.model.run import run
from interp_toolkit.model.sites import COMPONENTS, SHORT_NAMES, Site
from interp_toolkit.model.tokens import (
    Inputs,
    Tokens,
    answer_token,
    check_same_length,
    encode,
    token_string,
    tokenizer_for,
)
from interp_toolkit.model.verify import verified
from interp_toolkit.provenance import Provenance, provenance_of

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

Direction = Literal["denoise", "noise"]
Align = Literal["left", "right"] | Mapping[int, int] | None

_FORMAT = "interp_toolkit.patch/1"


@dataclass(frozen=True, kw_only=True)
class PatchResult:
    """What one patch did.

    Logit differences are logit(target) − logit(foil) at the last position, in nats.

    Attributes:
        site: what was patched.
        positions: at which positions of the prompt that was patched into.
        direction: `"denoise"`: clean activation into the corrupt run; `"noise"`: corrupt activation into the clean run.
        target: the clean answer's token.
        foil: the token it is compared with.
        foil_from: `"given"`, or how it was chosen.
        clean_logit_diff: of the clean run.
        corrupt_logit_diff: of the corrupt run.
        patched_logit_diff: of the patched run.
        probability_before: of the target, in the run that was patched into.
        probability_after: of the target, with the patch.
        top_before: the most probable tokens there, with their probabilities.
        top_after: the same with the patch.
        clean_tokens: the clean prompt as people read it.
        corrupt_tokens: the corrupt prompt.
        provenance: model, layout and versions.
    """

    site: str
    positions: tuple[int, ...]
    direction: Direction
    target: str
    foil: str
    foil_from: str
    clean_logit_diff: float
    corrupt_logit_diff: float
    patched_logit_diff: float
    probability_before: float
    probability_after: float
    top_before: tuple[tuple[str, float], ...]
    top_after: tuple[tuple[str, float], ...]
    clean_tokens: tuple[str, ...]
    corrupt_tokens: tuple[str, ...]
    provenance: Provenance = field(repr=False)

    @property
    def logit_diff_change(self) -> float:
        """Patched minus unpatched logit difference; positive is towards the clean answer."""
        before = self.corrupt_logit_diff if self.direction == "denoise" else self.clean_logit_diff
        return self.patched_logit_diff - before

    @property
    def normalized_effect(self) -> float:
        """The change as a fraction of clean − corrupt: 1 restores the clean answer, −1 destroys it, 0 does nothing.

        NaN when the two prompts do not differ in the answer.
        """
        gap = self.clean_logit_diff - self.corrupt_logit_diff
        return self.logit_diff_change / gap if abs(gap) > 1e-6 else math.nan

    def summary(self) -> str:
        """The result in words."""
        source, base = ("clean", "corrupt") if self.direction == "denoise" else ("corrupt", "clean")
        before = self.patched_logit_diff - self.logit_diff_change
        tokens = self.corrupt_tokens if self.direction == "denoise" else self.clean_tokens
        where = (
            "at every position"
            if len(self.positions) == len(tokens)
            else "at " + ", ".join(f"{p} {tokens[p]!r}" for p in self.positions)
        )
        chosen = "" if self.foil_from == "given" else f" ({self.foil_from})"
        return (
            f"Putting {self.site} of the {source} run into the {base} run {where} changes the logit difference "
            f"{self.target!r} − {self.foil!r}{chosen} by {self.logit_diff_change:+.3f}, from {before:.3f} to "
            f"{self.patched_logit_diff:.3f} (clean {self.clean_logit_diff:.3f}, corrupt {self.corrupt_logit_diff:.3f}): "
            f"{self.normalized_effect:+.1%} of the difference between them. The probability of {self.target!r} goes from "
            f"{self.probability_before:.3f} to {self.probability_after:.3f}."
        )

    def to_dict(self) -> dict[str, Any]:
        """All facts as plain data, with the derived numbers."""
        return {
            "format": _FORMAT,
            **asdict(self),
            "logit_diff_change": self.logit_diff_change,
            "normalized_effect": None if math.isnan(self.normalized_effect) else self.normalized_effect,
        }

    def to_dataframe(self) -> pd.DataFrame:
        """One row of numbers; needs pandas."""
        import pandas as pd

        numbers = {k: v for k, v in self.to_dict().items() if isinstance(v, str | float | int) or v is None}
        return pd.DataFrame([numbers])

    def save(self, path: str | Path) -> Path:
        """Write the result as JSON."""
        target = Path(path)
        target.write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False), encoding="utf-8")
        return target

    @classmethod
    def load(cls, path: str | Path) -> PatchResult:
        """Read what `save` wrote.

        Raises:
            FileFormatError: when it is something else.
        """
        try:
            facts = json.loads(Path(path).read_text(encoding="utf-8"))
            if facts.pop("format") != _FORMAT:
                raise FileFormatError(f"{path} is not a saved patch")
            facts.pop("logit_diff_change")
            facts.pop("normalized_effect")
            facts["provenance"] = Provenance(**facts["provenance"])
            for name in ("positions", "clean_tokens", "corrupt_tokens"):
                facts[name] = tuple(facts[name])
            for name in ("top_before", "top_after"):
                facts[name] = tuple((token, p) for token, p in facts[name])
            return cls(**facts)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileFormatError(f"{path} cannot be read as a saved patch: {error}") from error

    def _repr_html_(self) -> str:
        from html import escape

        return f"<p>{escape(self.summary())}</p>"


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """A clean and a corrupt prompt made ready: tokens, how they line up, answers, and what both runs say.

    Attributes:
        clean: the prompt that shows the behaviour.
        corrupt: the matched prompt that does not.
        matched: pairs of positions (clean, corrupt) that correspond.
        target: token id of the clean answer.
        foil: token id it is compared with.
        foil_from: where the foil comes from.
        clean_logits: at the last position.
        corrupt_logits: at the last position.
    """

    clean: Tokens
    corrupt: Tokens
    matched: tuple[tuple[int, int], ...]
    target: int
    foil: int
    foil_from: str
    clean_logits: Float[Tensor, " vocab"]
    corrupt_logits: Float[Tensor, " vocab"]

    def logit_diff(self, logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
        """logit(target) − logit(foil)."""
        return logits[..., self.target] - logits[..., self.foil]


def prepare_pair(
    model: nn.Module,
    clean_input: Inputs,
    corrupt_input: Inputs,
    *,
    target_token: str | int | None = None,
    answers: Sequence[str | int] | None = None,
    align: Align = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layout: Layout | None = None,
) -> Pair:
    """Tokenise two prompts, line them up, find the answers and run both.

    Raises:
        AlignmentError: when the prompts have different lengths and `align` does not say how they line up.
        TokenError: when the prompts are the same, more than one was given, or an answer is not one token.
    """
    tokenizer = tokenizer_for(model, tokenizer)
    clean, corrupt = (_one(text, name, tokenizer) for text, name in ((clean_input, "clean"), (corrupt_input, "corrupt")))
    if clean.row() == corrupt.row():
        raise TokenError("the clean and the corrupt prompt are the same, so patching cannot change anything")
    matched = _matched(clean, corrupt, align)
    logits = [_last_logits(model, tokens, layout) for tokens in (clean, corrupt)]
    prompt = clean.texts[0] if clean.texts else tokenizer.decode(clean.row())
    target, foil, foil_from = _answers(prompt, target_token, answers, logits[1], tokenizer)
    pair = Pair(
        clean=clean,
        corrupt=corrupt,
        matched=matched,
        target=target,
        foil=foil,
        foil_from=foil_from,
        clean_logits=logits[0],
        corrupt_logits=logits[1],
    )
    if float(pair.logit_diff(logits[0])) <= float(pair.logit_diff(logits[1])):
        names = [token_string(tokenizer, t) for t in (target, foil)]
        warnings.warn(
            f"the clean prompt does not favour {names[0]!r} over {names[1]!r} more than the corrupt one does (logit differences "
            f"{float(pair.logit_diff(logits[0])):.2f} and {float(pair.logit_diff(logits[1])):.2f}): the model does not show "
            "the behaviour on this pair, and effects mean little",
            InterpWarning,
            stacklevel=3,
        )
    return pair


def activation_patch(
    model: nn.Module,
    clean_input: Inputs,
    corrupt_input: Inputs,
    target_token: str | int | None = None,
    *,
    patch_component: str | Site = "resid",
    patch_layer: int | None = None,
    head: int | None = None,
    neuron: int | None = None,
    positions: PositionsLike = None,
    direction: Direction = "denoise",
    answers: Sequence[str | int] | None = None,
    align: Align = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layout: Layout | None = None,
) -> PatchResult:
    """Patch one site of one run into another, and measure what it does to the answer.

    Args:
        model: a causal language model, as it is.
        clean_input: the prompt that shows the behaviour.
        corrupt_input: the matched prompt that does not.
        target_token: the clean answer: the token that continues the prompt, usually with its leading space.
        patch_component: `"resid"` (= `resid_pre`), `"attn"`, `"mlp"`, `"head"` (= `z`), `"q"`, `"k"`, `"v"`, `"pattern"`,
            `"neuron"`, any component of `COMPONENTS`, or a whole site such as `"L5H1"`.
        patch_layer: the layer, unless the component says it.
        head: one head (key/value head for `k` and `v`) instead of all.
        neuron: one neuron of the MLP instead of all.
        positions: where, in the prompt that is patched into; all by default. A `Span` is looked up in either prompt.
        direction: `"denoise"` puts clean into corrupt, `"noise"` corrupt into clean.
        answers: `(target, foil)`, in place of `target_token`. Without a foil the corrupt prompt's own best token stands in,
            and the result says so.
        align: for prompts of different lengths: `"left"`, `"right"` (position by position from that end), or a map from
            clean to corrupt positions. Only positions that correspond are patched.
        tokenizer: needed when the model does not say where it comes from.
        layout: for a model class of your own.

    Returns:
        Logit differences of the clean, the corrupt and the patched run, and what the patch changed.

    Raises:
        AlignmentError: when prompts of different lengths do not say how they line up.
        TokenError: for answers that are not one token.
        SiteError: for sites that this model does not have.
        PositionError: for positions outside of the prompt.

    Example:
        >>> import interp_toolkit
        >>> model, tokenizer = interp_toolkit.load_model("demo")  # doctest: +SKIP
        >>> result = activation_patch(model, "The Eiffel Tower is in", "The Colosseum is in", "Paris",
        ...                           patch_layer=8, patch_component="mlp")  # doctest: +SKIP
    """
    if direction not in ("denoise", "noise"):
        raise TokenError(f"direction is 'denoise' (clean into corrupt) or 'noise' (corrupt into clean), not {direction!r}")
    site = _site(patch_component, patch_layer, head, neuron)
    tokenizer = tokenizer_for(model, tokenizer)
    site = verified(model, layout).check(site)
    pair = prepare_pair(
        model,
        clean_input,
        corrupt_input,
        target_token=target_token,
        answers=answers,
        align=align,
        tokenizer=tokenizer,
        layout=layout,
    )
    source, base = (pair.clean, pair.corrupt) if direction == "denoise" else (pair.corrupt, pair.clean)
    chosen = _chosen(positions, pair, direction, site)
    value = run(model, source, read=[site.whole], layout=layout)[site]
    edit = Edit.set(site, _moved(value, site, chosen, len(base.row())), positions=[p for _, p in chosen])
    patched = _last_logits(model, base, layout, edit)
    before = pair.corrupt_logits if direction == "denoise" else pair.clean_logits
    return PatchResult(
        site=str(site),
        positions=tuple(p for _, p in chosen),
        direction=direction,
        target=token_string(tokenizer, pair.target),
        foil=token_string(tokenizer, pair.foil),
        foil_from=pair.foil_from,
        clean_logit_diff=float(pair.logit_diff(pair.clean_logits)),
        corrupt_logit_diff=float(pair.logit_diff(pair.corrupt_logits)),
        patched_logit_diff=float(pair.logit_diff(patched)),
        probability_before=float(before.softmax(-1)[pair.target]),
        probability_after=float(patched.softmax(-1)[pair.target]),
        top_before=_top(before, tokenizer),
        top_after=_top(patched, tokenizer),
        clean_tokens=tuple(pair.clean.strings()),
        corrupt_tokens=tuple(pair.corrupt.strings()),
        provenance=provenance_of(model, verified(model, layout).layout),
    )


def layer_effects(
    model: nn.Module,
    pair: Pair,
    component: str,
    *,
    positions: PositionsLike = None,
    layout: Layout | None = None,
) -> Float[Tensor, " layer"]:
    """Patch a component of the clean run into the corrupt run, one layer at a time, all layers in one batch.

    Returns:
        For each layer the normalised effect: 0 is the corrupt run, 1 the clean one. NaN where the layer has no such site.
    """
    wiring = verified(model, layout)
    sites = wiring.available(SHORT_NAMES.get(component, component))
    if not sites:
        wiring.check(Site(component, 0))
    chosen = _chosen(positions, pair, "denoise", sites[0])
    clean = run(model, pair.clean, read=sites, layout=layout)
    length = len(pair.corrupt.row())
    where = [p for _, p in chosen]
    edits = [
        Edit.set(site, _moved(clean[site], site, chosen, length), positions=where, rows=[row])
        for row, site in enumerate(sites)
    ]
    batch = encode([pair.corrupt.row()] * len(sites))
    logits = run(model, batch, edits=edits, logits="last", layout=layout).logits
    effects = torch.full((wiring.layout.num_layers,), math.nan)
    if logits is not None:
        low, high = (pair.logit_diff(x) for x in (pair.corrupt_logits, pair.clean_logits))
        rows = torch.tensor([site.layer or 0 for site in sites])
        effects[rows] = ((pair.logit_diff(logits[:, -1].float().cpu()) - low) / (high - low)).to(effects)
    return effects


def _site(component: str | Site, layer: int | None, head: int | None, neuron: int | None) -> Site:
    if head is not None and neuron is not None:
        raise PositionError("a patch is of a head or of a neuron, not of both")
    index = head if head is not None else neuron
    if isinstance(component, str) and SHORT_NAMES.get(component, component) in COMPONENTS and layer is not None:
        return Site(component, layer, index)
    site = Site.parse(component)
    if layer is not None and site.layer not in (None, layer):
        raise PositionError(f"{site} names layer {site.layer}, but patch_layer={layer} was given too")
    return Site(site.component, site.layer, site.index if index is None else index)


def _one(inputs: Inputs, name: str, tokenizer: PreTrainedTokenizerBase) -> Tokens:
    tokens = encode(inputs, tokenizer=tokenizer)
    if len(tokens) != 1:
        raise TokenError(f"one {name} prompt is patched at a time, but {len(tokens)} were given")
    if tokens.padded:
        tokens = encode([tokens.row()], tokenizer=tokenizer)
    return tokens


def _matched(clean: Tokens, corrupt: Tokens, align: Align) -> tuple[tuple[int, int], ...]:
    lengths = len(clean.row()), len(corrupt.row())
    shorter = min(lengths)
    match align:
        case None:
            check_same_length(clean, corrupt)
            return tuple((n, n) for n in range(shorter))
        case "left":
            return tuple((n, n) for n in range(shorter))
        case "right":
            return tuple((lengths[0] - n, lengths[1] - n) for n in range(shorter, 0, -1))
        case Mapping():
            for a, b in align.items():
                if not (0 <= a < lengths[0] and 0 <= b < lengths[1]):
                    raise AlignmentError(
                        f"align maps clean position {a} to corrupt position {b}, but the prompts have {lengths[0]} and "
                        f"{lengths[1]} tokens"
                    )
            return tuple(align.items())
    raise AlignmentError(f"align is None, 'left', 'right' or a map from clean to corrupt positions, not {align!r}")


def _answers(
    prompt: str,
    target: str | int | None,
    answers: Sequence[str | int] | None,
    corrupt_logits: Tensor,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[int, int, str]:
    if (target is None) == (answers is None):
        raise TokenError("say what the clean answer is: target_token='Paris', or answers=(' Paris', ' Rome')")
    given = [target] if answers is None else [answers] if isinstance(answers, str | int) else list(answers)
    if len(given) not in (1, 2):
        raise TokenError(f"answers are (target, foil) or (target,), but {len(given)} were given")
    ids = [answer_token(prompt, answer, tokenizer) for answer in given if answer is not None]
    if len(ids) == 2:
        if ids[0] == ids[1]:
            raise TokenError(f"the two answers are the same token, {token_string(tokenizer, ids[0])!r}")
        return ids[0], ids[1], "given"
    others = corrupt_logits.clone()
    others[ids[0]] = -math.inf
    return ids[0], int(others.argmax()), "the corrupt prompt's own best token"


def _chosen(
    where: PositionsLike, pair: Pair, direction: Direction, site: Site
) -> list[tuple[int, int]]:
    """Pairs of positions (in the source, in the base) that are patched."""
    base = pair.corrupt if direction == "denoise" else pair.clean
    matched = [(a, b) if direction == "denoise" else (b, a) for a, b in pair.matched]
    if site.component in ("scores", "pattern") and len(pair.clean.row()) != len(pair.corrupt.row()):
        raise AlignmentError(f"{site.component} of prompts of different lengths have different keys and cannot be patched")
    asked = _asked(where, pair, base)
    chosen = [(a, b) for a, b in matched if b in asked]
    if not chosen:
        raise PositionError(f"none of the positions {sorted(asked)} corresponds to a position of the other prompt")
    return chosen


def _asked(where: PositionsLike, pair: Pair, base: Tokens) -> set[int]:
    spec = positions(where)
    if isinstance(spec, Span):
        source = pair.clean if base is pair.corrupt else pair.corrupt
        try:
            bound = spec.bind(base)
        except PositionError:
            found = spec.bind(source)
            there = set(found.rows[0]) if isinstance(found, PerRow) else set()
            pairs = [(a, b) if source is pair.clean else (b, a) for a, b in pair.matched]
            return {b for a, b in pairs if a in there}
    else:
        bound = spec.bind(base)
    length = len(base.row())
    selected = bound.select(torch.arange(length)[None], torch.tensor([length]))[0]
    return {int(n) for n in selected.nonzero()[:, 0]}


def _moved(value: Tensor, site: Site, chosen: Sequence[tuple[int, int]], length: int) -> Tensor:
    """The source's activations, put where the base prompt has the corresponding positions."""
    dim = site.axes.index("pos")
    shape = list(value.shape)
    shape[dim] = length
    moved = value.new_zeros(shape)
    source, base = (torch.tensor(side, device=value.device) for side in zip(*chosen, strict=True))
    return moved.index_copy(dim, base, value.index_select(dim, source))


def _last_logits(model: nn.Module, tokens: Tokens, layout: Layout | None, *edits: Edit) -> Float[Tensor, " vocab"]:
    logits = run(model, tokens, edits=edits, logits="last", layout=layout).logits
    if logits is None:
        raise TokenError("the run returned no logits")
    return logits[0, -1].float().cpu()


def _top(logits: Tensor, tokenizer: PreTrainedTokenizerBase, number: int = 5) -> tuple[tuple[str, float], ...]:
    best = logits.softmax(-1).topk(min(number, logits.shape[-1]))
    return tuple(
        (token_string(tokenizer, int(i)), float(p)) for p, i in zip(best.values, best.indices, strict=True)
    )


__all__ = ["Pair", "PatchResult", "activation_patch", "layer_effects", "prepare_pair"]
