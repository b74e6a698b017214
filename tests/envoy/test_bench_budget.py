"""A day of the bench, with its budget, through real gateways: the bench itself must work, and its promises hold."""

import dataclasses
from decimal import Decimal

import bench_budget
import month_story
import pytest
from month import play
from month_demand import month
from month_objects import Price
from month_story import Outcome
from month_wire import Tokens

DAY = dataclasses.replace(month_story.DAY, ceiling=Decimal("21.00"))
"""About 60 % of what the day costs without a ceiling."""


async def test_a_days_ceiling_holds_through_real_gateways(tmp_path):
    outcome = await play(tmp_path, DAY)
    verdict = bench_budget.Verdict(Decimal(35), outcome)
    print(bench_budget.table(bench_budget.rows([verdict])))
    print(bench_budget.rungs(verdict))
    # A killed gateway takes with it what it counted since its last scrape: how much that is depends on the machine.
    apart, whole = outcome.mistold()
    assert apart == outcome.lost_tokens
    assert apart < 0.1 * whole
    alone = dataclasses.replace(
        outcome,
        counted=outcome.counted + outcome.lost,
        told=outcome.told + outcome.lost,
        by_origin=outcome.seen.by_caller,
    )
    assert bench_budget.Verdict(Decimal(35), alone).broken() == []
    assert outcome.seen.refused.total() > 100
    assert outcome.downgraded > 0
    assert {action for _, action in outcome.rungs} >= {"Downgrade", "Throttle"}


def made(**fields) -> list[str]:
    """What is found broken in a made-up run."""
    outcome = Outcome(dataclasses.replace(DAY, ceiling=Decimal(100)), spent=Decimal(100), counted=Decimal(100))
    outcome.seen.by_caller["chat", "mini", "app"] = Tokens(10, 500, 0, 500)
    outcome.by_origin["chat", "mini", "app"] = Tokens(0, 500, 0, 500)
    outcome.steepest, outcome.after[200] = Decimal("0.5"), 5
    for name, value in fields.items():
        setattr(outcome, name, value)
    outcome.told = fields.get("told", outcome.counted)
    return bench_budget.Verdict(Decimal(200), outcome).broken()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"spent": Decimal("101.6"), "counted": Decimal("101.6")}, "overspent by 1.60, the bound is 1.50"),
        ({"spent": Decimal(94), "counted": Decimal(94), "kept_out": Decimal(6)}, "6.00 unused"),
        ({"counted": Decimal("100.1")}, "the ledger is +0.100 % off"),
        ({"counted": Decimal("99.9")}, "the ledger is -0.100 % off"),
        ({"told": Decimal("100.01")}, "add up to 100.01"),
        ({"by_origin": {("chat", "mini", "tool"): Tokens(0, 1, 0, 0)}}, "1001 of 1000 tokens"),
        ({"unbalanced": ["frontier: ..."]}, "frontier"),
        ({"after": {429: 1, 200: 3}}, "the next period"),
    ],
)
def test_a_promise_that_is_broken_is_named(fields, words):
    (found,) = made(**fields)
    assert words in found


def test_what_is_within_the_bounds_is_no_fault():
    assert made() == []
    assert made(spent=Decimal("101.4"), counted=Decimal("101.4")) == []
    assert made(spent=Decimal(94), counted=Decimal(94)) == []  # all demand was met


def test_equal_seeds_give_equal_demand():
    first, second = ([*month(DAY.start, 1, DAY.step, 500, seed)] for seed in (7, 7))
    assert first == second
    assert 400 < sum(map(len, first)) < 600
    assert first != [*month(DAY.start, 1, DAY.step, 500, 8)]


def test_cached_tokens_are_part_of_the_prompt():
    price = Price(Decimal(10), Decimal(1), Decimal(100))
    assert price.of(Tokens(1, prompt=1_000_000, cached=500_000, completion=10_000)) == Decimal("6.5")
