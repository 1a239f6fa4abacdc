"""Weights that cannot write along a direction: ablation without hooks.

Whatever writes to the residual stream (embeddings, output projections of attention and of MLPs and experts, and their
biases) loses its part along a direction (Arditi et al. 2024, arXiv:2406.11717, section 4.1). The model then computes
what it computes with that direction projected out behind each of them. Nothing of this is trusted: the changed
weights are compared with the hooks on the model itself, and put back where they do not agree.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interp_toolkit.errors import InterpWarning, SteeringError
from interp_toolkit.model.edits import Edit
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.run import run
from interp_toolkit.model.tokens import Tokens
from interp_toolkit.model.verify import verified
from interp_toolkit.model.wiring import Wiring
from interp_toolkit.steering.first_token import first_token_of, span_of
from interp_toolkit.steering.operations import writers
from interp_toolkit.steering.vector import SteeringVector

_DOWN = ("down_proj", "c_proj", "fc_out", "fc2", "dense_4h_to_h", "w2", "output_linear")
"""What down projections are called inside a mixture of experts."""
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_COARSE = 0.05  # for half precision, where weights are rounded after a direction is taken from them
_TRIAL = 7  # tokens of the comparison


@contextmanager
def orthogonalised(
    model: nn.Module, vector: SteeringVector | Float[Tensor, "*direction d_model"], *, layout: Layout | None = None
) -> Iterator[nn.Module]:
    """Take a direction from all weights that write to the residual stream, and put them back at the end of the block.

    Embeddings that are tied to the unembedding are untied in the block: what the model reads from the residual stream
    stays as it is. The old weights are kept aside, so that they come back bit by bit.

    Args:
        model: a causal language model with plain weights.
        vector: one direction of a vector for this model, or a tensor: `[d_model]`, or `[direction, d_model]` for the
            span of several.
        layout: for a model class of your own.

    Yields:
        The model.

    Warns:
        InterpWarning: when the first token, whose activations are many times longer than others in most models, loses
            so much along this direction that this alone does twice what all the rest does; see `first_token`.

    Raises:
        SteeringError: for a direction that is zero or does not fit; for models where it cannot be done by weights: a
            norm behind the projections, quantised or adapted weights, embeddings that are normed.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> with orthogonalised(model, torch.eye(8)[3]):
        ...     stream = run(model, [1, 2, 3], read="resid_post.1")["resid_post.1"]
        >>> bool(stream[..., 3].abs().max() < 1e-6)
        True
    """
    wiring = verified(model, layout)
    basis = span_of(model, vector, wiring, layout)
    _warn(wiring, basis, stacklevel=4)  # above are this generator and the context manager that runs it
    with _changed(wiring, basis):
        yield model


def orthogonalise(
    model: nn.Module, vector: SteeringVector | Float[Tensor, "*direction d_model"], *, layout: Layout | None = None
) -> nn.Module:
    """A copy of a model whose weights cannot write along a direction, to be used and saved like any other.

    Args:
        model: a causal language model with plain weights; it stays as it is.
        vector: see `orthogonalised`.
        layout: for a model class of your own.

    Warns:
        InterpWarning: see `orthogonalised`.

    Raises:
        SteeringError: see `orthogonalised`.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> changed = orthogonalise(model, torch.eye(8)[3])
        >>> bool(changed.transformer.h[1].mlp.c_proj.weight[:, 3].abs().max() < 1e-6)
        True
    """
    wiring = verified(model, layout)
    basis = span_of(model, vector, wiring, layout)
    _warn(wiring, basis, stacklevel=3)
    made = copy.deepcopy(model)
    own = verified(made, wiring.layout)
    with _changed(own, basis) as kept:
        kept.pop_all()  # nothing is put back
    config = getattr(own.base, "config", None)
    if config is not None and _tied(wiring):
        config.tie_word_embeddings = False
    return made


def _warn(wiring: Wiring, basis: Tensor, stacklevel: int) -> None:
    """Say so where weights without a direction do most of what they do at the first token, which they cannot spare."""
    with torch.no_grad():
        found = first_token_of(wiring, _trial_tokens(wiring), basis)
    if found.dominates:
        warnings.warn(
            "without this direction, the weights change the model through its first token more than through all the "
            f"others. {found.summary()} Measured on {_TRIAL} tokens; see first_token for texts of your own. Take the "
            "first token's own direction out of the vector first, or use steer(..., operation='ablate', "
            "layers='writers', positions=From(1)), which leaves that token alone",
            InterpWarning,
            stacklevel=stacklevel,
        )


# --- which weights ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class _Weight:
    """A parameter that writes to the residual stream, and which of its axes is the stream's."""

    module: nn.Module
    name: str
    axis: int
    what: str

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter as it is now.

        Raises:
            SteeringError: when its numbers are not at hand.
        """
        found = getattr(self.module, self.name)
        if type(found) is not nn.Parameter or found.dtype not in _PLAIN:
            kind = f"{type(self.module).__name__} of {type(found).__name__} {getattr(found, 'dtype', '')}"
            raise _no_plain_matrix(self.what, kind)
        if found.is_meta:
            raise SteeringError(f"the weights of {self.what} are not in memory (offloaded): load the model whole")
        return found


def _writing(wiring: Wiring) -> list[_Weight]:
    """All parameters that write to the residual stream.

    Raises:
        SteeringError: where they cannot be found, or what they write goes through a norm.
    """
    layout = wiring.layout
    ends = [
        ("attention", layout.attn_out, (layout.attention, layout.projection)),
        ("the MLP", layout.mlp_out, (layout.mlp, layout.down)),
    ]
    for what, end, plain in ends:
        if end not in plain:
            raise SteeringError(
                f"in this {layout.model_type} model a norm ({end}) stands between {what} and the residual stream: it "
                "changes what is written by other amounts for every token, so that no weights do what the hooks do. "
                "Use steer(..., operation='ablate', layers='writers')"
            )
    found = []
    for layer in range(layout.num_layers):
        found += _projection(wiring.at(layer, layout.projection), f"{layout.projection} of layer {layer}")
        if layout.down is not None and wiring.has(layer, layout.down):
            found += _projection(wiring.at(layer, layout.down), f"{layout.down} of layer {layer}")
        else:
            found += _experts(wiring.at(layer, layout.mlp), layout.d_model, f"{layout.mlp} of layer {layer}")
    return [*_embeddings(wiring), *found]


def _projection(module: nn.Module, what: str) -> list[_Weight]:
    if not isinstance(module, nn.Linear | Conv1D) or any(module.children()):
        raise _no_plain_matrix(what, type(module).__name__)
    axes = {"weight": 0 if isinstance(module, nn.Linear) else 1, "bias": 0}
    names = [name for name, _ in module.named_parameters(recurse=False)]
    if "weight" not in names or not set(names) <= set(axes):
        raise _no_plain_matrix(what, f"{type(module).__name__} of {', '.join(names) or 'no parameters'}")
    return [_Weight(module=module, name=name, axis=axes[name], what=what) for name in names]


def _no_plain_matrix(what: str, found: str) -> SteeringError:
    return SteeringError(
        f"{what} is a {found}, which is no plain matrix (quantised, or with an adapter): load the model unquantised, "
        "or merge the adapter"
    )


def _experts(mlp: nn.Module, width: int, what: str) -> list[_Weight]:
    """Down projections of a mixture of experts: modules, or one tensor for all experts."""
    found: list[_Weight] = []
    for path, module in mlp.named_modules():
        if path.rpartition(".")[2] in _DOWN and isinstance(module, nn.Linear | Conv1D):
            found += _projection(module, f"{path} in {what}")
        for name, parameter in module.named_parameters(recurse=False):
            if name in _DOWN and parameter.ndim > 1:
                found.append(
                    _Weight(module=module, name=name, axis=_stream_axis(module, parameter, width, what), what=what)
                )
            elif name.removesuffix("_bias") in _DOWN and name.endswith("_bias"):
                found.append(_Weight(module=module, name=name, axis=parameter.ndim - 1, what=what))
    if not found:
        raise SteeringError(
            f"no down projection was found in {what} ({type(mlp).__name__}; looked for {', '.join(_DOWN)})"
        )
    return found


def _stream_axis(module: nn.Module, parameter: nn.Parameter, width: int, what: str) -> int:
    """Which axis of `[expert, out, in]` or `[expert, in, out]` is the residual stream's."""
    transposed = getattr(module, "is_transposed", None)
    axes = [axis for axis in (parameter.ndim - 2, parameter.ndim - 1) if parameter.shape[axis] == width]
    if not axes:
        raise SteeringError(f"the experts in {what} have weights of shape {tuple(parameter.shape)}, not {width} wide")
    if len(axes) == 1 or transposed is None:
        return axes[0]  # where both could be, the comparison with the hooks tells
    return parameter.ndim - 1 if transposed else parameter.ndim - 2


