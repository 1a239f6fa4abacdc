"""Probes on disk, as safetensors."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from interp_toolkit.errors import FileFormatError
from interp_toolkit.probes.estimator import Estimator

_FORMAT = "interp_toolkit.probe/1"
_DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}
_Probe = TypeVar("_Probe", bound=Estimator)


def save_probe(probe: Estimator, path: str | Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Path:
    """Write a trained probe.

    Args:
        probe: its parameters and classes are written too.
        path: the file.
        tensors: what it learned, by name.
        about: what else is to be known, as JSON has it.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target} cannot be written: there is no folder {target.parent}")
    parameters = {name: _written(value) for name, value in probe.get_params().items()}
    classes = vars(probe).get("classes_")
    facts = {
        "kind": type(probe).__name__,
        "parameters": parameters,
        "classes": None if classes is None else classes.tolist(),
        "versions": {name: importlib.metadata.version(name) for name in ("interpretability-toolkit", "torch")},
        **about,
    }
    metadata = {"format": _FORMAT, "about": json.dumps(facts)}
    save_file({name: x.contiguous() for name, x in tensors.items()}, target, metadata=metadata)
    return target


def load_probe(
    cls: type[_Probe], path: str | Path, names: Sequence[str] | None = None
) -> tuple[_Probe, dict[str, Tensor], dict[str, Any]]:
    """Read what `save_probe` wrote: the probe with its parameters, what it learned, and what else is known.

    Args:
        cls: the class of the probe.
        path: the file.
        names: the tensors that have to be there; any if not given.

    Raises:
        FileFormatError: when it is something else, or damaged.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError) as error:
        raise FileFormatError(f"{path} cannot be read as a probe: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise FileFormatError(f"{path} holds {metadata.get('format', 'something else')!r}, not a probe")
    try:
        about = json.loads(metadata["about"])
        if about["kind"] != cls.__name__:
            raise FileFormatError(f"{path} holds a {about['kind']}, not a {cls.__name__}")
        probe = cls(**{name: _read(value) for name, value in about["parameters"].items()})
        missing = set(names or ()) - set(tensors)
        if missing or "classes" not in about:
            raise FileFormatError(f"{path} is damaged: it has no {', '.join(sorted(missing)) or 'classes'}")
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"{path} is damaged: {type(error).__name__} {error}") from error
    return probe, tensors, about


def _written(value: Any) -> Any:
    """A parameter as JSON has it."""
    if isinstance(value, torch.dtype | torch.device):
        return {type(value).__name__: str(value).removeprefix("torch.")}
    if isinstance(value, Mapping):
        return {"mapping": [[_written(key), _written(item)] for key, item in value.items()]}
    if isinstance(value, np.generic):
        return value.item()
    return list(value) if isinstance(value, tuple) else value


def _read(value: Any) -> Any:
    if isinstance(value, dict):
        (kind, held), *_ = value.items()
        if kind == "dtype":
            return _DTYPES[held]
        return torch.device(held) if kind == "device" else dict(held)
    return tuple(value) if isinstance(value, list) else value


__all__ = ["load_probe", "save_probe"]
