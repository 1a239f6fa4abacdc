"""Rules in place of the gradient, as layer-wise relevance propagation has them.

A gradient is local: it says what an infinitesimal change does. Relevance propagation replaces it, in a few nonlinear
steps, by what the step does to all of its input (Bach et al. 2015; for transformers Achtibat et al. 2024, "AttnLRP";
for circuits Jafari et al. 2025, "RelP"):

- a norm's scale is a constant (LN rule);
- a nonlinearity is the number by which it multiplied its input (identity rule);
- in a product of two activations, as of an MLP's gate, each gets half (half rule).

The forward pass does not change.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from interp_toolkit.model.hooks import forward_replaced
from interp_toolkit.model.wiring import Wiring

_ROOTS = frozenset({torch.rsqrt, Tensor.rsqrt, torch.sqrt, Tensor.sqrt})
_PRODUCTS = frozenset({torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.multiply, Tensor.multiply})
_CURVES = frozenset({F.silu, F.gelu, F.relu, torch.relu, Tensor.relu, torch.tanh, Tensor.tanh, torch.sigmoid})


@dataclass(frozen=True)
class Rules:
    """How a backward pass is made.

    Attributes:
        relevance: whether the rules of relevance propagation stand in for the gradient.
    """

    relevance: bool = False

    def live(self, wiring: Wiring) -> AbstractContextManager[None]:
        """The rules for forward passes of a model whose graph is kept."""
        return _relevance(wiring) if self.relevance else nullcontext()

    def in_norm(self) -> AbstractContextManager[object]:
        """The rules for one norm."""
        return _InNorm() if self.relevance else nullcontext()


RULES = {"gradient": Rules(), "relevance": Rules(relevance=True)}


class _InNorm(TorchFunctionMode):
    """A norm's scale is a constant."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _ROOTS:
            return func(*args, **kwargs).detach()
        if func in (F.layer_norm, torch.layer_norm):
            return _layer_norm(*args, **kwargs)
        if func in (F.rms_norm, torch.rms_norm):
            return _rms_norm(*args, **kwargs)
        return func(*args, **kwargs)


def _layer_norm(
    x: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *rest: Any
) -> Tensor:
    del shape, rest
    centred = x - x.mean(-1, keepdim=True)
    normed = centred * (centred.pow(2).mean(-1, keepdim=True) + eps).rsqrt().detach()
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


def _rms_norm(x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    del shape
    least = torch.finfo(x.dtype).eps if eps is None else eps
    normed = x * (x.pow(2).mean(-1, keepdim=True) + least).rsqrt().detach()
    return normed if weight is None else normed * weight


class _InMLP(TorchFunctionMode):
    """Nonlinearities are factors, and products of activations halve."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _CURVES:
            return _as_factor(func, *args, **kwargs)
        if func in _PRODUCTS and _both_vary(args):
            a, b = args[0], args[1]
            return (a * b.detach() + a.detach() * b) / 2
        return func(*args, **kwargs)


def _both_vary(args: Any) -> bool:
    return (
        len(args) > 1
        and all(isinstance(x, Tensor) and x.requires_grad and not x.is_leaf for x in args[:2])
        and args[0].shape == args[1].shape
    )


@contextmanager
def _relevance(wiring: Wiring) -> Iterator[None]:
    """Norms and MLPs of a model under the rules, until the block ends."""
    layout = wiring.layout
    with ExitStack() as stack:
        for block in wiring.blocks:
            mlp = block.get_submodule(layout.mlp)
            stack.enter_context(forward_replaced(mlp, _under(_InMLP)))
            for module in mlp.modules():
                if _is_curve(module):
                    stack.enter_context(forward_replaced(module, _as_factor))
            inside = {id(m) for part in (mlp, block.get_submodule(layout.attention)) for m in part.modules()}
            for module in block.modules():
                if id(module) not in inside and _is_norm(module):
                    stack.enter_context(forward_replaced(module, _under(_InNorm)))
        if layout.final_norm is not None:
            stack.enter_context(forward_replaced(wiring.top(layout.final_norm), _under(_InNorm)))
        yield


def _under(mode: type[TorchFunctionMode]) -> Any:
    def wrap(inner: Any, *args: Any, **kwargs: Any) -> Any:
        with mode():
            return inner(*args, **kwargs)

    return wrap


def _as_factor(curve: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A nonlinearity as the number by which it multiplies its input."""
    if not x.requires_grad:
        out: Tensor = curve(x, *args, **kwargs)
        return out
    with torch.no_grad():
        given = torch.where(x == 0, torch.ones_like(x), x)
        factor = torch.where(x == 0, torch.zeros_like(x), curve(x.detach(), *args, **kwargs) / given)
    return x * factor


def _is_curve(module: nn.Module) -> bool:
    """Whether a module is a nonlinearity: it has no weights and no parts, and is no dropout."""
    bare = not any(True for _ in module.children()) and not any(True for _ in module.parameters())
    return bare and not isinstance(module, nn.Identity | nn.Dropout | nn.ModuleList)


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and not any(True for _ in module.children())


__all__ = ["RULES", "Rules"]
