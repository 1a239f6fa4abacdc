"""Roles of attention heads and MLPs, by measured tests.

The tests, their formulas and thresholds are in `interp_toolkit.circuits.role_tests`. What is below its threshold is
unlabelled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp_toolkit.circuits.circuit_words import UNLABELLED, Role
from interp_toolkit.circuits.dataset import Pairs
from interp_toolkit.circuits.role_prompts import asked_of, sequences_for
from interp_toolkit.circuits.role_scores import MLP_SCORES, Asked, prompt_scores, random_scores
from interp_toolkit.circuits.role_tests import HEAD_SCORES, MLP_TESTS, ROLE_TESTS, THRESHOLDS, RoleTest, checked
from interp_toolkit.errors import CircuitError, FileFormatError
from interp_toolkit.model.direct import Direct
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.sites import Site
from interp_toolkit.model.tokens import encode
from interp_toolkit.model.verify import verified
from interp_toolkit.model.wiring import Wiring
from interp_toolkit.provenance import Provenance, provenance_of
from interp_toolkit.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

    from interp_toolkit.visualization.heatmaps import Heatmap

_FORMAT = "interp_toolkit.roles/1"


@dataclass(frozen=True, kw_only=True, eq=False)
class RoleTable:
    """Scores of every test for heads and MLPs, and the roles that follow. Made by `head_roles`.

    Attributes:
        heads: layer and number of each head.
        mlps: layer of each MLP.
        scores: of the heads, in the order of `HEAD_SCORES`; NaN where a test was not made.
        mlp_scores: of the MLPs, in the order of `MLP_SCORES`.
        thresholds: what each score has to reach.
        skipped: for each role that was not tested, why.
        notes: what was measured on.
        provenance: model, layout and versions.
    """

    heads: tuple[tuple[int, int], ...]
    mlps: tuple[int, ...]
    scores: Float[Tensor, "head score"]
    mlp_scores: Float[Tensor, "mlp mlp_score"]
    thresholds: dict[str, float]
    skipped: dict[str, str]
    notes: dict[str, Any] = field(default_factory=dict)
    provenance: Provenance = field(repr=False)

    def __post_init__(self) -> None:
        """Check that scores and nodes match."""
        wanted = ((len(self.heads), len(HEAD_SCORES)), (len(self.mlps), len(MLP_SCORES)))
        found = (tuple(self.scores.shape), tuple(self.mlp_scores.shape))
        if found != wanted:
            raise CircuitError(f"scores of shapes {found} for {len(self.heads)} heads and {len(self.mlps)} MLPs")

    @property
    def roles(self) -> tuple[Role, ...]:
        """The role of each head, then of each MLP: the strongest relative to its threshold, the others with it."""
        heads = [self._role(*head, self._of(head), ROLE_TESTS) for head in self.heads]
        return (*heads, *(self._role(layer, None, self._of(layer), MLP_TESTS) for layer in self.mlps))

    @property
    def labelled(self) -> tuple[Role, ...]:
        """Those that have a role."""
        return tuple(role for role in self.roles if role.name != UNLABELLED)

    def score(self, node: tuple[int, int] | int, name: str) -> float:
        """One score of a head, or of an MLP by its layer.

        Raises:
            CircuitError: for a node or a score that is not in the table.
        """
        known = self.heads if isinstance(node, tuple) else self.mlps
        if node not in known:
            raise CircuitError(f"{node} is not in this table; it has {known}")
        scores = self._of(node)
        if name not in scores:
            raise CircuitError(f"there is no score {name!r}; there are {', '.join(scores)}")
        return scores[name]

    def _of(self, node: tuple[int, int] | int) -> dict[str, float]:
        if isinstance(node, int):
            return dict(zip(MLP_SCORES, self.mlp_scores[self.mlps.index(node)].tolist(), strict=True))
        return dict(zip(HEAD_SCORES, self.scores[self.heads.index(node)].tolist(), strict=True))

    def _role(self, layer: int, head: int | None, scores: dict[str, float], tests: Sequence[RoleTest]) -> Role:
        reached = {test: test.reached(scores, self.thresholds) for test in tests}
        known = sorted((t for t, r in reached.items() if not math.isnan(r)), key=lambda t: -reached[t])
        held = [test for test in known if reached[test] >= 1]
        if held:
            first, *others = held
            return Role(
                layer=layer,
                head=head,
                name=first.role,
                score=scores[first.score],
                test=first.words(scores, self.thresholds),
                others=tuple((test.role, scores[test.score]) for test in others),
            )
        nearest = f"nearest is {known[0].role}: {known[0].words(scores, self.thresholds)}" if known else "not tested"
        score = scores[known[0].score] if known else 0.0
        return Role(layer=layer, head=head, name=UNLABELLED, score=score, test=nearest)

    # --- words and data ------------------------------------------------------------------------------------------

    def summary(self, number: int = 8) -> str:
        """The roles in words, the strongest nodes of each, and what was not tested."""
        labelled, total = self.labelled, len(self.heads) + len(self.mlps)
        lines = [f"Roles: {len(labelled)} of {total} heads and MLPs have one, {total - len(labelled)} are unlabelled."]
        for test in (*ROLE_TESTS, *MLP_TESTS):
            found = sorted((r for r in labelled if r.name == test.role), key=lambda r: -r.score)
            if found:
                names = ", ".join(f"{role.node} {role.score:.2f}" for role in found[:number])
                more = f", and {len(found) - number} more" if len(found) > number else ""
                lines.append(f"  {test.role}: {names}{more} ({test.score.replace('_', ' ')} on {test.where})")
        by_reason: dict[str, list[str]] = {}
        for role, reason in self.skipped.items():
            by_reason.setdefault(reason, []).append(role)
        lines += [f"Not tested: {', '.join(names)}: {reason}." for reason, names in by_reason.items()]
        return "\n".join([*lines, *(f"Note: {text}." for text in self.notes.get("caveats", ()))])

    def plot(self) -> Heatmap:
        """A heat map of heads and MLPs: how far the strongest test of each reaches its threshold."""
        from interp_toolkit.circuits.pictures import roles_map

        return roles_map(self)

    def reached(self, node: tuple[int, int] | int) -> float:
        """The largest score of a node as a share of its threshold; NaN where nothing was tested."""
        tests = MLP_TESTS if isinstance(node, int) else ROLE_TESTS
        known = [test.reached(self._of(node), self.thresholds) for test in tests]
        return max((x for x in known if not math.isnan(x)), default=math.nan)

    def _repr_html_(self) -> str:
        from interp_toolkit.circuits.pictures import with_words

        return with_words(self.summary(), self.plot())

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each head and MLP: its role, the others, and all scores; needs pandas."""
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError('a data frame needs pandas: pip install "interpretability-toolkit[probes]"') from error
        nodes: list[tuple[int, int] | int] = [*self.heads, *self.mlps]
        rows = []
        for node, role in zip(nodes, self.roles, strict=True):
            about = {"node": role.node, "layer": role.layer, "head": role.head, "role": role.name}
            rows.append({**about, "others": ", ".join(name for name, _ in role.others), **self._of(node)})
        columns = ["node", "layer", "head", "role", "others", *HEAD_SCORES, *MLP_SCORES]
        return pd.DataFrame(rows, columns=columns)

    def save(self, path: str | Path) -> Path:
        """Write it as JSON."""
        facts = {
            "format": _FORMAT,
            "heads": self.heads,
            "mlps": self.mlps,
            "head_scores": HEAD_SCORES,
            "scores": _plain(self.scores),
            "mlp_scores": _plain(self.mlp_scores),
            "thresholds": self.thresholds,
            "skipped": self.skipped,
            "notes": self.notes,
            "provenance": asdict(self.provenance),
        }
        target = Path(path)
        target.write_text(json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
        return target

    @classmethod
    def load(cls, path: str | Path) -> RoleTable:
        """Read what `save` wrote.

        Raises:
            FileFormatError: when it is something else.
        """
        try:
            facts = json.loads(Path(path).read_text(encoding="utf-8"))
            if facts.pop("format") != _FORMAT or tuple(facts.pop("head_scores")) != HEAD_SCORES:
                raise FileFormatError(f"{path} is not a saved table of roles")
            facts["heads"] = tuple((int(layer), int(head)) for layer, head in facts["heads"])
            facts["mlps"] = tuple(map(int, facts["mlps"]))
            facts["scores"] = _tensor(facts["scores"], len(HEAD_SCORES))
            facts["mlp_scores"] = _tensor(facts["mlp_scores"], len(MLP_SCORES))
            facts["thresholds"] = checked({name: float(value) for name, value in facts["thresholds"].items()})
            facts["provenance"] = Provenance(**facts["provenance"])
            return cls(**facts)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise FileFormatError(f"{path} cannot be read as a saved table of roles: {error}") from error


def head_roles(
    model: nn.Module,
    heads: Sequence[tuple[int, int]] | None = None,
    *,
    mlps: Sequence[int] | None = None,
    pairs: Pairs | Task | None = None,
    subject: str | Sequence[int] | None = None,
    thresholds: Mapping[str, float] | None = None,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layout: Layout | None = None,
) -> RoleTable:
    """Test which roles heads and MLPs have. The tests and their formulas are in `interp_toolkit.circuits.role_tests`.

    Args:
        model: a causal language model, as it is.
        heads: `(layer, head)` of those to test; all by default.
        mlps: layers whose MLP is tested; all by default.
        pairs: clean prompts with answers, for the roles that depend on a behaviour. Without it these are not tested.
        subject: where the subject is: a label of a task's positions, or for each pair the position of its last token.
            By default a task's label `"subject"`; where there is none, the last position at which clean and corrupt
            prompt differ. Prompts whose subject is the answer itself, or their last token, do not count there.
        thresholds: other thresholds than those of `THRESHOLDS`, by the names of scores.
        seed: of the random tokens.
        tokenizer: says which tokens are special and whether prompts begin with a start token.
        layout: for a model class of your own.

    Raises:
        CircuitError: for heads, layers or thresholds that do not exist, a vocabulary too small for random tokens, or a
            final norm that cannot be frozen.
        PositionError: for a subject that is not in the prompts.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=40)).eval()
        >>> table = head_roles(model, [(0, 1), (1, 0)])
        >>> table.heads, table.mlps, table.roles[0].name, sorted(table.skipped)[0]
        (((0, 1), (1, 0)), (0, 1), 'unlabelled', 'name mover')
    """
    wiring = verified(model, layout)
    least = checked({**THRESHOLDS, **{name: float(value) for name, value in (thresholds or {}).items()}})
    chosen, layers = _nodes(wiring, heads, mlps)
    prompts, skipped = asked_of(pairs, subject)
    drawn = sequences_for(wiring, tokenizer or (pairs.tokenizer if isinstance(pairs, Pairs) else None), prompts, seed)
    direct = Direct(wiring, encode(next(iter(drawn.ids.values()))[:1]))
    usable, caveats = _usable(wiring, sorted({layer for layer, _ in chosen}))
    found = random_scores(wiring, usable, drawn, direct) if usable else {}
    on_mlps = {name: torch.full((len(layers),), torch.nan) for name in MLP_SCORES}
    if prompts:
        by_prompts, on_mlps = prompt_scores(wiring, usable, layers, prompts, direct)
        found |= by_prompts
    if direct.capped:
        caveats.append("the model changes its logits behind the unembedding (a soft cap); direct effects leave it out")
    if len(prompts) == 1:
        caveats.append("with a single prompt nothing is known of chance")
    return RoleTable(
        heads=chosen,
        mlps=layers,
        scores=_table(found, chosen, usable),
        mlp_scores=torch.stack([on_mlps[name] for name in MLP_SCORES], dim=-1),
        thresholds=least,
        skipped=skipped,
        notes=_notes(drawn.ids, prompts, seed, caveats),
        provenance=provenance_of(model, wiring.layout),
    )


def _nodes(
    wiring: Wiring, heads: Sequence[tuple[int, int]] | None, mlps: Sequence[int] | None
) -> tuple[tuple[tuple[int, int], ...], tuple[int, ...]]:
    layers, number = wiring.layout.num_layers, wiring.layout.num_heads
    every = [(layer, head) for layer in range(layers) for head in range(number)]
    chosen = tuple(dict.fromkeys((int(a), int(b)) for a, b in (every if heads is None else heads)))
    inside = tuple(dict.fromkeys(int(layer) for layer in (range(layers) if mlps is None else mlps)))
    wrong = [f"L{a}H{b}" for a, b in chosen if not (0 <= a < layers and 0 <= b < number)]
    wrong += [f"L{layer}MLP" for layer in inside if not 0 <= layer < layers]
    if wrong:
        raise CircuitError(
            f"{', '.join(wrong)} is not in this model: it has layers 0 to {layers - 1} with heads 0 to {number - 1}"
        )
    return chosen, inside


def _usable(wiring: Wiring, layers: Sequence[int]) -> tuple[list[int], list[str]]:
    """The layers whose attention can be read, and why others cannot."""
    refused = {}
    for layer in layers:
        reasons = (wiring.refused.get(Site(name, layer)) for name in ("pattern", "v", "z"))
        reason = next((reason for reason in reasons if reason is not None), None)
        if reason is not None:
            refused[layer] = reason
    notes = [f"heads of layer {layer} were not tested: {reason}" for layer, reason in refused.items()]
    return [layer for layer in layers if layer not in refused], notes


def _table(
    found: Mapping[str, Tensor], heads: Sequence[tuple[int, int]], usable: Sequence[int]
) -> Float[Tensor, "head score"]:
    table = torch.full((len(heads), len(HEAD_SCORES)), torch.nan)
    for column, name in enumerate(HEAD_SCORES):
        for row, (layer, head) in enumerate(heads):
            if name in found and layer in usable:
                table[row, column] = found[name][usable.index(layer), head]
    return table


def _notes(ids: Mapping[int, Tensor], prompts: Sequence[Asked], seed: int, caveats: list[str]) -> dict[str, Any]:
    return {
        "random": {"periods": list(ids), "sequences": sum(map(len, ids.values())), "seed": seed},
        "prompts": len(prompts),
        "prompts with the answer in them": sum(bool(prompt.answer_places) for prompt in prompts),
        "prompts with a subject": sum(prompt.subject is not None for prompt in prompts),
        "caveats": caveats,
    }


def _plain(scores: Tensor) -> list[list[float | None]]:
    return [[None if math.isnan(value) else value for value in row] for row in scores.tolist()]


def _tensor(rows: list[list[float | None]], width: int) -> Tensor:
    values = [[math.nan if value is None else float(value) for value in row] for row in rows]
    return torch.tensor(values, dtype=torch.float32).view(len(rows), width)


__all__ = ["RoleTable", "head_roles"]
