"""Reference statistics: what a site usually holds, gathered once over a dataset and saved.

Ablation replaces an activation by something that carries no information about the prompt at hand: its mean over a
reference dataset, its mean there at the same position, or its value on another prompt of that dataset.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp_toolkit.activations.files import load_tensors, save_tensors
from interp_toolkit.circuits.dataset import prepare_prompts
from interp_toolkit.errors import FileFormatError, InterpWarning, PositionError, RunError, SiteError
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.run import SitesLike, expand, run
from interp_toolkit.model.sites import Site
from interp_toolkit.model.tokens import Inputs, Tokens, encode
from interp_toolkit.model.verify import verified
from interp_toolkit.model.wiring import Wiring
from interp_toolkit.provenance import Provenance, provenance_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FORMAT = "interp_toolkit.reference/1"
_SQUARES = ("scores", "pattern")


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """Means of sites over a dataset, and prompts of it to resample from. Make it with `Reference.gather`.

    Attributes:
        means: for each whole site its mean over all real tokens of all prompts; the axes are those of the site behind
            batch and position, such as `[head, d_head]` of `z`.
        positional: for each whole site its mean at each position from the start, `[pos, ...]`; may be empty.
        counts: for each position the number of prompts that have it.
        bank: token ids of prompts to resample from; may be empty.
        num_layers: of the model.
        provenance: model, layout and versions.
    """

    means: Mapping[Site, Float[Tensor, "..."]]
    positional: Mapping[Site, Float[Tensor, "pos ..."]] = field(default_factory=dict)
    counts: Int[Tensor, " pos"]
    bank: tuple[tuple[int, ...], ...] = ()
    num_layers: int
    provenance: Provenance

    @classmethod
    def gather(
        cls,
        model: nn.Module,
        prompts: Inputs,
        *,
        sites: SitesLike = ("z", "attn_out", "mlp_out"),
        positional: bool = True,
        samples: int = 0,
        seed: int = 0,
        batch_size: int = 16,
        tokenizer: PreTrainedTokenizerBase | None = None,
        layout: Layout | None = None,
    ) -> Reference:
        """Run a model over prompts and keep the statistics of some sites.

        Padding never counts; sums are in float64.

        Args:
            model: a causal language model, as it is.
            prompts: texts or token ids; they may differ in length.
            sites: what to gather; a component without a layer means every layer.
            positional: whether to keep means for each position too, which take as much memory as one prompt's reading.
            samples: how many prompts to keep for resampling, drawn without replacement. Only their tokens are kept:
                their activations are computed when they are needed.
            seed: of the draw.
            batch_size: prompts in a forward pass.
            tokenizer: needed when the model does not say where it comes from.
            layout: for a model class of your own.

        Raises:
            TokenError: without prompts.
            SiteError: for sites that this model does not have, and for scores and patterns, whose axes are those of
                one prompt.
            RunError: when more samples are asked for than there are prompts.

        Example:
            >>> from transformers import GPT2Config, GPT2LMHeadModel
            >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
            >>> reference = Reference.gather(model, [[1, 2, 3], [4, 5]], sites=["z"])
            >>> reference.mean("L1H0").shape, reference.counts.tolist()
            (torch.Size([4]), [2, 2, 1])
        """
        wiring = verified(model, layout)
        rows = prepare_prompts(prompts, model, tokenizer)
        if not 0 <= samples <= len(rows):
            raise RunError(f"samples={samples} prompts cannot be drawn from {len(rows)}")
        found = expand(sites, wiring)
        squares = [str(site) for site in found if site.component in (*_SQUARES, "logits")]
        if squares or not found:
            raise SiteError(f"no mean over prompts is taken of {', '.join(squares) or 'no site at all'}")
        sums, counts = _sums(wiring, rows, found, batch_size, positional=positional)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(len(rows), generator=generator)[:samples].tolist()
        dtype = torch.promote_types(next(wiring.base.parameters()).dtype, torch.float32)
        total = int(counts.sum())
        return cls(
            means={site: (x.sum(0) / total).to(dtype) for site, x in sums.items()},
            positional={
                site: (x / counts.view(-1, *[1] * (x.ndim - 1))).to(dtype) for site, x in sums.items() if positional
            },
            counts=counts,
            bank=tuple(tuple(rows[n].row()) for n in sorted(drawn)),
            num_layers=wiring.layout.num_layers,
            provenance=provenance_of(model, wiring.layout),
        )

    # --- what is known ---------------------------------------------------------------------------------------

    @property
    def prompts(self) -> int:
        """How many prompts were gathered over."""
        return int(self.counts[0])

    @property
    def tokens(self) -> int:
        """How many real tokens they have."""
        return int(self.counts.sum())

    def mean(self, site: Site | str) -> Float[Tensor, "*feature"]:
        """The mean of a site, or of one head or neuron of it, over all real tokens.

        Raises:
            SiteError: when the site was not gathered; the message says which were.
        """
        return self._part(self.means, site)

    def positional_mean(self, site: Site | str, length: int) -> Float[Tensor, "pos *feature"]:
        """The means of a site at the first positions.

        Args:
            site: a site, or one head or neuron.
            length: how many positions.

        Raises:
            SiteError: when the site was not gathered.
            PositionError: when no prompt of the reference is that long.
        """
        if length > len(self.counts):
            raise PositionError(
                f"a prompt has {length} tokens, but the longest of the reference has {len(self.counts)}: there is no "
                f"mean at positions {len(self.counts)} to {length - 1}. Gather over longer prompts, or use 'mean'"
            )
        if not self.positional:
            raise RunError("this reference was gathered with positional=False, so it has no means by position")
        return self._part(self.positional, site)[:length]

    def check(self, wiring: Wiring) -> None:
        """Refuse a reference of another model, and warn where it may be.

        Raises:
            RunError: when the model is read in another way than the one that was gathered from.
        """
        here = provenance_of(wiring.model, wiring.layout)
        there = self.provenance
        if there.layout != here.layout:
            raise RunError(
                f"the reference was gathered from {there.model} ({there.model_type}, layout {there.layout}), which "
                f"is not laid out as {here.model} ({here.model_type}, layout {here.layout}): gather it anew"
            )
        if (there.model, there.revision) != (here.model, here.revision):
            names = [f"{p.model}" + (f" at {p.revision}" if p.revision else "") for p in (there, here)]
            warnings.warn(
                f"the reference was gathered from {names[0]}, and is used for {names[1]}", InterpWarning, stacklevel=3
            )

    def summary(self) -> str:
        """What it holds, in words."""
        kinds = ", ".join(dict.fromkeys(site.component for site in self.means))
        return (
            f"Means of {len(self.means)} sites ({kinds}) over {self.tokens:,} tokens of {self.prompts:,} prompts of "
            f"{self.provenance.model}{', by position too' if self.positional else ''}"
            f"{f'; {len(self.bank)} prompts to resample from' if self.bank else ''}."
        )

    def _part(self, held: Mapping[Site, Tensor], site: Site | str) -> Tensor:
        asked = Site.parse(site).at_depth(self.num_layers)
        if asked.whole not in held:
            kinds = ", ".join(dict.fromkeys(s.component for s in held)) or "nothing"
            layers = [s.layer for s in held if s.component == asked.component]
            has = f"of {asked.component} it has layers {layers}" if layers else f"it has {kinds}"
            raise SiteError(f"the reference has no {asked.whole}; {has}. Gather it: sites=[..., {str(asked.whole)!r}]")
        whole, dim = held[asked.whole], asked.kind.index_dim
        if asked.index is None or dim is None:
            return whole
        axis = dim - len(asked.kind.axes)
        if asked.index >= whole.shape[axis]:
            raise SiteError(f"{asked} asks for number {asked.index}, but there are {whole.shape[axis]}")
        return whole.select(axis, asked.index)

    # --- files -----------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write it as safetensors."""
        about = {"bank": self.bank, "num_layers": self.num_layers}
        tensors = {"counts": self.counts.contiguous().clone()}
        tensors |= {f"mean/{site}": x.contiguous().clone() for site, x in self.means.items()}
        tensors |= {f"positional/{site}": x.contiguous().clone() for site, x in self.positional.items()}
        return save_tensors(path, tensors, kind=_FORMAT, about=about, provenance=self.provenance)

    @classmethod
    def load(cls, path: str | Path, *, model: nn.Module | None = None, layout: Layout | None = None) -> Reference:
        """Read what `save` wrote.

        Args:
            path: the file.
            model: the model that it will be used for, to check that it fits; it is checked again when it is used.
            layout: for a model class of your own.

        Raises:
            FileFormatError: when it is something else.
            RunError: when it comes from a model with another layout.
        """
        tensors, about, provenance = load_tensors(path, kind=_FORMAT, what="a saved reference")
        try:
            found = cls._from_parts(tensors, about, provenance)
        except (KeyError, ValueError, TypeError) as error:
            raise FileFormatError(f"{path} is damaged: {type(error).__name__} {error}") from error
        if model is not None:
            found.check(verified(model, layout))
        return found

    @classmethod
    def _from_parts(cls, tensors: dict[str, Tensor], about: dict[str, Any], provenance: Provenance) -> Reference:
        number = int(about["num_layers"])

        def named(prefix: str) -> dict[Site, Tensor]:
            found = {Site.parse(k.removeprefix(prefix)): x for k, x in tensors.items() if k.startswith(prefix)}
            return {site: found[site] for site in sorted(found, key=lambda site: site.depth(number))}

        return cls(
            means=named("mean/"),
            positional=named("positional/"),
            counts=tensors["counts"],
            bank=tuple(tuple(int(i) for i in row) for row in about["bank"]),
            num_layers=number,
            provenance=provenance,
        )

    def __repr__(self) -> str:
        """What it holds, in a line."""
        return f"Reference({self.summary()})"


