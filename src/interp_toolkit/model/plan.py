"""Plans: many edited runs in as few and as short forward passes as possible.

Cells (edited runs) over shared base runs are packed into the rows of a batch. Each shortcut gives the same numbers as
one full pass per cell, and is used only where it was proved on the model at hand (`Shortcuts`):

- **resume**: a row enters in front of the first layer that it edits, with its base run's residual stream;
- **join**: rows that enter at different layers share one pass: they join the batch on the way;
- **prefix**: only positions from the first edited one on are run; keys and values before it are the base run's;
- **readout**: where a metric needs a few logits, only their rows of the unembedding are multiplied;
- cells that cannot differ from their base, since the prompts are the same up to their positions or nothing moves on
  from there, are not run; a pass ends behind the deepest reading.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from interp_toolkit.model.cells import Base, Cell, Swap
from interp_toolkit.model.execution import Execution
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.positions import PositionsLike
from interp_toolkit.model.run import SitesLike, expand
from interp_toolkit.model.schedule import Answer, Cost, Schedule, task_of
from interp_toolkit.model.shortcuts import Shortcuts
from interp_toolkit.model.trial import shortcuts_of
from interp_toolkit.model.verify import verified


class Plan:
    """Cells over base runs, packed; `run` carries it out. Make it with `make_plan`.

    Args:
        schedule: what has to be computed.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    @property
    def known(self) -> tuple[int, ...]:
        """Numbers of the cells that are certain to equal their base run."""
        return self.schedule.known

    @property
    def cost(self) -> Cost:
        """What it costs, against one full pass per cell."""
        return self.schedule.cost

    def explain(self) -> str:
        """What it does and costs, in words."""
        return self.cost.summary()

    def run(self, *, progress: bool = False) -> Execution:
        """Carry it out.

        Raises:
            RunError: when even one row does not fit into memory.
        """
        return Execution(self.schedule, progress=progress)


def make_plan(
    model: nn.Module,
    bases: Sequence[Base],
    cells: Sequence[Cell],
    *,
    logits: PositionsLike = "last",
    vocab: Sequence[Sequence[int]] | None = None,
    read: SitesLike = (),
    memory: int | None = None,
    shortcuts: Shortcuts | None = None,
    layout: Layout | None = None,
) -> Plan:
    """Plan many edited runs.

    Args:
        model: a causal language model, as it is.
        bases: runs of one prompt each, edited or not.
        cells: edited runs, each a base run with more changes.
        logits: positions whose logits are wanted, as many in each prompt. With `read` and without `vocab` they may be
            left out: `logits=[]`.
        vocab: for each base run the tokens whose logits are wanted; all if it is not given.
        read: sites to read in every cell.
        memory: bytes that the passes may take; by default half of what is free.
        shortcuts: which shortcuts to use; those that are proved on this model if it is not given.
        layout: for a model class of your own.

    Raises:
        RunError: when there is nothing to do, or positions differ in number.
        SiteError, PositionError, EditError: for changes that do not fit.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from interp_toolkit.model import Site, encode
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> bases = [Base(tokens=encode([[1, 2, 3]])), Base(tokens=encode([[1, 4, 3]]))]
        >>> cells = [Cell(base=0, swaps=(Swap(site=Site("resid_pre", 1), source=1, positions=(p,)),)) for p in range(3)]
        >>> plan = make_plan(model, bases, cells)
        >>> plan.known, sum(len(answer.cells) for answer in plan.run())
        ((0,), 3)
    """
    wiring = verified(model, layout)
    reads = expand(read, wiring) if read else []
    task = task_of(bases, cells, logits=logits, vocab=vocab, reads=reads)
    return Plan(Schedule(wiring, task, shortcuts or shortcuts_of(wiring), memory))


__all__ = ["Answer", "Base", "Cell", "Cost", "Plan", "Swap", "make_plan"]
