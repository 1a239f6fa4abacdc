"""Path patching equals three runs with plain torch hooks, which `brute_paths` writes out."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from circuits.brute_paths import PARALLEL, WHERE, Brute, Place, Stop
from handmade import LAYOUT, Handmade
from interp_toolkit.circuits import Effects, activation_patch
from interp_toolkit.circuits.paths import Node, path_patch, path_sweep
from interp_toolkit.errors import PositionError, RunError, SiteError, TokenError, UnknownSiteError
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.shortcuts import NONE
from interp_toolkit.model.sites import Site
from interp_toolkit.model.trial import shortcuts_of
from interp_toolkit.model.verify import verified
from tiny import model_of

CLEAN, CORRUPT = [7, 8, 9, 10, 11, 12, 13], [7, 8, 20, 21, 11, 30, 13]
LENGTH, BEGIN = 7, 2
ANSWERS = (40, 50)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5}
ASK: dict[str, Any] = {"answers": ANSWERS}

# Random models show no behaviour, and say so.
pytestmark = pytest.mark.filterwarnings("ignore:.*(not answered better|does not favour)")


@functools.cache
def brute(name: str) -> Brute:
    # Mixtures of experts multiply in groups, which is there for float32 only.
    return Brute(name, model_of(name, dtype=torch.float32 if "moe" in name else torch.float64))


def measured(logits: Tensor) -> float:
    return float(logits[ANSWERS[0]] - logits[ANSWERS[1]])


def check(found: float, logits: Tensor) -> None:
    expected = measured(logits)
    assert found == pytest.approx(expected, abs=TOLERANCE[logits.dtype], rel=0)


def patched(name: str, path: Sequence[Any], **how: Any) -> float:
    effects = path_patch(brute(name).model, CLEAN, CORRUPT, path=path, **ASK, **how)
    assert effects.values.shape == (1, 1)
    return float(effects.values)


def mlps(name: str) -> list[Place]:
    return [place for place in brute(name).every if place[0] == "mlp"]


SENDERS: dict[str, Stop] = {
    "embed": Stop(("embed", 0, 0)),
    "L0H1": Stop(("z", 0, 1)),
    "L0MLP": Stop(("mlp", 0, 0)),
    "L1H3": Stop(("z", 1, 3)),
}


def receivers(name: str) -> dict[str, list[Stop]]:
    """Steps by name; a group of keys and values with all its heads."""
    groups = brute(name).groups
    last = groups - 1
    readers = tuple(range(4 - 4 // groups, 4))
    return {
        "q.2.2": [Stop(("q", 2, 2), (2,))],
        f"k.2.{last}": [Stop(("k", 2, last), readers)],
        f"v.1.{last}": [Stop(("v", 1, last), readers)],
        "L2H1": [Stop(("z", 2, 1))],
        "L1MLP": [Stop(("mlp", 1, 0))],
        "logits": [],
    }


RECOMPUTED: dict[str, Any] = {
    "nothing": ("nothing", lambda name: []),
    "mlps": ("mlps", mlps),
    "some": (["L1H2", "L1MLP", Site("z", 0, 3)], lambda name: [("z", 1, 2), ("mlp", 1, 0), ("z", 0, 3)]),
}
PAIRS = [
    *((name, "nothing") for name in WHERE),
    *((name, "mlps") for name in ("llama", "gpt_neox", "qwen3_moe")),
    *((name, "some") for name in ("gemma2", "gpt2")),
]


@pytest.mark.parametrize(("name", "between"), PAIRS)
def test_each_path_from_a_sender_to_a_receiver_is_that_of_three_plain_runs(name: str, between: str) -> None:
    spec, recomputed = RECOMPUTED[between]
    steps = receivers(name)
    effects = path_sweep(
        brute(name).model,
        CLEAN,
        CORRUPT,
        senders=list(SENDERS),
        receivers=list(steps),
        over=("sender", "receiver"),
        recompute=spec,
        **ASK,
    )
    assert effects.axes == ("sender", "receiver")
    gone = 0
    for i, (sender, start) in enumerate(SENDERS.items()):
        for j, (receiver, step) in enumerate(steps.items()):
            found = float(effects.values[0, i, j])
            front = (sender == "L1H3" and receiver.startswith("v.1")) or (
                sender == "L1H3" and receiver == "L1MLP" and name in PARALLEL
            )
            assert math.isnan(found) == front, (sender, receiver)
            if not front:
                logits = brute(name).path(
                    CORRUPT,
                    CLEAN,
                    [start],
                    [step] if step else [],
                    recomputed=recomputed(name),
                    to_logits=not step,
                )
                check(found, logits)
                gone += abs(found - float(effects.base)) > 1e-5
    assert gone >= 15


@pytest.mark.parametrize("between", list(RECOMPUTED))
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_path_of_several_hops_is_that_of_plain_runs_hop_by_hop(name: str, between: str) -> None:
    spec, recomputed = RECOMPUTED[between]
    shared = 4 // brute(name).groups
    path = ["L0H1", ["L1H0.q", "L1MLP"], Node("L2H3.v", positions=[3, 5]), "logits"]
    stops = [
        [Stop(("q", 1, 0), (0,)), Stop(("mlp", 1, 0))],
        [Stop(("v", 2, 3 // shared), (3,), (3, 5))],
    ]
    found = patched(name, path, recompute=spec)
    check(
        found, brute(name).path(CORRUPT, CLEAN, [SENDERS["L0H1"]], stops, recomputed=recomputed(name), to_logits=True)
    )


@pytest.mark.parametrize("name", ["llama", "olmo2"])
def test_a_head_may_be_entered_by_several_inputs_and_be_the_end(name: str) -> None:
    path = [["L0H1", "L0H2", "L0MLP"], ["q.1.0", "k.1.0", "L1H3.v"], ["q.2.1", "v.2.1", "L2MLP"]]
    senders = [Stop(("z", 0, 1)), Stop(("z", 0, 2)), Stop(("mlp", 0, 0))]
    stops = [
        [Stop(("q", 1, 0), (0,)), Stop(("k", 1, 0), (0, 1)), Stop(("v", 1, 1), (3,))],
        [Stop(("q", 2, 1), (1,)), Stop(("v", 2, 1), (2, 3)), Stop(("mlp", 2, 0))],
    ]
    for spec, recomputed in (("nothing", []), ("mlps", mlps(name))):
        logits = brute(name).path(CORRUPT, CLEAN, senders, stops, recomputed=recomputed, to_logits=False)
        check(patched(name, path, recompute=spec), logits)


@pytest.mark.parametrize("spec", ["nothing", "mlps"])
def test_receivers_in_several_layers_are_patched_together_and_the_rest_is_recomputed(spec: str) -> None:
    stops = [[Stop(("q", 1, 2), (2,)), Stop(("q", 2, 0), (0,)), Stop(("mlp", 1, 0))]]
    recomputed = mlps("llama") if spec == "mlps" else []
    for name, start in SENDERS.items():
        reached = stops if name != "L1H3" else [[stop for stop in stops[0] if stop.place != ("q", 1, 2)]]
        effects = path_sweep(
            brute("llama").model,
            CLEAN,
            CORRUPT,
            senders=name,
            receivers=["L1H2.q", "L2H0.q", "L1MLP"],
            over="sender",
            recompute=spec,
            **ASK,
        )
        check(
            float(effects.values),
            brute("llama").path(CORRUPT, CLEAN, [start], reached, recomputed=recomputed, to_logits=False),
        )


@pytest.mark.parametrize("spec", ["nothing", "heads"])
@pytest.mark.parametrize("columns", [(2,), (3, 5), (6,)])
def test_senders_and_receivers_may_be_changed_at_some_positions_only(columns: tuple[int, ...], spec: str) -> None:
    recomputed = [place for place in brute("llama").every if place[0] == "z"] if spec == "heads" else []
    for receiver, step in (("L2H2.q", Stop(("q", 2, 2), (2,), (6,))), ("L1MLP", Stop(("mlp", 1, 0), (), (6,)))):
        path = ["L0H1", Node(receiver, positions="last")]
        start = Stop(("z", 0, 1), (), columns)
        logits = brute("llama").path(CORRUPT, CLEAN, [start], [[step]], recomputed=recomputed, to_logits=False)
        check(patched("llama", path, positions=list(columns), recompute=spec), logits)
        own = [Node("L0H1", positions=list(columns)), *path[1:]]
        assert patched("llama", own, recompute=spec) == patched("llama", path, positions=list(columns), recompute=spec)


def test_noise_goes_the_other_way() -> None:
    found = path_patch(
        brute("gpt2").model, CLEAN, CORRUPT, path=["L0H1", "L2H2.q"], direction="noise", recompute="mlps", **ASK
    )
    stops = [[Stop(("q", 2, 2), (2,))]]
    logits = brute("gpt2").path(CLEAN, CORRUPT, [SENDERS["L0H1"]], stops, recomputed=mlps("gpt2"), to_logits=False)
    check(float(found.values), logits)
    assert float(found.base) == float(found.clean)


# --- what must hold whatever the numbers are -----------------------------------------------------------------------


@pytest.mark.parametrize(("name", "sender"), [("llama", "attn_out.1"), ("gemma2", "L1H2"), ("granite", "L0MLP")])
def test_with_everything_recomputed_a_path_to_the_logits_is_a_plain_patch(name: str, sender: str) -> None:
    plain = activation_patch(brute(name).model, CLEAN, CORRUPT, answers=ANSWERS, patch_component=sender)
    found = patched(name, [sender, "logits"], recompute="everything")
    assert found == pytest.approx(plain.patched_logit_diff, abs=1e-5)  # that one measures in float32


@pytest.mark.parametrize("name", ["llama", "gemma2", "olmo2", "granite", "gptj"])
def test_all_components_together_write_the_whole_clean_residual_stream(name: str) -> None:
    effects = path_sweep(brute(name).model, CLEAN, CORRUPT, senders="all", receivers="logits", over="receiver", **ASK)
    assert float(effects.values) == pytest.approx(float(effects.clean), abs=1e-9)


@pytest.mark.parametrize("receiver", ["q.2.1", "v.1.1", "L1H2", "L2MLP"])
def test_all_components_together_make_a_receiver_what_it_is_in_the_clean_run(receiver: str) -> None:
    plain = activation_patch(brute("llama").model, CLEAN, CORRUPT, answers=ANSWERS, patch_component=receiver)
    # MLPs and heads in front of the receiver are senders too; those behind it have no way to it.
    layer = Site.parse(receiver).layer or 0
    every = [f"L{n}{part}" for n in range(layer) for part in ("H0", "H1", "H2", "H3", "MLP")]
    attention = [f"attn_out.{layer}"] if receiver.endswith("MLP") else []
    found = patched("llama", [["embed", *every, *attention], receiver])
    assert found == pytest.approx(plain.patched_logit_diff, abs=1e-5)


def test_without_norms_the_direct_effects_sum_to_the_difference() -> None:
    effects = path_sweep(Handmade("matmul").eval(), CLEAN, CORRUPT, senders="all", layout=Layout(**LAYOUT), **ASK)
    assert effects.values.shape == (1, 1 + 2 * (4 + 1))
    assert effects.labels[0][:3] == ("embed", "L0H0", "L0H1")
    assert float(effects.change.sum()) == pytest.approx(float(effects.gap), abs=1e-4)
    assert int((effects.change.abs() > 1e-3).sum()) > 8


def test_frozen_step_by_step_or_added_to_the_residual_stream_is_the_same() -> None:
    """A recomputed node that no sender reaches leaves everything as it is, but takes the other way."""
    for path in (["L1H0", "L2H2.q"], ["L1H0", "L1MLP"], ["L1H0", "logits"], ["L1H0", "L2H2"]):
        one, other = (patched("llama", path, recompute=spec) for spec in ("nothing", ["L0H0"]))
        assert one == pytest.approx(other, abs=1e-9)


def test_a_step_in_front_of_the_first_difference_changes_nothing() -> None:
    effects = path_patch(brute("llama").model, CLEAN, CORRUPT, path=["L0H1", "L1H1.q"], positions=[0, 1], **ASK)
    assert float(effects.change) == 0.0
    late = [Node("L0H1", positions=4), Node("L1H1.q", positions=3), "logits"]
    assert float(path_patch(brute("llama").model, CLEAN, CORRUPT, path=late, **ASK).change) == 0.0


@pytest.mark.parametrize(("recompute", "memory"), [("nothing", 200_000), ("mlps", None)])
def test_many_prompts_are_each_as_alone(recompute: str, memory: int | None) -> None:
    model = brute("llama").model
    clean = [CLEAN, [5, 6, 7, 8, 9, 10, 11], [60, 61, 62, 63, 64, 65, 66]]
    corrupt = [CORRUPT, [5, 16, 7, 8, 9, 10, 11], [60, 61, 62, 63, 64, 65, 76]]
    how: dict[str, Any] = {"senders": ["L0H1", "embed"], "receivers": ["q.2.2", "L1H3.q"], "then": ["logits"]}
    how |= {"recompute": recompute, "over": ("sender", "receiver"), **ASK}
    together = path_sweep(model, clean, corrupt, memory=memory, **how)
    assert together.values.shape == (3, 2, 2)
    for row, (a, b) in enumerate(zip(clean, corrupt, strict=True)):
        alone = path_sweep(model, a, b, **how)
        torch.testing.assert_close(together.values[row : row + 1], alone.values, atol=1e-9, rtol=0)
        assert float(alone.change.abs().max()) > 1e-6
    assert together.estimate().low.shape == (2, 2)


def test_without_shortcuts_the_numbers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    wiring = verified(brute("llama").model)
    for spec in ("nothing", "mlps"):
        found = patched("llama", ["L0H1", "L1H0.q", "L2H3.q"], recompute=spec)
        with monkeypatch.context() as patch:
            shortcuts_of(wiring)
            patch.setattr(wiring, "shortcuts", NONE)
            assert patched("llama", ["L0H1", "L1H0.q", "L2H3.q"], recompute=spec) == pytest.approx(found, abs=1e-9)


def test_where_the_residual_stream_was_not_proved_a_sum_nodes_are_frozen_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wiring = verified(brute("llama").model)
    path = ["L0H1", "L1MLP", "L2H3.q"]
    found = patched("llama", path)
    monkeypatch.setattr(wiring, "refused", wiring.refused | {Site("head_out", 1): "for a test"})
    assert patched("llama", path) == pytest.approx(found, abs=1e-9)


# --- sweeps --------------------------------------------------------------------------------------------------------


def sweep(**how: Any) -> Effects:
    return path_sweep(brute("llama").model, CLEAN, CORRUPT, **ASK, **how)


def test_a_sweep_of_heads_is_one_path_each() -> None:
    effects = sweep(receivers="L2H2.q", recompute="mlps")
    assert effects.axes == ("layer", "head")
    assert effects.labels == (("0", "1", "2"), ("0", "1", "2", "3"))
    assert effects.values[0, 2].isnan().all()
    for layer, head in ((0, 0), (1, 3)):
        alone = patched("llama", [f"L{layer}H{head}", "q.2.2"], recompute="mlps")
        assert float(effects.values[0, layer, head]) == pytest.approx(alone, abs=1e-9)


@pytest.mark.parametrize(
    ("kind", "axes", "shape", "path"),
    [
        ("q", ("layer", "head"), (3, 4), ["L0H1", "q.1.2"]),
        ("v", ("layer", "kv_head"), (3, 2), ["L0H1", "v.1.1"]),
        ("heads", ("layer", "head"), (3, 4), ["L0H1", "L1H2"]),
        ("mlps", ("layer",), (3,), ["L0H1", "L1MLP"]),
        ("attn", ("layer",), (3,), ["L0H1", "attn_out.1"]),
    ],
)
def test_one_sender_to_every_receiver_of_a_kind(
    kind: str, axes: tuple[str, ...], shape: tuple[int, ...], path: list[str]
) -> None:
    effects = sweep(senders="L0H1", receivers=kind)
    assert effects.axes == axes
    assert effects.values.shape == (1, *shape)
    assert bool(effects.values[0, 0].isnan().all()) == (kind != "mlps")
    index = tuple(Site.parse(path[1]).at_depth(3).__dict__[part] for part in ("layer", "index"))[: len(shape)]
    assert float(effects.values[0][index]) == pytest.approx(patched("llama", path), abs=1e-9)


def test_positions_of_senders_may_be_an_axis() -> None:
    effects = sweep(senders="mlps", receivers="L2H1.v", then=["logits"], over=("sender", "pos"))
    assert effects.axes == ("layer", "pos")
    assert effects.values.shape == (1, 3, LENGTH)
    assert (effects.change[0, :2, :BEGIN] == 0).all()
    for layer, position in ((0, 2), (1, 5)):
        alone = patched("llama", [f"L{layer}MLP", "L2H1.v", "logits"], positions=position)
        assert float(effects.values[0, layer, position]) == pytest.approx(alone, abs=1e-9)
    groups = sweep(senders="mlps", over=("sender", "pos"), positions={"first": [2, 3], "rest": [4, 5, 6]})
    assert groups.labels[1] == ("first", "rest")


def test_every_receiver_there_is_and_two_kinds_at_once() -> None:
    effects = sweep(senders="embed", receivers="all")
    assert effects.axes == ("receiver",)
    names = effects.labels[0]
    assert len(names) == 3 * (4 + 2 + 2 + 1) + 1
    assert (names[0], names[4], names[8], names[-1]) == ("L0H0.q", "L0KV0.k", "L0MLP", "logits")
    assert not effects.values.isnan().any()
    both = sweep(senders="mlps", receivers="mlps", over=("sender", "receiver"))
    assert both.axes == ("layer", "receiver layer")
    assert both.values[0].isnan().tolist() == [[i >= j for j in range(3)] for i in range(3)]


def test_a_result_says_what_was_patched_and_comes_back_from_a_file(tmp_path: Path) -> None:
    effects = path_patch(
        brute("llama").model, CLEAN, CORRUPT, path=["L0H1", ["k.1.0", "L1H2.q"], "logits"], recompute="mlps", **ASK
    )
    assert effects.labels == (("L0H1 → L1KV0.k + L1H2.q → logits",),)
    assert "the clean run into the corrupt run" in effects.title
    assert effects.notes["recomputed"] == "mlps"
    assert "forward passes" in effects.notes["cost"]
    back = Effects.load(effects.save(tmp_path / "path.safetensors"))
    assert torch.equal(back.values, effects.values)
    assert "L0H1 → L1KV0.k + L1H2.q → logits" in back.summary()
    assert "logits" in back.plot()._repr_html_()


# --- what cannot be ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        (["L0H1"], RunError, "from one node to another.*'logits'"),
        ([], RunError, "from one node to another"),
        (["L1H1", "L0H2.q"], RunError, r"L0H2\.q does not lie behind L1H1"),
        (["L1H1", "L1H2.q"], RunError, r"L1H2\.q does not lie behind L1H1"),
        (["L1MLP", "L1MLP"], RunError, "L1MLP does not lie behind L1MLP"),
        ([["L0H1", "L2H1"], "L1H2.q"], RunError, r"L2H1 does not lie in front of L1H2\.q"),
        (["L0H1", "L2H2.q", "L1H1.q", "logits"], RunError, r"L1H1\.q does not lie behind L2H2\.q"),
        (["L0H1.q", "logits"], RunError, r"write 'L0H1' in place of 'L0H1\.q'"),
        (["logits", "L1H1"], RunError, "end of a path, not its begin"),
        (["L0H1", "logits", "L1H1"], RunError, "no step lies behind it"),
        (["L0H1", "embed"], RunError, "in front of everything"),
        (["L0H1", ["L1H1.q", "logits"], "logits"], RunError, "step of its own"),
        (["L0H1", ["L1H1.q", "q.1.1"]], RunError, r"L1H1\.q is named twice"),
        (["L0H1", ["L1H1.q", "L1H1"]], RunError, "name it once"),
        (["L0H1", ["attn_out.1", "L1H1"]], RunError, "name it once"),
        (["L0H1", []], RunError, "at least one node"),
        (["L0H1", "L1H1.v"], RunError, r"other heads of its key/value group.*'v\.1\.0'"),
        (["L0H1", "L1KV0.q"], SiteError, r"no queries.*L1H0\.q"),
        (["L0H1", "resid_pre.2"], SiteError, "no node of a path"),
        (["L0H1", "L1G3"], UnknownSiteError, "'L1G3' is no node of a path: write 'embed'"),
        (["L0H9", "logits"], SiteError, "0 to 3"),
        (["L0H1", "L1H5.v"], SiteError, "0 to 3"),
        (["L0H1", "k.1.2"], SiteError, "0 to 1"),
        (["L7H1", "logits"], SiteError, "0 to 2"),
        ([Node("L0H1", positions=7), "logits"], PositionError, "position 7"),
        (["L0H1", Node("L1H1.q", positions=-8), "logits"], PositionError, "position -8"),
    ],
)
def test_paths_that_cannot_be_gone_are_refused_in_words(path: list[Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        patched("llama", path)


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ({"positions": 9}, PositionError, "position 9"),
        ({"recompute": "everywhere"}, UnknownSiteError, "'everywhere'"),
        ({"recompute": ["L1H1.q"]}, RunError, r"whole heads, MLPs.*L1H1\.q"),
        ({"direction": "up"}, RunError, "'denoise'.*'up'"),
        ({"answers": (40, 40)}, TokenError, "same token"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_options_that_are_none_are_refused(how: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        path_patch(brute("llama").model, CLEAN, CORRUPT, path=["L0H1", "logits"], **(ASK | how))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"over": ("layer", "head")}, "'sender', 'pos' and 'receiver'"),
        ({"over": ()}, "'sender', 'pos' and 'receiver'"),
        ({"senders": ["L2H1", "L2H2"], "receivers": ["q.1.1", "q.0.0"]}, "none of these receivers"),
        ({"senders": "L2H1", "receivers": "q.1.1"}, "does not lie behind"),
        ({"senders": []}, "senders= names at least one"),
        ({"senders": [Node("L0H1", positions=3)], "over": ("sender", "pos")}, "positions="),
        ({"receivers": ["q.1.1", "logits"], "over": ("sender",)}, "step of its own"),
    ],
)
def test_sweeps_that_cannot_be_are_refused(how: dict[str, Any], words: str) -> None:
    with pytest.raises(RunError, match=words):
        sweep(**how)


# --- a real model --------------------------------------------------------------------------------------------------


def test_in_the_demo_model_few_heads_send_to_the_queries_of_a_name_mover(
    demo: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    model, _ = demo
    clean = "When Mary and John went to the store, John gave a drink to"
    corrupt = "When Mary and John went to the store, Mary gave a drink to"
    effects = path_sweep(model, clean, corrupt, receivers=Node("L23H3.q", positions=-1), answers=(" Mary", " John"))
    assert effects.values.shape == (1, 30, 9)
    assert effects.title == "Paths heads → L23H3.q, the clean run into the corrupt run"
    change = effects.change[0]
    assert change[:23].isfinite().all()
    assert change[23:].isnan().all()
    largest = change[:23].abs().flatten().sort(descending=True).values
    assert float(largest[0]) > 0.05
    assert float(largest[:10].sum()) > 5 * float(largest[100:].sum()) / 10
    direct = path_sweep(model, clean, corrupt, positions=-1, answers=(" Mary", " John"))
    assert direct.values.isfinite().all()
    assert float(direct.change[0, 23, 3]) > 0.2
