"""Packing: every job once, in passes that fit and cost no more than simpler ways."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp_toolkit.model.packing import Pass, Shape, pack

settings.register_profile("quick", max_examples=60, deadline=None)
settings.load_profile("quick")


@dataclass(frozen=True)
class Job:
    number: int
    entry: int
    first: int


LENGTH, LAYERS = 12, 5


@st.composite
def jobs(draw: st.DrawFn) -> list[Job]:
    pairs = draw(st.lists(st.tuples(st.integers(0, LAYERS - 1), st.integers(0, LENGTH - 1)), max_size=30))
    return [Job(n, entry, first) for n, (entry, first) in enumerate(pairs)]


shapes = st.builds(
    Shape,
    layers=st.just(LAYERS),
    join=st.booleans(),
    prefix=st.booleans(),
    overhead=st.integers(0, 60),
    limit=st.integers(1, 400),
)


def cost(passes: list[Pass[Job]], shape: Shape, entry: int) -> int:
    return sum(p.layer_tokens(shape.layers) for p in passes) + len(passes) * (shape.layers - entry) * shape.overhead


@given(jobs(), shapes)
def test_every_job_is_in_exactly_one_pass(some: list[Job], shape: Shape) -> None:
    found = [job.number for made in pack(some, LENGTH, shape) for job in made.jobs]
    assert sorted(found) == [job.number for job in some]


@given(jobs(), shapes)
def test_a_pass_starts_at_or_before_the_first_change_of_its_rows(some: list[Job], shape: Shape) -> None:
    for made in pack(some, LENGTH, shape):
        firsts = [job.first for job in made.jobs]
        assert 0 <= made.start <= min(firsts)
        assert (made.length, made.width) == (LENGTH, LENGTH - made.start)
        if not shape.prefix:
            assert made.start == 0


@given(jobs(), shapes)
def test_a_pass_has_no_more_tokens_than_its_limit_or_a_single_row(some: list[Job], shape: Shape) -> None:
    for made in pack(some, LENGTH, shape):
        assert len(made.jobs) == 1 or len(made.jobs) * made.width <= shape.limit


@given(jobs(), shapes)
def test_rows_come_in_the_order_in_which_they_enter(some: list[Job], shape: Shape) -> None:
    for made in pack(some, LENGTH, shape):
        entries = [job.entry for job in made.jobs]
        assert entries == sorted(entries)
        if not shape.join:
            assert len(set(entries)) == 1


@given(jobs(), shapes)
def test_passes_that_split_one_group_are_of_nearly_equal_size(some: list[Job], shape: Shape) -> None:
    sizes: dict[tuple[int, int | None], list[int]] = {}
    for made in pack(some, LENGTH, shape):
        key = (made.start, None if shape.join else made.jobs[0].entry)
        sizes.setdefault(key, []).append(len(made.jobs))
    assert all(max(group) - min(group) <= 1 for group in sizes.values())


@given(jobs(), shapes)
def test_the_cost_is_never_more_than_one_pass_per_first_position_nor_than_one_for_all(
    some: list[Job], shape: Shape
) -> None:
    if not some:
        assert pack(some, LENGTH, shape) == []
        return
    shape = replace(shape, prefix=True, join=True, limit=10**9)
    entry = min(job.entry for job in some)
    found = cost(pack(some, LENGTH, shape), shape, entry)
    starts = sorted({job.first for job in some})
    each = [Pass(length=LENGTH, start=s, jobs=tuple(j for j in some if j.first == s)) for s in starts]
    assert found <= cost(each, shape, entry)
    assert found <= cost([Pass(length=LENGTH, start=starts[0], jobs=tuple(some))], shape, entry)


@given(jobs(), st.integers(0, 60))
def test_of_all_ways_to_group_neighbouring_positions_the_cheapest_is_taken(some: list[Job], overhead: int) -> None:
    some = [job for job in some if job.first < 6]
    if not some:
        return
    shape = Shape(layers=LAYERS, join=True, prefix=True, overhead=overhead, limit=10**9)
    starts, entry = sorted({job.first for job in some}), min(job.entry for job in some)
    costs = []
    for cuts in range(2 ** (len(starts) - 1)):
        begins = [s for n, s in enumerate(starts) if n == 0 or cuts >> (n - 1) & 1]
        ends = [*begins[1:], LENGTH]
        parts = [tuple(j for j in some if a <= j.first < b) for a, b in zip(begins, ends, strict=True)]
        costs.append(
            cost([Pass(length=LENGTH, start=a, jobs=p) for a, p in zip(begins, parts, strict=True)], shape, entry)
        )
    assert cost(pack(some, LENGTH, shape), shape, entry) == min(costs)


@pytest.mark.parametrize(("overhead", "starts"), [(0, [2, 5, 9]), (10**6, [2])])
def test_passes_are_shared_where_starting_one_costs_more_than_it_saves(overhead: int, starts: list[int]) -> None:
    some = [Job(n, 0, first) for n, first in enumerate([9, 2, 5, 5])]
    shape = Shape(layers=LAYERS, join=True, prefix=True, overhead=overhead, limit=10**6)
    assert sorted(made.start for made in pack(some, LENGTH, shape)) == starts


def test_what_a_pass_costs() -> None:
    made = Pass(length=10, start=4, jobs=(Job(0, 0, 5), Job(1, 3, 4)))
    assert made.width == 6
    assert made.layer_tokens(5) == (5 + 2) * 6
