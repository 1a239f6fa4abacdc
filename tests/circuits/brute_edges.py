"""Circuit runs written out plainly, node by node and edge by edge: slow, and nothing of the library is used.

Of a model only its weights and its small modules are used (norms, MLPs, rotary embedding, embedding, unembedding),
never the forward pass of its attention or its blocks.

Sources, in order: the embedding, then in each layer the heads and the MLP. Destinations, in order: in each layer the
queries of each head, the keys of each group, the values of each group, the MLP; at last the logits. What each
destination reads is

    in_v = sum over sources u of (w[u, v] * u(this run) + (1 - w[u, v]) * u(ablated)) + constants

with w the mask: 1 where the edge is in the circuit and 0 where it is not; whatever is between is between. Constants are
the biases of the attention's output projections: no head owns them and they are never ablated. The bias of an MLP's
last projection is part of what the MLP gives, positions of GPT-2 part of the embedding.

A norm behind attention (Gemma 2, OLMo 2) acts on the sum of the heads. A head's share of it is what the head gives
times gain / rms, where the rms is that of all heads of the layer as they are in the run: this run's for what this run
computes, the ablated run's for what comes from there. A norm behind an MLP is part of the MLP.

A norm over the queries of all heads together (OLMo 2) is computed for each head from what all the heads' projections
give on **that head's** input: what enters another head does not matter to this one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tiny import tiny_model


@dataclass(frozen=True, kw_only=True)
class Names:
    """Where a family keeps what is used here; None for a norm that it does not have."""

    body: str = "model"
    embedding: str = "embed_tokens"
    blocks: str = "layers"
    before_attention: str | None = "input_layernorm"
    attention: str = "self_attn"
    out: str = "o_proj"
    after_attention: str | None = None
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None
    final: str = "norm"


_PLAIN = Names()
NAMES: dict[str, Names] = {
    **dict.fromkeys(("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "phi3"), _PLAIN),
    "gpt2": Names(
        body="transformer",
        embedding="wte",
        blocks="h",
        before_attention="ln_1",
        attention="attn",
        out="c_proj",
        before_mlp="ln_2",
        final="ln_f",
    ),
    **dict.fromkeys(
        ("gpt_neox", "gpt_neox_sequential"),
        Names(body="gpt_neox", embedding="embed_in", attention="attention", out="dense", final="final_layer_norm"),
    ),
    "gemma2": Names(
        after_attention="post_attention_layernorm",
        before_mlp="pre_feedforward_layernorm",
        after_mlp="post_feedforward_layernorm",
    ),
    "olmo2": Names(
        before_attention=None,
        after_attention="post_attention_layernorm",
        before_mlp=None,
        after_mlp="post_feedforward_layernorm",
    ),
}


@dataclass(frozen=True)
class Shape:
    """The nodes and edges of a model, counted and named."""

    layers: int
    heads: int
    groups: int
    parallel: bool

    @property
    def sources(self) -> list[str]:
        """The name of each row."""
        names = ["embed"]
        for layer in range(self.layers):
            names += [f"L{layer}H{head}" for head in range(self.heads)]
            names.append(f"L{layer}MLP")
        return names

    @property
    def dests(self) -> list[str]:
        """The name of each column."""
        unit = "H" if self.groups == self.heads else "KV"
        names = []
        for layer in range(self.layers):
            names += [f"L{layer}H{head}.q" for head in range(self.heads)]
            names += [f"L{layer}{unit}{group}.k" for group in range(self.groups)]
            names += [f"L{layer}{unit}{group}.v" for group in range(self.groups)]
            names.append(f"L{layer}MLP")
        return [*names, "logits"]

    def source(self, layer: int, head: int | None = None) -> int:
        """The row of a head, or of an MLP."""
        return 1 + layer * (self.heads + 1) + (self.heads if head is None else head)

    def dest(self, layer: int, kind: str, index: int = 0) -> int:
        """The column of an input: `q` of a head, `k` or `v` of a group, or `mlp`."""
        place = {
            "q": index,
            "k": self.heads + index,
            "v": self.heads + self.groups + index,
            "mlp": self.heads + 2 * self.groups,
        }[kind]
        return layer * (self.heads + 2 * self.groups + 1) + place

    @property
    def incoming(self) -> list[int]:
        """How many sources each destination can read."""
        numbers = []
        for layer in range(self.layers):
            before = 1 + layer * (self.heads + 1)
            numbers += [before] * (self.heads + 2 * self.groups)
            numbers.append(before if self.parallel else before + self.heads)
        return [*numbers, len(self.sources)]

    @property
    def edges(self) -> list[tuple[int, int]]:
        """Every edge, as row and column."""
        return [(source, dest) for dest, number in enumerate(self.incoming) for source in range(number)]

    @property
    def valid(self) -> Tensor:
        """Where there are edges: source dest."""
        mask = torch.zeros(len(self.sources), len(self.dests), dtype=torch.bool)
        for source, dest in self.edges:
            mask[source, dest] = True
        return mask

    def name(self, source: int, dest: int) -> str:
        """An edge's name."""
        return f"{self.sources[source]}->{self.dests[dest]}"

    def edge(self, name: str) -> tuple[int, int]:
        """The row and column of an edge's name."""
        source, dest = name.split("->")
        return self.sources.index(source), self.dests.index(dest)

    def mask(self, names: Sequence[str]) -> Tensor:
        """The mask of some edges by name: source dest."""
        mask = torch.zeros_like(self.valid)
        for name in names:
            assert self.valid[self.edge(name)], f"no such edge: {name}"
            mask[self.edge(name)] = True
        return mask


