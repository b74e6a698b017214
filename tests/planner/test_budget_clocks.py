"""Clocks that are set or differ, and periods that somebody changes: nothing is forgotten, and nothing counts twice."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from api_server import NAMESPACE, Demand, Server, budget, external, in_cluster, policy, route

from tierwise import planner
from tierwise.core import book, ledger
from tierwise.core.ledger import Account, Ledger
from tierwise.core.memory import LoopMemory
from tierwise.core.signals import Missing, Signals

ROUND_SECONDS = 5.0
EACH = Decimal("0.0048")  # 600 + 200 tokens at 3 and 15 a million
END = datetime(2026, 11, 30, 23, 0, tzinfo=UTC)  # of November in Berlin
CENT = Decimal("0.01")


def made(now: datetime, *more: dict[str, Any], **spec: Any) -> Server:
    ceiling = budget("month", "1000", timeZone="Europe/Berlin", **spec)
    chat = policy("chat", [route("all", ["provider"])], rebalance={"mode": "Manual"})
    server = Server(
        [external("provider", prices=("3.00", "15.00")), chat, ceiling, *more],
        demands={("chat", "all"): Demand(6.0)},
        now=now,
    )
    for manifest in list(server.objects.values()):
        manifest["metadata"]["creationTimestamp"] = (now - timedelta(hours=1)).isoformat()
        server.put(manifest)
    return server


def rounds(server: Server, seconds: float, *, measured: bool = True) -> Decimal:
    """Go on for so long; what was asked of the provider meanwhile costs so much."""
    count = round(seconds / ROUND_SECONDS)
    for _ in range(count):
        server.later(ROUND_SECONDS)
        if measured:
            server.measure(ROUND_SECONDS)
        server.carry_out(planner.plan(server.world()))
        server.control()
    return count * Decimal(str(ROUND_SECONDS)) * 6 * EACH if measured else Decimal(0)


def account(server: Server) -> Account:
    return server.store.ledger.accounts[NAMESPACE, "month"]


def both_months(server: Server) -> tuple[Decimal, Decimal]:
    """What lines say of the month before, and of this one."""
    held = account(server)
    earlier = sum((line.cost for lines in held.book.earlier.values() for line in lines.values()), Decimal(0))
    assert book.total(held.book).cost == ledger.spend(held).total - held.pending
    return earlier, ledger.spend(held).total


def restart(server: Server) -> None:
    """All that is left is what was written."""
    server.store.forget_usage()
    server.store.ledger, server.store.memory = Ledger(), LoopMemory()


@pytest.mark.parametrize("ahead", [-40.0, -3.0, 0.0, 3.0, 40.0, 85.0])
def test_a_month_that_ends_by_two_clocks_loses_nothing(ahead: float) -> None:
    """Scrapes are stamped by Prometheus, the month ends by the operator's clock."""
    server = made(END - timedelta(seconds=200))
    server.ahead_seconds = ahead
    used = rounds(server, 190)
    used += rounds(server, 200)
    earlier, now = both_months(server)
    assert earlier + now == used
    # What each side lacks or has too much is what came within the difference.
    assert abs(earlier - 200 * 6 * EACH) <= Decimal(str(abs(ahead) + ROUND_SECONDS)) * 6 * EACH


def test_what_was_first_read_after_a_month_had_ended_is_charged_to_that_month() -> None:
    """The budget was made while the reader was on its way through a day that nobody had scraped."""
    server = made(END - timedelta(seconds=60))
    rounds(server, 120, measured=False)
    assert both_months(server) == (0, 0)
    for server.ahead_seconds in (-60.0, 0.0):  # read apart at the month's end
        server.measure(60.0)
    server.carry_out(planner.plan(server.world()))
    earlier, now = both_months(server)
    assert (earlier, now) == (60 * 6 * EACH, 60 * 6 * EACH)
    [day] = account(server).book.earlier
    assert day == END - timedelta(days=1)


def test_a_round_is_made_when_a_month_ends() -> None:
    server = made(END - timedelta(seconds=18))
    rounds(server, 5)
    left = (END - server.now).total_seconds()
    assert left <= planner.plan(server.world()).next_round_seconds <= left + 0.1


@pytest.mark.parametrize("back", [90.0, 1800.0, 3600.0, 23 * 3600.0])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_month_that_has_ended_does_not_begin_again(back: float, *, restarted: bool) -> None:
    server = made(END - timedelta(seconds=100))
    used = rounds(server, 200)
    before = both_months(server)
    period = server.status("NamespaceBudget", "month")["period"]
    assert period["start"] == f"{END:%Y-%m-%dT%H:%M:%SZ}"
    server.later(-back)
    server.ahead_seconds = back
    if restarted:
        server.change("NamespaceBudget", "month", ceiling="1001")  # has the figures written
        server.later(ROUND_SECONDS)
        server.carry_out(planner.plan(server.world()))
        restart(server)
    after = rounds(server, 60)
    if not restarted:
        assert both_months(server) == (before[0], before[1] + after)
        assert sum(both_months(server)) == used + after
    assert server.status("NamespaceBudget", "month")["period"] == period
    assert abs(ledger.spend(account(server)).total - before[1] - after) <= CENT
    # When the clock is there again nothing ends a second time.
    server.later(back)
    server.ahead_seconds = 0.0
    rounds(server, 10)
    assert server.status("NamespaceBudget", "month")["period"] == period


