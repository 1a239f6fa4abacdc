"""What an extraction stores, against the model's own outputs and the activation cache; and what it refuses."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import Phi3Config, Phi3ForCausalLM, PreTrainedTokenizerFast

from handmade import LAYOUT, Handmade
from interp_toolkit import ActivationCache, Layout
from interp_toolkit.activations import ActivationStore, Corpus, Selection, extract, prepare_extraction
from interp_toolkit.activations.ledger import Ledger
from interp_toolkit.errors import (
    InterpError,
    RunError,
    SiteError,
    StoreError,
    TokenError,
    UnavailableSiteError,
    UnknownSiteError,
)
from interp_toolkit.model.verify import verified
from tiny import BOS, EOS, FAMILIES, REPRESENTATIVES, VOCAB, model_of, randomise, tiny_model, tokens

COMPONENTS = (
    "embed",
    "resid_pre",
    "q",
    "k",
    "v",
    "z",
    "head_out",
    "attn_out",
    "resid_mid",
    "mlp_post",
    "mlp_out",
    "resid_post",
    "final_norm",
)
LENGTHS = [9, 3, 14, 1, 6, 20, 9]
SMALL = {"context_length": 32, "batch_tokens": 40, "shard_tokens": 24, "progress": False}


def documents_of(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    return [tokens(1, length, seed=1000 * seed + n)[0].tolist() for n, length in enumerate(lengths)]


DOCS = documents_of(LENGTHS)


def close(actual: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    assert actual.shape == expected.shape
    size = float(expected.abs().max().clamp_min(1.0))
    torch.testing.assert_close(actual.float(), expected.float(), atol=tolerance * size, rtol=0)


def states_of(model: nn.Module, ids: Sequence[int]) -> tuple[Tensor, ...]:
    """The model's own hidden states of a single sequence without padding."""
    with torch.no_grad():
        found = model(input_ids=torch.tensor([list(ids)]), output_hidden_states=True, use_cache=False)
    return tuple(state[0] for state in found.hidden_states)


def kept(store: ActivationStore) -> list[tuple[int, int, int, int]]:
    """Document, sequence, position and token of every row."""
    columns = store.documents(slice(None)), store.sequences[:], store.positions[:], store.tokens[:]
    return list(zip(*(column.tolist() for column in columns), strict=True))


