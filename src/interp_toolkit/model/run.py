"""Runs: a forward pass with readings and edits. Everything else in this library is made of these.

`run` does one forward pass; `editing` keeps readings and edits live while the caller uses the model, for instance in
`model.generate`. Both leave the model exactly as they found it, also after an exception or an interrupt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp_toolkit.errors import EditError, RunError, SiteError, UnknownSiteError
from interp_toolkit.model.edits import Edit
from interp_toolkit.model.forward import execute
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.positions import Everywhere, Positions, PositionsLike, positions
from interp_toolkit.model.session import Session, logits_of
from interp_toolkit.model.sites import COMPONENTS, SHORT_NAMES, Site
from interp_toolkit.model.tokens import Inputs, Tokens, encode, is_text, tokenizer_for
from interp_toolkit.model.verify import verified
from interp_toolkit.model.wiring import Wiring
from interp_toolkit.model.wish import Key, Wish

SitesLike = str | Site | Sequence[str | Site]
"""One site or several; a component without a layer (`"resid_post"`) means every layer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Run(Mapping[Site, Tensor]):
    """What a run returns: `result["resid_post.6"]` is a reading, `result.logits` the logits.

    Attributes:
        readings: each site read, in the order of the forward pass.
        asked_logits: the logits at the asked positions, or None where none were asked for.
        tokens: what was run.
        num_layers: of the model.
    """

    readings: dict[Site, Tensor]
    asked_logits: Float[Tensor, "batch pos vocab"] | None
    tokens: Tokens
    num_layers: int

    @property
    def logits(self) -> Float[Tensor, "batch pos vocab"]:
        """The logits at the asked positions.

        Raises:
            RunError: when none were asked for.
        """
        if self.asked_logits is None:
            raise RunError("no logits were asked for: give logits='last' or logits='all' to run")
        return self.asked_logits

    def __getitem__(self, site: Site | str) -> Tensor:
        """A reading, by site or by name; a head or neuron is cut out of its site.

        Raises:
            UnknownSiteError: when the site was not read; the message shows those that were.
        """
        asked = Site.parse(site).at_depth(self.num_layers)
        if asked in self.readings:
            return self.readings[asked]
        whole = self.readings.get(asked.whole)
        dim = asked.kind.index_dim
        if whole is None or asked.index is None or dim is None:
            raise UnknownSiteError(
                f"{asked} was not read; this run has {', '.join(map(str, self.readings)) or 'nothing'}"
            )
        if asked.index >= whole.shape[dim]:
            raise UnknownSiteError(f"{asked} asks for number {asked.index}, but there are {whole.shape[dim]}")
        return whole.select(dim, asked.index)

    def __contains__(self, site: object) -> bool:
        """Whether the site was read."""
        if not isinstance(site, Site | str):
            return False
        try:
            self[site]
        except SiteError:
            return False
        return True

    def __iter__(self) -> Iterator[Site]:
        """The sites that were read."""
        return iter(self.readings)

    def __len__(self) -> int:
        """How many sites were read."""
        return len(self.readings)


def run(
    model: nn.Module,
    inputs: Inputs | Tokens,
    *,
    read: SitesLike = (),
    edits: Iterable[Edit] = (),
    logits: PositionsLike = None,
    start: tuple[int, Float[Tensor, "batch pos d_model"]] | None = None,
    keep: PositionsLike = None,
    grad: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    tokenizer: Any = None,
    layout: Layout | None = None,
) -> Run:
    """Run a model once, reading and editing on the way.

    The forward pass stops after the deepest reading unless logits are asked for.

    Args:
        model: a causal language model, as it is.
        inputs: text, texts, token ids or an encoding; see `encode`.
        read: sites to read, after the edits there. A component without a layer means every layer that has it.
        edits: what to change.
        logits: positions whose logits are wanted: `"last"`, `"all"`, numbers, or None for none. Each prompt must have
            the same number of them. With nothing to read, all logits are returned.
        start: a layer and the residual stream in front of it: earlier blocks do not run. The inputs still say which
            tokens are real.
        keep: positions of the readings to keep; None keeps all. Logits are kept as asked.
        grad: keep the graph, so that readings can be differentiated with `torch.autograd.grad`. Readings are then not
            copied to another device or dtype.
        device: where to keep readings; the model's own device if it is not given.
        dtype: in what precision to keep readings; the model's own if it is not given.
        tokenizer: needed for text when the model does not say where it comes from.
        layout: for a model class of your own.

    Returns:
        Readings, logits and tokens. With left padding, columns count the padding.

    Raises:
        SiteError: for sites that do not exist or are not available in this model.
        EditError: for edits that do not fit or never fired.
        PositionError: for positions outside of a prompt.
        RunError: when the run cannot be done as asked.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> result = run(model, [1, 2, 3], read=["resid_post.0", "z"], edits=[Edit.set("L0H1", 0.0)])
        >>> result["resid_post.0"].shape, result["z.1.0"].shape
        (torch.Size([1, 3, 8]), torch.Size([1, 3, 4]))
    """
    wiring = verified(model, layout)
    tokens = encode(inputs, tokenizer=_tokenizer(model, inputs, tokenizer))
    reads = expand(read, wiring)
    bound = tuple(bind(edit, wiring, tokens) for edit in edits)
    wanted = positions("all") if logits is None and (not reads or Site("logits") in reads) else logits
    at = None if wanted is None else columns_of(positions(wanted).bind(tokens), tokens)
    if grad and (keep is not None or device is not None or dtype is not None):
        raise RunError(
            "with grad=True readings stay on the path to the output: cut or move them afterwards, not by keep="
        )
    changed = any(edit.site.component == "logits" for edit in bound)  # then all of them are made, and cut afterwards
    wish = Wish(
        reads=frozenset(reads),
        edits=bound,
        keep=None if keep is None else positions(keep).bind(tokens),
        device=None if device is None else torch.device(device),
        dtype=dtype,
        grad=grad,
        stop=wanted is None,
        enter=_start(start, tokens, wiring),
        logits_at=None if changed else at,
        tokens=tokens,
    )
    _check_order(wish, wiring)
    session, output = execute(wiring, tokens, wish)
    _check_fired(session)
    found = None if output is None else logits_of(output)
    if found is not None and changed and at is not None:
        found = found.gather(1, at.to(found.device)[:, :, None].expand(-1, -1, found.shape[-1]))
    return Run(
        readings={site: session.readings[(site.component, site.layer)][0] for site in reads},
        asked_logits=found if found is None or grad else found.detach(),
        tokens=tokens,
        num_layers=wiring.layout.num_layers,
    )