def _sums(
    wiring: Wiring, rows: Sequence[Tokens], sites: Sequence[Site], batch_size: int, *, positional: bool
) -> tuple[dict[Site, Float[Tensor, "row ..."]], Int[Tensor, " pos"]]:
    """Sums over prompts at each position (or over these too, as one position), and how many prompts have each."""
    longest = max(int(tokens.ids.shape[1]) for tokens in rows)
    sums: dict[Site, Tensor] = {}
    counts = torch.zeros(longest, dtype=torch.long)
    for ids, lengths in _batches(rows, batch_size):
        read = run(wiring.model, encode(ids), read=sites, layout=wiring.layout)
        column = torch.arange(ids.shape[1]).expand_as(ids)
        real = column < lengths[:, None]
        index = column[real]
        counts += torch.bincount(index, minlength=longest)
        for site in sites:
            x = read[site]
            # Where a device has no float64, sums are made on the processor.
            x = x.cpu() if x.device.type == "mps" else x
            x = x[real.to(x.device)]
            if site not in sums:
                sums[site] = torch.zeros(longest if positional else 1, *x.shape[1:], dtype=torch.float64)
            part = sums[site].new_zeros(sums[site].shape, device=x.device)
            where = (index if positional else torch.zeros_like(index)).to(x.device)
            sums[site] += part.index_add_(0, where, x.to(torch.float64)).cpu()
    return sums, counts


def _batches(
    rows: Sequence[Tokens], batch_size: int
) -> Iterator[tuple[Int[Tensor, "batch pos"], Int[Tensor, " batch"]]]:
    """Prompts of about the same length together, and how many tokens of each row are real.

    Shorter rows go on with their last token instead of padding: no token sees later ones, so this changes nothing in
    front of it, and needs no model that knows how to deal with padding.
    """
    if batch_size < 1:
        raise RunError(f"a batch has at least one prompt, not {batch_size}")
    ordered = sorted((tokens.row() for tokens in rows), key=len)
    for begin in range(0, len(ordered), batch_size):
        batch = ordered[begin : begin + batch_size]
        longest = len(batch[-1])
        filled = [row + row[-1:] * (longest - len(row)) for row in batch]
        yield torch.tensor(filled), torch.tensor([len(row) for row in batch])


__all__ = ["Reference"]