def _embeddings(wiring: Wiring) -> list[_Weight]:
    """Token and position embeddings: whatever embeds in front of the blocks, as wide as the residual stream."""
    inside = {id(module) for module in wiring.blocks.modules()}
    modules = [m for m in wiring.base.modules() if isinstance(m, nn.Embedding) and id(m) not in inside]
    return [
        _Weight(module=module, name="weight", axis=1, what="the embedding")
        for module in modules
        if module.embedding_dim == wiring.layout.d_model
    ]


def _tied(wiring: Wiring) -> bool:
    unembed = wiring.top(wiring.layout.unembed)
    return any(unembed.weight is weight.parameter for weight in _embeddings(wiring))


# --- changing them ------------------------------------------------------------------------------------------------


@contextmanager
def _changed(wiring: Wiring, basis: Tensor) -> Iterator[ExitStack]:
    """The weights without their part in the span of a basis; the stack puts the old ones back."""
    weights = _writing(wiring)
    tokens = _trial_tokens(wiring)
    hooks = [Edit.project_out(site, basis) for site in writers(wiring)]
    expected = run(wiring.model, tokens, edits=hooks, logits="all", layout=wiring.layout).logits
    assert expected is not None
    with wiring.lock, ExitStack() as stack:
        if _tied(wiring):
            _untie(wiring.top(wiring.layout.unembed), stack)
        done: set[int] = set()
        for weight in weights:
            parameter = weight.parameter
            if id(parameter) not in done:  # shared between layers
                done.add(id(parameter))
                _project(parameter, weight.axis, basis, stack)
        _compare(wiring, tokens, basis, expected)
        yield stack