def tokenizer_of(*, template: str = "<s> $A", words: int = 90) -> PreTrainedTokenizerFast:
    """Words w0, w1, ... and special tokens: <pad> 0, <s> 1, </s> 2, <unk> 3, w0 is 4."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    inner = Tokenizer(
        models.WordLevel({word: n for n, word in enumerate([*special, *(f"w{n}" for n in range(words))])}, "<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(name, n) for n, name in enumerate(special)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def text_of(ids: Sequence[int]) -> str:
    return " ".join(f"w{n - 4}" for n in ids)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def llama(path: Path, dataset: Any = DOCS, sites: Any = "resid_post", **options: Any) -> ActivationStore:
    return extract(model_of("llama"), dataset, sites=sites, path=path, **(SMALL | options))


# --- the right numbers --------------------------------------------------------------------------------------------


# Sites themselves are compared with the models' own in every family in test_families; `llama4_text` packs no padding.
ALWAYS = {*REPRESENTATIVES, "llama4_text"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.slow) for name in FAMILIES]
)
def test_every_row_of_every_site_is_what_a_run_on_the_document_alone_gives(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    sites = [c for c in COMPONENTS if verified(model).available(c)]
    assert {"embed", "resid_pre", "resid_post", "attn_out", "mlp_out", "z", "final_norm"} <= set(sites)
    documents = documents_of([9, 3, 14, 1])
    store = extract(model, documents, sites=sites, path=tmp_path / "store", **SMALL | {"shard_tokens": 100})
    views = {str(site): store[site][:] for site in store.sites}
    assert store.complete
    assert len(store.info()["environments"]) == 1
    assert store.tokens[:].tolist() == list(itertools.chain(*documents))
    for number, ids in enumerate(documents):
        rows = slice(store.rows_of(number).start, store.rows_of(number).stop)
        expected = ActivationCache(model, sites=sites).run(ids)
        for site, x in views.items():
            close(x[rows], expected[site])
        states = states_of(model, ids)
        for layer, state in enumerate(states[:-1]):
            close(views[f"resid_pre.{layer}"][rows], state)
            if layer:
                close(views[f"resid_post.{layer - 1}"][rows], state)
        close(views["final_norm"][rows], states[-1])
    assert {str(site) for site in store.sites} == {str(s) for c in sites for s in verified(model).available(c)}


@pytest.mark.parametrize("name", ["gpt2", "llama", "mixtral", "gemma2", "bloom", "falcon_old"])
def test_single_heads_and_neurons_are_stored_alone(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    heads = ["L1H2", "q.0.3", "v.1.0", "head_out.2.1", "resid_post.0"]
    neurons = [f"mlp_post.{s.layer}.5" for s in verified(model).available("mlp_post")][:1]
    sites = [*heads, *neurons]
    store = extract(model, DOCS, sites=sites, path=tmp_path / "store", **SMALL)
    assert [str(site) for site in store.sites] == sorted(
        ["z.1.2", *heads[1:], *neurons], key=[str(site) for site in store.sites].index
    )
    for number, ids in enumerate(DOCS):
        run = ActivationCache(model, sites=[*{s.whole for s in store.sites}]).run(ids)
        for site in store.sites:
            assert store[site].shape[1:] == run[site].shape[1:]
            close(store[site][store.rows_of(number)], run[site])
    with pytest.raises(UnavailableSiteError, match=r"z\.1 is not in the store"):
        store["z.1"]


def test_a_head_beside_its_whole_site_is_not_stored_twice(tmp_path: Path) -> None:
    store = llama(tmp_path / "store", sites=["z.1", "L1H2", "resid_post", "resid_post.-1", "z.1"])
    assert [str(site) for site in store.sites] == ["resid_post.0", "z.1", "resid_post.1", "resid_post.2"]
    assert torch.equal(store["L1H2"][:], store["z.1"][:][:, 2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, "bf16"])
def test_rows_are_rounded_once_to_the_type_that_was_asked(dtype: torch.dtype | str, tmp_path: Path) -> None:
    exact = llama(tmp_path / "exact")["resid_post.1"][:]
    store = llama(tmp_path / "store", dtype=dtype)
    wanted = torch.bfloat16 if dtype == "bf16" else dtype
    assert store.dtype == wanted
    assert torch.equal(store["resid_post.1"][:], exact.to(wanted))
    assert store.nbytes == store.rows * 3 * 32 * (4 if wanted == torch.float32 else 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_is_stored_in_its_own(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model("llama", dtype=dtype)
    store = extract(model, DOCS, sites=["resid_post", "mlp_post.1"], path=tmp_path / "store", **SMALL)
    assert store.dtype == dtype
    for number, ids in enumerate(DOCS):
        close(store["resid_post.1"][store.rows_of(number)], states_of(model, ids)[2], 2e-2)


def test_a_model_that_turns_long_sequences_otherwise_is_run_one_length_at_a_time(tmp_path: Path) -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [1.0, 1.5, 3.0, 4.0],
        "original_max_position_embeddings": 16,
        "factor": 4.0,
    }
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    lengths = {"max_position_embeddings": 64, "original_max_position_embeddings": 16}
    model = Phi3ForCausalLM(Phi3Config(vocab_size=VOCAB, rope_parameters=rope, **shape, **special, **lengths)).eval()
    randomise(model)
    documents = documents_of([30, 6, 16, 17, 6])
    options = {"sites": "resid_post.0", "batch_tokens": 400, "progress": False}
    store = extract(model, documents, path=tmp_path / "store", **options)
    for number, ids in enumerate(documents):
        close(store["resid_post.0"][store.rows_of(number)], states_of(model, ids)[1])
    with pytest.raises(StoreError, match=r"depends on its length.*context_length=16"):
        extract(model, documents, path=tmp_path / "other", positions="first:2", **options)
    short = prepare_extraction(
        model, documents_of([9, 3]), sites="resid_post.0", path=tmp_path / "short", context_length=16
    )
    assert short.configuration.padded
    assert "only sequences of one length" not in short.explain()


def test_a_model_class_of_ones_own_is_extracted_from(tmp_path: Path) -> None:
    model = Handmade("sdpa").eval()
    layout = Layout(**LAYOUT)
    options = {"sites": ["resid_post", "z.1", "mlp_post.0"], "context_length": 32, "layout": layout}
    store = extract(model, DOCS, path=tmp_path / "store", batch_tokens=40, progress=False, **options)
    for number, ids in enumerate(DOCS):
        expected = ActivationCache(model, sites=options["sites"], layout=layout).run(ids)
        for site in store.sites:
            close(store[site][store.rows_of(number)], expected[site])


@contextmanager
def watched(model: nn.Module, *names: str) -> Iterator[dict[str, list[Tensor]]]:
    """What modules of these names are called with."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def see(name: str) -> Callable[..., None]:
        return lambda _, args, kwargs: seen[name].append(args[0] if args else kwargs["input"])

    handles = [model.get_submodule(n).register_forward_pre_hook(see(n), with_kwargs=True) for n in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(
    ("sites", "runs"),
    [
        (["resid_post.0"], [True, False, False, False]),
        (["L1H2"], [True, True, False, False]),
        (["resid_pre.2", "mlp_out.1"], [True, True, False, False]),
        (["final_norm"], [True, True, True, False]),
    ],
)
def test_neither_blocks_behind_the_deepest_site_nor_the_unembedding_are_run(
    sites: list[str], runs: list[bool], tmp_path: Path
) -> None:
    model = model_of("llama")
    prepared = prepare_extraction(model, DOCS, sites=sites, path=tmp_path / "store", context_length=32)
    names = ("model.layers.0.mlp", "model.layers.1.self_attn.q_proj", "model.layers.2.mlp", "lm_head")
    with watched(model, *names) as seen:
        prepared.run(progress=False)
    assert [bool(seen[name]) for name in names] == runs


def test_sequences_of_different_length_share_passes_of_at_most_the_asked_tokens(tmp_path: Path) -> None:
    model = model_of("llama")
    documents = documents_of([5, 9, 13, 7, 7, 12, 30, 3, 9, 1])
    options = {"context_length": 32, "batch_tokens": 28, "shard_tokens": 1000}
    prepared = prepare_extraction(model, documents, sites="resid_post.1", path=tmp_path / "store", **options)
    with watched(model, "model.embed_tokens") as seen:
        store = prepared.run(progress=False)
    shapes = [tuple(ids.shape) for ids in seen["model.embed_tokens"]]
    assert all(batch * length <= 28 or batch == 1 for batch, length in shapes)
    assert len(shapes) < len(documents)
    mixed = [ids for ids in seen["model.embed_tokens"] if len(ids) > 1]
    assert any(len({len(d) for d in documents if d[0] in ids[:, 0].tolist()}) > 1 for ids in mixed)
    for number, ids in enumerate(documents):
        close(store["resid_post.1"][store.rows_of(number)], states_of(model, ids)[2])


def test_only_as_much_of_a_sequence_is_run_as_leads_to_a_kept_row(tmp_path: Path) -> None:
    model = model_of("llama")
    options = {"context_length": 32, "positions": "first:3"}
    prepared = prepare_extraction(model, DOCS, sites="resid_post.1", path=tmp_path / "store", **options)
    with watched(model, "model.embed_tokens") as seen:
        store = prepared.run(progress=False)
    assert max(ids.shape[1] for ids in seen["model.embed_tokens"]) == 3
    for number, ids in enumerate(DOCS):
        close(store["resid_post.1"][store.rows_of(number)], states_of(model, ids)[2][:3])


# --- which rows ---------------------------------------------------------------------------------------------------

SPANS = [[[0, 2], [5, 6]], [[1, 3]], [[13, 14]], [[0, 1]], [[2, 4], [3, 5]], [[0, 20]], [[4, 5]]]
FILTERS: dict[str, Callable[[int, int], list[int]]] = {
    "all": lambda _, length: list(range(length)),
    "last": lambda _, length: [length - 1],
    "first:4": lambda _, length: list(range(min(4, length))),
    "every:4": lambda _, length: list(range(0, length, 4)),
    "spans": lambda n, _: sorted({p for a, b in SPANS[n] for p in range(a, b)}),
}


@pytest.mark.parametrize("positions", list(FILTERS))
def test_filters_keep_the_rows_that_they_say_in_order(positions: str, tmp_path: Path) -> None:
    records = [{"input_ids": ids, "spans": spans} for ids, spans in zip(DOCS, SPANS, strict=True)]
    store = llama(tmp_path / "store", records, positions=positions)
    expected = [(n, n, p, ids[p]) for n, ids in enumerate(DOCS) for p in FILTERS[positions](n, len(ids))]
    assert kept(store) == expected
    whole = {n: states_of(model_of("llama"), ids)[2] for n, ids in enumerate(DOCS)}
    close(store["resid_post.1"][:], torch.stack([whole[n][p] for n, _, p, _ in expected]))


def test_a_sample_has_about_the_right_share_and_does_not_depend_on_who_computes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = documents_of([random.Random(n).randint(1, 30) for n in range(150)])
    total = sum(map(len, documents))
    one = llama(tmp_path / "one", documents, sites="embed", positions="sample:0.3", shard_tokens=10_000)
    assert abs(one.rows - 0.3 * total) < 5 * (0.21 * total) ** 0.5
    many = llama(tmp_path / "many", documents, sites="embed", positions="sample:0.3", shard_tokens=100)
    assert kept(one) == kept(many)
    other = llama(tmp_path / "other", documents, sites="embed", positions="sample:0.3:1", shard_tokens=10_000)
    assert kept(other) != kept(one)
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in ("2", "0", "1"):
        assert not (tmp_path / "ranks/seals/0000.json").exists()
        monkeypatch.setenv("RANK", rank)
        ranks = llama(tmp_path / "ranks", documents, "embed", positions="sample:0.3", shard_tokens=100, engine="rank")
    assert ranks.digest == many.digest
    positions = [p for _, _, p, _ in kept(one)]
    assert len(set(positions)) > 20  # neither only the first tokens nor a pattern
    assert len({p for d, _, p, _ in kept(one) if d == 7} ^ {p for d, _, p, _ in kept(one) if d == 8}) > 0


@pytest.mark.parametrize("text", ["frist", "first:0", "every", "sample:0", "sample:1.5", "sample:x", "last:3", ""])
def test_a_filter_that_does_not_exist_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"first:4|keeps nothing|not understood"):
        llama(tmp_path / "store", positions=text)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("text", ["all", "last", "spans", "first:4", "every:8", "sample:0.1:0", "sample:1e-05:7"])
