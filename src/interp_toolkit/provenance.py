"""Where a result comes from: what every result carries along."""

from __future__ import annotations

import functools
import importlib.metadata
import json
from dataclasses import asdict, dataclass

from torch import nn

from interp_toolkit.errors import FileFormatError
from interp_toolkit.model.layout import Layout, base_of


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What made a result.

    Attributes:
        model: id or path of the model, or the name of its class.
        revision: the commit of the model's weights, where it is known.
        model_type: the family.
        layout: fingerprint of the layout that was used.
        dtype: precision of the model.
        versions: of this library, torch and transformers.
    """

    model: str
    revision: str | None
    model_type: str
    layout: str
    dtype: str
    versions: dict[str, str]

    def to_json(self) -> str:
        """The facts as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Provenance:
        """Read what `to_json` wrote.

        Raises:
            FileFormatError: when it is something else.
        """
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise FileFormatError(f"this does not say where a result comes from: {error}") from error


def provenance_of(model: nn.Module, layout: Layout) -> Provenance:
    """What is known of a model."""
    base = base_of(model)
    config = getattr(base, "config", None)
    first = next(iter(base.parameters()), None)
    return Provenance(
        model=str(getattr(config, "_name_or_path", "") or type(base).__name__),
        revision=getattr(config, "_commit_hash", None),
        model_type=layout.model_type,
        layout=layout.fingerprint,
        dtype="unknown" if first is None else str(first.dtype).removeprefix("torch."),
        versions={name: _version(name) for name in ("interpretability-toolkit", "torch", "transformers")},
    )


@functools.cache
def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


__all__ = ["Provenance", "provenance_of"]
