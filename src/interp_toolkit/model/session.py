"""The hooks of one run: the only place that touches a model, and puts everything back.

A `Session` installs what its readings and edits need, sees every forward pass of the model until it ends, and
removes it all in reverse, also after an exception. It acts only in its own thread and never inside an edit's
function, so that runs on one model nest and never mix.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from interp_toolkit.errors import EditError, RunError
from interp_toolkit.model.attention import Squares, Visitor, watch_interface
from interp_toolkit.model.attention_own import watch_own
from interp_toolkit.model.edits import Edit, apply_edit
from interp_toolkit.model.heads import head_outputs
from interp_toolkit.model.hooks import forward_replaced, see_input, see_output, tensor_name
from interp_toolkit.model.window import Window, next_window
from interp_toolkit.model.wiring import Wiring
from interp_toolkit.model.wish import Key, Read, StandIn, StopForward, Wish

_MASKED = -5e3
"""Attention scores at or below this are masked: models use the least number of their precision, or minus infinity."""
_NOTHING = float("-inf")


class Session:
    """Readings and edits, live on a model for as long as it is entered.

    Args:
        wiring: the model.
        wish: what to read and change.
    """

    def __init__(self, wiring: Wiring, wish: Wish) -> None:
        self.wiring = wiring
        self.wish = wish
        self.readings: dict[Key, list[Tensor]] = {}
        self.deferred: dict[int, Squares] = {}
        self.fired: set[int] = set()
        self.windows: list[Window] = []
        self.z: dict[int, Tensor] = {}
        self._edits: dict[Key, list[Edit]] = {}
        for edit in wish.edits:
            self._edits.setdefault((edit.site.component, edit.site.layer), []).append(edit)
        self._reads: set[Key] = {(site.component, site.layer) for site in wish.reads}
        self._pending = set(self._reads)
        self._first = min(wish.enter, default=0)
        self.rows = 0
        self._paused = 0
        self._thread = threading.get_ident()
        self._window: Window | None = None
        self._out: Tensor | None = None
        self._stack = ExitStack()

    # --- life ------------------------------------------------------------------------------------------------

    def __enter__(self) -> Session:
        """Install everything; if that fails, remove what is there."""
        with ExitStack() as stack:
            stack.enter_context(self.wiring.lock)
            self._install(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """Remove everything."""
        self._stack.close()

    def active(self) -> bool:
        """Whether this session acts now."""
        return self._window is not None and not self._paused and threading.get_ident() == self._thread

    @property
    def window(self) -> Window:
        """The forward pass under way."""
        if self._window is None:
            raise RunError("no forward pass is under way")
        return self._window

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Look away, while the code of an edit runs."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def wants(self, component: str, layer: int | None) -> bool:
        """Whether there is something to do at a site."""
        key = (component, layer)
        return key in self._reads or key in self._edits or key in self.wish.changes

    def changes(self, component: str, layer: int | None) -> bool:
        """Whether what goes on may be another tensor."""
        key = (component, layer)
        return key in self._edits or key in self.wish.changes or (self.wish.grad and key in self._reads)

    # --- seeing ----------------------------------------------------------------------------------------------

    def visit(self, component: str, layer: int | None, x: Tensor) -> Tensor:
        """Edit and read an activation that has the axes of its site; the same object comes back if it is unchanged."""
        key = (component, layer)
        for edit in self._edits.get(key, ()):
            x = self._edit(edit, x)
        if key in self.wish.changes:
            x = self._change(key, x)
        if key in self._reads:
            x = self._record(key, x)
        return x

    def _edit(self, edit: Edit, x: Tensor) -> Tensor:
        columns = self._columns(edit.site.component, x)
        selected = self.window.select(edit.positions, columns)
        if edit.rows is not None:
            selected = selected & self._rows(edit, len(selected))[:, None]
        if not selected.any():
            return x
        self.fired.add(id(edit))
        with self.paused():
            new = apply_edit(edit, x, selected, columns, open_ended=self.wish.open_ended)
        return _still_masked(x, new) if edit.site.component == "scores" else new

    def _change(self, key: Key, x: Tensor) -> Tensor:
        with self.paused():
            new = self.wish.changes[key](x, self._columns(key[0], x))
        return _still_masked(x, new) if key[0] == "scores" else new

    def _rows(self, edit: Edit, batch: int) -> Tensor:
        """Which rows of the batch an edit means; beams of one prompt lie side by side."""
        copies = 1 if self.wish.tokens is None else max(1, batch // len(self.wish.tokens))
        chosen = torch.zeros(batch, dtype=torch.bool)
        for row in edit.rows or ():
            prompts = batch // copies
            if not -prompts <= row < prompts:
                raise EditError(f"{edit!r} names row {row}, but the batch has {prompts} rows: 0 to {prompts - 1}")
            start = row % prompts * copies
            chosen[start : start + copies] = True
        return chosen

    def _columns(self, component: str, x: Tensor) -> slice:
        """The columns that an activation holds.

        Keys and values hold all positions so far, or the last of them behind a sliding cache; logits may be cut to
        the last positions by `generate`.
        """
        if component not in ("k", "v", "logits"):
            return self.window.columns
        total = self.window.total
        if x.shape[1] > total:
            raise RunError(
                f"{component} holds {x.shape[1]} positions, but only {total} were run (a static cache?): use the "
                "default dynamic cache"
            )
        return slice(total - x.shape[1], total)

    def _record(self, key: Key, x: Tensor) -> Tensor:
        if self.wish.grad:
            # The recorded tensor must lie on the way to the output, out of reach of operations in place.
            kept = x.clone()
            x = kept.clone() if key[0] in ("attn_out", "mlp_out") else kept
        else:
            same = self._twin(key) if x is self._out else None
            kept = self._kept(key[0], x) if same is None else same
        self.readings.setdefault(key, []).append(kept)
        if key[0] in ("embed", "resid_post"):
            self._out = x
        self._pending.discard(key)
        if self.wish.stop and not self._pending:
            raise StopForward
        return x

    def _twin(self, key: Key) -> Tensor | None:
        """The reading of the same tensor, which left the block before: it need not be kept twice."""
        component, layer = key
        if component != "resid_pre" or layer is None:
            return None
        found = self.readings.get(("embed", None) if layer == 0 else ("resid_post", layer - 1))
        return found[-1] if found is not None and len(found) == len(self.windows) else None

    def _kept(self, component: str, x: Tensor) -> Tensor:
        part = self._cut(component, x.detach())
        kept = part.to(device=self.wish.device, dtype=self.wish.dtype if part.is_floating_point() else None)
        own = kept is not x and kept.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
        return kept.contiguous() if own else kept.clone(memory_format=torch.contiguous_format)

    def _cut(self, component: str, x: Tensor) -> Tensor:
        """The positions to keep: those that no earlier pass computed, and of these the asked ones."""
        window = self.window
        dim = 1
        if component in ("scores", "pattern"):
            dim = 2
            if x.shape[-1] > window.total:
                raise RunError("patterns of a static cache cannot be read: use the default dynamic cache")
            # A sliding cache holds the last keys only.
            filler = 0.0 if component == "pattern" else _NOTHING
            x = torch.nn.functional.pad(x, (window.total - x.shape[-1], 0), value=filler)
        if x.shape[dim] > window.new:
            x = x.narrow(dim, x.shape[dim] - window.new, window.new)
        if self.wish.keep is None or (component == "logits" and self.wish.logits_at is not None):
            return x
        fresh = window.index[:, window.total - x.shape[dim] :]
        chosen = self.wish.keep.columns(fresh, window.lengths)
        if len({len(row) for row in chosen}) > 1:
            raise RunError(f"the positions to keep differ in number between the rows: {[len(row) for row in chosen]}")
        columns = torch.tensor(chosen, dtype=torch.long, device=x.device).view(len(chosen), -1)
        rows = torch.arange(len(x), device=x.device)[:, None]
        return x.movedim(dim, 1)[rows, columns].movedim(1, dim)

    # --- installing ------------------------------------------------------------------------------------------

    def _install(self, stack: ExitStack) -> None:
        wiring, layout = self.wiring, self.wiring.layout
        stack.enter_context(forward_replaced(wiring.base, self._watched_forward))
        for block in list(wiring.blocks)[: self._first]:
            stack.enter_context(forward_replaced(block, self._passing))
        touched = self._reads | set(self._edits) | set(self.wish.changes)
        layers = sorted({layer for _, layer in touched if layer is not None})
        for layer in layers:
            self._install_layer(stack, layer)
        entered = {layer for layer in layers if self.wants("resid_pre", layer)} | set(self.wish.enter)
        if self.wants("embed", None) or self.wish.grad:
            entered.add(self._first)
        for layer in sorted(entered):
            self._pre(stack, wiring.blocks[layer], functools.partial(self._enter_block, layer))
        if layout.final_norm is not None and self.wants("final_norm", None):
            self._post(stack, wiring.top(layout.final_norm), functools.partial(self._output, "final_norm", None, 1.0))
        if self.wish.logits_at is not None:
            self._pre(stack, wiring.top(layout.unembed), self._pick_logits)
        self._install_attention(stack, layers)
        for (layer, path), read in self.wish.inputs.items():
            self._pre(stack, wiring.at(layer, path), functools.partial(self._given, read))
        for (layer, path), stand_in in self.wish.stand_ins.items():
            stack.enter_context(forward_replaced(wiring.at(layer, path), functools.partial(self._stood_in, stand_in)))

    def _install_layer(self, stack: ExitStack, layer: int) -> None:
        wiring, layout = self.wiring, self.wiring.layout
        block, wants = wiring.blocks[layer], functools.partial(self.wants, layer=layer)
        if wants("z") or wants("head_out"):
            self._pre(stack, wiring.at(layer, layout.projection), functools.partial(self._see_z, layer))
        if wants("attn_out") or wants("head_out"):
            self._post(stack, wiring.at(layer, layout.attn_out), functools.partial(self._see_attn_out, layer))
        if wants("resid_mid") and layout.mid is not None:
            self._pre(stack, wiring.at(layer, layout.mid), functools.partial(self._see_mid, layer))
        if wants("mlp_post") and layout.down is not None:
            self._pre(stack, wiring.at(layer, layout.down), functools.partial(self._input, "mlp_post", layer))
        if wants("mlp_out"):
            hook = functools.partial(self._output, "mlp_out", layer, layout.multiplier)
            self._post(stack, wiring.at(layer, layout.mlp_out), hook)
        if wants("resid_post"):
            self._post(stack, block, functools.partial(self._output, "resid_post", layer, 1.0))

    def _install_attention(self, stack: ExitStack, layers: Iterable[int]) -> None:
        names = ("q", "k", "v", "scores", "pattern")
        watched = [layer for layer in layers if any(self.wants(name, layer) for name in names)]
        visitors: dict[nn.Module, Visitor] = {
            self.wiring.at(layer, self.wiring.layout.attention): _LayerVisitor(self, layer) for layer in watched
        }
        if self.wiring.layout.attention_kind == "interface":
            stack.enter_context(watch_interface(visitors))
        else:
            for module, visitor in visitors.items():
                stack.enter_context(watch_own(module, visitor))

    def _pre(self, stack: ExitStack, module: nn.Module, see: Callable[[Tensor], Tensor]) -> None:
        see_input(stack, module, see, active=self.active)

    def _post(self, stack: ExitStack, module: nn.Module, see: Callable[[Tensor], Tensor]) -> None:
        see_output(stack, module, see, active=self.active)

    # --- what the hooks do -----------------------------------------------------------------------------------

    def _watched_forward(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._window is not None or self._paused or threading.get_ident() != self._thread:
            return inner(*args, **kwargs)
        self._window = next_window(args, kwargs, self.windows, self.wish.tokens)
        self.windows.append(self._window)
        self.rows = len(self._window.index)
        try:
            return self._see_logits(inner(*args, **kwargs))
        finally:
            self._window = None
            self.z.clear()

    def _enter_block(self, layer: int, raw: Tensor) -> Tensor:
        x = self._joined(layer, raw)
        if self.wish.grad and layer == self._first and not x.requires_grad:
            x = x.detach().requires_grad_()
        if layer == 0:
            x = self.visit("embed", None, x)
        return self.visit("resid_pre", layer, x)

    def _joined(self, layer: int, raw: Tensor) -> Tensor:
        """The batch with the rows that enter here."""
        if layer not in self.wish.enter:
            return raw
        entering = self.wish.enter[layer].to(device=raw.device, dtype=raw.dtype)
        x = entering if layer == self._first else torch.cat([raw, entering])
        self.rows = len(x)
        return x

    def _passing(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self.active():
            return inner(*args, **kwargs)
        returns = self.wiring.returns
        x = args[0] if args else kwargs[tensor_name(kwargs)]
        return x if returns is None else (x, *[None] * (returns - 1))

    def _given(self, read: Read, raw: Tensor) -> Tensor:
        with self.paused():
            return read(raw)

    def _stood_in(self, stand_in: StandIn, inner: Callable[..., Any], raw: Tensor) -> Any:
        if not self.active():
            return inner(raw)
        with self.paused():
            return stand_in(raw, inner)

    def _shaped(self, raw: Tensor) -> Tensor:
        """`[batch, pos, ...]`; some models flatten batch and position for their MLP."""
        return raw if raw.ndim == 3 else raw.unflatten(0, (self.rows, -1))

    def _input(self, component: str, layer: int, raw: Tensor) -> Tensor:
        x = self._shaped(raw)
        seen = self.visit(component, layer, x)
        return raw if seen is x else seen.reshape(raw.shape)

    def _output(self, component: str, layer: int | None, multiplier: float, raw: Tensor) -> Tensor:
        shaped = self._shaped(raw)
        x = shaped if multiplier == 1.0 else shaped * multiplier
        seen = self.visit(component, layer, x)
        if seen is x:
            return raw
        return (seen if multiplier == 1.0 else seen / multiplier).reshape(raw.shape)

    def _see_z(self, layer: int, raw: Tensor) -> Tensor:
        x = raw.unflatten(-1, (self.wiring.layout.num_heads, -1))
        seen = self.visit("z", layer, x)
        self.z[layer] = seen
        return raw if seen is x else seen.flatten(-2)

    def _see_attn_out(self, layer: int, raw: Tensor) -> Tensor:
        if self.wants("head_out", layer):
            with self.paused():
                heads = head_outputs(self.wiring, layer, self.z[layer])
            seen = self.visit("head_out", layer, heads)
            if self.changes("head_out", layer):
                raw = raw + ((seen - heads).sum(-2) / self.wiring.layout.multiplier).to(raw.dtype)
        return self._output("attn_out", layer, self.wiring.layout.multiplier, raw)

    def _see_mid(self, layer: int, raw: Tensor) -> Tensor:
        x = self._shaped(raw)
        seen = self.visit("resid_mid", layer, x)
        if seen is not x:
            # The block keeps this very tensor as the residual, so it has to change in place.
            raw.copy_(seen.reshape(raw.shape))
        return raw

    def _pick_logits(self, raw: Tensor) -> Tensor:
        index = self.wish.logits_at
        if index is None:
            return raw
        return raw.gather(1, index.to(raw.device)[:, :, None].expand(len(raw), -1, raw.shape[-1]))

    def _see_logits(self, output: Any) -> Any:
        if not self.wants("logits", None):
            return output
        logits = logits_of(output)
        seen = self.visit("logits", None, logits)
        if seen is logits:
            return output
        if isinstance(output, Tensor):
            return seen
        if isinstance(output, tuple):
            return (seen, *output[1:])
        output.logits = seen
        return output


class _LayerVisitor:
    """A session as the attention of one layer sees it."""

    def __init__(self, session: Session, layer: int) -> None:
        self.session = session
        self.layer = layer

    def batch_size(self) -> int:
        return self.session.rows

    def active(self) -> bool:
        return self.session.active()

    def wants(self, component: str) -> bool:
        return self.session.wants(component, self.layer)

    def changes(self, component: str) -> bool:
        return self.session.changes(component, self.layer)

    def visit(self, component: str, x: Tensor) -> Tensor:
        return self.session.visit(component, self.layer, x)

    def defer(self, squares: Squares) -> None:
        if self.session.wish.defer:
            self.session.deferred[self.layer] = squares


def _still_masked(old: Tensor, new: Tensor) -> Tensor:
    """Scores after an edit: what attention may not see stays out of sight."""
    return torch.where(old <= _MASKED, old, new)


def logits_of(output: Any) -> Tensor:
    """The logits in whatever a model returns.

    Raises:
        RunError: when there are none.
    """
    if isinstance(output, Tensor):
        return output
    logits = output[0] if isinstance(output, tuple) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise RunError(f"the model returned {type(output).__name__}, in which there are no logits")
    return logits


__all__ = ["Session", "logits_of"]