def test_a_filter_reads_what_it_writes(text: str) -> None:
    assert str(Selection.parse(text)) == text
    assert Selection.parse(Selection.parse(text)) == Selection.parse(text)


def test_a_filter_that_leaves_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="of 1 documents with 3 tokens nothing is kept"):
        llama(tmp_path / "store", [[5, 6, 7]], positions="sample:1e-9")


def test_shards_of_which_nothing_is_kept_do_no_harm(tmp_path: Path) -> None:
    documents = documents_of([30, 2])
    corpus = Corpus(source=documents, long="split")
    options = {"context_length": 8, "shard_tokens": 8, "positions": "last"}
    prepared = prepare_extraction(model_of("llama"), corpus, sites="resid_post", path=tmp_path / "store", **options)
    assert "rows: 2 (last)" in prepared.explain()
    store = prepared.run(progress=False).verify()
    assert kept(store) == [(0, 3, 5, documents[0][-1]), (1, 4, 1, documents[1][-1])]
    close(store["resid_post.0"][0], states_of(model_of("llama"), documents[0][24:])[1][-1])
    assert store["resid_post.0"][:].shape == (2, 32)


# --- how documents become sequences -------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [None, EOS])
def test_packed_documents_follow_each_other_in_full_sequences(separator: int | None, tmp_path: Path) -> None:
    between = [] if separator is None else [separator]
    stream = list(itertools.chain(*([*ids, *between] for ids in DOCS)))
    owner = [n for n, ids in enumerate(DOCS) for _ in [*ids, *between]]
    real = [flag for ids in DOCS for flag in [*[True] * len(ids), *[False] * len(between)]]
    corpus = Corpus(source=DOCS, packing="packed", separator=separator)
    store = llama(tmp_path / "store", corpus, context_length=16)
    assert kept(store) == [(owner[n], n // 16, n % 16, t) for n, t in enumerate(stream) if real[n]]
    whole = torch.cat([states_of(model_of("llama"), stream[n : n + 16])[2] for n in range(0, len(stream), 16)])
    close(store["resid_post.1"][:], whole[torch.tensor(real)])
    assert [store.tokens[store.rows_of(n)].tolist() for n in range(len(DOCS))] == DOCS


def test_packing_takes_the_end_token_of_the_tokenizer_unless_told_otherwise(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(template="$A")
    corpus = Corpus(source=[text_of(ids) for ids in documents_of([4, 5])], packing="packed")
    prepared = prepare_extraction(
        model_of("llama"), corpus, sites="embed", path=tmp_path / "store", tokenizer=tokenizer
    )
    assert prepared.configuration.separator == EOS
    with pytest.raises(TokenError, match="separator 500 is outside"):
        llama(tmp_path / "store", Corpus(source=DOCS, packing="packed", separator=500))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("shard_tokens", [8, 1000])
def test_long_documents_are_refused_split_or_truncated(shard_tokens: int, tmp_path: Path) -> None:
    documents = documents_of([5, 21, 8])
    options = {"context_length": 8, "shard_tokens": shard_tokens}
    with pytest.raises(StoreError, match=r"document 1 has 21 tokens, but a sequence has at most 8: use long='split'"):
        llama(tmp_path / "store", documents, **options)
    split = llama(tmp_path / "split", Corpus(source=documents, long="split"), **options)
    parts = [(0, documents[0]), *((1, documents[1][n : n + 8]) for n in (0, 8, 16)), (2, documents[2])]
    assert kept(split) == [(d, s, p, t) for s, (d, ids) in enumerate(parts) for p, t in enumerate(ids)]
    close(split["resid_post.1"][:], torch.cat([states_of(model_of("llama"), ids)[2] for _, ids in parts]))
    assert len(split.rows_of(1)) == 21
    cut = llama(tmp_path / "cut", Corpus(source=documents, long="truncate"), **options)
    assert kept(cut) == [(d, d, p, t) for d, ids in enumerate(documents) for p, t in enumerate(ids[:8])]
    close(cut["resid_post.1"][cut.rows_of(1)], states_of(model_of("llama"), documents[1][:8])[2])
    assert not (tmp_path / "store").exists()


def test_special_tokens_are_run_and_not_stored_if_they_are_not_wanted(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(template="<s> $A </s>")
    texts = ["w3 w4 w5", "w6 what w7", "w8"]
    ids = [[BOS, 7, 8, 9, EOS], [BOS, 10, 3, 11, EOS], [BOS, 12, EOS]]
    both = {
        special: llama(tmp_path / str(special), Corpus(source=texts, special_tokens=special), tokenizer=tokenizer)
        for special in (True, False)
    }
    assert kept(both[True]) == [(d, d, p, t) for d, row in enumerate(ids) for p, t in enumerate(row)]
    inner = [(d, d, p, t) for d, row in enumerate(ids) for p, t in enumerate(row) if t not in (BOS, EOS)]
    assert kept(both[False]) == inner  # with the unknown word, which nobody added
    rows = [n for n, row in enumerate(kept(both[True])) if row in inner]
    close(both[False]["resid_post.1"][:], both[True]["resid_post.1"][rows])
    close(both[True]["resid_post.1"][:5], states_of(model_of("llama"), ids[0])[2])


@pytest.mark.parametrize(
    ("positions", "expected"), [("last", [3, 1]), ("first:2", [1, 2, 1]), ("every:2", [1, 3, 1]), ("all", [1, 2, 3, 1])]
)
def test_filters_count_the_tokens_that_may_be_stored(positions: str, expected: list[int], tmp_path: Path) -> None:
    given: dict[str, Any] = {"positions": positions, "tokenizer": tokenizer_of(template="<s> $A </s>")}
    text = llama(tmp_path / "text", Corpus(source=["w3 w4 w5", "w8"], special_tokens=False), **given)
    assert text.positions[:].tolist() == expected
    ids = Corpus(source=[[BOS, 7, 8, 9, EOS], [BOS, 12, EOS]], special_tokens=False)
    assert llama(tmp_path / "ids", ids, **given).digest == text.digest


def test_leaving_out_special_tokens_needs_to_know_them(tmp_path: Path) -> None:
    with pytest.raises(TokenError, match="which tokens are special: pass tokenizer="):
        llama(tmp_path / "store", Corpus(source=DOCS, special_tokens=False))


def test_spans_of_text_are_given_in_characters(tmp_path: Path) -> None:
    records = [{"text": "w10 w11 w12", "spans": [[4, 7]]}, {"text": "w13 w14", "spans": [[2, 5]]}]
    store = llama(tmp_path / "store", records, positions="spans", tokenizer=tokenizer_of())
    assert kept(store) == [(0, 0, 2, 15), (1, 1, 1, 17), (1, 1, 2, 18)]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"input_ids": [5, 6, 7]}, "document 0 names no spans"),
        ({"input_ids": [5, 6, 7], "spans": [[2, 9]]}, r"no token lies in the span \[2, 9\]"),
        ({"input_ids": [5, 6, 7], "spans": [[-2, 2]]}, "where it begins and behind its end"),
        ({"input_ids": [5, 6, 7], "spans": [[2, 1]]}, "where it begins and behind its end"),
        ({"input_ids": [5, 6, 7], "spans": [3]}, "where it begins and behind its end"),
        ({"text": "w3 w4", "spans": [[2, 3]]}, r"no token lies in the span \[2, 3\]"),
        ({"text": "w3 w4", "spans": [[-2, 3]]}, "where it begins and behind its end"),
    ],
)
def test_spans_that_mean_nothing_are_refused(record: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=message):
        llama(tmp_path / "store", [record], positions="spans", tokenizer=tokenizer_of())