@contextmanager
def editing(
    model: nn.Module,
    edits: Iterable[Edit] = (),
    *,
    read: SitesLike = (),
    keep: PositionsLike = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    tokens: Tokens | None = None,
    layout: Layout | None = None,
) -> Iterator[Watched]:
    """Keep readings and edits live while the model is used, for instance in `model.generate`.

    Positions count real tokens over the whole sequence, so an edit means the same with the key/value cache and without
    it, in a batch and alone. A forward pass that does not go on with the sequence of the one before begins a new
    prompt. Only the thread that entered the block is affected; runs of other threads on this model wait until it ends.

    Args:
        model: a causal language model.
        edits: what to change.
        read: sites to read.
        keep: positions of the readings to keep.
        device: where to keep readings.
        dtype: in what precision.
        tokens: the prompts, where positions need their text (`Span`), or where edits name rows under beam search.
        layout: for a model class of your own.

    Yields:
        What is read, complete when the block ends.

    Raises:
        EditError: at the end of the block, when an edit never fired.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> with editing(model, [Edit.scale("mlp_out.0", 0.0)], read="resid_post.1") as watched:
        ...     _ = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2, do_sample=False, pad_token_id=0)
        >>> watched["resid_post.1"].shape
        torch.Size([1, 4, 8])
    """
    wiring = verified(model, layout)
    reads = expand(read, wiring)
    bound = tuple(bind(edit, wiring, tokens, open_ended=True) for edit in edits)
    where = None if keep is None else positions(keep)
    wish = Wish(
        reads=frozenset(reads),
        edits=bound,
        keep=where if where is None or tokens is None else where.bind(tokens, open_ended=True),
        device=None if device is None else torch.device(device),
        dtype=dtype,
        tokens=tokens,
        open_ended=True,
    )
    session = Session(wiring, wish)
    watched = Watched(session)
    with session:
        yield watched
    _check_fired(session)


