"""Path patching written out plainly: full forward passes with torch hooks, one run after another.

Nothing of the library is used. Queries and keys are cut out of what the projections give, before rotary embedding: to
set them there is to set them where attention uses them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Place = tuple[str, int, int]
"""A kind (`z`, `q`, `k`, `v`, `mlp`, `embed`), a layer and a head or group."""


@dataclass(frozen=True)
class Stop:
    """A step: where it is read, which heads read it, and at which positions it is changed (None for all)."""

    place: Place
    heads: tuple[int, ...] = ()
    columns: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Value:
    """What a place is set to."""

    place: Place
    value: Tensor
    columns: tuple[int, ...] | None = None


_LLAMA = {"blocks": "model.layers", "z": "self_attn.o_proj", "mlp": "mlp"} | {x: f"self_attn.{x}_proj" for x in "qkv"}
_FUSED = dict.fromkeys("qkv", "attn.c_attn")
WHERE: dict[str, dict[str, str]] = {
    **dict.fromkeys(("llama", "granite", "gemma2", "mistral"), _LLAMA),
    "olmo2": _LLAMA | {"q": "self_attn.q_norm", "k": "self_attn.k_norm"},
    "qwen3_moe": _LLAMA | {"q": "self_attn.q_norm", "k": "self_attn.k_norm"},
    "phi3": _LLAMA | dict.fromkeys("qkv", "self_attn.qkv_proj"),
    "gpt2": {"blocks": "transformer.h", "z": "attn.c_proj", "mlp": "mlp", **_FUSED},
    "gptj": {"blocks": "transformer.h", "z": "attn.out_proj", "mlp": "mlp"} | {x: f"attn.{x}_proj" for x in "qkv"},
    "gpt_neox": {"blocks": "gpt_neox.layers", "z": "attention.dense", "mlp": "mlp"}
    | dict.fromkeys("qkv", "attention.query_key_value"),
}
PARALLEL = ("gptj", "gpt_neox")


@dataclass(frozen=True)
class Brute:
    """Plain runs of one model."""

    name: str
    model: Any

    @property
    def layers(self) -> int:
        return int(self.model.config.num_hidden_layers)

    @property
    def heads(self) -> int:
        return int(self.model.config.num_attention_heads)

    @property
    def groups(self) -> int:
        return int(getattr(self.model.config, "num_key_value_heads", None) or self.heads)

    @property
    def every(self) -> list[Place]:
        """All heads and MLPs."""
        heads = [("z", layer, head) for layer in range(self.layers) for head in range(self.heads)]
        return [*heads, *(("mlp", layer, 0) for layer in range(self.layers))]

    def module(self, place: Place) -> tuple[Any, bool]:
        """Which module's tensor holds a place, and whether it is the input."""
        kind, layer, _ = place
        blocks = self.model.get_submodule(WHERE[self.name]["blocks"])
        if kind == "embed":
            return blocks[0], True
        return blocks[layer].get_submodule(WHERE[self.name][kind]), kind == "z"

    def cut(self, x: Tensor, place: Place) -> Tensor:
        """The place in its module's tensor, as a view."""
        kind, _, index = place
        if kind in ("mlp", "embed"):
            return x
        if x.ndim == 4:  # a norm of each head
            return x[:, :, index]
        size = self.model.config.hidden_size // self.heads
        size = getattr(self.model.config, "head_dim", None) or size
        if kind == "z" or x.shape[-1] == (self.heads if kind == "q" else self.groups) * size:
            return x[..., index * size : (index + 1) * size]
        if self.name == "gpt_neox":  # query, key and value of each head side by side
            at = (3 * index + "qkv".index(kind)) * size
        else:  # all queries, then all keys, then all values
            at = {"q": 0, "k": self.heads, "v": self.heads + self.groups}[kind] * size + index * size
        return x[..., at : at + size]

    @torch.no_grad()
    def run(self, ids: Sequence[int], values: Sequence[Value] = (), reads: Sequence[Place] = ()) -> Any:
        """The logits of one full pass with some places set, and what is at others."""
        found: dict[Place, Tensor] = {}
        by_module: dict[tuple[Any, bool], list[Value | Place]] = {}
        for item in [*values, *reads]:
            by_module.setdefault(self.module(item.place if isinstance(item, Value) else item), []).append(item)
        handles = []
        for (module, is_input), items in by_module.items():
            hook = functools.partial(self._changed, items, found)
            if is_input:
                handles.append(
                    module.register_forward_pre_hook(
                        lambda _m, args, kwargs, hook=hook: _first_changed(hook, args, kwargs), with_kwargs=True
                    )
                )
            else:
                handles.append(module.register_forward_hook(lambda _m, _args, out, hook=hook: _out_changed(hook, out)))
        try:
            logits = self.model(torch.tensor([list(ids)])).logits[0, -1]
        finally:
            for handle in handles:
                handle.remove()
        return logits, found

    def _changed(self, items: Sequence[Value | Place], found: dict[Place, Tensor], x: Tensor) -> Tensor:
        new = x.clone()
        for item in items:
            if isinstance(item, Value):
                columns = list(range(new.shape[1])) if item.columns is None else list(item.columns)
                self.cut(new, item.place)[:, columns] = item.value[:, columns]
            else:
                found[item] = self.cut(new, item).clone()
        return new

    def path(
        self,
        base: Sequence[int],
        source: Sequence[int],
        senders: Sequence[Stop],
        stops: Sequence[Sequence[Stop]],
        *,
        recomputed: Collection[Place] = (),
        to_logits: bool,
    ) -> Tensor:
        """The last logits with a path patched.

        Args:
            base: the prompt that is patched into.
            source: the prompt that the senders' values are from.
            senders: the first step.
            stops: the other steps.
            recomputed: what is not frozen between steps.
            to_logits: whether the path goes on to the logits behind the last step.
        """
        everything = [*self.every, ("embed", 0, 0)]
        at_base, at_source = (self.run(ids, reads=everything)[1] for ids in (base, source))
        frozen = [Value(place, at_base[place]) for place in self.every if place not in recomputed]
        sent = [Value(stop.place, at_source[stop.place], stop.columns) for stop in senders]
        for n, step in enumerate(stops):
            got = []
            for stop in step:
                # Each receiver is read in a run of its own, in which it is not frozen.
                others = [value for value in frozen if value.place != stop.place]
                got.append(
                    Value(stop.place, self.run(base, [*others, *sent], [stop.place])[1][stop.place], stop.columns)
                )
            if n == len(stops) - 1 and not to_logits:
                return self.run(base, got)[0]
            sent = self._passed_on(base, step, got)
        return self.run(base, [*frozen, *sent])[0]

    def _passed_on(self, base: Sequence[int], step: Sequence[Stop], got: Sequence[Value]) -> list[Value]:
        """What the nodes of a step write, each entered by what it got."""
        sent = [value for value in got if value.place[0] in ("z", "mlp")]
        heads = {(stop.place[1], head) for stop in step if stop.place[0] in "qkv" for head in stop.heads}
        for layer, head in sorted(heads):
            entered = [
                value
                for stop, value in zip(step, got, strict=True)
                if stop.place[0] in "qkv" and stop.place[1] == layer and head in stop.heads
            ]
            place = ("z", layer, head)
            sent.append(Value(place, self.run(base, entered, [place])[1][place]))
        return sent


def _first_changed(hook: Callable[[Tensor], Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if args:
        return (hook(args[0]), *args[1:]), kwargs
    return args, kwargs | {"hidden_states": hook(kwargs["hidden_states"])}


def _out_changed(hook: Callable[[Tensor], Tensor], out: Any) -> Any:
    return hook(out) if isinstance(out, Tensor) else (hook(out[0]), *out[1:])