def test_figures_are_written_also_while_the_clock_is_late() -> None:
    server = made(END + timedelta(hours=3))
    rounds(server, 30)
    server.later(-3600)
    server.ahead_seconds = 3600.0
    rounds(server, 320)
    assert Decimal(server.status("NamespaceBudget", "month")["spent"]) > 300 * 6 * EACH


def test_a_clock_that_was_wrong_by_a_year_does_not_stop_the_count() -> None:
    server = made(END.replace(year=2027), in_cluster("own", price="36.00"))
    server.ahead_seconds = -365 * 86_400.0  # Prometheus' is right
    rounds(server, 30)
    server.now = END + timedelta(hours=1)
    server.ahead_seconds = 0.0
    before, replicas = ledger.spend(account(server)).total, account(server).entries["own"].replica_seconds
    rounds(server, 60)
    status = server.status("NamespaceBudget", "month")
    assert status["period"]["start"] == f"{END:%Y-%m-%dT%H:%M:%SZ}"
    found = account(server).entries
    assert found["own"].replica_seconds >= replicas + 55, "replicas count again"
    assert ledger.spend(account(server)).total >= before + 50 * (6 * EACH + Decimal("0.01"))


@pytest.mark.parametrize(
    ("period", "start"),
    [("Day", datetime(2026, 11, 24, 23, tzinfo=UTC)), ("Week", datetime(2026, 11, 22, 23, tzinfo=UTC))],
)
def test_a_shorter_period_keeps_what_its_time_has_cost(period: str, start: datetime) -> None:
    server = made(start - timedelta(seconds=900), in_cluster("own", price="36.00"))
    rounds(server, 900)
    before = ledger.spend(account(server)).total
    used = rounds(server, 900)
    since = ledger.spend(account(server)).total - before
    assert since > used
    server.change("NamespaceBudget", "month", period=period)
    more = rounds(server, ROUND_SECONDS)
    held = account(server)
    assert held.start == start
    spent = ledger.spend(held)
    assert spent.total == since + more + 5 * 36 / Decimal(3600)
    assert spent.estimated == 0
    assert book.total(held.book).cost == spent.total
    status = server.status("NamespaceBudget", "month")
    assert status["period"]["start"] == f"{start:%Y-%m-%dT%H:%M:%SZ}"
    assert Decimal(status["spent"]) == spent.total.quantize(CENT)


def test_a_budget_that_is_made_while_nobody_counts_takes_the_worst_case_from_then_on() -> None:
    server = made(END - timedelta(days=3))
    rounds(server, 60)
    gone = Signals(time=server.now, gateways_up=Missing("gone"), error="gone")
    server.store.put_signals(gone)
    server.put(budget("later", "1000"))
    rounds(server, 300, measured=False)
    made_then = server.store.ledger.accounts[NAMESPACE, "later"]
    found = ledger.spend(made_then)
    assert found.counted == 0
    assert found.estimated >= 290 * 6 * EACH, "from its creation"


def test_an_operator_whose_clock_is_late_takes_the_worst_case_all_the_same() -> None:
    server = made(END - timedelta(days=3))
    server.ahead_seconds = 3600.0
    used = rounds(server, 60)
    server.store.put_signals(Signals(time=server.now, gateways_up=Missing("gone"), error="gone"))
    rounds(server, 300, measured=False)
    found = ledger.spend(account(server))
    assert found.counted == used
    assert found.estimated >= 290 * 6 * EACH


def test_what_is_gone_is_forgotten() -> None:
    server = made(END - timedelta(days=3), in_cluster("brief"), budget("other", "50"))
    rounds(server, 30)
    assert set(account(server).seen) == {"brief", "provider"}
    assert {name for _, name in server.store.memory.ladders} == {"month", "other"}
    for kind, name in (("ModelTier", "brief"), ("NamespaceBudget", "other")):
        gone = server.objects.pop((kind, name))
        server.store.remove(server._kind(gone), gone)
    rounds(server, 30)
    assert "brief" in account(server).seen, "what is left of it may still be read"
    assert {name for _, name in server.store.memory.ladders} == {"month"}
    server.later(6 * 3600)
    rounds(server, 30)
    assert set(account(server).seen) == {"provider"}
    assert "brief" in account(server).entries, "what it cost stays"