class Watched:
    """What an `editing` block reads: the passes over a sequence, joined along its positions.

    Args:
        session: the session whose readings these are.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def __getitem__(self, site: Site | str) -> Tensor:
        """A reading over all positions that were computed, prompt and generated.

        Raises:
            UnknownSiteError: when the site was not read.
            RunError: when the batch changed on the way (beam search), so that rows are not those of the prompts, or
                several sequences were run.
        """
        asked = Site.parse(site).at_depth(self._session.wiring.layout.num_layers)
        parts = self._session.readings.get((asked.component, asked.layer))
        if parts is None:
            raise UnknownSiteError(f"{asked} was not read")
        sequences = self._session.windows[-1].sequence
        if sequences > 1:
            raise RunError(
                f"{sequences} sequences were run in the block, so readings cannot be joined: use a block for each"
            )
        known = self._session.wish.tokens
        prompts = len(self._session.windows[0].lengths) if known is None else len(known)
        if {len(part) for part in parts} != {prompts}:
            raise RunError("the batch is not that of the prompts (beam search?): readings cannot be joined")
        whole = _joined(asked.component, parts)
        dim = asked.kind.index_dim
        return whole if asked.index is None or dim is None else whole.select(dim, asked.index)


def _joined(component: str, parts: list[Tensor]) -> Tensor:
    if component not in ("scores", "pattern"):
        return torch.cat(parts, dim=1)
    keys = max(part.shape[-1] for part in parts)
    filler = 0.0 if component == "pattern" else float("-inf")
    return torch.cat([nn.functional.pad(p, (0, keys - p.shape[-1]), value=filler) for p in parts], dim=2)


def expand(sites: SitesLike, wiring: Wiring) -> list[Site]:
    """The whole sites that are meant, checked against the model, in the order of a forward pass.

    Raises:
        SiteError: for unknown or unavailable sites.
    """
    asked = [sites] if isinstance(sites, str | Site) else list(sites)
    found: dict[Site, None] = {}
    for item in asked:
        name = SHORT_NAMES.get(item, item) if isinstance(item, str) else None
        if name in COMPONENTS and COMPONENTS[str(name)].per_layer:
            every = wiring.available(name)
            if not every:
                wiring.check(Site(str(name), 0))
            found.update(dict.fromkeys(every))
        else:
            found[wiring.check(Site.parse(item)).whole] = None
    return sorted(found, key=lambda site: site.depth(wiring.layout.num_layers))


def bind(edit: Edit, wiring: Wiring, tokens: Tokens | None, *, open_ended: bool = False) -> Edit:
    """An edit with its layer counted from 0 and positions that fit the prompt.

    Raises:
        SiteError: when the site is not available.
        PositionError: when the prompt has no such position.
        EditError: when it names rows that are not there.
    """
    if not isinstance(edit, Edit):
        raise EditError(
            f"edits are made by Edit.set, add, scale, project_out or apply; this is a {type(edit).__name__}"
        )
    where = edit.positions if tokens is None else edit.positions.bind(tokens, open_ended=open_ended)
    rows = edit.rows
    if rows is not None and tokens is not None and any(not -len(tokens) <= row < len(tokens) for row in rows):
        raise EditError(f"{edit!r} names rows that are not in the batch: it has {len(tokens)}, 0 to {len(tokens) - 1}")
    site = wiring.check(edit.site)
    return Edit(
        site=site,
        operation=edit.operation,
        value=edit.value,
        function=edit.function,
        positions=where,
        rows=rows,
    )


def columns_of(where: Positions, tokens: Tokens) -> Int[Tensor, "batch n"] | None:
    """The columns of the selected positions, in the order in which numbers were given; None for every column.

    Raises:
        RunError: when the rows have different numbers of them.
    """
    if isinstance(where, Everywhere):
        return None
    index = torch.where(tokens.mask.bool(), tokens.mask.cumsum(-1) - 1, -1)
    columns = where.columns(index, tokens.lengths)
    numbers = [len(row) for row in columns]
    if len(set(numbers)) > 1 or not numbers[0]:
        raise RunError(
            f"logits at {where} are {numbers} positions in the rows; each row needs the same number, at least one"
        )
    return torch.tensor(columns)


def _tokenizer(model: nn.Module, inputs: Any, tokenizer: Any) -> Any:
    return tokenizer_for(model, tokenizer) if is_text(inputs) else tokenizer


def _start(start: tuple[int, Tensor] | None, tokens: Tokens, wiring: Wiring) -> dict[int, Tensor]:
    if start is None:
        return {}
    layer, residual = start
    site = Site("resid_pre", layer).at_depth(wiring.layout.num_layers)
    if residual.ndim != 3:
        raise RunError("start=(layer, residual) needs a residual stream of shape [batch, pos, d_model]")
    wanted = (*tokens.ids.shape, wiring.layout.d_model)
    if tuple(residual.shape) != wanted:
        raise RunError(f"the residual to start from has shape {tuple(residual.shape)}, the run needs {wanted}")
    # A copy, because some models add in place to what they are given.
    return {int(site.layer or 0): residual.clone()}


def _check_order(wish: Wish, wiring: Wiring) -> None:
    """Refuse edits and readings that the run would never reach."""
    number = wiring.layout.num_layers
    for layer in wish.enter:
        first = Site("resid_pre", layer).depth(number)
        early = [str(s) for s in [*wish.reads, *(e.site for e in wish.edits)] if s.depth(number) < first]
        if early:
            raise RunError(f"a run that starts at layer {layer} never reaches {', '.join(sorted(early))}")
    if wish.stop:
        last = max(site.depth(number) for site in wish.reads)
        late = [repr(e) for e in wish.edits if e.site.depth(number) > last]
        if late:
            raise RunError(
                f"the run stops after its deepest reading, before {', '.join(late)}: read further, or ask for logits"
            )


def _check_fired(session: Session) -> None:
    missing = [f"{Site(*key)}" for key in sorted(_expected(session) - set(session.readings), key=str)]
    silent = [repr(edit) for edit in session.wish.edits if id(edit) not in session.fired]
    if missing:
        raise RunError(
            f"{', '.join(missing)} was never reached: was the model run in this thread, and does it use these modules?"
        )
    if silent:
        raise EditError(
            f"{', '.join(silent)} never fired: no token was at these positions, or the model was not run in this thread"
        )


def _expected(session: Session) -> set[Key]:
    return {(site.component, site.layer) for site in session.wish.reads}


__all__ = ["Run", "SitesLike", "Watched", "bind", "columns_of", "editing", "expand", "run"]