# --- where documents come from ------------------------------------------------------------------------------------


class FeaturedDataset:
    """As a dataset of Hugging Face `datasets` looks from here."""

    features = ("text", "label")

    def __init__(self, records: list[dict[str, Any]]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.records)


TEXTS = ["w3 w4 w5 w6", "w7", "w8 w9 w10 w11 w12 w13 w14"]
IDS = [[BOS, *(int(word[1:]) + 4 for word in text.split())] for text in TEXTS]


def padded_ids(side: str) -> tuple[Tensor, Tensor]:
    width = max(map(len, IDS))
    ids, mask = torch.zeros(len(IDS), width, dtype=torch.long), torch.zeros(len(IDS), width, dtype=torch.long)
    for n, row in enumerate(IDS):
        where = slice(len(row)) if side == "right" else slice(width - len(row), width)
        ids[n, where], mask[n, where] = torch.tensor(row), 1
    return ids, mask


def sources(folder: Path) -> dict[str, Any]:
    import pyarrow as pa
    from pyarrow import parquet

    lines = "\n".join(json.dumps({"text": text}) for text in TEXTS)
    (folder / "a.jsonl").write_text(lines + "\n\n", encoding="utf-8")
    with gzip.open(folder / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(lines)
    parquet.write_table(pa.table({"text": TEXTS, "more": [[1.0], [2.0], [3.0]]}), folder / "c.parquet")
    parquet.write_table(pa.table({"input_ids": IDS}), folder / "d.parquet")
    (folder / "e.txt").write_text("\r\n".join([TEXTS[0], "", *TEXTS[1:]]), encoding="utf-8")
    left, right = padded_ids("left"), padded_ids("right")
    return {
        "texts": TEXTS,
        "tuple of texts": tuple(TEXTS),
        "jsonl": str(folder / "a.jsonl"),
        "jsonl.gz": folder / "b.jsonl.gz",
        "parquet": folder / "c.parquet",
        "parquet of ids": folder / "d.parquet",
        "txt": folder / "e.txt",
        "lists of ids": IDS,
        "arrays of ids": [np.asarray(row, dtype=np.uint16) for row in IDS],
        "tensors of ids": [torch.tensor(row, dtype=torch.int32) for row in IDS],
        "a generator": (text for text in TEXTS),
        "a generator of records": ({"input_ids": row} for row in IDS),
        "texts and ids": [TEXTS[0], IDS[1], {"text": TEXTS[2]}],
        "a dataset with features": FeaturedDataset([{"text": text, "other": [1]} for text in TEXTS]),
        "an encoding": {"input_ids": left[0], "attention_mask": left[1]},
        "an encoding padded on the right": {"input_ids": right[0].numpy(), "attention_mask": right[1].numpy()},
        "an encoding of lists": {"input_ids": IDS, "attention_mask": [[1] * len(row) for row in IDS]},
        "an encoding without a mask": {"input_ids": IDS},
        "a tokenizer's encoding": tokenizer_of()(TEXTS, padding=True, return_tensors="pt"),
        "padded records": [
            {"input_ids": ids.tolist(), "attention_mask": mask.tolist()} for ids, mask in zip(*right, strict=True)
        ],
    }


SOURCES = [
    "texts",
    "tuple of texts",
    "jsonl",
    "jsonl.gz",
    "parquet",
    "parquet of ids",
    "txt",
    "lists of ids",
    "arrays of ids",
    "tensors of ids",
    "a generator",
    "a generator of records",
    "texts and ids",
    "a dataset with features",
    "an encoding",
    "an encoding padded on the right",
    "an encoding of lists",
    "an encoding without a mask",
    "a tokenizer's encoding",
    "padded records",
]


@pytest.fixture(scope="module")
def from_texts(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    store = llama(tmp_path_factory.mktemp("texts") / "store", TEXTS, tokenizer=tokenizer_of())
    assert kept(store) == [(d, d, p, t) for d, row in enumerate(IDS) for p, t in enumerate(row)]
    return store


@pytest.mark.parametrize("name", SOURCES)
def test_all_kinds_of_sources_give_the_same_store(name: str, from_texts: ActivationStore, tmp_path: Path) -> None:
    store = llama(tmp_path / "store", sources(tmp_path)[name], tokenizer=tokenizer_of())
    assert store.digest == from_texts.digest


def test_a_tensor_of_ids_and_a_single_encoding_are_taken_as_they_are(tmp_path: Path) -> None:
    ids = tokens(4, 7)
    for n, source in enumerate((ids, ids.numpy(), ids.tolist())):
        store = llama(tmp_path / str(n), source)
        assert store.tokens[:].tolist() == ids.reshape(-1).tolist()
        assert store.num_documents == 4
    single = llama(tmp_path / "single", dict(tokenizer_of()(TEXTS[0])))
    assert single.tokens[:].tolist() == IDS[0]


def test_thousands_of_documents_keep_their_order(tmp_path: Path) -> None:
    documents = documents_of([1 + n % 5 for n in range(1500)])
    store = llama(tmp_path / "store", iter(documents), sites="embed", shard_tokens=700, batch_tokens=400)
    assert kept(store) == [(d, d, p, t) for d, ids in enumerate(documents) for p, t in enumerate(ids)]
    assert [list(store.rows_of(n)) for n in (0, 1499)] == [[0], list(range(store.rows - 5, store.rows))]


LABELS = ["ä", "", 'quo"te\n', None, True, 3, -2.5]


def test_columns_keep_their_values_and_types(tmp_path: Path) -> None:
    records = [
        {"input_ids": ids, "label": label, "id": np.int64(n), "score": np.float32(0.5), "other": [1]}
        for n, (ids, label) in enumerate(zip(DOCS, LABELS, strict=True))
    ]
    usual = llama(tmp_path / "usual", records)
    assert usual.columns == ("id", "label")
    assert [(type(v), v) for v in usual.column("label")] == [(type(v), v) for v in LABELS]
    assert usual.column("id") == list(range(len(DOCS)))
    chosen = llama(tmp_path / "chosen", Corpus(source=records, columns=["score", "label"]))
    assert chosen.columns == ("score", "label")
    assert chosen.column("score") == [0.5] * len(DOCS)
    assert llama(tmp_path / "none", Corpus(source=records, columns=[])).columns == ()
    assert llama(tmp_path / "one", Corpus(source=records, columns="label")).columns == ("label",)
    tensors = [{"input_ids": torch.tensor(ids), "label": torch.tensor(n)} for n, ids in enumerate(DOCS)]
    assert llama(tmp_path / "tensors", tensors).column("label") == list(range(len(DOCS)))


# --- interrupted and resumed --------------------------------------------------------------------------------------


class Stopped(Exception):  # noqa: N818 - not an error of anyone
    """What a test stops an extraction with."""


@contextmanager
def stopping(model: nn.Module, after: int, error: type[BaseException] = Stopped) -> Iterator[list[int]]:
    """The model fails after so many passes; gives the list of them."""
    passes: list[int] = []

    def count(*_: Any) -> None:
        if len(passes) == after:
            raise error
        passes.append(1)

    handle = model.get_submodule("model.layers.0").register_forward_pre_hook(count)
    try:
        yield passes
    finally:
        handle.remove()


def commits(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((path / "commits").iterdir())}


@pytest.mark.parametrize("error", [Stopped, KeyboardInterrupt])
def test_what_was_committed_is_not_computed_again(error: type[BaseException], tmp_path: Path) -> None:
    documents = documents_of([12] * 10)  # a shard and a pass for each two
    undisturbed = llama(tmp_path / "undisturbed", documents)
    model, path = model_of("llama"), tmp_path / "store"
    prepared = prepare_extraction(model, documents, sites="resid_post", path=path, **without_progress())
    with stopping(model, 3, error) as passes, pytest.raises(error):
        prepared.run(progress=False)
    assert len(passes) == 3
    before = commits(path)
    assert list(before) == ["00000000.json", "00000001.json", "00000002.json"]
    assert not ActivationStore(path).complete
    again = prepare_extraction(model, iter(documents), sites="resid_post", path=path, **without_progress())
    assert again.missing == [3, 4]
    assert "3 of them written already" in again.explain()
    with stopping(model, 100) as passes:
        store = again.run(progress=False)
    assert len(passes) == 2
    assert {name: commits(path)[name] for name in before} == before
    assert store.digest == undisturbed.digest
    with stopping(model, 100) as passes:
        assert again.run(progress=False).digest == undisturbed.digest
    assert passes == []
    assert list((path / "attempts").iterdir()) == []


def without_progress() -> dict[str, Any]:
    return {name: value for name, value in SMALL.items() if name != "progress"}


@pytest.mark.parametrize("steps", [[1, 1, 1, 1], [0, 4], [2, 0, 2]])
def test_the_digest_does_not_depend_on_interruptions(steps: list[int], tmp_path: Path) -> None:
    undisturbed = llama(tmp_path / "undisturbed", sites=["resid_post", "L1H1"])
    model, path = model_of("llama"), tmp_path / "store"
    for after in steps:
        prepared = prepare_extraction(model, DOCS, sites=["resid_post", "L1H1"], path=path, **without_progress())
        with stopping(model, after), pytest.raises(Stopped):
            prepared.run(progress=False)
    store = llama(path, sites=["resid_post", "L1H1"])
    assert store.digest == undisturbed.digest
    assert [p.name for p in sorted((path / "data/s000").iterdir())] == [
        f"{n:08d}-{ActivationStore(path)._ledger.commit(n).attempt}.safetensors" for n in range(len(commits(path)))
    ]


def test_the_digest_tells_stores_apart(tmp_path: Path) -> None:
    first = llama(tmp_path / "first")
    assert llama(tmp_path / "second").digest == first.digest
    other = [*DOCS[:-1], [*DOCS[-1][:-1], 5 + DOCS[-1][-1] % 7]]
    assert llama(tmp_path / "other", other).digest != first.digest
    assert llama(tmp_path / "sites", sites="resid_pre").digest != first.digest


def test_a_tokenizer_that_was_used_otherwise_meanwhile_is_still_the_same(tmp_path: Path) -> None:
    tokenizer = tokenizer_of()
    store = llama(tmp_path / "store", TEXTS, tokenizer=tokenizer)
    tokenizer(["w3 w4", "w5"], padding=True, truncation=True, max_length=2)
    assert llama(tmp_path / "store", TEXTS, tokenizer=tokenizer).digest == store.digest


def test_writing_happens_beside_computing_and_at_most_three_shards_are_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = documents_of([12] * 16)  # eight shards of one pass each
    undisturbed = llama(tmp_path / "undisturbed", documents)
    model, path = model_of("llama"), tmp_path / "store"
    prepared = prepare_extraction(model, documents, sites="resid_post", path=path, **without_progress())
    assert len(prepared.missing) == 8
    go, stands, original = threading.Event(), threading.Event(), Ledger.write

    def slow(self: Ledger, *args: Any) -> bool:
        stands.set()
        assert go.wait(60)
        return original(self, *args)

    monkeypatch.setattr(Ledger, "write", slow)
    with stopping(model, 100) as passes:
        thread = threading.Thread(target=lambda: prepared.run(progress=False))
        thread.start()
        assert stands.wait(60)
        seen = -1
        while len(passes) < 3 or seen != len(passes):  # until nothing more is computed
            seen = len(passes)
            thread.join(0.3)
        assert len(passes) == 3
        assert not commits(path)
        go.set()
        thread.join(60)
    assert len(passes) == 8
    assert ActivationStore(path).digest == undisturbed.digest


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of the process from /proc")
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    model = model_of("llama")

    def most(times: int, path: Path) -> int:
        found: list[int] = []

        def look(*_: Any) -> None:
            lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
            found.append(next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")))

        source = (tokens(1, 32, seed=n)[0] for n in range(128 * times))
        handle = model.get_submodule("model.layers.0").register_forward_pre_hook(look)
        try:
            store = extract(
                model,
                source,
                sites=["resid_post", "mlp_post", "head_out"],
                path=path,
                context_length=32,
                batch_tokens=1024,
                shard_tokens=1024,
                progress=False,
            )
        finally:
            handle.remove()
        assert store.nbytes == 128 * 32 * times * 3 * (32 + 48 + 128) * 4
        return max(found)

    most(1, tmp_path / "warm")
    once, ten = most(1, tmp_path / "once"), most(10, tmp_path / "ten")
    assert ten - once < 20 * 1024  # kilobytes; the stores have 10 and 102 megabytes


# --- before it runs -----------------------------------------------------------------------------------------------


def test_explain_says_what_is_then_written_and_writes_nothing(tmp_path: Path) -> None:
    documents = documents_of([30] * 400)
    options = {"context_length": 32, "shard_tokens": 2000, "batch_tokens": 4000}
    path = tmp_path / "deep/store"
    prepared = prepare_extraction(
        model_of("llama"), documents, sites=["resid_post", "mlp_out", "L1H2"], path=path, **options
    )
    said = prepared.explain()
    assert not path.parent.exists()
    assert "documents: 400, 12,000 tokens in 400 sequences of up to 32" in said
    assert "rows: 12,000 (all), each 800 bytes in float32" in said
    assert f"to write: {prepared.nbytes / 1e6:.1f} MB" in said
    store = prepared.run(progress=False)
    written = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    assert prepared.nbytes == 0
    again = prepare_extraction(
        model_of("llama"), documents, sites=["resid_post", "mlp_out", "L1H2"], path=tmp_path / "new", **options
    )
    assert again.nbytes == pytest.approx(written, rel=0.03)
    assert store.nbytes == 12_000 * 800


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 5000, 5000))
    prepared = prepare_extraction(
        model_of("llama"), DOCS, sites="resid_post", path=tmp_path / "store", context_length=32
    )
    assert "5.0 kB are free" in prepared.explain()
    with pytest.raises(StoreError, match=r"would take .* but only 5\.0 kB are free .* dtype='bfloat16'"):
        prepared.run()
    assert not (tmp_path / "store").exists()


def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    llama(tmp_path / "store")
    with pytest.raises(TokenError):
        llama(tmp_path / "other", [[3, 4], []])
    assert list((tmp_path / "temporary").iterdir()) == []


# --- what is refused ----------------------------------------------------------------------------------------------


def silenced() -> nn.Module:
    """The model of the same name and class, with one neuron silenced."""
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_submodule("model.layers.1.mlp.down_proj").weight[:, 3] = 0
    return model


FOREIGN: dict[str, tuple[dict[str, Any], str]] = {
    "weights": ({"model": silenced}, "weights: [0-9a-f]+ there, [0-9a-f]+ here"),
    "sites": ({"sites": ["resid_post.1"]}, "sites: resid_post.0, resid_post.1, resid_post.2 there, resid_post.1 here"),
    "tokenizer": ({"tokenizer": tokenizer_of(words=91)}, "tokenizer: "),
    "template": ({"tokenizer": tokenizer_of(template="$A")}, "tokenizer: "),
    "dtype": ({"dtype": "float16"}, "dtype: float32 there, float16 here"),
    "documents": ({"dataset": TEXTS[:2]}, "store of other documents.* 3 documents with 15 tokens there?, 2 documents"),
    "positions": ({"positions": "last"}, "positions: all there, last here"),
    "context": ({"context_length": 31}, "context_length: 32 there, 31 here"),
    "batch": ({"batch_tokens": 41}, "batch_tokens: 40 there, 41 here"),
    "packing": ({"dataset": Corpus(source=TEXTS, packing="packed", separator=2)}, "packing: whole there, packed here"),
}


@pytest.mark.parametrize("what", list(FOREIGN))
def test_a_store_of_something_else_is_refused_and_stays_as_it_is(what: str, tmp_path: Path) -> None:
    llama(tmp_path / "store", TEXTS, tokenizer=tokenizer_of())
    before = snapshot(tmp_path / "store")
    change, message = FOREIGN[what]
    given = {"dataset": TEXTS, "sites": "resid_post", "tokenizer": tokenizer_of(), **SMALL, **change}
    model = given.pop("model", lambda: model_of("llama"))()
    with pytest.raises(StoreError, match=message):
        extract(model, given.pop("dataset"), path=tmp_path / "store", **given)
    assert snapshot(tmp_path / "store") == before


def test_one_changed_weight_anywhere_makes_another_model(tmp_path: Path) -> None:
    model = nn.Linear(3000, 1001, bias=False)
    from interp_toolkit.activations.configuration import weights_fingerprint

    first = weights_fingerprint(model)
    assert weights_fingerprint(model) == first
    for place in ((0, 1), (500, 2999), (1000, 2998)):
        with torch.no_grad():
            kept_value = model.weight[place].clone()
            model.weight[place] = kept_value + 1e-3
            assert weights_fingerprint(model) != first
            model.weight[place] = kept_value
    assert weights_fingerprint(model.half()) != first


def test_a_folder_with_other_files_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/thesis.txt").write_text("years of work", encoding="utf-8")
    (tmp_path / "file").write_text("a file", encoding="utf-8")
    before = snapshot(tmp_path)
    for path in (tmp_path / "notes", tmp_path / "file"):
        with pytest.raises(StoreError, match="holds something else: choose a path that is free"):
            llama(path)
    assert snapshot(tmp_path) == before


BAD_SITES: list[tuple[Any, type[Exception], str]] = [
    ("residual", UnknownSiteError, "did you mean"),
    ("pattern", SiteError, "grows with the prompt.*store q and k"),
    ("scores.1", SiteError, "grows with the prompt"),
    ("logits", SiteError, "store 'final_norm'"),
    ("resid_post.9", SiteError, "the model has 3 layers: 0 to 2"),
    ("L1H9", SiteError, "head 9, but there are 4: 0 to 3"),
    ("k.1.2", SiteError, "kv_head 2, but there are 2"),
    ("mlp_post.1.48", SiteError, "48"),
    ([], StoreError, "no site was named"),
]


@pytest.mark.parametrize(("sites", "kind", "message"), BAD_SITES)
def test_sites_that_cannot_be_stored_are_refused(
    sites: Any, kind: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message):
        llama(tmp_path / "store", sites=sites)
    assert not (tmp_path / "store").exists()


BAD_DATA: dict[str, tuple[Any, type[Exception], str]] = {
    "nothing": ([], StoreError, "the dataset is empty"),
    "an exhausted generator": (iter(()), StoreError, "the dataset is empty"),
    "an empty document": ([[3, 4], [], [5]], TokenError, "document 1 has no tokens: leave it out"),
    "an empty document with an id": (
        [{"input_ids": [3], "id": "a"}, {"input_ids": [], "id": "b"}],
        TokenError,
        r"document 1 \(id 'b'\) has no tokens",
    ),
    "a document of padding": (
        [{"input_ids": [0, 0], "attention_mask": [0, 0]}],
        TokenError,
        "document 0 has no tokens",
    ),
    "a mask with holes": (
        [{"input_ids": [3, 4, 5], "attention_mask": [1, 0, 1]}],
        TokenError,
        "attention mask has holes",
    ),
    "a mask of another length": (
        [{"input_ids": [3, 4, 5], "attention_mask": [1, 1]}],
        TokenError,
        "not a list of 3 ones and zeros",
    ),
    "a long document": ([[3] * 33], StoreError, "document 0 has 33 tokens, but a sequence has at most 32"),
    "a large id": ([[3], [4, VOCAB]], TokenError, "document 1: token id 99 is outside of the model's vocabulary of 99"),
    "a negative id": ([[3, -1]], TokenError, "token id -1 is outside"),
    "a huge id": ([[2**70]], TokenError, "list of token ids, not"),
    "text without a tokenizer": (["w3 w4"], TokenError, "there is no tokenizer: pass tokenizer=, or token ids"),
    "fractions": ([[3.0, 4.5]], TokenError, r"list of token ids, not \[3.0, 4.5\]"),
    "truth values": ([[True, False]], TokenError, "list of token ids"),
    "lists of lists of lists": ([[[3, 4], [5]]], TokenError, r"list of token ids, not \[\[3, 4\], \[5\]\]"),
    "one flat list of ids": ([3, 4, 5], TokenError, "list of token ids, not 3"),
    "one flat tensor of ids": (torch.tensor([3, 4, 5]), StoreError, r"of shape \[document, pos\], not \(3,\)"),
    "a text": ("w3 w4 w5", StoreError, r"there is no file 'w3 w4 w5'; a single text is given as a list"),
    "a long text": ("w3 " * 3000, StoreError, "a single text is given as a list"),
    "a number": (7, StoreError, "a dataset is a file or an iterable"),
    "a file of another kind": ("corpus.docx", StoreError, "there is no file"),
    "records without text": ([{"content": "w3"}], StoreError, r"document 0 has no 'text', but \['content'\]: name the"),
    "records without a text": ([{"text": None}], StoreError, "document 0: 'text' is no text"),
    "records of lists": ([{"text": ["w3"]}], StoreError, "'text' is no text, but list"),
    "splits": ({"train": [[3]], "test": [[4]]}, StoreError, r"\['test', 'train'\]"),
    "a column that is missing later": (
        [{"input_ids": [3], "label": 1}, {"input_ids": [4]}],
        StoreError,
        r"document 1 has no label, but only \['input_ids'\]",
    ),
    "a column of lists": ([{"input_ids": [3], "label": [1]}], StoreError, "'label' is list.*name others"),
    "a column of nothing": ([{"input_ids": [3], "label": float("nan")}], StoreError, "'label' is nan.*use null"),
    "wrong columns": (
        Corpus(source=[{"input_ids": [3], "kind": 1}], columns=["label"]),
        StoreError,
        r"document 0 has no label, but only \['input_ids', 'kind'\]",
    ),
    "columns of lists of ids": (Corpus(source=[[3]], columns=["label"]), StoreError, "no record, so that it has no"),
    "columns with the names of rows": (
        Corpus(source=[{"input_ids": [3], "document": 1}], columns=["document"]),
        StoreError,
        "columns cannot be called document",
    ),
}


@pytest.mark.parametrize("what", list(BAD_DATA))
def test_documents_that_cannot_be_read_are_refused_and_nothing_is_written(what: str, tmp_path: Path) -> None:
    dataset, kind, message = BAD_DATA[what]
    with pytest.raises(kind, match=message):
        llama(tmp_path / "store", dataset)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "w3"}\n{"text": "w4"', "document 1 is not one line of JSON"),
        ("a.jsonl", b'{"text": "\xff"}', "cannot be read as text"),
        ("a.jsonl", b"[" * 100_000, "not one line of JSON"),
        ("a.jsonl.gz", b"not packed", "cannot be read as text"),
        ("a.txt.gz", gzip.compress(b"w3 w4\n" * 5000, mtime=0)[:-40], "cannot be read as text"),
        ("a.txt.gz", gzip.compress(b"w3", mtime=0)[:10] + b"\xff" * 30, "cannot be read as text"),
        ("a.parquet", b"PAR1 is not enough", "cannot be read as Parquet"),
        ("a.csv", b"text\nw3", "no .jsonl, .parquet or .txt file"),
        ("a.jsonl", b"\n\n", "the dataset is empty"),
    ],
)
def test_damaged_files_are_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StoreError, match=message):
        llama(tmp_path / "store", tmp_path / name, tokenizer=tokenizer_of())
    assert not (tmp_path / "store").exists()


