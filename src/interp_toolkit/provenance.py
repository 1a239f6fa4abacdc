"""Where a result comes from: what every result carries along."""

from __future__ import annotations

import functools
import importlib.metadata
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath

from torch import nn

from interp_toolkit.errors import FileFormatError
from interp_toolkit.model.demo_files import DEMO_MODEL
from interp_toolkit.model.layout import Layout, base_of


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What made a result.

    Attributes:
        model: id of the model on the hub, the name of the folder that it was loaded from, or the name of its class.
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
        """Read what `to_json` wrote; a folder is called by its name, also where its whole path was written.

        Raises:
            FileFormatError: when it is something else.
        """
        try:
            found = cls(**json.loads(text))
            return replace(found, model=_without_path(found.model))
        except (ValueError, TypeError, AttributeError) as error:
            raise FileFormatError(f"this does not say where a result comes from: {error}") from error


def provenance_of(model: nn.Module, layout: Layout) -> Provenance:
    """What is known of a model."""
    base = base_of(model)
    config = getattr(base, "config", None)
    first = next(iter(base.parameters()), None)
    return Provenance(
        model=_called(str(getattr(config, "_name_or_path", "") or "")) or type(base).__name__,
        revision=getattr(config, "_commit_hash", None),
        model_type=layout.model_type,
        layout=layout.fingerprint,
        dtype="unknown" if first is None else str(first.dtype).removeprefix("torch."),
        versions={name: _version(name) for name in ("interpretability-toolkit", "torch", "transformers")},
    )


def same_name(one: str, other: str) -> bool:
    """Whether two results say that they come from models of one name.

    A folder goes by its own name wherever it lies, and as the hub's model of that name.

    Example:
        >>> same_name("someone/small-model", "small-model"), same_name("someone/small-model", "someone/large-model")
        (True, False)
    """
    return _last(one) == _last(other)


def _called(name: str) -> str:
    """What a model goes by that was loaded from there: a folder by its name, since its path is nobody's business."""
    folder = Path(name)
    if name and (folder.is_dir() or name.startswith((".", "~"))):
        return _folder(folder.expanduser().resolve())
    return _without_path(name)


def _without_path(name: str) -> str:
    """The name of a folder in place of its whole path; anything else as it is."""
    for kind in (PurePosixPath, PureWindowsPath):
        if (path := kind(name)).is_absolute():
            return _folder(path)
    return name


def _folder(path: PurePath) -> str:
    cached = path.parent.parent.name
    if path.parent.name == "snapshots" and cached.startswith("models--"):  # the hub's cache: its name is a commit
        return cached.removeprefix("models--").replace("--", "/")
    if path.name == f"{DEMO_MODEL.name}-{DEMO_MODEL.gguf_sha256[:8]}":
        return DEMO_MODEL.name
    return path.name


def _last(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2]


@functools.cache
def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


__all__ = ["Provenance", "provenance_of", "same_name"]
