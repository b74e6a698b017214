"""What the status says of earned quality, round after round: while nobody counts, after a restart, and at rest."""

from itertools import pairwise
from typing import Any

from api_server import Demand, Server, external, in_cluster, policy, route

from tierwise import planner
from tierwise.core.memory import LoopMemory
from tierwise.core.signals import Missing, Signals


def average(*, noise: float = 0.0) -> Server:
    """Two tiers around a floor that holds on average."""
    scores = {"own": "0.90", "provider": "0.70"}
    quality = {name: [{"task": "qa", "score": score}] for name, score in scores.items()}
    wanted = {
        "task": "qa",
        "quality": {"minScore": "0.85", "holds": "OnAverage"},
        "fallback": {"when": ["Saturated"]},
    }
    tiers = [{"name": "own", "weight": 75}, {"name": "provider", "weight": 25}]
    return Server(
        [
            in_cluster("own", price="6.00", low=1, rps="8", quality=quality["own"]),
            external("provider", prices=("0.05", "0.10"), quality=quality["provider"]),
            policy("chat", [route("all", tiers, **wanted)], rebalance={"interval": "5s", "cooldown": "30s"}),
        ],
        {("chat", "all"): Demand(20.0)},
        startup_seconds=5.0,
        noise=noise,
        seed=5,
    )


def rounds(server: Server, count: int, *, measured: bool = True) -> list[bool | None]:
    """What was said of it after each round."""
    said: list[bool | None] = []
    for _ in range(count):
        if measured:
            server.measure(5.0)
        server.carry_out(planner.plan(server.world()))
        server.control()
        server.later(5.0)
        said.append(shown(server).get("relievedBelowFloor"))
    return said


def shown(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = server.status("RoutingPolicy", "chat")["classes"][0]
    return found


def test_it_does_not_come_and_go() -> None:
    said = rounds(average(noise=0.03), 720)
    assert said[-1] is True
    assert sum(before != after for before, after in pairwise(said)) == 1


def test_what_nobody_counts_is_not_spent() -> None:
    server = average()
    assert rounds(server, 360)[-1] is True
    server.store.put_signals(Signals(time=server.now, gateways_up=Missing("down"), error="connection refused"))
    gone = rounds(server, 24, measured=False)
    assert gone[0] is True, "one answer that is missing says nothing"
    assert gone[-1] is False
    assert shown(server)["reason"] == "MetricsStale"
    # What was counted is not forgotten.
    assert rounds(server, 12)[-1] is True


def test_a_restart_begins_with_nothing() -> None:
    server = average()
    assert rounds(server, 360)[-1] is True
    server.store.memory = LoopMemory()
    said = rounds(server, 2)
    assert said[-1] is False