def test_the_document_that_begins_twice_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenError, match="document 2 begins with the start token '<s>'"):
        llama(tmp_path / "store", [[5, 6], "w3", "<s> w4"], tokenizer=tokenizer_of())


@cache
def damaged(factor: float) -> nn.Module:
    """A model whose token 50 is multiplied by something."""
    model = tiny_model("llama")
    verified(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[50] *= factor
    return model


@pytest.mark.parametrize("sites", ["resid_post", "mlp_post.1.5"])
def test_activations_that_are_no_numbers_are_reported_with_their_document(sites: str, tmp_path: Path) -> None:
    documents = [[5, 6, 7]] * 9 + [[5, 6, 50, 8]] + [[5, 6, 7]] * 9
    with pytest.raises(StoreError, match=r"document 9 .*not finite at .*position \d .*leave the document out"):
        extract(damaged(float("nan")), documents, sites=sites, path=tmp_path / "store", **SMALL)
    store = ActivationStore(tmp_path / "store")
    assert not store.complete
    assert store.digest is None
    assert len(store.available()) % 24 == 0
    assert 0 < len(store.available()) <= 27


def test_overflow_of_half_precision_is_reported(tmp_path: Path) -> None:
    options = {"sites": "embed", "path": tmp_path / "store", **SMALL}
    with pytest.raises(StoreError, match=r"document 1 .*too large for float16: store as dtype='bfloat16'"):
        extract(damaged(1e7), [[5, 6], [50]], dtype="float16", **options)
    stored = extract(damaged(1e7), [[5, 6], [50]], dtype="bfloat16", **{**options, "path": tmp_path / "other"})
    assert stored["embed"][2].abs().max() > 1e5


def test_a_model_in_training_mode_is_refused(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    for train in (model.train, lambda: model.eval().get_submodule("transformer.h.1").train()):
        train()
        with pytest.raises(RunError, match=r"training mode.*call model.eval\(\)"):
            extract(model, DOCS, sites="resid_post", path=tmp_path / "store", **SMALL)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_length": 65}, "context_length is 65, but the model takes 1 to 64 tokens"),
        ({"context_length": 0}, "context_length is 0"),
        ({"batch_tokens": 0}, "batch_tokens is 0, but has to be at least 1"),
        ({"shard_tokens": -1}, "shard_tokens is -1"),
        ({"dtype": "int8"}, "activations are stored as float32, bfloat16, float16, not as int8"),
        ({"dtype": torch.float64}, "not as torch.float64"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=message):
        llama(tmp_path / "store", **options)
    assert not (tmp_path / "store").exists()


def test_an_engine_that_does_not_exist_is_refused_before_anything_is_written(tmp_path: Path, unchecked: None) -> None:
    with pytest.raises(StoreError, match="the engine is 'local', 'rank' or 'ray', not 'spark'"):
        llama(tmp_path / "store", engine="spark")
    with pytest.raises(InterpError, match="'whole' or are 'packed', not 'tight'"):
        llama(tmp_path / "store", Corpus(source=DOCS, packing="tight"))  # type: ignore[arg-type]
    assert not (tmp_path / "store").exists()


def test_a_model_that_does_not_say_how_much_it_takes_is_asked_for(tmp_path: Path) -> None:
    options = {"sites": "resid_post.0", "path": tmp_path / "store", "progress": False}
    with pytest.raises(StoreError, match="give context_length="):
        extract(model_of("bloom"), DOCS, **options)
    with pytest.raises(StoreError, match="context_length is 0, but the model takes at least 1 token"):
        extract(model_of("bloom"), DOCS, context_length=0, **options)
