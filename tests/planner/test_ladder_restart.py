"""An operator that restarts gives nothing back: the rung that a status shows holds, also one reached in flight."""

from datetime import datetime, timedelta

import pytest
from api_server import NAMESPACE, Demand, Server, budget, external, policy, route

from tierwise import planner
from tierwise.core import ledger
from tierwise.core.ledger import Ledger
from tierwise.core.memory import LoopMemory
from tierwise.core.signals import Missing, Signals


def made(action: str, **spec: object) -> Server:
    """6 requests/s for 0.0288 a second."""
    ladder = [{"atPercent": 50, "action": action}]
    return Server(
        [
            external("provider", prices=("3.00", "15.00")),
            external("cheap", prices=("0.30", "1.50")),
            policy("chat", [route("all", ["provider", "cheap"])], rebalance={"mode": "Manual"}),
            budget("month", "8.00", ladder=ladder, **spec),
        ],
        demands={("chat", "all"): Demand(6.0)},
    )


def rounds(server: Server, count: int, *, measured: bool = True) -> None:
    for _ in range(count):
        if measured:
            server.measure()
        server.carry_out(planner.plan(server.world()))
        server.later(5)


def restart(server: Server) -> None:
    server.store.forget_usage()
    server.store.ledger, server.store.memory = Ledger(), LoopMemory()


def until_the_rung(server: Server) -> dict:
    for _ in range(60):
        rounds(server, 1)
        if "rung" in server.status("NamespaceBudget", "month"):
            return server.status("NamespaceBudget", "month")
    raise AssertionError("no rung within five minutes")


@pytest.mark.parametrize("action", ["Notify", "Downgrade", "Throttle", "Deny"])
def test_a_rung_that_was_reached_by_what_was_in_flight_outlives_a_restart(action: str) -> None:
    server = made(action)
    before = until_the_rung(server)
    spent = ledger.spend(server.store.ledger.accounts[NAMESPACE, "month"]).total
    assert spent < 4, "in flight counts"
    server.demands["chat", "all"].rate = 0.0
    restart(server)
    for measured in (False, True):  # before Prometheus has answered, and after
        rounds(server, 6, measured=measured)
        after = server.status("NamespaceBudget", "month")
        assert after["rung"] == before["rung"]
        assert after["since"] == before["since"]
        assert after.get("enforcement", {}).get("action") == before.get("enforcement", {}).get("action")
        assert after.get("enforcement", {}).get("since") == before.get("enforcement", {}).get("since")


def test_a_ceiling_that_was_raised_meanwhile_counts_once_spend_is_seen() -> None:
    server = made("Deny")
    until_the_rung(server)
    server.demands["chat", "all"].rate = 0.0
    restart(server)
    server.change("NamespaceBudget", "month", ceiling="100.00")
    server.store.put_signals(Signals(time=server.now, gateways_up=Missing("not yet"), error="not yet"))
    rounds(server, 1)
    assert "rung" not in server.status("NamespaceBudget", "month")


def test_the_period_after_a_restart_starts_without_a_rung() -> None:
    server = made("Deny", period="Day")
    until_the_rung(server)
    server.demands["chat", "all"].rate = 0.0
    restart(server)
    midnight = server.now.replace(hour=0, minute=0, second=0) + timedelta(days=1)
    server.later((midnight - server.now).total_seconds() + 5)
    rounds(server, 2)
    status = server.status("NamespaceBudget", "month")
    assert "rung" not in status
    assert "enforcement" not in status


def test_while_nobody_counts_a_tier_that_others_fall_back_to_is_taken_for_used() -> None:
    """A free tier may be failing over to a paid one all the while."""
    tiers = [{"name": "free", "weight": 100}, {"name": "paid", "weight": 0}]
    fallback = {"when": ["ServerError"], "attempts": 2}
    server = Server(
        [
            external("free", prices=("0", "0")),
            external("paid", prices=("3.00", "15.00")),
            policy("chat", [route("all", tiers, fallback=fallback)], rebalance={"mode": "Manual"}),
            budget("month", "20.00", ladder=[{"atPercent": 100, "action": "Deny"}]),
        ],
        demands={("chat", "all"): Demand(6.0)},
    )
    rounds(server, 12)
    server.store.put_signals(Signals(time=server.now, gateways_up=Missing("down"), error="connection refused"))
    gone = server.now
    rounds(server, 2, measured=False)
    assert "enforcement" not in server.status("NamespaceBudget", "month")
    rounds(server, 150, measured=False)
    denied = server.status("NamespaceBudget", "month")["enforcement"]
    assert denied["action"] == "Deny"
    after = (datetime.fromisoformat(denied["since"]) - gone).total_seconds()
    assert 0.0288 * after <= 20, "what it can have cost until then is within the ceiling"