def _untie(unembed: nn.Module, stack: ExitStack) -> None:
    tied = unembed.weight
    assert isinstance(tied, nn.Parameter)
    unembed.weight = nn.Parameter(tied.detach().clone(), requires_grad=tied.requires_grad)
    stack.callback(setattr, unembed, "weight", tied)


def _project(parameter: nn.Parameter, axis: int, basis: Tensor, stack: ExitStack) -> None:
    """Take the span from an axis of a parameter. Its old data is kept, not computed back."""
    old = parameter.data
    wide = old.to(torch.promote_types(old.dtype, torch.float32)).movedim(axis, -1)
    axes = basis.to(wide)
    new = (wide - (wide @ axes.mT) @ axes).movedim(-1, axis)
    stack.callback(setattr, parameter, "data", old)
    parameter.data = new.to(old.dtype).contiguous()


def _compare(wiring: Wiring, tokens: Tokens, basis: Tensor, expected: Tensor) -> None:
    """Refuse weights that do not do what the hooks do.

    Raises:
        SteeringError: with what still writes along the direction, or how far the logits are off.
    """
    sites = writers(wiring)
    found = run(wiring.model, tokens, read=sites, logits="all", layout=wiring.layout)
    tolerance = _TOLERANCE.get(found.logits.dtype, _COARSE)
    for site in sites:
        x = found[site].to(torch.promote_types(found[site].dtype, torch.float32))
        left = float((x @ basis.to(x).mT).abs().max())
        if not left <= tolerance * float(x.norm(dim=-1).max()):
            raise SteeringError(
                f"{site} still writes along the direction ({left:.2g}) after its weights lost it: something that is "
                "not linear, such as a norm, or weights that were not found stand in between. Use "
                "steer(..., operation='ablate', layers='writers')"
            )
    off = float((found.logits.double() - expected.double()).abs().max())
    if not off <= tolerance * max(1.0, float(expected.abs().max())):
        raise SteeringError(
            f"the changed weights give logits that are off by {off:.2g} from those with hooks: this model cannot be "
            "changed by weights. Use steer(..., operation='ablate', layers='writers')"
        )


def _trial_tokens(wiring: Wiring) -> Tokens:
    embeddings = [w.parameter for w in _embeddings(wiring)]
    if not embeddings:
        raise SteeringError("no embedding as wide as the residual stream was found in front of the blocks")
    # Three steps over the vocabulary, so that a few quite different tokens are among them.
    size = int(max(len(p) for p in embeddings[:1]))
    ids = (torch.arange(_TRIAL) * max(1, size // (_TRIAL + 1)) % size)[None]
    return Tokens(ids=ids, mask=torch.ones_like(ids))


__all__ = ["orthogonalise", "orthogonalised"]
