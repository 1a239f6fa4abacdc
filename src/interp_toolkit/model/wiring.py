"""A model made ready for runs: its layout resolved to modules, and what verification found out.

One `Wiring` is kept for each model, as long as the model lives.
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref

from torch import nn

from interp_toolkit.errors import UnavailableSiteError, UnsupportedModelError
from interp_toolkit.model.layout import Layout, base_of, layout_of, paths_of
from interp_toolkit.model.sites import COMPONENTS, Site


class Wiring:
    """The modules that a layout names, and which sites may be used.

    Args:
        model: the model as the user has it, perhaps inside an adapter.
        layout: which submodule is what.

    Raises:
        UnsupportedModelError: when the layout names something that is not there.
    """

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        base = base_of(model)
        self._model, self._base = weakref.ref(model), weakref.ref(base)
        self.layout = layout
        self.lock = threading.RLock()
        self.refused: dict[Site, str] = {}
        self._available: dict[str | None, list[Site]] = {}
        self._counted = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.returns: int | None = None
        self.proof: object | None = None
        self.shortcuts: object | None = None
        self.entrances: object | None = None
        self.padding: dict[str, str | None] = {"left": None, "right": None}
        parameters = inspect.signature(type(base).forward).parameters
        self.accepts = frozenset(parameters)
        self._check_paths()
        self._refuse_by_layout()

    @property
    def model(self) -> nn.Module:
        """The model as its user has it."""
        return _alive(self._model())

    @property
    def base(self) -> nn.Module:
        """The causal language model itself."""
        return _alive(self._base())

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks."""
        blocks: nn.ModuleList = self.base.get_submodule(self.layout.blocks)  # type: ignore[assignment]
        return blocks

    def at(self, layer: int, path: str) -> nn.Module:
        """A module inside a block."""
        return self.blocks[layer].get_submodule(path)

    def top(self, path: str) -> nn.Module:
        """A module of the model."""
        return self.base.get_submodule(path)

    def has(self, layer: int, path: str) -> bool:
        """Whether a block has the module."""
        try:
            self.at(layer, path)
        except AttributeError:
            return False
        return True

    @functools.cached_property
    def sites(self) -> tuple[Site, ...]:
        """All whole sites of the model, in the order of a forward pass, also those that are refused."""
        number = self.layout.num_layers
        every = [
            Site(name, layer)
            for name, kind in COMPONENTS.items()
            for layer in (range(number) if kind.per_layer else [None])
        ]
        return tuple(sorted(every, key=lambda site: site.depth(number)))

    def available(self, component: str | None = None) -> list[Site]:
        """The whole sites that may be used, of one component or of all."""
        if len(self.refused) != self._counted:
            self._available, self._counted = {}, len(self.refused)
        if component not in self._available:
            self._available[component] = [
                site for site in self.sites if site not in self.refused and component in (None, site.component)
            ]
        return list(self._available[component])

    def check(self, site: Site) -> Site:
        """A site of this model, with its layer counted from 0.

        Raises:
            UnavailableSiteError: when it has no meaning here or failed its verification, with the reason.
        """
        resolved = site.at_depth(self.layout.num_layers)
        reason = self.refused.get(resolved.whole)
        if reason is not None:
            raise UnavailableSiteError(
                f"{resolved.whole} is not available in this {self.layout.model_type} model: {reason}"
            )
        size = self.shapes.get(resolved.component)
        dim = resolved.kind.index_dim
        if resolved.index is not None and size is not None and dim is not None and resolved.index >= size[dim]:
            raise UnavailableSiteError(
                f"{resolved} asks for {resolved.kind.index_axis} {resolved.index}, but there are {size[dim]}: "
                f"0 to {size[dim] - 1}"
            )
        return resolved

    def _check_paths(self) -> None:
        base, layout = self.base, self.layout
        names = {name for name, _ in base.named_modules()}
        if layout.blocks not in names or len(self.blocks) != layout.num_layers:
            raise UnsupportedModelError(
                f"the layout says that {layout.blocks!r} holds {layout.num_layers} blocks, but the model has no "
                "such list"
            )
        wrong = [f"{what}={path!r}" for what, path in paths_of(layout) if not self.has(0, path)]
        tops = {"unembed": layout.unembed, "final_norm": layout.final_norm}
        wrong += [f"{what}={path!r}" for what, path in tops.items() if path is not None and path not in names]
        if wrong:
            inside = sorted(name for name, _ in self.blocks[0].named_modules() if name)
            raise UnsupportedModelError(
                f"the layout names modules that are not there: {', '.join(wrong)}; a block holds {', '.join(inside)}"
            )

    def _refuse_by_layout(self) -> None:
        layout = self.layout
        for layer in range(layout.num_layers):
            if layout.mid is None:
                self.refused[Site("resid_mid", layer)] = (
                    "attention and MLP run in parallel, so there is no residual stream between them"
                    if layout.parallel
                    else "the layout names no module that reads it"
                )
            if layout.down is None or not self.has(layer, layout.down):
                self.refused[Site("mlp_post", layer)] = (
                    "the MLP has no single down projection (a mixture of experts has neurons in every expert)"
                )
        if layout.final_norm is None:
            self.refused[Site("final_norm")] = "the model has no final norm"


def _alive(module: nn.Module | None) -> nn.Module:
    if module is None:
        raise UnsupportedModelError("the model is gone: it was deleted while results still referred to it")
    return module


_wirings: weakref.WeakKeyDictionary[nn.Module, Wiring] = weakref.WeakKeyDictionary()
_making = threading.RLock()


def _known(model: object) -> Wiring | None:
    return _wirings.get(model) if isinstance(model, nn.Module) else None


def wiring_of(model: nn.Module, layout: Layout | None = None) -> Wiring:
    """The wiring of a model: the one that is kept for it, or a new one that is still to be verified."""
    with _making:
        known = _known(model)
        fits = known is not None and (layout is None or layout == known.layout)
        if known is not None and fits and getattr(model, "_compiled_call_impl", None) is None:
            return known
        base_of(model)  # refuses what is no model, before anything is kept for it
        made = Wiring(model, layout or layout_of(model))
        _wirings[model] = made
        return made


def forget(model: nn.Module) -> None:
    """Drop what is known of a model."""
    _wirings.pop(model, None)


__all__ = ["Wiring", "forget", "wiring_of"]
