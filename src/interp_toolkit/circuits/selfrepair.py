"""Self-repair: what the rest of a model makes up for when a component is taken out.

The **direct** effect of an ablation is what it does through the residual stream alone: every other component keeps its
activation, and only what the node writes changes in front of the final norm. The **total** effect lets the later
components react. Where the total is smaller than the direct one, they repair it (McGrath et al. 2023, "The Hydra
Effect"; Rushing and Nanda 2024, "Explorations of Self-Repair in Language Models").

The difference, total − direct, holds everything that later components make of the ablation. For a node that writes the
answer itself it is repair; for an early node, whose direct effect is about zero, it is the work that others do with its
output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp_toolkit.circuits.ablation import prepare_ablation
from interp_toolkit.circuits.dataset import Answers
from interp_toolkit.circuits.effects import Effects
from interp_toolkit.circuits.knockout import Ablation
from interp_toolkit.circuits.knockout_nodes import NodesLike, Place
from interp_toolkit.circuits.metrics import MetricLike
from interp_toolkit.circuits.reference import Reference
from interp_toolkit.circuits.replacing import MethodLike
from interp_toolkit.errors import FileFormatError, RunError, SiteError
from interp_toolkit.model.cells import Base, Cell
from interp_toolkit.model.edits import Edit
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.plan import make_plan
from interp_toolkit.model.run import run
from interp_toolkit.model.sites import COMPONENTS, Site
from interp_toolkit.model.tokens import Inputs, encode

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

    from interp_toolkit.visualization import Heatmap

_EFFECTS = ("total", "direct", "self-repair")
_AT_ONCE = 16  # prompts in a pass that reads what components write


@dataclass(frozen=True, kw_only=True, eq=False)
class SelfRepair:
    """Total and direct effects of ablations, and their difference. Made by `self_repair`.

    Attributes:
        effects: all three, with axes `("node", "effect")`.
    """

    effects: Effects

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the nodes."""
        return self.effects.labels[0]

    @property
    def total(self) -> Float[Tensor, "prompt node"]:
        """What ablation changes in the metric; positive is towards the clean answer."""
        return self.effects.change[..., 0]

    @property
    def direct(self) -> Float[Tensor, "prompt node"]:
        """What it changes through the residual stream alone, everything else frozen."""
        return self.effects.change[..., 1]

    @property
    def repair(self) -> Float[Tensor, "prompt node"]:
        """Total − direct: what later components make of it. Where the direct effect is negative, positive is repair."""
        return self.effects.change[..., 2]

    def summary(self, number: int = 10) -> str:
        """The nodes with the largest direct effects, in words."""
        effects = self.effects
        prompts = len(effects.base)
        estimate = effects.estimate(normalized=False)
        lines = [
            f"{effects.title}: {len(self.nodes)} nodes, {prompts} prompt{'' if prompts == 1 else 's'}.",
            f"Metric {effects.metric}, clean {float(effects.clean.mean()):.3f}. Changes in it, with 95% intervals:",
        ]
        for n in effects.mean[:, 1].abs().argsort(descending=True, stable=True)[:number].tolist():
            total, direct, repair = (float(x) for x in effects.mean[n])
            low, high = float(estimate.low[n, 2]), float(estimate.high[n, 2])
            interval = "" if prompts == 1 else f"  [{low:+.3f}, {high:+.3f}]"
            lines.append(
                f"  {self.nodes[n]}: total {total:+.3f}, direct {direct:+.3f}, self-repair {repair:+.3f}{interval}"
            )
        return "\n".join(lines)

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each prompt and node, with its total, direct and self-repair; needs pandas."""
        table = self.effects.to_dataframe().pivot_table(
            index=["prompt", "node"], columns="effect", values="change", sort=False
        )
        return table[list(_EFFECTS)].rename_axis(columns=None).reset_index()

    def plot(self) -> Heatmap:
        """A heat map: nodes from left to right, the three effects from top to bottom."""
        return self.effects.plot(normalized=False)

    def _repr_html_(self) -> str:
        return self.plot()._repr_html_()

    def save(self, path: str | Path) -> Path:
        """Write it as safetensors."""
        return self.effects.save(path)

    @classmethod
    def load(cls, path: str | Path) -> SelfRepair:
        """Read what `save` wrote.

        Raises:
            FileFormatError: when it is something else.
        """
        effects = Effects.load(path)
        if effects.axes != ("node", "effect") or effects.labels[1] != _EFFECTS:
            raise FileFormatError(f"{path} holds other effects, over {', '.join(effects.axes)}")
        return cls(effects=effects)


def self_repair(
    model: nn.Module,
    prompts: Inputs,
    nodes: NodesLike,
    *,
    method: MethodLike = "mean",
    answers: Answers = None,
    metric: MetricLike | None = None,
    reference: Reference | None = None,
    draws: int = 1,
    seed: int = 0,
    memory: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layout: Layout | None = None,
) -> SelfRepair:
    """Ablate each node, and compare the total effect with the direct one.

    The direct effect is exact: the difference that the node makes in what its sublayer adds at the last position is
    added to the final residual stream, through the true final norm. In models with a norm behind the sublayer (Gemma 2,
    OLMo 2) that difference is taken behind the norm, with and without the node.

    Args:
        model: a causal language model, as it is.
        prompts: texts or token ids.
        nodes: heads, neurons, attention or MLP layers, or sets of them; see `ablate`.
        method: what is put in place; see `ablate`.
        answers: of each prompt; see `ablate`.
        metric: at the last position; by default `"logit_diff"` with answers, and `"kl"` without.
        reference: statistics of a dataset; by default the prompts' own.
        draws: for `"resample"`.
        seed: of the draws.
        memory: bytes that passes may take beside the model.
        tokenizer: needed when the model does not say where it comes from.
        layout: for a model class of your own.

    Raises:
        SiteError: for nodes that are no component that adds to the residual stream, such as the stream itself.
        RunError: for a metric over whole prompts.
        InterpError: as `ablate`.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> found = self_repair(model, [[1, 2, 3], [4, 5, 6]], ["L0H1", "mlp_out.1"], metric="kl")
        >>> found.nodes, bool(found.repair[:, 1].abs().max() < 1e-5)  # behind the last MLP nothing can react
        (('L0H1', 'mlp_out.1'), True)
    """
    if metric is None:
        metric = "kl" if answers is None else "logit_diff"
    study = prepare_ablation(
        model,
        prompts,
        nodes,
        method=method,
        answers=answers,
        metric=metric,
        reference=reference,
        draws=draws,
        seed=seed,
        memory=memory,
        tokenizer=tokenizer,
        layout=layout,
    )
    (outcome,) = study.setting.outcomes
    if outcome.everywhere:
        raise RunError(f"self-repair is measured at the last position, but {outcome.name} is over the whole prompt")
    for cell in study.cells[0]:
        _written(cell or ())
    direct = torch.cat([_direct(study, numbers) for numbers in study.chunks()])
    total = study.run()
    base = total.base[:, None]
    three = torch.stack([total.values, direct, base + total.values - direct], dim=-1)
    return SelfRepair(
        effects=replace(
            total,
            title=f"Self-repair under {study.replacement.name.replace('_', ' ')} ablation",
            axes=("node", "effect"),
            labels=(*total.labels, _EFFECTS),
            values=three,
        )
    )


def _written(places: Sequence[Place]) -> dict[Site, list[Place]]:
    """For each sublayer what of it is ablated, by the site that it writes."""
    found: dict[Site, list[Place]] = {}
    for site, where in places:
        order = COMPONENTS[site.component].order
        if site.layer is None or site.component.startswith("resid"):
            raise SiteError(f"{site} is no component that adds to the residual stream, so it has no direct effect")
        name = "attn_out" if order <= COMPONENTS["attn_out"].order else "mlp_out"
        found.setdefault(Site(name, site.layer), []).append((site, where))
    return found


def _direct(study: Ablation, numbers: Sequence[int]) -> Float[Tensor, "prompt node"]:
    """The metric of runs in which only what each node writes changes at the end."""
    deltas = _deltas(study, numbers)
    layers = study.setting.wiring.layout.num_layers
    end = Site("resid_post", layers - 1)
    cells, places = [], []
    for place, delta in deltas.items():
        at = place // (study.number * study.replacement.draws)
        cells.append(Cell(base=at, edits=(Edit.add(end, delta, positions="last"),)))
        places.append(place)
    graded, _ = study.graded(numbers, (), cells, places)
    return graded.cells[0].view(len(numbers), study.number, study.replacement.draws).mean(-1)


def _deltas(study: Ablation, numbers: Sequence[int]) -> Mapping[int, Float[Tensor, " d_model"]]:
    """For each run, by its place among `[prompt, node, draw]`, what the node adds at the end: ablated − clean.

    Every sublayer gets its clean input, so a set is the sum of its parts, each with everything else frozen.
    """
    by_site: dict[Site, tuple[list[Cell], list[int]]] = {}
    others: list[Base] = []
    setting, wiring = study.setting, study.setting.wiring
    zero = torch.zeros(wiring.layout.d_model, dtype=next(wiring.base.parameters()).dtype)
    found: dict[int, Tensor] = {}
    writes = dict.fromkeys(site for cell in study.cells[numbers[0]] for site in _written(cell or ()))
    for site in writes:
        only = tuple(
            tuple(tuple(_written(cell or ()).get(site, ())) for cell in study.cells[n]) for n in range(len(study.cells))
        )
        others, cells, places = replace(study, cells=only).planned(numbers)
        for cell, place in zip(cells, places, strict=True):
            found.setdefault(place, zero)
            if cell.swaps or cell.edits:
                by_site.setdefault(site, ([], []))[0].append(cell)
                by_site[site][1].append(place)
    bases = [*(Base(tokens=setting.prompts.clean[n]) for n in numbers), *others]
    clean = _clean_writes(study, numbers, list(by_site))
    for site, (cells, places) in by_site.items():
        plan = make_plan(
            wiring.model, bases, cells, logits=[], read=[site], memory=setting.memory, layout=wiring.layout
        )
        for answer in plan.run():
            for row, number in enumerate(answer.cells):
                written = answer.readings[site][row, -1]
                found[places[number]] = found[places[number]] + (written - clean[site][answer.base].to(written)).cpu()
    return found


def _clean_writes(
    study: Ablation, numbers: Sequence[int], sites: Sequence[Site]
) -> dict[Site, Float[Tensor, "prompt d_model"]]:
    """What sublayers add at the last position of the unedited prompts."""
    wiring, prompts = study.setting.wiring, study.setting.prompts
    by_length: dict[int, list[int]] = {}
    for at, number in enumerate(numbers):
        by_length.setdefault(prompts.lengths[number], []).append(at)
    found: dict[Site, list[Tensor]] = {site: [torch.empty(0)] * len(numbers) for site in sites}
    for group in by_length.values():
        for begin in range(0, len(group), _AT_ONCE):
            some = group[begin : begin + _AT_ONCE]
            batch = encode(torch.cat([prompts.clean[numbers[at]].ids for at in some]))
            read = run(wiring.model, batch, read=list(sites), keep="last", layout=wiring.layout)
            for site in sites:
                for row, at in enumerate(some):
                    found[site][at] = read[site][row, -1]
    return {site: torch.stack(rows) for site, rows in found.items()}


__all__ = ["SelfRepair", "self_repair"]
