"""Sites: the places in a model where a run reads and edits.

A `Site` is a component, a layer and perhaps a head or neuron: `resid_pre.6`, `mlp_out.8`, `z.5.1`. It is frozen and
hashable, parses from text and prints back. The table `COMPONENTS` holds what each component is and its axes.
"""

from __future__ import annotations

import difflib
import functools
import re
from dataclasses import dataclass, replace

from interp_toolkit.errors import SiteError, UnknownSiteError


@dataclass(frozen=True, kw_only=True)
class Component:
    """What is known of a kind of site before any model is seen.

    Attributes:
        axes: names of the axes of its tensor.
        order: when it happens inside a block; sites of one layer are sorted by it.
        per_layer: whether each block has one.
        index_axis: the axis that `Site.index` selects, if any.
        meaning: one line for people.
    """

    axes: tuple[str, ...]
    order: int
    per_layer: bool = True
    index_axis: str | None = None
    meaning: str = ""

    @property
    def position_dim(self) -> int:
        """The dimension of the (query) position in the tensor."""
        return self.axes.index("pos")

    @property
    def index_dim(self) -> int | None:
        """The dimension that `Site.index` selects."""
        return None if self.index_axis is None else self.axes.index(self.index_axis)


_STREAM = ("batch", "pos", "d_model")
_HEADS = ("batch", "pos", "head", "d_head")
_KV_HEADS = ("batch", "pos", "kv_head", "d_head")
_SQUARE = ("batch", "head", "pos", "key_pos")

COMPONENTS: dict[str, Component] = {
    "embed": Component(axes=_STREAM, order=0, per_layer=False, meaning="what enters block 0"),
    "resid_pre": Component(axes=_STREAM, order=1, meaning="residual stream in front of the block"),
    "q": Component(
        axes=_HEADS,
        order=2,
        index_axis="head",
        meaning="queries as attention uses them (after rotary and norm)",
    ),
    "k": Component(axes=_KV_HEADS, order=3, index_axis="kv_head", meaning="keys as attention uses them"),
    "v": Component(axes=_KV_HEADS, order=4, index_axis="kv_head", meaning="values as attention uses them"),
    "scores": Component(axes=_SQUARE, order=5, index_axis="head", meaning="masked attention scores, before softmax"),
    "pattern": Component(axes=_SQUARE, order=6, index_axis="head", meaning="attention pattern, after softmax"),
    "z": Component(axes=_HEADS, order=7, index_axis="head", meaning="attention output per head, before W_O"),
    "head_out": Component(
        axes=("batch", "pos", "head", "d_model"), order=8, index_axis="head", meaning="z @ W_O per head"
    ),
    "attn_out": Component(axes=_STREAM, order=9, meaning="what attention adds to the residual stream"),
    "resid_mid": Component(axes=_STREAM, order=10, meaning="residual stream between attention and MLP"),
    "mlp_post": Component(
        axes=("batch", "pos", "d_mlp"),
        order=11,
        index_axis="d_mlp",
        meaning="neurons: input of the down projection",
    ),
    "mlp_out": Component(axes=_STREAM, order=12, meaning="what the MLP adds to the residual stream"),
    "resid_post": Component(axes=_STREAM, order=13, meaning="residual stream behind the block"),
    "final_norm": Component(
        axes=_STREAM,
        order=14,
        per_layer=False,
        meaning="output of the final norm, as the unembedding sees it",
    ),
    "logits": Component(axes=("batch", "pos", "vocab"), order=15, per_layer=False, meaning="the model's logits"),
}
"""Every component, in the order in which a forward pass meets them."""

SHORT_NAMES = {
    "resid": "resid_pre",
    "attn": "attn_out",
    "mlp": "mlp_out",
    "head": "z",
    "neuron": "mlp_post",
    "result": "head_out",
    "attn_scores": "scores",
}
"""Names that people type for a component, and what they stand for."""

_LAYER = r"(?P<layer>-?\d+)"
_INDEX = r"(?P<index>\d+)"
_FOREIGN: tuple[tuple[re.Pattern[str], str | None], ...] = (
    (re.compile(rf"blocks\.{_LAYER}\.hook_(?P<name>resid_pre|resid_mid|resid_post|attn_out|mlp_out)"), None),
    (re.compile(rf"blocks\.{_LAYER}\.attn\.hook_(?:rot_)?(?P<name>q|k)"), None),
    (re.compile(rf"blocks\.{_LAYER}\.attn\.hook_(?P<name>v|z|pattern|attn_scores|result)"), None),
    (re.compile(rf"blocks\.{_LAYER}\.mlp\.hook_post"), "mlp_post"),
    (re.compile(rf"layers_output\[{_LAYER}\]"), "resid_post"),
    (re.compile(rf"layers_input\[{_LAYER}\]"), "resid_pre"),
    (re.compile(rf"attentions_output\[{_LAYER}\]"), "attn_out"),
    (re.compile(rf"mlps_output\[{_LAYER}\]"), "mlp_out"),
    (re.compile(rf"L{_LAYER}H{_INDEX}"), "z"),
    (re.compile(rf"L{_LAYER}MLP"), "mlp_out"),
    (re.compile(rf"a{_LAYER}\.h{_INDEX}"), "z"),
    (re.compile(rf"m{_LAYER}"), "mlp_out"),
)
_EXPLAINED = {
    "hook_embed": "TransformerLens' hook_embed is the token embedding alone; `embed` here is what enters block 0, "
    "with position embeddings and scaling",
    "hook_pos_embed": "position embeddings are not a site of their own; `embed` is what enters block 0",
    "ln_final.hook_normalized": "TransformerLens takes it before the norm's weight; `final_norm` here is the norm's "
    "whole output",
}


