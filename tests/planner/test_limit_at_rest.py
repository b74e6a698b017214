"""The limit of requests in flight follows the mix of a tier's classes, and not its noise."""

from api_server import Demand, Server, external, in_cluster, policy, route

from tierwise import planner

TIERS = [{"name": "own", "weight": 100}, {"name": "provider", "weight": 0}]


def shared() -> Server:
    """Two classes on one tier, of which one is relieved."""
    classes = [route("asked", TIERS, fallback={"when": ["Saturated"]}), route("waits", TIERS)]
    return Server(
        [
            in_cluster("own", price="1.00", low=1, rps="8"),
            external("provider", prices=("3.00", "15.00")),
            policy("chat", classes),
        ],
        {("chat", "asked"): Demand(4.0), ("chat", "waits"): Demand(4.0)},
        startup_seconds=5.0,
        noise=0.2,
        seed=3,
    )


def rounds(server: Server, count: int) -> list[int]:
    """The limits that the tier's status shows one after another."""
    shown: list[int] = []
    for _ in range(count):
        server.measure(5.0)
        server.carry_out(planner.plan(server.world()))
        server.control()
        server.later(5.0)
        limit = server.status("ModelTier", "own").get("capacity", {}).get("concurrentRequests")
        if limit is not None and shown[-1:] != [limit]:
            shown.append(limit)
    return shown


def test_noise_of_a_fifth_moves_no_limit_every_minute() -> None:
    server = shared()
    rounds(server, 120)
    before = server.writes
    assert len(rounds(server, 360)) <= 20, "half an hour"
    assert server.writes - before <= 20


def test_the_limit_falls_at_once_when_a_class_that_waits_takes_more() -> None:
    server = shared()
    server.noise = 0.0
    (before,) = rounds(server, 60)[-1:]
    server.demands["chat", "waits"].rate = 12.0
    (after,) = rounds(server, 6)[-1:]
    assert after < 0.6 * before
