"""One page that tells the story of one behaviour: what the model says, where that comes from, and how sure it is."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from interp_toolkit.activations import ActivationCache
from interp_toolkit.circuits import Circuit, CircuitFinder, Effects, FaithfulnessCurve, patch_sweep
from interp_toolkit.circuits.contrast import contrasted
from interp_toolkit.circuits.curves import curve
from interp_toolkit.circuits.dataset import Answers, Pairs, prepare_pairs
from interp_toolkit.circuits.graph import graph_of
from interp_toolkit.errors import CircuitError, InterpWarning, SiteError
from interp_toolkit.lenses import LensResult, logit_lens
from interp_toolkit.model.tokens import Inputs, token_string, tokenizer_for
from interp_toolkit.model.verify import verified
from interp_toolkit.provenance import Provenance, provenance_of
from interp_toolkit.report.words import story

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from interp_toolkit.visualization import Document

COMPONENTS = ("resid", "attn", "mlp")
_SHARE = 0.005  # of all edges: the circuit's size
_HEADS = 6  # whose attention is shown
_LISTED = 5  # most probable tokens
_CURVE = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.2, 1.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Said:
    """What the model says behind one prompt.

    Attributes:
        text: the prompt.
        tokens: its tokens.
        top: the most probable next tokens with their probabilities.
        lens: what each depth of the residual stream says at the end.
    """

    text: str
    tokens: tuple[str, ...]
    top: tuple[tuple[str, float], ...]
    lens: LensResult


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """Everything that was measured of one behaviour.

    Attributes:
        model: its name.
        target: the clean answer's token.
        foil: the corrupt one's.
        clean: what the model says behind the first clean prompt.
        corrupt: the same for its corrupt one.
        pairs: how many pairs of prompts there are; the first is the one that is shown.
        sweeps: for each component the effects of patching it, layer by position, in the first pair.
        heads: the effect of patching each head, over all pairs.
        patterns: attention of the heads that matter most, clean and corrupt, by (layer, head).
        circuit: the circuit, or None where none can be found; the notes say why.
        curve: its faithfulness at other sizes.
        notes: what to keep in mind, in sentences.
        seconds: what each part took.
        provenance: model, layout and versions.
    """

    model: str
    target: str
    foil: str
    clean: Said
    corrupt: Said
    pairs: int
    sweeps: dict[str, Effects]
    heads: Effects
    patterns: dict[tuple[int, int], tuple[Any, Any]]
    circuit: Circuit | None
    curve: FaithfulnessCurve | None
    notes: tuple[str, ...]
    seconds: dict[str, float]
    provenance: Provenance = field(repr=False)

    @property
    def head_effects(self) -> dict[tuple[int, int], float]:
        """The effect of each head whose attention is shown."""
        shown = self.heads.effect if self.heads.normalizable else self.heads.mean
        return {at: float(shown[at]) for at in self.patterns}

    def summary(self) -> str:
        """The story in a few sentences, every number measured."""
        return "\n".join(story(self))

    def page(self) -> Document:
        """Everything on one self-contained page."""
        from interp_toolkit.report.page import page_of

        return page_of(self)

    def save(self, path: str | Path) -> Path:
        """Write the page."""
        return self.page().save(path)

    def _repr_html_(self) -> str:
        return self.page()._repr_html_()


def explain(
    model: nn.Module,
    clean: Inputs,
    corrupt: Inputs,
    answers: Answers = None,
    *,
    edges: int | None = None,
    heads: int = _HEADS,
    circuit: bool = True,
    tokenizer: PreTrainedTokenizerBase | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Report:
    """Measure what there is to say about one behaviour, and tell it on one page.

    Args:
        model: a causal language model, as it is.
        clean: the prompt that shows the behaviour, or several; the first is the one that is shown.
        corrupt: matched prompts that do not, each with as many tokens as its clean one.
        answers: as for `CircuitFinder.find_circuit`; by default the tokens that move most between the prompts.
        edges: of the circuit; 0.5% of all by default.
        heads: how many heads' attention is shown.
        circuit: whether to look for a circuit, which takes longer than all the rest.
        tokenizer: when the model does not say where it comes from.
        note: called with a line before each step.

    Returns:
        What was measured; `save("report.html")` writes the page.

    Raises:
        AlignmentError, TokenError: for prompts and answers that do not fit, showing them.
        CircuitError: when clean and corrupt prompts are answered alike.

    Example:
        >>> from interp_toolkit import load_model
        >>> model, tokenizer = load_model("demo")
        >>> report = explain(
        ...     model, "The Eiffel Tower is in", "The Colosseum is in", (" Paris", " Rome"), circuit=False
        ... )
        >>> print(report.summary().splitlines()[0])
        After “The Eiffel Tower is in” the model says “ Paris” (0.2...
    """
    chosen = tokenizer_for(model, tokenizer)
    told: list[str] = []
    clock = _Clock(note)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", InterpWarning)
        clock.begin("reading what the model says")
        pairs = prepare_pairs(model, clean, corrupt, answers, tokenizer=chosen)
        if not any(pairs.targets):
            pairs = contrasted(model, pairs)
            told.append(
                "Answers were not given: they are the tokens that move most between the two prompts of each pair."
            )
        given = [(int(t[0]), int(f[0])) for t, f in zip(pairs.targets, pairs.foils, strict=True)]
        said = [_said(model, side[0], given[0], chosen) for side in (pairs.clean, pairs.corrupt)]
        clock.begin("patching layer by layer and position by position")
        sweeps = {name: _swept(model, pairs, given, chosen, name) for name in COMPONENTS}
        clock.begin("patching head by head")
        by_head = patch_sweep(
            model,
            *_ids(pairs),
            answers=given,
            component="head",
            over=("layer", "head"),
            tokenizer=chosen,
        )
        patterns = _patterns(model, pairs, strongest(by_head, heads), chosen)
        found, measured = None, None
        if circuit:
            clock.begin("finding the circuit, and judging it")
            found, measured, reason = _circuit(model, pairs, given, edges, chosen)
            told += [reason] if reason else []
    told += [_sentence(str(warning.message)) for warning in caught if issubclass(warning.category, InterpWarning)]
    provenance = provenance_of(model, verified(model).layout)
    return Report(
        model=provenance.model or provenance.model_type,
        target=token_string(chosen, given[0][0]),
        foil=token_string(chosen, given[0][1]),
        clean=said[0],
        corrupt=said[1],
        pairs=len(pairs),
        sweeps=sweeps,
        heads=by_head,
        patterns=patterns,
        circuit=found,
        curve=measured,
        notes=tuple(dict.fromkeys(told)),
        seconds=clock.stop(),
        provenance=provenance,
    )


def strongest(effects: Effects, number: int) -> list[tuple[int, int]]:
    """Layer and number of the heads with the largest effects, either way."""
    values = effects.mean.abs().nan_to_num(-1.0)
    order = values.flatten().argsort(descending=True, stable=True)[:number]
    return [(int(n) // values.shape[1], int(n) % values.shape[1]) for n in order]


class _Clock:
    """Says what is done, and how long each part took."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note, self._parts = note, dict[str, float]()
        self._name, self._began = "", 0.0

    def begin(self, name: str) -> None:
        self.stop()
        self._note(name)
        self._name, self._began = name, time.perf_counter()

    def stop(self) -> dict[str, float]:
        if self._name:
            self._parts[self._name] = time.perf_counter() - self._began
        self._name = ""
        return self._parts


def _said(model: nn.Module, tokens: Any, answers: tuple[int, int], tokenizer: PreTrainedTokenizerBase) -> Said:
    lens = logit_lens(model, tokens.row(), answers, positions="last", top=_LISTED, tokenizer=tokenizer)
    top = zip(lens.top_tokens[-1][0], lens.top_probabilities[-1, 0].tolist(), strict=True)
    strings = tuple(tokens.strings())
    text = tokens.texts[0] if tokens.texts else "".join(strings)
    return Said(text=text, tokens=strings, top=tuple(top), lens=lens)


def _ids(pairs: Pairs, first: bool = False) -> tuple[list[list[int]], list[list[int]]]:
    sides = [[tokens.row() for tokens in side] for side in (pairs.clean, pairs.corrupt)]
    return (sides[0][:1], sides[1][:1]) if first else (sides[0], sides[1])


def _swept(
    model: nn.Module, pairs: Pairs, answers: Sequence[tuple[int, int]], tokenizer: PreTrainedTokenizerBase, name: str
) -> Effects:
    clean, corrupt = _ids(pairs, first=True)
    return patch_sweep(model, clean, corrupt, answers=list(answers[:1]), component=name, tokenizer=tokenizer)


def _patterns(
    model: nn.Module, pairs: Pairs, heads: Sequence[tuple[int, int]], tokenizer: PreTrainedTokenizerBase
) -> dict[tuple[int, int], tuple[Any, Any]]:
    """Attention of some heads in the first pair."""
    cache = ActivationCache(model, tokenizer)
    runs = [cache.run(side[0].row()) for side in (pairs.clean, pairs.corrupt)]
    return {
        (layer, head): tuple(run.attention_pattern(layer, head).float().cpu().numpy() for run in runs)  # type: ignore[misc]
        for layer, head in heads
    }


def _circuit(
    model: nn.Module,
    pairs: Pairs,
    answers: Sequence[tuple[int, int]],
    edges: int | None,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[Circuit | None, FaithfulnessCurve | None, str]:
    """The circuit and its faithfulness at other sizes, or why there is none."""
    try:
        graph = graph_of(model)
        finder = CircuitFinder(
            model, edges=edges or max(16, round(_SHARE * graph.num_edges)), random=3, tokenizer=tokenizer
        )
        found = finder.find_circuit(*_ids(pairs), answers=list(answers), progress=False)
    except (CircuitError, SiteError) as error:
        return None, None, _sentence(f"no circuit was found: {error}")
    if finder.found_ is None:
        return found, None, ""
    done = finder.found_
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InterpWarning)  # the circuit's own caveats say the same
        measured = curve(done.runs, done.scores, sizes=_CURVE, pairs=done.evaluation, random=3)
    return found, measured, ""


def _sentence(text: str) -> str:
    """With a capital letter and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


__all__ = ["Report", "Said", "explain", "strongest"]