@dataclass(frozen=True, order=False)
class Site:
    """A place in a model: a component, its layer and perhaps one head or neuron.

    Args:
        component: a key of `COMPONENTS`, such as `"resid_pre"`, or a short name such as `"mlp"`.
        layer: the block, from 0; negative counts from the last. None for `embed`, `final_norm` and `logits`.
        index: one head (`q`, `z`, `head_out`, `scores`, `pattern`), key/value head (`k`, `v`) or neuron (`mlp_post`).

    Raises:
        UnknownSiteError: for a component that does not exist, with the nearest names.
        SiteError: for a layer where there is none, one that is missing, or an index into a site that has no heads.

    Example:
        >>> Site("resid_pre", 6)
        Site('resid_pre.6')
        >>> Site.parse("L5H1") == Site("z", 5, 1) == Site.parse("z.5.1")
        True
    """

    component: str
    layer: int | None = None
    index: int | None = None

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        name = SHORT_NAMES.get(self.component, self.component)
        object.__setattr__(self, "component", name)
        kind = COMPONENTS.get(name)
        if kind is None:
            raise UnknownSiteError(_unknown(name))
        if kind.per_layer and self.layer is None:
            raise SiteError(f"{name!r} needs a layer: write it as '{name}.0'")
        if not kind.per_layer and self.layer is not None:
            raise SiteError(f"{name!r} has no layers, but layer {self.layer} was given")
        if self.index is not None and kind.index_axis is None:
            raise SiteError(f"{name!r} has no heads or neurons to select from, but index {self.index} was given")
        if self.index is not None and self.index < 0:
            raise SiteError(f"the index of a head or neuron counts from 0, but {self.index} was given")

    @classmethod
    def parse(cls, text: str | Site) -> Site:
        """Read a site from text.

        Besides the names of this library, it understands those of TransformerLens (`blocks.6.hook_resid_pre`,
        `blocks.6.attn.hook_z`; its `hook_q` and `hook_rot_q` both mean `q`, the queries **after** rotary embedding),
        nnterp (`layers_output[6]`), circuit papers (`L5H1`, `L5MLP`) and EAP (`a5.h1`, `m5`).

        Raises:
            UnknownSiteError: when nothing of that name exists.

        Example:
            >>> Site.parse("blocks.6.hook_resid_post")
            Site('resid_post.6')
        """
        if isinstance(text, Site):
            return text
        stripped = text.strip()
        for pattern, name in _FOREIGN:
            found = pattern.fullmatch(stripped)
            if found:
                groups = found.groupdict()
                index = groups.get("index")
                return cls(name or groups["name"], int(groups["layer"]), None if index is None else int(index))
        own = re.fullmatch(rf"(?P<name>[A-Za-z_]+)(?:\.{_LAYER})?(?:\.{_INDEX})?", stripped)
        if own is None or SHORT_NAMES.get(own["name"], own["name"]) not in COMPONENTS:
            raise UnknownSiteError(_unknown(stripped))
        layer, index = own["layer"], own["index"]
        return cls(own["name"], None if layer is None else int(layer), None if index is None else int(index))

    @property
    def kind(self) -> Component:
        """What is known of the component."""
        return COMPONENTS[self.component]

    @property
    def whole(self) -> Site:
        """The same site with all heads or neurons."""
        return self if self.index is None else _whole(self.component, self.layer)

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes of this site's tensor."""
        kind = self.kind
        return kind.axes if self.index is None else tuple(a for a in kind.axes if a != kind.index_axis)

    def at_depth(self, num_layers: int) -> Site:
        """The same site with a layer counted from 0.

        Raises:
            SiteError: when the model has no such layer; the message shows the range.
        """
        if self.layer is None:
            return self
        if not -num_layers <= self.layer < num_layers:
            raise SiteError(
                f"{self} asks for layer {self.layer}, but the model has {num_layers} layers: "
                f"0 to {num_layers - 1}, or -{num_layers} to -1 from the end"
            )
        return replace(self, layer=self.layer % num_layers)

    def depth(self, num_layers: int) -> tuple[int, int]:
        """A key that sorts sites in the order in which a forward pass meets them."""
        layer = self.layer if self.layer is not None else (-1 if self.component == "embed" else num_layers)
        return (layer, self.kind.order)

    def __str__(self) -> str:
        """The text that `parse` reads back."""
        return ".".join(str(part) for part in (self.component, self.layer, self.index) if part is not None)

    def __repr__(self) -> str:
        """The site as one would write it."""
        return f"Site({str(self)!r})"


@functools.cache
def _whole(component: str, layer: int | None) -> Site:
    """Kept, because sweeps over neurons ask for it a hundred thousand times."""
    return Site(component, layer)


def _unknown(name: str) -> str:
    explained = _EXPLAINED.get(name)
    if explained is not None:
        return f"there is no site {name!r}: {explained}"
    head = re.split(r"[.\[]", name)[0]
    known = [*COMPONENTS, *SHORT_NAMES]
    near = difflib.get_close_matches(head, known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(map(repr, near))}?" if near else f"sites are {', '.join(COMPONENTS)}"
    return f"there is no site {name!r}: {hint} (written as 'resid_pre.6', 'z.5.1' or 'L5H1')"


__all__ = ["COMPONENTS", "SHORT_NAMES", "Component", "Site"]