def shape_of(model: Any, family: str) -> Shape:
    """The nodes and edges of a model."""
    heads = model.config.num_attention_heads
    return Shape(
        layers=model.config.num_hidden_layers,
        heads=heads,
        groups=getattr(model.config, "num_key_value_heads", None) or heads,
        parallel=family.startswith("gpt_neox") and model.config.use_parallel_residual,
    )


class _NoSinglePrecision(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.Tensor.float:
            return args[0].double()
        if function in _CASTS:
            args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
            if kwargs.get("dtype") is torch.float32:
                kwargs["dtype"] = torch.float64
        return function(*args, **kwargs)


_CASTS = {torch.Tensor.to, torch.Tensor.softmax, torch.softmax, nn.functional.softmax}


@contextmanager
def all_double() -> Iterator[None]:
    """Whatever a model computes in single precision whatever its weights are, is computed in double precision.

    That is: root-mean-square norms, rotary embedding, the softmax of eager attention and of routers. Without it a
    model in float64 is exact to some 1e-7 only, and finite differences are noise.
    """
    with _NoSinglePrecision():
        yield


class Run:
    """One run of every node in turn.

    Args:
        model: a model of transformers, in eval mode.
        family: a key of `NAMES`.
        ids: the prompts, of one length and without padding: batch pos.
        mask: which edges carry this run's values: source dest, or batch source dest; all of them if None.
        ablated: what the others carry: source batch pos d_model (or 1 for batch or pos).
        embedding: in place of what the prompts' embedding is.
        joint_norm: for a norm over all heads' queries, compute it from each head's own query in this run (then heads
            meet in it), not from one input for all of them.
    """

    def __init__(
        self,
        model: Any,
        family: str,
        ids: Tensor,
        mask: Tensor | None = None,
        ablated: Tensor | None = None,
        *,
        embedding: Tensor | None = None,
        joint_norm: bool = False,
    ) -> None:
        self.model, self.config, self.names = model, model.config, NAMES[family]
        self.family, self.joint_norm, self.shape = family, joint_norm, shape_of(model, family)
        self.body = model.get_submodule(self.names.body)
        self.mask = None if mask is None else (mask if mask.ndim == 3 else mask[None]).to(model.dtype)
        # Where every row has an edge in full, nothing needs to be weighted; but derivatives by weights do need it.
        self.plain = None if self.mask is None or self.mask.requires_grad else (self.mask == 1).all(0)
        self.ablated = ablated
        self.positions = torch.arange(ids.shape[1])[None]
        self.outputs: list[Tensor] = [self.embed(ids) if embedding is None else embedding]
        self.patterns: dict[tuple[int, int], Tensor] = {}
        self.constant = torch.zeros(model.config.hidden_size, dtype=model.dtype)
        for layer in range(self.shape.layers):
            self.block(layer)
        self.logits = self.unembed()

    def embed(self, ids: Tensor) -> Tensor:
        found: Tensor = self.body.get_submodule(self.names.embedding)(ids)
        return found + self.body.wpe(self.positions) if self.family == "gpt2" else found

    def enter(self, dest: int) -> Tensor:
        """What a destination reads: batch pos d_model."""
        total = self.constant.expand_as(self.outputs[0])
        for source in range(self.shape.incoming[dest]):
            own = self.outputs[source]
            if self.mask is None or (self.plain is not None and self.plain[source, dest]):
                total = total + own
            else:
                assert self.ablated is not None
                weight = self.mask[:, source, dest, None, None]
                total = total + weight * own + (1 - weight) * self.ablated[source]
        return total

    def block(self, layer: int) -> None:
        """Adds what the heads and the MLP of a layer give."""
        shape, block = self.shape, self.body.get_submodule(self.names.blocks)[layer]
        attention = block.get_submodule(self.names.attention)
        inputs: dict[tuple[str, int], Tensor] = {}
        for kind, number in (("q", shape.heads), ("k", shape.groups), ("v", shape.groups)):
            for index in range(number):
                inputs[kind, index] = _apply(
                    block, self.names.before_attention, self.enter(shape.dest(layer, kind, index))
                )
        z = [self.head(attention, layer, head, inputs) for head in range(shape.heads)]
        raw = [z[head] @ self.out_slice(attention, head) for head in range(shape.heads)]
        bias = attention.get_submodule(self.names.out).bias
        bias = torch.zeros_like(self.constant) if bias is None else bias
        if self.names.after_attention is not None:
            assert not bias.any()
            factor = _factor(block.get_submodule(self.names.after_attention), sum(raw))
            raw = [one * factor for one in raw]
        if self.shape.parallel:  # the MLP of the layer reads what the attention of the layer read
            mlp = self.mlp(block, layer)
            self.outputs += [*raw, mlp]
            self.constant = self.constant + bias
        else:
            self.outputs += raw
            self.constant = self.constant + bias
            self.outputs.append(self.mlp(block, layer))

    def mlp(self, block: Any, layer: int) -> Tensor:
        entered = self.enter(self.shape.dest(layer, "mlp"))
        return _apply(block, self.names.after_mlp, block.mlp(_apply(block, self.names.before_mlp, entered)))

    def head(self, attention: Any, layer: int, head: int, inputs: dict[tuple[str, int], Tensor]) -> Tensor:
        """What a head mixes of the values: batch pos head_dim."""
        group = head // (self.shape.heads // self.shape.groups)
        q = self.rotated(self.projected(attention, "q", head, inputs))
        k = self.rotated(self.projected(attention, "k", group, inputs))
        v = self.projected(attention, "v", group, inputs)
        scores = q @ k.transpose(1, 2) * self.scaling
        if self.family == "gemma2":
            cap = self.config.attn_logit_softcapping
            scores = torch.tanh(scores / cap) * cap
        scores = scores.masked_fill(~self.allowed(layer), -torch.inf)
        # In eager attention of all but GPT-2 the softmax is computed in single precision (but see `all_double`).
        single = self.config._attn_implementation == "eager" and self.family != "gpt2"
        pattern = torch.softmax(scores, -1, dtype=torch.float32 if single else scores.dtype).to(scores.dtype)
        self.patterns[layer, head] = pattern
        return pattern @ v

    @property
    def scaling(self) -> float:
        scale: float = self.config.query_pre_attn_scalar if self.family == "gemma2" else self.head_dim
        return scale**-0.5

    @property
    def head_dim(self) -> int:
        size: int = getattr(self.config, "head_dim", None) or self.config.hidden_size // self.shape.heads
        return size

    def allowed(self, layer: int) -> Tensor:
        """Which positions see which: pos pos."""
        length = self.positions.shape[1]
        window = getattr(self.config, "sliding_window", None)
        kinds = getattr(self.config, "layer_types", None)
        if kinds is not None and kinds[layer] == "full_attention":
            window = None
        allowed = torch.zeros(length, length, dtype=torch.bool)
        for query in range(length):
            for key in range(query + 1):
                allowed[query, key] = window is None or query - key < window
        return allowed

    def projected(self, attention: Any, kind: str, index: int, inputs: dict[tuple[str, int], Tensor]) -> Tensor:
        """The query of a head, or the key or value of a group: batch pos head_dim."""
        norm = getattr(attention, f"{kind}_norm", None) if kind != "v" else None
        if norm is None:
            return self.cut(attention, kind, index, inputs[kind, index])
        if norm.weight.numel() == self.head_dim:
            normed: Tensor = norm(self.cut(attention, kind, index, inputs[kind, index]))
            return normed
        number = self.shape.heads if kind == "q" else self.shape.groups
        every = [
            self.cut(attention, kind, one, inputs[kind, one if self.joint_norm else index]) for one in range(number)
        ]
        together: Tensor = norm(torch.cat(every, -1))
        return together[..., index * self.head_dim : (index + 1) * self.head_dim]

    def cut(self, attention: Any, kind: str, index: int, x: Tensor) -> Tensor:
        """One head's or group's slice of a projection, applied."""
        size, heads, groups = self.head_dim, self.shape.heads, self.shape.groups
        if self.family == "gpt2":  # all queries, then all keys, then all values
            at = ("qkv".index(kind) * heads + index) * size
            return x @ attention.c_attn.weight[:, at : at + size] + attention.c_attn.bias[at : at + size]
        if self.family.startswith("gpt_neox"):  # query, key and value of each head side by side
            linear, at = attention.query_key_value, (3 * index + "qkv".index(kind)) * size
        elif self.family == "phi3":  # all queries, then all keys, then all values
            linear, at = attention.qkv_proj, ({"q": 0, "k": heads, "v": heads + groups}[kind] + index) * size
        else:
            linear, at = getattr(attention, f"{kind}_proj"), index * size
        bias = 0 if linear.bias is None else linear.bias[at : at + size]
        return x @ linear.weight[at : at + size].T + bias

    def out_slice(self, attention: Any, head: int) -> Tensor:
        """What a head's mix is multiplied by: head_dim d_model."""
        weight = attention.get_submodule(self.names.out).weight
        weight = weight if self.family == "gpt2" else weight.T
        return weight[head * self.head_dim : (head + 1) * self.head_dim]

    def rotated(self, x: Tensor) -> Tensor:
        """Rotary embedding by the model's own cosines and sines, in the halves convention."""
        if self.family == "gpt2":
            return x
        cos, sin = self.body.rotary_emb(x, self.positions)
        width = cos.shape[-1]
        turned, kept = x[..., :width], x[..., width:]
        first, second = turned[..., : width // 2], turned[..., width // 2 :]
        turned = turned * cos + torch.cat([-second, first], -1) * sin
        return torch.cat([turned.to(x.dtype), kept], -1)

    def unembed(self) -> Tensor:
        """The logits behind the last token: batch vocab."""
        entered = self.enter(len(self.shape.dests) - 1)[:, -1]
        logits: Tensor = self.model.get_output_embeddings()(self.body.get_submodule(self.names.final)(entered))
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap


def _apply(block: nn.Module, name: str | None, x: Tensor) -> Tensor:
    return x if name is None else block.get_submodule(name)(x)


def _factor(norm: Any, x: Any) -> Tensor:
    """What a root-mean-square norm multiplies x by: batch pos d_model."""
    eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
    gain = 1 + norm.weight if "Gemma" in type(norm).__name__ else norm.weight
    factor: Tensor = gain * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
    return factor.to(x.dtype)


def outputs_of(model: Any, family: str, ids: Tensor, **settings: Any) -> Tensor:
    """What every source gives in the plain run of prompts: source batch pos d_model."""
    with torch.no_grad():
        return torch.stack(Run(model, family, ids, **settings).outputs)


def patterns_of(model: Any, family: str, ids: Tensor) -> Tensor:
    """The attention patterns of the plain run of prompts: layer head batch query key."""
    with torch.no_grad():
        run = Run(model, family, ids)
    heads = range(run.shape.heads)
    return torch.stack(
        [torch.stack([run.patterns[layer, head] for head in heads]) for layer in range(run.shape.layers)]
    )


def ablations(model: Any, family: str, ids: Tensor, kind: str = "corrupt") -> Tensor:
    """What edges outside of a circuit carry: source batch pos d_model, with 1 for batch and pos where all share it.

    Args:
        model: a model of transformers.
        family: a key of `NAMES`.
        ids: the corrupt prompts, or those that means are taken of: batch pos.
        kind: `corrupt`, `zero`, `positional` (means over the prompts at each position), or `mean` (over prompts and
            positions).
    """
    outputs = outputs_of(model, family, ids)
    if kind == "zero":
        return torch.zeros_like(outputs[:, :1, :1])
    if kind == "positional":
        return outputs.mean(1, keepdim=True)
    if kind == "mean":
        return outputs.mean((1, 2), keepdim=True)
    assert kind == "corrupt", kind
    return outputs


def _ablated(model: Any, family: str, other: Tensor, **settings: Any) -> Tensor:
    return other if other.is_floating_point() else outputs_of(model, family, other, **settings)


@torch.no_grad()
def circuit_logits(model: Any, family: str, clean_ids: Tensor, other: Tensor, mask: Tensor, **settings: Any) -> Tensor:
    """The logits behind the last token of the clean prompts in a circuit run: batch vocab.

    Args:
        model: a model of transformers.
        family: a key of `NAMES`.
        clean_ids: prompts of one length: batch pos.
        other: the corrupt prompts (integers: batch pos), or what is ablated to (`ablations`).
        mask: source dest, or batch source dest.
        **settings: see `Run`.
    """
    return Run(model, family, clean_ids, mask, _ablated(model, family, other, **settings), **settings).logits


def logit_difference(logits: Tensor, answers: Tensor) -> Tensor:
    """The logit of the first token less that of the second: batch.

    Args:
        logits: batch vocab.
        answers: the right and the wrong token of each prompt: batch 2.
    """
    found = logits.gather(-1, answers)
    return found[:, 0] - found[:, 1]


def edge_scores_exact(
    model: Any,
    family: str,
    clean_ids: Tensor,
    other: Tensor,
    answers: Tensor,
    *,
    edges: Sequence[tuple[int, int]] | None = None,
    rows: int = 64,
    **settings: Any,
) -> Tensor:
    """By how much the logit difference falls when only that edge is ablated: prompt source dest, 0 where no edge is.

    Args:
        model: a model of transformers.
        family: a key of `NAMES`.
        clean_ids: prompts of one length: prompt pos.
        other: the corrupt prompts (integers: prompt pos), or what is ablated to (`ablations`).
        answers: prompt 2.
        edges: only these.
        rows: how many prompts go through at a time.
        **settings: see `Run`.
    """

    def change(found: Tensor, base: Tensor) -> Tensor:
        return base - found

    return _of_every_edge(model, family, clean_ids, other, answers, [0.0], change, edges, rows, settings)


def finite_difference(
    model: Any,
    family: str,
    clean_ids: Tensor,
    other: Tensor,
    answers: Tensor,
    *,
    eps: float = 1e-4,
    edges: Sequence[tuple[int, int]] | None = None,
    rows: int = 64,
    **settings: Any,
) -> Tensor:
    """The derivative of the logit difference by eps, where one edge carries clean + eps * (ablated - clean), at 0.

    This is the sum of (ablated - clean) * gradient: with the sign that a score has (positive: the edge helps), it is
    **minus** the score. Central differences of fourth order: prompt source dest. Use it within `all_double`.
    """

    def slope(one: Tensor, other_way: Tensor, two: Tensor, two_other_way: Tensor, _base: Tensor) -> Tensor:
        return (8 * (one - other_way) - (two - two_other_way)) / (12 * eps)

    weights = [1 - eps, 1 + eps, 1 - 2 * eps, 1 + 2 * eps]
    return _of_every_edge(model, family, clean_ids, other, answers, weights, slope, edges, rows, settings)


@torch.no_grad()
def _of_every_edge(
    model: Any,
    family: str,
    clean_ids: Tensor,
    other: Tensor,
    answers: Tensor,
    weights: Sequence[float],
    combine: Any,
    edges: Sequence[tuple[int, int]] | None,
    rows: int,
    settings: dict[str, Any],
) -> Tensor:
    """A run of its own for each edge and weight of it, many side by side as rows of a batch."""
    shape, prompts = shape_of(model, family), len(clean_ids)
    edges = shape.edges if edges is None else edges
    ablated = _ablated(model, family, other, **settings)
    ablated = ablated.expand(-1, prompts, -1, -1)
    scores = torch.zeros(prompts, *shape.valid.shape, dtype=model.dtype)
    base = logit_difference(Run(model, family, clean_ids, **settings).logits, answers)
    at_a_time = max(1, rows // prompts)
    for start in range(0, len(edges), at_a_time):
        some = edges[start : start + at_a_time]
        found = []
        for weight in weights:
            mask = torch.ones(len(some), prompts, *shape.valid.shape, dtype=model.dtype)
            for n, (source, dest) in enumerate(some):
                mask[n, :, source, dest] = weight
            run = Run(
                model,
                family,
                clean_ids.repeat(len(some), 1),
                mask.flatten(0, 1),
                ablated.repeat(1, len(some), 1, 1),
                **settings,
            )
            found.append(logit_difference(run.logits, answers.repeat(len(some), 1)).reshape(len(some), prompts))
        values = combine(*found, base)
        for n, (source, dest) in enumerate(some):
            scores[:, source, dest] = values[n]
    return scores


@torch.enable_grad()
def edge_gradients(
    model: Any,
    family: str,
    clean_ids: Tensor,
    other: Tensor,
    answers: Tensor,
    *,
    at: float = 1.0,
    **settings: Any,
) -> Tensor:
    """The sum of (clean - ablated) * gradient for each edge, by automatic differentiation: prompt source dest.

    Positive where the edge helps. The gradient is that of a run whose embedding is `at` of the way from the ablated to
    the clean one: 1 is edge attribution patching, and the mean over points between 0 and 1 is EAP-IG.
    """
    clean, ablated = outputs_of(model, family, clean_ids, **settings), _ablated(model, family, other, **settings)
    embedding = ablated[0] + at * (clean[0] - ablated[0])
    there = outputs_of(model, family, clean_ids, embedding=embedding, **settings)
    mask = shape_of(model, family).valid.expand(len(clean_ids), -1, -1).to(model.dtype).requires_grad_()
    # An edge's weight is multiplied with what this run gives less what is ablated to, which is made clean - ablated.
    run = Run(model, family, clean_ids, mask, there - (clean - ablated), embedding=embedding, **settings)
    metric = logit_difference(run.logits, answers).sum()
    (gradient,) = torch.autograd.grad(metric, mask)
    return gradient


def double_model(family: str, **settings: Any) -> Any:
    """The tiny model of a family in float64; its experts one after another, as their fused kernel has no float64."""
    model = tiny_model(family, dtype=torch.float64, **settings)
    if hasattr(model.config, "_experts_implementation"):
        model.set_experts_implementation("eager")
    return model
