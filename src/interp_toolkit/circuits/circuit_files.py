"""Circuits as JSON files: edges by name, so that people can read them and no order of nodes matters."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp_toolkit.circuits.circuit_words import Role
from interp_toolkit.circuits.graph_shape import Graph
from interp_toolkit.errors import CircuitError, FileFormatError
from interp_toolkit.provenance import Provenance

_FORMAT = "interp_toolkit.circuit/1"
_TEXTS = ("method", "metric", "ablation")
_DTYPES = {"torch.float32": torch.float32, "torch.float64": torch.float64}


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a file holds of a circuit.

    Attributes:
        graph: of the model.
        edges: the names of their ends, and their scores.
        dtype: of the scores; None if there are none.
        texts: `method`, `metric` and `ablation`.
        notes: whatever else should be known.
        roles: of nodes.
        provenance: model, layout and versions.
    """

    graph: Graph
    edges: Sequence[tuple[str, str, float | None]]
    dtype: str | None
    texts: dict[str, str]
    notes: dict[str, Any]
    roles: tuple[Role, ...]
    provenance: Provenance | None

    def matrices(self) -> tuple[Bool[Tensor, "source dest"], Float[Tensor, "source dest"] | None]:
        """The edges as a mask, and their scores, NaN where there is none."""
        mask, scores = torch.zeros_like(self.graph.valid), None
        if self.dtype is not None:
            scores = torch.full(mask.shape, torch.nan, dtype=_DTYPES[self.dtype])
        if self.edges:
            rows = [self.graph.source_index(source) for source, _, _ in self.edges]
            columns = [self.graph.dest_index(dest) for _, dest, _ in self.edges]
            mask[rows, columns] = True
            if scores is not None:
                values = [math.nan if score is None else score for _, _, score in self.edges]
                scores[rows, columns] = torch.tensor(values, dtype=scores.dtype)
        return mask, scores


def circuit_json(saved: Saved) -> str:
    """A circuit as JSON, one edge a line.

    Raises:
        CircuitError: for notes that JSON has no words for.
    """
    facts = {
        "format": _FORMAT,
        "graph": asdict(saved.graph),
        **saved.texts,
        "roles": [asdict(role) for role in saved.roles],
        "provenance": None if saved.provenance is None else asdict(saved.provenance),
        "score_dtype": saved.dtype,
        "num_edges": len(saved.edges),
    }
    try:
        head = json.dumps(facts | {"notes": _finite(saved.notes)}, indent=1, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise CircuitError(f"the notes of a circuit must be as JSON has them to be saved: {error}") from error
    edges = ",\n".join(json.dumps(edge, allow_nan=False) for edge in saved.edges)
    return f'{head[:-2]},\n "edges": [\n{edges}\n]\n}}\n'


def read_circuit(path: str | Path) -> Saved:
    """Read what `circuit_json` made.

    Raises:
        FileFormatError: when it is something else, or damaged.
    """
    try:
        facts = json.loads(Path(path).read_bytes().decode("utf-8"), parse_constant=_refuse)
        if not isinstance(facts, dict) or facts.get("format") != _FORMAT:
            raise ValueError(f"its format is not {_FORMAT!r}")
        saved = _saved(facts)
        places = {(source, dest) for source, dest, _ in saved.edges}
        if not len(places) == len(saved.edges) == facts["num_edges"]:
            raise ValueError(f"it has {len(places):,} different edges where {facts['num_edges']!r} were written")
        mask, _ = saved.matrices()
        wrong = mask & ~saved.graph.valid
        if bool(wrong.any()):
            source, dest = (int(n) for n in wrong.nonzero()[0])
            raise ValueError(f"there is no edge {saved.graph.edge_name(source, dest)}")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        detail = f"{type(error).__name__} {error}" if isinstance(error, KeyError) else str(error)
        raise FileFormatError(f"{path} cannot be read as a saved circuit: {detail:.300}") from error
    return saved


def _saved(facts: dict[str, Any]) -> Saved:
    graph, dtype, notes = facts["graph"], facts["score_dtype"], facts["notes"]
    counts = [graph["num_layers"], graph["num_heads"], graph["num_groups"]]
    if any(type(n) is not int for n in counts) or type(graph["parallel"]) is not bool:
        raise ValueError("its graph is not made of whole numbers")
    if dtype not in (None, *_DTYPES) or not isinstance(notes, dict):
        raise ValueError("its notes or the type of its scores are none")
    texts = {name: facts[name] for name in _TEXTS}
    if not all(isinstance(text, str) for text in texts.values()):
        raise ValueError(f"{', '.join(_TEXTS)} must be texts")
    origin = facts["provenance"]
    return Saved(
        graph=Graph(**graph),
        edges=[_edge(row) for row in facts["edges"]],
        dtype=dtype,
        texts=texts,
        notes=notes,
        roles=tuple(_role(**role) for role in facts["roles"]),
        provenance=None if origin is None else Provenance.from_json(json.dumps(origin)),
    )


def _edge(row: Any) -> tuple[str, str, float | None]:
    source, dest, score = row
    if not (isinstance(source, str) and isinstance(dest, str) and (score is None or _is_number(score))):
        raise ValueError(f"{row!r:.80} is no edge with a score")
    return source, dest, None if score is None else float(score)


def _role(*, layer: Any, head: Any, name: Any, score: Any, test: Any, others: Any) -> Role:
    whole = type(layer) is int and (head is None or type(head) is int)
    further = tuple((other, value) for other, value in others)
    numbers = [score, *(value for _, value in further)]
    texts = [name, test, *(other for other, _ in further)]
    if not (whole and all(map(_is_number, numbers)) and all(isinstance(text, str) for text in texts)):
        raise ValueError(f"a role is damaged: {name!r:.80}")
    floats = tuple((other, float(value)) for other, value in further)
    return Role(layer=layer, head=head, name=name, score=float(score), test=test, others=floats)


def _is_number(x: Any) -> bool:
    return type(x) in (int, float) and math.isfinite(x)


def _finite(x: Any) -> Any:
    """The same without numbers that JSON does not have."""
    if isinstance(x, dict):
        return {key: _finite(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [_finite(value) for value in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


__all__ = ["Saved", "circuit_json", "read_circuit"]
