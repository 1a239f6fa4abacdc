"""What a run left behind: activations with the names people use for them, saved and loaded as safetensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp_toolkit.activations.files import load_tensors, save_tensors
from interp_toolkit.errors import FileFormatError, SiteError, UnavailableSiteError
from interp_toolkit.model.attention import Squares
from interp_toolkit.model.heads import head_outputs
from interp_toolkit.model.positions import Positions
from interp_toolkit.model.sites import Site
from interp_toolkit.model.tokens import Tokens
from interp_toolkit.model.wiring import Wiring
from interp_toolkit.provenance import Provenance

_FORMAT = "interp_toolkit.activations/1"


class Activations:
    """The activations of one run. Made by `ActivationCache.run`.

    Shapes below are for several prompts; one prompt has no `batch` axis. In a padded batch, positions of padding
    hold NaN (in patterns: zeros), so that a mean over them cannot pass unnoticed; `mask` says which positions are real.

    Args:
        readings: tensors by site, with a batch axis.
        tokens: what was run.
        provenance: what made them.
        num_layers: of the model.
        keep: the positions that were kept, if not all.
        wiring: the model, for what is computed only when it is asked for.
        squares: for each layer, the means to compute scores and patterns.
    """

    def __init__(
        self,
        *,
        readings: Mapping[Site, Tensor],
        tokens: Tokens,
        provenance: Provenance,
        num_layers: int,
        keep: Positions | None = None,
        wiring: Wiring | None = None,
        squares: Mapping[int, Squares] | None = None,
    ) -> None:
        self._readings = dict(readings)
        self.prompt = tokens
        self.provenance = provenance
        self.num_layers = num_layers
        self._keep = keep
        self._wiring = wiring
        self._squares = dict(squares or {})

    # --- by site ---------------------------------------------------------------------------------------------

    @property
    def sites(self) -> list[Site]:
        """The sites held, in the order of the forward pass."""
        return sorted(self._readings, key=lambda site: site.depth(self.num_layers))

    def __getitem__(self, site: Site | str) -> Tensor:
        """An activation by its site.

        Every spelling that `Site.parse` reads will do, such as `activations["blocks.6.hook_resid_post"]`.

        Raises:
            UnknownSiteError: for a name that means nothing.
            UnavailableSiteError: for a site that was not read, and cannot be computed from what was.
        """
        if not isinstance(site, Site | str):
            raise SiteError(f"activations are asked for by site, such as 'resid_post.6', not by {site!r}")
        asked = Site.parse(site).at_depth(self.num_layers)
        x = self._shown(asked.whole, self._tensor(asked.whole))
        dim = asked.kind.index_dim
        if asked.index is not None and dim is not None:
            if asked.index >= x.shape[dim]:
                raise SiteError(f"{asked} asks for number {asked.index}, but there are {x.shape[dim]}")
            x = x.select(dim, asked.index)
        return x[0] if self.prompt.single else x

    def __iter__(self) -> Iterator[Site]:
        """The sites held."""
        return iter(self.sites)

    def __len__(self) -> int:
        """How many sites are held."""
        return len(self._readings)

    def __contains__(self, site: object) -> bool:
        """Whether the site was read."""
        if not isinstance(site, Site | str):
            return False
        try:
            return Site.parse(site).at_depth(self.num_layers).whole in self._readings
        except SiteError:
            return False

    # --- by name ---------------------------------------------------------------------------------------------

    def residual_stream(self, layer: int, position: str = "post") -> Float[Tensor, "*batch pos d_model"]:
        """The residual stream at a block.

        Args:
            layer: the block; negative counts from the last.
            position: `"pre"` in front of the block, `"mid"` between attention and MLP, `"post"` behind it.

        Raises:
            SiteError: for another position or a layer out of range.
        """
        if position not in ("pre", "mid", "post"):
            raise SiteError(f"a residual stream is read at position 'pre', 'mid' or 'post', not {position!r}")
        return self[Site(f"resid_{position}", layer)]

    def attention_pattern(self, layer: int, head: int | None = None) -> Float[Tensor, "*batch_head pos key_pos"]:
        """Who attends to whom: rows are queries and sum to one (to less where the model has attention sinks).

        Computed at the first call from queries and keys, unless `"pattern"` was among the sites.
        """
        return self[Site("pattern", layer, head)]

    def attention_scores(self, layer: int, head: int | None = None) -> Float[Tensor, "*batch_head pos key_pos"]:
        """Masked attention scores before softmax; computed when asked, like patterns."""
        return self[Site("scores", layer, head)]

    def queries(self, layer: int, head: int | None = None) -> Float[Tensor, "*batch_pos_head d_head"]:
        """Queries as attention uses them, after rotary embedding and query norm."""
        return self[Site("q", layer, head)]

    def keys(self, layer: int, head: int | None = None) -> Float[Tensor, "*batch_pos_head d_head"]:
        """Keys as attention uses them, by key/value head, after rotary embedding and key norm."""
        return self[Site("k", layer, head)]

    def values(self, layer: int, head: int | None = None) -> Float[Tensor, "*batch_pos_head d_head"]:
        """Values as attention uses them, by key/value head."""
        return self[Site("v", layer, head)]

    def head_output(self, layer: int, head: int | None = None) -> Float[Tensor, "*batch_pos_head d_model"]:
        """What each head writes to the residual stream; the heads and the projection's bias sum to `attention_output`.

        Computed when asked, from `z` and the model's weights as they are then.
        """
        return self[Site("head_out", layer, head)]

    def attention_output(self, layer: int) -> Float[Tensor, "*batch pos d_model"]:
        """What attention really adds to the residual stream, after any norm and multiplier."""
        return self[Site("attn_out", layer)]

    def mlp_output(self, layer: int) -> Float[Tensor, "*batch pos d_model"]:
        """What the MLP really adds to the residual stream, after any norm and multiplier."""
        return self[Site("mlp_out", layer)]

    def mlp_neurons(self, layer: int) -> Float[Tensor, "*batch pos d_mlp"]:
        """The MLP's neurons: the input of its down projection."""
        return self[Site("mlp_post", layer)]

    def embeddings(self) -> Float[Tensor, "*batch pos d_model"]:
        """What enters the first block: token embeddings with positions and scaling, as the model has them."""
        return self[Site("embed")]

    def logits(self) -> Float[Tensor, "*batch pos vocab"]:
        """The model's logits."""
        return self[Site("logits")]

    # --- prompts ---------------------------------------------------------------------------------------------

    @property
    def tokens(self) -> list[str] | list[list[str]]:
        """The tokens as people read them: a list for one prompt, a list of lists for several, without padding."""
        rows = [self.prompt.strings(row) for row in range(len(self.prompt))]
        return rows[0] if self.prompt.single else rows

    @property
    def mask(self) -> Tensor:
        """Which positions are real, `[batch, pos]` (`[pos]` for one prompt)."""
        mask = self.prompt.mask.bool()
        return mask[0] if self.prompt.single else mask

    def of_prompt(self, row: int) -> Activations:
        """The activations of one prompt of a batch, without padding.

        Raises:
            SiteError: when the batch has no such row.
        """
        if not -len(self.prompt) <= row < len(self.prompt):
            raise SiteError(f"prompt {row} was asked for, but there are {len(self.prompt)}")
        row %= len(self.prompt)
        real = self.prompt.mask[row].bool()
        columns = None if self._keep is not None else real
        return Activations(
            readings={site: _row(site, x, row, columns) for site, x in self._readings.items()},
            tokens=Tokens(
                ids=self.prompt.ids[row : row + 1, real],
                mask=self.prompt.mask[row : row + 1, real],
                texts=None if self.prompt.texts is None else self.prompt.texts[row : row + 1],
                offsets=None if self.prompt.offsets is None else self.prompt.offsets[row : row + 1],
                single=True,
                tokenizer=self.prompt.tokenizer,
                shown=None if self.prompt.shown is None else self.prompt.shown[row : row + 1],
            ),
            provenance=self.provenance,
            num_layers=self.num_layers,
            keep=self._keep,
            wiring=self._wiring,
            squares={layer: _squares_of_row(self, layer, row, columns) for layer in self._squares},
        )

    @property
    def nbytes(self) -> int:
        """Bytes of memory held by the activations."""
        held = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in self._readings.values()}
        return sum(held.values())

    def __repr__(self) -> str:
        """Model, prompts, sites and memory in a line."""
        lengths = self.prompt.lengths.tolist()
        shown = repr(self.prompt.texts[0][:40]) if self.prompt.texts else f"{lengths[0]} tokens"
        prompts = shown if len(lengths) == 1 else f"{len(lengths)} prompts of {min(lengths)}-{max(lengths)} tokens"
        kinds = list(dict.fromkeys(site.component for site in self.sites))
        name = Path(self.provenance.model).name
        return f"Activations({name}, {prompts}, {len(self)} sites ({', '.join(kinds)}), {_bytes(self.nbytes)})"

    # --- files -----------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write everything held to a safetensors file. Scores and patterns are in it if they were read or asked for."""
        shared: dict[int, str] = {}
        same: dict[str, str] = {}
        tensors: dict[str, Tensor] = {}
        for site in self.sites:
            x = self._readings[site]
            name = shared.setdefault(x.data_ptr(), str(site))
            if name != str(site) and tensors[name].shape == x.shape:
                same[str(site)] = name
            else:
                tensors[str(site)] = x.contiguous()
        tensors |= {"tokens.ids": self.prompt.ids, "tokens.mask": self.prompt.mask}
        about = {
            "single": self.prompt.single,
            "texts": self.prompt.texts,
            "offsets": self.prompt.offsets,
            "strings": [self.prompt.strings(row) for row in range(len(self.prompt))],
            "num_layers": self.num_layers,
            "same": same,
            "kept": None if self._keep is None else repr(self._keep),
        }
        return save_tensors(path, tensors, kind=_FORMAT, about=about, provenance=self.provenance)

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu") -> Activations:
        """Read what `save` wrote.

        Raises:
            FileFormatError: when the file is not one, or is damaged.
        """
        tensors, about, provenance = load_tensors(path, kind=_FORMAT, what="saved activations", device=device)
        try:
            return cls._from_parts(tensors, about, provenance)
        except (KeyError, ValueError, TypeError) as error:
            raise FileFormatError(f"{path} is damaged: {type(error).__name__} {error}") from error

    @classmethod
    def _from_parts(cls, tensors: dict[str, Tensor], about: dict[str, Any], provenance: Provenance) -> Activations:
        ids, mask = tensors.pop("tokens.ids").cpu(), tensors.pop("tokens.mask").cpu()
        offsets = about["offsets"]
        tokens = Tokens(
            ids=ids,
            mask=mask,
            texts=None if about["texts"] is None else tuple(about["texts"]),
            offsets=None if offsets is None else tuple(tuple((a, b) for a, b in row) for row in offsets),
            single=about["single"],
            shown=tuple(tuple(row) for row in about["strings"]),
        )
        readings = {Site.parse(name): x for name, x in tensors.items()}
        readings |= {Site.parse(name): tensors[other] for name, other in about["same"].items()}
        return cls(
            readings=readings,
            tokens=tokens,
            provenance=provenance,
            num_layers=about["num_layers"],
            keep=None if about["kept"] is None else Positions(),
        )

    # --- inside ----------------------------------------------------------------------------------------------

    def _tensor(self, site: Site) -> Tensor:
        if site in self._readings:
            return self._readings[site]
        if site.component in ("scores", "pattern"):
            self._compute_squares(site)
        elif site.component == "head_out":
            self._compute_heads(site)
        if site not in self._readings:
            raise UnavailableSiteError(self._missing(site))
        return self._readings[site]

    def _missing(self, site: Site) -> str:
        if self._wiring is not None:
            self._wiring.check(site)
        layers = [s.layer for s in self.sites if s.component == site.component]
        if layers:
            return f"{site} was not read; of {site.component} these activations hold layers {layers}: see layers="
        held = ", ".join(dict.fromkeys(s.component for s in self.sites)) or "nothing"
        return (
            f"{site} was not read; these activations hold {held}. "
            f"Name it: ActivationCache(model, sites=[..., {site.component!r}])"
        )

    def _compute_squares(self, site: Site) -> None:
        # Of cut queries and keys no pattern can be made.
        squares = self._squares.get(site.layer or 0) if self._keep is None else None
        sites = [Site(name, site.layer) for name in ("q", "k", "v")]
        if squares is None or self._wiring is None or any(s not in self._readings for s in sites):
            return
        qkv = [self._readings[s] for s in sites]
        self._wiring.check(site)
        module = self._wiring.at(site.layer or 0, self._wiring.layout.projection)
        like = next(iter(module.parameters()), qkv[0])
        found = squares(*(x.to(device=like.device, dtype=_float_of(like, x)) for x in qkv))
        for name, x in found.items():
            self._readings[Site(name, site.layer)] = x.detach().to(device=qkv[0].device, dtype=qkv[0].dtype)

    def _compute_heads(self, site: Site) -> None:
        z = self._readings.get(Site("z", site.layer))
        if z is None or self._wiring is None:
            return
        self._wiring.check(site)
        like = next(iter(self._wiring.at(site.layer or 0, self._wiring.layout.projection).parameters()), z)
        with torch.no_grad():
            heads = head_outputs(self._wiring, site.layer or 0, z.to(device=like.device, dtype=_float_of(like, z)))
        self._readings[site] = heads.to(device=z.device, dtype=z.dtype)

    def _shown(self, site: Site, x: Tensor) -> Tensor:
        """The tensor with padding masked."""
        if not self.prompt.padded or self._keep is not None:
            return x
        mask = self.prompt.mask.bool().to(x.device)
        dim = site.kind.position_dim
        mask = mask[:, mask.shape[1] - x.shape[dim] :]
        shape = [1] * x.ndim
        shape[0], shape[dim] = mask.shape
        filler = 0.0 if site.component == "pattern" else float("nan")
        return x.masked_fill(~mask.view(shape), filler)


def _bytes(number: int) -> str:
    return f"{number / 2**20:.1f} MiB" if number >= 2**20 else f"{number / 2**10:.1f} KiB"


def _float_of(like: Tensor, x: Tensor) -> torch.dtype:
    """The precision to compute in: that of the weights, unless they are quantised."""
    return like.dtype if like.is_floating_point() and like.element_size() > 1 else x.dtype


def _row(site: Site, x: Tensor, row: int, columns: Tensor | None) -> Tensor:
    part = x[row : row + 1]
    if columns is None:
        return part
    dim = site.kind.position_dim
    columns = columns[len(columns) - part.shape[dim] :].to(x.device)
    part = part[(slice(None),) * dim + (columns,)]
    return part[..., columns] if site.component in ("scores", "pattern") else part


def _squares_of_row(whole: Activations, layer: int, row: int, columns: Tensor | None) -> Squares:
    def squares(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
        del q, k, v  # computed for the batch, whose mask the layer was given
        sites = {name: Site(name, layer) for name in ("scores", "pattern")}
        return {name: _row(site, whole._tensor(site), row, columns) for name, site in sites.items()}

    return squares


__all__ = ["Activations"]
