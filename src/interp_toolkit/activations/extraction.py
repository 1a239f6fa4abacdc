"""Extraction: run a corpus through a model and store what passes inside it, so that nothing is ever lost.

The documents are cut into sequences and shards first; then shards are computed and committed one by one, by as many
workers as there are. An extraction that was killed is called again, and goes on with the shards that are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from interp_toolkit.activations.computing import Computer
from interp_toolkit.activations.configuration import (
    Configuration,
    StoredSite,
    site_of,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from interp_toolkit.activations.corpus import Corpus, Documents, Reading
from interp_toolkit.activations.files import float_name
from interp_toolkit.activations.ledger import Ledger
from interp_toolkit.activations.prepared import Engine, Extraction
from interp_toolkit.activations.selection import Selection
from interp_toolkit.activations.store import ActivationStore
from interp_toolkit.errors import RunError, StoreError, TokenError
from interp_toolkit.model.forward import vocabulary_of
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.run import SitesLike, expand
from interp_toolkit.model.sites import COMPONENTS, SHORT_NAMES, Site
from interp_toolkit.model.tokens import tokenizer_for
from interp_toolkit.model.verify import verified
from interp_toolkit.model.wiring import Wiring
from interp_toolkit.provenance import provenance_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHARD_TOKENS = 1 << 14
_BATCH_TOKENS = {"cpu": 1 << 10}
_BATCH_TOKENS_ELSEWHERE = 1 << 14


def extract(
    model: nn.Module,
    dataset: Documents | Corpus,
    *,
    sites: SitesLike,
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    context_length: int | None = None,
    batch_tokens: int | None = None,
    shard_tokens: int | None = None,
    positions: str | Selection = "all",
    dtype: torch.dtype | str | None = None,
    append: bool = False,
    engine: Engine = "local",
    workers: int | None = None,
    progress: bool = True,
    layout: Layout | None = None,
) -> ActivationStore:
    """Run a corpus through a model and store activations of every kept token.

    The forward pass ends behind the deepest site. Writing happens beside computing. If the store is there already and
    is one of the same model, sites and documents, what is missing is computed; anything else at `path` is refused and
    stays as it is.

    Args:
        model: a causal language model, as it is.
        dataset: the documents: whatever `Corpus` takes as its source, or a `Corpus` with more to say.
        sites: what to store, such as `["resid_post.10", "L5H1", "mlp_out"]`; a component without a layer means all.
        path: the folder of the store.
        tokenizer: needed for text when the model does not say where it comes from.
        context_length: the longest sequence; by default as much as the model takes.
        batch_tokens: how many tokens, with padding, make a forward pass. It decides the last bits of what is stored,
            so it is kept with the store.
        shard_tokens: about how many tokens are computed and committed at once.
        positions: which tokens of each document to store: `"all"`, `"last"`, `"first:4"`, `"every:8"`,
            `"sample:0.1"` (`"sample:0.1:seed"`), or `"spans"`, which the records name.
        dtype: float32, bfloat16 or float16; by default that of the model.
        append: add the documents to the store that is there.
        engine: `"local"`: this process; `"rank"`: this process does its share, as the variables of torchrun or of a
            Slurm array say; `"ray"`: workers on a Ray cluster, which load the model from where it came from.
        workers: of the engine `"ray"`.
        progress: show it.
        layout: for a model class of your own.

    Returns:
        The store; not complete where other ranks still write.

    Raises:
        StoreError: for a path with something else, a dataset that is empty, documents that are too long, a disk that
            is too small, and activations that are not finite. What was committed stays.
        TokenError: for documents without tokens, or text without a tokenizer.
        SiteError: for sites that this model does not have, or that have no row for each token.
        OSError: as the file system has it, such as no space left; call again to go on.

    Example:
        >>> import tempfile
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = extract(model, [[1, 2, 3], [4, 5]], sites=["resid_post.1", "L0H1"], path=f"{folder}/store")
        ...     store["resid_post.1"].shape, store["L0H1"][:2].shape, store.documents(range(5)).tolist()
        ((5, 8), torch.Size([2, 4]), [0, 0, 0, 1, 1])
    """
    prepared = prepare_extraction(
        model,
        dataset,
        sites=sites,
        path=path,
        tokenizer=tokenizer,
        context_length=context_length,
        batch_tokens=batch_tokens,
        shard_tokens=shard_tokens,
        positions=positions,
        dtype=dtype,
        append=append,
        layout=layout,
    )
    return prepared.run(engine=engine, workers=workers, progress=progress)


def prepare_extraction(
    model: nn.Module,
    dataset: Documents | Corpus,
    *,
    sites: SitesLike,
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    context_length: int | None = None,
    batch_tokens: int | None = None,
    shard_tokens: int | None = None,
    positions: str | Selection = "all",
    dtype: torch.dtype | str | None = None,
    append: bool = False,
    layout: Layout | None = None,
) -> Extraction:
    """Plan an extraction, to see what it takes before it runs; see `extract`. Nothing is written at `path`.

    Returns:
        The extraction, with `explain()` and `run()`.
    """
    corpus = dataset if isinstance(dataset, Corpus) else Corpus(source=dataset)
    wiring = verified(model, layout)
    if any(module.training for module in wiring.base.modules()):
        raise RunError("the model is in training mode, at least in part, so that dropout is random: call model.eval()")
    tokenizer = _tokenizer(model, tokenizer)
    if tokenizer is None and not corpus.special_tokens:
        raise TokenError("special_tokens=False needs to know which tokens are special: pass tokenizer=")
    Ledger.refuse_foreign(Path(path))
    there = Ledger(path) if (Path(path) / "store.json").exists() else None
    known = None if there is None else there.configuration
    device = next(wiring.base.parameters()).device
    usual = _BATCH_TOKENS.get(device.type, _BATCH_TOKENS_ELSEWHERE)
    conf = Configuration(
        provenance=provenance_of(model, wiring.layout),
        weights=weights_fingerprint(wiring.base),
        tokenizer=None if tokenizer is None else tokenizer_fingerprint(tokenizer),
        num_layers=wiring.layout.num_layers,
        sites=tuple(StoredSite(site, ()) for site in _asked(sites, wiring)),
        dtype=float_name(next(wiring.base.parameters()).dtype if dtype is None else dtype),
        context_length=_context_length(wiring, context_length),
        packing=corpus.packing,
        long=corpus.long,
        positions=Selection.parse(positions),
        special_tokens=corpus.special_tokens,
        separator=_separator(corpus, tokenizer, vocabulary_of(wiring.base)),
        shard_tokens=_first(shard_tokens, None if known is None else known.shard_tokens, _SHARD_TOKENS),
        batch_tokens=_first(batch_tokens, None if known is None else known.batch_tokens, usual),
        padded=True,
    )
    conf = _measured(wiring, conf)
    if there is not None:
        there.expect(conf)
    reading = Reading(
        text=corpus.text,
        columns=_names(corpus.columns),
        tokenizer=tokenizer,
        vocabulary=vocabulary_of(wiring.base),
        spans=conf.positions.kind == "spans",
    )
    return Extraction(wiring, conf, Path(path), corpus.source, reading, append=append)


def _asked(sites: SitesLike, wiring: Wiring) -> list[Site]:
    """The sites that are meant, each once; a single head or neuron stays one, unless all of them are asked for too."""
    several = [sites] if isinstance(sites, str | Site) else list(sites)
    if not several:
        raise StoreError("no site was named: give some, such as sites=['resid_post.5', 'L3H1']")
    found: dict[Site, None] = {}
    for item in several:
        single = isinstance(item, Site) or item not in {*COMPONENTS, *SHORT_NAMES}
        found.update(dict.fromkeys([wiring.check(Site.parse(item))] if single else expand(item, wiring)))
    num_layers = wiring.layout.num_layers
    return [site_of(site, num_layers) for site in found if site.index is None or site.whole not in found]


def _separator(corpus: Corpus, tokenizer: PreTrainedTokenizerBase | None, vocabulary: int | None) -> int | None:
    separator = corpus.separator
    if corpus.packing == "packed" and separator is None:
        separator = getattr(tokenizer, "eos_token_id", None)
    if separator is not None and not 0 <= separator < (vocabulary or 2**31):
        raise TokenError(f"the separator {separator} is outside of the model's vocabulary: give Corpus(separator=...)")
    return separator


def _first(*values: int | None) -> int:
    """The first number that was given."""
    return next(value for value in values if value is not None)


def _names(columns: Sequence[str] | None) -> tuple[str, ...] | None:
    names = (columns,) if isinstance(columns, str) else columns
    if names is None:
        return None
    taken = sorted({"token", "position", "sequence", "document"} & set(names))
    if taken:
        raise StoreError(f"columns cannot be called {', '.join(taken)}, as every row has that: name them otherwise")
    return tuple(names)


def _tokenizer(model: nn.Module, given: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase | None:
    try:
        return tokenizer_for(model, given)
    except TokenError:
        return None  # token ids need none; text says so when it comes


def _context_length(wiring: Wiring, asked: int | None) -> int:
    config = getattr(wiring.base, "config", None)
    text = config if config is None else config.get_text_config()
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    most = next((n for name in names if isinstance(n := getattr(text, name, None), int) and n > 0), None)
    if asked is None:
        if most is None:
            raise StoreError("the model does not say how many tokens it takes: give context_length=")
        return most
    if asked < 1 or (most is not None and asked > most):
        limit = "at least 1 token" if most is None else f"1 to {most:,} tokens"
        raise StoreError(f"context_length is {asked:,}, but the model takes {limit}")
    return asked


def _measured(wiring: Wiring, conf: Configuration) -> Configuration:
    """With the shapes that sites have in this model, and whether its passes can be filled up."""
    order = sorted(conf.sites, key=lambda stored: (stored.site.depth(conf.num_layers), stored.site.index or 0))
    computer = Computer(wiring, replace(conf, sites=tuple(order)))
    edge = computer.turns_at()
    if edge is not None and conf.positions.kind not in ("all", "last"):
        raise StoreError(
            f"in this model (LongRoPE) every activation of a sequence of more than {edge:,} tokens depends on its "
            f"length, so that positions={str(conf.positions)!r} cannot leave out its end: use positions='all' or "
            f"'last', or context_length={edge}"
        )
    sites = tuple(StoredSite(site, shape) for site, shape in computer.shapes())
    return replace(conf, sites=sites, padded=computer.fills_up())


__all__ = ["extract", "prepare_extraction"]
