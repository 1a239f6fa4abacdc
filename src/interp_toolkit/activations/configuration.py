"""What a store is a store of: model, sites, how documents become rows. Stores of one fingerprint fit together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
import xxhash
from torch import Tensor, nn

from interp_toolkit.activations.disk import canonical
from interp_toolkit.activations.files import float_name
from interp_toolkit.activations.selection import Selection
from interp_toolkit.errors import CorruptStoreError, InterpError, SiteError, StoreError
from interp_toolkit.model.sites import Site
from interp_toolkit.provenance import Provenance

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = "interp_toolkit.store/1"
LONGEST_ROW = 1 << 24
_ELSEWHERE = ("model", "revision", "versions")


@dataclass(frozen=True)
class StoredSite:
    """A site and the shape of what one token has there."""

    site: Site
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """What a store is a store of.

    Attributes:
        provenance: of the model; its versions are not part of the fingerprint.
        weights: fingerprint of the model's weights.
        tokenizer: fingerprint of the tokenizer; None where ids were given.
        num_layers: of the model.
        sites: what is stored, in the order of the forward pass.
        dtype: in what precision.
        context_length: the longest sequence.
        packing: `whole` (each document starts a sequence) or `packed` (documents follow each other).
        long: what becomes of longer documents: `error`, `split` or `truncate`.
        positions: which tokens are kept, as `Selection` has it.
        special_tokens: whether the tokenizer's special tokens are among them.
        separator: the token between packed documents.
        shard_tokens: about how many tokens make a shard.
        batch_tokens: how many tokens, with padding, make a pass.
        padded: whether sequences of different length share a pass.
    """

    provenance: Provenance
    weights: str
    tokenizer: str | None
    num_layers: int
    sites: tuple[StoredSite, ...]
    dtype: str
    context_length: int
    packing: str
    long: str
    positions: Selection
    special_tokens: bool
    separator: int | None
    shard_tokens: int
    batch_tokens: int
    padded: bool

    def __post_init__(self) -> None:
        """Check what would lead to a store that nobody can write."""
        for name, least in (("context_length", 1), ("shard_tokens", 1), ("batch_tokens", 1)):
            if getattr(self, name) < least:
                raise StoreError(f"{name} is {getattr(self, name)}, but has to be at least {least}")
        if self.packing not in ("whole", "packed"):
            raise StoreError(f"documents are kept 'whole' or are 'packed', not {self.packing!r}")
        if self.long not in ("error", "split", "truncate"):
            raise StoreError(f"long documents are an 'error', are 'split' or 'truncate'd, not {self.long!r}")

    @property
    def row_bytes(self) -> int:
        """Bytes that one token takes on disk, over all sites."""
        size = 2 if self.dtype != "float32" else 4
        return size * sum(_product(stored.shape) for stored in self.sites)

    def to_json(self) -> dict[str, Any]:
        """The facts as JSON has them."""
        facts = {field.name: getattr(self, field.name) for field in fields(self)}
        facts["provenance"] = asdict(self.provenance)
        facts["sites"] = [[str(stored.site), list(stored.shape)] for stored in self.sites]
        facts["positions"] = str(self.positions)
        return facts

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Configuration:
        """Read what `to_json` wrote.

        Raises:
            CorruptStoreError: when it is something else.
        """
        try:
            provenance = Provenance(**facts["provenance"])
            sites = tuple(StoredSite(Site.parse(name), tuple(map(_size, shape))) for name, shape in facts["sites"])
            found = cls(
                **{
                    **facts,
                    "provenance": provenance,
                    "sites": sites,
                    "positions": Selection.parse(facts["positions"]),
                    "dtype": float_name(facts["dtype"]),
                }
            )
        except (InterpError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise CorruptStoreError(f"the store does not say what it holds: {error}") from error
        if found.to_json() != dict(facts) or not sites:
            raise CorruptStoreError("the store does not say what it holds in the form in which it was written")
        return found

    @property
    def fingerprint(self) -> str:
        """The sha256 of all that decides which numbers are stored.

        Versions of libraries are left out, and so is where the model lay: its weights say which one it is.
        """
        facts = self.to_json()
        facts["provenance"] = {name: value for name, value in facts["provenance"].items() if name not in _ELSEWHERE}
        return hashlib.sha256(canonical([FORMAT, facts])).hexdigest()

    def differences(self, other: Configuration) -> list[str]:
        """In words, what is different in another one."""
        mine, theirs = (
            facts["provenance"] | facts | {"dtype of the model": facts["provenance"]["dtype"], "provenance": None}
            for facts in (self.to_json(), other.to_json())
        )
        return [
            f"{name}: {_shown(theirs[name])} there, {_shown(mine[name])} here"
            for name in mine
            if mine[name] != theirs[name]
            and (name not in _ELSEWHERE or (name == "model" and self.weights != other.weights))
        ]

    def with_model(self, provenance: Provenance) -> Configuration:
        """The same with the versions of another process."""
        return replace(self, provenance=provenance)


def _size(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= LONGEST_ROW:
        raise ValueError(f"a row cannot have the size {value!r}")
    return value


def _product(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _shown(value: Any) -> str:
    text = ", ".join(name for name, _ in value) if isinstance(value, list) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def weights_fingerprint(model: nn.Module) -> str:
    """A fingerprint of a model's weights: of each parameter the sum over all its bits, and a thousand of its numbers.

    It tells a fine-tuned or edited model from the one it came from, though their names are the same and only a
    neuron was silenced, without moving the weights to the CPU.
    """
    digest = xxhash.xxh3_128()
    for name, parameter in model.state_dict(keep_vars=True).items():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        if parameter.device.type == "meta" or not parameter.numel():
            continue
        flat = parameter.detach().reshape(-1)
        few = flat[:: max(1, flat.numel() // 1024) | 1].contiguous().cpu()  # an odd step meets all columns
        digest.update(few.view(torch.uint8).numpy().tobytes())
        digest.update(_sum_of_bits(flat).to_bytes(8, "little", signed=True))
    return digest.hexdigest()


def _sum_of_bits(flat: Tensor) -> int:
    """The sum of all memory of a vector as 64-bit numbers, which is the same in any order, on any device."""
    plain = flat if flat.storage_offset() * flat.element_size() % 8 == 0 else flat.clone()
    data = plain.view(torch.uint8)
    words = data[: len(data) // 8 * 8].view(torch.int64).sum()
    rest = data[len(data) // 8 * 8 :].sum()
    return int((words + rest).item())


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A fingerprint of how a tokenizer cuts text; how it pads and truncates, which any call may change, is left out."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules = canonical(sorted(tokenizer.get_vocab().items()))
    else:
        facts = json.loads(backend.to_str())
        rules = canonical({name: value for name, value in facts.items() if name not in ("padding", "truncation")})
    return xxhash.xxh3_128_hexdigest(rules)


def site_of(name: str | Site, num_layers: int) -> Site:
    """A site that can be stored: one that has a row for each token.

    Raises:
        SiteError: for an unknown one, or one without such rows.
    """
    site = Site.parse(name).at_depth(num_layers)
    if site.component in ("scores", "pattern"):
        raise SiteError(
            f"{site} grows with the prompt, so that it has no rows of one width: store q and k, of which a pattern "
            "is made, or keep patterns of single prompts with ActivationCache"
        )
    if site.component == "logits":
        raise SiteError(
            "logits are a hundred times as large as what they are made of: store 'final_norm', and multiply it by the "
            "unembedding when you need them"
        )
    return site


__all__ = [
    "FORMAT",
    "Configuration",
    "StoredSite",
    "site_of",
    "tokenizer_fingerprint",
    "weights_fingerprint",
]
