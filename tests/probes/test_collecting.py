"""Rows that probes are trained on, against the activation cache prompt by prompt."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from interp_toolkit.activations import ActivationCache, ActivationStore, extract
from interp_toolkit.errors import InterpWarning, PositionError, ProbeError, SiteError
from interp_toolkit.model import Span
from interp_toolkit.probes.collecting import Material, collect
from tiny import model_of, tiny_model

FAMILIES = ("gpt2", "llama")  # the second has grouped queries
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
WORDS = [f"w{n}" for n in range(60)]


@cache
def tokenizer(*, start: bool = True) -> PreTrainedTokenizerFast:
    """Whole words, with a start token in front."""
    inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(SPECIAL + WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if start:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def sentence(seed: int, length: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS[:40], length))


# Very different lengths; each has its own span "w50 w51" somewhere, of two tokens
TEXTS = [
    sentence(n, a) + " w50 w51" + (" " + sentence(n + 99, b) if b else "")
    for n, (a, b) in enumerate([(1, 0), (30, 20), (3, 4), (1, 1), (10, 0), (2, 40)])
]
SPANS = ["w50 w51"] * len(TEXTS)


def alone(family: str, text: str, site: str) -> Tensor:
    """A site's activations of one text without padding: token, features."""
    return ActivationCache(model_of(family), tokenizer(), sites=[site]).run(text)[site].flatten(1)


def expected(family: str, site: str, positions: Any) -> Tensor:
    rows = []
    for text in TEXTS:
        x = alone(family, text, site)
        words = text.split()
        place = 1 + words.index("w50")  # behind the start token
        match positions:
            case "last":
                rows.append(x[-1:])
            case "mean":
                rows.append(x[1:].mean(0, keepdim=True))
            case "max":
                rows.append(x[1:].amax(0, keepdim=True))
            case "all":
                rows.append(x[1:])
            case "span_mean":
                rows.append(x[place : place + 2].mean(0, keepdim=True))
            case Span(token=0):
                rows.append(x[place : place + 1])
            case _:
                rows.append(x[place + 1 : place + 2])
    return torch.cat(rows)


def of_model(family: str, **options: Any) -> Material:
    return collect(model_of(family), TEXTS, tokenizer=tokenizer(), **options)


