"""Path patching: what one component does to the answer through another one, and through nothing else.

Three runs (Wang et al. 2022, "Interpretability in the Wild"; Goldowsky-Dill et al. 2023, "Localizing Model Behavior
with Path Patching"):

1. the source run and the base run are recorded;
2. the base run with the senders' activations of the source run, every other head and MLP frozen at the base run's
   values except those to be recomputed: what the receivers' inputs become is read;
3. the base run with the receivers' inputs set to that, everything else recomputed: the metric is measured.

A path may have more steps: each node in between is entered by what the hop before made of its input, and what it then
writes is sent on, with everything else frozen again. A path that ends at the logits has no third run: the last node's
effect is the direct one.

Sign convention, here and everywhere: a positive effect is **towards the clean answer**.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from interp_toolkit.circuits.dataset import Answers, Pairs, prepare_pairs
from interp_toolkit.circuits.effects import Effects
from interp_toolkit.circuits.grid import Grid, Where, make_grid
from interp_toolkit.circuits.metrics import MetricLike, metric_of
from interp_toolkit.circuits.nodes import (
    FAMILIES,
    Node,
    Port,
    Recompute,
    Step,
    Steps,
    family_of,
    joined,
    ports_of,
    recomputed_of,
)
from interp_toolkit.circuits.results import Direction
from interp_toolkit.circuits.routes import Routes, Stop, check_order, check_receivers, check_senders, passable
from interp_toolkit.errors import RunError
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.positions import PositionsLike
from interp_toolkit.model.sites import Site
from interp_toolkit.model.tokens import Inputs
from interp_toolkit.model.verify import verified
from interp_toolkit.model.wiring import Wiring

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def path_patch(
    model: nn.Module,
    clean: Inputs,
    corrupt: Inputs,
    *,
    path: Sequence[Steps],
    answers: Answers = None,
    metric: MetricLike = "logit_diff",
    direction: Direction = "denoise",
    positions: PositionsLike = None,
    recompute: Recompute = "nothing",
    memory: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layout: Layout | None = None,
) -> Effects:
    """Patch one path: what a component does to the answer through the given nodes, and through nothing else.

    The first step is what its components write in the source run. Each further step is entered by its inputs as they
    become when all other heads and MLPs are frozen at the base run's values, except those of `recompute`. The end is
    `"logits"`: the direct effect of the step before, through the final norm alone; or a node, whose effect then goes on
    through everything behind it, recomputed.

    Args:
        model: a causal language model, as it is.
        clean: the prompt that shows the behaviour, or a list of prompts.
        corrupt: the matched prompts, each with as many tokens as its clean one.
        path: at least two steps, each a node or a list of nodes taken together. The first are `"L5H1"`, `"L5MLP"`,
            `"attn_out.5"` or `"embed"`. Others are entered by an input: `"L7H3.q"` (or `"q.7.3"`), `"k.8.0"` (a
            key/value group and all its heads; `"L8H1.k"` is one head, which in a grouped model cannot be the end);
            a whole head `"L7H3"` by all three; `"L9MLP"` by its residual stream. `Node("L7H3.q", positions=-1)` is
            entered at some positions only.
        answers: the target that continues the clean prompt, `(target, foil)`, or `(targets, foils)`; for a list of
            prompts a list of these, or one tuple for all. Without a foil the corrupt prompt's own best token stands in.
        metric: see `metric_of`.
        direction: `"denoise"`: the corrupt run is the base, the clean one the source; `"noise"` the other way round.
        positions: at which positions the first step is the source run's; all by default.
        recompute: what is not frozen between two steps: `"nothing"` (the direct paths alone), `"mlps"` (as in the
            IOI paper), `"heads"`, `"everything"`, or some nodes.
        memory: bytes that passes may take beside the model; half of what is free by default.
        tokenizer: needed when the model does not say where it comes from.
        layout: for a model class of your own.

    Returns:
        The metric with the path patched for each prompt.

    Raises:
        RunError: for paths that cannot be gone: too short, or a node that is not behind the one before.
        SiteError: for nodes that this model does not have.
        PositionError: for positions outside of a prompt.
        AlignmentError, TokenError, MetricError: see `patch_sweep`.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=3, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> effects = path_patch(model, [1, 2, 3, 4], [1, 5, 3, 4], metric="kl",
        ...                      path=["L0H1", "L1H0.v", Node("L2MLP", positions=-1), "logits"])
        >>> effects.labels
        (('L0H1 → L1H0.v → L2MLP → logits',),)
        >>> effects.values.shape
        torch.Size([1, 1])
    """
    wiring = verified(model, layout)
    stops = [ports_of(steps, wiring) for steps in path]
    if len(stops) < 2:
        raise RunError(
            f"a path goes from one node to another, but {len(stops)} was given: end it with 'logits' for the direct "
            "effect of a node; its total effect is patch_sweep's or activation_patch's"
        )
    name = " → ".join(map(_names, stops))
    routes = _routes(
        model,
        wiring,
        [_Side(axes=("path",), labels=((name,),), stops=(stops[0],)), _Side(stops=(stops[1],))],
        stops[2:],
        pairs=prepare_pairs(model, clean, corrupt, answers, tokenizer=tokenizer, layout=layout),
        positions=positions,
        over=("sender",),
        how={"metric": metric, "direction": direction, "recompute": recompute, "memory": memory},
    )
    check_order(stops, wiring)
    return routes.run()


def path_sweep(
    model: nn.Module,
    clean: Inputs,
    corrupt: Inputs,
    *,
    senders: Steps = "heads",
    receivers: Steps = "logits",
    then: Sequence[Steps] = (),
    over: Sequence[str] | None = None,
    answers: Answers = None,
    metric: MetricLike = "logit_diff",
    direction: Direction = "denoise",
    positions: Where = None,
    recompute: Recompute = "nothing",
    memory: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layout: Layout | None = None,
) -> Effects:
    """Patch the paths from many senders to some receivers, or from one sender to many receivers.

    Each cell is a path of its own, as `path_patch` patches it; they are packed into few and short passes.

    Args:
        model: a causal language model, as it is.
        clean: the prompt that shows the behaviour, or a list of prompts.
        corrupt: the matched prompts, each with as many tokens as its clean one.
        senders: `"heads"`, `"mlps"`, `"attn"` (whole attention layers), `"all"` (embedding, heads and MLPs), or nodes
            as in `path_patch`; a list in the list is taken together.
        receivers: `"heads"` (each by all its inputs), `"q"`, `"k"`, `"v"`, `"mlps"`, `"attn"`, `"all"` (every input of
            heads, MLPs and the logits), or nodes.
        then: further steps behind the receivers, the same for all paths.
        over: which of `"sender"`, `"pos"` (of the senders) and `"receiver"` are patched each on its own, the others
            being taken together. By default each sender on its own; with one sender each receiver.
        answers: see `path_patch`.
        metric: see `metric_of`.
        direction: see `path_patch`.
        positions: at which positions senders are the source run's: all by default, or named groups.
        recompute: what is not frozen between two steps; see `path_patch`.
        memory: bytes that passes may take beside the model; half of what is free by default.
        tokenizer: needed when the model does not say where it comes from.
        layout: for a model class of your own.

    Returns:
        The metric of every path for each prompt, with labels and error bars. Axes are `layer` and `head` for a kind of
        nodes, `sender` or `receiver` for lists. NaN where no receiver lies behind the sender.

    Raises:
        RunError: for paths that cannot be gone, and axes that are none.
        SiteError: for nodes that this model does not have.
        PositionError: for positions outside of a prompt, or that differ in number between prompts.
        AlignmentError, TokenError, MetricError: see `patch_sweep`.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=3, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> effects = path_sweep(model, [1, 2, 3, 4], [1, 5, 3, 4], metric="kl", receivers=["L2H0.q", "L2H1.q"])
        >>> effects.axes, effects.values.shape
        (('layer', 'head'), torch.Size([1, 3, 2]))
        >>> effects.values.isnan()[0, :, 0]
        tensor([False, False,  True])
    """
    wiring = verified(model, layout)
    sides = [_side(steps, name, wiring) for steps, name in ((senders, "sender"), (receivers, "receiver"))]
    return _routes(
        model,
        wiring,
        sides,
        [ports_of(steps, wiring) for steps in then],
        pairs=prepare_pairs(model, clean, corrupt, answers, tokenizer=tokenizer, layout=layout),
        positions=positions,
        over=_over(over, *sides),
        how={"metric": metric, "direction": direction, "recompute": recompute, "memory": memory},
    ).run()


@dataclass(frozen=True, kw_only=True)
class _Side:
    """Senders or receivers: their nodes, and names for them along some axes."""

    axes: tuple[str, ...] = ()
    labels: tuple[tuple[str, ...], ...] = ()
    stops: tuple[Stop, ...]
    kind: str = ""

    @property
    def together(self) -> _Side:
        """All of them as one step."""
        return _Side(stops=(joined([port for stop in self.stops for port in stop]),))

    @property
    def name(self) -> str:
        """What they are, in short."""
        ports = [port for stop in self.stops for port in stop]
        return self.kind or (f"{len(ports)} nodes" if len(ports) > 4 else _names(ports))


def _side(steps: Steps, axis: str, wiring: Wiring) -> _Side:
    if isinstance(steps, str) and steps in FAMILIES:
        axes, labels, ports = family_of(steps, wiring)
        return _Side(axes=axes, labels=labels, stops=tuple((port,) for port in ports), kind=steps)
    if steps == "all":
        items: Sequence[Any] = _everything(axis, wiring)
    else:
        items = [steps] if isinstance(steps, str | Site | Node) else list(steps)
    if not items:
        raise RunError(f"{axis}s= names at least one node")
    stops = tuple(ports_of(item, wiring) for item in items)
    names = tuple(map(_names, stops))
    return _Side(axes=(axis,), labels=(names,), stops=stops)


def _everything(axis: str, wiring: Wiring) -> list[Step]:
    """Every sender or receiver, in the order of a forward pass."""
    kinds = ("heads", "mlps") if axis == "sender" else ("q", "k", "v", "mlps")
    every = [port.site for kind in kinds for port in family_of(kind, wiring)[2]]
    every.sort(key=lambda site: (site.depth(wiring.layout.num_layers), site.index or 0))
    return [Site("embed"), *every] if axis == "sender" else [*every, Site("logits")]


def _over(over: Sequence[str] | None, senders: _Side, receivers: _Side) -> tuple[str, ...]:
    if over is None:
        return ("sender",) if len(senders.stops) > 1 or len(receivers.stops) == 1 else ("receiver",)
    given = (over,) if isinstance(over, str) else tuple(over)
    if not given or len(set(given)) < len(given) or set(given) - {"sender", "pos", "receiver"}:
        raise RunError(
            f"paths are swept over some of 'sender', 'pos' and 'receiver', each once; over={given!r} was given"
        )
    return given


def _routes(
    model: nn.Module,
    wiring: Wiring,
    sides: Sequence[_Side],
    then: Sequence[Stop],
    *,
    pairs: Pairs,
    positions: Where,
    over: Sequence[str],
    how: dict[str, Any],
) -> Routes:
    """The paths, checked against the prompts and each other."""
    direction, named = how["direction"], " → ".join([*(side.name for side in sides), *map(_names, then)])
    if direction not in ("denoise", "noise"):
        raise RunError(
            f"direction is 'denoise' (clean into corrupt) or 'noise' (corrupt into clean), not {direction!r}"
        )
    apart = [side if axis in over else side.together for side, axis in zip(sides, ("sender", "receiver"), strict=True)]
    senders, receivers = (side.stops for side in apart)
    _check(senders, receivers, then, wiring)
    ports = [port for stop in (*senders, *receivers, *then) for port in stop]
    if "pos" in over and any(port.positions is not None for stop in senders for port in stop):
        raise RunError("over='pos' takes the positions of senders from positions=, not from Node(..., positions=)")
    grid = _grid(wiring, pairs, positions, apart="pos" in over)
    axes, labels = _axes(apart, grid.groups if "pos" in over else None)
    source, base = ("clean", "corrupt") if direction == "denoise" else ("corrupt", "clean")
    return Routes(
        model=model,
        wiring=wiring,
        pairs=pairs,
        metric=metric_of(how["metric"]),
        direction=direction,
        recomputed=recomputed_of(how["recompute"], wiring),
        senders=senders,
        groups=grid.places if "pos" in over else tuple((tuple(sorted({*sum(x, ())})),) for x in grid.places),
        where={port.positions: _columns(wiring, pairs, port.positions) for port in ports if port.positions is not None},
        receivers=receivers,
        then=tuple(then),
        axes=axes,
        labels=labels,
        title=f"Paths {named}, the {source} run into the {base} run",
        notes={"path": named, "recomputed": _recomputed(how["recompute"])},
        memory=how["memory"],
    )


def _check(senders: Sequence[Stop], receivers: Sequence[Stop], then: Sequence[Stop], wiring: Wiring) -> None:
    for stop in senders:
        check_senders(stop)
    for stop in receivers:
        check_receivers(stop, wiring, last=not then)
    for n, stop in enumerate(then):
        check_receivers(stop, wiring, last=n == len(then) - 1)
    check_order(then, wiring)
    if not any(passable([first, second, *then], wiring) for first in senders for second in receivers):
        steps = [senders[0], receivers[0], *then] if len(senders) == len(receivers) == 1 else None
        if steps is not None:
            check_order(steps, wiring)
        raise RunError("none of these receivers lies behind one of the senders, so that there is no path to patch")


def _grid(wiring: Wiring, pairs: Pairs, where: Where, *, apart: bool) -> Grid:
    return make_grid(wiring, pairs, "resid_pre", ("pos",) if apart else ("layer",), layers=(0,), where=where)


def _columns(wiring: Wiring, pairs: Pairs, where: PositionsLike) -> tuple[tuple[int, ...], ...]:
    """Positions in each pair, in order."""
    return tuple(tuple(sorted(places[0])) for places in _grid(wiring, pairs, where, apart=False).places)


def _axes(
    sides: Sequence[_Side], groups: tuple[str, ...] | None
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Names of the axes and labels: senders, their positions, receivers."""
    senders, receivers = sides
    theirs = tuple(f"receiver {axis}" if axis in senders.axes else axis for axis in receivers.axes)
    middle = () if groups is None else (("pos", groups),)
    return (
        (*senders.axes, *(name for name, _ in middle), *theirs),
        (*senders.labels, *(names for _, names in middle), *receivers.labels),
    )


def _names(stop: Sequence[Port]) -> str:
    return " + ".join(port.name for port in stop)


def _recomputed(spec: Recompute) -> str:
    items = spec if isinstance(spec, Sequence) and not isinstance(spec, str) else [spec]
    return ", ".join(str(item.name if isinstance(item, Node) else item) for item in items) or "nothing"


__all__ = ["Node", "path_patch", "path_sweep"]
