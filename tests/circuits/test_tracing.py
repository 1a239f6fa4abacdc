"""Causal traces against plain hooks and one run for each cell, and what they say of a real model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

import tiny
from interp_toolkit import Edit, Span, run
from interp_toolkit.circuits import Effects
from interp_toolkit.circuits.tracing import ROWS, causal_trace, prepare_trace
from interp_toolkit.errors import (
    AlignmentError,
    InterpError,
    InterpWarning,
    MetricError,
    PositionError,
    RunError,
    SiteError,
    TokenError,
)
from tiny import VOCAB, tokens

IDS, OTHER = (row.tolist() for row in tokens(2, 7))
LENGTH, SUBJECT = 7, [2, 3]
SWAPPED = [OTHER[n] if n in SUBJECT else token for n, token in enumerate(IDS)]
SCALE, SAMPLES, SEED = 3.0, 3, 5
BEFORE_SUBJECT = min(SUBJECT)

pytestmark = pytest.mark.filterwarnings("ignore:corrupting the subject does not lower")


def words() -> PreTrainedTokenizerFast:
    """A tokenizer for tiny models: token 5 is written w5."""
    inner = Tokenizer(WordLevel({f"w{n}": n for n in range(VOCAB)}, unk_token="w0"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="w0", pad_token="w0")


TOKENIZER = words()


def text(ids: Sequence[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


def model_of(name: str) -> PreTrainedModel:
    model: PreTrainedModel = tiny.model_of(name, dtype=torch.float64)
    return model


def trace(prompts: Any = IDS, subject: Any = SUBJECT, name: str = "llama", **how: Any) -> Effects:
    how = {"samples": SAMPLES, "seed": SEED, **how}
    return causal_trace(model_of(name), prompts, subject, **how)


# --- brute force: hooks -----------------------------------------------------------------------------------------------

Change = Callable[[Tensor], Tensor]


@contextmanager
def hooked(places: Sequence[tuple[nn.Module, Change]]) -> Iterator[None]:
    """Outputs of modules replaced by functions of them."""
    with ExitStack() as stack:
        for module, change in places:

            def behind(_: nn.Module, args: Any, out: Any, change: Change = change) -> Any:
                del args
                return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

            stack.callback(module.register_forward_hook(behind).remove)
        yield


def answer_probability(model: Any, ids: Sequence[int], places: Sequence[tuple[nn.Module, Change]], token: int) -> float:
    with torch.no_grad(), hooked(places):
        return float(model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1].softmax(-1)[token])


def outputs(model: Any, ids: Sequence[int], modules: Sequence[nn.Module]) -> list[Tensor]:
    kept: dict[int, Tensor] = {}

    def keep(n: int) -> Change:
        return lambda x: kept.setdefault(n, x.detach().clone())

    with torch.no_grad(), hooked([(module, keep(n)) for n, module in enumerate(modules)]):
        model(input_ids=torch.tensor([list(ids)]), use_cache=False)
    return [kept[n] for n in range(len(modules))]


def put(value: Tensor, column: int) -> Change:
    def change(x: Tensor) -> Tensor:
        new = x.clone()
        new[:, column] = value[:, column]
        return new

    return change


def noises(embedded: Sequence[Tensor], subjects: Sequence[Sequence[int]], samples: int = SAMPLES) -> list[list[Tensor]]:
    """The noise that is documented: float32, prompt by prompt, sample by sample."""
    std = torch.cat([x[list(where)].flatten() for x, where in zip(embedded, subjects, strict=True)]).std()
    generator = torch.Generator().manual_seed(SEED)
    found = []
    for x, where in zip(embedded, subjects, strict=True):
        here = []
        for _ in range(samples):
            value = torch.zeros(len(x), x.shape[-1], dtype=torch.float64)
            drawn = torch.randn(len(where), x.shape[-1], generator=generator, dtype=torch.float32)
            value[list(where)] = (drawn * float(SCALE * std)).double()
            here.append(value)
        found.append(here)
    return found


def window_of(layer: int, window: int, layers: int) -> range:
    """As the paper's code has it."""
    return range(max(0, layer - window // 2), min(layers, layer - (-window // 2)))


@pytest.mark.parametrize(
    ("component", "window"),
    [("resid", 1), ("attn", 1), ("attn", 3), ("mlp", 1), ("mlp", 2), ("mlp", 10), ("resid", 3)],
)
def test_a_trace_is_what_plain_hooks_do(component: str, window: int) -> None:
    model: Any = model_of("llama")
    blocks = list(model.model.layers)
    modules = {"resid": blocks, "attn": [b.self_attn for b in blocks], "mlp": [b.mlp for b in blocks]}[component]
    clean = outputs(model, IDS, modules)
    embedding = model.model.embed_tokens
    embedded = outputs(model, IDS, [embedding])[0][0]
    with torch.no_grad():
        best = int(model(input_ids=torch.tensor([IDS])).logits[0, -1].argmax())
    expected = torch.empty(SAMPLES, len(blocks), LENGTH, dtype=torch.float64)
    corrupt = []
    for sample, noise in enumerate(noises([embedded], [SUBJECT])[0]):
        corruption = (embedding, lambda x, noise=noise: x + noise)
        corrupt.append(answer_probability(model, IDS, [corruption], best))
        for layer in range(len(blocks)):
            for column in range(LENGTH):
                restored = [(modules[n], put(clean[n], column)) for n in window_of(layer, window, len(blocks))]
                expected[sample, layer, column] = answer_probability(model, IDS, [corruption, *restored], best)
    found = trace(component=component, window=window)
    assert torch.allclose(found.values[0], expected.mean(0), rtol=0, atol=1e-10)
    assert float(found.corrupt) == pytest.approx(sum(corrupt) / SAMPLES, abs=1e-10)
    assert float(found.clean) == pytest.approx(answer_probability(model, IDS, [], best), abs=1e-10)
    assert torch.equal(found.base, found.corrupt)
    spread = torch.tensor(found.notes["spread"][0], dtype=torch.float64)
    assert torch.allclose(spread, expected.std(0), rtol=0, atol=1e-10)
    assert found.notes["corrupt_spread"] == pytest.approx([float(torch.tensor(corrupt).std())], abs=1e-6)
    assert float((found.values - found.base).abs().max()) > 1e-4  # otherwise nothing was tested


# --- brute force: one run for each cell -------------------------------------------------------------------------------


def cell(
    name: str, ids: Sequence[int], corruption: Sequence[Edit], sites: Sequence[str], columns: Sequence[int], token: int
) -> float:
    """The probability of an answer in one plain run."""
    model = model_of(name)
    clean = run(model, list(ids) if corruption else IDS, read=list(sites)) if sites else {}
    edits = [*corruption, *(Edit.set(site, clean[site], positions=list(columns)) for site in sites)]
    logits = run(model, list(ids), edits=edits, logits="last").logits
    return float(logits[0, -1].softmax(-1)[token])


def best_of(name: str, ids: Sequence[int]) -> int:
    logits = run(model_of(name), list(ids), logits="last").logits
    return int(logits[0, -1].argmax())


def noise_edits(
    name: str, prompts: Sequence[Sequence[int]], subjects: Sequence[Sequence[int]], samples: int = SAMPLES
) -> list[list[Edit]]:
    embedded = [run(model_of(name), list(ids), read="embed")["embed"][0] for ids in prompts]
    return [
        [Edit.add("embed", value[None], positions=list(where)) for value in here]
        for here, where in zip(noises(embedded, subjects, samples), subjects, strict=True)
    ]


@pytest.mark.parametrize(
    ("name", "component", "window"),
    [
        ("gpt2", "resid", 1),
        ("gpt2", "mlp", 3),
        ("gemma2", "resid", 1),
        ("gemma2", "attn", 10),
        ("gpt_neox", "resid", 1),
        ("gpt_neox", "z", 1),
        ("falcon", "attn", 3),
    ],
)
def test_a_trace_is_one_plain_run_for_each_cell(name: str, component: str, window: int) -> None:
    sites = {"resid": "resid_post", "attn": "attn_out", "mlp": "mlp_out", "z": "z"}[component]
    layers, token, columns = model_of(name).config.num_hidden_layers, best_of(name, IDS), [1, 2, 3, 5, 6]
    expected = torch.empty(2, layers, len(columns), dtype=torch.float64)
    for sample, corruption in enumerate(noise_edits(name, [IDS], [SUBJECT], 2)[0]):
        for layer in range(layers):
            chosen = [f"{sites}.{n}" for n in window_of(layer, window, layers)]
            for at, column in enumerate(columns):
                expected[sample, layer, at] = cell(name, IDS, [corruption], chosen, [column], token)
    found = trace(name=name, component=component, window=window, positions=columns, samples=2)
    assert torch.allclose(found.values[0], expected.mean(0), rtol=0, atol=1e-10)
    assert float((found.values - found.base).abs().max()) > 1e-5


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_another_subject_can_stand_in_for_noise(name: str) -> None:
    layers, token = model_of(name).config.num_hidden_layers, best_of(name, IDS)
    found = trace(name=name, corruption=SWAPPED, component="mlp", window=2)
    expected = torch.empty(layers, LENGTH, dtype=torch.float64)
    for layer in range(layers):
        chosen = [f"mlp_out.{n}" for n in window_of(layer, 2, layers)]
        for column in range(LENGTH):
            expected[layer, column] = cell(name, SWAPPED, [], chosen, [column], token)
    assert torch.allclose(found.values[0], expected, rtol=0, atol=1e-10)
    assert float(found.corrupt) == pytest.approx(cell(name, SWAPPED, [], [], [], token), abs=1e-10)
    assert "spread" not in found.notes
    assert "noise" not in found.notes
    assert found.title == "Restoring mlp_out in windows of 2 layers after another subject"


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("component", ["resid", "resid_pre"])
def test_restoring_every_position_of_a_layer_gives_the_clean_run(name: str, component: str) -> None:
    found = trace(name=name, component=component, positions={"everything": "all", "subject": SUBJECT})
    assert found.labels[1] == ("everything", "subject")
    assert torch.allclose(found.values[0, :, 0], found.clean, rtol=0, atol=1e-10)
    if component == "resid_pre":  # nothing but the subject differs there
        assert float(found.values[0, 0, 1]) == pytest.approx(float(found.clean), abs=1e-10)
    assert abs(float(found.clean - found.corrupt)) > 1e-3


# --- windows ----------------------------------------------------------------------------------------------------------


def test_windows_are_cut_off_at_the_first_and_last_layers() -> None:
    for window, expected in {
        1: ["0", "1", "2"],
        2: ["0", "01", "12"],
        3: ["01", "012", "12"],
        10: ["012"] * 3,
    }.items():
        made = prepare_trace(model_of("llama"), IDS, SUBJECT, component="attn", window=window)
        assert ["".join(str(site.layer) for site in sites) for sites in made.windows] == expected
        assert all(site.component == "attn_out" for sites in made.windows for site in sites)


def test_layers_without_the_component_have_no_value() -> None:
    mixture = tiny.model_of("qwen3_moe")  # experts have neurons of their own
    found = causal_trace(mixture, IDS, SUBJECT, component="neuron", samples=1)
    assert found.values[0, [0, 2]].isnan().all()
    assert found.values[0, 1].isfinite().all()
    wide = causal_trace(mixture, IDS, SUBJECT, component="neuron", samples=1, window=2)
    assert wide.values.isnan().all()


# --- samples and seeds ------------------------------------------------------------------------------------------------


def test_the_seed_alone_decides_the_noise() -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = trace()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    again, other = trace(), trace(seed=SEED + 1)
    assert torch.equal(first.values, again.values)
    assert float((first.values - other.values).abs().max()) > 1e-5
    assert first.notes["noise"]["seed"] == SEED


def test_the_noise_is_the_same_in_other_precisions() -> None:
    double = trace()
    single = causal_trace(tiny.model_of("llama"), IDS, SUBJECT, samples=SAMPLES, seed=SEED)
    assert torch.allclose(single.values.double(), double.values, rtol=0, atol=1e-5)
    half = causal_trace(tiny.model_of("llama", dtype=torch.bfloat16), IDS, SUBJECT, samples=SAMPLES, seed=SEED)
    assert torch.allclose(half.values.double(), double.values, rtol=0, atol=2e-2)


def test_one_sample_is_the_first_of_several_and_has_no_spread() -> None:
    one, two = trace(samples=1), trace(samples=2)
    assert "spread" not in one.notes
    second = 2 * two.values - one.values
    std = (one.values - second).abs() / math.sqrt(2)
    assert torch.allclose(std, torch.tensor(two.notes["spread"], dtype=std.dtype), rtol=0, atol=1e-10)


def test_noise_counts_in_standard_deviations_of_what_enters_the_first_block() -> None:
    embedded = run(model_of("gemma2"), IDS, read="embed")["embed"][0, SUBJECT]
    raw = model_of("gemma2").get_input_embeddings().weight.detach()[IDS][SUBJECT]
    found = trace(name="gemma2", noise=0.5)
    assert found.notes["noise"] == {"scale": 0.5, "std": pytest.approx(float(embedded.std())), "samples": 3, "seed": 5}
    assert float(embedded.std()) > 5 * float(raw.std())  # Gemma scales its embeddings


# --- planning ---------------------------------------------------------------------------------------------------------


def test_what_cannot_differ_is_not_run_and_the_rest_goes_in_few_passes() -> None:
    made = prepare_trace(model_of("llama"), IDS, SUBJECT, samples=SAMPLES)
    layers = 3
    before, behind_the_last_layer = layers * BEFORE_SUBJECT, LENGTH - BEFORE_SUBJECT - 1
    known = SAMPLES * (before + behind_the_last_layer)
    said = made.explain()
    assert f"cells: {SAMPLES * layers * LENGTH} over {1 + SAMPLES} base runs, {known} of them known" in said
    assert int(said.split("forward passes: ")[1].split()[0]) <= 2
    found = made.run()
    assert found.notes["cost"] == said
    assert (found.change[:, :, :BEFORE_SUBJECT] == 0).all()
    assert (found.change[:, -1, :-1] == 0).all()


def test_little_memory_changes_no_number() -> None:
    prompts, subjects = [IDS, OTHER, SWAPPED[:5]], [[2, 3], [1], [2]]
    free, tight = (trace(prompts, subjects, memory=memory) for memory in (None, 40_000))
    assert torch.allclose(free.values, tight.values, rtol=0, atol=1e-10, equal_nan=True)
    assert free.notes["spread"] != []


# --- several prompts --------------------------------------------------------------------------------------------------

SEVERAL = [IDS, OTHER[:6], SWAPPED[:4], OTHER]
SUBJECTS = [[1, 2, 3, 4], [2], [1, 2], [0, 1, 2]]
ROW_COLUMNS: list[list[list[int]]] = [
    [[1], [2, 3], [4], [5], [], [6]],
    [[2], [], [2], [3], [4], [5]],
    [[1], [], [2], [3], [], [3]],
    [[0], [1], [2], [3], [4, 5], [6]],
]


def test_prompts_of_different_lengths_share_the_rows_of_the_paper() -> None:
    found = trace(SEVERAL, SUBJECTS, samples=2)
    assert found.labels == (("0", "1", "2"), ROWS)
    for n, (ids, corruptions) in enumerate(zip(SEVERAL, noise_edits("llama", SEVERAL, SUBJECTS, 2), strict=True)):
        token = best_of("llama", ids)
        for layer in (0, 1):
            for row, columns in enumerate(ROW_COLUMNS[n]):
                values = [
                    cell("llama", ids, [corruption], [f"resid_post.{layer}"], [column], token)
                    for corruption in corruptions
                    for column in columns
                ]
                value = float(found.values[n, layer, row])
                if not columns:
                    assert math.isnan(value)
                    assert found.notes["spread"][n][layer][row] is None
                else:
                    assert value == pytest.approx(sum(values) / len(values), abs=1e-10)
    assert found.notes["subjects"] == [
        "".join(str(ids[p]) for p in s) for ids, s in zip(SEVERAL, SUBJECTS, strict=True)
    ]


def test_several_prompts_with_other_subjects_are_their_single_traces() -> None:
    prompts, others = [text(IDS), text(OTHER[:6])], [text(SWAPPED), text([*OTHER[:2], *IDS[2:4], *OTHER[4:6]])]
    subjects = [text(IDS[2:4]), text(OTHER[2:4])]
    many = trace(prompts, subjects, corruption=others, tokenizer=TOKENIZER)
    for n in range(2):
        one = trace(prompts[n], subjects[n], corruption=others[n], tokenizer=TOKENIZER)
        apart = [one.values[0][:, columns] for columns in ([2], [3], [4], [-1])]
        rows = many.values[n][:, [0, 2, 3, 5]]
        assert torch.allclose(rows, torch.cat(apart, dim=1), rtol=0, atol=1e-10)
    assert many.values[:, :, 1].isnan().all()
    assert many.notes["corrupt"] == others


def test_positions_that_correspond_can_be_asked_for_of_several_prompts() -> None:
    found = trace([IDS, OTHER], SUBJECT, positions=[2, -1])
    assert found.labels[1] == ("2 …*", "6 …")
    whole = trace([IDS, OTHER], SUBJECT, positions="all")
    assert torch.allclose(whole.values[:, :, [2, 6]], found.values, rtol=0, atol=1e-10)


# --- what can be asked ------------------------------------------------------------------------------------------------


def by_text(subject: Any = f"w{IDS[2]} w{IDS[3]}", **how: Any) -> Effects:
    return trace(text(IDS), subject, tokenizer=TOKENIZER, **how)


def test_a_subject_is_named_by_text_or_by_positions() -> None:
    expected = trace().values
    for subject in (text(IDS[2:4]), Span(text(IDS[2:4])), [2, 3], slice(2, 4), [-4, -5], [text(IDS[2:4])]):
        assert torch.equal(by_text(subject).values, expected)


def test_the_subject_is_starred_in_the_labels() -> None:
    strings = [f"{n} w{token}{'*' if n in SUBJECT else ''}" for n, token in enumerate(IDS)]
    assert by_text().labels[1] == tuple(strings)
    assert by_text().notes["subjects"] == [f"w{IDS[2]}w{IDS[3]}"]


def test_without_an_answer_the_clean_run_gives_it() -> None:
    token = best_of("llama", IDS)
    found = by_text()
    assert torch.equal(found.values, by_text(answer=f"w{token}").values)
    assert torch.equal(found.values, by_text(answer=[token]).values)
    assert found.notes["answers_from"] == "the clean run's own most probable token"
    assert found.notes["answers"] == f"'w{token}'"
    assert by_text(answer=token).notes["answers_from"] == "given"
    assert f"'w{token}'" in found.summary()


@pytest.mark.parametrize("metric", ["logit_diff", "log_prob", "kl"])
def test_other_metrics_are_measured_too(metric: str) -> None:
    target = best_of("llama", IDS)
    found = trace(answer=(target, target - 1), metric=metric, samples=1)
    value = noise_edits("llama", [IDS], [SUBJECT])[0][:1]
    read = run(model_of("llama"), IDS, read="resid_post.1", logits="last")
    edits = [*value, Edit.set("resid_post.1", read["resid_post.1"], positions=[3])]
    logits = run(model_of("llama"), IDS, edits=edits, logits="last").logits
    p, q = read.logits[0, -1].log_softmax(-1), logits[0, -1].log_softmax(-1)
    expected = {"logit_diff": q[target] - q[target - 1], "log_prob": q[target], "kl": (p.exp() * (p - q)).sum()}
    assert float(found.values[0, 1, 3]) == pytest.approx(float(expected[metric]), abs=1e-9)
    everything = trace(answer=(target, target - 1), metric=metric, positions={"all": "all"})
    assert float(everything.effect[0, 0]) == pytest.approx(1, abs=1e-9)


def test_a_trace_comes_back_from_a_file(tmp_path: Path) -> None:
    found = trace(SEVERAL, SUBJECTS)
    back = Effects.load(found.save(tmp_path / "trace.safetensors"))
    assert torch.equal(back.values.nan_to_num(9.0), found.values.nan_to_num(9.0))
    assert back.notes == found.notes
    assert back.labels == found.labels
    assert back.direction == "denoise"


# --- warnings and errors ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("always")
def test_it_warns_where_the_corruption_does_no_harm() -> None:
    target = best_of("llama", IDS)
    logits = run(model_of("llama"), IDS, logits="last").logits
    worst = int(logits[0, -1].argmin())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trace(answer=(worst, target), metric="logit_diff")
    said = [str(warning.message) for warning in caught if issubclass(warning.category, InterpWarning)]
    assert said[0].startswith("the clean run continues")
    assert said[1].startswith("corrupting the subject does not lower the clean answer (logit_diff: clean -")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace(answer=target)


def test_it_warns_where_the_clean_run_gives_another_answer() -> None:
    token = best_of("llama", IDS)
    with pytest.warns(InterpWarning, match=rf"continues .* with 'w{token}' \(probability 0\.\d\d\), not with 'w5'"):
        by_text(answer="w5")
    with pytest.warns(InterpWarning, match="1 of 2 prompts are not answered as given, the first: the clean run"):
        trace([IDS, OTHER], SUBJECT, answer=[token, 5])


def test_it_warns_where_more_than_the_subject_was_swapped() -> None:
    other = [*SWAPPED[:5], IDS[5] - 1, IDS[6]]
    with pytest.warns(InterpWarning, match=r"outside of the subject's tokens \[2, 3\] too, at \[5\]"):
        trace(corruption=other)


@pytest.mark.parametrize(
    ("how", "error", "said"),
    [
        ({"subject": "w98 w98"}, PositionError, "the subject 'w98 w98' is not in the prompt 'w"),
        ({"subject": f"W{IDS[2]}"}, PositionError, f"did you mean 'w{IDS[2]}'"),
        ({"subject": " "}, PositionError, "the subject is empty"),
        ({"subject": text(IDS)}, PositionError, "is the whole prompt"),
        ({"subject": text(IDS[5:])}, PositionError, "includes the last token of the prompt.*tokens behind the subject"),
        ({"subject": -1}, PositionError, r"at positions \[6\] includes the last token"),
        ({"subject": [7]}, PositionError, "position 7 is outside of prompt 0, which has 7 tokens"),
        ({"subject": slice(3, 3)}, PositionError, "no token of the prompt"),
        ({"subject": ["w1", "w2"]}, RunError, "2 subjects were given for 1 prompts"),
        ({"window": 0}, RunError, "window is how many layers.*not 0"),
        ({"samples": 0}, RunError, "samples is how many times.*not 0"),
        ({"noise": 0.0}, RunError, "noise is a positive number.*not 0.0"),
        ({"noise": math.nan}, RunError, "noise is a positive number.*not nan"),
        ({"corruption": text(SWAPPED[:6])}, AlignmentError, "the clean prompt has 7 tokens and the corrupt one 6"),
        ({"corruption": text(IDS)}, TokenError, "are the same"),
        ({"corruption": [text(SWAPPED)] * 2}, AlignmentError, "1 clean prompts were given, but 2 corrupt"),
        ({"answer": "w5 w6"}, TokenError, "not one token"),
        ({"answer": [5, 6]}, RunError, "2 answers were given for 1 prompts"),
        ({"answer": (5, 5)}, TokenError, "the same token"),
        ({"answer": (5, 6, 7)}, TokenError, "a token, or .target, foil."),
        ({"metric": "logit_diff"}, MetricError, "logit_diff needs foils"),
        ({"metric": "probability"}, MetricError, "a metric is one of"),
        ({"component": "mpl"}, SiteError, "did you mean 'mlp'"),
        ({"component": "embed"}, SiteError, "over layers of a component"),
        ({"positions": [9]}, PositionError, "position 9 is outside"),
    ],
)
def test_what_cannot_be_traced_is_refused_in_words(how: dict[str, Any], error: type[InterpError], said: str) -> None:
    with pytest.raises(error, match=said):
        by_text(**how)


def test_a_subject_as_text_needs_prompts_as_text() -> None:
    with pytest.raises(PositionError, match="prompts are token ids: give the prompts as text, or the subject as pos"):
        trace(IDS, "w5")


def test_every_prompt_needs_a_subject_and_an_answer_of_its_own() -> None:
    with pytest.raises(
        RunError, match="3 subjects were given for 2 prompts: give one for all, or a list with one each"
    ):
        trace([IDS, OTHER], [[1], [2], [3]])
    with pytest.raises(RunError, match="1 answers were given for 2 prompts"):
        trace([IDS, OTHER], SUBJECT, answer=[5])
    with pytest.raises(PositionError, match="have 5 to 7 positions, which do not correspond"):
        trace([IDS, OTHER[:5]], SUBJECT, positions="all")


# --- a real model -----------------------------------------------------------------------------------------------------


def test_the_eiffel_tower_is_recalled_early_at_its_name_and_late_at_the_end(
    demo: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    model, _ = demo
    prompt = "The Eiffel Tower is in"
    found = causal_trace(model, prompt, "Eiffel", answer="Paris", samples=2, positions=[0, 2, -2, -1])
    assert found.labels[1] == ("0 The", "2 iffel*", "4 is", "5 in")
    assert float(found.clean) > 10 * float(found.corrupt)
    effect = found.effect
    assert (effect[2:10, 1] > 0.5).all()
    assert (effect[25:, 3] > 0.5).all()
    assert (effect[:10, 3].abs() < 0.1).all()
    assert (effect[25:, 1].abs() < 0.1).all()
    assert (effect[:, [0, 2]].abs() < 0.2).all()
    swapped = causal_trace(
        model, prompt, "The Eiffel Tower", answer="Paris", corruption="The Colosseum is in", positions=[2, -1]
    )
    assert (swapped.effect[2:10, 0] > 0.5).all()
    assert (swapped.effect[25:, 1] > 0.5).all()