def rows_of(found: Material, n: int = 0) -> Tensor:
    return found.sources[n][torch.arange(len(found.documents))].flatten(1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "positions", ["last", "mean", "max", "span", "span_mean", "all", Span("w50 w51"), Span("w50 w51", token=0)], ids=str
)
def test_rows_are_those_of_each_text_alone_whatever_its_length(family: str, positions: Any) -> None:
    found = of_model(family, positions=positions, spans=SPANS)
    for n, site in enumerate(found.names):
        torch.testing.assert_close(rows_of(found, n), expected(family, site, positions), rtol=1e-4, atol=1e-5)
    assert found.embedding is not None
    start = found.embedding[torch.arange(len(found.documents))]
    torch.testing.assert_close(start, expected(family, "resid_pre.0", positions), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", ["mlp_out", "z", "mlp_post", "attn_out", "k"])
def test_every_kind_of_site_gives_flat_rows(family: str, site: str) -> None:
    found = of_model(family, site=site)
    assert found.names == tuple(f"{site}.{n}" for n in range(3))
    for n, name in enumerate(found.names):
        torch.testing.assert_close(rows_of(found, n), expected(family, name, "last"), rtol=1e-4, atol=1e-5)
    assert found.embedding is not None, "compared with the embedding, also where that is wider or narrower"


def test_each_token_is_a_row_that_knows_its_text_and_itself() -> None:
    found = of_model("llama", positions="all")
    counts = [len(text.split()) for text in TEXTS]
    assert found.documents.tolist() == [n for n, count in enumerate(counts) for _ in range(count)]
    ids = [tokenizer().convert_tokens_to_ids(word) for text in TEXTS for word in text.split()]
    assert found.tokens is not None
    assert found.tokens.tolist() == ids


def test_unknown_words_count_although_their_token_is_special() -> None:
    found = collect(model_of("llama"), ["w1 strange", "w2"], tokenizer=tokenizer(), positions="all")
    assert found.documents.tolist() == [0, 0, 1]


def test_layers_are_chosen_by_number_also_from_the_end() -> None:
    assert of_model("gpt2", layers=-1).names == ("resid_post.2",)
    assert of_model("gpt2", layers=[2, 0]).layers == (0, 2)
    assert of_model("gpt2", site="embed").names == ("embed",)
    with pytest.raises(SiteError, match=r"layer 7.*3 layers"):
        of_model("gpt2", layers=[0, 7])
    with pytest.raises(ProbeError, match="layers is empty"):
        of_model("gpt2", layers=[])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"site": "resid_post.1"}, ProbeError, "layers are chosen by layers="),
        ({"site": "L0H1"}, ProbeError, "names a kind of activation, such as 'z'"),
        ({"site": "pattern"}, ProbeError, "no row for each token"),
        ({"site": "resid_past"}, SiteError, "resid_post"),
        ({"positions": "first"}, ProbeError, "positions are 'last'"),
        ({"positions": "span"}, ProbeError, "needs a span for each of the 6 texts, found none"),
        ({"positions": "span", "spans": SPANS[:2]}, ProbeError, "found 2"),
        ({"positions": "span", "spans": ["w59"] * 6}, PositionError, "'w59' occurs 0 times"),
        ({"positions": Span("w59")}, PositionError, "'w59' occurs 0 times"),
    ],
)
def test_what_cannot_be_read_is_a_clear_error(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        of_model("llama", **options)


def test_texts_of_special_tokens_alone_are_named() -> None:
    with pytest.raises(ProbeError, match=r"special ones: texts \[1\]"):
        collect(model_of("llama"), ["w1", "</s>"], tokenizer=tokenizer(start=False), positions="mean")
    with pytest.raises(ProbeError, match="a model needs texts"):
        collect(model_of("llama"), [])


def test_rows_keep_the_precision_of_the_model_but_means_are_in_float32() -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    assert rows_of(collect(model, TEXTS, tokenizer=tokenizer())).dtype == torch.bfloat16
    assert rows_of(collect(model, TEXTS, tokenizer=tokenizer(), positions="mean")).dtype == torch.float32


def test_the_model_is_left_as_it_was_also_after_an_error() -> None:
    model = tiny_model("llama")
    model.model.layers[1].requires_grad_(False)
    before = {name: (p.requires_grad, p.clone()) for name, p in model.named_parameters()}

    def untouched() -> bool:
        hooks = [h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
        same = all(
            p.requires_grad == before[n][0] and torch.equal(p, before[n][1]) for n, p in model.named_parameters()
        )
        return not hooks and same and not model.training and all(p.grad is None for p in model.parameters())

    collect(model, TEXTS, tokenizer=tokenizer())
    assert untouched()

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(model, TEXTS, tokenizer=tokenizer(), progress=stop)
    assert untouched()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
        with pytest.raises(ProbeError, match=r"activations at resid_post.1 contain NaN.* in 6 of 6 rows: 0, 1"):
            collect(model, TEXTS, tokenizer=tokenizer())
        model.model.layers[1].mlp.down_proj.weight.copy_(before["model.layers.1.mlp.down_proj.weight"][1])
    assert untouched()
    model.train()
    with pytest.warns(InterpWarning, match="training mode"):
        collect(model, TEXTS, tokenizer=tokenizer())
    assert model.training


def test_progress_counts_texts() -> None:
    seen: list[tuple[int, int]] = []
    of_model("gpt2", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (6, 6)


# --- activations that are there ------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", ["last", "mean", "max", "span", "span_mean", "all", Span("w50 w51")], ids=str)
def test_activations_give_the_same_rows_as_the_model(side: str, positions: Any) -> None:
    padded = tokenizer()
    padded.padding_side = side
    activations = ActivationCache(model_of("llama"), padded, sites=["resid_pre", "resid_post"]).run(TEXTS)
    found = collect(activations, positions=positions, spans=SPANS)
    wanted = of_model("llama", positions=positions, spans=SPANS)
    assert (found.names, found.layers, found.texts) == (wanted.names, wanted.layers, tuple(TEXTS))
    assert found.documents.tolist() == wanted.documents.tolist()
    assert (found.tokens is None) == (wanted.tokens is None)
    for n in range(3):
        torch.testing.assert_close(rows_of(found, n), rows_of(wanted, n), rtol=1e-4, atol=1e-5)
    assert found.embedding is not None


def test_activations_cut_to_one_position_are_taken_as_they_are() -> None:
    whole = of_model("llama", layers=1)
    cut = ActivationCache(model_of("llama"), tokenizer(), sites=["resid_post"], positions="last").run(TEXTS)
    torch.testing.assert_close(rows_of(collect(cut, layers=1)), rows_of(whole), rtol=1e-4, atol=1e-5)
    several = ActivationCache(model_of("llama"), tokenizer(), sites=["resid_post"], positions=[0, 1]).run(TEXTS)
    with pytest.raises(ProbeError, match="cut to 2 positions"):
        collect(several)
    with pytest.raises(ProbeError, match="activations of one prompt"):
        collect(ActivationCache(model_of("llama"), tokenizer(), sites=["resid_post"]).run(TEXTS[0]))
    with pytest.raises(SiteError, match=r"mlp_out is not there; there are resid_post\.0"):
        collect(cut, site="mlp_out")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    """Every token of the texts, of some sites."""
    records = [{"text": text, "label": n % 2} for n, text in enumerate(TEXTS)]
    path = tmp_path_factory.mktemp("store") / "store"
    return extract(
        model_of("llama"),
        records,
        sites=["resid_pre.0", "resid_post.0", "resid_post.2", "z.1", "L0H2"],
        tokenizer=tokenizer(),
        path=path,
        progress=False,
    )


def test_a_store_gives_its_rows_or_the_last_of_each_document(store: ActivationStore) -> None:
    last = collect(store)
    assert last.names == ("resid_post.0", "resid_post.2")
    assert last.documents.tolist() == list(range(6))
    torch.testing.assert_close(rows_of(last, 1), expected("llama", "resid_post.2", "last"), rtol=1e-4, atol=1e-5)
    every = collect(store, positions="all", layers=-1)
    assert every.layers == (2,)
    with_start = torch.cat([alone("llama", text, "resid_post.2") for text in TEXTS])
    torch.testing.assert_close(rows_of(every), with_start, rtol=1e-4, atol=1e-5)
    assert every.count == 6
    assert every.documents.bincount().tolist() == [1 + len(text.split()) for text in TEXTS]
    heads = collect(store, site="z")
    torch.testing.assert_close(rows_of(heads), expected("llama", "z.1", "last"), rtol=1e-4, atol=1e-5)


def test_a_store_says_what_it_lacks(store: ActivationStore) -> None:
    with pytest.raises(SiteError, match=r"resid_post.1 is not in the store.*resid_post.2"):
        collect(store, layers=[0, 1])
    with pytest.raises(SiteError, match="mlp_out is not there"):
        collect(store, site="mlp_out")
    with pytest.raises(ProbeError, match="a store is read at positions"):
        collect(store, positions="mean")


# --- arrays --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_arrays_of_every_precision_are_taken_as_they_are(dtype: torch.dtype) -> None:
    x = torch.randn(3, 5, 4).to(dtype)
    for source in (x, list(x), {"a": x[0], "b": x[1], "c": x[2]}):
        found = collect(source)
        assert found.layers == (0, 1, 2)
        assert all(torch.equal(rows_of(found, n), x[n]) for n in range(3))
    assert collect(x[0]).layers == (0,)
    if dtype != torch.bfloat16:
        assert torch.equal(rows_of(collect(x.numpy()), 2), x[2])


def test_layers_of_arrays_have_the_numbers_that_their_names_say() -> None:
    x = torch.arange(4.0)[:, None, None].expand(4, 2, 3)
    for names in ([3, 6, 9, 12], ["3", "6", "9", "12"], [f"resid_post.{n}" for n in (3, 6, 9, 12)]):
        found = collect(dict(zip(names, x, strict=True)), layers=[12, 3])
        assert (found.layers, [float(rows_of(found, n)[0, 0]) for n in range(2)]) == ((3, 12), [0.0, 3.0])
    found = collect(x, layers=[2, 0, -1])
    assert (found.layers, [float(rows_of(found, n)[0, 0]) for n in range(3)]) == ((0, 2, 3), [0.0, 2.0, 3.0])
    with pytest.raises(ProbeError, match="there are layers 0, 1, 2, 3, but no 4"):
        collect(x, layers=4)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (torch.zeros(2, 3, 4, 5), r"shape \[layer, row, d\]"),
        ({}, "no layer was given"),
        ({"a": torch.zeros(2, 3), "b": torch.zeros(3, 3)}, "the same rows and features"),
        ({"a": torch.zeros(2, 3), "late": torch.tensor([[0.0], [torch.nan]]).expand(2, 3)}, r"layer late.*1 of 2.*: 1"),
        ("resid_post", "not from str"),
        (torch.zeros(2, 0, 4), "no activations"),
    ],
)
def test_arrays_that_make_no_sense_are_refused(source: Any, message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        collect(source)


def test_positions_of_arrays_are_refused() -> None:
    with pytest.raises(ProbeError, match="arrays are taken as they are"):
        collect(torch.zeros(2, 3), positions="mean")


def test_a_saved_batch_can_be_probed_without_its_tokenizer(tmp_path: Path) -> None:
    activations = ActivationCache(model_of("llama"), tokenizer(), sites=["resid_post"]).run(TEXTS)
    activations.save(tmp_path / "batch.safetensors")
    loaded = type(activations).load(tmp_path / "batch.safetensors")
    assert torch.equal(rows_of(collect(loaded)), rows_of(collect(activations)))
