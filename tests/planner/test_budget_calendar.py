"""A ceiling over a period's end: through whole planning rounds on an injected clock, to the routes that gateways get.

Where days begin was worked out by hand from the time zone database's rules, not by the code under test.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from api_server import NAMESPACE, Demand, Server, budget, external, policy, route

from tierwise import planner
from tierwise.render.envoy import gateway
from tierwise.render.envoy.options import GatewayOptions

# 6 requests/s of 600 + 200 tokens at 3 and 15 a million.
RATE = 6 * (600 * 3 + 200 * 15) / 1e6
ROUND_SECONDS = 5.0
CEILING = "4.00"  # 139 s of it

CASES = {
    # (period, zone): when it ends, and when the one after it does (UTC)
    "a quarter of an hour beside the hour": ("Day", "Asia/Kathmandu", "2026-11-25T18:15", "2026-11-26T18:15"),
    "a day of 25 hours": ("Day", "America/New_York", "2026-11-01T04:00", "2026-11-02T05:00"),
    "a day of 23 hours": ("Day", "Europe/Berlin", "2026-03-28T23:00", "2026-03-29T22:00"),
    "a clock that is set back by half an hour": ("Day", "Australia/Lord_Howe", "2026-04-04T13:00", "2026-04-05T13:30"),
    "a midnight that does not exist": ("Day", "America/Santiago", "2026-09-06T04:00", "2026-09-07T03:00"),
    "a month in which summer begins": ("Month", "Europe/London", "2026-03-01T00:00", "2026-03-31T23:00"),
    "the year's end, far ahead of UTC": ("Month", "Pacific/Kiritimati", "2026-12-31T10:00", "2027-01-31T10:00"),
    "the shortest month of a leap year": ("Month", "Pacific/Marquesas", "2028-02-01T09:30", "2028-03-01T09:30"),
    "a week, from Monday": ("Week", "Pacific/Chatham", "2026-11-29T10:15", "2026-12-06T10:15"),
}


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def routes(server: Server) -> str:
    """All that gateways would be sent."""
    config = gateway.render(server.world(), GatewayOptions())
    return repr(config.namespaces[NAMESPACE])


def rounds(server: Server, until: datetime) -> None:
    while server.now < until:
        server.measure(ROUND_SECONDS)
        server.carry_out(planner.plan(server.world()))
        server.later(ROUND_SECONDS)


def made(period: str, zone: str, now: datetime, **spec: Any) -> Server:
    ceiling = budget(
        "month", CEILING, period=period, timeZone=zone, ladder=[{"atPercent": 100, "action": "Deny"}], **spec
    )
    tiers = [external("provider", prices=("3.00", "15.00"))]
    chat = policy("chat", [route("all", ["provider"])], rebalance={"mode": "Manual"})
    server = Server([*tiers, chat, ceiling], demands={("chat", "all"): Demand(6.0)}, now=now)
    for manifest in list(server.objects.values()):
        manifest["metadata"]["creationTimestamp"] = (now - timedelta(hours=1)).isoformat()
        server.put(manifest)
    return server


@pytest.mark.parametrize(("period", "zone", "end", "after"), CASES.values(), ids=CASES)
def test_what_was_denied_is_served_again_from_the_zones_midnight_on(
    period: str, zone: str, end: str, after: str
) -> None:
    ends, next_ends = utc(end), utc(after)
    server = made(period, zone, ends - timedelta(seconds=180))
    rounds(server, ends - timedelta(seconds=1))
    status = server.status("NamespaceBudget", "month")
    assert status["enforcement"]["action"] == "Deny"
    assert status["enforcement"]["resetsAt"] == f"{ends:%Y-%m-%dT%H:%M:%SZ}"
    assert f"{NAMESPACE}/month is exhausted" in routes(server)
    assert f"until it resets at {ends:%Y-%m-%dT%H:%M:%SZ}" in routes(server)
    assert f"{ends:%a, %d %b %Y %H:%M:%S} GMT" in routes(server)
    # The first round of the new period takes it back.
    server.later(max(0.0, (ends - server.now).total_seconds()))
    rounds(server, ends + timedelta(seconds=1))
    status = server.status("NamespaceBudget", "month")
    assert status["period"] == {"start": f"{ends:%Y-%m-%dT%H:%M:%SZ}", "end": f"{next_ends:%Y-%m-%dT%H:%M:%SZ}"}
    assert "enforcement" not in status
    assert "rung" not in status
    assert "is exhausted" not in routes(server)
    assert float(status["spent"]) <= 2 * ROUND_SECONDS * RATE + 0.01, "only what the new period used"
    # And it counts: the new one denies in its turn, until its own end.
    rounds(server, ends + timedelta(seconds=180))
    status = server.status("NamespaceBudget", "month")
    assert status["enforcement"]["resetsAt"] == f"{next_ends:%Y-%m-%dT%H:%M:%SZ}"
    assert f"until it resets at {next_ends:%Y-%m-%dT%H:%M:%SZ}" in routes(server)
