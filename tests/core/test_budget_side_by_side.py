"""A budget that is reached while calls are under way: they are paid for, so they are kept."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest
from pydantic import BaseModel

from stroma import (
    ExecutionResult,
    InMemoryStore,
    RunStatus,
    StromaRunner,
    fan_out,
    node,
    parallel,
)


class Item(BaseModel):
    number: int


class Items(BaseModel):
    items: list[Item]


ITEMS = Items(items=[Item(number=n) for n in range(40)])


class Shop:
    """Charges 100 tokens when a call begins, and takes its time to answer."""

    def __init__(self) -> None:
        self.charged: list[int] = []

    async def call(self, number: int, milliseconds: float) -> int:
        self.charged.append(number)
        await asyncio.sleep(milliseconds / 1000)
        return 100


@pytest.fixture
def shop() -> Shop:
    return Shop()


async def ask_for_all(shop: Shop, store: InMemoryStore, tokens: int) -> ExecutionResult:
    @node
    async def ask(item: Item) -> tuple[Item, int]:
        return item, await shop.call(item.number, 1 + item.number % 5)

    each = fan_out(ask, over="items", into="answers", max_concurrency=10)
    runner = StromaRunner.quick(store=store).with_budget(tokens=tokens)
    return await runner.run([each], ITEMS, run_id="r")


async def test_items_under_way_are_kept_and_none_begins(shop: Shop) -> None:
    store = InMemoryStore()
    stopped = await ask_for_all(shop, store, 1000)
    assert stopped.status is RunStatus.PARTIAL
    assert stopped.in_doubt == ()
    assert stopped.tokens == 100 * len(shop.charged)
    assert f"{stopped.tokens} " in stopped.stop_reason  # not what it was when the first one stopped
    assert len(shop.charged) <= 10 + 9  # what the budget is for, and what was under way then
    done = await ask_for_all(shop, store, 100_000)
    assert done.status is RunStatus.RESUMED
    assert sorted(shop.charged) == list(range(40))  # each was bought once
    assert done.tokens == 4000


async def test_children_under_way_are_kept(shop: Shop) -> None:
    @node
    async def slow(state: Item) -> tuple[Item, int]:
        return state, await shop.call(1, 20)

    @node
    async def quick(state: Item) -> tuple[Item, int]:
        return state, await shop.call(2, 1)

    slowly = fan_out(slow, over="items", into="slow", input=Items)
    one_by_one = fan_out(quick, over="items", into="quick", max_concurrency=1, input=Items)
    runner = StromaRunner.quick(store="memory").with_budget(tokens=100)
    two = Items(items=ITEMS.items[:2])
    result = await runner.run([parallel(slowly, one_by_one)], two)
    assert result.status is RunStatus.PARTIAL
    assert result.in_doubt == ()
    assert sorted(shop.charged) == [1, 1, 2]
    assert result.tokens == 300


async def test_an_unknown_price_lets_calls_under_way_be_recorded(shop: Shop) -> None:
    @node
    async def ask(item: Item) -> tuple[Item, int, str]:
        return item, await shop.call(item.number, 1 + item.number % 5), "nobody-knows"

    each = fan_out(ask, over="items", into="answers", max_concurrency=10)
    runner = StromaRunner.quick(store="memory").with_budget(cost_usd=Decimal(1))
    result = await runner.run([each], ITEMS, run_id="r")
    assert result.status is RunStatus.FAILED
    assert result.in_doubt == ()
    assert result.tokens == 100 * len(shop.charged)
    assert len(shop.charged) < 20
