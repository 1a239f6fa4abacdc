"""What probes of several layers are trained on: activations of texts, taken from a model, a store or arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from interp_toolkit.activations import Activations, ActivationStore
from interp_toolkit.errors import ProbeError, SiteError, UnavailableSiteError
from interp_toolkit.model import Layout, Site, Span, run
from interp_toolkit.model.machine import out_of_memory, token_limit
from interp_toolkit.model.positions import PerRow
from interp_toolkit.model.run import expand
from interp_toolkit.model.sites import COMPONENTS, SHORT_NAMES
from interp_toolkit.model.tokens import Tokens, encode, tokenizer_for
from interp_toolkit.model.verify import verified
from interp_toolkit.probes.features import Readable
from interp_toolkit.probes.inputs import check_finite, read_rows
from interp_toolkit.probes.pooling import POOLINGS, Pooling, chosen_tokens, in_words, pooled, single_token
from interp_toolkit.provenance import Provenance, provenance_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """Activations of several layers, row by row.

    Attributes:
        sources: for each layer its rows.
        names: the sites, or what layers are called in arrays.
        layers: numbers of the layers; counted from 0 where arrays do not say.
        documents: the number of each row's text.
        count: how many texts there are; some may have no row.
        where: which tokens count, in words.
        texts: the texts, where they are known.
        tokens: the token of each row, where a row is one token.
        embedding: what the model starts from, for comparison: the same tokens' rows in front of the first block.
        device: where activations were made, if that is known.
        provenance: what made them.
    """

    sources: tuple[Readable, ...]
    names: tuple[str, ...]
    layers: tuple[int, ...]
    documents: Int[Tensor, " row"]
    count: int
    where: str
    texts: tuple[str, ...] | None = None
    tokens: Int[Tensor, " row"] | None = None
    embedding: Readable | None = None
    device: torch.device | None = None
    provenance: Provenance | None = None


def collect(
    source: Any,
    texts: Sequence[str] | None = None,
    *,
    site: str = "resid_post",
    layers: Iterable[int] | int | None = None,
    positions: Pooling = "last",
    spans: Sequence[str] | None = None,
    tokenizer: Any = None,
    layout: Layout | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Material:
    """Activations of texts.

    Args:
        source: a model; an `ActivationStore`; `Activations` of a batch; a tensor `[layer, row, d]` or `[row, d]`; a
            list of `[row, d]`; or a mapping from names of layers to `[row, d]`.
        texts: for a model, what it reads.
        site: which activations of each layer, such as `"resid_post"` or `"z"`.
        layers: which layers, negative ones from the end; all if not given.
        positions: which tokens count; see `Pooling`.
        spans: for `"span"` and `"span_mean"`: for each text the part of it that counts.
        tokenizer: of the model; found by its name if not given.
        layout: for a model class of your own.
        progress: is told how many texts of how many are done.

    Raises:
        ProbeError: for a source or positions that are not known, and for NaN or infinite activations.
        SiteError: for sites or layers that there are not.

    Example:
        >>> found = collect({"early": torch.zeros(2, 3), "late": torch.ones(2, 3)})
        >>> found.names, found.layers
        (('early', 'late'), (0, 1))
    """
    if not isinstance(positions, Span) and positions not in POOLINGS:
        raise ProbeError(f"positions are {', '.join(map(repr, POOLINGS))} or a Span, not {positions!r}")
    chosen = [layers] if isinstance(layers, int) else None if layers is None else list(layers)
    if chosen == []:
        raise ProbeError("layers is empty: there is nothing to probe")
    if isinstance(source, nn.Module):
        if not texts:
            raise ProbeError("a model needs texts: probe_sweep(model, texts, labels)")
        reader = _ModelReader(source, list(texts), tokenizer, layout)
        found = reader.read(_component(site), chosen, positions, spans, progress)
    elif isinstance(source, ActivationStore):
        found = _of_store(source, _component(site), chosen, positions)
    elif isinstance(source, Activations):
        found = _of_activations(source, _component(site), chosen, positions, spans)
    else:
        return _of_arrays(source, chosen, positions)
    for name, x in zip(found.names, found.sources, strict=True):
        check_finite(x, len(found.documents), f"activations at {name}")
    return found


def _component(site: str) -> str:
    """The kind of site that is meant.

    Raises:
        ProbeError: for one layer or head, or for what has no row for each token.
    """
    name = SHORT_NAMES.get(site, site)
    if name not in COMPONENTS:
        parsed = Site.parse(site)  # says which names are near, if this is none
        raise ProbeError(
            f"site names a kind of activation, such as {parsed.component!r}, not {site!r}: layers are chosen by layers="
        )
    if COMPONENTS[name].axes[1] != "pos":
        raise ProbeError(f"{name} has no row for each token, but axes {COMPONENTS[name].axes}: it cannot be probed")
    return name


def _of_layers(found: Sequence[Site], component: str, layers: list[int] | None, num_layers: int) -> list[Site]:
    """The sites of the asked layers, in the order of the forward pass.

    Raises:
        SiteError: for a layer that there is not, or that has no such site.
    """
    held = [site for site in found if site.component == component and site.index is None]
    asked = held if layers is None else [Site(component, layer).at_depth(num_layers) for layer in layers]
    missing = [str(site) for site in asked if site not in held]
    if missing or not asked:
        known = ", ".join(map(str, found[:12])) + (", ..." if len(found) > 12 else "")
        raise UnavailableSiteError(f"{', '.join(missing) or component} is not there; there are {known or 'no sites'}")
    return [site for site in held if site in asked]


# --- a model ------------------------------------------------------------------------------------------------------


class _ModelReader:
    """Runs texts through a model and keeps what is asked for, pooled, on the processor's side."""

    def __init__(self, model: nn.Module, texts: list[str], tokenizer: Any, layout: Layout | None) -> None:
        self.model, self.layout, self.texts = model, layout, texts
        self.wiring = verified(model, layout)
        self.tokens = encode(texts, tokenizer=tokenizer_for(model, tokenizer), padding_side="right")

    def read(
        self,
        component: str,
        layers: list[int] | None,
        positions: Pooling,
        spans: Sequence[str] | None,
        progress: Callable[[int, int], None] | None,
    ) -> Material:
        sites = _of_layers(expand(component, self.wiring), component, layers, self.wiring.layout.num_layers)
        start = next((site for site in self.wiring.available("resid_pre") if site.layer == 0), None)
        wanted = list(dict.fromkeys([*sites, *([] if start is None else [start])]))
        chosen = chosen_tokens(self.tokens, positions, spans)
        counts = chosen.sum(-1) if positions == "all" else torch.ones(len(self.texts), dtype=torch.long)
        ends = counts.cumsum(0)
        held: dict[Site, Tensor] = {}
        done = 0
        for rows, readings in self._batches(wanted, chosen, positions):
            places = torch.cat([torch.arange(int(ends[row] - counts[row]), int(ends[row])) for row in rows.tolist()])
            for site, x in readings.items():
                if site not in held:
                    held[site] = torch.empty(int(ends[-1]), x.shape[-1], dtype=x.dtype)
                held[site][places] = x
            done += len(rows)
            if progress is not None:
                progress(done, len(self.texts))
        return Material(
            sources=tuple(held[site] for site in sites),
            names=tuple(map(str, sites)),
            layers=tuple(site.layer or 0 for site in sites),
            documents=torch.arange(len(self.texts)).repeat_interleave(counts),
            count=len(self.texts),
            where=in_words(positions),
            texts=tuple(self.texts),
            tokens=self.tokens.ids[chosen] if single_token(positions) else None,
            embedding=None if start is None else held[start],
            device=next(self.model.parameters()).device,
            provenance=provenance_of(self.model, self.wiring.layout),
        )

    def _batches(
        self, sites: list[Site], chosen: Bool[Tensor, "every pos"], positions: Pooling
    ) -> Iterator[tuple[Int[Tensor, " text"], dict[Site, Tensor]]]:
        """Texts of similar length together, with their readings pooled; fewer where memory does not suffice."""
        lengths = self.tokens.lengths
        order = lengths.argsort(stable=True)
        limit = token_limit(self.wiring, int(lengths.max()), None)
        begin = 0
        while begin < len(order):
            end = begin + 1
            while end < len(order) and int(lengths[order[end]]) * (end + 1 - begin) <= limit:
                end += 1
            rows = order[begin:end]
            try:
                found = self._run(rows, sites, chosen, positions)
            except RuntimeError as error:
                if not out_of_memory(error) or len(rows) == 1:
                    raise
                limit = max(1, limit // 2)
                continue
            yield rows, found
            begin = end

    def _run(
        self, rows: Int[Tensor, " text"], sites: list[Site], chosen: Bool[Tensor, "every pos"], positions: Pooling
    ) -> dict[Site, Tensor]:
        batch = _part_of(self.tokens, rows)
        some = chosen[rows, : batch.ids.shape[1]]
        if not single_token(positions) or positions == "all":
            found = run(self.model, batch, read=sites, layout=self.layout)
            return {site: pooled(found[site], some, positions).cpu() for site in sites}
        keep = PerRow(tuple((int(row.nonzero()),) for row in some))  # nothing else leaves the model
        found = run(self.model, batch, read=sites, keep=keep, layout=self.layout)
        return {site: found[site].detach().flatten(1).cpu() for site in sites}


def _part_of(tokens: Tokens, rows: Int[Tensor, " chosen"]) -> Tokens:
    """Some prompts of a batch that is padded on the right, without padding that they do not need."""
    width = int(tokens.lengths[rows].max())
    listed = rows.tolist()
    return replace(
        tokens,
        ids=tokens.ids[rows, :width],
        mask=tokens.mask[rows, :width],
        texts=None if tokens.texts is None else tuple(tokens.texts[r] for r in listed),
        offsets=None if tokens.offsets is None else tuple(tokens.offsets[r] for r in listed),
    )


# --- what is there already ----------------------------------------------------------------------------------------


class _Picked:
    """Some rows of a site, as if there were no others."""

    def __init__(self, view: Readable, rows: Int[Tensor, " row"]) -> None:
        self.view, self.rows = view, rows

    def __getitem__(self, rows: Any) -> Tensor:
        return self.view[self.rows[rows]]


def _of_store(store: ActivationStore, component: str, layers: list[int] | None, positions: Pooling) -> Material:
    if positions not in ("last", "all"):
        raise ProbeError(
            f"a store is read at positions 'all' (each of its rows) or 'last' (of each document), not {positions!r}: "
            "extract with positions='last' or 'spans', or pass a tensor of what you pooled"
        )
    if layers is not None:  # the store knows how many layers the model has
        views = [store[Site(component, layer)] for layer in layers]
        layers = [view.site.layer for view in views if view.site is not None and view.site.layer is not None]
    sites = _of_layers(store.sites, component, layers, 1 + max(site.layer or 0 for site in store.sites))
    documents = store.documents(slice(0, store.rows)).long()
    last = documents.diff(append=documents.new_full((1,), -1)) != 0
    rows = (last if positions == "last" else torch.ones_like(last)).nonzero()[:, 0]
    start = Site("resid_pre", 0)
    return Material(
        sources=tuple(_Picked(store[site], rows) for site in sites),
        names=tuple(map(str, sites)),
        layers=tuple(site.layer or 0 for site in sites),
        documents=documents[rows],
        count=store.num_documents,
        where="every stored token" if positions == "all" else "the last stored token",
        tokens=store.tokens[rows].long(),
        embedding=_Picked(store[start], rows) if start in store else None,
        provenance=store.provenance,
    )


def _of_activations(
    found: Activations, component: str, layers: list[int] | None, positions: Pooling, spans: Sequence[str] | None
) -> Material:
    tokens = found.prompt
    if tokens.single:
        raise ProbeError("these are the activations of one prompt: run a list of texts to have a row for each")
    sites = _of_layers(found.sites, component, layers, found.num_layers)
    width = found[sites[0]].shape[1]
    cut = width != tokens.ids.shape[1]  # by positions= of the cache
    if cut and width > 1:
        raise ProbeError(
            f"these activations were cut to {width} positions of each prompt: cut them to one, or keep all of them"
        )
    chosen = torch.ones(len(tokens), 1, dtype=torch.bool) if cut else chosen_tokens(tokens, positions, spans)
    each = single_token(positions) and not cut
    start = Site("resid_pre", 0)
    documents = torch.arange(len(tokens))
    return Material(
        sources=tuple(pooled(found[site], chosen, positions) for site in sites),
        names=tuple(map(str, sites)),
        layers=tuple(site.layer or 0 for site in sites),
        documents=documents.repeat_interleave(chosen.sum(-1)) if positions == "all" else documents,
        count=len(tokens),
        where="the position that was kept" if cut else in_words(positions),
        texts=tokens.texts,
        tokens=tokens.ids[chosen] if each else None,
        embedding=pooled(found[start], chosen, positions) if start in found else None,
        device=found[sites[0]].device,
        provenance=found.provenance,
    )


def _of_arrays(source: Any, layers: list[int] | None, positions: Pooling) -> Material:
    if positions != "last":
        raise ProbeError(f"arrays are taken as they are, one row each: positions={positions!r} is for what has tokens")
    named = _named(source)
    said = [n for n in map(_number, named) if n is not None and n >= 0]
    numbers = said if len(set(said)) == len(named) else list(range(len(named)))
    if layers is not None:
        asked = [numbers[n] if -len(numbers) <= n < 0 else n for n in layers]
        missing = [n for n in asked if n not in numbers]
        if missing:
            raise ProbeError(f"there are layers {', '.join(map(str, numbers))}, but no {missing[0]}")
        named = {name: x for (name, x), n in zip(named.items(), numbers, strict=True) if n in asked}
        numbers = [n for n in numbers if n in asked]
    sources = []
    for name, x in named.items():
        try:
            sources.append(read_rows(x))
        except ProbeError as error:
            raise ProbeError(f"layer {name}: {error}") from error
    shapes = {name: tuple(x.shape) for name, x in zip(named, sources, strict=True)}
    if len(set(shapes.values())) > 1:
        raise ProbeError(f"all layers have the same rows and features, but these have {shapes}")
    rows = len(sources[0])
    first = sources[0]
    return Material(
        sources=tuple(sources),
        names=tuple(map(str, named)),
        layers=tuple(numbers),
        documents=torch.arange(rows),
        count=rows,
        where="given activations",
        device=first.device if isinstance(first, Tensor) else None,
    )


def _named(source: Any) -> dict[Any, Any]:
    """The layers of an array, by what they are called.

    Raises:
        ProbeError: for what is no array of activations.
    """
    if isinstance(source, Mapping):
        found = dict(source)
    elif isinstance(source, list | tuple) and all(getattr(x, "ndim", 0) == 2 for x in source):
        found = dict(enumerate(source))
    else:
        try:
            x = torch.as_tensor(source)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ProbeError(
                "activations come from a model, a store, Activations, a tensor or a mapping of tensors, not from "
                f"{type(source).__name__}"
            ) from error
        if x.ndim not in (2, 3):
            raise ProbeError(f"activations have shape [layer, row, d] or [row, d], but these have {tuple(x.shape)}")
        found = dict(enumerate(x if x.ndim == 3 else x[None]))
    if not found:
        raise ProbeError("there are no activations: no layer was given")
    return found


def _number(name: Any) -> int | None:
    """The layer that a name says, if it does."""
    text = str(name)
    try:
        return int(text) if text.isdigit() else Site.parse(text).layer
    except SiteError:
        return None


__all__ = ["Material", "collect"]
